"""How Placement's JSON becomes our dataclasses, and which host a candidate is of."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from common.placement_types import (
    SHARING_TRAIT,
    Candidate,
    Claim,
    Inventory,
    ProviderSummary,
    claim_body,
    default_project,
    read_candidates,
    read_consumer,
    read_provider,
)

HOST, CHILD, STORAGE = uuid4(), uuid4(), uuid4()


def summary(provider: UUID, root: UUID, *traits: str) -> ProviderSummary:
    return ProviderSummary(provider, root, {}, frozenset(traits))


class TestHost:
    def test_of_a_host_without_children(self) -> None:
        assert Candidate({HOST: {"VCPU": 1}}).host({HOST: summary(HOST, HOST)}) == HOST

    def test_of_a_child_alone_is_its_root(self) -> None:
        assert Candidate({CHILD: {"VGPU": 1}}).host({CHILD: summary(CHILD, HOST), HOST: summary(HOST, HOST)}) == HOST

    @pytest.mark.parametrize("order", [(HOST, STORAGE), (STORAGE, HOST)])
    def test_is_never_the_shared_storage(self, order: tuple[UUID, UUID]) -> None:
        summaries = {HOST: summary(HOST, HOST), STORAGE: summary(STORAGE, STORAGE, SHARING_TRAIT)}
        assert Candidate({provider: {} for provider in order}).host(summaries) == HOST

    def test_without_summaries_is_the_provider_itself(self) -> None:
        assert Candidate({HOST: {"VCPU": 1}}).host({}) == HOST


def test_the_project_is_the_same_for_every_program_of_a_deployment_and_never_changes() -> None:
    assert default_project("/etcd-compute/v1/") == UUID("047afdff-5189-5839-b2f9-36f65da61ee3")
    assert default_project("/other/v1/") != default_project("/etcd-compute/v1/")


def test_a_consumer_that_holds_nothing_is_none() -> None:
    assert read_consumer(uuid4(), {"allocations": {}}) is None


def test_capacity_is_computed_as_placement_does() -> None:
    assert Inventory(total=10, reserved=3, allocation_ratio=1.5).capacity == 10


def test_a_claim_carries_all_that_microversion_1_39_requires() -> None:
    body = claim_body(Claim(uuid4(), {HOST: {"VCPU": 1}}), "project", "user")
    assert body == {
        "allocations": {str(HOST): {"resources": {"VCPU": 1}}}, "consumer_generation": None, "consumer_type": "INSTANCE",
        "project_id": "project", "user_id": "user",
    }  # fmt: skip


def test_unknown_fields_of_newer_servers_are_ignored() -> None:
    provider = read_provider({"uuid": str(HOST), "name": "a", "generation": 3, "shiny": True})
    assert (provider.uuid, provider.name, provider.generation, provider.parent, provider.root) == (HOST, "a", 3, None, None)
    answer = {
        "allocation_requests": [{"allocations": {str(HOST): {"resources": {"VCPU": 1}}}, "score": 7}],
        "provider_summaries": {},
    }
    (candidate,) = read_candidates(answer).candidates
    assert candidate == Candidate({HOST: {"VCPU": 1}})
