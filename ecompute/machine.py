"""What to do next for one instance, decided from what is asked for and what is there. Pure: no I/O, no clock, no memory.

``decide`` is the tables of ``docs/architecture.md`` ("The life of an instance"), row by row, first match wins. The
reconciler gathers the facts, calls ``decide``, has the builder run that one step, and asks again. Every step is idempotent and
leaves a fact behind, so that a process may die between any two of them.

Two rules stand above all rows: an instance that has ever run is never rescheduled or cleaned up but by ``desired = deleted``,
and its disk never becomes another one but by a request that says so (``rebuild_request``, ``restore_request``); and a missing
spec is lost data, not an order. The module is as long as its table, which is to be read in one piece.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from uuid import UUID

from common.disk_requests import NOT_YET, Applied, DiskRequest
from common.model import Address, Adoption, Alternate, Desired, InstanceSpec, Phase, Reason, Restart
from ecompute.hypervisor import Domain, PowerState, Stamp
from ecompute.volume_decisions import GuestVolumes, Plug, plug


class Step(enum.StrEnum):
    """One idempotent action on one instance."""

    NONE = "None"
    ASSERT_ALLOCATION = "AssertAllocation"
    FETCH_IMAGE = "FetchImage"
    BUILD_DISK = "BuildDisk"
    GROW_DISK = "GrowDisk"
    RESERVE_NETWORK = "ReserveNetwork"
    WRITE_METADATA = "WriteMetadata"
    WRITE_RULES = "WriteRules"
    DEFINE = "Define"
    START = "Start"
    CONNECT = "Connect"
    MARK_BOOTED = "MarkBooted"
    ATTACH_VOLUME = "AttachVolume"
    DETACH_VOLUME = "DetachVolume"
    PAUSE = "Pause"
    UNPAUSE = "Unpause"
    SUSPEND = "Suspend"
    RESUME = "Resume"
    DROP_MEMORY = "DropMemory"
    SHUTDOWN = "Shutdown"
    DESTROY = "Destroy"
    UNDEFINE = "Undefine"
    REMOVE_FILES = "RemoveFiles"
    RELEASE_NETWORK = "ReleaseNetwork"
    RELEASE = "Release"
    FIT_CLAIM = "FitClaim"
    SWAP_CLAIM = "SwapClaim"
    MOVE_SPEC = "MoveSpec"
    ACKNOWLEDGE = "Acknowledge"
    RESTORE_DISK = "RestoreDisk"
    PREPARE_DISK = "PrepareDisk"
    REPLACE_DISK = "ReplaceDisk"
    THAW = "Thaw"
    FORGET = "Forget"

    @property
    def is_build(self) -> bool:
        """Part of an attempt to bring a guest up: counted, and never begun without a live host lease."""
        return self in _BUILD

    @property
    def is_destructive(self) -> bool:
        """Takes something away, be it a guest's power: never on the word of a cache."""
        return self in _DESTRUCTIVE


_BUILD = {
    Step.FETCH_IMAGE, Step.BUILD_DISK, Step.GROW_DISK, Step.RESERVE_NETWORK, Step.WRITE_METADATA, Step.WRITE_RULES, Step.DEFINE,
    Step.START, Step.RESUME, Step.PREPARE_DISK, Step.ATTACH_VOLUME,
}  # fmt: skip
_DESTRUCTIVE = {
    Step.SHUTDOWN, Step.DESTROY, Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.RELEASE, Step.SWAP_CLAIM,
    Step.MOVE_SPEC, Step.FORGET, Step.RESTORE_DISK, Step.REPLACE_DISK, Step.FIT_CLAIM, Step.PAUSE, Step.SUSPEND,
    Step.DROP_MEMORY,
    # A disk that is plugged into a second guest loses what is on it.
    Step.ATTACH_VOLUME, Step.DETACH_VOLUME,
}  # fmt: skip
_SAME_EVERYWHERE = ("InvalidSpec", "ChecksumMismatch")  # failures that no other host would be spared


