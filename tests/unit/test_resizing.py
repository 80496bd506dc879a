"""``eschedule resize``, over fakes: the claim first and never smaller, then the request; what every answer leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import ConfigError, Conflict, EcomputeError, NoCapacity, Permanent, PlacementUnavailable, StoreUnavailable
from common.keys import Keys
from common.model import Alternate, Desired, HostRecord, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, Phase
from common.store import Transaction
from eschedule.arguments import parse
from eschedule.changes import Instance
from eschedule.resize import effects, wanted_of
from eschedule.resizing import Resized, Resizer
from tests.fakes.placement import FakePlacement
from tests.fakes.store import FakeStore

KEYS = Keys("/t/")
SIZE = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 5}
WEB = uuid4()


class Scene:
    """One instance on one host, with its claim."""

    def __init__(self, **of_spec: Any) -> None:
        self.store, self.placement = FakeStore(), FakePlacement()
        self.host = self.placement.add_host("h1", VCPU=4, MEMORY_MB=2048, DISK_GB=20)
        self.now = 100.0
        self.spec_key, self.status_key = KEYS.spec(self.host, WEB), KEYS.status(self.host, WEB)
        spec = dataclasses.replace(InstanceSpec(WEB, "web", ImageRef("/i"), dict(SIZE)), **of_spec)
        puts = {
            KEYS.name("web"): str(WEB), KEYS.instance(WEB): InstanceKey(self.host, "web", "d").to_json(),
            self.spec_key: spec.to_json(), KEYS.host(self.host): HostRecord("h1", "b", uuid4(), "l", "u").to_json(),
        }  # fmt: skip
        self.store.commit(Transaction(puts=puts))
        self.placement.hold(WEB, {self.host: SIZE})
        self.resizer = Resizer(
            self.store,
            KEYS,
            self.placement,
            sleep=lambda _: None,
            boot_clock=lambda: self.now,  # type: ignore[arg-type]
        )

    def report(self, phase: Phase, **fields: Any) -> None:
        self.store.commit(Transaction(puts={self.status_key: InstanceStatus(phase, boot_request=1, **fields).to_json()}))

    def resize(self, **wanted: int) -> Resized:
        return self.resizer.resize(WEB, wanted, who="web")

    @property
    def spec(self) -> InstanceSpec:
        item = self.store.get(self.spec_key)
        assert item is not None
        return InstanceSpec.from_json(item.value)

    @property
    def claimed(self) -> Mapping[str, int]:
        return self.placement.consumers[WEB].allocations[self.host]

    def on_replace(self, act: Callable[[], None]) -> None:
        """Have the next write of the spec meet *act* first, which may raise what the store answers."""
        replace = self.store.replace

        def replaced(key: str, value: str, *, seen: int, **more: Any) -> int:
            self.store.replace = replace  # type: ignore[method-assign]
            act()
            return replace(key, value, seen=seen, **more)

        self.store.replace = replaced  # type: ignore[method-assign]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def _raise(error: EcomputeError) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_more_is_claimed_and_then_asked_for(scene: Scene) -> None:
    resized = scene.resize(VCPU=2, DISK_GB=10)
    assert scene.spec.resources == {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 10} == scene.claimed
    assert resized.changed == {"VCPU": 2, "DISK_GB": 10}
    assert scene.spec.boot_request == 1, "nothing is started or stopped by it"


def test_what_it_has_already_costs_nothing(scene: Scene) -> None:
    scene.resize(VCPU=2)
    generation, revision = scene.placement.consumers[WEB].generation, scene.store.get(scene.spec_key)
    assert scene.resize(VCPU=2, DISK_GB=5).fields == {}
    assert (scene.placement.consumers[WEB].generation, scene.store.get(scene.spec_key)) == (generation, revision)


def test_less_is_asked_for_and_the_claim_is_left_to_the_host_which_knows_what_runs(scene: Scene) -> None:
    scene.resize(MEMORY_MB=256)
    assert scene.spec.memory_mib == 256
    assert scene.claimed["MEMORY_MB"] == 512


def test_a_disk_is_never_made_smaller(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="5 GB, which is never made smaller"):
        scene.resize(DISK_GB=4, VCPU=2)
    assert (scene.spec.resources, dict(scene.claimed)) == (SIZE, SIZE)


def test_no_room_says_what_is_missing_and_changes_nothing(scene: Scene) -> None:
    scene.placement.hold(uuid4(), {scene.host: {"VCPU": 2, "MEMORY_MB": 1024, "DISK_GB": 1}})
    with pytest.raises(NoCapacity) as refused:
        scene.resize(VCPU=4, MEMORY_MB=1024)
    assert "1 VCPU free, 3 more needed" in str(refused.value) and "MEMORY_MB free" not in str(refused.value)
    small = scene.placement.hosts[scene.host].inventories
    small["DISK_GB"] = dataclasses.replace(small["DISK_GB"], max_unit=8)
    with pytest.raises(NoCapacity, match="at most 8 DISK_GB for one instance"):
        scene.resize(DISK_GB=9)
    assert (scene.spec.resources, dict(scene.claimed)) == (SIZE, SIZE)


def test_a_lost_answer_of_placement_is_read_back(scene: Scene) -> None:
    scene.placement.lose_answer(is_done=True)
    scene.resize(VCPU=2)
    assert scene.spec.vcpus == 2 == scene.claimed["VCPU"]
    scene.placement.lose_answer(is_done=False)
    with pytest.raises(PlacementUnavailable):
        scene.resize(VCPU=3)
    assert scene.spec.vcpus == 2 == scene.claimed["VCPU"]


def test_a_claim_that_others_change_is_read_again(scene: Scene) -> None:
    scene.placement.before_claim.append(lambda _consumer, _allocations: scene.placement.hold(WEB, {scene.host: SIZE}))
    generation = scene.placement.consumers[WEB].generation
    scene.placement.consumers[WEB] = dataclasses.replace(scene.placement.consumers[WEB], generation=generation + 7)
    scene.resize(VCPU=2)
    assert scene.spec.vcpus == 2 == scene.claimed["VCPU"]


def test_a_definite_failure_of_etcd_gives_back_what_was_claimed_more(scene: Scene) -> None:
    scene.on_replace(_raise(StoreUnavailable("etcd is away", may_have_happened=False)))
    with pytest.raises(StoreUnavailable):
        scene.resize(VCPU=2)
    assert (scene.spec.resources, dict(scene.claimed)) == (SIZE, SIZE)


def test_an_unknown_outcome_keeps_the_claim_and_says_so(scene: Scene) -> None:
    scene.on_replace(_raise(StoreUnavailable("no answer")))
    with pytest.raises(StoreUnavailable, match="whether web was changed is unknown"):
        scene.resize(VCPU=2)
    assert scene.claimed["VCPU"] == 2
    scene.resize(VCPU=2)  # said again, it is done
    assert scene.spec.vcpus == 2 == scene.claimed["VCPU"]


def test_a_request_that_others_changed_meanwhile_is_read_again(scene: Scene) -> None:
    def rename() -> None:
        item = scene.store.get(scene.spec_key)
        assert item is not None
        scene.store.replace(scene.spec_key, dataclasses.replace(scene.spec, hostname="x").to_json(), seen=item.mod_revision)

    scene.on_replace(rename)
    scene.resize(VCPU=2)
    assert (scene.spec.vcpus, scene.spec.hostname, scene.claimed["VCPU"]) == (2, "x", 2)


def test_one_that_is_destroyed_meanwhile_keeps_nothing_of_it(scene: Scene) -> None:
    def destroy() -> None:
        item = scene.store.get(scene.spec_key)
        assert item is not None
        scene.store.replace(
            scene.spec_key, dataclasses.replace(scene.spec, desired=Desired.DELETED).to_json(), seen=item.mod_revision
        )

    scene.on_replace(destroy)
    with pytest.raises(Conflict, match="is being destroyed"):
        scene.resize(VCPU=2)
    assert dict(scene.claimed) == SIZE


def test_a_claim_that_became_old_before_it_was_used_is_made_anew(scene: Scene) -> None:
    """Its host may be about to lower it: whoever slept must not write a request whose claim is gone."""

    def sleep(_consumer: UUID) -> None:
        scene.now += 31

    scene.placement.after_claim.append(sleep)
    calls = len(scene.placement.calls)
    scene.resize(VCPU=2)
    assert scene.placement.calls[calls:].count("replace 1") == 3, "claimed, given back, claimed"
    assert scene.spec.vcpus == 2 == scene.claimed["VCPU"]


@pytest.mark.parametrize(("phase", "error"), [
    (Phase.FAILED, Permanent), (Phase.REFUSED, Permanent), (Phase.HELD, Conflict), (Phase.RESCHEDULING, Conflict),
])  # fmt: skip
def test_what_holds_nothing_or_is_on_its_way_is_left_alone(scene: Scene, phase: Phase, error: type[EcomputeError]) -> None:
    scene.report(phase)
    with pytest.raises(error, match=phase):
        scene.resize(VCPU=2)
    assert (scene.spec.resources, dict(scene.claimed)) == (SIZE, SIZE)


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.BUILDING, Phase.RUNNING, Phase.PAUSED, Phase.STOPPED, Phase.REBOOTING])
def test_everything_else_can_be_resized(scene: Scene, phase: Phase) -> None:
    scene.report(phase)
    scene.resize(VCPU=2)
    assert scene.spec.vcpus == 2


def test_a_claim_that_is_lost_elsewhere_or_anothers_is_not_touched(scene: Scene) -> None:
    other = scene.placement.add_host("h2")
    for hold in ({other: SIZE}, {scene.host: {"VCPU": 1}, other: {"MEMORY_MB": 512, "DISK_GB": 5}}):
        scene.placement.hold(WEB, hold)
        with pytest.raises(Conflict, match="not on its host alone"):
            scene.resize(VCPU=2)
    scene.placement.hold(WEB, {scene.host: SIZE}, project="another")
    with pytest.raises(Conflict, match="another deployment"):
        scene.resize(VCPU=2)
    del scene.placement.consumers[WEB]
    with pytest.raises(Conflict, match="knows no claim"):
        scene.resize(VCPU=2)
    assert scene.spec.resources == SIZE


def test_where_else_it_may_be_built_is_claimed_what_it_asks_for_now() -> None:
    other, third, tree = uuid4(), uuid4(), uuid4()
    simple = Alternate(other, {str(other): dict(SIZE)})
    spread = Alternate(third, {str(third): {"VCPU": 1}, str(tree): {"MEMORY_MB": 512, "DISK_GB": 5}})
    scene = Scene(alternates=(simple, spread))
    scene.resize(VCPU=2, DISK_GB=7)
    assert scene.spec.alternates == (Alternate(other, {str(other): {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 7}}),)


def test_a_host_with_less_than_it_had_still_lets_an_instance_ask_for_less(scene: Scene) -> None:
    host = scene.placement.hosts[scene.host]
    host.inventories["MEMORY_MB"] = dataclasses.replace(host.inventories["MEMORY_MB"], total=256, max_unit=256)
    scene.resize(MEMORY_MB=256)
    assert scene.spec.memory_mib == 256
    with pytest.raises(ConfigError, match="has no PCPU"):
        scene.resize(PCPU=1)


# -- the command line ------------------------------------------------------------------------------------------------------


def wanted(*words: str) -> dict[str, int]:
    return wanted_of(parse(["resize", "web", *words]))


def test_the_query_and_the_options_say_the_same() -> None:
    assert wanted("resources=VCPU:2,DISK_GB:9") == {"VCPU": 2, "DISK_GB": 9} == wanted("--vcpus", "2", "--disk-gb", "9")
    assert wanted("--memory-mb", "2048", "resources=VCPU:2") == {"VCPU": 2, "MEMORY_MB": 2048}


@pytest.mark.parametrize(("words", "said"), [
    ((), "nothing is to be changed"), (("--vcpus", "0"), "--vcpus"), (("--vcpus", "two"), "whole number"),
    (("resources=VCPU:2", "--vcpus", "3"), "give one of them"), (("resources=CUSTOM_GPU:1",), "CUSTOM_GPU cannot be changed"),
    (("resources=VCPU:2&required=HW_CPU_X86_AVX2",), "is not taken for an instance that has one"),
    (("resources=VCPUS:2",), "did you mean VCPU"), (("resources=DISK_GB:9999999",), "at most"), (("VCPU:2",), "has no ="),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        wanted(*words)
    assert "\n" not in str(refused.value)


def test_what_holds_from_when_on_is_said(scene: Scene) -> None:
    resized = scene.resize(VCPU=2, DISK_GB=10)
    assert isinstance(resized.found, Instance)
    waiting = InstanceStatus(Phase.RUNNING, in_force={"VCPU": 1, "MEMORY_MB": 512})
    disk = "DISK_GB 5 → 10: from now on"
    assert effects(resized, waiting, is_rebooted=False) == [
        f"{disk}; the guest sees it; to grow its file systems is for the guest"
    ]
    off = effects(resized, InstanceStatus(Phase.STOPPED), is_rebooted=False)
    assert off == [disk, "VCPU 1 → 2: from its next start on"]
    up = effects(resized, InstanceStatus(Phase.RUNNING), is_rebooted=True)
    assert up[1:] == ["VCPU 1 → 2: from now on", "rebooted"]
