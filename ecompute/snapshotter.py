"""Answers the letters about snapshots of an instance's disk: takes them, lists them, gives them up.

A disk has one worker: whoever takes or gives up a snapshot has the instance in hand as a worker of the queue would have it
(``hold``), so that nothing starts, stops, rebuilds or destroys it meanwhile. Everything is looked at anew then, the spec by a
linearizable read. A guest that is up goes on: QEMU takes the snapshot, with the guest's file systems held still where its agent
does that. It is known that they may be before they are, so that a process which dies in between leaves none so (``Step.THAW``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from common.disk_snapshots import (
    CREATE,
    KINDS,
    LIST,
    MOST_SNAPSHOTS,
    Consistency,
    SnapshotAnswer,
    Trouble,
    parse_snapshot_name,
    tag_of,
)
from common.errors import ConfigError, EcomputeError, NotLive, Permanent, Transient
from common.findings import Letter
from common.keys import Keys
from common.logs import fields, log_context
from common.model import Desired, InstanceSpec
from common.store import Store
from ecompute import disk_snapshots
from ecompute.bounded import within
from ecompute.hypervisor import Domain, Frozen, PowerState
from ecompute.qcow2_snapshots import DiskFile
from ecompute.workqueue import WorkQueue
from ecompute.world import World

logger = logging.getLogger(__name__)
HOLD_SECONDS = 10.0  # that a worker may still have the instance in hand
QEMU_SECONDS = 30.0  # it writes tables, after what it is in the middle of
THAW_TRIES = 2
SPARE_BYTES = 64 << 20


class _Not(Exception):
    """It is not done, for this reason."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble, self.message = trouble, message


