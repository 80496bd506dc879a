"""What etcd-compute asks of its key-value store, as a protocol, and the list-then-watch that stands on it.

``common/etcd_store.py`` is the real one; ``tests/fakes/store.py`` keeps keys in memory. Both pass ``tests/contract``.
Values are JSON texts; what they mean is ``common/model.py``'s business. Revisions order everything; a revision means
nothing without the cluster id beside it, since a restored etcd counts some revisions twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import EcomputeError
from common.retry import Backoff

logger = logging.getLogger(__name__)
NO_NOTES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Versioned:
    """A key as it was read: its value and the revisions that later compares need."""

    key: str
    value: str
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True)
class Listing:
    """Keys as they were at one revision of one cluster: a watch from the next one misses nothing of them."""

    items: tuple[Versioned, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True)
class Compare:
    """One condition of a transaction: *field* of *key* stands in *operator* to *value*.

    A key that is absent has ``create_revision`` and ``mod_revision`` 0, and no ``value``. Of a prefix it holds for every key.
    """

    key: str
    field: str  # "create_revision" | "mod_revision" | "value"
    operator: str  # "==" | ">" | "<"
    value: int | str
    is_prefix: bool = False

    @staticmethod
    def absent(key: str) -> Compare:
        return Compare(key, "create_revision", "==", 0)

    @staticmethod
    def present(key: str) -> Compare:
        return Compare(key, "create_revision", ">", 0)

    @staticmethod
    def created_at(key: str, revision: int) -> Compare:
        return Compare(key, "create_revision", "==", revision)

    @staticmethod
    def unchanged(key: str, revision: int) -> Compare:
        return Compare(key, "mod_revision", "==", revision)

    @staticmethod
    def holds(key: str, text: str) -> Compare:
        return Compare(key, "value", "==", text)

    @staticmethod
    def none_newer(prefix: str, revision: int) -> Compare:
        """No key under *prefix* was written since *revision*; with 0 there is none at all. Of deleted ones it knows nothing."""
        return Compare(prefix, "mod_revision", "<", revision + 1, is_prefix=True)

    @staticmethod
    def as_read(key: str, found: Mapping[str, Versioned]) -> Compare:
        """*key* is as it was among *found*: unchanged, or absent still."""
        return Compare.unchanged(key, found[key].mod_revision) if key in found else Compare.absent(key)


@dataclass(frozen=True)
class Transaction:
    """All or nothing: where every compare holds, all puts and deletes happen at one revision.

    etcd refuses more than 128 compares, more than 128 puts and deletes, and a key touched twice. A put without ``unchanged`` or
    ``absent`` on its own key may overtake or be overtaken by another one whose answer was lost.

    Args:
        lease_id: attached to every put.
        notes: for the journal (``common/journal.py``): written along, and gone by themselves after some days. Whether the
            transaction was made is not told by them; a store that keeps no journal leaves them out.
    """

    compares: tuple[Compare, ...] = ()
    puts: Mapping[str, str] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()
    lease_id: int = 0
    notes: Mapping[str, str] = field(default_factory=dict)


class Lease(Protocol):
    """A lease as granted; ``Store.refresh_lease`` keeps it."""

    @property
    def id(self) -> int: ...

    @property
    def ttl_seconds(self) -> int: ...


@dataclass(frozen=True)
class WatchEvent:
    """One change: ``item`` is the new value, or None where *key* was deleted at *mod_revision*."""

    key: str
    item: Versioned | None
    mod_revision: int


class WatchLost(EcomputeError):
    """The watch cannot be resumed from its revision (compacted, another cluster, an older store): list again."""


class Store(Protocol):
    """Reads are linearizable unless *serializable*. Every call is bounded by the store's deadline, a ``list`` page by page.

    Every method may raise ``StoreUnavailable``. For a write that means: *unknown*, it may have happened (unless the error's
    ``may_have_happened`` is False); the method has already read back and retried inside its deadline before it says so. A
    ``StoreRefused`` among them needs a person. A write raises ``Conflict`` also where its lease is gone, and ``Permanent``
    where the store can never take it (too large, too many operations, one key twice).
    """

    def get(self, key: str, *, serializable: bool = False) -> Versioned | None: ...

    def get_many(self, keys: Iterable[str]) -> dict[str, Versioned]:
        """Those of *keys* that exist, read in as few round trips as etcd allows, each trip at one revision."""
        ...

    def list_keys(self, keys: Iterable[str]) -> Listing:
        """As ``get_many``, of one key or more; the revision is that of the first trip, items of later ones may be newer."""
        ...

    def list(self, prefix: str, *, serializable: bool = False, behind: str = "") -> Listing:
        """All keys under *prefix*, those that sort behind *behind*, at one revision, fetched in pages."""
        ...

    def newest(self, prefix: str, *, serializable: bool = False) -> Iterator[Versioned]:
        """All keys under *prefix*, what was written last first, read page by page as they are asked for."""
        ...

    def create(self, key: str, value: str, *, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        """Write *key* where it is absent; the revision it was written at. It is done, too, where it was created just so.

        Args:
            notes: as a transaction's.

        Raises:
            Conflict: it exists with another value or lease, or was changed since it was created.
        """
        ...

    def replace(self, key: str, value: str, *, seen: int, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        """Write *key* where its ``mod_revision`` is still *seen*; the new revision.

        Args:
            notes: as a transaction's.

        Raises:
            Conflict: it changed or went away since.
        """
        ...

    def delete(self, key: str, *, seen: int) -> None:
        """Delete *key* where its ``mod_revision`` is still *seen*. Deleting what is gone succeeds.

        Raises:
            Conflict: it changed since.
        """
        ...

    def commit(self, transaction: Transaction) -> int:
        """Run *transaction*; the revision of its effects.

        Where a compare does not hold, but every put stands with its value and lease and every deleted key is gone, it is
        taken as done: that is how a repeat of a write whose answer was lost looks.

        Raises:
            Conflict: a compare did not hold, and the effects are not there already.
        """
        ...

    def grant_lease(self, ttl_seconds: int) -> Lease: ...

    def refresh_lease(self, lease_id: int) -> int:
        """Keep a lease; the seconds it now lives, 0 where it is gone."""
        ...

    def revoke_lease(self, lease_id: int) -> None:
        """End a lease and every key under it. Revoking what is gone succeeds."""
        ...

    def cluster_id(self) -> int: ...

    def watch(self, prefix: str, *, revision: int, cluster_id: int, stop: threading.Event) -> Iterator[tuple[WatchEvent, ...]]:
        """Yield batches of changes under *prefix* from *revision* on, until *stop*.

        It resumes by itself over broken connections, restarts and frozen members, from the last event's revision + 1.
        An empty batch is a sign of life: the watch was quiet, and the store has just proved that it answers.

        Raises:
            WatchLost: the revision is compacted, or the store is another or an older one.
            StoreRefused: it will not come back by itself.
        """
        ...

    def close(self) -> None: ...


class ListWatch:
    """A cache of one prefix that follows the store, and calls *on_change* for every key that changed.

    ``run`` lists, then watches from the next revision, and lists again when the watch is lost; the difference to the
    cache is reported as changes, so that the consumer never learns that there was a gap. Where the store turns out to be
    another one (its cluster id changed, or its revision went back) every key is reported, since what was known of it counts
    no more; ``cluster_id`` is then already the new one.

    Args:
        on_change: gets a key and its new item, or None where it is gone, after the cache changed; it runs in the watching
            thread and must only take note (add to a queue).
        on_lost: told once per outage why what is cached may be out of date.
        backoff: the pauses between tries to list; they end at once when ``run`` is stopped.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        on_change: Callable[[str, Versioned | None], None],
        on_lost: Callable[[Exception], None] | None = None,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self._store, self._prefix = store, prefix
        self._on_change, self._on_lost = on_change, on_lost
        self._backoff = backoff or Backoff(0.1, 5.0)
        self._lock = threading.Lock()
        self._filling = threading.Lock()
        self._items: dict[str, Versioned] = {}
        self._cluster_id = 0
        self._revision = 0
        self._is_lost = False
        self.synced = threading.Event()
        """Set once the first list is in the cache and reported; it stays set over outages."""

    @property
    def cluster_id(self) -> int:
        """Of the store that the cache was listed from; 0 before the first list."""
        with self._lock:
            return self._cluster_id

    @property
    def revision(self) -> int:
        """The newest revision that the cache has seen; 0 before the first list."""
        with self._lock:
            return self._revision

    def get(self, key: str) -> Versioned | None:
        with self._lock:
            return self._items.get(key)

    def snapshot(self) -> dict[str, Versioned]:
        """A copy of the cache, by key."""
        with self._lock:
            return dict(self._items)

    def refresh(self) -> None:
        """Read everything now, from any thread: the cache is then as new as the store was when this was called.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        with self._filling:
            self._fill(self._store.list(self._prefix))

    def run(self, stop: threading.Event) -> None:
        """Follow the store in the caller's thread until *stop*; no fault of the store ends it."""
        while not stop.is_set():
            try:
                self.refresh()
                self._follow(stop)
            except EcomputeError as error:
                self._note_loss(error)
            stop.wait(self._backoff.next())

    def _fill(self, listing: Listing) -> None:
        fresh = {item.key: item for item in listing.items}
        with self._lock:
            known = self._items
            is_other_store = self._cluster_id not in (0, listing.cluster_id) or listing.revision < self._revision
            self._items, self._cluster_id, self._revision = fresh, listing.cluster_id, listing.revision
        if is_other_store:
            logger.warning("the store is another or an older one", extra={"prefix": self._prefix, "revision": listing.revision})
        elif self._is_lost:
            logger.info("following the store again", extra={"prefix": self._prefix, "revision": listing.revision})
        self._is_lost = False
        for key in sorted(known.keys() | fresh.keys()):
            if is_other_store or known.get(key) != fresh.get(key):
                self._on_change(key, fresh.get(key))
        self.synced.set()

    def _follow(self, stop: threading.Event) -> None:
        batches = self._store.watch(self._prefix, revision=self.revision + 1, cluster_id=self.cluster_id, stop=stop)
        for batch in batches:
            self._backoff.reset()
            for event in batch:
                self._apply(event)

    def _apply(self, event: WatchEvent) -> None:
        with self._lock:
            if event.mod_revision < self._revision:
                return  # from a watch that is behind what ``refresh`` has read
            if event.item is None:
                self._items.pop(event.key, None)
            else:
                self._items[event.key] = event.item
            self._revision = event.mod_revision
        self._on_change(event.key, event.item)

    def _note_loss(self, error: EcomputeError) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        logger.warning("lost the store, trying on: %s", error, extra={"prefix": self._prefix})
        if self._on_lost is not None:
            self._on_lost(error)
