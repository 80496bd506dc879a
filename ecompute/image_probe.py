"""What kind of disk image some bytes are, read by ourselves from a few bounded places; everything else is refused.

An image comes from whoever asked for the guest, and QEMU is never left to guess: a "raw" disk whose first sector a guest
turned into a qcow2 header would make QEMU open any file of the host that the header names. So the format is found once,
here, kept in the cached file's name, and named to QEMU ever after. A qcow2 that leads to other files (backing file, external
data file) is refused for the same reason. No subprocess, no reading beyond 64 KiB at a few offsets. Called by ``images``.

The qcow2 header is laid out as in QEMU's docs/interop/qcow2.txt ("Qcow2 Image File Format").
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import ImageInvalid

QCOW2_MAGIC = b"QFI\xfb"
HEAD_BYTES = 64 * 1024  # enough for every signature below that stands at the start
_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # the 72 bytes that versions 2 and 3 share
_QCOW2_FEATURES = struct.Struct(">QQQII")  # version 3 goes on: incompatible, compatible, autoclear, refcount order, length
_CORRUPT, _EXTERNAL_DATA, _EXTENDED_L2 = 1 << 1, 1 << 2, 1 << 4
_KNOWN_INCOMPATIBLE = 0b11111  # dirty, corrupt, external data, compression type, extended L2 entries
_MOST_L1_BYTES = 32 << 20  # QEMU's own limit
_SECTOR = 512

_MAGICS = (
    (0, b"\x1f\x8b", "gzip-compressed data: unpack it first"),
    (0, b"\xfd7zXZ\x00", "xz-compressed data: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data: unpack it first"),
    (0, b"BZh", "bzip2-compressed data: unpack it first"),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed data: unpack it first"),
    (0, b"PK\x03\x04", "a zip archive: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-zip archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
    (0, b"COWD", "a VMDK disk of an old kind: convert it (qemu-img convert -O qcow2)"),
    (
        0,
        b"# Disk DescriptorFile",
        "a description of a VMDK disk in several files: convert the disk (qemu-img convert)",
    ),
    (0, b"QED\x00", "a QED disk: convert it (qemu-img convert -O qcow2)"),
    (0, b"WithoutFreeSpace", "a Parallels disk: convert it (qemu-img convert -O qcow2)"),
    (0, b"WithouFreSpacExt", "a Parallels disk: convert it (qemu-img convert -O qcow2)"),
    (0, b"LUKS\xba\xbe", "a LUKS-encrypted volume, which nothing here can open"),
    (0, b"hsqs", "a squashfs file system without a disk around it"),
    (0, b"\x7fELF", "a program"),
    (32769, b"CD001", "an ISO 9660 image, such as installation media: take a disk (cloud) image instead"),
)
# What ``image_conversion`` makes a qcow2 of; never what guests rest on.
_CONVERTED = (
    (0, b"KDMV", "a VMDK disk: convert it (qemu-img convert -O qcow2)"),
    (0, b"vhdxfile", "a VHDX disk: convert it (qemu-img convert -O qcow2)"),
    (0, b"conectix", "a VHD disk: convert it (qemu-img convert -O qcow2)"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI disk: convert it (qemu-img convert -O qcow2)"),
)
_FOOTERS = (
    (b"conectix", "a VHD disk: convert it (qemu-img convert -O qcow2)"),
    (b"koly", "an Apple disk image: convert it (qemu-img convert -O qcow2)"),
)
_TEXTS = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "an XML document"), (b"<", "a web page"))


@dataclass(frozen=True)
class Probed:
    """What an image is: *format* as QEMU names it, and the size of the disk that a guest would see."""

    format: str  # "qcow2" | "raw"
    virtual_size_bytes: int


def probe(descriptor: int, what: str) -> Probed:
    """What the whole file behind *descriptor* is; *what* names it in errors.

    Raises:
        ImageInvalid: no qcow2 or raw disk image that stands alone.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, HEAD_BYTES, 0)
    refuse_foreign(head, what)
    _refuse(head, _CONVERTED, what)
    if head.startswith(QCOW2_MAGIC):
        return Probed("qcow2", _check_qcow2(head, size, what))
    _check_raw(head, os.pread(descriptor, _SECTOR, max(0, size - _SECTOR)), size, what)
    return Probed("raw", size)


def refuse_foreign(head: bytes, what: str) -> None:
    """Say what a file is that starts with *head*, where that is clearly no disk of ours: before the rest is downloaded.

    Raises:
        ImageInvalid: it is something else.
    """
    if not head:
        raise ImageInvalid(f"{what} is empty")
    _refuse(head, _MAGICS, what)
    if any(head[offset : offset + len(magic)] == magic for offset, magic, _ in _CONVERTED):
        return  # a VDI begins with words in angle brackets
    text = head[:256].lstrip().lower()
    for start, meaning in _TEXTS:
        if text.startswith(start):
            raise _looks_like(what, f"{meaning}: does the address lead to a page about the image, or to a login?")


def _refuse(head: bytes, magics: tuple[tuple[int, bytes, str], ...], what: str) -> None:
    for offset, magic, meaning in magics:
        if head[offset : offset + len(magic)] == magic:
            raise _looks_like(what, meaning)


def virtual_size(descriptor: int, image_format: str) -> int:
    """The disk size of an image that was probed before, in bytes."""
    if image_format == "raw":
        return os.fstat(descriptor).st_size
    size: int = struct.unpack(">Q", os.pread(descriptor, 8, 24))[0]
    return size


