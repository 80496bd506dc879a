"""What a view of an instance means, and following one over its spec, status, host and moves; changes to specs; lists."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, Permanent, StoreRefused, StoreUnavailable, UnsupportedSchema
from common.keys import Keys
from common.model import (
    Desired,
    HostRecord,
    ImageRef,
    InstanceKey,
    InstanceSpec,
    InstanceStatus,
    OwnerRecord,
    Phase,
    Ready,
    Reason,
)
from common.store import Transaction
from eschedule import changes
from eschedule.creating_set import progress_of_set
from eschedule.follow import Ending, Follower, Goal, Outcome, View, judge
from eschedule.listing import list_hosts, list_instances
from eschedule.render import progress_line
from tests.fakes.placement import FakePlacement
from tests.fakes.store import FakeStore
from tests.support.processes import wait_until

KEYS = Keys()
WAIT_SECONDS = 10.0


class Stage:
    """One instance in a store, and what its host would do to it."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.uuid, self.provider = uuid4(), uuid4()
        self.views: list[View] = []
        self.has_view = threading.Event()
        self.places = {self.uuid: self.provider}
        self.add_host(self.provider, "node1")
        self.spec = InstanceSpec(self.uuid, "web-1", ImageRef("/srv/tiny.qcow2"), {"VCPU": 1})
        instance = InstanceKey(self.provider, "web-1", "").to_json()
        self.store.commit(
            Transaction(
                puts={
                    KEYS.instance(self.uuid): instance,
                    KEYS.spec(self.provider, self.uuid): self.spec.to_json(),
                    KEYS.name("web-1"): str(self.uuid),
                }
            )
        )

    def add_host(self, provider: UUID, name: str) -> None:
        self.store.create(KEYS.host(provider), HostRecord(name, "boot", uuid4(), "libvirt", "qemu:///system").to_json())
        self.store.create(KEYS.owner(provider), OwnerRecord("machine", "libvirt", name).to_json())

    def remove(self, *keys: str) -> None:
        self.store.commit(Transaction(deletes=keys))

    def report(self, phase: Phase, *, provider: UUID | None = None, **fields: Any) -> None:
        """The host's status of the spec as it is now."""
        provider = provider or self.provider
        revision = self.revision(KEYS.spec(provider, self.uuid))
        status = InstanceStatus(phase, **{"spec_revision": revision, **fields})
        self.store.commit(Transaction(puts={KEYS.status(provider, self.uuid): status.to_json()}))

    def ask(self, **fields: Any) -> None:
        """Change the spec."""
        self.spec = dataclasses.replace(self.spec, **fields)
        self.store.commit(Transaction(puts={KEYS.spec(self.provider, self.uuid): self.spec.to_json()}))

    def revision(self, key: str) -> int:
        item = self.store.get(key)
        assert item is not None
        return item.mod_revision

    def forget(self) -> None:
        self.remove(
            KEYS.spec(self.provider, self.uuid), KEYS.status(self.provider, self.uuid), KEYS.instance(self.uuid),
            KEYS.name("web-1"),
        )  # fmt: skip

    def move(self, target: UUID) -> None:
        self.store.commit(
            Transaction(
                puts={
                    KEYS.instance(self.uuid): InstanceKey(target, "web-1", "").to_json(),
                    KEYS.spec(target, self.uuid): self.spec.to_json(),
                },
                deletes=(KEYS.spec(self.provider, self.uuid), KEYS.status(self.provider, self.uuid)),
            )
        )

    def add_instance(self, name: str) -> UUID:
        """Another one, on a host of its own."""
        uuid, provider = uuid4(), uuid4()
        self.add_host(provider, f"host of {name}")
        spec = dataclasses.replace(self.spec, uuid=uuid, name=name)
        puts = {KEYS.instance(uuid): InstanceKey(provider, name, "").to_json(), KEYS.spec(provider, uuid): spec.to_json()}
        self.store.commit(Transaction(puts=puts))
        self.places[uuid] = provider
        return uuid

    def report_of(self, uuid: UUID, phase: Phase, **fields: Any) -> None:
        provider = self.places[uuid]
        revision = self.revision(KEYS.spec(provider, uuid))
        status = InstanceStatus(phase, spec_revision=revision, **fields)
        self.store.commit(Transaction(puts={KEYS.status(provider, uuid): status.to_json()}))

    def move_one(self, uuid: UUID, target: UUID) -> None:
        old = self.places[uuid]
        spec = self.store.get(KEYS.spec(old, uuid))
        assert spec is not None
        puts = {KEYS.instance(uuid): InstanceKey(target, "moved", "").to_json(), KEYS.spec(target, uuid): spec.value}
        self.store.commit(Transaction(puts=puts, deletes=(spec.key,)))
        self.places[uuid] = target

    def follow(self, goal: Goal, wait_seconds: float = WAIT_SECONDS) -> Outcome:
        return Follower(self.store, KEYS, on_view=self._note).follow(self.uuid, goal, wait_seconds)

    def following(self, goal: Goal, action: Callable[[], None]) -> Outcome:
        """The outcome where *action* happens once the follower has seen the instance."""

        def act() -> None:
            assert self.has_view.wait(WAIT_SECONDS)
            action()

        thread = threading.Thread(target=act)
        thread.start()
        try:
            return self.follow(goal)
        finally:
            thread.join()

    def _note(self, view: View) -> None:
        self.views.append(view)
        self.has_view.set()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.store.close()


