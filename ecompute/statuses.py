"""What this host says of its instances: the statuses, in memory and in etcd, written by a fenced transaction.

This host is the only writer, so what was written last is known and nothing is read back on the way. A write compares the
host key (a process that lost its lease cannot write), the spec's presence (no status outlives its spec) and the revision of
the last write (one whose answer was lost, and which comes late, cannot undo a newer one). With etcd away the newest status
stays here, marked unwritten, until ``flush``.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable
from uuid import UUID

from common.errors import Conflict, InvalidSpec, StoreUnavailable, UnsupportedSchema
from common.journal import HostPen
from common.keys import Keys
from common.logs import fields
from common.model import Event, InstanceStatus
from common.store import Compare, Store, Transaction
from ecompute.chronicle import entries

logger = logging.getLogger(__name__)
EVENTS_KEPT = 20


class Statuses:
    """All statuses of one provider.

    Args:
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        now: wall time as ISO 8601 text, for people.
        on_conflict: a fenced write was refused; the heartbeat should look at its key.
        pen: writes what happened into the journal, with the status that tells of it; None: nothing is written there.
        name_of: an instance's name, "" where it is not known.
    """

    def __init__(
        self, store: Store, keys: Keys, provider: UUID, *, fence: Callable[[], Compare], now: Callable[[], str],
        on_conflict: Callable[[], None], pen: HostPen | None = None, name_of: Callable[[UUID], str] = lambda _: "",
    ) -> None:  # fmt: skip
        self._pen, self._name_of = pen, name_of
        self._store, self._keys, self._provider = store, keys, provider
        self._fence, self._now, self._on_conflict = fence, now, on_conflict
        self._lock = threading.Lock()
        self._known: dict[UUID, InstanceStatus] = {}
        self._unwritten: set[UUID] = set()
        self._revisions: dict[UUID, int] = {}  # of the key as we left it; none where there is no key
        self._doubtful: set[UUID] = set()  # to be read before they are written again
        self._written: dict[UUID, InstanceStatus] = {}  # as etcd has them, with the count of what was written of them

    def load(self) -> None:
        """Read what this host said before it was restarted.

        Raises:
            StoreUnavailable: etcd did not answer.
        """
        found: dict[UUID, InstanceStatus] = {}
        revisions: dict[UUID, int] = {}
        for item in self._store.list(self._keys.statuses(self._provider)).items:
            try:
                _, uuid = self._keys.parse_provider_instance(item.key)
                revisions[uuid] = item.mod_revision
                found[uuid] = InstanceStatus.from_json(item.value)
            except (ValueError, InvalidSpec, UnsupportedSchema) as error:
                logger.warning("ignored a status that cannot be read: %s", error, extra=fields(key=item.key))
        with self._lock:
            self._known = found | self._known
            self._revisions = revisions | self._revisions
            self._written = found | self._written

    def get(self, uuid: UUID) -> InstanceStatus | None:
        with self._lock:
            return self._known.get(uuid)

    def uuids(self) -> set[UUID]:
        with self._lock:
            return set(self._known)

    def phases(self) -> dict[str, int]:
        """How many instances are in each phase."""
        with self._lock:
            return dict(collections.Counter(str(status.phase) for status in self._known.values()))

    def note(self, uuid: UUID, status: InstanceStatus) -> None:
        """Remember *status* as the newest; it reaches etcd with the next ``flush``."""
        with self._lock:
            if status == self._known.get(uuid):
                return
            self._known[uuid] = dataclasses.replace(status, updated_at=self._now())
            self._unwritten.add(uuid)

    def flush(self, uuid: UUID, *, only_for_spec: int = 0) -> None:
        """Write the newest status of *uuid*, if it is not in etcd yet.

        Args:
            only_for_spec: write it only where the spec is still of this ``mod_revision``; 0 where any will do.

        Raises:
            StoreUnavailable: it is not known to be written; it stays marked unwritten.
            Conflict: the host key or the spec is gone, or somebody changed the status; it stays marked unwritten.
        """
        with self._lock:
            status = self._known.get(uuid)
            if status is None or uuid not in self._unwritten:
                return
        key, spec = self._keys.status(self._provider, uuid), self._keys.spec(self._provider, uuid)
        counted, notes = self._happened(uuid, status)
        change = Transaction(
            compares=(
                self._fence(),
                Compare.unchanged(spec, only_for_spec) if only_for_spec else Compare.present(spec),
                Compare.unchanged(key, self._revision(uuid, key)),
            ),
            puts={key: counted.to_json()},
            notes=notes,
        )
        try:
            revision = self._store.commit(change)
        except (Conflict, StoreUnavailable) as error:
            self._doubtful.add(uuid)
            if isinstance(error, Conflict):
                self._on_conflict()
            raise
        with self._lock:
            self._revisions[uuid] = revision
            self._written[uuid] = counted
            if self._known.get(uuid) is status:
                self._unwritten.discard(uuid)

    def _happened(self, uuid: UUID, status: InstanceStatus) -> tuple[InstanceStatus, dict[str, str]]:
        """*status* with the count of all that was written into the journal, and what is to be written there with it.

        A write that is repeated fills the same places again, since only one that is known to be made counts.
        """
        before = self._written.get(uuid)
        number = before.happened if before else 0
        found = entries(before, status) if self._pen else []
        notes: dict[str, str] = {}
        if self._pen and found:
            name = self._name_of(uuid)
            for place, entry in enumerate(found, number):
                notes |= self._pen.of_instance(uuid, name, place, entry.what, entry.message)
        return dataclasses.replace(status, happened=number + len(found)), notes

    def _revision(self, uuid: UUID, key: str) -> int:
        """The key's ``mod_revision``; asked for only after a write of which it is not known what came of it."""
        if uuid in self._doubtful:
            found = self._store.get(key)
            self._revisions[uuid] = found.mod_revision if found else 0
            self._doubtful.discard(uuid)
        return self._revisions.get(uuid, 0)

    def unwritten(self) -> set[UUID]:
        with self._lock:
            return set(self._unwritten)

    def drop(self, uuid: UUID) -> None:
        """Forget *uuid* here; its key went with its spec."""
        with self._lock:
            self._known.pop(uuid, None)
            self._unwritten.discard(uuid)
            self._revisions.pop(uuid, None)
            self._doubtful.discard(uuid)
            self._written.pop(uuid, None)


def with_event(status: InstanceStatus, event: Event) -> InstanceStatus:
    """*status* with *event* as its newest; the oldest beyond the last 20 are dropped."""
    return dataclasses.replace(status, events=(*status.events, event)[-EVENTS_KEPT:])
