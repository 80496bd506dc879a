"""The fake Placement answers as the real one does, through the same client, wherever eschedule asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, NoCapacity
from common.placement import OWNER_TRAIT, Claim, Placement
from tests.fakes.placement import FakePlacement
from tests.support.placement import make_provider

SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
HARDWARE = "HW_CPU_X86_AVX2"


@dataclass
class World:
    placement: Placement | FakePlacement
    make_host: Callable[..., UUID]
    """A host of ours with 8 VCPUs, 8192 MiB and 100 GiB, and the traits given."""

    def query(self, host: UUID, resources: str = "VCPU:1,MEMORY_MB:256,DISK_GB:1", more: str = "") -> str:
        return f"resources={resources}&in_tree={host}{more}"


@pytest.fixture(params=["fake", "real"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "fake":
        fake = FakePlacement()
        return World(fake, lambda *traits: fake.add_host(traits=traits))
    real: Placement = request.getfixturevalue("placement")
    return World(real, lambda *traits: make_provider(real, traits=(OWNER_TRAIT, *traits)))


def test_a_host_with_room_is_a_candidate_with_what_to_claim_and_how_full_it_is(world: World) -> None:
    host = world.make_host()
    world.placement.claim(uuid4(), {host: {"VCPU": 3}})
    answer = world.placement.candidates(world.query(host), 10)
    assert [candidate.allocations for candidate in answer.candidates] == [{host: SMALL}]
    assert answer.candidates[0].host(answer.summaries) == host
    summary = answer.summaries[host]
    assert (summary.root, summary.resources["VCPU"].capacity, summary.resources["VCPU"].used) == (host, 8, 3)
    assert summary.resources["DISK_GB"].capacity == 100
    assert OWNER_TRAIT in summary.traits


def test_the_summary_shows_classes_that_were_not_asked_for(world: World) -> None:
    host = world.make_host()
    assert set(world.placement.candidates(world.query(host, "VCPU:1")).summaries[host].resources) == set(SMALL)


@pytest.mark.parametrize(
    ("more", "is_candidate"),
    [
        (f"&root_required={OWNER_TRAIT},!COMPUTE_STATUS_DISABLED", True),
        (f"&required={HARDWARE}", False),
        (f"&required=!{HARDWARE}", True),
        (f"&root_required={OWNER_TRAIT}&required=!{OWNER_TRAIT}", False),
    ],
)
def test_traits_decide(world: World, more: str, is_candidate: bool) -> None:
    host = world.make_host()
    assert bool(world.placement.candidates(world.query(host, more=more)).candidates) is is_candidate


@pytest.mark.parametrize("resources", ["VCPU:9", "VCPU:1,DISK_GB:101"])
def test_what_is_too_large_has_no_candidate_and_no_summary(world: World, resources: str) -> None:
    answer = world.placement.candidates(world.query(world.make_host(), resources))
    assert (answer.candidates, answer.summaries) == ((), {})


def test_a_claim_is_held_and_a_second_one_conflicts(world: World) -> None:
    host, consumer = world.make_host(), uuid4()
    world.placement.claim(consumer, {host: SMALL})
    held = world.placement.consumer(consumer)
    assert held is not None
    assert held.allocations == {host: SMALL}
    assert world.placement.is_ours(held)
    assert world.placement.usages(host) == SMALL
    with pytest.raises(Conflict):
        world.placement.claim(consumer, {host: SMALL})


def test_a_claim_for_which_there_is_no_room_holds_nothing(world: World) -> None:
    host, consumer = world.make_host(), uuid4()
    with pytest.raises(NoCapacity):
        world.placement.claim(consumer, {host: {"VCPU": 9}})
    with pytest.raises(NoCapacity):
        world.placement.claim(consumer, {uuid4(): SMALL})
    assert world.placement.consumer(consumer) is None


def test_releasing_compares_the_generation_and_forgives_what_is_gone(world: World) -> None:
    host, consumer = world.make_host(), uuid4()
    world.placement.claim(consumer, {host: SMALL})
    held = world.placement.consumer(consumer)
    assert held is not None
    with pytest.raises(Conflict):
        world.placement.release(consumer, held.generation + 1)
    world.placement.release(consumer, held.generation)
    world.placement.release(consumer, held.generation)
    assert world.placement.consumer(consumer) is None


class TestReplacing:
    def generation(self, world: World, consumer: UUID) -> int:
        held = world.placement.consumer(consumer)
        assert held is not None
        return held.generation

    def test_what_is_written_again_has_another_generation(self, world: World) -> None:
        host, consumer = world.make_host(), uuid4()
        world.placement.claim(consumer, {host: {"VCPU": 8}})
        before = self.generation(world, consumer)
        world.placement.replace_consumers([Claim(consumer, {host: {"VCPU": 8}}, generation=before)])
        assert self.generation(world, consumer) > before
        with pytest.raises(Conflict):
            world.placement.release(consumer, before)
        with pytest.raises(Conflict):
            world.placement.replace_consumers([Claim(consumer, {host: SMALL}, generation=before)])

    def test_nothing_is_asked_for_by_no_allocations(self, world: World) -> None:
        host, consumer = world.make_host(), uuid4()
        world.placement.claim(consumer, {host: SMALL})
        world.placement.replace_consumers([Claim(consumer, {}, generation=self.generation(world, consumer))])
        assert world.placement.consumer(consumer) is None


def test_providers_by_trait_and_inventories(world: World) -> None:
    host = world.make_host()
    assert host in {provider.uuid for provider in world.placement.providers(OWNER_TRAIT)}
    assert world.placement.providers("COMPUTE_STATUS_DISABLED", in_tree=host) == []
    assert world.placement.inventories(host)["VCPU"].max_unit == 8
    assert world.placement.inventories(uuid4()) == {}
    assert world.placement.usages(uuid4()) == {}


def test_several_claims_are_written_together_or_not_at_all(world: World) -> None:
    host, first, second = world.make_host(), uuid4(), uuid4()
    with pytest.raises(NoCapacity):
        world.placement.replace_consumers([Claim(first, {host: {"VCPU": 5}}), Claim(second, {host: {"VCPU": 5}})])
    assert (world.placement.consumer(first), world.placement.consumer(second)) == (None, None)
    world.placement.replace_consumers([Claim(first, {host: {"VCPU": 4}}), Claim(second, {host: {"VCPU": 4}})])
    assert world.placement.usages(host)["VCPU"] == 8
    with pytest.raises(Conflict):
        world.placement.replace_consumers([Claim(uuid4(), {host: {"DISK_GB": 1}}), Claim(first, {host: {"VCPU": 1}})])
    assert world.placement.usages(host) == {"VCPU": 8, "MEMORY_MB": 0, "DISK_GB": 0}


def test_a_claim_is_swapped_to_another_host_by_its_generation(world: World) -> None:
    here, there, consumer = world.make_host(), world.make_host(), uuid4()
    world.placement.claim(consumer, {here: SMALL})
    held = world.placement.consumer(consumer)
    assert held is not None
    world.placement.replace_consumers([Claim(consumer, {there: SMALL}, held.generation)])
    moved = world.placement.consumer(consumer)
    assert moved is not None and moved.allocations == {there: SMALL}
    assert moved.generation != held.generation and world.placement.is_ours(moved)
    with pytest.raises(Conflict):
        world.placement.replace_consumers([Claim(consumer, {here: SMALL}, held.generation)])
