"""Placement in memory, for tests of what is built on it: flat providers, claims with generations, and faults on demand.

``tests/contract/test_fake_placement.py`` holds it to what the real one answers through ``common/placement.py``. It knows the
query parameters ``resources``, ``required``, ``root_required``, ``in_tree`` and ``limit``; others are refused loudly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from common.errors import ConfigError, Conflict, NoCapacity, PlacementUnavailable
from common.placement_types import (
    CONSUMER_TYPE,
    OWNER_TRAIT,
    Allocations,
    Candidate,
    Candidates,
    Claim,
    Consumer,
    Inventory,
    Provider,
    ProviderSummary,
    Usage,
    Use,
    plain,
)

STANDARD = {"VCPU": 8, "MEMORY_MB": 8192, "DISK_GB": 100}


@dataclass
class FakeProvider:
    """One flat provider."""

    uuid: UUID
    name: str
    inventories: dict[str, Inventory]
    traits: set[str] = field(default_factory=set)


class FakePlacement:
    """What ``common.placement.Placement`` offers to eschedule."""

    def __init__(self) -> None:
        self.project_id, self.consumer_type = str(uuid4()), CONSUMER_TYPE
        self.hosts: dict[UUID, FakeProvider] = {}
        self.consumers: dict[UUID, Consumer] = {}
        self.calls: list[str] = []
        self.before_claim: list[Callable[[UUID, Allocations], None]] = []
        """Each is called once, in turn, before a claim; it may raise what the claim shall raise, or change the world."""
        self.after_claim: list[Callable[[UUID], None]] = []
        """Likewise after a claim that was made: what it raises is a lost answer."""

    def of_type(self, consumer_type: str) -> FakePlacement:
        """The same Placement, through which claims of that type are made."""
        other = copy.copy(self)
        other.consumer_type = consumer_type
        return other

    # -- arranging a scene ------------------------------------------------------------------------------------------------

    def add_host(self, name: str = "", *, traits: Iterable[str] = (), max_unit: int | None = None, **totals: int) -> UUID:
        """A host of ours with *totals* (``VCPU=8``); what is not named is ample."""
        uuid = uuid4()
        inventories = {c: Inventory(total=t, max_unit=max_unit or t) for c, t in {**STANDARD, **totals}.items()}
        self.hosts[uuid] = FakeProvider(uuid, name or f"host-{uuid}", inventories, {OWNER_TRAIT, *traits})
        return uuid

    def lose_answer(self, *, is_done: bool) -> None:
        """The next claim's answer is lost, whether or not it was made."""
        lost = PlacementUnavailable("the answer was lost")
        lost.outcome_unknown = True
        if is_done:
            self.after_claim.append(_raising(lost))
        else:
            self.before_claim.append(lambda _consumer, _allocations: _raise(lost))

    def hold(self, consumer: UUID, allocations: Allocations, *, project: str | None = None) -> None:
        """*consumer* holds *allocations*, from whomever."""
        self.consumers[consumer] = Consumer(
            consumer, 1, project or self.project_id, self.project_id, self.consumer_type, plain(allocations)
        )

    # -- what Placement offers --------------------------------------------------------------------------------------------

    def candidates(self, query: str, limit: int | None = None) -> Candidates:
        self.calls.append(f"candidates {query} limit={limit}")
        wanted = _Wanted.parse(query)
        fitting = [host for host in self.hosts.values() if self._fits(host, wanted)][:limit]
        return Candidates(
            tuple(Candidate({host.uuid: dict(wanted.resources)}) for host in fitting),
            {host.uuid: self._summary(host) for host in fitting},
        )

    def claim(self, consumer: UUID, allocations: Allocations) -> None:
        self.calls.append(f"claim {consumer}")
        if self.before_claim:
            self.before_claim.pop(0)(consumer, allocations)
        if consumer in self.consumers:
            raise Conflict(f"{consumer} holds something")
        for provider, amounts in allocations.items():
            host = self.hosts.get(provider)
            if host is None or any(not self._has(host, c, amount) for c, amount in amounts.items()):
                raise NoCapacity(f"no room on {provider}")
        self.hold(consumer, allocations)
        if self.after_claim:
            self.after_claim.pop(0)(consumer)

    def assert_allocation(self, consumer: UUID, allocations: Allocations) -> None:
        try:
            self.claim(consumer, allocations)
        except Conflict:
            if self.consumers[consumer].allocations != plain(allocations):
                raise

    def consumer(self, uuid: UUID) -> Consumer | None:
        self.calls.append(f"consumer {uuid}")
        return self.consumers.get(uuid)

    def replace_consumers(self, claims: Iterable[Claim]) -> None:
        """All or nothing, as the real one: what the other consumers of the call give back counts as free."""
        wanted = list(claims)
        self.calls.append(f"replace {len(wanted)}")
        if self.before_claim:
            self.before_claim.pop(0)(wanted[0].consumer, wanted[0].allocations)
        before = dict(self.consumers)
        try:
            for claim in wanted:
                held = self.consumers.pop(claim.consumer, None)
                if (held.generation if held else None) != claim.generation:
                    raise Conflict(f"{claim.consumer} is not at generation {claim.generation}")
            for claim in wanted:
                self._replace(claim)
        except (Conflict, NoCapacity):
            self.consumers.clear()
            self.consumers.update(before)
            raise
        if self.after_claim:
            self.after_claim.pop(0)(wanted[0].consumer)

    def _replace(self, claim: Claim) -> None:
        for provider, amounts in claim.allocations.items():
            host = self.hosts.get(provider)
            if host is None or any(not self._has(host, c, amount) for c, amount in amounts.items()):
                raise NoCapacity(f"no room on {provider}")
        if claim.allocations:
            self.consumers[claim.consumer] = Consumer(
                claim.consumer, (claim.generation or 0) + 1, self.project_id, self.project_id, self.consumer_type,
                plain(claim.allocations),
            )  # fmt: skip

    def close(self) -> None:
        """It has no connections."""

    def use_of(self, provider: UUID, *, more_seconds: float = 0.0) -> Use:
        return Use(0, self.provider_allocations(provider))

    def provider_allocations(self, provider: UUID) -> dict[UUID, dict[str, int]]:
        return {c.uuid: dict(c.allocations[provider]) for c in self.consumers.values() if provider in c.allocations}

    def is_ours(self, consumer: Consumer) -> bool:
        return consumer.consumer_type == self.consumer_type and consumer.project_id == self.project_id

    def release(self, uuid: UUID, generation: int) -> None:
        self.calls.append(f"release {uuid}")
        held = self.consumers.get(uuid)
        if held is not None and held.generation != generation:
            raise Conflict(f"{uuid} changed")
        self.consumers.pop(uuid, None)

    def providers(self, trait: str | None = None, *, in_tree: UUID | None = None, name: str | None = None) -> list[Provider]:
        return [
            Provider(host.uuid, host.name, 0, root=host.uuid)
            for host in self.hosts.values()
            if trait in (None, *host.traits) and in_tree in (None, host.uuid) and name in (None, host.name)
        ]

    def usages(self, provider: UUID) -> dict[str, int]:
        host = self.hosts.get(provider)
        return {c: self._used(provider, c) for c in host.inventories} if host else {}

    def inventories(self, provider: UUID) -> dict[str, Inventory]:
        host = self.hosts.get(provider)
        return dict(host.inventories) if host else {}

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _fits(self, host: FakeProvider, wanted: _Wanted) -> bool:
        return (
            wanted.in_tree in (None, host.uuid)
            and all(self._has(host, c, amount) for c, amount in wanted.resources.items())
            and all(_meets(trait, host.traits) for trait in wanted.traits)
        )

    def _has(self, host: FakeProvider, resource_class: str, amount: int) -> bool:
        inventory = host.inventories.get(resource_class)
        return (
            inventory is not None
            and inventory.min_unit <= amount <= inventory.max_unit
            and self._used(host.uuid, resource_class) + amount <= inventory.capacity
        )

    def _used(self, provider: UUID, resource_class: str) -> int:
        held = (consumer.allocations.get(provider, {}) for consumer in self.consumers.values())
        return sum(amounts.get(resource_class, 0) for amounts in held)

    def _summary(self, host: FakeProvider) -> ProviderSummary:
        resources = {c: Usage(i.capacity, self._used(host.uuid, c)) for c, i in host.inventories.items()}
        return ProviderSummary(host.uuid, host.uuid, resources, frozenset(host.traits))


@dataclass
class _Wanted:
    resources: Mapping[str, int]
    traits: tuple[str, ...]
    in_tree: UUID | None

    @classmethod
    def parse(cls, query: str) -> _Wanted:
        resources: dict[str, int] = {}
        traits: list[str] = []
        in_tree = None
        for key, value in parse_qsl(query):
            if key == "resources":
                resources = {c: int(amount) for c, _, amount in (part.partition(":") for part in value.split(","))}
            elif key in ("required", "root_required"):
                traits += value.split(",")
            elif key == "in_tree":
                in_tree = UUID(value)
            else:
                raise ConfigError(f"the fake Placement does not know {key}=")
        return cls(resources, tuple(traits), in_tree)


def _meets(trait: str, traits: set[str]) -> bool:
    return trait.removeprefix("!") not in traits if trait.startswith("!") else trait in traits


def _raise(error: Exception) -> None:
    raise error


def _raising(error: Exception) -> Callable[[UUID], None]:
    return lambda _consumer: _raise(error)
