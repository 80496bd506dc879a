"""Placement as etcd-compute uses it: candidates, claims, and a host's provider with its inventory and traits.

The only module that knows Placement's paths, and with ``placement_http`` the only one that speaks to it. Callers get
dataclasses (``placement_types``, re-exported here) and our exceptions. Every call is bounded by ``placement.deadline_seconds``;
reads are repeated inside it. A write whose answer was lost is never simply repeated: ``PlacementUnavailable`` then has
``outcome_unknown`` set and the caller reads back, or the call does so itself where its docstring says it. Thread-safe. All
that Placement can be asked is here, in one piece.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, quote
from uuid import UUID

from common.config import PlacementConfig
from common.errors import ConfigError, Conflict, EcomputeError, InvalidSpec, NoCapacity, PlacementUnavailable
from common.nics import BRIDGE_TRAITS
from common.placement_http import MICROVERSION, Answer, PlacementHttp
from common.placement_types import (
    CONSUMER_TYPE,
    DISABLED_TRAIT,
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
    claim_body,
    default_project,
    plain,
    read_allocations,
    read_candidates,
    read_consumer,
    read_generation,
    read_inventories,
    read_provider,
    read_traits,
)
from common.retry import Backoff, Deadline, retry
from common.text import nearest

if TYPE_CHECKING:
    import requests

__all__ = [
    "DISABLED_TRAIT", "MICROVERSION", "OWNER_TRAIT", "Allocations", "Candidate", "Candidates", "Claim", "Consumer",
    "Inventory", "Placement", "Provider", "ProviderSummary", "Usage", "Use",
]  # fmt: skip

T = TypeVar("T")
CONCURRENT_UPDATE = "placement.concurrent_update"
DUPLICATE_NAME = "placement.duplicate_name"
INVENTORY_IN_USE = "placement.inventory.inuse"
SECONDS_PER_CLAIM = 0.1  # of a write of several, four times what Placement takes on a small machine
LEFTOVER_PAUSE_SECONDS = 0.25  # longer than a claim that another client is just making takes


class Placement:
    """One Placement server, as one deployment of etcd-compute.

    Args:
        etcd_prefix: tells deployments apart; project and user follow from it where *config* names none.
        keeps_connections: keep them open between requests; not for who asks seldom, among many who do so.
        session: a requests.Session, for tests. *consumer_type*: of the claims made here, and that are ours.
    """

    def __init__(
        self, config: PlacementConfig, *, etcd_prefix: str, keeps_connections: bool = True,
        session: requests.Session | None = None, consumer_type: str = CONSUMER_TYPE,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        self._http = PlacementHttp(config, keeps_connections=keeps_connections, session=session, clock=clock, sleep=sleep)
        self._sleep, self._consumer_type = sleep, consumer_type
        self.project_id = str(config.project_id or default_project(etcd_prefix))
        self.user_id = str(config.user_id or default_project(etcd_prefix))
        self._body = partial(claim_body, project=self.project_id, user=self.user_id, consumer_type=consumer_type)

    def check_version(self) -> str:
        """The server's newest microversion. Every other call notices a server that is too old as well.

        Raises:
            EcomputeError: it is older than MICROVERSION; the text names both.
            ConfigError: it is no Placement.
            PlacementUnavailable: no answer.
        """
        return self._http.check_version(self._http.deadline())

    def close(self) -> None:
        """Close the kept connections."""
        self._http.close()

    # -- who could take it -----------------------------------------------------------------------------------------------

    def candidates(self, query: str, limit: int | None = None) -> Candidates:
        """Who could take what *query* asks for, by free capacity; whether they are alive Placement does not know.

        Args:
            query: Placement's own query string, handed on as it is.
            limit: the most candidates to answer; a ``limit`` in *query* wins.

        Raises:
            ConfigError: Placement does not understand *query*; its words on one line.
            PlacementUnavailable: no answer.
        """
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
        if limit is not None and "limit" not in names:
            query = f"{query}&limit={limit}"
        answer = self._http.get(f"/allocation_candidates?{_encoded(query)}", self._http.deadline())
        if answer.is_success:
            return _read(answer, read_candidates)
        if _is_trait_of_nobody(answer):
            return Candidates((), {})
        raise ConfigError(f"Placement refuses the request {query!r}: {answer.detail}{self._cure(_unknown_traits(answer))}")

    # -- claims ----------------------------------------------------------------------------------------------------------

    def claim(self, consumer: UUID, allocations: Allocations) -> None:
        """Claim *allocations* for *consumer*, which must not hold anything yet.

        Raises:
            Conflict: it does, or somebody writes there just now: read it.
            NoCapacity: the room is gone, or a provider is.
            InvalidSpec: Placement does not understand it.
            PlacementUnavailable: not done, or with ``outcome_unknown`` perhaps done: read it.
        """
        self._claim(consumer, allocations, self._http.deadline())

    def assert_allocation(self, consumer: UUID, allocations: Allocations) -> None:
        """Have *consumer* hold *allocations*: the claim of a guest that exists is written again. Reads back by itself.

        Raises:
            Conflict: it holds something else.
            NoCapacity: Placement sees no room; the guest is there all the same.
            InvalidSpec, PlacementUnavailable: as ``claim``.
        """
        deadline = self._http.deadline()

        def assert_once() -> None:
            try:
                self._claim(consumer, allocations, deadline)
            except (Conflict, PlacementUnavailable):
                held = self._consumer(consumer, deadline)
                if held is None:
                    raise
                if held.allocations != plain(allocations):
                    raise Conflict(
                        f"{consumer} holds {_shown(held.allocations)} in Placement, not {_shown(allocations)};"
                        " the claim was left as it is"
                    ) from None

        self._retry(assert_once, PlacementUnavailable, deadline)

    def release(self, consumer: UUID, generation: int) -> None:
        """Give back everything that *consumer* holds, where its generation is still *generation*. Reads back by itself.

        Releasing what is gone succeeds.

        Raises:
            Conflict: the claim changed since *generation* was read.
            PlacementUnavailable: no answer; it may be released or not.
        """
        deadline = self._http.deadline()
        nothing = self._body(Claim(consumer, {}, generation))

        def release_once() -> None:
            try:
                answer = self._http.write("PUT", f"/allocations/{consumer}", nothing, deadline)
                if answer.is_success:
                    return
                failure = PlacementUnavailable(f"Placement did not release {consumer}: {answer.detail}")
            except PlacementUnavailable as error:
                failure = error
            held = self._consumer(consumer, deadline)
            if held is None:
                return
            if held.generation != generation:
                raise Conflict(f"the claim of {consumer} is at generation {held.generation}, not {generation}: read it again")
            raise failure

        self._retry(release_once, PlacementUnavailable, deadline)

    def replace_consumers(self, claims: Iterable[Claim]) -> None:
        """Set what several consumers hold, all or nothing, each compared by its generation.

        Raises:
            Conflict: one of them changed; nothing was written.
            NoCapacity, InvalidSpec: as ``claim``; nothing was written.
            PlacementUnavailable: not done, or with ``outcome_unknown`` perhaps done: read all of them.
        """
        wanted = list(claims)
        deadline = self._http.deadline(SECONDS_PER_CLAIM * len(wanted))
        if not wanted:
            return
        try:
            self._post(wanted, deadline)
        except Conflict:
            leftovers = {c.consumer for c in wanted if c.generation is None and self._is_leftover(c.consumer, deadline)}
            if not leftovers:
                raise
            self._post([dataclasses.replace(c, generation=0) if c.consumer in leftovers else c for c in wanted], deadline)

    def consumer(self, uuid: UUID) -> Consumer | None:
        """What *uuid* holds; None where it holds nothing.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._consumer(uuid, self._http.deadline())

    def is_ours(self, consumer: Consumer) -> bool:
        """Whether it is an instance (or volume) of this deployment; others' claims are never touched."""
        return consumer.consumer_type == self._consumer_type and consumer.project_id == self.project_id

    def provider_allocations(self, provider: UUID) -> dict[UUID, dict[str, int]]:
        """What is claimed on *provider*, by consumer; whose it is only ``consumer`` tells. Nothing where it is unknown.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._use_of(provider).claims

    def use_of(self, provider: UUID, *, more_seconds: float = 0.0) -> Use:
        """``provider_allocations`` with its generation, by one request of so much *more* time; for who asks again anyway."""
        return self._use_of(provider, is_once=True, more_seconds=more_seconds)

    def _use_of(self, provider: UUID, **how: Any) -> Use:
        path = f"/resource_providers/{provider}/allocations"
        return self._get_or(path, lambda body: Use(read_generation(body), read_allocations(body)), Use(None, {}), **how)

    # -- providers -------------------------------------------------------------------------------------------------------

    def provider(self, uuid: UUID) -> Provider | None:
        """The provider *uuid*, or None.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._provider(uuid, self._http.deadline())

    def providers(self, trait: str | None = None, *, in_tree: UUID | None = None, name: str | None = None) -> list[Provider]:
        """Every provider, or those with *trait*, of the tree that *in_tree* is part of, of the name *name*.

        Raises:
            PlacementUnavailable: no answer.
            ConfigError: Placement does not understand it.
        """
        return self._providers(self._http.deadline(), required=trait, in_tree=in_tree, name=name)

    def ensure_provider(self, uuid: UUID, name: str) -> Provider:
        """The provider *uuid* with the name *name*, made or renamed where needed. Reads back by itself.

        Raises:
            ConfigError: another provider has that name.
            Conflict: somebody else keeps changing it.
            PlacementUnavailable: no answer.
        """
        deadline = self._http.deadline()

        def ensure_once() -> Provider:
            found = self._provider(uuid, deadline)
            if found is not None and found.name == name:
                return found
            if found is None:
                body = {"uuid": str(uuid), "name": name}
                answer = self._http.write("POST", "/resource_providers", body, deadline)
            else:
                answer = self._http.write("PUT", f"/resource_providers/{uuid}", {"name": name}, deadline)
            if answer.is_success:
                return _read(answer, read_provider)
            if answer.code == DUPLICATE_NAME:
                # A name that is taken is answered like a uuid that somebody, or a lost answer of ours, has just made.
                self._check_name_is_free(name, uuid, deadline)
            elif answer.status == 400:
                raise ConfigError(f"Placement does not take a provider named {name}: {answer.detail}")
            raise Conflict(f"provider {uuid} with the name {name} was not written to Placement: {answer.detail}")

        return self._retry(ensure_once, (PlacementUnavailable, Conflict), deadline)

    def delete_provider(self, uuid: UUID) -> None:
        """Delete the provider *uuid*; success where it is gone already.

        Raises:
            Conflict: somebody holds something of it, or it has children.
            PlacementUnavailable: no answer.
        """
        deadline = self._http.deadline()

        def delete_once() -> None:
            answer = self._http.write("DELETE", f"/resource_providers/{uuid}", None, deadline)
            if not answer.is_success and answer.status != 404:
                raise Conflict(f"provider {uuid} cannot be deleted from Placement: {answer.detail}")

        # What is gone stays gone: repeating is harmless whatever became of a lost answer.
        self._retry(delete_once, PlacementUnavailable, deadline)

    def usages(self, provider: UUID) -> dict[str, int]:
        """How much of each resource class of *provider* is claimed; nothing where it is unknown.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._get_or(f"/resource_providers/{provider}/usages", lambda body: dict(body["usages"]), {})

    def inventories(self, provider: UUID) -> dict[str, Inventory]:
        """What *provider* has, by resource class; nothing where it is unknown.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._get_or(f"/resource_providers/{provider}/inventories", read_inventories, {})

    def inventories_to_change(self, provider: UUID) -> tuple[int, dict[str, Inventory]]:
        """The generation for ``put_inventories`` with what *provider* has at that very generation.

        Raises:
            Conflict: there is no such provider (any more).
            PlacementUnavailable: no answer.
        """
        return self._get_part(provider, "inventories", read_inventories)

    def put_inventories(self, provider: UUID, generation: int, inventories: Mapping[str, Inventory]) -> int:
        """Replace what *provider* has, where its generation is still *generation*; the new generation.

        Raises:
            Conflict: it changed, a class that was left out is in use, or it is gone: read it again.
            InvalidSpec: Placement does not take the values.
            PlacementUnavailable: not done, or with ``outcome_unknown`` perhaps done: read it.
        """
        body = {"inventories": {name: dataclasses.asdict(inventory) for name, inventory in inventories.items()}}
        return self._put_part(provider, "inventories", generation, body)

    def traits(self, provider: UUID) -> frozenset[str]:
        """The traits of *provider*; none where it is unknown.

        Raises:
            PlacementUnavailable: no answer.
        """
        return self._get_or(f"/resource_providers/{provider}/traits", read_traits, frozenset())

    def traits_to_change(self, provider: UUID) -> tuple[int, frozenset[str]]:
        """The generation for ``put_traits`` with the traits at that very generation; errors as ``inventories_to_change``."""
        return self._get_part(provider, "traits", read_traits)

    def put_traits(self, provider: UUID, generation: int, traits: Collection[str]) -> int:
        """Replace the traits of *provider*, where its generation is still *generation*; the new generation.

        Raises:
            Conflict, InvalidSpec, PlacementUnavailable: as ``put_inventories``; an unknown trait is an InvalidSpec.
        """
        return self._put_part(provider, "traits", generation, {"traits": sorted(traits)})

    def ensure_traits(self, names: Collection[str]) -> frozenset[str]:
        """Those of *names* that Placement knows now; CUSTOM_ ones are made, unknown standard ones are left out.

        Raises:
            PlacementUnavailable: no answer.
        """
        if not names:
            return frozenset()
        deadline = self._http.deadline()
        answer = self._http.get(f"/traits?name=in:{quote(','.join(sorted(names)), safe=',')}", deadline)
        known = _read(answer, read_traits) if answer.is_success else frozenset()
        missing = [name for name in sorted(names) if name not in known and name.startswith("CUSTOM_")]
        return known | {name for name in missing if self._make_trait(name, deadline)}

    # -- one request -----------------------------------------------------------------------------------------------------

    def _cure(self, unknown: Collection[str]) -> str:
        """What to do about traits that no host has: the one that was perhaps meant, of those that a host has."""
        if not unknown:
            return ""
        try:
            there: frozenset[str] = self._get_or("/traits?associated=true", read_traits, frozenset())
        except EcomputeError:  # what is wrong with the request is known all the same
            there = frozenset()
        by_end = {name.removeprefix("CUSTOM_"): name for name in sorted(there - {OWNER_TRAIT})}
        near = [by_end[end] for name in unknown if (end := nearest(name.removeprefix("CUSTOM_"), by_end))]
        meant = f"; did you mean {', '.join(near)}?" if near else ": eschedule host show says which a host has"
        return f"; no host has {', '.join(unknown)}{meant}"

    def _claim(self, consumer: UUID, allocations: Allocations, deadline: Deadline) -> None:
        """``claim``, also over what Placement left of an earlier one.

        A claim on a provider that does not exist, or one cut off in the middle, leaves the consumer's record behind at
        generation 0, holding nothing and visible to no GET; a claim with generation null is refused from then on. It is
        taken by generation 0, after a pause, as a claim that is just being made looks the same for a moment.
        """
        try:
            self._put(Claim(consumer, allocations), deadline)
        except Conflict:
            if not self._is_leftover(consumer, deadline):
                raise
            self._sleep(min(LEFTOVER_PAUSE_SECONDS, deadline.remaining()))
            if not self._is_leftover(consumer, deadline):
                raise
            self._put(Claim(consumer, allocations, generation=0), deadline)

    def _is_leftover(self, consumer: UUID, deadline: Deadline) -> bool:
        """Whether a record without allocations is there: only then is "nothing" at generation 0 accepted, changing nothing."""
        nothing = self._body(Claim(consumer, {}, generation=0))
        return self._http.write("PUT", f"/allocations/{consumer}", nothing, deadline).is_success

    def _put(self, claim: Claim, deadline: Deadline) -> None:
        answer = self._http.write("PUT", f"/allocations/{claim.consumer}", self._body(claim), deadline)
        if not answer.is_success:
            raise _refusal(answer, f"claim of {_shown(claim.allocations)} for {claim.consumer}")

    def _post(self, claims: Collection[Claim], deadline: Deadline) -> None:
        bodies = {str(claim.consumer): self._body(claim) for claim in claims}
        answer = self._http.write("POST", "/allocations", bodies, deadline, more_seconds=SECONDS_PER_CLAIM * len(bodies))
        if not answer.is_success:
            raise _refusal(answer, f"claims of {', '.join(bodies)}")

    def _get_part(self, provider: UUID, part: str, read: Callable[[Any], T]) -> tuple[int, T]:
        answer = self._http.get(f"/resource_providers/{provider}/{part}", self._http.deadline())
        if answer.status == 404:
            raise Conflict(f"provider {provider} is not in Placement: {answer.detail}")
        return _read(_successful(answer), lambda body: (read_generation(body), read(body)))

    def _put_part(self, provider: UUID, part: str, generation: int, body: dict[str, Any]) -> int:
        path = f"/resource_providers/{provider}/{part}"
        body = {**body, "resource_provider_generation": generation}
        answer = self._http.write("PUT", path, body, self._http.deadline())
        if answer.is_success:
            return _read(answer, read_generation)
        if answer.status == 404 or answer.code in (CONCURRENT_UPDATE, INVENTORY_IN_USE):
            raise Conflict(f"the {part} of provider {provider} were not written: {answer.detail}")
        raise InvalidSpec(f"Placement refuses the {part} of provider {provider}: {answer.detail}")

    def _make_trait(self, name: str, deadline: Deadline) -> bool:
        """Whether *name* is a trait now. Repeating is harmless."""
        path = f"/traits/{quote(name, safe='')}"
        return self._retry(lambda: self._http.write("PUT", path, None, deadline).is_success, PlacementUnavailable, deadline)

    def _consumer(self, uuid: UUID, deadline: Deadline) -> Consumer | None:
        answer = self._http.get(f"/allocations/{uuid}", deadline)
        return _read(_successful(answer), lambda body: read_consumer(uuid, body))

    def _provider(self, uuid: UUID, deadline: Deadline) -> Provider | None:
        answer = self._http.get(f"/resource_providers/{uuid}", deadline)
        return None if answer.status == 404 else _read(_successful(answer), read_provider)

    def _providers(self, deadline: Deadline, **given: Any) -> list[Provider]:
        query = "&".join(f"{key}={quote(str(value), safe=':,!')}" for key, value in given.items() if value is not None)
        answer = self._http.get(f"/resource_providers?{query}", deadline)
        if answer.is_success:
            return _read(answer, lambda body: [read_provider(p) for p in body["resource_providers"]])
        if _is_trait_of_nobody(answer):
            return []
        raise ConfigError(f"Placement refuses to list providers by {query!r}: {answer.detail}")

    def _check_name_is_free(self, name: str, uuid: UUID, deadline: Deadline) -> None:
        if others := [provider for provider in self._providers(deadline, name=name) if provider.uuid != uuid]:
            raise ConfigError(
                f"another provider, {others[0].uuid}, has the name {name} in Placement; give this host another name in"
                " compute.yaml, or delete that provider if its host is gone"
            )

    def _get_or(
        self, path: str, read: Callable[[Any], T], if_unknown: T, *, is_once: bool = False, more_seconds: float = 0.0
    ) -> T:
        answer = self._http.get(path, self._http.deadline(more_seconds), is_once=is_once, more_seconds=more_seconds)
        return if_unknown if answer.status == 404 else _read(_successful(answer), read)

    def _retry(self, call: Callable[[], T], on: type[EcomputeError] | tuple[type[EcomputeError], ...], deadline: Deadline) -> T:
        return retry(call, on=on, deadline=deadline, backoff=Backoff(0.1, 2.0), sleep=self._sleep)


