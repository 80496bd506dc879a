"""Makes the disk of a guest that is off larger, and reads how large it is. It is never made smaller.

The size is read from the file's own header, which QEMU writes last: so it is what a guest would see, also after a death in the
middle. ``qemu-img`` makes a qcow2 larger, in the cage of ``image_conversion``: a guest that broke out of its QEMU could have
written into that header. It is given the one file alone, without what the disk rests on, and QEMU's own lock keeps it from a
disk that a guest has in use. Called by ``disks``.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from common.errors import Conflict, HypervisorRejected, ImageInvalid
from common.files import file_errors
from ecompute import image_conversion
from ecompute.image_probe import QCOW2_MAGIC

_RESIZE_SECONDS = 120
_MORE_BYTES = 256 << 20  # of tables, which grow with the disk
_SIZE = struct.Struct(">Q")
_SIZE_OFFSET = 24  # in a qcow2's header
RAW = ".raw"  # what the name of a disk without a format ends with; everything else is a qcow2


def virtual_size_bytes(disk: Path) -> int:
    """How large a guest sees *disk*; 0 where the file is no disk or gone.

    Raises:
        Permanent: it cannot be read.
    """
    with file_errors("cannot read the disk", disk):
        try:
            if disk.suffix == RAW:
                return disk.stat().st_size
            with disk.open("rb", buffering=0) as file:
                head = os.pread(file.fileno(), _SIZE_OFFSET + _SIZE.size, 0)
        except FileNotFoundError:
            return 0
    if not head.startswith(QCOW2_MAGIC) or len(head) < _SIZE_OFFSET + _SIZE.size:
        return 0
    return int(_SIZE.unpack_from(head, _SIZE_OFFSET)[0])


def grow(disk: Path, size_bytes: int) -> None:
    """Have *disk*, which no guest uses, be *size_bytes* large at least.

    Raises:
        Conflict: a guest uses it by now, or it is gone.
        NoSpace: the file system is full. Permanent: it cannot be done for another reason.
    """
    is_raw = disk.suffix == RAW
    with file_errors("cannot make the disk larger", disk):
        try:
            descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Conflict(f"{disk} went away before it could be made larger") from error
        try:
            if virtual_size_bytes(disk) >= size_bytes:
                return
            if is_raw:
                os.truncate(descriptor, size_bytes)
            else:
                _resize(descriptor, disk, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if virtual_size_bytes(disk) < size_bytes:
        raise HypervisorRejected(f"{disk} is not {size_bytes} bytes large after qemu-img resize; look: qemu-img info {disk}")


def _resize(descriptor: int, disk: Path, size_bytes: int) -> None:
    file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}"}
    name = json.dumps({"driver": "qcow2", "file": file, "backing": None})
    try:
        image_conversion.change(
            ["resize", "-q", f"json:{name}", str(size_bytes)], descriptor, what=f"the disk {disk}", doing="made larger",
            seconds=_RESIZE_SECONDS, most_file_bytes=os.fstat(descriptor).st_size + _MORE_BYTES,
        )  # fmt: skip
    except ImageInvalid as error:
        if "lock" in str(error):
            raise Conflict(f"a guest uses it by now: {error}") from error
        raise HypervisorRejected(str(error)) from error
