"""A host with real QEMU, a warm client of its cluster, and the least code that makes the same guests: the floor.

The host is a namespace of this machine, with a libvirtd of its own; etcd, Placement and ecompute are the real ones, and guests'
disks lie on this machine's file system. The client is the Python API with connections that are open already. The floor is
what nobody can do without: ``qemu-img create`` of the overlay and libvirt's ``createXML`` of the very same domain, and back
``destroy`` and ``unlink``. When a guest runs, and when it is gone, libvirt's own events tell, for both alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import subprocess
import threading
import time
import uuid as uuids
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt

from common.config import NetworkConfig
from common.model import ImageRef
from ecompute.hypervisor import DhcpHost
from ecompute.libvirt_driver import start_event_loop
from eschedule import changes
from eschedule.batch import BatchScheduler
from eschedule.follow import Ending, Follower, Goal, View
from eschedule.request import Request
from eschedule.scheduler import Scheduler
from tests.support.cluster import Cluster
from tests.support.hosts import HostNetwork
from tests.support.processes import wait_until

MEMORY_MIB = 32
READY = NetworkConfig().reserve_ahead
FLOOR_ADDRESS = ipaddress.IPv4Address("192.168.122.2")
QUERY = "resources=VCPU:1,MEMORY_MB:{memory},DISK_GB:{disk}"
PATIENCE_SECONDS = 120.0
STARTED, STOPPED = libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STOPPED


class Moments:
    """When libvirt said what of which domain, by ``time.perf_counter``."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._changed = threading.Condition()
        self._seen: dict[tuple[UUID, int], float] = {}
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._note, None)

    def _note(self, _connection: object, domain: libvirt.virDomain, event: int, *_: object) -> None:
        now = time.perf_counter()
        with self._changed:
            self._seen[UUID(bytes=domain.UUID()), event] = now
            self._changed.notify_all()

    def last(self, instances: Iterable[UUID], event: int) -> float:
        """When *event* had come for all of *instances*; waits for it."""
        wanted = {(instance, event) for instance in instances}
        with self._changed:
            assert self._changed.wait_for(lambda: wanted <= self._seen.keys(), PATIENCE_SECONDS), f"no event {event}"
            return max(self._seen[key] for key in wanted)


@dataclass(frozen=True)
class Made:
    """Guests that were asked for together, and how long, from the request on, until all were where they should be."""

    instances: tuple[UUID, ...]
    began: float  # by time.perf_counter
    running_seconds: float  # libvirt says that they run
    told_seconds: float  # their status says so


class GuestHost:
    """One host and its client; see the module's text."""

    def __init__(self, cluster: Cluster, state: Path) -> None:
        start_event_loop()
        self.cluster, self.state, self.node = cluster, state, cluster.nodes[0]
        self.connection = libvirt.open(self.node.host.uri)
        self.moments = Moments(self.connection)
        arguments: Any = (cluster.store, cluster.placement, cluster.keys)
        self._scheduler, self._batch = Scheduler(*arguments), BatchScheduler(*arguments)
        self.on_view: Callable[[View], None] = lambda _: None
        self._follower = Follower(cluster.store, cluster.keys, on_view=self._tell)

    # -- ours --------------------------------------------------------------------------------------------------------------

    def request(self, image: Path, *, count: int = 1, memory_mib: int = MEMORY_MIB, disk_gib: int = 1, **more: Any) -> Request:
        return Request(
            query=QUERY.format(memory=memory_mib, disk=disk_gib),
            resources={"VCPU": 1, "MEMORY_MB": memory_mib, "DISK_GB": disk_gib},
            image=ImageRef(str(image)), count=count, request_id=str(uuids.uuid4()), grace_seconds=0, **more,
        )  # fmt: skip

    def create(self, request: Request) -> Made:
        """Ask for what *request* says; return when it runs and its status says so."""
        began = time.perf_counter()
        instances = self.ask(request)
        self._follow(instances, Goal.RUNNING)
        told = time.perf_counter()
        return Made(instances, began, self.moments.last(instances, STARTED) - began, told - began)

    def ask(self, request: Request) -> tuple[UUID, ...]:
        """Have *request* recorded, no more."""
        if request.count == 1:
            return (self._scheduler.create(request).uuid,)
        return tuple(placed.uuid for placed in self._batch.create_all(request).instances)

    def destroy(self, instances: Sequence[UUID]) -> float:
        """Have *instances* destroyed; how long until nothing is left of them."""
        began = time.perf_counter()
        for instance in instances:
            changes.change(self.cluster.store, self.cluster.keys, instance, changes.destroyed)
        self._follow(instances, Goal.GONE)
        return time.perf_counter() - began

    def _tell(self, view: View) -> None:
        self.on_view(view)

    def _follow(self, instances: Sequence[UUID], goal: Goal) -> None:
        provider = dict.fromkeys(instances, self.node.provider)
        for outcome in self._follower.follow_all(provider, goal, PATIENCE_SECONDS).values():
            assert not isinstance(outcome, Exception), outcome
            assert outcome.ending is Ending.REACHED, f"{outcome.message}\n{self.cluster.evidence()}"

    def wait_at_rest(self) -> None:
        """Return when the host has prepared what it prepares for the next guests: their addresses."""
        network = self.connection.networkLookupByName("default")
        wait_until(lambda: network.XMLDesc(0).count("<host ") >= READY, timeout_seconds=60, what="addresses are ready")

    # -- the floor ---------------------------------------------------------------------------------------------------------

    def floor(self, image: Path, **more: Any) -> Floor:
        """The floor for guests of *image*, learnt from one that is made, and gone afterwards."""
        made = self.create(self.request(image, **more))
        xml = self.connection.lookupByUUID(made.instances[0].bytes).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        self.destroy(made.instances)
        return Floor(self, xml, self._backing_file(image), more.get("disk_gib", 1))

    def _backing_file(self, image: Path) -> Path:
        digest = hashlib.sha256()
        with image.open("rb") as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
        return next((self.state / "images").glob(f"{digest.hexdigest()}.*"))


