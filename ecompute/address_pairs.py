"""Which MAC belongs to which address, which DHCP entries are ours, and which address to reserve next. Pure.

The MAC is computed from the address, so that an entry in libvirt's network tells by itself whether we made it, and a state
directory that was lost takes no knowledge with it. Called by ``address_pool``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator

from common.errors import NoAddress
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


def is_in_range(address: str, network: Network) -> bool:
    """Whether *address* is of the range that the network's DHCP server gives."""
    if not network.dhcp_start:
        return False
    lowest, wanted, highest = (ipaddress.IPv4Address(end) for end in (network.dhcp_start, address, network.dhcp_end))
    return lowest <= wanted <= highest


def refuse_if_not_to_be_had(pair: DhcpHost, network: Network, leases: Collection[Lease]) -> None:
    """Whether a guest may ask for *pair*, of which our other guests are not.

    Raises:
        NoAddress: it is not of the network's subnet, or somebody else has it.
    """
    subnet = ipaddress.IPv4Network(f"{network.gateway}/{network.prefix_length}", strict=False)
    address = ipaddress.IPv4Address(pair.address)
    special = (subnet.network_address, subnet.broadcast_address, ipaddress.IPv4Address(network.gateway))
    if address not in subnet or address in special:
        raise NoAddress(
            f"network {network.name} of this host has {subnet}, its own address is {network.gateway}: {pair.address} is none "
            "that a guest could have; name another, or none"
        )
    for entry in network.dhcp_hosts:
        if entry != pair and (entry.address == pair.address or entry.mac == pair.mac):
            raise NoAddress(
                f"network {network.name} of this host keeps {entry.address} for {entry.mac or 'somebody'}: name another "
                "address, or none"
            )
    if is_held_by_another(pair, leases):
        raise NoAddress(f"network {network.name} of this host has leased {pair.address} to somebody: name another, or none")


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
