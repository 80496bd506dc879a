"""While no endpoint of etcd answers, one thread at a time tries on behalf of all; the others wait for what it finds out.

A host has a dozen threads that ask etcd. When it is away each would try by itself, and a thousand hosts would spend their
machines, and the first seconds of an etcd that comes back, on that. The pauses grow with the outage and have jitter, so that
the hosts come back one after the other. Used by ``common/etcd_store.py`` and ``common/etcd_watch.py``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from common.etcd_rules import Fault
from common.retry import Backoff

# A small part of a lease.
MOST_PAUSE_SECONDS = 4.0
# Of one try at one endpoint, login included; more while answers come too late, and after an outage, when all hosts come back at
# once: an etcd, or a host, that is only slow would get nothing done any more if everybody hung up and asked again.
TRY_SECONDS = 2.0
MOST_TRY_SECONDS = 8.0
SLOW_FOR_SECONDS = 30.0  # after the last outage
# Answers in a row that came too late, before the connection is taken to be at fault: a new one costs more than many calls.
LATE_AT_MOST = 2


def backoff_within(deadline_seconds: float) -> Backoff:
    """Pauses in which each call that may take *deadline_seconds* can ask once, with time left for the answer."""
    return Backoff(0.05, min(MOST_PAUSE_SECONDS, max(deadline_seconds - 1.0, deadline_seconds / 3)))


def is_cut_short(fault: Fault, seconds: float) -> bool:
    """Whether *fault*, of a try that had so many *seconds*, tells nothing about etcd: an answer had hardly any time."""
    return fault.code == "DEADLINE_EXCEEDED" and seconds < TRY_SECONDS


class Gate:
    """Open until somebody failed, then closed until somebody had an answer. Thread-safe.

    Args:
        is_alone: there is but one endpoint. Where there are others the time of a try is theirs, and never grows.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, backoff: Backoff | None = None, *, is_alone: bool = True
    ) -> None:  # fmt: skip
        self._clock, self._backoff = clock, backoff or backoff_within(5.0)
        self._is_alone = is_alone
        self._lock = threading.Lock()
        # Each with a condition of its own: a host's dozen threads would else wake at each try for nothing.
        self._waiting: deque[threading.Condition] = deque()
        self._asker: int | None = None  # the thread whose turn it is
        self._fault: Fault | None = None
        self._failed_at = self._next_at = self._opened_at = 0.0
        self._outage_seconds = 0.0
        self._try_seconds = TRY_SECONDS
        self._late_in_a_row = 0

    @property
    def fault(self) -> Fault | None:
        """What the last try said; None while the gate is open."""
        return self._fault

    @property
    def outage_seconds(self) -> float:
        """How long it was closed the last time."""
        return self._outage_seconds

    @property
    def try_seconds(self) -> float:
        """How long one try may take at the moment."""
        is_past = self._fault is None and self._clock() - self._opened_at > SLOW_FOR_SECONDS
        return TRY_SECONDS if is_past else self._try_seconds

    def enter(self, remaining: Callable[[], float], is_over: Callable[[], bool]) -> bool:
        """Wait until it is open, or it is the caller's turn to try; False where neither happens in the *remaining* seconds.

        Whoever comes in says ``answered`` or ``failed`` next, from the same thread, and ``leave`` in any case.

        Args:
            is_over: whether there is no use in waiting any more; ``wake`` has it looked at.
        """
        if self._fault is None:
            return remaining() > 0
        ticket = threading.Condition(self._lock)
        with self._lock:
            self._waiting.append(ticket)
            try:
                while self._fault is not None and not is_over():
                    left, pause = remaining(), self._next_at - self._clock()
                    is_next = self._waiting[0] is ticket and self._asker is None
                    if is_next and pause <= 0 < left:
                        self._asker = threading.get_ident()
                        return True
                    if left <= 0 or (is_next and pause >= left):
                        return False  # nobody will know more before that
                    ticket.wait(min(left, pause) if is_next else min(left, threading.TIMEOUT_MAX))
                return self._fault is None and remaining() > 0
            finally:
                self._waiting.remove(ticket)
                self._wake_next()

    def failed(self, fault: Fault) -> None:
        """The caller had no answer, for a reason that may pass."""
        with self._lock:
            if self._fault is None:
                self._failed_at = self._clock()
            # Many that were on their way together and fail together are one failure.
            if self._fault is None or self._asker == threading.get_ident():
                is_late = fault.code == "DEADLINE_EXCEEDED"
                self._next_at = self._clock() + self._backoff.next()
                self._late_in_a_row = self._late_in_a_row + 1 if is_late else 0
                if self._is_alone:
                    self._try_seconds = min(self._try_seconds * 2, MOST_TRY_SECONDS) if is_late else MOST_TRY_SECONDS
            self._fault = fault

    def is_connection_kept(self, fault: Fault) -> bool:
        """Whether to ask once more on the connection that had *fault*: nobody else can be asked, and it may only be slow."""
        return self._is_alone and fault.code == "DEADLINE_EXCEEDED" and self._late_in_a_row <= LATE_AT_MOST

    def answered(self) -> None:
        """The caller had an answer: everybody may go on."""
        if self._fault is None:
            return
        with self._lock:
            if self._fault is not None:
                self._opened_at = self._clock()
                self._outage_seconds = self._opened_at - self._failed_at
            self._fault, self._late_in_a_row = None, 0
            self._backoff.reset()
            self._wake_all()

    def leave(self) -> None:
        """The caller's turn, if it was one, is over."""
        if self._asker != threading.get_ident():
            return
        with self._lock:
            self._asker = None
            self._wake_next()

    def wake(self) -> None:
        """Have all who wait look whether it is over; from any thread."""
        with self._lock:
            self._wake_all()

    def _wake_next(self) -> None:
        if self._waiting:
            self._waiting[0].notify()

    def _wake_all(self) -> None:
        for ticket in self._waiting:
            ticket.notify()
