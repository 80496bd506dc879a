"""Which addresses of a subnet are for guests, how many of them are free, and which one to take. Pure; the dice come in.

Every client chooses by itself, and etcd tells who was first: so the choice is random, for clients that ask at one moment seldom
to choose the same. A range of IPv6 has more addresses than can be gone through, and is not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from common.network_records import Subnet

RANDOM_TRIES = 32  # before it counts as nearly full
LISTED_AT_MOST = 1 << 16  # of a nearly full range: a few milliseconds


@dataclass(frozen=True)
class Span:
    """The addresses from *first* to *last* as numbers, but for the *reserved* ones."""

    version: int
    first: int
    last: int
    reserved: frozenset[int]

    @property
    def size(self) -> int:
        """How many addresses guests can have in all."""
        return self.last - self.first + 1 - len(self.reserved)

    def has(self, number: int) -> bool:
        return self.first <= number <= self.last and number not in self.reserved

    def text(self, number: int) -> str:
        return str(ipaddress.IPv4Address(number) if self.version == 4 else ipaddress.IPv6Address(number))


def span_of(subnet: Subnet) -> Span:
    """The range of *subnet*, without what nobody on it can have."""
    first, last = int(ipaddress.ip_address(subnet.first)), int(ipaddress.ip_address(subnet.last))
    reserved = {number for number in _reserved(subnet) if first <= number <= last}
    return Span(ipaddress.ip_network(subnet.cidr).version, first, last, frozenset(reserved))


def is_usable(subnet: Subnet, address: str) -> bool:
    """Whether a guest could have *address*: it is of *subnet*, in its range or not, and nobody else's by nature."""
    number = ipaddress.ip_address(address)
    return number in ipaddress.ip_network(subnet.cidr) and int(number) not in _reserved(subnet)


def _reserved(subnet: Subnet) -> set[int]:
    """The gateway, the network's own address (of IPv6: any router's), and the broadcast address."""
    network = ipaddress.ip_network(subnet.cidr)
    own = {int(network.network_address)}
    if network.version == 4:
        own.add(int(network.broadcast_address))
    if subnet.gateway:
        own.add(int(ipaddress.ip_address(subnet.gateway)))
    return own


def used_of(subnet: Subnet, taken: Iterable[str]) -> int:
    """How many of the addresses *taken* are of the range of *subnet*; what is no address, and somebody wrote, is not."""
    span = span_of(subnet)
    kind = ipaddress.IPv4Address if span.version == 4 else ipaddress.IPv6Address
    used = 0
    for address in taken:
        with contextlib.suppress(ValueError):
            used += span.has(int(kind(address)))
    return used


def free_address(subnet: Subnet, taken: AbstractSet[str], dice: random.Random) -> str | None:
    """A free address of the range of *subnet*, any of them; None where all are *taken*."""
    span = span_of(subnet)
    width = span.last - span.first + 1
    for _ in range(RANDOM_TRIES):
        number = span.first + dice.randrange(width)
        if number not in span.reserved and (address := span.text(number)) not in taken:
            return address
    if width <= LISTED_AT_MOST:
        free = [n for n in range(span.first, span.last + 1) if n not in span.reserved and span.text(n) not in taken]
        return span.text(dice.choice(free)) if free else None
    # Each step that finds none has used up one of those that are taken or reserved.
    start = dice.randrange(width)
    for step in range(min(width, len(taken) + len(span.reserved) + 1)):
        number = span.first + (start + step) % width
        if number not in span.reserved and (address := span.text(number)) not in taken:
            return address
    return None
