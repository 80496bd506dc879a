"""Requests made through eschedule's library, for tests that need many of them quickly and on the host that they choose."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from common.hardware import USUAL
from common.model import Desired, ImageRef
from common.volume_records import VolumePlace
from eschedule import changes, disk_edits, still_edits, volume_changes
from eschedule.request import Request
from eschedule.resizing import Resizer
from eschedule.scheduler import Scheduler
from eschedule.volume_scheduler import VolumeRequest, VolumeScheduler
from tests.support.cluster import QUERY, Cluster, Node
from tests.support.ledger import Ledger

GRACE_SECONDS = 2


class _Preference(random.Random):
    """Dice that always fall for one host."""

    def __init__(self, provider: UUID) -> None:
        super().__init__(0)
        self.provider = provider

    def shuffle(self, candidates: Any) -> None:
        candidates.sort(key=lambda candidate: self.provider not in candidate.allocations)


class Clients:
    """Asks a cluster for things and writes down in *ledger* what was asked."""

    def __init__(self, cluster: Cluster, ledger: Ledger) -> None:
        self.cluster, self.ledger = cluster, ledger
        self._count = 0

    def create(self, on: Node, *, image: str = "", has_alternates: bool = False, **more: Any) -> UUID:
        """Record a new instance, which *on* is to build; the other hosts are its alternates where *has_alternates*."""
        self._count += 1
        query = QUERY if has_alternates else f"{QUERY}&in_tree={on.provider}"
        request = Request(
            query=query, resources={"VCPU": 1, "MEMORY_MB": 32, "DISK_GB": 1}, name=f"guest-{self._count}",
            image=ImageRef(image or str(self.cluster.image)), grace_seconds=GRACE_SECONDS, **more,
        )  # fmt: skip
        scheduler = Scheduler(
            self.cluster.store, self.cluster.placement, self.cluster.keys, policy="random", dice=_Preference(on.provider)
        )
        placed = scheduler.create(request)
        assert placed.provider == on.provider, "the claim was made on another host"
        self.ledger.asked(placed.uuid, placed.name, Desired.RUNNING)
        return placed.uuid

    def destroy(self, uuid: UUID) -> None:
        self._change(uuid, changes.destroyed)
        self.ledger.asked(uuid, "", None)

    def stop(self, uuid: UUID) -> None:
        self._change(uuid, changes.stopped)
        self.ledger.asked(uuid, "", Desired.STOPPED)

    def pause(self, uuid: UUID) -> None:
        self._change(uuid, still_edits.paused)
        self.ledger.asked(uuid, "", Desired.PAUSED)

    def suspend(self, uuid: UUID) -> None:
        self._change(uuid, still_edits.suspended)
        self.ledger.asked(uuid, "", Desired.SUSPENDED)

    def start(self, uuid: UUID) -> None:
        self._change(uuid, changes.started)
        self.ledger.asked(uuid, "", Desired.RUNNING)

    def reboot(self, uuid: UUID, *, hard: bool = False) -> None:
        self.ledger.asked_to_reboot(uuid)
        self._change(uuid, changes.rebooted(hard=hard))
        self._boots(uuid)

    def revert(self, uuid: UUID, snapshot: str) -> None:
        self.ledger.asked_to_reboot(uuid)
        self._change(uuid, disk_edits.reverted(snapshot))
        self._boots(uuid)

    def rebuild(self, uuid: UUID, image: str) -> None:
        self.ledger.asked_to_reboot(uuid)
        self.ledger.asked_for_a_new_disk(uuid, times=2)
        self._change(uuid, disk_edits.rebuilt(ImageRef(image), USUAL))
        self.ledger.reboot_is_certain(uuid)

    def resize(self, uuid: UUID, **wanted: int) -> None:
        Resizer(self.cluster.store, self.cluster.keys, self.cluster.placement).resize(uuid, wanted, who=uuid)

    def create_volume(self, on: Node, size_gib: int = 1) -> VolumePlace:
        """Record a new volume, which *on* is to make."""
        self._count += 1
        scheduler = VolumeScheduler(self.cluster.store, self.cluster.volume_placement, self.cluster.keys)
        return scheduler.create(VolumeRequest(f"volume-{self._count}", size_gib, on.provider)).place

    def attach(self, volume: VolumePlace, instance: UUID) -> None:
        volume_changes.attach(self.cluster.store, self.cluster.keys, volume, instance)

    def detach(self, volume: VolumePlace) -> None:
        volume_changes.detach(self.cluster.store, self.cluster.keys, volume)

    def remove_volume(self, volume: VolumePlace) -> None:
        volume_changes.remove(self.cluster.store, self.cluster.keys, volume)

    def edit(self, uuid: UUID, fields: Mapping[str, Any]) -> None:
        """Set *fields* of the spec as they are."""
        self._change(uuid, lambda _spec, _status: fields)

    def _boots(self, uuid: UUID) -> None:
        """It was asked to boot; one that had no process has no other one then."""
        if self.ledger.known[uuid].may_be == {Desired.SUSPENDED}:
            self.ledger.asked(uuid, "", Desired.RUNNING)
        else:
            self.ledger.reboot_is_certain(uuid)

    def _change(self, uuid: UUID, edit: changes.Edit) -> None:
        changes.change(self.cluster.store, self.cluster.keys, uuid, edit)
