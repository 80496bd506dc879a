"""The hypervisor that libvirt steers. Only this and its parts, ``libvirt_*``, import libvirt.

Implements ``ecompute.hypervisor.Hypervisor`` over one connection that all threads share. libvirt's error codes become our
exceptions here and its XML our dataclasses (``libvirt_xml``); nothing is remembered between calls, and nothing is retried but
the connection itself. One daemon thread per process runs libvirt's event loop. One short method for each call of the protocol,
which makes the module as long as that is; what takes more than a few lines is in the parts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import libvirt

from common.errors import Conflict, EcomputeError, HypervisorRejected, HypervisorUnavailable
from common.host_letters import GuestUsage
from common.nics import IpAddress
from common.retry import Backoff
from ecompute import (
    changes,
    libvirt_copies,
    libvirt_disks,
    libvirt_guests,
    libvirt_memory,
    libvirt_networks,
    libvirt_snapshots,
)
from ecompute.connection import KeptConnection
from ecompute.guest_answers import SlowAgents
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
from ecompute.identity import cpu_flags
from ecompute.libvirt_errors import is_code, is_unavailable, one_line, optional, unless, unless_absent
from ecompute.libvirt_usage import read_usage
from ecompute.libvirt_xml import STAMP_NAMESPACE, STAMP_PREFIX, capabilities_of, size_of, stamp_of, stamp_text

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How long an idle connection may be silent before libvirtd counts as gone, in the middle of a call too.
KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 3

_POWER_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.RUNNING,  # asleep by its own wish: not ours to resume
}


def _reasons(prefix: str) -> dict[int, str]:
    """libvirt's constants that begin with *prefix*, as lower case words: VIR_DOMAIN_PAUSED_IOERROR → "ioerror"."""
    names = (name for name in dir(libvirt) if name.startswith(prefix) and not name.endswith("_LAST"))
    return {getattr(libvirt, name): name.removeprefix(prefix).lower().replace("_", "-") for name in names}


_REASONS = {
    libvirt.VIR_DOMAIN_RUNNING: _reasons("VIR_DOMAIN_RUNNING_"),
    libvirt.VIR_DOMAIN_PAUSED: _reasons("VIR_DOMAIN_PAUSED_"),
    libvirt.VIR_DOMAIN_SHUTDOWN: _reasons("VIR_DOMAIN_SHUTDOWN_"),
    libvirt.VIR_DOMAIN_SHUTOFF: _reasons("VIR_DOMAIN_SHUTOFF_"),
    libvirt.VIR_DOMAIN_CRASHED: _reasons("VIR_DOMAIN_CRASHED_"),
    libvirt.VIR_DOMAIN_PMSUSPENDED: {libvirt.VIR_DOMAIN_PMSUSPENDED_UNKNOWN: "pmsuspended"},
}


def _press_power_button(handle: libvirt.virDomain) -> None:
    try:
        handle.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT):
            raise
        handle.shutdown()  # a driver with one way only


def _undefine(handle: libvirt.virDomain) -> None:
    everything = (
        libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    )
    try:
        handle.undefineFlags(everything)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_INVALID_ARG):
            raise
        libvirt_memory.drop(handle)
        handle.undefineFlags(0)  # a driver that does not know all of them


_event_loop_lock = threading.Lock()
_event_loop: threading.Thread | None = None


def start_event_loop() -> None:
    """Have libvirt's events served, once per process and before any connection is opened."""
    global _event_loop  # noqa: PLW0603 - libvirt itself has one event loop per process
    with _event_loop_lock:
        if _event_loop is None:
            libvirt.registerErrorHandler(lambda *_: None, None)  # else each error is printed on stderr, from C
            libvirt.virEventRegisterDefaultImpl()
            _event_loop = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
            _event_loop.start()


def _run_event_loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except Exception:
            logger.exception("libvirt's event loop failed once; it goes on")


