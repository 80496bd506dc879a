"""How often something may be said that guests can bring about: a log that they can fill is one more thing to defend. Pure."""

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