class TestJudge:
    def view(self, desired: Desired, phase: Phase | None, *, spec_revision: int = 5, **status: Any) -> View:
        spec = InstanceSpec(uuid4(), "web-1", ImageRef("/x"), {}, desired=desired)
        said = None if phase is None else InstanceStatus(phase, **{"spec_revision": 5, **status})
        return View(spec.uuid, "web-1", uuid4(), "node1", spec, spec_revision, said)

    @pytest.mark.parametrize(
        ("goal", "desired", "phase", "ending"),
        [
            (Goal.RUNNING, Desired.RUNNING, None, None),
            (Goal.RUNNING, Desired.RUNNING, Phase.BUILDING, None),
            (Goal.RUNNING, Desired.RUNNING, Phase.RESCHEDULING, None),
            (Goal.RUNNING, Desired.RUNNING, Phase.RUNNING, Ending.REACHED),
            (Goal.RUNNING, Desired.RUNNING, Phase.FAILED, Ending.FAILED),
            (Goal.RUNNING, Desired.RUNNING, Phase.REFUSED, Ending.FAILED),
            (Goal.RUNNING, Desired.RUNNING, Phase.STOPPED, Ending.FAILED),
            (Goal.RUNNING, Desired.RUNNING, Phase.HELD, Ending.FAILED),
            (Goal.RUNNING, Desired.DELETED, Phase.RUNNING, Ending.FAILED),
            (Goal.STOPPED, Desired.STOPPED, Phase.RUNNING, None),
            (Goal.STOPPED, Desired.STOPPED, Phase.STOPPING, None),
            (Goal.STOPPED, Desired.STOPPED, Phase.STOPPED, Ending.REACHED),
            (Goal.STOPPED, Desired.RUNNING, Phase.RUNNING, Ending.FAILED),
            (Goal.PAUSED, Desired.PAUSED, Phase.RUNNING, None),
            (Goal.PAUSED, Desired.PAUSED, Phase.PAUSED, Ending.REACHED),
            (Goal.PAUSED, Desired.PAUSED, Phase.STOPPED, Ending.FAILED),
            (Goal.PAUSED, Desired.RUNNING, Phase.RUNNING, Ending.FAILED),
            (Goal.SUSPENDED, Desired.SUSPENDED, Phase.RUNNING, None),
            (Goal.SUSPENDED, Desired.SUSPENDED, Phase.SUSPENDING, None),
            (Goal.SUSPENDED, Desired.SUSPENDED, Phase.SUSPENDED, Ending.REACHED),
            (Goal.SUSPENDED, Desired.SUSPENDED, Phase.STOPPED, Ending.FAILED),
            (Goal.RUNNING, Desired.RUNNING, Phase.SUSPENDED, Ending.FAILED),
            (Goal.STOPPED, Desired.STOPPED, Phase.SUSPENDED, None),
            (Goal.GONE, Desired.DELETED, Phase.DELETING, None),
            (Goal.GONE, Desired.DELETED, Phase.FAILED, None),
            (Goal.GONE, Desired.DELETED, Phase.HELD, Ending.FAILED),
            (Goal.GONE, Desired.RUNNING, Phase.RUNNING, Ending.FAILED),
            (Goal.APPLIED, Desired.RUNNING, None, None),
            (Goal.APPLIED, Desired.RUNNING, Phase.RUNNING, Ending.REACHED),
            (Goal.APPLIED, Desired.STOPPED, Phase.STOPPED, Ending.REACHED),
            (Goal.APPLIED, Desired.RUNNING, Phase.FAILED, Ending.REACHED),
            (Goal.APPLIED, Desired.RUNNING, Phase.HELD, Ending.FAILED),
            (Goal.APPLIED, Desired.DELETED, Phase.RUNNING, Ending.FAILED),
        ],
    )
    def test_a_view(self, goal: Goal, desired: Desired, phase: Phase | None, ending: Ending | None) -> None:
        outcome = judge(goal, self.view(desired, phase))
        assert (outcome.ending if outcome else None) == ending

    def test_memory_that_cannot_be_saved_is_told_at_once(self) -> None:
        view = self.view(Desired.SUSPENDED, Phase.RUNNING, reason="NoSpace", message="no room")
        outcome = judge(Goal.SUSPENDED, view)
        assert outcome is not None and outcome.ending is Ending.FAILED
        assert outcome.message == "its memory was not saved, and is tried again every minute; it is Running (NoSpace: no room)"

    @pytest.mark.parametrize(
        ("phase", "booted", "ending"),
        [
            (Phase.RUNNING, 1, None),
            (Phase.REBOOTING, 1, None),
            (Phase.BUILDING, 2, None),
            (Phase.RUNNING, 2, Ending.REACHED),
            (Phase.STOPPED, 1, Ending.FAILED),
        ],
    )
    def test_a_reboot_is_over_when_the_guest_runs_for_that_very_request(
        self, phase: Phase, booted: int, ending: Ending | None
    ) -> None:
        view = self.view(Desired.RUNNING, phase, booted=booted)
        view = dataclasses.replace(view, spec=dataclasses.replace(view.spec, boot_request=2))
        outcome = judge(Goal.REBOOTED, view)
        assert (outcome.ending if outcome else None) == ending

    @pytest.mark.parametrize(
        ("phase", "ready", "is_reached"),
        [
            (Phase.RUNNING, None, False),
            (Phase.RUNNING, Ready("2026-05-01T11:58:00Z", boot_request=1), False),  # said before its last start
            (Phase.RUNNING, Ready("2026-05-01T11:58:00Z", boot_request=2), True),
            (Phase.BUILDING, Ready("2026-05-01T11:58:00Z", boot_request=2), False),
        ],
    )
    def test_a_guest_is_ready_when_it_has_said_so_since_its_last_start(
        self, phase: Phase, ready: Ready | None, is_reached: bool
    ) -> None:
        view = self.view(Desired.RUNNING, phase, ready=ready, booted=2)
        view = dataclasses.replace(view, spec=dataclasses.replace(view.spec, boot_request=2))
        outcome = judge(Goal.READY, view)
        assert (outcome is not None and outcome.ending is Ending.REACHED) == is_reached

    @pytest.mark.parametrize("phase", [Phase.FAILED, Phase.STOPPED, Phase.HELD])
    def test_a_guest_that_is_down_will_not_report(self, phase: Phase) -> None:
        outcome = judge(Goal.READY, self.view(Desired.RUNNING, phase))
        assert outcome is not None
        assert outcome.ending is Ending.FAILED

    def test_a_set_is_counted_by_what_is_waited_for(self) -> None:
        ready = Ready("2026-05-01T11:58:00Z", boot_request=1)
        views = {
            uuid4(): self.view(Desired.RUNNING, Phase.RUNNING),
            uuid4(): self.view(Desired.RUNNING, Phase.RUNNING, ready=ready),
            uuid4(): self.view(Desired.RUNNING, Phase.BUILDING),
        }
        assert progress_of_set(views, 4, Goal.READY) == "1 of 4 ready, 1 building, 1 running, 1 waiting for a host"
        assert progress_of_set(views, 4) == "2 of 4 running, 1 building, 1 waiting for a host"

    def test_a_status_of_an_older_spec_means_nothing(self) -> None:
        assert judge(Goal.RUNNING, self.view(Desired.RUNNING, Phase.FAILED, spec_revision=6)) is None
        assert judge(Goal.STOPPED, self.view(Desired.STOPPED, Phase.STOPPED, spec_revision=6)) is None
        assert judge(Goal.APPLIED, self.view(Desired.RUNNING, Phase.RUNNING, spec_revision=6)) is None

    def test_a_failure_says_why(self) -> None:
        outcome = judge(Goal.RUNNING, self.view(Desired.RUNNING, Phase.FAILED, failure="ImageNotFound", message="404 at /x"))
        assert outcome and outcome.message == "Failed (ImageNotFound: 404 at /x)"


