"""What libvirt and the kernel make of our network filter, frame by frame, on a port that is as a guest's."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from common.nics import Address, AddressSource, IpAddress, link_local_address
from ecompute.anti_spoofing import FILTER_NAME, filter_of, filter_parameters
from ecompute.filter_guard import FilterGuard, Lost
from ecompute.hypervisor import DhcpHost
from ecompute.libvirt_driver import LibvirtDriver
from tests.fakes.packet_filter import FakePacketFilter
from tests.support import frames
from tests.support.domains import a_spec
from tests.support.hosts import NamespacedHost
from tests.support.processes import VENV_BIN, wait_until

MAC, OTHER_MAC = "52:54:c0:a8:7a:32", "52:54:c0:a8:7a:33"
OWN, OTHER, GATEWAY = "192.168.122.50", "192.168.122.51", "192.168.122.1"
OWN6, OTHER6 = "fd00:1::50", "fd00:1::51"
LINK_LOCAL, OTHER_LINK_LOCAL = link_local_address(MAC), link_local_address(OTHER_MAC)
UDP, ICMPV6 = 17, 58
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD

IPV4_CARD = Address("default", MAC, OWN, 24, GATEWAY)
DUAL_CARD = Address("lan", MAC, OWN, 24, GATEWAY, more=(IpAddress(OWN6, 64),), bridge="virbr0", source=AddressSource.STATIC)
IPV6_CARD = Address("lan", MAC, OWN6, 64, bridge="virbr0", source=AddressSource.STATIC)
FOREIGN_CARD = Address("", MAC, "", 0, bridge="virbr0", source=AddressSource.NONE)


def sent(mac: str, kind: int, payload: bytes) -> tuple[str, int, bytes]:
    return mac, kind, payload


# What a card sends, and with which of its addresses that is allowed: "any", "4", "6", or nobody.
SENT = {
    "own address": ("4", sent(MAC, IPV4, frames.ipv4(OWN, GATEWAY, UDP, frames.udp(999, 80)))),
    "another's address": ("", sent(MAC, IPV4, frames.ipv4(OTHER, GATEWAY, UDP, frames.udp(999, 80)))),
    "the gateway's address": ("", sent(MAC, IPV4, frames.ipv4(GATEWAY, OTHER, UDP, frames.udp(53, 999)))),
    "another's MAC": ("", sent(OTHER_MAC, IPV4, frames.ipv4(OWN, GATEWAY, UDP, frames.udp(999, 80)))),
    "another's MAC and address": ("", sent(OTHER_MAC, IPV4, frames.ipv4(OTHER, GATEWAY, UDP, frames.udp(999, 80)))),
    "asks DHCP": ("any", sent(MAC, IPV4, frames.ipv4("0.0.0.0", "255.255.255.255", UDP, frames.udp(68, 67)))),
    "asks DHCP as another": ("", sent(OTHER_MAC, IPV4, frames.ipv4("0.0.0.0", "255.255.255.255", UDP, frames.udp(68, 67)))),
    "gives addresses": ("", sent(MAC, IPV4, frames.ipv4(OWN, "255.255.255.255", UDP, frames.udp(67, 68)))),
    "claims its address": ("4", sent(MAC, ARP, frames.arp(MAC, OWN, asks_for=OWN))),
    "asks whose an address is": ("4", sent(MAC, ARP, frames.arp(MAC, OWN, asks_for=GATEWAY))),
    "asks whether one is free": ("4", sent(MAC, ARP, frames.arp(MAC, "0.0.0.0", asks_for=OWN))),
    "claims another's address": ("", sent(MAC, ARP, frames.arp(MAC, OTHER, asks_for=OTHER))),
    "answers for another": ("", sent(MAC, ARP, frames.arp(MAC, GATEWAY, asks_for=OTHER, operation=2))),
    "claims its address for another MAC": ("", sent(MAC, ARP, frames.arp(OTHER_MAC, OWN, asks_for=OWN))),
    "link-local": ("any", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "fe80::1", UDP, frames.udp(999, 80)))),
    "another's link-local": ("", sent(MAC, IPV6, frames.ipv6(OTHER_LINK_LOCAL, "fe80::1", UDP, frames.udp(999, 80)))),
    "own IPv6": ("6", sent(MAC, IPV6, frames.ipv6(OWN6, "fd00:1::1", UDP, frames.udp(999, 80)))),
    "another's IPv6": ("", sent(MAC, IPV6, frames.ipv6(OTHER6, "fd00:1::1", UDP, frames.udp(999, 80)))),
    "asks for a neighbour": ("any", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "ff02::1", ICMPV6, frames.icmpv6(135)))),
    "asks whether its IPv6 is free": ("any", sent(MAC, IPV6, frames.ipv6("::", "ff02::1", ICMPV6, frames.icmpv6(135)))),
    "is a neighbour": ("any", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "ff02::1", ICMPV6, frames.icmpv6(136)))),
    "is another's neighbour": ("", sent(MAC, IPV6, frames.ipv6(OTHER_LINK_LOCAL, "ff02::1", ICMPV6, frames.icmpv6(136)))),
    "asks for routers": ("any", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "ff02::2", ICMPV6, frames.icmpv6(133)))),
    "is a router": ("", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "ff02::1", ICMPV6, frames.icmpv6(134)))),
    "asks DHCPv6": ("any", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, "ff02::1:2", UDP, frames.udp(546, 547)))),
    "gives IPv6 addresses": ("", sent(MAC, IPV6, frames.ipv6(LINK_LOCAL, OTHER_LINK_LOCAL, UDP, frames.udp(547, 546)))),
    "IPv6 of nobody": ("", sent(MAC, IPV6, frames.ipv6("::", "ff02::1", UDP, frames.udp(999, 80)))),
    "something else": ("", sent(MAC, 0x88B5, bytes(20))),
}  # fmt: skip


# What others on the wire tell a card, and whether that makes it have IPv6 addresses that nobody foresaw.
TOLD = {
    "the router's prefixes": (True, (ICMPV6, frames.icmpv6(134))),
    "addresses by DHCPv6": (True, (UDP, frames.udp(547, 546))),
    "who is a neighbour": (False, (ICMPV6, frames.icmpv6(136))),
    "something": (False, (UDP, frames.udp(999, 80))),
}


class Port:
    """A card in a network namespace of its own, on a port of virbr0 that is filtered as a guest's."""

    def __init__(self, host: NamespacedHost) -> None:
        self._host, self._is_bound = host, False
        for command in (
            "ip netns add sender",
            "ip link add port type veth peer name card netns sender",
            "ip link set port master virbr0 up",
            f"ip -n sender link set card address {MAC} up",
        ):
            host.run(command.split())
        self.bridge_mac = host.run(["cat", "/sys/class/net/virbr0/address"]).stdout.strip()
        state = ["cat", "/sys/class/net/port/brport/state"]  # 3: it forwards
        wait_until(lambda: host.run(state).stdout.strip() == "3", timeout_seconds=30, what="the bridge has its new port")

    def bind(self, address: Address) -> None:
        binding = ET.Element("filterbinding")
        owner = ET.SubElement(binding, "owner")
        ET.SubElement(owner, "name").text = "sender"
        ET.SubElement(owner, "uuid").text = str(a_spec().uuid)
        ET.SubElement(binding, "portdev", {"name": "port"})
        ET.SubElement(binding, "mac", {"address": MAC})
        reference = ET.SubElement(binding, "filterref", {"filter": filter_of(address, FILTER_NAME)})
        for name, value in filter_parameters(address, filter_of(address, FILTER_NAME)):
            ET.SubElement(reference, "parameter", {"name": name, "value": value})
        self._is_bound = True
        self._connection().nwfilterBindingCreateXML(ET.tostring(binding, encoding="unicode"))

    def through(self) -> set[str]:
        """Which of ``SENT`` get through."""
        made = {
            name: frames.ethernet(mac, self.bridge_mac, kind, payload).hex() for name, (_, (mac, kind, payload)) in SENT.items()
        }
        end = frames.ipv4("0.0.0.0", "255.255.255.255", UDP, frames.udp(68, 67, b"the last"))
        made[frames.END] = frames.ethernet(MAC, self.bridge_mac, IPV4, end).hex()
        return self._arrived(made, "out")

    def hears(self) -> set[str]:
        """Which of ``TOLD`` reach the card."""
        made = {
            name: frames.ethernet(self.bridge_mac, MAC, IPV6, frames.ipv6("fe80::1", LINK_LOCAL, *told)).hex()
            for name, (_, told) in TOLD.items()
        }
        end = frames.ipv4(GATEWAY, OWN, UDP, frames.udp(999, 80, b"the last"))
        made[frames.END] = frames.ethernet(self.bridge_mac, MAC, IPV4, end).hex()
        return self._arrived(made, "in")

    def _arrived(self, made: dict[str, str], direction: str) -> set[str]:
        command = [VENV_BIN / "python", "-m", "tests.support.frames", "sender", "card", "virbr0", direction]
        found = json.loads(self._host.run(command, text_input=json.dumps(made)).stdout)
        assert isinstance(found, list), self.rules()
        return set(found)

    def rules(self) -> str:
        return self._host.run(["ebtables", "--concurrent", "-t", "nat", "-L", "--Lc"]).stdout

    def inside(self, *command: str | Path, check: bool = True) -> str:
        return self._host.run(["ip", "netns", "exec", "sender", *command], check=check).stdout

    def _connection(self) -> libvirt.virConnect:
        return libvirt.open(self._host.uri)  # a new one: libvirtd may have been restarted

    def remove(self) -> None:
        if self._is_bound:
            self._connection().nwfilterBindingLookupByPortDev("port").delete()
        self._host.run(["ip", "link", "del", "port"])
        self._host.run(["ip", "netns", "del", "sender"])


