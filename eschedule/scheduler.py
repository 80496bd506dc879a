"""The way of a request: a host from Placement, a claim there, the spec in etcd. Usable as a library; prints nothing.

    placed = Scheduler(store, placement, keys).create(request)

Each step can be repeated after a crash or a lost answer under the same uuid, and then goes on from where it was. A claim
that this run made and does not use is given back; one whose use is unknown is kept, since giving it back could take it
from under a guest. ``follow`` waits for what comes of it, ``batch`` does the same for a set of instances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from common.errors import Conflict, EcomputeError, GroupTaken, NoCapacity, StoreUnavailable, Transient
from common.groups import GroupChange
from common.model import Alternate, InstanceKey, InstanceSpec, Nic
from common.placement_types import Candidate
from common.retry import Backoff
from common.store import Versioned
from eschedule import grouping
from eschedule.claims import Holding, Refusal, describe
from eschedule.planning import GROUP_TRIES, STORE_TRIES, Live, Placed, Planner, Search, left_by_an_earlier_run, taken
from eschedule.request import Request
from eschedule.wiring import Wiring, keys_to_read

__all__ = ["Placed", "Scheduler"]

QUESTIONS_AT_MOST = 4  # to Placement, where what is known of the group turns out to be old each time


@dataclass(frozen=True)
class _Option:
    """One candidate on a live host, and the hosts that could take its place."""

    candidate: Candidate
    provider: UUID
    host: str
    alternates: tuple[Alternate, ...]


class Scheduler(Planner):
    """Creates instances one by one."""

    def create(self, request: Request) -> Placed:
        """Claim a host for *request* and record the instance. The same request again answers the instance that is there.

        Raises:
            Conflict: the name or the uuid belongs to something else, or the group has another policy; nothing is left behind.
            NoCapacity: no live host can take it; the text says why not.
            ConfigError: the spec is larger than 256 KiB.
            StoreUnavailable: etcd did not say whether the instance is recorded: repeat it with the same uuid.
            PlacementUnavailable: likewise for the claim.
            Interrupted: a signal came before the instance was recorded; the claim was given back.
        """
        request = dataclasses.replace(request, uuid=request.instance_uuid(self._keys.prefix, self._new_uuid))
        instance = request.uuid
        assert instance is not None  # noqa: S101 - set above
        self._refuse_oversized(request, instance)
        self._on_step("reading etcd")
        found = self._look_up(instance, request.instance_name(instance), request)
        if isinstance(found, Placed):
            return found
        search = Search(found, grouping.read(self._store, self._keys, request.group, request.group_policy))
        try:
            search.wiring.look(1)
        except (Conflict, NoCapacity):
            # Another run of this very request may have recorded it since etcd was first asked: then it is that one's address.
            if (known := self._store.get(self._keys.instance(instance))) is None:
                raise
            return self._repeat(instance, known, request)
        for doubt in search.wiring.doubts():
            self._on_warning(doubt)
        for option in self._options(request, search):
            with self._interruption.shield():
                if placed := self._try(request, instance, option, search):
                    return placed
            self._interruption.check()
        with self._interruption.shield():
            if placed := self._take_up(request, instance, search):
                return placed
        if search.was_contended:
            raise Transient(f"no host for {describe(request.resources)}: other requests kept changing the same ones; try again")
        raise NoCapacity(self._why_not(request, search))

    def _look_up(self, instance: UUID, name: str, request: Request) -> Placed | Wiring:
        """The instance, if this very request made it before, else what its cards need.

        A name that is taken is found here without any claim.
        """
        instance_key, name_key = self._keys.instance(instance), self._keys.name(name)
        found = self._store.get_many([instance_key, name_key, *keys_to_read(self._keys, request.nics)])
        if instance_key in found:
            return self._repeat(instance, found[instance_key], request)
        if name_key in found:
            raise Conflict(taken(name, found[name_key].value))
        return self._wiring(request, found)

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

    def _options(self, request: Request, search: Search) -> Iterator[_Option]:
        """Live candidates in the order of the policies: at first the limited answer, then, all of it lost, an unlimited one.

        Whoever tries them may find that the group has changed; it is asked again then.
        """
        for attempt in range(QUESTIONS_AT_MOST):
            group, has_any = search.group, False
            for query in self._queries(request, search):
                live = self._ask(query, None if attempt else self._wide(self._limit, group), search)
                has_any |= bool(live.answer.candidates)
                yield from self._options_of(live, search)
            if search.group is group and (attempt or not has_any):
                return

    def _options_of(self, live: Live, search: Search) -> Iterator[_Option]:
        for candidate, provider in live.ordered:
            if not (search.group and search.group.bars(provider)):
                alternates = live.alternates(search.group, but=[provider])
                yield _Option(candidate, provider, live.hosts[provider], alternates)

    # -- claim and record -------------------------------------------------------------------------------------------

    def _try(self, request: Request, instance: UUID, option: _Option, search: Search) -> Placed | None:
        """Claim *option* and record the instance there; None where another candidate has to be tried."""
        self._interruption.check()
        self._on_step(f"claiming {describe(request.resources)} on {option.host}")
        with search.measured("claim", self._clock):
            claim = self._claims.claim(instance, option.candidate.allocations)
        if isinstance(claim, Refusal):
            search.lost.add(option.provider)
            search.was_contended |= claim is Refusal.CONTENDED
            return None
        self._end_if_interrupted(claim)
        self._on_step(f"recording the instance for {option.host}")
        with search.measured("store", self._clock):
            placed = self._record(request, instance, claim, self._at(claim, option), search)
        return placed and dataclasses.replace(placed, timings_ms={} if placed.is_repeat else dict(search.timings_ms))

    def _take_up(self, request: Request, instance: UUID, search: Search) -> Placed | None:
        """Record the instance where an earlier run has claimed its room, which is why nobody has room for it any more."""
        claim = self._claims.left_behind(instance, request.resources)
        if claim is None:
            return None
        provider, host = self._place_of(claim)
        return self._record(request, instance, claim, _Option(Candidate(claim.allocations), provider, host, ()), search)

    def _at(self, claim: Holding, option: _Option) -> _Option:
        """*option*, or for a claim that was found elsewhere an option there."""
        if option.provider in claim.allocations or claim.made_here:
            return option
        provider, host = self._place_of(claim)
        alternates = tuple(a for a in option.alternates if a.provider != provider)
        return _Option(option.candidate, provider, host, alternates)

    def _end_if_interrupted(self, claim: Holding) -> None:
        if self._interruption.is_pending:
            self._give_back(claim)
            self._interruption.check()

    def _record(self, request: Request, instance: UUID, claim: Holding, option: _Option, search: Search) -> Placed | None:
        live = [option.provider] if claim.made_here else []
        found: Mapping[str, Versioned] = search.group.items if search.group else {}
        backoff = Backoff(0.01, 0.3, random=self._dice.random)
        tries = GROUP_TRIES if search.group else STORE_TRIES
        while tries:
            if (fresh := self._fresh(claim)) is None:
                search.lost.add(option.provider)
                return None
            claim = fresh
            spec = self._spec(request, instance, claim, option.alternates, self._wired(claim, search))
            puts = self._puts(spec, option.provider)
            try:
                joining = self._joining(spec, option, search, found)
                notes = self._notes(instance, spec.name, option.provider)
                self._store.commit(self._transaction(puts, joining, live, search.wiring, notes))
            except GroupTaken:
                self._lose_to_group(spec, claim, option, search)
                return None
            except Conflict:
                found = self._store.get_many(self._keys_in_question(spec, option, search, puts))
                refused = self._refused(request, spec, claim, option, found)
                if refused != "again":
                    return refused
                if not self._learned(claim, search, found):
                    tries -= 1
            except EcomputeError as error:
                if not isinstance(error, StoreUnavailable) or not error.may_have_happened:
                    self._give_back(claim)
                raise  # where it may have happened the claim has to stay
            else:
                return Placed(instance, spec.name, option.provider, option.host)
            self._end_if_interrupted(claim)
            self._sleep(backoff.next())
        self._give_back(claim)
        name = request.instance_name(instance)
        raise Transient(f"the instance {name} could not be recorded: its keys kept changing; try again")

    def _wired(self, claim: Holding, search: Search) -> tuple[Nic, ...]:
        """The instance's cards with addresses that seem to be free; where there are none, the claim is given back."""
        search.wiring.begin()
        with self._giving_back(claim):
            return search.wiring.wired()

    def _learned(self, claim: Holding, search: Search, found: Mapping[str, Versioned]) -> bool:
        """Whether somebody else has taken an address that was chosen; where no other one will do, the claim is given back."""
        with self._giving_back(claim):
            return search.wiring.learn(found)

    @contextmanager
    def _giving_back(self, claim: Holding) -> Iterator[None]:
        """Give *claim* back where what is done inside says that nothing comes of it."""
        try:
            yield
        except EcomputeError:
            self._give_back(claim)
            raise

    def _fresh(self, claim: Holding) -> Holding | None:
        """*claim*, asked after where this program slept over it: others may have taken it for left behind; None if so."""
        return self._claims.renewed(claim) if self._claims.stale([claim]) else claim

    def _joining(
        self, spec: InstanceSpec, option: _Option, search: Search, found: Mapping[str, Versioned]
    ) -> GroupChange:  # fmt: skip
        if search.group is None:
            return GroupChange()
        return grouping.join_all(self._keys, search.group, [(option.provider, spec.uuid)], found)

    def _lose_to_group(self, spec: InstanceSpec, claim: Holding, option: _Option, search: Search) -> None:
        """Give the claim back, since the group does not let the instance be there, and look what the group is like now."""
        self._give_back(claim)
        if not claim.made_here:
            raise Transient(left_by_an_earlier_run(spec.name, option.host))
        search.group = grouping.read(self._store, self._keys, spec.group, spec.group_policy)

    def _keys_in_question(self, spec: InstanceSpec, option: _Option, search: Search, puts: Iterable[str]) -> list[str]:
        """What may have refused the transaction."""
        keys = self._keys
        own = [keys.instance(spec.uuid), keys.name(spec.name), keys.host(option.provider), *search.wiring.keys_of(puts)]
        return own + grouping.keys_to_read(keys, search.group, [option.provider])

    def _refused(
        self, request: Request, spec: InstanceSpec, claim: Holding, option: _Option, found: Mapping[str, Versioned]
    ) -> Placed | Literal["again"] | None:  # fmt: skip
        """What to make of a transaction that did not hold, from the keys as they were *found* then.

        An instance of this uuid that is there now uses the claim, so the claim stays with it.
        """
        instance_key, name_key = self._keys.instance(spec.uuid), self._keys.name(spec.name)
        if instance_key in found:
            return self._repeat(spec.uuid, found[instance_key], request)
        if name_key in found:
            self._give_back(claim)
            raise Conflict(taken(spec.name, found[name_key].value))
        if not claim.made_here or self._keys.host(option.provider) in found:
            return "again"
        self._give_back(claim)
        return None
