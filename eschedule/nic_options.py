"""One ``--nic`` as a ``Nic``: ``default``, or parts as in ``bridge=br0,vlan=42,address=10.0.0.5/24,gateway=10.0.0.1``. Pure.

Whether a network of that name is the cluster's or the hosts' own only etcd can say: ``wiring`` finds out.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from common.errors import ConfigError
from common.nics import IpAddress, Nic
from common.text import nearest, quoted
from common.validate import parse_network
from eschedule.net_values import (
    DNS_AT_MOST,
    Ip,
    is_gateway_of,
    parse_bridge,
    parse_interface,
    parse_ip,
    parse_mac,
    parse_mtu,
    parse_vlan,
)

T = TypeVar("T")
DEFAULT = "default"
_KEYS = ("network", "bridge", "vlan", "address", "gateway", "dns", "mac", "mtu")
_REPEATABLE = {"address": 2, "gateway": 2, "dns": DNS_AT_MOST}
_OF_BRIDGE = ("vlan", "dns")  # a network knows its own
_EXAMPLE = "--nic default, --nic network=lan or --nic bridge=br0,vlan=42,address=10.0.0.5/24"


def parse_nic(text: str, default_network: str) -> Nic:
    """The card that *text* asks for; ``default`` stands for one on *default_network*, where parts may follow.

    Raises:
        ConfigError: it is none; one line.
    """
    where = f"--nic {quoted(text)}"
    first, _, rest = text.partition(",")
    if first == DEFAULT:
        parts = [("network", default_network), *(_parts(rest, where) if "," in text else ())]
        _check_counts(parts, where)
    else:
        parts = _parts(text, where)
    values = {key: [value for k, value in parts if k == key] for key in _KEYS}
    network, bridge = (next(iter(values[key]), "") for key in ("network", "bridge"))
    if bool(network) == bool(bridge):
        which = "both network= and bridge=" if network else "neither network= nor bridge="
        raise ConfigError(f"{where} has {which}; give one of them, as in {_EXAMPLE}")
    if network and (extra := next((key for key in _OF_BRIDGE if values[key]), None)):
        raise ConfigError(f"{where} has {extra}=, which goes with bridge=: a network knows its own")
    addresses = _addresses(values["address"], values["gateway"], where, is_on_bridge=bool(bridge))
    if values["dns"] and not addresses:
        raise ConfigError(f"{where} has dns= without address=: whoever gives the address by DHCP tells the name servers, too")
    return Nic(
        network=parse_network(network) if network else "",
        bridge=parse_bridge(bridge, f"{where}: bridge=") if bridge else "",
        vlan=parse_vlan(values["vlan"][0], f"{where}: vlan=") if values["vlan"] else 0,
        mac=parse_mac(values["mac"][0], f"{where}: mac=") if values["mac"] else "",
        addresses=addresses,
        name_servers=tuple(dict.fromkeys(str(parse_ip(value, f"{where}: dns=")) for value in values["dns"])),
        mtu=parse_mtu(values["mtu"][0], f"{where}: mtu=") if values["mtu"] else 0,
    )


def _parts(text: str, where: str) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{where}: {quoted(part)} is no KEY=VALUE; write it like {_EXAMPLE}")
        if key not in _KEYS:
            near = nearest(key, _KEYS)
            raise ConfigError(
                f"{where}: {quoted(key)} is unknown; {f'did you mean {near}=?' if near else 'known are ' + ', '.join(_KEYS)}"
            )
        if not value:
            raise ConfigError(f"{where}: {key}= is empty; leave it out")
        parts.append((key, value))
    _check_counts(parts, where)
    return parts


def _check_counts(parts: Sequence[tuple[str, str]], where: str) -> None:
    for key, count in Counter(key for key, _ in parts).items():
        if count > (most := _REPEATABLE.get(key, 1)):
            raise ConfigError(f"{where}: {key}= is given {count} times, at most {most} {'is' if most == 1 else 'are'} taken")


def _addresses(addresses: Sequence[str], gateways: Sequence[str], where: str, *, is_on_bridge: bool) -> tuple[IpAddress, ...]:
    """At most one of each family, IPv4 first, each with the gateway of its family."""
    fixed: dict[int, tuple[Ip, int]] = {}
    for text in addresses:
        ip, length = parse_interface(text, f"{where}: address=")
        if not length and is_on_bridge:
            raise ConfigError(
                f"{where}: address={text} needs its prefix length, which a bridge does not know: address={text}/24"
            )
        _add(fixed, ip.version, (ip, length), f"{where}: address=")
    ways: dict[int, Ip] = {}
    for text in gateways:
        gateway = parse_ip(text, f"{where}: gateway=")
        _add(ways, gateway.version, gateway, f"{where}: gateway=")
        _check_gateway(gateway, fixed.get(gateway.version), where, is_on_bridge=is_on_bridge)
    families = sorted(fixed.keys() | ways.keys())
    return tuple(
        IpAddress(
            str(fixed[family][0]) if family in fixed else "", fixed[family][1] if family in fixed else 0,
            str(ways[family]) if family in ways else "",
        )
        for family in families
    )  # fmt: skip


def _add(known: dict[int, T], version: int, value: T, what: str) -> None:
    if version in known:
        raise ConfigError(f"{what} is given twice for IPv{version}; a card has one of each family")
    known[version] = value


def _check_gateway(gateway: Ip, fixed: tuple[Ip, int] | None, where: str, *, is_on_bridge: bool) -> None:
    if fixed is None:
        if is_on_bridge:
            raise ConfigError(f"{where}: gateway={gateway} needs an address= of its family, on whose subnet it is")
        return
    ip, length = fixed
    if gateway == ip:
        raise ConfigError(f"{where}: gateway={gateway} is the card's own address")
    if length and not is_gateway_of(gateway, subnet := ipaddress.ip_network(f"{ip}/{length}", strict=False)):
        raise ConfigError(f"{where}: gateway={gateway} cannot be reached from {ip}: it is not on {subnet}")