class TestFollowing:
    def test_what_is_reached_already_ends_at_once(self, stage: Stage) -> None:
        stage.report(Phase.RUNNING)
        outcome = stage.follow(Goal.RUNNING)
        assert outcome.ending is Ending.REACHED
        assert outcome.view and (outcome.view.host, outcome.view.name) == ("node1", "web-1")

    def test_every_change_of_the_status_is_seen(self, stage: Stage) -> None:
        def build() -> None:
            stage.report(Phase.BUILDING)
            stage.report(Phase.RUNNING)

        assert stage.following(Goal.RUNNING, build).ending is Ending.REACHED
        assert stage.views[0].status is None

    def test_a_failure_ends_it(self, stage: Stage) -> None:
        outcome = stage.following(Goal.RUNNING, lambda: stage.report(Phase.FAILED, failure="ImageNotFound"))
        assert (outcome.ending, outcome.message) == (Ending.FAILED, "Failed (ImageNotFound)")

    def test_it_follows_a_move_to_another_host(self, stage: Stage) -> None:
        target = uuid4()
        stage.add_host(target, "node2")

        def move() -> None:
            stage.report(Phase.RESCHEDULING)
            stage.move(target)
            stage.report(Phase.RUNNING, provider=target)

        outcome = stage.following(Goal.RUNNING, move)
        assert outcome.ending is Ending.REACHED
        assert outcome.view and (outcome.view.provider, outcome.view.host) == (target, "node2")

    def test_a_move_is_told_and_an_older_status_at_the_new_host_means_nothing(self, stage: Stage) -> None:
        target = uuid4()
        stage.add_host(target, "node2")
        old = InstanceStatus(Phase.FAILED, spec_revision=1, failure="NoSpace").to_json()
        stage.store.create(KEYS.status(target, stage.uuid), old)

        def move() -> None:
            stage.report(Phase.RESCHEDULING, reason="NoSpace")
            said = "web-1: Rescheduling (NoSpace) on node1"
            wait_until(lambda: said in self.lines(stage), timeout_seconds=WAIT_SECONDS, what="the move is told")
            stage.move(target)
            said_then = "web-1: waiting for the host on node2"
            wait_until(lambda: said_then in self.lines(stage), timeout_seconds=WAIT_SECONDS, what="the new host is told")
            stage.report(Phase.RUNNING, provider=target)

        outcome = stage.following(Goal.RUNNING, move)
        assert outcome.ending is Ending.REACHED
        assert outcome.view and outcome.view.host == "node2"

    def lines(self, stage: Stage) -> list[str]:
        return [progress_line(view) for view in stage.views]

    def test_it_is_found_where_it_moved_before_it_was_first_looked_at(self, stage: Stage) -> None:
        target = uuid4()
        stage.add_host(target, "node2")
        stage.move(target)
        stage.report(Phase.RUNNING, provider=target)
        outcome = Follower(stage.store, KEYS).follow(stage.uuid, Goal.RUNNING, WAIT_SECONDS, provider=stage.provider)
        assert outcome.view and outcome.view.host == "node2"

    def test_a_status_of_a_newer_spec_is_judged_by_that_spec(self, stage: Stage) -> None:
        def stop() -> None:
            stage.ask(desired=Desired.STOPPED)
            stage.report(Phase.STOPPED)

        outcome = stage.following(Goal.RUNNING, stop)
        assert (outcome.ending, outcome.message) == (Ending.FAILED, "somebody asked meanwhile that it be stopped")

    def test_a_change_that_no_status_tells_of_is_seen_all_the_same(self, stage: Stage) -> None:
        outcome = stage.following(Goal.RUNNING, lambda: stage.ask(desired=Desired.DELETED))
        assert (outcome.ending, outcome.message) == (Ending.FAILED, "somebody asked meanwhile that it be deleted")

    def test_being_destroyed_meanwhile_ends_a_wait_for_running(self, stage: Stage) -> None:
        outcome = stage.following(Goal.RUNNING, stage.forget)
        assert (outcome.ending, outcome.message) == (Ending.FAILED, "it was destroyed meanwhile")

    def test_gone_is_when_all_its_keys_are(self, stage: Stage) -> None:
        stage.ask(desired=Desired.DELETED)

        def delete() -> None:
            stage.report(Phase.DELETING)
            stage.forget()

        assert stage.following(Goal.GONE, delete).ending is Ending.REACHED
        assert stage.follow(Goal.GONE) == Outcome(Ending.REACHED)

    def test_a_name_that_stays_behind_is_told(self, stage: Stage) -> None:
        stage.ask(desired=Desired.DELETED)
        keys = KEYS.spec(stage.provider, stage.uuid), KEYS.instance(stage.uuid)
        outcome = stage.following(Goal.GONE, lambda: stage.remove(*keys))
        assert (outcome.ending, outcome.message) == (Ending.FAILED, f"it is gone but for {KEYS.name('web-1')}")

    def test_a_name_that_somebody_took_since_is_not(self, stage: Stage) -> None:
        stage.ask(desired=Desired.DELETED)

        def delete() -> None:
            stage.store.commit(Transaction(puts={KEYS.name("web-1"): str(uuid4())}))
            stage.remove(KEYS.spec(stage.provider, stage.uuid), KEYS.instance(stage.uuid))

        assert stage.following(Goal.GONE, delete).ending is Ending.REACHED

    def test_a_host_that_dies_is_seen_and_waited_for(self, stage: Stage) -> None:
        def die_and_come_back() -> None:
            stage.remove(KEYS.host(stage.provider))
            wait_until(lambda: stage.views[-1].host is None, timeout_seconds=WAIT_SECONDS, what="the host is seen dead")
            stage.store.create(KEYS.host(stage.provider), HostRecord("node1", "b", uuid4(), "", "").to_json())
            stage.report(Phase.RUNNING)

        assert stage.following(Goal.RUNNING, die_and_come_back).ending is Ending.REACHED
        assert "node1, which has no heartbeat" in {view.where for view in stage.views if view.host is None}

    def test_the_wait_is_bounded(self, stage: Stage) -> None:
        outcome = stage.follow(Goal.RUNNING, wait_seconds=0.2)
        assert outcome.ending is Ending.TIMED_OUT
        assert outcome.view and outcome.view.status is None

    def test_an_outage_of_the_store_is_waited_out(self, stage: Stage) -> None:
        def outage() -> None:
            stage.store.break_with(StoreUnavailable("away"))
            threading.Event().wait(0.1)
            stage.store.break_with(None)
            stage.report(Phase.RUNNING)

        assert stage.following(Goal.RUNNING, outage).ending is Ending.REACHED

    def test_a_gap_in_the_history_is_bridged(self, stage: Stage) -> None:
        def compact() -> None:
            stage.store.compact()
            stage.report(Phase.RUNNING)

        assert stage.following(Goal.RUNNING, compact).ending is Ending.REACHED

    def test_a_store_that_refuses_us_ends_it(self, stage: Stage) -> None:
        def refuse() -> None:
            stage.store.break_with(StoreRefused("permission denied"))
            stage.store.compact()  # wakes the watches, which then list

        place = stage.store.get
        stage.store.get = lambda key, **_: place(key)  # type: ignore[method-assign]
        stage.store.watch = lambda *_args, **_options: iter(())  # type: ignore[method-assign]
        with pytest.raises(StoreRefused):
            stage.following(Goal.RUNNING, refuse)

    def test_a_spec_that_is_missing_is_damage_and_no_endless_loop(self, stage: Stage) -> None:
        stage.remove(KEYS.spec(stage.provider, stage.uuid))
        with pytest.raises(Permanent, match="the spec that it points to is missing; see: eschedule audit"):
            stage.follow(Goal.RUNNING)

    def test_what_a_newer_version_wrote_is_no_guess(self, stage: Stage) -> None:
        value = json.dumps({**json.loads(stage.spec.to_json()), "schema": 99})
        stage.store.commit(Transaction(puts={KEYS.spec(stage.provider, stage.uuid): value}))
        with pytest.raises(UnsupportedSchema):
            stage.follow(Goal.RUNNING)


