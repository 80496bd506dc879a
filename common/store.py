"""What etcd-compute asks of its key-value store, as a protocol, and the list-then-watch that stands on it.

``common/etcd_store.py`` is the real one; ``tests/fakes/store.py`` keeps keys in memory. Both pass ``tests/contract``.
Values are JSON texts; what they mean is ``common/model.py``'s business. Revisions order everything; a revision means
nothing without the cluster id beside it, since a restored etcd counts some revisions twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import EcomputeError


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
    """All keys under a prefix at one revision of one cluster."""

    items: tuple[Versioned, ...]
    revision: int
    cluster_id: int


@dataclass(frozen=True)
class Compare:
    """One condition of a transaction: *field* of *key* stands in *operator* to *value*.

    A key that is absent has ``create_revision`` and ``mod_revision`` 0.
    """

    key: str
    field: str  # "create_revision" | "mod_revision"
    operator: str  # "==" | ">"
    value: int

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


@dataclass(frozen=True)
class Transaction:
    """All or nothing: where every compare holds, all puts and deletes happen at one revision.

    etcd refuses more than 128 operations in all (compares count) and a key touched twice.
    """

    compares: tuple[Compare, ...] = ()
    puts: Mapping[str, str] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()
    lease_id: int = 0  # attached to every put


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
    """Reads are linearizable unless *serializable*. Every call is bounded by the store's deadline.

    Every method may raise ``StoreUnavailable``. For a write that means: *unknown*, it may have happened; the method has
    already read back and retried inside its deadline before it says so.
    """

    def get(self, key: str, *, serializable: bool = False) -> Versioned | None: ...

    def get_many(self, keys: Iterable[str]) -> dict[str, Versioned]:
        """Those of *keys* that exist, read in as few round trips as etcd allows, each trip at one revision."""
        ...

    def list(self, prefix: str, *, serializable: bool = False) -> Listing:
        """All keys under *prefix* at one revision, fetched in pages."""
        ...

    def create(self, key: str, value: str, *, lease_id: int = 0) -> int:
        """Write *key* where it is absent; the revision it was written at.

        Raises:
            Conflict: it exists with another value.
        """
        ...

    def replace(self, key: str, value: str, *, seen: int, lease_id: int = 0) -> int:
        """Write *key* where its ``mod_revision`` is still *seen*; the new revision.

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
        """Run *transaction*; its revision.

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
        An empty batch may be yielded as a sign of life.

        Raises:
            WatchLost: the revision is compacted, or the store is another or an older one.
        """
        ...

    def close(self) -> None: ...


class ListWatch:
    """A cache of one prefix that follows the store, and calls *on_change* for every key that changed.

    ``run`` lists, then watches from the next revision, and lists again when the watch is lost; the difference to the
    cache is reported as changes, so that the consumer never learns that there was a gap. *on_change* gets a key and its
    new item, or None where it is gone; it runs in the watching thread and must only take note (add to a queue).
    """

    def __init__(
        self, store: Store, prefix: str, on_change: Callable[[str, Versioned | None], None],
        on_lost: Callable[[Exception], None] | None = None,
    ) -> None:
        raise NotImplementedError
