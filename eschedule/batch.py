"""The way of a request for a set of instances: all of them or none. Usable as a library; prints nothing.

    placed = BatchScheduler(store, placement, keys).create_all(request)

One question to Placement, one packing, one atomic claim for the whole set; then the keys, as many in one transaction as etcd
takes. What the first transaction does is not undone by a crash: the same request again, known by its request id, finds the
instances and the claims that are there and adds what is missing. A definite failure takes back what this run made.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from common.errors import (
    ConfigError,
    Conflict,
    EcomputeError,
    GroupTaken,
    NoCapacity,
    PlacementUnavailable,
    StoreUnavailable,
    Transient,
)
from common.groups import GroupChange
from common.model import Alternate, Desired, GroupPolicy, InstanceKey, InstanceSpec
from common.placement_types import Candidates
from common.retry import Backoff
from common.store import Versioned
from eschedule import changes, grouping
from eschedule.claims import Holding, Refusal, describe
from eschedule.grouping import Group
from eschedule.packing import Option, pack
from eschedule.planning import GROUP_TRIES, STORE_TRIES, Live, Placed, Planner, Search, left_by_an_earlier_run, taken
from eschedule.request import ALTERNATES_AT_MOST, Request
from eschedule.wiring import Wiring, keys_to_read

OPERATIONS_PER_TRANSACTION = 128  # compares, and puts likewise: etcd's --max-txn-ops
OPERATIONS_EACH = 5  # instance, name and spec; its group; its host, of the compares, and its note, of the puts
BYTES_PER_TRANSACTION = 1024 * 1024
ROUNDS = 8  # of planning and claiming, while others take the room in between


@dataclass(frozen=True)
class PlacedSet:
    """A set that is recorded, in the order of its numbers; *timings_ms* as those of ``Placed``, for all of it together."""

    instances: tuple[Placed, ...]
    timings_ms: dict[str, float]

    @property
    def is_repeat(self) -> bool:
        return all(placed.is_repeat for placed in self.instances)


@dataclass(frozen=True)
class _Seat:
    """A claim for one instance of the set."""

    request: Request
    uuid: UUID
    claim: Holding
    provider: UUID
    host: str
    alternates: tuple[Alternate, ...]


@dataclass
class BatchSet:
    """How far one set has come.

    Args:
        placed: what is recorded, by this run or an earlier one; *written* is what this run recorded.
        seats: what is claimed and not recorded yet.
        may_be_left_behind: whether it has not been asked yet what an earlier run left claimed.
    """

    request: Request
    members: dict[UUID, Request]
    placed: dict[UUID, Placed] = field(default_factory=dict)
    written: list[UUID] = field(default_factory=list)
    seats: dict[UUID, _Seat] = field(default_factory=dict)
    may_be_left_behind: bool = True

    def missing(self) -> list[UUID]:
        """What is neither recorded nor claimed."""
        return [uuid for uuid in self.members if uuid not in self.placed and uuid not in self.seats]

    def seated(self, group: Group | None) -> Group | None:
        """*group* as it is once all that is claimed is recorded."""
        if group is None or not self.seats:
            return group
        members = {provider: list(instances) for provider, instances in group.members.items()}
        for seat in self.seats.values():
            members.setdefault(seat.provider, []).append(seat.uuid)
        anchor = group.anchor
        if group.policy is GroupPolicy.AFFINITY:
            anchor = anchor or next(iter(self.seats.values())).provider
        return dataclasses.replace(group, members={p: tuple(i) for p, i in members.items()}, anchor=anchor)


class BatchScheduler(Planner):
    """Creates sets of instances."""

    def create_all(self, request: Request, *, is_new: bool = False) -> PlacedSet:
        """Claim hosts for all instances of *request* and record them, or none. The same request again finishes the set.

        Args:
            is_new: its request id was made just now, so that Placement need not be asked what an earlier run left; as it is
                without a request id.

        Raises:
            Conflict: a name or a uuid belongs to something else, or the group has another policy.
            NoCapacity: not all of them fit; the text says how many would.
            ConfigError: a spec is larger than 256 KiB.
            StoreUnavailable: etcd did not say whether all are recorded; what may be used was kept: repeat it.
            PlacementUnavailable: likewise for the claims.
            Interrupted: a signal came before anything was recorded; the claims were given back.
        """
        chosen = self._members(request)
        chosen.may_be_left_behind = not (is_new or (request.request_id is None and request.uuid is None))
        self._on_step("reading etcd")
        search = Search(self._look_up(chosen))
        if missing := len(chosen.missing()):
            search.wiring.look(missing)
            try:
                plan = self._plan(chosen, search)
                with self._interruption.shield():
                    self._carry_out(chosen, plan, search)
            except EcomputeError as error:
                if not _is_unknown(error):
                    with self._interruption.shield():
                        self._undo(chosen)
                raise
        return PlacedSet(tuple(chosen.placed[uuid] for uuid in chosen.members), dict(search.timings_ms))

    def _members(self, request: Request) -> BatchSet:
        members = {m.uuid: m for m in request.members(request.instance_uuid(self._keys.prefix, self._new_uuid)) if m.uuid}
        names = Counter(member.instance_name(uuid) for uuid, member in members.items())
        if name := next((name for name, count in names.items() if count > 1), None):
            raise ConfigError(f"two instances of this set would have the name {name}; give them names of their own by --name")
        last = next(reversed(members))
        self._refuse_oversized(members[last], last)
        return BatchSet(request, members)

    # -- what is there already --------------------------------------------------------------------------------------

    def _look_up(self, chosen: BatchSet) -> Wiring:
        """Note what an earlier run of this request has recorded; what the cards need.

        A name that is taken is found here without any claim.
        """
        keys = self._keys
        own = [key for uuid, m in chosen.members.items() for key in (keys.instance(uuid), keys.name(m.instance_name(uuid)))]
        found = self._store.get_many([*own, *keys_to_read(keys, chosen.request.nics)])
        places = self._note_recorded(chosen, chosen.members, found)
        specs = self._store.get_many(keys.spec(provider, uuid) for uuid, provider in places.items())
        for item in specs.values():
            spec = InstanceSpec.from_json(item.value)
            if spec.desired is Desired.DELETED:
                raise Conflict(
                    f"{spec.name}, which an earlier run of this request made, is being destroyed; repeat the request once it"
                    " is gone, or with another --request-id"
                )
        return self._wiring(chosen.request, found)

    def _note_recorded(self, chosen: BatchSet, uuids: Iterable[UUID], found: Mapping[str, Versioned]) -> dict[UUID, UUID]:
        """Note those of *uuids* that are recorded as *found* says; their providers.

        Raises:
            Conflict: one belongs to another request, or its name to another instance.
        """
        places: dict[UUID, UUID] = {}
        names: dict[UUID, str] = {}  # as they are called by now
        for uuid in uuids:
            member = chosen.members[uuid]
            name = member.instance_name(uuid)
            place, owner = found.get(self._keys.instance(uuid)), found.get(self._keys.name(name))
            if place:
                known = InstanceKey.from_json(place.value)
                if known.request_digest != member.digest():
                    raise Conflict(
                        f"the uuid {uuid} belongs to {known.name}, which was asked for differently; see: eschedule show {uuid}"
                    )
                places[uuid], names[uuid] = known.provider, known.name
            elif owner:
                raise Conflict(taken(name, owner.value))
        hosts = self._hosts(set(places.values()))
        for uuid, provider in places.items():
            chosen.placed[uuid] = Placed(uuid, names[uuid], provider, hosts.get(provider, str(provider)), is_repeat=True)
            chosen.seats.pop(uuid, None)  # the instance that is there uses the claim
        return places

    # -- planning and claiming --------------------------------------------------------------------------------------

    def _carry_out(self, chosen: BatchSet, plan: list[tuple[UUID, Option, Live]], search: Search) -> None:
        """Claim what was planned and record it, planning anew for what is lost on the way, until the set is complete."""
        backoff = Backoff(0.05, 1.0, random=self._dice.random)
        for round_ in range(ROUNDS):
            self._end_if_interrupted(chosen)
            if round_:
                plan = self._plan(chosen, search)
            is_refused = bool(plan) and self._claim(chosen, plan, search)
            if not chosen.missing():
                self._end_if_interrupted(chosen)
                with search.measured("store", self._clock):
                    self._record(chosen, search)
            if not chosen.missing():
                return
            if is_refused:
                self._sleep(backoff.next())
        what = f"{len(chosen.missing())} of {chosen.request.count} instances of {describe(chosen.request.resources)}"
        if search.was_contended:
            raise Transient(f"no hosts for {what}: other requests kept changing the same ones; try again")
        raise NoCapacity(
            f"no hosts for {what}: other requests took the room {ROUNDS} times; try again, or see: eschedule hosts"
        )

    def _end_if_interrupted(self, chosen: BatchSet) -> None:
        if self._interruption.is_pending:
            self._undo(chosen)
            self._interruption.check()

    def _plan(self, chosen: BatchSet, search: Search) -> list[tuple[UUID, Option, Live]]:
        """Where each missing instance goes.

        Raises:
            NoCapacity: not all of them fit.
            Conflict: the group has another policy.
        """
        request, missing = chosen.request, chosen.missing()
        search.group = known = grouping.read(self._store, self._keys, request.group, request.group_policy)
        if not missing:
            return []
        if chosen.may_be_left_behind and self._claims.left_behind(missing[0], request.resources) and self._take_up(chosen):
            return self._plan(chosen, search)
        search.group = chosen.seated(known)
        limit = self._wide(max(self._limit, len(missing)), search.group)
        for at_most in (limit, None):
            live = self._ask_all(request, at_most, search)
            options = pack(
                len(missing), live.ordered, live.answer.summaries, policy=self._policy, group=search.group, dice=self._dice
            )
            if len(options) == len(missing):
                search.group = known
                return [(uuid, option, live) for uuid, option in zip(missing, options, strict=True)]
            if len(live.answer.candidates) < limit:
                break
        if self._take_up(chosen):
            return self._plan(chosen, search)
        raise NoCapacity(self._why_not_all(chosen, len(options), search))

    def _take_up(self, chosen: BatchSet) -> bool:
        """Whether an earlier run has claimed room for some of those missing, which is why nobody has room; it is used then."""
        if not chosen.may_be_left_behind:
            return False
        chosen.may_be_left_behind = False
        for uuid in chosen.missing():
            if claim := self._claims.left_behind(uuid, chosen.request.resources):
                provider, host = self._place_of(claim)
                chosen.seats[uuid] = _Seat(chosen.members[uuid], uuid, claim, provider, host, ())
        return bool(chosen.seats)

    def _ask_all(self, request: Request, limit: int | None, search: Search) -> Live:
        """The answers to all questions for *request* as one."""
        merged = Live(Candidates((), {}), (), {})
        for query in self._queries(request, search):
            live = self._ask(query, limit, search)
            new = [option for option in live.ordered if option[1] not in merged.hosts]
            answer = Candidates(
                merged.answer.candidates + live.answer.candidates, {**merged.answer.summaries, **live.answer.summaries}
            )
            merged = Live(answer, (*merged.ordered, *new), {**merged.hosts, **live.hosts})
        return merged

    def _why_not_all(self, chosen: BatchSet, fitting: int, search: Search) -> str:
        count, missing = chosen.request.count, len(chosen.missing())
        there = f"; {len(chosen.placed)} of the set of {count} are there already" if chosen.placed else ""
        if not fitting:
            return self._why_not(chosen.request, search) + there
        how = ""
        if search.group and search.group.policy in (GroupPolicy.ANTI_AFFINITY, GroupPolicy.AFFINITY):
            apart = "each on a host of its own" if search.group.policy is GroupPolicy.ANTI_AFFINITY else "all on one host"
            how = f" {apart}, as the group {search.group.name} asks"
        each = describe(chosen.request.resources)
        return f"no room for {missing} instances of {each}{how}: {fitting} of them would fit{there}; see: eschedule hosts"

    def _claim(self, chosen: BatchSet, plan: list[tuple[UUID, Option, Live]], search: Search) -> bool:
        """Claim all that is planned; whether it was refused. Claims of an earlier run are taken where they are instead."""
        self._on_step(f"claiming {describe(chosen.request.resources)} for each of {len(plan)}")
        with search.measured("claim", self._clock):
            claimed = self._claims.claim_all({uuid: candidate.allocations for uuid, (candidate, _), _ in plan})
        if isinstance(claimed, Refusal):
            search.was_contended |= claimed is Refusal.CONTENDED
            return True
        own = {provider for _, (_, provider), _ in plan} if search.group and search.group.keeps_apart else set()
        spare: dict[int, tuple[Alternate, ...]] = {}  # by answer: all plans of a round have the same, most often
        for number, (uuid, (_, planned), live) in enumerate(plan):
            if uuid in claimed:
                is_as_planned = claimed[uuid].made_here or planned in claimed[uuid].allocations
                provider, host = (planned, live.hosts[planned]) if is_as_planned else self._place_of(claimed[uuid])
                if id(live) not in spare:
                    spare[id(live)] = live.alternates(search.group, but=own)
                alternates = _in_turn(spare[id(live)], number, but=provider)
                chosen.seats[uuid] = _Seat(chosen.members[uuid], uuid, claimed[uuid], provider, host, alternates)
        return False

    # -- recording --------------------------------------------------------------------------------------------------

    def _record(self, chosen: BatchSet, search: Search) -> None:
        """Record all that is claimed, until something is lost and has to be planned anew."""
        while chosen.seats and not chosen.missing():
            self._on_step(f"recording {len(chosen.placed)} of {len(chosen.members)} instances")
            search.wiring.begin()
            self._record_some(chosen, self._batch(chosen, search.wiring), search)

    def _batch(self, chosen: BatchSet, wiring: Wiring) -> list[tuple[_Seat, dict[str, str]]]:
        """Of what is claimed and not recorded as many as one transaction takes, with their keys."""
        batch: list[tuple[_Seat, dict[str, str]]] = []
        size, operations = 0, 1 + len(wiring.compares)  # the anchor of a group, and the networks
        for seat in chosen.seats.values():
            operations += OPERATIONS_EACH + wiring.addresses_each
            if batch and operations > OPERATIONS_PER_TRANSACTION:
                break
            puts = self._puts(self._spec(seat.request, seat.uuid, seat.claim, seat.alternates, wiring.wired()), seat.provider)
            size += sum(len(key) + len(value.encode()) for key, value in puts.items())
            if batch and size > BYTES_PER_TRANSACTION:
                break
            batch.append((seat, puts))
        return batch

    def _record_some(self, chosen: BatchSet, batch: list[tuple[_Seat, dict[str, str]]], search: Search) -> None:
        """Record *batch* by one transaction; seats that are lost leave ``chosen.seats``.

        Raises:
            Conflict: a name or uuid is taken.
            EcomputeError: it was not recorded; ``StoreUnavailable`` may leave that open.
        """
        seats = [seat for seat, _ in batch]
        puts = {key: value for _, own in batch for key, value in own.items()}
        named = ((seat.uuid, seat.request.instance_name(seat.uuid), seat.provider) for seat in seats)
        notes = {key: value for one in named for key, value in self._notes(*one).items()}
        found: Mapping[str, Versioned] = search.group.items if search.group else {}
        backoff = Backoff(0.01, 0.3, random=self._dice.random)
        for _ in range(GROUP_TRIES if search.group else STORE_TRIES):
            if self._drop_gone(chosen, seats):
                return
            try:
                joining = self._joining(seats, search, found)
                live = [seat.provider for seat in seats if seat.claim.made_here]
                self._store.commit(self._transaction(puts, joining, live, search.wiring, notes))
            except GroupTaken:
                self._drop_barred(chosen, seats, search, found)
                return
            except Conflict:
                found = self._store.get_many([*self._keys_in_question(seats, search), *search.wiring.keys_of(puts)])
                if self._drop_refused(chosen, seats, found):
                    return
                if search.wiring.learn(found):
                    self._sleep(backoff.next())
                    return
            else:
                for seat, own in batch:
                    self._note_written(chosen, seat)
                    search.wiring.recorded(own, seat.uuid)
                return
            self._sleep(backoff.next())
        raise Transient(f"{len(seats)} instances could not be recorded: their keys kept changing; try again")

    def _note_written(self, chosen: BatchSet, seat: _Seat) -> None:
        chosen.placed[seat.uuid] = Placed(seat.uuid, seat.request.instance_name(seat.uuid), seat.provider, seat.host)
        chosen.written.append(seat.uuid)
        del chosen.seats[seat.uuid]

    def _joining(self, seats: Iterable[_Seat], search: Search, found: Mapping[str, Versioned]) -> GroupChange:
        if search.group is None:
            return GroupChange()
        return grouping.join_all(self._keys, search.group, [(seat.provider, seat.uuid) for seat in seats], found)

    def _keys_in_question(self, seats: list[_Seat], search: Search) -> list[str]:
        """What may have refused the transaction."""
        keys = self._keys
        own = [key for s in seats for key in (keys.instance(s.uuid), keys.name(s.request.instance_name(s.uuid)))]
        hosts = {seat.provider for seat in seats}
        return own + [keys.host(provider) for provider in hosts] + grouping.keys_to_read(keys, search.group, hosts)

    def _drop_gone(self, chosen: BatchSet, seats: list[_Seat]) -> bool:
        """Ask after claims that this program slept over; whether there were any, so that the seats are not what they were."""
        stale = {claim.consumer for claim in self._claims.stale(seat.claim for seat in seats)}
        for seat in seats:
            if seat.uuid in stale:
                fresh = self._claims.renewed(seat.claim)
                if fresh is None:
                    del chosen.seats[seat.uuid]
                else:
                    chosen.seats[seat.uuid] = dataclasses.replace(seat, claim=fresh)
        return bool(stale)

    def _drop_barred(self, chosen: BatchSet, seats: list[_Seat], search: Search, found: Mapping[str, Versioned]) -> None:
        """Give back the claims of those whom the group does not let be where they are."""
        allowed: list[_Seat] = []
        for seat in seats:
            try:
                self._joining([*allowed, seat], search, found)
                allowed.append(seat)
            except GroupTaken:
                if not seat.claim.made_here:
                    raise Transient(left_by_an_earlier_run(seat.request.instance_name(seat.uuid), seat.host)) from None
                self._give_back(seat.claim)
                del chosen.seats[seat.uuid]

    def _drop_refused(self, chosen: BatchSet, seats: list[_Seat], found: Mapping[str, Versioned]) -> bool:
        """Make of a refused transaction what the keys as *found* say; False where nothing speaks against it any more.

        Raises:
            Conflict: a name or uuid is taken.
        """
        before = len(chosen.seats)
        self._note_recorded(chosen, [seat.uuid for seat in seats], found)
        for seat in seats:
            if seat.uuid in chosen.seats and seat.claim.made_here and self._keys.host(seat.provider) not in found:
                self._give_back(seat.claim)
                del chosen.seats[seat.uuid]
        return len(chosen.seats) < before

    # -- taking back ------------------------------------------------------------------------------------------------

    def _undo(self, chosen: BatchSet) -> None:
        """Take back what this run has made: what it recorded is to be destroyed, what it only claimed is given back."""
        if chosen.written:
            self._on_step(f"taking back {len(chosen.written)} instances")
        for uuid in chosen.written:
            try:
                changes.change(self._store, self._keys, uuid, changes.destroyed, act=self._act, sleep=self._sleep)
            except EcomputeError as error:
                name = chosen.placed[uuid].name
                self._on_warning(
                    f"{name} is recorded and could not be taken back ({error}); remove it: eschedule destroy {name}"
                )
        for seat in chosen.seats.values():
            self._give_back(seat.claim)
        chosen.written.clear()
        chosen.seats.clear()


def _in_turn(others: tuple[Alternate, ...], number: int, *, but: UUID) -> tuple[Alternate, ...]:
    """As many of *others* as a spec takes, beginning at *number*: not all are to run to one host when theirs fails."""
    turn = number % len(others) if others else 0
    next_ones = (others[turn:] + others[:turn])[: ALTERNATES_AT_MOST + 1]
    return tuple(other for other in next_ones if other.provider != but)[:ALTERNATES_AT_MOST]


def _is_unknown(error: EcomputeError) -> bool:
    """Whether something that was asked for may have happened, so that it has to be kept for a repeat."""
    if isinstance(error, PlacementUnavailable):
        return error.outcome_unknown
    return isinstance(error, StoreUnavailable) and error.may_have_happened
