"""The way of a request over a store and a Placement in memory: what is claimed, what is recorded, what is given back."""

from __future__ import annotations

import dataclasses
import datetime
import random
import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import ConfigError, Conflict, NoCapacity, Permanent, PlacementUnavailable, StoreUnavailable, Transient
from common.keys import Keys
from common.model import HostRecord, ImageRef, InstanceKey, InstanceSpec
from common.placement_types import DISABLED_TRAIT, Allocations
from common.store import Transaction
from eschedule.interruption import Interrupted, Interruption
from eschedule.request import Request
from eschedule.scheduler import Scheduler
from tests.fakes.placement import FakePlacement
from tests.fakes.store import FakeStore

KEYS = Keys()
SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
NOW = datetime.datetime(2026, 5, 1, 12, 0, 0, tzinfo=datetime.UTC)


def request(**changes: Any) -> Request:
    made = Request("resources=VCPU:1,MEMORY_MB:256,DISK_GB:1", SMALL, ImageRef("/srv/tiny.qcow2"), uuid=uuid4())
    return dataclasses.replace(made, **changes)


class Stage:
    """A store, a Placement, their hosts, and a scheduler whose time only passes while it sleeps."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.placement = FakePlacement()
        self.interruption = Interruption()
        self.warnings: list[str] = []
        self.time = 0.0
        self.scheduler = self.make_scheduler()

    def make_scheduler(self, **options: Any) -> Scheduler:
        return Scheduler(
            self.store, self.placement, KEYS, created_by="me@here", interruption=self.interruption, clock=lambda: self.time,
            sleep=self._sleep, dice=random.Random(7), on_warning=self.warnings.append, **{"now": lambda: NOW, **options},
        )  # fmt: skip

    def host(self, name: str, *, is_alive: bool = True, traits: tuple[str, ...] = (), **totals: int) -> UUID:
        provider = self.placement.add_host(name, traits=traits, **totals)
        if is_alive:
            record = HostRecord(name, "boot", uuid4(), "libvirt", "qemu:///system")
            self.store.create(KEYS.host(provider), record.to_json())
        return provider

    def die(self, provider: UUID) -> None:
        item = self.store.get(KEYS.host(provider))
        assert item is not None
        self.store.delete(item.key, seen=item.mod_revision)

    def spec(self, provider: UUID, instance: UUID) -> InstanceSpec:
        item = self.store.get(KEYS.spec(provider, instance))
        assert item is not None
        return InstanceSpec.from_json(item.value)

    def recorded(self) -> set[str]:
        """All keys but the hosts'."""
        return {
            item.key
            for item in self.store.list(KEYS.prefix, behind=KEYS.after_journal()).items
            if not item.key.startswith(KEYS.hosts())
        }

    def on_claim(self, action: Callable[[], object]) -> None:
        """Have *action* happen while the next claim is on its way."""
        self.placement.before_claim.append(lambda _consumer, _allocations: action())

    def commits_with(self, error: Exception, *, times: int = 1) -> None:
        """The next commits fail with *error*, and nothing is written."""
        commit, left = self.store.commit, [error] * times

        def failing(transaction: Transaction) -> int:
            if left:
                raise left.pop()
            return commit(transaction)

        self.store.commit = failing  # type: ignore[method-assign]

    def before_commits(self, *actions: Callable[[], object]) -> None:
        """Have each of *actions* happen right before one of the next commits."""
        commit, left = self.store.commit, list(actions)

        def racing(transaction: Transaction) -> int:
            if left:
                left.pop(0)()
            return commit(transaction)

        self.store.commit = racing  # type: ignore[method-assign]

    def _sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def stage() -> Stage:
    return Stage()


def calls(stage: Stage, kind: str) -> list[str]:
    return [call for call in stage.placement.calls if call.startswith(kind)]


