"""Sees to it that libvirt's own rules are in the kernel: each guest's network filter, and the NAT of the guests' network.

libvirt writes them when a guest or a network starts and does not look again: after an ``nft flush ruleset``, an
``ebtables -t nat -F`` or another firewall's reload a guest speaks as whom it likes, and nobody would say so. Here the kernel is
asked for its generation (no process) and, when that is another and guests run with filters, once for its rules. Filters of ours
that are missing libvirt makes again; what it does not is told, with the cure. Called by the agent; thread-safe.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from common.errors import EcomputeError
from ecompute.hypervisor import Hypervisor, Network
from ecompute.nft import PacketFilter

logger = logging.getLogger(__name__)
_TABLE, _CHAIN = re.compile(r"table (\S+) \S+ \{"), re.compile(r"\tchain (\S+) \{")
_JUMP = re.compile(r" jump libvirt-([IO])-(\S+)")
_NOTHING = re.compile(
    r"(?:counter )?(?:accept|return|continue)"
)  # what ebtables ends a chain with, and leaves in an emptied one
SETTLE_SECONDS = 1.0  # libvirt fills a new port within much less
_OTHER_WAY = "libvirt_nwfilter"  # the tables of a libvirt that makes its filters without ebtables, which nobody here can read


@dataclass(frozen=True)
class Lost:
    """What of libvirt's is not in the kernel.

    Args:
        filters: the host's interfaces to guests whose network filter is missing.
        nat: the network whose NAT is, "" for none.
    """

    filters: frozenset[str] = frozenset()
    nat: str = ""


class FilterGuard:
    """Looks after libvirt's rules on one host.

    Args:
        network: the libvirt network whose NAT is looked for.
    """

    def __init__(self, hypervisor: Hypervisor, kernel: PacketFilter, network: str) -> None:
        self._hypervisor, self._kernel, self._network = hypervisor, kernel, network
        self._looking = threading.Lock()
        self._seen: int | None = None  # the kernel's generation at the last look
        self._lost = Lost()

    @property
    def lost(self) -> Lost:
        """What the last look found missing, and could not have made again."""
        return self._lost

    def ask(self) -> None:
        """Have the next ``keep`` look, though the kernel has changed nothing: libvirt was away."""
        self._seen = None

    def keep(self) -> None:
        """Look, where anything has changed since. Never raises for what it finds."""
        with self._looking:
            generation = self._kernel.generation()
            if generation == self._seen and self._lost == Lost():
                return
            self._seen = generation  # before the look: what changes meanwhile makes for another
            try:
                self._lost = self._look()
            except EcomputeError as error:
                self._seen = None
                logger.debug("libvirt's rules could not be looked at: %s", error)

    def _look(self) -> Lost:
        ports = self._hypervisor.filtered_ports()
        if not ports:
            return Lost()
        rules = self._kernel.ruleset()
        network = self._hypervisor.network(self._network)
        nat = self._network if rules is not None and network and lacks_nat(rules, network) else ""
        if not (missing := _missing(ports, rules)):
            return Lost(nat=nat)
        # A guest that starts at this moment has a port before it has a chain: when this returns it has both.
        self._hypervisor.settle_filters({ports[port] for port in missing})
        missing &= _missing(self._hypervisor.filtered_ports(), self._kernel.ruleset())
        if missing:
            missing = self._made_again(missing, ports)
        return Lost(missing, nat)

    def _made_again(self, missing: frozenset[str], ports: dict[str, str]) -> frozenset[str]:
        """Those of *missing* that still are when libvirt has made again what it could."""
        self._hypervisor.rebuild_filters({ports[port] for port in missing})
        still = missing & _missing(self._hypervisor.filtered_ports(), self._kernel.ruleset())
        if back := missing - still:
            logger.warning(
                "network filters against spoofing were gone from the packet filter and are there again: %s guest cards",
                len(back),
            )
        if still:
            logger.error("network filters against spoofing are gone from the packet filter: %s", ", ".join(sorted(still)))
        return still


def what_is_lost(hypervisor: Hypervisor, kernel: PacketFilter, network: str) -> Lost:
    """What is missing now, for who only looks; a guest that is just starting is given a moment to get its filter."""
    found = []
    for pause in (0.0, SETTLE_SECONDS):
        time.sleep(pause)
        ports = hypervisor.filtered_ports()
        rules = kernel.ruleset() if ports else None
        known = hypervisor.network(network) if rules is not None else None
        found.append(Lost(_missing(ports, rules), network if rules is not None and known and lacks_nat(rules, known) else ""))
        if not found[-1].filters:
            break
    return Lost(frozenset.intersection(*(lost.filters for lost in found)), found[-1].nat)


def _missing(ports: dict[str, str], rules: str | None) -> frozenset[str]:
    if rules is None or _OTHER_WAY in rules:
        return frozenset()
    return frozenset(ports.keys() - guarded(rules))


def guarded(rules: str) -> set[str]:
    """The interfaces that a network filter of libvirt's is in force for.

    Args:
        rules: as ``nft list ruleset`` shows them.
    """
    family, chain = "", ""
    filled: set[str] = set()
    jumps: dict[str, set[str]] = defaultdict(set)  # by interface, the chains that its frames pass
    for line in rules.splitlines():
        if table := _TABLE.match(line):
            family = table[1]
        elif family != "bridge":
            continue
        elif begun := _CHAIN.match(line):
            chain = begun[1]
        elif line.startswith("\t\t"):
            if not _NOTHING.fullmatch(line.strip()):
                filled.add(chain)
            if jump := _JUMP.search(line):
                jumps[jump[2]].add(f"libvirt-{jump[1]}-{jump[2]}")
    return {interface for interface, chains in jumps.items() if chains & filled}


def lacks_nat(rules: str, network: Network) -> bool:
    """Whether *network* is to have NAT and nothing in *rules* gives it."""
    if not (network.is_active and network.is_nat):
        return False
    subnet = str(ipaddress.IPv4Network(f"{network.gateway}/{network.prefix_length}", strict=False))
    return not any(f" {subnet} " in line and "masquerade" in line.lower() for line in rules.splitlines())
