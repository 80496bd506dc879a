"""A guest's cards as files of its own system's network configuration. Pure: systemd-networkd, NetworkManager and ifupdown.

A card is known by its MAC, since which name a system gives it cannot be told from outside.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from common.nics import Address, AddressSource

PREFIX = "etcd-compute"


class Manager(enum.StrEnum):
    """What configures the network of a guest's system."""

    NETWORK_MANAGER = "NetworkManager"
    NETWORKD = "systemd-networkd"
    IFUPDOWN = "ifupdown"


def card_data(card: Address) -> dict[str, Any]:
    """What of *card* goes into a job; its addresses only where nobody on the network tells them."""
    addresses, gateways = [], []
    if card.source is AddressSource.STATIC:
        ours = [(card.address, card.prefix_length, card.gateway), *((m.address, m.prefix_length, m.gateway) for m in card.more)]
        addresses = [f"{address}/{length}" for address, length, _ in ours]
        gateways = [gateway for _, _, gateway in ours if gateway]
    return {
        "mac": card.mac, "addresses": addresses, "gateways": gateways, "name_servers": list(card.name_servers), "mtu": card.mtu,
    }  # fmt: skip


def files_for(manager: Manager, cards: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """Text and mode of each file, by its path, that makes the cards what they are to be."""
    if manager is Manager.NETWORK_MANAGER:
        folder = "/etc/NetworkManager/system-connections"
        return {f"{folder}/{PREFIX}-{n}.nmconnection": (_keyfile(n, card), 0o600) for n, card in enumerate(cards)}
    if manager is Manager.NETWORKD:
        return {f"/etc/systemd/network/05-{PREFIX}-{n}.network": (_network(card), 0o644) for n, card in enumerate(cards)}
    links = {f"/etc/systemd/network/05-{PREFIX}-{n}.link": (_link(n, card), 0o644) for n, card in enumerate(cards)}
    stanzas = "".join(_stanza(n, card) for n, card in enumerate(cards))
    files = {**links, "/etc/network/interfaces": (f"auto lo\niface lo inet loopback\n{stanzas}", 0o644)}
    servers = list(dict.fromkeys(server for card in cards for server in card["name_servers"]))
    if servers:
        files["/etc/resolv.conf"] = ("".join(f"nameserver {server}\n" for server in servers), 0o644)
    return files


def _versions(card: Mapping[str, Any]) -> dict[int, list[str]]:
    """Its addresses by their family."""
    return {v: [one for one in card["addresses"] if ipaddress.ip_interface(one).version == v] for v in (4, 6)}


def _gateway(card: Mapping[str, Any], version: int) -> str:
    return next((one for one in card["gateways"] if ipaddress.ip_address(one).version == version), "")


def _network(card: Mapping[str, Any]) -> str:
    lines = ["[Match]", f"MACAddress={card['mac']}"]
    lines += ["", "[Link]", f"MTUBytes={card['mtu']}"] if card["mtu"] else []
    lines += ["", "[Network]", f"DHCP={'no' if card['addresses'] else 'yes'}"]
    lines += [f"Address={one}" for one in card["addresses"]]
    lines += [f"Gateway={one}" for one in card["gateways"]] + [f"DNS={one}" for one in card["name_servers"]]
    return "\n".join(lines) + "\n"


def _keyfile(number: int, card: Mapping[str, Any]) -> str:
    lines = ["[connection]", f"id={PREFIX}-{number}", "type=ethernet", "", "[ethernet]", f"mac-address={card['mac']}"]
    lines += [f"mtu={card['mtu']}"] if card["mtu"] else []
    for version, own in _versions(card).items():
        lines += ["", f"[ipv{version}]", f"method={'manual' if own else 'auto'}"]
        gateway = _gateway(card, version)
        lines += [f"address{n}={one}{f',{gateway}' if gateway and n == 1 else ''}" for n, one in enumerate(own, 1)]
        servers = [one for one in card["name_servers"] if ipaddress.ip_address(one).version == version]
        lines += [f"dns={';'.join(servers)};"] if servers else []
    return "\n".join(lines) + "\n"


def _link(number: int, card: Mapping[str, Any]) -> str:
    return f"[Match]\nMACAddress={card['mac']}\n\n[Link]\nName=nic{number}\n"


def _stanza(number: int, card: Mapping[str, Any]) -> str:
    lines = ["", f"auto nic{number}"]
    if not card["addresses"]:
        lines.append(f"iface nic{number} inet dhcp")
    for version, own in _versions(card).items():
        gateway = _gateway(card, version)
        for place, one in enumerate(own):
            lines += [f"iface nic{number} inet{'6' if version == 6 else ''} static", f"    address {one}"]
            lines += [f"    gateway {gateway}"] if gateway and place == 0 else []
            lines += [f"    mtu {card['mtu']}"] if card["mtu"] and place == 0 else []
    return "\n".join(lines) + "\n"
