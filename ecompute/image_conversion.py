"""Makes a qcow2 of the disk formats of other hypervisors (VMDK, VHD, VHDX, VDI), by ``qemu-img`` in a child that can do little.

Such a file comes from whoever asked for the guest, and its reader in QEMU is large. So what it begins with is read here first,
and whatever could lead to other files is refused; then the format is named to QEMU, which never guesses, and QEMU is given the
two open files and nothing else, in a cage (``qemu_img``). Knows nothing of the cache; ``images`` calls it with two files
that are its own.

VMDK's header is laid out as in VMware's "Virtual Disk Format 5.0", VHD's footer as in Microsoft's specification 1.0.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ImageInvalid
from ecompute import qemu_img
from ecompute.image_probe import HEAD_BYTES, QCOW2_MAGIC

RECIPE = "qemu-img-qcow2-1"  # part of the key of what was converted; to be raised where the result would be another one
_NAMES = {"vmdk": "VMDK", "vhdx": "VHDX", "vpc": "VHD", "vdi": "VDI"}  # by QEMU's names
_INFO_SECONDS, _CONVERT_SECONDS = 60, 3600
_MOST_OUTPUT_BYTES = 1 << 20
_SECTOR = 512
_VMDK_HEADER = struct.Struct("<4sIIQQQQ")  # magic, version, flags, capacity, grain, descriptor's offset and size, in sectors
_VMDK_KINDS = {b"monolithicSparse", b"streamOptimized"}  # everything is in the one file
_VHD_KIND_OFFSET, _VHD_KINDS = 60, {2, 3}  # fixed, dynamic; 4 rests on another disk


def format_of(descriptor: int) -> str | None:
    """QEMU's name of the format to convert the file behind *descriptor* from; None where it is none of them."""
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _SECTOR, 0)
    if head.startswith(QCOW2_MAGIC):
        return None
    if head.startswith(b"KDMV"):
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    footer = os.pread(descriptor, _SECTOR, max(0, size - _SECTOR))
    return "vpc" if head.startswith(b"conectix") or footer.startswith(b"conectix") else None


def check(descriptor: int, image_format: str, what: str) -> None:
    """Refuse what leads to other files, before QEMU sees it.

    Raises:
        ImageInvalid: it does, or makes no sense.
    """
    if image_format == "vmdk":
        _check_vmdk(descriptor, what)
    elif image_format == "vpc":
        _check_vhd(descriptor, what)
    elif image_format == "vdi":
        _check_vdi(descriptor, what)


def _check_vmdk(descriptor: int, what: str) -> None:
    head = os.pread(descriptor, HEAD_BYTES, 0)
    if len(head) < _VMDK_HEADER.size:
        raise _bad("vmdk", what, "ends inside its header")
    _, _, _, capacity, _, offset, size = _VMDK_HEADER.unpack_from(head)
    if not capacity or not offset:
        raise _bad("vmdk", what, f"consists of several files, or is one of them: {_FLATTEN}")
    if max(offset, size) > os.fstat(descriptor).st_size // _SECTOR:
        raise _bad("vmdk", what, "is cut off: its description lies behind its end; fetch or upload it again")
    description = os.pread(descriptor, min(size * _SECTOR, HEAD_BYTES), offset * _SECTOR)
    # QEMU looks for a parent at a place of its own, whatever the header says.
    if b"parentfilenamehint" in (head + description).lower():
        raise _bad("vmdk", what, f"rests on another disk, which could be any file of the host: {_FLATTEN}")
    kinds = re.findall(rb'^[ \t]*createType[ \t]*=[ \t]*"?([A-Za-z0-9]*)', description, re.MULTILINE)
    extents = re.findall(rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]", description, re.MULTILINE)
    if len(kinds) != 1 or kinds[0] not in _VMDK_KINDS or len(extents) > 1:
        raise _bad("vmdk", what, f"consists of several files, or is one of them: {_FLATTEN}")


def _check_vhd(descriptor: int, what: str) -> None:
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _SECTOR, 0)
    footer = head if head.startswith(b"conectix") else os.pread(descriptor, _SECTOR, max(0, size - _SECTOR))
    if len(footer) < _SECTOR:
        raise _bad("vpc", what, "ends inside its header")
    (kind,) = struct.unpack_from(">I", footer, _VHD_KIND_OFFSET)
    if kind not in _VHD_KINDS:
        raise _bad("vpc", what, f"is neither of fixed size nor dynamic; if it rests on another disk: {_FLATTEN}")


def _check_vdi(descriptor: int, what: str) -> None:
    """QEMU reads zeros where the file was cut off."""
    head = os.pread(descriptor, _SECTOR, 0)
    if len(head) < _SECTOR:
        raise _bad("vdi", what, "ends inside its header")
    (data,), (block, _, _, allocated) = struct.unpack_from("<I", head, 344), struct.unpack_from("<IIII", head, 376)
    if data + block * allocated > os.fstat(descriptor).st_size:
        raise _bad("vdi", what, "is cut off: it has fewer blocks than it says; fetch or upload it again")


_FLATTEN = "make one file of it (qemu-img convert -O qcow2)"


def _bad(image_format: str, what: str, why: str) -> ImageInvalid:
    return ImageInvalid(f"{what} is a {_NAMES[image_format]} disk that {why}")


