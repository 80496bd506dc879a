"""Our network filter of libvirt's: what a guest's card may send. Pure: the filter's XML, and a card's parameters for it.

A guest sends from its own MAC, and from its own addresses: IPv4, ARP, and IPv6 with the link-local address that its MAC gives.
It gives nobody addresses (no DHCP answers of either family) and no routes (no router advertisements). ``domain_xml`` names the
filter for each card, ``libvirt_networks`` defines it. What nwfilter cannot look at is the target of a neighbour advertisement:
guests of one bridge can tell each other wrong IPv6 neighbours, and get no answer that is meant for another by it from
md-server, which a guest reaches from its own addresses only.
"""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET

from common.nics import Address, AddressSource, link_local_address
from ecompute.bridge_cards import is_foreign

FILTER_NAME = "etcd-compute"  # what compute.yaml calls ours; as a filter of libvirt's, for cards with IPv4 alone
# For all others. A filter is rebuilt for every guest that runs when it is defined anew, with the parameters that the guest was
# started with: one that needs others gets another name. And most guests need not wait for rules that they do not need.
DUAL_FILTER_NAME = "etcd-compute-dual"

# For cards whose addresses somebody else gives. Which prefixes are right there is not to be known beforehand, and what a guest
# sent from an address of one would vanish: so it hears of none, and has IPv4 and its link-local address.
FOREIGN_FILTER_NAME = "etcd-compute-foreign"

# It does what libvirt's clean-traffic does in one chain instead of seven: each rule and each chain is a transaction of the
# kernel's packet filter, which takes some 10 ms, so that clean-traffic adds a second to every start and every libvirtd restart.
# 68 and 546 are the ports of DHCP's clients, whom only servers write to; 134 is a router advertisement, 135 from :: the
# question whether an address is free.
_IPV4_RULES = """\
  <rule action='drop' direction='out' priority='100'><mac match='no' srcmacaddr='$MAC'/></rule>
  <rule action='drop' direction='out' priority='150'><ip protocol='udp' dstportstart='68'/></rule>
  <rule action='accept' direction='out' priority='200'><ip srcipaddr='$IP'/></rule>
  <rule action='accept' direction='out' priority='300'>
    <ip srcipaddr='0.0.0.0' protocol='udp' srcportstart='68' dstportstart='67'/>
  </rule>
  <rule action='accept' direction='out' priority='400'><arp arpsrcmacaddr='$MAC' arpsrcipaddr='$IP'/></rule>
  <rule action='accept' direction='out' priority='500'><arp arpsrcmacaddr='$MAC' arpsrcipaddr='0.0.0.0'/></rule>
  <rule action='accept' direction='out' priority='600'>
    <rarp dstmacaddr='ff:ff:ff:ff:ff:ff' opcode='Request_Reverse' arpsrcmacaddr='$MAC' arpdstmacaddr='$MAC'
      arpsrcipaddr='0.0.0.0' arpdstipaddr='0.0.0.0'/>
  </rule>
  <rule action='drop' direction='out' priority='1000'><mac/></rule>
"""
_IPV6_RULES = """\
  <rule action='drop' direction='out' priority='700'><ipv6 protocol='icmpv6' type='134'/></rule>
  <rule action='drop' direction='out' priority='710'><ipv6 protocol='udp' dstportstart='546'/></rule>
  <rule action='accept' direction='out' priority='720'><ipv6 srcipaddr='$IPV6'/></rule>
  <rule action='accept' direction='out' priority='730'><ipv6 srcipaddr='::' protocol='icmpv6' type='135'/></rule>
"""
_NO_IPV6_ADDRESSES = """\
  <rule action='drop' direction='in' priority='740'><ipv6 protocol='icmpv6' type='134'/></rule>
  <rule action='drop' direction='in' priority='750'><ipv6 protocol='udp' dstportstart='546'/></rule>
"""
FILTERS = {
    FILTER_NAME: f"""\
<filter name='{FILTER_NAME}' chain='root'>
  <uuid>5bd0e7a6-6c1f-4b53-9d0a-0a6f2c7b9e11</uuid>
{_IPV4_RULES}</filter>
""",
    DUAL_FILTER_NAME: f"""\
<filter name='{DUAL_FILTER_NAME}' chain='root'>
  <uuid>5bd0e7a6-6c1f-4b53-9d0a-0a6f2c7b9e12</uuid>
{_IPV4_RULES}{_IPV6_RULES}</filter>
""",
    FOREIGN_FILTER_NAME: f"""\
<filter name='{FOREIGN_FILTER_NAME}' chain='root'>
  <uuid>5bd0e7a6-6c1f-4b53-9d0a-0a6f2c7b9e13</uuid>
{_IPV4_RULES}{_IPV6_RULES}{_NO_IPV6_ADDRESSES}</filter>
""",
}


def filter_of(address: Address, filter_name: str) -> str:
    """The filter of the card *address* where compute.yaml says *filter_name*."""
    if filter_name != FILTER_NAME:
        return filter_name
    if is_foreign(address):
        return FOREIGN_FILTER_NAME
    is_plain = address.source is AddressSource.DHCP and not any(_version(one) == 6 for one in address.all_addresses)
    return FILTER_NAME if is_plain else DUAL_FILTER_NAME


def filter_parameters(address: Address, filter_name: str) -> tuple[tuple[str, str], ...]:
    """What *filter_name*, the filter of the card *address*, is told; a name that comes twice is a list.

    Where a foreign DHCP server gives the address, libvirt lets the guest speak to that server alone until it has answered, and
    as what it was given from then on. An address that was learned changes nothing here: the guest said it.
    """
    known = () if address.source is AddressSource.LEARNED else address.all_addresses
    of_version = {4: [one for one in known if _version(one) == 4], 6: [one for one in known if _version(one) == 6]}
    if is_foreign(address):
        ipv4 = [("CTRL_IP_LEARNING", "dhcp")]
    elif of_version[4] or not known:
        ipv4 = [("IP", one) for one in of_version[4]]
    else:  # one with IPv6 alone gets nobody's IPv4 address: without any libvirt would learn the first that the guest claims
        ipv4 = [("IP", "0.0.0.0")]  # noqa: S104 - not listened at
    if filter_name not in (DUAL_FILTER_NAME, FOREIGN_FILTER_NAME):
        return tuple(ipv4)
    return (*ipv4, *(("IPV6", one) for one in (link_local_address(address.mac), *of_version[6])))


def _version(address: str) -> int:
    return ipaddress.ip_address(address).version


def filter_rules(text: str) -> list[tuple[dict[str, str], list[tuple[str, dict[str, str]]]]]:
    """What a network filter does, however its XML is laid out: to see whether libvirt has the one that we would define."""
    root = ET.fromstring(text)  # noqa: S314 - from the local libvirtd, or ours
    return [(dict(rule.attrib), [(match.tag, dict(match.attrib)) for match in rule]) for rule in root.iterfind("rule")]