_WENT_DOWN = ("shutdown", "crashed", "destroyed")  # why a domain is off that was on; a start that failed is "failed"


class Allocation(enum.StrEnum):
    """What Placement says of this instance on this provider."""

    PRESENT = "present"
    ABSENT = "absent"
    UNASKED = "unasked"  # not needed to decide, or Placement is away


@dataclass(frozen=True)
class DiskFacts:
    """What is known of the requests that are made of a disk.

    Args:
        restored, rebuilt: the last ones that were dealt with.
        snapshot_is_there: the one that the disk is to go back to; looked at only while that is due.
        new_disk_is_there: the one that is to take the old one's place, whole; looked at likewise.
        is_frozen: the guest's file systems may be held still, by a process that died.
    """

    restored: Applied = NOT_YET
    rebuilt: Applied = NOT_YET
    snapshot_is_there: bool = False
    new_disk_is_there: bool = False
    is_frozen: bool = False


@dataclass(frozen=True)
class Problem:
    """Why something that was asked for is not done, for programs and for people."""

    reason: str
    message: str


@dataclass(frozen=True)
class Facts:
    """What is there now.

    Args:
        provider: our provider; stamps of another are foreign.
        cluster_id: of the store that the spec was read from.
        spec_revision: ``mod_revision`` of the spec; 0 without one.
        host_boot_id: the host's boot id.
        spec_is_unsupported: a spec is there, but a newer version wrote it.
        shutdown_is_due: no power button was pressed lately; press it (again).
        grace_is_over: the guest was asked to power off and had its grace time.
        claim_is_orphaned: a claim has been seen without spec and domain for so long that its client must be dead.
        claimed_at: the providers that the instance's claim names, where it was asked for.
        ruled_out: alternates that turned out not to take it: no room, no heartbeat, or their group has a member there.
        drive_is_current: the guest's config drive is as it should be, or it has none; not looked at while the guest is up,
            whose drive is made anew before its next start.
        slow_retry_is_due: a start that failed for good was so long ago that it is worth another try.
        is_connected: no card of the guest that runs waits for its VLAN.
        disk_is_large_enough: its disk has the size that is asked for, or more.
        claim_is_wrong: the claim stands here with other amounts than the instance has to hold, and has done so for so long that
            no client can be between its claim and its request.
        volumes: those that the domain has; None where it has none and is to have none.
        suspend_problem: why its memory could not be saved a moment ago; None once that is worth another try.
    """

    provider: UUID
    cluster_id: int
    spec_revision: int = 0
    host_boot_id: str = ""
    spec_is_unsupported: bool = False
    domain: Domain | None = None
    allocation: Allocation = Allocation.UNASKED
    disk_is_there: bool = False
    image_is_cached: bool = False
    files_are_there: bool = False  # a folder of this instance, whole or half-made
    addresses: tuple[Address, ...] | None = None
    metadata_is_there: bool = False
    metadata_is_current: bool = False
    drive_is_current: bool = False
    rules_are_there: bool = False  # something of this instance in the packet filter
    rules_are_current: bool = True  # what it asks for of the packet filter is in force; so it is where it asks for nothing
    notes: tuple[str, ...] = ()  # what is not as asked for, for people; nothing is decided by it
    definition_is_current: bool = False
    shutdown_is_due: bool = True
    grace_is_over: bool = False
    claim_is_orphaned: bool = False
    claimed_at: frozenset[UUID] = frozenset()
    ruled_out: frozenset[UUID] = frozenset()
    slow_retry_is_due: bool = False
    is_connected: bool = True
    disk: DiskFacts = DiskFacts()
    disk_is_large_enough: bool = True
    claim_is_wrong: bool = False
    volumes: GuestVolumes | None = None
    suspend_problem: Problem | None = None


