"""The work queue's promises, with a clock that only moves when told."""

from __future__ import annotations

import threading

import pytest

from ecompute.workqueue import WorkQueue
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue(first_seconds=1.0, most_seconds=8.0, clock=clock, jitter=lambda: 0.0)


def test_keys_come_out_in_the_order_they_were_added(queue: WorkQueue[str]) -> None:
    for key in "abc":
        queue.add(key)
    assert [queue.get(0), queue.get(0), queue.get(0), queue.get(0)] == ["a", "b", "c", None]


def test_a_key_added_while_it_waits_is_there_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("a")
    assert (queue.get(0), queue.get(0)) == ("a", None)


def test_a_key_that_is_held_is_given_to_nobody_and_comes_when_it_is_given_back(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.hold("a", 0)
    assert queue.get(0) is None and not queue.hold("a", 0)
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert (queue.get(0), queue.get(0)) == ("a", None)
    assert not queue.hold("a", 0), "a worker has it"
    queue.done("a")
    assert queue.hold("a", 0), "whether it is to be looked at or not"
    queue.done("a")
    assert queue.get(0) is None
    queue.close()
    assert not queue.hold("a", 0)


def test_who_wants_to_hold_a_key_waits_for_the_worker_that_has_it() -> None:
    queue = WorkQueue[str]()
    queue.add("a")
    assert queue.get(0) == "a"
    held: list[bool] = []
    holder = threading.Thread(target=lambda: held.append(queue.hold("a", 20)))
    holder.start()
    queue.done("a")
    holder.join(20)
    assert held == [True]


def test_a_key_in_hand_is_given_to_nobody_else_and_comes_back_once_when_added_meanwhile(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    queue.add("a")
    assert queue.get(0) is None
    queue.done("a")
    assert queue.get(0) == "a"
    queue.done("a")
    assert queue.get(0) is None


def test_a_delayed_key_waits_for_its_time(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 5.0)
    assert queue.get(0) is None
    clock.now += 5.0
    assert queue.get(0) == "a"


def test_an_earlier_add_does_not_wait_for_the_delay(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 5.0)
    queue.add("a")
    assert queue.get(0) == "a"


def test_failures_back_off_exponentially_up_to_a_bound_until_forgotten(queue: WorkQueue[str]) -> None:
    assert [queue.add_failed("a") for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert queue.failures("a") == 5
    queue.forget("a")
    assert queue.add_failed("a") == 1.0


def test_a_failure_waits_at_least_as_long_as_the_other_side_asks(queue: WorkQueue[str]) -> None:
    assert queue.add_failed("a", at_least_seconds=30.0) == 30.0


def test_jitter_stretches_a_delay_by_at_most_a_quarter() -> None:
    stretched = WorkQueue[str](first_seconds=4.0, jitter=lambda: 0.999, clock=FakeClock())
    assert 4.9 < stretched.add_failed("a") < 5.0


def test_closing_ends_every_waiting_get() -> None:
    queue: WorkQueue[str] = WorkQueue()
    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda: answers.append(queue.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(5)
    assert answers == [None, None, None]


def test_a_closed_queue_hands_out_nothing_more(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.close()
    queue.add("b")
    assert queue.get() is None


def test_many_workers_never_hold_one_key_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    held: set[int] = set()
    lock, overlaps, handled = threading.Lock(), [], []

    def work() -> None:
        while (key := queue.get(0.3)) is not None:
            with lock:
                if key in held:
                    overlaps.append(key)
                held.add(key)
                handled.append(key)
            with lock:
                held.discard(key)
            queue.done(key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(2000):
        queue.add(i % 5)
    for thread in threads:
        thread.join(20)
    assert not overlaps
    assert set(handled) == set(range(5))


def test_a_key_that_keeps_failing_waits_once_however_often_it_was_woken_meanwhile(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Else each full look would add one more series of retries, until a key that cannot work is tried all the time."""
    for _ in range(50):
        queue.add("a")
        assert queue.get(0) == "a"
        queue.add_failed("a")
        queue.done("a")
    tried = 0
    for _ in range(8):
        clock.now += 1.0
        while queue.get(0) == "a":
            tried += 1
            queue.add_failed("a")
            queue.done("a")
    assert tried == 1


def test_of_two_delays_the_earlier_counts(queue: WorkQueue[str], clock: FakeClock) -> None:
    queue.add_after("a", 5.0)
    queue.add_after("a", 2.0)
    queue.add_after("a", 8.0)
    clock.now += 2.0
    assert queue.get(0) == "a"
    queue.done("a")
    clock.now += 10.0
    assert queue.get(0) is None
