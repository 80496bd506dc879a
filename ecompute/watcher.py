"""The specs of this host, followed in etcd: a cache that is filled by the store's list-then-watch.

A change only wakes: the uuid goes to the work queue, and whoever works on it reads the entry then. It decides nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.errors import InvalidSpec, UnsupportedSchema
from common.keys import Keys
from common.logs import fields
from common.model import HostAdmin, InstanceSpec
from common.store import ListWatch, Store, Versioned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpecEntry:
    """A spec as it stands in etcd; *spec* is None where this version cannot read it, and *problem* says why."""

    revision: int
    spec: InstanceSpec | None
    problem: str = ""


def read_entry(item: Versioned) -> SpecEntry:
    """The entry that *item* holds; never raises, a spec that cannot be read is held."""
    try:
        return SpecEntry(item.mod_revision, InstanceSpec.from_json(item.value))
    except (UnsupportedSchema, InvalidSpec) as error:
        return SpecEntry(item.mod_revision, None, str(error))


class SpecWatcher:
    """Keeps ``get`` true, and calls *wake* with the uuid of every spec that came, changed or went."""

    def __init__(self, store: Store, keys: Keys, provider: UUID, wake: Callable[[UUID], None]) -> None:
        self._keys, self._wake = keys, wake
        self._entries: dict[UUID, SpecEntry] = {}
        self._lock = threading.Lock()
        self._list_watch = ListWatch(store, keys.specs(provider), self._changed)

    def run(self, stop: threading.Event) -> None:
        """Follow until *stop*, over every fault of the store."""
        self._list_watch.run(stop)

    def refresh(self) -> None:
        """Read all specs now, from any thread. Raises: StoreUnavailable."""
        self._list_watch.refresh()

    @property
    def synced(self) -> threading.Event:
        """Set once the first list is in."""
        return self._list_watch.synced

    @property
    def cluster_id(self) -> int:
        return self._list_watch.cluster_id

    def get(self, uuid: UUID) -> SpecEntry | None:
        with self._lock:
            return self._entries.get(uuid)

    def revision(self, uuid: UUID) -> int:
        """The spec's ``mod_revision`` as last seen; 0 where there is none."""
        entry = self.get(uuid)
        return entry.revision if entry else 0

    def forget(self, uuid: UUID, revision: int) -> None:
        """The spec that stood at *revision* was deleted by ourselves: do not wait for the store to tell us."""
        with self._lock:
            entry = self._entries.get(uuid)
            if entry is not None and entry.revision == revision:
                del self._entries[uuid]

    def uuids(self) -> set[UUID]:
        with self._lock:
            return set(self._entries)

    def _changed(self, key: str, item: Versioned | None) -> None:
        try:
            _, uuid = self._keys.parse_provider_instance(key)
        except ValueError:
            logger.warning("ignored a key that names no instance", extra=fields(key=key))
            return
        with self._lock:
            if item is None:
                self._entries.pop(uuid, None)
            else:
                self._entries[uuid] = read_entry(item)
        self._wake(uuid)


class HostAdminWatcher:
    """What operators set for this host: ``current`` is None while nothing is set. Calls *wake* when it changes."""

    def __init__(self, store: Store, keys: Keys, provider: UUID, wake: Callable[[], None]) -> None:
        self.current: HostAdmin | None = None
        self._key, self._wake = keys.host_admin(provider), wake
        self._list_watch = ListWatch(store, self._key, self._changed)

    def run(self, stop: threading.Event) -> None:
        """Follow until *stop*, over every fault of the store."""
        self._list_watch.run(stop)

    @property
    def synced(self) -> threading.Event:
        """Set once ``current`` is known."""
        return self._list_watch.synced

    def _changed(self, key: str, item: Versioned | None) -> None:
        if key != self._key:
            return
        try:
            self.current = HostAdmin.from_json(item.value) if item else None
        except (UnsupportedSchema, InvalidSpec) as error:
            logger.error("kept the host settings as they were: %s", error, extra=fields(key=key))
            return
        self._wake()
