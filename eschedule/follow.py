"""Waiting for instances to become what was asked for, across moves between hosts, by watching etcd.

``judge`` is pure: what one view of an instance means for a goal. ``Follower`` keeps the views: the spec, the status and the
host key at the provider where an instance lives, which ``instances/<uuid>`` says. Statuses are watched; the rest, which seldom
changes, is read again now and then, and at once where a status speaks of a spec that we do not know. Whoever asks gets every
new view, for its progress line.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from common.disk_requests import NOT_YET, Applied
from common.errors import EcomputeError, Permanent
from common.keys import Keys
from common.model import Desired, HostRecord, InstanceKey, InstanceSpec, InstanceStatus, OwnerRecord, Phase
from common.retry import Deadline
from common.store import Store, Versioned
from eschedule.board import Board, Items

TICK_SECONDS = 1.0  # how often an unchanged view is handed out again, for the clock on a progress line
HOSTS_WATCHED_AT_MOST = 8  # one by one; of a set on more of them all statuses of the cluster are watched, by one watch
_STUCK = (Phase.HELD, Phase.QUARANTINED)


class Goal(enum.StrEnum):
    """What is waited for."""

    RUNNING = "running"
    READY = "ready"
    REBOOTED = "rebooted"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    GONE = "gone"
    RESTORED = "restored"  # its disk went back to a snapshot, and it is up again where it is to be
    REBUILT = "rebuilt"  # likewise with a new disk
    HEALTHY = "healthy"  # running, and nothing is noted against it: only ``awaiting`` knows
    APPLIED = "applied"  # the host has seen the newest spec, whatever state that asks for


_WANTED = {
    Goal.RUNNING: Desired.RUNNING, Goal.READY: Desired.RUNNING, Goal.REBOOTED: Desired.RUNNING,
    Goal.STOPPED: Desired.STOPPED, Goal.GONE: Desired.DELETED, Goal.PAUSED: Desired.PAUSED,
    Goal.SUSPENDED: Desired.SUSPENDED,
}  # fmt: skip


class Ending(enum.Enum):
    """How a wait ended."""

    REACHED = "reached"
    FAILED = "failed"
    TIMED_OUT = "timed out"


@dataclass(frozen=True)
class View:
    """An instance at one moment.

    Args:
        host: the host's name; None while it has no heartbeat.
        known_host: the name that the same host had while it had one, or enrolled with; "" where nothing is known of it.
        status: what the host said last; ``is_fresh`` tells whether it speaks of this very spec.
    """

    uuid: UUID
    name: str
    provider: UUID
    host: str | None
    spec: InstanceSpec
    spec_revision: int
    status: InstanceStatus | None
    known_host: str = ""

    @property
    def is_fresh(self) -> bool:
        return self.status is not None and self.status.spec_revision >= self.spec_revision

    @property
    def where(self) -> str:
        """The host, for people."""
        return self.host or f"{self.known_host or f'the host of provider {self.provider}'}, which has no heartbeat"


@dataclass(frozen=True)
class Outcome:
    """The end of a wait: *message* says why the goal was not reached, *view* is the last there was."""

    ending: Ending
    message: str = ""
    view: View | None = None


def judge(goal: Goal, view: View) -> Outcome | None:
    """What *view* means for *goal*; None as long as it is under way."""
    if not _is_wanted(goal, view.spec.desired):
        return Outcome(Ending.FAILED, f"somebody asked meanwhile that it be {view.spec.desired}", view)
    status = view.status
    if status is None or not view.is_fresh:
        return None
    if goal in _DISK_GOALS and (problem := _trouble(goal, view.spec, status)):
        return Outcome(Ending.FAILED, problem, view)
    if is_reached(goal, view.spec, status):
        return Outcome(Ending.REACHED, view=view)
    problem = _why_not(goal, status)
    return Outcome(Ending.FAILED, problem, view) if problem else None


def _why_not(goal: Goal, status: InstanceStatus) -> str:
    """Why *goal* is not reached any more, or not for now, as its host says it; "" as long as it is under way."""
    if status.phase in _STUCK or (goal is not Goal.GONE and status.phase in _ENDS[goal]):
        return because(status)
    if goal is Goal.SUSPENDED and status.phase in (Phase.RUNNING, Phase.PAUSED) and status.reason:
        return f"its memory was not saved, and is tried again every minute; it is {because(status)}"
    return ""


def _is_wanted(goal: Goal, desired: Desired) -> bool:
    """Whether what is *desired* by now still leads to *goal*."""
    return desired is not Desired.DELETED if goal in (Goal.APPLIED, *_DISK_GOALS) else desired is _WANTED[goal]


def is_reached(goal: Goal, spec: InstanceSpec, status: InstanceStatus) -> bool:
    """Whether *status*, which speaks of this very *spec*, is what *goal* means."""
    if goal is Goal.APPLIED:
        return status.phase not in _STUCK
    if goal in _DISK_GOALS:
        applied, request = _of_disk(goal, spec, status)
        is_up = status.phase is Phase.RUNNING and status.booted >= spec.boot_request
        return applied.request >= request and (is_up if spec.desired is Desired.RUNNING else status.phase is Phase.STOPPED)
    if goal is Goal.REBOOTED:  # a guest that has not been shut down yet is running, too
        return status.phase is Phase.RUNNING and status.booted >= spec.boot_request
    if goal is Goal.READY:  # what it said before its last start says nothing of this one
        return status.phase is Phase.RUNNING and status.ready is not None and status.ready.boot_request >= spec.boot_request
    return goal.value == status.phase.value.lower()


def _of_disk(goal: Goal, spec: InstanceSpec, status: InstanceStatus) -> tuple[Applied, int]:
    """What the host dealt with last of the kind that *goal* waits for, and the number of what is asked for."""
    if goal is Goal.RESTORED:
        return status.restored or NOT_YET, spec.restore_request
    return status.rebuilt or NOT_YET, spec.rebuild_request


def _trouble(goal: Goal, spec: InstanceSpec, status: InstanceStatus) -> str:
    """Why *goal* is not reached any more although the host has dealt with it, "" as long as it may be."""
    applied, request = _of_disk(goal, spec, status)
    if applied.request < request:
        return ""
    if applied.problem:
        return f"its disk was not {goal}, and is as it was ({applied.problem}); it is {because(status)}"
    is_down = spec.desired is Desired.RUNNING and status.phase in _STANDS
    return f"its disk was {goal}, and now it is {because(status)}" if is_down else ""


_DISK_GOALS = (Goal.RESTORED, Goal.REBUILT)
_STANDS = (Phase.STOPPED, Phase.PAUSED, Phase.SUSPENDED)
_NONE = (Phase.FAILED, Phase.REFUSED)
# A phase that does not change by itself any more, so that waiting on would be in vain.
_ENDS = {
    Goal.RUNNING: (*_NONE, *_STANDS),
    Goal.READY: (*_NONE, *_STANDS),
    Goal.REBOOTED: (*_NONE, *_STANDS),
    Goal.STOPPED: _NONE,
    Goal.PAUSED: (*_NONE, Phase.STOPPED),
    Goal.SUSPENDED: (*_NONE, Phase.STOPPED),
    Goal.RESTORED: _NONE,
    Goal.REBUILT: _NONE,
    Goal.APPLIED: (),
}


def because(status: InstanceStatus) -> str:
    """Why an instance is in its phase, as the host says it."""
    reason = ": ".join(part for part in (status.failure or status.reason, status.message or status.failure_message) if part)
    return f"{status.phase} ({reason})" if reason else str(status.phase)


class Follower:
    """Waits for instances.

    Args:
        on_view: called with each new view; where one instance alone is followed also every second with an unchanged one. It
            must not raise.
        judge: what a view means for a goal.
    """

    def __init__(
        self, store: Store, keys: Keys, *, on_view: Callable[[View], None] = lambda _view: None,
        clock: Callable[[], float] = time.monotonic, judge: Callable[[Goal, View], Outcome | None] = judge,
    ) -> None:  # fmt: skip
        self._judge_view = judge
        self._enrolled: dict[UUID, str] = {}  # names of hosts without a heartbeat
        self._store = store
        self._keys = keys
        self._on_view = on_view
        self._clock = clock

    def follow(self, instance: UUID, goal: Goal, wait_seconds: float, *, provider: UUID | None = None) -> Outcome:
        """Wait until *instance* has reached *goal*, cannot reach it any more, or *wait_seconds* are over.

        Args:
            provider: where the instance was a moment ago, which spares a question.

        Raises:
            StoreUnavailable: etcd did not answer when it was asked where the instance is.
            UnsupportedSchema: a newer version wrote the instance's records.
            Permanent: the instance's records contradict each other.
        """
        found = self.follow_all({instance: provider}, goal, wait_seconds)[instance]
        if isinstance(found, EcomputeError):
            raise found
        return found

    def follow_all(
        self, instances: Mapping[UUID, UUID | None], goal: Goal, wait_seconds: float
    ) -> dict[UUID, Outcome | EcomputeError]:
        """``follow`` for several at once, each with its provider as far as known; what it raises for one is its entry here.

        Raises:
            StoreUnavailable: etcd did not answer when it was asked where the instances are.
        """
        deadline = Deadline(wait_seconds, self._clock)
        wait = _Wait(instances, goal)
        wait.providers |= self._places([instance for instance, provider in instances.items() if provider is None])
        while True:
            for instance in wait.pending():
                if instance not in wait.providers:
                    wait.endings[instance] = self._gone(instance, goal, wait.views.get(instance))
            if not wait.pending():
                return wait.endings
            if not self._follow(wait, deadline):
                return wait.timed_out()

    def _places(self, instances: Iterable[UUID]) -> dict[UUID, UUID]:
        """The providers of those of *instances* that are there."""
        by_key = {self._keys.instance(instance): instance for instance in instances}
        found = self._store.get_many(by_key) if by_key else {}
        return {by_key[key]: InstanceKey.from_json(item.value).provider for key, item in found.items()}

    def _follow(self, wait: _Wait, deadline: Deadline) -> bool:
        """Follow those pending as long as they stay where they are; False where *deadline* came first."""
        keys_of = {instance: self._keys_of(instance, wait.providers[instance]) for instance in wait.pending()}
        statuses = {keys[2] for keys in keys_of.values()}
        hosts = {wait.providers[instance] for instance in keys_of}
        watched = statuses if len(statuses) == 1 else {self._keys.statuses(provider) for provider in hosts}
        watched = watched if len(watched) <= HOSTS_WATCHED_AT_MOST else {self._keys.statuses()}
        wait.seen.clear()
        with Board(self._store, (key for keys in keys_of.values() for key in keys), watched) as board:
            for items in board.changes(deadline, TICK_SECONDS):
                if self._look(wait, keys_of, items, board):
                    return True
        return False

    def _look(self, wait: _Wait, keys_of: Mapping[UUID, tuple[str, ...]], items: Items, board: Board) -> bool:
        """Judge every instance that changed; whether none is left to be followed where it was."""
        is_any_elsewhere = False
        for instance in wait.pending():
            found = tuple(items.get(key) for key in keys_of[instance])
            if wait.seen.get(instance) == found:
                if len(keys_of) == 1:
                    self._on_view(wait.views[instance])
                continue
            try:
                is_there = self._judge(wait, instance, found, board)
            except EcomputeError as error:
                wait.endings[instance] = error
                continue
            is_any_elsewhere |= not is_there
        # What several share, as a host key, stays; an instance's own keys need not be read any more.
        board.forget(key for instance in keys_of if instance in wait.endings for key in keys_of[instance][:3])
        return is_any_elsewhere or not wait.pending()

    def _judge(self, wait: _Wait, instance: UUID, found: Sequence[Versioned | None], board: Board) -> bool:
        """Note what *found*, the keys of *instance*, means; False where it is not at this provider any more.

        Raises:
            EcomputeError: it cannot be followed.
        """
        place, spec_item, status_item, host_item = found
        provider = wait.providers[instance]
        known = InstanceKey.from_json(place.value) if place else None
        if known is None:  # it is read together with the spec, and both went at once
            del wait.providers[instance]
            return False
        if spec_item is None or known.provider != provider:
            board.read_again()
            return self._elsewhere(wait, instance)
        last = wait.views.get(instance)
        if status_item is None and last and last.status and instance not in wait.puzzling:
            # With its status goes its spec, by a move or the end: which the board reads at once: only then it means anything.
            wait.puzzling.add(instance)
            return True
        wait.puzzling.discard(instance)
        view = View(
            instance, known.name, provider, host := host_name(host_item),
            InstanceSpec.from_json(spec_item.value), spec_item.mod_revision,
            InstanceStatus.from_json(status_item.value) if status_item else None,
            host or (last.known_host if last and last.provider == provider else self._enrolled_as(provider)),
        )  # fmt: skip
        wait.views[instance] = view
        self._on_view(view)
        if view.status and view.status.spec_revision > view.spec_revision:
            board.read_again()  # it speaks of a change that we have not seen, as that it be stopped
            return True
        wait.seen[instance] = tuple(found)
        if outcome := self._judge_view(wait.goal, view):
            wait.endings[instance] = outcome
        return True

    def _enrolled_as(self, provider: UUID) -> str:
        """The name of a host without a heartbeat, for people; asked once, however many instances are there."""
        if provider not in self._enrolled:
            try:
                item = self._store.get(self._keys.owner(provider))
                self._enrolled[provider] = OwnerRecord.from_json(item.value).name if item else ""
            except EcomputeError:
                self._enrolled[provider] = ""
        return self._enrolled[provider]

    def _elsewhere(self, wait: _Wait, instance: UUID) -> bool:
        """Look where *instance* is, whose keys are not all where they were; whether they are after all, as a new look says.

        Raises:
            Permanent: the key that says where it is names this provider, but its spec is not there.
        """
        provider = wait.providers[instance]
        keys = self._keys_of(instance, provider)[:2]
        found = self._store.get_many(keys)
        if keys[0] not in found:
            del wait.providers[instance]
            return False
        now = InstanceKey.from_json(found[keys[0]].value).provider
        if now == provider and keys[1] not in found:
            # Both change in one transaction, and were read by one.
            raise Permanent(f"{keys[0]} is there, but the spec that it points to is missing; see: eschedule audit", "Damaged")
        wait.providers[instance] = now
        return now == provider

    def _keys_of(self, instance: UUID, provider: UUID) -> tuple[str, str, str, str]:
        keys = self._keys
        return keys.instance(instance), keys.spec(provider, instance), keys.status(provider, instance), keys.host(provider)

    def _gone(self, instance: UUID, goal: Goal, last: View | None) -> Outcome:
        if goal is not Goal.GONE:
            return Outcome(Ending.FAILED, "it was destroyed meanwhile", last)
        if last is None:
            return Outcome(Ending.REACHED)
        keys = self._keys
        left = self._store.get_many(
            [keys.spec(last.provider, instance), keys.status(last.provider, instance), keys.name(last.name)]
        )
        # Whoever took the name since has it by right.
        names = [key for key, item in left.items() if key != keys.name(last.name) or item.value == str(instance)]
        if names:
            return Outcome(Ending.FAILED, f"it is gone but for {', '.join(names)}", last)
        return Outcome(Ending.REACHED, view=last)


class _Wait:
    """How far one wait for several instances has come."""

    def __init__(self, instances: Mapping[UUID, UUID | None], goal: Goal) -> None:
        self.goal = goal
        self.instances = tuple(instances)
        self.providers = {instance: provider for instance, provider in instances.items() if provider is not None}
        self.views: dict[UUID, View] = {}
        self.seen: dict[UUID, tuple[Versioned | None, ...]] = {}  # the items that the view is made of
        self.puzzling: set[UUID] = set()  # whose status has just gone
        self.endings: dict[UUID, Outcome | EcomputeError] = {}

    def pending(self) -> list[UUID]:
        return [instance for instance in self.instances if instance not in self.endings]

    def timed_out(self) -> dict[UUID, Outcome | EcomputeError]:
        """The endings, where those still pending have run out of time."""
        late = {instance: Outcome(Ending.TIMED_OUT, view=self.views.get(instance)) for instance in self.pending()}
        return {**self.endings, **late}


def host_name(item: Versioned | None) -> str | None:
    """The name in a host key; a record that cannot be read still is a heartbeat."""
    if item is None:
        return None
    try:
        return HostRecord.from_json(item.value).name
    except EcomputeError:
        return item.key.rpartition("/")[2]
