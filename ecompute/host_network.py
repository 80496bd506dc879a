"""Looks at the host's own network at the start and as long as something is wrong: what is missing is said once, with its cure.

Facts come from ``/proc``, ``/sys``, the files of firewalld and ufw, and libvirt: no process is started. The one thing that is
done is to have libvirt start its network; interfaces, addresses and settings of the host are left alone. Called by the agent.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from common.config import ComputeConfig
from common.errors import HypervisorRejected, Transient
from common.logs import fields
from ecompute import nft
from ecompute.filter_guard import Lost
from ecompute.host_network_checks import HostNetworkFacts, HostTrouble, MetadataFacts, judged
from ecompute.hypervisor import Hypervisor, Network
from ecompute.metadata_service import service_problem
from ecompute.taken_ports import listeners

logger = logging.getLogger(__name__)

SIOCGIFCONF = 0x8912  # linux/sockios.h
_IFREQ = struct.Struct("16s2xH4s16x")  # struct ifreq with a struct sockaddr_in, of 64 bit machines
_MOST_ADDRESSES = 4096


class HostNetwork:
    """What is wrong with the network of this host.

    Args:
        has_spoofing_filter: as in ``HostNetworkFacts``.
        is_simulated: under libvirt's mock no interface is real.
        lost: what of libvirt's rules is missing.
        report: told what stops guests from being built, "" for nothing.
        show: told of how many troubles there are of each kind.
        root: the host's file system, for tests.
        may_start: libvirt's network is started where it is down; else it is only looked at.
    """

    def __init__(
        self, config: ComputeConfig, hypervisor: Hypervisor, *, has_spoofing_filter: bool | None, is_simulated: bool,
        report: Callable[[str], None] = lambda _: None, show: Callable[[Mapping[str, int]], None] = lambda _: None,
        root: Path = Path("/"), lost: Callable[[], Lost] = Lost, may_start: bool = True,
    ) -> None:  # fmt: skip
        self._config, self._hypervisor, self._root = config, hypervisor, root
        self._has_spoofing_filter, self._is_simulated = has_spoofing_filter, is_simulated
        self._report, self._show, self._lost, self._may_start = report, show, lost, may_start
        self._known: tuple[HostTrouble, ...] = ()
        self._is_asked = True  # to look though all was well
        self._said: frozenset[HostTrouble] = frozenset()

    @property
    def troubles(self) -> tuple[HostTrouble, ...]:
        """What the last look found."""
        return self._known

    def ask(self) -> None:
        """Have the next ``keep`` look, though all was well: libvirt was away."""
        self._is_asked = True

    def keep(self) -> None:
        """Look, unless all was well the last time. Never raises for what it finds."""
        if not self._known and not self._is_asked and self._lost() == Lost():
            return
        self._is_asked = False  # before the look: who asks meanwhile has seen something newer
        try:
            found = judged(self.gather())
        except (Transient, HypervisorRejected, OSError) as error:
            self._is_asked = True
            logger.debug("the host's network could not be looked at: %s", error)
            return
        self._say(found)
        self._known = found

    def _say(self, found: tuple[HostTrouble, ...]) -> None:
        """Each trouble once; what stops guests is said where outages are, and in the host record."""
        for trouble in found:
            if trouble not in self._said and not trouble.stops_guests:
                logger.warning("%s", trouble, extra=fields(trouble=trouble.kind))
        kinds = {trouble.kind for trouble in found}
        for gone in sorted({trouble.kind for trouble in self._said} - kinds):
            logger.info("this trouble of the host is over", extra=fields(trouble=gone))
        self._said = frozenset(found)
        self._report("; ".join(str(trouble) for trouble in found if trouble.stops_guests))
        self._show(dict.fromkeys(kinds, 1))

    def gather(self) -> HostNetworkFacts:
        """What there is now; libvirt's network is started where it is down and may be started.

        Raises:
            HypervisorUnavailable, HypervisorRejected: libvirt does not say.
        """
        name = self._config.network.name
        network, start_error = self._network(name)
        is_there, is_active = network is not None, bool(network and network.is_active)
        if self._is_simulated:
            return HostNetworkFacts(name, is_there, is_active, start_error=start_error)
        addresses, lost = self._addresses(), self._lost()
        metadata, second = self._config.metadata, self._config.network.bridge or ""
        network_bridge = network.bridge if network else ""
        others = {metadata.bridge, second} - {network_bridge, ""}
        return HostNetworkFacts(
            network=name,
            network_is_there=is_there,
            network_is_active=is_active,
            network_bridge=network_bridge,
            network_is_autostarted=self._is_autostarted(name),
            start_error=start_error,
            second_bridge=second,
            bridges=frozenset(path.parent.name for path in self._root.glob("sys/class/net/*/bridge")),
            addressed=frozenset(interface for interface, address in addresses if address != metadata.address),
            metadata=self._metadata(addresses) if metadata.mode == "managed" else None,
            forwards_packets=self._switch("net/ipv4/ip_forward"),
            reverse_path=self._reverse_path({metadata.bridge} - {""}) if metadata.mode == "managed" else {},
            firewalld_lets_metadata=self._firewalld() if metadata.bridge == network_bridge else None,
            ufw_lets_metadata=self._ufw(),
            has_nft=nft.is_there(),
            has_spoofing_filter=self._has_spoofing_filter,
            unfiltered=lost.filters,
            network_without_nat=lost.nat,
            filters_bridged_packets=bool(others and self._switch("net/bridge/bridge-nf-call-iptables")),
        )

    def interfaces_with(self, address: str) -> frozenset[str]:
        """The interfaces of this host that have *address* now."""
        return frozenset(interface for interface, found in self._addresses() if found == address)

    # -- libvirt -----------------------------------------------------------------------------------------------------------

    def _network(self, name: str) -> tuple[Network | None, str]:
        """The network, started where it was down, and why it could not be."""
        network = self._hypervisor.network(name)
        if network is None or network.is_active or not self._may_start:
            return network, ""
        try:
            self._hypervisor.start_network(name)
        except HypervisorRejected as error:
            return network, str(error)
        logger.info("libvirt's network was down and is started", extra=fields(network=name))
        return self._hypervisor.network(name), ""

    def _is_autostarted(self, name: str) -> bool | None:
        folder = self._root / "etc/libvirt/qemu/networks"
        try:
            if not (folder / f"{name}.xml").exists():
                return None  # kept elsewhere
            return (folder / "autostart" / f"{name}.xml").is_symlink()
        except OSError:
            return None

    # -- the kernel --------------------------------------------------------------------------------------------------------

    def _switch(self, name: str) -> bool | None:
        text = self._text(f"proc/sys/{name}").strip()
        return None if not text else text != "0"

    def _reverse_path(self, interfaces: set[str]) -> dict[str, int]:
        """The stricter of an interface's own setting and that for all counts; the kernel takes the greater number."""
        settings = {name: self._text(f"proc/sys/net/ipv4/conf/{name}/rp_filter").strip() for name in interfaces | {"all"}}
        general = int(settings.pop("all") or 0)
        return {name: max(general, int(text)) for name, text in settings.items() if text}

    def _addresses(self) -> list[tuple[str, str]]:
        """Each IPv4 address of this host with its interface."""
        memory = array.array("B", bytes(_MOST_ADDRESSES * _IFREQ.size))
        where, room = memory.buffer_info()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, SIOCGIFCONF, struct.pack("iL", room, where))
        used = struct.unpack("iL", answer)[0]
        found = (_IFREQ.unpack_from(memory, offset) for offset in range(0, used, _IFREQ.size))
        return [
            (name.partition(b"\0")[0].decode().partition(":")[0], socket.inet_ntoa(packed)) for name, _port, packed in found
        ]

    # -- metadata ----------------------------------------------------------------------------------------------------------

    def _metadata(self, addresses: list[tuple[str, str]]) -> MetadataFacts:
        wanted = self._config.metadata
        at = frozenset(str(address) for address, port in listeners() if port == wanted.port)
        return MetadataFacts(
            wanted.address,
            wanted.port,
            wanted.bridge,
            interfaces=frozenset(interface for interface, address in addresses if address == wanted.address),
            route=self._route_to(wanted.address),
            listeners=at,
            is_served=wanted.address in at and not service_problem(wanted),
            may_set=os.geteuid() == 0,
        )

    def _route_to(self, address: str) -> str:
        """The interface of a route to this very address, "" where there is none; by /proc/net/route."""
        target = f"{struct.unpack('=I', socket.inet_aton(address))[0]:08X}" if "." in address else ""
        for line in self._text("proc/thread-self/net/route").splitlines()[1:]:
            columns = line.split()
            if len(columns) > 7 and columns[1] == target and columns[7] == "FFFFFFFF":
                return columns[0]
        return ""

    # -- firewalls of the host ---------------------------------------------------------------------------------------------

    def _firewalld(self) -> bool | None:
        """Whether a firewalld that runs lets guests of libvirt's networks at the metadata port; None where none runs."""
        if not any(self._text(f"{path.relative_to(self._root)}/comm").strip() == "firewalld" for path in self._processes()):
            return None
        zone = self._text("etc/firewalld/zones/libvirt.xml") or self._text("usr/lib/firewalld/zones/libvirt.xml")
        port = self._config.metadata.port
        is_open = re.search(rf'<port [^>]*port="{port}"', zone) or (port == 80 and '<service name="http"/>' in zone)
        return bool(is_open)

    def _processes(self) -> list[Path]:
        return [path for path in (self._root / "proc").glob("[0-9]*") if path.name.isdecimal()]

    def _ufw(self) -> bool | None:
        """Whether an ufw that is on lets guests at the metadata address, by a rule of its operator's; None where it is off."""
        if not re.search(r"^ENABLED=yes", self._text("etc/ufw/ufw.conf"), re.MULTILINE):
            return None
        wanted = self._config.metadata
        rules = re.findall(
            r"^### tuple ### allow (\S+) (\S+) (\S+) \S+ \S+ (\S+)", self._text("etc/ufw/user.rules"), re.MULTILINE
        )
        return any(
            protocol in ("any", "tcp")
            and port in ("any", str(wanted.port))
            and target in (wanted.address, "0.0.0.0/0")
            and direction in ("in", f"in_{wanted.bridge}")
            for protocol, port, target, direction in rules
        )

    def _text(self, path: str) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._root / path).read_text(encoding="utf-8")
        return ""
