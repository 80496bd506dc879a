"""Sets of instances: how they are packed, and that all of one are claimed and recorded or none, whatever comes between."""

from __future__ import annotations

import dataclasses
import random
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, Conflict, NoCapacity, Permanent, PlacementUnavailable, StoreUnavailable
from common.model import Desired, GroupPolicy, ImageRef
from common.placement_types import Allocations, Candidate, ProviderSummary, Usage
from common.store import Transaction
from eschedule import changes
from eschedule.batch import BatchScheduler, PlacedSet
from eschedule.grouping import Group
from eschedule.interruption import Interrupted
from eschedule.packing import Option, pack
from eschedule.request import Request
from tests.unit.test_group_requests import join, members
from tests.unit.test_scheduler import KEYS, NOW, SMALL, Stage, calls, request

ANTI, SOFT_ANTI = GroupPolicy.ANTI_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY
AFFINITY, SOFT_AFFINITY = GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY


class Sets(Stage):
    """A stage with a scheduler of sets."""

    def batch(self, **options: Any) -> BatchScheduler:
        return BatchScheduler(
            self.store, self.placement, KEYS, created_by="me@here", interruption=self.interruption, clock=lambda: self.time,
            sleep=self._sleep, dice=random.Random(7), on_warning=self.warnings.append, boot_clock=lambda: self.time,
            **{"now": lambda: NOW, **options},
        )  # fmt: skip

    def create(self, asked: Request) -> PlacedSet:
        return self.batch().create_all(asked)

    def desired(self, placed_uuid: UUID) -> Desired:
        return changes.read(self.store, KEYS, placed_uuid).spec.desired


@pytest.fixture
def stage() -> Sets:
    return Sets()


def asked_for(count: int, **fields: Any) -> Request:
    return request(**{"uuid": None, "request_id": "order 7", "count": count, "name": "web", **fields})


def where(placed: PlacedSet) -> Counter[UUID]:
    return Counter(one.provider for one in placed.instances)


