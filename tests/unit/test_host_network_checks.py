"""What stands in the way of guests on a host, and how it is said."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from common.config import ComputeConfig, MetadataConfig, NetworkConfig
from common.errors import HypervisorRejected
from ecompute.filter_guard import Lost
from ecompute.host_network import HostNetwork
from ecompute.host_network_checks import HostNetworkFacts, MetadataFacts, Trouble, judged
from tests.fakes.hypervisor import FakeHypervisor

MD = "169.254.169.254"
METADATA = MetadataFacts(MD, 80, "virbr0", interfaces=frozenset({"virbr0"}), listeners=frozenset({MD}), is_served=True)
WELL = HostNetworkFacts(
    "default", network_is_there=True, network_is_active=True, network_bridge="virbr0", network_is_autostarted=True,
    bridges=frozenset({"virbr0", "br0"}), addressed=frozenset({"virbr0", "eth0"}), metadata=METADATA, forwards_packets=True,
    reverse_path={"virbr0": 1}, has_spoofing_filter=True,
)  # fmt: skip


def facts(**changes: object) -> HostNetworkFacts:
    return dataclasses.replace(WELL, **changes)  # type: ignore[arg-type]


def metadata(**changes: object) -> HostNetworkFacts:
    return facts(metadata=dataclasses.replace(METADATA, **changes))  # type: ignore[arg-type]


CASES = [
    (facts(network_is_there=False, network_is_active=False), Trouble.NETWORK_MISSING, "virsh net-define", True),
    (facts(network_is_active=False, start_error="dnsmasq is missing"), Trouble.NETWORK_DOWN, "dnsmasq is missing", True),
    (facts(network_is_autostarted=False), Trouble.NETWORK_NOT_AUTOSTARTED, "virsh net-autostart default", False),
    (facts(second_bridge="br1"), Trouble.BRIDGE_MISSING, "iface br1 inet manual", True),
    (facts(network_bridge="virbr1", bridges=frozenset({"virbr1"})), Trouble.METADATA_BRIDGE_MISSING, "set metadata.bridge: virbr1", False),
    (metadata(interfaces=frozenset({"eth1", "virbr0"})), Trouble.METADATA_ADDRESS_ELSEWHERE, f"ip address del {MD}/32 dev eth1", False),
    (metadata(route="eth0"), Trouble.METADATA_ROUTE_ELSEWHERE, f"ip route del {MD}", False),
    (metadata(listeners=frozenset({"0.0.0.0"}), is_served=False), Trouble.METADATA_PORT_TAKEN, "port 80 of all addresses", False),
    (metadata(listeners=frozenset({"::", "10.0.0.1"}), is_served=False), Trouble.METADATA_PORT_TAKEN, "ss -lntp sport = :80", False),
    (metadata(is_served=False), Trouble.METADATA_PORT_TAKEN, f"port 80 of {MD}", False),
    (metadata(may_set=False, interfaces=frozenset(), listeners=frozenset()), Trouble.METADATA_ADDRESS_REFUSED, "run it as root", False),
    (facts(forwards_packets=False), Trouble.NO_FORWARDING, "sysctl -w net.ipv4.ip_forward=1", False),
    (facts(reverse_path={"br0": 1}), Trouble.STRICT_REVERSE_PATH, "net.ipv4.conf.br0.rp_filter=2", False),
    (facts(filters_bridged_packets=True), Trouble.BRIDGED_PACKETS_FILTERED, "bridge-nf-call-iptables=0", False),
    (facts(firewalld_lets_metadata=False), Trouble.FIREWALLD, "--zone=libvirt --add-port=80/tcp", False),
    (facts(ufw_lets_metadata=False), Trouble.UFW, f"ufw allow in on virbr0 to {MD} port 80 proto tcp", False),
    (facts(has_nft=False), Trouble.NFT_MISSING, "apt-get install nftables", False),
    (facts(unfiltered=frozenset({"vnet3"})), Trouble.SPOOFING_FILTER_GONE, "vnet3: systemctl restart libvirtd", False),
    (facts(network_without_nat="default"), Trouble.NETWORK_RULES_GONE, "systemctl restart libvirtd", False),
    (facts(has_spoofing_filter=False), Trouble.SPOOFING_FILTER_MISSING, "virsh nwfilter-list", False),
]  # fmt: skip


@pytest.mark.parametrize(("found", "kind", "says", "stops"), CASES, ids=[f"{case[1]}-{case[2]}" for case in CASES])
def test_each_trouble_is_one_line_with_its_cure(found: HostNetworkFacts, kind: Trouble, says: str, stops: bool) -> None:
    (trouble,) = judged(found)
    assert (trouble.kind, trouble.stops_guests) == (kind, stops)
    assert says in str(trouble)
    assert "\n" not in str(trouble)


def test_every_trouble_has_a_case() -> None:
    assert {case[1] for case in CASES} == set(Trouble)


@pytest.mark.parametrize(
    "found",
    [
        WELL,
        facts(metadata=None, ufw_lets_metadata=False, firewalld_lets_metadata=False),
        facts(network_is_autostarted=None),
        facts(reverse_path={"br0": 2}),
        facts(firewalld_lets_metadata=True, ufw_lets_metadata=True, second_bridge="br0", has_spoofing_filter=None),
        metadata(route="virbr0"),
        metadata(listeners=frozenset({"10.0.0.1", "127.0.0.1"}), is_served=False),
        metadata(interfaces=frozenset()),
    ],
)
def test_what_is_well_is_not_spoken_of(found: HostNetworkFacts) -> None:
    assert judged(found) == ()


def test_what_stops_guests_comes_first() -> None:
    found = judged(facts(has_nft=False, second_bridge="br1", forwards_packets=False))
    assert [trouble.stops_guests for trouble in found] == [True, False, False]


# -- a host ---------------------------------------------------------------------------------------------------------------


class Host:
    """A file system of a host's, libvirt beside it, and what was reported."""

    def __init__(self, root: Path, **config: object) -> None:
        self.root, self.hypervisor = root, FakeHypervisor()
        self.reported: list[str] = []
        self.shown: dict[str, int] = {}
        for bridge in ("virbr0", "br0"):
            (root / f"sys/class/net/{bridge}/bridge").mkdir(parents=True)
        self.write("proc/sys/net/ipv4/ip_forward", "1\n")
        self.config = ComputeConfig(metadata=MetadataConfig(mode="off"))
        self.config = dataclasses.replace(self.config, **config)  # type: ignore[arg-type]
        self.network = HostNetwork(
            self.config, self.hypervisor, has_spoofing_filter=True, is_simulated=False, report=self.reported.append,
            show=lambda counts: setattr(self, "shown", dict(counts)), root=root,
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def kinds(self) -> list[str]:
        return [trouble.kind for trouble in self.network.troubles]


def down(hypervisor: FakeHypervisor) -> None:
    hypervisor.networks["default"] = dataclasses.replace(hypervisor.networks["default"], is_active=False)


def test_a_network_that_is_down_is_started_and_nothing_is_said_of_it_as_a_trouble(tmp_path: Path) -> None:
    host = Host(tmp_path)
    down(host.hypervisor)
    host.network.keep()
    assert host.hypervisor.networks["default"].is_active
    assert (host.kinds(), host.reported) == ([], [""])


def test_a_network_that_does_not_start_is_reported_until_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    down(host.hypervisor)

    def refuses(name: str) -> None:
        raise HypervisorRejected("start network default: no dnsmasq")

    with monkeypatch.context() as patch:
        patch.setattr(host.hypervisor, "start_network", refuses)
        host.network.keep()
        assert host.kinds() == [Trouble.NETWORK_DOWN]
        assert "no dnsmasq" in host.reported[-1]
    host.network.keep()
    assert host.reported[-1] == ""


def test_each_trouble_is_said_once_and_when_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    host = Host(tmp_path)
    host.write("proc/sys/net/ipv4/ip_forward", "0\n")
    for _ in range(3):
        host.network.keep()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert host.shown == {Trouble.NO_FORWARDING: 1}
    host.write("proc/sys/net/ipv4/ip_forward", "1\n")
    host.network.keep()
    assert caplog.records[-1].message == "this trouble of the host is over"
    assert (host.shown, host.network.troubles) == ({}, ())


def test_a_host_that_is_well_is_not_looked_at_again_until_libvirt_was_away(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.network.keep()
    asked = host.reported.copy()
    del host.hypervisor.networks["default"]
    host.network.keep()
    assert host.reported == asked
    host.network.ask()
    host.network.keep()
    assert host.kinds() == [Trouble.NETWORK_MISSING]


def test_autostart_is_libvirts_own_link(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.write("etc/libvirt/qemu/networks/default.xml", "<network/>")
    host.network.keep()
    assert host.kinds() == [Trouble.NETWORK_NOT_AUTOSTARTED]
    (tmp_path / "etc/libvirt/qemu/networks/autostart").mkdir()
    (tmp_path / "etc/libvirt/qemu/networks/autostart/default.xml").symlink_to("../default.xml")
    host.network.keep()
    assert host.kinds() == []


MANAGED = MetadataConfig(bridge="virbr0", address="203.0.113.254", port=18)  # nobody has it


def test_ufw_is_asked_for_a_rule_by_its_own_file(tmp_path: Path) -> None:
    host = Host(tmp_path, metadata=MANAGED)
    host.write("etc/ufw/ufw.conf", "# /etc/ufw/ufw.conf\nENABLED=yes\n")
    host.write("etc/ufw/user.rules", "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in\n")
    host.network.keep()
    assert host.kinds() == [Trouble.UFW]
    host.write("etc/ufw/user.rules", "### tuple ### allow tcp 18 203.0.113.254 any 0.0.0.0/0 in_virbr0\n")
    host.network.keep()
    assert host.kinds() == []


def test_firewalld_is_known_by_its_process_and_asked_for_a_port_by_its_zone(tmp_path: Path) -> None:
    host = Host(tmp_path, metadata=MANAGED)
    host.write("proc/17/comm", "firewalld\n")
    host.write("usr/lib/firewalld/zones/libvirt.xml", '<zone target="ACCEPT"><service name="dns"/></zone>')
    host.network.keep()
    assert host.kinds() == [Trouble.FIREWALLD]
    host.write("etc/firewalld/zones/libvirt.xml", '<zone target="ACCEPT"><port port="18" protocol="tcp"/></zone>')
    host.network.keep()
    assert host.kinds() == []


def test_the_hosts_own_metadata_route_and_a_strict_bridge_are_read_from_the_kernel(tmp_path: Path) -> None:
    host = Host(tmp_path, metadata=dataclasses.replace(MANAGED, bridge="br0", address="169.254.77.77"))  # nobody has it
    host.write("proc/thread-self/net/route", "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n"
               "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\nens3\t4D4DFEA9\t0100000A\t0007\t0\t0\t0\tFFFFFFFF\t0\n")  # fmt: skip
    host.write("proc/sys/net/ipv4/conf/all/rp_filter", "1\n")
    host.write("proc/sys/net/ipv4/conf/br0/rp_filter", "0\n")
    host.network.keep()
    assert set(host.kinds()) == {Trouble.METADATA_ROUTE_ELSEWHERE, Trouble.STRICT_REVERSE_PATH}


def test_under_libvirts_mock_only_its_network_is_looked_at(tmp_path: Path) -> None:
    hypervisor, reported = FakeHypervisor(), list[str]()
    network = HostNetwork(
        ComputeConfig(network=NetworkConfig(name="none")), hypervisor, has_spoofing_filter=False, is_simulated=True,
        report=reported.append, root=tmp_path,
    )  # fmt: skip
    network.keep()
    assert [trouble.kind for trouble in network.troubles] == [Trouble.NETWORK_MISSING]


def test_the_addresses_of_this_machine_are_found_with_their_interfaces() -> None:
    network = HostNetwork(ComputeConfig(), FakeHypervisor(), has_spoofing_filter=None, is_simulated=False)
    assert ("lo", "127.0.0.1") in network._addresses()


def test_who_asks_for_a_look_during_one_gets_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    gather, looks = host.network.gather, []

    def slow() -> HostNetworkFacts:
        looks.append(1)
        found = gather()
        if len(looks) == 1:
            host.network.ask()  # libvirt went and came back after what it was asked for
        return found

    monkeypatch.setattr(host.network, "gather", slow)
    for _ in range(3):
        host.network.keep()
    assert len(looks) == 2


def test_rules_of_libvirts_that_are_gone_are_a_trouble_until_they_are_back(tmp_path: Path) -> None:
    lost = [Lost()]
    host = Host(tmp_path)
    network = HostNetwork(
        host.config, host.hypervisor, has_spoofing_filter=True, is_simulated=False, root=tmp_path, lost=lambda: lost[0]
    )
    network.keep()
    lost[0] = Lost(frozenset({"vnet3"}), "default")
    network.keep()
    assert [trouble.kind for trouble in network.troubles] == [Trouble.SPOOFING_FILTER_GONE, Trouble.NETWORK_RULES_GONE]
    lost[0] = Lost()
    network.keep()
    assert network.troubles == ()
