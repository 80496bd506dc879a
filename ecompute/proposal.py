"""The spec that a host would write for a guest whose own is lost, or older than the guest. Pure.

What is known comes from the metadata document (names, keys, user data, who may read it, image, hardware), the domain (size,
power), the addresses (networks), the rules (who may reach it), its config drive, the claim (resources), our stamp (boots) and
the notes of its disk. Restart policy, grace time and group stand nowhere but in the lost spec.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from common.metadata import MetadataDocument
from common.model import Address, Adoption, ConfigDrive, Desired, ImageRef, InstanceSpec, Nic
from common.nics import AddressSource, IpAddress
from common.volume_refs import VolumeRef
from ecompute.config_drive import form_of
from ecompute.disk_notes import NOTHING_NOTED, Noted
from ecompute.domain_xml import domain_name
from ecompute.firewall import GuestRules
from ecompute.hypervisor import Domain, Stamp

UNKNOWN_IMAGE = "/unknown"  # where no document tells what the disk was made of; a disk that is there is never made again


@dataclass(frozen=True)
class Remains:
    """What a host still knows of one guest, beside its domain."""

    document: MetadataDocument | None = None
    addresses: tuple[Address, ...] | None = None
    claim: Mapping[str, int] | None = None  # None where there is none, or Placement was not asked
    rules: GuestRules | None = None
    drive: ConfigDrive | None = None
    noted: Noted = NOTHING_NOTED
    volumes: tuple[VolumeRef, ...] = ()  # that are noted as its own


def proposed(domain: Domain, stamp: Stamp, remains: Remains, known: InstanceSpec | None = None) -> InstanceSpec:
    """The spec that says what *domain* is; *known* is an older one, which keeps what only specs hold.

    It asks for no boot that the guest has not had, so that adopting it starts and reboots nothing.
    """
    document = remains.document
    base = known or _base(domain, document)
    if document is not None:
        base = dataclasses.replace(
            base,
            # A spec that names none has the name for it; said or not, the guest is told the same.
            hostname=document.hostname if base.hostname or document.hostname != base.name else "",
            keys=document.keys,
            user_data_base64=document.user_data_base64,
            metadata=document.access,
            metadata_hop_limit=document.hop_limit,
            hardware=document.hardware,
            image=base.image if base.image.url == document.image else ImageRef(document.image or UNKNOWN_IMAGE),
        )
    if remains.rules is not None:
        base = dataclasses.replace(base, allow=remains.rules.allow, forwards=remains.rules.forwards)
    if known is None:
        base = dataclasses.replace(base, config_drive=_config_drive(base, remains), volumes=remains.volumes)
    return dataclasses.replace(
        base,
        resources=_resources(domain, remains, base),
        nics=base.nics if remains.addresses is None else tuple(map(_nic, remains.addresses)),
        desired=_desired(domain),
        # Nor for another disk than it has. A later request has a higher number than any that was dealt with.
        restore_request=min(base.restore_request, remains.noted.restored.request),
        rebuild_request=min(base.rebuild_request, remains.noted.rebuilt.request),
        boot_request=max(stamp.booted, known.boot_request if known else 1, 1, *_numbers(remains.noted)),
        alternates=(),
        adopts=Adoption(stamp.cluster_id, stamp.spec_revision),
    )


def _desired(domain: Domain) -> Desired:
    """What leaves its power as it is."""
    if domain.is_active:
        return Desired.PAUSED if domain.was_paused else Desired.RUNNING
    return Desired.SUSPENDED if domain.has_saved_memory else Desired.STOPPED


def _numbers(noted: Noted) -> tuple[int, int]:
    return noted.restored.request, noted.rebuilt.request


def _base(domain: Domain, document: MetadataDocument | None) -> InstanceSpec:
    name = document.name if document else domain.name.removesuffix(domain_name("", domain.uuid))
    created_at = document.created_at if document else ""
    return InstanceSpec(
        domain.uuid, name, ImageRef(UNKNOWN_IMAGE), resources={}, created_at=created_at, created_by="eschedule adopt"
    )


def _config_drive(base: InstanceSpec, remains: Remains) -> ConfigDrive:
    """What asks for the drive that the guest has, or for none; whatever it would have anyway was hardly asked for."""
    if remains.addresses is None:
        return remains.drive or ConfigDrive.AUTO
    if remains.drive is form_of(base, remains.addresses):
        return ConfigDrive.AUTO
    return remains.drive or ConfigDrive.NONE


def _nic(address: Address) -> Nic:
    """The card that would be given *address*; what the host's own network hands out it hands out again."""
    if not address.bridge:
        return Nic(address.network)
    fixed: tuple[IpAddress, ...] = ()
    if address.source is AddressSource.STATIC:
        fixed = (IpAddress(address.address, address.prefix_length, address.gateway), *address.more)
    return Nic(
        address.network, address.bridge, address.vlan, address.mac, fixed, address.name_servers if fixed else (), address.mtu
    )  # fmt: skip


def _resources(domain: Domain, remains: Remains, base: InstanceSpec) -> dict[str, int]:
    """What is claimed counts, for that is what it pays for; else what the guest was told, else what QEMU was given."""
    if remains.claim:
        return dict(remains.claim)
    if remains.document and remains.document.resources:
        return dict(remains.document.resources)
    return {**base.resources, "VCPU": domain.vcpus, "MEMORY_MB": domain.memory_mib}
