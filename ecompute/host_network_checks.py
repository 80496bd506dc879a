"""What of a host's network stands in the way of its guests, judged over what was found of it. Pure.

``HostNetworkFacts`` is what ``host_network`` gathers, ``judged`` names each trouble with the command that cures it. Nothing
here, and nothing that calls this, changes an interface, an address or a setting of the host's: that is its operator's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# A reload does not make again what a flush has taken: it counts on chains of its own that are gone.
_RESTART = "systemctl restart libvirtd (virtnwfilterd and virtnetworkd where those run), which guests do not notice"


class Trouble(enum.StrEnum):
    """What is wrong, in one word for programs. ``docs/operations.md`` says what to do about each."""

    NETWORK_MISSING = "NetworkMissing"
    NETWORK_DOWN = "NetworkDown"
    NETWORK_NOT_AUTOSTARTED = "NetworkNotAutostarted"
    BRIDGE_MISSING = "BridgeMissing"
    METADATA_BRIDGE_MISSING = "MetadataBridgeMissing"
    METADATA_ADDRESS_ELSEWHERE = "MetadataAddressElsewhere"
    METADATA_ROUTE_ELSEWHERE = "MetadataRouteElsewhere"
    METADATA_PORT_TAKEN = "MetadataPortTaken"
    METADATA_ADDRESS_REFUSED = "MetadataAddressRefused"
    NO_FORWARDING = "NoForwarding"
    STRICT_REVERSE_PATH = "StrictReversePath"
    FIREWALLD = "Firewalld"
    UFW = "Ufw"
    NFT_MISSING = "NftMissing"
    SPOOFING_FILTER_MISSING = "SpoofingFilterMissing"
    SPOOFING_FILTER_GONE = "SpoofingFilterGone"
    NETWORK_RULES_GONE = "NetworkRulesGone"
    BRIDGED_PACKETS_FILTERED = "BridgedPacketsFiltered"


@dataclass(frozen=True)
class HostTrouble:
    """One thing that is wrong.

    Args:
        cure: what an operator does about it, mostly a command.
        stops_guests: no guest can be built with it.
    """

    kind: Trouble
    what: str
    cure: str
    stops_guests: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.cure}"


@dataclass(frozen=True)
class MetadataFacts:
    """Where guests are to find their metadata, and what is there. Only where ecompute sees to it (``metadata.mode: managed``).

    Args:
        interfaces: that have the address.
        route: the interface by which the host itself reaches that very address, "" for none.
        listeners: addresses at whose port of it somebody listens by TCP.
        is_served: an md-server of this host runs.
        may_set: this process may put an address on an interface.
    """

    address: str
    port: int
    bridge: str
    interfaces: frozenset[str] = frozenset()
    route: str = ""
    listeners: frozenset[str] = frozenset()
    is_served: bool = False
    may_set: bool = True


@dataclass(frozen=True)
class HostNetworkFacts:
    """What was found of a host. None, where nothing could be found out.

    Args:
        network: the libvirt network of guests that name none.
        network_bridge: its bridge, "" where it has none.
        start_error: why libvirt could not start it.
        second_bridge: where such guests get a second card, "" for nowhere.
        bridges: that the host has.
        addressed: interfaces with an IPv4 address other than that of metadata.
        reverse_path: how strictly each interface in question wants packets to come the way that answers go: 0, 1 strict, 2.
        firewalld_lets_metadata: of a firewalld that runs; None where none does. ``ufw_lets_metadata`` likewise.
        has_spoofing_filter: None where none is wanted.
        unfiltered: interfaces to guests that run without the filter that libvirt was to give them.
        network_without_nat: the network whose rules libvirt was to write, and that are not there; "" for none.
    """

    network: str
    network_is_there: bool
    network_is_active: bool = False
    network_bridge: str = ""
    network_is_autostarted: bool | None = None
    start_error: str = ""
    second_bridge: str = ""
    bridges: frozenset[str] = frozenset()
    addressed: frozenset[str] = frozenset()
    metadata: MetadataFacts | None = None
    forwards_packets: bool | None = None
    reverse_path: Mapping[str, int] = field(default_factory=dict)
    firewalld_lets_metadata: bool | None = None
    ufw_lets_metadata: bool | None = None
    has_nft: bool = True
    has_spoofing_filter: bool | None = None
    unfiltered: frozenset[str] = frozenset()
    network_without_nat: str = ""
    filters_bridged_packets: bool = False


def judged(facts: HostNetworkFacts) -> tuple[HostTrouble, ...]:
    """Everything that is wrong, what stops guests first."""
    found = [*_network(facts), *_bridges(facts), *_packets(facts), *_firewalls(facts)]
    if facts.metadata is not None:
        found += [*_metadata(facts, facts.metadata)]
    return tuple(sorted(found, key=lambda trouble: not trouble.stops_guests))


def _network(facts: HostNetworkFacts) -> Iterator[HostTrouble]:
    name = facts.network
    if not facts.network_is_there:
        yield HostTrouble(
            Trouble.NETWORK_MISSING, f"libvirt has no network {name}, and guests are on it unless they ask for another",
            f"virsh net-define FILE (Debian's is /usr/share/libvirt/networks/default.xml) and virsh net-autostart {name}, or "
            "name another as network.name in compute.yaml", stops_guests=True,
        )  # fmt: skip
    elif not facts.network_is_active:
        yield HostTrouble(
            Trouble.NETWORK_DOWN,
            f"libvirt's network {name} is down and does not start: {facts.start_error or 'it was stopped'}",
            f"see to that, then virsh net-start {name}", stops_guests=True,
        )  # fmt: skip
    elif facts.network_is_autostarted is False:
        yield HostTrouble(
            Trouble.NETWORK_NOT_AUTOSTARTED,
            f"libvirt does not start the network {name} by itself, so that it is down until ecompute runs",
            f"virsh net-autostart {name}",
        )


def _bridges(facts: HostNetworkFacts) -> Iterator[HostTrouble]:
    if facts.second_bridge and facts.second_bridge not in facts.bridges:
        yield HostTrouble(
            Trouble.BRIDGE_MISSING,
            f"there is no bridge {facts.second_bridge}, on which guests get their second card (network.bridge)",
            f"make it (in /etc/network/interfaces: iface {facts.second_bridge} inet manual, bridge_ports …), or take the key "
            "out of compute.yaml", stops_guests=True,
        )  # fmt: skip


def _metadata(facts: HostNetworkFacts, metadata: MetadataFacts) -> Iterator[HostTrouble]:
    address, bridge = metadata.address, metadata.bridge
    if facts.network_is_active and bridge not in facts.bridges:
        other = facts.network_bridge
        cure = f"set metadata.bridge: {other}" if other and other != bridge else "make it, or name the right one"
        yield HostTrouble(
            Trouble.METADATA_BRIDGE_MISSING, f"there is no bridge {bridge}, which is to have the metadata address {address}",
            f"{cure} in compute.yaml",
        )  # fmt: skip
    for interface in sorted(metadata.interfaces - {bridge}):
        yield HostTrouble(
            Trouble.METADATA_ADDRESS_ELSEWHERE,
            f"{address} is on {interface}, not on {bridge}: guests are not served",
            f"ip address del {address}/32 dev {interface}, or set metadata.bridge: {interface} in compute.yaml",
        )
    if metadata.route and metadata.route != bridge:
        yield HostTrouble(
            Trouble.METADATA_ROUTE_ELSEWHERE,
            f"this host reaches a metadata server of its own at {address} by {metadata.route}, and no longer does once its "
            f"guests are served at {bridge}",
            f"ip route del {address}, once the host's own cloud-init is done; or metadata.mode: off, and drives for guests",
        )  # fmt: skip
    if not metadata.may_set and bridge not in metadata.interfaces:
        yield HostTrouble(
            Trouble.METADATA_ADDRESS_REFUSED, f"ecompute may not put {address} on {bridge}",
            f"run it as root (CAP_NET_ADMIN), or: ip address add {address}/32 dev {bridge}",
        )  # fmt: skip
    yield from _port(metadata)


def _port(metadata: MetadataFacts) -> Iterator[HostTrouble]:
    """Whoever has the port on all addresses has it on that one, too."""
    if metadata.is_served and metadata.address in metadata.listeners:
        return
    if taking := metadata.listeners & {metadata.address, "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        where = "all addresses" if metadata.address not in taking else metadata.address
        yield HostTrouble(
            Trouble.METADATA_PORT_TAKEN,
            f"another server listens at port {metadata.port} of {where}, so that md-server cannot at {metadata.address}",
            f"ss -lntp sport = :{metadata.port} names it: stop it, or let it listen at the host's own address only",
        )


def _packets(facts: HostNetworkFacts) -> Iterator[HostTrouble]:
    if facts.forwards_packets is False:
        yield HostTrouble(
            Trouble.NO_FORWARDING, "this host forwards no packets: guests reach nobody beyond it, and no port leads to them",
            "sysctl -w net.ipv4.ip_forward=1, and in /etc/sysctl.d to keep it",
        )  # fmt: skip
    for interface, strictness in sorted(facts.reverse_path.items()):
        # With an address of the guests' subnet on it, answers go back there and nothing is dropped.
        if strictness == 1 and interface not in facts.addressed:
            yield HostTrouble(
                Trouble.STRICT_REVERSE_PATH,
                f"{interface} has no address of its own and drops what does not come the way that answers go (rp_filter is "
                "strict): guests there get no metadata by HTTP",
                f"sysctl -w net.ipv4.conf.{interface}.rp_filter=2, and in /etc/sysctl.d to keep it",
            )
    if facts.filters_bridged_packets:
        yield HostTrouble(
            Trouble.BRIDGED_PACKETS_FILTERED,
            "packets between guests on a bridge pass the host's own firewall, which may drop them: bridge-nf-call-iptables "
            "is 1, as Docker sets it",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0, or let them pass: iptables -I FORWARD -m physdev "
            "--physdev-is-bridged -j ACCEPT",
        )


def _firewalls(facts: HostNetworkFacts) -> Iterator[HostTrouble]:
    metadata = facts.metadata
    if metadata is not None and facts.firewalld_lets_metadata is False:
        yield HostTrouble(
            Trouble.FIREWALLD,
            f"firewalld runs, and its zone libvirt does not let guests speak to {metadata.address} at port {metadata.port}: "
            "they get no metadata",
            f"firewall-cmd --permanent --zone=libvirt --add-port={metadata.port}/tcp and firewall-cmd --reload",
        )
    if metadata is not None and facts.ufw_lets_metadata is False:
        yield HostTrouble(
            Trouble.UFW, f"ufw runs, and does not let guests speak to {metadata.address}: they get no metadata",
            f"ufw allow in on {metadata.bridge} to {metadata.address} port {metadata.port} proto tcp",
        )  # fmt: skip
    if not facts.has_nft:
        yield HostTrouble(
            Trouble.NFT_MISSING,
            "there is no nft: no port can be forwarded, and guests with rules (--allow) are not built here",
            "apt-get install nftables",
        )  # fmt: skip
    if facts.has_spoofing_filter is False:
        yield HostTrouble(
            Trouble.SPOOFING_FILTER_MISSING,
            "libvirt has not the filter that network.filter names: guests are not kept from speaking as others",
            "install libvirt's driver nwfilter where it is a package of its own, or name one of virsh nwfilter-list",
        )
    if facts.unfiltered:
        yield HostTrouble(
            Trouble.SPOOFING_FILTER_GONE,
            "somebody took libvirt's network filters out of the packet filter, and guests can speak as others: "
            + ", ".join(sorted(facts.unfiltered)),
            _RESTART,
        )
    if facts.network_without_nat:
        yield HostTrouble(
            Trouble.NETWORK_RULES_GONE,
            f"somebody took libvirt's rules for the network {facts.network_without_nat} out of the packet filter: its guests "
            "reach nobody beyond this host",
            _RESTART,
        )
