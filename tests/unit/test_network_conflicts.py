"""Who gets what where two want one thing: addresses and MACs of cards, their DHCP entries, and what guests only say."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from common.errors import HypervisorUnavailable, NoAddress, Permanent
from common.files import fsync_directory
from common.model import IpAddress, Nic
from ecompute import network as network_module
from ecompute.address_pairs import is_ours, pair_of
from ecompute.hypervisor import DhcpHost
from ecompute.network import AddressPools
from tests.fakes.hypervisor import DEFAULT_NETWORK, FakeHypervisor
from tests.support.loop import AnyBridges
from tests.unit.test_network import NO_STOP, ONE, TOP, TWO, set_network

THREE = UUID("33333333-3333-4333-8333-333333333333")
MINE = "52:54:00:aa:bb:cc"
SECOND = "192.168.122.253"


@pytest.fixture
def hypervisor() -> FakeHypervisor:
    return FakeHypervisor()


@pytest.fixture
def pools(hypervisor: FakeHypervisor, tmp_path: Path) -> AddressPools:
    return AddressPools(hypervisor, tmp_path / "network", reserve_ahead=2, bridges=AnyBridges(None))


def at(address: str, bridge: str = "br0", vlan: int = 0) -> Nic:
    return Nic("lan", bridge, vlan, addresses=(IpAddress(address, 24),))


def hosts(hypervisor: FakeHypervisor) -> set[DhcpHost]:
    return set(hypervisor.networks["default"].dhcp_hosts)


class TestAddresses:
    @pytest.mark.parametrize("again", ["10.0.0.5", "fd00::5", "FD00:0::0005"])
    def test_an_address_is_on_a_wire_of_a_host_once(self, pools: AddressPools, tmp_path: Path, again: str) -> None:
        both = Nic("", "br0", addresses=(IpAddress("10.0.0.5", 24), IpAddress("fd00::5", 64)))
        pools.reserve(ONE, [both])
        with pytest.raises(Permanent, match=r"bridge br0: another card on this host has (10.0.0.5|fd00::5) there") as caught:
            pools.reserve(TWO, [Nic(), at(again)])
        assert caught.value.reason == "AddressTaken"
        assert pools.assigned(TWO) is None
        assert not (tmp_path / "network" / f"{TWO}.json").exists()
        pools.release(ONE)
        assert pools.reserve(TWO, [at(again)])[0].all_addresses == (again,)

    def test_on_another_wire_it_is_another_ones(self, pools: AddressPools) -> None:
        for number, nic in enumerate((at("10.0.0.5"), at("10.0.0.5", vlan=5), at("10.0.0.5", vlan=6), at("10.0.0.5", "br1"))):
            assert pools.reserve(UUID(int=number + 1), [nic])[0].address == "10.0.0.5"

    def test_one_instance_has_it_once_too(self, pools: AddressPools) -> None:
        with pytest.raises(Permanent, match=r"10\.0\.0\.5"):
            pools.reserve(ONE, [at("10.0.0.5"), at("10.0.0.5")])
        assert pools.reserve(ONE, [at("10.0.0.5")])

    def test_a_guest_of_a_libvirt_network_is_on_that_ones_bridge(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        pools.reserve(ONE, [Nic()])
        bridge = DEFAULT_NETWORK.bridge
        for now in (pools, AddressPools(hypervisor, tmp_path / "network", bridges=AnyBridges(None))):
            with pytest.raises(Permanent, match=f"{bridge}: another card on this host has {TOP} there"):
                now.reserve(TWO, [at(TOP, bridge)])
        assert pools.reserve(TWO, [at(SECOND, bridge)])
        assert pools.reserve(THREE, [Nic()])[0].address == "192.168.122.252", "the next that nobody has"

    def test_what_a_guest_only_says_keeps_nobody_from_it(self, pools: AddressPools) -> None:
        card = pools.reserve(ONE, [Nic("", bridge="br0")])[0]
        assert pools.learn(ONE, {card.mac: (IpAddress("10.0.0.5", 24),)})
        assert pools.reserve(TWO, [at("10.0.0.5")])[0].address == "10.0.0.5"


class TestMacs:
    """The MAC that belongs to an address of a pool may be one that some guest asked for."""

    @pytest.fixture(autouse=True)
    def taken(self, pools: AddressPools) -> None:
        pools.reserve(ONE, [Nic("", bridge="br0", mac=pair_of(TOP).mac)])

    def test_who_asked_for_nothing_gets_the_next(self, pools: AddressPools) -> None:
        pools.replenish(NO_STOP)
        assert pools.reserve(TWO, [Nic()])[0].address == SECOND
        pools.release(ONE)
        assert TOP in [pools.reserve(UUID(int=number), [Nic()])[0].address for number in range(10, 13)]

    @pytest.mark.parametrize("is_ready", [True, False])
    def test_who_asked_for_the_address_gets_it_with_another_mac(
        self, pools: AddressPools, hypervisor: FakeHypervisor, is_ready: bool
    ) -> None:
        if is_ready:
            pools.replenish(NO_STOP)
        card = pools.reserve(TWO, [Nic(addresses=(IpAddress(TOP, 24),))])[0]
        assert card.address == TOP
        assert card.mac != pair_of(TOP).mac
        assert DhcpHost(card.mac, TOP) in hosts(hypervisor)
        pools.release(TWO)
        assert DhcpHost(card.mac, TOP) not in hosts(hypervisor)

    def test_who_asked_for_the_mac_does_not(self, pools: AddressPools) -> None:
        with pytest.raises(Permanent) as caught:
            pools.reserve(TWO, [Nic(mac=pair_of(TOP).mac.upper())])
        assert caught.value.reason == "MacTaken"
        assert pools.reserve(THREE, [Nic(mac=MINE)])

    def test_where_no_other_is_left_it_is_said(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        set_network(hypervisor, dhcp_start=TOP, dhcp_end=TOP)
        with pytest.raises(NoAddress):
            pools.reserve(TWO, [Nic()])


class TestEntries:
    """The DHCP entry that one guest alone wanted goes with it."""

    SPECIAL = (Nic(mac=MINE),)

    def fail(self, pools: AddressPools, hypervisor: FakeHypervisor, patch: pytest.MonkeyPatch) -> None:
        """Have libvirt go away when the first card has its entry and the second has not."""
        add = hypervisor.add_dhcp_host

        def add_first(network: str, host: DhcpHost) -> None:
            if host.mac != MINE:
                raise HypervisorUnavailable("gone")
            add(network, host)

        patch.setattr(hypervisor, "add_dhcp_host", add_first)
        with pytest.raises(HypervisorUnavailable):
            pools.reserve(ONE, [Nic(mac=MINE), Nic(mac="52:54:00:aa:bb:cd")])

    def test_a_failure_at_the_second_card_leaves_none(
        self, pools: AddressPools, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fail(pools, hypervisor, monkeypatch)
        assert hosts(hypervisor) == set()

    def test_one_that_could_not_be_removed_then_is_later(
        self, pools: AddressPools, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def gone(network: str, host: DhcpHost) -> None:
            raise HypervisorUnavailable("gone")

        with monkeypatch.context() as patch:
            patch.setattr(hypervisor, "remove_dhcp_host", gone)
            self.fail(pools, hypervisor, patch)
        assert {entry.mac for entry in hosts(hypervisor)} == {MINE}
        assert pools.replenish(NO_STOP)
        assert {is_ours(entry) for entry in hosts(hypervisor)} == {True}

    def test_a_release_that_failed_is_made_again(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        pools.reserve(ONE, [Nic(mac=MINE)])
        hypervisor.fail_next("remove_dhcp_host", HypervisorUnavailable("gone"))
        with pytest.raises(HypervisorUnavailable):
            pools.release(ONE)
        assert MINE in {entry.mac for entry in hosts(hypervisor)}
        pools.release(ONE)
        assert hosts(hypervisor) == set()

    def test_nobody_puts_it_back_while_its_guest_goes(
        self, pools: AddressPools, hypervisor: FakeHypervisor, monkeypatch
    ) -> None:
        pools.reserve(ONE, [Nic(mac=MINE)])

        def meanwhile(directory: Path) -> None:
            fsync_directory(directory)
            assert pools.replenish(NO_STOP)

        monkeypatch.setattr(network_module, "fsync_directory", meanwhile)
        pools.release(ONE)
        pools.replenish(NO_STOP)
        assert MINE not in {entry.mac for entry in hosts(hypervisor)}

    def test_whoever_gets_the_same_again_has_it(self, pools: AddressPools, hypervisor: FakeHypervisor) -> None:
        for uuid in (ONE, TWO):
            card = pools.reserve(uuid, [Nic(mac=MINE)])[0]
            pools.replenish(NO_STOP)
            set_network(hypervisor, dhcp_hosts=())
            pools.replenish(NO_STOP)
            assert DhcpHost(card.mac, card.address) in hosts(hypervisor), "it is put back"
            pools.release(uuid)


class TestHearsay:
    """Two guests on a foreign network, of which one lies."""

    CLAIMED, OWN = IpAddress("10.9.0.7", 24), IpAddress("10.9.0.8", 24)

    def learns(self, pools: AddressPools, uuid: UUID, *said: IpAddress) -> tuple[str, ...]:
        card = (pools.assigned(uuid) or ())[0]
        pools.learn(uuid, {card.mac: said})
        return self.shown(pools, uuid)

    def shown(self, pools: AddressPools, uuid: UUID) -> tuple[str, ...]:
        return (pools.assigned(uuid) or ())[0].all_addresses

    def test_an_address_that_two_say_is_shown_for_neither(
        self, pools: AddressPools, hypervisor: FakeHypervisor, tmp_path: Path
    ) -> None:
        for uuid in (ONE, TWO):
            pools.reserve(uuid, [Nic("", bridge="br0")])
        assert self.learns(pools, ONE, self.CLAIMED, self.OWN) == ("10.9.0.7", "10.9.0.8")
        for _ in range(3):
            assert self.learns(pools, TWO, self.CLAIMED) == ()
            assert self.shown(pools, ONE) == ("10.9.0.8",)
            assert self.learns(pools, ONE, self.CLAIMED, self.OWN) == ("10.9.0.8",)
        after = AddressPools(hypervisor, tmp_path / "network", bridges=AnyBridges(None))
        assert (self.shown(after, ONE), self.shown(after, TWO)) == (("10.9.0.8",), ())
        assert self.learns(pools, TWO, IpAddress("10.9.0.9", 24)) == ("10.9.0.9",)
        assert self.learns(pools, ONE, self.CLAIMED, self.OWN) == ("10.9.0.7", "10.9.0.8")

    def test_who_is_gone_says_nothing_any_more(self, pools: AddressPools) -> None:
        for uuid in (ONE, TWO):
            pools.reserve(uuid, [Nic("", bridge="br0")])
            self.learns(pools, uuid, self.CLAIMED)
        pools.release(TWO)
        assert self.learns(pools, ONE, self.CLAIMED) == ("10.9.0.7",)

    def test_the_one_that_was_given_it_has_it(self, pools: AddressPools) -> None:
        pools.reserve(TWO, [Nic("", bridge="br0")])
        pools.reserve(ONE, [at("10.9.0.7")])
        assert self.learns(pools, TWO, self.CLAIMED) == ()
        assert self.shown(pools, ONE) == ("10.9.0.7",)

    def test_on_two_wires_both_may_have_it(self, pools: AddressPools) -> None:
        pools.reserve(ONE, [Nic("", bridge="br0")])
        pools.reserve(TWO, [Nic("", bridge="br0", vlan=5)])
        pools.reserve(THREE, [at("10.9.0.7", "br1")])
        for uuid in (ONE, TWO, ONE):
            assert self.learns(pools, uuid, self.CLAIMED) == ("10.9.0.7",)

    def test_behind_the_hosts_own_networks_nobody_else_has_it(self, pools: AddressPools) -> None:
        pools.reserve(ONE, [Nic("", bridge="br0")])
        assert pools.reserve(TWO, [Nic()])[0].address == TOP
        assert self.learns(pools, ONE, IpAddress(TOP, 24)) == ()
