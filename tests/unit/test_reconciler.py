"""The loop over fakes: what is counted, reported, retried, and never done."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import (
    Cancelled,
    Conflict,
    EcomputeError,
    HypervisorRejected,
    HypervisorUnavailable,
    NoSpace,
    Permanent,
    PlacementUnavailable,
    StoreUnavailable,
    Transient,
)
from common.model import Desired, ImageRef, InstanceSpec, IpAddress, Nic, Phase, Restart
from common.store import Transaction
from ecompute.bridges import HostBridges
from ecompute.hypervisor import PowerState
from ecompute.watcher import SpecWatcher
from ecompute.workers import Workers
from ecompute.workqueue import WorkQueue
from tests.fakes.hypervisor import FakeHypervisor
from tests.support.deployment import make_raw_image
from tests.support.loop import KEYS, Loop
from tests.support.processes import wait_until


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def power(loop: Loop, spec: InstanceSpec) -> PowerState | None:
    domain = loop.hypervisor.get(spec.uuid)
    return domain.power_state if domain else None


def test_one_pass_builds_a_guest_with_two_status_writes(loop: Loop) -> None:
    spec = loop.request()
    writes: list[str] = []
    commit = loop.store.commit

    def counting(transaction: object) -> int:
        writes.append(str(transaction))
        return commit(transaction)  # type: ignore[arg-type]

    loop.store.commit = counting  # type: ignore[method-assign,assignment]
    loop.reconciler.reconcile(spec.uuid)
    assert power(loop, spec) is PowerState.RUNNING
    status = loop.status(spec)
    assert (status.phase, status.attempts, status.booted) == (Phase.RUNNING, 1, 1)
    assert len(writes) == 2


def test_the_address_is_told_with_the_attempt_before_anything_is_built(loop: Loop) -> None:
    spec = loop.request()
    define, told = loop.hypervisor.define, []

    def looks(xml: str) -> None:
        told.append(loop.status(spec))
        define(xml)

    loop.hypervisor.define = looks  # type: ignore[method-assign]
    loop.reconciler.reconcile(spec.uuid)
    assert [(status.phase, status.attempts, status.addresses) for status in told] == [
        (Phase.BUILDING, 1, loop.world.networks.assigned(spec.uuid))
    ]
    steps = [event.step for event in loop.status(spec).events]
    assert steps == ["ReserveNetwork", "FetchImage", "BuildDisk", "WriteMetadata", "Define", "Start", "MarkBooted"]


def test_a_network_without_addresses_is_a_failed_attempt(loop: Loop) -> None:
    loop.hypervisor.networks.clear()
    spec = loop.request()
    loop.settle(spec)
    status = loop.status(spec)
    assert (status.phase, status.failure, status.attempts) == (Phase.FAILED, "NoAddress", 1)


def test_an_attempt_that_no_address_could_be_noted_for_is_counted(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise Transient("too many open files")

    monkeypatch.setattr(loop.world.networks, "reserve", fails)
    spec = loop.request()
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.FAILED, "AttemptsExhausted")


def test_nothing_is_built_without_a_claim(loop: Loop) -> None:
    spec = loop.request(claimed=False)
    loop.settle(spec)
    assert power(loop, spec) is None
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.REFUSED, "NoAllocation")


def test_nothing_is_begun_without_a_certain_lease_and_running_guests_go_on(loop: Loop) -> None:
    running = loop.request()
    loop.settle(running)
    loop.is_live = False
    other = loop.request(name="other")
    with pytest.raises(Transient, match="lease"):
        loop.reconciler.reconcile(other.uuid)
    loop.change(running, desired=Desired.DELETED)
    with pytest.raises(Transient, match="lease"):
        loop.reconciler.reconcile(running.uuid)
    assert power(loop, running) is PowerState.RUNNING
    assert power(loop, other) is None


def test_a_zombie_cannot_write_a_status_and_builds_nothing(loop: Loop) -> None:
    spec = loop.request()
    key = KEYS.host(loop.provider)
    item = loop.store.get(key)
    assert item is not None
    loop.store.delete(key, seen=item.mod_revision)
    loop.store.create(key, "{}")
    with pytest.raises(Conflict):
        loop.reconciler.reconcile(spec.uuid)
    assert power(loop, spec) is None


def test_a_refusal_fails_for_good_and_takes_everything_away_but_the_request(loop: Loop) -> None:
    spec = loop.request()
    loop.hypervisor.fail_next("start", HypervisorRejected("QEMU says no"))
    loop.settle(spec)
    status = loop.status(spec)
    assert (status.phase, status.reason) == (Phase.FAILED, "HypervisorRejected")
    assert "QEMU says no" in status.message
    assert power(loop, spec) is None
    assert loop.placement.consumer(spec.uuid) is None
    assert not loop.world.disks.has_files(spec.uuid)
    assert loop.world.networks.assigned(spec.uuid) is None
    assert loop.specs.get(spec.uuid) is not None


def test_a_failure_is_remembered_by_the_next_process_however_far_the_cleaning_up_came(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would find an instance without a claim, and no longer know why."""
    spec = loop.request()
    loop.hypervisor.fail_next("start", HypervisorRejected("QEMU says no"))
    release = loop.placement.release

    def die_after(consumer: UUID, generation: int) -> None:
        release(consumer, generation)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.placement, "release", die_after)
        loop.settle(spec)
    loop.restart()
    loop.settle(spec)
    status = loop.status(spec)
    assert (status.phase, status.reason) == (Phase.FAILED, "HypervisorRejected")
    assert "QEMU says no" in status.message


