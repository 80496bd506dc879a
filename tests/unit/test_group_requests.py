"""Requests for members of a group, over a store and a Placement in memory: where they go, who loses, what is said then."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, NoCapacity, Transient
from common.model import GroupMembers, GroupPolicy
from common.store import Transaction
from eschedule import grouping
from eschedule.planning import Placed
from eschedule.request import Request
from tests.unit.test_scheduler import KEYS, SMALL, Stage, calls, request

ANTI, SOFT_ANTI = GroupPolicy.ANTI_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY
AFFINITY, SOFT_AFFINITY = GroupPolicy.AFFINITY, GroupPolicy.SOFT_AFFINITY


@pytest.fixture
def stage() -> Stage:
    return Stage()


def member(policy: GroupPolicy = ANTI, **changes: Any) -> Request:
    return request(group="web", group_policy=policy, **changes)


def create(stage: Stage, policy: GroupPolicy = ANTI, **changes: Any) -> Placed:
    return stage.scheduler.create(member(policy, **changes))


def members(stage: Stage) -> dict[UUID, set[UUID]]:
    group = grouping.read(stage.store, KEYS, "web", _policy(stage))
    assert group is not None
    return {provider: set(instances) for provider, instances in group.members.items()}


def _policy(stage: Stage) -> GroupPolicy:
    item = next(item for item in stage.store.list(KEYS.groups("web")).items if not item.key.endswith("/anchor"))
    return GroupMembers.from_json(item.value).policy


def join(stage: Stage, provider: UUID, policy: GroupPolicy = ANTI) -> UUID:
    """Somebody else's instance joins the group on *provider*."""
    instance = uuid4()
    found = stage.store.get_many([KEYS.group("web", provider), KEYS.group_anchor("web")])
    group = grouping.Group("web", policy, {}, {})
    change = grouping.join_all(KEYS, group, [(provider, instance)], found)
    type(stage.store).commit(stage.store, Transaction(change.compares, change.puts))
    return instance


class TestAntiAffinity:
    def test_hosts_of_the_group_are_not_even_claimed(self, stage: Stage) -> None:
        taken, free = stage.host("node1"), stage.host("node2", VCPU=2)
        join(stage, taken)
        assert create(stage).provider == free
        assert len(calls(stage, "claim")) == 1

    def test_the_key_and_the_spec_come_in_one_transaction(self, stage: Stage) -> None:
        host = stage.host("node1")
        placed = create(stage)
        keys = [KEYS.spec(host, placed.uuid), KEYS.group("web", host)]
        assert len({item.mod_revision for item in stage.store.get_many(keys).values()}) == 1
        assert members(stage) == {host: {placed.uuid}}
        assert (stage.spec(host, placed.uuid).group, stage.spec(host, placed.uuid).group_policy) == ("web", ANTI)

    def test_alternates_are_hosts_that_the_group_has_not(self, stage: Stage) -> None:
        taken, *_ = hosts = [stage.host(f"node{i}") for i in range(4)]
        join(stage, taken)
        placed = create(stage)
        alternates = {a.provider for a in stage.spec(placed.provider, placed.uuid).alternates}
        assert alternates == set(hosts) - {taken, placed.provider}

    def test_the_loser_of_a_race_gives_its_claim_back_and_takes_the_next_host(self, stage: Stage) -> None:
        first, second = stage.host("node1"), stage.host("node2", VCPU=4, MEMORY_MB=4096, DISK_GB=50)
        stage.before_commits(lambda: join(stage, first))
        placed = create(stage)
        assert placed.provider == second
        assert stage.placement.consumers[placed.uuid].allocations == {second: SMALL}
        assert len(calls(stage, "claim")) == 2

    def test_when_every_host_is_the_groups_that_is_said(self, stage: Stage) -> None:
        for name in ("node1", "node2"):
            stage.host(name)
        for _ in range(2):
            create(stage)
        with pytest.raises(NoCapacity, match="2 hosts: 2 taken by the group web"):
            create(stage)
        assert len(stage.placement.consumers) == 2

    def test_more_hosts_are_asked_for_than_the_group_is_on(self, stage: Stage) -> None:
        for i in range(12):
            join(stage, stage.host(f"node{i}"))
        free = stage.host("free")
        assert create(stage).provider == free
        assert [call.rpartition(" ")[2] for call in calls(stage, "candidates")] == ["limit=22"]

    def test_a_claim_of_an_earlier_run_on_a_host_that_is_taken_now_is_named(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), member()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL})
        stage.before_commits(lambda: join(stage, host))
        with pytest.raises(Transient, match=r"the claim that an earlier run .* is on node1") as caught:
            stage.scheduler.create(asked)
        assert not isinstance(caught.value, Conflict)
        assert asked.uuid in stage.placement.consumers

    def test_clients_at_once_win_as_many_hosts_as_there_are(self, stage: Stage) -> None:
        for i in range(3):
            stage.host(f"node{i}")
        results: list[object] = []

        def run() -> None:
            try:
                results.append(stage.make_scheduler().create(member(uuid=None)))
            except NoCapacity as error:
                results.append(error)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        placed = [result for result in results if isinstance(result, Placed)]
        assert len({p.provider for p in placed}) == len(placed) == 3
        assert set(stage.placement.consumers) == {p.uuid for p in placed}


