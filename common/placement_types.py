"""What crosses the border of ``common/placement.py``: providers, inventories, candidates, consumers, and how they are read.

Pure: dataclasses, and functions that build them from Placement's JSON of microversion 1.39. Nothing here speaks HTTP.
Resource amounts are in Placement's units: VCPU and PCPU whole CPUs, MEMORY_MB MiB, DISK_GB GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

# Of etcd-compute's own making. Never change it: it says which claims in Placement are ours.
PROJECT_NAMESPACE = UUID("5e7c9f0a-6d0b-4b0e-9a53-0c6a7e3f6d21")
CONSUMER_TYPE = "INSTANCE"
VOLUME = "VOLUME"  # the consumer type of volumes
OWNER_TRAIT = "CUSTOM_ETCD_COMPUTE"  # on every provider that an ecompute keeps
DISABLED_TRAIT = "COMPUTE_STATUS_DISABLED"  # an operator has switched the host off for scheduling
SHARING_TRAIT = "MISC_SHARES_VIA_AGGREGATE"  # a provider that lends to others' trees, such as shared storage
MOST_UNITS = 2**31 - 1  # the largest amount that Placement takes

Resources = Mapping[str, int]  # resource class → amount
Allocations = Mapping[UUID, Resources]  # by provider


def default_project(etcd_prefix: str) -> UUID:
    """The project, and the user, of a deployment whose config names none: the same for each of its programs."""
    return uuid5(PROJECT_NAMESPACE, etcd_prefix)


@dataclass(frozen=True)
class Inventory:
    """How much of one resource class a provider has."""

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    min_unit: int = 1
    max_unit: int = MOST_UNITS  # the most for one consumer
    step_size: int = 1

    @property
    def capacity(self) -> int:
        """What can be claimed in all, as Placement computes it."""
        return int((self.total - self.reserved) * self.allocation_ratio)


@dataclass(frozen=True)
class Provider:
    """A resource provider. *generation* changes with its inventory, traits and claims, not with its name."""

    uuid: UUID
    name: str
    generation: int
    parent: UUID | None = None
    root: UUID | None = None


@dataclass(frozen=True)
class Usage:
    """One resource class of a provider, as Placement counts it; *capacity* is after reserve and overcommitment."""

    capacity: int
    used: int

    @property
    def free(self) -> int:
        return self.capacity - self.used


@dataclass(frozen=True)
class ProviderSummary:
    """One provider of a tree that takes part in an answer about candidates."""

    provider: UUID
    root: UUID
    resources: dict[str, Usage]
    traits: frozenset[str]
    parent: UUID | None = None


@dataclass(frozen=True)
class Candidate:
    """One way to meet a request.

    Args:
        allocations: what to claim, by provider: most often the host alone, more where it has a tree or shared storage.
        mappings: which providers meet which group of the request, by the group's suffix; "" is the group without one.
    """

    allocations: dict[UUID, dict[str, int]]
    mappings: dict[str, tuple[UUID, ...]] = field(default_factory=dict)

    def host(self, summaries: Mapping[UUID, ProviderSummary]) -> UUID:
        """The host that this would run on: the root of the tree that is not merely lending to it."""
        roots = list(dict.fromkeys(summaries[p].root for p in self.allocations if p in summaries))
        own = [root for root in roots if root not in summaries or SHARING_TRAIT not in summaries[root].traits]
        return (own or roots or list(self.allocations))[0]


@dataclass(frozen=True)
class Candidates:
    """An answer to "who could take this?"; *summaries* shows every provider of every tree in it."""

    candidates: tuple[Candidate, ...]
    summaries: dict[UUID, ProviderSummary]


@dataclass(frozen=True)
class Consumer:
    """Who holds what. *generation* is for compare-and-swap: it changes with every write."""

    uuid: UUID
    generation: int
    project_id: str
    user_id: str
    consumer_type: str
    allocations: dict[UUID, dict[str, int]]


@dataclass(frozen=True)
class Use:
    """Who holds what of one provider, and the provider's generation then; None where Placement does not know it."""

    generation: int | None
    claims: dict[UUID, dict[str, int]]


