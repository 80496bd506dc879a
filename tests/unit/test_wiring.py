"""Addresses of networks of the cluster: chosen, taken with the instance's keys, lost to others, given back with the instance."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from common.errors import ConfigError, Conflict, NoCapacity, Permanent, StoreUnavailable
from common.findings import Finding, Kind
from common.model import Adoption, Desired, Forward, ImageRef, InstanceSpec, MetadataAccess
from common.network_records import NetworkRecord, Subnet, address_keys
from common.nics import IpAddress, Nic, bridge_trait, computed_mac
from common.store import Transaction
from eschedule import networks
from eschedule.adopt import Adopter
from eschedule.scheduler import Scheduler
from eschedule.wiring import Wiring
from tests.fakes.placement import FakePlacement
from tests.support.loop import KEYS as LOOP_KEYS
from tests.support.loop import Loop
from tests.unit.test_scheduler import KEYS, calls, request
from tests.unit.test_sets import Sets, asked_for

BR0 = bridge_trait("br0")
LAN = NetworkRecord(
    "lan", "br0", (Subnet("10.0.0.0/24", "10.0.0.50", "10.0.0.99", "10.0.0.1"),), 42, ("10.0.0.1",), 1400
)  # fmt: skip
BOTH = dataclasses.replace(LAN, subnets=(*LAN.subnets, Subnet("fd00::/64", "fd00::1", "fd00::ffff", "fe80::1")))
ON_LAN = (Nic("lan"),)


class Wired(Sets):
    """A stage with a host that has the bridge, and a network on it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = self.host("node1", traits=(BR0,), VCPU=1000, MEMORY_MB=1_000_000, DISK_GB=10_000)

    def network(self, record: NetworkRecord = LAN) -> NetworkRecord:
        networks.add(self.store, KEYS, record)
        return record

    def owners(self, name: str = "lan") -> dict[str, str]:
        prefix = KEYS.network_addresses(name)
        return {item.key.removeprefix(prefix): item.value for item in self.store.list(prefix).items}

    def take(self, *addresses: str, owner: str = "", name: str = "lan") -> str:
        """Somebody has *addresses*."""
        owner = owner or str(uuid4())
        self.store.commit(Transaction(puts={KEYS.network_address(name, address): owner for address in addresses}))
        return owner

    def fill(self, but: int = 0) -> None:
        self.take(*[f"10.0.0.{n}" for n in range(50, 100 - but)])

    def specs(self) -> list[InstanceSpec]:
        return [InstanceSpec.from_json(item.value) for item in self.store.list(KEYS.specs()).items]

    def made(self, **fields: Any) -> InstanceSpec:
        placed = self.scheduler.create(request(**{"nics": ON_LAN, **fields}))
        return self.spec(placed.provider, placed.uuid)


@pytest.fixture
def stage() -> Wired:
    return Wired()


