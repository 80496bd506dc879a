"""What ecompute asks of a hypervisor, as a protocol and the dataclasses that cross it.

``ecompute/libvirt_driver.py`` is the real one, ``tests/fakes/hypervisor.py`` keeps domains in memory; both pass
``tests/contract``. Nothing here knows libvirt's constants or XML beyond "a text that ``define`` takes".
Every call asks the hypervisor now; nothing is remembered. Every call may raise ``HypervisorUnavailable`` (the connection
broke; try again), ``HypervisorRejected`` (understood and refused) and, where it changes something, ``Conflict`` (the domain or
network is not as the caller saw it: look again, decide again).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from common.host_letters import GuestUsage
from common.nics import IpAddress


class PowerState(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting-down"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Stamp:
    """Our mark in a domain's ``<metadata>``: whose it is, and how far we got with it. Written only by us.

    Args:
        provider: the resource provider whose specs this domain answers to.
        cluster_id: the etcd cluster that the spec was read from.
        spec_revision: ``mod_revision`` of the spec last acted on.
        booted: the ``boot_request`` that this guest has been booted for; 0 where it never ran.
        started_for: the ``boot_request`` that it was last started for. Written before the start, and a running guest keeps
            what it was started with, so that nobody need remember whether a reboot is still to be done.
        definition: digest of everything that the domain XML was made from, to see whether it must be defined anew.
        boot_id: the host's boot id when it was last marked booted; tells a host reboot from a guest's own shutdown.
    """

    provider: UUID
    cluster_id: int
    spec_revision: int
    booted: int = 0
    definition: str = ""
    boot_id: str = ""
    started_for: int = 0


@dataclass(frozen=True)
class Domain:
    """A domain as the hypervisor reports it now."""

    uuid: UUID
    name: str
    power_state: PowerState
    # Why, in the hypervisor's words, lower case: "booted", "shutdown", "destroyed", "crashed", "failed", "ioerror", "user"…
    # "unknown" also for a domain that was off already when the hypervisor's daemon last started.
    state_reason: str
    stamp: Stamp | None  # None where it is not ours
    vcpus: int = 0
    memory_mib: int = 0
    has_saved_memory: bool = False  # it is off, and its guest goes on from a file of the host

    @property
    def is_active(self) -> bool:
        return self.power_state in (PowerState.RUNNING, PowerState.PAUSED, PowerState.SHUTTING_DOWN)

    @property
    def was_paused(self) -> bool:
        """Whether somebody paused it; neither QEMU nor anything that libvirt is in the middle of."""
        return self.power_state is PowerState.PAUSED and self.state_reason == "user"


@dataclass(frozen=True)
class HostInfo:
    """What the host has and is."""

    libvirt_host_uuid: str
    hostname: str
    architecture: str  # "x86_64"
    cpus: int
    memory_mib: int
    cpu_flags: frozenset[str]  # as in /proc/cpuinfo: "avx2", "vmx", …
    machine_types: tuple[str, ...]
    versions: dict[str, str]  # "libvirt": "9.0.0", "qemu": "7.2.9"


@dataclass(frozen=True)
class DhcpHost:
    """A static DHCP entry of a network."""

    mac: str  # lower case, colons
    address: str


@dataclass(frozen=True)
class Network:
    """A libvirt network that serves IPv4 addresses, and perhaps IPv6 besides."""

    name: str
    is_active: bool
    bridge: str
    gateway: str  # the bridge's own address
    prefix_length: int
    dhcp_start: str  # "" where the network has no DHCP
    dhcp_end: str
    dhcp_hosts: tuple[DhcpHost, ...]
    prefixes6: tuple[str, ...] = ()  # of IPv6, each a /64 in which guests give themselves addresses
    is_nat: bool = False  # guests reach others as the host


@dataclass(frozen=True)
class Lease:
    """A DHCP lease that is live now."""

    mac: str
    address: str


class Frozen(enum.StrEnum):
    """What came of asking a guest to hold its file systems still."""

    YES = "yes"  # everything is on its disk, and nothing is written until it is thawed
    NO = "no"  # it has no agent, or that refuses: nothing is held
    UNCERTAIN = "uncertain"  # its agent did not answer in time, and may do it yet


@dataclass(frozen=True)
class Picture:
    """What a guest's screen shows, as the hypervisor hands it out."""

    media_type: str  # "image/png", "image/x-portable-pixmap"
    data: bytes


@dataclass(frozen=True)
class Card:
    """A network card of a running guest."""

    mac: str  # lower case, colons
    device: str  # the host's end of it, such as "vnet3"
    link_is_up: bool  # whether the guest sees a cable in it


