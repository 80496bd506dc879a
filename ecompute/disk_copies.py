"""Makes a disk that stands alone out of an image of the cache: a qcow2 (mode copy) or a plain file (mode raw).

Where the formats are the same the file is cloned, which takes no time and no room where the file system can share blocks
(FICLONE), else copied piece by piece, holes as holes; what has to be read as a guest would read it is read by ``qemu-img``, in
its cage. Everything goes into one open file that the caller has made, will sync and rename, and may give up at any piece.
Called by ``disks``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ecompute import qemu_img
from ecompute.images import CachedImage

Report = Callable[[int, int], None]
_FICLONE = 0x40049409  # linux/fs.h
_PIECE_BYTES = 8 << 20
_TAKEN_AT_ONCE_BYTES = 1 << 30
_SECONDS = 4 * 3600  # of one call of qemu-img
_ZEROS = bytes(1 << 20)
_PERCENT = re.compile(rb"\(([0-9]{1,3})\.[0-9]+/100%\)")


@dataclass(frozen=True)
class Plan:
    """What is to become of *image*: a disk of *size_bytes*.

    Args:
        disk_format: "qcow2" or "raw".
        preallocation: "off", "falloc" or "full", and "metadata" for a qcow2.
        report: called often with what is done and all there is; what it raises ends the copy.
    """

    image: CachedImage
    size_bytes: int
    disk_format: str
    preallocation: str
    report: Report


def write_copy(target: int, plan: Plan) -> None:
    """Fill the empty file behind *target* as *plan* says; not synced.

    Raises:
        ImageInvalid: QEMU cannot read the image. NoSpace: there is no room, as far as qemu-img says so.
        OSError: a file cannot be read or written.
    """
    is_raw, takes_nothing = plan.disk_format == "raw", plan.preallocation == "off"
    with plan.image.path.open("rb", buffering=0) as file:
        source = file.fileno()
        if plan.image.format == plan.disk_format and (is_raw or takes_nothing):
            if not (takes_nothing and _clone(source, target)):
                _copy(source, target, plan.report)
            if not is_raw and plan.size_bytes != plan.image.virtual_size_bytes:
                _run(["resize", "-q", "-f", "qcow2", _path(target), str(plan.size_bytes)], (target,), plan)
        else:
            _prepare(target, plan)
            _convert(source, target, plan)
    if is_raw:
        os.ftruncate(target, plan.size_bytes)
        _take(target, plan)


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # neither can be told from "not here", and the copy that follows says what is really wrong
        return False
    return True


def _copy(source: int, target: int, report: Report) -> None:
    total = os.fstat(source).st_size
    for start, end in _extents(source, 0, total):
        os.lseek(source, start, os.SEEK_SET)
        position = os.lseek(target, start, os.SEEK_SET)
        while position < end:
            report(position, total)
            position += _copy_piece(source, target, min(_PIECE_BYTES, end - position))
    os.ftruncate(target, total)
    report(total, total)


def _copy_piece(source: int, target: int, count: int) -> int:
    """Copy up to *count* bytes where both files stand; how many it were."""
    copied = os.sendfile(target, source, None, count)
    if not copied:
        raise OSError(errno.EIO, "the image ends early")
    return copied


def _extents(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that hold data; the rest are holes."""
    while start < end:
        try:
            data = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        start = os.lseek(descriptor, data, os.SEEK_HOLE)
        yield data, start


def _take(target: int, plan: Plan) -> None:
    """Have the file system give all blocks of a raw disk to it, where that is wanted."""
    size = plan.size_bytes
    if plan.preallocation == "falloc":
        for start in range(0, size, _TAKEN_AT_ONCE_BYTES):
            plan.report(start, size)
            os.posix_fallocate(target, start, min(_TAKEN_AT_ONCE_BYTES, size - start))
    elif plan.preallocation == "full":
        position = 0
        for data, end in (*_extents(target, 0, size), (size, size)):
            while position < data:
                plan.report(position, size)
                position += os.pwrite(target, _ZEROS[: data - position], position)
            position = end


def _prepare(target: int, plan: Plan) -> None:
    """Make the empty disk that ``_convert`` fills."""
    if plan.disk_format == "raw":
        os.ftruncate(target, plan.size_bytes)
        return
    option = f"preallocation={plan.preallocation}"
    _run(["create", "-q", "-f", "qcow2", "-o", option, _path(target), str(plan.size_bytes)], (target,), plan)


def _convert(source: int, target: int, plan: Plan) -> None:
    file = {"driver": "file", "filename": _path(source), "locking": "off"}
    kind = plan.image.format
    name = json.dumps({"driver": kind, "file": file} | ({"backing": None} if kind == "qcow2" else {}))
    # The disk is there and reads as zeros already, so that those of the image need not be written.
    arguments = ["convert", "-p", "-n", "--target-is-zero", "-O", plan.disk_format, f"json:{name}", _path(target)]
    _run(arguments, (source, target), plan)


def _run(arguments: list[str], descriptors: tuple[int, ...], plan: Plan) -> None:
    """``qemu-img``, which reads and writes only the files behind *descriptors*, the last of which is the disk."""
    total = plan.image.virtual_size_bytes

    def show(told: bytes) -> None:
        percents = _PERCENT.findall(told)
        plan.report(int(percents[-1]) * total // 100 if percents else 0, total)

    what = f"image {plan.image.path.name}"
    with qemu_img.lent(descriptors[-1:], f"{what} cannot be copied"):
        qemu_img.on_image(
            arguments, descriptors, what=what, to_be="copied", seconds=_SECONDS,
            most_file_bytes=2 * plan.size_bytes + (1 << 30), report=show,
        )  # fmt: skip
    plan.report(total, total)


def _path(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
