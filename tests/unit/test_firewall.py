"""The rules of guests as text, and which ports an instance gets."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from common.errors import InvalidSpec
from common.model import Address, Forward, ImageRef, InstanceSpec, IpAddress
from common.nics import AddressSource
from ecompute.firewall import GuestRules, Way, bridge_rules, forward_rules, interface_name, judged, unmet, wished
from ecompute.nft import COMMENT, iptables_change
from ecompute.taken_ports import listening_ports

MAC = "52:54:c0:a8:7a:32"
ON_NAT = (Address("default", MAC, "192.168.122.50"),)
SPEC = InstanceSpec(UUID(int=9), "web", ImageRef("/i"), {"VCPU": 1})
WEB = dataclasses.replace(SPEC, forwards=(Forward(8080, 80), Forward(5353, 53, "udp")))
WEB_RULES = wished(WEB, ON_NAT, ())
SHUT = wished(
    dataclasses.replace(SPEC, allow=("tcp:22", "udp:8000-8100@10.0.0.0/8", "icmp", "all@fd00::/8")), ON_NAT, ("ec1", "vnet3")
)

FORWARDS = """\
add table ip etcd_compute
delete table ip etcd_compute
table ip etcd_compute {
	chain forwards {
		tcp dport 8080 ct mark set ct mark or 0x00ec0000 dnat to 192.168.122.50:80 comment "00000000-0000-0000-0000-000000000009"
		udp dport 5353 ct mark set ct mark or 0x00ec0000 dnat to 192.168.122.50:53 comment "00000000-0000-0000-0000-000000000009"
	}
	chain nearby {
		ip saddr 192.168.122.0/24 ip daddr 192.168.122.50 masquerade
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local ip daddr != { 127.0.0.0/8, 169.254.0.0/16 } jump forwards
	}
	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local ip daddr != { 127.0.0.0/8, 169.254.0.0/16 } jump forwards
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat ct mark and 0x00ec0000 == 0x00ec0000 jump nearby
	}
}
"""

FILTER = """\
add table bridge etcd_compute
flush table bridge etcd_compute
delete chain bridge etcd_compute in_of_another
table bridge etcd_compute {
	chain always {
		ether type arp accept
		tcp flags & (syn | ack) != syn accept
		icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept
		icmpv6 type { echo-reply, destination-unreachable, packet-too-big, time-exceeded, parameter-problem, nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, mld-listener-query } accept
		udp sport 67 udp dport 68 accept
		udp sport 547 udp dport 546 accept
		ip frag-off & 0x1fff > 1 accept
		frag frag-off > 1 accept
	}
	set asked4_00000000000000000000000000000009 {
		type ipv4_addr . inet_service . ipv4_addr . inet_service
		size 8192; flags dynamic,timeout; timeout 3m;
	}
	set asked6_00000000000000000000000000000009 {
		type ipv6_addr . inet_service . ipv6_addr . inet_service
		size 8192; flags dynamic,timeout; timeout 3m;
	}
	chain out_00000000000000000000000000000009 {
		update @asked4_00000000000000000000000000000009 { ip daddr . udp dport . ip saddr . udp sport }
		update @asked6_00000000000000000000000000000009 { ip6 daddr . udp dport . ip6 saddr . udp sport }
	}
	chain in_00000000000000000000000000000009 {
		jump always
		ip saddr . udp sport . ip daddr . udp dport @asked4_00000000000000000000000000000009 accept
		ip6 saddr . udp sport . ip6 daddr . udp dport @asked6_00000000000000000000000000000009 accept
		tcp dport 22 accept
		ip saddr 10.0.0.0/8 udp dport 8000-8100 accept
		meta l4proto icmp accept
		meta l4proto ipv6-icmp accept
		ip6 saddr fd00::/8 accept
		drop
	}
	chain from_guests {
		type filter hook prerouting priority filter; policy accept;
		iifname vmap { "ec1" : jump out_00000000000000000000000000000009, "vnet3" : jump out_00000000000000000000000000000009 }
	}
	chain to_guests {
		type filter hook postrouting priority filter; policy accept;
		oifname vmap { "ec1" : jump in_00000000000000000000000000000009, "vnet3" : jump in_00000000000000000000000000000009 }
	}
}
"""


def test_the_forwards_of_a_guest_behind_nat() -> None:
    assert forward_rules("ip", [WEB_RULES, SHUT]) == FORWARDS


def test_the_filter_of_a_guest_and_what_an_instance_that_is_gone_has_left() -> None:
    known = [("chain", "in_of_another"), ("chain", "to_guests"), ("set", "asked4_" + SPEC.uuid.hex)]
    assert bridge_rules([WEB_RULES, SHUT], known=known) == FILTER


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_without_a_forward_the_table_goes(family: str) -> None:
    assert forward_rules(family, [SHUT]) == f"add table {family} etcd_compute\ndelete table {family} etcd_compute\n"


def test_without_a_filtered_guest_the_table_goes() -> None:
    assert bridge_rules([WEB_RULES]) == "add table bridge etcd_compute\ndelete table bridge etcd_compute\n"


def test_a_port_leads_to_the_first_address_of_each_family_and_never_to_a_link_local_one() -> None:
    cards = (
        Address("", "52:54:00:00:00:01", "", bridge="br0"),
        Address("default", MAC, "192.168.122.50", more=(IpAddress("fe80::1", 64), IpAddress("fd00::5", 64))),
        Address("other", "52:54:00:00:00:02", "192.168.100.9"),
    )
    assert wished(dataclasses.replace(SPEC, forwards=(Forward(80, 8080),)), cards, ()).ways == (
        Way("tcp", 80, 8080, "192.168.122.50", "192.168.122.0/24"),
        Way("tcp", 80, 8080, "fd00::5", "fd00::/64"),
    )


def test_a_guest_on_a_bridge_of_the_hosts_answers_to_the_host_as_its_router_is_another() -> None:
    ways = wished(WEB, (Address("", MAC, "10.0.0.5", bridge="br0"),), ()).ways
    assert {way.near for way in ways} == {""}
    assert "\n\t\tip daddr 10.0.0.5 masquerade\n" in forward_rules("ip", [GuestRules(SPEC.uuid, "web", ways=ways)])


def test_ipv6_has_a_table_of_its_own() -> None:
    rules = GuestRules(SPEC.uuid, "web", ways=(Way("tcp", 80, 8080, "fd00::5", "fd00::/64"),))
    text = forward_rules("ip6", [rules])
    assert "dnat to [fd00::5]:8080" in text
    assert "ip6 saddr fd00::/64 ip6 daddr fd00::5 masquerade" in text
    assert "fd00:ec2::254" in text, "guests ask for metadata there"
    assert rules.families == {"ip6"}


def test_who_comes_second_gets_a_note_and_all_else_that_it_asked_for() -> None:
    rules, notes = judged(WEB_RULES, others={("tcp", 8080): "first"}, listening=())
    assert [way.port for way in rules.ways] == [("udp", 5353)]
    assert notes == ("port 8080/tcp of this host is taken by instance first; choose another",)


def test_a_port_at_which_a_process_listens_is_taken_and_the_note_tells_how_to_find_it() -> None:
    rules, notes = judged(WEB_RULES, others={}, listening={("udp", 5353), ("udp", 8080)})
    assert [way.port for way in rules.ways] == [("tcp", 8080)]
    assert notes == (
        "port 5353/udp of this host is taken by a process (ss -lnup sport = :5353); choose another, or stop that one",
    )


@pytest.mark.parametrize("text", ["tcp:22@fe80::1%eth0", "tcp", "gre", "tcp:0", "tcp:22@everybody", ""])
def test_a_rule_that_nobody_can_read_is_no_rule_that_lets_anybody_in(text: str) -> None:
    with pytest.raises(InvalidSpec, match="allow"):
        wished(dataclasses.replace(SPEC, allow=(text,)), ON_NAT, ())


@pytest.mark.parametrize(
    ("allow", "noted"),
    [(None, 0), ((), 2), (("tcp:80",), 1), (("tcp:1-1024", "udp:53@10.0.0.0/8"), 0), (("all",), 0), (("icmp", "udp:80"), 2)],
)
def test_a_forward_to_what_the_guests_own_rules_keep_shut_is_noted(allow: tuple[str, ...] | None, noted: int) -> None:
    assert len(unmet(dataclasses.replace(WEB, allow=allow), ON_NAT)) == noted


def test_a_forward_to_a_guest_whose_address_is_not_known_yet_is_noted() -> None:
    (note,) = unmet(WEB, (Address("", MAC, "", bridge="br0"),))
    assert note == "port 8080/tcp, 5353/udp of the host leads nowhere yet: no address of the guest is known"


def test_no_port_leads_to_an_address_that_the_guest_alone_has_told() -> None:
    card = Address("", MAC, "192.168.122.1", bridge="br0", source=AddressSource.LEARNED)
    assert wished(WEB, (card,), ()).ways == ()
    (note,) = unmet(WEB, (card,))
    assert "leads nowhere yet: the address of its card on br0 is known from the guest alone" in note


@pytest.mark.parametrize(
    ("text", "prefix_length"), [("192.168.122.9", 200), ("192.168.122.9", 0), ("fd00::5", -1), ("fd00::5%}", 64), ("x", 24)]
)
def test_no_port_leads_to_what_is_no_address(text: str, prefix_length: int) -> None:
    assert wished(WEB, (Address("default", MAC, text, prefix_length),), ()).ways == ()


EVIL = "accept } } flush ruleset #"


def test_nothing_that_is_not_what_it_should_be_comes_into_a_text_for_the_kernel() -> None:
    rules = GuestRules(
        SPEC.uuid, "web", ("tcp:22", f"tcp:23@2001:db8::1%}} {EVIL}", EVIL), ("ec1", f'x" {EVIL}'),
        (
            Way("tcp", 80, 8080, "192.168.122.50"), Way(EVIL, 80, 8080, "192.168.122.50"), Way("tcp", 80, 0, "192.168.122.50"),
            Way("tcp", 80, 8080, f"10.0.0.1 {EVIL}"), Way("tcp", 80, 8080, "10.0.0.1", EVIL), Way("tcp", 80, 8080, "fd00::1%" + EVIL),
        ),
    )  # fmt: skip
    text = bridge_rules([rules]) + forward_rules("ip", [rules]) + forward_rules("ip6", [rules])
    assert "flush ruleset" not in text
    assert "tcp dport 22 accept" in text
    assert text.count("dnat to") == 1


def test_a_card_whose_name_on_the_host_nobody_could_have_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="cannot be called"):
        wished(dataclasses.replace(SPEC, allow=()), ON_NAT, (f'x" {EVIL}',))


def test_the_name_of_an_interface_is_one_that_the_kernel_takes() -> None:
    assert interface_name(MAC) == "ec5254c0a87a32"
    assert len(interface_name(MAC)) < 16


def test_rules_survive_their_file() -> None:
    assert GuestRules.from_json(SHUT.to_json()) == SHUT
    assert GuestRules.from_json(WEB_RULES.to_json()) == WEB_RULES


# -- the rule in the chain of others ------------------------------------------------------------------------------------

LIBVIRT = ["-P FORWARD ACCEPT", "-A FORWARD -j LIBVIRT_FWX", "-A FORWARD -j LIBVIRT_FWI", "-A FORWARD -j LIBVIRT_FWO"]
OURS = f'-A FORWARD -m connmark --mark 0xec0000/0xec0000 -m comment --comment "{COMMENT}" -j ACCEPT'
INSERT = "-I FORWARD 1" + OURS.removeprefix("-A FORWARD")
DELETE = "-D FORWARD" + OURS.removeprefix("-A FORWARD")


@pytest.mark.parametrize(
    ("lines", "is_wanted", "change"),
    [
        (["-P FORWARD ACCEPT"], True, []),
        (["-P FORWARD DROP"], True, [INSERT]),
        (LIBVIRT, True, [INSERT]),
        ([LIBVIRT[0], OURS, *LIBVIRT[1:]], True, []),
        ([LIBVIRT[0], "-A FORWARD -j DOCKER-USER", OURS, *LIBVIRT[1:]], True, []),
        ([*LIBVIRT, OURS], True, [DELETE, INSERT]),
        ([LIBVIRT[0], OURS, OURS, *LIBVIRT[1:]], True, [DELETE, DELETE, INSERT]),
        (["-P FORWARD DROP", "-A FORWARD -j DOCKER-USER", OURS], True, []),
        (["-P FORWARD ACCEPT", "-A FORWARD -i eth0 -j REJECT --reject-with icmp-port-unreachable"], True, [INSERT]),
        ([LIBVIRT[0], OURS, *LIBVIRT[1:]], False, [DELETE]),
        (["-P FORWARD ACCEPT", OURS], True, [DELETE]),
        (LIBVIRT, False, []),
        ([], True, []),
    ],
)
def test_our_rule_stands_before_what_refuses_and_only_where_something_does(lines, is_wanted, change) -> None:
    assert iptables_change(lines, is_wanted=is_wanted) == change


def test_who_listens_on_an_address_that_is_the_hosts_alone_is_in_nobodys_way(tmp_path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    sockets = {
        "tcp": ["0100007F:0050 00000000:0000 0A", "00000000:0016 00000000:0000 0A", "0101A8C0:1F90 0201A8C0:C350 01", "FEA9FEA9:0050 00000000:0000 0A"],
        "tcp6": ["00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A",
                 "00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A",
                 "0000000000000000FFFF00000100007F:0052 00000000000000000000000000000000:0000 0A"],
        "udp": ["017AA8C0:0035 00000000:0000 07"],
    }  # fmt: skip
    for name, lines in sockets.items():
        (tmp_path / name).write_text(head + "".join(f"   0: {line} 00000000:00000000\n" for line in lines))
    assert listening_ports(tmp_path) == {("tcp", 22), ("tcp", 3000), ("udp", 53)}