class TestPacking:
    def options(self, **vcpus: int) -> tuple[list[Option], dict[UUID, ProviderSummary], dict[UUID, str]]:
        """Hosts with so many VCPUs free of 10, and a candidate of two VCPUs on each."""
        hosts = {uuid4(): name for name in vcpus}
        summaries = {
            host: ProviderSummary(host, host, {"VCPU": Usage(10, 10 - vcpus[name])}, frozenset())
            for host, name in hosts.items()
        }
        return [(Candidate({host: {"VCPU": 2}}), host) for host in hosts], summaries, hosts

    def packed(self, count: int, policy: str = "spread", group: Group | None = None, **vcpus: int) -> dict[str, int]:
        options, summaries, names = self.options(**vcpus)
        chosen = pack(count, options, summaries, policy=policy, group=group, dice=random.Random(3))
        return dict(Counter(names[host] for _, host in chosen))

    def group(self, policy: GroupPolicy, **members: int) -> Group:
        return Group("web", policy, {}, {})

    def test_spread_evens_the_hosts_out(self) -> None:
        assert self.packed(4, a=10, b=10) == {"a": 2, "b": 2}
        assert self.packed(3, a=10, b=6) == {"a": 3} | {} or self.packed(3, a=10, b=6) == {"a": 2, "b": 1}

    def test_pack_fills_the_fullest_first(self) -> None:
        assert self.packed(4, "pack", a=10, b=4, c=10) in ({"b": 2, "a": 2}, {"b": 2, "c": 2})

    def test_what_does_not_fit_is_left_out(self) -> None:
        assert sum(self.packed(9, a=7, b=4, c=1).values()) == 5

    def test_apart_means_each_host_once(self) -> None:
        assert self.packed(3, group=self.group(ANTI), a=10, b=10) == {"a": 1, "b": 1}

    def test_together_means_the_first_host_that_takes_all(self) -> None:
        assert self.packed(4, group=self.group(AFFINITY), a=4, b=8, c=6) == {"b": 4}
        assert self.packed(4, group=self.group(AFFINITY), a=4, c=6) == {"c": 3}

    def test_the_soft_ones_are_wishes(self) -> None:
        assert self.packed(4, group=self.group(SOFT_ANTI), a=10, b=4) == {"a": 2, "b": 2}
        assert self.packed(5, group=self.group(SOFT_ANTI), a=10, b=2) == {"a": 4, "b": 1}
        assert sorted(self.packed(7, group=self.group(SOFT_AFFINITY), a=10, b=10).values()) == [2, 5]

    @given(
        free=st.lists(st.integers(0, 10), max_size=8),
        count=st.integers(1, 40),
        policy=st.sampled_from(["spread", "pack", "random"]),
        kind=st.sampled_from([None, *GroupPolicy]),
    )
    def test_never_more_than_fits_and_never_fewer_than_could(
        self, free: list[int], count: int, policy: str, kind: GroupPolicy | None
    ) -> None:
        hosts = {f"h{i}": vcpus for i, vcpus in enumerate(free)}
        taken = self.packed(count, policy, self.group(kind) if kind else None, **hosts)
        room = {name: vcpus // 2 for name, vcpus in hosts.items()}
        assert all(number <= room[name] for name, number in taken.items())
        if kind is AFFINITY:
            assert sum(taken.values()) == min(count, max(room.values(), default=0))
            assert len(taken) <= 1
        elif kind is ANTI:
            assert sum(taken.values()) == min(count, sum(1 for number in room.values() if number))
        else:
            assert sum(taken.values()) == min(count, sum(room.values()))

    def test_a_provider_that_is_shared_is_counted_once(self) -> None:
        storage, hosts = uuid4(), [uuid4(), uuid4()]
        summaries = {
            p: ProviderSummary(p, p, {c: Usage(10, 0)}, frozenset())
            for p, c in [(storage, "DISK_GB"), *((h, "VCPU") for h in hosts)]
        }
        options = [(Candidate({host: {"VCPU": 1}, storage: {"DISK_GB": 4}}), host) for host in hosts]
        assert len(pack(5, options, summaries, policy="spread", group=None, dice=random.Random(1))) == 2


class TestTheStraightWay:
    def test_all_are_claimed_at_once_and_recorded(self, stage: Sets) -> None:
        hosts = [stage.host("node1"), stage.host("node2")]
        placed = stage.create(asked_for(4))
        assert [one.name for one in placed.instances] == ["web-1", "web-2", "web-3", "web-4"]
        assert where(placed) == {hosts[0]: 2, hosts[1]: 2}
        assert len(calls(stage, "replace")) == len(calls(stage, "candidates")) == 1
        assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}
        for one in placed.instances:
            spec = stage.spec(one.provider, one.uuid)
            assert (spec.name, spec.hostname, spec.resources) == (one.name, one.name, SMALL)
            assert {a.provider for a in spec.alternates} == set(hosts) - {one.provider}
        assert not placed.is_repeat
        assert set(placed.timings_ms) == {"candidates", "claim", "store"}

    def test_the_uuids_follow_from_the_request_id(self, stage: Sets) -> None:
        first, second = asked_for(2), asked_for(2)
        uuids = [member.uuid for member in first.members(first.instance_uuid(KEYS.prefix, uuid4))]
        assert uuids == [member.uuid for member in second.members(second.instance_uuid(KEYS.prefix, uuid4))]
        assert len(set(uuids)) == 2

    @pytest.mark.parametrize(
        ("name", "names"),
        [("web", ["web-1", "web-2"]), ("w{n}b", ["w1b", "w2b"]), ("{n}-{n}", ["1-1", "2-2"])],
    )
    def test_names_have_the_number(self, stage: Sets, name: str, names: list[str]) -> None:
        stage.host("node1")
        assert [one.name for one in stage.create(asked_for(2, name=name)).instances] == names

    def test_without_a_name_each_has_its_uuids(self, stage: Sets) -> None:
        stage.host("node1")
        placed = stage.create(asked_for(3, name=None))
        assert [one.name for one in placed.instances] == [f"vm-{one.uuid.hex[:8]}" for one in placed.instances]

    def test_many_take_several_transactions_within_etcds_limits(self, stage: Sets) -> None:
        for i in range(3):
            stage.host(f"node{i}", VCPU=100, MEMORY_MB=100_000)
        commit, sizes = stage.store.commit, []

        def counting(transaction: Transaction) -> int:
            sizes.append(len(transaction.puts))
            assert max(len(transaction.puts), len(transaction.compares)) <= 128
            return commit(transaction)

        stage.store.commit = counting  # type: ignore[method-assign]
        placed = stage.create(asked_for(60, group="web", group_policy=SOFT_ANTI))
        assert set(where(placed).values()) == {20}
        assert len([size for size in sizes if size]) >= 3
        assert {host: len(instances) for host, instances in members(stage).items()} == dict(where(placed))

    def test_large_ones_are_cut_by_their_bytes(self, stage: Sets) -> None:
        stage.host("node1", VCPU=100)
        commit, sizes = stage.store.commit, []

        def counting(transaction: Transaction) -> int:
            sizes.append(sum(len(key) + len(value) for key, value in transaction.puts.items()))
            return commit(transaction)

        stage.store.commit = counting  # type: ignore[method-assign]
        stage.create(asked_for(10, keys=("ssh-ed25519 " + "A" * 200_000,)))
        assert len(sizes) == 2
        assert max(sizes) <= 1024 * 1024

    def test_where_the_limited_answer_is_too_small_all_hosts_are_asked_for(self, stage: Sets) -> None:
        for i in range(4):
            stage.host(f"dead{i}", is_alive=False)
        for i in range(3):
            stage.host(f"node{i}", VCPU=1)
        placed = stage.batch(candidates_limit=2).create_all(asked_for(3))
        assert len(where(placed)) == 3
        assert [call.rpartition(" ")[2] for call in calls(stage, "candidates")] == ["limit=3", "limit=None"]

    @pytest.mark.parametrize("fields", [{"request_id": None}, {}])
    def test_a_request_made_just_now_asks_placement_for_candidates_and_the_claim_alone(
        self, stage: Sets, fields: dict[str, Any]
    ) -> None:
        for number in range(3):
            stage.host(f"node{number}")
        stage.batch().create_all(asked_for(5, **fields), is_new="request_id" not in fields)
        assert [call.split()[0] for call in stage.placement.calls] == ["candidates", "replace"]

    def test_each_has_up_to_three_other_hosts_and_not_its_own(self, stage: Sets) -> None:
        for number in range(5):
            stage.host(f"node{number}")
        placed = stage.create(asked_for(7))
        for one in placed.instances:
            others = [a.provider for a in stage.spec(one.provider, one.uuid).alternates]
            assert len(set(others)) == 3
            assert one.provider not in others


