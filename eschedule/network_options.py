"""From the options of ``network add`` to a checked ``NetworkRecord``, and what of two networks does not go together. Pure.

``--subnet`` is given once, or once for each family; each ``--gateway`` and each ``--range`` belongs to the subnet of its own
family, in whatever order they stand.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from common.errors import ConfigError
from common.network_records import NetworkRecord, Subnet
from common.text import quoted
from common.validate import parse_network
from eschedule.free_addresses import span_of
from eschedule.net_values import (
    DNS_AT_MOST,
    Ip,
    IpNetwork,
    is_gateway_of,
    parse_bridge,
    parse_ip,
    parse_mtu,
    parse_subnet,
    parse_vlan,
)
from eschedule.nic_options import DEFAULT

T = TypeVar("T")
ANYCAST = 128  # RFC 2526: the highest addresses of a subnet of IPv6 are reserved


def record_from(options: argparse.Namespace, *, created_at: str, created_by: str) -> NetworkRecord:
    """The network that *options* describe.

    Raises:
        ConfigError: something in it is wrong; one line.
    """
    name = parse_network(options.name)
    if name == DEFAULT:
        raise ConfigError(f"network {DEFAULT} is the one that libvirt brings along on each host; choose another name")
    subnets = _by_family((parse_subnet(text, "--subnet") for text in options.subnet or ()), "--subnet")
    if not subnets:
        raise ConfigError("--subnet is missing; give the addresses of the network, as in --subnet 10.0.0.0/24")
    gateways = _by_family((parse_ip(text, "--gateway") for text in options.gateway or ()), "--gateway")
    ranges = _by_family((_range(text) for text in options.range or ()), "--range")
    _check_families(subnets, gateways, "--gateway")
    _check_families(subnets, ranges, "--range")
    servers = tuple(dict.fromkeys(str(parse_ip(text, "--dns")) for text in options.dns or ()))
    if len(servers) > DNS_AT_MOST:
        raise ConfigError(f"--dns is given {len(servers)} times, at most {DNS_AT_MOST} are taken")
    return NetworkRecord(
        name=name,
        bridge=parse_bridge(options.bridge, "--bridge"),
        subnets=tuple(_subnet(subnets[v], gateways.get(v), ranges.get(v)) for v in sorted(subnets)),
        vlan=0 if options.vlan is None else parse_vlan(options.vlan, "--vlan"),
        name_servers=servers,
        mtu=0 if options.mtu is None else parse_mtu(options.mtu, "--mtu"),
        created_at=created_at,
        created_by=created_by,
    )


class _Range(tuple[Ip, Ip]):
    """First and last address, of one family."""

    @property
    def version(self) -> int:
        return self[0].version


def _range(text: str) -> _Range:
    first, dash, last = text.partition("-")
    if not dash:
        raise ConfigError(f"--range {quoted(text)} is no FIRST-LAST; it looks like 10.0.0.50-10.0.0.99")
    ends = parse_ip(first.strip(), "--range"), parse_ip(last.strip(), "--range")
    if ends[0].version != ends[1].version:
        raise ConfigError(f"--range {quoted(text)} begins and ends in different families")
    if int(ends[0]) > int(ends[1]):
        raise ConfigError(f"--range {quoted(text)} ends before it begins; did you mean {ends[1]}-{ends[0]}?")
    return _Range(ends)


def _by_family(values: Iterable[T], what: str) -> dict[int, T]:
    found: dict[int, T] = {}
    for value in values:
        version: int = value.version  # type: ignore[attr-defined]
        if version in found:
            raise ConfigError(f"{what} is given twice for IPv{version}; a network has at most one of each family")
        found[version] = value
    return found


def _check_families(subnets: Mapping[int, IpNetwork], others: Iterable[int], what: str) -> None:
    for version in others:
        if version not in subnets:
            raise ConfigError(f"{what} has an address of IPv{version}, but no --subnet is of that family; add one")


def _subnet(network: IpNetwork, gateway: Ip | None, span: Sequence[Ip] | None) -> Subnet:
    if gateway is not None and not is_gateway_of(gateway, network):
        raise ConfigError(f"--gateway {gateway} is not an address of a machine on --subnet {network}")
    first, last = _ends(network)
    if span is not None:
        _check_range(network, span)
        first, last = span
    subnet = Subnet(str(network), str(first), str(last), str(gateway) if gateway is not None else "")
    if span_of(subnet).size < 1:
        raise ConfigError(f"--range {first}-{last} has room for nobody but the gateway")
    return subnet


def _ends(network: IpNetwork) -> tuple[Ip, Ip]:
    """All of *network*, but for what is reserved at its ends."""
    highest = network.broadcast_address
    if isinstance(network, ipaddress.IPv6Network):
        return network[1], highest - ANYCAST if network.num_addresses > 2 * ANYCAST else highest
    return network[1], highest - 1


def _check_range(network: IpNetwork, span: Sequence[Ip]) -> None:
    for end in span:
        if end not in network:
            raise ConfigError(f"--range {span[0]}-{span[1]} is not on --subnet {network}: {end} is outside")
        if end == network.network_address or (end.version == 4 and end == network.broadcast_address):
            which = "network's own address" if end == network.network_address else "broadcast address"
            raise ConfigError(f"--range {span[0]}-{span[1]} has {end} in it, the {which}; leave it out")


def overlap(record: NetworkRecord, others: Iterable[NetworkRecord]) -> str | None:
    """What of *record* is on the same wire as another network and has addresses in common with it; None where nothing is."""
    for other in others:
        if (other.bridge, other.vlan) != (record.bridge, record.vlan) or other.name == record.name:
            continue
        for mine in record.subnets:
            for theirs in other.subnets:
                if _overlaps(mine.cidr, theirs.cidr):
                    return f"{mine.cidr} overlaps {theirs.cidr} of the network {other.name}, on {wire_of(record)} too"
    return None


def _overlaps(one: str, other: str) -> bool:
    first, second = ipaddress.ip_network(one), ipaddress.ip_network(other)
    return first.version == second.version and first.overlaps(second)


def wire_of(network: NetworkRecord) -> str:
    """Where the cards of *network* are plugged in, for people."""
    return f"{network.bridge} vlan {network.vlan}" if network.vlan else network.bridge
