"""Watches for tests, followed in a thread of their own: what came, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import EcomputeError
from common.store import Listing, Store, WatchEvent
from tests.support.processes import wait_until


class Watching:
    """Collects the events of one watch until ``close``."""

    def __init__(self, store: Store, prefix: str, *, revision: int, cluster_id: int) -> None:
        self.batches: list[tuple[WatchEvent, ...]] = []
        self.error: EcomputeError | None = None
        self.quiet_proofs = 0
        self.stop = threading.Event()
        self._watch = store.watch(prefix, revision=revision, cluster_id=cluster_id, stop=self.stop)
        self.thread = threading.Thread(target=self._run, name=f"watching {prefix}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for batch in self._watch:
                if batch:
                    self.batches.append(batch)
                else:
                    self.quiet_proofs += 1
        except EcomputeError as error:
            self.error = error

    @property
    def events(self) -> list[WatchEvent]:
        return [event for batch in self.batches for event in batch]

    @property
    def changes(self) -> list[tuple[str, str | None]]:
        """What came, as (key, value or None)."""
        return [(event.key, event.item.value if event.item else None) for event in self.events]

    def wait_for(self, count: int, *, timeout_seconds: float = 10) -> list[WatchEvent]:
        """The events once there are *count* of them."""
        wait_until(
            lambda: len(self.events) >= count, timeout_seconds=timeout_seconds, what=f"{count} watch events",
            evidence=lambda: f"{len(self.events)} came, error {self.error!r}, the last are {self.changes[-5:]}",
        )  # fmt: skip
        return self.events

    def wait_for_end(self, *, timeout_seconds: float = 10) -> EcomputeError | None:
        """The error that the watch ended with."""
        self.thread.join(timeout_seconds)
        assert not self.thread.is_alive(), f"the watch goes on; {len(self.events)} events came"
        return self.error

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive(), "the watch did not end when it was stopped"


@contextmanager
def watching(store: Store, prefix: str, *, since: Listing | None = None) -> Iterator[Watching]:
    """Follow *prefix* from just after *since*, or from now."""
    listing = since or store.list(prefix)
    watch = Watching(store, prefix, revision=listing.revision + 1, cluster_id=listing.cluster_id)
    try:
        yield watch
    finally:
        watch.close()
