"""Looks at the world for one instance: libvirt, files and, only where a decision needs it, Placement. It remembers nothing.

The one thing that is kept between two looks is ``Patience``: since when something has been going on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from common.disk_requests import DiskRequest
from common.model import Address, Desired, InstanceSpec
from ecompute.disk_changes import as_built, disk_facts
from ecompute.firewall_keeper import Look
from ecompute.hypervisor import Domain
from ecompute.machine import Allocation, DiskFacts, Facts
from ecompute.sizing import claim_wanted
from ecompute.volume_plugs import look_at_volumes
from ecompute.watcher import SpecEntry
from ecompute.world import World

# Longer than a client relies on a claim before it writes the request (30 s), shorter than two looks are apart.
WRONG_AFTER_SECONDS = 40.0


@dataclass(frozen=True)
class Glimpse:
    """What a resync has listed already, so that nobody need ask for it one by one."""

    domain: Domain | None
    allocation: Allocation
    claimed: Mapping[str, int] | None = None  # here, where Placement was asked


@dataclass(frozen=True)
class _Claim:
    """What was learnt of the instance's claim."""

    allocation: Allocation = Allocation.UNASKED
    at: frozenset[UUID] = frozenset()
    is_wrong: bool = False


class FactFinder:
    """Gathers the facts of one instance; raises ``Transient`` where one that is needed cannot be had."""

    def __init__(self, world: World, *, cluster_id: Callable[[], int], orphan_after_seconds: float) -> None:
        self._wrong_after_seconds = min(WRONG_AFTER_SECONDS, orphan_after_seconds)
        self._world, self._cluster_id, self._orphan_after_seconds = world, cluster_id, orphan_after_seconds
        self._suspects: set[UUID] = set()

    def suspect(self, uuid: UUID) -> None:
        """Have the next pass for *uuid* ask Placement, whatever the rule says."""
        self._suspects.add(uuid)

    def gather(self, uuid: UUID, entry: SpecEntry | None, *, booted: int, glimpse: Glimpse | None = None) -> Facts:
        """What is there for *uuid* now.

        Args:
            booted: the last boot that the status knows of; a guest that has run keeps its claim without being asked for it.
            glimpse: domain and allocation as listed a moment ago; else both are asked for.
        """
        spec = entry.spec if entry else None
        domain = glimpse.domain if glimpse else self._world.hypervisor.get(uuid)
        addresses = self._world.networks.assigned(uuid)
        claim = self._glimpsed(spec, glimpse) if glimpse else self._allocation(uuid, spec, domain, booted)
        disk_is_there = self._world.disks.exists(uuid)
        noted = self._world.disks.notes.read(uuid)
        disk = DiskFacts(noted.restored, noted.rebuilt, is_frozen=noted.is_frozen)
        disk = disk_facts(self._world, spec, noted=disk)
        image_is_cached = self._image_is_cached(spec, disk, disk_is_there=disk_is_there)
        spec = as_built(self._world, spec, disk) if spec else None  # what follows tells of the disk that it has
        is_orphan = entry is None and domain is None and claim.allocation is Allocation.PRESENT
        rules = self._rules(spec, addresses)
        press, grace_over = self._world.patience.button(uuid, spec.grace_seconds) if spec else (True, False)
        return Facts(
            provider=self._world.blueprint.provider,
            cluster_id=self._cluster_id(),
            spec_revision=entry.revision if entry else 0,
            host_boot_id=self._world.blueprint.boot_id,
            spec_is_unsupported=bool(entry and entry.spec is None),
            domain=domain,
            allocation=claim.allocation,
            disk_is_there=disk_is_there,
            image_is_cached=image_is_cached,
            files_are_there=self._world.disks.has_files(uuid),
            addresses=addresses,
            metadata_is_there=self._world.metadata.exists(uuid),
            metadata_is_current=self._metadata_is_current(spec, addresses),
            drive_is_current=self._drive_is_current(spec, domain, addresses),
            rules_are_there=self._world.firewall.has(uuid),
            rules_are_current=rules.is_current,
            notes=(*(self._world.blueprint.notes(spec) if spec else ()), *rules.notes),
            definition_is_current=self._definition_is_current(spec, domain, addresses),
            shutdown_is_due=press,
            grace_is_over=grace_over,
            claim_is_orphaned=self._world.patience.orphan_seconds(uuid, is_orphan=is_orphan) > self._orphan_after_seconds,
            claimed_at=claim.at,
            ruled_out=frozenset(self._world.patience.ruled_out(uuid)),
            slow_retry_is_due=self._world.patience.slow_retry_is_due(uuid),
            is_connected=self._is_connected(domain, addresses),
            disk=disk,
            disk_is_large_enough=spec is None or self._world.disks.is_large_enough(uuid, spec.disk_gib),
            claim_is_wrong=claim.is_wrong,
            volumes=look_at_volumes(self._world, spec, domain),
            suspend_problem=self._world.patience.suspend_problem(uuid, entry.revision if entry else 0),
        )

    def _allocation(self, uuid: UUID, spec: InstanceSpec | None, domain: Domain | None, booted: int) -> _Claim:
        """Asked for only where a row needs the answer: before a first build, in a move, and for a claim that stands alone."""
        if uuid in self._suspects:
            self._suspects.discard(uuid)
            return self._asked(uuid, spec, domain)
        if spec is None:
            # Only a resync, which lists all claims, finds one that stands alone.
            is_suspect = domain is None and self._world.patience.is_orphan(uuid)
            return _Claim(self._asked_alone(uuid)) if is_suspect else _Claim()
        has_run = booted > 0 or (domain is not None and domain.stamp is not None and domain.stamp.booted > 0)
        is_active = domain is not None and domain.is_active
        # One that is to be stopped before it ever ran may be in the middle of a move.
        is_wanted = spec.desired.keeps_guest or (spec.desired is Desired.STOPPED and bool(spec.alternates))
        if not is_wanted or has_run or is_active:
            return _Claim()
        return self._asked(uuid, spec, domain)

    def _asked(self, uuid: UUID, spec: InstanceSpec | None, domain: Domain | None) -> _Claim:
        consumer, provider = self._world.placement.consumer(uuid), self._world.blueprint.provider
        if consumer is None:
            return _Claim(Allocation.ABSENT)
        amounts = consumer.allocations.get(provider)
        is_odd = spec is not None and amounts is not None and amounts != claim_wanted(spec, domain)
        since = self._world.patience.wrong_claim_seconds(uuid, consumer.generation if is_odd else None)
        return _Claim(
            Allocation.ABSENT if amounts is None else Allocation.PRESENT, frozenset(consumer.allocations),
            is_wrong=is_odd and len(consumer.allocations) == 1 and since >= self._wrong_after_seconds,
        )  # fmt: skip

    def _glimpsed(self, spec: InstanceSpec | None, glimpse: Glimpse) -> _Claim:
        """Amounts that differ make the pass ask for the claim itself, which tells since when they do."""
        is_odd = spec is not None and glimpse.claimed is not None and glimpse.claimed != claim_wanted(spec, glimpse.domain)
        return _Claim(glimpse.allocation, is_wrong=is_odd)

    def _asked_alone(self, uuid: UUID) -> Allocation:
        """As ``_asked``, where only a claim of ours counts."""
        consumer = self._world.placement.consumer(uuid)
        if consumer is None or self._world.blueprint.provider not in consumer.allocations:
            return Allocation.ABSENT
        self._world.patience.orphan_stands_at(uuid, consumer.generation)
        return Allocation.PRESENT if self._world.placement.is_ours(consumer) else Allocation.UNASKED

    def _image_is_cached(self, spec: InstanceSpec | None, disk: DiskFacts, *, disk_is_there: bool) -> bool:
        """Looked at only where a disk is to be made of it: an image that went bad later is no guest's trouble."""
        if spec is None or spec.desired is Desired.DELETED:
            return False
        is_rebuild = spec.disk_request(disk.restored, disk.rebuilt) is DiskRequest.REBUILD
        if not is_rebuild and (not spec.desired.keeps_guest or disk_is_there):
            return False
        return self._world.images.is_ready(spec.image)

    def _metadata_is_current(self, spec: InstanceSpec | None, addresses: tuple[Address, ...] | None) -> bool:
        if spec is None or addresses is None:
            return False
        return self._world.metadata.is_current(self._world.blueprint.document(spec, addresses))

    def _drive_is_current(
        self, spec: InstanceSpec | None, domain: Domain | None, addresses: tuple[Address, ...] | None
    ) -> bool:
        if spec is None or addresses is None:
            return False
        if domain and domain.is_active and self._world.blueprint.has_drive(spec, addresses):
            return False  # nobody asks while it is up, and to know what is to be on it takes making that
        return self._world.drives.is_current(spec.uuid, self._world.blueprint.drive(spec, addresses))

    def _rules(self, spec: InstanceSpec | None, addresses: tuple[Address, ...] | None) -> Look:
        """Nothing can be said of them before the addresses are known, and of one that goes nothing need be."""
        if spec is None or addresses is None or spec.desired is Desired.DELETED:
            return Look(is_current=True)
        return self._world.firewall.look(spec, addresses)

    def _is_connected(self, domain: Domain | None, addresses: tuple[Address, ...] | None) -> bool:
        """Asked for only where a card is in a VLAN: those start with their cable unplugged."""
        vlan_macs = {address.mac for address in addresses or () if address.vlan}
        if not vlan_macs or domain is None or not domain.is_active:
            return True
        return not any(card.mac in vlan_macs and not card.link_is_up for card in self._world.hypervisor.cards(domain.uuid))

    def _definition_is_current(
        self, spec: InstanceSpec | None, domain: Domain | None, addresses: tuple[Address, ...] | None
    ) -> bool:
        if spec is None or addresses is None or domain is None or domain.stamp is None:
            return False
        return domain.stamp.definition == self._world.blueprint.digest(spec, addresses)
