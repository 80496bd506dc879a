"""While etcd is away one thread at a time asks, in growing pauses, and the others hear of what it found out."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from common.etcd_gate import MOST_TRY_SECONDS, SLOW_FOR_SECONDS, TRY_SECONDS, Gate, backoff_within
from common.etcd_rules import Fault
from common.retry import Backoff
from tests.support.processes import wait_until

REFUSED = Fault("UNAVAILABLE", "failed to connect to all addresses")
LATE = Fault("DEADLINE_EXCEEDED", "Deadline Exceeded")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    """Its pauses are 1, 2, 4 … seconds."""
    return Gate(clock, Backoff(1.0, 60.0, random=lambda: 1.0))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def enter(gate: Gate, seconds: float = math.inf, *, is_over: bool = False) -> bool:
    return gate.enter(lambda: seconds, lambda: is_over)


def fail(gate: Gate, fault: Fault = REFUSED) -> None:
    gate.failed(fault)
    gate.leave()


def wait_for_entry(gate: Gate, waiting: int) -> None:
    wait_until(lambda: len(gate._waiting) == waiting, timeout_seconds=5, what=f"{waiting} wait")


def test_an_open_gate_holds_nobody_up(gate: Gate) -> None:
    assert enter(gate, 0.1)
    assert not enter(gate, 0.0), "who has no time left need not ask"
    assert gate.fault is None


def test_a_closed_one_lets_one_thread_in_when_its_pause_is_over(gate: Gate, clock: Clock, threads: ThreadPoolExecutor) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate), "it is this thread's turn"
    others = [threads.submit(enter, gate) for _ in range(3)]
    wait_for_entry(gate, 3)
    assert not any(other.done() for other in others)
    gate.answered()
    gate.leave()
    assert [other.result(5) for other in others] == [True] * 3
    assert gate.fault is None


def test_after_a_turn_in_vain_it_is_the_next_ones(gate: Gate, clock: Clock, threads: ThreadPoolExecutor) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    first = threads.submit(enter, gate)
    wait_for_entry(gate, 1)
    second = threads.submit(enter, gate)
    wait_for_entry(gate, 2)
    clock.now += 10.0
    gate.failed(REFUSED)
    clock.now += 2.0
    gate.leave()
    assert first.result(5)
    assert not second.done()
    gate.answered()
    assert second.result(5)


def test_each_turn_in_vain_makes_the_next_pause_longer(gate: Gate, clock: Clock) -> None:
    fail(gate)
    for pause in (1.0, 2.0, 4.0, 8.0):
        assert not enter(gate, pause * 0.9), "nobody will know more before that"
        clock.now += pause
        assert enter(gate, 1.0)
        fail(gate)


def test_those_who_were_on_their_way_together_are_one_failure(
    gate: Gate, clock: Clock, threads: ThreadPoolExecutor
) -> None:  # fmt: skip
    for _ in range(5):
        threads.submit(fail, gate).result(5)
    clock.now += 1.0
    assert enter(gate, 0.5)


def test_no_answer_in_time_is_said_at_once_where_the_turn_would_come_too_late(gate: Gate) -> None:
    fail(gate)
    assert not enter(gate, 0.0)
    assert not enter(gate, 0.5)
    assert gate.fault is REFUSED


def test_who_is_stopped_waits_no_longer(gate: Gate, threads: ThreadPoolExecutor) -> None:
    fail(gate)
    is_over = threading.Event()
    waiting: Future[bool] = threads.submit(gate.enter, lambda: math.inf, is_over.is_set)
    wait_for_entry(gate, 1)
    is_over.set()
    gate.wake()
    assert not waiting.result(5)


def test_a_thread_that_neither_failed_nor_was_answered_gives_its_turn_on(gate: Gate, clock: Clock) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    gate.leave()  # its request could not even be made
    assert enter(gate)


def test_leaving_without_a_turn_takes_nobodys(gate: Gate, clock: Clock, threads: ThreadPoolExecutor) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    threads.submit(gate.leave).result(5)
    waiting = threads.submit(enter, gate)
    wait_for_entry(gate, 1)
    assert not waiting.done()
    gate.answered()
    assert waiting.result(5)


def test_how_long_it_was_closed(gate: Gate, clock: Clock) -> None:
    fail(gate)
    clock.now += 30.0
    fail(gate)
    clock.now += 12.0
    gate.answered()
    assert gate.outage_seconds == 42.0


def test_a_try_may_take_longer_while_answers_come_too_late(gate: Gate, clock: Clock) -> None:
    seconds = [gate.try_seconds]
    for _ in range(4):
        clock.now += 60.0
        enter(gate)
        fail(gate, LATE)
        seconds.append(gate.try_seconds)
    assert seconds == [TRY_SECONDS, 2 * TRY_SECONDS, MOST_TRY_SECONDS, MOST_TRY_SECONDS, MOST_TRY_SECONDS]
    gate.answered()
    assert gate.try_seconds == MOST_TRY_SECONDS / 2, "it is not fast again yet"
    clock.now += SLOW_FOR_SECONDS + 1
    assert gate.try_seconds == TRY_SECONDS


def test_where_there_are_other_endpoints_the_time_is_theirs(clock: Clock) -> None:
    gate = Gate(clock, is_alone=False)
    for _ in range(3):
        clock.now += 60.0
        enter(gate)
        fail(gate, LATE)
    assert gate.try_seconds == TRY_SECONDS


def test_a_refused_connection_says_nothing_about_how_long_answers_take(gate: Gate) -> None:
    fail(gate, REFUSED)
    assert gate.try_seconds == TRY_SECONDS


@pytest.mark.parametrize(("deadline_seconds", "most"), [(1.5, 0.5), (5.0, 4.0), (30.0, 4.0)])
def test_no_pause_is_so_long_that_a_call_could_not_ask_at_all(deadline_seconds: float, most: float) -> None:
    backoff = backoff_within(deadline_seconds)
    assert max(backoff.next() for _ in range(100)) <= most
