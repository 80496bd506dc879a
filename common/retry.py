"""Bounds and pauses: how long a call may take in all, how long to wait between its tries, and the loop over both.

Everybody may use it; it knows no service. Clock, sleep and random are arguments, so that tests neither wait nor guess.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable
from typing import TypeVar

from common.errors import EcomputeError

T = TypeVar("T")


def seconds_since_boot() -> float:
    """A clock that goes on while the machine sleeps, unlike the monotonic one: leases and claims do not wait for a sleeper."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Deadline:
    """A point in time, *seconds* from now by a monotonic *clock*, shared by all tries of one call."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends_at = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._ends_at - self._clock())

    @property
    def expired(self) -> bool:
        return self.remaining() <= 0.0


class Backoff:
    """Growing pauses with jitter: the n-th is between half and all of ``first_seconds * 2**n``, at most *most_seconds*.

    The jitter is what keeps many clients of one server that came back from asking it at the same moment. Not thread-safe:
    one per loop.

    Args:
        random: a number from 0 up to 1, as ``random.random`` gives.
    """

    def __init__(self, first_seconds: float, most_seconds: float, random: Callable[[], float] = random_module.random) -> None:
        self._first, self._most, self._random = first_seconds, most_seconds, random
        self._next = min(first_seconds, most_seconds)

    def next(self) -> float:
        """The seconds to wait now; the following ones are longer."""
        pause = self._next * (0.5 + 0.5 * self._random())
        self._next = min(self._next * 2, self._most)
        return pause

    def reset(self) -> None:
        """Begin anew with the shortest pause: something worked."""
        self._next = min(self._first, self._most)


def retry(
    call: Callable[[], T],
    *,
    on: type[EcomputeError] | tuple[type[EcomputeError], ...],
    deadline: Deadline,
    backoff: Backoff,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """The answer of *call*, tried again after errors of type *on* until it answers or *deadline* leaves no time for a pause.

    An error's ``retry_after`` lengthens the pause. *call* is made at least once, and bounds its own duration.

    Args:
        sleep: ``Event.wait`` of a stop event does as well; the call is then tried once more at once, and sees the event.

    Raises:
        EcomputeError: the last error of *call*, unchanged; any error that is not in *on* at once.
    """
    while True:
        try:
            return call()
        except on as error:
            pause = max(backoff.next(), getattr(error, "retry_after", None) or 0.0)
            if pause >= deadline.remaining():
                raise
        sleep(pause)