class TestTooMany:
    def test_what_fits_is_said_and_nothing_is_left(self, stage: Sets) -> None:
        stage.host("node1", VCPU=3)
        with pytest.raises(NoCapacity) as caught:
            stage.create(asked_for(5))
        assert str(caught.value) == (
            "no room for 5 instances of DISK_GB:1,MEMORY_MB:256,VCPU:1: 3 of them would fit; see: eschedule hosts"
        )
        assert (stage.placement.consumers, stage.recorded()) == ({}, set())

    def test_where_none_fits_the_reason_is_that_of_one(self, stage: Sets) -> None:
        stage.host("node1", MEMORY_MB=96)
        with pytest.raises(NoCapacity, match="1 host: 1 short of MEMORY_MB"):
            stage.create(asked_for(5))

    @pytest.mark.parametrize(
        ("policy", "said"),
        [
            (ANTI, "each on a host of its own, as the group db asks: 2 of them would fit"),
            (AFFINITY, "all on one host, as the group db asks: 8 of them would fit"),
        ],
    )
    def test_a_group_says_what_it_asks(self, stage: Sets, policy: GroupPolicy, said: str) -> None:
        stage.host("node1")
        stage.host("node2")
        with pytest.raises(NoCapacity, match=said):
            stage.create(asked_for(9, group="db", group_policy=policy))
        assert stage.placement.consumers == {}

    def test_room_that_others_take_is_asked_for_again(self, stage: Sets) -> None:
        full, free = stage.host("node1", VCPU=4), stage.host("node2", VCPU=4)
        stage.on_claim(lambda: stage.placement.hold(uuid4(), {full: {"VCPU": 4}}))
        assert where(stage.create(asked_for(4))) == {free: 4}

    def test_two_sets_that_want_the_last_room_do_not_share_it(self, stage: Sets) -> None:
        stage.host("node1", VCPU=5)
        stage.on_claim(lambda: stage.create(asked_for(4, request_id="other", name="other")))
        with pytest.raises(NoCapacity, match="1 of them would fit"):
            stage.create(asked_for(4))
        assert len(stage.placement.consumers) == 4


