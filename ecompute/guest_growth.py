"""Has the root's partition and file system fill the disk, for systems that do not do so themselves. Runs in the child.

In place, and only where the root is on the last partition: nothing is moved. Also where a GPT ends is put right, whose second
header belongs at the disk's end.
"""

from __future__ import annotations

import struct

from ecompute.guest_system import Handle, Refused, System

DISK = "/dev/sda"
_SECTOR = 512
_GPT_LAST_USABLE = struct.Struct("<Q")  # of the header, which is the second sector: UEFI 2.10, 5.3.2
_MBR_MOST_SECTORS = 1 << 32
_EXT = ("ext2", "ext3", "ext4")
_PACKAGES = {"xfs": "libguestfs-xfs", "btrfs": "libguestfs0"}


def grow(handle: Handle, system: System) -> None:
    """Make partition and file system of the root as large as the disk allows; nothing is mounted before or after.

    Raises:
        Refused: the root is not where it could grow, or on a file system that cannot.
    """
    device = system.root or _last_partition(handle)
    if device != DISK:
        if handle.canonical_device_name(device) not in handle.list_partitions():
            raise Refused(f"its root is on {device}, which is no partition (LVM, RAID or an encrypted disk)")
        _grow_partition(handle, device)
    _grow_file_system(handle, device)


def _last_partition(handle: Handle) -> str:
    """The one that is last on the disk, of a system that is not known."""
    if not handle.list_partitions():
        return DISK
    number = max(handle.part_list(DISK), key=lambda part: part["part_start"])["part_num"]
    return f"{DISK}{number}"


def _grow_partition(handle: Handle, device: str) -> None:
    number, parts = handle.part_to_partnum(device), handle.part_list(DISK)
    part = next(one for one in parts if one["part_num"] == number)
    behind = [one["part_num"] for one in parts if one["part_start"] > part["part_start"]]
    if behind:
        raise Refused(f"partition {number}, with its root, is not the last on the disk: {behind[0]} is behind it")
    sectors, kind = handle.blockdev_getsz(DISK), handle.part_get_parttype(DISK)
    if kind == "gpt":
        handle.part_expand_gpt(DISK)
        (last,) = _GPT_LAST_USABLE.unpack(handle.pread_device(DISK, _GPT_LAST_USABLE.size, _SECTOR + 48))
    elif kind == "msdos" and number <= 4:
        last = min(sectors, _MBR_MOST_SECTORS) - 1
    else:
        raise Refused(f"partition {number}, with its root, is a logical one, or its table is of the kind {kind}")
    if last > (part["part_end"] + 1) // _SECTOR - 1:
        handle.part_resize(DISK, number, last)


def _grow_file_system(handle: Handle, device: str) -> None:
    kind = handle.vfs_type(device)
    if kind in _EXT:
        handle.e2fsck(device, correct=True)  # resize2fs wants a check that was made just now
        handle.resize2fs(device)
        return
    if kind not in _PACKAGES:
        raise Refused(f"its root is on a file system of the kind {kind or 'unknown'}; ext2 to ext4, xfs and btrfs can grow")
    if not handle.feature_available([kind]):
        raise Refused(f"libguestfs on this host has no tools for {kind}: apt-get install {_PACKAGES[kind]}")
    handle.mount(device, "/")
    if kind == "xfs":
        handle.xfs_growfs("/")
    else:
        handle.btrfs_filesystem_resize("/")
    handle.umount_all()
