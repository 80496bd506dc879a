"""A hypervisor in memory, for tests of everything above it: scripted failures, guests that do as the test says.

Decides as ``libvirt_driver`` does (both use ``ecompute.changes``) and passes the same contract suite.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
import xml.etree.ElementTree as ET
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from pathlib import Path
from uuid import UUID

from common.errors import Conflict, EcomputeError, HypervisorRejected
from common.host_letters import GuestUsage
from common.nics import IpAddress
from ecompute import changes, disk_snapshots
from ecompute.anti_spoofing import FILTER_NAME
from ecompute.hypervisor import (
    Card,
    Copying,
    CopyState,
    DhcpHost,
    Domain,
    DomainDisks,
    Frozen,
    HostInfo,
    Lease,
    Network,
    Picture,
    PowerState,
    Stamp,
)
from ecompute.libvirt_xml import STAMP_NAMESPACE, cards_of, disks_of, stamp_of

DEFAULT_NETWORK = Network("default", True, "virbr0", "192.168.122.1", 24, "192.168.122.2", "192.168.122.254", ())
HOST = HostInfo(
    libvirt_host_uuid="11111111-2222-4333-8444-555555555555",
    hostname="fake-host",
    architecture="x86_64",
    cpus=16,
    memory_mib=32768,
    cpu_flags=frozenset({"sse4_2", "avx", "avx2"}),
    machine_types=("pc", "q35"),
    versions={"libvirt": "9.0.0", "qemu": "7.2.0"},
)


@dataclasses.dataclass
class _Guest:
    domain: Domain  # as its definition has it, off
    power_state: PowerState = PowerState.SHUTOFF
    reason: str = "unknown"
    live_stamp: Stamp | None = None
    defined_cards: tuple[Card, ...] = ()
    live_cards: tuple[Card, ...] = ()
    live_size: tuple[int, int] = (0, 0)  # CPUs and MiB that it was started with
    disks: DomainDisks = dataclasses.field(default_factory=DomainDisks)
    is_saved: bool = False  # its memory, with all that is live of it

    def seen(self) -> Domain:
        is_active = self.power_state in changes.ACTIVE
        stamp = self.live_stamp if is_active else self.domain.stamp
        seen = dataclasses.replace(self.domain, power_state=self.power_state, state_reason=self.reason, stamp=stamp)
        if not is_active and not self.is_saved:
            return seen
        vcpus, memory_mib = self.live_size
        return dataclasses.replace(seen, vcpus=vcpus, memory_mib=memory_mib, has_saved_memory=self.is_saved)


def _parsed(xml: str) -> Domain:
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise HypervisorRejected(f"define a domain: {error}") from error
    if root.find("os/type") is None:
        raise HypervisorRejected("define a domain: XML error: an os <type> must be specified")
    mark = root.find(f"metadata/{{{STAMP_NAMESPACE}}}stamp")
    return Domain(
        uuid=UUID(root.findtext("uuid")),
        name=root.findtext("name", ""),
        power_state=PowerState.SHUTOFF,
        state_reason="unknown",
        stamp=None if mark is None else stamp_of(ET.tostring(mark, encoding="unicode")),
        vcpus=int(root.findtext("vcpu", "1")),
        memory_mib=int(root.findtext("memory", "0")),
    )


class FakeHypervisor:
    """Keeps domains and networks in memory.

    Args:
        answers_shutdown: whether guests power off when asked to.
        in_thread: deliver events from a thread of its own, as libvirt does; else inside the call that causes them.
    """

    def __init__(self, *, host: HostInfo = HOST, answers_shutdown: bool = True, in_thread: bool = False) -> None:
        self.answers_shutdown, self.lets_go_of_disks = answers_shutdown, True
        self.filters = {"clean-traffic", FILTER_NAME}
        self.ports: dict[str, str] = {}  # interfaces to guests with a filter, and its name
        self.on_settle: Callable[[], None] = lambda: None
        self.on_rebuild: Callable[[set[str]], None] = lambda _: None
        self.networks = {DEFAULT_NETWORK.name: DEFAULT_NETWORK}
        self.live_leases: dict[str, tuple[Lease, ...]] = {}
        self.calls: list[tuple[str, UUID | None]] = []  # every call so far, with its domain
        self.addresses_said: dict[UUID, dict[str, tuple[IpAddress, ...]]] = {}  # by guest and MAC
        self.snapshots: dict[UUID, list[str]] = {}  # those made while a guest ran
        self.agent = Frozen.NO  # what guests answer that are asked to hold still
        self.held_still: set[UUID] = set()
        self.begins_copy: Callable[[UUID, Path], Copying] = lambda _uuid, _target: Copying.NOT_POSSIBLE
        self.copy_states: list[CopyState] = []  # what is answered next, one after the other
        self.copies_ended: list[Callable[[UUID], None]] = []
        self.pictures: dict[UUID, Picture] = {}  # of the screens, by guest
        self.usages: dict[UUID, GuestUsage] = {}
        self.screen_sockets: dict[UUID, str] = {}
        self.agents: dict[UUID, Callable[[str], str]] = {}  # what answers in a guest
        self._devices = itertools.count()
        self._host = host
        self._guests: dict[UUID, _Guest] = {}
        self._failures: dict[str, deque[EcomputeError]] = defaultdict(deque)
        self._outage: EcomputeError | None = None
        self._subscribers: list[tuple[Callable[[UUID], None], Callable[[], None]]] = []
        self._lock = threading.RLock()
        self._events: queue.SimpleQueue[UUID | None] | None = queue.SimpleQueue() if in_thread else None
        if in_thread:
            threading.Thread(target=self._deliver, name="fake-hypervisor-events", daemon=True).start()

    # -- what a test does to it --------------------------------------------------------------------------------------------

    def fail_next(self, method: str, *errors: EcomputeError) -> None:
        """Have the next calls of *method* raise *errors*, one each, before they do anything."""
        self._failures[method].extend(errors)

    def break_off(self, error: EcomputeError) -> None:
        """Have every call raise *error* until ``come_back``."""
        self._outage = error

    def come_back(self) -> None:
        self._outage = None
        for _, on_reconnect in self._subscribers:
            on_reconnect()

    def guest_powers_off(self, uuid: UUID) -> None:
        self._turn(uuid, PowerState.SHUTOFF, "shutdown")

    def guest_lets_go(self, uuid: UUID, path: str) -> None:
        """The guest gives up the disk that it was asked for."""
        with self._lock:
            guest = self._guests[uuid]
            live = tuple(disk for disk in guest.disks.live if disk.path != path)
            if live != guest.disks.live:
                guest.disks = dataclasses.replace(guest.disks, live=live)
                self._tell(uuid)

    def guest_crashes(self, uuid: UUID) -> None:
        self._turn(uuid, PowerState.SHUTOFF, "crashed")

    def guest_meets_io_error(self, uuid: UUID) -> None:
        self._turn(uuid, PowerState.PAUSED, "ioerror")

    def host_reboots(self) -> None:
        """Every domain is off, for no reason that is known; nobody hears of it."""
        for guest in self._guests.values():
            guest.power_state, guest.reason = PowerState.SHUTOFF, "unknown"
            guest.disks = guest.disks if guest.is_saved else dataclasses.replace(guest.disks, live=())

    # -- domains -----------------------------------------------------------------------------------------------------------

    def get(self, uuid: UUID) -> Domain | None:
        with self._called("get", uuid):
            guest = self._guests.get(uuid)
            return guest.seen() if guest else None

    def list(self) -> list[Domain]:
        with self._called("list"):
            return [guest.seen() for guest in self._guests.values()]

    def define(self, xml: str) -> None:
        domain = _parsed(xml)
        with self._called("define", domain.uuid):
            for other in self._guests.values():
                if (other.domain.uuid == domain.uuid) != (other.domain.name == domain.name):
                    raise HypervisorRejected(f"define a domain: {other.domain.name} is there with uuid {other.domain.uuid}")
            guest = self._guests.setdefault(domain.uuid, _Guest(domain))
            guest.domain, guest.defined_cards = domain, cards_of(xml)
            guest.disks = dataclasses.replace(guest.disks, defined=disks_of(xml))
            self._tell(domain.uuid)

    def start(self, uuid: UUID) -> None:
        self._change("start", uuid, changes.START, PowerState.RUNNING, "booted")

    def shutdown(self, uuid: UUID) -> None:
        target = (PowerState.SHUTOFF, "shutdown") if self.answers_shutdown else None
        self._change("shutdown", uuid, changes.SHUTDOWN, *(target or (None, "")))

    def destroy(self, uuid: UUID) -> None:
        self._change("destroy", uuid, changes.DESTROY, PowerState.SHUTOFF, "destroyed")

    def reboot(self, uuid: UUID) -> None:
        self._change("reboot", uuid, changes.RESET, None, "")

    def pause(self, uuid: UUID) -> None:
        self._change("pause", uuid, changes.PAUSE, PowerState.PAUSED, "user")

    def unpause(self, uuid: UUID) -> None:
        self._change("unpause", uuid, changes.UNPAUSE, PowerState.RUNNING, "unpaused")

    def suspend(self, uuid: UUID) -> None:
        with self._called("suspend", uuid):
            guest = self._guests.get(uuid)
            if guest is None or not (guest.is_saved or guest.power_state in changes.ACTIVE):
                raise Conflict(f"save the memory of domain {uuid}: it is off, or not there")
            if not guest.is_saved:
                guest.is_saved, guest.power_state, guest.reason = True, PowerState.SHUTOFF, "saved"
                self._tell(uuid)

    def resume(self, uuid: UUID) -> None:
        with self._called("resume", uuid):
            guest = self._guests.get(uuid)
            if guest is not None and guest.power_state in changes.ACTIVE:
                return
            if guest is None or not guest.is_saved:
                raise Conflict(f"go on with the saved memory of domain {uuid}: there is none")
            guest.is_saved, guest.power_state, guest.reason = False, PowerState.RUNNING, "restored"
            self._tell(uuid)

    def drop_memory(self, uuid: UUID) -> None:
        with self._called("drop_memory", uuid):
            self._drop(uuid)

    def _drop(self, uuid: UUID) -> None:
        guest = self._guests.get(uuid)
        if guest is not None and guest.is_saved:
            guest.is_saved, guest.disks = False, dataclasses.replace(guest.disks, live=())

    def undefine(self, uuid: UUID) -> None:
        with self._called("undefine", uuid):
            if changes.may_undefine(f"undefine domain {uuid}", self._power(uuid)):
                del self._guests[uuid]
                self._tell(uuid)

    def write_stamp(self, uuid: UUID, stamp: Stamp) -> None:
        with self._called("write_stamp", uuid):
            guest = self._guests.get(uuid)
            if guest is None:
                raise Conflict(f"mark domain {uuid}: there is no such domain")
            guest.domain = dataclasses.replace(guest.domain, stamp=stamp)
            guest.live_stamp = stamp

    def take_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        with self._called("take_snapshot", uuid):
            self._of_running("take a snapshot", uuid, disk)
            if tag in self.snapshots.setdefault(uuid, []):
                raise HypervisorRejected(f"take a snapshot of {uuid}: {tag} is there")
            disk_snapshots.take(disk, tag)
            self.snapshots[uuid].append(tag)

    def drop_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        with self._called("drop_snapshot", uuid):
            self._of_running("drop a snapshot", uuid, disk)
            disk_snapshots.drop(disk, tag)
            self.snapshots[uuid] = [known for known in self.snapshots.get(uuid, ()) if known != tag]

    def freeze(self, uuid: UUID) -> Frozen:
        with self._called("freeze", uuid):
            if self._power(uuid) not in changes.ACTIVE:
                raise Conflict(f"freeze domain {uuid}: it does not run")
            if self.agent is not Frozen.NO:
                self.held_still.add(uuid)
            return self.agent

    def thaw(self, uuid: UUID) -> None:
        with self._called("thaw", uuid):
            if self._power(uuid) in changes.ACTIVE and self.agent is Frozen.NO:
                raise HypervisorRejected(f"thaw domain {uuid}: it has no agent")
            self.held_still.discard(uuid)

    def _of_running(self, what: str, uuid: UUID, disk: Path) -> None:
        if self._power(uuid) not in changes.ACTIVE or not disk.is_file():
            raise Conflict(f"{what} of domain {uuid}: it does not run, or without the disk {disk}")

    # -- host and network --------------------------------------------------------------------------------------------------

    def host(self) -> HostInfo:
        with self._called("host"):
            return self._host

    def network(self, name: str) -> Network | None:
        with self._called("network"):
            return self.networks.get(name)

    def start_network(self, name: str) -> None:
        with self._called("start_network"):
            if name not in self.networks:
                raise HypervisorRejected(f"start network {name}: there is none of that name")
            self.networks[name] = dataclasses.replace(self.networks[name], is_active=True)

    def leases(self, network: str) -> tuple[Lease, ...]:
        with self._called("leases"):
            return self.live_leases.get(network, ())

    def add_dhcp_host(self, network: str, host: DhcpHost) -> None:
        with self._called("add_dhcp_host"):
            found = self.networks.get(network)
            if found is None:
                raise HypervisorRejected(f"add DHCP entry {host.mac} {host.address}: no network {network}; define it")
            if changes.dhcp_entry_differs(f"add to {network}", found.dhcp_hosts, host, should_be_there=True):
                self.networks[network] = dataclasses.replace(found, dhcp_hosts=(*found.dhcp_hosts, host))

    def remove_dhcp_host(self, network: str, host: DhcpHost) -> None:
        with self._called("remove_dhcp_host"):
            if found := self.networks.get(network):
                rest = tuple(entry for entry in found.dhcp_hosts if entry != host)
                self.networks[network] = dataclasses.replace(found, dhcp_hosts=rest)

    def ensure_filter(self, name: str) -> bool:
        with self._called("ensure_filter"):
            return name in self.filters

    def filtered_ports(self) -> dict[str, str]:
        with self._called("filtered_ports"):
            return dict(self.ports)

    def settle_filters(self, names: Collection[str]) -> None:
        with self._called("settle_filters"):
            self.on_settle()

    def rebuild_filters(self, names: Collection[str]) -> None:
        with self._called("rebuild_filters"):
            self.on_rebuild(set(names))

    def drop_filter(self) -> None:
        with self._called("drop_filter"):
            self.filters.discard(FILTER_NAME)

    def own_bridges(self) -> frozenset[str]:
        with self._called("own_bridges"):
            return frozenset(network.bridge for network in self.networks.values())

    def cards(self, uuid: UUID) -> tuple[Card, ...]:
        with self._called("cards", uuid):
            return self._guests[uuid].live_cards if self._power(uuid) in changes.ACTIVE else ()

    def raise_link(self, uuid: UUID, mac: str) -> None:
        self._set_link("raise_link", uuid, mac, is_up=True)

    def lower_link(self, uuid: UUID, mac: str) -> None:
        self._set_link("lower_link", uuid, mac, is_up=False)

    def _set_link(self, method: str, uuid: UUID, mac: str, *, is_up: bool) -> None:
        with self._called(method, uuid):
            if not any(card.mac == mac for card in self.cards(uuid)):
                raise Conflict(f"domain {uuid} has no running card {mac}")
            guest = self._guests[uuid]
            guest.live_cards = tuple(
                dataclasses.replace(card, link_is_up=is_up) if card.mac == mac else card for card in guest.live_cards
            )

    def grow_disk(self, uuid: UUID, disk: Path, size_bytes: int) -> bool:
        with self._called("grow_disk", uuid):
            if self._power(uuid) not in changes.ACTIVE:
                raise Conflict(f"make the disk of domain {uuid} larger: it is not up")
            return False  # its guests use no files

    def begin_copy(self, uuid: UUID, disk: Path, target: Path) -> Copying:
        with self._called("begin_copy", uuid):
            if self._power(uuid) not in changes.ACTIVE:
                raise Conflict(f"copy the disk of domain {uuid}: it is not up")
            return self.begins_copy(uuid, target)

    def copy_state(self, uuid: UUID) -> CopyState:
        with self._called("copy_state", uuid):
            return self.copy_states.pop(0) if self.copy_states else CopyState(False, problem="there was none")

    def end_copy(self, uuid: UUID) -> None:
        with self._called("end_copy", uuid):
            self.copy_states.clear()

    def subscribe_copies(self, on_end: Callable[[UUID], None]) -> None:
        self.copies_ended.append(on_end)

    def disks(self, uuid: UUID) -> DomainDisks:
        with self._called("disks", uuid):
            guest = self._guests.get(uuid)
            return guest.disks if guest else DomainDisks()

    def attach_disk(self, uuid: UUID, xml: str) -> None:
        with self._called("attach_disk", uuid):
            if self._power(uuid) not in changes.ACTIVE:
                raise Conflict(f"plug a disk into domain {uuid}: it does not run")
            (disk,) = disks_of(f"<domain><devices>{xml}</devices></domain>")
            guest = self._guests[uuid]
            if any(one.path != disk.path and one.target == disk.target for one in guest.disks.live):
                raise HypervisorRejected(f"plug a disk into domain {uuid}: target {disk.target} already exists")
            live = tuple(dict.fromkeys((*guest.disks.live, disk)))
            guest.disks = dataclasses.replace(guest.disks, live=live)

    def detach_disk(self, uuid: UUID, path: str) -> None:
        with self._called("detach_disk", uuid):
            if self._power(uuid) in changes.ACTIVE and self.lets_go_of_disks:
                self.guest_lets_go(uuid, path)

    def guest_addresses(self, uuid: UUID) -> dict[str, tuple[IpAddress, ...]]:
        with self._called("guest_addresses", uuid):
            return self.addresses_said.get(uuid, {}) if self._power(uuid) in changes.ACTIVE else {}

    def screenshot(self, uuid: UUID) -> Picture:
        with self._called("screenshot", uuid):
            if self._power(uuid) not in changes.ACTIVE:
                raise HypervisorRejected(f"take a picture of the screen of domain {uuid}: it is not running")
            return self.pictures.get(uuid, Picture("image/x-portable-pixmap", b"P6\n2 1\n255\n\xff\0\0\0\xff\0"))

    def screen_socket(self, uuid: UUID) -> str:
        with self._called("screen_socket", uuid):
            return self.screen_sockets.get(uuid, "") if self._power(uuid) in changes.ACTIVE else ""

    def ask_agent(self, uuid: UUID, command: str, seconds: int) -> str:
        with self._called("ask_agent", uuid):
            if self._power(uuid) not in changes.ACTIVE or uuid not in self.agents:
                raise HypervisorRejected("no agent answers in the guest: there is none", "NoAgent")
        return self.agents[uuid](command)

    def usage(self) -> tuple[GuestUsage, ...]:
        with self._called("usage"):
            active = (guest.seen() for guest in self._guests.values() if guest.power_state in changes.ACTIVE)
            return tuple(
                self.usages.get(one.uuid, GuestUsage(one.uuid, one.vcpus, 0, one.memory_mib << 10, one.memory_mib << 10))
                for one in active
            )

    # -- events ------------------------------------------------------------------------------------------------------------

    def subscribe(self, on_domain: Callable[[UUID], None], on_reconnect: Callable[[], None]) -> None:
        self._subscribers.append((on_domain, on_reconnect))

    def close(self) -> None:
        if self._events is not None:
            self._events.put(None)

    # -- inside ------------------------------------------------------------------------------------------------------------

    def _called(self, method: str, uuid: UUID | None = None) -> threading.RLock:
        """Note the call and fail it where the test asked for that; the lock that it runs under."""
        with self._lock:
            self.calls.append((method, uuid))
            if self._outage is not None:
                raise self._outage
            if self._failures[method]:
                raise self._failures[method].popleft()
        return self._lock

    def _power(self, uuid: UUID) -> PowerState | None:
        guest = self._guests.get(uuid)
        return guest.power_state if guest else None

    def _change(
        self, method: str, uuid: UUID, change: changes.PowerChange, power_state: PowerState | None, reason: str
    ) -> None:
        """Make *change*; *power_state* None leaves the state as it is."""
        with self._called(method, uuid):
            if not change.is_settled(f"{change.verb} domain {uuid}", self._power(uuid)) and power_state is not None:
                self._turn(uuid, power_state, reason)

    def _turn(self, uuid: UUID, power_state: PowerState, reason: str) -> None:
        with self._lock:
            guest = self._guests[uuid]
            if guest.power_state not in changes.ACTIVE:
                guest.live_stamp, guest.is_saved = guest.domain.stamp, False
                guest.live_size = guest.domain.vcpus, guest.domain.memory_mib
                guest.live_cards = tuple(
                    dataclasses.replace(card, device=f"vnet{next(self._devices)}") for card in guest.defined_cards
                )
                guest.disks = dataclasses.replace(guest.disks, live=guest.disks.defined)
            if power_state not in changes.ACTIVE:
                guest.disks = dataclasses.replace(guest.disks, live=())
            guest.power_state, guest.reason = power_state, reason
            self._tell(uuid)

    def _tell(self, uuid: UUID) -> None:
        if self._events is not None:
            self._events.put(uuid)
            return
        for on_domain, _ in self._subscribers:
            on_domain(uuid)

    def _deliver(self) -> None:
        assert self._events is not None
        while (uuid := self._events.get()) is not None:
            for on_domain, _ in self._subscribers:
                on_domain(uuid)