@dataclass(frozen=True)
class History:
    """What this ``boot_request`` has been through, from the status.

    Args:
        attempts: made so far, the one in hand included.
        attempt_is_open: one of them is in hand in this process.
        failure: the reason of a permanent failure, "" without one.
        has_failed: it was given up and that was said; a host that has room later is no reason to begin again.
        booted: the highest ``boot_request`` that the status remembers as booted.
        went_down: why the guest was found down when it was last looked at, "" where it was not: a reboot of the host
            later on is not what put it down.
    """

    attempts: int = 0
    attempt_is_open: bool = False
    max_attempts: int = 5
    failure: str = ""
    has_failed: bool = False
    booted: int = 0
    went_down: str = ""

    @property
    def is_exhausted(self) -> bool:
        return bool(self.failure) or (self.attempts >= self.max_attempts and not self.attempt_is_open)


@dataclass(frozen=True)
class Decision:
    """The next step, and what to report meanwhile."""

    step: Step
    phase: Phase | None = None  # None: nothing to report, there is no spec that a status could belong to
    reason: str = ""


def decide(spec: InstanceSpec | None, facts: Facts, history: History) -> Decision:
    """The next step and the phase that it stands for; first matching row of the tables."""
    if facts.spec_is_unsupported:
        return Decision(Step.NONE, Phase.HELD, Reason.UNSUPPORTED_SCHEMA)
    if spec is None:
        return _without_spec(facts)
    is_to_be_adopted = _is_to_be_adopted(spec, facts)
    if is_to_be_adopted or _is_from_another_past(facts):
        return Decision(Step.ACKNOWLEDGE if is_to_be_adopted else Step.NONE, Phase.HELD, Reason.STORE_RESTORED)
    if spec.desired is Desired.DELETED:
        return _deleted(facts)
    decision = _with_disk(_with_rules(_kept(spec, facts, history), facts), facts)
    decision = _with_volumes(decision, spec, facts)
    is_leaving = decision.phase in (Phase.FAILED, Phase.RESCHEDULING)
    if ours(facts) and facts.allocation is Allocation.ABSENT and not is_leaving:
        return Decision(Step.ASSERT_ALLOCATION, decision.phase, Reason.ALLOCATION_MISSING)
    return decision if is_leaving else _with_claim(decision, facts)


def ours(facts: Facts) -> Domain | None:
    """The domain, where it carries our stamp."""
    domain = facts.domain
    return domain if domain and domain.stamp and domain.stamp.provider == facts.provider else None


def is_up(facts: Facts) -> bool:
    """Whether the guest is active: then nothing that goes wrong beside it is a failed attempt."""
    domain = ours(facts)
    return domain is not None and domain.is_active


def is_gone(facts: Facts) -> bool:
    """Whether nothing of the instance is on this host."""
    has_files = facts.files_are_there or facts.metadata_is_there or facts.rules_are_there
    return not (facts.domain or has_files or facts.addresses is not None)


def has_run(facts: Facts, history: History) -> bool:
    """Whether this instance was ever up: then its disk holds what only it holds.

    libvirt's word counts too: a guest may have gone down again before it could be marked.
    """
    domain = ours(facts)
    if domain and ((domain.stamp and domain.stamp.booted > 0) or domain.state_reason in _WENT_DOWN):
        return True
    return history.booted > 0


def _is_from_another_past(facts: Facts) -> bool:
    """The store was wiped or restored: our own stamp knows another cluster, or a later spec than this one."""
    domain = ours(facts)
    if not domain or not domain.stamp:
        return False
    return domain.stamp.cluster_id != facts.cluster_id or domain.stamp.spec_revision > facts.spec_revision


def _is_to_be_adopted(spec: InstanceSpec, facts: Facts) -> bool:
    """An operator has seen this very guest and decided that the spec speaks for it all the same.

    The revisions of a restored store go on from an older one, and may have passed the guest's meanwhile: what the guest was
    booted for is of another past all the same, and would be taken for what is asked for now.
    """
    domain = ours(facts)
    stamp = domain.stamp if domain else None
    if stamp is None or spec.adopts != Adoption(stamp.cluster_id, stamp.spec_revision):
        return False
    return _is_from_another_past(facts) or stamp.spec_revision < facts.spec_revision


