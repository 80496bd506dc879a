"""The life of an instance, row by row, and what holds from every state: the steps end, and a guest that ran is never rebuilt."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.disk_requests import Applied, DiskRequest
from common.model import Address, Adoption, Alternate, Desired, ImageRef, InstanceSpec, Phase, Reason, Restart, VolumeRef
from ecompute.hypervisor import Domain, PowerState, Stamp
from ecompute.machine import (
    Allocation,
    Decision,
    DiskFacts,
    Facts,
    History,
    Problem,
    Step,
    claimed_alternate,
    decide,
    is_up,
    move_target,
    ours,
)
from ecompute.volume_decisions import GuestVolumes

PROVIDER, OTHER = UUID(int=1), UUID(int=2)
CLUSTER, REVISION, BOOT = 77, 10, "boot-1"
ADDRESSES = (Address("default", "52:54:c0:a8:7a:32", "192.168.122.50"),)
SPEC = InstanceSpec(UUID(int=9), "web", ImageRef("/i"), {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1})
NOTHING = Facts(PROVIDER, CLUSTER, REVISION, BOOT, allocation=Allocation.PRESENT)
READY = dataclasses.replace(
    NOTHING, disk_is_there=True, files_are_there=True, image_is_cached=True, addresses=ADDRESSES,
    metadata_is_there=True, metadata_is_current=True, drive_is_current=True, definition_is_current=True,
)  # fmt: skip
FRESH = History()


def stamp(**changes: object) -> Stamp:
    return dataclasses.replace(Stamp(PROVIDER, CLUSTER, REVISION, booted=0, definition="d", boot_id=BOOT), **changes)  # type: ignore[arg-type]


def domain(power: PowerState = PowerState.SHUTOFF, reason: str = "shutdown", mark: Stamp | None = None) -> Domain:
    return Domain(SPEC.uuid, "web", power, reason, mark)


def facts(base: Facts = NOTHING, **changes: object) -> Facts:
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def spec(**changes: object) -> InstanceSpec:
    return dataclasses.replace(SPEC, **changes)  # type: ignore[arg-type]


RAN = stamp(booted=1, started_for=1)
THIRD = UUID(int=3)
TO_OTHER, TO_THIRD = (Alternate(p, {str(p): {"VCPU": 1}}) for p in (OTHER, THIRD))
MOVABLE = spec(alternates=(TO_OTHER, TO_THIRD))
TRIED = History(attempts=1, failure="NoSpace")
SWAPPED = facts(allocation=Allocation.ABSENT, claimed_at=frozenset({OTHER}))
REBOOT = spec(boot_request=2, reboot_request=2)
UP, OFF = domain(PowerState.RUNNING, "booted", RAN), domain(mark=RAN)
RESTORE = spec(boot_request=2, restore="before", restore_request=2)
REBUILD = spec(boot_request=2, rebuild_request=2)
SNAPSHOT, NEW_DISK = DiskFacts(snapshot_is_there=True), DiskFacts(new_disk_is_there=True)
RESTORED, NOT_RESTORED = DiskFacts(restored=Applied(2)), DiskFacts(restored=Applied(2, "NoSnapshot: gone"))
REBUILT, NOT_REBUILT = DiskFacts(rebuilt=Applied(2)), DiskFacts(rebuilt=Applied(2, "ChecksumMismatch: other"))
WITH_VOLUME, HAS = spec(volumes=(VolumeRef(UUID(int=8), "data", 0),)), frozenset({UUID(int=8)})
STOPPED, DELETED = spec(desired=Desired.STOPPED), spec(desired=Desired.DELETED)
PAUSED, SUSPENDED = spec(desired=Desired.PAUSED), spec(desired=Desired.SUSPENDED)
FORCED = spec(desired=Desired.STOPPED, hard_stop_request=1)
HARD = dataclasses.replace(REBOOT, hard_reboot=True)
HALTED = domain(PowerState.PAUSED, "user", RAN)
SAVED = dataclasses.replace(domain(reason="saved", mark=RAN), has_saved_memory=True)
FULL = Problem("NoSpace", "no room")

ROWS: list[tuple[str, InstanceSpec | None, Facts, History, Decision]] = [
    # -- another disk --
    ("a revert pulls the plug", RESTORE, facts(READY, domain=UP, disk=SNAPSHOT), FRESH, Decision(Step.DESTROY, Phase.REBOOTING, Reason.RESTORING)),
    ("a revert stops nothing for a snapshot that is not there", RESTORE, facts(READY, domain=UP), FRESH,
     Decision(Step.RESTORE_DISK, Phase.RUNNING, Reason.RESTORING)),
    ("once off it goes back", RESTORE, facts(READY, domain=OFF, disk=SNAPSHOT), FRESH, Decision(Step.RESTORE_DISK, Phase.REBOOTING, Reason.RESTORING)),
    ("reverted it starts", RESTORE, facts(READY, domain=OFF, disk=RESTORED), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("a revert that was given up starts it as it was", RESTORE, facts(READY, domain=OFF, disk=NOT_RESTORED), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("one that was given up while it ran is over", RESTORE, facts(READY, domain=UP, disk=NOT_RESTORED), FRESH, Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("one that is to be off goes back and stays off", dataclasses.replace(RESTORE, desired=Desired.STOPPED), facts(READY, domain=OFF, disk=SNAPSHOT), FRESH,
     Decision(Step.RESTORE_DISK, Phase.STOPPED, Reason.RESTORING)),
    ("reverted while off it stays off", dataclasses.replace(RESTORE, desired=Desired.STOPPED), facts(READY, domain=OFF, disk=RESTORED), FRESH,
     Decision(Step.NONE, Phase.STOPPED)),
    ("a guest whose crash was kept is ended first", RESTORE, facts(READY, domain=domain(PowerState.CRASHED, "crashed", RAN), disk=SNAPSHOT), FRESH,
     Decision(Step.DESTROY, Phase.REBOOTING, Reason.RESTORING)),
    ("a rebuild fetches while the guest runs", REBUILD, facts(READY, domain=UP, image_is_cached=False), FRESH,
     Decision(Step.FETCH_IMAGE, Phase.RUNNING, Reason.REBUILDING)),
    ("and makes the new disk", REBUILD, facts(READY, domain=UP), FRESH, Decision(Step.PREPARE_DISK, Phase.RUNNING, Reason.REBUILDING)),
    ("and only then pulls the plug", REBUILD, facts(READY, domain=UP, disk=NEW_DISK), FRESH, Decision(Step.DESTROY, Phase.REBOOTING, Reason.REBUILDING)),
    ("once off the new disk takes its place", REBUILD, facts(READY, domain=OFF, disk=NEW_DISK), FRESH,
     Decision(Step.REPLACE_DISK, Phase.REBOOTING, Reason.REBUILDING)),
    ("rebuilt it starts", REBUILD, facts(READY, domain=OFF, disk=REBUILT), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("a rebuild that was given up leaves it running", REBUILD, facts(READY, domain=UP, disk=NOT_REBUILT), FRESH, Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("a lost disk is made anew where that is asked for", REBUILD, facts(READY, domain=OFF, disk_is_there=False), FRESH,
     Decision(Step.PREPARE_DISK, Phase.REBOOTING, Reason.REBUILDING)),
    ("what has not run is built as ever", REBUILD, facts(addresses=ADDRESSES, image_is_cached=True), FRESH, Decision(Step.BUILD_DISK, Phase.BUILDING)),
    ("requests are dealt with in their order", spec(boot_request=3, restore="a", restore_request=2, rebuild_request=3),
     facts(READY, domain=OFF, disk=dataclasses.replace(SNAPSHOT, new_disk_is_there=True)), FRESH, Decision(Step.RESTORE_DISK, Phase.REBOOTING, Reason.RESTORING)),
    ("a revert of a guest of another past is held", RESTORE, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(cluster_id=5)), disk=SNAPSHOT), FRESH,
     Decision(Step.NONE, Phase.HELD, Reason.STORE_RESTORED)),
    ("somebody else's domain keeps its disk", RESTORE, facts(READY, domain=domain(), disk=SNAPSHOT), FRESH, Decision(Step.NONE, Phase.HELD, Reason.FOREIGN_DOMAIN)),
    ("a guest that a dead process held still is let go", SPEC, facts(READY, domain=UP, disk=DiskFacts(is_frozen=True)), FRESH, Decision(Step.THAW, Phase.RUNNING)),
    ("one that is paused would not hear of it", PAUSED, facts(READY, domain=HALTED, disk=DiskFacts(is_frozen=True)), FRESH,
     Decision(Step.NONE, Phase.PAUSED)),
    # -- standing still --
    ("to be paused", PAUSED, facts(READY, domain=UP), FRESH, Decision(Step.PAUSE, Phase.RUNNING)),
    ("paused, as asked", PAUSED, facts(READY, domain=HALTED), FRESH, Decision(Step.NONE, Phase.PAUSED)),
    ("somebody paused it by hand, or it is to go on", SPEC, facts(READY, domain=HALTED), FRESH, Decision(Step.UNPAUSE, Phase.PAUSED)),
    ("what libvirt is in the middle of is left to that", SPEC, facts(READY, domain=domain(PowerState.PAUSED, "save", RAN)), FRESH,
     Decision(Step.NONE, Phase.PAUSED)),
    ("it is marked as booted before it is paused", PAUSED, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp())), FRESH,
     Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("its files are let go before it is paused", PAUSED, facts(READY, domain=UP, disk=DiskFacts(is_frozen=True)), FRESH,
     Decision(Step.THAW, Phase.RUNNING)),
    ("a reboot that was asked for comes before the pause", dataclasses.replace(REBOOT, desired=Desired.PAUSED), facts(READY, domain=UP), FRESH,
     Decision(Step.SHUTDOWN, Phase.REBOOTING)),
    ("a paused one went down with its host: as any other", PAUSED, facts(READY, domain=domain(mark=stamp(booted=1, boot_id="old"))), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.HOST_REBOOTED)),
    ("a paused one went down with its host, and restarts", dataclasses.replace(PAUSED, restart=Restart.ON_FAILURE),
     facts(READY, domain=domain(mark=stamp(booted=1, boot_id="old"))), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("a paused one hears no power button", STOPPED, facts(READY, domain=HALTED), FRESH, Decision(Step.UNPAUSE, Phase.STOPPING)),
    ("nor when it is to be rebooted", REBOOT, facts(READY, domain=HALTED), FRESH, Decision(Step.UNPAUSE, Phase.REBOOTING)),
    ("a hard reboot wakes nobody", HARD, facts(READY, domain=HALTED), FRESH, Decision(Step.DESTROY, Phase.REBOOTING)),
    ("to be suspended", SUSPENDED, facts(READY, domain=UP), FRESH, Decision(Step.SUSPEND, Phase.SUSPENDING)),
    ("a paused one may be suspended", SUSPENDED, facts(READY, domain=HALTED), FRESH, Decision(Step.SUSPEND, Phase.SUSPENDING)),
    ("there is no room for its memory: it goes on", SUSPENDED, facts(READY, domain=UP, suspend_problem=FULL), FRESH,
     Decision(Step.NONE, Phase.RUNNING, "NoSpace")),
    ("one that goes down is not suspended", SUSPENDED, facts(READY, domain=domain(PowerState.SHUTTING_DOWN, "user", RAN)), FRESH,
     Decision(Step.NONE, Phase.RUNNING)),
    ("suspended, as asked", SUSPENDED, facts(READY, domain=SAVED), FRESH, Decision(Step.NONE, Phase.SUSPENDED)),
    ("suspended, and the host rebooted", SUSPENDED, facts(READY, domain=dataclasses.replace(SAVED, state_reason="unknown"), host_boot_id="new"), FRESH,
     Decision(Step.NONE, Phase.SUSPENDED)),
    ("suspended, somebody resumed it by hand", SUSPENDED, facts(READY, domain=UP), FRESH, Decision(Step.SUSPEND, Phase.SUSPENDING)),
    ("suspended, somebody removed its memory", SUSPENDED, facts(READY, domain=dataclasses.replace(SAVED, has_saved_memory=False)), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.MEMORY_LOST)),
    ("it was down before it could be suspended", SUSPENDED, facts(READY, domain=OFF), FRESH, Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("suspended, its volumes stay as they are", dataclasses.replace(SUSPENDED, volumes=()),
     facts(READY, domain=SAVED, volumes=GuestVolumes(HAS, HAS)), FRESH, Decision(Step.NONE, Phase.SUSPENDED)),
    ("suspended, its disk is to be larger: not before it goes on", SUSPENDED, facts(READY, domain=SAVED, disk_is_large_enough=False), FRESH,
     Decision(Step.NONE, Phase.SUSPENDED)),
    ("suspended, it gives up a port", SUSPENDED, facts(READY, domain=SAVED, rules_are_there=True, rules_are_current=False), FRESH,
     Decision(Step.WRITE_RULES, Phase.SUSPENDED)),
    ("to be resumed, however its definition has changed", SPEC, facts(READY, domain=SAVED, definition_is_current=False), FRESH,
     Decision(Step.RESUME, Phase.BUILDING)),
    ("to be resumed: the rules first", SPEC, facts(READY, domain=SAVED, rules_are_current=False), FRESH, Decision(Step.WRITE_RULES, Phase.BUILDING)),
    ("to be resumed and paused", PAUSED, facts(READY, domain=SAVED), FRESH, Decision(Step.RESUME, Phase.BUILDING)),
    ("it cannot be resumed: its memory is kept", SPEC, facts(READY, domain=SAVED), History(attempts=1, failure="HypervisorRejected"),
     Decision(Step.NONE, Phase.SUSPENDED, Reason.START_FAILED)),
    ("it could not be resumed: tried again later", SPEC, facts(READY, domain=SAVED, slow_retry_is_due=True), History(attempts=9),
     Decision(Step.RESUME, Phase.BUILDING)),
    ("a suspended one is to be stopped: it has to write what it holds", STOPPED, facts(READY, domain=SAVED), FRESH,
     Decision(Step.RESUME, Phase.STOPPING)),
    ("a suspended one is to be rebooted: likewise", REBOOT, facts(READY, domain=SAVED), FRESH, Decision(Step.RESUME, Phase.BUILDING)),
    ("a suspended one is to be rebooted hard", HARD, facts(READY, domain=SAVED), FRESH, Decision(Step.DROP_MEMORY, Phase.REBOOTING)),
    ("and then it boots", HARD, facts(READY, domain=dataclasses.replace(SAVED, has_saved_memory=False)), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("a suspended one goes back to a snapshot: its memory goes first", RESTORE, facts(READY, domain=SAVED, disk=SNAPSHOT), FRESH,
     Decision(Step.DROP_MEMORY, Phase.REBOOTING, Reason.RESTORING)),
    ("but not for a snapshot that is not there", RESTORE, facts(READY, domain=SAVED), FRESH, Decision(Step.RESTORE_DISK, Phase.SUSPENDED, Reason.RESTORING)),
    ("a suspended one is rebuilt: the new disk first", REBUILD, facts(READY, domain=SAVED), FRESH,
     Decision(Step.PREPARE_DISK, Phase.SUSPENDED, Reason.REBUILDING)),
    ("then its memory goes", REBUILD, facts(READY, domain=SAVED, disk=NEW_DISK), FRESH, Decision(Step.DROP_MEMORY, Phase.REBOOTING, Reason.REBUILDING)),
    ("a suspended one is destroyed, its memory with its domain", DELETED, facts(READY, domain=SAVED), FRESH, Decision(Step.UNDEFINE, Phase.DELETING)),
    ("a suspended one of another past is held", SPEC, facts(READY, domain=dataclasses.replace(SAVED, stamp=stamp(cluster_id=5))), FRESH,
     Decision(Step.NONE, Phase.HELD, Reason.STORE_RESTORED)),
    ("a suspended one holds another claim than it is to", SUSPENDED, facts(READY, domain=SAVED, claim_is_wrong=True), FRESH,
     Decision(Step.FIT_CLAIM, Phase.SUSPENDED)),
    ("an unreadable spec is held", None, facts(spec_is_unsupported=True, domain=UP), FRESH,
     Decision(Step.NONE, Phase.HELD, Reason.UNSUPPORTED_SCHEMA)),
    ("a volume is plugged into a guest that runs", WITH_VOLUME, facts(READY, domain=UP, volumes=GuestVolumes()), FRESH,
     Decision(Step.ATTACH_VOLUME, Phase.RUNNING)),
    ("a guest has its volume", WITH_VOLUME, facts(READY, domain=UP, volumes=GuestVolumes(HAS, HAS)), FRESH, Decision(Step.NONE, Phase.RUNNING)),
    ("a volume that is asked for no more is unplugged", SPEC, facts(READY, domain=UP, volumes=GuestVolumes(HAS, HAS)), FRESH,
     Decision(Step.DETACH_VOLUME, Phase.RUNNING)),
    ("who was asked for a volume a moment ago is left in peace", SPEC, facts(READY, domain=UP, volumes=GuestVolumes(live=HAS, was_asked=True)),
     FRESH, Decision(Step.NONE, Phase.RUNNING)),
    ("a guest that is off is defined without it", STOPPED, facts(READY, domain=OFF, volumes=GuestVolumes(HAS)), FRESH,
     Decision(Step.DETACH_VOLUME, Phase.STOPPED)),
    ("a guest that is off is defined with it", spec(desired=Desired.STOPPED, volumes=WITH_VOLUME.volumes),
     facts(READY, domain=OFF, volumes=GuestVolumes()), FRESH, Decision(Step.ATTACH_VOLUME, Phase.STOPPED)),
    ("metadata goes before volumes", WITH_VOLUME, facts(READY, domain=UP, volumes=GuestVolumes(), metadata_is_current=False), FRESH,
     Decision(Step.WRITE_METADATA, Phase.RUNNING)),
    ("a guest that goes keeps its volumes to its end", DELETED, facts(READY, domain=UP, volumes=GuestVolumes(HAS, HAS)), FRESH,
     Decision(Step.DESTROY, Phase.DELETING)),
    ("a wiped store stops nothing", DELETED, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(cluster_id=5))), FRESH,
     Decision(Step.NONE, Phase.HELD, Reason.STORE_RESTORED)),
    ("an older spec than the stamp's stops nothing", STOPPED, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(spec_revision=11))),
     FRESH, Decision(Step.NONE, Phase.HELD, Reason.STORE_RESTORED)),
    ("a lost claim is asserted, the guest goes on", SPEC, facts(READY, domain=UP, allocation=Allocation.ABSENT), FRESH,
     Decision(Step.ASSERT_ALLOCATION, Phase.RUNNING, Reason.ALLOCATION_MISSING)),
    ("a lost claim of a guest that is off is asserted too", STOPPED, facts(READY, domain=OFF, allocation=Allocation.ABSENT), FRESH,
     Decision(Step.ASSERT_ALLOCATION, Phase.STOPPED, Reason.ALLOCATION_MISSING)),
    ("running, all well", SPEC, facts(READY, domain=UP), FRESH, Decision(Step.NONE, Phase.RUNNING)),
    ("running, its config drive stale: it is in use", SPEC, facts(READY, domain=UP, drive_is_current=False), FRESH,
     Decision(Step.NONE, Phase.RUNNING)),
    ("to be started, its config drive stale", SPEC, facts(READY, domain=domain(mark=stamp()), drive_is_current=False), FRESH,
     Decision(Step.WRITE_METADATA, Phase.BUILDING)),
    ("running, metadata stale", SPEC, facts(READY, domain=UP, metadata_is_current=False), FRESH,
     Decision(Step.WRITE_METADATA, Phase.RUNNING)),
    ("running, its rules were flushed", SPEC, facts(READY, domain=UP, rules_are_current=False), FRESH,
     Decision(Step.WRITE_RULES, Phase.RUNNING)),
    ("to be rebooted while no rules can be written", REBOOT, facts(READY, domain=UP, rules_are_current=False), FRESH,
     Decision(Step.SHUTDOWN, Phase.REBOOTING)),
    ("has booted while no rules can be written", SPEC,
     facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp()), rules_are_current=False), FRESH,
     Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("no cable is plugged in without the rules", SPEC, facts(READY, domain=UP, rules_are_current=False, is_connected=False), FRESH,
     Decision(Step.WRITE_RULES, Phase.RUNNING)),
    ("a guest that is off has its rules written when it is started", SPEC, facts(READY, domain=OFF, rules_are_current=False), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("a guest that is off gives up a port at once", STOPPED, facts(READY, domain=OFF, rules_are_there=True, rules_are_current=False), FRESH,
     Decision(Step.WRITE_RULES, Phase.STOPPED)),
    ("running, not marked yet", SPEC, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp())), FRESH,
     Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("running since a later boot of the host", SPEC, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(booted=1, boot_id="old"))),
     FRESH, Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("running, waits for its VLAN", SPEC, facts(READY, domain=UP, is_connected=False), FRESH, Decision(Step.CONNECT, Phase.RUNNING)),
    ("started, waits for its VLAN", SPEC, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp()), is_connected=False),
     FRESH, Decision(Step.CONNECT, Phase.BUILDING)),
    ("running is never failed", SPEC, facts(READY, domain=UP), History(attempts=9, failure="X"), Decision(Step.NONE, Phase.RUNNING)),
    ("paused by a full disk", SPEC, facts(READY, domain=domain(PowerState.PAUSED, "ioerror", RAN)), FRESH,
     Decision(Step.NONE, Phase.PAUSED, Reason.IO_ERROR)),
    ("ran, start failed for good", spec(boot_request=2), facts(READY, domain=OFF), History(attempts=1, failure="HypervisorRejected"),
     Decision(Step.NONE, Phase.STOPPED, Reason.START_FAILED)),
    ("ran, powered itself off", SPEC, facts(READY, domain=OFF), FRESH, Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("ran, crashed", SPEC, facts(READY, domain=domain(PowerState.SHUTOFF, "crashed", RAN)), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.CRASHED)),
    ("ran, host rebooted", SPEC, facts(READY, domain=domain(mark=stamp(booted=1, boot_id="old"))), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.HOST_REBOOTED)),
    ("ran, crashed, restarts on failure", spec(restart=Restart.ON_FAILURE), facts(READY, domain=domain(PowerState.SHUTOFF, "crashed", RAN)),
     FRESH, Decision(Step.START, Phase.BUILDING)),
    ("powered itself off, on failure is no order to start", spec(restart=Restart.ON_FAILURE), facts(READY, domain=OFF), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("powered itself off, and later the host rebooted", spec(restart=Restart.ON_FAILURE),
     facts(READY, domain=domain(mark=stamp(booted=1, boot_id="old"))), History(went_down=Reason.GUEST_SHUTDOWN),
     Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("was up when the host rebooted, restarts on failure", spec(restart=Restart.ON_FAILURE),
     facts(READY, domain=domain(mark=stamp(booted=1, boot_id="old"))), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("always means always", spec(restart=Restart.ALWAYS), facts(READY, domain=OFF), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("ran, started again by request", spec(boot_request=2), facts(READY, domain=OFF), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("ran, its disk is gone", spec(boot_request=2), facts(NOTHING, domain=OFF), FRESH, Decision(Step.NONE, Phase.STOPPED, "DiskMissing")),
    ("ran by the status, domain lost", spec(boot_request=2), facts(READY, domain=None), History(booted=1), Decision(Step.DEFINE, Phase.BUILDING)),
    ("never ran, no claim", SPEC, facts(allocation=Allocation.ABSENT), FRESH, Decision(Step.NONE, Phase.REFUSED, Reason.NO_ALLOCATION)),
    ("the address first", SPEC, NOTHING, FRESH, Decision(Step.RESERVE_NETWORK, Phase.BUILDING)),
    ("the address first, were all else there", SPEC, facts(READY, addresses=None), FRESH, Decision(Step.RESERVE_NETWORK, Phase.BUILDING)),
    ("then the image", SPEC, facts(addresses=ADDRESSES), FRESH, Decision(Step.FETCH_IMAGE, Phase.BUILDING)),
    ("then the disk", SPEC, facts(addresses=ADDRESSES, image_is_cached=True), FRESH, Decision(Step.BUILD_DISK, Phase.BUILDING)),
    ("then the metadata", SPEC, facts(disk_is_there=True, addresses=ADDRESSES), FRESH, Decision(Step.WRITE_METADATA, Phase.BUILDING)),
    ("then the rules, before anything can start", SPEC, facts(READY, rules_are_current=False), FRESH, Decision(Step.WRITE_RULES, Phase.BUILDING)),
    ("no start without the rules", SPEC, facts(READY, rules_are_current=False, domain=domain(reason="unknown", mark=stamp())), FRESH,
     Decision(Step.WRITE_RULES, Phase.BUILDING)),
    ("then the domain", SPEC, facts(READY), FRESH, Decision(Step.DEFINE, Phase.BUILDING)),
    ("defined otherwise", SPEC, facts(READY, domain=domain(reason="unknown", mark=stamp()), definition_is_current=False), FRESH,
     Decision(Step.DEFINE, Phase.BUILDING)),
    ("then the start", SPEC, facts(READY, domain=domain(reason="unknown", mark=stamp())), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("an attempt in hand is not used up", SPEC, facts(READY, domain=domain(reason="unknown", mark=stamp())), History(5, True, 5), Decision(Step.START, Phase.BUILDING)),
    ("never ran, failed: undefine", SPEC, facts(READY, domain=domain(reason="unknown", mark=stamp())), History(failure="ImageNotFound"),
     Decision(Step.UNDEFINE, Phase.FAILED, "ImageNotFound")),
    ("failed: files", SPEC, READY, History(failure="X"), Decision(Step.REMOVE_FILES, Phase.FAILED, "X")),
    ("failed: address", SPEC, facts(addresses=ADDRESSES), History(failure="X"), Decision(Step.RELEASE_NETWORK, Phase.FAILED, "X")),
    ("failed: claim last", SPEC, NOTHING, History(failure="X"), Decision(Step.RELEASE, Phase.FAILED, "X")),
    ("failed: nothing left", SPEC, facts(allocation=Allocation.ABSENT), History(attempts=5), Decision(Step.NONE, Phase.FAILED, Reason.ATTEMPTS_EXHAUSTED)),
    ("somebody else's domain has our uuid", SPEC, facts(domain=domain(PowerState.RUNNING, "booted")), FRESH,
     Decision(Step.NONE, Phase.HELD, "ForeignDomain")),
    ("stop: press the button", STOPPED, facts(READY, domain=UP), FRESH, Decision(Step.SHUTDOWN, Phase.STOPPING)),
    ("stop: wait", STOPPED, facts(READY, domain=UP, shutdown_is_due=False), FRESH, Decision(Step.NONE, Phase.STOPPING)),
    ("stop: patience is over", STOPPED, facts(READY, domain=UP, grace_is_over=True), FRESH, Decision(Step.DESTROY, Phase.STOPPING)),
    ("stopped", STOPPED, facts(READY, domain=OFF), FRESH, Decision(Step.NONE, Phase.STOPPED)),
    ("delete: power first", DELETED, facts(READY, domain=UP), FRESH, Decision(Step.DESTROY, Phase.DELETING)),
    ("delete: power of a crashed guest that is kept for a look", DELETED, facts(READY, domain=domain(PowerState.CRASHED, "panicked", RAN)), FRESH,
     Decision(Step.DESTROY, Phase.DELETING)),
    ("ran and went down before it was marked: nothing is cleaned up", SPEC, facts(READY, domain=domain(PowerState.SHUTOFF, "shutdown", stamp())),
     History(attempts=5), Decision(Step.NONE, Phase.STOPPED, Reason.START_FAILED)),
    ("delete: definition", DELETED, facts(READY, domain=OFF), FRESH, Decision(Step.UNDEFINE, Phase.DELETING)),
    ("delete: files", DELETED, READY, FRESH, Decision(Step.REMOVE_FILES, Phase.DELETING)),
    ("delete: a metadata document alone", DELETED, facts(metadata_is_there=True), FRESH, Decision(Step.REMOVE_FILES, Phase.DELETING)),
    ("delete: rules alone", DELETED, facts(rules_are_there=True), FRESH, Decision(Step.REMOVE_FILES, Phase.DELETING)),
    ("delete: address", DELETED, facts(addresses=ADDRESSES), FRESH, Decision(Step.RELEASE_NETWORK, Phase.DELETING)),
    ("delete: claim", DELETED, NOTHING, FRESH, Decision(Step.RELEASE, Phase.DELETING)),
    ("delete: the claim, whether or not anybody asked", DELETED, facts(allocation=Allocation.UNASKED), FRESH, Decision(Step.RELEASE, Phase.DELETING)),
    ("delete: forget", DELETED, facts(allocation=Allocation.ABSENT), FRESH, Decision(Step.FORGET, Phase.DELETING)),
    ("delete: a domain that is not ours stays", DELETED, facts(domain=domain(PowerState.RUNNING), allocation=Allocation.ABSENT), FRESH,
     Decision(Step.FORGET, Phase.DELETING)),
    ("delete: a domain that is not ours may be on our disk", DELETED, facts(READY, domain=domain(PowerState.RUNNING)), FRESH,
     Decision(Step.NONE, Phase.HELD, "ForeignDomain")),
    ("no spec, our guest: quarantined", None, facts(READY, domain=UP, spec_revision=0), FRESH, Decision(Step.NONE, Phase.QUARANTINED)),
    ("no spec, a guest of another provider", None, facts(domain=domain(mark=stamp(provider=OTHER))), FRESH, Decision(Step.NONE)),
    ("no spec, foreign domain", None, facts(domain=domain(PowerState.RUNNING)), FRESH, Decision(Step.NONE)),
    ("cannot be built here: undefine", MOVABLE, facts(READY, domain=domain(reason="unknown", mark=stamp())), TRIED,
     Decision(Step.UNDEFINE, Phase.RESCHEDULING, "NoSpace")),
    ("cannot be built here: files", MOVABLE, READY, TRIED, Decision(Step.REMOVE_FILES, Phase.RESCHEDULING, "NoSpace")),
    ("cannot be built here: address", MOVABLE, facts(addresses=ADDRESSES), TRIED, Decision(Step.RELEASE_NETWORK, Phase.RESCHEDULING, "NoSpace")),
    ("cannot be built here: claim", MOVABLE, NOTHING, TRIED, Decision(Step.SWAP_CLAIM, Phase.RESCHEDULING, "NoSpace")),
    ("attempts used up: the next host", MOVABLE, NOTHING, History(attempts=5), Decision(Step.SWAP_CLAIM, Phase.RESCHEDULING, Reason.ATTEMPTS_EXHAUSTED)),
    ("the claim is there: the spec follows", MOVABLE, SWAPPED, TRIED, Decision(Step.MOVE_SPEC, Phase.RESCHEDULING, "NoSpace")),
    ("a claim at an alternate is proof of a move that was cut off", MOVABLE, SWAPPED, FRESH,
     Decision(Step.MOVE_SPEC, Phase.RESCHEDULING, Reason.ATTEMPTS_EXHAUSTED)),
    ("cut off, and asked to be stopped meanwhile: it moves all the same", spec(alternates=(TO_OTHER,), desired=Desired.STOPPED), SWAPPED, FRESH,
     Decision(Step.MOVE_SPEC, Phase.RESCHEDULING, Reason.ATTEMPTS_EXHAUSTED)),
    ("cut off, with a file made since: it is cleaned up first", MOVABLE, dataclasses.replace(SWAPPED, files_are_there=True), FRESH,
     Decision(Step.REMOVE_FILES, Phase.RESCHEDULING, Reason.ATTEMPTS_EXHAUSTED)),
    ("the target does not take it: the claim goes on", MOVABLE, dataclasses.replace(SWAPPED, ruled_out=frozenset({OTHER})), TRIED,
     Decision(Step.SWAP_CLAIM, Phase.RESCHEDULING, "NoSpace")),
    ("nobody takes it: the claim is released wherever it is", MOVABLE, dataclasses.replace(SWAPPED, ruled_out=frozenset({OTHER, THIRD})), TRIED,
     Decision(Step.RELEASE, Phase.FAILED, "NoSpace")),
    ("nobody takes it, nothing left", MOVABLE, facts(allocation=Allocation.ABSENT, ruled_out=frozenset({OTHER, THIRD})), TRIED,
     Decision(Step.NONE, Phase.FAILED, "NoSpace")),
    ("a wrong checksum is wrong everywhere", MOVABLE, NOTHING, History(attempts=1, failure="ChecksumMismatch"),
     Decision(Step.RELEASE, Phase.FAILED, "ChecksumMismatch")),
    ("a claim somewhere else than at an alternate is no move of ours", MOVABLE, facts(allocation=Allocation.ABSENT, claimed_at=frozenset({UUID(int=8)})), FRESH,
     Decision(Step.NONE, Phase.REFUSED, Reason.NO_ALLOCATION)),
    ("has run: never moved, whatever the claim says", MOVABLE, facts(READY, domain=OFF, allocation=Allocation.ABSENT, claimed_at=frozenset({OTHER})), TRIED,
     Decision(Step.ASSERT_ALLOCATION, Phase.STOPPED, Reason.ALLOCATION_MISSING)),
    ("failed, then asked to be stopped: it stays failed", STOPPED, facts(allocation=Allocation.ABSENT), History(failure="X", has_failed=True),
     Decision(Step.NONE, Phase.FAILED, "X")),
    ("reboot: press the button", REBOOT, facts(READY, domain=UP), FRESH, Decision(Step.SHUTDOWN, Phase.REBOOTING)),
    ("reboot: wait", REBOOT, facts(READY, domain=UP, shutdown_is_due=False), FRESH, Decision(Step.NONE, Phase.REBOOTING)),
    ("reboot: patience is over", REBOOT, facts(READY, domain=UP, grace_is_over=True), FRESH, Decision(Step.DESTROY, Phase.REBOOTING)),
    ("reboot at once", dataclasses.replace(REBOOT, hard_reboot=True), facts(READY, domain=UP), FRESH, Decision(Step.DESTROY, Phase.REBOOTING)),
    ("stop at once", FORCED, facts(READY, domain=UP), FRESH, Decision(Step.DESTROY, Phase.STOPPING)),
    ("stop at once, though somebody paused it", FORCED, facts(READY, domain=domain(PowerState.PAUSED, "user", RAN)), FRESH,
     Decision(Step.DESTROY, Phase.STOPPING)),
    ("stop at once: its memory is saved", FORCED, facts(READY, domain=dataclasses.replace(OFF, has_saved_memory=True)), FRESH,
     Decision(Step.DROP_MEMORY, Phase.STOPPING)),
    ("a forced stop was of an earlier run: this one is asked", dataclasses.replace(FORCED, boot_request=2), facts(READY, domain=UP), FRESH,
     Decision(Step.SHUTDOWN, Phase.STOPPING)),
    ("reboot: it is off, so it starts", REBOOT, facts(READY, domain=OFF), FRESH, Decision(Step.START, Phase.BUILDING)),
    ("reboot: started for it, not marked yet: once is enough", REBOOT,
     facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(booted=1, started_for=2))), FRESH, Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("reboot: done", REBOOT, facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(booted=2, started_for=2))), FRESH,
     Decision(Step.NONE, Phase.RUNNING)),
    ("asked to start while it is up: only noted", spec(boot_request=2), facts(READY, domain=UP), FRESH, Decision(Step.MARK_BOOTED, Phase.RUNNING)),
    ("a start that failed for good is tried again later", spec(boot_request=2), facts(READY, domain=OFF, slow_retry_is_due=True),
     History(attempts=3, failure="HypervisorRejected"), Decision(Step.START, Phase.BUILDING)),
    ("tried again later, but nobody wants it up", SPEC, facts(READY, domain=OFF, slow_retry_is_due=True), History(attempts=9),
     Decision(Step.NONE, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("an adopted guest of a wiped store", spec(adopts=Adoption(5, 400)),
     facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(cluster_id=5, spec_revision=400, booted=3))), FRESH,
     Decision(Step.ACKNOWLEDGE, Phase.HELD, Reason.STORE_RESTORED)),
    ("adopting another moment of the guest's past is no adoption", spec(adopts=Adoption(5, 399)),
     facts(READY, domain=domain(PowerState.RUNNING, "booted", stamp(cluster_id=5, spec_revision=400))), FRESH,
     Decision(Step.NONE, Phase.HELD, Reason.STORE_RESTORED)),
    ("adopted in a restored store whose revisions have passed the guest's", spec(adopts=Adoption(1, 9), desired=Desired.STOPPED),
     facts(READY, spec_revision=10, cluster_id=1, domain=domain(PowerState.RUNNING, "booted", stamp(cluster_id=1, spec_revision=9, booted=3))),
     FRESH, Decision(Step.ACKNOWLEDGE, Phase.HELD, Reason.STORE_RESTORED)),
    ("adopted long ago", spec(adopts=Adoption(5, 400)), facts(READY, domain=UP), FRESH, Decision(Step.NONE, Phase.RUNNING)),
    ("running, its disk is to be larger", SPEC, facts(READY, domain=UP, disk_is_large_enough=False), FRESH,
     Decision(Step.GROW_DISK, Phase.RUNNING)),
    ("it reboots first, though its disk is to be larger", REBOOT, facts(READY, domain=UP, disk_is_large_enough=False), FRESH,
     Decision(Step.SHUTDOWN, Phase.REBOOTING)),
    ("paused by a full disk, which is to be larger", SPEC, facts(READY, domain=domain(PowerState.PAUSED, "ioerror", RAN), disk_is_large_enough=False),
     FRESH, Decision(Step.GROW_DISK, Phase.PAUSED, Reason.IO_ERROR)),
    ("off, its disk is to be larger", STOPPED, facts(READY, domain=OFF, disk_is_large_enough=False), FRESH,
     Decision(Step.GROW_DISK, Phase.STOPPED)),
    ("powered off from inside, its disk is to be larger", SPEC, facts(READY, domain=OFF, disk_is_large_enough=False), FRESH,
     Decision(Step.GROW_DISK, Phase.STOPPED, Reason.GUEST_SHUTDOWN)),
    ("to be started, its disk is to be larger", spec(boot_request=2), facts(READY, domain=OFF, disk_is_large_enough=False), FRESH,
     Decision(Step.GROW_DISK, Phase.BUILDING)),
    ("a disk that is gone cannot grow", SPEC, facts(READY, domain=OFF, disk_is_there=False, disk_is_large_enough=False), FRESH,
     Decision(Step.NONE, Phase.STOPPED, Reason.DISK_MISSING)),
    ("one that goes needs no larger disk", DELETED, facts(READY, domain=UP, disk_is_large_enough=False), FRESH,
     Decision(Step.DESTROY, Phase.DELETING)),
    ("running, its claim is of other amounts", SPEC, facts(READY, domain=UP, claim_is_wrong=True), FRESH,
     Decision(Step.FIT_CLAIM, Phase.RUNNING)),
    ("off, its claim is of other amounts", STOPPED, facts(READY, domain=OFF, claim_is_wrong=True), FRESH,
     Decision(Step.FIT_CLAIM, Phase.STOPPED)),
    ("a claim of other amounts keeps nothing else waiting", REBOOT, facts(READY, domain=UP, claim_is_wrong=True), FRESH,
     Decision(Step.SHUTDOWN, Phase.REBOOTING)),
    ("a claim that stands alone is nobody's to set right", SPEC, facts(claim_is_wrong=True), FRESH,
     Decision(Step.RESERVE_NETWORK, Phase.BUILDING)),
    ("a claim that may still be meant", None, NOTHING, FRESH, Decision(Step.NONE)),
    ("a claim of a dead client", None, facts(claim_is_orphaned=True), FRESH, Decision(Step.RELEASE)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wanted", "now", "history", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_row(what: str, wanted: InstanceSpec | None, now: Facts, history: History, expected: Decision) -> None:
    assert decide(wanted, now, history) == expected


# -- from every state ----------------------------------------------------------------------------------------------------

stamps = st.builds(
    Stamp, provider=st.sampled_from([PROVIDER, OTHER]), cluster_id=st.sampled_from([CLUSTER, 5]),
    spec_revision=st.integers(0, 20), booted=st.integers(0, 3), started_for=st.integers(0, 3), definition=st.just("d"), boot_id=st.sampled_from([BOOT, "old"]),
)  # fmt: skip
domains = st.builds(
    Domain, uuid=st.just(SPEC.uuid), name=st.just("web"), power_state=st.sampled_from(PowerState),
    state_reason=st.sampled_from(["booted", "shutdown", "crashed", "ioerror", "user", "saved", "unknown"]), stamp=st.none() | stamps,
    has_saved_memory=st.booleans(),
).map(lambda known: known if known.power_state is PowerState.SHUTOFF else dataclasses.replace(known, has_saved_memory=False))  # fmt: skip
all_facts = st.builds(
    Facts, provider=st.just(PROVIDER), cluster_id=st.just(CLUSTER), spec_revision=st.just(REVISION), host_boot_id=st.just(BOOT),
    spec_is_unsupported=st.booleans(), domain=st.none() | domains, allocation=st.sampled_from(Allocation),
    disk_is_there=st.booleans(), image_is_cached=st.booleans(), files_are_there=st.booleans(),
    addresses=st.none() | st.just(ADDRESSES), metadata_is_there=st.booleans(), metadata_is_current=st.booleans(),
    rules_are_there=st.booleans(), rules_are_current=st.booleans(),
    drive_is_current=st.booleans(), definition_is_current=st.booleans(), shutdown_is_due=st.booleans(), grace_is_over=st.booleans(), claim_is_orphaned=st.booleans(),
    claimed_at=st.sampled_from([frozenset[UUID](), frozenset({PROVIDER}), frozenset({OTHER}), frozenset({THIRD})]),
    ruled_out=st.sampled_from([frozenset[UUID](), frozenset({OTHER}), frozenset({OTHER, THIRD})]), slow_retry_is_due=st.booleans(), is_connected=st.booleans(),
    disk=st.builds(DiskFacts, *2 * [st.builds(Applied, st.integers(0, 3), st.sampled_from(["", "X"]))], st.booleans(), st.booleans(), st.booleans()),
    disk_is_large_enough=st.booleans(), claim_is_wrong=st.booleans(),
)  # fmt: skip
specs = st.none() | st.builds(
    spec, desired=st.sampled_from(Desired), boot_request=st.integers(1, 3), restart=st.sampled_from(Restart),
    alternates=st.sampled_from([(), (TO_OTHER,), (TO_OTHER, TO_THIRD)]), reboot_request=st.integers(0, 3), hard_reboot=st.booleans(),
    adopts=st.none() | st.builds(Adoption, st.just(5), st.integers(0, 20)), restore_request=st.integers(0, 3), rebuild_request=st.integers(0, 3),
    hard_stop_request=st.integers(0, 3),
).filter(lambda s: s.reboot_request <= s.boot_request)  # fmt: skip
histories = st.builds(
    History, st.integers(0, 6), st.booleans(), st.just(5), st.sampled_from(["", "X", "ChecksumMismatch"]), st.integers(0, 2)
)


def after(step: Step, wanted: InstanceSpec | None, now: Facts) -> tuple[InstanceSpec | None, Facts]:
    """The world once *step* has succeeded."""
    boot_request = wanted.boot_request if wanted else 0

    def with_domain(**changes: object) -> Facts:
        assert now.domain is not None
        return facts(now, domain=dataclasses.replace(now.domain, **changes))  # type: ignore[arg-type]

    match step:
        case Step.ASSERT_ALLOCATION:
            return wanted, facts(now, allocation=Allocation.PRESENT)
        case Step.FETCH_IMAGE:
            return wanted, facts(now, image_is_cached=True)
        case Step.BUILD_DISK:
            return wanted, facts(now, disk_is_there=True, files_are_there=True, disk_is_large_enough=True)
        case Step.GROW_DISK:
            assert now.disk_is_there
            return wanted, facts(now, disk_is_large_enough=True)
        case Step.FIT_CLAIM:
            return wanted, facts(now, claim_is_wrong=False)
        case Step.RESERVE_NETWORK:
            return wanted, facts(now, addresses=ADDRESSES)
        case Step.WRITE_RULES:
            return wanted, facts(now, rules_are_current=True, rules_are_there=True)
        case Step.WRITE_METADATA:
            return wanted, facts(now, metadata_is_current=True, metadata_is_there=True, drive_is_current=not is_up(now))
        case Step.DEFINE:
            known = now.domain.stamp if now.domain else None
            mark = stamp(booted=known.booted if known else 0, started_for=boot_request)
            return wanted, facts(now, domain=domain(mark=mark), definition_is_current=True)
        case Step.START:
            assert now.domain is not None and now.domain.stamp is not None
            mark = dataclasses.replace(now.domain.stamp, started_for=boot_request)
            assert not now.domain.has_saved_memory, "it would be lost"
            up = with_domain(power_state=PowerState.RUNNING, state_reason="booted", stamp=mark)
            return wanted, facts(up, is_connected=False, disk=dataclasses.replace(now.disk, is_frozen=False))
        case Step.PAUSE:
            return wanted, with_domain(power_state=PowerState.PAUSED, state_reason="user")
        case Step.UNPAUSE:
            return wanted, with_domain(power_state=PowerState.RUNNING, state_reason="unpaused")
        case Step.SUSPEND:
            return wanted, with_domain(power_state=PowerState.SHUTOFF, state_reason="saved", has_saved_memory=True)
        case Step.RESUME:
            up = with_domain(power_state=PowerState.RUNNING, state_reason="restored", has_saved_memory=False)
            return wanted, facts(up, is_connected=False)
        case Step.DROP_MEMORY:
            return wanted, with_domain(state_reason="destroyed", has_saved_memory=False)
        case Step.CONNECT:
            return wanted, facts(now, is_connected=True)
        case Step.MARK_BOOTED:
            assert now.domain is not None and now.domain.stamp is not None
            return wanted, with_domain(stamp=stamp(booted=boot_request, started_for=now.domain.stamp.started_for))
        case Step.ACKNOWLEDGE:
            return wanted, with_domain(stamp=stamp(booted=boot_request, started_for=boot_request))
        case Step.RESTORE_DISK:
            assert wanted is not None
            disk = dataclasses.replace(now.disk, restored=Applied(wanted.restore_request), snapshot_is_there=False)
            return wanted, facts(now, disk=disk)
        case Step.PREPARE_DISK:
            return wanted, facts(now, disk=dataclasses.replace(now.disk, new_disk_is_there=True))
        case Step.REPLACE_DISK:
            assert wanted is not None
            disk = dataclasses.replace(now.disk, rebuilt=Applied(wanted.rebuild_request), new_disk_is_there=False)
            return wanted, facts(now, disk=disk, disk_is_there=True, definition_is_current=False, metadata_is_current=False)
        case Step.THAW:
            return wanted, facts(now, disk=dataclasses.replace(now.disk, is_frozen=False))
        case Step.SWAP_CLAIM:
            target = move_target(wanted, now) if wanted else None
            assert target is not None
            return wanted, facts(now, allocation=Allocation.ABSENT, claimed_at=frozenset({target.provider}))
        case Step.MOVE_SPEC:
            assert wanted is not None and claimed_alternate(wanted, now) is not None
            return None, facts(now, spec_revision=0, allocation=Allocation.ABSENT, claimed_at=frozenset[UUID]())
        case Step.SHUTDOWN:
            return wanted, facts(now, shutdown_is_due=False)
        case Step.DESTROY:
            return wanted, with_domain(power_state=PowerState.SHUTOFF, state_reason="destroyed")
        case Step.UNDEFINE:
            return wanted, facts(now, domain=None)
        case Step.REMOVE_FILES:
            return wanted, facts(
                now, files_are_there=False, disk_is_there=False, metadata_is_there=False, metadata_is_current=False,
                drive_is_current=False, rules_are_there=False,
            )  # fmt: skip
        case Step.RELEASE_NETWORK:
            return wanted, facts(now, addresses=None)
        case Step.RELEASE:
            return wanted, facts(now, allocation=Allocation.ABSENT, claimed_at=frozenset[UUID]())
        case Step.FORGET:
            return None, facts(now, spec_revision=0)
    raise AssertionError(f"a step that nobody knows: {step}")


@settings(max_examples=2000, deadline=None)
@given(specs, all_facts, histories)
def test_from_every_state_the_steps_end(wanted: InstanceSpec | None, now: Facts, history: History) -> None:
    taken: list[Step] = []
    while (decision := decide(wanted, now, history)).step is not Step.NONE:
        taken.append(decision.step)
        assert len(taken) <= 2 * len(Step), taken
        wanted, now = after(decision.step, wanted, now)
    assert decision.phase is not Phase.BUILDING, (taken, now)


def step_ends_its_run(step: Step) -> bool:
    return step in (Step.PAUSE, Step.SUSPEND)


@settings(max_examples=2000, deadline=None)
@given(specs, all_facts, histories)
def test_nothing_is_taken_from_a_guest_that_ever_ran_unless_it_is_to_be_deleted(
    wanted: InstanceSpec | None, now: Facts, history: History
) -> None:
    ran = history.booted > 0 or bool(now.domain and now.domain.stamp and now.domain.stamp.booted)
    decision = decide(wanted, now, history)
    if wanted is not None and ran and wanted.desired is not Desired.DELETED:
        assert decision.step not in (
            Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.RELEASE, Step.SWAP_CLAIM, Step.MOVE_SPEC, Step.FORGET,
        )  # fmt: skip
        if decision.step is Step.DESTROY:
            due = wanted.disk_request(now.disk.restored, now.disk.rebuilt)
            is_reboot = (wanted.reboot_request > 0 or due is not None) and decision.phase is Phase.REBOOTING
            assert wanted.desired is Desired.STOPPED or is_reboot
        if step_ends_its_run(decision.step):
            assert wanted.desired.stands_still


@settings(max_examples=2000, deadline=None)
@given(specs, all_facts, histories)
def test_a_disk_that_is_there_becomes_another_one_only_where_that_is_asked_for_and_its_guest_is_off(
    wanted: InstanceSpec | None, now: Facts, history: History
) -> None:
    step = decide(wanted, now, history).step
    if step in (Step.RESTORE_DISK, Step.REPLACE_DISK):
        assert wanted is not None and wanted.desired is not Desired.DELETED
        due = wanted.disk_request(now.disk.restored, now.disk.rebuilt)
        assert due is (DiskRequest.RESTORE if step is Step.RESTORE_DISK else DiskRequest.REBUILD)
        # With no snapshot there the step does nothing but say so, and the guest may go on.
        assert not is_up(now) or (step is Step.RESTORE_DISK and not now.disk.snapshot_is_there)
    if step is Step.BUILD_DISK:
        assert not now.disk_is_there
    if step is Step.GROW_DISK:
        assert now.domain is None or ours(now)


@settings(max_examples=2000, deadline=None)
@given(specs, all_facts, histories)
def test_saved_memory_goes_only_by_request_and_before_the_disk_that_it_knows_is_another_one(
    wanted: InstanceSpec | None, now: Facts, history: History
) -> None:
    step = decide(wanted, now, history).step
    if now.domain is None or not now.domain.has_saved_memory:
        assert step is not Step.DROP_MEMORY
        return
    assert step not in (Step.START, Step.DEFINE, Step.ATTACH_VOLUME, Step.DETACH_VOLUME, Step.GROW_DISK, Step.REPLACE_DISK)
    # With no snapshot there the step does nothing but say so.
    assert step is not Step.RESTORE_DISK or not now.disk.snapshot_is_there
    if step is Step.DROP_MEMORY:
        assert wanted is not None
        is_reboot = wanted.hard_reboot and wanted.reboot_request > 0
        assert is_reboot or wanted.is_hard_stop or wanted.disk_request(now.disk.restored, now.disk.rebuilt) is not None


@settings(max_examples=2000, deadline=None)
@given(specs, all_facts, histories)
def test_a_claim_and_a_spec_leave_only_a_host_that_holds_nothing_of_the_instance(
    wanted: InstanceSpec | None, now: Facts, history: History
) -> None:
    if decide(wanted, now, history).step in (Step.SWAP_CLAIM, Step.MOVE_SPEC):
        assert not (now.files_are_there or now.metadata_is_there or now.addresses)
        assert now.domain is None or now.domain.stamp is None or now.domain.stamp.provider != PROVIDER


@settings(max_examples=1000, deadline=None)
@given(all_facts, histories)
def test_a_missing_spec_never_touches_a_domain(now: Facts, history: History) -> None:
    step = decide(None, now, history).step
    assert step in (Step.NONE, Step.RELEASE)
    assert step is Step.NONE or now.domain is None


@settings(max_examples=1000, deadline=None)
@given(specs, all_facts, histories)
def test_a_foreign_domain_is_never_touched(wanted: InstanceSpec | None, now: Facts, history: History) -> None:
    if now.domain and (now.domain.stamp is None or now.domain.stamp.provider != PROVIDER):
        assert decide(wanted, now, history).step not in (
            Step.DEFINE, Step.START, Step.MARK_BOOTED, Step.SHUTDOWN, Step.DESTROY, Step.UNDEFINE,
        )  # fmt: skip
