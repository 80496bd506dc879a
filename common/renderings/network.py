"""How a guest is to set up its cards: in OpenStack's words (``network_data.json``) and in netplan's, which NoCloud takes. Pure.

A card with fixed addresses of its own is told them; one with a reservation at the host's DHCP server is told to ask there, and
so is one on a foreign network, of which nothing is known here. 802.1Q tags are the host's business and are not told.

The default route of each family is said in the one way that every reader follows. cloud-init has Debian's ifupdown make other
routes by ``route``, which is not installed everywhere, and before 23.1 takes ``::/0`` for ``::/64``; a second default route,
said in that one way, would have ifupdown fail for its card.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence, Set
from typing import Any

from common.model import Address, IpAddress
from common.nics import AddressSource

_ANYWHERE = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - where a default route leads
_METRIC_STEP = 100  # the first card's default route wins, as on EC2


def ip_addresses(card: Address) -> tuple[IpAddress, ...]:
    """All that is known of the card's addresses, the one to show first."""
    first = (IpAddress(card.address, card.prefix_length, card.gateway),) if card.address else ()
    return first + card.more


def of_version(addresses: Sequence[IpAddress], version: int) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """Those of one family, 4 or 6, with their networks."""
    found = [ipaddress.ip_interface(f"{one.address}/{one.prefix_length}") for one in addresses]
    return [one for one in found if one.version == version]


def network_data(cards: Sequence[Address]) -> dict[str, Any]:
    """OpenStack's ``network_data.json``, in the form that Nova gives it (nova/virt/netutils.py)."""
    links: list[dict[str, Any]] = []
    networks: list[dict[str, Any]] = []
    services: list[dict[str, str]] = []
    leading_out = _leading_out(cards)
    for number, card in enumerate(cards):
        link = f"nic{number}"
        links.append({"id": link, "type": "phy", "ethernet_mac_address": card.mac, "vif_id": link, **_mtu(card)})
        for network in _networks(card, leading_out):
            common = {"id": f"network{len(networks)}", "link": link, "network_id": card.network or link}
            networks.append({**common, **network})
        services += [service for service in _services(_name_servers(card)) if service not in services]
    return {"links": links, "networks": networks, "services": services}


def network_config(cards: Sequence[Address]) -> dict[str, Any] | None:
    """Netplan's form, version 2; None where one card asks for an IPv4 address by DHCP and there is nothing else to say.

    That is what cloud-init does unasked, and what an image that was set up otherwise may do better. With several cards it would
    leave all but the first alone.
    """
    leading_out = _leading_out(cards)
    metrics = [(n + 1) * _METRIC_STEP if len(cards) > 1 else 0 for n in range(len(cards))]
    ethernets = {f"nic{n}": _ethernet(card, metrics[n], leading_out) for n, card in enumerate(cards)}
    if len(cards) <= 1 and all(set(found) <= {"match", "dhcp4"} for found in ethernets.values()):
        return None
    return {"version": 2, "ethernets": ethernets}


def _is_told(card: Address) -> bool:
    """Whether the guest has to be told the card's addresses, as nobody on its network will."""
    return card.source is AddressSource.STATIC and bool(card.all_addresses)


def _leading_out(cards: Sequence[Address]) -> frozenset[IpAddress]:
    """The addresses with the gateways to use, at most one of each family: the first that are told.

    A card before it that asks for an IPv4 address is given a gateway with it.
    """
    found: dict[int, IpAddress | None] = {}
    for card in cards:
        if not _is_told(card):
            found.setdefault(4, None)
            continue
        for one in ip_addresses(card):
            if one.gateway:
                found.setdefault(ipaddress.ip_address(one.address).version, one)
    return frozenset(one for one in found.values() if one)


def _name_servers(card: Address) -> tuple[str, ...]:
    return card.name_servers if _is_told(card) else ()


def _mtu(card: Address) -> dict[str, int]:
    return {"mtu": card.mtu} if card.mtu else {}


def _services(name_servers: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "dns", "address": server} for server in name_servers]


def _networks(card: Address, leading_out: Set[IpAddress]) -> list[dict[str, Any]]:
    if _is_told(card):
        return [_told(card, one, leads_out=one in leading_out) for one in ip_addresses(card)]
    return [{"type": "ipv4_dhcp"}]  # in IPv6 it gives itself addresses, of the prefixes that its network announces


def _told(card: Address, one: IpAddress, *, leads_out: bool) -> dict[str, Any]:
    """One fixed address. Its name servers are repeated under ``services`` at the top, where older readers look for them.

    A default route has no metric here: a second one would win in some guests and break others, and is not told. The one that
    is told is told twice: ``gateway`` is what cloud-init needs for ifupdown, ``routes`` what others look for.
    """
    interface = ipaddress.ip_interface(f"{one.address}/{one.prefix_length}")
    anywhere = _ANYWHERE[interface.version]
    servers = [server for server in card.name_servers if ipaddress.ip_address(server).version == interface.version]
    return {
        "type": f"ipv{interface.version}",
        "ip_address": str(interface.ip),
        "netmask": str(interface.netmask),
        "routes": [{"network": anywhere, "netmask": anywhere, "gateway": one.gateway}] if leads_out else [],
        "services": _services(servers),
        **({"gateway": one.gateway} if leads_out else {}),
    }


def _ethernet(card: Address, metric: int, leading_out: Set[IpAddress]) -> dict[str, Any]:
    """One card, known by its MAC: names are the guest's business. *metric* of its default routes; 0 for the guest's own."""
    found: dict[str, Any] = {"match": {"macaddress": card.mac}, **_mtu(card)}
    if not _is_told(card):
        overrides = {"dhcp4-overrides": {"route-metric": metric}} if metric else {}
        return {**found, "dhcp4": True, **overrides}
    addresses = ip_addresses(card)
    found["addresses"] = [f"{one.address}/{one.prefix_length}" for one in addresses]
    # netplan calls these deprecated and follows them.
    found |= {f"gateway{ipaddress.ip_address(one.address).version}": one.gateway for one in addresses if one in leading_out}
    others = [one for one in addresses if one.gateway and one not in leading_out and ":" not in one.gateway]
    if others:
        found["routes"] = [_default_route(one, metric) for one in others]
    if any(":" in one.gateway for one in addresses):
        found["accept-ra"] = False  # else a router that announces itself wins over the one that was asked for
    if card.name_servers:
        found["nameservers"] = {"addresses": list(card.name_servers)}
    return found


def _default_route(one: IpAddress, metric: int) -> dict[str, Any]:
    """A further one, of IPv4. Not as ``to: default``, which cloud-init refuses before 23.1."""
    return {"to": f"{_ANYWHERE[4]}/0", "via": one.gateway, **({"metric": metric} if metric else {})}