class Copying(enum.StrEnum):
    """How a copy of a running guest's disk was begun."""

    FROZEN = "frozen"  # the guest's agent had its file systems written out first
    UNFROZEN = "unfrozen"  # as after a power cut: what the guest had not written yet is missing
    NOT_POSSIBLE = "not-possible"  # guests use no files here, as in a simulation


@dataclass(frozen=True)
class CopyState:
    """How a copy goes; *problem* is why it ended without one, "" where it is whole."""

    is_running: bool
    done_bytes: int = 0
    total_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Disk:
    """A disk of a domain that is a file of the host."""

    path: str
    target: str  # the domain's name of its place, such as "vdc"


@dataclass(frozen=True)
class DomainDisks:
    """The disks of a domain: those that it will be started with, and those that its guest has now, none where it is off.

    A guest whose memory is saved has the disks that it goes on with.
    """

    defined: tuple[Disk, ...] = ()
    live: tuple[Disk, ...] = ()


class Hypervisor(Protocol):
    """Actions are idempotent: what is so already is success.

    An action on a domain that is not there is a ``Conflict``, but for those that would end there: shutdown, destroy, undefine.
    """

    def get(self, uuid: UUID) -> Domain | None: ...

    def list(self) -> list[Domain]:
        """Every domain, running or not, ours or not."""
        ...

    def define(self, xml: str) -> None:
        """Make the domain that *xml* describes known, or change its definition; the stamp in *xml* replaces the old one.

        A running guest goes on as it was started, its live stamp included.
        """
        ...

    def start(self, uuid: UUID) -> None:
        """Boot the guest; return when its virtual machine process runs. Memory that is saved goes, and is not gone on with."""
        ...

    def shutdown(self, uuid: UUID) -> None:
        """Ask the guest to power off (ACPI); return at once. One that is paused or on its way down is not asked."""
        ...

    def destroy(self, uuid: UUID) -> None:
        """Pull the plug; return when the domain is inactive."""
        ...

    def reboot(self, uuid: UUID) -> None:
        """Reset the virtual machine without ending its process; a paused one stays paused."""
        ...

    def pause(self, uuid: UUID) -> None:
        """Stop the guest's CPUs; it keeps its memory."""
        ...

    def unpause(self, uuid: UUID) -> None: ...

    def suspend(self, uuid: UUID) -> None:
        """Save the memory of a guest that is up to a file of the host's and end its process; may take minutes.

        The guest goes on where that fails. ``Conflict`` where it is off, and nothing is saved.
        """
        ...

    def resume(self, uuid: UUID) -> None:
        """Have a guest run on from its saved memory, which goes; ``Conflict`` where it is off and there is none."""
        ...

    def drop_memory(self, uuid: UUID) -> None:
        """Give up what is saved of a guest's memory; none is success, and so is no domain."""
        ...

    def undefine(self, uuid: UUID) -> None:
        """Forget the definition of an inactive domain, with its NVRAM and managed save image; active is a ``Conflict``."""
        ...

    def write_stamp(self, uuid: UUID, stamp: Stamp) -> None:
        """Set our mark, in the running domain's state and in its definition."""
        ...

    def host(self) -> HostInfo: ...

    def network(self, name: str) -> Network | None: ...

    def start_network(self, name: str) -> None:
        """Bring a network that is defined up; ``HypervisorRejected`` where there is none, or it does not start."""
        ...

    def leases(self, network: str) -> tuple[Lease, ...]: ...

    def add_dhcp_host(self, network: str, host: DhcpHost) -> None:
        """Reserve the address for the MAC, now and in the definition. ``Conflict`` where another entry has either of them."""
        ...

    def remove_dhcp_host(self, network: str, host: DhcpHost) -> None: ...

    def own_bridges(self) -> frozenset[str]:
        """The bridges that the hypervisor made for networks of its own."""
        ...

    def cards(self, uuid: UUID) -> tuple[Card, ...]:
        """The cards of a guest that runs, in the order of its definition; none where it is off or not there."""
        ...

    def raise_link(self, uuid: UUID, mac: str) -> None:
        """Let a running guest's card, defined with its link down, see a cable. ``Conflict`` where it has no such card."""
        ...

    def lower_link(self, uuid: UUID, mac: str) -> None:
        """Have a running guest's card see no cable any more; else as ``raise_link``."""
        ...

    def grow_disk(self, uuid: UUID, disk: Path, size_bytes: int) -> bool:
        """Have a guest that is up see its *disk* as *size_bytes* large; False where guests use no files, as in a simulation.

        ``Conflict`` where it is not up. For disks that are smaller: nothing here keeps one from being cut off.
        """
        ...

    def begin_copy(self, uuid: UUID, disk: Path, target: Path) -> Copying:
        """Begin to copy *disk* of a guest that is up, as it is now, into the new qcow2 *target*, which rests on nothing.

        The guest runs on. One copy of a guest at a time; ``Conflict`` where it is not up.
        """
        ...

    def copy_state(self, uuid: UUID) -> CopyState:
        """How the copy that was begun last goes; how it ended is told once."""
        ...

    def end_copy(self, uuid: UUID) -> None:
        """Have no copy go on, and no file system of the guest be frozen; what is so already, or not there, is success."""
        ...

    def subscribe_copies(self, on_end: Callable[[UUID], None]) -> None:
        """Call *on_end* when a copy may have ended, in a thread that must only take note; an event may get lost."""
        ...

    def disks(self, uuid: UUID) -> DomainDisks:
        """The disks of a domain; none where it is not there."""
        ...

    def attach_disk(self, uuid: UUID, xml: str) -> None:
        """Plug the disk that *xml* describes into a guest that runs, which has it until it is off; ``Conflict`` if it is."""
        ...

    def detach_disk(self, uuid: UUID, path: str) -> None:
        """Ask a guest that runs to let go of the disk; one that is off has none.

        It has it until ``disks`` does not show it any more, of which subscribers are told; it may take its time, or refuse. May
        be asked again.
        """
        ...

    def guest_addresses(self, uuid: UUID) -> dict[str, tuple[IpAddress, ...]]:
        """What is known of the addresses on a guest's cards, by MAC: as the guest says, or as the host has seen it.

        Nobody vouches for them. May take seconds where the guest answers slowly.
        """
        ...

    def take_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        """Note the state of *disk* of a guest that is up as *tag*, inside its file; the guest goes on.

        One of that name there is ``HypervisorRejected``; a guest that is off, or without that disk, a ``Conflict``.
        """
        ...

    def drop_snapshot(self, uuid: UUID, disk: Path, tag: str) -> None:
        """Give up the snapshot *tag* of *disk* of a guest that is up; else as ``take_snapshot``."""
        ...

    def freeze(self, uuid: UUID) -> Frozen:
        """Have a guest that is up hold its file systems still; off is a ``Conflict``. Takes ten seconds or so at most."""
        ...

    def thaw(self, uuid: UUID) -> None:
        """Let a guest write again; one that may, or is off, is left alone.

        ``Conflict`` where its agent does not answer in time, ``HypervisorRejected`` where it has none, or that refuses.
        """
        ...

    def screenshot(self, uuid: UUID) -> Picture:
        """What a running guest's screen shows; ``HypervisorRejected`` where it has none, or where it is off or not there."""
        ...

    def screen_socket(self, uuid: UUID) -> str:
        """The socket on this host where a running guest's screen is served by VNC; "" where it has none, or does not run."""
        ...

    def ask_agent(self, uuid: UUID, command: str, seconds: int) -> str:
        """What the agent in a running guest answers, as JSON, to *command*; it is waited for at most *seconds*.

        Nobody vouches for what it says. ``HypervisorRejected`` where none answers, or where it refuses.
        """
        ...

    def usage(self) -> tuple[GuestUsage, ...]:
        """What every guest that runs, whoever made it, uses of this host; by one question, however many they are."""
        ...

    def subscribe(self, on_domain: Callable[[UUID], None], on_reconnect: Callable[[], None]) -> None:
        """Call *on_domain* for every lifecycle change of any domain, and every device that one has let go of.

        *on_reconnect* is called when a lost connection is back.

        Both run in threads of the hypervisor's and must only take note.
        """
        ...

    def ensure_filter(self, name: str) -> bool:
        """Whether the network filter *name* (anti-spoofing) exists on this hypervisor; our own, "etcd-compute", is made."""
        ...

    def filtered_ports(self) -> dict[str, str]:
        """The host's interfaces to guests that run with a network filter, each with the filter's name."""
        ...

    def settle_filters(self, names: Collection[str]) -> None:
        """Return when the filters *names* are in force for every guest whose start has begun before."""
        ...

    def rebuild_filters(self, names: Collection[str]) -> None:
        """Have those of *names* that are ours written into the kernel again, for every guest that runs."""
        ...

    def drop_filter(self) -> None:
        """Take our own network filter away, unless a guest still uses it."""
        ...

    def close(self) -> None: ...
