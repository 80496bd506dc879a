"""While Placement is away, one thread asks it and the others are told at once."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, PlacementUnavailable
from common.placement import Allocations, Consumer
from ecompute.placement_gate import PlacementGate


class Scripted:
    """A Placement that is away while *is_away*; a call that began then ends when *may_answer* is set."""

    def __init__(self) -> None:
        self.is_away, self.calls = False, 0
        self.called, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()

    def consumer(self, uuid: UUID) -> Consumer | None:
        self.calls += 1
        self.called.set()
        assert self.may_answer.wait(10)
        if self.is_away:
            raise PlacementUnavailable("Placement does not answer")
        return None

    def assert_allocation(self, consumer: UUID, allocations: Allocations) -> None:
        raise Conflict("it holds something else")

    def release(self, consumer: UUID, generation: int) -> None: ...

    def is_ours(self, consumer: Consumer) -> bool:
        return True


def test_while_it_is_away_one_asks_and_the_others_hear_at_once() -> None:
    placement = Scripted()
    gate = PlacementGate(placement)
    placement.is_away = True
    with pytest.raises(PlacementUnavailable):
        gate.consumer(uuid4())
    placement.may_answer.clear()
    placement.called.clear()
    errors: list[Exception] = []

    def probe() -> None:
        try:
            gate.consumer(uuid4())
        except PlacementUnavailable as error:
            errors.append(error)

    thread = threading.Thread(target=probe)
    thread.start()
    assert placement.called.wait(10)
    with pytest.raises(PlacementUnavailable, match="does not answer"):
        gate.release(uuid4(), 1)
    assert placement.calls == 2
    placement.may_answer.set()
    thread.join(10)
    assert len(errors) == 1


def test_when_it_answers_again_everybody_asks_as_before() -> None:
    placement = Scripted()
    gate = PlacementGate(placement)
    for is_away in (True, True, False, False):
        placement.is_away = is_away
        if is_away:
            with pytest.raises(PlacementUnavailable):
                gate.consumer(uuid4())
        else:
            assert gate.consumer(uuid4()) is None
    assert placement.calls == 4


def test_a_refusal_is_an_answer() -> None:
    placement = Scripted()
    gate = PlacementGate(placement)
    placement.is_away = True
    with pytest.raises(PlacementUnavailable):
        gate.consumer(uuid4())
    with pytest.raises(Conflict):
        gate.assert_allocation(uuid4(), {})
    placement.is_away = False
    assert gate.consumer(uuid4()) is None


def test_well_it_is_asked_by_many_at_once() -> None:
    placement = Scripted()
    gate = PlacementGate(placement)
    placement.may_answer.clear()
    threads = [threading.Thread(target=gate.consumer, args=(uuid4(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    placement.may_answer.set()
    for thread in threads:
        thread.join(10)
    assert placement.calls == 4


def test_every_outcome_is_told_and_a_refusal_is_an_answer() -> None:
    placement, outcomes = Scripted(), list[str]()
    gate = PlacementGate(placement, outcomes.append)
    gate.consumer(uuid4())
    placement.is_away = True
    with pytest.raises(PlacementUnavailable):
        gate.consumer(uuid4())
    with pytest.raises(Conflict):
        gate.assert_allocation(uuid4(), {})
    assert outcomes == ["", "Placement does not answer", ""]
