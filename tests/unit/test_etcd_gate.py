"""While etcd is away one thread at a time asks, in growing pauses, and the others hear of what it found out."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from common.etcd_gate import LATE_AT_MOST, MOST_TRY_SECONDS, SLOW_FOR_SECONDS, TRY_SECONDS, Gate, backoff_within, is_cut_short
from common.etcd_rules import Fault
from common.retry import Backoff
from tests.fakes.clock import FakeClock
from tests.support.processes import wait_until

REFUSED = Fault("UNAVAILABLE", "failed to connect to all addresses")
LATE = Fault("DEADLINE_EXCEEDED", "Deadline Exceeded")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(clock: FakeClock) -> Gate:
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


def test_a_closed_one_lets_one_thread_in_when_its_pause_is_over(
    gate: Gate, clock: FakeClock, threads: ThreadPoolExecutor
) -> None:
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


def test_after_a_turn_in_vain_it_is_the_next_ones(gate: Gate, clock: FakeClock, threads: ThreadPoolExecutor) -> None:
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


def test_a_turn_in_vain_wakes_nobody_but_the_next(gate: Gate, clock: FakeClock, threads: ThreadPoolExecutor) -> None:
    looked = [0, 0, 0]

    def wait(number: int) -> bool:
        def remaining() -> float:
            looked[number] += 1
            return math.inf

        return gate.enter(remaining, lambda: False)

    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    waiting = []
    for number in range(3):
        waiting.append(threads.submit(wait, number))
        wait_for_entry(gate, number + 1)
    wait_until(lambda: min(looked) == 1, timeout_seconds=5, what="all sleep")
    fail(gate)
    wait_until(lambda: looked[0] == 2, timeout_seconds=5, what="the next one looks when its turn is")
    assert looked[1:] == [1, 1], "they have nothing to look at"
    gate.answered()
    assert all(other.result(5) for other in waiting)


def test_each_turn_in_vain_makes_the_next_pause_longer(gate: Gate, clock: FakeClock) -> None:
    fail(gate)
    for pause in (1.0, 2.0, 4.0, 8.0):
        assert not enter(gate, pause * 0.9), "nobody will know more before that"
        clock.now += pause
        assert enter(gate, 1.0)
        fail(gate)


def test_those_who_were_on_their_way_together_are_one_failure(
    gate: Gate, clock: FakeClock, threads: ThreadPoolExecutor
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


def test_a_thread_that_neither_failed_nor_was_answered_gives_its_turn_on(gate: Gate, clock: FakeClock) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    gate.leave()  # its request could not even be made
    assert enter(gate)


def test_leaving_without_a_turn_takes_nobodys(gate: Gate, clock: FakeClock, threads: ThreadPoolExecutor) -> None:
    fail(gate)
    clock.now += 1.0
    assert enter(gate)
    threads.submit(gate.leave).result(5)
    waiting = threads.submit(enter, gate)
    wait_for_entry(gate, 1)
    assert not waiting.done()
    gate.answered()
    assert waiting.result(5)


def test_how_long_it_was_closed(gate: Gate, clock: FakeClock) -> None:
    fail(gate)
    clock.now += 30.0
    fail(gate)
    clock.now += 12.0
    gate.answered()
    assert gate.outage_seconds == 42.0


def test_a_try_may_take_longer_while_answers_come_too_late(gate: Gate, clock: FakeClock) -> None:
    seconds = [gate.try_seconds]
    for _ in range(4):
        clock.now += 60.0
        enter(gate)
        fail(gate, LATE)
        seconds.append(gate.try_seconds)
    assert seconds == [TRY_SECONDS, 2 * TRY_SECONDS, MOST_TRY_SECONDS, MOST_TRY_SECONDS, MOST_TRY_SECONDS]
    gate.answered()
    assert gate.try_seconds == MOST_TRY_SECONDS, "it is not fast again yet"
    clock.now += SLOW_FOR_SECONDS + 1
    assert gate.try_seconds == TRY_SECONDS


def test_where_there_are_other_endpoints_the_time_is_theirs(clock: FakeClock) -> None:
    gate = Gate(clock, is_alone=False)
    for _ in range(3):
        clock.now += 60.0
        enter(gate)
        fail(gate, LATE)
    assert gate.try_seconds == TRY_SECONDS


def test_after_an_outage_all_come_back_at_once_and_a_try_may_take_longer(gate: Gate, clock: FakeClock) -> None:
    fail(gate, REFUSED)
    gate.answered()
    assert gate.try_seconds == MOST_TRY_SECONDS
    clock.now += SLOW_FOR_SECONDS + 1
    assert gate.try_seconds == TRY_SECONDS


def test_a_connection_that_is_only_slow_is_kept_for_a_while(gate: Gate, clock: FakeClock) -> None:
    kept = []
    for _ in range(LATE_AT_MOST + 1):
        clock.now += 60.0
        enter(gate)
        fail(gate, LATE)
        kept.append(gate.is_connection_kept(LATE))
    assert kept == [True] * LATE_AT_MOST + [False]
    gate.answered()
    enter(gate)
    fail(gate, LATE)
    assert gate.is_connection_kept(LATE)
    assert not gate.is_connection_kept(REFUSED)


def test_where_another_endpoint_can_be_asked_no_connection_is_kept(clock: FakeClock) -> None:
    gate = Gate(clock, is_alone=False)
    enter(gate)
    fail(gate, LATE)
    assert not gate.is_connection_kept(LATE)


@pytest.mark.parametrize(("deadline_seconds", "most"), [(1.5, 0.5), (5.0, 4.0), (30.0, 4.0)])
def test_no_pause_is_so_long_that_a_call_could_not_ask_at_all(deadline_seconds: float, most: float) -> None:
    backoff = backoff_within(deadline_seconds)
    assert max(backoff.next() for _ in range(100)) <= most


def test_only_an_answer_that_had_no_time_to_come_tells_nothing() -> None:
    assert is_cut_short(LATE, TRY_SECONDS / 2)
    assert not is_cut_short(LATE, TRY_SECONDS)
    assert not is_cut_short(REFUSED, TRY_SECONDS / 2)
