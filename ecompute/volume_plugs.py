"""Volumes come to and go from a guest: what its domain has of them, and the two steps that change that.

The definition comes first in both: whoever starts the guest, it has what its spec says. It is written anew as a whole, from the
blueprint that every start uses, and keeps the stamp that the domain has. Then the guest that runs is seen to.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from uuid import UUID

from common.errors import Conflict
from common.hardware import DiskBus
from common.model import InstanceSpec
from ecompute.hypervisor import Disk, Domain
from ecompute.machine import Facts, is_up
from ecompute.volume_decisions import GuestVolumes, is_pluggable, volume_notes
from ecompute.volume_files import volume_of
from ecompute.volume_xml import volume_xml
from ecompute.world import World

ASK_AGAIN_SECONDS = 15.0  # a guest that is booting, or hangs, does not hear it


def look_at_volumes(world: World, spec: InstanceSpec | None, domain: Domain | None) -> GuestVolumes | None:
    """The volumes that *domain* has; None where it has none and is to have none, which takes no question."""
    if spec is None or domain is None:
        return None
    if not spec.volumes and not world.volumes.attached_to(spec.uuid):
        return None
    disks, directory = world.hypervisor.disks(spec.uuid), world.blueprint.volumes_directory
    defined, live = _volumes(disks.defined, directory), _volumes(disks.live, directory)
    wanted = frozenset(volume.uuid for volume in spec.volumes)
    return GuestVolumes(
        defined, live, was_asked=world.patience.was_asked_to_let_go(spec.uuid, ASK_AGAIN_SECONDS),
        held=tuple(sorted(world.volumes.name(volume) for volume in live - wanted)),
        is_pluggable=world.blueprint.as_built(spec).hardware.disk_bus is DiskBus.VIRTIO,
    )  # fmt: skip


def _volumes(disks: tuple[Disk, ...], directory: Path) -> frozenset[UUID]:
    found = (volume_of(Path(disk.path), directory) for disk in disks)
    return frozenset(volume for volume in found if volume is not None)


def as_defined(spec: InstanceSpec, facts: Facts, *, is_started: bool = False) -> Facts:
    """*facts* after the domain was defined, or started, as *spec* says."""
    if not spec.volumes and facts.volumes is None:
        return facts
    wanted = frozenset(volume.uuid for volume in spec.volumes)
    return dataclasses.replace(facts, volumes=GuestVolumes(wanted, wanted if is_started else frozenset()))


def notes_of(spec: InstanceSpec, facts: Facts) -> tuple[str, ...]:
    """All that is not as asked for, for people."""
    return facts.notes + volume_notes(spec, facts.volumes, is_active=is_up(facts))


def volumes_of(facts: Facts) -> tuple[UUID, ...]:
    """The volumes that the guest has, or will have when it starts, for its status."""
    there = facts.volumes or GuestVolumes()
    return tuple(sorted(there.live if is_up(facts) else there.defined))


def is_waited_for(facts: Facts) -> bool:
    """Whether the guest was asked for a volume that it still has."""
    return facts.volumes is not None and facts.volumes.was_asked and bool(facts.volumes.held)


class Plugs:
    """The steps AttachVolume and DetachVolume."""

    def __init__(self, world: World) -> None:
        self._world = world

    def attach(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Plug each volume in that the guest is to have and has not.

        Raises:
            Conflict: one is not made yet.
            HypervisorRejected: one cannot be plugged in; those before it are.
        """
        there, domain = self._there(spec, facts)
        self._define(spec, facts, there, domain)
        for volume in spec.volumes if domain.is_active and is_pluggable(spec, there) else ():
            path = self._world.blueprint.volume_path(volume.uuid)
            if volume.uuid in there.live:
                continue
            if not path.exists():
                raise Conflict(f"volume {volume.name} is not there (yet): {path}")
            self._world.hypervisor.attach_disk(spec.uuid, volume_xml(volume, path, DiskBus.VIRTIO))
        return self._after(spec, facts)

    def detach(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Ask the guest to let go of each volume that it is to have no more; when it does so, it is looked at again."""
        there, domain = self._there(spec, facts)
        self._define(spec, facts, there, domain)
        wanted = {volume.uuid for volume in spec.volumes}
        for volume in sorted(there.live - wanted) if domain.is_active and is_pluggable(spec, there) else ():
            self._world.patience.asked_to_let_go(spec.uuid)
            self._world.hypervisor.detach_disk(spec.uuid, str(self._world.blueprint.volume_path(volume)))
        return self._after(spec, facts)

    def _there(self, spec: InstanceSpec, facts: Facts) -> tuple[GuestVolumes, Domain]:
        if facts.volumes is None or facts.domain is None:
            raise Conflict(f"the domain of {spec.name} is not there to have its volumes changed")
        return facts.volumes, facts.domain

    def _define(self, spec: InstanceSpec, facts: Facts, there: GuestVolumes, domain: Domain) -> None:
        if there.defined == frozenset(volume.uuid for volume in spec.volumes):
            return
        blueprint, addresses = self._world.blueprint, facts.addresses
        if addresses is None or domain.stamp is None:
            raise Conflict(f"the definition of {spec.name} cannot be written: its addresses are not known")
        stamp = dataclasses.replace(domain.stamp, definition=blueprint.digest(spec, addresses))
        self._world.hypervisor.define(blueprint.xml(spec, addresses, stamp, known_as=domain.name))

    def _after(self, spec: InstanceSpec, facts: Facts) -> Facts:
        return dataclasses.replace(facts, volumes=look_at_volumes(self._world, spec, facts.domain))