class TestFollowingASet:
    """Several instances on several hosts at once."""

    @pytest.fixture
    def uuids(self, stage: Stage) -> list[UUID]:
        return [stage.uuid, *(stage.add_instance(f"web-{n}") for n in range(2, 15))]

    def test_each_ends_by_itself(self, stage: Stage, uuids: list[UUID]) -> None:
        *running, failed, moved, gone, damaged, slow = uuids
        for uuid in running:
            stage.report_of(uuid, Phase.RUNNING)
        target = uuid4()
        stage.add_host(target, "node2")

        def act() -> None:
            assert stage.has_view.wait(WAIT_SECONDS)
            stage.report_of(failed, Phase.FAILED, failure="NoSpace")
            stage.move_one(moved, target)
            stage.report_of(moved, Phase.RUNNING)
            stage.remove(KEYS.instance(gone), KEYS.spec(stage.places[gone], gone))
            stage.remove(KEYS.spec(stage.places[damaged], damaged))

        thread = threading.Thread(target=act)
        thread.start()
        known = {uuid: stage.provider if uuid == moved else None for uuid in uuids}
        outcomes = Follower(stage.store, KEYS, on_view=stage._note).follow_all(known, Goal.RUNNING, 3.0)
        thread.join()
        endings = {u: o.ending if isinstance(o, Outcome) else type(o) for u, o in outcomes.items()}
        assert endings == {
            **dict.fromkeys(running, Ending.REACHED), failed: Ending.FAILED, moved: Ending.REACHED, gone: Ending.FAILED,
            damaged: Permanent, slow: Ending.TIMED_OUT,
        }  # fmt: skip

    def test_what_has_ended_is_not_read_any_more(self, stage: Stage, uuids: list[UUID]) -> None:
        keys: list[list[str]] = []

        def counting(read: Callable[[Iterable[str]], Any]) -> Callable[[Iterable[str]], Any]:
            return lambda wanted: (keys.append(list(wanted)), read(keys[-1]))[1]

        stage.store.get_many = counting(stage.store.get_many)  # type: ignore[method-assign]
        stage.store.list_keys = counting(stage.store.list_keys)  # type: ignore[method-assign]
        for uuid in uuids[1:]:
            stage.report_of(uuid, Phase.RUNNING)
        Follower(stage.store, KEYS).follow_all(dict.fromkeys(uuids), Goal.RUNNING, 3.0)
        assert len(keys[1]) > 40
        assert not any(str(uuid) in key for key in keys[-1] for uuid in uuids[1:])

    def test_one_costs_few_questions(self, stage: Stage) -> None:
        asked: list[str] = []
        for name in ("get", "get_many", "list", "list_keys", "cluster_id", "watch"):
            method = getattr(stage.store, name)
            setattr(stage.store, name, lambda *a, _m=method, _n=name, **o: (asked.append(_n), _m(*a, **o))[1])

        def build() -> None:
            stage.report(Phase.BUILDING)
            stage.report(Phase.RUNNING)

        follower = Follower(stage.store, KEYS, on_view=stage._note)
        thread = threading.Thread(target=lambda: (stage.has_view.wait(WAIT_SECONDS), build()))
        revision = stage.revision(KEYS.spec(stage.provider, stage.uuid))
        asked.clear()
        stage.revision = lambda _key: revision  # type: ignore[method-assign]
        thread.start()
        follower.follow(stage.uuid, Goal.RUNNING, WAIT_SECONDS, provider=stage.provider)
        thread.join()
        assert sorted(asked) == ["list_keys", "watch"]


