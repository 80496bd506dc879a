"""Looks at the world for one instance: libvirt, files and, only where a decision needs it, Placement. It remembers nothing.

The one thing kept is time: when a power button was last pressed and since when a claim has stood alone, both by the
monotonic clock of this process. A restart forgets them, which only makes us wait a little longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.metadata import MetadataStore
from common.model import Address, Desired, InstanceSpec
from common.placement import Placement
from ecompute.blueprint import Blueprint
from ecompute.disks import Disks
from ecompute.hypervisor import Domain, Hypervisor
from ecompute.images import ImageCache
from ecompute.machine import Allocation, Facts
from ecompute.network import AddressPools
from ecompute.watcher import SpecEntry

PRESS_AGAIN_SECONDS = 10.0  # a guest that is still booting ignores the power button


@dataclass(frozen=True)
class Glimpse:
    """What a resync has listed already, so that nobody need ask for it one by one."""

    domain: Domain | None
    allocation: Allocation


class Patience:
    """Since when something has been going on, per instance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._first_press: dict[UUID, float] = {}
        self._last_press: dict[UUID, float] = {}
        self._orphan_since: dict[UUID, float] = {}

    def pressed(self, uuid: UUID) -> None:
        """The power button was pressed just now."""
        with self._lock:
            now = self._clock()
            self._first_press.setdefault(uuid, now)
            self._last_press[uuid] = now

    def button(self, uuid: UUID, grace_seconds: float) -> tuple[bool, bool]:
        """Whether to press (again), and whether the grace time is over."""
        with self._lock:
            now = self._clock()
            first, last = self._first_press.get(uuid), self._last_press.get(uuid)
        if first is None or last is None:
            return True, False
        return now - last >= PRESS_AGAIN_SECONDS, now - first >= grace_seconds

    def at_rest(self, uuid: UUID) -> None:
        """No power-off is under way."""
        with self._lock:
            self._first_press.pop(uuid, None)
            self._last_press.pop(uuid, None)

    def orphan_seconds(self, uuid: UUID, *, is_orphan: bool) -> float:
        """How long *uuid* has been seen as an orphan without a break."""
        with self._lock:
            if not is_orphan:
                self._orphan_since.pop(uuid, None)
                return 0.0
            return self._clock() - self._orphan_since.setdefault(uuid, self._clock())


class FactFinder:
    """Gathers the facts of one instance; raises ``Transient`` where one that is needed cannot be had."""

    def __init__(
        self, *, hypervisor: Hypervisor, placement: Placement, disks: Disks, images: ImageCache, networks: AddressPools,
        metadata: MetadataStore, blueprint: Blueprint, patience: Patience, cluster_id: Callable[[], int],
        orphan_after_seconds: float,
    ) -> None:  # fmt: skip
        self._hypervisor, self._placement, self._disks, self._images = hypervisor, placement, disks, images
        self._networks, self._metadata, self._blueprint = networks, metadata, blueprint
        self._patience, self._cluster_id, self._orphan_after_seconds = patience, cluster_id, orphan_after_seconds
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
        domain = glimpse.domain if glimpse else self._hypervisor.get(uuid)
        addresses = self._networks.assigned(uuid)
        allocation = glimpse.allocation if glimpse else self._allocation(uuid, spec, domain, booted)
        is_orphan = entry is None and domain is None and allocation is Allocation.PRESENT
        press, grace_over = self._patience.button(uuid, spec.grace_seconds) if spec else (True, False)
        return Facts(
            provider=self._blueprint.provider,
            cluster_id=self._cluster_id(),
            spec_revision=entry.revision if entry else 0,
            host_boot_id=self._blueprint.boot_id,
            spec_is_unsupported=bool(entry and entry.spec is None),
            domain=domain,
            allocation=allocation,
            disk_is_there=self._disks.exists(uuid),
            image_is_cached=bool(spec and self._images.is_cached(spec.image)),
            files_are_there=self._disks.has_files(uuid),
            addresses=addresses,
            metadata_is_there=self._metadata.exists(uuid),
            metadata_is_current=self._metadata_is_current(spec, addresses),
            definition_is_current=self._definition_is_current(spec, domain, addresses),
            shutdown_is_due=press,
            grace_is_over=grace_over,
            claim_is_orphaned=self._patience.orphan_seconds(uuid, is_orphan=is_orphan) > self._orphan_after_seconds,
        )

    def _allocation(self, uuid: UUID, spec: InstanceSpec | None, domain: Domain | None, booted: int) -> Allocation:
        """Asked for only where a row needs the answer: before a first build, and when everything is taken away."""
        if uuid in self._suspects:
            self._suspects.discard(uuid)
            return self._asked(uuid)
        is_settled = domain is not None and (domain.is_active or (domain.stamp is not None and domain.stamp.booted > 0))
        if spec is not None and spec.desired is not Desired.DELETED and (is_settled or booted > 0):
            return Allocation.UNASKED
        if spec is None and domain is not None:
            return Allocation.UNASKED
        return self._asked(uuid)

    def _asked(self, uuid: UUID) -> Allocation:
        consumer = self._placement.consumer(uuid)
        return Allocation.PRESENT if consumer and self._blueprint.provider in consumer.allocations else Allocation.ABSENT

    def _metadata_is_current(self, spec: InstanceSpec | None, addresses: tuple[Address, ...] | None) -> bool:
        if spec is None or addresses is None:
            return False
        return self._metadata.is_current(self._blueprint.document(spec, addresses))

    def _definition_is_current(
        self, spec: InstanceSpec | None, domain: Domain | None, addresses: tuple[Address, ...] | None
    ) -> bool:
        if spec is None or addresses is None or domain is None or domain.stamp is None:
            return False
        return domain.stamp.definition == self._blueprint.digest(spec, addresses)
