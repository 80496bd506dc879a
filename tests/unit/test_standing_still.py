"""Guests that stand still, through the real loop over fakes: what of them is kept, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import HypervisorRejected, NoSpace
from common.model import Desired, InstanceSpec, Nic, Phase, Restart
from ecompute.hypervisor import PowerState
from ecompute.saved_memory import SavedMemory
from tests.support.loop import KEYS, Loop


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def guest(loop: Loop, **more: object) -> InstanceSpec:
    spec = loop.request(**more)
    loop.settle(spec)
    return spec


def asked(loop: Loop, spec: InstanceSpec, **changes: object) -> tuple[Phase, str]:
    loop.change(spec, **changes)
    loop.settle(spec)
    status = loop.status(spec)
    return status.phase, status.reason


def starts(loop: Loop) -> int:
    return [call for call, _ in loop.hypervisor.calls].count("start")


@pytest.mark.parametrize("desired", [Desired.PAUSED, Desired.SUSPENDED])
def test_it_stands_still_over_a_restart_and_goes_on_without_a_boot(loop: Loop, desired: Desired) -> None:
    spec = guest(loop)
    assert asked(loop, spec, desired=desired)[0] == desired.value.title()
    loop.restart()
    loop.settle(spec)
    assert asked(loop, spec, desired=Desired.RUNNING) == (Phase.RUNNING, "")
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and domain.stamp is not None
    item = loop.store.get(KEYS.spec(loop.provider, spec.uuid))
    assert item is not None and domain.stamp.spec_revision == item.mod_revision
    assert starts(loop) == 1


def test_what_somebody_does_by_hand_is_undone(loop: Loop) -> None:
    spec = guest(loop)
    loop.hypervisor.pause(spec.uuid)
    assert asked(loop, spec, keys=("a",)) == (Phase.RUNNING, "")
    asked(loop, spec, desired=Desired.PAUSED)
    loop.hypervisor.unpause(spec.uuid)
    assert asked(loop, spec, keys=("b",)) == (Phase.PAUSED, "")
    asked(loop, spec, desired=Desired.SUSPENDED)
    loop.hypervisor.resume(spec.uuid)
    assert asked(loop, spec, keys=("c",)) == (Phase.SUSPENDED, "")


def test_a_suspended_guest_outlives_its_host_and_a_paused_one_is_as_any_other(loop: Loop) -> None:
    spec = guest(loop, restart=Restart.ALWAYS)
    asked(loop, spec, desired=Desired.SUSPENDED)
    loop.hypervisor.host_reboots()
    loop.restart()
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.SUSPENDED
    assert asked(loop, spec, desired=Desired.RUNNING) == (Phase.RUNNING, "")
    assert starts(loop) == 1
    asked(loop, spec, desired=Desired.PAUSED)
    loop.hypervisor.host_reboots()
    loop.restart()
    loop.settle(spec)
    assert (loop.status(spec).phase, starts(loop)) == (Phase.PAUSED, 2), "started, as its policy says, and paused"


def test_without_room_for_its_memory_it_goes_on_and_says_so_and_is_tried_again_later(loop: Loop, tmp_path: Path) -> None:
    spec = guest(loop)
    full = SavedMemory(tmp_path)
    full.check_room = _refuse  # type: ignore[method-assign]
    object.__setattr__(loop.world, "saved_memory", full)
    assert asked(loop, spec, desired=Desired.SUSPENDED) == (Phase.RUNNING, "NoSpace")
    assert loop.status(spec).message == "no room"
    assert loop.delays[spec.uuid] == 60
    object.__setattr__(loop.world, "saved_memory", SavedMemory(tmp_path))
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING, "not before a minute is over"
    loop.now += 61
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.SUSPENDED


def _refuse(_memory_mib: int) -> None:
    raise NoSpace("no room")


def test_memory_that_cannot_be_gone_on_with_is_kept(loop: Loop) -> None:
    spec = guest(loop)
    asked(loop, spec, desired=Desired.SUSPENDED)
    loop.hypervisor.fail_next("resume", HypervisorRejected("another CPU"))
    assert asked(loop, spec, desired=Desired.RUNNING) == (Phase.SUSPENDED, "StartFailed")
    assert "another CPU" in loop.status(spec).message
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and domain.has_saved_memory
    asked(loop, spec, desired=Desired.SUSPENDED)
    assert asked(loop, spec, desired=Desired.RUNNING) == (Phase.RUNNING, ""), "asked for anew it is tried anew"


def test_it_may_be_suspended_as_often_as_one_likes(loop: Loop) -> None:
    spec = guest(loop)
    for _ in range(6):  # more than attempts
        assert asked(loop, spec, desired=Desired.SUSPENDED)[0] is Phase.SUSPENDED
        assert asked(loop, spec, desired=Desired.RUNNING)[0] is Phase.RUNNING


def test_a_suspended_guest_keeps_its_claim_and_its_size(loop: Loop) -> None:
    spec = guest(loop, resources={"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 1})
    asked(loop, spec, resources={"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}, desired=Desired.SUSPENDED)
    assert loop.status(spec).in_force == {"VCPU": 2, "MEMORY_MB": 512}
    claim = loop.placement.consumer(spec.uuid)
    assert claim is not None and claim.allocations[loop.provider]["MEMORY_MB"] == 512


def test_a_card_in_a_vlan_goes_on_unplugged_until_it_is_in_its_vlan(loop: Loop) -> None:
    spec = guest(loop, nics=(Nic("", "br0", 42),))
    asked(loop, spec, desired=Desired.SUSPENDED)
    calls = [call for call, _ in loop.hypervisor.calls]
    assert calls.index("lower_link") < calls.index("suspend")
    asked(loop, spec, desired=Desired.RUNNING)
    calls = [call for call, _ in loop.hypervisor.calls]
    assert calls.index("resume") < len(calls) - calls[::-1].index("raise_link")
    assert all(card.link_is_up for card in loop.hypervisor.cards(spec.uuid))


def test_a_stop_of_a_guest_that_stands_still_lets_it_write_what_it_holds(loop: Loop) -> None:
    for desired in (Desired.PAUSED, Desired.SUSPENDED):
        spec = guest(loop, name=desired.value)
        asked(loop, spec, desired=desired)
        loop.hypervisor.calls.clear()
        assert asked(loop, spec, desired=Desired.STOPPED)[0] is Phase.STOPPED
        calls = [call for call, _ in loop.hypervisor.calls if call in ("unpause", "resume", "shutdown", "destroy")]
        assert calls == ["unpause" if desired is Desired.PAUSED else "resume", "shutdown"]
        domain = loop.hypervisor.get(spec.uuid)
        assert domain is not None and (domain.power_state, domain.has_saved_memory) == (PowerState.SHUTOFF, False)


def test_what_libvirt_keeps_is_counted_where_it_is_on_the_disk_of_the_guests(tmp_path: Path) -> None:
    folder = tmp_path / "save"
    memory = SavedMemory(folder)
    memory.check_room(1 << 40)  # nothing is known of a folder that is not there
    assert memory.taken_bytes(tmp_path) == 0
    folder.mkdir()
    (folder / "web-1.save").write_bytes(b"x" * 8192)
    (folder / "notes").write_bytes(b"x" * 8192)
    assert memory.taken_bytes(tmp_path) == 8192
    assert memory.taken_bytes(Path("/proc")) == 0
    with pytest.raises(NoSpace, match=r"takes up to \d+ MiB, and \d+ MiB are free at .*/save: free space there"):
        memory.check_room(1 << 40)
