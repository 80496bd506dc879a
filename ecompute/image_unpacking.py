"""Unpacks a compressed image while it comes: gzip, xz, bzip2 and zstd, by what it begins with, never by its name.

Nothing here decides how much is unpacked: it is handed out in pieces of at most ``PIECE_BYTES``, and the caller stops asking
when it has had enough. What a decompressor may hold is bounded too (``MOST_MEMORY_BYTES``). A packed file may consist of
several members one behind the other, as pigz, pxz, pbzip2 and pzstd write them; it must end with the last of them. Knows
nothing of disks and of files. Called by ``images``.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from common.errors import ImageInvalid
from ecompute.zstd_frames import ZstdDecompressor, ZstdError

PIECE_BYTES = 256 * 1024
MOST_MEMORY_BYTES = 128 << 20  # xz -9 needs 65 MiB
# What is behind a member is copied for each one, so that a great many empty ones must not stand in one piece.
_FEED_BYTES = 32 * 1024
_GZIP_BITS = 31  # zlib: the largest window, with gzip's header and checksum


class _Member(Protocol):
    """What decodes one member, as ``lzma.LZMADecompressor`` does."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipMember:
    """zlib's decompressor with the attributes of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_GZIP_BITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(piece) < max_length
        return piece


@dataclass(frozen=True)
class _Packing:
    name: str
    magic: bytes
    member: Callable[[], _Member]
    may_be_padded: bool  # with zeros, between members and at the end


_PACKINGS = (
    _Packing("gzip", b"\x1f\x8b\x08", _GzipMember, may_be_padded=True),
    _Packing("xz", b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_MEMORY_BYTES), may_be_padded=True),
    _Packing("bzip2", b"BZh", bz2.BZ2Decompressor, may_be_padded=False),
    _Packing("zstd", b"\x28\xb5\x2f\xfd", ZstdDecompressor, may_be_padded=False),
)


def unpacker_of(head: bytes, what: str) -> Unpacker | None:
    """What unpacks the data that begins with *head*; None where it is not packed, or by nothing known here."""
    for packing in _PACKINGS:
        if head.startswith(packing.magic):
            return Unpacker(packing, what)
    return None


class Unpacker:
    """Unpacks one file, which is fed to it from its beginning on. *what* names it in errors."""

    def __init__(self, packing: _Packing, what: str) -> None:
        self._packing, self._what = packing, what
        self._member: _Member | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What *data* unpacks to, in pieces of at most ``PIECE_BYTES``; to be exhausted before the next call.

        Raises:
            ImageInvalid: it is damaged, needs too much memory, or goes on with something else.
        """
        for start in range(0, len(data), _FEED_BYTES):
            yield from self._unpacked(data[start : start + _FEED_BYTES])

    def finish(self) -> None:
        """There is no more data.

        Raises:
            ImageInvalid: there should be.
        """
        if self._member is not None:
            raise ImageInvalid(
                f"{self._what} is {self._packing.name}-compressed and cut off: it ends in the middle; fetch or upload it again"
            )

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None and self._packing.may_be_padded:
                data = data.lstrip(b"\0")
            if self._member is None and not data:
                return
            member, piece = self._decompress(data)
            if piece:
                yield piece
            data = b""
            if member.eof:
                data, self._member = member.unused_data, None
            elif member.needs_input:
                return

    def _decompress(self, data: bytes) -> tuple[_Member, bytes]:
        try:
            if self._member is None:
                self._member = self._packing.member()
            return self._member, self._member.decompress(data, PIECE_BYTES)
        except (zlib.error, lzma.LZMAError, ZstdError, OSError, EOFError, ValueError, MemoryError) as error:
            raise ImageInvalid(
                f"{self._what} is {self._packing.name}-compressed and cannot be unpacked: {error or 'out of memory'}; it is "
                f"damaged, needs more than {MOST_MEMORY_BYTES >> 20} MiB of memory for it, or has something else behind its end"
            ) from error
