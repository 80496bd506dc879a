"""The full look over fakes: what it hands to the workers, and what one instance's trouble must not do to the others."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import ConfigError, EcomputeError, PlacementUnavailable, Transient
from common.metadata import MetadataDocument
from common.model import Desired, InstanceSpec
from ecompute import resync
from ecompute.health import PLACEMENT, Health
from ecompute.hypervisor import Domain
from ecompute.resync import Rests, Resync
from tests.support.loop import KEYS, Loop, Specs


class AllSpecs(Specs):
    """As a watcher that has listed everything."""

    synced = threading.Event()
    synced.set()

    def uuids(self) -> set[UUID]:
        return {InstanceSpec.from_json(item.value).uuid for item in self.store.list(KEYS.specs(self.provider)).items}


class Look:
    """A resync over the loop of fakes, and whom it woke."""

    def __init__(self, loop: Loop) -> None:
        self.woken: list[UUID] = []
        self.health = Health(now=lambda: "now")
        self.inventory_problem: EcomputeError | None = None
        self.resync = Resync(
            hypervisor=loop.hypervisor, placement=loop.placement, provider=loop.provider,  # type: ignore[arg-type]
            specs=AllSpecs(loop.store, loop.provider), statuses=loop.statuses, reconciler=loop.reconciler,  # type: ignore[arg-type]
            wake=self.woken.append, keep_inventory=self._keep_inventory, every_seconds=60.0, health=self.health,
        )  # fmt: skip

    def _keep_inventory(self, _domains: list[Domain], _generation: int | None) -> None:
        if self.inventory_problem:
            raise self.inventory_problem

    def __call__(self) -> list[UUID]:
        self.woken.clear()
        self.resync.look()
        return list(self.woken)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def test_a_settled_host_wakes_nobody_and_a_lost_event_is_made_up_for(loop: Loop) -> None:
    spec = loop.request()
    look = Look(loop)
    assert look() == [spec.uuid]
    loop.settle(spec)
    assert look() == []
    loop.hypervisor.guest_powers_off(spec.uuid)
    assert look() == [spec.uuid]


def test_one_instance_that_cannot_be_looked_at_hides_no_other(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [loop.request(name=f"web-{number}") for number in range(4)]
    for spec in specs:
        loop.settle(spec)
    broken, *others = specs
    is_current = loop.world.metadata.is_current

    def unreadable(document: MetadataDocument) -> bool:
        if document.uuid == broken.uuid:
            raise Transient("metadata could not be read: input/output error")
        return is_current(document)

    monkeypatch.setattr(loop.world.metadata, "is_current", unreadable)
    for spec in others:
        loop.change(spec, desired=Desired.DELETED)
    assert set(Look(loop)()) == {spec.uuid for spec in specs}


def test_a_claim_that_came_back_is_new_again(loop: Loop) -> None:
    """A client that claims again under the same uuid, long after it gave up, must not lose that claim to the old clock."""
    uuid, look = uuid4(), Look(loop)
    loop.placement.claim(uuid, {loop.provider: {"VCPU": 1}})
    assert look() == []
    held = loop.placement.consumer(uuid)
    assert held is not None
    loop.placement.release(uuid, held.generation)
    look()
    loop.now += 3600
    loop.placement.claim(uuid, {loop.provider: {"VCPU": 1}})
    assert look() == []
    loop.now += 601
    assert look() == [uuid]
    loop.reconciler.reconcile(uuid)
    assert loop.placement.consumer(uuid) is None


def test_a_claim_of_somebody_else_is_left_alone_and_not_looked_at_each_time(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    uuid, look = uuid4(), Look(loop)
    loop.placement.hold(uuid, {loop.provider: {"VCPU": 1}}, project="another deployment")
    look()
    loop.now += 601
    assert look() == [uuid]
    loop.reconciler.reconcile(uuid)
    assert look() == []
    assert loop.placement.consumer(uuid) is not None
    assert not [record for record in caplog.records if record.message == "step"], "nothing was released"


def test_a_look_says_what_is_away_and_what_is_back(loop: Loop) -> None:
    look = Look(loop)
    for error, message in (
        (PlacementUnavailable("no answer"), "Placement is away since now: no answer"),
        (ConfigError("another provider has this name"), "inventory since now: another provider has this name"),
    ):
        look.inventory_problem = error
        assert not look.resync.look()
        assert look.health.message() == message
        look.inventory_problem = None
        assert look.resync.look()
        assert look.health.message() == ""


def test_guests_are_looked_at_though_placement_is_away(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.hypervisor.guest_powers_off(spec.uuid)

    def away(_: UUID, **_more: float) -> None:
        raise PlacementUnavailable("no answer")

    monkeypatch.setattr(loop.placement, "use_of", away)
    look = Look(loop)
    assert look() == [spec.uuid]
    assert look.health.is_away(PLACEMENT)


def test_while_placement_is_away_all_else_is_looked_at_once_a_period_and_when_asked(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, answers, listed = Look(loop), loop.placement.use_of, []
    domains = loop.hypervisor.list
    monkeypatch.setattr(loop.hypervisor, "list", lambda: listed.append(None) or domains())

    def away(_: UUID, **_more: float) -> None:
        raise PlacementUnavailable("no answer")

    monkeypatch.setattr(loop.placement, "use_of", away)
    assert not any(look.resync._look_once() for _ in range(3))
    assert len(listed) == 1
    look.resync.ask()
    assert not look.resync._look_once()
    assert len(listed) == 2
    asked: list[UUID] = []
    monkeypatch.setattr(loop.placement, "use_of", lambda provider, **_: asked.append(provider) or answers(provider))
    assert look.resync._look_once(), "whole, with the answer that says that it is back"
    assert len(listed) == 3
    assert asked == [loop.provider], "once: all hosts ask it now"


def test_a_status_without_its_spec_wakes_nobody(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    status = loop.statuses.get(spec.uuid)
    assert status is not None
    loop.store.wipe()
    loop.statuses.note(spec.uuid, status)
    assert loop.statuses.unwritten() == set()
    loop.statuses.note(spec.uuid, dataclasses.replace(status, message="newer"))
    assert loop.statuses.unwritten() == {spec.uuid}
    assert Look(loop)() == []


class TestWhen:
    """The thread itself, with looks that do nothing."""

    @pytest.fixture
    def looks(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Look]]:
        look, stop, counted = Look(loop), threading.Event(), threading.Semaphore(0)
        monkeypatch.setattr(loop.placement, "close", lambda: None, raising=False)
        look.resync._looked = lambda *_: counted.release()
        look.counted = counted  # type: ignore[attr-defined]
        thread = threading.Thread(target=look.resync.run, args=(stop,))
        thread.start()
        yield lambda: look
        stop.set()
        look.resync.ask()
        thread.join(10)
        assert not thread.is_alive()

    def test_when_asked_at_once_and_when_all_hosts_ask_soon(self, looks: Callable[[], Look]) -> None:
        look = looks()
        counted = look.counted  # type: ignore[attr-defined]
        assert counted.acquire(timeout=10), "the first look"
        look.resync.ask()
        assert counted.acquire(timeout=10)
        look.resync._every = 0.5
        look.resync.ask_soon()
        assert counted.acquire(timeout=10), "long before the period of a minute is over"

    def test_hosts_that_were_asked_at_one_moment_do_not_stay_in_step(
        self, looks: Callable[[], Look], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = looks()
        counted = look.counted  # type: ignore[attr-defined]
        assert counted.acquire(timeout=10), "the first look"
        monkeypatch.setattr(resync.random, "random", lambda: 0.002)
        monkeypatch.setattr(resync.Rests, "after_success", lambda _, is_in_step: 0.1 if is_in_step else 60.0)
        look.resync.ask_soon()
        assert counted.acquire(timeout=10)
        assert counted.acquire(timeout=10), "at any moment of the period of a minute, not at its end"
        assert not counted.acquire(timeout=0.5), "the next one is at its end again"

    def test_what_a_look_finds_out_itself_asks_for_no_other_look(
        self, looks: Callable[[], Look], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = looks()
        counted = look.counted  # type: ignore[attr-defined]
        assert counted.acquire(timeout=10), "the first look"
        monkeypatch.setattr(look.health, "_on_back", lambda service: look.resync.ask())
        look.health.report(PLACEMENT, "no answer")
        look.resync.ask()
        assert counted.acquire(timeout=10)
        assert not look.health.is_away(PLACEMENT)
        assert not counted.acquire(timeout=0.5), "it has just looked at everything"
        look.health.report(PLACEMENT, "no answer")
        look.health.report(PLACEMENT, "")
        assert counted.acquire(timeout=10), "somebody else found out"


def test_a_host_that_cannot_be_looked_at_hides_no_guest(loop: Loop) -> None:
    spec, look = loop.request(), Look(loop)

    def fails() -> None:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "a comment of somebody's")

    look.resync._look_at_host = fails
    assert look() == [spec.uuid]


class TestRests:
    """Of a host that looks once a minute; the n-th random number is the n-th of *numbers*, then the last for ever."""

    @staticmethod
    def rests(*numbers: float) -> Rests:
        left = list(numbers)
        return Rests(60.0, random=lambda: left.pop(0) if len(left) > 1 else left[0])

    def test_a_period_is_a_minute_give_or_take_a_fifth(self) -> None:
        assert self.rests(0.0).after_success(is_in_step=False) == pytest.approx(48)
        assert self.rests(1.0).after_success(is_in_step=False) == pytest.approx(72)

    def test_hosts_that_looked_together_look_at_any_moment_of_the_next_period(self) -> None:
        assert self.rests(0.5, 0.0).after_success(is_in_step=True) == 0
        assert self.rests(0.5, 0.75).after_success(is_in_step=True) == pytest.approx(45)

    def test_what_is_away_is_asked_again_soon_then_less_often(self) -> None:
        rests = self.rests(1.0)
        assert [rests.after_failure(is_overloaded=False) for _ in range(6)] == [2, 4, 8, 16, 30, 30]

    def test_what_is_overloaded_is_left_alone_for_longer_each_time_up_to_a_period(self) -> None:
        rests = self.rests(1.0)
        assert [rests.after_failure(is_overloaded=True) for _ in range(3)] == [30, 60, 60]

    def test_the_hosts_that_it_did_not_answer_come_back_at_any_moment_of_that(self) -> None:
        assert self.rests(0.0, 0.5).after_failure(is_overloaded=True) == pytest.approx(15)
        assert self.rests(0.0, 0.0).after_failure(is_overloaded=True) == 1, "as after any failure"

    def test_its_answers_are_waited_for_longer_each_time(self) -> None:
        rests, waited = self.rests(1.0), []
        for _ in range(5):
            waited.append(rests.more_seconds)
            rests.after_failure(is_overloaded=True)
        assert waited == [0, 10, 20, 40, 40]
        rests.after_success(is_in_step=False)
        assert rests.more_seconds == 0

    def test_what_is_away_is_not_waited_for(self) -> None:
        rests = self.rests(1.0)
        rests.after_failure(is_overloaded=False)
        assert rests.more_seconds == 0

    def test_an_answer_ends_that(self) -> None:
        rests = self.rests(1.0)
        before = [rests.after_failure(is_overloaded=True) for _ in range(3)]
        rests.after_success(is_in_step=False)
        assert [rests.after_failure(is_overloaded=True) for _ in range(3)] == before