class TestOneInstance:
    def test_it_gets_an_address_by_the_transaction_that_records_it(self, stage: Wired) -> None:
        stage.network()
        spec = stage.made(name="web")
        (nic,) = spec.nics
        (address,) = nic.addresses
        assert address == IpAddress(address.address, 24, "10.0.0.1")
        assert nic == Nic("lan", "br0", 42, computed_mac("lan", address.address), (address,), ("10.0.0.1",), 1400)
        assert stage.owners() == {address.address: str(spec.uuid)}
        assert '"schema":2' in stage.store.list(KEYS.specs()).items[0].value
        assert 50 <= int(address.address.rpartition(".")[2]) <= 99
        keys = [KEYS.instance(spec.uuid), *address_keys(KEYS, spec.nics)]
        assert len({item.mod_revision for item in stage.store.get_many(keys).values()}) == 1

    def test_of_both_families_it_gets_one_of_each(self, stage: Wired) -> None:
        stage.network(BOTH)
        spec = stage.made()
        four, six = spec.nics[0].addresses
        assert (four.gateway, six.gateway, six.prefix_length) == ("10.0.0.1", "fe80::1", 64)
        assert set(stage.owners()) == {four.address, six.address}
        assert spec.nics[0].mac == computed_mac("lan", four.address)

    def test_a_repeat_finds_its_own_and_takes_no_other(self, stage: Wired) -> None:
        stage.network()
        asked = request(nics=ON_LAN)
        stage.scheduler.create(asked)
        before = stage.owners()
        assert stage.scheduler.create(asked).is_repeat
        assert stage.owners() == before and len(before) == 1

    def test_a_lost_answer_takes_one_address_only(self, stage: Wired) -> None:
        stage.network()
        stage.store.lose_answers(1)
        asked = request(nics=ON_LAN)
        with pytest.raises(StoreUnavailable):
            stage.scheduler.create(asked)
        assert stage.scheduler.create(asked).is_repeat
        assert len(stage.owners()) == 1

    def test_a_card_on_a_libvirt_network_is_left_as_it_is(self, stage: Wired) -> None:
        nics = (Nic(), Nic("lab"), Nic("lab", addresses=(IpAddress("192.168.9.7", 0),)))
        assert stage.made(nics=nics).nics == nics

    def test_a_card_on_a_bridge_without_a_network_is_left_as_it_is(self, stage: Wired) -> None:
        nics = (Nic("", "br0", 7), Nic("", "br0", addresses=(IpAddress("10.9.0.5", 24, "10.9.0.1"),)))
        assert stage.made(nics=nics).nics == nics
        assert f",{BR0}" in calls(stage, "candidates")[0]

    def test_another_gateway_than_the_networks_may_be_asked_for(self, stage: Wired) -> None:
        stage.network()
        spec = stage.made(nics=(Nic(), Nic("lan"), Nic("lan", addresses=(IpAddress("", 0, "10.0.0.2"),))))
        assert [nic.addresses[0].gateway for nic in spec.nics[1:]] == ["10.0.0.1", "10.0.0.2"]
        assert len(stage.owners()) == 2

    def test_a_fixed_address_may_be_outside_the_range(self, stage: Wired) -> None:
        stage.network()
        spec = stage.made(nics=(Nic("lan", mac="52:54:00:00:00:01", addresses=(IpAddress("10.0.0.7", 0),)),))
        assert spec.nics[0].addresses == (IpAddress("10.0.0.7", 24, "10.0.0.1"),)
        assert spec.nics[0].mac == "52:54:00:00:00:01"
        assert stage.owners() == {"10.0.0.7": str(spec.uuid)}

    def test_an_address_on_a_plain_bridge_that_a_network_there_has_given_away_is_warned_of(self, stage: Wired) -> None:
        stage.network()
        owner = stage.made(name="db", nics=(Nic("lan", addresses=(IpAddress("10.0.0.60", 0),)),)).uuid
        for number, (vlan, address) in enumerate(((42, "10.0.0.60"), (42, "10.0.0.61"), (0, "10.0.0.60"))):
            stage.made(name=f"web-{number}", nics=(Nic("", "br0", vlan, addresses=(IpAddress(address, 24),)),))
        assert stage.warnings == [
            f"the address 10.0.0.60 on the bridge br0 is used by the instance db ({owner}), on the network lan; "
            "two guests with one address disturb each other"
        ]

    def test_a_fixed_address_that_somebody_has_is_a_conflict_before_any_claim(self, stage: Wired) -> None:
        stage.network()
        owner = stage.take("10.0.0.60")
        with pytest.raises(Conflict, match=f"10.0.0.60 of the network lan is used by the instance {owner}"):
            stage.made(nics=(Nic("lan", addresses=(IpAddress("10.0.0.60", 0),)),))
        assert stage.placement.calls == []

    @pytest.mark.parametrize(
        ("nics", "said"),
        [
            ((Nic("lan", addresses=(IpAddress("10.0.1.5", 0),)),), "10.0.1.5 is not on the network lan, which is 10.0.0.0/24"),
            ((Nic("lan", addresses=(IpAddress("fd00::5", 0),)),), "fd00::5 is not on the network lan"),
            ((Nic("lan", addresses=(IpAddress("10.0.0.1", 0),)),), "10.0.0.1 is the gateway's address of 10.0.0.0/24; take"),
            ((Nic("lan", addresses=(IpAddress("10.0.0.0", 0),)),), "10.0.0.0 is the network's own address of 10.0.0.0/24"),
            ((Nic("lan", addresses=(IpAddress("10.0.0.255", 0),)),), "10.0.0.255 is the broadcast address of 10.0.0.0/24"),
            ((Nic("lan", addresses=(IpAddress("10.0.0.5", 25),)),), "has not the prefix length"),
            ((Nic("lan", addresses=(IpAddress("", 0, "10.0.1.1"),)),), "the gateway 10.0.1.1 is not on the network lan"),
            ((Nic("lan", addresses=(IpAddress("10.0.0.5", 0),)),) * 2, "10.0.0.5 is given to two cards"),
            ((Nic("lan", "br1"),), "the network lan is on br0"),
            ((Nic("wan", "br0"),), "there is no network wan on the bridge br0"),
            ((Nic("", "br0", addresses=(IpAddress("10.0.0.5", 0),)),), "needs its prefix length"),
            ((Nic("lab", addresses=(IpAddress("", 0, "10.0.0.1"),)),), "leave gateway= out"),
            ((Nic("lab", addresses=(IpAddress("fd00::5", 0),)),), "a fixed address of IPv4 only"),
        ],
    )
    def test_what_a_network_cannot_give_is_said_before_any_claim(self, stage: Wired, nics: tuple[Nic, ...], said: str) -> None:
        stage.network()
        with pytest.raises(ConfigError, match=said):
            stage.made(nics=nics)
        assert stage.placement.calls == [] and stage.owners() == {}

    @pytest.mark.parametrize("is_fixed_first", [True, False])
    def test_an_address_that_another_card_asks_for_is_not_diced(self, stage: Wired, is_fixed_first: bool) -> None:
        stage.network()
        stage.fill(but=2)
        fixed, any_other = Nic("lan", addresses=(IpAddress("10.0.0.98", 0),)), Nic("lan")
        spec = stage.made(nics=(fixed, any_other) if is_fixed_first else (any_other, fixed))
        assert {nic.addresses[0].address for nic in spec.nics} == {"10.0.0.98", "10.0.0.99"}

    @pytest.mark.parametrize("is_fixed_first", [True, False])
    def test_an_address_that_the_request_itself_needs_counts_as_used(self, stage: Wired, is_fixed_first: bool) -> None:
        stage.network()
        stage.fill(but=1)
        fixed, any_other = Nic("lan", addresses=(IpAddress("10.0.0.99", 0),)), Nic("lan")
        with pytest.raises(NoCapacity, match="lan is full"):
            stage.made(nics=(fixed, any_other) if is_fixed_first else (any_other, fixed))
        assert stage.specs() == []

    def test_a_repeat_that_overtakes_its_first_run_answers_the_instance(
        self, stage: Wired, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage.network()
        nics = (Nic("lan", addresses=(IpAddress("10.0.0.70", 0),)),)
        asked = request(nics=nics, uuid=uuid4(), name="web")
        look, first = Wiring.look, []

        def look_late(self: Wiring, count: int) -> None:
            if not first:  # the first run is recorded between the two reads of the second
                first.append(None)
                first[0] = stage.scheduler.create(asked)
            look(self, count)

        monkeypatch.setattr(Wiring, "look", look_late)
        again = stage.scheduler.create(asked)
        assert again.is_repeat and (again.uuid, again.provider) == (first[0].uuid, first[0].provider)

    def test_a_network_that_cannot_be_read_keeps_nobody_from_a_plain_bridge(self, stage: Wired) -> None:
        stage.store.commit(Transaction(puts={KEYS.network("odd"): '{"schema":99}'}))
        stage.made(nics=(Nic("", "br0", addresses=(IpAddress("10.0.0.7", 24),)),))


class TestOthers:
    def test_an_address_that_others_take_in_between_is_given_up_for_another(self, stage: Wired) -> None:
        stage.network()
        stage.fill(but=2)
        stage.before_commits(lambda: stage.take("10.0.0.98"))
        stage.scheduler._dice = _falling_for("10.0.0.98")
        spec = stage.made()
        assert spec.nics[0].addresses[0].address == "10.0.0.99"
        assert len(calls(stage, "claim")) == 1

    def test_the_last_one_lost_is_no_capacity_and_gives_the_claim_back(self, stage: Wired) -> None:
        stage.network()
        stage.fill(but=1)
        stage.before_commits(lambda: stage.take("10.0.0.99"))
        with pytest.raises(
            NoCapacity, match=r"the network lan is full: no address is free; 50 of 50 in 10\.0\.0\.50-10\.0\.0\.99"
        ):
            stage.made()
        assert stage.placement.consumers == {}

    def test_a_full_network_is_said_before_any_claim(self, stage: Wired) -> None:
        stage.network()
        stage.fill()
        with pytest.raises(NoCapacity, match="is full: no address is free; 50 of 50"):
            stage.made()
        assert stage.placement.calls == []

    def test_a_fixed_address_lost_in_between_is_a_conflict_and_gives_the_claim_back(self, stage: Wired) -> None:
        stage.network()
        stage.before_commits(lambda: stage.take("10.0.0.60"))
        with pytest.raises(Conflict, match="used by the instance"):
            stage.made(nics=(Nic("lan", addresses=(IpAddress("10.0.0.60", 0),)),))
        assert stage.placement.consumers == {} and len(stage.owners()) == 1

    def test_a_network_that_goes_in_between_takes_no_address_and_gives_the_claim_back(self, stage: Wired) -> None:
        stage.network()
        stage.before_commits(lambda: networks.remove(stage.store, KEYS, "lan"), lambda: None)
        with pytest.raises(Conflict, match="the network lan was removed meanwhile"):
            stage.made()
        assert stage.placement.consumers == {}
        assert {key for key in stage.recorded() if not key.startswith(KEYS.owners())} == set()

    def test_a_name_that_becomes_a_network_in_between_is_not_taken_for_one_of_the_hosts(self, stage: Wired) -> None:
        stage.before_commits(stage.network, lambda: None)
        with pytest.raises(Conflict, match="the network lan was made meanwhile"):
            stage.made()
        assert stage.placement.consumers == {}

    def test_parallel_clients_share_a_network_of_just_enough_addresses(self, stage: Wired) -> None:
        stage.network()
        specs, errors, placement = list[InstanceSpec](), list[Exception](), OneAtATime(stage.placement)

        def one(seed: int) -> None:
            scheduler = Scheduler(stage.store, placement, KEYS, dice=random.Random(seed), sleep=lambda _: None)  # type: ignore[arg-type]
            try:
                placed = scheduler.create(request(nics=ON_LAN))
                specs.append(stage.spec(placed.provider, placed.uuid))
            except Exception as error:  # noqa: BLE001 - told below
                errors.append(error)

        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        given = Counter(one.address for spec in specs for nic in spec.nics for one in nic.addresses)
        assert given == Counter(f"10.0.0.{n}" for n in range(50, 100))
        assert stage.owners() == {nic.addresses[0].address: str(spec.uuid) for spec in specs for nic in spec.nics}


class TestSets:
    def test_all_get_addresses_of_their_own_within_etcds_limits(self, stage: Wired) -> None:
        wide = dataclasses.replace(BOTH, subnets=(Subnet("10.0.0.0/22", "10.0.0.1", "10.0.3.254"), BOTH.subnets[1]))
        stage.network(wide)
        sizes = counted(stage)
        placed = stage.create(asked_for(100, nics=(Nic("lan"), Nic("lan"))))
        owners = stage.owners()
        assert len(owners) == 400
        for one in placed.instances:
            keys = address_keys(KEYS, stage.spec(one.provider, one.uuid).nics)
            assert {item.value for item in stage.store.get_many(keys).values()} == {str(one.uuid)}
            assert len(keys) == 4
        assert max(sizes) <= 128 and len(sizes) > 4

    def test_too_few_addresses_are_said_before_any_claim(self, stage: Wired) -> None:
        stage.network()
        stage.fill(but=3)
        with pytest.raises(NoCapacity, match="3 addresses are free, 4 are wanted; 47 of 50"):
            stage.create(asked_for(4, nics=ON_LAN))
        assert stage.placement.calls == [] and len(stage.owners()) == 47

    def test_addresses_lost_in_between_are_chosen_anew(self, stage: Wired) -> None:
        stage.network()
        stage.fill(but=30)
        stage.before_commits(lambda: stage.take(*[f"10.0.0.{n}" for n in range(70, 80)]))
        placed = stage.create(asked_for(20, nics=ON_LAN))
        assert len(placed.instances) == 20 and len(stage.owners()) == 50
        assert set(Counter(stage.owners().values()).values()) == {1, 10, 20}

    def test_what_is_lost_for_good_takes_the_set_back(self, stage: Wired) -> None:
        stage.network()
        stage.before_commits(lambda: None, lambda: stage.take(*_free(stage)[1:]))
        with pytest.raises(NoCapacity, match="is full"):
            stage.create(asked_for(40, nics=ON_LAN))
        kept = [spec for spec in stage.specs() if spec.desired is not Desired.DELETED]
        assert kept == [], "what the first transaction recorded is being destroyed"
        assert set(stage.placement.consumers) == {spec.uuid for spec in stage.specs()}

    def test_the_same_set_again_finds_its_own(self, stage: Wired) -> None:
        stage.network()
        asked = asked_for(10, nics=ON_LAN)
        stage.create(asked)
        before = stage.owners()
        assert stage.create(asked).is_repeat
        assert stage.owners() == before


class TestBridges:
    def test_hosts_without_the_bridge_are_no_candidates_and_are_named(self, stage: Wired) -> None:
        stage.host("node2")
        stage.host("node3", traits=(bridge_trait("br1"),))
        stage.placement.hosts[stage.node].traits.discard(BR0)
        with pytest.raises(NoCapacity, match="3 hosts: 3 without the bridge br0"):
            stage.made(nics=(Nic("", "br0"),))
        with pytest.raises(
            NoCapacity, match=r"2 without the bridge br1 \(or it is one of libvirt's own networks\), 1 without the bridge br0"
        ):
            stage.made(nics=(Nic("", "br1"), Nic("", "br0")))

    def test_the_host_with_it_is_taken(self, stage: Wired) -> None:
        stage.host("node2")
        stage.network()
        assert {stage.scheduler.create(request(nics=ON_LAN)).provider for _ in range(5)} == {stage.node}
        placed = stage.create(asked_for(5, nics=ON_LAN))
        assert {one.provider for one in placed.instances} == {stage.node}


class TestNetworks:
    def test_the_same_again_is_there_and_another_of_the_name_is_not_taken(self, stage: Wired) -> None:
        assert networks.add(stage.store, KEYS, LAN)
        assert not networks.add(stage.store, KEYS, dataclasses.replace(LAN, created_at="later", created_by="you"))
        with pytest.raises(Conflict, match="there is a network lan already"):
            networks.add(stage.store, KEYS, dataclasses.replace(LAN, mtu=1500))

    def test_two_that_overlap_are_not_made_at_one_moment(self, stage: Wired) -> None:
        other = dataclasses.replace(LAN, name="office")
        stage.before_commits(lambda: networks.add(stage.store, KEYS, other))
        with pytest.raises(Conflict, match=r"overlaps 10\.0\.0\.0/24 of the network office"):
            networks.add(stage.store, KEYS, LAN)
        assert stage.store.get(KEYS.network("lan")) is None

    def test_one_that_is_used_stays(self, stage: Wired) -> None:
        stage.network()
        stage.made(name="web-1")
        with pytest.raises(Conflict, match="1 address of the network lan is in use, by web-1;"):
            networks.remove(stage.store, KEYS, "lan")

    def test_one_that_is_used_at_the_last_moment_stays(self, stage: Wired) -> None:
        stage.network()
        stage.before_commits(lambda: stage.take("10.0.0.50"))
        with pytest.raises(Conflict, match="in use"):
            networks.remove(stage.store, KEYS, "lan")
        assert stage.store.get(KEYS.network("lan")) is not None

    def test_a_name_that_begins_like_another_is_another(self, stage: Wired) -> None:
        stage.network()
        stage.network(dataclasses.replace(LAN, name="lan2", vlan=7))
        stage.take("10.0.0.50", name="lan2")
        networks.remove(stage.store, KEYS, "lan")
        with pytest.raises(Permanent, match="there is no network lan;"):
            networks.remove(stage.store, KEYS, "lan")

    def test_the_list_counts_what_is_used(self, stage: Wired) -> None:
        stage.network(BOTH)
        stage.take("10.0.0.50", "10.0.0.7", "fd00::5")
        (row,) = networks.list_networks(stage.store, KEYS)
        shown = networks.network_json(row)["subnets"]
        assert [(one["size"], one["used"], one["free"]) for one in shown] == [(50, 1, 49), (65535, 1, 65534)]
        table = networks.network_table([row]).splitlines()
        assert table[1].split() == ["lan", "br0", "42", "10.0.0.0/24", "10.0.0.50-10.0.0.99", "1", "49"]
        assert table[2].split() == ["fd00::/64", "fd00::1-fd00::ffff", "1", "65534"]
        block = networks.network_block(row, {})
        assert "1 of 50 in 10.0.0.50-10.0.0.99, 49 free" in block and "1 outside" in block

    def test_what_somebody_wrote_by_hand_stands_in_nobodys_way(self, stage: Wired) -> None:
        stage.network()
        stage.take("no-address")
        stage.store.commit(Transaction(puts={f"{KEYS.network_addresses()}nothing": "x", KEYS.network("old"): '{"schema":2}'}))
        lan, old = networks.list_networks(stage.store, KEYS)
        assert (old.record, networks.network_json(lan)["subnets"][0]["used"]) == (None, 0)
        assert "upgrade it" in networks.network_table([lan, old])
        assert stage.made().nics[0].bridge == "br0"


class TestTheEnd:
    """What a host does when it forgets an instance."""

    def spec(self, loop: Loop, **changes: Any) -> InstanceSpec:
        addresses = (IpAddress("10.0.0.50", 24), IpAddress("fd00::50", 64))
        nic = Nic("lan", "br0", 42, computed_mac("lan", "10.0.0.50"), addresses)
        return loop.request(nics=(Nic(), nic), desired=Desired.DELETED, **changes)

    def addresses(self, loop: Loop) -> dict[str, str]:
        return {item.key: item.value for item in loop.store.list(LOOP_KEYS.network_addresses()).items}

    def test_its_addresses_go_with_its_keys(self, tmp_path: Path) -> None:
        loop = Loop(tmp_path)
        spec = self.spec(loop)
        assert len(self.addresses(loop)) == 2
        loop.settle(spec)
        assert loop.specs.get(spec.uuid) is None
        assert self.addresses(loop) == {}

    @pytest.mark.parametrize("group", [None, "web"])
    def test_one_that_is_somebody_elses_by_now_stays(self, tmp_path: Path, group: str | None) -> None:
        loop = Loop(tmp_path)
        spec = self.spec(loop, group=group)
        key, other = LOOP_KEYS.network_address("lan", "10.0.0.50"), str(uuid4())
        loop.store.commit(Transaction(puts={key: other}))
        loop.settle(spec)
        assert loop.specs.get(spec.uuid) is None
        assert self.addresses(loop) == {key: other}


class TestAdopting:
    """A guest whose keys etcd has lost has its addresses still."""

    def adopt(self, stage: Wired) -> InstanceSpec:
        nic = Nic("lan", "br0", 42, "52:54:00:00:00:01", (IpAddress("10.0.0.50", 24),))
        spec = InstanceSpec(uuid4(), "web", ImageRef("/a.qcow2"), {"VCPU": 1}, nics=(nic,))
        finding = Finding(Kind.QUARANTINED, "host h1", "what", "cause", "cure", spec.uuid, stage.node, proposal=spec)
        session: Any = SimpleNamespace(store=stage.store, keys=KEYS, act=None)
        Adopter(session)._write_back(finding, None)
        return spec

    def test_they_are_noted_again(self, stage: Wired) -> None:
        stage.network()
        spec = self.adopt(stage)
        assert stage.owners() == {"10.0.0.50": str(spec.uuid)}

    def test_one_that_was_given_to_another_since_is_told(self, stage: Wired) -> None:
        stage.network()
        owner = stage.take("10.0.0.50")
        with pytest.raises(Conflict, match=f"which the guest has, was given to {owner} since"):
            self.adopt(stage)
        assert stage.specs() == []

    @pytest.mark.parametrize(("options", "is_shut", "schema"), [({"domain": True}, True, 2), ({"spec": True}, False, 1)])
    def test_a_guest_that_counts_is_reached_as_it_was_by_no_more_than_before(
        self, stage: Wired, options: dict[str, bool], is_shut: bool, schema: int
    ) -> None:
        """The backup is from before its rules were set; with the guest's word hosts of earlier versions hold it as well."""
        old = InstanceSpec(uuid4(), "web", ImageRef("/a.qcow2"), {"VCPU": 1})
        stage.store.create(KEYS.spec(stage.node, old.uuid), old.to_json())
        reached = {"allow": ("tcp:22",), "forwards": (Forward(8080, 22),), "metadata": MetadataAccess.REQUIRED}
        known = dataclasses.replace(old, **reached, metadata_hop_limit=2, adopts=Adoption(1, 99))  # type: ignore[arg-type]
        finding = Finding(Kind.STORE_RESTORED, "host h1", "what", "cause", "cure", old.uuid, stage.node, proposal=known)
        session: Any = SimpleNamespace(store=stage.store, keys=KEYS, act=None)
        choice: Any = SimpleNamespace(**{"spec": False, "domain": False, **options})
        spec, *_ = Adopter(session)._decide(finding, choice)
        assert spec == (known if is_shut else dataclasses.replace(old, adopts=known.adopts))
        assert stage.specs() == [spec] and spec.schema == schema


class OneAtATime:
    """The fake Placement for many threads."""

    def __init__(self, placement: FakePlacement) -> None:
        self._placement, self._lock = placement, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            with self._lock:
                return getattr(self._placement, name)(*arguments)

        return call


def counted(stage: Wired) -> list[int]:
    """The sizes of the transactions to come."""
    commit, sizes = stage.store.commit, list[int]()

    def counting(transaction: Transaction) -> int:
        sizes.append(max(len(transaction.puts), len(transaction.compares)))
        return commit(transaction)

    stage.store.commit = counting  # type: ignore[method-assign]
    return sizes


def _free(stage: Wired) -> list[str]:
    return [address for n in range(50, 100) if (address := f"10.0.0.{n}") not in stage.owners()]


def _falling_for(address: str) -> random.Random:
    """Dice by which *address* is chosen while it seems to be free."""

    class Dice(random.Random):
        def randrange(self, *_args: int, **_more: int) -> int:  # type: ignore[override]
            return int(address.rpartition(".")[2]) - 50

    return Dice(1)
