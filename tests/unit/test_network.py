"""Addresses: each to one instance, ready before they are asked for, and back again."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import Conflict, EcomputeError, HypervisorRejected, HypervisorUnavailable, NoAddress, NoSpace
from common.model import Address, IpAddress, Nic
from ecompute import network as network_module
from ecompute.address_pairs import candidates, is_ours, pair_of
from ecompute.bridges import HostBridges
from ecompute.hypervisor import DhcpHost, Hypervisor, Lease, Network
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.network import AddressPools
from tests.fakes.hypervisor import DEFAULT_NETWORK, FakeHypervisor
from tests.support.processes import wait_until

ONE = UUID("11111111-1111-4111-8111-111111111111")
TWO = UUID("22222222-2222-4222-8222-222222222222")
TOP = "192.168.122.254"
NO_STOP = threading.Event()


def entries(hypervisor: FakeHypervisor, network: str = "default") -> list[DhcpHost]:
    return [entry for entry in hypervisor.networks[network].dhcp_hosts if is_ours(entry)]


def set_network(hypervisor: FakeHypervisor, name: str = "default", **changes: object) -> None:
    hypervisor.networks[name] = dataclasses.replace(hypervisor.networks.get(name, DEFAULT_NETWORK), name=name, **changes)


def calls(hypervisor: FakeHypervisor) -> list[str]:
    """What was asked since the last time."""
    names = [name for name, _ in hypervisor.calls]
    hypervisor.calls.clear()
    return names


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    return FakeHypervisor()


@pytest.fixture
def pools(hypervisor: FakeHypervisor, tmp_path: Path) -> AddressPools:
    return AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3, bridges=HostBridges(None))


class TestPairs:
    def test_the_mac_is_the_address(self) -> None:
        assert pair_of("192.168.122.50") == DhcpHost("52:54:c0:a8:7a:32", "192.168.122.50")

    @pytest.mark.parametrize(
        ("entry", "expected"),
        [
            (DhcpHost("52:54:c0:a8:7a:32", "192.168.122.50"), True),
            (DhcpHost("52:54:c0:a8:7a:33", "192.168.122.50"), False),
            (DhcpHost("52:54:00:12:34:56", "192.168.122.50"), False),
            (DhcpHost("", "192.168.122.50"), False),
            (DhcpHost("52:54:c0:a8:7a:32", "fe80::1"), False),
        ],
    )
    def test_ours_are_the_entries_of_that_form(self, entry: DhcpHost, expected: bool) -> None:
        assert is_ours(entry) is expected

    def test_candidates_come_from_the_top_and_leave_out_what_is_used(self) -> None:
        network = Network(
            "n", True, "br", "10.0.0.250", 24, "10.0.0.245", "10.0.0.254",
            (DhcpHost("52:54:00:00:00:01", "10.0.0.254"), DhcpHost("", "10.0.0.253"), DhcpHost("52:54:0a:00:00:fc", "10.0.0.9")),
        )  # fmt: skip
        leases = (Lease("52:54:00:00:00:02", "10.0.0.251"), Lease("52:54:0a:00:00:f9", "10.0.0.249"))
        assert [pair.address for pair in candidates(network, leases)] == [
            "10.0.0.249", "10.0.0.248", "10.0.0.247", "10.0.0.246", "10.0.0.245",
        ]  # fmt: skip

    def test_a_network_without_dhcp_has_none(self) -> None:
        assert list(candidates(dataclasses.replace(DEFAULT_NETWORK, dhcp_start="", dhcp_end=""), ())) == []


class TestReserve:
    def test_an_address_is_assigned_with_all_that_the_guest_will_have(self, pools: AddressPools, tmp_path: Path) -> None:
        address = Address("default", "52:54:c0:a8:7a:fe", TOP, 24, "192.168.122.1")
        assert pools.assigned(ONE) is None
        assert pools.reserve(ONE, [Nic()]) == (address,) == pools.assigned(ONE)
        assert pools.assignments() == {ONE: (address,)}
        document = json.loads((tmp_path / "network" / f"{ONE}.json").read_text())
        assert document == {"schema": 1, "uuid": str(ONE), "addresses": [json.loads(json.dumps(dataclasses.asdict(address)))]}

    def test_the_address_that_a_guest_gives_itself_on_a_network_with_ipv6_is_known_too(
        self, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        set_network(hypervisor, prefixes6=("fd00:150::",))
        assert pools.reserve(ONE, [Nic()])[0].all_addresses == (TOP, "fd00:150::5054:c0ff:fea8:7afe")

    def test_what_is_ready_is_taken_without_asking_libvirt(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        assert pools.replenish(NO_STOP)
        assert [entry.address for entry in entries(hypervisor)] == [TOP, "192.168.122.253", "192.168.122.252"]
        calls(hypervisor)
        taken = [pools.reserve(uuid.uuid4(), [Nic()])[0].address for _ in range(3)]
        assert taken == [TOP, "192.168.122.253", "192.168.122.252"]
        assert calls(hypervisor) == []
        assert pools.reserve(uuid.uuid4(), [Nic()])[0].address == "192.168.122.251"
        assert "add_dhcp_host" in calls(hypervisor)

    def test_every_card_gets_one_from_its_network(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        set_network(
            hypervisor, "lab", bridge="virbr1", gateway="10.7.0.1", prefix_length=20, dhcp_start="10.7.0.2", dhcp_end="10.7.9.9"
        )
        found = pools.reserve(ONE, [Nic("lab"), Nic(), Nic("lab")])
        assert [(a.network, a.address, a.prefix_length, a.gateway) for a in found] == [
            ("lab", "10.7.9.9", 20, "10.7.0.1"), ("default", TOP, 24, "192.168.122.1"), ("lab", "10.7.9.8", 20, "10.7.0.1"),
        ]  # fmt: skip

    def test_an_instance_without_cards_is_assigned_none(self, pools: AddressPools) -> None:
        assert pools.reserve(ONE, []) == () == pools.assigned(ONE)

    def test_what_is_assigned_stays_and_a_lost_entry_is_put_back(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        first = pools.reserve(ONE, [Nic()])
        set_network(hypervisor, dhcp_hosts=())  # the network was defined anew
        assert pools.reserve(ONE, [Nic()]) == first
        assert entries(hypervisor) == [pair_of(TOP)]

    def test_somebody_elses_entry_with_the_address_is_not_taken_over(
        self, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        pools.reserve(ONE, [Nic()])
        pools.started(ONE)
        set_network(hypervisor, dhcp_hosts=(DhcpHost("52:54:00:00:00:01", TOP),))
        with pytest.raises(Conflict):
            pools.reserve(ONE, [Nic()])

    def test_a_failure_gives_everything_back(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(NoAddress, match="no network absent: define it"):
            pools.reserve(ONE, [Nic(), Nic("absent")])
        with monkeypatch.context() as patch:
            patch.setattr(network_module, "write_atomically", lambda *_: (_ for _ in ()).throw(NoSpace("full")))
            with pytest.raises(NoSpace):
                pools.reserve(ONE, [Nic()])
        assert pools.assigned(ONE) is None
        assert not (tmp_path / "network" / f"{ONE}.json").exists()
        assert pools.reserve(TWO, [Nic()])[0].address == TOP
        assert len(entries(hypervisor)) == 1

    def test_a_network_that_was_never_there_is_forgotten_with_its_request(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(NoAddress, match=r"no network nope: .*those of the cluster: eschedule network list"):
            pools.reserve(ONE, [Nic("nope")])
        (tmp_path / "network" / "pools" / "gone").mkdir(parents=True)  # as one that has been undefined since
        after = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3)
        assert after.replenish(NO_STOP)
        assert [path.name for path in (tmp_path / "network" / "pools").iterdir()] == ["default"]
        assert caplog.text == ""

    def test_a_network_that_is_gone_is_missed_as_long_as_an_instance_is_on_it(
        self, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        set_network(hypervisor, "lab", gateway="10.1.0.1", dhcp_start="10.1.0.2", dhcp_end="10.1.0.9")
        pools.reserve(ONE, [Nic("lab")])
        del hypervisor.networks["lab"]
        assert not pools.replenish(NO_STOP)
        pools.release(ONE)
        assert pools.replenish(NO_STOP)

    def test_parallel_builds_never_share_one(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.replenish(NO_STOP)
        instances = [uuid.uuid4() for _ in range(60)]
        with ThreadPoolExecutor(16) as threads:
            background = threads.submit(lambda: [pools.replenish(NO_STOP) for _ in range(20)])
            found = list(threads.map(lambda instance: pools.reserve(instance, [Nic()])[0], instances))
            background.result(30)
        assert len({address.address for address in found}) == 60
        assert {pair_of(address.address) for address in found} <= set(entries(hypervisor))

    def test_parallel_coming_and_going_keeps_them_apart(self, pools: AddressPools) -> None:
        in_use: set[str] = set()
        lock = threading.Lock()

        def life(_: int) -> None:
            instance = uuid.uuid4()
            address = pools.reserve(instance, [Nic()])[0].address
            with lock:
                assert address not in in_use
                in_use.add(address)
            with lock:
                in_use.discard(address)
            pools.release(instance)

        with ThreadPoolExecutor(8) as threads:
            background = threads.submit(lambda: [pools.replenish(NO_STOP) for _ in range(50)])
            list(threads.map(life, range(200)))
            background.result(30)
        assert pools.assignments() == {}


class TestNetworksThatGiveNone:
    def test_the_address_of_another_guest_is_left_out(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        hypervisor.live_leases["default"] = (Lease("52:54:00:aa:bb:cc", TOP),)
        assert pools.reserve(ONE, [Nic()])[0].address == "192.168.122.253"

    def test_a_lease_given_while_the_entry_was_made_is_noticed(
        self, hypervisor: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add = hypervisor.add_dhcp_host

        def add_too_late(network: str, host: DhcpHost) -> None:
            add(network, host)
            hypervisor.live_leases["default"] = (Lease("52:54:00:aa:bb:cc", TOP),)

        monkeypatch.setattr(hypervisor, "add_dhcp_host", add_too_late)
        pools = AddressPools(hypervisor, tmp_path / "network")
        assert pools.reserve(ONE, [Nic()])[0].address == "192.168.122.253"
        assert entries(hypervisor) == [pair_of("192.168.122.253")]

    def test_an_entry_that_somebody_made_meanwhile_is_left_out(
        self, hypervisor: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add = hypervisor.add_dhcp_host

        def somebody_was_quicker(network: str, host: DhcpHost) -> None:
            monkeypatch.setattr(hypervisor, "add_dhcp_host", add)
            set_network(hypervisor, dhcp_hosts=(DhcpHost("52:54:00:00:00:01", host.address),))
            add(network, host)

        monkeypatch.setattr(hypervisor, "add_dhcp_host", somebody_was_quicker)
        pools = AddressPools(hypervisor, tmp_path / "network")
        assert pools.reserve(ONE, [Nic()])[0].address == "192.168.122.253"

    def test_a_full_network_says_so(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        set_network(hypervisor, dhcp_start="192.168.122.1", dhcp_end="192.168.122.3")
        pools.reserve(ONE, [Nic()])
        pools.reserve(TWO, [Nic()])
        with pytest.raises(NoAddress, match=r"no free address between 192.168.122.1 and 192.168.122.3"):
            pools.reserve(uuid.uuid4(), [Nic()])
        pools.release(ONE)
        assert pools.reserve(uuid.uuid4(), [Nic()])[0].address == "192.168.122.3"

    @pytest.mark.parametrize(
        ("change", "words"),
        [({"is_active": False}, "virsh net-start default"), ({"dhcp_start": "", "dhcp_end": ""}, "serves no DHCP")],
    )
    def test_a_network_that_does_not_work_says_what_to_do(
        self, change: dict[str, object], words: str, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        set_network(hypervisor, **change)
        with pytest.raises(NoAddress, match=words):
            pools.reserve(ONE, [Nic()])

    @pytest.mark.parametrize("error", [HypervisorUnavailable("gone"), HypervisorRejected("no")])
    def test_libvirts_own_errors_come_through(
        self, error: EcomputeError, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        hypervisor.fail_next("add_dhcp_host", error)
        with pytest.raises(type(error)):
            pools.reserve(ONE, [Nic()])
        assert pools.reserve(ONE, [Nic()])[0].address == TOP


class TestRelease:
    def test_it_comes_back_for_others_the_longest_unused_first(self, pools: AddressPools, tmp_path: Path) -> None:
        pools.replenish(NO_STOP)
        address = pools.reserve(ONE, [Nic()])[0].address
        pools.release(ONE)
        pools.release(ONE)
        assert pools.assigned(ONE) is None
        assert not (tmp_path / "network" / f"{ONE}.json").exists()
        assert [pools.reserve(uuid.uuid4(), [Nic()])[0].address for _ in range(3)][-1] == address

    def test_a_surplus_is_removed(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        instances = [uuid.uuid4() for _ in range(10)]
        for instance in instances:
            pools.reserve(instance, [Nic()])
        for instance in instances[1:]:
            pools.release(instance)
        pools.started(instances[0])
        assert len(entries(hypervisor)) == 10
        assert pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 1 + 6  # twice as many as are kept ready
        kept = pools.assigned(instances[0])
        assert kept
        assert pair_of(kept[0].address) in entries(hypervisor)

    def test_a_failed_removal_only_leaves_the_surplus(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        instances = [uuid.uuid4() for _ in range(8)]
        for instance in instances:
            pools.reserve(instance, [Nic()])
        for instance in instances:
            pools.release(instance)
        hypervisor.fail_next("remove_dhcp_host", HypervisorUnavailable("gone"))
        assert not pools.replenish(NO_STOP)
        assert pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 6


class TestRestart:
    def test_assignments_and_free_pairs_are_found_again(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        before = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3)
        before.replenish(NO_STOP)
        address = before.reserve(ONE, [Nic()])
        (tmp_path / "network" / f"{TWO}.json.1-1.partial").write_text("{")
        after = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3)
        assert after.assigned(ONE) == address
        assert after.assigned(TWO) is None
        calls(hypervisor)
        assert after.reserve(TWO, [Nic()])[0].address == "192.168.122.253"
        assert "add_dhcp_host" not in calls(hypervisor)
        assert not list((tmp_path / "network").glob("*.partial"))

    def test_a_pair_that_a_guest_uses_though_its_file_is_lost_is_given_to_nobody(
        self, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        AddressPools(hypervisor, tmp_path / "network").reserve(ONE, [Nic()])
        (tmp_path / "network" / f"{ONE}.json").unlink()
        hypervisor.live_leases["default"] = (Lease(pair_of(TOP).mac, TOP),)
        after = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=1)
        assert after.replenish(NO_STOP)
        assert after.reserve(TWO, [Nic()])[0].address == "192.168.122.253"
        hypervisor.live_leases["default"] = ()  # the guest is gone, its lease too
        assert after.replenish(NO_STOP)
        assert after.reserve(uuid.uuid4(), [Nic()])[0].address in (TOP, "192.168.122.252")

    def test_a_pair_given_back_just_now_is_free_while_its_lease_still_runs(
        self, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        set_network(hypervisor, dhcp_start=TOP)
        pools.reserve(ONE, [Nic()])
        hypervisor.live_leases["default"] = (Lease(pair_of(TOP).mac, TOP),)
        pools.release(ONE)
        assert pools.reserve(TWO, [Nic()])[0].address == TOP

    def test_a_file_that_cannot_be_read_is_reported_and_the_others_are_served(
        self, hypervisor: FakeHypervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = AddressPools(hypervisor, tmp_path / "network").reserve(ONE, [Nic()])
        (tmp_path / "network" / f"{TWO}.json").write_text('{"schema":99}')
        after = AddressPools(hypervisor, tmp_path / "network")
        assert after.assignments() == {ONE: found}
        assert f"{TWO}.json" in caplog.text


class TestFixed:
    """A card that asks for one address of a libvirt network."""

    def fixed(self, address: str, mac: str = "") -> Nic:
        return Nic(mac=mac, addresses=(IpAddress(address, 24),))

    def test_it_gets_just_that_and_keeps_it(self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        address = Address("default", pair_of("192.168.122.60").mac, "192.168.122.60", 24, "192.168.122.1")
        assert pools.reserve(ONE, [self.fixed("192.168.122.60")]) == (address,)
        assert entries(hypervisor) == [pair_of("192.168.122.60")]
        assert AddressPools(hypervisor, tmp_path / "network").reserve(ONE, [Nic()]) == (address,)

    def test_one_that_was_ready_is_taken_as_it_is(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.replenish(NO_STOP)
        pools.reserve(ONE, [self.fixed("192.168.122.253")])
        assert [pools.reserve(uuid.uuid4(), [Nic()])[0].address for _ in range(2)] == [TOP, "192.168.122.252"]
        assert len(entries(hypervisor)) == 3

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("192.168.122.1", "none that a guest could have"),
            ("192.168.122.255", "none that a guest could have"),
            ("192.168.122.0", "none that a guest could have"),
            ("10.0.0.5", "has 192.168.122.0/24"),
            ("192.168.122.9", "keeps 192.168.122.9 for 52:54:00:00:00:01"),
            ("192.168.122.10", "leased 192.168.122.10"),
            (TOP, "another instance on this host has"),
        ],
    )
    def test_what_cannot_be_had_is_said(self, pools: AddressPools, hypervisor: FakeHypervisor, address: str, why: str) -> None:
        pools.reserve(TWO, [Nic()])
        set_network(hypervisor, dhcp_hosts=(*entries(hypervisor), DhcpHost("52:54:00:00:00:01", "192.168.122.9")))
        hypervisor.live_leases["default"] = (Lease("52:54:00:00:00:02", "192.168.122.10"),)
        with pytest.raises(NoAddress, match=why):
            pools.reserve(ONE, [Nic(), self.fixed(address)])
        assert pools.assigned(ONE) is None
        assert pools.reserve(ONE, [Nic()])[0].address == "192.168.122.253", "the first card's address was given back"

    def test_one_outside_of_the_range_goes_with_its_guest(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        set_network(hypervisor, dhcp_start="192.168.122.200")
        pools.reserve(ONE, [self.fixed("192.168.122.60")])
        pools.release(ONE)
        assert entries(hypervisor) == []
        pools.replenish(NO_STOP)
        assert "192.168.122.60" not in [entry.address for entry in entries(hypervisor)]

    def test_one_that_a_crash_left_there_is_removed(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        set_network(hypervisor, dhcp_start="192.168.122.200", dhcp_hosts=(pair_of("192.168.122.60"),))
        assert AddressPools(hypervisor, tmp_path / "network", reserve_ahead=1).replenish(NO_STOP)
        assert entries(hypervisor) == [pair_of(TOP)]

    def test_a_mac_of_ones_own_is_reserved_with_it_and_goes_with_it(
        self, pools: AddressPools, hypervisor: FakeHypervisor
    ) -> None:
        mine = DhcpHost("52:54:00:aa:bb:cc", "192.168.122.60")
        assert pools.reserve(ONE, [self.fixed(mine.address, "52:54:00:AA:BB:CC")])[0].mac == mine.mac
        assert hypervisor.networks["default"].dhcp_hosts == (mine,)
        with pytest.raises(EcomputeError, match=mine.mac):
            pools.reserve(TWO, [Nic("", bridge="br0", mac=mine.mac)])
        pools.release(ONE)
        assert hypervisor.networks["default"].dhcp_hosts == ()

    def test_a_mac_alone_comes_with_any_address(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.replenish(NO_STOP)
        card = pools.reserve(ONE, [Nic(mac="52:54:00:aa:bb:cc", mtu=1400)])[0]
        assert (card.mac, card.address, card.mtu) == ("52:54:00:aa:bb:cc", "192.168.122.251", 1400)
        with pytest.raises(EcomputeError, match="another card on this host has the MAC 52:54:00:aa:bb:cc"):
            pools.reserve(TWO, [Nic(mac="52:54:00:AA:BB:CC")])
        assert DhcpHost(card.mac, card.address) in hypervisor.networks["default"].dhcp_hosts
        pools.release(ONE)
        assert len(hypervisor.networks["default"].dhcp_hosts) == 3

    def test_two_at_once_do_not_both_get_it(self, pools: AddressPools) -> None:
        def ask(number: int) -> bool:
            try:
                pools.reserve(UUID(int=number), [self.fixed("192.168.122.60")])
            except NoAddress:
                return False
            return True

        with ThreadPoolExecutor(8) as executor:
            assert sum(executor.map(ask, range(8))) == 1


class TestBridges:
    """Cards on bridges of the host, which no libvirt network knows of."""

    def test_they_cost_libvirt_nothing(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        nics = [Nic("lan", "br0", addresses=(IpAddress("10.0.0.5", 24),)), Nic("", bridge="br1")]
        first, second = pools.reserve(ONE, nics)
        assert (first.address, first.source, second.address, second.source) == ("10.0.0.5", "static", "", "")
        assert pools.reserve(ONE, nics) == (first, second)
        pools.release(ONE)
        assert calls(hypervisor) == []
        assert pools.reserve(ONE, nics) == (first, second), "the MAC is the same again"

    def test_they_are_as_they_were_after_a_restart(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        reserved = pools.reserve(ONE, [Nic(), Nic("", bridge="br0")])
        after = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3, bridges=HostBridges(None))
        assert after.assigned(ONE) == reserved
        with pytest.raises(EcomputeError, match=reserved[1].mac):
            after.reserve(TWO, [Nic("", bridge="br0", mac=reserved[1].mac)])
        after.release(ONE)
        assert after.remove_all_unassigned() == 1

    def test_a_bridge_that_is_not_there_fails_with_nothing_kept(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        pools = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3, bridges=HostBridges(tmp_path))
        with pytest.raises(EcomputeError, match="no bridge br0"):
            pools.reserve(ONE, [Nic(), Nic("", bridge="br0")])
        assert pools.assigned(ONE) is None
        assert not (tmp_path / "network" / f"{ONE}.json").exists()
        assert pools.reserve(TWO, [Nic()])[0].address == TOP

    def test_the_second_bridge_is_for_guests_that_named_no_card(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        pools = AddressPools(hypervisor, tmp_path / "network", bridges=HostBridges(None), second_bridge="br0")
        assert [card.bridge for card in pools.reserve(ONE, [Nic()])] == ["", "br0"]
        assert [card.bridge for card in pools.reserve(TWO, [Nic("", bridge="br1")])] == ["br1"]

    def test_a_file_of_an_older_version_is_read(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        (tmp_path / "network").mkdir()
        card = {"network": "default", "mac": pair_of(TOP).mac, "address": TOP, "prefix_length": 24, "gateway": "192.168.122.1"}
        (tmp_path / "network" / f"{ONE}.json").write_text(json.dumps({"schema": 1, "uuid": str(ONE), "addresses": [card]}))
        pools = AddressPools(hypervisor, tmp_path / "network")
        assert pools.assigned(ONE) == (Address("default", pair_of(TOP).mac, TOP, 24, "192.168.122.1"),)
        assert pools.reserve(TWO, [Nic()])[0].address != TOP


class TestReplenishing:
    @pytest.fixture
    def stop(self) -> Iterator[threading.Event]:
        stop = threading.Event()
        yield stop
        stop.set()

    def start(self, pools: AddressPools, stop: threading.Event) -> threading.Thread:
        thread = threading.Thread(target=pools.run, args=(stop,), daemon=True)
        thread.start()
        return thread

    def test_it_makes_ready_at_the_start_and_after_each_reservation(
        self, pools: AddressPools, hypervisor: FakeHypervisor, stop: threading.Event
    ) -> None:
        thread = self.start(pools, stop)
        wait_until(lambda: len(entries(hypervisor)) == 3, timeout_seconds=5, what="three are ready")
        pools.reserve(ONE, [Nic()])
        pools.started(ONE)
        wait_until(lambda: len(entries(hypervisor)) == 4, timeout_seconds=5, what="three are ready again")
        stop.set()
        pools.wake()
        thread.join(5)
        assert not thread.is_alive()

    def test_while_guests_are_built_only_what_they_may_wait_for_is_made(
        self, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        pools = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=4)
        pools.replenish(NO_STOP)
        for instance in (ONE, TWO):
            pools.reserve(instance, [Nic()])
        pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 4, "two are taken, and two are ready"
        guests = [uuid.uuid4() for _ in range(2)]
        for guest in guests:
            pools.reserve(guest, [Nic()])
        pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 5, "the next one need not wait"
        for instance in (ONE, TWO, *guests):
            pools.started(instance)
        pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 8

    def test_a_guest_that_is_never_built_does_not_put_it_off_for_ever(
        self, pools: AddressPools, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(network_module, "BUILD_SECONDS", 0.0)
        pools.replenish(NO_STOP)
        pools.reserve(ONE, [Nic()])
        pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 4

    def test_a_reconnect_puts_back_what_the_network_lost(
        self, pools: AddressPools, hypervisor: FakeHypervisor, stop: threading.Event
    ) -> None:
        self.start(pools, stop)
        wait_until(lambda: len(entries(hypervisor)) == 3, timeout_seconds=5, what="three are ready")
        taken = pools.reserve(ONE, [Nic()])[0].address
        pools.started(ONE)
        wait_until(lambda: len(entries(hypervisor)) == 4, timeout_seconds=5, what="three are ready again")
        set_network(hypervisor, dhcp_hosts=())
        hypervisor.come_back()
        wait_until(lambda: len(entries(hypervisor)) == 4, timeout_seconds=5, what="all are back")
        assert pair_of(taken) in entries(hypervisor)

    def test_trouble_is_said_once_and_its_end_too(
        self, pools: AddressPools, hypervisor: FakeHypervisor, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        set_network(hypervisor, is_active=False)
        assert [pools.replenish(NO_STOP) for _ in range(3)] == [False] * 3
        set_network(hypervisor, is_active=True)
        assert pools.replenish(NO_STOP)
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]

    def test_an_entry_that_cannot_be_put_back_is_said_once_and_stops_nothing(
        self, pools: AddressPools, hypervisor: FakeHypervisor, caplog: pytest.LogCaptureFixture
    ) -> None:
        pools.reserve(ONE, [Nic()])
        pools.started(ONE)
        set_network(hypervisor, dhcp_hosts=(DhcpHost("52:54:00:00:00:01", TOP),))
        hypervisor.fail_next("add_dhcp_host", HypervisorRejected("not in this subnet"))
        assert pools.replenish(NO_STOP)
        assert len(entries(hypervisor)) == 3
        caplog.clear()
        assert pools.replenish(NO_STOP)
        assert caplog.records == []

    def test_nothing_to_do_asks_little(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.replenish(NO_STOP)
        calls(hypervisor)
        pools.replenish(NO_STOP)
        assert calls(hypervisor) == ["network", "leases"]

    def test_none_ahead_works_too(self, hypervisor: FakeHypervisor, tmp_path: Path) -> None:
        pools = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=0)
        pools.reserve(ONE, [Nic()])
        pools.release(ONE)
        assert pools.replenish(NO_STOP)
        assert entries(hypervisor) == []

    def test_a_bug_does_not_end_the_thread(
        self, pools: AddressPools, hypervisor: FakeHypervisor, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replenish, seen = pools.replenish, []

        def fails_once(stop: threading.Event) -> bool:
            seen.append(1)
            if len(seen) == 1:
                raise KeyError("bug")
            return replenish(stop)

        monkeypatch.setattr(pools, "replenish", fails_once)
        self.start(pools, stop)
        wait_until(lambda: seen, timeout_seconds=5, what="it ran")
        pools.wake()
        wait_until(lambda: len(entries(hypervisor)) == 3, timeout_seconds=5, what="three are ready")


class TestLeaving:
    def test_our_unused_entries_go_from_every_network_and_nobody_elses(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        other = DhcpHost("52:54:00:00:00:01", "192.168.122.9")
        set_network(hypervisor, dhcp_hosts=(other,))
        set_network(hypervisor, "lab/2", gateway="10.7.0.1", dhcp_start="10.7.0.2", dhcp_end="10.7.0.9")
        pools.reserve(ONE, [Nic("lab/2")])
        pools.release(ONE)
        pools.replenish(NO_STOP)
        kept = pools.reserve(TWO, [Nic()])
        hypervisor.live_leases["default"] = (Lease(pair_of("192.168.122.253").mac, "192.168.122.253"),)
        leaving = AddressPools(hypervisor, tmp_path / "network", reserve_ahead=0)
        assert leaving.remove_all_unassigned() == 2 + 3
        assert set(hypervisor.networks["default"].dhcp_hosts) == {other, pair_of(kept[0].address)}
        assert hypervisor.networks["lab/2"].dhcp_hosts == ()
        leaving.release(TWO)
        assert leaving.remove_all_unassigned() == 1
        assert hypervisor.networks["default"].dhcp_hosts == (other,)
        assert list((tmp_path / "network").iterdir()) == []

    def test_a_network_that_is_gone_holds_nothing(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.replenish(NO_STOP)
        del hypervisor.networks["default"]
        assert pools.remove_all_unassigned() == 0


class TestOnLibvirtsTestDriver:
    @pytest.fixture
    def libvirt(self) -> Iterator[Hypervisor]:
        driver = LibvirtDriver("test:///default")
        yield driver
        driver.close()

    def test_from_reserve_to_leave(self, libvirt: Hypervisor, tmp_path: Path) -> None:
        def present() -> set[DhcpHost]:
            network = libvirt.network("default")
            assert network is not None
            return set(network.dhcp_hosts)

        before = present()  # the driver's state is the whole process's
        pools = AddressPools(libvirt, tmp_path / "network", reserve_ahead=4)
        try:
            assert pools.replenish(NO_STOP)
            address = pools.reserve(ONE, [Nic()])[0]
            assert (address.gateway, address.prefix_length) == ("192.168.122.1", 24)
            assert pair_of(address.address) in present()
            assert len([entry for entry in present() if is_ours(entry)]) == 4
            pools.release(ONE)
        finally:
            pools.remove_all_unassigned()
        assert present() == {entry for entry in before if not is_ours(entry)}
