"""The way of a request for a volume: what is claimed, what is recorded, what is given back; and whom a volume may be given to."""

from __future__ import annotations

import dataclasses
import random
import signal
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import ConfigError, Conflict, NoCapacity, PlacementUnavailable, StoreUnavailable
from common.hardware import DiskBus, Hardware
from common.model import Alternate, Desired, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, Phase, VolumeRef
from common.placement_types import DISABLED_TRAIT
from common.volume_records import VolumeDesired, VolumePhase, VolumePlace, VolumeSpec, VolumeStatus
from common.volume_refs import MOST_VOLUMES
from eschedule import volume_changes
from eschedule.interruption import Interrupted
from eschedule.volume_scheduler import VolumeRequest, VolumeScheduler
from tests.unit.test_scheduler import KEYS, NOW, Stage


class VolumeStage(Stage):
    """A store, a Placement and a scheduler of volumes."""

    def make_scheduler(self, **options: Any) -> Any:
        self.placement = self.placement.of_type("VOLUME")
        return VolumeScheduler(
            self.store, self.placement, KEYS, created_by="me@here", interruption=self.interruption, clock=lambda: self.time,
            sleep=self._sleep, dice=random.Random(7), on_warning=self.warnings.append, now=lambda: NOW, **options,
        )  # fmt: skip

    def volume(self, place: VolumePlace) -> VolumeSpec:
        item = self.store.get(KEYS.volume(place.provider, place.uuid))
        assert item is not None
        return VolumeSpec.from_json(item.value)


def request(**changes: Any) -> VolumeRequest:
    return dataclasses.replace(VolumeRequest("data", 10, uuid=uuid4()), **changes)


@pytest.fixture
def stage() -> VolumeStage:
    return VolumeStage()


def test_a_volume_is_claimed_and_recorded_at_once(stage: VolumeStage) -> None:
    host, wanted = stage.host("h1"), request()
    placed = stage.scheduler.create(wanted)
    assert (placed.place, placed.host, placed.is_repeat) == (VolumePlace(host, wanted.uuid), "h1", False)
    held = stage.placement.consumers[wanted.uuid]
    assert (held.consumer_type, held.allocations) == ("VOLUME", {host: {"DISK_GB": 10}})
    assert stage.volume(placed.place) == VolumeSpec(
        wanted.uuid, "data", 10, request_digest=wanted.digest(), created_at="2026-05-01T12:00:00.000Z", created_by="me@here"
    )
    assert stage.recorded() == {KEYS.volume(host, wanted.uuid), KEYS.volume_name("data")}
    assert stage.scheduler.create(wanted).is_repeat
    assert len([call for call in stage.placement.calls if call.startswith("claim")]) == 1


def test_a_request_id_names_the_same_volume_and_no_instance(stage: VolumeStage) -> None:
    stage.host("h1")
    wanted = VolumeRequest("data", 10, request_id="once")
    first, second = stage.scheduler.create(wanted), stage.scheduler.create(wanted)
    assert (first.place, second.is_repeat) == (second.place, True)
    from eschedule.request import Request

    instance = Request("resources=VCPU:1", {"VCPU": 1}, ImageRef("/i"), request_id="once")
    assert instance.instance_uuid(KEYS.prefix, uuid4) != first.place.uuid


@pytest.mark.parametrize("changes", [{"size_gib": 11}, {"uuid": uuid4()}, {"provider": uuid4()}], ids=["size", "uuid", "host"])
def test_another_volume_of_the_name_is_refused_without_a_claim(stage: VolumeStage, changes: dict[str, Any]) -> None:
    stage.host("h1")
    wanted = request()
    stage.scheduler.create(wanted)
    with pytest.raises(Conflict, match="there is a volume data already"):
        stage.scheduler.create(dataclasses.replace(wanted, **changes))
    assert len(stage.placement.consumers) == 1


def test_another_name_for_the_same_uuid_is_refused_and_the_claim_stays(stage: VolumeStage) -> None:
    stage.host("h1")
    wanted = request()
    stage.scheduler.create(wanted)
    with pytest.raises(Conflict, match="belongs to another volume"):
        stage.scheduler.create(dataclasses.replace(wanted, name="other"))
    assert wanted.uuid in stage.placement.consumers


def test_one_that_is_being_removed_is_not_answered_for(stage: VolumeStage) -> None:
    stage.host("h1")
    wanted = request()
    placed = stage.scheduler.create(wanted)
    volume_changes.remove(stage.store, KEYS, placed.place)
    with pytest.raises(Conflict, match="is being removed"):
        stage.scheduler.create(wanted)