# It may be on its way down still, and comes up when it is off.
COMES_UP_AGAIN = {"desired": "running", "boot_request": 2, "reboot_request": 2, "hard_reboot": False}


class TestChanges:
    def value(self, stage: Stage) -> dict[str, Any]:
        item = stage.store.get(KEYS.spec(stage.provider, stage.uuid))
        assert item is not None
        return json.loads(item.value)

    def test_an_instance_is_found_by_name_and_by_uuid(self, stage: Stage) -> None:
        assert changes.find(stage.store, KEYS, "web-1") == changes.find(stage.store, KEYS, stage.uuid) == stage.uuid
        with pytest.raises(Permanent, match="there is no instance web-2"):
            changes.find(stage.store, KEYS, "web-2")
        with pytest.raises(Permanent, match="there is no instance"):
            changes.read(stage.store, KEYS, uuid4())

    def test_only_what_is_asked_for_changes_and_newer_fields_survive(self, stage: Stage) -> None:
        before = {**json.loads(stage.spec.to_json()), "of_the_future": [1]}
        stage.store.commit(Transaction(puts={KEYS.spec(stage.provider, stage.uuid): json.dumps(before)}))
        _, has_changed = changes.change(stage.store, KEYS, stage.uuid, changes.destroyed)
        assert has_changed
        assert self.value(stage) == {**before, "desired": "deleted"}

    def test_what_is_so_already_is_not_written(self, stage: Stage) -> None:
        changes.change(stage.store, KEYS, stage.uuid, changes.destroyed)
        revision = stage.revision(KEYS.spec(stage.provider, stage.uuid))
        assert changes.change(stage.store, KEYS, stage.uuid, changes.destroyed)[1] is False
        assert stage.revision(KEYS.spec(stage.provider, stage.uuid)) == revision

    def test_a_change_that_lost_a_race_is_made_again(self, stage: Stage) -> None:
        replace, interferences = stage.store.replace, iter([{"grace_seconds": 1}, {"grace_seconds": 2}])

        def racing(key: str, value: str, *, seen: int, **more: Any) -> int:
            if fields := next(interferences, None):
                stage.ask(**fields)
            return replace(key, value, seen=seen, **more)

        stage.store.replace = racing  # type: ignore[method-assign]
        changes.change(stage.store, KEYS, stage.uuid, changes.destroyed, sleep=lambda _seconds: None)
        assert (self.value(stage)["desired"], self.value(stage)["grace_seconds"]) == ("deleted", 2)

    def test_a_change_follows_a_move(self, stage: Stage) -> None:
        target = uuid4()
        replace = stage.store.replace

        def racing(key: str, value: str, *, seen: int, **more: Any) -> int:
            stage.store.replace = replace  # type: ignore[method-assign]
            stage.move(target)
            return replace(key, value, seen=seen, **more)

        stage.store.replace = racing  # type: ignore[method-assign]
        found, _ = changes.change(stage.store, KEYS, stage.uuid, changes.destroyed, sleep=lambda _seconds: None)
        assert found.provider == target

    def test_endless_changes_by_others_are_a_conflict(self, stage: Stage) -> None:
        def refusing(*_args: Any, **_options: Any) -> int:
            raise Conflict("changed")

        stage.store.replace = refusing  # type: ignore[method-assign]
        with pytest.raises(Conflict, match="web-1 kept being changed"):
            changes.change(stage.store, KEYS, stage.uuid, changes.destroyed, who="web-1", sleep=lambda _seconds: None)

    @pytest.mark.parametrize(
        ("desired", "phase", "expected"),
        [
            (Desired.RUNNING, None, None),
            (Desired.RUNNING, Phase.BUILDING, None),
            (Desired.RUNNING, Phase.RUNNING, None),
            (Desired.RUNNING, Phase.STOPPED, {"desired": "running", "boot_request": 2}),
            (Desired.RUNNING, Phase.FAILED, {"desired": "running", "boot_request": 2}),
            (Desired.STOPPED, Phase.STOPPED, COMES_UP_AGAIN),
            (Desired.STOPPED, Phase.STOPPING, COMES_UP_AGAIN),
        ],
    )
    def test_start_raises_the_boot_request_unless_a_guest_is_up_or_coming(
        self, desired: Desired, phase: Phase | None, expected: dict[str, Any] | None
    ) -> None:
        spec = InstanceSpec(uuid4(), "web-1", ImageRef("/x"), {}, desired=desired)
        assert changes.started(spec, InstanceStatus(phase) if phase else None) == expected

    @pytest.mark.parametrize("hard", [False, True])
    @pytest.mark.parametrize("desired", [Desired.RUNNING, Desired.STOPPED])
    def test_reboot_asks_for_another_boot(self, stage: Stage, hard: bool, desired: Desired) -> None:
        stage.ask(desired=desired, boot_request=3)
        changes.change(stage.store, KEYS, stage.uuid, changes.rebooted(hard=hard))
        value = self.value(stage)
        assert (value["desired"], value["boot_request"], value["reboot_request"], value["hard_reboot"]) == (
            "running",
            4,
            4,
            hard,
        )

    def test_what_is_being_destroyed_is_neither_started_nor_stopped(self) -> None:
        spec = InstanceSpec(uuid4(), "web-1", ImageRef("/x"), {}, desired=Desired.DELETED)
        for edit in (changes.started, changes.stopped, changes.rebooted(hard=True)):
            with pytest.raises(Conflict, match="web-1 is being destroyed"):
                edit(spec, None)