def backing_of(head: bytes) -> str | None:
    """The file that the qcow2 which starts with *head* says that it rests on; None for none.

    Raises:
        ImageInvalid: it makes no sense.
    """
    if len(head) < _QCOW2_HEADER.size:
        raise _bad_qcow2("the disk", "ends inside its header")
    header = _Qcow2(*_QCOW2_HEADER.unpack_from(head))
    name = head[header.backing_file_offset :][: header.backing_file_size]
    if len(name) < header.backing_file_size:
        raise _bad_qcow2("the disk", "has the name of its backing file where none can be")
    return os.fsdecode(name) if header.backing_file_offset else None


def _looks_like(what: str, meaning: str) -> ImageInvalid:
    return ImageInvalid(f"{what} looks like {meaning}; qcow2, raw, VMDK, VHD, VHDX and VDI disks are taken")


class _Qcow2(NamedTuple):
    """The first 72 bytes of a qcow2, as they stand there."""

    magic: bytes
    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int  # entries of 8 bytes
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int
    snapshots_offset: int


def _check_qcow2(head: bytes, file_size: int, what: str) -> int:
    """The virtual size of the qcow2 that starts with *head*."""
    if len(head) < _QCOW2_HEADER.size:
        raise _bad_qcow2(what, "ends inside its header")
    header = _Qcow2(*_QCOW2_HEADER.unpack_from(head))
    if header.version not in (2, 3):
        raise _bad_qcow2(what, f"has version {header.version}, not 2 or 3: convert it (qemu-img convert -O qcow2)")
    if header.backing_file_offset:
        raise _bad_qcow2(what, "needs a backing file, which could be any file of the host: flatten it (qemu-img convert)")
    if header.crypt_method:
        raise _bad_qcow2(what, "is encrypted, and nothing here has its key")
    if not 9 <= header.cluster_bits <= 21:
        raise _bad_qcow2(what, f"has clusters of 2^{header.cluster_bits} bytes, where 2^9 to 2^21 are possible")
    if not header.size:
        raise _bad_qcow2(what, "describes a disk of 0 bytes")
    features = _incompatible_features(head, what) if header.version == 3 else 0
    _check_tables(header, features, file_size, what)
    return header.size


def _incompatible_features(head: bytes, what: str) -> int:
    if len(head) < _QCOW2_HEADER.size + _QCOW2_FEATURES.size:
        raise _bad_qcow2(what, "ends inside its header")
    incompatible, _, _, refcount_order, header_length = _QCOW2_FEATURES.unpack_from(head, _QCOW2_HEADER.size)
    if incompatible & _EXTERNAL_DATA:
        raise _bad_qcow2(
            what, "keeps its data in another file, which could be any of the host's: convert it (qemu-img convert)"
        )
    if incompatible & _CORRUPT:
        raise _bad_qcow2(what, "is marked corrupt: repair it (qemu-img check -r all)")
    if unknown := incompatible & ~_KNOWN_INCOMPATIBLE:
        raise _bad_qcow2(what, f"uses features that are not known here (bits {unknown:#x})")
    if header_length < 104 or header_length % 8 or refcount_order > 6:
        raise _bad_qcow2(what, "has a header that makes no sense")
    return int(incompatible)


def _check_tables(header: _Qcow2, features: int, file_size: int, what: str) -> None:
    """The first level table is in the file and reaches over the whole disk, else QEMU would refuse it later."""
    l2_entry_bits = 4 if features & _EXTENDED_L2 else 3
    bytes_per_l1_entry = 1 << (2 * header.cluster_bits - l2_entry_bits)
    needed = -(-header.size // bytes_per_l1_entry)
    if max(header.l1_size, needed) * 8 > _MOST_L1_BYTES:
        raise _bad_qcow2(what, f"describes a disk of {header.size} bytes, more than QEMU can open")
    offsets = (header.l1_table_offset, header.refcount_table_offset)
    if header.l1_size < needed or any(offset % (1 << header.cluster_bits) for offset in offsets):
        raise _bad_qcow2(what, "has tables that do not fit its disk size")
    if header.l1_table_offset + header.l1_size * 8 > file_size or not 0 < header.refcount_table_offset < file_size:
        raise _bad_qcow2(what, "is cut off: its tables lie behind its end; fetch or upload it again")


def _check_raw(head: bytes, last_sector: bytes, size: int, what: str) -> None:
    for magic, meaning in _FOOTERS:
        if last_sector.startswith(magic):
            raise _looks_like(what, meaning)
    has_mbr = head[510:512] == b"\x55\xaa"
    has_gpt = b"EFI PART" in (head[512:520], head[4096:4104])
    if not has_mbr and not has_gpt:
        if head[1080:1082] == b"\x53\xef":
            raise _looks_like(what, "a bare ext file system: it needs a partition table and a boot loader")
        raise ImageInvalid(f"{what} is no disk image: neither a qcow2 header nor a partition table (MBR, GPT) is in it")
    if size % _SECTOR:
        raise ImageInvalid(f"{what} has {size} bytes, which is no whole number of 512-byte sectors: is it cut off?")


def _bad_qcow2(what: str, why: str) -> ImageInvalid:
    return ImageInvalid(f"{what} is a qcow2 image that {why}")
