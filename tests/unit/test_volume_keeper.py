"""A host keeps its volumes: made once, plugged in and out, freed when nobody has them, and only taken away when asked to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, HypervisorRejected, NotLive, PlacementUnavailable, StoreUnavailable
from common.model import Desired, Phase
from common.volume_records import VolumePhase
from ecompute.machine import Step
from ecompute.volume_files import SPARE_BYTES, VolumeFiles, volume_of
from eschedule import volume_changes
from tests.support.loop import KEYS
from tests.support.volume_loop import ORPHAN_AFTER_SECONDS, VolumeLoop


@pytest.fixture
def loop(tmp_path: Path) -> VolumeLoop:
    return VolumeLoop(tmp_path)


def test_a_volume_is_made_once_and_never_again(loop: VolumeLoop) -> None:
    place = loop.new_volume(size_gib=3)
    loop.keep(place)
    path = loop.files.path(place.uuid)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (3 << 30, 0o600)
    assert (loop.volume_status(place).phase, loop.volume_status(place).was_made) == (VolumePhase.AVAILABLE, True)
    path.unlink()
    loop.restart()
    loop.keep(place)
    assert not path.exists()
    assert loop.volume_status(place).phase is VolumePhase.MISSING
    path.write_bytes(b"put back")
    loop.keep(place)
    assert loop.volume_status(place).phase is VolumePhase.AVAILABLE and path.read_bytes() == b"put back"


def test_a_status_that_cannot_be_read_is_no_reason_to_make_an_empty_file(loop: VolumeLoop) -> None:
    place = loop.new_volume()
    loop.store.create(KEYS.volume_status(loop.provider, place.uuid), '{"schema": 99}')
    loop.keep(place)
    assert not loop.files.exists(place.uuid)


def test_what_has_no_claim_is_not_made_and_a_full_disk_is_said(loop: VolumeLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    place = loop.new_volume(is_claimed=False)
    loop.keep(place)
    assert loop.volume_status(place).phase is VolumePhase.REFUSED and not loop.files.exists(place.uuid)
    monkeypatch.setattr("ecompute.volume_files.SPARE_BYTES", 1 << 80)
    other = loop.new_volume("other")
    loop.keep(other)
    assert loop.volume_status(other).message.startswith("MakeVolume: no volume is made in") and SPARE_BYTES < 1 << 80
    monkeypatch.undo()
    loop.keep(other)
    assert loop.volume_status(other).phase is VolumePhase.AVAILABLE and loop.volume_status(other).message == ""


def test_a_guest_that_runs_gets_the_volume_and_keeps_it_over_a_restart(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.settle_all(place, spec)
    assert loop.plugged(spec) == ({place.uuid}, {place.uuid})
    assert (loop.status(spec).phase, loop.status(spec).volumes) == (Phase.RUNNING, (place.uuid,))
    assert loop.volume_status(place).phase is VolumePhase.ATTACHED
    calls = len([call for call in loop.hypervisor.calls if call[0] in ("define", "attach_disk", "detach_disk")])
    loop.restart()
    loop.settle_all(place, spec)
    assert len([call for call in loop.hypervisor.calls if call[0] in ("define", "attach_disk", "detach_disk")]) == calls
    loop.change(spec, desired=Desired.STOPPED, volumes=_volumes(loop, spec))
    loop.settle_all(place, spec)
    assert loop.plugged(spec) == ({place.uuid}, set())
    loop.change(spec, desired=Desired.RUNNING, boot_request=2, volumes=_volumes(loop, spec))
    loop.settle_all(place, spec)
    assert loop.plugged(spec) == ({place.uuid}, {place.uuid})


def _volumes(loop: VolumeLoop, spec: object) -> object:
    entry = loop.specs.get(spec.uuid)  # type: ignore[attr-defined]
    assert entry is not None and entry.spec is not None
    return entry.spec.volumes


def test_what_a_guest_lets_go_of_is_free_and_another_can_have_it(loop: VolumeLoop) -> None:
    place, first, second = loop.new_volume(), loop.request(), loop.request(name="second")
    loop.settle_all(place, first, second)
    loop.attach(place, first)
    loop.settle_all(place, first)
    with pytest.raises(Conflict, match="is attached to web; take it out first"):
        loop.attach(place, second)
    with pytest.raises(Conflict, match="is attached to web; nothing was removed"):
        volume_changes.remove(loop.store, KEYS, place)
    loop.detach(place)
    with pytest.raises(Conflict, match="being taken out of web"):
        loop.attach(place, second)
    loop.settle_all(place, first)
    assert loop.plugged(first) == (set(), set()) and loop.status(first).volumes == ()
    assert loop.volume_status(place).phase is VolumePhase.AVAILABLE
    loop.attach(place, second)
    loop.settle_all(place, first, second)
    assert loop.plugged(second) == ({place.uuid}, {place.uuid})


def test_a_guest_that_does_not_let_go_is_asked_again_and_the_volume_is_nobody_elses_until_then(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.settle_all(place, spec)
    loop.hypervisor.lets_go_of_disks = False
    loop.detach(place)
    loop.settle_all(place, spec)
    assert loop.plugged(spec) == (set(), {place.uuid}), "no start brings it back"
    assert loop.status(spec).notes == ("the guest has not let go of volume data",)
    assert loop.status(spec).phase is Phase.RUNNING
    assert loop.volume_status(place).phase is VolumePhase.DETACHING
    asked = loop.hypervisor.calls.count(("detach_disk", spec.uuid))
    loop.settle_all(place, spec)
    assert loop.hypervisor.calls.count(("detach_disk", spec.uuid)) == asked, "not again at once"
    loop.now += 20
    loop.settle_all(place, spec)
    assert loop.hypervisor.calls.count(("detach_disk", spec.uuid)) == asked + 1
    other = loop.new_volume("other")
    loop.keep(other)
    loop.attach(other, spec)
    loop.settle_all(other, spec)
    assert loop.status(spec).volumes == (place.uuid,), "its place is not free yet"
    assert loop.hypervisor.calls.count(("detach_disk", spec.uuid)) == asked + 1
    loop.now += 20
    loop.settle_all(other, spec)
    assert loop.hypervisor.calls.count(("detach_disk", spec.uuid)) == asked + 2, "what comes does not keep it from being asked"
    loop.hypervisor.guest_lets_go(spec.uuid, str(loop.files.path(place.uuid)))
    loop.settle_all(place, spec)
    loop.settle_all(other, spec)
    assert loop.status(spec).volumes == (other.uuid,) and loop.status(spec).notes == ()
    held = loop.volume(place)
    assert held is not None and held.attached_to is None


def test_a_guest_that_is_off_lets_go_at_once(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.settle_all(place, spec)
    loop.change(spec, desired=Desired.STOPPED, volumes=_volumes(loop, spec))
    loop.settle_all(place, spec)
    loop.detach(place)
    loop.settle_all(place, spec)
    assert loop.plugged(spec) == (set(), set())
    assert loop.volume_status(place).phase is VolumePhase.AVAILABLE
    assert loop.status(spec).phase is Phase.STOPPED


def test_a_volume_outlives_its_instance(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.settle_all(place, spec)
    loop.files.path(place.uuid).write_bytes(b"precious")
    loop.change(spec, desired=Desired.DELETED, volumes=_volumes(loop, spec))
    loop.settle_all(place, spec)
    assert loop.specs.get(spec.uuid) is None
    assert loop.volume_status(place).phase is VolumePhase.AVAILABLE
    assert loop.files.path(place.uuid).read_bytes() == b"precious"


def test_what_is_removed_is_gone_with_its_claim_and_keys(loop: VolumeLoop) -> None:
    place = loop.new_volume()
    loop.keep(place)
    volume_changes.remove(loop.store, KEYS, place)
    loop.keep(place)
    assert not loop.files.exists(place.uuid) and place.uuid not in loop.placement.consumers
    assert loop.store.list("/t/volume").items == ()


def test_nothing_is_removed_under_a_domain_whoever_made_it(loop: VolumeLoop) -> None:
    """etcd was restored from before the volume was attached, and an operator removes it."""
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.settle_all(place, spec)
    item = loop.store.get(KEYS.volume(loop.provider, place.uuid))
    held = loop.volume(place)
    assert item is not None and held is not None
    loop.store.replace(item.key, dataclasses.replace(held, attached_to=None).to_json(), seen=item.mod_revision)
    volume_changes.remove(loop.store, KEYS, place)
    loop.keep(place)
    assert loop.files.exists(place.uuid)
    assert loop.volume_status(place).message == f"{spec.uuid} has it; nothing is deleted under a guest"


def test_it_is_not_free_while_somebody_works_on_the_spec_that_named_it(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.keep(place)  # the instance's worker has not come to it: no domain has the volume yet
    loop.detach(place)
    loop.keep(place)
    held = loop.volume(place)
    assert held is not None and held.attached_to == spec.uuid, "a worker may be about to plug it in"
    loop.settle_all(place, spec)
    assert loop.volume_status(place).phase is VolumePhase.AVAILABLE


def test_a_disk_that_cannot_be_plugged_in_leaves_the_guest_alone_and_is_tried_again(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.settle_all(place, spec)
    loop.hypervisor.fail_next("attach_disk", HypervisorRejected("no free slot"))
    loop.attach(place, spec)
    loop.settle(spec, passes=1)
    assert (loop.status(spec).phase, loop.status(spec).message) == (Phase.RUNNING, "AttachVolume: no free slot")
    assert loop.status(spec).attempts == 1, "its build's"
    loop.settle(spec)
    assert loop.status(spec).volumes == (place.uuid,) and loop.status(spec).message == ""


def test_nothing_is_done_without_a_live_lease(loop: VolumeLoop) -> None:
    place, spec = loop.new_volume(), loop.request()
    loop.is_live = False
    loop.hear()
    with pytest.raises(NotLive):
        loop.keeper.reconcile(place.uuid)
    loop.is_live = True
    loop.settle_all(place, spec)
    loop.attach(place, spec)
    loop.is_live = False
    with pytest.raises(NotLive):
        loop.reconciler.reconcile(spec.uuid)
    assert Step.ATTACH_VOLUME.is_destructive and Step.DETACH_VOLUME.is_destructive, "never on the word of a cache"


def test_a_volume_that_changed_since_it_was_heard_of_is_left_alone(loop: VolumeLoop) -> None:
    place = loop.new_volume()
    loop.keep(place)
    volume_changes.remove(loop.store, KEYS, place)
    loop.hear()
    item = loop.store.get(KEYS.volume(loop.provider, place.uuid))
    assert item is not None
    loop.store.replace(item.key, item.value, seen=item.mod_revision)
    with pytest.raises(Conflict, match="changed meanwhile"):
        loop.keeper.reconcile(place.uuid)
    assert loop.files.exists(place.uuid)


def test_a_claim_of_nobody_goes_after_ten_minutes_and_claims_of_others_stay(loop: VolumeLoop) -> None:
    orphan, instances, data = uuid4(), uuid4(), uuid4()
    for uuid in (orphan, data):
        loop.volume_placement.claim(uuid, {loop.provider: {"DISK_GB": 1}})
    loop.placement.claim(instances, {loop.provider: {"DISK_GB": 1}})
    loop.files.make(data, 1)

    def look() -> None:
        rest = loop.keeper.claims_without_volumes(loop.placement.provider_allocations(loop.provider))
        assert set(rest) == {orphan, instances, data} & loop.placement.consumers.keys()
        for uuid in (orphan, instances, data):
            loop.keeper.reconcile(uuid)

    look()
    loop.now += ORPHAN_AFTER_SECONDS - 1
    look()
    assert orphan in loop.placement.consumers
    loop.now += 2
    look()
    assert set(loop.placement.consumers) == {instances, data}, "a file without a spec is somebody's data, and takes room"
    look()


def test_a_claim_that_its_client_takes_up_again_is_not_released(loop: VolumeLoop) -> None:
    orphan = uuid4()
    loop.volume_placement.claim(orphan, {loop.provider: {"DISK_GB": 1}})

    def look() -> None:
        loop.keeper.claims_without_volumes(loop.placement.provider_allocations(loop.provider))
        loop.keeper.reconcile(orphan)

    look()
    loop.now += ORPHAN_AFTER_SECONDS + 1
    held = loop.placement.consumers[orphan]
    loop.placement.consumers[orphan] = dataclasses.replace(held, generation=held.generation + 1)
    look()
    assert orphan in loop.placement.consumers


def test_a_lost_claim_is_asked_for_again(loop: VolumeLoop) -> None:
    place = loop.new_volume()
    loop.keep(place)
    del loop.placement.consumers[place.uuid]
    assert loop.keeper.claims_without_volumes({}) == {}
    loop.keep(place)
    assert loop.placement.consumers[place.uuid].allocations == {loop.provider: {"DISK_GB": 1}}
    assert loop.placement.consumers[place.uuid].consumer_type == "VOLUME"


@pytest.mark.parametrize(
    "error", [StoreUnavailable("etcd is away"), PlacementUnavailable("Placement is away")], ids=["etcd", "placement"]
)
def test_a_service_that_is_away_only_takes_its_time(
    loop: VolumeLoop, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = loop.new_volume()
    loop.keep(place)
    volume_changes.remove(loop.store, KEYS, place)
    loop.hear()

    def away(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loop.store, "commit", away)
    monkeypatch.setattr(loop.volume_placement, "release", away)
    for _ in range(3):
        with (
            pytest.raises(type(error))
            if isinstance(error, StoreUnavailable) or loop.volume(place)
            else pytest.raises(Exception)
        ):
            loop.keeper.reconcile(place.uuid)
    monkeypatch.undo()
    loop.keep(place)
    assert loop.volume(place) is None and not loop.placement.consumers


@pytest.mark.parametrize(("before", "after"), [(0o1777, 0o1777), (0o750, 0o751), (0o700, 0o711)])
def test_a_folder_that_is_there_is_opened_as_far_as_qemu_must_pass(tmp_path: Path, before: int, after: int) -> None:
    directory = tmp_path / "volumes"
    directory.mkdir()
    directory.chmod(before)
    VolumeFiles(directory)
    assert directory.stat().st_mode & 0o7777 == after


def test_half_made_files_are_gone_with_the_next_start_and_strangers_are_no_volumes(tmp_path: Path) -> None:
    directory = tmp_path / "volumes"
    files = VolumeFiles(directory)
    volume = uuid4()
    files.make(volume, 1)
    (directory / f"{uuid4()}.raw.1-0.partial").write_bytes(b"")
    strangers = {"notes.txt", "film.partial", "disk.raw.partial"}
    for name in strangers:
        (directory / name).write_bytes(b"")
    assert VolumeFiles(directory).list() == [volume]
    assert {path.name for path in directory.iterdir()} == {f"{volume}.raw", *strangers}
    assert volume_of(directory / f"{volume}.raw", directory) == volume
    assert volume_of(tmp_path / f"{volume}.raw", directory) is None
    assert volume_of(directory / f"{volume}.RAW", directory) is None
    assert volume_of(directory / f"{str(UUID(int=0xABC)).upper()}.raw", directory) is None
    files.remove(volume)
    files.remove(volume)