@dataclass(frozen=True)
class Claim:
    """What *consumer* shall hold from now on: nothing, where *allocations* is empty.

    Args:
        generation: as last read; None where the consumer must not be there yet.
    """

    consumer: UUID
    allocations: Allocations
    generation: int | None = None


def plain(allocations: Allocations) -> dict[UUID, dict[str, int]]:
    """*allocations* in the one form in which they can be compared."""
    return {provider: dict(amounts) for provider, amounts in allocations.items()}


def claim_body(claim: Claim, project: str, user: str, consumer_type: str = CONSUMER_TYPE) -> dict[str, Any]:
    """*claim* as ``PUT /allocations/{consumer}`` takes it."""
    return {
        "allocations": {str(provider): {"resources": dict(amounts)} for provider, amounts in claim.allocations.items()},
        "consumer_generation": claim.generation,
        "consumer_type": consumer_type,
        "project_id": project,
        "user_id": user,
    }


def read_consumer(uuid: UUID, body: Any) -> Consumer | None:
    """None where *uuid* holds nothing: Placement answers that with 200 and no allocations."""
    if not body["allocations"]:
        return None
    return Consumer(
        uuid=uuid, generation=int(body["consumer_generation"]), project_id=str(body["project_id"]),
        user_id=str(body["user_id"]), consumer_type=str(body["consumer_type"]), allocations=read_allocations(body),
    )  # fmt: skip


def read_allocations(body: Any) -> dict[UUID, dict[str, int]]:
    """By provider in a consumer's answer or a candidate, by consumer in a provider's answer."""
    return {UUID(key): dict(held["resources"]) for key, held in body["allocations"].items()}


def read_candidates(body: Any) -> Candidates:
    candidates = tuple(
        Candidate(
            allocations=read_allocations(request),
            mappings={suffix: tuple(map(UUID, uuids)) for suffix, uuids in request.get("mappings", {}).items()},
        )
        for request in body["allocation_requests"]
    )
    return Candidates(candidates, {UUID(k): _read_summary(UUID(k), s) for k, s in body["provider_summaries"].items()})


def _read_summary(uuid: UUID, body: Any) -> ProviderSummary:
    return ProviderSummary(
        provider=uuid,
        root=UUID(body["root_provider_uuid"]),
        parent=_uuid_or_none(body["parent_provider_uuid"]),
        resources={name: Usage(int(usage["capacity"]), int(usage["used"])) for name, usage in body["resources"].items()},
        traits=read_traits(body),
    )


def read_provider(body: Any) -> Provider:
    return Provider(
        uuid=UUID(body["uuid"]), name=str(body["name"]), generation=int(body["generation"]),
        parent=_uuid_or_none(body.get("parent_provider_uuid")), root=_uuid_or_none(body.get("root_provider_uuid")),
    )  # fmt: skip


def read_generation(body: Any) -> int:
    """The provider's generation, from an answer about one of its parts."""
    return int(body["resource_provider_generation"])


def read_inventories(body: Any) -> dict[str, Inventory]:
    return {name: _read_inventory(values) for name, values in body["inventories"].items()}


def read_traits(body: Any) -> frozenset[str]:
    return frozenset(body["traits"])


def _read_inventory(body: Any) -> Inventory:
    return Inventory(
        total=int(body["total"]), reserved=int(body["reserved"]), allocation_ratio=float(body["allocation_ratio"]),
        min_unit=int(body["min_unit"]), max_unit=int(body["max_unit"]), step_size=int(body["step_size"]),
    )  # fmt: skip


def _uuid_or_none(value: str | None) -> UUID | None:
    return None if value is None else UUID(value)
