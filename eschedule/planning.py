"""What both schedulers have in common: their collaborators, live candidates in the order of the policy, giving claims back.

``scheduler`` creates one instance, ``batch`` a set; both ask here who could take what they need.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import random
import time
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from common.errors import ConfigError, EcomputeError
from common.groups import GroupChange
from common.journal import Act, Target
from common.keys import Keys
from common.model import Alternate, HostRecord, InstanceKey, InstanceSpec, Nic
from common.retry import seconds_since_boot
from common.store import Compare, Store, Transaction, Versioned
from common.text import utc_text
from eschedule import whynot
from eschedule.claims import Claims, Holding, describe
from eschedule.grouping import Group
from eschedule.interruption import Interruption
from eschedule.ordering import in_order
from eschedule.query import Query
from eschedule.request import SPEC_BYTES_AT_MOST, Request
from eschedule.wiring import Wiring, puts_of

if TYPE_CHECKING:
    from common.placement import Candidate, Candidates, Placement

log = logging.getLogger(__name__)

STORE_TRIES = 3  # while what refused the transaction is gone again when it is looked at
GROUP_TRIES = 30  # while others join the same group on the same host: each time one of all has got through


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
class Live:
    """Candidates on live hosts as Placement answered them, in the order of the policy.

    Args:
        hosts: the names of their hosts, by provider.
    """

    answer: Candidates
    ordered: tuple[tuple[Candidate, UUID], ...]
    hosts: dict[UUID, str]

    def alternates(self, group: Group | None, *, but: Iterable[UUID] = ()) -> tuple[Alternate, ...]:
        """One alternate for each of the hosts that *group* allows, those in *but* left out."""
        if group and not group.can_move:
            return ()
        left_out = set(but)
        found: dict[UUID, Alternate] = {}
        for candidate, provider in self.ordered:
            if provider not in left_out and not (group and group.bars(provider)):
                found.setdefault(provider, alternate(candidate, provider))
        return tuple(found.values())


@dataclass
class Search:
    """What one search for hosts has come across so far; *wiring* is what the request's cards need."""

    wiring: Wiring
    group: Group | None = None
    lost: set[UUID] = field(default_factory=set)
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