class TestLists:
    def test_instances_with_their_hosts_and_phases(self, stage: Stage) -> None:
        (row,) = list_instances(stage.store, KEYS)
        assert (row.name, row.phase, row.host.name, row.host.is_alive) == ("web-1", "Pending", "node1", True)
        stage.report(Phase.FAILED, failure="ImageNotFound")
        stage.remove(KEYS.host(stage.provider))
        (row,) = list_instances(stage.store, KEYS)
        assert (row.phase, row.reason, row.host.name, row.host.is_alive) == ("Failed", "ImageNotFound", "node1", False)

    def test_what_a_newer_version_wrote_is_listed_as_held(self, stage: Stage) -> None:
        value = json.dumps({**json.loads(stage.spec.to_json()), "schema": 99})
        stage.store.commit(Transaction(puts={KEYS.spec(stage.provider, stage.uuid): value}))
        (row,) = list_instances(stage.store, KEYS)
        assert (row.name, row.phase, row.reason) == ("web-1", "Held", Reason.UNSUPPORTED_SCHEMA)

    def test_hosts_with_what_is_used_of_them_and_those_that_are_dead(self, stage: Stage) -> None:
        placement, dead = FakePlacement(), uuid4()
        stage.add_host(dead, "node0")
        stage.remove(KEYS.host(dead))
        host = placement.add_host("node1")
        placement.hosts[stage.provider] = placement.hosts.pop(host)
        placement.hold(uuid4(), {stage.provider: {"VCPU": 3}})
        first, second = list_hosts(stage.store, KEYS, placement)  # type: ignore[arg-type]
        assert (first.host.name, first.state, first.record, first.guests) == ("node0", "dead", None, 0)
        assert (second.host.name, second.state, second.guests) == ("node1", "Ready", 1)
        assert second.used is not None and second.used["VCPU"] == 3
        assert [row.used for row in list_hosts(stage.store, KEYS, None)] == [None, None]