@pytest.fixture
def driver(libvirt_host: NamespacedHost) -> Iterator[LibvirtDriver]:
    driver = LibvirtDriver(libvirt_host.uri)
    assert driver.ensure_filter(FILTER_NAME)
    yield driver
    driver.close()


@pytest.fixture
def port(libvirt_host: NamespacedHost, driver: LibvirtDriver) -> Iterator[Port]:
    port = Port(libvirt_host)
    yield port
    port.remove()


def allowed(*kinds: str) -> set[str]:
    return {name for name, (allowed_with, _) in SENT.items() if allowed_with in kinds}


def test_without_a_filter_everything_gets_through(port: Port) -> None:
    assert port.through() == set(SENT)


@pytest.mark.parametrize(
    ("card", "kinds"), [(IPV4_CARD, ("any", "4")), (DUAL_CARD, ("any", "4", "6")), (IPV6_CARD, ("any", "6"))],
    ids=["IPv4", "both", "IPv6"],
)  # fmt: skip
def test_a_card_sends_as_itself_only(port: Port, card: Address, kinds: tuple[str, ...]) -> None:
    port.bind(card)
    # A card with IPv6 alone may ask by ARP who has an address, as nobody.
    # One with IPv4 alone, as most are, needs no IPv6 either.
    without = {name for name in SENT if card is IPV4_CARD and SENT[name][1][1] == IPV6}
    may = allowed(*kinds) - without | ({"asks whether one is free"} if card is IPV6_CARD else set())
    assert port.through() == may, port.rules()
    assert port.hears() == set(TOLD), port.rules()


