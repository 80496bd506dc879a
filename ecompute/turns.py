"""A few places for long work, so that it never holds all workers: who finds none goes away and is woken when one is free.

Knows nothing of the work; the reconciler has fetches of images take turns with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID


class Turns:
    """*places* of them.

    Args:
        wake: called with everybody who went away, whenever a place is free again; it must only take note.
    """

    def __init__(self, places: int, wake: Callable[[UUID], None]) -> None:
        self._free, self._wake = places, wake
        self._lock = threading.Lock()
        self._waiting: set[UUID] = set()

    def take(self, uuid: UUID) -> bool:
        """Take a place for *uuid*, to be given back; False where none is free: *uuid* is woken then."""
        with self._lock:
            if self._free == 0:
                self._waiting.add(uuid)
                return False
            self._free -= 1
            return True

    def give_back(self) -> None:
        """The place is free again."""
        with self._lock:
            self._free += 1
            waiting, self._waiting = self._waiting, set()
        for uuid in waiting:
            self._wake(uuid)
