"""Builds the daemon from its parts, starts and stops them in order; the only place that knows all of them.

Start: metadata service → libvirt → lock → guests' rules in the packet filter → etcd (waited for as long as it takes) →
ownership → host key → statuses → watch → workers → resync and inventory. Stop on SIGTERM: no new ids → fetches cancelled →
the steps in hand finish → the lease is given back → exit. Guests and the metadata service go on. It is as long as there are
parts: their names, and what each is given.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID, uuid4

from common.config import ComputeConfig
from common.errors import EcomputeError, OwnershipError, Transient
from common.etcd_store import EtcdStore
from common.journal import HostPen
from common.keys import Keys
from common.logs import fields
from common.metadata import MetadataStore
from common.model import HostRecord, HostState, OwnerRecord
from common.placement import Placement
from common.placement_types import CONSUMER_TYPE, VOLUME, Inventory
from common.reports import report_store
from common.retry import Backoff, Deadline
from common.service_notify import ServiceNotifier
from common.text import utc_text
from ecompute import identity, threads
from ecompute.auditor import Auditor
from ecompute.blueprint import Blueprint
from ecompute.bridges import HostBridges
from ecompute.config_drive import ConfigDrives
from ecompute.disk_preparation import preparation_by_libguestfs
from ecompute.disks import Disks
from ecompute.facts import FactFinder
from ecompute.filter_guard import FilterGuard
from ecompute.firewall_keeper import FirewallKeeper
from ecompute.guest_hardware import FoundHardware
from ecompute.guest_reports import ReportBell, remove_strays
from ecompute.health import ETCD, LIBVIRT, NETWORK, PLACEMENT, Health
from ecompute.heartbeat import Heartbeat, take_provider
from ecompute.host_network import HostNetwork
from ecompute.host_traits import guest_flags
from ecompute.hypervisor import Domain, HostInfo
from ecompute.image_service import ImageService
from ecompute.images import ImageCache
from ecompute.inventory import InventoryKeeper, foreign_use
from ecompute.kvm_probe import choose_virt_type
from ecompute.learning import AddressLearner
from ecompute.leaving import Leaver
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.measured_builder import MeasuredBuilder
from ecompute.metadata_service import MetadataServiceSupervisor
from ecompute.metrics import Metrics, Sources, serve
from ecompute.moving import Mover
from ecompute.network import AddressPools
from ecompute.nft import packet_filter
from ecompute.nft_watch import FirewallWatch
from ecompute.patience import Patience
from ecompute.placement_gate import PlacementGate
from ecompute.post_office import PostOffice, post_office
from ecompute.provider_lock import lock_provider
from ecompute.reconciler import Reconciler
from ecompute.resync import Resync
from ecompute.saved_memory import SavedMemory
from ecompute.snapshotter import Snapshotter
from ecompute.statuses import Statuses
from ecompute.usage_desk import UsageDesk
from ecompute.vendor_data import read_vendor_data
from ecompute.vital_signs import VitalSigns
from ecompute.volume_book import VolumeBook, VolumeWatcher
from ecompute.volume_service import VolumeService, volumes_directory
from ecompute.watcher import HostAdminWatcher, SpecWatcher
from ecompute.workers import Workers
from ecompute.workqueue import WorkQueue
from ecompute.world import World

logger = logging.getLogger(__name__)
STARTING = "starting: what it has is not in Placement yet"
T = TypeVar("T")


def wall_time() -> str:
    """Now, for people: ISO 8601, UTC, milliseconds."""
    return utc_text(datetime.datetime.now(datetime.UTC))


class Stopped(EcomputeError):
    """The daemon was told to stop before it was up."""


@dataclass(frozen=True)
class Host:
    """What this process found out about where it runs."""

    name: str
    provider: UUID
    machine_id: str
    boot_id: str
    info: HostInfo
    virt_type: str


class Agent:
    """One hypervisor's daemon. ``run`` returns when *stop* is set and everything is put down.

    Args:
        take_provider: an operator says that the machine which this provider belonged to is gone for good.
        service: who started us, if it wants to be told.

    Raises:
        ConfigError: the vendor data cannot be used.
    """

    def __init__(
        self, config: ComputeConfig, stop: threading.Event, *, take_provider: bool = False,
        service: ServiceNotifier | None = None,
    ) -> None:  # fmt: skip
        self._config, self._stop, self._take_provider = config, stop, take_provider
        self._signs = VitalSigns(service or ServiceNotifier(), config, stop)
        self._vendor_data = read_vendor_data(config.metadata.vendor_data_file)
        self._keys = Keys(config.etcd.prefix)
        self._queue: WorkQueue[UUID] = WorkQueue()
        self._threads: list[threading.Thread] = []
        self._heartbeat_stop = threading.Event()  # the lease is kept until the last step in hand is finished
        self._usurped: OwnershipError | None = None
        self._resync: Resync | None = None
        self._specs: SpecWatcher | None = None
        self.is_to_leave = False  # the cluster, since it was told to: once ``run`` has returned
        self._is_entered = threading.Event()  # into Placement, with all that the host has
        self._health = Health(now=wall_time, on_back=self._on_back)
        self._on_stop: list[Callable[[], None]] = [self._health.changed.set]  # wakes who waits for more than the stop
        self._metrics = Metrics(self._health, version=importlib.metadata.version("etcd-compute"))

    def run(self) -> None:
        """Serve until *stop*.

        Raises:
            OwnershipError: the provider is another's; nothing was built.
            ConfigError: the host cannot be used as configured.
        """
        self._signs.starting()
        stop_metrics = serve(self._metrics, self._config.metrics.listen) if self._config.metrics.listen else None
        supervisor = MetadataServiceSupervisor(self._config)
        if self._config.metadata.mode == "managed":
            self._thread("metadata-service", supervisor.run)
        hypervisor = LibvirtDriver(self._config.libvirt.uri, on_state=lambda problem: self._health.report(LIBVIRT, problem))
        store = EtcdStore(self._config.etcd)
        try:
            host = self._look_around(hypervisor)
            self._serve(host, hypervisor, store)
        except Stopped:
            logger.info("stopped before it was up")
        finally:
            self._signs.stopping()
            self._stop.set()
            self._heartbeat_stop.set()
            for wake in self._on_stop:
                wake()
            for thread in self._threads:
                thread.join(5.0)
            hypervisor.close()
            store.close()
            if stop_metrics:
                stop_metrics()
        if self._usurped:
            raise self._usurped

    # -- start -----------------------------------------------------------------------------------------------------------

    def _look_around(self, hypervisor: LibvirtDriver) -> Host:
        info = self._until_it_answers(LIBVIRT, hypervisor.host)
        machine = identity.machine_id()
        provider = identity.provider_uuid(self._config.uuid, machine, info.libvirt_host_uuid)
        self._lock = lock_provider(self._config, provider)
        self._firewall = self._kept_firewall(hypervisor)
        libvirt = self._config.libvirt
        choice = choose_virt_type(
            libvirt.virt_type, self._config.paths.run_dir, deadline_seconds=libvirt.kvm_probe_deadline_seconds
        )
        name = self._config.name or identity.host_name()
        logger.info("this host", extra=fields(name=name, provider=provider, virt_type=choice.virt_type, reason=choice.reason))
        info = dataclasses.replace(info, cpu_flags=guest_flags(info.cpu_flags, choice.virt_type))
        return Host(name, provider, machine, identity.boot_id(), info, choice.virt_type)

    def _kept_firewall(self, hypervisor: LibvirtDriver) -> FirewallKeeper:
        """Guests run, whether etcd is there or not: what shuts them is in force before it is waited for."""
        uri = self._config.libvirt.uri
        kernel = packet_filter(uri)
        firewall = FirewallKeeper(self._config.paths.state_dir / "firewall", kernel)
        firewall.keep()
        guard = self._guard = FilterGuard(hypervisor, kernel, self._config.network.name)
        hypervisor.subscribe(lambda _: None, guard.ask)

        def keep(is_thorough: bool) -> None:
            firewall.keep(is_thorough=is_thorough)
            guard.keep()

        if not uri.startswith("test:"):
            watch = FirewallWatch(keep)
            self._on_stop.append(watch.wake)
            self._thread("packet-filter", watch.run)
        return firewall

    def _serve(self, host: Host, hypervisor: LibvirtDriver, store: EtcdStore) -> None:
        owner = OwnerRecord(host.machine_id, host.info.libvirt_host_uuid, host.name, wall_time())
        etcd = self._config.etcd
        heartbeat = Heartbeat(
            store, self._keys, host.provider, owner, self._host_record(host), ttl_seconds=etcd.lease_ttl_seconds,
            every_seconds=etcd.heartbeat_every_seconds, on_usurped=self._on_usurped, on_regained=self._on_regained,
            report=lambda problem: self._health.report(ETCD, problem), alive=self._signs.alive, pen=self._pen(host),
        )  # fmt: skip
        try:
            if self._take_provider:
                patience = Deadline(etcd.lease_ttl_seconds + 5.0)
                self._until_it_answers(
                    ETCD,
                    lambda: take_provider(store, self._keys, host.provider, owner, patience=patience, stop=self._stop),
                )
            self._until_it_answers(ETCD, lambda: heartbeat.claim(self._stop))
        except OwnershipError as error:
            if self._stop.is_set():
                raise Stopped("stopped while waiting for the provider") from error
            raise
        self._signs.up(STARTING)
        beating = self._thread("heartbeat", heartbeat.run, self._heartbeat_stop)
        self._thread("health", lambda stop: self._publish_health(heartbeat, stop))
        try:
            self._work(host, hypervisor, store, heartbeat)
        finally:
            # Its end first: a beat under way would take the lease that is given back for a lost one, and make it anew.
            self._heartbeat_stop.set()
            heartbeat.ask()
            beating.join(3 * etcd.deadline_seconds)
            heartbeat.resign()

    def _work(self, host: Host, hypervisor: LibvirtDriver, store: EtcdStore, heartbeat: Heartbeat) -> None:
        """Put the loop together, run it until told to stop, take it apart again."""
        config = self._config
        placement = self._placement(keeps_connections=False)
        # A look keeps its connection to its end: among a thousand new hosts it is not to queue up for each request anew.
        for_looks = self._placement(keeps_connections=True)
        statuses = Statuses(
            store, self._keys, host.provider, fence=heartbeat.fence, now=wall_time, on_conflict=heartbeat.ask,
            pen=self._pen(host), name_of=self._name_of,
        )  # fmt: skip
        self._until_it_answers(ETCD, statuses.load)
        specs = self._specs = SpecWatcher(store, self._keys, host.provider, self._queue.add)
        images = ImageService(config, hypervisor, store, self._keys, provider=host.provider, host=host.name)
        volumes = VolumeService(
            config, hypervisor=hypervisor, store=store, keys=self._keys, provider=host.provider, specs=specs, statuses=statuses,
            fence=heartbeat.fence, is_live=lambda: heartbeat.is_live, now=wall_time, report=self._health.note,
            placement=self._placement(keeps_connections=False, consumer_type=VOLUME),
        )  # fmt: skip
        world = self._world(host, hypervisor, placement, images=images.cache, volumes=volumes.book)
        self._count_disk_use(images, world)
        host_network = self._host_network(host, world)

        def look_at_host() -> None:
            self._guard.keep()
            host_network.keep()
            world.firewall.keep()
            images.look()

        builder_config = config.builder
        # Twice as many as start guests, so that the next ones are prepared, and others are stopped, while those start.
        worker_count = builder_config.workers or max(2 * builder_config.starts_at_once, os.cpu_count() or 1)
        finder = FactFinder(
            world, cluster_id=lambda: specs.cluster_id, orphan_after_seconds=builder_config.orphan_claim_after_seconds
        )
        mover = Mover(
            world, store=store, keys=self._keys, fence=heartbeat.fence, host_name=host.name, now=wall_time, pen=self._pen(host)
        )
        builder = MeasuredBuilder(
            world, store=store, keys=self._keys, fence=heartbeat.fence, mover=mover,
            starts_at_once=builder_config.starts_at_once, metrics=self._metrics, pen=self._pen(host),
        )  # fmt: skip
        reconciler = Reconciler(
            specs=specs, statuses=statuses, finder=finder, builder=builder, patience=world.patience, store=store,
            keys=self._keys, provider=host.provider, max_attempts=builder_config.max_attempts,
            is_live=lambda: heartbeat.is_live, look_again=self._queue.add_after, now=wall_time, stopping=self._stop,
            fetches_at_once=max(1, worker_count // 2), reports=world.reports,
        )  # fmt: skip
        admin = HostAdminWatcher(store, self._keys, host.provider, self._ask_resync)
        keeper = InventoryKeeper(for_looks, host.provider, host.name, config, disk_use=images.disk_use)
        auditor = Auditor(
            world=world, placement=placement, specs=specs, statuses=statuses, store=store, keys=self._keys,
            provider=host.provider, host=host.name, state_directory=config.paths.state_dir, is_live=lambda: heartbeat.is_live,
            show=self._metrics.set_findings,
        )  # fmt: skip
        learner = AddressLearner(hypervisor, world.networks, self._queue.add)
        post = self._post_office(host, world, store, heartbeat=heartbeat, specs=specs, auditor=auditor, images=images)
        self._resync = Resync(
            hypervisor=hypervisor, placement=for_looks, provider=host.provider, specs=specs, statuses=statuses,
            reconciler=reconciler, wake=self._queue.add, every_seconds=builder_config.resync_every_seconds,
            keep_inventory=lambda domains, generation: self._keep_inventory(
                keeper, host, admin, heartbeat, domains, generation=generation, world=world
            ),
            health=self._health, looked=self._metrics.looked, audit=auditor.note,
            look_at_host=look_at_host, listed=learner.look, sort_out=volumes.keeper.claims_without_volumes,
        )  # fmt: skip
        hypervisor.subscribe(lambda _: None, host_network.ask)
        hypervisor.subscribe(self._queue.add, self._resync.ask)
        hypervisor.subscribe(learner.changed, lambda: None)
        bell = ReportBell(
            config.paths.run_dir, is_known=lambda uuid: specs.get(uuid) is not None, add=self._queue.add,
            add_after=self._queue.add_after, boot_of=lambda uuid: (known := statuses.get(uuid)) and known.booted,
        )  # fmt: skip
        hypervisor.subscribe(bell.started, lambda: None)
        self._on_stop += [world.networks.wake, learner.wake, post.wake, bell.wake, images.wake, volumes.keeper.close]
        followers: dict[str, SpecWatcher | HostAdminWatcher | VolumeWatcher] = {
            "watch": specs,
            "watch-host-admin": admin,
            "watch-volumes": volumes.watcher,
        }
        runs = {"networks": world.networks.run, "learn-addresses": learner.run}
        for name, run in (runs | {name: follower.run for name, follower in followers.items()}).items():
            self._thread(name, run)
        for follower in followers.values():  # without host-admin one that an operator disabled would be enabled for a moment
            self._wait_for_first_list(follower.synced)
        remove_strays(world.reports, lambda uuid: specs.get(uuid) is not None or world.metadata.exists(uuid))
        workers = Workers(
            self._queue,
            volumes.looked_after(reconciler.reconcile),
            worker_count,
            is_outage=self._health.note,
            passed=self._metrics.passed,
        )
        self._metrics.watch(Sources(lambda: heartbeat.seconds_left, statuses.phases, lambda: len(self._queue)))
        workers.start()
        self._signs.watch(workers)
        at_work = {"volumes": volumes.keeper.run, "resync": self._resync.run, "guest-reports": bell.run, "prefetch": images.run}
        for name, work in (at_work | post.runs).items():
            self._thread(name, work)
        logger.info("serving", extra=fields(provider=host.provider, instances=len(specs.uuids())))
        self._stop.wait()
        self._put_down(workers)

    def _count_disk_use(self, images: ImageService, world: World) -> None:
        """Have reserved what guests take beside what they claim."""
        instances = self._config.paths.state_dir / "instances"
        images.disk_use.add("snapshots", world.disks.bytes_beyond_claims)
        images.disk_use.add("suspended guests", lambda: world.saved_memory.taken_bytes(instances))

    def _post_office(
        self, host: Host, world: World, store: EtcdStore, *, heartbeat: Heartbeat, specs: SpecWatcher, auditor: Auditor,
        images: ImageService,
    ) -> PostOffice:  # fmt: skip
        leaver = Leaver(
            world.hypervisor, store, self._keys, provider=host.provider, host=host.name, state_dir=self._config.paths.state_dir,
            now=wall_time, tell=self._leave,
        )  # fmt: skip
        snapshotter = Snapshotter(
            world, store, self._keys, provider=host.provider, host=host.name, queue=self._queue,
            is_live=lambda: heartbeat.is_live, cluster_id=lambda: specs.cluster_id,
        )  # fmt: skip
        usage = UsageDesk(world.hypervisor, lambda uuid: specs.get(uuid) is not None)
        return post_office(
            world, store, self._keys, config=self._config, provider=host.provider, host=host.name, fence=heartbeat.fence,
            stop=self._stop, leaver=leaver, snapshotter=snapshotter, others=(images.answer, auditor.answer, usage.answer),
        )  # fmt: skip

    def _placement(self, *, keeps_connections: bool, consumer_type: str = CONSUMER_TYPE) -> Placement:
        # One try a call: what failed is tried again by whoever called, and a worker is to be free for other guests meanwhile.
        one_try = dataclasses.replace(self._config.placement, deadline_seconds=self._config.placement.timeout_seconds)
        prefix = self._config.etcd.prefix
        return Placement(one_try, etcd_prefix=prefix, keeps_connections=keeps_connections, consumer_type=consumer_type)

    def _world(
        self, host: Host, hypervisor: LibvirtDriver, placement: Placement, *, images: ImageCache, volumes: VolumeBook
    ) -> World:
        config, state = self._config, self._config.paths.state_dir
        # In libvirt's simulation nothing is real but what the configuration says.
        bridges = HostBridges(None) if host.virt_type == "test" else HostBridges()
        blueprint = Blueprint(
            provider=host.provider, boot_id=host.boot_id, virt_type=host.virt_type, architecture=host.info.architecture,
            machine_type=config.libvirt.machine_type, cpu_mode=config.libvirt.cpu_mode, graphics=config.libvirt.graphics,
            filter_name=self._until_it_answers(LIBVIRT, lambda: self._filter(hypervisor)),
            instances_directory=state / "instances", zone=host.name, vendor_data_base64=self._vendor_data,
            metadata_bridge=config.metadata.bridge, found_hardware=FoundHardware(state / "instances").of, disk=config.disk,
            volumes_directory=volumes_directory(config),
        )  # fmt: skip
        return World(
            hypervisor=hypervisor,
            placement=PlacementGate(placement, lambda problem: self._health.report(PLACEMENT, problem)),
            images=images,
            disks=Disks(state / "instances", config.disk),
            preparation=preparation_by_libguestfs(config, uses_kvm=host.virt_type == "kvm"),
            networks=AddressPools(
                hypervisor, state / "network", reserve_ahead=config.network.reserve_ahead, network=config.network.name,
                bridges=bridges, second_bridge=config.network.bridge,
            ),
            metadata=MetadataStore(state / "metadata"),
            drives=ConfigDrives(state / "instances"),
            reports=report_store(state),
            firewall=self._firewall,
            blueprint=blueprint,
            patience=Patience(),
            bridges=bridges, volumes=volumes, saved_memory=SavedMemory(config.libvirt.save_directory),
        )  # fmt: skip

    def _host_network(self, host: Host, world: World) -> HostNetwork:
        """Looked at before the first guest: what is missing is known by then, and libvirt's network is up."""
        has_filter = None if self._config.network.filter is None else world.blueprint.filter_name is not None
        found = HostNetwork(
            self._config, world.hypervisor, has_spoofing_filter=has_filter, is_simulated=host.virt_type == "test",
            report=lambda problem: self._health.report(NETWORK, problem), show=self._metrics.set_troubles,
            lost=lambda: self._guard.lost,
        )  # fmt: skip
        found.keep()
        return found

    def _pen(self, host: Host) -> HostPen:
        return HostPen(self._keys, host.provider, host.name, wall_time)

    def _name_of(self, instance: UUID) -> str:
        entry = self._specs.get(instance) if self._specs else None
        return entry.spec.name if entry and entry.spec else ""

    def _host_record(self, host: Host) -> HostRecord:
        versions = {"etcd-compute": importlib.metadata.version("etcd-compute"), **host.info.versions}
        return HostRecord(
            name=host.name, boot_id=host.boot_id, incarnation=uuid4(), libvirt_host_uuid=host.info.libvirt_host_uuid,
            libvirt_uri=self._config.libvirt.uri, versions=versions,
            virt_type=host.virt_type, since=wall_time(), state=HostState.DEGRADED, message=STARTING,
        )  # fmt: skip

    def _filter(self, hypervisor: LibvirtDriver) -> str | None:
        """The configured anti-spoofing filter, where this libvirt has it; a guest without it could speak as another."""
        name = self._config.network.filter
        if name and not hypervisor.ensure_filter(name):
            return None  # said by ``HostNetwork``
        return name

    def _wait_for_first_list(self, synced: threading.Event) -> None:
        while not synced.wait(0.2):
            if self._stop.is_set():
                raise Stopped("stopped while waiting for the first list from etcd")

    # -- while it runs -----------------------------------------------------------------------------------------------------

    def _keep_inventory(
        self, keeper: InventoryKeeper, host: Host, admin: HostAdminWatcher, heartbeat: Heartbeat, domains: list[Domain], *,
        generation: int | None, world: World,
    ) -> None:  # fmt: skip
        """Make Placement's view of the host equal to the host, and the host record's capacity with it."""
        if not heartbeat.is_live:
            return  # the provider may be another machine's by now
        vcpus, memory_mib = foreign_use(domains, host.provider)
        inventory = keeper.sync(
            host.info, host_admin=admin.current, foreign_vcpus=vcpus, foreign_memory_mib=memory_mib,
            bridges=self._bridges_for_guests(world), generation=generation,
        )  # fmt: skip
        self._is_entered.set()
        self._publish_state(heartbeat, inventory)

    def _bridges_for_guests(self, world: World) -> frozenset[str]:
        if self._config.libvirt.uri.startswith("test:"):
            return frozenset({self._config.network.bridge} if self._config.network.bridge else ())
        return world.bridges.usable(world.hypervisor.own_bridges)

    def _state(self) -> tuple[HostState, str]:
        """What the host record says: Ready once Placement knows what the host has, and while no service is away."""
        message = self._health.message() or ("" if self._is_entered.is_set() else STARTING)
        return (HostState.DEGRADED if message else HostState.READY), message

    def _publish_state(self, heartbeat: Heartbeat, inventory: Mapping[str, Inventory] | None = None) -> None:
        state, message = self._state()
        self._signs.state(state, message)
        heartbeat.update(state=state, message=message, inventory=inventory)

    def _publish_health(self, heartbeat: Heartbeat, stop: threading.Event) -> None:
        """Keep the host record's state and message as the services are, until *stop* and then a change."""
        while not stop.is_set():
            self._health.changed.wait()
            self._health.changed.clear()
            self._publish_state(heartbeat)

    def _leave(self) -> None:
        self.is_to_leave = True
        self._stop.set()

    def _on_usurped(self, error: OwnershipError) -> None:
        self._usurped = error
        logger.error("%s", error)
        self._stop.set()

    def _on_regained(self) -> None:
        if self._specs:
            self._specs.refresh()
        logger.info("the host lease was made anew; looking at everything")
        self._on_back(ETCD)

    def _on_back(self, service: str) -> None:
        """Have everything looked at, since *service* was away and is back: those that all hosts share not by all at once."""
        if not self._resync:
            return
        asks = {LIBVIRT: self._resync.ask, ETCD: self._resync.ask_here_soon}
        asks.get(service, self._resync.ask_soon)()

    def _ask_resync(self) -> None:
        if self._resync:
            self._resync.ask()

    # -- stop ------------------------------------------------------------------------------------------------------------

    def _put_down(self, workers: Workers) -> None:
        logger.info("stopping; guests go on")
        if not self.is_to_leave:  # else this process begins anew, and may have to go on: who says that it stops is stopped
            self._signs.stopping()
        self._queue.close()
        self._ask_resync()
        if not workers.join(self._config.builder.shutdown_deadline_seconds):
            logger.warning("a step is still in hand; it is picked up by the next start")

    def _thread(
        self, name: str, run: Callable[[threading.Event], None], stop: threading.Event | None = None
    ) -> threading.Thread:
        thread = threads.begin(name, run, stop or self._stop)
        self._threads.append(thread)
        return thread

    def _until_it_answers(self, service: str, call: Callable[[], T]) -> T:
        """*call*'s answer, however long the service is away; its absence is said once."""
        backoff = Backoff(0.2, 5.0)
        while True:
            try:
                answer = call()
            except Transient as error:
                self._health.report(service, str(error))
                self._signs.waiting(service, str(error))
                if self._stop.wait(backoff.next()):
                    raise Stopped(f"stopped while waiting for {service}") from error
                continue
            self._health.report(service, "")
            return answer
