"""The drive that tells a guest its metadata without a network: a small ISO image, ``instances/<uuid>/config-drive.iso``.

Whether a guest has one, and in which form, follows from its spec and its addresses (``form_of``); what is in it comes from
the same renderings as what md_server answers. The image appears by rename, and carries a digest of its content in its own
volume descriptor, so that one block read tells whether it is what it should be: nothing else need be kept beside it. It is
made while the guest is down, and never exchanged under one that runs. Knows nothing of libvirt; called by facts and builder.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from uuid import UUID

from common.files import file_errors, make_directory, remove_partials, write_atomically
from common.guest_metadata import drive_form
from common.model import Address, ConfigDrive, InstanceSpec
from common.nics import has_dhcp
from ecompute.disks import DIRECTORY_MODE

DRIVE_NAME = "config-drive.iso"
DRIVE_MODE = 0o600  # as a disk's: user data may hold secrets, and libvirt gives the file to QEMU's user when the guest starts
# The volume labels that cloud-init, cloudbase-init, Ignition and their kind look for.
LABELS = {ConfigDrive.OPENSTACK: "config-2", ConfigDrive.NOCLOUD: "cidata"}
_LAYOUT = "1"  # of the image itself: another one has all drives made anew before the next start

# ECMA-119, 8.4: the primary volume descriptor is sector 16; its application identifier is what we may write as we like.
_SECTOR_BYTES = 2048
_DESCRIPTOR_AT = 16 * _SECTOR_BYTES
_LABEL, _APPLICATION = slice(40, 72), slice(574, 702)
_APPLICATION_NAME = "ETCD-COMPUTE"  # capital letters and digits are all that is allowed there
_DIGEST_DIGITS = 32  # there is room for 64 characters with the name: Joliet has two bytes for each
_ISO_LEVEL = 3
_FILE_MODE, _FOLDER_MODE = 0o100400, 0o040500  # the guest's root alone


RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Drive:
    """What is on one drive: the label that it is found by, and its files.

    Args:
        files: makes their contents by path ("openstack/latest/meta_data.json"), with random bytes where a seed is among them.
    """

    label: str
    files: Callable[[RandomBytes], Mapping[str, bytes]]

    @cached_property
    def digest(self) -> str:
        """Differs as soon as a guest could see a difference other than in what is random."""
        found = hashlib.sha256(f"{_LAYOUT}\0{self.label}\0".encode())
        for path, content in sorted(self.files(bytes).items()):  # bytes(n): as many zeros
            found.update(f"{path}\0{len(content)}\0".encode() + content)
        return found.hexdigest()[:_DIGEST_DIGITS]


def form_of(spec: InstanceSpec, addresses: Iterable[Address]) -> ConfigDrive | None:
    """Which kind of drive the guest has with these cards, None for none."""
    return drive_form(spec.config_drive, spec.metadata, has_dhcp=has_dhcp(addresses))


def image(drive: Drive, random_bytes: RandomBytes) -> bytes:
    """*drive* as an ISO 9660 image: Rock Ridge for Linux and BSD, Joliet for Windows."""
    import pycdlib  # noqa: PLC0415 - most hosts never make a drive, and it is a second of reading on a slow one

    iso = pycdlib.PyCdlib()
    iso.new(
        interchange_level=_ISO_LEVEL, joliet=3, rock_ridge="1.09", vol_ident=drive.label,
        app_ident_str=f"{_APPLICATION_NAME} {drive.digest.upper()}",
    )  # fmt: skip
    folders = {PurePosixPath("/"): ""}  # path → its name in the plain ISO tree, which nobody reads and must be short
    for number, (text, content) in enumerate(sorted(drive.files(random_bytes).items())):
        path = PurePosixPath("/", text)
        for parent in reversed(path.parents[:-1]):
            if parent not in folders:
                folders[parent] = f"{folders[parent.parent]}/D{len(folders)}"
                iso.add_directory(
                    folders[parent], rr_name=parent.name, joliet_path=str(parent), file_mode=_FOLDER_MODE
                )  # fmt: skip
        iso.add_fp(
            io.BytesIO(content), len(content), f"{folders[path.parent]}/F{number}.;1", rr_name=path.name,
            joliet_path=str(path), file_mode=_FILE_MODE,
        )  # fmt: skip
    made = io.BytesIO()
    iso.write_fp(made)
    iso.close()
    return made.getvalue()


class ConfigDrives:
    """The drives of one host's guests, in the folders of their disks below *directory*; they go with those."""

    def __init__(self, directory: Path, random_bytes: RandomBytes = os.urandom) -> None:
        self._directory, self._random_bytes = directory, random_bytes

    def path(self, uuid: UUID) -> Path:
        return self._directory / str(uuid) / DRIVE_NAME

    def is_current(self, uuid: UUID, drive: Drive | None) -> bool:
        """Whether ``write`` would do nothing: the guest's drive is just *drive*, or it is to have none."""
        return drive is None or self._descriptor(uuid) == (drive.label, drive.digest)

    def write(self, uuid: UUID, drive: Drive | None) -> None:
        """Make *drive* the guest's; one that is just this already stays as it is, and one that nobody asks for any more, too.

        Not for two threads and one instance at once, nor beside the making of its disk.

        Raises:
            NoSpace, Transient, Permanent: the file system refuses; nothing half-made is left.
        """
        if drive is None or self.is_current(uuid, drive):
            return
        path = self.path(uuid)
        make_directory(path.parent, DIRECTORY_MODE)
        remove_partials(path.parent)
        write_atomically(path, image(drive, self._random_bytes), DRIVE_MODE)

    def form(self, uuid: UUID) -> ConfigDrive | None:
        """Which kind of drive the guest has had made for it, None for none."""
        label, digest = self._descriptor(uuid)
        return next((form for form, known in LABELS.items() if digest and known == label), None)

    def _descriptor(self, uuid: UUID) -> tuple[str, str]:
        """The label and the digest that the drive carries; no digest where it is none of ours."""
        path = self.path(uuid)
        with file_errors("cannot read", path):
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(_DESCRIPTOR_AT)
                    descriptor = file.read(_SECTOR_BYTES)
            except FileNotFoundError:
                return "", ""
        label, application = (descriptor[part].decode("ascii", "replace").strip() for part in (_LABEL, _APPLICATION))
        name, _, digest = application.partition(" ")
        return label, digest.lower() if name == _APPLICATION_NAME else ""
