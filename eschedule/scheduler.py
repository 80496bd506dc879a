"""The way of a request: a host from Placement, a claim there, the spec in etcd. Usable as a library; prints nothing.

    placed = Scheduler(store, placement, keys).create(request)

Each step can be repeated after a crash or a lost answer under the same uuid, and then goes on from where it was. A claim
that this run made and does not use is given back; one whose use is unknown is kept, since giving it back could take it
from under a guest. ``follow`` waits for what comes of it.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import random
import time
import uuid as uuids
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, NoCapacity, StoreUnavailable, Transient
from common.keys import Keys
from common.model import Alternate, HostRecord, InstanceKey, InstanceSpec
from common.store import Compare, Store, Transaction, Versioned
from eschedule import whynot
from eschedule.claims import Claims, Holding, Refusal, describe
from eschedule.interruption import Interruption
from eschedule.ordering import in_order
from eschedule.query import Query
from eschedule.request import Request

if TYPE_CHECKING:
    from common.placement import Candidate, Candidates, Placement

log = logging.getLogger(__name__)

SPEC_BYTES_AT_MOST = 256 * 1024
STORE_TRIES = 3  # while what refused the transaction is gone again when it is looked at


@dataclass(frozen=True)
class Placed:
    """An instance that is recorded in etcd, which its host is to build.

    Args:
        is_repeat: the instance was there already, from an earlier run of the same request.
        timings_ms: what "candidates", "claim" and "store" took; empty for a repeat.
    """

    uuid: UUID
    name: str
    provider: UUID
    host: str
    is_repeat: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Option:
    """One candidate on a live host, and the hosts that could take its place."""

    candidate: Candidate
    provider: UUID
    host: str
    alternates: tuple[Alternate, ...]


@dataclass
class _Search:
    """What one search for a host has come across so far."""

    dead: set[UUID] = field(default_factory=set)
    lost: set[UUID] = field(default_factory=set)
    in_group: set[UUID] = field(default_factory=set)
    was_contended: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measured(self, step: str, clock: Callable[[], float]) -> Iterator[None]:
        """Add the time spent inside to *step*."""
        begun = clock()
        try:
            yield
        finally:
            self.timings_ms[step] = round(self.timings_ms.get(step, 0.0) + (clock() - begun) * 1000, 1)


class Scheduler:
    """Creates instances.

    Args:
        policy: "spread", "pack" or "random".
        interruption: where a signal between claim and record is asked after.
        on_step: told what is being done, for people; it must not raise. *on_warning* likewise of what was left undone.
    """

    def __init__(
        self, store: Store, placement: Placement, keys: Keys, *, policy: str = "spread",
        candidates_limit: int = 10, claim_deadline_seconds: float = 30, created_by: str = "",
        interruption: Interruption | None = None, on_step: Callable[[str], None] = lambda _step: None,
        on_warning: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
        dice: random.Random | None = None, new_uuid: Callable[[], UUID] = uuids.uuid4,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:  # fmt: skip
        self._store = store
        self._placement = placement
        self._keys = keys
        self._policy = policy
        self._limit = candidates_limit
        self._created_by = created_by
        self._interruption = interruption or Interruption()
        self._on_step = on_step
        self._on_warning = on_warning
        self._clock = clock
        self._dice = dice or random.Random()  # noqa: S311 - only an order
        self._new_uuid = new_uuid
        self._now = now
        self._claims = Claims(placement, deadline_seconds=claim_deadline_seconds, clock=clock, sleep=sleep, dice=self._dice)

    def create(self, request: Request) -> Placed:
        """Claim a host for *request* and record the instance. The same request again answers the instance that is there.

        Raises:
            Conflict: the name or the uuid belongs to something else; nothing is left behind.
            NoCapacity: no live host can take it; the text says why not.
            ConfigError: the spec is larger than 256 KiB.
            StoreUnavailable: etcd did not say whether the instance is recorded: repeat it with the same uuid.
            PlacementUnavailable: likewise for the claim.
            Interrupted: a signal came before the instance was recorded; the claim was given back.
        """
        request = dataclasses.replace(request, uuid=request.instance_uuid(self._keys.prefix, self._new_uuid))
        instance = request.uuid
        assert instance is not None  # noqa: S101 - set above
        name = request.instance_name(instance)
        self._refuse_oversized(request, instance)
        self._on_step("reading etcd")
        if repeat := self._look_up(instance, name, request):
            return repeat
        search = _Search()
        for option in self._options(request, search):
            with self._interruption.shield():
                if placed := self._try(request, instance, option, search):
                    return placed
            self._interruption.check()
        if search.was_contended:
            raise Transient(f"no host for {describe(request.resources)}: other requests kept changing the same ones; try again")
        raise NoCapacity(self._why_not(request, search))

    def _look_up(self, instance: UUID, name: str, request: Request) -> Placed | None:
        """The instance, if this very request made it before; a name that is taken is found here without any claim."""
        instance_key, name_key = self._keys.instance(instance), self._keys.name(name)
        found = self._store.get_many([instance_key, name_key])
        if instance_key in found:
            return self._repeat(instance, found[instance_key], request)
        if name_key in found:
            raise Conflict(_taken(name, found[name_key].value))
        return None

    def _repeat(self, instance: UUID, item: Versioned, request: Request) -> Placed:
        known = InstanceKey.from_json(item.value)
        if known.request_digest != request.digest():
            raise Conflict(
                f"the uuid {instance} belongs to the instance {known.name}, which was asked for differently;"
                f" see: eschedule show {instance}"
            )
        hosts = self._hosts({known.provider})
        return Placed(instance, known.name, known.provider, hosts.get(known.provider, str(known.provider)), is_repeat=True)

    # -- candidates -------------------------------------------------------------------------------------------------

    def _options(self, request: Request, search: _Search) -> Iterator[_Option]:
        """Live candidates in the order of the policy: at first the limited answer, then, all of it lost, an unlimited one."""
        query = str(Query.parse(request.query).on_hosts())
        for limit in (self._limit, None):
            self._on_step("asking Placement for candidates")
            with search.measured("candidates", self._clock):
                answer = self._placement.candidates(query, limit)
                options = self._live(answer, search)
            yield from options
            if not answer.candidates:
                return

    def _live(self, answer: Candidates, search: _Search) -> list[_Option]:
        ordered = [(candidate, candidate.host(answer.summaries)) for candidate in in_order(answer, self._policy, self._dice)]
        hosts = self._hosts({provider for _, provider in ordered})
        search.dead |= {provider for _, provider in ordered} - hosts.keys()
        live = [(candidate, provider) for candidate, provider in ordered if provider in hosts]
        first_of = {provider: candidate for candidate, provider in reversed(live)}
        alternates = [_alternate(candidate, provider) for candidate, provider in live if first_of[provider] is candidate]
        return [
            _Option(candidate, provider, hosts[provider], tuple(a for a in alternates if a.provider != provider))
            for candidate, provider in live
        ]

    def _hosts(self, providers: set[UUID]) -> dict[UUID, str]:
        """The names of those *providers* whose host is alive, by one read."""
        by_key = {self._keys.host(provider): provider for provider in providers}
        return {by_key[key]: _host_name(item, by_key[key]) for key, item in self._store.get_many(by_key).items()}

    # -- claim and record -------------------------------------------------------------------------------------------

    def _try(self, request: Request, instance: UUID, option: _Option, search: _Search) -> Placed | None:
        """Claim *option* and record the instance there; None where another candidate has to be tried."""
        self._interruption.check()
        self._on_step(f"claiming {describe(request.resources)} on {option.host}")
        with search.measured("claim", self._clock):
            claim = self._claims.claim(instance, option.candidate.allocations)
        if isinstance(claim, Refusal):
            search.lost.add(option.provider)
            search.was_contended |= claim is Refusal.CONTENDED
            return None
        if self._interruption.is_pending:
            self._give_back(claim)
            self._interruption.check()
        self._on_step(f"recording the instance for {option.host}")
        with search.measured("store", self._clock):
            placed = self._record(request, instance, claim, self._at(claim, option), search)
        return placed and dataclasses.replace(placed, timings_ms={} if placed.is_repeat else dict(search.timings_ms))

    def _at(self, claim: Holding, option: _Option) -> _Option:
        """*option*, or for a claim that was found elsewhere an option there."""
        if option.provider in claim.allocations or claim.made_here:
            return option
        hosts = self._hosts(set(claim.allocations))
        provider = next(iter(hosts), next(iter(claim.allocations)))
        alternates = tuple(a for a in option.alternates if a.provider != provider)
        return _Option(option.candidate, provider, hosts.get(provider, str(provider)), alternates)

    def _record(self, request: Request, instance: UUID, claim: Holding, option: _Option, search: _Search) -> Placed | None:
        spec = request.spec(
            instance, claim.resources, option.alternates,
            created_at=self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z"), created_by=self._created_by,
        )  # fmt: skip
        transaction = self._transaction(spec, option.provider, needs_live_host=claim.made_here)
        for _ in range(STORE_TRIES):
            try:
                self._store.commit(transaction)
            except Conflict:
                refused = self._refused(request, spec, claim, option, search)
                if refused != "again":
                    return refused
            except EcomputeError as error:
                if not isinstance(error, StoreUnavailable) or not error.may_have_happened:
                    self._give_back(claim)
                raise  # where it may have happened the claim has to stay
            else:
                return Placed(instance, spec.name, option.provider, option.host)
        self._give_back(claim)
        raise Transient(f"the instance {spec.name} could not be recorded: its keys kept changing; try again")

    def _transaction(self, spec: InstanceSpec, provider: UUID, *, needs_live_host: bool) -> Transaction:
        keys = self._keys
        puts = {
            keys.instance(spec.uuid): InstanceKey(provider, spec.name, spec.request_digest).to_json(),
            keys.spec(provider, spec.uuid): spec.to_json(),
            keys.name(spec.name): str(spec.uuid),
        }
        if spec.group is not None:
            puts[keys.group(spec.group, provider)] = str(spec.uuid)
        compares = [Compare.absent(key) for key in puts]
        if needs_live_host:
            compares.append(Compare.present(keys.host(provider)))
        return Transaction(tuple(compares), puts)

    def _refused(
        self, request: Request, spec: InstanceSpec, claim: Holding, option: _Option, search: _Search
    ) -> Placed | Literal["again"] | None:
        """What to make of a transaction that did not hold.

        An instance of this uuid that is there now uses the claim, so the claim stays with it.
        """
        keys = self._keys
        instance_key, name_key, host_key = keys.instance(spec.uuid), keys.name(spec.name), keys.host(option.provider)
        group_key = keys.group(spec.group, option.provider) if spec.group else None
        found = self._store.get_many([key for key in (instance_key, name_key, host_key, group_key) if key])
        if instance_key in found:
            return self._repeat(spec.uuid, found[instance_key], request)
        if name_key in found:
            self._give_back(claim)
            raise Conflict(_taken(spec.name, found[name_key].value))
        if group_key in found:
            search.in_group.add(option.provider)
        elif claim.made_here and host_key not in found:
            search.dead.add(option.provider)
        else:
            return "again"
        self._give_back(claim)
        return None

    def _give_back(self, claim: Holding) -> None:
        if claim.made_here and not self._claims.release(claim):
            self._on_warning(f"the claim of {claim.consumer} could not be given back; its host does so within ten minutes")

    # -- why not ----------------------------------------------------------------------------------------------------

    def _why_not(self, request: Request, search: _Search) -> str:
        self._on_step("asking why not")
        try:
            return whynot.explain(
                request, placement=self._placement, host_names=self._hosts, lost=frozenset(search.lost),
                in_group=frozenset(search.in_group),
            )  # fmt: skip
        except EcomputeError as error:
            return f"no host can take {describe(request.resources)}; why could not be found out: {error}"

    def _refuse_oversized(self, request: Request, instance: UUID) -> None:
        spec = request.spec(instance, request.resources, (), created_at="", created_by=self._created_by)
        size = len(spec.to_json().encode())
        if size > SPEC_BYTES_AT_MOST:
            raise ConfigError(f"the request is {size} bytes, at most {SPEC_BYTES_AT_MOST} fit: fewer keys or less user data")


def _taken(name: str, owner: str) -> str:
    return f"the name {name} is taken by the instance {owner}; choose another, or look at it: eschedule show {name}"


def _alternate(candidate: Candidate, provider: UUID) -> Alternate:
    return Alternate(provider, {str(p): dict(amounts) for p, amounts in candidate.allocations.items()})


def _host_name(item: Versioned, provider: UUID) -> str:
    """A host is alive by its key being there; a record that we cannot read only costs its name."""
    try:
        return HostRecord.from_json(item.value).name
    except EcomputeError:
        return str(provider)
