"""One host of fakes around the real loop: reconciler, builder, facts and statuses over a store, a Placement and a hypervisor in
memory, with files in a folder. ``restart`` is a new process; several hosts share a store and a Placement."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

from common.config import DiskConfig, ImagesConfig
from common.errors import Transient
from common.journal import HostPen
from common.keys import Keys
from common.metadata import MetadataStore
from common.model import ImageRef, InstanceKey, InstanceSpec, InstanceStatus
from common.network_records import address_keys
from common.nics import Nic
from common.reports import report_store
from common.store import Compare
from ecompute.blueprint import Blueprint
from ecompute.bridges import HostBridges
from ecompute.builder import Builder
from ecompute.config_drive import ConfigDrives
from ecompute.disk_preparation import DiskPreparation
from ecompute.disks import Disks
from ecompute.facts import FactFinder
from ecompute.firewall_keeper import FirewallKeeper
from ecompute.guest_hardware import FoundHardware
from ecompute.hypervisor import PowerState
from ecompute.images import ImageCache
from ecompute.moving import Mover
from ecompute.network import AddressPools
from ecompute.patience import Patience
from ecompute.reconciler import Reconciler
from ecompute.statuses import Statuses
from ecompute.watcher import SpecEntry, SpecWatcher, read_entry
from ecompute.world import World
from tests.fakes.disk_tools import FakeDiskTools
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.packet_filter import FakePacketFilter
from tests.fakes.placement import FakePlacement
from tests.fakes.store import FakeStore
from tests.support.deployment import make_raw_image

KEYS = Keys("/t/")


class AnyBridges(HostBridges):
    """Every bridge is there, and VLANs can be had; a simulated host refuses those."""

    def check(self, nic: Nic) -> None:
        pass


class Specs:
    """Reads the store each time, as a watcher that is never late."""

    def __init__(self, store: FakeStore, provider: UUID) -> None:
        self.store, self.provider = store, provider

    def forget(self, uuid: UUID, revision: int) -> None:
        pass

    def get(self, uuid: UUID) -> SpecEntry | None:
        item = self.store.get(KEYS.spec(self.provider, uuid))
        return read_entry(item) if item else None

    def revision(self, uuid: UUID) -> int:
        entry = self.get(uuid)
        return entry.revision if entry else 0


class Loop:
    """One host of fakes around the real loop."""

    def __init__(
        self, directory: Path, name: str = "h1", *, store: FakeStore | None = None, placement: FakePlacement | None = None
    ) -> None:  # fmt: skip
        self.store, self.placement, self.hypervisor = store or FakeStore(), placement or FakePlacement(), FakeHypervisor()
        self.name, self.provider = name, self.placement.add_host(name, VCPU=16, MEMORY_MB=8192, DISK_GB=100)
        self.host_key_revision = self.store.create(KEYS.host(self.provider), "{}")
        self.image = make_raw_image(directory / "image.raw")
        self.directory, self.is_live, self.delays, self.now = directory, True, dict[UUID, float](), 1000.0
        self.look_again: Callable[[UUID, float], None] = self.delays.__setitem__
        self.tools, self.inspects = FakeDiskTools(), False
        self.packet_filter, self.listening = FakePacketFilter(), frozenset[tuple[str, int]]()
        self.disk = DiskConfig()
        self.specs_of: Callable[[], Specs | SpecWatcher] = lambda: Specs(self.store, self.provider)
        self.restart()

    def restart(self, blueprint: Blueprint | None = None) -> None:
        """As a new process would begin: nothing remembered but what is in the store, the hypervisor and the files."""
        blueprint = blueprint or Blueprint(
            provider=self.provider, boot_id="boot", virt_type="qemu", architecture="x86_64", machine_type=None, cpu_mode=None,
            filter_name=None, instances_directory=self.directory / "instances", found_hardware=FoundHardware(self.directory / "instances").of, disk=self.disk,
            volumes_directory=self.directory / "volumes",
        )  # fmt: skip
        self.world = World(
            hypervisor=self.hypervisor, placement=self.placement, images=ImageCache(self.directory / "images", ImagesConfig()),  # type: ignore[arg-type]
            disks=Disks(self.directory / "instances", self.disk), preparation=DiskPreparation(self.tools, self.directory / "guestfs", FoundHardware(self.directory / "instances"), inspects=self.inspects), networks=AddressPools(self.hypervisor, self.directory / "network", bridges=AnyBridges(None)),
            metadata=MetadataStore(self.directory / "metadata"), drives=ConfigDrives(self.directory / "instances"),
            reports=report_store(self.directory), blueprint=blueprint, patience=Patience(lambda: self.now), bridges=AnyBridges(None),
            firewall=FirewallKeeper(self.directory / "firewall", self.packet_filter, listening=lambda: self.listening),
        )  # fmt: skip
        pen = HostPen(KEYS, self.provider, self.name, lambda: "now")
        self.statuses = Statuses(
            self.store, KEYS, self.provider, fence=self.fence, now=lambda: "now", on_conflict=lambda: None,
            pen=pen, name_of=self._name_of,
        )  # fmt: skip
        self.statuses.load()
        self.specs = self.specs_of()
        mover = Mover(
            self.world, store=self.store, keys=KEYS, fence=self.fence, host_name=self.name, now=lambda: "now", pen=pen
        )
        self.reconciler = Reconciler(
            specs=self.specs, statuses=self.statuses,  # type: ignore[arg-type]
            finder=FactFinder(self.world, cluster_id=self.store.cluster_id, orphan_after_seconds=600),
            builder=Builder(self.world, store=self.store, keys=KEYS, fence=self.fence, mover=mover, starts_at_once=2, pen=pen),
            patience=self.world.patience, store=self.store, keys=KEYS, provider=self.provider, max_attempts=3,
            is_live=lambda: self.is_live, look_again=self._look_again, now=lambda: "now", stopping=threading.Event(),
            fetches_at_once=2, reports=self.world.reports,
        )  # fmt: skip

    def _name_of(self, uuid: UUID) -> str:
        entry = self.specs.get(uuid)
        return entry.spec.name if entry and entry.spec else ""

    def _look_again(self, uuid: UUID, seconds: float) -> None:
        self.look_again(uuid, seconds)

    def fence(self) -> Compare:
        return Compare.created_at(KEYS.host(self.provider), self.host_key_revision)

    def request(self, *, claimed: bool = True, **changes: object) -> InstanceSpec:
        """A request as eschedule leaves it: claimed, then written."""
        spec = InstanceSpec(uuid4(), "web", ImageRef(str(self.image)), {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1})
        spec = dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
        if claimed:
            self.placement.claim(spec.uuid, {self.provider: dict(spec.resources)})
        self.store.create(KEYS.spec(self.provider, spec.uuid), spec.to_json())
        for key in (KEYS.name(spec.name), *address_keys(KEYS, spec.nics)):
            self.store.create(key, str(spec.uuid))
        self.store.create(KEYS.instance(spec.uuid), InstanceKey(self.provider, spec.name, "").to_json())
        return spec

    def change(self, spec: InstanceSpec, **changes: object) -> None:
        key = KEYS.spec(self.provider, spec.uuid)
        item = self.store.get(key)
        assert item is not None
        changed = dataclasses.replace(InstanceSpec.from_json(item.value), **changes)  # type: ignore[arg-type]
        self.store.replace(key, changed.to_json(), seen=item.mod_revision)

    def status(self, spec: InstanceSpec) -> InstanceStatus:
        item = self.store.get(KEYS.status(self.provider, spec.uuid))
        assert item is not None, "no status was written"
        return InstanceStatus.from_json(item.value)

    def settle(self, spec: InstanceSpec, passes: int = 10) -> None:
        """Passes until nobody asks for another, retrying what is transient."""
        for _ in range(passes):
            self.delays.clear()
            try:
                self.reconciler.reconcile(spec.uuid)
            except Transient:
                continue
            if spec.uuid not in self.delays:
                return

    def power(self, spec: InstanceSpec) -> PowerState | None:
        domain = self.hypervisor.get(spec.uuid)
        return domain.power_state if domain else None