class Snapshotter:
    """The snapshots of one host's instances.

    Args:
        queue: of the workers, which hands out each instance to one at a time.
        is_live: whether the host lease certainly stands.
    """

    def __init__(
        self, world: World, store: Store, keys: Keys, *, provider: UUID, host: str, queue: WorkQueue[UUID],
        is_live: Callable[[], bool], cluster_id: Callable[[], int],
    ) -> None:  # fmt: skip
        self._world, self._store, self._keys, self._provider, self._host = world, store, keys, provider, host
        self._queue, self._is_live, self._cluster_id = queue, is_live, cluster_id

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*; None where it is of another kind.

        Raises:
            ValueError: it names no instance or no snapshot.
        """
        if letter.kind not in KINDS:
            return None
        uuid = UUID(_one(letter, "instance"))
        with log_context(instance=str(uuid)):
            return self._answer(letter, uuid).to_json()

    def _answer(self, letter: Letter, uuid: UUID) -> SnapshotAnswer:
        answer = SnapshotAnswer(self._provider, self._host)
        try:
            if letter.kind != LIST:
                self._change(letter, uuid)
            found = self._world.disks.file(uuid)
        except _Not as no:
            return dataclasses.replace(answer, trouble=no.trouble, message=no.message)
        except Transient as error:
            return dataclasses.replace(answer, trouble=Trouble.BUSY, message=str(error))
        except EcomputeError as error:
            return dataclasses.replace(answer, trouble=Trouble.REFUSED, message=str(error))
        return dataclasses.replace(
            answer, snapshots=found.snapshots, disk_bytes=found.virtual_bytes, file_bytes=found.file_bytes,
            free_bytes=self._world.disks.free_bytes(),
        )  # fmt: skip

    def _change(self, letter: Letter, uuid: UUID) -> None:
        """Take the snapshot, or give it up; where that is so already nothing is done."""
        name = _one(letter, "name")
        with self._held(uuid):
            domain = self._checked(uuid)
            disk = self._world.disks.disk_path(uuid)
            found = self._world.disks.file(uuid)
            tag = found.tag(name)
            if letter.kind != CREATE:
                if tag is not None:
                    self._drop(uuid, disk, tag, domain)
                    logger.info("snapshot removed", extra=fields(snapshot=name))
                return
            request = UUID(_one(letter, "request"))
            if tag is None:
                self._check_room(found, disk)
                how = self._take(uuid, disk, _checked_name(name), request, domain)
                logger.info("snapshot taken", extra=fields(snapshot=name, consistency=how))
            elif tag not in {tag_of(name, how, request) for how in Consistency}:
                raise _Not(Trouble.TAKEN, f"there is a snapshot {name} already")

    @contextlib.contextmanager
    def _held(self, uuid: UUID) -> Iterator[None]:
        """Have the instance in hand, with the right to change something of it."""
        if not self._queue.hold(uuid, HOLD_SECONDS):
            raise _Not(Trouble.BUSY, f"its host is busy with it for more than {HOLD_SECONDS:g} s, as with an image; try again")
        try:
            if not self._is_live():
                raise NotLive("the host lease is not certain; nothing is changed", retry_after=1.0)
            yield
        finally:
            self._queue.add(uuid)  # whatever happened meanwhile
            self._queue.done(uuid)

    def _checked(self, uuid: UUID) -> Domain:
        """The domain of an instance whose disk may be changed now: up or off."""
        item = self._store.get(self._keys.spec(self._provider, uuid))
        if item is None:
            raise _Not(Trouble.NOT_FOUND, "it is not on this host, or not any more")
        spec = InstanceSpec.from_json(item.value)
        domain = self._world.hypervisor.get(uuid)
        stamp = domain.stamp if domain else None
        if domain and (stamp is None or stamp.provider != self._provider):
            raise _Not(Trouble.REFUSED, "a domain with its uuid is there that etcd-compute did not make; it is not touched")
        if stamp and (stamp.cluster_id != self._cluster_id() or stamp.spec_revision > item.mod_revision):
            raise _Not(
                Trouble.REFUSED,
                "etcd is older than its guest (restored or wiped); nothing is touched until you: eschedule adopt",
            )
        noted = self._world.disks.notes.read(uuid)
        if spec.desired is Desired.DELETED or spec.disk_request(noted.restored, noted.rebuilt):
            what = "destroyed" if spec.desired is Desired.DELETED else "reverted or rebuilt"
            raise _Not(Trouble.BUSY, f"it is about to be {what}")
        if not self._world.disks.exists(uuid):
            raise _Not(Trouble.REFUSED, "it has no disk on its host")
        if domain is None or not (domain.is_active or (stamp and stamp.booted)):
            raise _Not(Trouble.BUSY, "it has not run yet")
        if domain.power_state in (PowerState.SHUTTING_DOWN, PowerState.CRASHED):
            raise _Not(Trouble.BUSY, f"its guest is {domain.power_state}; try again once it is up or off")
        return domain

    def _check_room(self, found: DiskFile, disk: Path) -> None:
        """What is in the file now stays, and the guest may write all of it anew."""
        if len(found.tags) >= MOST_SNAPSHOTS:
            raise _Not(
                Trouble.REFUSED, f"it has {len(found.tags)} snapshots, at most {MOST_SNAPSHOTS} are possible: remove some first"
            )
        free, needed = self._world.disks.free_bytes(), found.file_bytes + SPARE_BYTES
        if free < needed:
            raise _Not(
                Trouble.REFUSED,
                f"its disk's file holds {_mib(found.file_bytes)} MiB, which its guest may write anew while the snapshot keeps "
                f"them, and {_mib(free)} MiB are free at {disk.parent.parent}: free space there, or remove snapshots",
            )

    def _take(self, uuid: UUID, disk: Path, name: str, request: UUID, domain: Domain) -> Consistency:
        """Take it; what a guest will find that goes back to it."""
        if not domain.is_active:
            # What a suspended guest has not written yet is in its memory, and in no snapshot.
            how = Consistency.CRASH if domain.has_saved_memory else Consistency.OFF
            disk_snapshots.take(disk, tag_of(name, how, request))
            return how
        hypervisor = self._world.hypervisor
        with self._still(uuid, is_asked=domain.power_state is PowerState.RUNNING) as frozen:
            how = Consistency.FROZEN if frozen is Frozen.YES else Consistency.CRASH
            tag = tag_of(name, how, request)
            within(QEMU_SECONDS, f"snapshot {name}", lambda: hypervisor.take_snapshot(uuid, disk, tag))
        if tag not in self._world.disks.file(uuid).tags:
            raise Permanent("QEMU said that the snapshot is there, and it is not; please report it", "SnapshotFailed")
        return how

    def _drop(self, uuid: UUID, disk: Path, tag: str, domain: Domain) -> None:
        if not domain.is_active:
            disk_snapshots.drop(disk, tag)
            return
        hypervisor = self._world.hypervisor
        within(QEMU_SECONDS, f"snapshot {tag}", lambda: hypervisor.drop_snapshot(uuid, disk, tag))

    @contextlib.contextmanager
    def _still(self, uuid: UUID, *, is_asked: bool) -> Iterator[Frozen]:
        """Hold the guest's file systems still where it does that; it may write again afterwards in every case."""
        if not is_asked:  # a guest that is paused hears nothing
            yield Frozen.NO
            return
        notes, frozen = self._world.disks.notes, Frozen.UNCERTAIN
        notes.set_frozen(uuid)
        try:
            frozen = self._world.hypervisor.freeze(uuid)
            yield frozen
        finally:
            if frozen is Frozen.NO or self._thaw(uuid):
                notes.clear_frozen(uuid)

    def _thaw(self, uuid: UUID) -> bool:
        """Whether the guest may write again; else the note stays, and the worker goes on trying."""
        for _ in range(THAW_TRIES):
            try:
                self._world.hypervisor.thaw(uuid)
            except EcomputeError as error:
                logger.warning("the guest may still be held still; it is let go as soon as it answers: %s", error)
            else:
                return True
        return False


def _one(letter: Letter, name: str) -> str:
    (value,) = letter.arguments.get(name, ())
    return value


def _checked_name(name: str) -> str:
    try:
        return parse_snapshot_name(name)
    except ConfigError as error:
        raise _Not(Trouble.REFUSED, str(error)) from error


def _mib(count: int) -> int:
    return -(-count // (1 << 20))
