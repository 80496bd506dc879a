"""The host's place in the cluster: its lease, its host record, and the fence that every write of this host carries.

A host is alive while ``hosts/<provider>`` stands, which hangs on a lease that this thread keeps. The key's
``create_revision`` is the fence: whoever lost the lease lost the key, and a transaction that compares it then fails, so
that a process that slept through its own death cannot write. Before a step that starts or destroys, ``is_live`` is asked
besides, by the monotonic clock.

It never touches a guest. It tells the agent when the key is not ours (``on_usurped``) and when it is back (``on_regained``).
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from uuid import UUID

from common.errors import Conflict, EcomputeError, OwnershipError, StoreUnavailable, Transient
from common.keys import Keys
from common.logs import fields
from common.model import HostRecord, HostState, OwnerRecord
from common.retry import Backoff, Deadline
from common.store import Compare, Store, Transaction, Versioned

logger = logging.getLogger(__name__)
LEASE_MARGIN_SECONDS = 1.0  # stop acting this long before the lease can be over on the server


def enroll(store: Store, keys: Keys, provider: UUID, mine: OwnerRecord, *, take: bool = False) -> None:
    """Write down that *provider* is this machine, or check that it is.

    Args:
        take: the other machine is gone for good, an operator says: this one is its successor.

    Raises:
        OwnershipError: the provider belongs to another machine; a clone or a copied config must never build its specs.
    """
    key = keys.owner(provider)
    while True:
        found = store.get(key)
        if found is None:
            try:
                store.create(key, mine.to_json())
            except Conflict:
                continue
            return
        theirs = OwnerRecord.from_json(found.value)
        if theirs.libvirt_host_uuid == mine.libvirt_host_uuid:
            return
        if not take:
            raise OwnershipError(
                f"provider {provider} belongs to {theirs.name} (libvirt host uuid {theirs.libvirt_host_uuid}), this machine is "
                f"{mine.name} ({mine.libvirt_host_uuid}): give this host its own `uuid:` in compute.yaml, or, if the other "
                "machine is gone for good, run `ecompute --take-provider` once"
            )
        try:
            store.replace(key, mine.to_json(), seen=found.mod_revision)
        except Conflict:
            continue
        logger.warning("took the provider over from %s", theirs.name)
        return


class Heartbeat:
    """Holds the host key of one incarnation.

    Args:
        record: what the key says; its incarnation is this process.
        on_usurped: called once, from this thread, when another incarnation holds the key: stop at once.
        on_regained: called after a lost lease was replaced by a new one.
    """

    def __init__(
        self, store: Store, keys: Keys, provider: UUID, record: HostRecord, *, ttl_seconds: int, every_seconds: float,
        on_usurped: Callable[[OwnershipError], None], on_regained: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store, self._key, self._provider = store, keys.host(provider), provider
        self._record, self._ttl, self._every = record, ttl_seconds, every_seconds
        self._on_usurped, self._on_regained, self._clock = on_usurped, on_regained, clock
        self._lock = threading.Lock()
        self._lease_id = 0
        self._created = 0
        self._lives_until = 0.0
        self._is_written = True
        self._is_suspect = False

    @property
    def record(self) -> HostRecord:
        return self._record

    @property
    def is_live(self) -> bool:
        """Whether the lease certainly still stands, by our own clock."""
        return self._created > 0 and self._clock() < self._lives_until - LEASE_MARGIN_SECONDS

    def fence(self) -> Compare:
        """The compare that makes a transaction fail once the host key is no longer this incarnation's.

        Raises:
            StoreUnavailable: there is no host key at the moment; it is being made anew.
        """
        if not self._created:
            raise StoreUnavailable("this host has no live host key in etcd at the moment; it is being made anew")
        return Compare.created_at(self._key, self._created)

    def claim(self, stop: threading.Event) -> None:
        """Create the host key under a new lease; take it over from our own crashed predecessor.

        Raises:
            OwnershipError: another living process holds it and did not go away within one TTL.
            StoreUnavailable: the store did not answer.
        """
        patience = Deadline(self._ttl + 5.0, self._clock)
        announced = False
        while True:
            holder = self._store.get(self._key)
            if holder is None or self._is_predecessor(holder):
                if holder is not None:
                    # A put over it would keep create_revision and defeat the fence of every write still under way.
                    self._store.delete(self._key, seen=holder.mod_revision)
                try:
                    self._create()
                except Conflict:
                    continue
                return
            theirs = HostRecord.from_json(holder.value)
            if patience.expired:
                raise OwnershipError(
                    f"provider {self._provider} is already served by {theirs.name} (incarnation {theirs.incarnation}, since "
                    f"{theirs.since}): stop that ecompute first, or give this host its own `uuid:` in compute.yaml"
                )
            if not announced:
                logger.warning(
                    "another ecompute holds this provider; waiting one lease time for it to go",
                    extra=fields(holder=theirs.name),
                )
                announced = True
            if stop.wait(0.5):
                raise OwnershipError("stopped while waiting for another ecompute to release this provider")

    def run(self, stop: threading.Event) -> None:
        """Keep the lease until *stop*; make lease and key anew when they were lost."""
        backoff = Backoff(0.2, 2.0)
        is_lost_known = False
        delay = self._every
        while not stop.wait(delay):
            try:
                self._beat(stop)
            except OwnershipError as error:
                self._on_usurped(error)
                return
            except Transient as error:
                delay = min(backoff.next(), self._every)
                if not is_lost_known:
                    logger.warning("cannot keep the host lease, trying on: %s", error)
                    is_lost_known = True
                continue
            except EcomputeError as error:
                # A record of another schema on our key: nothing that trying again at full speed would cure.
                delay = self._every
                logger.error("cannot keep the host lease: %s", error)
                continue
            if is_lost_known:
                logger.info("the host lease is kept again")
            is_lost_known, delay = False, self._every
            backoff.reset()

    def update(
        self, *, state: HostState | None = None, message: str | None = None, capacity: dict[str, int] | None = None
    ) -> None:
        """Change what the host record says; written now if it can be, else with the next heartbeat."""
        with self._lock:
            wanted = dataclasses.replace(
                self._record,
                state=self._record.state if state is None else state,
                message=self._record.message if message is None else message,
                capacity=self._record.capacity if capacity is None else capacity,
            )
            if wanted == self._record:
                return
            self._record, self._is_written = wanted, False
        try:
            self._write()
        except Transient as error:
            logger.debug("host record not written yet: %s", error)

    def suspect(self) -> None:
        """A fenced write failed: have the next beat look whether the key is still ours."""
        self._is_suspect = True

    def resign(self) -> None:
        """Give the lease back, and the key with it; best effort, the lease ends by itself."""
        self._lives_until = 0.0
        try:
            self._store.revoke_lease(self._lease_id)
        except EcomputeError as error:
            logger.warning("could not give the host lease back, it ends by itself: %s", error)

    def _is_predecessor(self, holder: Versioned) -> bool:
        """Ours from before: this process (an answer was lost), or one on this machine that is dead, as our lock proves."""
        theirs = HostRecord.from_json(holder.value)
        mine = self._record
        return theirs.incarnation == mine.incarnation or (
            theirs.boot_id == mine.boot_id and theirs.libvirt_host_uuid == mine.libvirt_host_uuid
        )

    def _create(self) -> None:
        asked_at = self._clock()
        lease = self._store.grant_lease(self._ttl)
        with self._lock:
            created = self._store.create(self._key, self._record.to_json(), lease_id=lease.id)
            self._lease_id, self._created, self._is_written = lease.id, created, True
            self._lives_until = asked_at + lease.ttl_seconds

    def _beat(self, stop: threading.Event) -> None:
        asked_at = self._clock()
        left = self._store.refresh_lease(self._lease_id)
        # Without a key the lease alone is worth nothing: making it may have failed the last time.
        if left > 0 and self._created and not self._is_lost():
            self._lives_until = asked_at + left
            if not self._is_written:
                self._write()
            return
        if self._created:
            logger.warning("the host lease was lost; making it anew")
        self._created = 0
        self.claim(stop)
        self._on_regained()

    def _is_lost(self) -> bool:
        """Whether the key went away under a living lease (deleted by hand, store restored); asked only on suspicion."""
        if not self._is_suspect:
            return False
        holder = self._store.get(self._key)
        self._is_suspect = False
        return holder is None or holder.create_revision != self._created

    def _write(self) -> None:
        with self._lock:
            if not self._created or self._is_written:
                return
            change = Transaction(compares=(self.fence(),), puts={self._key: self._record.to_json()}, lease_id=self._lease_id)
            self._store.commit(change)
            self._is_written = True
