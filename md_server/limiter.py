"""How often something may be said or done that guests can bring about: what they can fill is one more thing to defend. Pure."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Limiter:
    """Lets each key pass once in *every_seconds*, and at most *most* keys in that time."""

    def __init__(self, every_seconds: float, most: int, clock: Callable[[], float]) -> None:
        self._every_seconds, self._most, self._clock = every_seconds, most, clock
        self._passed: dict[str, float] = {}
        self._lock = threading.Lock()

    def may_pass(self, key: str) -> bool:
        with self._lock:
            now = self._clock()
            self._passed = {k: at for k, at in self._passed.items() if now - at < self._every_seconds}
            if key in self._passed or len(self._passed) >= self._most:
                return False
            self._passed[key] = now
            return True


class Pace:
    """Lets each key pass once in *every_seconds* on the average, and *burst* times at once. For one thread."""

    def __init__(self, every_seconds: float, burst: int, clock: Callable[[], float]) -> None:
        self._every_seconds, self._ahead_seconds, self._clock = every_seconds, (burst - 1) * every_seconds, clock
        self._due: dict[object, float] = {}  # when a key that passes no more would have been through at that pace

    def wait_seconds(self, key: object) -> float:
        """0 where *key* passes now; else how long until it may, and this time does not count."""
        now = self._clock()
        self._due = {k: due for k, due in self._due.items() if due > now}
        due = self._due.get(key, now)
        if due - now > self._ahead_seconds:
            return due - now - self._ahead_seconds
        self._due[key] = due + self._every_seconds
        return 0.0
