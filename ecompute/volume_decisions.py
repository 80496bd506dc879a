"""What to do next for one volume, and for the volumes of one guest, decided from what is asked for and what is there. Pure.

The volume keeper and the machine gather the facts, take the one step that is named here, and look again. One rule stands above
all: **a volume is data**. Its file is taken away by ``desired = deleted`` alone, and never while a domain has it; one that was
there once and is gone is never made again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from uuid import UUID

from common.hardware import DiskBus
from common.model import InstanceSpec
from common.volume_records import VolumeDesired, VolumePhase, VolumeSpec


class VolumeStep(enum.StrEnum):
    """One idempotent action on one volume."""

    NONE = "None"
    MAKE = "MakeVolume"
    ASSERT_CLAIM = "AssertVolumeClaim"
    FREE = "FreeVolume"
    REMOVE = "RemoveVolume"
    RELEASE = "ReleaseVolume"
    FORGET = "ForgetVolume"


class Claimed(enum.StrEnum):
    """What Placement says of a volume's claim on this host."""

    PRESENT = "present"
    ABSENT = "absent"
    UNASKED = "unasked"  # not needed to decide


@dataclass(frozen=True)
class VolumeFacts:
    """What is there of one volume now.

    Args:
        was_made: its file was there once, as its status remembers.
        users: the domains that have its file, running or not.
        is_wanted: the spec of the instance that it is attached to names it.
        is_at_rest: nobody works on an earlier spec of that instance any more, or it has none.
        claim_is_orphaned: a claim has been seen without a spec for so long that its client must be dead.
    """

    file_is_there: bool = False
    was_made: bool = False
    users: frozenset[UUID] = frozenset()
    is_wanted: bool = False
    is_at_rest: bool = True
    claim: Claimed = Claimed.UNASKED
    claim_is_orphaned: bool = False


@dataclass(frozen=True)
class VolumeDecision:
    """The next step, and what to report meanwhile; no *phase*: there is no spec that a status could belong to."""

    step: VolumeStep
    phase: VolumePhase | None = None
    message: str = ""


def decide_volume(spec: VolumeSpec | None, facts: VolumeFacts) -> VolumeDecision:
    """The next step of a volume; first matching row."""
    if spec is None:
        is_left = facts.claim is Claimed.PRESENT and facts.claim_is_orphaned and not facts.file_is_there
        return VolumeDecision(VolumeStep.RELEASE if is_left else VolumeStep.NONE)
    if spec.attached_to and not facts.is_wanted:
        return _leaving(spec, facts)
    if spec.desired is VolumeDesired.DELETED:
        return _deleted(spec, facts)
    return _kept(spec, facts)


def _leaving(spec: VolumeSpec, facts: VolumeFacts) -> VolumeDecision:
    """Its instance is to have it no more, or is gone: it is free once nobody can use it."""
    if facts.users or not facts.is_at_rest:
        return VolumeDecision(VolumeStep.NONE, VolumePhase.DETACHING, f"the instance {spec.attached_to} has not let go of it")
    return VolumeDecision(VolumeStep.FREE, VolumePhase.DETACHING)


def _deleted(spec: VolumeSpec, facts: VolumeFacts) -> VolumeDecision:
    if spec.attached_to or facts.users:
        who = ", ".join(sorted(map(str, facts.users or {spec.attached_to})))
        return VolumeDecision(VolumeStep.NONE, VolumePhase.DELETING, f"{who} has it; nothing is deleted under a guest")
    if facts.file_is_there:
        return VolumeDecision(VolumeStep.REMOVE, VolumePhase.DELETING)
    # Releasing what is gone succeeds, so that nobody need have asked before.
    step = VolumeStep.FORGET if facts.claim is Claimed.ABSENT else VolumeStep.RELEASE
    return VolumeDecision(step, VolumePhase.DELETING)


def _kept(spec: VolumeSpec, facts: VolumeFacts) -> VolumeDecision:
    phase = VolumePhase.ATTACHED if spec.attached_to else VolumePhase.AVAILABLE
    if facts.file_is_there:
        step = VolumeStep.ASSERT_CLAIM if facts.claim is Claimed.ABSENT else VolumeStep.NONE
        return VolumeDecision(step, phase)
    if facts.was_made:
        why = "its file was there and is gone; no empty one is put in its place: put it back, or remove the volume"
        return VolumeDecision(VolumeStep.NONE, VolumePhase.MISSING, why)
    if facts.claim is Claimed.ABSENT:
        why = "Placement knows no claim of it on this host: remove it, and create it again"
        return VolumeDecision(VolumeStep.NONE, VolumePhase.REFUSED, why)
    return VolumeDecision(VolumeStep.MAKE, VolumePhase.PENDING)


# -- the volumes of a guest ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuestVolumes:
    """The volumes that a domain has.

    Args:
        defined: those that it is started with. *live*: those that its guest has now, none where it is off.
        was_asked: its guest was asked a short while ago to let go of what it is to have no more.
        held: the names of those.
        is_pluggable: its disks are on a bus that they come to and go from while it runs.
    """

    defined: frozenset[UUID] = frozenset()
    live: frozenset[UUID] = frozenset()
    was_asked: bool = False
    held: tuple[str, ...] = ()
    is_pluggable: bool = True


class Plug(enum.Enum):
    """What is to be done to the volumes of a guest."""

    IN = "in"
    OUT = "out"


def plug(spec: InstanceSpec, there: GuestVolumes, *, is_active: bool) -> Plug | None:
    """What is to be done next, so that guest and definition have just the volumes of *spec*.

    Out goes first, since what comes may take its place; but who was asked a moment ago, and does not let go of one volume, gets
    the others. The definition is seen to also where disks cannot be plugged: the guest finds them when it is started next.
    """
    wanted = frozenset(volume.uuid for volume in spec.volumes)
    can_plug = is_active and is_pluggable(spec, there)
    if not there.defined <= wanted or (can_plug and not there.live <= wanted and not there.was_asked):
        return Plug.OUT
    if not wanted <= there.defined or (can_plug and not wanted <= there.live):
        return Plug.IN
    return None


def is_pluggable(spec: InstanceSpec, there: GuestVolumes) -> bool:
    """Whether the guest's disks come and go while it runs, by what it was asked to be and by what it is."""
    return spec.hardware.disk_bus is DiskBus.VIRTIO and there.is_pluggable


def volume_notes(spec: InstanceSpec | None, there: GuestVolumes | None, *, is_active: bool) -> tuple[str, ...]:
    """What of the volumes is not as asked for although the guest runs, for people."""
    if spec is None or there is None or not is_active:
        return ()
    if is_pluggable(spec, there):
        return tuple(f"the guest has not let go of volume {name}" for name in there.held)
    missing = [volume.name for volume in spec.volumes if volume.uuid not in there.live]
    if not missing and not there.held:
        return ()
    return (f"SATA disks come and go while it is off: stop and start it for volume {', '.join([*missing, *there.held])}",)
