"""The volumes of this host, followed in etcd: a cache that is filled by the store's list-then-watch.

As for instances, a change only wakes; whoever works on a volume reads its entry then. ``VolumeBook`` alone is what facts and
steps of instances ask; it decides nothing.
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
from common.store import ListWatch, Store, Versioned
from common.volume_records import VolumeSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VolumeEntry:
    """A volume's spec as it stands in etcd; *spec* is None where this version cannot read it, and *problem* says why."""

    revision: int
    spec: VolumeSpec | None
    problem: str = ""


def read_volume(item: Versioned) -> VolumeEntry:
    """The entry that *item* holds; never raises, a spec that cannot be read is left alone."""
    try:
        return VolumeEntry(item.mod_revision, VolumeSpec.from_json(item.value))
    except (UnsupportedSchema, InvalidSpec) as error:
        return VolumeEntry(item.mod_revision, None, str(error))


class VolumeBook:
    """Which volumes there are on this host, as last heard; safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: dict[UUID, VolumeEntry] = {}
        self._lock = threading.Lock()

    def get(self, volume: UUID) -> VolumeEntry | None:
        with self._lock:
            return self._entries.get(volume)

    def note(self, volume: UUID, entry: VolumeEntry | None) -> None:
        with self._lock:
            if entry is None:
                self._entries.pop(volume, None)
            else:
                self._entries[volume] = entry

    def all(self) -> dict[UUID, VolumeEntry]:
        with self._lock:
            return dict(self._entries)

    def attached_to(self, instance: UUID) -> frozenset[UUID]:
        """The volumes that *instance* may have: they are noted as its own until no domain has them any more."""
        with self._lock:
            return frozenset(uuid for uuid, entry in self._entries.items() if entry.spec and entry.spec.attached_to == instance)

    def name(self, volume: UUID) -> str:
        """For people."""
        entry = self.get(volume)
        return entry.spec.name if entry and entry.spec else str(volume)


class VolumeWatcher:
    """Keeps *book* true, and calls *wake* with the uuid of every volume that came, changed or went."""

    def __init__(self, store: Store, keys: Keys, provider: UUID, book: VolumeBook, wake: Callable[[UUID], None]) -> None:
        self._keys, self._book, self._wake = keys, book, wake
        self._list_watch = ListWatch(store, keys.volumes(provider), self._changed)

    def run(self, stop: threading.Event) -> None:
        """Follow until *stop*, over every fault of the store."""
        self._list_watch.run(stop)

    def refresh(self) -> None:
        """Read all volumes now, from any thread. Raises: StoreUnavailable."""
        self._list_watch.refresh()

    @property
    def synced(self) -> threading.Event:
        """Set once the first list is in."""
        return self._list_watch.synced

    def _changed(self, key: str, item: Versioned | None) -> None:
        try:
            _, volume = self._keys.parse_provider_volume(key)
        except ValueError:
            logger.warning("ignored a key that names no volume", extra=fields(key=key))
            return
        self._book.note(volume, read_volume(item) if item else None)
        self._wake(volume)
