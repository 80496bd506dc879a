"""Some keys of the store, kept as they are there, for one thread that waits for changes of them.

A thread reads all of them together, at first and every few seconds; one more per watched prefix hears what changes in between.
What is read at one moment belongs together, what is heard is only newer. Only ``follow`` uses it. It knows nothing of what the
keys mean.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

from common.errors import EcomputeError, StoreRefused
from common.retry import Deadline
from common.store import Listing, Store, Versioned, WatchEvent, WatchLost

log = logging.getLogger(__name__)

Items = Mapping[str, Versioned | None]
REREAD_SECONDS = 2.0  # what is not watched is at most so old
REREAD_SECONDS_PER_KEY = 0.005  # of many keys, so that a large set does not keep etcd busy
FIRST_LOOK_SECONDS = 2.0  # that a first look may take, be there time to wait or not
WATCH_PAUSE_SECONDS = 0.2  # before a watch that was lost is begun anew


class Board:
    """Follows *keys* while it is entered; an outage of the store is waited out.

    Args:
        watched: prefixes below which changes of *keys* are heard at once. The other keys are only read again now and then.
    """

    def __init__(self, store: Store, keys: Iterable[str], watched: Collection[str]) -> None:
        self._store = store
        self._keys = list(dict.fromkeys(keys))
        self._probe = self._keys[0]  # a single key whose list says at which revision the store is
        self._watched = watched
        self._changed = threading.Condition()
        self._version = 0
        self._items: dict[str, Versioned | None] = {}
        self._heard: dict[str, tuple[int, Versioned | None]] = {}  # by watching: at which revision, and the item
        self._refusal: StoreRefused | None = None
        self._stop = threading.Event()
        self._reread = threading.Event()
        self._is_known = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._read_now_and_then, name="follow", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # The threads end by themselves within a moment, which nobody has to wait for.
        self._stop.set()
        self._reread.set()

    def read_again(self) -> None:
        """Have all keys read again now: something that was heard does not fit the rest."""
        self._reread.set()

    def forget(self, keys: Iterable[str]) -> None:
        """Follow *keys* no more."""
        dropped = set(keys)
        with self._changed:
            self._keys = [key for key in self._keys if key not in dropped]
            self._items = {key: item for key, item in self._items.items() if key not in dropped}

    def changes(self, deadline: Deadline, tick_seconds: float) -> Iterator[Items]:
        """All keys with their items (None where absent), once they are known and whenever one changed, until *deadline*.

        After *tick_seconds* without a change they are handed out again. Where the deadline is over they are handed out once.

        Raises:
            StoreRefused: the store will not let us in.
        """
        first_look = Deadline(FIRST_LOOK_SECONDS)
        while not self._is_known.wait(min(tick_seconds, max(deadline.remaining(), first_look.remaining()))):
            self._raise_refusal()
            if deadline.expired and first_look.expired:
                return
        seen = -1
        while True:
            with self._changed:
                if self._version == seen and self._refusal is None:
                    self._changed.wait(min(tick_seconds, deadline.remaining()))
                seen, items = self._version, dict(self._items)
            self._raise_refusal()
            yield items
            if deadline.expired:
                return

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    # -- the reading thread -----------------------------------------------------------------------------------------

    def _read_now_and_then(self) -> None:
        while not self._stop.is_set():
            self._reread.clear()
            try:
                if self._is_known.is_set():
                    self._take(self._store.get_many(self._keys))
                else:
                    self._begin()
            except EcomputeError as error:
                self._note(error)
            self._reread.wait(REREAD_SECONDS + REREAD_SECONDS_PER_KEY * len(self._keys))

    def _begin(self) -> None:
        # It says from where on to watch, too: what of it is newer does no harm.
        start = self._store.list_keys(self._keys)
        self._take({item.key: item for item in start.items})
        for prefix in self._watched:
            threading.Thread(target=self._hear, args=(prefix, start), name=f"follow {prefix}", daemon=True).start()
        self._is_known.set()

    def _take(self, found: Mapping[str, Versioned]) -> None:
        """Replace what is known by *found*, which was read just now, but for what was heard since."""
        with self._changed:
            items = {key: self._newest(key, found.get(key)) for key in self._keys}
            if items != self._items:
                self._items = items
                self._tell()

    def _newest(self, key: str, read: Versioned | None) -> Versioned | None:
        """What was *read*, or heard where that is newer; of a key that was read as absent the watch will tell its deletion."""
        if key not in self._heard:
            return read
        revision, item = self._heard[key]
        return read if read is not None and read.mod_revision > revision else item

    # -- the watching threads ---------------------------------------------------------------------------------------

    def _hear(self, prefix: str, start: Listing) -> None:
        revision, cluster_id = start.revision, start.cluster_id
        while not self._stop.is_set():
            try:
                batches = self._store.watch(prefix, revision=revision + 1, cluster_id=cluster_id, stop=self._stop)
                for batch in batches:
                    revision = self._apply(batch, revision)
            except WatchLost:
                revision, cluster_id = self._begin_anew(prefix, revision, cluster_id)
            except EcomputeError as error:
                self._note(error)
            self._stop.wait(WATCH_PAUSE_SECONDS)

    def _begin_anew(self, prefix: str, revision: int, cluster_id: int) -> tuple[int, int]:
        """Forget what was heard before the gap and have everything read again; from where on to watch, in which cluster."""
        try:
            now = self._store.list(self._probe)
        except EcomputeError as error:
            self._note(error)
            return revision, cluster_id
        with self._changed:
            self._heard = {key: heard for key, heard in self._heard.items() if not key.startswith(prefix)}
        self._reread.set()
        return now.revision, now.cluster_id

    def _apply(self, batch: Iterable[WatchEvent], revision: int) -> int:
        """Take note of *batch*; the revision up to which the watch has heard everything."""
        with self._changed:
            for event in batch:
                revision = event.mod_revision
                known = self._items.get(event.key)
                if event.key in self._items and (known is None or revision > known.mod_revision):
                    self._heard[event.key] = revision, event.item
                    self._items[event.key] = event.item
                    self._tell()
                    if event.item is None:
                        self._reread.set()  # what went seldom went alone
        return revision

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _note(self, error: EcomputeError) -> None:
        if isinstance(error, StoreRefused):
            with self._changed:
                self._refusal = error
                self._changed.notify_all()
        else:
            log.info("following is interrupted, trying on: %s", error)
