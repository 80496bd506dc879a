"""What asks for another disk, and what the answer of the host means for whoever waits."""

from __future__ import annotations

import dataclasses
import datetime
from uuid import UUID

import pytest

from common.disk_requests import Applied, DiskRequest, due
from common.errors import Conflict
from common.hardware import USUAL
from common.model import Desired, ImageRef, InstanceSpec, InstanceStatus, Phase
from eschedule.disk_edits import rebuilt, reverted
from eschedule.follow import Ending, Goal, View, judge
from eschedule.listing import HostName, InstanceRow
from eschedule.render import instance_block

SPEC = InstanceSpec(UUID(int=1), "web", ImageRef("/i"), {"VCPU": 1}, boot_request=4)
STATUS = InstanceStatus(Phase.RUNNING, spec_revision=7, booted=4)


def test_a_revert_asks_for_a_boot_and_leaves_what_is_desired() -> None:
    assert reverted("before")(SPEC, STATUS) == {"restore": "before", "restore_request": 5, "boot_request": 5}


def test_a_rebuild_of_its_own_image_keeps_image_and_hardware() -> None:
    assert rebuilt(None, None)(SPEC, STATUS) == {"rebuild_request": 5, "boot_request": 5}
    image = ImageRef("/other")
    assert rebuilt(image, USUAL)(SPEC, STATUS) == {
        "image": image, "hardware": USUAL, "rebuild_request": 5, "boot_request": 5,
    }  # fmt: skip


def test_which_image_is_meant_is_to_be_said_where_the_last_one_could_not_be_had() -> None:
    status = dataclasses.replace(STATUS, rebuilt=Applied(3, "ImageNotFound: gone"))
    with pytest.raises(Conflict, match="of /i, was given up, so that its disk is of another image: say which one is meant"):
        rebuilt(None, None)(SPEC, status)
    assert rebuilt(ImageRef("/i"), USUAL)(SPEC, status) is not None


def test_a_number_is_above_all_that_the_host_has_dealt_with() -> None:
    """Also where etcd was restored, and the spec is an older one."""
    status = dataclasses.replace(STATUS, restored=Applied(9), rebuilt=Applied(11))
    assert reverted("before")(SPEC, status)["restore_request"] == 12  # type: ignore[index]


@pytest.mark.parametrize("edit", [reverted("before"), rebuilt(None, None)])
def test_what_has_no_disk_of_its_own_is_refused(edit) -> None:  # type: ignore[no-untyped-def]
    for status in (None, InstanceStatus(Phase.BUILDING)):
        with pytest.raises(Conflict, match="has not run yet"):
            edit(SPEC, status)
    with pytest.raises(Conflict, match="is being destroyed"):
        edit(dataclasses.replace(SPEC, desired=Desired.DELETED), STATUS)


@pytest.mark.parametrize(
    ("restore", "restored", "rebuild", "rebuilt_", "expected"),
    [
        (0, 0, 0, 0, None),
        (5, 5, 4, 4, None),
        (5, 4, 0, 0, DiskRequest.RESTORE),
        (0, 0, 5, 4, DiskRequest.REBUILD),
        (5, 0, 6, 0, DiskRequest.RESTORE),
        (6, 0, 5, 0, DiskRequest.REBUILD),
        (4, 5, 6, 0, DiskRequest.REBUILD),
    ],
)
def test_requests_are_due_in_the_order_of_their_numbers(
    restore: int, restored: int, rebuild: int, rebuilt_: int, expected: DiskRequest | None
) -> None:
    assert due(restore=restore, restored=Applied(restored), rebuild=rebuild, rebuilt=Applied(rebuilt_)) is expected


def judged(goal: Goal = Goal.RESTORED, *, desired: Desired = Desired.RUNNING, **status: object) -> tuple[Ending, str] | None:
    spec = dataclasses.replace(SPEC, boot_request=5, restore_request=5, rebuild_request=5, desired=desired)
    seen = dataclasses.replace(STATUS, **status)  # type: ignore[arg-type]
    outcome = judge(goal, View(SPEC.uuid, "web", UUID(int=2), "h1", spec, 7, seen))
    return None if outcome is None else (outcome.ending, outcome.message)


def test_a_revert_is_waited_for_until_the_guest_is_up_again() -> None:
    assert judged(restored=None) is None
    assert judged(restored=Applied(4), booted=5) is None
    assert judged(restored=Applied(5), booted=4) is None
    assert judged(restored=Applied(5), booted=5) == (Ending.REACHED, "")
    assert judged(restored=Applied(5), phase=Phase.STOPPED, desired=Desired.STOPPED) == (Ending.REACHED, "")
    assert judged(Goal.REBUILT, restored=Applied(5), booted=5) is None
    assert judged(Goal.REBUILT, rebuilt=Applied(5), booted=5) == (Ending.REACHED, "")


def test_why_it_was_given_up_is_told_and_that_the_disk_is_as_it_was() -> None:
    assert judged(restored=Applied(5, "NoSnapshot: gone"), booted=5) == (
        Ending.FAILED, "its disk was not restored, and is as it was (NoSnapshot: gone); it is Running",
    )  # fmt: skip
    down = judged(Goal.REBUILT, rebuilt=Applied(5), phase=Phase.STOPPED, reason="StartFailed")
    assert down == (Ending.FAILED, "its disk was rebuilt, and now it is Stopped (StartFailed)")
    assert judged(desired=Desired.DELETED) == (Ending.FAILED, "somebody asked meanwhile that it be deleted")
    assert judged(phase=Phase.HELD) == (Ending.FAILED, "Held")


def test_show_has_what_was_given_up() -> None:
    status = dataclasses.replace(STATUS, rebuilt=Applied(5, "ImageNotFound: gone"), restored=Applied(4))
    row = InstanceRow(SPEC.uuid, "web", HostName(UUID(int=2), "h1", True), "Running", "", SPEC, status)
    text = instance_block(row, datetime.datetime.now(datetime.UTC))
    assert "a rebuild was given up, the disk is as it was: ImageNotFound: gone" in text
    assert "revert" not in text