def test_a_guest_that_ran_keeps_its_disk_when_a_later_start_is_refused(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.hypervisor.guest_powers_off(spec.uuid)
    loop.change(spec, boot_request=2)
    loop.hypervisor.fail_next("start", HypervisorRejected("QEMU says no"))
    loop.settle(spec)
    status = loop.status(spec)
    assert (status.phase, status.reason) == (Phase.STOPPED, "StartFailed")
    assert loop.world.disks.exists(spec.uuid)
    assert loop.placement.consumer(spec.uuid) is not None
    loop.change(spec, boot_request=3)
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING


def test_attempts_are_bounded_over_restarts(loop: Loop) -> None:
    """A request that kills its builder each time is given up, however often the builder is started again."""
    spec = loop.request()
    define, tries = loop.hypervisor.define, []

    def crash(xml: str) -> None:
        tries.append(xml)
        raise KeyboardInterrupt

    loop.hypervisor.define = crash  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            loop.reconciler.reconcile(spec.uuid)
        loop.restart()
    loop.settle(spec)
    assert len(tries) == 3
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.FAILED, "AttemptsExhausted")
    assert loop.placement.consumer(spec.uuid) is None
    loop.hypervisor.define = define  # type: ignore[method-assign]


def test_an_outage_of_libvirt_uses_up_no_attempt(loop: Loop) -> None:
    spec = loop.request()
    loop.hypervisor.fail_next("define", *[HypervisorUnavailable("libvirtd restarts")] * 6)
    for _ in range(6):
        with pytest.raises(HypervisorUnavailable):
            loop.reconciler.reconcile(spec.uuid)
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).attempts) == (Phase.RUNNING, 1)