def test_the_host_that_was_named_or_none(stage: VolumeStage) -> None:
    stage.host("h1")
    second = stage.host("h2")
    assert stage.scheduler.create(request(provider=second)).place.provider == second
    dead = stage.host("dead", is_alive=False)
    for why in (request(name="a", provider=dead), request(name="b", size_gib=1000)):
        with pytest.raises(NoCapacity, match="no host can take DISK_GB"):
            stage.scheduler.create(why)
    disabled = stage.host("off", traits=(DISABLED_TRAIT,))
    with pytest.raises(NoCapacity):
        stage.scheduler.create(request(name="c", provider=disabled))
    assert len(stage.placement.consumers) == 1


def test_a_lost_answer_of_placement_is_read_back(stage: VolumeStage) -> None:
    stage.host("h1")
    stage.placement.lose_answer(is_done=True)
    stage.scheduler.create(request())
    stage.placement.lose_answer(is_done=False)
    stage.scheduler.create(request(name="more"))
    assert len(stage.placement.consumers) == 2


def test_what_an_earlier_run_claimed_is_taken_up(stage: VolumeStage) -> None:
    host, wanted = stage.host("h1", DISK_GB=10), request()
    stage.placement.hold(wanted.uuid, {host: {"DISK_GB": 10}})
    assert stage.scheduler.create(wanted).place == VolumePlace(host, wanted.uuid)


def test_a_name_that_is_taken_meanwhile_costs_the_claim(stage: VolumeStage) -> None:
    host = stage.host("h1")
    stage.before_commits(lambda: stage.store.create(KEYS.volume_name("data"), str(VolumePlace(host, uuid4()))))
    with pytest.raises(Conflict, match="there is a volume data already"):
        stage.scheduler.create(request())
    assert stage.placement.consumers == {}


def test_a_host_that_dies_before_the_record_is_left_for_another(stage: VolumeStage) -> None:
    first, second = stage.host("h1"), stage.host("h2")
    died: list[UUID] = []

    def die() -> None:
        (claimed,) = next(iter(stage.placement.consumers.values())).allocations
        died.append(claimed)
        stage.die(claimed)

    stage.before_commits(die)
    placed = stage.scheduler.create(request())
    assert placed.place.provider == ({first, second} - set(died)).pop()
    assert [list(held.allocations) for held in stage.placement.consumers.values()] == [[placed.place.provider]]


@pytest.mark.parametrize("may_have_happened", [True, False])
def test_a_record_whose_fate_is_unknown_keeps_the_claim_and_only_then(stage: VolumeStage, may_have_happened: bool) -> None:
    stage.host("h1")
    error = StoreUnavailable("no answer")
    error.may_have_happened = may_have_happened
    stage.commits_with(error)
    with pytest.raises(StoreUnavailable):
        stage.scheduler.create(request())
    assert bool(stage.placement.consumers) is may_have_happened


def test_placement_that_is_away_is_told(stage: VolumeStage) -> None:
    stage.host("h1")

    def away(*_: object) -> None:
        raise PlacementUnavailable("Placement is away")

    stage.placement.before_claim.append(away)
    with pytest.raises(PlacementUnavailable):
        stage.scheduler.create(request())
    assert stage.recorded() == set()


def test_a_signal_before_the_record_leaves_nothing(stage: VolumeStage) -> None:
    stage.host("h1")
    stage.on_claim(lambda: stage.interruption._heard(signal.SIGINT, None))
    with pytest.raises(Interrupted):
        stage.scheduler.create(request())
    assert stage.placement.consumers == {} and stage.recorded() == set()


# -- whom it may be given to -----------------------------------------------------------------------------------------------


class Pair:
    """A volume that is made and an instance that runs, on one host."""

    def __init__(self) -> None:
        self.stage = VolumeStage()
        self.host = self.stage.host("h1")
        self.place = self.stage.scheduler.create(request()).place
        self.made(self.place)
        self.spec = self.instance("web")

    def made(self, place: VolumePlace) -> None:
        status = VolumeStatus(VolumePhase.AVAILABLE, was_made=True)
        self.stage.store.create(KEYS.volume_status(place.provider, place.uuid), status.to_json())

    def instance(
        self, name: str, *, host: UUID | None = None, booted: int = 1, phase: Phase = Phase.RUNNING, **changes: Any
    ) -> UUID:
        at, uuid = host or self.host, uuid4()
        spec = InstanceSpec(uuid, name, ImageRef("/i"), {"VCPU": 1}, **changes)
        store = self.stage.store
        store.create(KEYS.spec(at, uuid), spec.to_json())
        store.create(KEYS.instance(uuid), InstanceKey(at, name, "").to_json())
        store.create(KEYS.status(at, uuid), InstanceStatus(phase, booted=booted).to_json())
        return uuid

    def attach(self, instance: UUID, place: VolumePlace | None = None) -> bool:
        return volume_changes.attach(self.stage.store, KEYS, place or self.place, instance, sleep=lambda _: None)[2]

    def volumes_of(self, instance: UUID) -> tuple[VolumeRef, ...]:
        item = self.stage.store.get(KEYS.spec(self.host, instance))
        assert item is not None
        return InstanceSpec.from_json(item.value).volumes


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_attaching_writes_both_and_again_nothing(pair: Pair) -> None:
    assert pair.attach(pair.spec)
    assert pair.volumes_of(pair.spec) == (VolumeRef(pair.place.uuid, "data", 0),)
    assert pair.stage.volume(pair.place).attached_to == pair.spec
    assert not pair.attach(pair.spec)


