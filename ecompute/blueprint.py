"""What a spec means on this host: its metadata document and its domain, as pure derivations. Writes nothing, asks nobody, and
looks at nothing but the name of a guest's disk.

Facts ("is what is there still what the spec means?") and builder ("make it so") both come here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from common.config import DiskConfig
from common.hardware import USUAL, Hardware
from common.metadata import MetadataDocument
from common.model import Address, ConfigDrive, InstanceSpec
from common.renderings import nocloud, openstack
from common.renderings.guest import Guest, Host
from ecompute.config_drive import DRIVE_NAME, LABELS, Drive, form_of
from ecompute.disks import disk_in
from ecompute.domain_xml import DomainContext, definition_digest, domain_xml
from ecompute.hypervisor import Stamp
from ecompute.volume_files import volume_file


@dataclass(frozen=True)
class Blueprint:
    """The host's side of every domain: all that does not come from the spec.

    Args:
        zone: the availability zone that guests are told, as md_server tells it: the host's name.
        vendor_data_base64: what the operator gives to every guest of the host, None for nothing.
        metadata_bridge: where md-server answers the guests.
        found_hardware: what was found that an instance's image has drivers for, None where nobody has looked.
        disk: how QEMU is to use the guests' disks.
    """

    provider: UUID
    boot_id: str
    virt_type: str  # "kvm" | "qemu" | "test"
    architecture: str
    machine_type: str | None
    cpu_mode: str | None
    filter_name: str | None
    instances_directory: Path
    zone: str = ""
    vendor_data_base64: str | None = None
    metadata_bridge: str = ""
    found_hardware: Callable[[UUID], Hardware | None] = lambda _: None
    disk: DiskConfig = field(default_factory=DiskConfig)
    volumes_directory: Path = Path("/var/lib/etcd-compute/volumes")
    graphics: str = "none"  # or "vnc"

    def disk_path(self, uuid: UUID) -> Path:
        """Which of the two names a disk can have is looked at: it keeps the format that it was built with."""
        return disk_in(self.instances_directory / str(uuid))

    def as_built(self, spec: InstanceSpec) -> InstanceSpec:
        """*spec* with the hardware that was found for it on this host, where it does not say itself."""
        if spec.hardware != USUAL or spec.hardware_is_given:
            return spec
        found = self.found_hardware(spec.uuid)
        return replace(spec, hardware=found) if found else spec

    def notes(self, spec: InstanceSpec) -> tuple[str, ...]:
        """What is otherwise than *spec* says, for people."""
        has = self.as_built(spec).hardware
        if has == spec.hardware:
            return ()
        return (f"its image lacks drivers for virtio: its disk is on {has.disk_bus}, its cards are {has.card_model}",)

    def volume_path(self, volume: UUID) -> Path:
        return self.volumes_directory / volume_file(volume)

    def document(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> MetadataDocument:
        """What md_server tells the guest of itself."""
        return MetadataDocument(
            uuid=spec.uuid,
            name=spec.name,
            hostname=spec.hostname or spec.name,
            keys=spec.keys,
            user_data_base64=spec.user_data_base64,
            addresses=addresses,
            image=spec.image.url,
            resources=spec.resources,
            created_at=spec.created_at,
            access=spec.metadata,
            hop_limit=spec.metadata_hop_limit,
            vendor_data_base64=self.vendor_data_base64,
            metadata_bridge=self.metadata_bridge,
            hardware=self.as_built(spec).hardware,
        )

    def has_drive(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> bool:
        return form_of(spec, addresses) is not None

    def drive(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> Drive | None:
        """The config drive of the guest, None where it has none: the same as it would be told by HTTP."""
        form = form_of(spec, addresses)
        if form is None:
            return None
        guest = Guest(self.document(spec, addresses), Host(self.zone, self.architecture))
        if form is ConfigDrive.NOCLOUD:
            return Drive(LABELS[form], lambda _: nocloud.files(guest))
        return Drive(LABELS[form], lambda random_bytes: openstack.files(guest, random_bytes))

    def stamp(
        self, spec: InstanceSpec, addresses: tuple[Address, ...], *, cluster_id: int, revision: int, booted: int
    ) -> Stamp:
        return Stamp(
            provider=self.provider,
            cluster_id=cluster_id,
            spec_revision=revision,
            booted=booted,
            definition=self.digest(spec, addresses),
            boot_id=self.boot_id,
            started_for=spec.boot_request,
        )

    def digest(self, spec: InstanceSpec, addresses: tuple[Address, ...]) -> str:
        """Changes whenever the domain must be defined anew; the stamp itself has no part in it."""
        return definition_digest(self.as_built(spec), self._context(spec, addresses, Stamp(self.provider, 0, 0)))

    def xml(self, spec: InstanceSpec, addresses: tuple[Address, ...], stamp: Stamp, *, known_as: str = "") -> str:
        return domain_xml(self.as_built(spec), self._context(spec, addresses, stamp, known_as))

    def _context(self, spec: InstanceSpec, addresses: tuple[Address, ...], stamp: Stamp, known_as: str = "") -> DomainContext:
        folder = self.instances_directory / str(spec.uuid)
        return DomainContext(
            virt_type=self.virt_type,
            machine_type=self.machine_type,
            graphics=self.graphics,
            cpu_mode=self.cpu_mode,
            architecture=self.architecture,
            disk_path=self.disk_path(spec.uuid),
            console_log_path=folder / "console.log",
            addresses=addresses,
            filter_name=self.filter_name,
            stamp=stamp,
            known_as=known_as,
            drive_path=folder / DRIVE_NAME if self.has_drive(spec, addresses) else None,
            disk=self.disk,
            volume_paths=tuple(self.volume_path(volume.uuid) for volume in spec.volumes),
        )