class Floor:
    """Guests like one of ours, by ``qemu-img`` and libvirt alone.

    Their addresses are from the end of the range that ecompute takes its own from last.
    """

    def __init__(self, host: GuestHost, xml: str, backing: Path, disk_gib: int) -> None:
        self._host, self._xml, self._backing, self._disk_gib = host, xml, backing, disk_gib
        self._starts = threading.Semaphore()
        self._folder = host.state / "floor"
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o711)

    def create(self, count: int = 1, *, threads: int = 1, starts: int = 1) -> Made:
        """*count* guests, *threads* of them at a time, of which *starts* are in their start."""
        self._starts = threading.Semaphore(starts)
        pairs = {uuids.uuid4(): floor_pair(number) for number in range(count)}
        instances, domains = tuple(pairs), [(instance, self.xml(instance, pair)) for instance, pair in pairs.items()]
        began = time.perf_counter()
        self._each(self._make, domains, threads)
        told = time.perf_counter()
        return Made(instances, began, self._host.moments.last(instances, STARTED) - began, told - began)

    def destroy(self, instances: Sequence[UUID], *, threads: int = 1) -> float:
        """Take *instances* away; how long that took."""
        began = time.perf_counter()
        self._each(self._remove, [(instance,) for instance in instances], threads)
        return time.perf_counter() - began

    def make_disk(self, instance: UUID) -> Path:
        """The overlay of *instance*, as anybody makes it."""
        overlay, size = self._folder / f"{instance}.qcow2", f"{self._disk_gib}G"
        base = ["-b", str(self._backing), "-F", self._backing.suffix[1:]]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(overlay), size], check=True)
        return overlay

    def xml(self, instance: UUID, pair: DhcpHost) -> str:
        """The same domain, with a name, uuid, disk and address of its own."""
        root = ET.fromstring(self._xml)
        root.remove(_only(root, "metadata"))  # our mark, by which ecompute would take it for one of ours
        _only(root, "name").text, _only(root, "uuid").text = f"floor-{instance}", str(instance)
        for entry in root.iterfind("sysinfo/system/entry"):
            if entry.attrib["name"] in ("uuid", "serial"):
                entry.text = str(instance)
        _only(root, "devices/disk/source").set("file", str(self._folder / f"{instance}.qcow2"))
        for log in root.iterfind("devices/*/log"):
            log.set("file", str(self._folder / f"{instance}.log"))
        _only(root, "devices/interface/mac").set("address", pair.mac)
        for parameter in root.iterfind("devices/interface/filterref/parameter"):
            parameter.set("value", pair.address)
        return ET.tostring(root, encoding="unicode")

    def _each(self, act: Callable[..., None], arguments: Sequence[tuple[Any, ...]], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(act, *argument) for argument in arguments]:
                done.result()

    def _make(self, instance: UUID, xml: str) -> None:
        self.make_disk(instance)
        with self._starts:
            self._host.connection.createXML(xml)

    def _remove(self, instance: UUID) -> None:
        domain = self._host.connection.lookupByUUID(instance.bytes)
        domain.destroy()
        for kind in ("qcow2", "log"):
            (self._folder / f"{instance}.{kind}").unlink(missing_ok=True)


def floor_pair(number: int) -> DhcpHost:
    """MAC and address of the floor's guest *number*; no pair that ecompute would make."""
    return DhcpHost(f"52:54:00:00:00:{number:02x}", str(FLOOR_ADDRESS + number))


def _only(root: ET.Element, path: str) -> ET.Element:
    found = root.find(path)
    assert found is not None, f"no {path} in the domain"
    return found


@contextlib.contextmanager
def guest_host(directory: Path, **compute: Any) -> Iterator[GuestHost]:
    """A host with its files below *directory*; *compute* are sections of its compute.yaml. Gone at the end."""
    directory.chmod(0o755)
    state = directory / "state"
    sections = {
        "paths": {"state_dir": str(state)},
        "inventory": {"vcpu": {"allocation_ratio": 64.0}, "disk_gb": {"reserved": 0, "allocation_ratio": 64.0}},
        "network": {"reserve_ahead": READY},
        "builder": {"resync_every_seconds": 60},
        "log": {"level": "info"},
    }
    network = HostNetwork()
    try:
        cluster = Cluster(directory / "cluster", network, hosts=1, compute={**sections, **compute})
        try:
            host = GuestHost(cluster.start(), state)
            yield host
            host.connection.close()
        finally:
            cluster.stop()
    finally:
        network.close()
