"""One pass for one instance: gather facts, decide, run the step, until nothing is left to do or something newer came.

Level-triggered: it is told only *which* instance, never what happened. It keeps the count of attempts, reports phases and
events through ``Statuses``, and lets every error out to the worker that called it, which is the one home of retries.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.errors import (
    Cancelled,
    Conflict,
    EcomputeError,
    HypervisorUnavailable,
    NoCapacity,
    NotLive,
    Permanent,
    PlacementUnavailable,
    StoreUnavailable,
    Transient,
)
from common.keys import Keys
from common.logs import fields
from common.model import Desired, Event, InstanceSpec, InstanceStatus, Phase, Progress, Reason
from common.reports import ReportStore
from common.store import Store
from ecompute import sizing
from ecompute.builder import Builder
from ecompute.facts import FactFinder, Glimpse
from ecompute.guest_reports import with_report
from ecompute.machine import Decision, Facts, History, Step, cause_of_going_down, decide, is_gone, is_up, ours
from ecompute.moving import Cause
from ecompute.patience import SLOW_RETRY_SECONDS, SUSPEND_AGAIN_SECONDS, Patience
from ecompute.statuses import Statuses, with_event
from ecompute.turns import Turns
from ecompute.volume_plugs import ASK_AGAIN_SECONDS, is_waited_for, notes_of, volumes_of
from ecompute.watcher import SpecEntry, SpecWatcher

logger = logging.getLogger(__name__)
MOST_STEPS = 32  # in one pass; more than any path through the table needs
PROGRESS_EVERY_SECONDS = 1.0
WENT_DOWN = (Reason.GUEST_SHUTDOWN, Reason.CRASHED, Reason.HOST_REBOOTED, Reason.MEMORY_LOST)
_AS_ASKED = {Desired.RUNNING: Phase.RUNNING, Desired.PAUSED: Phase.PAUSED, Desired.SUSPENDED: Phase.SUSPENDED}
LOOK_AGAIN_SECONDS = 5.0  # while a guest powers off, and while Placement refuses an allocation that a guest needs

MESSAGES: dict[str, str] = {
    Reason.NO_ALLOCATION: "Placement knows no claim of this instance on this host; destroy it and create it again",
    Reason.STORE_RESTORED: "etcd is older than this guest (restored or wiped); nothing is touched until you: eschedule adopt",
    Reason.UNSUPPORTED_SCHEMA: "a newer eschedule wrote this request; upgrade ecompute on this host",
    Reason.ATTEMPTS_EXHAUSTED: "it was tried as often as allowed",
    Reason.GUEST_SHUTDOWN: "the guest powered itself off",
    Reason.CRASHED: "the guest crashed",
    Reason.HOST_REBOOTED: "the host was rebooted under the guest",
    Reason.MEMORY_LOST: "the guest was suspended, and its saved memory was removed from the host",
    Reason.IO_ERROR: "QEMU paused the guest after a disk error; see the host's free space",
    Reason.ALLOCATION_MISSING: "the guest runs, but its claim was lost; asking Placement for it again",
    Reason.FOREIGN_DOMAIN: "a domain with this uuid is there that etcd-compute did not make; it is not touched",
    Reason.DISK_MISSING: "the guest has run, but its disk is gone from this host; nothing is rebuilt without being asked",
}


BUG = "{step} met a bug of etcd-compute ({kind}), and is tried again; please report it, with what the log of ecompute says"

# What is done of a build in these leads to no guest, or to one that is to go down.
_NO_ATTEMPT = (Phase.STOPPED, Phase.STOPPING, Phase.SUSPENDED, Phase.REBOOTING)


@dataclass
class _Pass:
    """What one pass carries along; also the builder's ``Hand``."""

    reconciler: Reconciler
    uuid: UUID
    entry: SpecEntry | None
    facts: Facts
    step: Step = Step.NONE
    steps_run: int = 0
    is_confirmed: bool = False
    began: float = 0.0
    reported: float = 0.0

    def is_cancelled(self) -> bool:
        return self.reconciler.is_stale(self.uuid, self.entry)

    def cause(self) -> Cause:
        return self.reconciler.cause_of_failure(self.uuid)

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.began >= PROGRESS_EVERY_SECONDS and now - self.reported >= PROGRESS_EVERY_SECONDS:
            self.reported = now
            self.reconciler.report_progress(self.uuid, Progress(self.step, done, total))


