"""The way of a request for a volume: a host with room from Placement, a claim there, the volume in etcd. Prints nothing.

As for instances, each step can be repeated after a crash or a lost answer under the same uuid, and then goes on from where it
was; a claim that this run made and does not use is given back, one whose use is unknown is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from common.errors import Conflict, EcomputeError, NoCapacity, StoreUnavailable, Transient
from common.model import ImageRef
from common.placement_types import Candidate
from common.retry import Backoff
from common.store import Compare, Transaction
from common.text import utc_text
from common.volume_records import VolumeDesired, VolumePlace, VolumeSpec
from eschedule import whynot
from eschedule.claims import Holding, Refusal
from eschedule.ordering import in_order
from eschedule.planning import STORE_TRIES, Planner
from eschedule.query import Query
from eschedule.request import Request


@dataclass(frozen=True)
class VolumeRequest:
    """What somebody asks for; every field was checked.

    Args:
        provider: the host that it is to be on; None for any.
        uuid: None derives it from *request_id*, else a new one is made.
    """

    name: str
    size_gib: int
    provider: UUID | None = None
    uuid: UUID | None = None
    request_id: str | None = None

    def digest(self) -> str:
        """A fingerprint of what is asked for; who asks, when, and under which uuid are no part of it."""
        parts = {"name": self.name, "size_gib": self.size_gib, "provider": str(self.provider or "")}
        return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"

    def volume_uuid(self, prefix: str, new_uuid: Callable[[], UUID]) -> UUID:
        """As asked for, or computed from the request id and the deployment's *prefix*, or new."""
        if self.uuid is not None:
            return self.uuid
        if self.request_id is not None:
            return uuid5(uuid5(NAMESPACE_URL, f"etcd-compute:{prefix}:volume"), self.request_id)
        return new_uuid()

    @property
    def query(self) -> Query:
        query = Query((("resources", f"DISK_GB:{self.size_gib}"),))
        return query.on_host(self.provider) if self.provider else query


@dataclass(frozen=True)
class PlacedVolume:
    """A volume that is recorded in etcd, which its host is to make."""

    place: VolumePlace
    host: str
    is_repeat: bool = False


