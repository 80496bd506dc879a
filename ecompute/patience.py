"""Since when something has been going on, per instance, by the monotonic clock of this process.

Three things are waited for: a guest to follow its power button, the client of a claim without a request to come back, and a
guest that was started to stay up. A restart forgets all three, which only makes us wait a little longer, or try once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import UUID

PRESS_AGAIN_SECONDS = 10.0  # a guest that is still booting ignores the power button

STANDS_AFTER_SECONDS = 60.0  # up for so long, a guest was started well; going down later is another story


class Patience:
    """Since when something has been going on, per instance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._first_press: dict[UUID, float] = {}
        self._last_press: dict[UUID, float] = {}
        self._orphan_since: dict[UUID, float] = {}
        self._started: dict[UUID, float] = {}

    def pressed(self, uuid: UUID) -> None:
        """The power button was pressed just now."""
        with self._lock:
            now = self._clock()
            self._first_press.setdefault(uuid, now)
            self._last_press[uuid] = now

    def button(self, uuid: UUID, grace_seconds: float) -> tuple[bool, bool]:
        """Whether to press (again), and whether the grace time is over."""
        with self._lock:
            now = self._clock()
            first, last = self._first_press.get(uuid), self._last_press.get(uuid)
        if first is None or last is None:
            return True, False
        return now - last >= PRESS_AGAIN_SECONDS, now - first >= grace_seconds

    def at_rest(self, uuid: UUID) -> None:
        """No power-off is under way."""
        with self._lock:
            self._first_press.pop(uuid, None)
            self._last_press.pop(uuid, None)

    def orphan_seconds(self, uuid: UUID, *, is_orphan: bool) -> float:
        """How long *uuid* has been seen as an orphan without a break."""
        with self._lock:
            if not is_orphan:
                self._orphan_since.pop(uuid, None)
                return 0.0
            return self._clock() - self._orphan_since.setdefault(uuid, self._clock())

    def is_orphan(self, uuid: UUID) -> bool:
        """Whether *uuid* was an orphan when it was last seen."""
        with self._lock:
            return uuid in self._orphan_since

    def orphans(self) -> set[UUID]:
        """Every one that was an orphan when it was last seen."""
        with self._lock:
            return set(self._orphan_since)

    def started(self, uuid: UUID) -> None:
        """The guest was started just now."""
        with self._lock:
            self._started[uuid] = self._clock()

    def has_stood(self, uuid: UUID) -> bool:
        """Whether the last start of the guest was long ago, or before this process began."""
        with self._lock:
            return self._clock() - self._started.get(uuid, float("-inf")) >= STANDS_AFTER_SECONDS

    def forget(self, uuid: UUID) -> None:
        """The instance is gone."""
        self.at_rest(uuid)
        with self._lock:
            self._started.pop(uuid, None)
