"""Which schema number a spec is written with: the lowest whose readers build just the guest that it asks for. Pure.

Readers drop fields that they do not know. Where a guest without them would be another one, open to everybody, on another
network or with a disk that it cannot see, the spec has a number that such readers do not know, and they hold it. All others
stay readable for every version, so that programs of different versions go on together while a cluster is upgraded.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from common.disk_content import AS_IMAGE, DiskContent
from common.guest_metadata import ConfigDrive, MetadataAccess
from common.hardware import USUAL, Hardware
from common.nics import Forward, Nic
from common.volume_refs import VolumeRef

FIRST = 1
GUARDED = 2  # who may reach the guest and read its metadata, what its cards are on, ports and the form of a drive
OTHER_HARDWARE = 3  # another disk bus or other cards than virtio, for which its image has no drivers
DISK_CONTENT = 4  # what is on its disks, or which it has, is other than its image alone says
STANDS_STILL = 5  # its guest is to be paused, or to have its memory saved
SPEC_SCHEMAS = (FIRST, GUARDED, OTHER_HARDWARE, DISK_CONTENT, STANDS_STILL)  # what this version reads


def spec_schema(
    *, nics: Sequence[Nic], metadata: MetadataAccess, config_drive: ConfigDrive, allow: Collection[str] | None,
    forwards: Collection[Forward], hardware: Hardware, disk_content: DiskContent = AS_IMAGE, disk_request: int = 0,
    volumes: Collection[VolumeRef] = (), stands_still: bool = False,
) -> int:  # fmt: skip
    """The schema number of a spec that has these fields; the others mean the same to all versions.

    The hop limit is not among them, as it is one of session tokens, which hosts that do not know it do not give. Nor is the
    drive that is not to be: they make none anyway.
    """
    # Who knows nothing of saved memory would change a disk that a guest goes on with, or give away what it has.
    if stands_still:
        return STANDS_STILL
    # Who passed over these would start a guest without its volumes, or on a disk that was to be another one.
    if disk_content != AS_IMAGE or disk_request or volumes:
        return DISK_CONTENT
    if hardware != USUAL:
        return OTHER_HARDWARE
    is_guarded = (
        allow is not None
        or bool(forwards)
        or metadata != MetadataAccess.OPTIONAL
        or config_drive in (ConfigDrive.OPENSTACK, ConfigDrive.NOCLOUD)
        or any(nic != Nic(nic.network) for nic in nics)  # more than the name of a libvirt network is said of it
    )
    return GUARDED if is_guarded else FIRST
