"""A guest that runs with other amounts than are asked for: what is said of it, and what its claim holds, over the real loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.amounts import most, shown
from common.errors import HypervisorRejected
from common.model import Desired, ImageRef, InstanceSpec, Phase
from common.placement import Claim
from ecompute import facts as facts_module
from ecompute.disk_growth import virtual_size_bytes
from ecompute.facts import Glimpse
from ecompute.hypervisor import Domain, PowerState
from ecompute.machine import Allocation
from ecompute.sizing import claim_wanted, in_force, notes
from tests.support.loop import Loop

SPEC = InstanceSpec(UUID(int=9), "web", ImageRef("/i"), {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 1})
UP = Domain(SPEC.uuid, "web", PowerState.RUNNING, "booted", None, vcpus=2, memory_mib=512)


def test_most_takes_the_larger_of_each() -> None:
    assert most({"A": 1, "B": 5}, {"B": 2, "C": 3}, {}) == {"A": 1, "B": 5, "C": 3}
    assert (shown({"VCPU": 2, "DISK_GB": 1}), shown({})) == ("1 DISK_GB, 2 VCPU", "nothing")


def test_a_guest_that_has_what_is_asked_for_waits_for_nothing() -> None:
    off = dataclasses.replace(UP, power_state=PowerState.SHUTOFF, vcpus=8)
    for domain in (UP, off, None):
        assert (in_force(SPEC, domain), notes(SPEC, domain), claim_wanted(SPEC, domain)) == ({}, (), SPEC.resources)


def test_one_that_runs_with_less_or_more_claims_the_larger_and_says_what_it_waits_for() -> None:
    domain = dataclasses.replace(UP, vcpus=1, memory_mib=1024)
    assert in_force(SPEC, domain) == {"VCPU": 1, "MEMORY_MB": 1024}
    assert claim_wanted(SPEC, domain) == {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 1}
    assert notes(SPEC, domain) == ("512 MEMORY_MB, 2 VCPU from its next start: eschedule reboot web",)
    assert notes(SPEC, dataclasses.replace(UP, vcpus=1)) == ("2 VCPU from its next start: eschedule reboot web",)


def test_pinned_cpus_count_as_such() -> None:
    spec = dataclasses.replace(SPEC, resources={"PCPU": 2, "MEMORY_MB": 512, "DISK_GB": 1})
    assert claim_wanted(spec, dataclasses.replace(UP, memory_mib=1024)) == {"PCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 1}


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(facts_module, "WRONG_AFTER_SECONDS", 0.0)
    yield Loop(tmp_path)


def guest(loop: Loop, **resources: int) -> InstanceSpec:
    spec = loop.request()
    loop.settle(spec)
    if resources:
        loop.change(spec, resources={**spec.resources, **resources})
        loop.settle(spec)
    return spec


def claimed(loop: Loop, spec: InstanceSpec) -> dict[str, int]:
    return dict(loop.placement.consumers[spec.uuid].allocations[loop.provider])


def claim(loop: Loop, spec: InstanceSpec, **amounts: int) -> None:
    held = loop.placement.consumers[spec.uuid]
    loop.placement.replace_consumers([Claim(spec.uuid, {loop.provider: {**spec.resources, **amounts}}, held.generation)])


def resync(loop: Loop, spec: InstanceSpec) -> bool:
    """What a full look does for one instance; whether it needed a pass."""
    use = loop.placement.use_of(loop.provider)
    glimpse = Glimpse(loop.hypervisor.get(spec.uuid), Allocation.PRESENT, use.claims[spec.uuid])
    if not loop.reconciler.glance(spec.uuid, glimpse):
        return False
    loop.settle(spec)
    return True


def test_cpus_and_memory_come_with_the_next_start_and_are_noted_until_then(loop: Loop) -> None:
    spec = guest(loop, VCPU=2, MEMORY_MB=512)
    status = loop.status(spec)
    assert (status.phase, status.in_force) == (Phase.RUNNING, {"VCPU": 1, "MEMORY_MB": 256})
    assert status.notes == ("512 MEMORY_MB, 2 VCPU from its next start: eschedule reboot web",)
    loop.change(spec, boot_request=2, reboot_request=2)
    loop.settle(spec)
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and (domain.vcpus, domain.memory_mib) == (2, 512)
    assert (loop.status(spec).notes, loop.status(spec).in_force) == ((), {})


@pytest.mark.parametrize("goes_down", ["guest_crashes", "host_reboots"])
def test_a_guest_that_comes_back_by_itself_has_what_was_asked_for(loop: Loop, goes_down: str) -> None:
    spec = guest(loop, VCPU=2)
    loop.change(spec, restart="on-failure")
    loop.settle(spec)
    if goes_down == "guest_crashes":
        loop.hypervisor.guest_crashes(spec.uuid)
    else:
        loop.hypervisor.host_reboots()
        loop.restart(dataclasses.replace(loop.world.blueprint, boot_id="later"))
    loop.settle(spec)
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and (domain.power_state, domain.vcpus) == (PowerState.RUNNING, 2)


def test_room_is_given_back_once_the_guest_was_started_with_less(loop: Loop) -> None:
    spec = guest(loop, VCPU=4)
    claim(loop, spec, VCPU=4)
    loop.change(spec, boot_request=2, reboot_request=2)
    loop.settle(spec)
    loop.change(spec, resources=spec.resources)  # back to one CPU
    loop.settle(spec)
    assert not resync(loop, spec), "it runs with four"
    assert claimed(loop, spec)["VCPU"] == 4
    loop.change(spec, boot_request=3, reboot_request=3)
    loop.settle(spec)
    assert resync(loop, spec)
    assert claimed(loop, spec) == spec.resources
    assert not resync(loop, spec)


def test_what_a_dead_client_claimed_more_is_given_back(loop: Loop) -> None:
    spec = guest(loop)
    claim(loop, spec, VCPU=3, DISK_GB=9)
    assert resync(loop, spec)
    assert claimed(loop, spec) == spec.resources


def test_a_claim_that_has_just_been_changed_is_left_to_its_client(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "WRONG_AFTER_SECONDS", 40.0)
    loop.restart()
    spec = guest(loop)
    claim(loop, spec, VCPU=3)
    assert resync(loop, spec) and claimed(loop, spec)["VCPU"] == 3
    claim(loop, spec, VCPU=3)  # written anew by a client that is still there
    assert resync(loop, spec) and claimed(loop, spec)["VCPU"] == 3


def test_a_claim_that_is_too_small_is_raised_where_there_is_room_and_the_guest_runs_on(loop: Loop) -> None:
    spec = guest(loop)
    claim(loop, spec, MEMORY_MB=128)
    host = loop.placement.hosts[loop.provider]
    memory = host.inventories["MEMORY_MB"]
    host.inventories["MEMORY_MB"] = dataclasses.replace(memory, total=128)
    assert resync(loop, spec)
    assert "no room" in loop.status(spec).message and loop.power(spec) is PowerState.RUNNING
    host.inventories["MEMORY_MB"] = memory
    assert resync(loop, spec)
    assert claimed(loop, spec) == spec.resources and loop.status(spec).message == ""


def test_a_claim_elsewhere_as_well_is_not_touched(loop: Loop) -> None:
    spec, other = guest(loop), loop.placement.add_host("h2")
    loop.placement.hold(spec.uuid, {loop.provider: {"VCPU": 3}, other: {"MEMORY_MB": 256, "DISK_GB": 1}})
    resync(loop, spec)
    assert claimed(loop, spec) == {"VCPU": 3}


@pytest.mark.parametrize("desired", [Desired.RUNNING, Desired.STOPPED])
def test_a_disk_grows_whether_its_guest_is_up_or_off(loop: Loop, desired: Desired) -> None:
    spec = guest(loop)
    loop.change(spec, desired=desired)
    loop.settle(spec)
    loop.change(spec, resources={**spec.resources, "DISK_GB": 3})
    loop.settle(spec)
    disk = loop.world.disks.disk_path(spec.uuid)
    assert virtual_size_bytes(disk) == 3 << 30
    assert (("grow_disk", spec.uuid) in loop.hypervisor.calls) == (desired is Desired.RUNNING)
    assert loop.status(spec).events[-1].step == "GrowDisk"


def test_a_disk_that_cannot_grow_now_is_said_and_tried_again(loop: Loop) -> None:
    spec = guest(loop)
    loop.hypervisor.fail_next("grow_disk", HypervisorRejected("the disk is being copied"))
    loop.change(spec, resources={**spec.resources, "DISK_GB": 3})
    loop.settle(spec, passes=1)
    status = loop.status(spec)
    assert (status.phase, status.message) == (Phase.RUNNING, "GrowDisk: the disk is being copied")
    assert status.attempts == 1, "its start"
    loop.settle(spec)
    assert loop.status(spec).message == "" and virtual_size_bytes(loop.world.disks.disk_path(spec.uuid)) == 3 << 30
