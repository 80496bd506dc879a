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
from common.model import Address, Nic
from ecompute import network as network_module
from ecompute.address_pairs import candidates, is_ours, pair_of
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
    return AddressPools(hypervisor, tmp_path / "network", reserve_ahead=3)


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
        assert document == {"schema": 1, "uuid": str(ONE), "addresses": [dataclasses.asdict(address)]}

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
