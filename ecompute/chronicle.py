"""What of an instance's statuses is worth a line in the journal: each is compared with the one that was written before. Pure.

Only a host's own words come in, never a guest's. Steps of a build are in the status; the journal has what somebody asks for who
was not there: that a guest runs, went down and why, could not be built, has failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from common.disk_requests import Applied
from common.model import Event, InstanceStatus, Phase, Reason
from ecompute.machine import Step

WENT_DOWN = {Reason.GUEST_SHUTDOWN: "powered off", Reason.CRASHED: "crashed", Reason.HOST_REBOOTED: "host rebooted"}
_AT_REST = {
    Phase.FAILED: "failed",
    Phase.REFUSED: "refused",
    Phase.HELD: "held",
    Phase.PAUSED: "paused",
    Phase.SUSPENDED: "suspended",
}
_GOES_ON = {Phase.PAUSED: "unpaused", Phase.SUSPENDED: "resumed"}


class Entry(NamedTuple):
    """One line: what happened, and more for people."""

    what: str
    message: str = ""


def entries(before: InstanceStatus | None, after: InstanceStatus) -> list[Entry]:
    """What happened between *before*, None where nothing was said yet on this host, and *after*."""
    known = set(before.events) if before else set()
    new = [event for event in after.events if event not in known]
    return [*_of_events(new, before), *_of_disk(before, after), *_of_phase(before, after), *_of_guest(before, after)]


def _of_events(new: list[Event], before: InstanceStatus | None) -> Iterator[Entry]:
    """Guests that went down by themselves, and what went wrong; the same trouble again is no news."""
    said = {event.message for event in before.events} if before else set()
    for event in new:
        if event.step in WENT_DOWN:
            yield Entry(WENT_DOWN[Reason(event.step)])
        elif event.message and event.message not in said:
            said.add(event.message)
            yield Entry("trouble", f"{event.step}: {event.message}")


def _of_disk(before: InstanceStatus | None, after: InstanceStatus) -> Iterator[Entry]:
    pairs = (
        ("reverted", before and before.restored, after.restored),
        ("rebuilt", before and before.rebuilt, after.rebuilt),
    )
    for what, was, now in pairs:
        if now is not None and now.request > (was.request if isinstance(was, Applied) else 0) and before is not None:
            yield Entry(f"not {what}", now.problem) if now.problem else Entry(what)


def _of_phase(before: InstanceStatus | None, after: InstanceStatus) -> Iterator[Entry]:
    was = before.phase if before else None
    booted = before.booted if before else 0
    if after.phase is Phase.RUNNING:
        if after.booted > booted:
            yield Entry("started" if booted else "built", _took(after))
        elif was in _GOES_ON:
            yield Entry(_GOES_ON[was])
        elif was is not None and was is not Phase.RUNNING:
            yield Entry("resumed" if _is_resumed(after) else "running again")
    elif after.phase is was:
        return
    elif after.phase is Phase.STOPPED:
        if after.reason not in WENT_DOWN:
            yield Entry("stopped", _why(after))
        elif not after.events or after.events[-1].step != after.reason:  # else ``_of_events`` has said it
            yield Entry(WENT_DOWN[Reason(after.reason)])
    elif after.phase in _AT_REST:
        yield Entry(_AT_REST[after.phase], _why(after))


def _is_resumed(status: InstanceStatus) -> bool:
    """Whether what runs went on from its saved memory; else it was started."""
    last = next((event.step for event in reversed(status.events) if event.step in (Step.START, Step.RESUME)), "")
    return last == Step.RESUME


def _of_guest(before: InstanceStatus | None, after: InstanceStatus) -> Iterator[Entry]:
    """That it said it is ready, once a boot; what it said is its own."""
    was = before.ready.boot_request if before and before.ready else 0
    if after.ready is not None and after.ready.boot_request > was:
        yield Entry("ready")


def _why(status: InstanceStatus) -> str:
    parts = (status.failure or status.reason, status.message or status.failure_message)
    return ": ".join(part for part in parts if part)


def _took(status: InstanceStatus) -> str:
    return f"attempt {status.attempts}" if status.attempts > 1 else ""
