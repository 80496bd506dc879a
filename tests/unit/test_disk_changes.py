"""Reverts and rebuilds over fakes and real qcow2 files: what happens to the disk, what to the guest, and what is said of it."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from common.disk_requests import Applied
from common.errors import HypervisorUnavailable
from common.hardware import DiskBus, Hardware
from common.model import Desired, ImageRef, InstanceSpec, Phase
from ecompute import disk_snapshots
from ecompute.audit import _remains
from ecompute.hypervisor import PowerState
from ecompute.proposal import proposed
from tests.support.deployment import make_raw_image
from tests.support.loop import Loop

SATA = Hardware(disk_bus=DiskBus.SATA)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


@pytest.fixture
def running(loop: Loop) -> InstanceSpec:
    spec = loop.request()
    loop.settle(spec)
    assert loop.power(spec) is PowerState.RUNNING
    return spec


def disk(loop: Loop, spec: InstanceSpec) -> Path:
    return loop.world.disks.disk_path(spec.uuid)


def write(path: Path, pattern: int) -> None:
    subprocess.run(["qemu-io", "-c", f"write -P {pattern} 512k 64k", path], check=True, capture_output=True, timeout=30)


def holds(path: Path, pattern: int) -> bool:
    read = ["qemu-io", "-r", "-c", f"read -P {pattern} 512k 64k", path]
    done = subprocess.run(read, check=False, capture_output=True, timeout=30)
    assert done.returncode == 0 or b"verification failed" in done.stdout, done
    return done.returncode == 0


def is_whole(path: Path) -> bool:
    return subprocess.run(["qemu-img", "check", "-q", path], check=False, timeout=30).returncode == 0


def starts(loop: Loop) -> int:
    return [call for call, _ in loop.hypervisor.calls].count("start")


def ask(loop: Loop, spec: InstanceSpec, number: int, **more: object) -> None:
    loop.change(spec, boot_request=number, **more)
    loop.settle(spec)


@pytest.fixture
def snapshotted(loop: Loop, running: InstanceSpec) -> InstanceSpec:
    """One whose disk was all threes when the snapshot was taken, and is all fives now."""
    write(disk(loop, running), 3)
    disk_snapshots.take(disk(loop, running), "before")
    write(disk(loop, running), 5)
    return running


def test_a_revert_brings_back_what_was_and_starts_the_guest_once(loop: Loop, snapshotted: InstanceSpec) -> None:
    ask(loop, snapshotted, 2, restore="before", restore_request=2)
    assert holds(disk(loop, snapshotted), 3) and is_whole(disk(loop, snapshotted))
    assert loop.power(snapshotted) is PowerState.RUNNING
    status = loop.status(snapshotted)
    assert (status.phase, status.booted, status.restored, status.attempts) == (Phase.RUNNING, 2, Applied(2), 1)
    assert [event.step for event in status.events][-4:] == ["Destroy", "RestoreDisk", "Start", "MarkBooted"]

    write(disk(loop, snapshotted), 7)
    loop.restart()
    loop.settle(snapshotted)
    assert holds(disk(loop, snapshotted), 7), "done once is done"
    assert starts(loop) == 2


def test_a_stopped_guest_goes_back_and_stays_off(loop: Loop, snapshotted: InstanceSpec) -> None:
    ask(loop, snapshotted, 1, desired=Desired.STOPPED)
    ask(loop, snapshotted, 2, restore="before", restore_request=2)
    assert holds(disk(loop, snapshotted), 3)
    assert (loop.power(snapshotted), loop.status(snapshotted).phase) == (PowerState.SHUTOFF, Phase.STOPPED)
    assert loop.status(snapshotted).restored == Applied(2)


def test_a_snapshot_that_is_gone_stops_nothing(loop: Loop, snapshotted: InstanceSpec) -> None:
    ask(loop, snapshotted, 2, restore="after", restore_request=2)
    assert (loop.power(snapshotted), starts(loop)) == (PowerState.RUNNING, 1)
    assert holds(disk(loop, snapshotted), 5)
    restored = loop.status(snapshotted).restored
    assert restored is not None and restored.request == 2
    assert restored.problem == "NoSnapshot: the snapshot after is not there any more; there are before"
    assert loop.status(snapshotted).phase is Phase.RUNNING


def test_a_raw_disk_has_nothing_to_go_back_to(loop: Loop, running: InstanceSpec) -> None:
    make_raw_image(disk(loop, running))
    ask(loop, running, 2, restore="before", restore_request=2)
    restored = loop.status(running).restored
    assert restored is not None and "a raw disk keeps no snapshots" in restored.problem
    assert starts(loop) == 1


def test_a_revert_that_fails_on_the_way_starts_the_guest_as_it_was(
    loop: Loop, snapshotted: InstanceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecompute.qemu_img.cage", lambda *_: ["sh", "-c", 'echo "No space left on device"; exit 1'])
    ask(loop, snapshotted, 2, restore="before", restore_request=2)
    restored = loop.status(snapshotted).restored
    assert restored is not None and restored.problem.startswith("NoSpace: the snapshots of ")
    assert loop.power(snapshotted) is PowerState.RUNNING
    assert holds(disk(loop, snapshotted), 5)


def test_a_file_that_another_process_has_open_is_waited_for(loop: Loop, snapshotted: InstanceSpec) -> None:
    """As where somebody started the guest behind our back."""
    opened = subprocess.Popen(["qemu-io", disk(loop, snapshotted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert opened.stdout is not None and opened.stdin is not None
        opened.stdin.write(b"read 0 1\n")
        opened.stdin.flush()
        opened.stdout.readline()
        ask(loop, snapshotted, 2, restore="before", restore_request=2)
        assert loop.status(snapshotted).restored is None
        assert "another process has it open" in loop.status(snapshotted).message
    finally:
        opened.communicate(timeout=20)
    loop.settle(snapshotted)
    assert loop.status(snapshotted).restored == Applied(2)
    assert holds(disk(loop, snapshotted), 3)


def test_a_rebuild_gives_a_new_disk_of_another_image_for_its_hardware(
    loop: Loop, snapshotted: InstanceSpec, tmp_path: Path
) -> None:
    other = make_raw_image(tmp_path / "other.raw", size_mib=5)
    addresses = loop.world.networks.assigned(snapshotted.uuid)
    ask(loop, snapshotted, 2, image=ImageRef(str(other)), hardware=SATA, rebuild_request=2)
    assert loop.world.disks.file(snapshotted.uuid).snapshots == ()
    assert not holds(disk(loop, snapshotted), 5)
    document = loop.world.metadata.read(snapshotted.uuid)
    assert document is not None and (document.image, document.hardware) == (str(other), SATA)
    assert loop.world.networks.assigned(snapshotted.uuid) == addresses
    status = loop.status(snapshotted)
    assert (status.phase, status.rebuilt, status.booted) == (Phase.RUNNING, Applied(2), 2)
    steps = [event.step for event in status.events]
    assert steps[steps.index("MarkBooted") + 1 :] == [
        "FetchImage", "PrepareDisk", "Destroy", "ReplaceDisk", "WriteMetadata", "Define", "Start", "MarkBooted",
    ]  # fmt: skip
    assert sorted(path.name for path in disk(loop, snapshotted).parent.iterdir()) == ["disk.qcow2", "rebuilt.json"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [(ImageRef("/no/such.raw"), "ImageNotFound"), ("other", "ChecksumMismatch"), ("large", "InvalidSpec")],
    ids=["missing", "other-checksum", "too-large"],
)
def test_an_image_that_cannot_be_had_costs_nothing(
    loop: Loop, snapshotted: InstanceSpec, tmp_path: Path, image: ImageRef | str, reason: str
) -> None:
    if image == "other":
        image = ImageRef(str(make_raw_image(tmp_path / "other.raw", size_mib=5)), "sha256:" + "0" * 64)
    if image == "large":
        large = tmp_path / "large.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", large, "9G"], check=True, timeout=30)
        image = ImageRef(str(large))
    ask(loop, snapshotted, 2, image=image, hardware=SATA, rebuild_request=2)
    assert (loop.power(snapshotted), starts(loop)) == (PowerState.RUNNING, 1)
    assert holds(disk(loop, snapshotted), 5)
    rebuilt = loop.status(snapshotted).rebuilt
    assert rebuilt is not None and rebuilt.request == 2 and rebuilt.problem.startswith(f"{reason}: ")
    document = loop.world.metadata.read(snapshotted.uuid)
    assert document is not None and (document.image, document.hardware) == (str(loop.image), snapshotted.hardware)

    ask(loop, snapshotted, 3, reboot_request=3, hard_reboot=True, keys=("ssh-ed25519 A",))
    assert loop.power(snapshotted) is PowerState.RUNNING
    assert holds(disk(loop, snapshotted), 5)
    document = loop.world.metadata.read(snapshotted.uuid)
    assert document is not None and (document.keys, document.hardware) == (("ssh-ed25519 A",), snapshotted.hardware)
    assert document.image == str(loop.image), "it tells of the disk that the guest has"


def test_a_rebuild_that_was_given_up_may_be_asked_for_again(loop: Loop, running: InstanceSpec, tmp_path: Path) -> None:
    late = tmp_path / "late.raw"
    ask(loop, running, 2, image=ImageRef(str(late)), rebuild_request=2)
    assert loop.status(running).phase is Phase.RUNNING
    make_raw_image(late, size_mib=5)
    loop.settle(running)
    assert starts(loop) == 1, "what was given up does not come by itself"
    ask(loop, running, 3, rebuild_request=3)
    assert loop.status(running).rebuilt == Applied(3)
    assert starts(loop) == 2


def test_a_disk_that_is_lost_is_made_anew_where_that_is_asked_for(loop: Loop, running: InstanceSpec) -> None:
    loop.hypervisor.destroy(running.uuid)
    disk(loop, running).unlink()
    loop.settle(running)
    assert loop.status(running).reason == "DiskMissing"
    ask(loop, running, 2, rebuild_request=2)
    assert loop.power(running) is PowerState.RUNNING
    assert disk(loop, running).is_file()


def test_a_request_that_came_before_the_first_disk_is_answered_by_that(loop: Loop) -> None:
    spec = loop.request(rebuild_request=3, boot_request=3)
    loop.settle(spec)
    assert loop.status(spec).rebuilt == Applied(3)
    assert starts(loop) == 1


def test_two_requests_are_dealt_with_in_their_order(loop: Loop, snapshotted: InstanceSpec) -> None:
    ask(loop, snapshotted, 3, rebuild_request=2, restore="before", restore_request=3)
    assert loop.status(snapshotted).rebuilt == Applied(2)
    restored = loop.status(snapshotted).restored
    assert restored is not None and "there is none" in restored.problem, "the snapshots went with the disk"
    assert loop.power(snapshotted) is PowerState.RUNNING


def test_a_note_that_cannot_be_read_keeps_the_disk_as_it_is(loop: Loop, snapshotted: InstanceSpec) -> None:
    (disk(loop, snapshotted).parent / "restored.json").write_text("{")
    ask(loop, snapshotted, 2, restore="before", restore_request=2)
    assert holds(disk(loop, snapshotted), 5)
    restored = loop.status(snapshotted).restored
    assert restored is not None and "cannot be read" in restored.problem


def test_a_guest_that_was_left_held_still_is_let_go_once_its_agent_answers(loop: Loop, running: InstanceSpec) -> None:
    loop.world.disks.notes.set_frozen(running.uuid)
    loop.hypervisor.held_still.add(running.uuid)
    loop.hypervisor.agent = loop.hypervisor.agent.YES
    loop.hypervisor.fail_next("thaw", HypervisorUnavailable("away"))
    loop.settle(running)
    assert loop.hypervisor.held_still == set()
    assert not loop.world.disks.notes.read(running.uuid).is_frozen


def test_a_guest_without_an_agent_was_not_held_still(loop: Loop, running: InstanceSpec) -> None:
    """Whoever noted that it may be died before it asked."""
    loop.world.disks.notes.set_frozen(running.uuid)
    loop.settle(running)
    assert not loop.world.disks.notes.read(running.uuid).is_frozen
    assert loop.status(running).phase is Phase.RUNNING


def test_a_proposal_asks_for_no_other_disk_than_the_guest_has(loop: Loop, snapshotted: InstanceSpec) -> None:
    ask(loop, snapshotted, 4, restore="before", restore_request=4)
    domain = loop.hypervisor.get(snapshotted.uuid)
    folder = loop.world.disks.folder(snapshotted.uuid)
    assert domain is not None and domain.stamp is not None and folder is not None
    remains = _remains_of(folder, loop, snapshotted)
    known = dataclasses.replace(snapshotted, restore="x", restore_request=9, rebuild_request=8, boot_request=9)
    spec = proposed(domain, domain.stamp, remains, known)
    assert (spec.restore_request, spec.rebuild_request) == (4, 0)
    assert proposed(domain, domain.stamp, remains).boot_request == 4


def _remains_of(folder, loop, spec):  # type: ignore[no-untyped-def]
    from ecompute.audit import Sight

    sight = Sight(loop.provider, "h1", 1, Path("/lost"), folders={spec.uuid: folder})
    return _remains(sight, spec.uuid)