class KernelOf(FakePacketFilter):
    """The rules of a host, as ``nft`` in it shows them."""

    def __init__(self, host: NamespacedHost) -> None:
        super().__init__()
        self._host = host

    def ruleset(self) -> str:
        return self._host.run(["nft", "--stateless", "--terse", "list", "ruleset"]).stdout


@pytest.mark.parametrize("card", [IPV4_CARD, DUAL_CARD], ids=["IPv4", "both"])
@pytest.mark.parametrize("flush", ["ebtables -t nat -F", "ebtables -t nat -F libvirt-I-port", "nft flush ruleset"])
def test_a_filter_that_somebody_flushes_is_made_again(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, port: Port, card: Address, flush: str
) -> None:
    kernel = KernelOf(libvirt_host)
    guard = FilterGuard(driver, kernel, "default")

    def rules() -> str:
        return libvirt_host.run(["nft", "--stateless", "list", "chain", "bridge", "nat", "libvirt-I-port"]).stdout

    port.bind(card)
    before = rules()
    guard.keep()
    assert rules() == before, "nothing is done where all is there"
    libvirt_host.run(flush.split())
    kernel.flush()
    assert port.through() > allowed("4"), "now it speaks as others"
    guard.keep()
    assert rules() == before
    assert guard.lost.filters == frozenset()
    assert "another's address" not in port.through()
    assert driver.ensure_filter(FILTER_NAME)
    assert rules() == before
    if "ruleset" in flush:
        assert guard.lost == Lost(nat="default")
        libvirt_host.stop_libvirtd()  # the cure that the operator is told
        libvirt_host.start_libvirtd()
        guard.ask()
        guard.keep()
        assert guard.lost == Lost()


LEASE_SCRIPT = """\
#!/bin/sh
[ "$1" = bound ] && ip addr replace "$ip/24" dev "$interface"
exit 0
"""


def test_a_card_that_somebody_else_serves_sends_as_what_it_was_given(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, port: Port
) -> None:
    entry, script = DhcpHost(MAC, OWN), libvirt_host.directory / "lease-script"
    script.write_text(LEASE_SCRIPT)
    script.chmod(0o755)
    driver.add_dhcp_host("default", entry)
    try:
        port.bind(FOREIGN_CARD)
        wait_until(
            lambda: port.through() == {"asks DHCP"},
            timeout_seconds=20,
            what="it may ask for an address, and no more",
            evidence=port.rules,
        )
        answer = port.inside("busybox", "udhcpc", "-i", "card", "-n", "-q", "-t", "8", "-T", "1", "-s", script)
        assert OWN in port.inside("ip", "-4", "addr", "show", "card"), answer
        wait_until(
            lambda: port.through() == allowed("any", "4"),
            timeout_seconds=20,
            what="it speaks as what it was given",
            evidence=port.rules,
        )
        # What it would send from another address of IPv6 vanished, so it is told none.
        assert port.hears() == {name for name, (gives_addresses, _) in TOLD.items() if not gives_addresses}, port.rules()
        libvirt_host.stop_libvirtd()
        assert port.through() == allowed("any", "4"), port.rules()
        libvirt_host.start_libvirtd()
        wait_until(lambda: port.through() == allowed("any", "4"), timeout_seconds=20, what="it still does", evidence=port.rules)
    finally:
        driver.remove_dhcp_host("default", entry)
