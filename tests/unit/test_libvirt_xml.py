"""ecompute/libvirt_xml.py: what libvirt writes, read by us."""

from __future__ import annotations

import dataclasses

import pytest

from ecompute.hypervisor import DhcpHost, Network
from ecompute.libvirt_xml import (
    Capabilities,
    bridge_of_own_network,
    capabilities_of,
    dhcp_host_text,
    network_of,
    stamp_of,
    stamp_text,
)
from tests.support.domains import a_stamp

CAPABILITIES = """
<capabilities>
  <host><uuid>c0ffee00-0000-4000-8000-000000000001</uuid>
    <cpu><arch>x86_64</arch><model>EPYC</model><feature name='vme'/><feature name='ht'/></cpu></host>
  <guest><os_type>hvm</os_type><arch name='i686'><machine>isapc</machine></arch></guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'><wordsize>64</wordsize><machine maxCpus='255'>pc-i440fx-7.2</machine>
      <machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine>
      <domain type='qemu'/><domain type='kvm'><machine>pc</machine><machine>q35</machine></domain></arch></guest>
</capabilities>
"""


def test_capabilities_name_the_machines_of_the_hosts_architecture_once_each() -> None:
    assert capabilities_of(CAPABILITIES) == Capabilities(
        "c0ffee00-0000-4000-8000-000000000001", "x86_64", frozenset({"vme", "ht"}), ("pc-i440fx-7.2", "pc", "q35")
    )


def test_what_capabilities_leave_out_is_empty() -> None:
    assert capabilities_of("<capabilities/>") == Capabilities("", "", frozenset(), ())


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", Network("n", True, "", "", 0, "", "", ())),
        ("<bridge name='br0'/><forward mode='bridge'/>", Network("n", True, "br0", "", 0, "", "", ())),
        (
            "<ip family='ipv6' address='fd00::1' prefix='64'><dhcp><range start='fd00::2' end='fd00::9'/></dhcp></ip>"
            "<ip address='10.0.0.1' netmask='255.255.252.0'/>"
            "<ip family='ipv4' address='10.9.0.1' prefix='16'><dhcp><range start='10.9.1.0' end='10.9.2.255'/></dhcp></ip>",
            Network("n", True, "", "10.9.0.1", 16, "10.9.1.0", "10.9.2.255", ()),
        ),
        ("<ip address='10.0.0.1' netmask='255.255.252.0'/>", Network("n", True, "", "10.0.0.1", 22, "", "", ())),
        (
            "<ip address='10.0.0.1' prefix='24'><dhcp><host mac='52:54:00:AB:CD:EF' ip='10.0.0.5'/>"
            "<host name='printer' ip='10.0.0.6'/><host mac='52:54:00:00:00:01' name='no-address'/></dhcp></ip>",
            Network(
                "n", True, "", "10.0.0.1", 24, "", "", (DhcpHost("52:54:00:ab:cd:ef", "10.0.0.5"), DhcpHost("", "10.0.0.6"))
            ),
        ),
    ],
)
def test_networks_of_every_kind_are_read(inside: str, expected: Network) -> None:
    assert network_of(f"<network><name>n</name>{inside}</network>", is_active=True) == expected


def test_a_dhcp_entry_is_written_as_libvirt_takes_it() -> None:
    assert dhcp_host_text(DhcpHost("52:54:00:00:00:01", "10.0.0.5")) == '<host mac="52:54:00:00:00:01" ip="10.0.0.5" />'


def test_a_stamp_is_read_as_it_was_written() -> None:
    stamp = dataclasses.replace(a_stamp(booted=4), definition="<&\"'>", boot_id="")
    assert stamp_of(stamp_text(stamp)) == stamp


def test_a_later_versions_stamp_may_say_more() -> None:
    assert stamp_of(stamp_text(a_stamp()).replace("<stamp ", "<stamp color='blue' ")) == a_stamp()


@pytest.mark.parametrize(
    "text", ["", "<stamp", "<stamp/>", "<stamp provider='x' cluster-id='1' spec-revision='1'/>", "<other/>"]
)
def test_what_is_no_stamp_is_nobodys(text: str) -> None:
    assert stamp_of(text) is None


def test_a_network_tells_the_prefixes_in_which_guests_give_themselves_addresses() -> None:
    text = """<network><name>n</name><bridge name='virbr7'/>
      <ip address='10.0.0.1' netmask='255.255.255.0'/>
      <ip family='ipv6' address='fd00:150::1' prefix='64'/>
      <ip family='ipv6' address='fd00:151::1' prefix='64'><dhcp><range start='fd00:151::2' end='fd00:151::9'/></dhcp></ip>
      <ip family='ipv6' address='fd00:152::1' prefix='80'/>
    </network>"""
    assert network_of(text, is_active=True).prefixes6 == ("fd00:150::",)


def test_libvirts_own_bridges_are_told_from_the_hosts() -> None:
    own = "<network><name>n</name><forward mode='nat'/><bridge name='virbr7'/></network>"
    of_the_host = "<network><name>n</name><forward mode='bridge'/><bridge name='br0'/></network>"
    isolated = "<network><name>n</name><bridge name='virbr8'/></network>"
    without = "<network><name>n</name><forward mode='passthrough'/></network>"
    assert [bridge_of_own_network(text) for text in (own, of_the_host, isolated, without)] == ["virbr7", "", "virbr8", ""]
