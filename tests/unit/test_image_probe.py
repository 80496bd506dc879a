"""What the probe takes for a disk image, and what it refuses with which words."""

from __future__ import annotations

import gzip
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ImageInvalid
from ecompute import image_probe
from ecompute.image_probe import Probed, probe, refuse_foreign
from tests.support.disk_images import MIB, make_qcow2, make_raw, qemu_img


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def probed(path: Path) -> Probed:
    with opened(path) as descriptor:
        found = probe(descriptor, "image x")
        assert image_probe.virtual_size(descriptor, found.format) == found.virtual_size_bytes
        return found


def refused(path: Path) -> str:
    with pytest.raises(ImageInvalid) as caught, opened(path) as descriptor:
        probe(descriptor, "image x")
    assert str(caught.value).startswith("image x ")
    return str(caught.value)


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


@pytest.mark.parametrize(
    "options",
    ["", "compat=0.10", "compression_type=zstd", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "lazy_refcounts=on"],
)
def test_every_kind_of_qcow2_that_stands_alone_is_taken(options: str, tmp_path: Path) -> None:
    assert probed(make_qcow2(tmp_path / "a", size_mib=5, options=options)) == Probed("qcow2", 5 * MIB)


def test_raw_is_taken_by_its_partition_table(tmp_path: Path) -> None:
    assert probed(make_raw(tmp_path / "mbr", size_mib=3)) == Probed("raw", 3 * MIB)
    gpt = tmp_path / "gpt"
    gpt.write_bytes(bytes(512) + b"EFI PART" + bytes(MIB - 520))
    assert probed(gpt) == Probed("raw", MIB)


def test_a_qcow2_that_leads_to_other_files_is_refused(tmp_path: Path) -> None:
    base = make_qcow2(tmp_path / "base")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", tmp_path / "overlay")
    assert "backing file" in refused(tmp_path / "overlay")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "external", "4M")
    assert "another file" in refused(tmp_path / "external")


def test_a_qcow2_that_nobody_could_open_is_refused(tmp_path: Path) -> None:
    make_qcow2(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    cases = {
        "is encrypted": (32, struct.pack(">I", 2)),
        "has version 1": (4, struct.pack(">I", 1)),
        "has clusters": (20, struct.pack(">I", 63)),
        "0 bytes": (24, struct.pack(">Q", 0)),
        "more than QEMU": (24, struct.pack(">Q", 1 << 63)),
        "do not fit": (24, struct.pack(">Q", 1 << 40)),
        "corrupt": (72, struct.pack(">Q", 1 << 1)),
        "not known": (72, struct.pack(">Q", 1 << 17)),
        "no sense": (100, struct.pack(">I", 12)),
        "cut off": (40, struct.pack(">Q", 1 << 40)),
    }
    for words, (offset, data) in cases.items():
        (tmp_path / "b").write_bytes(whole)
        assert words in refused(patched(tmp_path / "b", offset, data))
    (tmp_path / "b").write_bytes(whole[:90])
    assert "inside its header" in refused(tmp_path / "b")


@pytest.mark.parametrize("kind", ["vmdk", "vhdx", "vdi", "vpc", "qed", "parallels"])
def test_other_disk_formats_are_refused_with_how_to_convert_them(kind: str, tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", kind, tmp_path / "a", "4M")
    assert "qemu-img convert" in refused(tmp_path / "a")


def test_a_fixed_size_vhd_is_not_taken_for_raw(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw")
    qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed", tmp_path / "raw", tmp_path / "a")
    assert "VHD" in refused(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(b"x" * 1000, mtime=0), "gzip"),
        (b"\xfd7zXZ\x00" + bytes(100), "xz"),
        (b"\n <!DOCTYPE html><html>", "HTML page"),
        (b"<?xml version='1.0'?>", "XML"),
        (bytes(257) + b"ustar" + bytes(1000), "tar"),
        (bytes(510) + b"\x55\xaa" + bytes(32769 - 512) + b"CD001" + bytes(MIB), "ISO 9660"),
        (bytes(1080) + b"\x53\xef" + bytes(MIB), "bare ext"),
        (b"\x7fELF" + bytes(MIB), "program"),
        (b'{"error": "not found"}', "neither a qcow2 header nor a partition table"),
        (random.Random(1).randbytes(100), "image x"),
        (bytes(510) + b"\x55\xaa" + bytes(100), "whole number"),
    ],
)
def test_everything_else_is_refused_with_its_name(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert words in refused(tmp_path / "a")


def test_the_first_piece_of_a_download_is_enough_to_refuse_it() -> None:
    with pytest.raises(ImageInvalid, match="HTML page"):
        refuse_foreign(b"<html>", "image x")
    refuse_foreign(image_probe.QCOW2_MAGIC + bytes(1000), "image x")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, 127), st.binary(min_size=1, max_size=8)), max_size=5),
    length=st.one_of(st.none(), st.integers(0, 300_000)),
)
def test_a_mutated_header_is_taken_or_refused_and_nothing_else(
    edits: list[tuple[int, bytes]], length: int | None, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    if not original.exists():
        make_qcow2(original)
    content = bytearray(original.read_bytes()[:length])
    for offset, data in edits:
        content[offset : offset + len(data)] = data
    (tmp_path / "mutated").write_bytes(content)
    with opened(tmp_path / "mutated") as descriptor:
        try:
            found = probe(descriptor, "image x")
        except ImageInvalid:
            return
    assert found.format in ("qcow2", "raw")
    assert 0 < found.virtual_size_bytes < 1 << 60