class VolumeScheduler(Planner):
    """Creates volumes one by one; its ``placement`` makes claims of volumes."""

    def create(self, request: VolumeRequest) -> PlacedVolume:
        """Claim room for *request* and record the volume. The same request again answers the volume that is there.

        Raises:
            Conflict: the name or the uuid belongs to something else; nothing is left behind.
            NoCapacity: no live host has the room; the text says why not.
            StoreUnavailable, PlacementUnavailable: what came of it is not known: repeat it with the same uuid.
            Interrupted: a signal came before it was recorded; the claim was given back.
        """
        volume = request.volume_uuid(self._keys.prefix, self._new_uuid)
        self._on_step("reading etcd")
        if (known := self._known(request, volume)) is not None:
            return known
        lost, was_contended = set[UUID](), False
        for candidate, provider, host in self._options(request):
            with self._interruption.shield():
                self._interruption.check()
                self._on_step(f"claiming {request.size_gib} GB on {host}")
                claim = self._claims.claim(volume, candidate.allocations)
                if isinstance(claim, Refusal):
                    lost.add(provider)
                    was_contended |= claim is Refusal.CONTENDED
                    continue
                if placed := self._record(request, claim):
                    return placed
                lost.add(provider)
        with self._interruption.shield():
            left = self._claims.left_behind(volume, {"DISK_GB": request.size_gib})
            if left is not None and (placed := self._record(request, left)):
                return placed
        if was_contended:
            raise Transient(f"no host for {request.size_gib} GB: other requests kept changing the same ones; try again")
        raise NoCapacity(self._why_no_room(request, lost))

    def _known(self, request: VolumeRequest, volume: UUID) -> PlacedVolume | None:
        """The volume, if this very request made it before.

        Raises:
            Conflict: the name is another's, or was asked for differently.
        """
        item = self._store.get(self._keys.volume_name(request.name))
        if item is None:
            return None
        place = VolumePlace.parse(item.value)
        found = self._store.get(self._keys.volume(place.provider, place.uuid))
        spec = VolumeSpec.from_json(found.value) if found else None
        if place.uuid != volume or (spec is not None and spec.request_digest != request.digest()):
            raise Conflict(
                f"there is a volume {request.name} already; choose another name, or look at it: eschedule volume show "
                f"{request.name}"
            )
        if spec is not None and spec.desired is VolumeDesired.DELETED:
            raise Conflict(f"the volume {request.name} is being removed; try again when it is gone")
        hosts = self._hosts({place.provider})
        return PlacedVolume(place, hosts.get(place.provider, str(place.provider)), is_repeat=True)

    def _options(self, request: VolumeRequest) -> Iterator[tuple[Candidate, UUID, str]]:
        """Live candidates in the order of the policy: at first the limited answer, then, all of it lost, an unlimited one."""
        for limit in (self._limit, None):
            self._on_step("asking Placement for candidates")
            answer = self._placement.candidates(str(request.query.on_hosts()), limit)
            ordered = [(c, c.host(answer.summaries)) for c in in_order(answer, self._policy, self._dice)]
            hosts = self._hosts({provider for _, provider in ordered})
            yield from ((candidate, provider, hosts[provider]) for candidate, provider in ordered if provider in hosts)
            if not ordered:
                return

    def _record(self, request: VolumeRequest, claim: Holding) -> PlacedVolume | None:
        """Write the keys; None where another candidate has to be tried, and the claim was given back."""
        backoff = Backoff(0.01, 0.3, random=self._dice.random)
        for _ in range(STORE_TRIES):
            if self._interruption.is_pending:
                self._give_back(claim)
                self._interruption.check()
            fresh = self._claims.renewed(claim) if self._claims.stale([claim]) else claim
            if fresh is None:
                return None
            claim = fresh
            provider, host = self._place_of(claim)
            place = VolumePlace(provider, claim.consumer)
            try:
                self._store.commit(self._transaction_of(request, claim, place))
            except Conflict:
                if (found := self._refused(request, claim, place)) is not None:
                    return found
                if claim.made_here and self._store.get(self._keys.host(provider)) is None:
                    self._give_back(claim)
                    return None
            except EcomputeError as error:
                if not isinstance(error, StoreUnavailable) or not error.may_have_happened:
                    self._give_back(claim)
                raise  # where it may have happened the claim has to stay
            else:
                return PlacedVolume(place, host)
            self._sleep(backoff.next())
        self._give_back(claim)
        raise Transient(f"the volume {request.name} could not be recorded: its keys kept changing; try again")

    def _transaction_of(self, request: VolumeRequest, claim: Holding, place: VolumePlace) -> Transaction:
        spec = VolumeSpec(
            place.uuid, request.name, request.size_gib, request_digest=request.digest(), created_at=utc_text(self._now()),
            created_by=self._created_by,
        )  # fmt: skip
        puts = {
            self._keys.volume(place.provider, place.uuid): spec.to_json(),
            self._keys.volume_name(request.name): str(place),
        }
        compares = [Compare.absent(key) for key in puts]
        if claim.made_here:
            compares.append(Compare.present(self._keys.host(place.provider)))
        return Transaction(tuple(compares), puts)

    def _refused(self, request: VolumeRequest, claim: Holding, place: VolumePlace) -> PlacedVolume | None:
        """What to make of a transaction that did not hold: a volume of this uuid that is there now uses the claim.

        Raises:
            Conflict: the name or the uuid is another's; the claim was given back where it is nobody's.
        """
        item = self._store.get(self._keys.volume(place.provider, place.uuid))
        try:
            known = self._known(request, place.uuid)
        except Conflict:
            if item is None:
                self._give_back(claim)
            raise
        if known is None and item is not None:
            raise Conflict(f"the uuid {place.uuid} belongs to another volume; take another --uuid")
        return known

    def _why_no_room(self, request: VolumeRequest, lost: set[UUID]) -> str:
        self._on_step("asking why not")
        resources = {"DISK_GB": request.size_gib}
        asked = Request(query=str(request.query), resources=resources, image=ImageRef(""))
        try:
            return whynot.explain(
                asked, placement=self._placement, host_names=self._hosts, lost=frozenset(lost), group=None
            )  # fmt: skip
        except EcomputeError as error:
            return f"no host has {request.size_gib} GB of disk free; why could not be found out: {error}"
