"""A ``Store`` that keeps its keys in memory: revisions, leases on a clock that the test moves, watches, and faults on request.

It passes the same contract tests as the store on etcd. Threads may share it.
"""

from __future__ import annotations

import itertools
import operator
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import Conflict, Permanent, StoreUnavailable
from common.etcd_rules import describe, is_as_created, is_done
from common.store import NO_NOTES, Compare, Listing, Transaction, Versioned, WatchEvent, WatchLost

MOST_OPERATIONS = 128
MOST_BYTES = 1536 * 1024
JOURNAL_LEASE = 1 << 40  # never ends here


@dataclass
class FakeLease:
    id: int
    ttl_seconds: int
    ends_at: float


class FakeStore:
    """An empty store at revision 1, as a new etcd is.

    Args:
        clock: what leases are measured by.
    """

    def __init__(self, *, cluster_id: int = 0xC0FFEE, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._is_closed = False
        self._outage: Exception | None = None
        self._lost_answers = 0
        self._lease_ids = itertools.count(1)
        self.wipe(cluster_id=cluster_id)

    # -- what tests do to it ------------------------------------------------------------------------------------------

    def break_with(self, error: Exception | None) -> None:
        """Have every call raise *error* from now on, and watches wait; None heals it."""
        with self._changed:
            self._outage = error
            self._changed.notify_all()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """What happens inside is one moment to all other threads."""
        with self._changed:
            yield

    def lose_answers(self, count: int) -> None:
        """Execute the next *count* writes, and raise ``StoreUnavailable`` all the same."""
        self._lost_answers = count

    def compact(self) -> None:
        """Forget all history: a watch from before now is lost."""
        with self._changed:
            self._compacted = self._revision
            self._history = []

    def wipe(self, *, cluster_id: int | None = None, revision: int = 1) -> None:
        """Become an empty store, of another cluster where *cluster_id* says so; watches are lost."""
        with self._changed:
            self._cluster_id = cluster_id if cluster_id is not None else self._cluster_id
            self._revision, self._compacted = revision, 0
            self._items: dict[str, Versioned] = {}
            self._history: list[tuple[WatchEvent, ...]] = []
            self._leases: dict[int, FakeLease] = {}
            self._epoch = object()  # a watch notices that this is another one
            self._changed.notify_all()

    # -- Store --------------------------------------------------------------------------------------------------------

    def get(self, key: str, *, serializable: bool = False) -> Versioned | None:
        with self._begin():
            return self._items.get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Versioned]:
        with self._begin():
            return {key: self._items[key] for key in keys if key in self._items}

    def list_keys(self, keys: Iterable[str]) -> Listing:
        with self._begin():
            items = tuple(self._items[key] for key in keys if key in self._items)
            return Listing(items, self._revision, self._cluster_id)

    def list(self, prefix: str, *, serializable: bool = False, behind: str = "") -> Listing:
        with self._begin():
            items = tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix) and key >= behind)
            return Listing(items, self._revision, self._cluster_id)

    def cluster_id(self) -> int:
        with self._begin():
            return self._cluster_id

    def newest(self, prefix: str, *, serializable: bool = False) -> Iterator[Versioned]:
        yield from sorted(self.list(prefix).items, key=lambda item: (-item.mod_revision, item.key))

    def create(self, key: str, value: str, *, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        transaction = Transaction((Compare.absent(key),), {key: value}, lease_id=lease_id, notes=notes)
        with self._begin():
            if self._holds(transaction):
                return self._execute(transaction)
            item = self._items[key]
            if is_as_created(item, value, lease_id):
                return item.mod_revision
            raise Conflict(f"{key} exists already")

    def replace(self, key: str, value: str, *, seen: int, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        transaction = Transaction((Compare.unchanged(key, seen),), {key: value}, lease_id=lease_id, notes=notes)
        with self._begin():
            if self._holds(transaction):
                return self._execute(transaction)
            raise Conflict(f"{key} changed since revision {seen}")

    def delete(self, key: str, *, seen: int) -> None:
        transaction = Transaction((Compare.unchanged(key, seen),), deletes=(key,))
        with self._begin():
            if self._holds(transaction):
                self._execute(transaction)
            elif key in self._items:
                raise Conflict(f"{key} changed since revision {seen}")

    def commit(self, transaction: Transaction) -> int:
        with self._begin():
            if self._holds(transaction):
                return self._execute(transaction)
            found = {key: self._items[key] for key in (*transaction.puts, *transaction.deletes) if key in self._items}
            if is_done(transaction, found):
                return max((item.mod_revision for item in found.values()), default=self._revision)
            raise Conflict(f"{describe(transaction)}: something that it compares has changed")

    def grant_lease(self, ttl_seconds: int) -> FakeLease:
        with self._begin():
            lease = FakeLease(next(self._lease_ids), ttl_seconds, self._clock() + ttl_seconds)
            self._leases[lease.id] = lease
            return lease

    def refresh_lease(self, lease_id: int) -> int:
        with self._begin():
            lease = self._leases.get(lease_id)
            if lease is None:
                return 0
            lease.ends_at = self._clock() + lease.ttl_seconds
            return lease.ttl_seconds

    def revoke_lease(self, lease_id: int) -> None:
        with self._begin():
            self._end_lease(lease_id)

    def watch(self, prefix: str, *, revision: int, cluster_id: int, stop: threading.Event) -> Iterator[tuple[WatchEvent, ...]]:
        epoch = None
        while not stop.is_set():
            with self._changed:
                if self._is_closed:
                    return
                if cluster_id != self._cluster_id or revision - 1 > self._revision or epoch not in (None, self._epoch):
                    raise WatchLost("the store is another or an older one")
                epoch = self._epoch
                if revision <= self._compacted:
                    raise WatchLost(f"revision {revision} is compacted")
                if self._outage is not None:
                    self._changed.wait(0.02)
                    continue
                self._expire()
                batch = tuple(
                    event
                    for change in self._history
                    for event in change
                    if event.mod_revision >= revision and event.key.startswith(prefix)
                )
                if batch:
                    revision = batch[-1].mod_revision + 1
                else:
                    self._changed.wait(0.02)
            yield batch

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    # -- inside, all under the lock -----------------------------------------------------------------------------------

    def _begin(self) -> threading.Condition:
        """The lock, once this call may go on."""
        with self._changed:
            if self._is_closed:
                raise StoreUnavailable("this program has closed its connection to the store", may_have_happened=False)
            if self._outage is not None:
                raise self._outage
            self._expire()
        return self._changed

    def _holds(self, transaction: Transaction) -> bool:
        operations = len(transaction.puts) + len(transaction.deletes) + len(transaction.notes)
        size = sum(len(key) + len(value) for key, value in transaction.puts.items())
        is_twice = set(transaction.puts) & set(transaction.deletes)
        if max(operations, len(transaction.compares)) > MOST_OPERATIONS or size > MOST_BYTES or is_twice:
            raise Permanent(f"{describe(transaction)}: too large, too many operations, or one key twice", "StoreRejected")
        if not all(self._compare(compare) for compare in transaction.compares):
            return False
        if transaction.puts and transaction.lease_id and transaction.lease_id not in self._leases:
            raise Conflict(f"{describe(transaction)}: lease {transaction.lease_id:x} is gone")
        return True

    def _compare(self, compare: Compare) -> bool:
        item = self._items.get(compare.key)
        items = [item] if item else []
        if compare.is_prefix:
            items = [item for key, item in self._items.items() if key.startswith(compare.key)]
        actual = [getattr(item, compare.field) for item in items] or [0]
        holds = {"==": operator.eq, ">": operator.gt, "<": operator.lt}[compare.operator]
        return all(holds(value, compare.value) for value in actual)

    def _execute(self, transaction: Transaction) -> int:
        revision = self._apply(transaction.puts, transaction.deletes, transaction.lease_id, transaction.notes)
        if self._lost_answers:
            self._lost_answers -= 1
            raise StoreUnavailable(f"{describe(transaction)}: the answer was lost")
        return revision

    def _apply(
        self, puts: Mapping[str, str], deletes: Iterable[str], lease_id: int, notes: Mapping[str, str] = NO_NOTES
    ) -> int:  # fmt: skip
        deleted = [key for key in deletes if key in self._items]
        if not puts and not deleted and not notes:
            return self._revision
        self._revision += 1
        events = []
        leased = [(key, value, lease_id) for key, value in puts.items()]
        for key, value, lease in [*leased, *((key, value, JOURNAL_LEASE) for key, value in notes.items())]:
            created = self._items[key].create_revision if key in self._items else self._revision
            self._items[key] = Versioned(key, value, created, self._revision, lease)
            events.append(WatchEvent(key, self._items[key], self._revision))
        for key in deleted:
            del self._items[key]
            events.append(WatchEvent(key, None, self._revision))
        self._history.append(tuple(events))
        self._changed.notify_all()
        return self._revision

    def _expire(self) -> None:
        for lease in [lease for lease in self._leases.values() if lease.ends_at <= self._clock()]:
            self._end_lease(lease.id)

    def _end_lease(self, lease_id: int) -> None:
        if self._leases.pop(lease_id, None) is not None:
            self._apply({}, [key for key, item in self._items.items() if item.lease_id == lease_id], 0)
