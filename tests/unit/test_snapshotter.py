"""Letters about snapshots: what the host does to the disk, whom it lets wait, and what it answers."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.disk_snapshots import CREATE, LIST, REMOVE, Consistency, SnapshotAnswer, Trouble, tag_of
from common.errors import HypervisorUnavailable
from common.findings import Letter
from common.model import Desired
from ecompute import disk_snapshots, snapshotter
from ecompute.hypervisor import Frozen, PowerState
from ecompute.snapshotter import Snapshotter
from ecompute.workqueue import WorkQueue
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.deployment import make_raw_image
from tests.support.loop import KEYS, Loop
from tests.support.processes import wait_until

REQUEST = uuid4()


class Host:
    """A host with a queue and a guest that runs."""

    def __init__(self, directory: Path) -> None:
        self.loop, self.queue, self.cluster_id = Loop(directory), WorkQueue[UUID](), 0
        self.spec = self.loop.request()
        self.loop.settle(self.spec)
        self.hypervisor: FakeHypervisor = self.loop.hypervisor
        self.disks = self.loop.world.disks
        self.snapshotter = Snapshotter(
            self.loop.world, self.loop.store, KEYS, provider=self.loop.provider, host="h1", queue=self.queue,
            is_live=lambda: self.loop.is_live, cluster_id=lambda: self.cluster_id or self.loop.store.cluster_id(),
        )  # fmt: skip

    def ask(self, kind: str, name: str = "before", request: UUID = REQUEST) -> SnapshotAnswer:
        arguments = {"instance": (str(self.spec.uuid),), "name": (name,), "request": (request.hex,)}
        text = self.snapshotter.answer(Letter(kind, arguments))
        assert text is not None
        return SnapshotAnswer.from_json(text)

    def names(self) -> list[tuple[str, Consistency]]:
        return [(one.name, one.consistency) for one in self.disks.file(self.spec.uuid).snapshots]

    def calls(self) -> list[str]:
        return [call for call, _ in self.hypervisor.calls]

    def is_frozen(self) -> bool:
        return self.disks.notes.read(self.spec.uuid).is_frozen

    def stop(self) -> None:
        self.loop.change(self.spec, desired=Desired.STOPPED)
        self.loop.settle(self.spec)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_guest_without_an_agent_goes_on_and_its_snapshot_says_so(host: Host) -> None:
    answer = host.ask(CREATE)
    assert (answer.trouble, [one.name for one in answer.snapshots]) == (Trouble.NONE, ["before"])
    assert host.names() == [("before", Consistency.CRASH)]
    assert host.loop.power(host.spec) is PowerState.RUNNING
    assert answer.disk_bytes == 1 << 30 and answer.file_bytes > 0 and answer.free_bytes > 0
    assert not host.is_frozen() and "thaw" not in host.calls()


def test_a_guest_with_an_agent_is_held_still_and_let_go(host: Host) -> None:
    host.hypervisor.agent = Frozen.YES
    assert host.ask(CREATE).snapshots[0].consistency is Consistency.FROZEN
    order = [call for call in host.calls() if call in ("freeze", "take_snapshot", "thaw")]
    assert order == ["freeze", "take_snapshot", "thaw"]
    assert not host.is_frozen() and not host.hypervisor.held_still


def test_an_agent_that_may_still_do_it_is_let_go_too(host: Host) -> None:
    host.hypervisor.agent = Frozen.UNCERTAIN
    assert host.ask(CREATE).snapshots[0].consistency is Consistency.CRASH
    assert not host.hypervisor.held_still and not host.is_frozen()


def test_a_guest_is_let_go_when_the_snapshot_fails(host: Host) -> None:
    host.hypervisor.agent = Frozen.YES
    host.hypervisor.fail_next("take_snapshot", HypervisorUnavailable("QEMU hangs"))
    answer = host.ask(CREATE)
    assert (answer.trouble, answer.message) == (Trouble.BUSY, "QEMU hangs")
    assert not host.hypervisor.held_still and not host.is_frozen() and host.names() == []


def test_a_guest_that_does_not_let_go_is_seen_to_by_its_worker(host: Host) -> None:
    host.hypervisor.agent = Frozen.YES
    host.hypervisor.fail_next("thaw", *[HypervisorUnavailable("away")] * snapshotter.THAW_TRIES)
    assert host.ask(CREATE).trouble is Trouble.NONE
    assert host.is_frozen() and host.hypervisor.held_still
    assert host.queue.get(0.0) == host.spec.uuid, "its worker is told"
    host.loop.settle(host.spec)
    assert not host.is_frozen() and not host.hypervisor.held_still


def test_whoever_dies_while_the_guest_is_held_still_leaves_a_note_of_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.hypervisor.agent = Frozen.YES
    seen: list[bool] = []
    take = host.hypervisor.take_snapshot
    monkeypatch.setattr(host.hypervisor, "take_snapshot", lambda *given: (seen.append(host.is_frozen()), take(*given)))
    host.ask(CREATE)
    assert seen == [True]


def test_a_paused_guest_is_not_asked_to_hold_still(host: Host) -> None:
    host.hypervisor.agent = Frozen.YES
    host.hypervisor.pause(host.spec.uuid)
    assert host.ask(CREATE).snapshots[0].consistency is Consistency.CRASH
    assert "freeze" not in host.calls()


def test_a_guest_that_is_off_has_it_taken_by_qemu_img(host: Host) -> None:
    host.stop()
    assert host.ask(CREATE).snapshots[0].consistency is Consistency.OFF
    assert "take_snapshot" not in host.calls()
    assert host.ask(REMOVE).snapshots == ()


def test_the_same_request_again_is_done_and_another_one_is_told(host: Host) -> None:
    host.ask(CREATE)
    assert host.ask(CREATE).trouble is Trouble.NONE
    assert host.calls().count("take_snapshot") == 1
    answer = host.ask(CREATE, request=uuid4())
    assert (answer.trouble, answer.message) == (Trouble.TAKEN, "there is a snapshot before already")
    host.stop()
    assert host.ask(CREATE).trouble is Trouble.NONE, "whatever the guest does by now"
    assert len(host.names()) == 1


def test_remove_removes_and_what_is_gone_is_done(host: Host) -> None:
    host.ask(CREATE)
    host.ask(CREATE, "after")
    for _ in range(2):
        assert [one.name for one in host.ask(REMOVE).snapshots] == ["after"]
    assert host.loop.power(host.spec) is PowerState.RUNNING


def test_list_knows_those_that_somebody_made_by_hand(host: Host) -> None:
    host.stop()
    disk_snapshots.take(host.disks.disk_path(host.spec.uuid), "by hand")
    assert [(one.name, one.consistency) for one in host.ask(LIST).snapshots] == [("by hand", Consistency.UNKNOWN)]


def test_a_full_disk_takes_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(host.disks), "free_bytes", lambda _: snapshotter.SPARE_BYTES)
    answer = host.ask(CREATE)
    assert answer.trouble is Trouble.REFUSED
    assert "which its guest may write anew while the snapshot keeps them, and 64 MiB are free at" in answer.message
    assert host.names() == []


def test_a_disk_has_so_many_and_no_more(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "MOST_SNAPSHOTS", 1)
    host.ask(CREATE)
    answer = host.ask(CREATE, "after")
    assert (answer.trouble, answer.message) == (
        Trouble.REFUSED,
        "it has 1 snapshots, at most 1 are possible: remove some first",
    )


def test_a_raw_disk_takes_none(host: Host) -> None:
    make_raw_image(host.disks.disk_path(host.spec.uuid))
    for kind in (CREATE, REMOVE, LIST):
        answer = host.ask(kind)
        assert answer.trouble is Trouble.REFUSED and "a raw disk keeps no snapshots" in answer.message


def test_a_disk_that_is_about_to_be_another_one_is_left_alone(host: Host) -> None:
    host.loop.change(host.spec, restore="x", restore_request=2, boot_request=2)
    assert (host.ask(CREATE).trouble, host.ask(CREATE).message) == (Trouble.BUSY, "it is about to be reverted or rebuilt")
    host.loop.change(host.spec, desired=Desired.DELETED)
    assert host.ask(REMOVE).message == "it is about to be destroyed"
    host.loop.settle(host.spec)
    assert host.ask(CREATE).trouble is Trouble.NOT_FOUND


def test_what_is_held_is_not_touched(host: Host) -> None:
    host.cluster_id = 5
    assert host.ask(CREATE).trouble is Trouble.REFUSED
    host.cluster_id = 0
    domain = host.hypervisor.get(host.spec.uuid)
    assert domain is not None and domain.stamp is not None
    host.hypervisor.write_stamp(host.spec.uuid, dataclasses.replace(domain.stamp, provider=uuid4()))
    assert "etcd-compute did not make" in host.ask(CREATE).message
    host.hypervisor.write_stamp(host.spec.uuid, domain.stamp)
    host.loop.is_live = False
    assert host.ask(CREATE).trouble is Trouble.BUSY
    assert host.names() == []


def test_what_has_not_run_has_nothing_to_keep(host: Host) -> None:
    host.spec = host.loop.request(name="late")
    assert host.ask(CREATE).message == "it has no disk on its host"
    assert host.ask(LIST).trouble is Trouble.REFUSED


def test_a_worker_and_a_letter_never_have_one_disk_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.queue.add(host.spec.uuid)
    assert host.queue.get() == host.spec.uuid
    answers: list[SnapshotAnswer] = []
    asking = threading.Thread(target=lambda: answers.append(host.ask(CREATE)))
    asking.start()
    time.sleep(0.2)  # it would have been done by now
    assert "take_snapshot" not in host.calls()
    host.queue.done(host.spec.uuid)
    asking.join(20)
    assert answers[0].trouble is Trouble.NONE
    monkeypatch.setattr(snapshotter, "HOLD_SECONDS", 0.1)
    wait_until(lambda: host.queue.get(1.0) == host.spec.uuid, timeout_seconds=5, what="the worker has it again")
    answer = host.ask(CREATE, "after")
    assert (answer.trouble, answer.message) == (
        Trouble.BUSY,
        "its host is busy with it for more than 0.1 s, as with an image; try again",
    )


def test_a_qemu_that_hangs_is_not_waited_for_for_ever(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "QEMU_SECONDS", 0.1)
    going_on = threading.Event()
    monkeypatch.setattr(host.hypervisor, "take_snapshot", lambda *_: going_on.wait(20))
    answer = host.ask(CREATE)
    assert (answer.trouble, answer.message) == (Trouble.BUSY, "snapshot before: no answer within 0.1 s; it may come yet")
    going_on.set()


@pytest.mark.parametrize("arguments", [{}, {"instance": ("x",)}, {"instance": (str(uuid4()), str(uuid4()))}])
def test_a_letter_without_an_instance_makes_no_sense(host: Host, arguments: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError):
        host.snapshotter.answer(Letter(CREATE, arguments))


def test_other_letters_are_others(host: Host) -> None:
    assert host.snapshotter.answer(Letter("audit")) is None


def test_a_name_that_is_none_is_refused_by_the_host_as_well(host: Host) -> None:
    assert host.ask(CREATE, "a+b").trouble is Trouble.REFUSED
    assert host.names() == []


def test_what_disks_take_beyond_their_claims_is_counted(host: Host) -> None:
    assert host.disks.bytes_beyond_claims() == 0
    path = host.disks.disk_path(host.spec.uuid)
    with path.open("r+b") as file:  # behind the end, where QEMU would write
        file.seek(0, 2)
        file.write(bytes(1 << 20))
    header = bytearray(path.read_bytes()[:32])
    header[24:32] = (1 << 20).to_bytes(8)
    with path.open("r+b") as file:
        file.write(header)
    found = host.disks.file(host.spec.uuid)
    assert host.disks.bytes_beyond_claims() == found.file_bytes - (1 << 20) > 0


def test_tags_say_all_that_is_known() -> None:
    assert tag_of("a-b.c", Consistency.FROZEN, UUID(int=1)) == "a-b.c+frozen+00000000000000000000000000000001"