class TestSoftAntiAffinity:
    def test_the_host_with_the_fewest_members_comes_first(self, stage: Stage) -> None:
        hosts = [stage.host(f"node{i}") for i in range(3)]
        placed = [create(stage, SOFT_ANTI) for _ in range(6)]
        assert {p.provider for p in placed[:3]} == set(hosts) == {p.provider for p in placed[3:]}
        assert {len(instances) for instances in members(stage).values()} == {2}

    def test_it_yields_where_there_is_no_other_room(self, stage: Stage) -> None:
        host = stage.host("node1")
        first, second = create(stage, SOFT_ANTI), create(stage, SOFT_ANTI)
        assert members(stage) == {host: {first.uuid, second.uuid}}

    def test_members_that_join_meanwhile_cost_another_transaction_and_not_the_claim(self, stage: Stage) -> None:
        host = stage.host("node1")
        others: list[UUID] = []
        stage.before_commits(*[lambda: others.append(join(stage, host, SOFT_ANTI))] * 5)
        placed = create(stage, SOFT_ANTI)
        assert members(stage) == {host: {placed.uuid, *others}}
        assert (len(others), len(calls(stage, "claim"))) == (5, 1)

    def test_members_that_never_stop_joining_end_it_without_a_claim(self, stage: Stage) -> None:
        host = stage.host("node1")
        stage.before_commits(*[lambda: join(stage, host, SOFT_ANTI)] * 100)
        with pytest.raises(Transient, match="kept changing"):
            create(stage, SOFT_ANTI)
        assert stage.placement.consumers == {}


class TestAffinity:
    def test_all_are_on_one_host_and_none_may_move(self, stage: Stage) -> None:
        for i in range(3):
            stage.host(f"node{i}")
        placed = [create(stage, AFFINITY) for _ in range(3)]
        (host,) = {p.provider for p in placed}
        assert members(stage) == {host: {p.uuid for p in placed}}
        anchor = stage.store.get(KEYS.group_anchor("web"))
        assert anchor and anchor.value == str(host)
        assert all(stage.spec(host, p.uuid).alternates == () for p in placed)

    def test_placement_is_asked_for_that_host_alone(self, stage: Stage) -> None:
        host = stage.host("node1", VCPU=2)
        stage.host("node2")
        join(stage, host, AFFINITY)
        assert create(stage, AFFINITY).provider == host
        assert f"&in_tree={host}" in calls(stage, "candidates")[0]

    def test_an_in_tree_of_the_users_own_that_is_another_host_leaves_none(self, stage: Stage) -> None:
        host, other = stage.host("node1"), stage.host("node2")
        join(stage, host, AFFINITY)
        query = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&in_tree="
        with pytest.raises(NoCapacity, match="the group web has affinity and lives on node1: excluded by in_tree="):
            create(stage, AFFINITY, query=f"{query}{other}")
        assert create(stage, AFFINITY, query=f"{query}{host}").provider == host

    def test_the_loser_of_the_first_place_goes_where_the_winner_is(self, stage: Stage) -> None:
        first, second = stage.host("node1"), stage.host("node2", VCPU=4, MEMORY_MB=4096, DISK_GB=50)
        stage.before_commits(lambda: join(stage, second, AFFINITY))
        placed = create(stage, AFFINITY)
        assert placed.provider == second
        assert stage.placement.consumers[placed.uuid].allocations == {second: SMALL}
        assert first not in members(stage)

    @pytest.mark.parametrize("how", ["dead", "full", "short"])
    def test_without_room_on_the_groups_host_that_is_said(self, stage: Stage, how: str) -> None:
        host = stage.host("node1", VCPU=2)
        stage.host("node2")
        join(stage, host, AFFINITY)
        if how == "dead":
            stage.die(host)
        else:
            used = {"VCPU": 2, "MEMORY_MB": 8192, "DISK_GB": 100} if how == "full" else {"VCPU": 2}
            stage.placement.hold(uuid4(), {host: used})
        said = {
            "dead": f"lives on the host of provider {host}: without a heartbeat",
            "full": "lives on node1: full",
            "short": r"lives on node1: short of VCPU \(0 VCPU free, 1 needed on node1\)",
        }
        with pytest.raises(NoCapacity, match=f"the group web has affinity and {said[how]}; see: eschedule hosts"):
            create(stage, AFFINITY)

    def test_a_soft_one_begins_at_the_host_with_the_most_and_goes_elsewhere(self, stage: Stage) -> None:
        few, many = stage.host("node1"), stage.host("node2", VCPU=1, MEMORY_MB=300, DISK_GB=2)
        for host, count in ((few, 1), (many, 2)):
            for _ in range(count):
                join(stage, host, SOFT_AFFINITY)
        assert [create(stage, SOFT_AFFINITY).provider for _ in range(2)] == [many, few]


class TestPolicies:
    def test_a_group_has_one_policy(self, stage: Stage) -> None:
        stage.host("node1")
        create(stage, AFFINITY)
        before, _ = stage.recorded(), stage.placement.calls.clear()
        with pytest.raises(Conflict, match="under the policy affinity, this request is for anti-affinity; ask with --policy"):
            create(stage, ANTI)
        assert (stage.recorded(), stage.placement.calls) == (before, [])

    def test_another_policy_that_was_first_meanwhile_is_a_conflict_and_no_claim(self, stage: Stage) -> None:
        host = stage.host("node1")
        stage.before_commits(lambda: join(stage, host, SOFT_ANTI))
        with pytest.raises(Conflict, match="under the policy soft-anti-affinity"):
            create(stage, ANTI)
        assert stage.placement.consumers == {}

    def test_the_policy_is_part_of_the_digest_only_with_a_group(self) -> None:
        plain = request()
        assert plain.digest() == dataclasses.replace(plain, group_policy=AFFINITY).digest()
        assert member(ANTI).digest() != member(AFFINITY).digest()
