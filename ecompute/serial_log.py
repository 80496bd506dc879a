"""A guest's serial log, read piece by piece from where the last reader ended, over the rotations of libvirt's virtlogd.

The log is ``console.log`` and what was rotated away from it, ``console.log.0`` (the newest) to ``.N``. A position is the number
of a file (its inode, which a rotation keeps) and an offset in it, so that nobody need remember a reader. Guests write whatever
they like here: it is bytes. Knows neither letters nor libvirt; called by ``guest_desk``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import file_errors

MOST_PARTS = 32  # rotated files; virtlogd keeps 3 unless it is told otherwise
_POSITION = re.compile(r"([0-9]{1,20}):([0-9]{1,19})")
_BLOCK_BYTES = 16 << 10


@dataclass(frozen=True)
class Piece:
    """A part of a log.

    Args:
        position: where the next piece begins.
        has_more: there is more behind it already.
        is_gap: what came before it was rotated away, or cut off.
    """

    data: bytes
    position: str
    has_more: bool = False
    is_gap: bool = False


@dataclass(frozen=True)
class _Part:
    descriptor: int
    inode: int
    size: int


def read_from(path: Path, position: str, most_bytes: int) -> Piece | None:
    """What the log *path* has behind *position*, "" for its begin; None where there is no log.

    Raises:
        ValueError: *position* is none.
        Permanent, Transient: it cannot be read.
    """
    inode, offset = _parsed(position)
    with _parts(path) as parts:
        if not parts:
            return None
        index = next((i for i, part in enumerate(parts) if part.inode == inode), 0)
        is_gap = bool(position) and parts[index].inode != inode
        if is_gap or parts[index].size < offset:
            offset, is_gap = 0, bool(position)
        data, position = _gathered(parts[index:], offset, most_bytes)
        return Piece(data, position, position != _end(parts), is_gap)


def read_tail(path: Path, lines: int, most_bytes: int) -> Piece | None:
    """The last *lines* lines of the log *path*, at most *most_bytes* of them; None where there is no log.

    Raises:
        Permanent, Transient: it cannot be read.
    """
    with _parts(path) as parts:
        if not parts:
            return None
        found = b""
        for part in reversed(parts):
            offset = part.size
            while offset and len(found) < most_bytes and found.count(b"\n", 0, -1) < lines:
                begin = max(0, offset - _BLOCK_BYTES)
                found = os.pread(part.descriptor, offset - begin, begin) + found
                offset = begin
        kept = b"".join(_lines(found)[-lines:]) if lines else b""
        return Piece(kept[-most_bytes:], _end(parts))


def _lines(data: bytes) -> list[bytes]:
    """*data* by line feeds only: a carriage return alone ends no line of a serial console."""
    return [line for line in re.split(rb"(?<=\n)", data) if line]


def _parsed(position: str) -> tuple[int, int]:
    if not position:
        return 0, 0
    match = _POSITION.fullmatch(position)
    if not match:
        raise ValueError(f"{position[:60]!r} is no position in a log")
    return int(match[1]), int(match[2])


def _end(parts: list[_Part]) -> str:
    return f"{parts[-1].inode}:{parts[-1].size}"


def _gathered(parts: list[_Part], offset: int, most_bytes: int) -> tuple[bytes, str]:
    """Up to *most_bytes* of *parts* from *offset* of the first, and the position behind it."""
    data = bytearray()
    for part in parts:
        wanted = min(part.size - offset, most_bytes - len(data))
        piece = os.pread(part.descriptor, wanted, offset)
        data += piece
        position = f"{part.inode}:{offset + len(piece)}"
        if len(piece) < wanted or len(data) >= most_bytes:
            break
        offset = 0
    return bytes(data), position


@contextlib.contextmanager
def _parts(path: Path) -> Iterator[list[_Part]]:
    """The files of the log, oldest first, open: what is rotated meanwhile is still read."""
    with contextlib.ExitStack() as opened, file_errors("cannot read the log", path):
        found: dict[int, _Part] = {}
        for name in (path, *(path.with_name(f"{path.name}.{number}") for number in range(MOST_PARTS))):
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                if name is path:
                    continue  # between the two renames of a rotation
                break
            opened.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            found.setdefault(status.st_ino, _Part(descriptor, status.st_ino, status.st_size))
        yield list(reversed(found.values()))