def _without_spec(facts: Facts) -> Decision:
    if ours(facts):
        return Decision(Step.NONE, Phase.QUARANTINED)
    if facts.domain is None and facts.allocation is Allocation.PRESENT and facts.claim_is_orphaned:
        return Decision(Step.RELEASE)
    return Decision(Step.NONE)


def _kept(spec: InstanceSpec, facts: Facts, history: History) -> Decision:
    """It is to be there, up or down."""
    if _is_between_hosts(spec, facts, history):
        return _move(spec, facts, history)
    if change := _disk_change(spec, facts, history):
        return change
    if spec.desired.keeps_guest:
        return _running(spec, facts, history)
    if history.is_exhausted and not has_run(facts, history) and not (ours(facts) is None and facts.domain):
        # What has failed holds nothing any more; to call it stopped would promise that it can be started.
        return _move(spec, facts, history)
    return _stopped(spec, facts)


def _disk_change(spec: InstanceSpec, facts: Facts, history: History) -> Decision | None:
    """Its disk is to be another one: gone back to a snapshot, or made anew of the image. None where that is not so.

    A guest loses its power only once all else is ready: the image fetched, the new disk made, the snapshot there.
    """
    change, domain = spec.disk_request(facts.disk.restored, facts.disk.rebuilt), ours(facts)
    if change is None or (facts.domain and not domain) or not has_run(facts, history):
        return None
    if change is DiskRequest.RESTORE:
        step, reason, is_ready = Step.RESTORE_DISK, Reason.RESTORING, facts.disk.snapshot_is_there
    else:
        is_ready = facts.disk.new_disk_is_there
        step = Step.REPLACE_DISK if is_ready else Step.PREPARE_DISK if facts.image_is_cached else Step.FETCH_IMAGE
        reason = Reason.REBUILDING
    if domain and domain.power_state is not PowerState.SHUTOFF and is_ready:
        return Decision(Step.DESTROY, Phase.REBOOTING, reason)  # what it is in the middle of is thrown away with its disk
    if domain and domain.is_active:
        return Decision(step, Phase.PAUSED if domain.power_state is PowerState.PAUSED else Phase.RUNNING, reason)
    if domain and domain.has_saved_memory:  # that knows the disk as it was: gone on with, it would destroy another one
        return Decision(Step.DROP_MEMORY if is_ready else step, Phase.REBOOTING if is_ready else Phase.SUSPENDED, reason)
    return Decision(step, Phase.REBOOTING if spec.desired.keeps_guest else Phase.STOPPED, reason)


def _with_rules(decision: Decision, facts: Facts) -> Decision:
    """One that is off has its rules, too: a port that it gave up is another's from now on, not from its next start on."""
    is_off = decision.step is Step.NONE and decision.phase in (Phase.STOPPED, Phase.SUSPENDED)
    if is_off and facts.rules_are_there and not facts.rules_are_current:
        return dataclasses.replace(decision, step=Step.WRITE_RULES)
    return decision


def _with_claim(decision: Decision, facts: Facts) -> Decision:
    """A claim of other amounts is set right last of all: where Placement sees no room, everything else goes on."""
    if decision.step is Step.NONE and facts.claim_is_wrong and ours(facts):
        return dataclasses.replace(decision, step=Step.FIT_CLAIM)
    return decision


def _with_disk(decision: Decision, facts: Facts) -> Decision:
    """The disk of one that is off is made larger at once: there is no better moment, and it is as asked for then.

    Not where a domain without our stamp has its uuid: that may be on this very disk.
    """
    is_foreign = facts.domain is not None and not ours(facts)
    is_off = decision.step is Step.NONE and decision.phase is Phase.STOPPED and not is_foreign
    if is_off and facts.disk_is_there and not facts.disk_is_large_enough:
        return dataclasses.replace(decision, step=Step.GROW_DISK)
    return decision


