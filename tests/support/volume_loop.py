"""A ``Loop`` that keeps volumes as well: the real keeper, book and files over the fakes of that host."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

from common.errors import EcomputeError
from common.model import InstanceSpec
from common.volume_records import VolumePlace, VolumeSpec, VolumeStatus
from ecompute.patience import Patience
from ecompute.volume_book import read_volume
from ecompute.volume_files import VolumeFiles
from ecompute.volume_keeper import VolumeKeeper
from eschedule import volume_changes
from tests.support.loop import KEYS, Loop

ORPHAN_AFTER_SECONDS = 600.0


class VolumeLoop(Loop):
    """One host of fakes with its volumes."""

    def restart(self, *arguments: object) -> None:
        super().restart(*arguments)  # type: ignore[arg-type]
        self.volume_placement = self.placement.of_type("VOLUME")
        self.files = VolumeFiles(self.directory / "volumes")
        self.keeper = VolumeKeeper(
            book=self.world.volumes, files=self.files, hypervisor=self.hypervisor, placement=self.volume_placement,
            store=self.store, keys=KEYS, provider=self.provider, statuses=self.statuses, fence=self.fence,
            is_live=lambda: self.is_live, now=lambda: "now", orphan_after_seconds=ORPHAN_AFTER_SECONDS,
            is_instance=lambda uuid: self.specs.get(uuid) is not None, patience=Patience(lambda: self.now),
        )  # fmt: skip
        self.hear()

    def hear(self) -> None:
        """The watch of volumes is never late."""
        items = self.store.list(KEYS.volumes(self.provider)).items
        found = {KEYS.parse_provider_volume(item.key)[1]: read_volume(item) for item in items}
        for uuid in found.keys() | self.world.volumes.all().keys():
            self.world.volumes.note(uuid, found.get(uuid))

    def new_volume(self, name: str = "data", size_gib: int = 1, *, is_claimed: bool = True) -> VolumePlace:
        """A volume as eschedule leaves it."""
        place = VolumePlace(self.provider, uuid4())
        if is_claimed:
            self.volume_placement.claim(place.uuid, {self.provider: {"DISK_GB": size_gib}})
        self.store.create(KEYS.volume_name(name), str(place))
        self.store.create(KEYS.volume(self.provider, place.uuid), VolumeSpec(place.uuid, name, size_gib).to_json())
        return place

    def keep(self, place: VolumePlace, passes: int = 6) -> None:
        """Passes of the keeper, retrying what fails for now."""
        for _ in range(passes):
            self.hear()
            try:
                self.keeper.reconcile(place.uuid)
            except EcomputeError:
                continue

    def settle_all(self, place: VolumePlace, *specs: InstanceSpec) -> None:
        for _ in range(3):
            self.keep(place)
            for spec in specs:
                self.settle(spec)
        self.keep(place)

    def attach(self, place: VolumePlace, spec: InstanceSpec) -> None:
        volume_changes.attach(self.store, KEYS, place, spec.uuid)
        self.hear()

    def detach(self, place: VolumePlace) -> None:
        volume_changes.detach(self.store, KEYS, place)
        self.hear()

    def volume(self, place: VolumePlace) -> VolumeSpec | None:
        item = self.store.get(KEYS.volume(self.provider, place.uuid))
        return VolumeSpec.from_json(item.value) if item else None

    def volume_status(self, place: VolumePlace) -> VolumeStatus:
        item = self.store.get(KEYS.volume_status(self.provider, place.uuid))
        assert item is not None, "no status was written"
        return dataclasses.replace(VolumeStatus.from_json(item.value), updated_at="")

    def plugged(self, spec: InstanceSpec) -> tuple[set[UUID], set[UUID]]:
        """The volumes of a domain: those it is defined with, those its guest has."""
        disks = self.hypervisor.disks(spec.uuid)
        files = {str(self.files.path(uuid)): uuid for uuid in self.files.list()}
        return tuple({files[d.path] for d in part if d.path in files} for part in (disks.defined, disks.live))  # type: ignore[return-value]
