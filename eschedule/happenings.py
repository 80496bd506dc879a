"""Reading the journal: the newest of what happened to an instance, a host or all of them, and what happens from now on.

Order is that of etcd's revisions, since the clocks of machines differ; the times that are shown are those of whoever wrote.
What cannot be read, as of a newer version, is passed over. Usable as a library; it prints nothing.
"""

from __future__ import annotations

import datetime
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

from common.errors import EcomputeError, Permanent, StoreRefused
from common.journal import Happening, Subject
from common.keys import Keys
from common.model import HostRecord
from common.store import Store, Versioned, WatchEvent, WatchLost
from common.text import utc_text
from eschedule.listing import host_names, read_record

CLOCKS_DIFFER_SECONDS = 600.0  # at most, so that what is older than this before a moment is not followed by newer things
PAUSE_SECONDS = 1.0  # before etcd is asked anew from where on to watch


@dataclass(frozen=True)
class Scope:
    """Whose journal is read: that below *prefix*, of the host *provider* or of *instances* alone where such are named."""

    prefix: str
    provider: UUID | None = None
    has_hosts: bool = True  # whether what becomes of hosts belongs to it
    instances: frozenset[UUID] | None = None

    def holds(self, happening: Happening) -> bool:
        is_chosen = self.instances is None or happening.uuid in self.instances
        return is_chosen and (self.provider is None or happening.provider == self.provider)


def of_all(keys: Keys, provider: UUID | None = None, instances: frozenset[UUID] | None = None) -> Scope:
    """What happened in the cluster; of what happened on the host *provider*, or to *instances*, where such are named."""
    return Scope(keys.events(), provider, instances is None, instances)


def of_instance(store: Store, keys: Keys, who: UUID | str) -> Scope:
    """What happened to the instance that has the name or uuid *who*, or had it before it was destroyed.

    Raises:
        Permanent: there is none, and nothing is known of a former one.
    """
    if isinstance(who, UUID):
        return Scope(keys.events_of(Subject.INSTANCE, who), has_hosts=False)
    item = store.get(keys.name(who)) or next(iter(store.newest(keys.former_names(who))), None)
    if item is None:
        raise Permanent(
            f"there is no instance {who}, and nothing is known any more of one that was called so; see: eschedule events",
            "NotFound",
        )
    return Scope(keys.events_of(Subject.INSTANCE, UUID(item.value)), has_hosts=False)


def happening_in(item: Versioned) -> Happening | None:
    """What *item* tells; None where this version cannot read it."""
    return read_record(Happening, item)


def newest(items: Iterable[Versioned], scope: Scope, most: int, since: datetime.datetime | None) -> list[Happening]:
    """The last *most* of *items*, which come newest first, that are of *scope* and not older than *since*; oldest first."""
    found: list[Happening] = []
    for item in items:
        happening = happening_in(item)
        if happening is None or not scope.holds(happening):
            continue
        ahead = _seconds_after(happening.at, since) if since else 0.0
        if ahead < -CLOCKS_DIFFER_SECONDS:
            break
        if ahead >= 0:
            found.append(happening)
        if len(found) == most:
            break
    return found[::-1]


def _seconds_after(at: str, moment: datetime.datetime) -> float:
    """How long after *moment* the time *at* is; what is no time is now."""
    try:
        return (datetime.datetime.fromisoformat(at) - moment).total_seconds()
    except (ValueError, TypeError):
        return 0.0


