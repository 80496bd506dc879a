"""The host's place in the cluster: its lease, its host record, and the fence that every write of this host carries.

A host is alive while ``hosts/<provider>`` stands, which hangs on a lease that this thread keeps. The key's
``create_revision`` is the fence: whoever lost the lease lost the key, and a transaction that compares it then fails, so
that a process that slept through its own death cannot write. Before a step that starts or destroys, ``is_live`` is asked
besides, by a clock that does not stand still while the host is suspended.

It never touches a guest. It tells the agent when the key is not ours (``on_usurped``) and when it is back (``on_regained``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import random as random_module
import threading
from collections.abc import Callable, Mapping
from uuid import UUID

from common.errors import Conflict, EcomputeError, NotLive, OwnershipError, Transient
from common.journal import PLACES, HostPen
from common.keys import Keys
from common.logs import fields
from common.model import HostRecord, HostState, OwnerRecord
from common.placement_types import Inventory
from common.retry import Backoff, Deadline, seconds_since_boot
from common.store import Compare, Store, Transaction, Versioned

logger = logging.getLogger(__name__)
LEASE_MARGIN_SECONDS = 1.0  # stop acting this long before the lease can be over on the server


def enroll(store: Store, keys: Keys, provider: UUID, mine: OwnerRecord) -> int:
    """Write down that *provider* is this machine, or check that it is; the record's ``mod_revision``.

    Raises:
        OwnershipError: the provider belongs to another machine; a clone or a copied config must never build its specs.
    """
    key = keys.owner(provider)
    while True:
        found = store.get(key)
        if found is not None:
            check_owner(OwnerRecord.from_json(found.value), provider, mine)
            return found.mod_revision
        with contextlib.suppress(Conflict):
            return store.create(key, mine.to_json())


def check_owner(theirs: OwnerRecord, provider: UUID, mine: OwnerRecord) -> None:
    """Raises: OwnershipError: *provider* is another machine's than *mine*."""
    if theirs.libvirt_host_uuid != mine.libvirt_host_uuid:
        raise OwnershipError(
            f"provider {provider} belongs to {theirs.name} (libvirt host uuid {theirs.libvirt_host_uuid}), this machine is "
            f"{mine.name} ({mine.libvirt_host_uuid}): give this host its own `uuid:` in compute.yaml, or, if the other "
            "machine is gone for good, run `ecompute --take-provider` once"
        )


def take_provider(
    store: Store, keys: Keys, provider: UUID, mine: OwnerRecord, *, patience: Deadline, stop: threading.Event
) -> None:
    """Make this machine the successor of the one that *provider* belonged to, which an operator says is gone for good.

    Raises:
        OwnershipError: that one still has a host key when *patience* is over, so it is not gone: nothing was changed.
    """
    while True:
        owner, host = store.get(keys.owner(provider)), store.get(keys.host(provider))
        if owner is None or OwnerRecord.from_json(owner.value).libvirt_host_uuid == mine.libvirt_host_uuid:
            return
        theirs = OwnerRecord.from_json(owner.value)
        unchanged = (Compare.absent(keys.host(provider)), Compare.unchanged(keys.owner(provider), owner.mod_revision))
        if host is None:
            with contextlib.suppress(Conflict):
                store.commit(Transaction(compares=unchanged, puts={keys.owner(provider): mine.to_json()}))
                logger.warning("took the provider over from %s", theirs.name)
                return
        if patience.expired or stop.wait(0.5):
            raise OwnershipError(
                f"provider {provider} is not free to be taken: {theirs.name} still has a heartbeat; stop its ecompute first"
            )


class _Step(enum.Enum):
    """What a beat does. The two turn about, so that etcd is heard of twice as often as either asks it: see ``Proofs``."""

    KEEP = enum.auto()
    LOOK = enum.auto()
    BOTH = enum.auto()


