"""The edits that ask for another disk: one that goes back to a snapshot, or one made anew of an image. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import Conflict
from common.hardware import Hardware
from common.model import Desired, ImageRef, InstanceSpec, InstanceStatus
from eschedule.changes import Edit, refuse_protected


def reverted(snapshot: str) -> Edit:
    """The edit that asks for the disk as it was when *snapshot* was taken, and for a boot of a guest that is to run."""

    def edit(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any]:
        _refuse(spec, status, "reverted")
        number = _next(spec, status)
        return {"restore": snapshot, "restore_request": number, "boot_request": number, **_awake(spec)}

    return edit


def rebuilt(image: ImageRef | None, hardware: Hardware | None) -> Edit:
    """The edit that asks for a new disk of *image* for *hardware*; of the image that it has, where None."""

    def edit(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any]:
        _refuse(spec, status, "rebuilt")
        refuse_protected(spec, "rebuilt")
        if image is None and status and status.rebuilt and status.rebuilt.problem:
            raise Conflict(
                f"the last rebuild of {spec.name}, of {spec.image.name or spec.image.url}, was given up, so that its disk is "
                f"of another image: say which one is meant: eschedule rebuild {spec.name} --image IMAGE"
            )
        number = _next(spec, status)
        new = {"image": image, "hardware": hardware} if image else {}
        return {**new, "rebuild_request": number, "boot_request": number, **_awake(spec)}

    return edit


def _awake(spec: InstanceSpec) -> Mapping[str, Any]:
    """What the guest stands still in goes with its disk: it boots as one that runs."""
    return {"desired": Desired.RUNNING.value} if spec.desired.stands_still else {}


def _refuse(spec: InstanceSpec, status: InstanceStatus | None, what: str) -> None:
    """Raises: Conflict: *spec* is of an instance that has no disk of its own yet, or none any more."""
    if spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {spec.name} is being destroyed; see: eschedule show {spec.name}")
    if status is None or not status.booted:
        raise Conflict(
            f"the instance {spec.name} has not run yet, so that there is nothing to be {what}; see: eschedule show {spec.name}"
        )


def _next(spec: InstanceSpec, status: InstanceStatus | None) -> int:
    """A number above all that its host has dealt with, be the spec an older one that was restored."""
    known = (status.restored, status.rebuilt) if status else ()
    return max([spec.boot_request, *(applied.request for applied in known if applied)]) + 1
