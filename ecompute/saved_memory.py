"""The folder where libvirt keeps the memory of suspended guests: whether there is room for more, and what it takes.

It belongs to libvirt, which makes and removes the files; here it is only looked at. What lies there is claimed by nobody, since
how much of its memory a guest has used is not known before: room is looked for before each, and where the folder shares the
file system of the guests' disks the inventory reserves what it takes (``DiskUse``). Called by ``standing_still`` and the agent.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from common.errors import NoSpace
from common.files import file_errors

DIRECTORY = Path("/var/lib/libvirt/qemu/save")
SPARE_BYTES = 64 << 20  # for the state of its devices, and so that nothing else stands still on a full disk
_SUFFIX = ".save"


class SavedMemory:
    """The memory that libvirt has saved in *directory*; nothing is known of one that is not there."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        self._directory = directory

    def check_room(self, memory_mib: int) -> None:
        """Raises: NoSpace: all of *memory_mib* would not fit."""
        with file_errors("cannot look at the free space", self._directory):
            try:
                free = shutil.disk_usage(self._directory).free
            except FileNotFoundError:
                return
        needed = (memory_mib << 20) + SPARE_BYTES
        if free < needed:
            raise NoSpace(
                f"its memory takes up to {needed >> 20} MiB, and {free >> 20} MiB are free at {self._directory}: free space "
                "there, or stop the guest instead"
            )

    def taken_bytes(self, beside: Path) -> int:
        """What is taken of the file system that *beside* is on."""
        try:
            if self._directory.stat().st_dev != beside.stat().st_dev:
                return 0
            with os.scandir(self._directory) as entries:
                return sum(entry.stat().st_blocks * 512 for entry in entries if entry.name.endswith(_SUFFIX))
        except FileNotFoundError:  # one that is resumed just now, too: it is looked at again in a minute
            return 0
