"""The life of a volume, row by row, and what holds from every state: the steps end, and no data goes that was not asked to."""

from __future__ import annotations

import dataclasses
import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.hardware import DiskBus, Hardware
from common.model import ImageRef, InstanceSpec, VolumeRef
from common.volume_records import VolumeDesired, VolumePhase, VolumeSpec
from ecompute.volume_decisions import (
    Claimed,
    GuestVolumes,
    Plug,
    VolumeDecision,
    VolumeFacts,
    VolumeStep,
    decide_volume,
    plug,
    volume_notes,
)

SPEC, GUEST = VolumeSpec(UUID(int=1), "data", 3), UUID(int=9)
ATTACHED = dataclasses.replace(SPEC, attached_to=GUEST)
DELETED = dataclasses.replace(SPEC, desired=VolumeDesired.DELETED)
MADE = VolumeFacts(file_is_there=True, was_made=True)

ROWS: list[tuple[str, VolumeSpec | None, VolumeFacts, VolumeStep, VolumePhase | None]] = [
    ("a new one is made", SPEC, VolumeFacts(claim=Claimed.PRESENT), VolumeStep.MAKE, VolumePhase.PENDING),
    ("one without a claim is not", SPEC, VolumeFacts(claim=Claimed.ABSENT), VolumeStep.NONE, VolumePhase.REFUSED),
    ("one that is there is available", SPEC, MADE, VolumeStep.NONE, VolumePhase.AVAILABLE),
    ("one that was there is never made again", SPEC, VolumeFacts(was_made=True, claim=Claimed.PRESENT), VolumeStep.NONE, VolumePhase.MISSING),
    ("one that is there keeps its claim", SPEC, dataclasses.replace(MADE, claim=Claimed.ABSENT), VolumeStep.ASSERT_CLAIM, VolumePhase.AVAILABLE),
    ("one that an instance has", ATTACHED, dataclasses.replace(MADE, is_wanted=True), VolumeStep.NONE, VolumePhase.ATTACHED),
    ("one that its guest has still", ATTACHED, dataclasses.replace(MADE, users=frozenset({GUEST})), VolumeStep.NONE, VolumePhase.DETACHING),
    ("one whose guest is worked on", ATTACHED, dataclasses.replace(MADE, is_at_rest=False), VolumeStep.NONE, VolumePhase.DETACHING),
    ("one that nobody has", ATTACHED, MADE, VolumeStep.FREE, VolumePhase.DETACHING),
    ("one that is to go, and a domain has", DELETED, dataclasses.replace(MADE, users=frozenset({GUEST})), VolumeStep.NONE, VolumePhase.DELETING),
    ("one that is to go", DELETED, MADE, VolumeStep.REMOVE, VolumePhase.DELETING),
    ("one whose file is gone", DELETED, VolumeFacts(was_made=True), VolumeStep.RELEASE, VolumePhase.DELETING),
    ("one of which nothing is left", DELETED, VolumeFacts(claim=Claimed.ABSENT), VolumeStep.FORGET, VolumePhase.DELETING),
    ("a claim of nobody", None, VolumeFacts(claim=Claimed.PRESENT, claim_is_orphaned=True), VolumeStep.RELEASE, None),
    ("a claim of nobody yet", None, VolumeFacts(claim=Claimed.PRESENT), VolumeStep.NONE, None),
    ("a file that no spec speaks for", None, VolumeFacts(True, claim=Claimed.PRESENT, claim_is_orphaned=True), VolumeStep.NONE, None),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "facts", "step", "phase"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_each_row(spec: VolumeSpec | None, facts: VolumeFacts, step: VolumeStep, phase: VolumePhase | None) -> None:
    decision = decide_volume(spec, facts)
    assert (decision.step, decision.phase) == (step, phase)


specs = st.none() | st.builds(
    VolumeSpec, uuid=st.just(UUID(int=1)), name=st.just("data"), size_gib=st.just(1), desired=st.sampled_from(VolumeDesired),
    attached_to=st.none() | st.just(GUEST),
)  # fmt: skip
any_facts = st.builds(
    VolumeFacts, users=st.sampled_from([frozenset(), frozenset({GUEST})]), claim=st.sampled_from(Claimed),
    file_is_there=st.booleans(), was_made=st.booleans(), is_wanted=st.booleans(), is_at_rest=st.booleans(),
    claim_is_orphaned=st.booleans(),
)  # fmt: skip


def after(step: VolumeStep, spec: VolumeSpec | None, facts: VolumeFacts) -> tuple[VolumeSpec | None, VolumeFacts]:
    """The world once *step* is done."""
    if step is VolumeStep.FREE:
        assert spec is not None
        return dataclasses.replace(spec, attached_to=None), facts
    changed = {
        VolumeStep.MAKE: {"file_is_there": True, "was_made": True},
        VolumeStep.ASSERT_CLAIM: {"claim": Claimed.PRESENT},
        VolumeStep.REMOVE: {"file_is_there": False},
        VolumeStep.RELEASE: {"claim": Claimed.ABSENT, "claim_is_orphaned": False},
    }
    return spec, dataclasses.replace(facts, **changed.get(step, {}))


@given(specs, any_facts)
def test_the_steps_end_and_no_data_is_lost_on_the_way(spec: VolumeSpec | None, facts: VolumeFacts) -> None:
    for _ in range(8):
        step = decide_volume(spec, facts).step
        if step in (VolumeStep.NONE, VolumeStep.FORGET):
            break
        if step is VolumeStep.REMOVE:
            assert spec is not None and spec.desired is VolumeDesired.DELETED and not facts.users and spec.attached_to is None
        if step is VolumeStep.MAKE:
            assert not facts.was_made and not facts.file_is_there
        if step is VolumeStep.FREE:
            assert not facts.users and not facts.is_wanted and facts.is_at_rest
        if step is VolumeStep.RELEASE:
            assert not facts.file_is_there
        spec, facts = after(step, spec, facts)
    else:
        raise AssertionError(f"the steps do not end: {spec}, {facts}")
    if spec is not None and decide_volume(spec, facts).step is VolumeStep.FORGET:
        assert not facts.file_is_there and facts.claim is Claimed.ABSENT


@given(specs, any_facts)
def test_a_spec_always_has_a_phase_and_what_is_waited_for_is_said(spec: VolumeSpec | None, facts: VolumeFacts) -> None:
    decision: VolumeDecision = decide_volume(spec, facts)
    assert (decision.phase is None) == (spec is None)
    waits = decision.phase in (VolumePhase.DETACHING, VolumePhase.MISSING, VolumePhase.REFUSED, VolumePhase.DELETING)
    assert bool(decision.message) == (waits and decision.step is VolumeStep.NONE)


# -- the volumes of a guest ----------------------------------------------------------------------------------------------

A, B = UUID(int=0xA), UUID(int=0xB)
some = st.frozensets(st.sampled_from([A, B]))


def guest(*volumes: UUID, bus: DiskBus = DiskBus.VIRTIO) -> InstanceSpec:
    refs = tuple(VolumeRef(volume, f"volume-{string.ascii_lowercase[slot]}", slot) for slot, volume in enumerate(volumes))
    return InstanceSpec(GUEST, "web", ImageRef("/i"), {"VCPU": 1}, volumes=refs, hardware=Hardware(bus))


@given(some, some, some, st.booleans(), st.sampled_from(DiskBus))
def test_guest_and_definition_come_to_what_the_spec_says(
    wanted: frozenset[UUID], defined: frozenset[UUID], live: frozenset[UUID], is_active: bool, bus: DiskBus
) -> None:
    spec, there = guest(*sorted(wanted), bus=bus), GuestVolumes(defined, live if is_active else frozenset())
    for _ in range(3):
        what = plug(spec, there, is_active=is_active)
        if what is None:
            break
        can_plug = is_active and bus is DiskBus.VIRTIO
        if what is Plug.IN:
            there = dataclasses.replace(there, defined=wanted, live=there.live | wanted if can_plug else there.live)
        else:
            there = dataclasses.replace(there, defined=wanted, live=there.live & wanted if can_plug else there.live)
    assert what is None and there.defined == wanted
    assert there.live == (wanted if is_active and bus is DiskBus.VIRTIO else live if is_active else frozenset())


def test_what_goes_does_not_keep_others_from_coming() -> None:
    held = GuestVolumes(defined=frozenset({B}), live=frozenset({A}), was_asked=True, held=("volume-a",))
    assert plug(guest(B), held, is_active=True) is Plug.IN
    assert volume_notes(guest(B), held, is_active=True) == ("the guest has not let go of volume volume-a",)
    assert volume_notes(guest(B), held, is_active=False) == ()
    assert volume_notes(guest(A, bus=DiskBus.SATA), GuestVolumes(frozenset({A})), is_active=True) == (
        "SATA disks come and go while it is off: stop and start it for volume volume-a",
    )
