"""A work queue of keys for level-triggered loops, after client-go's ``util/workqueue``.

A key is in at most one worker's hands at a time; added while it waits it is there once; added while it is in hand it is
there once more afterwards. Who has something to do to a key beside the workers takes it by ``hold``. ``add_after`` delays,
``add_failed`` delays by the key's own exponential backoff until ``forget``; of several delays of one key only the earliest
counts, so that a key never has two series of retries. It knows nothing of instances. The clock and the jitter are arguments.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Fair, and stingy: see the module's text.

    Args:
        first_seconds: the delay after a key's first failure; doubles with each further one.
        most_seconds: no delay grows beyond it.
        clock: monotonic seconds.
        jitter: a number in [0, 1); a delay is stretched by up to a quarter of itself, so that keys that failed together
            do not come back together.
    """

    def __init__(
        self, *, first_seconds: float = 0.5, most_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._first, self._most, self._clock, self._jitter = first_seconds, most_seconds, clock, jitter
        self._condition = threading.Condition()
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._processing: set[K] = set()
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}  # when each delayed key comes; its other entries in the heap are void
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._is_closed = False
        self._holders = 0  # threads in ``hold``

    def add(self, key: K) -> None:
        """Have *key* looked at soon."""
        with self._condition:
            self._add(key)

    def add_after(self, key: K, delay_seconds: float) -> None:
        """Have *key* looked at in *delay_seconds*, and at any earlier time that someone else asks for."""
        with self._condition:
            if self._is_closed:
                return
            due = self._clock() + delay_seconds
            if self._due.get(key, due + 1.0) <= due:
                return
            self._due[key] = due
            self._sequence += 1
            heapq.heappush(self._delayed, (due, self._sequence, key))
            self._condition.notify()

    def add_failed(self, key: K, *, at_least_seconds: float = 0.0) -> float:
        """Have *key* looked at after its backoff; the delay in seconds."""
        with self._condition:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            delay = min(self._most, self._first * 2.0 ** min(failures, 30)) * (1 + 0.25 * self._jitter())
            delay = max(delay, at_least_seconds)
            self.add_after(key, delay)
            return delay

    def forget(self, key: K) -> None:
        """*key* went well: its next failure starts from the first delay."""
        with self._condition:
            self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        with self._condition:
            return self._failures.get(key, 0)

    def get(self, timeout_seconds: float | None = None) -> K | None:
        """The next key, now in the caller's hands until ``done``; None when closed or after *timeout_seconds*."""
        until = None if timeout_seconds is None else self._clock() + timeout_seconds
        with self._condition:
            while True:
                now = self._clock()
                self._promote(now)
                if self._ready and not self._is_closed:
                    key = self._ready.popleft()
                    self._dirty.discard(key)
                    self._processing.add(key)
                    return key
                if self._is_closed or (until is not None and now >= until):
                    return None
                waits = [at - now for at in (until, self._delayed[0][0] if self._delayed else None) if at is not None]
                self._condition.wait(max(0.0, min(waits)) if waits else None)

    def hold(self, key: K, timeout_seconds: float) -> bool:
        """Take *key* into the caller's hands, whether it is to be looked at or not, once nobody else has it.

        It stays to be looked at, and is given back by ``done``. False where somebody had it all the time, or when closed.
        """
        until = self._clock() + timeout_seconds
        with self._condition:
            while key in self._processing or self._is_closed:
                left = until - self._clock()
                if left <= 0 or self._is_closed:
                    return False
                self._holders += 1
                self._condition.wait(left)
                self._holders -= 1
            self._processing.add(key)
            with contextlib.suppress(ValueError):
                self._ready.remove(key)
            return True

    def done(self, key: K) -> None:
        """The caller is finished with *key*; if it was added meanwhile it is ready again."""
        with self._condition:
            self._processing.discard(key)
            if key in self._dirty:
                self._ready.append(key)
                self._condition.notify()
            if self._holders:
                self._condition.notify_all()

    def close(self) -> None:
        """Hand out no more keys; every waiting ``get`` returns None."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def __len__(self) -> int:
        """Keys that are ready now, those in hand and the delayed ones not counted."""
        with self._condition:
            return len(self._ready)

    def _add(self, key: K) -> None:
        if self._is_closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._ready.append(key)
            self._condition.notify()

    def _promote(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                del self._due[key]
                self._add(key)