def _with_volumes(decision: Decision, spec: InstanceSpec, facts: Facts) -> Decision:
    """Volumes come and go when nothing else is to be done."""
    domain = ours(facts)
    is_at_rest = decision.step is Step.NONE and decision.phase in (Phase.RUNNING, Phase.PAUSED, Phase.STOPPED)
    if not is_at_rest or domain is None or facts.volumes is None or facts.addresses is None:
        return decision
    steps = {None: Step.NONE, Plug.IN: Step.ATTACH_VOLUME, Plug.OUT: Step.DETACH_VOLUME}
    return dataclasses.replace(decision, step=steps[plug(spec, facts.volumes, is_active=domain.is_active)])


def _running(spec: InstanceSpec, facts: Facts, history: History) -> Decision:
    domain = ours(facts)
    if facts.domain and not domain:
        return Decision(Step.NONE, Phase.HELD, Reason.FOREIGN_DOMAIN)
    if domain and (domain.is_active or domain.has_saved_memory):
        return _active(spec, domain, facts) if domain.is_active else _saved(spec, domain, facts, history)
    if has_run(facts, history):
        return _went_down(spec, domain, facts, history)
    if history.is_exhausted:
        return _move(spec, facts, history)
    if facts.allocation is Allocation.ABSENT and not domain:
        return Decision(Step.NONE, Phase.REFUSED, Reason.NO_ALLOCATION)
    return Decision(_build_step(facts), Phase.BUILDING)


def _active(spec: InstanceSpec, domain: Domain, facts: Facts) -> Decision:
    phase, reason = Phase.RUNNING, ""
    if domain.power_state is PowerState.PAUSED:
        phase, reason = Phase.PAUSED, Reason.IO_ERROR if domain.state_reason == "ioerror" else ""
    if not facts.metadata_is_current and facts.addresses is not None:
        return Decision(Step.WRITE_METADATA, phase, reason)
    if domain.stamp and _is_to_go_down(spec, domain.stamp):
        return Decision(_power_off_step(domain, facts, at_once=spec.hard_reboot), Phase.REBOOTING)
    is_new = domain.stamp is not None and domain.stamp.booted != spec.boot_request
    is_unmarked = domain.stamp is not None and (is_new or domain.stamp.boot_id != facts.host_boot_id)
    if is_unmarked and facts.is_connected:
        return Decision(Step.MARK_BOOTED, phase, reason)
    # After those, which need no rules: though the packet filter be broken, a guest goes down, and is known to have run.
    if not facts.rules_are_current and facts.addresses is not None:
        return Decision(Step.WRITE_RULES, phase, reason)
    if not facts.is_connected:
        return Decision(Step.CONNECT, Phase.BUILDING if is_new and phase is Phase.RUNNING else phase, reason)
    is_held_still = facts.disk.is_frozen and phase is Phase.RUNNING  # one that is paused would not hear of it
    is_small = facts.disk_is_there and not facts.disk_is_large_enough
    decision = Decision(Step.THAW if is_held_still else Step.GROW_DISK if is_small else Step.NONE, phase, reason)
    return decision if is_held_still or is_small else _standing(spec, domain, facts, decision)


def _standing(spec: InstanceSpec, domain: Domain, facts: Facts, as_it_is: Decision) -> Decision:
    """Whether it is to run or to stand still; last of all, so that whatever else was asked for of it is done before.

    What paused it besides somebody (QEMU at a full disk, libvirt in the middle of something) is left to that.
    """
    if spec.desired is Desired.SUSPENDED and domain.power_state is not PowerState.SHUTTING_DOWN:
        if facts.suspend_problem:
            return Decision(Step.NONE, as_it_is.phase, facts.suspend_problem.reason)
        return Decision(Step.SUSPEND, Phase.SUSPENDING)
    if spec.desired is Desired.PAUSED and domain.power_state is PowerState.RUNNING:
        return Decision(Step.PAUSE, as_it_is.phase)
    if spec.desired is Desired.RUNNING and domain.was_paused:
        return Decision(Step.UNPAUSE, as_it_is.phase)
    return as_it_is