def test_detaching_leaves_it_noted_until_its_host_has_seen_to_it(pair: Pair) -> None:
    pair.attach(pair.spec)
    for is_new in (True, False):
        assert volume_changes.detach(pair.stage.store, KEYS, pair.place)[2] is is_new
    assert pair.volumes_of(pair.spec) == ()
    assert pair.stage.volume(pair.place).attached_to == pair.spec
    with pytest.raises(Conflict, match="being taken out of web: try again"):
        pair.attach(pair.instance("other"))


def test_places_are_filled_from_the_first_and_run_out(pair: Pair) -> None:
    places = [pair.place]
    for number in range(MOST_VOLUMES):
        place = pair.stage.scheduler.create(request(name=f"v{number}", size_gib=1)).place
        pair.made(place)
        places.append(place)
    for place in places[:-1]:
        pair.attach(pair.spec, place)
    with pytest.raises(ConfigError, match="has 16 volumes"):
        pair.attach(pair.spec, places[-1])
    volume_changes.detach(pair.stage.store, KEYS, places[3])
    pair.attach(pair.spec, places[-1])
    slots = {volume.uuid: volume.slot for volume in pair.volumes_of(pair.spec)}
    assert slots[places[-1].uuid] == 3 and sorted(slots.values()) == list(range(MOST_VOLUMES))


def test_who_cannot_have_it_is_told_why(pair: Pair) -> None:
    other = pair.stage.host("h2")
    alternates = (Alternate(other, {str(other): {"VCPU": 1}}),)
    refused = {
        pair.instance("away", host=other): "the volume data is on h1, the instance away on h2, and neither moves",
        pair.instance("going", desired=Desired.DELETED): "the instance going is being destroyed",
        pair.instance("new", booted=0, phase=Phase.BUILDING, alternates=alternates): "new has not run yet and may move",
        pair.instance("old", hardware=Hardware(DiskBus.SATA)): "are SATA, which cannot be plugged in while it runs",
    }
    for instance, why in refused.items():
        with pytest.raises(Conflict, match=why):
            pair.attach(instance)
    assert pair.stage.volume(pair.place).attached_to is None
    assert pair.attach(pair.instance("settled", alternates=alternates))


def test_a_volume_that_is_not_made_or_goes_is_nobodys(pair: Pair) -> None:
    new = pair.stage.scheduler.create(request(name="new")).place
    with pytest.raises(Conflict, match="is not made yet"):
        pair.attach(pair.spec, new)
    volume_changes.remove(pair.stage.store, KEYS, pair.place)
    assert pair.stage.volume(pair.place).desired is VolumeDesired.DELETED
    with pytest.raises(Conflict, match="is being removed"):
        pair.attach(pair.spec)


def test_of_two_at_once_one_gets_it(pair: Pair) -> None:
    other = pair.instance("other")
    pair.stage.before_commits(lambda: pair.attach(other))
    with pytest.raises(Conflict, match="is attached to other"):
        pair.attach(pair.spec)
    assert pair.volumes_of(pair.spec) == ()


def test_a_change_of_the_instance_meanwhile_is_kept(pair: Pair) -> None:
    def rename() -> None:
        item = pair.stage.store.get(KEYS.spec(pair.host, pair.spec))
        assert item is not None
        changed = dataclasses.replace(InstanceSpec.from_json(item.value), hostname="changed")
        pair.stage.store.replace(item.key, changed.to_json(), seen=item.mod_revision)

    pair.stage.before_commits(rename)
    assert pair.attach(pair.spec)
    item = pair.stage.store.get(KEYS.spec(pair.host, pair.spec))
    assert item is not None and InstanceSpec.from_json(item.value).hostname == "changed"