def _refusal(answer: Answer, what: str) -> Conflict | NoCapacity | InvalidSpec:
    """What a claim that was answered, but not by success, means for the caller."""
    if answer.code == CONCURRENT_UPDATE:
        return Conflict(f"{what}: somebody else changed it ({answer.detail})")
    if answer.status == 409:
        return NoCapacity(f"{what}: {answer.detail}")
    if answer.status == 400 and "does not exist" in answer.detail:
        return NoCapacity(f"{what}: the host has left ({answer.detail})")
    return InvalidSpec(f"{what}: Placement refuses it: {answer.detail}")


def _successful(answer: Answer) -> Answer:
    if not answer.is_success:
        raise EcomputeError(f"Placement answered a read with {answer.status} {answer.detail}; this is a bug, please report it")
    return answer


def _read(answer: Answer, read: Callable[[Any], T]) -> T:
    try:
        return read(answer.body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PlacementUnavailable(f"Placement's answer is not of microversion {MICROVERSION}: {error!r}") from error


def _is_trait_of_nobody(answer: Answer) -> bool:
    """Whether all that is wrong is that no ecompute has ever written our trait, or a bridge's, so that no host can have it."""
    unknown = _unknown_traits(answer)
    return bool(unknown) and all(name == OWNER_TRAIT or name.startswith(BRIDGE_TRAITS) for name in unknown)


def _unknown_traits(answer: Answer) -> list[str]:
    """The traits that Placement refuses a request for, since nobody has ever written them; none where it is something else."""
    _, is_that, names = answer.detail.rstrip(".").rpartition("No such trait(s): ")
    return names.split(", ") if is_that and answer.status == 400 else []


def _encoded(query: str) -> str:
    """*query* with what may not stand in an address escaped; what is escaped already, and ``+`` for a blank, stays."""
    return quote(query, safe="=&:,!%+-._~;/")


def _shown(allocations: Allocations) -> str:
    parts = (f"{'+'.join(f'{n} {c}' for c, n in sorted(held.items()))} on {p}" for p, held in allocations.items())
    return ", ".join(parts) or "nothing"
