"""Unpacking while it comes: every packing, in any slices, and nothing that a hostile file could do with memory or time."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ImageInvalid
from ecompute.image_unpacking import PIECE_BYTES, unpacker_of
from tests.support.packing import zstd
from tests.support.processes import ROOT

MIB = 1 << 20
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
}
CONTENT = random.Random(7).randbytes(700_000) + bytes(2 * MIB) + b"end"
each_packing = pytest.mark.parametrize("name", PACKERS)


def unpack(data: bytes, *, slice_bytes: int = 256 * 1024) -> bytes:
    unpacker = unpacker_of(data, "image x")
    assert unpacker
    pieces = []
    for start in range(0, len(data), slice_bytes):
        for piece in unpacker.feed(data[start : start + slice_bytes]):
            assert 0 < len(piece) <= PIECE_BYTES
            pieces.append(piece)
    unpacker.finish()
    return b"".join(pieces)


@each_packing
@pytest.mark.parametrize("slice_bytes", [1000, 32 * 1024, 10 * MIB])
def test_every_packing_is_unpacked_in_any_slices(name: str, slice_bytes: int) -> None:
    assert unpack(PACKERS[name](CONTENT), slice_bytes=slice_bytes) == CONTENT


@each_packing
def test_slices_of_one_byte_are_unpacked(name: str) -> None:
    assert unpack(PACKERS[name](b"a little"), slice_bytes=1) == b"a little"


@each_packing
def test_members_one_behind_the_other_are_one_file(name: str) -> None:
    pack = PACKERS[name]
    assert unpack(pack(b"one") + pack(b"") + pack(CONTENT) + pack(b"two")) == b"one" + CONTENT + b"two"


@each_packing
def test_what_is_cut_off_is_refused(name: str) -> None:
    packed = PACKERS[name](CONTENT)
    for length in (len(packed) // 2, len(packed) - 1):
        with pytest.raises(ImageInvalid, match="cut off"):
            unpack(packed[:length])


@each_packing
@pytest.mark.parametrize("rest", [b"garbage behind it", b"\0\0\0\0garbage behind it", b"<html>" * 1000])
def test_what_goes_on_with_something_else_is_refused(name: str, rest: bytes) -> None:
    with pytest.raises(ImageInvalid):
        unpack(PACKERS[name](CONTENT) + rest)


@pytest.mark.parametrize("name", ["gzip", "xz"])
def test_padding_of_zeros_is_no_garbage(name: str) -> None:
    assert unpack(PACKERS[name](b"content") + bytes(1024)) == b"content"


@pytest.mark.parametrize("name", ["gzip", "xz", "bzip2"])
def test_a_changed_byte_is_noticed_by_the_packings_own_checksum(name: str) -> None:
    packed = bytearray(PACKERS[name](CONTENT))
    packed[len(packed) // 2] ^= 1
    with pytest.raises(ImageInvalid, match="cannot be unpacked"):
        unpack(bytes(packed))


def test_a_window_that_takes_too_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}]
    with pytest.raises(ImageInvalid, match="128 MiB of memory"):
        unpack(lzma.compress(b"little", lzma.FORMAT_XZ, filters=filters))
    wide = b"\x28\xb5\x2f\xfd\x00\xa0" + b"\x01\x00\x00"  # a window of 2^30 bytes, and an empty last block
    with pytest.raises(ImageInvalid, match="128 MiB of memory"):
        unpack(wide)


def test_what_is_not_packed_is_left_alone() -> None:
    for head in (b"QFI\xfb", b"", b"\x04\x22\x4d\x18", b"PK\x03\x04", bytes(100)):
        assert unpacker_of(head, "image x") is None


def test_a_great_many_empty_members_take_no_great_time() -> None:
    began = time.monotonic()
    assert unpack(PACKERS["gzip"](b"") * 20_000) == b""
    assert time.monotonic() - began < 10


BOMB = """
import resource, sys
from tests.unit.test_image_unpacking import MIB, PACKERS, unpacker_of
name = sys.argv[1]
packed = PACKERS[name](bytes(48 * MIB))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
unpacker = unpacker_of(packed, "image x")
print(sum(len(piece) for piece in unpacker.feed(packed)), len(packed), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@each_packing
def test_a_bomb_is_handed_out_in_pieces_and_takes_no_memory(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMB, name], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    unpacked, packed, grown_kib = map(int, done.stdout.split())
    assert unpacked == 48 * MIB
    assert packed < MIB
    assert grown_kib < 32 * 1024


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(PACKERS)),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=8)), max_size=4),
    length=st.integers(6, 4000),
    rest=st.binary(max_size=64),
)
def test_a_mutated_file_is_unpacked_or_refused_and_nothing_else(
    name: str, edits: list[tuple[int, bytes]], length: int, rest: bytes
) -> None:
    packed = bytearray((PACKERS[name](CONTENT[:3000]))[:length] + rest)
    for offset, data in edits:
        packed[max(offset, 6) : offset + len(data)] = data
    unpacker = unpacker_of(bytes(packed), "image x")
    assert unpacker
    unpacked = 0
    try:
        for piece in unpacker.feed(bytes(packed)):
            unpacked += len(piece)
            if unpacked > 64 * MIB:
                return  # a bomb by chance: the caller stops asking
        unpacker.finish()
    except ImageInvalid as error:
        assert "image x is" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20