class TestGroups:
    def test_apart(self, stage: Sets) -> None:
        hosts = [stage.host(f"node{i}") for i in range(4)]
        join(stage, hosts[0])
        placed = stage.create(asked_for(3, group="web"))
        assert set(where(placed)) == set(hosts[1:])
        assert all(stage.spec(one.provider, one.uuid).alternates == () for one in placed.instances)

    def test_together(self, stage: Sets) -> None:
        small, large = stage.host("node1", VCPU=3), stage.host("node2", VCPU=8)
        placed = stage.create(asked_for(4, group="web", group_policy=AFFINITY))
        assert where(placed) == {large: 4}
        assert small not in members(stage)

    def test_a_host_that_the_group_takes_meanwhile_is_replaced(self, stage: Sets) -> None:
        hosts = [stage.host(f"node{i}") for i in range(4)]
        lost: list[UUID] = []

        def take_one() -> None:
            lost.append(next(iter(next(iter(stage.placement.consumers.values())).allocations)))
            join(stage, lost[0])

        stage.before_commits(take_one)
        placed = stage.create(asked_for(3, group="web"))
        assert set(where(placed)) == set(hosts) - set(lost)
        assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}

    def test_when_no_other_host_is_left_for_it_all_is_taken_back(self, stage: Sets) -> None:
        first, _ = stage.host("node1"), stage.host("node2")
        stage.before_commits(lambda: join(stage, first))
        with pytest.raises(NoCapacity):
            stage.create(asked_for(2, group="web"))
        assert stage.placement.consumers == {}

    def test_another_anchor_meanwhile_moves_all_of_it(self, stage: Sets) -> None:
        first, second = stage.host("node1", VCPU=8), stage.host("node2", VCPU=4)
        stage.before_commits(lambda: join(stage, second, AFFINITY))
        placed = stage.create(asked_for(3, group="web", group_policy=AFFINITY))
        assert where(placed) == {second: 3}
        assert stage.placement.usages(first)["VCPU"] == 0


