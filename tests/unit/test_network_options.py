"""Networks and cards as options ask for them, and the choice among the addresses of a range."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.network_records import NetworkRecord, Subnet
from common.nics import IpAddress, Nic
from eschedule.arguments import parse
from eschedule.free_addresses import free_address, is_usable, span_of, used_of
from eschedule.network_options import overlap, record_from
from eschedule.nic_options import parse_nic

LAN = ("network", "add", "lan", "--bridge", "br0")
SUBNET = ("--subnet", "10.0.0.0/24")


def record(*options: str) -> NetworkRecord:
    return record_from(parse([*LAN, *options]), created_at="now", created_by="me@here")


class TestNetworks:
    def test_all_that_can_be_said(self) -> None:
        made = record(
            *SUBNET, "--gateway", "10.0.0.1", "--range", "10.0.0.50-10.0.0.99", "--vlan", "42", "--dns", "10.0.0.1", "--dns",
            "fd00:1::53", "--mtu", "1400",
        )  # fmt: skip
        assert made == NetworkRecord(
            "lan", "br0", (Subnet("10.0.0.0/24", "10.0.0.50", "10.0.0.99", "10.0.0.1"),), 42, ("10.0.0.1", "fd00:1::53"), 1400,
            "now", "me@here",
        )  # fmt: skip
        assert NetworkRecord.from_json(made.to_json()) == made

    def test_without_a_range_it_is_all_but_what_is_reserved(self) -> None:
        assert record(*SUBNET).subnets == (Subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),)
        assert record("--subnet", "fd00:1::/64").subnets == (
            Subnet("fd00:1::/64", "fd00:1::1", "fd00:1::ffff:ffff:ffff:ff7f"),
        )  # fmt: skip
        assert record("--subnet", "10.0.0.0/30").subnets == (Subnet("10.0.0.0/30", "10.0.0.1", "10.0.0.2"),)

    def test_of_both_families_each_option_belongs_to_the_subnet_of_its_own(self) -> None:
        made = record(
            "--subnet", "fd00:1::/64", "--gateway", "10.0.0.1", *SUBNET, "--gateway", "fe80::1", "--range", "fd00:1::10-fd00:1::1f",
        )  # fmt: skip
        assert made.subnets == (
            Subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.254", "10.0.0.1"),
            Subnet("fd00:1::/64", "fd00:1::10", "fd00:1::1f", "fe80::1"),
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--subnet", "10.0.0.0"), "has no prefix length"),
            (("--subnet", "10.0.0.5/24"), r"the subnet is 10\.0\.0\.0/24"),
            (("--subnet", "10.0.0.0/33"), "is no subnet"),
            (("--subnet", "fd00:1::%x/64"), "has a scope"),
            ((*SUBNET, "--range", "fd00:1::%x-fd00:1::9%x"), "has a scope"),
            ((*SUBNET, "--dns", "fd00:1::1%x"), "has a scope"),
            (("--subnet", "10.0.0.0/31"), "room for nobody; give at least a /30"),
            (("--subnet", "169.254.0.0/16"), "link-local"),
            (("--subnet", "ff00::/64"), "multicast"),
            (("--subnet", "0.0.0.0/0"), "overlaps 0.0.0.0/8, which is unspecified"),
            (("--subnet", "96.0.0.0/3"), "overlaps 127.0.0.0/8, which is loopback"),
            (("--subnet", "192.0.0.0/2"), "overlaps 224.0.0.0/4, which is multicast"),
            (("--subnet", "::/0"), "overlaps ::/128, which is unspecified"),
            (("--subnet", "fe00::/7"), "overlaps fe80::/10, which is link-local"),
            ((*SUBNET, "--subnet", "10.1.0.0/24"), "--subnet is given twice for IPv4"),
            ((*SUBNET, "--gateway", "10.0.1.1"), r"--gateway 10\.0\.1\.1 is not an address of a machine on --subnet"),
            ((*SUBNET, "--gateway", "10.0.0.255"), "is not an address of a machine"),
            ((*SUBNET, "--gateway", "10.0.0.0"), "is not an address of a machine"),
            ((*SUBNET, "--gateway", "fe80::1"), "no --subnet is of that family"),
            ((*SUBNET, "--gateway", "10.0.0.1", "--gateway", "10.0.0.2"), "--gateway is given twice for IPv4"),
            ((*SUBNET, "--range", "10.0.0.50"), "is no FIRST-LAST"),
            ((*SUBNET, "--range", "10.0.0.99-10.0.0.50"), r"did you mean 10\.0\.0\.50-10\.0\.0\.99"),
            ((*SUBNET, "--range", "10.0.0.50-10.0.1.99"), r"10\.0\.1\.99 is outside"),
            ((*SUBNET, "--range", "10.0.0.50-10.0.0.255"), "the broadcast address"),
            ((*SUBNET, "--range", "10.0.0.0-10.0.0.9"), "the network's own address"),
            ((*SUBNET, "--range", "10.0.0.5-fd00::5"), "different families"),
            ((*SUBNET, "--range", "fd00::5-fd00::6"), "--range has an address of IPv6, but no --subnet"),
            ((*SUBNET, "--gateway", "10.0.0.1", "--range", "10.0.0.1-10.0.0.1"), "room for nobody but the gateway"),
            ((*SUBNET, "--vlan", "4095"), "a whole number from 1 to 4094"),
            ((*SUBNET, "--vlan", "0"), "a whole number from 1 to 4094"),
            ((*SUBNET, "--mtu", "60"), "a whole number from 576"),
            ((*SUBNET, "--dns", "dns.example.org"), "is no address"),
            ((*SUBNET, "--dns", "10.0.0.1/24"), "has a prefix length"),
            ((*SUBNET, "--dns", "127.0.0.1"), "it is loopback"),
            ((*SUBNET, "--bridge", "a-bridge-of-16-c"), "is no name of a bridge"),
            ((*SUBNET, "--bridge", "br 0"), "is no name of a bridge"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, options: tuple[str, ...], said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            record(*options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["default", "a/b", "", "x" * 64])
    def test_names_that_are_not_taken(self, name: str) -> None:
        with pytest.raises(ConfigError, match="network"):
            record_from(parse(["network", "add", name, "--bridge", "br0", *SUBNET]), created_at="", created_by="")

    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(ConfigError, match="--subnet"):
            parse(["network", "add", "lan", "--bridge", "br0"])
        with pytest.raises(ConfigError, match="--bridge"):
            parse(["network", "add", "lan", *SUBNET])
        with pytest.raises(ConfigError, match=r"add\|list\|show\|rm"):
            parse(["network"])

    def test_two_on_one_wire_must_not_overlap(self) -> None:
        wide = NetworkRecord("office", "br0", (Subnet("10.0.0.0/16", "10.0.0.1", "10.0.255.254"),))
        assert overlap(record(*SUBNET), [wide]) == "10.0.0.0/24 overlaps 10.0.0.0/16 of the network office, on br0 too"
        assert overlap(record(*SUBNET, "--vlan", "7"), [wide]) is None
        assert overlap(record("--subnet", "10.1.0.0/24"), [wide]) is None
        assert overlap(record("--subnet", "fd00::/64"), [wide]) is None


class TestCards:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("default", Nic("office")),
            ("default,address=10.0.0.7", Nic("office", addresses=(IpAddress("10.0.0.7", 0),))),
            ("default,mac=52:54:00:00:00:07", Nic("office", mac="52:54:00:00:00:07")),
            ("network=lan", Nic("lan")),
            ("network=default", Nic("default")),
            ("bridge=br0", Nic("", "br0")),
            ("bridge=br0,vlan=42", Nic("", "br0", 42)),
            ("network=lan,mac=52-54-00-AA-BB-CC,mtu=1400", Nic("lan", mac="52:54:00:aa:bb:cc", mtu=1400)),
            ("network=lan,address=10.0.0.5", Nic("lan", addresses=(IpAddress("10.0.0.5", 0),))),
            ("network=lan,gateway=10.0.0.1", Nic("lan", addresses=(IpAddress("", 0, "10.0.0.1"),))),
            (
                "bridge=br0,address=FD00:0::5/64,address=10.0.0.5/24,gateway=10.0.0.1,dns=10.0.0.1,dns=10.0.0.2",
                Nic(
                    "", "br0", addresses=(IpAddress("10.0.0.5", 24, "10.0.0.1"), IpAddress("fd00::5", 64)),
                    name_servers=("10.0.0.1", "10.0.0.2"),
                ),
            ),
            (
                "bridge=br0,address=fd00::5/64,gateway=fe80::1",
                Nic("", "br0", addresses=(IpAddress("fd00::5", 64, "fe80::1"),)),
            ),
        ],
    )  # fmt: skip
    def test_what_can_be_asked_for(self, text: str, expected: Nic) -> None:
        assert parse_nic(text, "office") == expected

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is no KEY=VALUE"),
            ("default,", '"" is no KEY=VALUE'),
            ("default,network=lan", "network= is given 2 times, at most 1 is taken"),
            ("default,bridge=br0", "has both network= and bridge="),
            ("lan,default", '"lan" is no KEY=VALUE'),
            ("lan", '"lan" is no KEY=VALUE; write it like --nic default, --nic network=lan'),
            ("bridge=br0,network=lan", "both network= and bridge="),
            ("vlan=42", "neither network= nor bridge="),
            ("brige=br0", "did you mean bridge="),
            ("bridge=", "bridge= is empty"),
            ("bridge=br0,bridge=br1", "bridge= is given 2 times, at most 1 is taken"),
            ("network=lan,vlan=42", "has vlan=, which goes with bridge="),
            ("network=lan,dns=10.0.0.1", "has dns=, which goes with bridge="),
            ("bridge=br0,vlan=4095", "a whole number from 1 to 4094"),
            ("bridge=br0,address=10.0.0.5", "needs its prefix length"),
            ("bridge=br0,address=10.0.0.5/24,address=10.0.0.6/24", "address= is given twice for IPv4"),
            ("bridge=br0,address=10.0.0.255/24", "broadcast address"),
            ("bridge=br0,address=10.0.0.5/0", "a number from 1 to 32"),
            ("bridge=br0,address=10.0.0.x/24", "is no address"),
            ("bridge=br0,address=fe80::1%eth0/64", "has a scope"),
            ("bridge=br0,address=169.254.1.1/16", "link-local"),
            ("bridge=br0,address=10.0.0.5/24,gateway=10.0.1.1", "cannot be reached from 10.0.0.5"),
            ("bridge=br0,address=10.0.0.5/24,gateway=10.0.0.5", "is the card's own address"),
            ("bridge=br0,gateway=10.0.0.1", "needs an address= of its family"),
            ("bridge=br0,dns=10.0.0.1", "dns= without address="),
            ("bridge=br0,mac=53:54:00:00:00:01", "a group of cards"),
            ("bridge=br0,mac=52:54:00:00:00", "is no MAC"),
            ("bridge=br0,mtu=99999", "a whole number from 576 to 65535"),
            ("network=two words", "is no name"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said.replace("|", r"\|")) as caught:
            parse_nic(text, "default")
        assert "\n" not in str(caught.value)


class TestFreeAddresses:
    def test_the_gateway_and_what_is_reserved_is_no_guests(self) -> None:
        subnet = Subnet("10.0.0.0/29", "10.0.0.1", "10.0.0.6", "10.0.0.1")
        dice = random.Random(1)
        found = {free_address(subnet, set(), dice) for _ in range(200)}
        assert found == {f"10.0.0.{n}" for n in range(2, 7)}
        assert span_of(subnet).size == 5
        assert [address for address in ("10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.8") if is_usable(subnet, address)] == []
        assert is_usable(subnet, "10.0.0.6")

    def test_the_last_one_is_found_and_then_none(self) -> None:
        subnet = Subnet("10.0.0.0/16", "10.0.0.1", "10.0.255.254", "10.0.0.1")
        taken = {str(ipaddress.IPv4Address(0x0A000002 + n)) for n in range(65533 - 1)}
        last = free_address(subnet, taken, random.Random(1))
        assert last == "10.0.255.254"
        assert free_address(subnet, taken | {last}, random.Random(1)) is None
        assert used_of(subnet, taken) == span_of(subnet).size - 1

    def test_a_range_of_ipv6_is_not_gone_through(self) -> None:
        subnet = Subnet("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ff7f")
        dice = random.Random(1)
        found = {free_address(subnet, set(), dice) for _ in range(1000)}
        assert len(found) == 1000
        assert used_of(subnet, ["fd00::5", "10.0.0.1", "fd01::1"]) == 1

    def test_one_that_is_nearly_full_and_too_wide_to_list_is_walked(self) -> None:
        subnet = Subnet("fd00::/64", "fd00::1", "fd00::3:0")
        taken = {str(ipaddress.IPv6Address(0xFD00 << 112 | n)) for n in range(1, 0x30000)}
        assert free_address(subnet, taken, random.Random(1)) == "fd00::3:0"
        assert free_address(subnet, taken | {"fd00::3:0"}, random.Random(1)) is None

    @given(taken=st.sets(st.integers(1, 14)), seed=st.integers(0, 99))
    def test_never_a_taken_one_and_never_none_while_one_is_free(self, taken: set[int], seed: int) -> None:
        subnet = Subnet("10.0.0.0/28", "10.0.0.1", "10.0.0.14", "10.0.0.3")
        used = {f"10.0.0.{n}" for n in taken}
        found = free_address(subnet, used, random.Random(seed))
        free = {f"10.0.0.{n}" for n in range(1, 15)} - used - {"10.0.0.3"}
        assert found in free if free else found is None