def _saved(spec: InstanceSpec, domain: Domain, facts: Facts, history: History) -> Decision:
    """It is off, and its memory is saved: it goes on from that, with the disks and the size that it had.

    A reboot is one of the guest that went on; only a hard one, which asks no guest, is done without.
    """
    if domain.stamp and spec.hard_reboot and _is_to_go_down(spec, domain.stamp):
        return Decision(Step.DROP_MEMORY, Phase.REBOOTING)
    if spec.desired is Desired.SUSPENDED:
        return Decision(Step.NONE, Phase.SUSPENDED)
    if history.is_exhausted and not facts.slow_retry_is_due:
        return Decision(Step.NONE, Phase.SUSPENDED, Reason.START_FAILED)
    return Decision(_resume_step(facts), Phase.BUILDING)


def _resume_step(facts: Facts) -> Step:
    """What a guest finds that goes on has to be as it is asked for by now; how it was built stays."""
    rest = (
        (facts.addresses is not None, Step.RESERVE_NETWORK),
        (facts.metadata_is_current, Step.WRITE_METADATA),
        (facts.rules_are_current, Step.WRITE_RULES),
    )
    return next((step for is_there, step in rest if not is_there), Step.RESUME)


def _is_to_go_down(spec: InstanceSpec, stamp: Stamp) -> bool:
    """A reboot was asked for, and this run of the guest began before. Once it is off, the usual rows start it again."""
    started_for = stamp.started_for or stamp.booted or spec.boot_request  # older versions noted less
    return started_for < spec.reboot_request


def _went_down(spec: InstanceSpec, domain: Domain | None, facts: Facts, history: History) -> Decision:
    """Has run before, is down now: its disk, address, claim and host are kept whatever happens."""
    if not facts.disk_is_there:
        # A fresh disk would look like the guest and be none: only its owner may ask for that.
        return Decision(Step.NONE, Phase.STOPPED, Reason.DISK_MISSING)
    if history.is_exhausted and not facts.slow_retry_is_due:
        return Decision(Step.NONE, Phase.STOPPED, Reason.START_FAILED)
    booted = domain.stamp.booted if domain and domain.stamp else history.booted
    if booted == spec.boot_request:
        cause = history.went_down or cause_of_going_down(domain, facts)
        if not _restarts(spec.restart, cause):
            return Decision(Step.NONE, Phase.STOPPED, cause)
    return Decision(_build_step(facts), Phase.BUILDING)


def cause_of_going_down(domain: Domain | None, facts: Facts) -> str:
    """Why a guest that ran is down: the host went down under it, it crashed, or it was powered off from inside."""
    if domain and domain.state_reason == "saved":  # and it is not, any more
        return Reason.MEMORY_LOST
    if domain and domain.stamp and domain.stamp.boot_id != facts.host_boot_id:
        return Reason.HOST_REBOOTED
    if domain and (domain.power_state is PowerState.CRASHED or domain.state_reason in ("crashed", "failed")):
        return Reason.CRASHED
    return Reason.GUEST_SHUTDOWN


def _restarts(policy: Restart, cause: str) -> bool:
    if policy is Restart.ALWAYS:
        return True
    return policy is Restart.ON_FAILURE and cause in (Reason.CRASHED, Reason.HOST_REBOOTED)


def _build_step(facts: Facts) -> Step:
    """The first missing fact on the way to a running guest; the address first, for whoever waits to know it."""
    if facts.addresses is None:
        return Step.RESERVE_NETWORK
    if not facts.disk_is_there:
        return Step.BUILD_DISK if facts.image_is_cached else Step.FETCH_IMAGE
    rest = (
        (facts.disk_is_large_enough, Step.GROW_DISK),
        (facts.metadata_is_current and facts.drive_is_current, Step.WRITE_METADATA),
        (facts.rules_are_current, Step.WRITE_RULES),
        (facts.domain is not None and facts.definition_is_current, Step.DEFINE),
    )
    return next((step for is_there, step in rest if not is_there), Step.START)


