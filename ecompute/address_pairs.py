"""Which MAC belongs to which address, which DHCP entries are ours, and which address to reserve next. Pure.

The MAC is computed from the address, so that an entry in libvirt's network tells by itself whether we made it, and a state
directory that was lost takes no knowledge with it. Called by ``address_pool``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator

from ecompute.hypervisor import DhcpHost, Lease, Network


def pair_of(address: str) -> DhcpHost:
    """The pair of *address* (IPv4) and its MAC: "52:54:" and the address's four bytes in hex."""
    return DhcpHost(":".join(f"{byte:02x}" for byte in (0x52, 0x54, *ipaddress.IPv4Address(address).packed)), address)


def is_ours(entry: DhcpHost) -> bool:
    """Whether *entry* is a pair that we made."""
    try:
        return entry == pair_of(entry.address)
    except ValueError:
        return False


def is_held_by_itself(pair: DhcpHost, leases: Collection[Lease]) -> bool:
    """Whether a guest with the MAC of *pair* holds a lease for its address now."""
    return any(lease.mac == pair.mac and lease.address == pair.address for lease in leases)


def is_held_by_another(pair: DhcpHost, leases: Collection[Lease]) -> bool:
    """Whether another MAC holds a lease for the address of *pair*: dnsmasq would then give *pair* some other address."""
    return any(lease.mac != pair.mac and lease.address == pair.address for lease in leases)


def candidates(network: Network, leases: Collection[Lease]) -> Iterator[DhcpHost]:
    """Pairs that may be reserved, from the top of the DHCP range down: dnsmasq hands out from anywhere, people from below."""
    addresses = {network.gateway} | {entry.address for entry in network.dhcp_hosts}
    macs = {entry.mac for entry in network.dhcp_hosts}
    held = {lease.address: lease.mac for lease in leases}
    if not network.dhcp_start:
        return
    lowest, highest = (int(ipaddress.IPv4Address(end)) for end in (network.dhcp_start, network.dhcp_end))
    for number in range(highest, lowest - 1, -1):
        address = str(ipaddress.IPv4Address(number))
        if address in addresses:
            continue
        pair = pair_of(address)
        if pair.mac not in macs and held.get(address, pair.mac) == pair.mac:
            yield pair
