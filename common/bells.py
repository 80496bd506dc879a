"""Waking threads that wait for something else than the event that stops them.

A thread that reads a queue, or waits for a connection, does not hear of an event; looking at it ten times a second costs a
daemon more than all its other idling. So one thread an event waits for it, and rings for all who asked. Used by
``common/etcd_store.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Ring = Callable[[], object]


class Bells:
    """Calls functions when events are set, or when somebody says so. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rings: dict[threading.Event, list[Ring]] = {}

    @contextmanager
    def rung_by(self, event: threading.Event, ring: Ring) -> Iterator[None]:
        """Have *ring* called when *event* is set, and by ``ring``, from other threads; more often than that does no harm.

        It must return at once and raise nothing.
        """
        with self._lock:
            if event not in self._rings:
                self._rings[event] = []
                threading.Thread(target=self._wait, args=(event,), name="bells", daemon=True).start()
            self._rings[event].append(ring)
        try:
            yield
        finally:
            with self._lock:
                if ring in self._rings.get(event, ()):  # else it was rung, and the list may be another one by now
                    self._rings[event].remove(ring)

    def ring(self) -> None:
        """Call everybody's function now."""
        with self._lock:
            rings = [ring for rings in self._rings.values() for ring in rings]
        for ring in rings:
            ring()

    def _wait(self, event: threading.Event) -> None:
        """It lives as long as the event is not set: most events are of the whole program, and asked after again."""
        event.wait()
        with self._lock:
            rings = self._rings.pop(event)
        for ring in rings:
            ring()
