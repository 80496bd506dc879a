"""A few single keys of the store, kept up to date by watching, for one thread that waits for changes.

One thread per key follows it; ``changes`` hands out all of them whenever one has changed. Only ``follow`` uses it. It knows
nothing of what the keys mean.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from common.errors import StoreRefused
from common.retry import Deadline
from common.store import ListWatch, Store, Versioned

Items = dict[str, Versioned | None]


class Board:
    """Follows *keys* while it is entered; an outage of the store is waited out."""

    def __init__(self, store: Store, keys: Sequence[str]) -> None:
        self._changed = threading.Condition()
        self._version = 0
        self._refusal: StoreRefused | None = None
        self._stop = threading.Event()
        # A key is its own prefix here; what else begins with it is passed over.
        self._watches = {key: ListWatch(store, key, self._note, self._lost) for key in keys}

    def __enter__(self) -> Self:
        for key, watch in self._watches.items():
            threading.Thread(target=watch.run, args=(self._stop,), name=f"follow {key}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # The threads end by themselves within a moment, which nobody has to wait for.
        self._stop.set()

    def changes(self, deadline: Deadline, tick_seconds: float) -> Iterator[Items]:
        """All keys with their items (None where absent), once each is known and whenever one changed, until *deadline*.

        After *tick_seconds* without a change they are handed out again.

        Raises:
            StoreRefused: the store will not let us in.
        """
        if not all(self._is_known(watch, deadline, tick_seconds) for watch in self._watches.values()):
            return
        seen = -1
        while True:
            with self._changed:
                if self._version == seen and self._refusal is None:
                    self._changed.wait(min(tick_seconds, deadline.remaining()))
                seen = self._version
            self._raise_refusal()
            yield {key: watch.get(key) for key, watch in self._watches.items()}
            if deadline.expired:
                return

    def _is_known(self, watch: ListWatch, deadline: Deadline, tick_seconds: float) -> bool:
        """Wait for the first list of *watch*; False where *deadline* came before it."""
        while not watch.synced.wait(min(tick_seconds, deadline.remaining())):
            self._raise_refusal()
            if deadline.expired:
                return False
        return True

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _note(self, _key: str, _item: Versioned | None) -> None:
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _lost(self, error: Exception) -> None:
        if isinstance(error, StoreRefused):
            with self._changed:
                self._refusal = error
                self._changed.notify_all()