class TestTheStraightWay:
    def test_a_host_is_claimed_and_the_instance_recorded_in_one_transaction(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request(name="web-1")
        assert asked.uuid
        placed = stage.scheduler.create(asked)
        assert (placed.uuid, placed.name, placed.provider, placed.host) == (asked.uuid, "web-1", host, "node1")
        assert not placed.is_repeat
        assert set(placed.timings_ms) == {"candidates", "claim", "store"}
        keys = {KEYS.instance(asked.uuid), KEYS.spec(host, asked.uuid), KEYS.name("web-1")}
        assert stage.recorded() == keys
        assert len({item.mod_revision for item in stage.store.get_many(keys).values()}) == 1
        assert stage.placement.consumers[asked.uuid].allocations == {host: SMALL}
        name, instance = stage.store.get(KEYS.name("web-1")), stage.store.get(KEYS.instance(asked.uuid))
        assert name and name.value == str(asked.uuid)
        assert instance and InstanceKey.from_json(instance.value) == InstanceKey(host, "web-1", asked.digest())

    def test_the_spec_says_who_when_and_what_was_claimed(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        stage.scheduler.create(asked)
        spec = stage.spec(host, asked.uuid)
        assert (spec.resources, spec.created_by, spec.created_at) == (SMALL, "me@here", "2026-05-01T12:00:00.000Z")
        assert spec.name == f"vm-{asked.uuid.hex[:8]}"
        assert (spec.alternates, spec.boot_request) == ((), 1)

    def test_other_live_hosts_become_alternates_at_most_three(self, stage: Stage) -> None:
        hosts = {stage.host(f"node{i}") for i in range(5)}
        dead = stage.host("dead", is_alive=False)
        asked = request()
        placed = stage.scheduler.create(asked)
        alternates = stage.spec(placed.provider, placed.uuid).alternates
        providers = {alternate.provider for alternate in alternates}
        assert len(providers) == 3
        assert providers <= hosts - {placed.provider, dead}
        assert all(a.allocations == {str(a.provider): SMALL} for a in alternates)

    def test_the_question_names_our_hosts_and_the_limit(self, stage: Stage) -> None:
        stage.host("node1")
        stage.scheduler.create(request())
        assert calls(stage, "candidates") == [
            "candidates resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&root_required=CUSTOM_ETCD_COMPUTE,!COMPUTE_STATUS_DISABLED"
            " limit=10"
        ]

    def test_without_a_uuid_a_new_one_is_made(self, stage: Stage) -> None:
        stage.host("node1")
        first, second = (stage.scheduler.create(request(uuid=None)) for _ in range(2))
        assert first.uuid != second.uuid

    def test_a_spec_that_is_too_large_is_refused_before_anything_is_asked(self, stage: Stage) -> None:
        with pytest.raises(ConfigError, match="at most 262144"):
            stage.scheduler.create(request(keys=("ssh-ed25519 " + "A" * 300_000,)))
        assert stage.placement.calls == []


class TestRepeats:
    def test_the_same_request_answers_the_instance_that_is_there(self, stage: Stage) -> None:
        stage.host("node1")
        asked = request()
        first = stage.scheduler.create(asked)
        stage.placement.calls.clear()
        again = stage.scheduler.create(asked)
        assert again.is_repeat
        assert (again.uuid, again.provider, again.host, again.name) == (first.uuid, first.provider, "node1", first.name)
        assert stage.placement.calls == []

    def test_another_request_with_that_uuid_conflicts_and_touches_nothing(self, stage: Stage) -> None:
        stage.host("node1")
        asked = request()
        stage.scheduler.create(asked)
        before, _ = stage.recorded(), stage.placement.calls.clear()
        with pytest.raises(Conflict, match="asked for differently"):
            stage.scheduler.create(dataclasses.replace(asked, image=ImageRef("/srv/other.qcow2")))
        assert (stage.recorded(), stage.placement.calls) == (before, [])

    def test_a_request_that_died_after_its_claim_goes_on_with_it_where_it_is(self, stage: Stage) -> None:
        hosts = [stage.host("node1"), stage.host("node2"), stage.host("node3")]
        asked = request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {hosts[1]: SMALL})
        placed = stage.scheduler.create(asked)
        assert (placed.provider, placed.host) == (hosts[1], "node2")
        assert stage.placement.consumers[asked.uuid].allocations == {hosts[1]: SMALL}
        assert hosts[1] not in {a.provider for a in stage.spec(hosts[1], asked.uuid).alternates}

    def test_its_claim_is_found_also_where_it_took_the_last_room(self, stage: Stage) -> None:
        host, asked = stage.host("node1", VCPU=1), request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL})
        placed = stage.scheduler.create(asked)
        assert (placed.provider, placed.host) == (host, "node1")
        assert set(stage.placement.consumers) == {asked.uuid}

    def test_a_claim_of_other_amounts_under_that_uuid_is_a_conflict(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: {"VCPU": 2}})
        with pytest.raises(Conflict, match="holds VCPU:2 in Placement"):
            stage.scheduler.create(asked)
        assert asked.uuid in stage.placement.consumers

    def test_somebody_elses_claim_under_that_uuid_is_a_conflict(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL}, project="another")
        with pytest.raises(Conflict):
            stage.scheduler.create(asked)
        assert asked.uuid in stage.placement.consumers

    def test_the_same_request_running_twice_makes_one_instance(self, stage: Stage) -> None:
        stage.host("node1")
        asked = request()
        assert asked.uuid
        later = NOW + datetime.timedelta(seconds=1)
        stage.on_claim(lambda: stage.make_scheduler(now=lambda: later).create(asked))
        placed = stage.scheduler.create(asked)
        assert placed.is_repeat
        assert asked.uuid in stage.placement.consumers

    def test_losing_the_uuid_to_another_request_leaves_its_claim_alone(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request()
        assert asked.uuid
        other = InstanceKey(host, "other", "sha256:other").to_json()
        stage.on_claim(lambda: stage.store.create(KEYS.instance(asked.uuid), other))  # type: ignore[arg-type]
        with pytest.raises(Conflict, match="asked for differently"):
            stage.scheduler.create(asked)
        assert asked.uuid in stage.placement.consumers


class TestNames:
    def test_a_taken_name_is_found_before_anything_is_claimed(self, stage: Stage) -> None:
        stage.host("node1")
        first = stage.scheduler.create(request(name="web-1"))
        stage.placement.calls.clear()
        with pytest.raises(Conflict, match=f"web-1 is taken by the instance {first.uuid}"):
            stage.scheduler.create(request(name="web-1"))
        assert stage.placement.calls == []

    def test_a_name_lost_at_the_last_moment_gives_the_claim_back(self, stage: Stage) -> None:
        stage.host("node1")
        asked = request(name="web-1")
        stage.on_claim(lambda: stage.store.create(KEYS.name("web-1"), str(uuid4())))
        with pytest.raises(Conflict, match="is taken"):
            stage.scheduler.create(asked)
        assert stage.placement.consumers == {}
        assert stage.recorded() == {KEYS.name("web-1")}

    def test_a_claim_that_was_found_is_not_given_back(self, stage: Stage) -> None:
        host, asked = stage.host("node1"), request(name="web-1")
        assert asked.uuid
        stage.placement.hold(asked.uuid, {host: SMALL})
        stage.on_claim(lambda: stage.store.create(KEYS.name("web-1"), str(uuid4())))
        with pytest.raises(Conflict, match="is taken"):
            stage.scheduler.create(asked)
        assert asked.uuid in stage.placement.consumers

    def test_a_name_that_is_free_again_when_it_is_looked_at_is_tried_again(self, stage: Stage) -> None:
        stage.host("node1")
        stage.commits_with(Conflict("something"), times=2)
        assert stage.scheduler.create(request(name="web-1")).name == "web-1"

    def test_keys_that_keep_changing_end_in_a_transient_error_and_no_claim(self, stage: Stage) -> None:
        stage.host("node1")
        stage.commits_with(Conflict("something"), times=3)
        with pytest.raises(Transient, match="kept changing"):
            stage.scheduler.create(request())
        assert stage.placement.consumers == {}


class TestCandidates:
    def test_hosts_without_a_heartbeat_are_passed_over(self, stage: Stage) -> None:
        stage.host("dead", is_alive=False)
        alive = stage.host("node1", VCPU=2)
        assert stage.scheduler.create(request()).provider == alive

    def test_when_all_of_the_limited_answer_are_dead_all_hosts_are_asked_for(self, stage: Stage) -> None:
        for i in range(4):
            stage.host(f"dead{i}", is_alive=False)
        alive = stage.host("node1")
        assert stage.make_scheduler(candidates_limit=2).create(request()).provider == alive
        assert [call.rpartition(" ")[2] for call in calls(stage, "candidates")] == ["limit=2", "limit=None"]

    def test_a_host_that_fills_up_meanwhile_is_passed_over(self, stage: Stage) -> None:
        full, free = stage.host("node1"), stage.host("node2", VCPU=4, MEMORY_MB=4096, DISK_GB=50)
        stage.on_claim(lambda: stage.placement.hold(uuid4(), {full: {"VCPU": 8}}))
        assert stage.scheduler.create(request()).provider == free

    def test_when_all_are_lost_it_is_asked_once_more_and_then_said_why(self, stage: Stage) -> None:
        stage.host("node1")

        def refuse(_consumer: UUID, _allocations: Allocations) -> None:
            raise NoCapacity("gone")

        stage.placement.before_claim += [refuse, refuse]
        with pytest.raises(NoCapacity, match="1 host: 1 lost to another request just now"):
            stage.scheduler.create(request())
        assert len(calls(stage, "claim")) == 2

    def test_a_host_that_dies_between_claim_and_record_is_left_for_the_next(self, stage: Stage) -> None:
        first, second = stage.host("node1"), stage.host("node2", VCPU=4, MEMORY_MB=4096, DISK_GB=50)
        stage.on_claim(lambda: stage.die(first))
        placed = stage.scheduler.create(request())
        assert placed.provider == second
        assert stage.placement.consumers[placed.uuid].allocations == {second: SMALL}

    def test_a_group_never_shares_a_host(self, stage: Stage) -> None:
        stage.host("node1")
        stage.host("node2")
        placed = [stage.scheduler.create(request(group="web")) for _ in range(2)]
        assert placed[0].provider != placed[1].provider
        assert {KEYS.group("web", p.provider) for p in placed} <= stage.recorded()
        with pytest.raises(NoCapacity, match="2 hosts: 2 taken by the group web"):
            stage.scheduler.create(request(group="web"))
        assert len(stage.placement.consumers) == 2


class TestDoubt:
    def conflict(self, _consumer: UUID, _allocations: Allocations) -> None:
        raise Conflict("somebody changes this provider")

    def test_a_contended_candidate_is_tried_three_times_with_pauses(self, stage: Stage) -> None:
        stage.host("node1")
        stage.placement.before_claim += [self.conflict, self.conflict]
        stage.scheduler.create(request())
        assert len(calls(stage, "claim")) == 3
        assert stage.time > 0

    def test_contention_is_never_called_a_lack_of_capacity(self, stage: Stage) -> None:
        stage.host("node1")
        stage.placement.before_claim += [self.conflict] * 6
        with pytest.raises(Transient, match="other requests kept changing") as caught:
            stage.scheduler.create(request())
        assert not isinstance(caught.value, Conflict)
        assert stage.recorded() == set()

    def test_another_candidate_may_be_had_where_one_is_contended(self, stage: Stage) -> None:
        stage.host("node1")
        stage.host("node2")
        stage.placement.before_claim += [self.conflict] * 3
        stage.scheduler.create(request())
        assert len(calls(stage, "claim")) == 4

    @pytest.mark.parametrize("is_done", [True, False])
    def test_a_lost_answer_is_read_back(self, stage: Stage, is_done: bool) -> None:
        host = stage.host("node1")
        stage.placement.lose_answer(is_done=is_done)
        placed = stage.scheduler.create(request())
        assert stage.placement.consumers[placed.uuid].allocations == {host: SMALL}
        assert len(calls(stage, "claim")) == (1 if is_done else 2)

    def test_a_claim_whose_answer_was_lost_is_this_runs_to_give_back(self, stage: Stage) -> None:
        stage.host("node1")
        stage.placement.lose_answer(is_done=True)
        stage.on_claim(lambda: stage.store.create(KEYS.name("web-1"), str(uuid4())))
        with pytest.raises(Conflict, match="is taken"):
            stage.scheduler.create(request(name="web-1"))
        assert stage.placement.consumers == {}

    def test_a_claim_that_stays_unknown_is_said_to_be_so(self, stage: Stage) -> None:
        stage.host("node1")
        for _ in range(200):
            stage.placement.lose_answer(is_done=False)
        with pytest.raises(PlacementUnavailable):
            stage.scheduler.create(request())
        assert 30 <= stage.time < 32

    def test_an_unsent_claim_is_not_asked_after(self, stage: Stage) -> None:
        stage.host("node1")

        def refused(_consumer: UUID, _allocations: Allocations) -> None:
            raise PlacementUnavailable("connection refused")

        stage.placement.before_claim.append(refused)
        with pytest.raises(PlacementUnavailable):
            stage.scheduler.create(request())
        assert calls(stage, "consumer") == []

    def test_an_unknown_record_keeps_the_claim(self, stage: Stage) -> None:
        stage.host("node1")
        asked = request()
        stage.on_claim(lambda: stage.store.lose_answers(1))
        with pytest.raises(StoreUnavailable):
            stage.scheduler.create(asked)
        assert asked.uuid in stage.placement.consumers
        assert stage.scheduler.create(asked).is_repeat

    @pytest.mark.parametrize(
        "error", [StoreUnavailable("not sent", may_have_happened=False), Permanent("etcd takes no more", "TooLarge")]
    )
    def test_a_record_that_was_surely_not_made_gives_the_claim_back(self, stage: Stage, error: Exception) -> None:
        stage.host("node1")
        stage.commits_with(error)
        with pytest.raises(type(error)):
            stage.scheduler.create(request())
        assert stage.placement.consumers == {}

    def test_a_claim_that_cannot_be_given_back_is_named(self, stage: Stage) -> None:
        stage.host("node1")
        stage.commits_with(StoreUnavailable("not sent", may_have_happened=False))
        stage.placement.consumer = lambda _uuid: (_ for _ in ()).throw(PlacementUnavailable("away"))  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            stage.scheduler.create(request())
        assert len(stage.warnings) == 1
        assert "could not be given back" in stage.warnings[0]


class TestInterruption:
    def interrupt(self, stage: Stage) -> None:
        stage.interruption._heard(signal.SIGINT, None)

    def test_between_claim_and_record_the_claim_is_given_back(self, stage: Stage) -> None:
        stage.host("node1")
        stage.on_claim(lambda: self.interrupt(stage))
        with pytest.raises(Interrupted) as caught:
            stage.scheduler.create(request())
        assert (caught.value.exit_code, caught.value.was_forced) == (130, False)
        assert stage.placement.consumers == {}
        assert stage.recorded() == set()

    def test_after_the_record_the_instance_stays_and_the_next_look_ends_it(self, stage: Stage) -> None:
        stage.host("node1")
        commit = stage.store.commit

        def commit_and_interrupt(transaction: Transaction) -> int:
            revision = commit(transaction)
            self.interrupt(stage)
            return revision

        stage.store.commit = commit_and_interrupt  # type: ignore[method-assign]
        placed = stage.scheduler.create(request())
        assert KEYS.instance(placed.uuid) in stage.recorded()
        with pytest.raises(Interrupted):
            stage.interruption.check()

    def test_a_second_signal_ends_it_at_once(self, stage: Stage) -> None:
        stage.host("node1")

        def twice() -> None:
            self.interrupt(stage)
            self.interrupt(stage)

        stage.on_claim(twice)
        with pytest.raises(Interrupted) as caught:
            stage.scheduler.create(request())
        assert caught.value.was_forced

    def test_without_a_claim_a_signal_ends_it_at_once(self, stage: Stage) -> None:
        with pytest.raises(Interrupted) as caught:
            stage.interruption._heard(signal.SIGTERM, None)
        assert caught.value.exit_code == 143


class TestWhyNot:
    def why(self, stage: Stage, **changes: Any) -> str:
        with pytest.raises(NoCapacity) as caught:
            stage.scheduler.create(request(**changes))
        text = str(caught.value)
        assert text.startswith("no host can take DISK_GB:1,MEMORY_MB:256,VCPU:1") or "resources" in changes
        assert "\n" not in text
        assert stage.placement.consumers.keys() & {changes.get("uuid")} == set()
        return text

    def test_no_host_at_all(self, stage: Stage) -> None:
        assert "there is no host at all; is ecompute running anywhere?" in self.why(stage)

    def test_every_host_is_counted_under_what_it_fails_first(self, stage: Stage) -> None:
        stage.host("dead", is_alive=False)
        stage.host("off", traits=(DISABLED_TRAIT,))
        stage.host("old")
        text = self.why(stage, query="resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&required=HW_CPU_X86_AVX2")
        assert "3 hosts: " in text
        for part in ("1 without a heartbeat", "1 disabled", "1 lacks HW_CPU_X86_AVX2"):
            assert part in text

    def test_the_nearest_miss_is_measured(self, stage: Stage) -> None:
        stage.host("node1", MEMORY_MB=96)
        assert "1 host: 1 short of MEMORY_MB (96 MEMORY_MB free, 256 needed on node1)" in self.why(stage)
        stage.host("node2", MEMORY_MB=128)
        assert "2 hosts: 2 short of MEMORY_MB (at best 128 MEMORY_MB free, 256 needed on node2)" in self.why(stage)

    def test_what_is_used_is_not_free(self, stage: Stage) -> None:
        host = stage.host("node1", VCPU=1, MEMORY_MB=300)
        stage.placement.hold(uuid4(), {host: {"VCPU": 1, "MEMORY_MB": 200}})
        assert "1 short of MEMORY_MB and VCPU (100 MEMORY_MB free, 256 needed; 0 VCPU free, 1 needed on node1)" in self.why(
            stage
        )

    def test_hosts_with_nothing_free_are_counted(self, stage: Stage) -> None:
        for name in ("node1", "node2"):
            host = stage.host(name, VCPU=1, MEMORY_MB=256, DISK_GB=1)
            stage.placement.hold(uuid4(), {host: SMALL})
        assert "2 hosts: 2 full" in self.why(stage)

    def test_a_host_with_enough_in_all_that_gives_less_to_one(self, stage: Stage) -> None:
        host = stage.placement.add_host("node1", max_unit=2)
        stage.store.create(KEYS.host(host), HostRecord("node1", "", uuid4(), "", "").to_json())
        asked = {"VCPU": 4, "MEMORY_MB": 2, "DISK_GB": 1}
        text = self.why(stage, resources=asked, query="resources=VCPU:4,MEMORY_MB:2,DISK_GB:1")
        assert "1 giving one instance at most 2 VCPU" in text

    def test_not_knowing_why_is_no_other_error(self, stage: Stage) -> None:
        stage.placement.providers = lambda *_: (_ for _ in ()).throw(PlacementUnavailable("away"))  # type: ignore[method-assign]
        assert self.why(stage).endswith("why could not be found out: away")

    def test_a_constraint_that_only_placement_understands(self, stage: Stage) -> None:
        stage.host("node1")
        text = self.why(stage, query=f"resources=VCPU:1,MEMORY_MB:256,DISK_GB:1&in_tree={uuid4()}")
        assert "1 excluded by in_tree=" in text


def test_a_claim_that_another_run_of_the_request_has_taken_up_is_not_given_back(stage: Stage) -> None:
    host, asked, other = stage.host("node1"), request(), stage.make_scheduler()
    uuid = asked.uuid
    assert uuid

    def refuse(_transaction: Transaction) -> int:
        assert other._claims.left_behind(uuid, SMALL)
        raise Permanent("etcd does not take it")

    stage.store.commit = refuse  # type: ignore[method-assign]
    with pytest.raises(Permanent):
        stage.scheduler.create(asked)
    assert stage.placement.consumers[uuid].allocations == {host: SMALL}
