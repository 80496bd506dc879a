"""Cards that need no libvirt network: what one on a bridge of the host gets, and what addresses may be learned. Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from uuid import UUID

from common.errors import InvalidSpec, Permanent
from common.nics import Address, AddressSource, IpAddress, Nic, computed_mac

MAC_TAKEN, ADDRESS_TAKEN = "MacTaken", "AddressTaken"  # reasons of failures that another host may be spared
MOST_LEARNED = 8  # addresses of one card; whatever the guest says


def with_second_card(nics: Sequence[Nic], bridge: str | None) -> tuple[Nic, ...]:
    """*nics*, and a card on the host's *bridge* where the request named no card of its own.

    A request that names none has one card on a libvirt network of which it says nothing else.
    """
    is_unnamed = len(nics) == 1 and nics[0] == Nic(nics[0].network)
    return (*nics, Nic("", bridge=bridge)) if bridge and is_unnamed else tuple(nics)


def bridge_address(nic: Nic, uuid: UUID, index: int, taken: Collection[str]) -> Address:
    """The card number *index* of an instance, on a bridge; its MAC is none of those *taken* on this host.

    Raises:
        Permanent: the MAC that it asks for is.
    """
    first, more = (nic.addresses[0], nic.addresses[1:]) if nic.addresses else (IpAddress("", 0), ())
    return Address(
        nic.network, _mac(nic, uuid, index, taken), first.address, first.prefix_length, first.gateway, more=more,
        bridge=nic.bridge, vlan=nic.vlan, source=AddressSource.STATIC if nic.addresses else AddressSource.NONE,
        name_servers=nic.name_servers, mtu=nic.mtu,
    )  # fmt: skip


def _mac(nic: Nic, uuid: UUID, index: int, taken: Collection[str]) -> str:
    if not nic.mac:
        return own_mac(uuid, index, taken)
    if nic.mac.lower() in taken:
        raise mac_is_taken(nic.mac)
    return nic.mac.lower()


def own_mac(uuid: UUID, index: int, taken: Collection[str]) -> str:
    """The MAC of the card number *index* of an instance where nothing else says which; none of those *taken*."""
    tries = ((str(uuid), str(index), *(str(number) for number in range(1, again))) for again in itertools.count(1))
    return next(mac for parts in tries if (mac := computed_mac(*parts)) not in taken)


def address_is_taken(card: Address, taken: Iterable[str]) -> Permanent:
    wire = (
        f"bridge {card.bridge}" + (f" in VLAN {card.vlan}" if card.vlan else "") if card.bridge else f"network {card.network}"
    )
    which = ", ".join(sorted(taken))
    return Permanent(f"{wire}: another card on this host has {which} there: name another address, or none", ADDRESS_TAKEN)


def given_addresses(card: Address) -> frozenset[str]:
    """Those of the card's addresses that somebody but the guest vouches for, in their one spelling."""
    if card.source is AddressSource.LEARNED:
        return frozenset()
    return frozenset(str(ipaddress.ip_address(address)) for address in card.all_addresses)


def mac_is_taken(mac: str) -> Permanent:
    return Permanent(f"another card on this host has the MAC {mac}: leave it out, or name another", MAC_TAKEN)


def fixed_ipv4(nic: Nic) -> str:
    """The address that a card on a libvirt network asks for, "" for any.

    Raises:
        InvalidSpec: it asks for what no DHCP server of libvirt's gives to a MAC.
    """
    if not nic.addresses:
        return ""
    if len(nic.addresses) > 1 or ":" in nic.addresses[0].address:
        raise InvalidSpec(
            f"a card on the libvirt network {nic.network} can have one fixed address, an IPv4 one; others go on a bridge"
        )
    return nic.addresses[0].address


def is_foreign(address: Address) -> bool:
    """Whether somebody else gives the card its addresses, so that they can only be learned."""
    return bool(address.bridge) and address.source in (AddressSource.NONE, AddressSource.LEARNED)


def with_learned(
    addresses: Iterable[Address], seen: Mapping[str, tuple[IpAddress, ...]], taken: Collection[str]
) -> tuple[Address, ...]:
    """An instance's *addresses* with those that were *seen*, by MAC, on its foreign cards.

    What is not seen now may be out of sight only, so it stays.

    Args:
        taken: addresses of other instances: no guest is believed that it has one.
    """
    return tuple(_learned(address, seen.get(address.mac, ()), taken) for address in addresses)


def _learned(address: Address, seen: Sequence[IpAddress], taken: Collection[str]) -> Address:
    if not is_foreign(address):
        return address
    found = sorted({one for one in seen if one.address not in taken}, key=lambda one: (":" in one.address, one.address))
    return _with(address, tuple(found[:MOST_LEARNED])) if found else without_addresses(address, taken)


def without_addresses(address: Address, taken: Collection[str]) -> Address:
    """*address*, a foreign card, without those of its addresses that turned out to be another's."""
    known = (IpAddress(address.address, address.prefix_length), *address.more) if address.address else ()
    kept = tuple(one for one in known if one.address not in taken)
    return address if kept == known else _with(address, kept)


def _with(address: Address, found: tuple[IpAddress, ...]) -> Address:
    first = found[0] if found else IpAddress("", 0)
    source = AddressSource.LEARNED if found else AddressSource.NONE
    return dataclasses.replace(address, address=first.address, prefix_length=first.prefix_length, more=found[1:], source=source)
