"""Network cards: what is asked for, and what one has. Plain data and what can be computed from it alone."""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass


class AddressSource(enum.StrEnum):
    """Where a card's address comes from."""

    NONE = ""
    DHCP = "dhcp"  # reserved with a DHCP server of this host's libvirt
    STATIC = "static"  # the guest is told by its metadata
    LEARNED = "learned"  # a foreign server gave it; seen from the guest agent, the neighbour table or a lease


@dataclass(frozen=True)
class IpAddress:
    """An address of either family on a network card."""

    address: str
    prefix_length: int
    gateway: str = ""


@dataclass(frozen=True)
class Nic:
    """One network card as it is asked for: on a libvirt network of the host, or on a bridge of the host's.

    Args:
        network: the libvirt network; with a *bridge* the network of the cluster (``networks/<name>``) it is of, or "".
        bridge: the host's bridge, or "" for a libvirt network.
        vlan: its 802.1Q tag on that bridge, 0 for none.
        mac: "" lets the host choose.
        addresses: fixed ones, at most one of each family; none: what the network's DHCP or pool gives. In a request the prefix
            length may be 0 and the address "", which is for the network to say; in a spec of a pool neither is.
        name_servers: told the guest with fixed addresses.
        mtu: bytes; 0 for the network's own.
    """

    network: str = "default"
    bridge: str = ""
    vlan: int = 0
    mac: str = ""
    addresses: tuple[IpAddress, ...] = ()
    name_servers: tuple[str, ...] = ()
    mtu: int = 0

    @property
    def is_pooled(self) -> bool:
        """Whether its addresses are from the pool of a network of the cluster."""
        return bool(self.bridge and self.network)


@dataclass(frozen=True)
class Address:
    """One network card as it is: its MAC and, where they are known, its addresses. Known before the guest starts."""

    network: str  # as in ``Nic``
    mac: str
    address: str  # "" where it is not known (yet)
    prefix_length: int = 24
    gateway: str = ""
    more: tuple[IpAddress, ...] = ()  # further addresses
    bridge: str = ""  # as in ``Nic``
    vlan: int = 0
    source: AddressSource = AddressSource.DHCP
    name_servers: tuple[str, ...] = ()
    mtu: int = 0

    @property
    def all_addresses(self) -> tuple[str, ...]:
        """All its addresses, without their prefix lengths; the first is the one to show."""
        return (*((self.address,) if self.address else ()), *(one.address for one in self.more))


@dataclass(frozen=True)
class Forward:
    """A port of the host that leads to one of the guest's."""

    host_port: int
    guest_port: int
    protocol: str = "tcp"  # "tcp" | "udp"


def has_dhcp(cards: Iterable[Address]) -> bool:
    """Whether one of *cards* has its address from a DHCP server of its host's, by which the guest comes by its metadata."""
    return any(card.source is AddressSource.DHCP for card in cards)


def computed_mac(*parts: str) -> str:
    """A MAC that depends on *parts* alone, in the range that QEMU's cards have."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, *digest[:4]))


BRIDGE_TRAITS = "CUSTOM_BRIDGE_"


def bridge_trait(bridge: str) -> str:
    """The trait by which Placement knows the hosts that have *bridge*."""
    return BRIDGE_TRAITS + re.sub(r"[^A-Z0-9]", "_", bridge.upper())


def link_local_address(mac: str) -> str:
    """The IPv6 link-local address that a card with *mac* gives itself."""
    return slaac_address("fe80::", mac)


def slaac_address(prefix: str, mac: str) -> str:
    """The IPv6 address that a card with *mac* gives itself in the /64 *prefix* (EUI-64, RFC 4291 appendix A)."""
    first, *rest = (int(part, 16) for part in mac.split(":"))
    octets = [first ^ 0x02, *rest[:2], 0xFF, 0xFE, *rest[2:]]
    number = int(ipaddress.IPv6Address(prefix)) | int.from_bytes(bytes(octets), "big")
    return str(ipaddress.IPv6Address(number))
