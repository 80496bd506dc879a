"""The edits that ask for a guest to stand still and to go on: pause and unpause, suspend and resume. Pure.

None of them asks for a boot: what goes on is the guest that there is. So each is refused where there is none, with what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import Conflict
from common.model import Desired, InstanceSpec, InstanceStatus, Phase

_DOWN = (Phase.STOPPED, Phase.FAILED, Phase.REFUSED)


def paused(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that has the guest's CPUs stopped; it keeps its memory."""
    if spec.desired is Desired.SUSPENDED:
        raise Conflict(f"{spec.name} is suspended, and stands still already; see: eschedule resume {spec.name}")
    return _still(spec, status, Desired.PAUSED)


def suspended(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that has the guest's memory saved to a file of its host."""
    return _still(spec, status, Desired.SUSPENDED)


def _still(spec: InstanceSpec, status: InstanceStatus | None, wanted: Desired) -> Mapping[str, Any] | None:
    _refuse_ending(spec)
    if spec.desired is wanted:
        return None
    if spec.desired is Desired.STOPPED or (status is not None and status.phase in _DOWN):
        raise Conflict(f"{spec.name} is down, and cannot be {wanted}; start it first: eschedule start {spec.name}")
    if status is None or not status.booted:
        raise Conflict(f"{spec.name} has not run yet; wait until it does, then repeat this: eschedule show {spec.name}")
    return {"desired": wanted.value}


def unpaused(spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that has a paused guest go on; one that runs is left alone."""
    return _going_on(spec, Desired.PAUSED, {Desired.SUSPENDED: f"suspended; use: eschedule resume {spec.name}"})


def resumed(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
    """The edit that has a suspended guest go on from its saved memory; one that runs is left alone."""
    if spec.desired is Desired.SUSPENDED and status is not None and status.phase in _DOWN:
        raise Conflict(f"{spec.name} is down, and no memory of it is saved; boot it: eschedule start {spec.name}")
    return _going_on(spec, Desired.SUSPENDED, {Desired.PAUSED: f"paused; use: eschedule unpause {spec.name}"})


def _going_on(spec: InstanceSpec, left: Desired, others: Mapping[Desired, str]) -> Mapping[str, Any] | None:
    _refuse_ending(spec)
    if spec.desired is left:
        return {"desired": Desired.RUNNING.value}
    if spec.desired is Desired.RUNNING:
        return None
    raise Conflict(f"{spec.name} is {others.get(spec.desired, f'stopped; use: eschedule start {spec.name}')}")


def refuse_suspended(spec: InstanceSpec, what: str) -> None:
    """Raises: Conflict: *spec* is of a guest that goes on with what it has: first that, then *what*."""
    if spec.desired is Desired.SUSPENDED:
        raise Conflict(
            f"{spec.name} is suspended, and goes on with just the memory and the disks that it has; {what} when it runs: "
            f"eschedule resume {spec.name}"
        )


def _refuse_ending(spec: InstanceSpec) -> None:
    if spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {spec.name} is being destroyed; see: eschedule show {spec.name}")