class Reconciler:
    """Brings instances to where their specs want them.

    Args:
        is_live: whether the host lease certainly stands.
        look_again: have an instance looked at after so many seconds.
        now: wall time as ISO 8601 text with milliseconds, for people.
        fetches_at_once: how many passes may wait for an image at one time; fewer than there are workers.
        reports: what guests say of themselves; shown in their statuses.
    """

    def __init__(
        self, *, specs: SpecWatcher, statuses: Statuses, finder: FactFinder, builder: Builder, patience: Patience, store: Store,
        keys: Keys, provider: UUID, max_attempts: int, is_live: Callable[[], bool], look_again: Callable[[UUID, float], None],
        now: Callable[[], str], stopping: threading.Event, fetches_at_once: int, reports: ReportStore,
    ) -> None:  # fmt: skip
        self._specs, self._statuses, self._finder, self._builder = specs, statuses, finder, builder
        self._patience, self._store, self._keys, self._provider = patience, store, keys, provider
        self._max_attempts, self._is_live, self._look_again = max_attempts, is_live, look_again
        self._now, self._stopping, self._reports = now, stopping, reports
        self._fetches = Turns(fetches_at_once, lambda uuid: look_again(uuid, 0.0))
        self._open_attempts: dict[
            UUID, int
        ] = {}  # instance → the boot_request that an attempt of this process is under way for

    def reconcile(self, uuid: UUID) -> None:
        """Take steps for *uuid* until none is left.

        Raises:
            Transient: it must be looked at again.
        """
        began = time.monotonic()
        entry = self._specs.get(uuid)
        spec = entry.spec if entry else None
        try:
            facts = self._finder.gather(uuid, entry, booted=self._booted(uuid))
        except EcomputeError as error:
            self._report_waiting(spec, entry, error)
            raise
        hand = _Pass(self, uuid, entry, facts)
        decision = self.decide(spec, hand.facts)
        if spec is not None:
            self._note_going_down(spec, facts)
        while decision.step is not Step.NONE and hand.steps_run < MOST_STEPS:
            if self.is_stale(uuid, entry):
                self._look_again(uuid, 0.0)
                return
            if not self._take_in_turn(hand, spec, decision):
                return
            decision = self.decide(spec, hand.facts)
        self._settle(hand, spec, decision)
        if hand.steps_run:
            took = round((time.monotonic() - began) * 1000)
            logger.info("reconciled", extra=fields(phase=decision.phase, steps=hand.steps_run, took_ms=took))

    def _note_going_down(self, spec: InstanceSpec, facts: Facts) -> None:
        """Keep in mind that a guest went down by itself, and why: whoever finds it restarted will ask."""
        status = self._statuses.get(spec.uuid)
        was_up = status is not None and status.phase in (Phase.RUNNING, Phase.PAUSED)
        domain = ours(facts)
        if status is None or not was_up or domain is None or domain.is_active or not spec.desired.keeps_guest:
            return
        if domain.has_saved_memory:
            return
        cause = cause_of_going_down(domain, facts)
        is_reboot = domain.stamp is not None and domain.stamp.booted != spec.boot_request
        if is_reboot or (status.events and status.events[-1].step == cause):  # asked for, or said before
            return
        logger.warning("the guest is down", extra=fields(name=spec.name, cause=cause, restart=spec.restart))
        self._note_event(spec.uuid, cause, 0, MESSAGES.get(cause, ""))

    def decide(self, spec: InstanceSpec | None, facts: Facts) -> Decision:
        return decide(spec, facts, self._history(spec))

    def glance(self, uuid: UUID, glimpse: Glimpse) -> bool:
        """Whether *uuid*, as a resync has just seen it, needs a pass."""
        entry = self._specs.get(uuid)
        spec = entry.spec if entry else None
        facts = self._finder.gather(uuid, entry, booted=self._booted(uuid), glimpse=glimpse)
        decision = self.decide(spec, facts)
        known = self._statuses.get(uuid)
        if decision.step in (Step.ASSERT_ALLOCATION, Step.FIT_CLAIM):
            self._finder.suspect(uuid)
        if decision.phase is Phase.QUARANTINED:
            logger.warning("a guest of ours has no spec in etcd; it is kept and not touched", extra=fields(instance=uuid))
        if decision.step is not Step.NONE or entry is None:
            return decision.step is not Step.NONE
        if known is None or known.phase is not decision.phase or with_report(known, self._reports, uuid) is not known:
            return True
        return spec is not None and known.notes != _notes(spec, facts)

    def suspected_orphans(self) -> set[UUID]:
        """Claims that stood alone at the last glance; to be glanced at again, be it to learn that they are gone."""
        return self._patience.orphans()

    def is_stale(self, uuid: UUID, entry: SpecEntry | None) -> bool:
        """Whether the work on *entry* is no longer wanted."""
        return self._stopping.is_set() or self._specs.revision(uuid) != (entry.revision if entry else 0)

    def cause_of_failure(self, uuid: UUID) -> Cause:
        """Why *uuid* could not be built here, as its status remembers it."""
        status = self._statuses.get(uuid)
        if status is None or not (status.failure or status.attempts):
            return Cause("Unknown", "ecompute was restarted in the middle of the move")
        return Cause(status.failure or Reason.ATTEMPTS_EXHAUSTED, status.failure_message or status.message)

    def report_progress(self, uuid: UUID, progress: Progress) -> None:
        status = self._statuses.get(uuid)
        if status is None:
            return
        self._statuses.note(uuid, dataclasses.replace(status, progress=progress))
        self._flush_if_possible(uuid)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _take_in_turn(self, hand: _Pass, spec: InstanceSpec | None, decision: Decision) -> bool:
        """``_take``; but some steps last, and the other guests want to be served meanwhile."""
        if spec is not None and decision.phase in (Phase.RESCHEDULING, Phase.FAILED, Phase.SUSPENDING):
            self._announce(hand, spec, decision)
        if spec is None or not self._builder.takes_long(decision.step, spec):
            return self._take(hand, spec, decision)
        if not self._fetches.take(hand.uuid):
            phase = decision.phase if is_up(hand.facts) else Phase.PENDING
            message = "other images are fetched, other disks prepared, or the memory of other guests saved first"
            self._report(spec, hand.facts, Decision(Step.NONE, phase, Reason.WAITING), message)
            return False
        try:
            return self._take(hand, spec, decision)
        finally:
            self._fetches.give_back()

    def _take(self, hand: _Pass, spec: InstanceSpec | None, decision: Decision) -> bool:
        """Run one step; False when the pass is over because the step failed for good and must be thought about anew."""
        step, uuid = decision.step, hand.uuid
        self._permit(hand, step)
        # What is prepared for a guest that is to go on is none: whatever comes of it, that one is started again.
        is_attempt = step.is_build and not is_up(hand.facts) and decision.phase not in _NO_ATTEMPT
        # Picking an address harms nobody, and goes before, so that it is told with the attempt that begins.
        if spec is not None and is_attempt and step is not Step.RESERVE_NETWORK:
            self._open_attempt(spec, hand.facts)
        hand.step, hand.began = step, time.monotonic()
        try:
            hand.facts = self._run(hand, spec, is_attempt=is_attempt)
        except Permanent as error:
            if spec is None or not is_attempt:
                # Nothing that could be given up: it is wanted until it works.
                again = Transient(f"{step}: {error}", retry_after=LOOK_AGAIN_SECONDS)
                self._interrupted(spec, hand.facts, decision, Transient(str(error)))
                raise again from error
            self._record_failure(spec, hand.facts, step, error)
            self._look_again(uuid, 0.0)
            return False
        except NoCapacity as error:
            if spec is not None:
                self._report(spec, hand.facts, decision, str(error))
            if step in (Step.ASSERT_ALLOCATION, Step.FIT_CLAIM):
                self._finder.suspect(uuid)  # else the next pass would not ask, and report that all is well
            self._look_again(uuid, 12 * LOOK_AGAIN_SECONDS)
            return False
        except Transient as error:
            self._interrupted(spec, hand.facts, decision, error)
            raise
        except EcomputeError:
            raise
        except Exception as error:
            if spec is not None:
                self._report(spec, hand.facts, decision, BUG.format(step=step, kind=type(error).__name__))
            raise  # the worker logs all of it, and tries again
        hand.steps_run += 1
        took = round((time.monotonic() - hand.began) * 1000)
        logger.info("step", extra=fields(step=step, took_ms=took))
        if spec is not None and not hand.facts.spec_revision:
            self._specs.forget(uuid, hand.entry.revision if hand.entry else 0)
            self._forget(uuid)
            return False
        self._note_event(uuid, step, took)
        return True

    def _run(self, hand: _Pass, spec: InstanceSpec | None, *, is_attempt: bool) -> Facts:
        """The facts after ``hand.step``; what fails counts as an attempt where it is part of one."""
        try:
            facts = self._builder.run(hand.step, hand.uuid, spec, hand.facts, hand)
        except (Permanent, Transient):
            if spec is not None and is_attempt:
                self._open_attempt(spec, hand.facts)
            raise
        if spec is not None and is_attempt and self._statuses.get(hand.uuid) is None:
            # The address, which whoever waits is told with the attempt that begins.
            self._statuses.note(hand.uuid, dataclasses.replace(self._status(spec, facts), phase=Phase.BUILDING))
        return facts

    def _announce(self, hand: _Pass, spec: InstanceSpec, decision: Decision) -> None:
        """Write why the instance leaves before the first thing is undone: the next process is not to build it here again.

        And what lasts, for whoever looks meanwhile.
        """
        known = self._statuses.get(hand.uuid)
        if decision.phase is Phase.FAILED:
            self._statuses.flush(hand.uuid)  # the failure; it is Failed when all is undone
        elif known is None or known.phase is not decision.phase:
            self._report(spec, hand.facts, decision)

    def _permit(self, hand: _Pass, step: Step) -> None:
        """Only a live host begins or ends anything, and nothing is taken away on the word of a cache."""
        if (step.is_build or step.is_destructive or step is Step.ASSERT_ALLOCATION) and not self._is_live():
            raise NotLive("the host lease is not certain; nothing new is begun", retry_after=1.0)
        if self.is_stale(hand.uuid, hand.entry):  # asked after the lease: with a new one the specs were read anew
            raise Conflict("the request changed meanwhile")
        if not step.is_destructive or hand.is_confirmed:
            return
        found = self._store.get(self._keys.spec(self._provider, hand.uuid))
        if (found.mod_revision if found else 0) != hand.facts.spec_revision:
            raise Conflict(f"the spec of {hand.uuid} changed meanwhile")
        hand.is_confirmed = True

    # -- attempts and reports ------------------------------------------------------------------------------------------

    def _booted(self, uuid: UUID) -> int:
        status = self._statuses.get(uuid)
        return status.booted if status else 0

    def _history(self, spec: InstanceSpec | None) -> History:
        status = self._statuses.get(spec.uuid) if spec else None
        if spec is None or status is None:
            return History(max_attempts=self._max_attempts)
        is_same = status.boot_request == spec.boot_request
        return History(
            attempts=self._attempts_so_far(spec, status) if is_same else 0,
            attempt_is_open=self._open_attempts.get(spec.uuid) == spec.boot_request,
            max_attempts=self._max_attempts,
            failure=status.failure if is_same else "",
            has_failed=is_same and status.phase is Phase.FAILED,
            booted=status.booted,
            went_down=status.reason if is_same and status.phase is Phase.STOPPED and status.reason in WENT_DOWN else "",
        )

    def _status(self, spec: InstanceSpec, facts: Facts) -> InstanceStatus:
        """The status to change: the last one, without what belonged to an earlier boot request."""
        status = self._statuses.get(spec.uuid) or InstanceStatus(phase=Phase.PENDING)
        if status.boot_request != spec.boot_request:
            status = dataclasses.replace(status, boot_request=spec.boot_request, attempts=0, failure="", failure_message="")
        return dataclasses.replace(status, spec_revision=facts.spec_revision)

    def _attempts_so_far(self, spec: InstanceSpec, status: InstanceStatus) -> int:
        """Those since the guest last stood: one that ran for long and went down is as good as one that was never started."""
        if status.phase in (Phase.RUNNING, Phase.PAUSED) and self._patience.has_stood(spec.uuid):
            return 0
        return status.attempts

    def _open_attempt(self, spec: InstanceSpec, facts: Facts) -> None:
        """Count an attempt, in etcd, before it is made: a spec that kills its builder must not be built for ever."""
        if self._open_attempts.get(spec.uuid) == spec.boot_request:
            return
        # What the guest said before belongs to the boot before, and it is down now.
        status = with_report(self._status(spec, facts), self._reports, spec.uuid)
        status = dataclasses.replace(
            status,
            phase=Phase.BUILDING,
            reason="",
            message="",
            attempts=self._attempts_so_far(spec, status) + 1,
            addresses=facts.addresses or (),
        )
        self._statuses.note(spec.uuid, status)
        try:
            # No build begins on a request that is not the newest: a process that slept must not believe its cache.
            self._statuses.flush(spec.uuid, only_for_spec=facts.spec_revision)
        except Transient as error:
            # It was not made, so it is not counted; if etcd has it all the same, the next write takes it back.
            self._statuses.note(spec.uuid, dataclasses.replace(status, attempts=status.attempts - 1, message=str(error)))
            raise
        self._open_attempts[spec.uuid] = spec.boot_request
        self._patience.tries_again(spec.uuid)

    def _interrupted(self, spec: InstanceSpec | None, facts: Facts, decision: Decision, error: Transient) -> None:
        """A step failed for now: say so.

        A service that was away, or a request that changed, is no fault of the request and does not count against it.
        """
        if spec is None or decision.phase is None:
            return
        was_open = self._open_attempts.pop(spec.uuid, None) is not None
        status = self._status(spec, facts)
        is_cancelled = isinstance(error, Cancelled)
        is_outage = isinstance(error, (HypervisorUnavailable, PlacementUnavailable, StoreUnavailable, Conflict))
        status = dataclasses.replace(
            status,
            phase=decision.phase,
            attempts=max(0, status.attempts - 1) if was_open and (is_outage or is_cancelled) else status.attempts,
            message="" if is_cancelled else f"{decision.step}: {error}",
            progress=None,
        )
        self._statuses.note(spec.uuid, status)
        if was_open and not is_cancelled:
            self._note_event(spec.uuid, decision.step, 0, status.message)
        self._flush_if_possible(spec.uuid)

    def _report_waiting(self, spec: InstanceSpec | None, entry: SpecEntry | None, error: EcomputeError) -> None:
        """The facts cannot be had: a new request waits and says for what; what was known of an old one stays."""
        if spec is None or entry is None:
            return
        status = self._statuses.get(spec.uuid) or InstanceStatus(phase=Phase.PENDING, reason=Reason.WAITING)
        self._statuses.note(spec.uuid, dataclasses.replace(status, message=str(error), spec_revision=entry.revision))
        self._flush_if_possible(spec.uuid)

    def _flush_if_possible(self, uuid: UUID) -> None:
        try:
            self._statuses.flush(uuid)
        except Transient as error:
            logger.debug("status not written yet: %s", error)

    def _record_failure(self, spec: InstanceSpec, facts: Facts, step: Step, error: Permanent) -> None:
        self._open_attempts.pop(spec.uuid, None)
        logger.warning("failed for good", extra=fields(instance=spec.uuid, step=step, reason=error.reason, error=str(error)))
        status = dataclasses.replace(self._status(spec, facts), failure=error.reason, failure_message=str(error), progress=None)
        self._statuses.note(spec.uuid, status)
        self._note_event(spec.uuid, step, 0, f"{error.reason}: {error}")

    def _note_event(self, uuid: UUID, step: str, took_ms: int, message: str = "") -> None:
        status = self._statuses.get(uuid)
        if status is not None:
            self._statuses.note(uuid, with_event(status, Event(self._now(), step, took_ms, message)))

    def _settle(self, hand: _Pass, spec: InstanceSpec | None, decision: Decision) -> None:
        """Nothing is left to do now: say so, and come back where something is only waited for."""
        if spec is None:
            if hand.entry is not None:
                self._report_held(hand, decision)
            elif is_gone(hand.facts):
                self._forget(hand.uuid)  # its deletion was seen only now, as when the answer to Forget was lost
            return
        self._open_attempts.pop(spec.uuid, None)
        problem = hand.facts.suspend_problem
        self._report(spec, hand.facts, decision, problem.message if problem and decision.reason == problem.reason else "")
        if problem:
            self._look_again(spec.uuid, SUSPEND_AGAIN_SECONDS)
        if decision.phase in (Phase.STOPPING, Phase.REBOOTING):
            self._look_again(spec.uuid, min(LOOK_AGAIN_SECONDS, float(spec.grace_seconds)))
            return
        self._patience.at_rest(spec.uuid)
        if is_waited_for(hand.facts):
            self._look_again(spec.uuid, ASK_AGAIN_SECONDS)
        if decision.reason == Reason.START_FAILED:
            self._patience.gave_up(spec.uuid)
            self._look_again(spec.uuid, SLOW_RETRY_SECONDS)

    def _forget(self, uuid: UUID) -> None:
        """Keep nothing of *uuid*: it may come back as another instance."""
        self._statuses.drop(uuid)
        self._patience.forget(uuid)
        self._open_attempts.pop(uuid, None)

    def _report(self, spec: InstanceSpec, facts: Facts, decision: Decision, message: str = "") -> None:
        if decision.phase is None:
            return
        status = self._status(spec, facts)
        stamp = facts.domain.stamp if facts.domain else None
        if not message and decision.reason:
            is_failure = decision.reason in (status.failure, Reason.START_FAILED, Reason.ATTEMPTS_EXHAUSTED)
            message = (is_failure and (status.failure_message or status.message)) or MESSAGES.get(decision.reason, "")
        if decision.phase is Phase.FAILED and status.phase is not Phase.FAILED:
            others = (f"{provider}: {why}" for provider, why in self._patience.ruled_out(spec.uuid).items())
            message = "; ".join([message, *others])
            status = dataclasses.replace(status, failure_message=message)
        status = dataclasses.replace(
            status,
            phase=decision.phase,
            reason=str(decision.reason),
            message=message,
            progress=None,
            booted=max(status.booted, stamp.booted if stamp else 0),
            addresses=facts.addresses or (),
            notes=_notes(spec, facts),
            volumes=volumes_of(facts),
            restored=facts.disk.restored if facts.disk.restored.request else None,
            rebuilt=facts.disk.rebuilt if facts.disk.rebuilt.request else None,
            in_force=sizing.in_force(spec, ours(facts)),
        )
        if decision.phase is _AS_ASKED.get(spec.desired):
            # Attempts to go on from saved memory are counted anew each time.
            attempts = 0 if decision.phase is Phase.SUSPENDED else status.attempts
            status = dataclasses.replace(status, failure="", failure_message="", attempts=attempts)
        self._statuses.note(spec.uuid, with_report(status, self._reports, spec.uuid))
        self._statuses.flush(spec.uuid)

    def _report_held(self, hand: _Pass, decision: Decision) -> None:
        if decision.phase is None or hand.entry is None:
            return
        status = self._statuses.get(hand.uuid) or InstanceStatus(phase=decision.phase)
        message = f"{MESSAGES.get(decision.reason, '')} ({hand.entry.problem})"
        status = dataclasses.replace(
            status, phase=decision.phase, reason=str(decision.reason), message=message, spec_revision=hand.entry.revision
        )
        self._statuses.note(hand.uuid, status)
        self._statuses.flush(hand.uuid)


def _notes(spec: InstanceSpec, facts: Facts) -> tuple[str, ...]:
    return (*notes_of(spec, facts), *sizing.notes(spec, ours(facts)))