def _stopped(spec: InstanceSpec, facts: Facts) -> Decision:
    domain = ours(facts)
    if domain and domain.has_saved_memory:  # what it has not written yet is lost unless it is shut down
        return Decision(Step.DROP_MEMORY if spec.is_hard_stop else _resume_step(facts), Phase.STOPPING)
    if not domain or not domain.is_active:
        return Decision(Step.NONE, Phase.STOPPED)
    return Decision(_power_off_step(domain, facts, at_once=spec.is_hard_stop), Phase.STOPPING)


def _power_off_step(domain: Domain, facts: Facts, *, at_once: bool = False) -> Step:
    """Press the power button, again after a while, and pull the plug when the grace time is over.

    One that somebody paused would not hear the button.
    """
    if at_once or facts.grace_is_over:
        return Step.DESTROY
    if domain.was_paused:
        return Step.UNPAUSE
    return Step.SHUTDOWN if facts.shutdown_is_due else Step.NONE


def claimed_alternate(spec: InstanceSpec, facts: Facts) -> Alternate | None:
    """The alternate that the claim was swapped to already; only a move of ours does that, so it is proof of one."""
    if not facts.claimed_at or facts.provider in facts.claimed_at:
        return None
    return next((a for a in spec.alternates if frozenset(map(UUID, a.allocations)) == facts.claimed_at), None)


def move_target(spec: InstanceSpec, facts: Facts) -> Alternate | None:
    """The host to move to: where the claim is already, else the next one; None where nobody is left to ask."""
    claimed = claimed_alternate(spec, facts)
    left = [a for a in spec.alternates if a.provider not in facts.ruled_out]
    return claimed if claimed in left else next(iter(left), None)


def _is_between_hosts(spec: InstanceSpec, facts: Facts, history: History) -> bool:
    """A move was begun: its claim has left this host, its spec has not."""
    domain = ours(facts)
    if domain.is_active if domain else facts.domain:  # up, or somebody else's guest of this very uuid
        return False
    return not has_run(facts, history) and claimed_alternate(spec, facts) is not None


def _move(spec: InstanceSpec, facts: Facts, history: History) -> Decision:
    """It never ran and cannot be built here: off to the next host, or, where there is none, cleaned up with a reason."""
    reason = history.failure or Reason.ATTEMPTS_EXHAUSTED
    target = None if history.has_failed else move_target(spec, facts)
    is_claimed = target is not None and target == claimed_alternate(spec, facts)
    if target is None or (history.failure in _SAME_EVERYWHERE and not is_claimed):
        return Decision(_clean_up(facts), Phase.FAILED, reason)
    step = _clean_up_host(facts)
    if step is Step.NONE:
        step = Step.MOVE_SPEC if is_claimed else Step.SWAP_CLAIM
    return Decision(step, Phase.RESCHEDULING, reason)


def _deleted(facts: Facts) -> Decision:
    if facts.domain and not ours(facts) and facts.files_are_there:
        # Perhaps our guest, whose stamp was lost, and on this very disk: nobody takes that from under it.
        return Decision(Step.NONE, Phase.HELD, Reason.FOREIGN_DOMAIN)
    step = _clean_up(facts)
    return Decision(Step.FORGET if step is Step.NONE else step, Phase.DELETING)


def _clean_up(facts: Facts) -> Step:
    """The next thing to take away of an instance, its claim last: what is claimed is used. NONE when nothing is left."""
    step = _clean_up_host(facts)
    if step is not Step.NONE:
        return step
    # Releasing what is gone succeeds, so that nobody need have asked before.
    return Step.NONE if facts.allocation is Allocation.ABSENT and not facts.claimed_at else Step.RELEASE


def _clean_up_host(facts: Facts) -> Step:
    """The next thing to take away from this host; the metadata document goes before its address is free for another guest."""
    if domain := ours(facts):
        # Neither active nor off is a crashed one that is kept for a look; it must be ended as well.
        return Step.UNDEFINE if domain.power_state is PowerState.SHUTOFF else Step.DESTROY
    if facts.files_are_there or facts.metadata_is_there or facts.rules_are_there:
        return Step.REMOVE_FILES
    return Step.NONE if facts.addresses is None else Step.RELEASE_NETWORK