class Names:
    """The names of hosts, by provider: as happenings tell them, else as etcd has them now."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store, self._keys = store, keys
        self._known: dict[UUID, str] = {}

    def learn(self, happenings: Iterable[Happening]) -> None:
        """Look all hosts of *happenings* up that are not known yet, by at most two reads."""
        wanted = set[UUID]()
        for happening in happenings:
            if happening.provider and happening.host:
                self._known[happening.provider] = happening.host
            elif happening.provider:
                wanted.add(happening.provider)
        if unknown := wanted - self._known.keys():
            items = self._store.get_many(self._keys.host(provider) for provider in unknown)
            alive = {self._keys.parse_host(key): item for key, item in items.items()}
            self._known |= {
                provider: host.name for provider, host in host_names(self._store, self._keys, unknown, alive).items()
            }

    def of(self, happening: Happening) -> str:
        """The name of the host that it happened on, "" where it happened on none."""
        return happening.host or (self._known.get(happening.provider, "") if happening.provider else "")


class Follower:
    """What happens in *scope* from the moment on that it is made; ``close`` it.

    Its threads watch; nobody polls. A watch whose revision was compacted away goes on from what was read last.
    """

    def __init__(self, store: Store, keys: Keys, scope: Scope) -> None:
        self._store, self._keys, self._scope = store, keys, scope
        self._arrived: queue.SimpleQueue[Happening | EcomputeError] = queue.SimpleQueue()
        self._stop = threading.Event()
        start = store.list_keys([scope.prefix])  # no such key: it tells the revision
        self._revision, self._cluster_id = start.revision, start.cluster_id

    def history(self, most: int, since: datetime.datetime | None) -> list[Happening]:
        """What happened before, as ``newest``; call it first. It is no older than where the watch begins."""
        return newest(self._noting(self._store.newest(self._scope.prefix)), self._scope, most, since)

    def run(self) -> Iterator[Happening]:
        """One happening after the other, for ever.

        Raises:
            StoreRefused: etcd does not let us in any more.
        """
        runs: list[Callable[[], None]] = [self._follow_journal]
        if self._scope.has_hosts:
            runs.append(self._follow_hosts)
        for run in runs:
            threading.Thread(target=self._guarded, args=(run,), name="events", daemon=True).start()
        while True:
            arrived = self._arrived.get()
            if isinstance(arrived, EcomputeError):
                raise arrived
            yield arrived

    def close(self) -> None:
        self._stop.set()

    def _noting(self, items: Iterator[Versioned]) -> Iterator[Versioned]:
        for item in items:
            self._revision = max(self._revision, item.mod_revision)
            yield item

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except EcomputeError as error:
            self._arrived.put(error)

    def _tell(self, item: Versioned) -> None:
        happening = happening_in(item)
        if happening is not None and self._scope.holds(happening):
            self._arrived.put(happening)

    def _follow_journal(self) -> None:
        def heard(event: WatchEvent) -> None:
            self._revision = max(self._revision, event.mod_revision)
            if event.item is not None:
                self._tell(event.item)

        while not self._stop.is_set():
            try:
                self._watch(self._scope.prefix, self._revision, heard)
            except WatchLost:
                self._catch_up()

    def _watch(self, prefix: str, revision: int, heard: Callable[[WatchEvent], None]) -> None:
        batches = self._store.watch(prefix, revision=revision + 1, cluster_id=self._cluster_id, stop=self._stop)
        for batch in batches:
            for event in batch:
                heard(event)

    def _catch_up(self) -> None:
        """Tell what was written since the last revision that was heard of; of another cluster only what comes from now on."""
        try:
            start = self._store.list_keys([self._scope.prefix])
            seen, is_same = self._revision, start.cluster_id == self._cluster_id and start.revision >= self._revision
            missed: list[Versioned] = []
            for item in self._store.newest(self._scope.prefix) if is_same else ():
                if item.mod_revision <= seen:
                    break
                missed.append(item)
        except StoreRefused:
            raise
        except EcomputeError:
            self._stop.wait(PAUSE_SECONDS)
            return
        for item in reversed(missed):
            self._tell(item)
        newest_missed = missed[0].mod_revision if missed else 0
        self._revision, self._cluster_id = max(start.revision, newest_missed), start.cluster_id

    def _follow_hosts(self) -> None:
        """Tell of hosts whose heartbeat ends: they cannot say so themselves."""
        while not self._stop.is_set():
            try:
                hosts = self._store.list(self._keys.hosts())
                names = {item.key: record.name for item in hosts.items if (record := read_record(HostRecord, item))}
                self._watch(self._keys.hosts(), hosts.revision, lambda event, names=names: self._note_host(event, names))  # type: ignore[misc]
            except StoreRefused:
                raise
            except EcomputeError:
                self._stop.wait(PAUSE_SECONDS)

    def _note_host(self, event: WatchEvent, names: dict[str, str]) -> None:
        if event.item is not None:
            if record := read_record(HostRecord, event.item):
                names[event.key] = record.name
            return
        provider, name = self._keys.parse_host(event.key), names.get(event.key, "")
        now = utc_text(datetime.datetime.now(datetime.UTC))
        away = Happening(now, "away", Subject.HOST, provider, name, provider, name, message="it has no heartbeat any more")
        if self._scope.holds(away):
            self._arrived.put(away)
