"""What may be asked of an instance that is up, stands still or is down, and what is said where it may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from common.errors import Conflict
from common.model import Desired, ImageRef, InstanceSpec, InstanceStatus, Phase
from eschedule import changes, disk_edits
from eschedule.changes import Edit
from eschedule.resizing import check
from eschedule.still_edits import paused, resumed, suspended, unpaused

SPEC = InstanceSpec(uuid4(), "web", ImageRef("/x"), {"VCPU": 1})
RUNNING, PAUSED = {"desired": "running"}, {"desired": "paused"}
R, P, S, D = Desired.RUNNING, Desired.PAUSED, Desired.SUSPENDED, Desired.STOPPED
ROWS: list[tuple[Edit, Desired, Phase, Mapping[str, Any] | str | None]] = [
    (paused, R, Phase.RUNNING, PAUSED),
    (paused, R, Phase.REBOOTING, PAUSED),
    (paused, P, Phase.PAUSED, None),
    (paused, S, Phase.SUSPENDED, "stands still already; see: eschedule resume web"),
    (paused, D, Phase.STOPPED, "start it first: eschedule start web"),
    (paused, R, Phase.STOPPED, "is down, and cannot be paused"),
    (suspended, R, Phase.RUNNING, {"desired": "suspended"}),
    (suspended, P, Phase.PAUSED, {"desired": "suspended"}),
    (suspended, S, Phase.SUSPENDED, None),
    (suspended, R, Phase.FAILED, "is down, and cannot be suspended"),
    (unpaused, P, Phase.PAUSED, RUNNING),
    (unpaused, R, Phase.RUNNING, None),
    (unpaused, S, Phase.SUSPENDED, "suspended; use: eschedule resume web"),
    (unpaused, D, Phase.STOPPED, "stopped; use: eschedule start web"),
    (resumed, S, Phase.SUSPENDED, RUNNING),
    (resumed, S, Phase.SUSPENDING, RUNNING),
    (resumed, S, Phase.STOPPED, "no memory of it is saved; boot it: eschedule start web"),
    (resumed, P, Phase.PAUSED, "paused; use: eschedule unpause web"),
    (changes.started, P, Phase.PAUSED, RUNNING),
    (changes.started, S, Phase.SUSPENDED, RUNNING),
    (changes.started, S, Phase.SUSPENDING, RUNNING),
    (changes.started, S, Phase.STOPPED, {"desired": "running", "boot_request": 2}),
    (changes.stopped, S, Phase.SUSPENDED, {"desired": "stopped"}),
    (changes.destroyed, S, Phase.SUSPENDED, {"desired": "deleted"}),
    (disk_edits.reverted("a"), S, Phase.SUSPENDED, {"restore": "a", "restore_request": 2, "boot_request": 2, "desired": "running"}),
    (disk_edits.reverted("a"), D, Phase.STOPPED, {"restore": "a", "restore_request": 2, "boot_request": 2}),
    (disk_edits.rebuilt(None, None), P, Phase.PAUSED, {"rebuild_request": 2, "boot_request": 2, "desired": "running"}),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "desired", "phase", "expected"), ROWS)
def test_row(edit: Edit, desired: Desired, phase: Phase, expected: Mapping[str, Any] | str | None) -> None:
    spec, status = dataclasses.replace(SPEC, desired=desired), InstanceStatus(phase, booted=1)
    if isinstance(expected, str):
        with pytest.raises(Conflict, match=expected):
            edit(spec, status)
    else:
        assert edit(spec, status) == expected


@pytest.mark.parametrize("edit", [paused, suspended])
@pytest.mark.parametrize("status", [None, InstanceStatus(Phase.BUILDING)])
def test_what_has_not_run_has_nothing_to_stand_still_with(edit: Edit, status: InstanceStatus | None) -> None:
    with pytest.raises(Conflict, match="has not run yet"):
        edit(SPEC, status)


@pytest.mark.parametrize("edit", [paused, unpaused, suspended, resumed])
def test_what_is_being_destroyed_is_left_to_that(edit: Edit) -> None:
    with pytest.raises(Conflict, match="being destroyed"):
        edit(dataclasses.replace(SPEC, desired=Desired.DELETED), InstanceStatus(Phase.RUNNING, booted=1))


@pytest.mark.parametrize(("edit", "what"), [(changes.destroyed, "destroyed"), (disk_edits.rebuilt(None, None), "rebuilt")])
def test_a_protected_one_is_not_ended(edit: Edit, what: str) -> None:
    spec, status = dataclasses.replace(SPEC, protected=True), InstanceStatus(Phase.RUNNING, booted=1)
    with pytest.raises(Conflict, match=f"web is protected, and not {what}; take that back first: eschedule unprotect web"):
        edit(spec, status)
    assert changes.stopped(spec, status) == {"desired": "stopped"}
    assert changes.destroyed(dataclasses.replace(spec, desired=Desired.DELETED), status) is None, "it is too late"


def test_a_suspended_one_keeps_its_size() -> None:
    with pytest.raises(Conflict, match="resize it when it runs: eschedule resume web"):
        check(dataclasses.replace(SPEC, desired=Desired.SUSPENDED), InstanceStatus(Phase.SUSPENDED, booted=1), {"VCPU": 2})