class Planner:
    """What ``Scheduler`` and ``BatchScheduler`` are made of.

    Args:
        policy: "spread", "pack" or "random".
        act: the command that wants it, for the journal.
        interruption: where a signal between claim and record is asked after.
        on_step: told what is being done, for people; it must not raise. *on_warning* likewise of what was left undone.
        boot_clock: tells how old a claim is, also over a sleep of the machine.
    """

    def __init__(
        self, store: Store, placement: Placement, keys: Keys, *, policy: str = "spread",
        candidates_limit: int = 10, claim_deadline_seconds: float = 30, created_by: str = "", act: Act | None = None,
        interruption: Interruption | None = None, on_step: Callable[[str], None] = lambda _step: None,
        on_warning: Callable[[str], None] = log.warning,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
        boot_clock: Callable[[], float] = seconds_since_boot,
        dice: random.Random | None = None, new_uuid: Callable[[], UUID] = uuids.uuid4,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:  # fmt: skip
        self._store = store
        self._placement = placement
        self._keys = keys
        self._policy = policy
        self._limit = candidates_limit
        self._created_by, self._act = created_by, act
        self._interruption = interruption or Interruption()
        self._on_step = on_step
        self._on_warning = on_warning
        self._clock = clock
        self._sleep = sleep
        self._dice = dice or random.Random()  # noqa: S311 - only an order
        self._new_uuid = new_uuid
        self._now = now
        self._claims = Claims(
            placement, deadline_seconds=claim_deadline_seconds, clock=clock, sleep=sleep, dice=self._dice,
            boot_clock=boot_clock,
        )  # fmt: skip

    # -- candidates -------------------------------------------------------------------------------------------------

    def _queries(self, request: Request, search: Search) -> list[Query]:
        """What to ask Placement, one after the other: at first for the host that the group would have."""
        query, group = Query.parse(request.query).on_hosts(search.wiring.bridges), search.group
        if group is None or group.favourite is None:
            return [query]
        near = query.on_host(group.favourite)
        return [near] if not group.can_move else [near, query] if near != query else [query]

    def _ask(self, query: Query, limit: int | None, search: Search) -> Live:
        """Live candidates, those on hosts that the group bars left out."""
        self._on_step("asking Placement for candidates")
        with search.measured("candidates", self._clock):
            return self._live(self._placement.candidates(str(query), limit), search)

    def _wide(self, limit: int, group: Group | None) -> int:
        """*limit*, and as many more as there are hosts that the group would rather not have."""
        return limit + len(group.members) if group else limit

    def _live(self, answer: Candidates, search: Search) -> Live:
        ordered = [(candidate, candidate.host(answer.summaries)) for candidate in in_order(answer, self._policy, self._dice)]
        hosts = self._hosts({provider for _, provider in ordered})
        group = search.group
        live = [(c, p) for c, p in ordered if p in hosts and not (group and group.bars(p))]
        if group:
            live.sort(key=lambda option: group.rank(option[1]))
        return Live(answer, tuple(live), hosts)

    def _hosts(self, providers: set[UUID]) -> dict[UUID, str]:
        """The names of those *providers* whose host is alive, by one read."""
        by_key = {self._keys.host(provider): provider for provider in providers}
        return {by_key[key]: _host_name(item, by_key[key]) for key, item in self._store.get_many(by_key).items()}

    def _place_of(self, claim: Holding) -> tuple[UUID, str]:
        """The host of a *claim* that was found: of the providers that it is of the one that is alive."""
        hosts = self._hosts(set(claim.allocations))
        provider = next(iter(hosts), next(iter(claim.allocations)))
        return provider, hosts.get(provider, str(provider))

    # -- what is written --------------------------------------------------------------------------------------------

    def _wiring(self, request: Request, found: Mapping[str, Versioned]) -> Wiring:
        """What the cards of *request* are, as what was *found* of ``wiring.keys_to_read`` says."""
        return Wiring(self._store, self._keys, request.nics, found, self._dice)

    def _spec(
        self, request: Request, instance: UUID, claim: Holding, alternates: tuple[Alternate, ...], nics: tuple[Nic, ...]
    ) -> InstanceSpec:
        created_at = utc_text(self._now())
        spec = request.spec(
            instance, claim.resources, alternates, created_at=created_at, created_by=self._created_by, nics=nics
        )
        return dataclasses.replace(spec, acts=1) if self._act else spec

    def _notes(self, instance: UUID, name: str, provider: UUID) -> dict[str, str]:
        """What to write down with the spec of *instance*."""
        return self._act.on_instance(self._keys, Target(instance, name, provider), 0) if self._act else {}

    def _puts(self, spec: InstanceSpec, provider: UUID) -> dict[str, str]:
        """The keys of one instance, all of which must be absent."""
        return {
            self._keys.instance(spec.uuid): InstanceKey(provider, spec.name, spec.request_digest).to_json(),
            self._keys.spec(provider, spec.uuid): spec.to_json(),
            self._keys.name(spec.name): str(spec.uuid),
            **puts_of(self._keys, spec.nics, spec.uuid),
        }

    def _transaction(
        self, puts: dict[str, str], joining: GroupChange, live: Iterable[UUID], wiring: Wiring, notes: Mapping[str, str]
    ) -> Transaction:
        """*puts* where they are absent, as members of their group, on hosts that must be *live*."""
        compares = [Compare.absent(key) for key in puts]
        compares += [Compare.present(self._keys.host(provider)) for provider in dict.fromkeys(live)]
        return Transaction((*compares, *wiring.compares, *joining.compares), {**puts, **joining.puts}, notes=notes)

    def _give_back(self, claim: Holding) -> None:
        if claim.made_here and not self._claims.release(claim):
            self._on_warning(f"the claim of {claim.consumer} could not be given back; its host does so within ten minutes")

    def _refuse_oversized(self, request: Request, instance: UUID) -> None:
        spec = request.spec(instance, request.resources, (), created_at="", created_by=self._created_by)
        size = len(spec.to_json().encode())
        if size > SPEC_BYTES_AT_MOST:
            raise ConfigError(f"the request is {size} bytes, at most {SPEC_BYTES_AT_MOST} fit: fewer keys or less user data")

    # -- why not ----------------------------------------------------------------------------------------------------

    def _why_not(self, request: Request, search: Search) -> str:
        self._on_step("asking why not")
        try:
            return whynot.explain(
                request, placement=self._placement, host_names=self._hosts, lost=frozenset(search.lost), group=search.group,
                bridges=search.wiring.bridges,
            )  # fmt: skip
        except EcomputeError as error:
            return f"no host can take {describe(request.resources)}; why could not be found out: {error}"


def taken(name: str, owner: str) -> str:
    return f"the name {name} is taken by the instance {owner}; choose another, or look at it: eschedule show {name}"


def left_by_an_earlier_run(name: str, host: str) -> str:
    return (
        f"the claim that an earlier run of this request made for {name} is on {host}, where its group does not let it be any "
        "more; that host gives it back within ten minutes: repeat it then, or with another --request-id"
    )


def alternate(candidate: Candidate, provider: UUID) -> Alternate:
    return Alternate(provider, {str(p): dict(amounts) for p, amounts in candidate.allocations.items()})


def _host_name(item: Versioned, provider: UUID) -> str:
    """A host is alive by its key being there; a record that we cannot read only costs its name."""
    try:
        return HostRecord.from_json(item.value).name
    except EcomputeError:
        return str(provider)
