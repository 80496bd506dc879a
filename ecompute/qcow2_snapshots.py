"""Reads the list of snapshots inside a qcow2 file, without QEMU: for a guest that runs as well, whose file QEMU keeps locked.

A guest cannot write the tables of its own disk's file, only data; each number is bounded all the same. QEMU writes a new list
elsewhere in the file and then leads the header to it by one write, so that a reader sees the old one or the new one; one that
was overtaken twice finds nonsense, and says so. The layout is QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import datetime
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from common.disk_snapshots import Snapshot, snapshot_of
from common.errors import Permanent, Transient
from common.files import file_errors
from common.text import utc_text

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # up to where the snapshots are
_ENTRY = struct.Struct(">QIHHIIQII")  # L1 table, its size, lengths of id and name, date, clock, memory's size, length of more
_MOST_ENTRIES = 4096
_MOST_TABLE_BYTES = 4 << 20
_TRIES = 3


@dataclass(frozen=True)
class DiskFile:
    """A disk's file.

    Args:
        virtual_bytes: the disk as the guest sees it. *file_bytes*: what the file takes of its file system.
        tags: what each snapshot is called in the file, in the order of *snapshots*, which is the file's: oldest first.
    """

    virtual_bytes: int
    file_bytes: int
    tags: tuple[str, ...]
    snapshots: tuple[Snapshot, ...]

    def tag(self, name: str) -> str | None:
        """What the snapshot *name* is called in the file; None where there is none."""
        return next((tag for tag, one in zip(self.tags, self.snapshots, strict=True) if one.name == name), None)


def read(path: Path) -> DiskFile:
    """What is in the file *path*.

    Raises:
        Permanent: it is gone, or no qcow2: raw disks keep no snapshots.
        Transient: its list is being changed.
    """
    with file_errors("cannot read the disk", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                try:
                    return _read(descriptor, path)
                except (struct.error, IndexError):
                    continue
        finally:
            os.close(descriptor)
    raise Transient(f"the list of snapshots in {path} makes no sense just now; if it stays so: qemu-img check {path}")


def _read(descriptor: int, path: Path) -> DiskFile:
    head = os.pread(descriptor, _HEADER.size, 0)
    if not head.startswith(_MAGIC):
        raise Permanent(f"{path} is no qcow2 file: a raw disk keeps no snapshots", "NoSnapshots")
    fields = _HEADER.unpack(head)
    virtual_bytes, count, offset = fields[5], fields[11], fields[12]
    if count > _MOST_ENTRIES or offset > os.fstat(descriptor).st_size:
        raise IndexError(offset)
    table = os.pread(descriptor, _MOST_TABLE_BYTES, offset) if count else b""
    found: list[tuple[str, Snapshot]] = []
    position = 0
    for _ in range(count):
        _, _, id_bytes, name_bytes, seconds, nanoseconds, _, _, more_bytes = _ENTRY.unpack_from(table, position)
        position += _ENTRY.size + more_bytes + id_bytes
        name = table[position : position + name_bytes]
        if len(name) != name_bytes:
            raise IndexError(position)
        position = (position + name_bytes + 7) // 8 * 8
        tag = name.decode("utf-8", "replace")
        found.append((tag, snapshot_of(tag, _time(seconds, nanoseconds))))
    file_bytes = os.fstat(descriptor).st_blocks * 512
    return DiskFile(virtual_bytes, file_bytes, tuple(tag for tag, _ in found), tuple(one for _, one in found))


def _time(seconds: int, nanoseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return utc_text(moment.replace(microsecond=min(nanoseconds, 999_999_999) // 1000))