def test_placement_away_means_waiting_and_saying_so(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request()

    def away(_: UUID) -> None:
        raise PlacementUnavailable("Placement does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(loop.placement, "consumer", away)
        with pytest.raises(PlacementUnavailable):
            loop.reconciler.reconcile(spec.uuid)
        assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.PENDING, "Waiting")
        assert "Placement does not answer" in loop.status(spec).message
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING


def test_a_status_that_could_not_be_written_is_written_later(loop: Loop) -> None:
    spec = loop.request()
    start = loop.hypervisor.start

    def then_etcd_goes_away(uuid: UUID) -> None:
        start(uuid)
        loop.store.break_with(StoreUnavailable("etcd is away"))

    loop.hypervisor.start = then_etcd_goes_away  # type: ignore[method-assign]
    entry = loop.specs.get(spec.uuid)
    loop.specs.get = lambda uuid: entry  # type: ignore[method-assign]
    loop.specs.revision = lambda uuid: entry.revision if entry else 0  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        loop.reconciler.reconcile(spec.uuid)
    assert power(loop, spec) is PowerState.RUNNING
    assert loop.statuses.unwritten() == {spec.uuid}
    loop.store.break_with(None)
    loop.reconciler.reconcile(spec.uuid)
    assert loop.status(spec).phase is Phase.RUNNING


def test_deletion_leaves_nothing(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.store.list("/t/spec/").items == ()
    assert loop.store.list("/t/status/").items == ()
    assert loop.store.list("/t/names/").items == ()
    assert loop.store.list("/t/instances/").items == ()
    assert loop.placement.consumer(spec.uuid) is None
    assert power(loop, spec) is None
    assert not loop.world.disks.has_files(spec.uuid)


def test_forget_leaves_a_name_that_somebody_else_has_by_now(loop: Loop) -> None:
    spec = loop.request()
    key = KEYS.name(spec.name)
    item = loop.store.get(key)
    assert item is not None
    loop.store.replace(key, str(uuid4()), seen=item.mod_revision)
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.specs.get(spec.uuid) is None
    assert loop.store.get(key) is not None


def test_a_stale_cache_destroys_nothing(loop: Loop) -> None:
    """The cache says deleted, the store has meanwhile been told otherwise: the store is asked before anything goes."""
    spec = loop.request()
    loop.settle(spec)
    loop.change(spec, desired=Desired.DELETED)
    stale = loop.specs.get(spec.uuid)
    assert stale is not None
    loop.change(spec, desired=Desired.RUNNING)
    loop.specs.get = lambda uuid: stale  # type: ignore[method-assign]
    loop.specs.revision = lambda uuid: stale.revision  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        loop.reconciler.reconcile(spec.uuid)
    assert power(loop, spec) is PowerState.RUNNING


def test_a_missing_spec_stops_nothing(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.store.wipe()
    loop.settle(spec)
    assert power(loop, spec) is PowerState.RUNNING


def test_a_restored_store_stops_nothing_and_says_held(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.store.wipe(cluster_id=99)
    loop.host_key_revision = loop.store.create(KEYS.host(loop.provider), "{}")
    loop.store.create(KEYS.spec(loop.provider, spec.uuid), dataclasses.replace(spec, desired=Desired.DELETED).to_json())
    loop.settle(spec)
    assert power(loop, spec) is PowerState.RUNNING
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.HELD, "StoreRestored")


def test_a_guest_that_does_not_follow_the_button_is_switched_off_after_its_grace_time(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.hypervisor = FakeHypervisor(answers_shutdown=False)
    loop.restart()
    spec = loop.request(grace_seconds=30)
    loop.settle(spec)
    loop.change(spec, desired=Desired.STOPPED)
    loop.reconciler.reconcile(spec.uuid)
    assert (power(loop, spec), loop.status(spec).phase) == (PowerState.RUNNING, Phase.STOPPING)
    loop.now += 31
    loop.reconciler.reconcile(spec.uuid)
    assert (power(loop, spec), loop.status(spec).phase) == (PowerState.SHUTOFF, Phase.STOPPED)


def test_a_newer_schema_is_held_and_its_guest_goes_on(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    key = KEYS.spec(loop.provider, spec.uuid)
    item = loop.store.get(key)
    assert item is not None
    loop.store.replace(key, item.value.replace('"schema":1', '"schema":6'), seen=item.mod_revision)
    loop.settle(spec)
    assert power(loop, spec) is PowerState.RUNNING
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.HELD, "UnsupportedSchema")


def test_a_host_of_an_earlier_version_holds_what_it_would_build_open(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Earlier(InstanceSpec):
        SCHEMAS = (1,)

    monkeypatch.setattr("ecompute.watcher.InstanceSpec", Earlier)
    shut, plain = loop.request(allow=("tcp:22",)), loop.request(name="plain")
    loop.settle(shut)
    loop.settle(plain)
    assert (loop.status(shut).phase, loop.status(shut).reason) == (Phase.HELD, "UnsupportedSchema")
    assert "schema 2" in loop.status(shut).message
    assert (power(loop, shut), power(loop, plain)) == (None, PowerState.RUNNING)


def test_the_same_status_is_written_once(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    before = loop.store.get(KEYS.status(loop.provider, spec.uuid))
    loop.settle(spec)
    assert loop.store.get(KEYS.status(loop.provider, spec.uuid)) == before


def test_an_etcd_that_takes_no_status_uses_up_no_attempt(loop: Loop) -> None:
    """Nothing is built before the attempt is counted, so a count that was refused is no attempt."""
    spec = loop.request()
    commit = loop.store.commit

    def refuse(_: Transaction) -> int:
        raise Conflict("the host key is being made anew")

    loop.store.commit = refuse  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(Conflict):
            loop.reconciler.reconcile(spec.uuid)
    loop.store.commit = commit  # type: ignore[method-assign]
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).attempts) == (Phase.RUNNING, 1)


def test_a_build_that_was_given_up_uses_up_no_attempt(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request()

    def given_up(*_: object, **__: object) -> None:
        raise Cancelled("no longer wanted")

    with monkeypatch.context() as patch:
        patch.setattr(loop.world.images, "fetch", given_up)
        for _ in range(4):
            with pytest.raises(Cancelled):
                loop.reconciler.reconcile(spec.uuid)
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).attempts) == (Phase.RUNNING, 1)


def test_trouble_beside_a_running_guest_is_retried_slowly_and_never_reported_as_building(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.change(spec, hostname="new")

    def full(_: object) -> None:
        raise NoSpace("no space left")

    monkeypatch.setattr(loop.world.metadata, "write", full)
    loop.delays.clear()
    for _ in range(4):
        with pytest.raises(Transient, match="no space left"):
            loop.reconciler.reconcile(spec.uuid)
    assert not loop.delays, "that would be looked at again at once, for ever"
    status = loop.status(spec)
    assert (status.phase, status.failure, status.attempts) == (Phase.RUNNING, "", 1)
    assert "no space left" in status.message
    monkeypatch.undo()
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).message) == (Phase.RUNNING, "")


def test_a_guest_that_cannot_be_marked_is_not_tried_at_full_speed(loop: Loop) -> None:
    spec = loop.request()
    loop.hypervisor.fail_next("write_stamp", HypervisorRejected("no"))
    with pytest.raises(Transient, match="no"):
        loop.reconciler.reconcile(spec.uuid)
    assert loop.delays == {}
    assert (loop.status(spec).phase, loop.status(spec).failure) == (Phase.RUNNING, "")
    loop.settle(spec)
    assert loop.status(spec).booted == 1


def test_a_guest_that_shall_always_run_is_started_again_however_often_it_went_down(loop: Loop) -> None:
    spec = loop.request(restart=Restart.ALWAYS)
    loop.settle(spec)
    for _ in range(6):
        loop.now += 3600
        loop.hypervisor.guest_powers_off(spec.uuid)
        loop.settle(spec)
        assert power(loop, spec) is PowerState.RUNNING
        assert loop.status(spec).phase is Phase.RUNNING


def test_a_guest_that_goes_down_as_soon_as_it_is_up_is_not_started_for_ever(loop: Loop) -> None:
    spec = loop.request(restart=Restart.ALWAYS)
    loop.settle(spec)
    for _ in range(6):
        loop.hypervisor.guest_powers_off(spec.uuid)
        loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.STOPPED, "StartFailed")
    assert loop.world.disks.exists(spec.uuid)


def test_a_deletion_whose_answer_was_lost_leaves_no_memory_for_the_next_of_that_uuid(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.change(spec, desired=Desired.DELETED)
    commit = loop.store.commit

    def losing(transaction: Transaction) -> int:
        commit(transaction)
        raise StoreUnavailable("the answer was lost")

    loop.store.commit = losing  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        loop.reconciler.reconcile(spec.uuid)
    loop.store.commit = commit  # type: ignore[method-assign]
    loop.settle(spec)
    assert loop.statuses.uuids() == set()
    assert loop.statuses.unwritten() == set()
    again = loop.request(uuid=spec.uuid)
    loop.settle(again)
    assert (loop.status(again).phase, loop.status(again).attempts) == (Phase.RUNNING, 1)


def test_what_is_known_of_a_guest_outlives_a_spec_that_got_lost(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.store.wipe()
    loop.settle(spec)
    assert loop.statuses.get(spec.uuid) is not None


def test_a_bug_is_said_in_the_status_and_its_step_is_tried_again(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request()

    def buggy(*_: object, **__: object) -> None:
        raise KeyError("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr(loop.world.disks, "build", buggy)
        with pytest.raises(KeyError):
            loop.reconciler.reconcile(spec.uuid)
    assert "BuildDisk met a bug of etcd-compute (KeyError)" in loop.status(spec).message
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).message) == (Phase.RUNNING, "")


def test_facts_that_cannot_be_had_are_said_in_the_status(loop: Loop) -> None:
    spec = loop.request()
    loop.hypervisor.fail_next("get", HypervisorRejected("access denied"))
    with pytest.raises(EcomputeError):
        loop.reconciler.reconcile(spec.uuid)
    assert "access denied" in loop.status(spec).message


def test_a_guest_whose_image_became_unreadable_is_deleted_all_the_same(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request()
    loop.settle(spec)

    def unreadable(_: object) -> None:
        raise Permanent("the image cannot be read")

    monkeypatch.setattr(loop.world.images, "is_cached", unreadable)
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.specs.get(spec.uuid) is None


def test_downloads_that_last_leave_workers_for_the_other_guests(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests for an image that does not come, and a guest that shall go: it goes at once, and they when it came."""
    running = loop.request()
    loop.settle(running)
    came, fetch = threading.Event(), loop.world.images.fetch

    def slow(image: ImageRef, **arguments: Any) -> object:
        assert came.wait(30)
        return fetch(image, **arguments)

    monkeypatch.setattr(loop.world.images, "fetch", slow)
    queue: WorkQueue[UUID] = WorkQueue()
    loop.look_again = queue.add_after
    other_image = ImageRef(str(make_raw_image(loop.directory / "other.raw")))
    wanted = [loop.request(name=f"new-{number}", image=other_image) for number in range(4)]
    workers = Workers(queue, loop.reconciler.reconcile, 4)
    workers.start()
    for spec in wanted:
        queue.add(spec.uuid)
    wait_until(lambda: all(loop.statuses.get(s.uuid) for s in wanted), timeout_seconds=10, what="they are begun")
    loop.change(running, desired=Desired.DELETED)
    queue.add(running.uuid)
    wait_until(lambda: loop.specs.get(running.uuid) is None, timeout_seconds=10, what="it is gone")
    came.set()
    wait_until(
        lambda: all((known := loop.statuses.get(s.uuid)) and known.phase is Phase.RUNNING for s in wanted),
        timeout_seconds=10, what="they run",
    )  # fmt: skip
    queue.close()
    assert workers.join(10)


def test_a_password_in_an_images_address_is_in_no_message(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request(image=ImageRef("https://me:secret@images.example.org/i.qcow2?token=secret"))
    monkeypatch.setattr(loop.world.images, "fetch", lambda *_, **__: None)
    monkeypatch.setattr(loop.world.images, "is_cached", lambda _: None)
    with pytest.raises(Conflict) as raised:
        loop.reconciler.reconcile(spec.uuid)
    assert "images.example.org" in str(raised.value)
    assert "secret" not in str(raised.value) + loop.status(spec).to_json()


def test_a_pass_right_behind_a_deletion_finds_nothing_to_do_though_the_watch_is_late(loop: Loop) -> None:
    """libvirt's event of the domain that went wakes the instance once more, before etcd's watch has told of the end."""
    spec = loop.request()
    watcher = SpecWatcher(loop.store, KEYS, loop.provider, lambda _: None)
    loop.specs_of = lambda: watcher
    loop.restart()
    item = loop.store.get(KEYS.spec(loop.provider, spec.uuid))
    assert item is not None
    watcher._changed(item.key, item)
    loop.reconciler.reconcile(spec.uuid)
    loop.change(spec, desired=Desired.DELETED)
    item = loop.store.get(item.key)
    assert item is not None
    watcher._changed(item.key, item)
    loop.reconciler.reconcile(spec.uuid)
    assert loop.store.get(item.key) is None
    asked = len(loop.placement.calls)
    loop.reconciler.reconcile(spec.uuid)
    assert len(loop.placement.calls) == asked


def test_a_guest_that_goes_down_by_itself_leaves_a_line_in_its_history_also_where_it_is_started_again(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    kept, lost = loop.request(restart=Restart.ALWAYS), loop.request(name="other")
    for spec in (kept, lost):
        loop.settle(spec)
        loop.hypervisor.guest_crashes(spec.uuid)
        loop.hypervisor.fail_next("get", HypervisorUnavailable("for a moment"))
        loop.settle(spec)
        loop.settle(spec)
        assert [event.step for event in loop.status(spec).events].count("Crashed") == 1
    assert (loop.status(kept).phase, loop.status(lost).phase) == (Phase.RUNNING, Phase.STOPPED)
    assert caplog.text.count("the guest is down") == 2
    loop.change(kept, boot_request=2, reboot_request=2, hard_reboot=True)
    loop.settle(kept)
    assert [event.step for event in loop.status(kept).events][-2:] == ["Start", "MarkBooted"]
    assert caplog.text.count("the guest is down") == 2


class TestVlans:
    """A card in a VLAN sees no cable before it is in it."""

    NICS = (Nic(), Nic("", bridge="br0", vlan=42))

    @pytest.fixture
    def done(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        done: list[str] = []

        def put_into_vlan(device: str, vlan: int) -> None:
            cards = loop.hypervisor.cards(next(domain.uuid for domain in loop.hypervisor.list()))
            done.append(f"{[card.link_is_up for card in cards if card.device == device]} {vlan}")

        monkeypatch.setattr(loop.world.bridges, "put_into_vlan", put_into_vlan)
        return done

    def links(self, loop: Loop, spec: InstanceSpec) -> list[bool]:
        return [card.link_is_up for card in loop.hypervisor.cards(spec.uuid)]

    def test_it_is_put_there_after_each_start_and_before_it_is_said_to_run(self, loop: Loop, done: list[str]) -> None:
        spec = loop.request(nics=self.NICS)
        loop.settle(spec)
        assert (loop.status(spec).phase, done, self.links(loop, spec)) == (Phase.RUNNING, ["[False] 42"], [True, True])
        steps = [event.step for event in loop.status(spec).events]
        assert steps[-3:] == ["Start", "Connect", "MarkBooted"]
        loop.settle(spec)
        assert len(done) == 1
        loop.hypervisor.guest_powers_off(spec.uuid)
        loop.change(spec, boot_request=2)
        loop.settle(spec)
        assert (len(done), self.links(loop, spec)) == (2, [True, True])

    def test_a_guest_that_somebody_else_started_stays_unplugged_until_it_is_there(self, loop: Loop, done: list[str]) -> None:
        spec = loop.request(nics=self.NICS)
        loop.settle(spec)
        loop.hypervisor.guest_powers_off(spec.uuid)
        loop.hypervisor.start(spec.uuid)
        assert self.links(loop, spec) == [True, False]
        loop.settle(spec)
        assert (self.links(loop, spec), len(done)) == ([True, True], 2)

    def test_what_the_kernel_refuses_is_said_and_tried_again(self, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = [Transient("cannot put vnet1 into VLAN 42: Operation not permitted"), None]

        def put_into_vlan(device: str, vlan: int) -> None:
            if (error := answers.pop(0)) is not None:
                raise error

        monkeypatch.setattr(loop.world.bridges, "put_into_vlan", put_into_vlan)
        spec = loop.request(nics=self.NICS)
        with pytest.raises(Transient):
            loop.reconciler.reconcile(spec.uuid)
        assert (loop.status(spec).phase, self.links(loop, spec)) == (Phase.BUILDING, [True, False])
        assert "VLAN 42" in loop.status(spec).message
        loop.settle(spec)
        assert (loop.status(spec).phase, self.links(loop, spec)) == (Phase.RUNNING, [True, True])

    def test_other_guests_are_not_asked_for_their_cards(self, loop: Loop) -> None:
        loop.settle(loop.request(nics=(Nic(), Nic("", bridge="br0"))))
        assert "cards" not in [name for name, _ in loop.hypervisor.calls]


def test_an_address_that_was_learned_is_told_the_client_and_the_guest_and_leads_to_no_document(loop: Loop) -> None:
    spec = loop.request(nics=(Nic(), Nic("", bridge="br0")))
    loop.settle(spec)
    mac = loop.status(spec).addresses[1].mac
    assert loop.status(spec).addresses[1].address == ""
    assert loop.world.networks.learn(spec.uuid, {mac: (IpAddress("10.9.0.7", 24),)})
    loop.settle(spec)
    assert [(card.address, card.source) for card in loop.status(spec).addresses][1] == ("10.9.0.7", "learned")
    found = loop.world.metadata.read(spec.uuid)
    assert found is not None
    assert found.addresses[1].address == "10.9.0.7"
    assert loop.world.metadata.by_address("10.9.0.7") is None  # it is the guest's word, and no filter holds others to it
    assert [event.step for event in loop.status(spec).events][-1] == "WriteMetadata"


def test_a_bridge_that_this_host_lacks_is_a_reason_to_take_another_host(loop: Loop, tmp_path: Path) -> None:
    loop.world.networks._bridges = HostBridges(tmp_path)
    spec = loop.request(nics=(Nic("", bridge="br0"),))
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).failure) == (Phase.FAILED, "NoBridge")
    assert "no bridge br0" in loop.status(spec).message