class Heartbeat:
    """Holds the host key of one incarnation.

    Args:
        owner: this machine; the key is only made while the provider belongs to it.
        record: what the key says; its incarnation is this process.
        on_usurped: called once, from this thread, when another incarnation holds the key: stop at once.
        on_regained: called with a new key after the old one was lost, before the host counts as live again: what was cached
            while it was nobody's must be read anew. May raise ``Transient``, and is then called again.
        report: told after each beat what was in the way; "" = the lease is kept and the record written.
        alive: called at every turn of the loop, and while another ecompute is waited for.
        wait: sleeps so many seconds, or less.
        random: a number from 0 up to 1.
        pen: writes into the journal how this host comes, goes and fares, with the host key's own writes.
    """

    def __init__(
        self, store: Store, keys: Keys, provider: UUID, owner: OwnerRecord, record: HostRecord, *, ttl_seconds: int,
        every_seconds: float, on_usurped: Callable[[OwnershipError], None], on_regained: Callable[[], None],
        report: Callable[[str], None] = lambda _: None, alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = seconds_since_boot, wait: Callable[[float], object] | None = None,
        random: Callable[[], float] = random_module.random, pen: HostPen | None = None,
    ) -> None:  # fmt: skip
        # Nothing remembers where the last process left off: one that is started again and again is not to lose all the rest.
        self._pen, self._page = pen, int(random() * PLACES)
        self._store, self._keys, self._key, self._provider = store, keys, keys.host(provider), provider
        self._owner, self._record, self._ttl, self._every = owner, record, ttl_seconds, every_seconds
        self._on_usurped, self._on_regained, self._report, self._clock = on_usurped, on_regained, report, clock
        self._alive, self._random = alive, random
        self._asked = threading.Event()
        self._wait = wait or self._asked.wait
        self._lock = threading.Lock()
        self._lease_id = 0
        self._created = 0
        self._lives_until = 0.0
        self._is_written = True
        self._unsaid: dict[str, str] = {}  # for the journal, with the next write of the record
        self._has_served = False  # from the first key on, whoever else holds it came after us
        self._is_caught_up = True

    @property
    def record(self) -> HostRecord:
        return self._record

    @property
    def seconds_left(self) -> float:
        """How long the lease certainly still stands, by our own clock; 0 without a host key."""
        return max(0.0, self._lives_until - self._clock()) if self._created else 0.0

    @property
    def is_live(self) -> bool:
        """Whether the lease certainly still stands, and what is known of the store is no older than the host key."""
        return self._is_caught_up and self.seconds_left > LEASE_MARGIN_SECONDS

    def fence(self) -> Compare:
        """The compare that makes a transaction fail once the host key is no longer this incarnation's.

        Raises:
            NotLive: there is no host key at the moment; it is being made anew.
        """
        if not self._created:
            raise NotLive("this host has no live host key in etcd at the moment; it is being made anew")
        return Compare.created_at(self._key, self._created)

    def claim(self, stop: threading.Event) -> None:
        """Create the host key under a new lease; the first time take it over from our own crashed predecessor.

        Raises:
            OwnershipError: the provider is another machine's, or another living process holds the key and did not go away
                within one TTL.
            StoreUnavailable: the store did not answer.
        """
        patience = Deadline(self._ttl + 5.0, self._clock)
        announced = False
        while True:
            owner_revision = enroll(self._store, self._keys, self._provider, self._owner)
            holder = self._store.get(self._key)
            if holder is None or self._is_predecessor(holder):
                if holder is not None:
                    # A put over it would keep create_revision and defeat the fence of every write still under way.
                    self._store.delete(self._key, seen=holder.mod_revision)
                try:
                    self._create(owner_revision, self._noted_return(holder))
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
            self._alive()
            if stop.wait(0.5):
                raise OwnershipError("stopped while waiting for another ecompute to release this provider")

    def run(self, stop: threading.Event) -> None:
        """Keep the lease and look at the key, in turn, until *stop* and then ``ask``; make both anew when they were lost."""
        backoff = Backoff(0.2, 2.0)
        step, delay, is_well = _Step.LOOK, self._every / 2, True
        while True:
            self._alive()
            self._wait(delay)
            # This process may have stood still: a lease that is older than a beat is kept before anything else is asked.
            is_late = step is _Step.LOOK and self.seconds_left < self._ttl - self._every
            if self._asked.is_set() or is_late:
                self._asked.clear()
                step = _Step.BOTH
            if stop.is_set():
                return
            try:
                self._beat(stop, step)
            except OwnershipError as error:
                if not stop.is_set():
                    self._on_usurped(error)
                return
            except Transient as error:
                step, delay, is_well = _Step.BOTH, min(backoff.next(), self._every), False
                if not isinstance(error, Conflict):
                    self._report(str(error))
                continue
            except EcomputeError as error:
                # A record of another schema on our key: nothing that trying again at full speed would cure.
                step, delay = _Step.BOTH, self._every
                logger.error("cannot keep the host lease: %s", error)
                continue
            self._report("")
            # After an outage all hosts begin at one moment; they are not to beat at one moment from then on.
            delay = self._every / 2 * (1.0 if is_well else self._random())
            step, is_well = _Step.KEEP if step is _Step.LOOK else _Step.LOOK, True
            backoff.reset()

    def ask(self) -> None:
        """Have the next beat made now: a fenced write failed, or it is time to stop."""
        self._asked.set()

    def update(
        self, *, state: HostState | None = None, message: str | None = None, inventory: Mapping[str, Inventory] | None = None
    ) -> None:
        """Change what the host record says; written now if it can be, else with the next heartbeat.

        Args:
            inventory: by resource class, as Placement has it.
        """
        with self._lock:
            wanted = dataclasses.replace(
                self._record,
                state=self._record.state if state is None else state,
                message=self._record.message if message is None else message,
            )
            if inventory is not None:
                capacity = {name: offer.capacity for name, offer in inventory.items()}
                reserved = {name: offer.reserved for name, offer in inventory.items()}
                wanted = dataclasses.replace(wanted, capacity=capacity, reserved=reserved)
            if wanted == self._record:
                return
            if wanted.state is not self._record.state:
                self._unsaid |= self._noted(wanted.state.lower(), wanted.message)
            self._record, self._is_written = wanted, False
        try:
            self._write()
        except Transient as error:
            logger.debug("host record not written yet: %s", error)

    def resign(self) -> None:
        """Give the lease back, and the key with it; best effort, the lease ends by itself."""
        self._lives_until = 0.0
        try:
            if self._pen and self._created:
                with contextlib.suppress(Conflict):  # another one holds the key by now
                    self._store.commit(Transaction((self.fence(),), deletes=(self._key,), notes=self._noted("stopped")))
            self._store.revoke_lease(self._lease_id)
        except EcomputeError as error:
            logger.warning("could not give the host lease back, it ends by itself: %s", error)

    def _is_predecessor(self, holder: Versioned) -> bool:
        """Ours from before: this process (an answer was lost), or one on this machine that is dead, as our lock proves."""
        theirs = HostRecord.from_json(holder.value)
        mine = self._record
        return theirs.incarnation == mine.incarnation or (
            not self._has_served and theirs.boot_id == mine.boot_id and theirs.libvirt_host_uuid == mine.libvirt_host_uuid
        )

    def _noted_return(self, holder: Versioned | None) -> dict[str, str]:
        if self._has_served:
            return self._noted("back", "its heartbeat was lost")
        return self._noted("began", "after an end without a word" if holder is not None else "")

    def _noted(self, what: str, message: str = "") -> dict[str, str]:
        """What goes into the journal with the next write, if anything does."""
        if self._pen is None:
            return {}
        self._page += 1
        return self._pen.of_host(self._page, what, message)

    def _create(self, owner_revision: int, notes: Mapping[str, str]) -> None:
        asked_at = self._clock()
        lease = self._store.grant_lease(self._ttl)
        owner = Compare.unchanged(self._keys.owner(self._provider), owner_revision)
        with self._lock:
            change = Transaction(
                compares=(Compare.absent(self._key), owner), puts={self._key: self._record.to_json()}, lease_id=lease.id,
                notes={**self._unsaid, **notes},
            )  # fmt: skip
            self._store.commit(change)
            self._unsaid.clear()
            found = self._store.get(self._key)
            if found is None or found.lease_id != lease.id:
                raise Conflict("the host key went away as soon as it was made")
            self._lease_id, self._created, self._is_written = lease.id, found.create_revision, True
            self._lives_until = asked_at + lease.ttl_seconds
            self._has_served = True

    def _beat(self, stop: threading.Event, step: _Step) -> None:
        # Without a key the lease alone is worth nothing: making it may have failed the last time.
        if self._created and (step is _Step.LOOK or self._is_kept()) and (step is _Step.KEEP or not self._is_lost()):
            self._write()
        else:
            if self._created:
                logger.warning("the host lease was lost; making it anew")
            self._created, self._is_caught_up = 0, False
            self.claim(stop)
        if not self._is_caught_up:
            self._on_regained()
            self._is_caught_up = True

    def _is_kept(self) -> bool:
        """Have the lease last for a whole time to live from now; False where there is none any more."""
        asked_at = self._clock()
        left = self._store.refresh_lease(self._lease_id)
        if left > 0:
            self._lives_until = asked_at + left
        return left > 0

    def _is_lost(self) -> bool:
        """Whether the key went away under a living lease: deleted by hand, or the store was restored."""
        holder = self._store.get(self._key)
        return holder is None or holder.create_revision != self._created

    def _write(self) -> None:
        with self._lock:
            if not self._created or self._is_written:
                return
            puts, notes = {self._key: self._record.to_json()}, dict(self._unsaid)
            self._store.commit(Transaction((self.fence(),), puts, lease_id=self._lease_id, notes=notes))
            self._is_written = True
            self._unsaid.clear()
