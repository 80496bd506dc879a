"""Single values of cards and networks as users give them: addresses, bridges, MACs, numbers. Pure.

Each function returns the value in its one normal form or raises ``ConfigError`` with one line. ``nic_options`` and
``network_options`` put them together.
"""

from __future__ import annotations

import ipaddress
import re

from common.errors import ConfigError
from common.text import quoted
from common.validate import parse_count

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

VLAN_MOST = 4094  # IEEE 802.1Q: 0 and 4095 are reserved
MTU_LEAST, MTU_MOST = 576, 65535  # RFC 791; what an IP packet can be
DNS_AT_MOST = 8
_BRIDGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")  # Linux takes 15 characters (IFNAMSIZ)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")

_LINK_LOCAL = "link-local"  # a gateway may be
_NO_GUESTS: dict[IpNetwork, str] = {  # RFC 6890, RFC 4291
    ipaddress.ip_network("0.0.0.0/8"): "unspecified",
    ipaddress.ip_network("127.0.0.0/8"): "loopback",
    ipaddress.ip_network("169.254.0.0/16"): _LINK_LOCAL,
    ipaddress.ip_network("224.0.0.0/4"): "multicast",
    ipaddress.ip_network("255.255.255.255/32"): "broadcast",
    ipaddress.ip_network("240.0.0.0/4"): "reserved",
    ipaddress.ip_network("::/128"): "unspecified",
    ipaddress.ip_network("::1/128"): "loopback",
    ipaddress.ip_network("fe80::/10"): _LINK_LOCAL,
    ipaddress.ip_network("ff00::/8"): "multicast",
    ipaddress.ip_network("fd00:ec2::254/128"): "the metadata service's",
}


def parse_bridge(text: str, what: str) -> str:
    """The name of a bridge of the hosts."""
    if not _BRIDGE.fullmatch(text):
        raise ConfigError(
            f"{what} {quoted(text)} is no name of a bridge; allowed are 1 to 15 letters, digits, and _ . -, as in br0"
        )
    return text


def parse_vlan(text: str, what: str) -> int:
    """An 802.1Q tag."""
    return parse_count(text, what, 1, VLAN_MOST)


def parse_mtu(text: str, what: str) -> int:
    """The largest packet, in bytes."""
    return parse_count(text, what, MTU_LEAST, MTU_MOST)


def parse_mac(text: str, what: str) -> str:
    """A MAC that one card can have."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ConfigError(f"{what} {quoted(text)} is no MAC; it looks like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16):
        raise ConfigError(
            f"{what} {mac} is no card's: its first octet is odd, which means a group of cards, or it is all zeros"
        )
    return mac


def parse_ip(text: str, what: str) -> Ip:
    """An address that a machine can have, without a prefix length."""
    if "/" in text:
        raise ConfigError(f"{what} {quoted(text)} has a prefix length; give the address alone, as in {text.partition('/')[0]}")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{what} {quoted(text)} is no address; it looks like 10.0.0.5 or fd00:1::5") from None
    _refuse_special(address, text, what)
    return address


def _refuse_special(address: Ip, text: str, what: str) -> None:
    if getattr(address, "scope_id", None) is not None:
        raise ConfigError(f"{what} {quoted(text)} has a scope behind its %; give it without")
    special = next((says for one, says in _NO_GUESTS.items() if address in one and says != _LINK_LOCAL), None)
    if special is not None:
        raise ConfigError(f"{what} {address} is no machine's that a guest can speak with: it is {special}")


def parse_interface(text: str, what: str) -> tuple[Ip, int]:
    """An address and its prefix length, 0 where *text* has none."""
    address, slash, length = text.partition("/")
    ip = parse_ip(address, what)
    if ip.is_link_local:
        raise ConfigError(f"{what} {ip} is link-local, which a machine gives itself; give another")
    if not slash:
        return ip, 0
    most = ip.max_prefixlen
    if not re.fullmatch(r"[0-9]{1,3}", length) or not 1 <= int(length) <= most:
        raise ConfigError(f"{what} {quoted(text)} has no prefix length behind its /; it is a number from 1 to {most}")
    network = ipaddress.ip_network(f"{ip}/{length}", strict=False)
    if ip.version == 4 and int(length) < most - 1 and ip in (network.network_address, network.broadcast_address):
        raise ConfigError(
            f"{what} {quoted(text)} is the network's own address or its broadcast address, which no machine can have"
        )
    return ip, int(length)


def parse_subnet(text: str, what: str) -> IpNetwork:
    """A subnet in CIDR form, with room for a gateway and guests."""
    if "/" not in text:
        raise ConfigError(f"{what} {quoted(text)} has no prefix length; it looks like 10.0.0.0/24 or fd00:1::/64")
    if "%" in text:  # Python takes anything behind it as the name of an interface
        raise ConfigError(f"{what} {quoted(text)} has a scope behind its %; give it without")
    try:
        loose = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{what} {quoted(text)} is no subnet; it looks like 10.0.0.0/24 or fd00:1::/64") from None
    if str(loose.network_address) != str(ipaddress.ip_address(text.partition("/")[0])):
        raise ConfigError(f"{what} {quoted(text)} is an address in a subnet; the subnet is {loose}")
    if loose.num_addresses < 4:
        raise ConfigError(f"{what} {loose} has room for nobody; give at least a /{loose.max_prefixlen - 2}")
    if special := next((one for one in _NO_GUESTS if one.version == loose.version and one.overlaps(loose)), None):
        raise ConfigError(f"{what} {loose} overlaps {special}, which is {_NO_GUESTS[special]}; give another, as in 10.0.0.0/24")
    return loose


def is_gateway_of(gateway: Ip, network: IpNetwork) -> bool:
    """Whether machines on *network* can reach *gateway*: of IPv6 a router's link-local address will do, too."""
    if gateway.version == 6 and gateway.is_link_local:
        return network.version == 6
    if gateway not in network:
        return False
    return gateway != network.network_address and (network.version == 6 or gateway != network.broadcast_address)