class LibvirtDriver:
    """libvirt at *uri*. Nothing is opened before the first call or ``subscribe``; safe to use from many threads.

    Args:
        uri: of a libvirt on this machine, such as ``qemu:///system``.
        patience_seconds: how long a call waits for a connection to be opened.
        on_state: told why libvirt is away, and "" when it is back; without it that is logged.
    """

    def __init__(
        self, uri: str, *, patience_seconds: float = 10.0, backoff: Backoff | None = None,
        on_state: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        self._uri, self._slow_agents = uri, SlowAgents()
        self._on_domain: list[Callable[[UUID], None]] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_copy_end: list[Callable[[UUID], None]] = []
        self._callback_ids: list[int] = []  # of the one connection; touched in its keeper's thread only
        self._connection = KeptConnection[libvirt.virConnect](
            f"libvirt at {uri}", self._open, self._discard, self._tell_reconnected,
            patience_seconds=patience_seconds, backoff=backoff or Backoff(0.1, 5.0), on_state=on_state,
        )  # fmt: skip

    # -- domains -----------------------------------------------------------------------------------------------------------

    def get(self, uuid: UUID) -> Domain | None:
        with self._calling(f"read domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return None if handle is None else _read(handle)

    def list(self) -> list[Domain]:
        with self._calling("list the domains") as connection:
            found = (_read(handle) for handle in connection.listAllDomains())
            return [domain for domain in found if domain is not None]

    def define(self, xml: str) -> None:
        with self._calling("define a domain") as connection:
            connection.defineXML(xml)

    def start(self, uuid: UUID) -> None:
        self._change(uuid, changes.START, libvirt_memory.boot)

    def shutdown(self, uuid: UUID) -> None:
        self._change(uuid, changes.SHUTDOWN, _press_power_button)

    def destroy(self, uuid: UUID) -> None:
        self._change(uuid, changes.DESTROY, lambda handle: handle.destroy())

    def reboot(self, uuid: UUID) -> None:
        self._change(uuid, changes.RESET, lambda handle: handle.reset(0))

    def pause(self, uuid: UUID) -> None:
        self._change(uuid, changes.PAUSE, lambda handle: handle.suspend())

    def unpause(self, uuid: UUID) -> None:
        self._change(uuid, changes.UNPAUSE, lambda handle: handle.resume())

    def suspend(self, uuid: UUID) -> None:
        with self._calling(what := f"save the memory of domain {uuid}") as connection:
            libvirt_memory.save(what, _lookup(connection, uuid))

    def resume(self, uuid: UUID) -> None:
        with self._calling(what := f"go on with the saved memory of domain {uuid}") as connection:
            libvirt_memory.go_on(what, _lookup(connection, uuid))

    def drop_memory(self, uuid: UUID) -> None:
        with self._calling(f"drop the saved memory of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            if handle is not None:
                libvirt_memory.drop(handle)

    def undefine(self, uuid: UUID) -> None:
        what = f"undefine domain {uuid}"
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if changes.may_undefine(what, _power_of(handle)):
                with unless_absent():
                    _undefine(handle)

    def write_stamp(self, uuid: UUID, stamp: Stamp) -> None:
        with self._calling(f"mark domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            if handle is None:
                raise Conflict(f"mark domain {uuid}: there is none")
            _set_stamp(handle, stamp)

    def take_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        self._of_running(
            f"take snapshot {tag} of domain {uuid}", uuid, lambda handle: libvirt_snapshots.take(handle, disk, tag)
        )

    def drop_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        self._of_running(
            f"drop snapshot {tag} of domain {uuid}", uuid, lambda handle: libvirt_snapshots.drop(handle, disk, tag)
        )

    def freeze(self, uuid: UUID) -> Frozen:
        return self._of_running(f"freeze domain {uuid}", uuid, libvirt_snapshots.freeze)

    def thaw(self, uuid: UUID) -> None:
        with self._calling(f"thaw domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            if handle is not None and _power_of(handle) in changes.ACTIVE:
                libvirt_snapshots.thaw(handle)

    def _of_running(self, what: str, uuid: UUID, act: Callable[[libvirt.virDomain], T]) -> T:
        """What *act* answers for a guest that is up."""
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if handle is None or _power_of(handle) not in changes.ACTIVE:
                raise Conflict(f"{what}: it does not run")
            try:
                return act(handle)
            except HypervisorRejected as error:
                raise HypervisorRejected(f"{what}: {error}") from error

    def grow_disk(self, uuid: UUID, disk: Path, size_bytes: int) -> bool:
        what = f"make the disk of domain {uuid} larger"
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if handle is None or _power_of(handle) not in changes.ACTIVE:
                raise Conflict(f"{what}: it is not up")
            answer = optional(handle.blockResize, str(disk), size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
            return answer is not None

    def begin_copy(self, uuid: UUID, disk: Path, target: Path) -> Copying:
        what = f"copy the disk of domain {uuid}"
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if handle is None or _power_of(handle) not in changes.ACTIVE:
                raise Conflict(f"{what}: it is not up")
            return libvirt_copies.begin(handle, disk, target)

    def copy_state(self, uuid: UUID) -> CopyState:
        with self._calling(f"look at the copy of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return CopyState(False, problem="the guest is gone") if handle is None else libvirt_copies.state(handle)

    def end_copy(self, uuid: UUID) -> None:
        with self._calling(f"end the copy of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            if handle is not None and _power_of(handle) in changes.ACTIVE:
                libvirt_copies.end(handle)

    def subscribe_copies(self, on_end: Callable[[UUID], None]) -> None:
        self._on_copy_end.append(on_end)

    def _change(self, uuid: UUID, change: changes.PowerChange, act: Callable[[libvirt.virDomain], object]) -> None:
        """Do *act*, unless it is so already, or is so by the time that libvirt refuses."""
        what = f"{change.verb} domain {uuid}"
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if (handle is None or not change.is_refused_when_done) and change.is_settled(what, _power_of(handle)):
                return
            try:
                act(handle)
            except libvirt.libvirtError as error:
                if is_unavailable(error) or not change.is_settled(what, _power_of(handle)):
                    raise

    # -- host and network --------------------------------------------------------------------------------------------------

    def host(self) -> HostInfo:
        with self._calling("read the host") as connection:
            capabilities = capabilities_of(connection.getCapabilities())
            info = connection.getInfo()
            driver = connection.getType().lower()
            return HostInfo(
                libvirt_host_uuid=capabilities.host_uuid,
                hostname=connection.getHostname(),
                architecture=capabilities.architecture,
                cpus=info[2],
                memory_mib=_memory_mib(connection, info[1]),
                cpu_flags=cpu_flags() if driver == "qemu" else capabilities.cpu_features,
                machine_types=capabilities.machine_types,
                versions={"libvirt": _version(connection.getLibVersion()), driver: _version(connection.getVersion())},
            )

    def network(self, name: str) -> Network | None:
        with self._calling(f"read network {name}") as connection:
            return libvirt_networks.read_network(connection, name)

    def start_network(self, name: str) -> None:
        with self._calling(what := f"start network {name}") as connection:
            libvirt_networks.start_network(connection, what, name)

    def autostart_network(self, name: str) -> None:
        with self._calling(what := f"start network {name} with the host") as connection:
            libvirt_networks.autostart_network(connection, what, name)

    def filter_names(self) -> frozenset[str] | None:
        """The network filters that are defined; None where this libvirt has none at all."""
        with self._calling("list the network filters") as connection:
            return libvirt_networks.filter_names(connection)

    def leases(self, network: str) -> tuple[Lease, ...]:
        with self._calling(f"read the leases of network {network}") as connection:
            return libvirt_networks.read_leases(connection, network)

    def own_bridges(self) -> frozenset[str]:
        with self._calling("list the networks") as connection:
            return libvirt_networks.own_bridges(connection)

    def add_dhcp_host(self, network: str, host: DhcpHost) -> None:
        what = f"add DHCP entry {host.mac} {host.address} of network {network}"
        with self._calling(what) as connection:
            libvirt_networks.update_dhcp(connection, what, network, host, should_be_there=True)

    def remove_dhcp_host(self, network: str, host: DhcpHost) -> None:
        what = f"remove DHCP entry {host.mac} {host.address} of network {network}"
        with self._calling(what) as connection:
            libvirt_networks.update_dhcp(connection, what, network, host, should_be_there=False)

    def ensure_filter(self, name: str) -> bool:
        with self._calling(f"look for network filter {name}") as connection:
            return libvirt_networks.ensure_filter(connection, name)

    def filtered_ports(self) -> dict[str, str]:
        with self._calling("list the network filters in use") as connection:
            return libvirt_networks.filtered_ports(connection)

    def settle_filters(self, names: Collection[str]) -> None:
        with self._calling("define network filters as they are") as connection:
            libvirt_networks.settle_filters(connection, names)

    def rebuild_filters(self, names: Collection[str]) -> None:
        with self._calling("have network filters made again") as connection:
            libvirt_networks.rebuild_filters(connection, names)

    def drop_filter(self) -> None:
        with self._calling("remove our network filters") as connection:
            libvirt_networks.drop_filters(connection)

    def cards(self, uuid: UUID) -> tuple[Card, ...]:
        with self._calling(f"read the cards of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return () if handle is None else libvirt_networks.read_cards(handle)

    def raise_link(self, uuid: UUID, mac: str) -> None:
        self._set_link(f"raise the link of {mac} of domain {uuid}", uuid, mac, is_up=True)

    def lower_link(self, uuid: UUID, mac: str) -> None:
        self._set_link(f"lower the link of {mac} of domain {uuid}", uuid, mac, is_up=False)

    def _set_link(self, what: str, uuid: UUID, mac: str, *, is_up: bool) -> None:
        with self._calling(what) as connection:
            handle = _lookup(connection, uuid)
            if handle is None:
                raise Conflict(f"{what}: there is no such domain")
            libvirt_networks.set_link(handle, mac, is_up=is_up)

    def guest_addresses(self, uuid: UUID) -> dict[str, tuple[IpAddress, ...]]:
        with self._calling(f"ask for the addresses of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return {} if handle is None else libvirt_networks.guest_addresses(handle, self._slow_agents)

    def disks(self, uuid: UUID) -> DomainDisks:
        with self._calling(f"read the disks of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return DomainDisks() if handle is None else libvirt_disks.read_disks(handle)

    def attach_disk(self, uuid: UUID, xml: str) -> None:
        with self._calling(what := f"plug a disk into domain {uuid}") as connection:
            libvirt_disks.attach(what, _lookup(connection, uuid), xml)

    def detach_disk(self, uuid: UUID, path: str) -> None:
        with self._calling(f"unplug {path} from domain {uuid}") as connection:
            libvirt_disks.detach(_lookup(connection, uuid), path)

    def screenshot(self, uuid: UUID) -> Picture:
        with self._calling(what := f"take a picture of the screen of domain {uuid}") as connection:
            return libvirt_guests.screenshot(connection, _needed(connection, what, uuid))

    def screen_socket(self, uuid: UUID) -> str:
        with self._calling(f"read the screen of domain {uuid}") as connection:
            handle = _lookup(connection, uuid)
            return "" if handle is None else libvirt_guests.screen_socket(handle)

    def ask_agent(self, uuid: UUID, command: str, seconds: int) -> str:
        with self._calling(what := f"ask the agent of domain {uuid}") as connection:
            return libvirt_guests.ask_agent(_needed(connection, what, uuid), command, seconds)

    def usage(self) -> tuple[GuestUsage, ...]:
        with self._calling("ask what the guests use") as connection:
            return read_usage(connection)

    # -- connection and events ---------------------------------------------------------------------------------------------

    def subscribe(self, on_domain: Callable[[UUID], None], on_reconnect: Callable[[], None]) -> None:
        self._on_domain.append(on_domain)
        self._on_reconnect.append(on_reconnect)
        self._connection.open_soon()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _calling(self, what: str) -> Iterator[libvirt.virConnect]:
        """The connection, for one call; libvirt's errors come out as ours."""
        connection = self._connection.get()
        try:
            yield connection
        except libvirt.libvirtError as error:
            if is_unavailable(error) and not _is_alive(connection):
                self._connection.lost(connection)
            raise self._translated(error, what) from error

    def _translated(self, error: libvirt.libvirtError, what: str) -> EcomputeError:
        kind = HypervisorUnavailable if is_unavailable(error) else HypervisorRejected
        return kind(f"{what}: libvirt at {self._uri}: {one_line(error)}")

    def _open(self) -> libvirt.virConnect:
        start_event_loop()
        connection = None
        try:
            connection = libvirt.open(self._uri)
            optional(connection.setKeepAlive, KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
            optional(connection.registerCloseCallback, lambda broken, *_: self._connection.lost(broken), None)
            for event, told in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._on_job),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_device_removed),
            ):
                self._callback_ids.append(connection.domainEventRegisterAny(None, event, told, None))
        except libvirt.libvirtError as error:
            if connection is not None:
                self._discard(connection)
            message = f"open libvirt at {self._uri}: {one_line(error)}; is libvirtd running, and may this user use it?"
            raise HypervisorUnavailable(message) from error
        return connection

    def _discard(self, connection: libvirt.virConnect) -> None:
        # Callbacks hold the connection; a broken one lets them go, but says that it could not tell the other side. It is not
        # closed here: another thread may be in the middle of a call on it, and libvirt would free it under that call. The last
        # reference closes it.
        while self._callback_ids:
            with contextlib.suppress(libvirt.libvirtError):
                connection.domainEventDeregisterAny(self._callback_ids.pop())
        with contextlib.suppress(libvirt.libvirtError):
            connection.unregisterCloseCallback()

    def _on_lifecycle(self, _connection: object, handle: libvirt.virDomain, *_: object) -> None:
        self._tell(handle, self._on_domain, self._on_copy_end)  # with the guest its copy ends

    def _on_job(self, _connection: object, handle: libvirt.virDomain, *_: object) -> None:
        self._tell(handle, self._on_copy_end)

    def _on_device_removed(self, _connection: object, handle: libvirt.virDomain, *_: object) -> None:
        self._tell(handle, self._on_domain)

    def _tell(self, handle: libvirt.virDomain, *listeners: Iterable[Callable[[UUID], None]]) -> None:
        try:
            for some in listeners:
                for tell in tuple(some):
                    tell(UUID(bytes=handle.UUID()))
        except Exception:
            logger.exception("a bug in handling a domain's event; the next resync makes up for it")

    def _tell_reconnected(self) -> None:
        for tell in tuple(self._on_reconnect):
            tell()


def _is_alive(connection: libvirt.virConnect) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return bool(connection.isAlive())
    return False


def _lookup(connection: libvirt.virConnect, uuid: UUID) -> libvirt.virDomain | None:
    with unless_absent():
        return connection.lookupByUUID(uuid.bytes)
    return None


def _needed(connection: libvirt.virConnect, what: str, uuid: UUID) -> libvirt.virDomain:
    handle = _lookup(connection, uuid)
    if handle is None:
        raise HypervisorRejected(f"{what}: there is no such domain")
    return handle


def _power_of(handle: libvirt.virDomain | None) -> PowerState | None:
    """None where the domain is not there, or not any more."""
    with unless_absent():
        return None if handle is None else _POWER_STATES[handle.state()[0]]
    return None


def _read(handle: libvirt.virDomain) -> Domain | None:
    """None where the domain went away meanwhile."""
    with unless_absent():
        state, reason = handle.state()
        _, memory_kib, _, vcpus, _ = handle.info()
        saved = None if _POWER_STATES[state] in changes.ACTIVE else libvirt_memory.saved_xml(handle)
        vcpus, memory_mib = (size_of(saved) if saved else None) or (vcpus, memory_kib // 1024)
        return Domain(
            uuid=UUID(bytes=handle.UUID()),
            name=handle.name(),
            power_state=_POWER_STATES[state],
            state_reason=_REASONS.get(state, {}).get(reason, "unknown"),
            stamp=_read_stamp(handle),
            vcpus=vcpus,
            memory_mib=memory_mib,
            has_saved_memory=saved is not None,
        )
    return None


def _read_stamp(handle: libvirt.virDomain) -> Stamp | None:
    text = ""
    with unless(libvirt.VIR_ERR_NO_DOMAIN_METADATA):
        text = handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, STAMP_NAMESPACE)
    stamp = stamp_of(text) if text else None
    if text and stamp is None:
        logger.warning("domain %s carries a mark of ours that cannot be read; it is left alone: %s", handle.name(), text)
    return stamp


def _set_stamp(handle: libvirt.virDomain, stamp: Stamp) -> None:
    """Most often it is up; where it is not, or starts or stops between look and write: look, and look again."""
    mark = (libvirt.VIR_DOMAIN_METADATA_ELEMENT, stamp_text(stamp), STAMP_PREFIX, STAMP_NAMESPACE)
    parts = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    for _ in range(2):
        with unless(libvirt.VIR_ERR_OPERATION_INVALID):
            handle.setMetadata(*mark, parts)
            return
        parts = _parts_of(handle)
    handle.setMetadata(*mark, parts)


def _parts_of(handle: libvirt.virDomain) -> int:
    """What there is of a domain, its running state and its definition, as flags of a change."""
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if handle.isActive() else 0
    if handle.isPersistent():  # a guest may have been undefined by hand while it ran
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    return flags


def _memory_mib(connection: libvirt.virConnect, node_mib: int) -> int:
    """All of the host's memory. ``getInfo`` may tell that of one NUMA node only, and a changing figure at that."""
    statistics = optional(connection.getMemoryStats, libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
    return node_mib if statistics is None else statistics["total"] // 1024


def _version(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
