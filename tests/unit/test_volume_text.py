"""What is said of a volume is what its keys tell, also while its host has not said anew how it is."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from common.store import Versioned
from common.volume_records import VolumePhase, VolumePlace, VolumeSpec, VolumeStatus
from eschedule.listing import HostName
from eschedule.volume_changes import Volume
from eschedule.volume_text import volume_block, volume_json

HOST, WEB = HostName(UUID(int=1), "host1", True), UUID(int=7)
AVAILABLE, ATTACHED, DETACHING = VolumePhase.AVAILABLE, VolumePhase.ATTACHED, VolumePhase.DETACHING


def volume(attached_to: UUID | None, said: VolumePhase, *, is_seen: bool) -> Volume:
    spec = VolumeSpec(UUID(int=5), "data", 1, attached_to=attached_to)
    status = VolumeStatus(said, "of then", spec_revision=9 if is_seen else 8, was_made=True)
    item = Versioned("k", spec.to_json(), 1, 9)
    return Volume(VolumePlace(HOST.provider, spec.uuid), item, spec, status, HOST)


@pytest.mark.parametrize(
    ("attached_to", "said", "phase"),
    [(WEB, AVAILABLE, ATTACHED), (None, DETACHING, AVAILABLE), (None, ATTACHED, AVAILABLE)],
)
def test_what_its_host_said_before_it_came_or_went_is_not_said_of_it_now(
    attached_to: UUID | None, said: VolumePhase, phase: VolumePhase
) -> None:
    found = volume(attached_to, said, is_seen=False)
    assert (volume_json(found)["phase"], volume_json(found)["message"]) == (phase, "")
    assert "of then" not in volume_block(found)
    told = dataclasses.replace(found, item=dataclasses.replace(found.item, mod_revision=8))
    assert (volume_json(told)["phase"], volume_json(told)["message"]) == (said, "of then")


@pytest.mark.parametrize("said", [VolumePhase.MISSING, VolumePhase.PENDING, DETACHING])
def test_what_else_its_host_says_stands(said: VolumePhase) -> None:
    found = volume(WEB, said, is_seen=False)
    assert (volume_json(found)["phase"], volume_json(found)["message"]) == (said, "of then")
