"""Waiting for an instance to become what was asked for, across moves between hosts, by watching etcd: nothing is polled.

``judge`` is pure: what one view of an instance means for a goal. ``Follower`` keeps the view: the spec, the status and the
host key at the provider where the instance lives. A spec that vanishes there has moved or is gone, which
``instances/<uuid>`` says. Whoever asks gets every new view, for its progress line.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from common.errors import EcomputeError, Permanent
from common.keys import Keys
from common.model import Desired, HostRecord, InstanceKey, InstanceSpec, InstanceStatus, Phase
from common.retry import Deadline
from common.store import Store, Versioned
from eschedule.board import Board

TICK_SECONDS = 1.0  # how often an unchanged view is handed out again, for the clock on a progress line
_STUCK = (Phase.HELD, Phase.QUARANTINED)
_WANTED = {"running": Desired.RUNNING, "stopped": Desired.STOPPED, "gone": Desired.DELETED}


class Goal(enum.StrEnum):
    """What is waited for."""

    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"


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
        status: what the host said last; ``is_fresh`` tells whether it speaks of this very spec.
    """

    uuid: UUID
    name: str
    provider: UUID
    host: str | None
    spec: InstanceSpec
    spec_revision: int
    status: InstanceStatus | None

    @property
    def is_fresh(self) -> bool:
        return self.status is not None and self.status.spec_revision >= self.spec_revision

    @property
    def where(self) -> str:
        """The host, for people."""
        return self.host or f"the host of provider {self.provider}, which has no heartbeat"


@dataclass(frozen=True)
class Outcome:
    """The end of a wait: *message* says why the goal was not reached, *view* is the last there was."""

    ending: Ending
    message: str = ""
    view: View | None = None


def judge(goal: Goal, view: View) -> Outcome | None:
    """What *view* means for *goal*; None as long as it is under way."""
    if view.spec.desired is not _WANTED[goal]:
        return Outcome(Ending.FAILED, f"somebody asked meanwhile that it be {view.spec.desired}", view)
    status = view.status
    if status is None or not view.is_fresh:
        return None
    if goal.value == status.phase.value.lower():
        return Outcome(Ending.REACHED, view=view)
    if status.phase in _STUCK or (goal is not Goal.GONE and status.phase in _ENDS[goal]):
        return Outcome(Ending.FAILED, because(status), view)
    return None


# A phase that does not change by itself any more, so that waiting on would be in vain.
_ENDS = {
    Goal.RUNNING: (Phase.FAILED, Phase.REFUSED, Phase.STOPPED, Phase.PAUSED),
    Goal.STOPPED: (Phase.FAILED, Phase.REFUSED),
}


def because(status: InstanceStatus) -> str:
    """Why an instance is in its phase, as the host says it."""
    reason = ": ".join(part for part in (status.failure or status.reason, status.message or status.failure_message) if part)
    return f"{status.phase} ({reason})" if reason else str(status.phase)


class Follower:
    """Waits for instances.

    Args:
        on_view: called with each new view, and every second with an unchanged one; it must not raise.
    """

    def __init__(
        self, store: Store, keys: Keys, *, on_view: Callable[[View], None] = lambda _view: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store = store
        self._keys = keys
        self._on_view = on_view
        self._clock = clock

    def follow(self, instance: UUID, goal: Goal, wait_seconds: float) -> Outcome:
        """Wait until *instance* has reached *goal*, cannot reach it any more, or *wait_seconds* are over.

        Raises:
            StoreUnavailable: etcd did not answer when it was asked where the instance is.
            UnsupportedSchema: a newer version wrote the instance's records.
            Permanent: the instance's records contradict each other.
        """
        deadline = Deadline(wait_seconds, self._clock)
        place, last = self._place(instance), None
        while place is not None:
            known = InstanceKey.from_json(place.value)
            for view in self._views(instance, known, deadline):
                if view is None:
                    break
                last = view
                self._on_view(view)
                if outcome := judge(goal, view):
                    return outcome
            else:
                return Outcome(Ending.TIMED_OUT, view=last)
            place = self._moved(instance, place)
        return self._gone(instance, goal, last)

    def _place(self, instance: UUID) -> Versioned | None:
        return self._store.get(self._keys.instance(instance))

    def _moved(self, instance: UUID, before: Versioned) -> Versioned | None:
        """Where *instance* is now that its spec is not where *before* says; None where it is gone.

        The spec and this key change in one transaction, so an unchanged key with no spec behind it is damage.
        """
        now = self._place(instance)
        if now is not None and now.mod_revision == before.mod_revision:
            raise Permanent(f"{now.key} is there, but the spec that it points to is missing", "Damaged")
        return now

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

    def _views(self, instance: UUID, known: InstanceKey, deadline: Deadline) -> Iterator[View | None]:
        """Views of *instance* at its present provider until *deadline*; None once its spec is not there (any more)."""
        provider, keys = known.provider, self._keys
        spec_key, status_key, host_key = keys.spec(provider, instance), keys.status(provider, instance), keys.host(provider)
        with Board(self._store, (spec_key, status_key, host_key)) as board:
            for items in board.changes(deadline, TICK_SECONDS):
                spec_item = items[spec_key]
                if spec_item is None:
                    yield None
                    return
                status_item = items[status_key]
                yield View(
                    instance, known.name, provider, host_name(items[host_key]),
                    InstanceSpec.from_json(spec_item.value), spec_item.mod_revision,
                    InstanceStatus.from_json(status_item.value) if status_item else None,
                )  # fmt: skip


def host_name(item: Versioned | None) -> str | None:
    """The name in a host key; a record that cannot be read still is a heartbeat."""
    if item is None:
        return None
    try:
        return HostRecord.from_json(item.value).name
    except EcomputeError:
        return item.key.rpartition("/")[2]