def convert(source: Path, target: int, image_format: str, *, what: str, most_bytes: int, report: Callable[[], None]) -> int:
    """Write what guests see of *source* into the empty file behind *target*, as a qcow2; the disk's size in bytes.

    Args:
        most_bytes: a larger disk is refused, before anything of it is read.
        report: called often; what it raises ends the conversion.

    Raises:
        ImageInvalid: QEMU does not take it for one, or it takes longer than an hour.
        NoSpace: there is no room for it.
    """
    disk = f"{what}, a {_NAMES[image_format]} disk,"
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        name = json.dumps(
            {"driver": image_format, "file": {"driver": "file", "filename": f"/proc/self/fd/{reading}", "locking": "off"}}
            | ({"backing": None} if image_format == "vmdk" else {})
        )
        with qemu_img.lent((reading, target), f"{what} cannot be converted"):
            size = _virtual_size(name, reading, image_format, disk, report)
            if size > most_bytes:
                raise ImageInvalid(
                    f"{what} is a {_NAMES[image_format]} disk of {size} bytes, more than {most_bytes >> 30} GiB: "
                    "raise images.max_size_gib where that is right",
                    "ImageTooLarge",
                )
            if image_format == "vmdk":  # the only one whose end QEMU does not look at when it opens it
                _run(
                    ["check", "-q", f"json:{name}"],
                    (reading,),
                    what=disk,
                    seconds=_CONVERT_SECONDS,
                    most_file_bytes=_MOST_OUTPUT_BYTES,
                    report=report,
                )
            _run(
                ["convert", "-q", "-O", "qcow2", f"json:{name}", f"/proc/self/fd/{target}"],
                (reading, target),
                what=disk,
                seconds=_CONVERT_SECONDS,
                most_file_bytes=most_bytes * 2,
                report=report,
            )
    finally:
        os.close(reading)
    return size


@dataclass(frozen=True)
class Layer:
    """A disk's file, and QEMU's name of its format."""

    path: Path
    format: str


def flatten(layers: Sequence[Layer], target: int, *, what: str, most_bytes: int, report: Callable[[], None]) -> None:
    """Write what guests see of *layers*, each of which rests on the next, into the empty file behind *target*, as a qcow2.

    What the files themselves name as theirs to rest on counts for nothing: nothing else is read. The first is ours alone, and
    is lent to nobody meanwhile; the others everybody may read.

    Args:
        most_bytes: that *target* may come to have.
        report: called often; what it raises ends it.

    Raises:
        ImageInvalid: QEMU does not take them for such files, or it takes longer than an hour. NoSpace: there is no room.
    """
    with contextlib.ExitStack() as opened:
        name: dict[str, object] | None = None
        descriptors = [os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC) for layer in layers]
        for descriptor in descriptors:
            opened.callback(os.close, descriptor)
        for layer, descriptor in reversed(list(zip(layers, descriptors, strict=True))):
            file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}", "locking": "off"}
            name = {"driver": layer.format, "file": file} | ({"backing": name} if layer.format == "qcow2" else {})
        opened.enter_context(qemu_img.lent((descriptors[0], target), f"{what} cannot be copied"))
        _run(
            ["convert", "-q", "-O", "qcow2", f"json:{json.dumps(name)}", f"/proc/self/fd/{target}"], (*descriptors, target),
            what=what, seconds=_CONVERT_SECONDS, most_file_bytes=most_bytes, report=report, doing="copied",
        )  # fmt: skip


def change(arguments: list[str], descriptor: int, *, what: str, doing: str, seconds: int, most_file_bytes: int) -> None:
    """Have ``qemu-img`` change the one file behind *descriptor*, which *arguments* name by it; *doing* says what, as "grown".

    Raises:
        ImageInvalid: it could not, or it takes longer than *seconds*. NoSpace: there is no room.
    """
    with qemu_img.lent((descriptor,), f"{what} cannot be {doing}"):
        _run(
            arguments, (descriptor,), what=what, seconds=seconds, most_file_bytes=most_file_bytes, report=lambda: None,
            doing=doing,
        )  # fmt: skip


def _virtual_size(name: str, reading: int, image_format: str, what: str, report: Callable[[], None]) -> int:
    told = _run(
        ["info", "--output=json", f"json:{name}"],
        (reading,),
        what=what,
        seconds=_INFO_SECONDS,
        most_file_bytes=_MOST_OUTPUT_BYTES,
        report=report,
    )
    try:
        found = json.loads(told)
        size, seen, leads_on = found["virtual-size"], found["format"], "backing-filename" in found
    except (ValueError, TypeError, KeyError) as error:
        raise ImageInvalid(f"{what} cannot be described by qemu-img") from error
    if seen != image_format or leads_on or not isinstance(size, int) or size <= 0:
        raise ImageInvalid(f"{what} is not one that stands alone")
    return size


def _run(
    arguments: list[str],
    descriptors: tuple[int, ...],
    *,
    what: str,
    seconds: int,
    most_file_bytes: int,
    report: Callable[[], None],
    doing: str = "converted",
) -> bytes:
    return qemu_img.on_image(
        arguments, descriptors, what=what, to_be=doing, seconds=seconds, most_file_bytes=most_file_bytes,
        report=lambda _: report(),
    )  # fmt: skip
