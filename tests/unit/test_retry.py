"""``common.retry``: deadlines, pauses and the loop over both, on a clock that the test moves."""

from __future__ import annotations

import pytest

from common.errors import ConfigError, Conflict, StoreUnavailable, Transient
from common.retry import Backoff, Deadline, retry


class Clock:
    """A clock that moves when someone sleeps on it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Flaky:
    """Fails with each of *errors* in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def no_jitter() -> float:
    return 1.0


def test_a_deadline_counts_down_and_never_below_zero():
    clock = Clock()
    deadline = Deadline(5, clock)
    assert (deadline.remaining(), deadline.expired) == (5, False)
    clock.now += 4
    assert (deadline.remaining(), deadline.expired) == (1, False)
    clock.now += 4
    assert (deadline.remaining(), deadline.expired) == (0, True)


def test_pauses_double_up_to_the_most_and_begin_anew_after_a_reset():
    backoff = Backoff(0.2, 1.0, no_jitter)
    assert [backoff.next() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next() == 0.2


@pytest.mark.parametrize(("random", "expected"), [(0.0, 0.5), (0.5, 0.75), (0.999, 0.9995)])
def test_jitter_takes_off_up_to_half_and_never_makes_a_pause_zero(random, expected):
    assert Backoff(1, 8, lambda: random).next() == pytest.approx(expected)


def test_a_first_pause_above_the_most_is_cut():
    assert Backoff(9, 2, no_jitter).next() == 2


def test_retry_answers_after_transient_errors():
    clock = Clock()
    call = Flaky(StoreUnavailable("down"), StoreUnavailable("still down"))
    backoff = Backoff(0.5, 4, no_jitter)
    assert retry(call, on=Transient, deadline=Deadline(10, clock), backoff=backoff, sleep=clock.sleep) == "answer"
    assert clock.pauses == [0.5, 1.0]


def test_retry_raises_the_last_error_rather_than_sleep_past_its_deadline():
    clock = Clock()
    call = Flaky(*[StoreUnavailable(f"down {n}") for n in range(50)])
    with pytest.raises(StoreUnavailable, match="down 3"):
        retry(call, on=Transient, deadline=Deadline(5, clock), backoff=Backoff(0.5, 8, no_jitter), sleep=clock.sleep)
    assert clock.pauses == [0.5, 1.0, 2.0]
    assert clock.now < 105


def test_retry_calls_at_least_once_even_with_no_time_left():
    clock = Clock()
    assert retry(Flaky(), on=Transient, deadline=Deadline(0, clock), backoff=Backoff(1, 1), sleep=clock.sleep) == "answer"


def test_retry_waits_as_long_as_the_other_side_asked():
    clock = Clock()
    call = Flaky(Transient("busy", retry_after=3))
    retry(call, on=Transient, deadline=Deadline(10, clock), backoff=Backoff(0.5, 1, no_jitter), sleep=clock.sleep)
    assert clock.pauses == [3]


def test_retry_lets_other_errors_through_at_once():
    clock = Clock()
    call = Flaky(ConfigError("wrong"))
    with pytest.raises(ConfigError):
        retry(call, on=(Conflict, StoreUnavailable), deadline=Deadline(9, clock), backoff=Backoff(1, 1), sleep=clock.sleep)
    assert (call.calls, clock.pauses) == (1, [])