class TestRepeats:
    def test_the_same_request_answers_the_set_that_is_there(self, stage: Sets) -> None:
        stage.host("node1")
        first = stage.create(asked_for(3))
        stage.placement.calls.clear()
        again = stage.create(asked_for(3))
        assert [one.uuid for one in again.instances] == [one.uuid for one in first.instances]
        assert again.is_repeat
        assert stage.placement.calls == []

    def test_another_count_is_another_request(self, stage: Sets) -> None:
        stage.host("node1")
        stage.create(asked_for(3))
        with pytest.raises(Conflict, match="asked for differently"):
            stage.create(asked_for(4))
        assert len(stage.placement.consumers) == 3

    @pytest.mark.parametrize("written", [0, 25])
    def test_a_run_that_was_killed_is_finished_with_its_own_claims(self, stage: Sets, written: int) -> None:
        for i in range(2):
            stage.host(f"node{i}", VCPU=30)

        class Killed(BaseException):
            pass

        def kill() -> None:
            raise Killed

        stage.before_commits(*[lambda: None] * (written // 25), kill)
        with pytest.raises(Killed):
            stage.create(asked_for(40))
        before = dict(stage.placement.consumers)
        assert len(before) == 40
        placed = stage.create(asked_for(40))
        assert sum(one.is_repeat for one in placed.instances) == written
        assert {u: c.allocations for u, c in stage.placement.consumers.items()} == {u: c.allocations for u, c in before.items()}
        assert all({one.provider} == set(before[one.uuid].allocations) for one in placed.instances)

    def test_claims_of_which_some_are_gone_are_completed(self, stage: Sets) -> None:
        stage.host("node1")
        asked = asked_for(3)
        uuids = [m.uuid for m in asked.members(asked.instance_uuid(KEYS.prefix, uuid4))]
        host = next(iter(stage.placement.hosts))
        stage.placement.hold(uuids[1], {host: SMALL})
        placed = stage.create(asked)
        assert [one.uuid for one in placed.instances] == uuids
        assert set(stage.placement.consumers) == set(uuids)

    def test_claims_that_take_the_room_of_those_missing_are_found(self, stage: Sets) -> None:
        host, asked = stage.host("node1", VCPU=3), asked_for(3)
        uuids = [m.uuid for m in asked.members(asked.instance_uuid(KEYS.prefix, uuid4))]
        for uuid in uuids[1:]:
            stage.placement.hold(uuid, {host: SMALL})
        assert where(stage.create(asked)) == {host: 3}
        assert set(stage.placement.consumers) == set(uuids)

    def test_a_claim_that_is_something_else_stops_it(self, stage: Sets) -> None:
        host, asked = stage.host("node1"), asked_for(2)
        uuids = [m.uuid for m in asked.members(asked.instance_uuid(KEYS.prefix, uuid4))]
        stage.placement.hold(uuids[1], {host: {"VCPU": 3}})
        with pytest.raises(Conflict, match="holds VCPU:3 in Placement"):
            stage.create(asked)
        assert set(stage.placement.consumers) == {uuids[1]}

    def test_one_that_is_being_destroyed_has_to_be_waited_for(self, stage: Sets) -> None:
        stage.host("node1")
        placed = stage.create(asked_for(2))
        changes.change(stage.store, KEYS, placed.instances[1].uuid, changes.destroyed)
        with pytest.raises(Conflict, match="web-2, which an earlier run of this request made, is being destroyed"):
            stage.create(asked_for(2))

    def test_what_an_earlier_run_made_stays_when_the_rest_finds_no_room(self, stage: Sets) -> None:
        host = stage.host("node1", VCPU=40)
        placed = stage.create(asked_for(30))
        gone = placed.instances[29]
        stage.store.commit(Transaction(deletes=(KEYS.instance(gone.uuid), KEYS.spec(host, gone.uuid), KEYS.name(gone.name))))
        stage.placement.consumers.pop(gone.uuid)
        stage.placement.hold(uuid4(), {host: {"VCPU": 11}})
        with pytest.raises(NoCapacity, match="29 of the set of 30 are there already"):
            stage.create(asked_for(30))
        assert all(stage.desired(one.uuid) is Desired.RUNNING for one in placed.instances[:29])

    def test_two_runs_of_the_same_request_at_once_make_one_set(self, stage: Sets) -> None:
        stage.host("node1")
        other: list[PlacedSet] = []
        later = lambda: dataclasses.replace(asked_for(3))  # noqa: E731
        stage.before_commits(lambda: other.append(stage.batch().create_all(later())))
        placed = stage.create(asked_for(3))
        assert {one.uuid for one in placed.instances} == {one.uuid for one in other[0].instances}
        assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}


class TestFailures:
    def test_a_taken_name_is_found_before_anything_is_claimed(self, stage: Sets) -> None:
        stage.host("node1")
        stage.store.create(KEYS.name("web-2"), str(uuid4()))
        with pytest.raises(Conflict, match="the name web-2 is taken"):
            stage.create(asked_for(3))
        assert stage.placement.calls == []

    def test_a_name_lost_at_the_last_moment_takes_all_back(self, stage: Sets) -> None:
        stage.host("node1")
        stage.on_claim(lambda: stage.store.create(KEYS.name("web-2"), str(uuid4())))
        with pytest.raises(Conflict, match="the name web-2 is taken"):
            stage.create(asked_for(3))
        assert (stage.placement.consumers, stage.recorded()) == ({}, {KEYS.name("web-2")})

    @pytest.mark.parametrize(
        "error", [StoreUnavailable("not sent", may_have_happened=False), Permanent("etcd takes no more", "TooLarge")]
    )
    def test_a_later_batch_that_was_surely_not_written_takes_the_earlier_ones_back(self, stage: Sets, error: Exception) -> None:
        stage.host("node1", VCPU=60, MEMORY_MB=60_000)

        def fail() -> None:
            raise error

        stage.before_commits(lambda: None, fail)
        with pytest.raises(type(error)):
            stage.create(asked_for(40))
        written = [UUID(item.key.rpartition("/")[2]) for item in stage.store.list(KEYS.instances()).items]
        assert len(written) == 25
        assert {stage.desired(uuid) for uuid in written} == {Desired.DELETED}
        assert set(stage.placement.consumers) == set(written)

    def test_a_batch_whose_outcome_is_unknown_keeps_all(self, stage: Sets) -> None:
        stage.host("node1", VCPU=60, MEMORY_MB=60_000)
        stage.before_commits(lambda: None, lambda: stage.store.lose_answers(1))
        with pytest.raises(StoreUnavailable):
            stage.create(asked_for(40))
        assert len(stage.placement.consumers) == 40
        placed = stage.create(asked_for(40))
        assert placed.is_repeat
        assert {stage.desired(one.uuid) for one in placed.instances} == {Desired.RUNNING}

    @pytest.mark.parametrize("is_done", [True, False])
    def test_a_lost_answer_to_the_claim_is_read_back(self, stage: Sets, is_done: bool) -> None:
        stage.host("node1")
        stage.placement.lose_answer(is_done=is_done)
        placed = stage.create(asked_for(3))
        assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}
        assert len(calls(stage, "replace")) == (1 if is_done else 2)

    def test_a_claim_that_stays_unknown_is_said_to_be_so(self, stage: Sets) -> None:
        stage.host("node1")
        for _ in range(200):
            stage.placement.lose_answer(is_done=False)
        with pytest.raises(PlacementUnavailable) as caught:
            stage.create(asked_for(3))
        assert caught.value.outcome_unknown

    def test_a_host_that_dies_between_claim_and_record_is_replaced(self, stage: Sets) -> None:
        first, second = stage.host("node1", VCPU=4), stage.host("node2", VCPU=4)
        stage.before_commits(lambda: stage.die(first))
        assert where(stage.create(asked_for(4))) == {second: 4}
        assert stage.placement.usages(first)["VCPU"] == 0

    def test_one_that_cannot_be_taken_back_is_named(self, stage: Sets) -> None:
        stage.host("node1", VCPU=60, MEMORY_MB=60_000)

        def break_down() -> None:
            stage.store.break_with(StoreUnavailable("away", may_have_happened=False))

        stage.before_commits(lambda: None, break_down)
        with pytest.raises(StoreUnavailable):
            stage.create(asked_for(30))
        stage.store.break_with(None)
        assert len(stage.warnings) == 25
        assert "web-1 is recorded and could not be taken back (away)" in stage.warnings[0]

    def test_clashing_names_are_refused(self, stage: Sets) -> None:
        class Same(Request):
            def instance_name(self, _instance: UUID) -> str:
                return "vm-00000000"

        fields: Mapping[str, Any] = {f.name: getattr(asked_for(2), f.name) for f in dataclasses.fields(Request)}
        with pytest.raises(ConfigError, match="two instances of this set would have the name vm-00000000"):
            stage.create(Same(**fields))


