"""The networks that hosts share: ``networks/<name>``, made by an operator, and what of their addresses is free. Pure.

An address is taken by the key ``network-addresses/<network>/<address>``, which is created in the transaction that writes the
spec and deleted in the one that forgets it; its value is the instance's uuid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from common.keys import Keys
from common.model import SCHEMA, Nic, Record


@dataclass(frozen=True)
class Subnet:
    """The addresses of one family on a network, and which of them are for guests.

    Args:
        cidr: "10.0.0.0/24" or "fd00:1::/64".
        first, last: the range for guests, both included.
        gateway: "" where there is none.
    """

    cidr: str
    first: str
    last: str
    gateway: str = ""


@dataclass(frozen=True)
class NetworkRecord(Record):
    """A bridge that every host has under the same name, with a pool of addresses: at most one subnet of each family."""

    name: str
    bridge: str
    subnets: tuple[Subnet, ...]
    vlan: int = 0
    name_servers: tuple[str, ...] = ()
    mtu: int = 0
    created_at: str = ""
    created_by: str = ""
    schema: int = SCHEMA


def address_keys(keys: Keys, nics: Iterable[Nic]) -> tuple[str, ...]:
    """The keys by which an instance with the cards *nics* has its addresses of shared networks."""
    taken = (keys.network_address(nic.network, one.address) for nic in nics if nic.is_pooled for one in nic.addresses)
    return tuple(dict.fromkeys(taken))
