"""Keeps the volumes of this host as etcd asks for them: one thread, one volume at a time.

Level-triggered as the instances' loop: it is told only *which* volume, gathers the facts, has ``volume_decisions`` name the
next step, does it and looks again. Every step can be repeated; what fails is tried again after the volume's backoff. What
wakes it: a change of the volume in etcd, a pass of the instance that has it, and a full look with each resync.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from uuid import UUID

from common.errors import Conflict, EcomputeError, InvalidSpec, NotLive, Transient, UnsupportedSchema
from common.keys import Keys
from common.logs import fields, log_context
from common.store import Compare, Store, Transaction, Versioned
from common.volume_records import VolumePhase, VolumePlace, VolumeSpec, VolumeStatus
from ecompute.hypervisor import Hypervisor
from ecompute.patience import Patience
from ecompute.placement_gate import Claims
from ecompute.statuses import Statuses
from ecompute.volume_book import VolumeBook, VolumeEntry
from ecompute.volume_decisions import Claimed, VolumeDecision, VolumeFacts, VolumeStep, decide_volume
from ecompute.volume_files import VolumeFiles
from ecompute.watcher import read_entry
from ecompute.workqueue import WorkQueue

logger = logging.getLogger(__name__)
MOST_STEPS = 8  # in one pass; more than any path through the table needs
LOOK_AGAIN_SECONDS = 5.0  # while a guest that is not ours has a volume that is to go


class VolumeKeeper:
    """The volumes of one provider.

    Args:
        placement: whose claims are of the consumer type VOLUME.
        statuses: what this host says of its instances.
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        is_live: whether the host lease certainly stands.
        now: wall time as ISO 8601 text, for people.
        is_instance: whether an instance of this host has that uuid.
        report: told of every service that was in the way.
    """

    def __init__(
        self, *, book: VolumeBook, files: VolumeFiles, hypervisor: Hypervisor, placement: Claims, store: Store, keys: Keys,
        provider: UUID, statuses: Statuses, fence: Callable[[], Compare], is_live: Callable[[], bool], now: Callable[[], str],
        orphan_after_seconds: float, is_instance: Callable[[UUID], bool], patience: Patience | None = None,
        report: Callable[[EcomputeError], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        self._book, self._files, self._hypervisor, self._placement = book, files, hypervisor, placement
        self._store, self._keys, self._provider, self._instances = store, keys, provider, statuses
        self._fence, self._is_live, self._now, self._report = fence, is_live, now, report
        self._orphan_after_seconds, self._is_instance = orphan_after_seconds, is_instance
        self._patience = patience or Patience()
        self._queue: WorkQueue[UUID] = WorkQueue(most_seconds=30.0)
        self._known: dict[UUID, VolumeStatus] = {}
        self._lost_claims: set[UUID] = set()  # not in the last list of all claims; to be asked for
        self._steps: dict[VolumeStep, Callable[[UUID, VolumeEntry | None, VolumeFacts], VolumeFacts]] = {
            VolumeStep.MAKE: self._make,
            VolumeStep.ASSERT_CLAIM: self._assert_claim,
            VolumeStep.FREE: self._free,
            VolumeStep.REMOVE: self._remove,
            VolumeStep.RELEASE: self._release,
            VolumeStep.FORGET: self._forget,
        }

    # -- what wakes it -----------------------------------------------------------------------------------------------------

    def wake(self, volume: UUID) -> None:
        """Have *volume* looked at soon."""
        self._queue.add(volume)

    def instance_was_looked_at(self, instance: UUID) -> None:
        """Its volumes may be free now."""
        for volume in self._book.attached_to(instance):
            self._queue.add(volume)

    def claims_without_volumes(self, claims: Mapping[UUID, Mapping[str, int]]) -> dict[UUID, Mapping[str, int]]:
        """Look at everything, by all *claims* on this provider; those that are not of its volumes."""
        volumes = self._book.all()
        rest = {consumer: held for consumer, held in claims.items() if consumer not in volumes}
        self._lost_claims = set(volumes) - claims.keys()
        alone = {consumer for consumer in rest if not self._is_instance(consumer)}
        for consumer in alone | self._patience.orphans():
            self._patience.orphan_seconds(consumer, is_orphan=consumer in alone)
        for uuid in alone | volumes.keys():
            self._queue.add(uuid)
        return rest

    def run(self, stop: threading.Event) -> None:
        """Serve until *stop* and then ``close``."""
        while not stop.is_set() and (volume := self._queue.get()) is not None:
            try:
                with log_context(volume=str(volume)):
                    self._work(volume)
            finally:
                self._queue.done(volume)

    def close(self) -> None:
        self._queue.close()

    def _work(self, volume: UUID) -> None:
        try:
            self.reconcile(volume)
        except EcomputeError as error:
            at_least = error.retry_after or 0.0 if isinstance(error, Transient) else LOOK_AGAIN_SECONDS
            delay = self._queue.add_failed(volume, at_least_seconds=at_least)
            is_news = not self._report(error) and self._queue.failures(volume) > 1
            level = logging.WARNING if is_news else logging.DEBUG
            logger.log(level, "%s: trying again", error, extra=fields(delay_seconds=round(delay, 1)))
        except Exception:  # a bug must not keep the other volumes from being served
            self._queue.add_failed(volume, at_least_seconds=LOOK_AGAIN_SECONDS)
            logger.exception("this is a bug, please report it")
        else:
            self._queue.forget(volume)

    # -- one pass ----------------------------------------------------------------------------------------------------------

    def reconcile(self, volume: UUID) -> None:
        """Take steps for *volume* until none is left.

        Raises:
            EcomputeError: it must be looked at again.
        """
        entry = self._book.get(volume)
        if entry is not None and entry.spec is None:
            logger.warning("a volume that cannot be read is left alone: %s", entry.problem)
            return
        spec = entry.spec if entry else None
        facts = self._gather(volume, entry)
        for _ in range(MOST_STEPS):
            decision = decide_volume(spec, facts)
            if decision.step is VolumeStep.NONE:
                break
            try:
                facts = self.run_step(decision.step, volume, entry, facts)
            except EcomputeError as error:
                if entry is not None and not isinstance(error, (Conflict, NotLive)):
                    self._publish(volume, entry, dataclasses.replace(decision, message=f"{decision.step}: {error}"), facts)
                raise
            logger.info("step", extra=fields(step=decision.step))
            if decision.step in (VolumeStep.FREE, VolumeStep.FORGET):
                return  # the change of its keys brings the next pass
        if entry is not None:
            self._publish(volume, entry, decision, facts)
            if decision.phase is VolumePhase.DELETING or (decision.phase is VolumePhase.DETACHING and facts.is_at_rest):
                self._queue.add_after(volume, LOOK_AGAIN_SECONDS)

    def run_step(self, step: VolumeStep, volume: UUID, entry: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        """Do *step*; the facts afterwards. Only a live host does anything, and nothing on the word of a cache.

        Raises:
            Conflict: the volume is not as it was decided upon.
        """
        if not self._is_live():
            raise NotLive("the host lease is not certain; nothing new is begun", retry_after=1.0)
        found = self._store.get(self._keys.volume(self._provider, volume))
        if (found.mod_revision if found else 0) != (entry.revision if entry else 0):
            raise Conflict(f"the volume {volume} changed meanwhile")
        return self._steps[step](volume, entry, facts)

    def _gather(self, volume: UUID, entry: VolumeEntry | None) -> VolumeFacts:
        file_is_there, spec = self._files.exists(volume), entry.spec if entry else None
        if spec is None:
            return self._facts_without_spec(volume, file_is_there)
        is_wanted, is_at_rest, _ = self._attachment(spec)
        was_made = self._status(volume).was_made
        is_doubtful = volume in self._lost_claims or (not file_is_there and not was_made)
        needs_users = spec.desired == "deleted" or (spec.attached_to is not None and not is_wanted)
        return VolumeFacts(
            file_is_there, was_made, self._users(volume) if needs_users else frozenset(), is_wanted, is_at_rest,
            self._claimed(volume) if is_doubtful else Claimed.UNASKED,
        )  # fmt: skip

    def _facts_without_spec(self, volume: UUID, file_is_there: bool) -> VolumeFacts:
        self._known.pop(volume, None)
        if not self._patience.is_orphan(volume):
            return VolumeFacts(file_is_there)
        consumer = self._placement.consumer(volume)
        if consumer is None or not self._placement.is_ours(consumer) or self._provider not in consumer.allocations:
            return VolumeFacts(file_is_there)  # an instance's, or another's: not for us to give back
        stands = self._patience.orphan_stands_at(volume, consumer.generation)
        seconds = self._patience.orphan_seconds(volume, is_orphan=True)
        is_old = stands and seconds > self._orphan_after_seconds
        return VolumeFacts(file_is_there, claim=Claimed.PRESENT, claim_is_orphaned=is_old)

    def _attachment(self, spec: VolumeSpec) -> tuple[bool, bool, Compare | None]:
        """Whether the instance's spec names the volume, whether nobody works on an earlier one, and that spec as it is."""
        if spec.attached_to is None:
            return False, True, None
        key = self._keys.spec(self._provider, spec.attached_to)
        item = self._store.get(key)
        if item is None:
            return False, True, Compare.absent(key)
        known = read_entry(item).spec
        is_wanted = known is None or any(volume.uuid == spec.uuid for volume in known.volumes)
        status = self._instances.get(spec.attached_to)
        is_at_rest = status is not None and status.spec_revision >= item.mod_revision
        return is_wanted, is_at_rest, Compare.unchanged(key, item.mod_revision)

    def _users(self, volume: UUID) -> frozenset[UUID]:
        """The domains that have its file, whoever made them."""
        path, users = str(self._files.path(volume)), set()
        for domain in self._hypervisor.list():
            disks = self._hypervisor.disks(domain.uuid)
            if any(disk.path == path for disk in (*disks.defined, *disks.live)):
                users.add(domain.uuid)
        return frozenset(users)

    def _claimed(self, volume: UUID) -> Claimed:
        consumer = self._placement.consumer(volume)
        is_here = consumer is not None and self._provider in consumer.allocations
        return Claimed.PRESENT if is_here else Claimed.ABSENT

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _make(self, volume: UUID, entry: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        self._files.make(volume, _spec(entry).size_gib)
        return dataclasses.replace(facts, file_is_there=True)

    def _assert_claim(self, volume: UUID, entry: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        self._placement.assert_allocation(volume, {self._provider: _spec(entry).resources})
        self._lost_claims.discard(volume)
        return dataclasses.replace(facts, claim=Claimed.PRESENT)

    def _free(self, volume: UUID, entry: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        """Note that nobody has it: the instance's spec does not name it, which is compared, and no domain has it."""
        spec = _spec(entry)
        is_wanted, is_at_rest, as_read = self._attachment(spec)
        if is_wanted or not is_at_rest or as_read is None or self._users(volume):
            raise Conflict(f"the volume {spec.name} is in use again")
        key = self._keys.volume(self._provider, volume)
        compares = (Compare.unchanged(key, entry.revision if entry else 0), as_read, self._fence())
        self._store.commit(Transaction(compares, {key: dataclasses.replace(spec, attached_to=None).to_json()}))
        return facts

    def _remove(self, volume: UUID, _: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        if users := self._users(volume):
            raise Conflict(f"the volume {volume} is in use by {', '.join(map(str, users))}")
        self._files.remove(volume)
        return dataclasses.replace(facts, file_is_there=False)

    def _release(self, volume: UUID, _: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        consumer = self._placement.consumer(volume)
        if consumer is not None and self._placement.is_ours(consumer) and self._provider in consumer.allocations:
            self._placement.release(volume, consumer.generation)
        self._patience.orphan_seconds(volume, is_orphan=False)
        return dataclasses.replace(facts, claim=Claimed.ABSENT)

    def _forget(self, volume: UUID, entry: VolumeEntry | None, facts: VolumeFacts) -> VolumeFacts:
        """Delete its keys at once; the last act of a deletion. The name goes where it is this volume's."""
        spec, keys = _spec(entry), self._keys
        name, place = keys.volume_name(spec.name), str(VolumePlace(self._provider, volume))
        own = [name] if (found := self._store.get(name)) is not None and found.value == place else []
        key = keys.volume(self._provider, volume)
        compares = [Compare.unchanged(key, entry.revision if entry else 0), self._fence()]
        compares += [Compare.holds(held, place) for held in own]
        deletes = (key, keys.volume_status(self._provider, volume), *own)
        self._store.commit(Transaction(tuple(compares), deletes=deletes))
        self._known.pop(volume, None)
        return facts

    # -- what is said ------------------------------------------------------------------------------------------------------

    def _status(self, volume: UUID) -> VolumeStatus:
        """What was last said of it, by this process or one before."""
        if volume not in self._known:
            item = self._store.get(self._keys.volume_status(self._provider, volume))
            self._known[volume] = _read_status(item)
        return self._known[volume]

    def _publish(self, volume: UUID, entry: VolumeEntry, decision: VolumeDecision, facts: VolumeFacts) -> None:
        if decision.phase is None:
            return
        before = self._status(volume)
        after = VolumeStatus(
            decision.phase, decision.message, entry.revision, before.was_made or facts.file_is_there, before.updated_at
        )
        if after == before:
            return
        key, spec = self._keys.volume_status(self._provider, volume), self._keys.volume(self._provider, volume)
        item = self._store.get(key)
        after = dataclasses.replace(after, updated_at=self._now())
        compares = (
            self._fence(),
            Compare.unchanged(spec, entry.revision),
            Compare.unchanged(key, item.mod_revision if item else 0),
        )
        self._store.commit(Transaction(compares, {key: after.to_json()}))
        self._known[volume] = after


def _spec(entry: VolumeEntry | None) -> VolumeSpec:
    if entry is None or entry.spec is None:
        raise Conflict("the volume is gone")
    return entry.spec


def _read_status(item: Versioned | None) -> VolumeStatus:
    if item is not None:
        try:
            return VolumeStatus.from_json(item.value)
        except (InvalidSpec, UnsupportedSchema) as error:
            # Whether it was ever made is not known: an empty file could take the place of data.
            logger.warning("the status of a volume cannot be read: %s", error, extra=fields(key=item.key))
            return VolumeStatus(VolumePhase.PENDING, was_made=True)
    return VolumeStatus(VolumePhase.PENDING)