class TestSleptOver:
    def sleep_before(self, stage: Sets, seconds: float, *, and_lose: int = 0) -> None:
        """This program sleeps between claim and record, and of what it has claimed some is released by others."""

        def sleep(_consumer: UUID) -> None:
            stage.time += seconds
            for consumer in list(stage.placement.consumers)[:and_lose]:
                del stage.placement.consumers[consumer]

        stage.placement.after_claim.append(sleep)

    @pytest.mark.parametrize("lost", [1, 3])
    def test_a_set_claims_anew_what_others_released(self, stage: Sets, lost: int) -> None:
        stage.host("node1")
        self.sleep_before(stage, 31, and_lose=lost)
        placed = stage.create(asked_for(3))
        assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}

    def test_a_claim_that_is_still_there_is_written_anew(self, stage: Sets) -> None:
        stage.host("node1")
        self.sleep_before(stage, 31)
        placed = stage.create(asked_for(3))
        assert {stage.placement.consumers[one.uuid].generation for one in placed.instances} == {2}

    def test_what_is_fresh_is_not_asked_after(self, stage: Sets) -> None:
        stage.host("node1")
        self.sleep_before(stage, 29)
        stage.create(asked_for(3))
        assert len(calls(stage, "consumer")) == 1  # whether an earlier run left claims

    @pytest.mark.parametrize("lost", [0, 1])
    def test_one_instance_likewise(self, stage: Sets, lost: int) -> None:
        host = stage.host("node1")
        self.sleep_before(stage, 31, and_lose=lost)
        placed = stage.make_scheduler(boot_clock=lambda: stage.time).create(request())
        assert stage.placement.consumers[placed.uuid].allocations == {host: SMALL}

    def test_a_release_that_was_decided_on_before_fails(self, stage: Sets) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL})
        decided_on = stage.placement.consumers[asked.uuid].generation
        stage.scheduler.create(asked)
        with pytest.raises(Conflict):
            stage.placement.release(asked.uuid, decided_on)

    def test_one_that_another_run_writes_anew_just_now_is_as_good(self, stage: Sets) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL})

        def renew(consumer: UUID, _allocations: Allocations) -> None:
            held = stage.placement.consumers[consumer]
            stage.placement.consumers[consumer] = dataclasses.replace(held, generation=held.generation + 1)

        stage.placement.before_claim += [lambda *_: None, *[renew] * 10]
        assert stage.scheduler.create(asked).provider == host

    @pytest.mark.parametrize("is_done", [True, False])
    def test_a_renewal_without_an_answer_is_read_back(self, stage: Sets, is_done: bool) -> None:
        stage.host("node1")

        def sleep(_consumer: UUID) -> None:
            stage.time += 31
            stage.placement.lose_answer(is_done=is_done)

        stage.placement.after_claim.append(sleep)
        placed = stage.make_scheduler(boot_clock=lambda: stage.time).create(request())
        assert placed.uuid in stage.placement.consumers
        assert len(calls(stage, "consumer")) == 2


class TestKilledAnywhere:
    """A run that ends before or after any one of its calls, and the same request again."""

    class Killed(BaseException):
        pass

    def arm(self, stage: Sets, at: int, *, is_after: bool) -> list[str]:
        """Have the *at*-th call of anybody be the last one; the calls so far."""
        made: list[str] = []
        for thing in (stage.store, stage.placement):
            for name in ("get_many", "list", "commit", "candidates", "replace_consumers", "claim", "consumer", "release"):
                if hasattr(thing, name):
                    setattr(thing, name, self.deadly(getattr(thing, name), name, made, at, is_after=is_after))
        return made

    def deadly(
        self, call: Callable[..., Any], name: str, made: list[str], at: int, *, is_after: bool
    ) -> Callable[..., Any]:  # fmt: skip
        def wrapped(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) == at and not is_after:
                raise self.Killed
            try:
                return call(*arguments, **options)
            finally:
                if len(made) == at:
                    raise self.Killed

        return wrapped

    @pytest.mark.parametrize("group", [None, *GroupPolicy])
    @pytest.mark.parametrize("is_after", [False, True])
    def test_the_set_is_complete_with_no_claim_too_many(self, is_after: bool, group: GroupPolicy | None) -> None:
        at, count = 0, 3 if group is ANTI else 30
        while True:
            at += 1
            stage = Sets()
            for i in range(4):
                stage.host(f"node{i}", VCPU=40, MEMORY_MB=40_000)
            fields = {"group": "web", "group_policy": group} if group else {}
            normal = {t: dict(vars(t)) for t in (stage.store, stage.placement)}
            made = self.arm(stage, at, is_after=is_after)
            try:
                stage.create(asked_for(count, **fields))
            except self.Killed:
                for thing, before in normal.items():
                    for name in vars(thing).keys() - before.keys():
                        delattr(thing, name)
            else:
                break
            placed = stage.create(asked_for(count, **fields))
            assert set(stage.placement.consumers) == {one.uuid for one in placed.instances}
            for one in placed.instances:
                assert stage.placement.consumers[one.uuid].allocations == {one.provider: SMALL}
                assert stage.spec(one.provider, one.uuid).name == one.name
            if group:
                assert {host: len(found) for host, found in members(stage).items()} == dict(where(placed))
        assert at > len(made) >= 6


class TestInterruption:
    def interrupt(self, stage: Sets) -> None:
        stage.interruption._heard(signal.SIGINT, None)

    def test_between_claim_and_record_all_is_given_back(self, stage: Sets) -> None:
        stage.host("node1")
        stage.on_claim(lambda: self.interrupt(stage))
        with pytest.raises(Interrupted):
            stage.create(asked_for(3))
        assert (stage.placement.consumers, stage.recorded()) == ({}, set())

    def test_once_recording_has_begun_it_is_finished(self, stage: Sets) -> None:
        stage.host("node1", VCPU=60, MEMORY_MB=60_000)
        stage.before_commits(lambda: self.interrupt(stage))
        placed = stage.create(asked_for(30))
        assert len(stage.recorded()) == 90
        assert len(placed.instances) == 30
        with pytest.raises(Interrupted):
            stage.interruption.check()


def test_the_count_is_part_of_the_digest_only_above_one() -> None:
    single = Request("resources=VCPU:1", {"VCPU": 1}, ImageRef("/x"))
    assert single.digest() == dataclasses.replace(single, count=1).digest()
    digests = {dataclasses.replace(single, count=count).digest() for count in (1, 2, 3)}
    assert len(digests) == 3
