"""Claiming a host's resources in Placement and giving them back, with every doubtful answer resolved by reading.

A claim is a Placement consumer whose uuid is the instance's. ``scheduler`` decides which host; this module knows only
what Placement's answers mean. Nothing here touches etcd.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from common.errors import Conflict, NoCapacity, PlacementUnavailable
from common.placement_types import Allocations, Claim, Consumer, plain
from common.retry import Backoff, Deadline, seconds_since_boot

if TYPE_CHECKING:
    from common.placement import Placement

log = logging.getLogger(__name__)
T = TypeVar("T")

FRESH_SECONDS = 30.0  # a claim without an instance is released by others when it is older: its host, or an operator's audit
FIRST_GENERATION = 1  # of a claim that was just made
TRIES_PER_CANDIDATE = 3  # while Placement says that somebody else is changing the same records


class Refusal(enum.Enum):
    """Why a candidate was not claimed."""

    NO_ROOM = "its room was taken meanwhile"
    CONTENDED = "others kept changing the same records"


@dataclass(frozen=True)
class Holding:
    """What an instance holds in Placement.

    Args:
        made_here: this run made it, so this run may give it back; a claim that was found may be somebody else's business.
        seen_at: when it was certainly not older than now, in seconds since the machine started.
        generation: as it was left; another one tells that another run of the same request has taken it up since.
    """

    consumer: UUID
    allocations: dict[UUID, dict[str, int]]
    made_here: bool
    generation: int = FIRST_GENERATION
    seen_at: float = 0.0

    @property
    def resources(self) -> dict[str, int]:
        return totals(self.allocations)


class Claims:
    """Makes and releases claims.

    Args:
        deadline_seconds: how long a claim with an unknown outcome is asked after before it is left as it may be.
        boot_clock: tells how old a claim is, also over a sleep of the machine.
    """

    def __init__(
        self, placement: Placement, *, deadline_seconds: float, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep, dice: random.Random | None = None,
        boot_clock: Callable[[], float] = seconds_since_boot,
    ) -> None:  # fmt: skip
        self._placement = placement
        self._boot_clock = boot_clock
        self._deadline_seconds = deadline_seconds
        self._clock = clock
        self._sleep = sleep
        self._dice = dice or random.Random()  # noqa: S311 - jitter

    def claim(self, consumer: UUID, allocations: Allocations) -> Holding | Refusal:
        """Holding *allocations* for *consumer*, or say why they are not to be had.

        A claim that *consumer* holds already is answered instead, whatever host it is on.

        Raises:
            Conflict: the uuid holds something else, or is not ours.
            PlacementUnavailable: no answer; with ``outcome_unknown`` the claim may have been made.
        """
        begun = self._boot_clock()

        def ask() -> Holding:
            self._placement.claim(consumer, allocations)
            return Holding(consumer, plain(allocations), made_here=True, seen_at=begun)

        return self._settled(ask, lambda made_here: self._found(consumer, allocations, made_here=made_here))

    def claim_all(self, wanted: Mapping[UUID, Allocations]) -> dict[UUID, Holding] | Refusal:
        """Hold all that is *wanted*, by consumer, or nothing of it.

        Where some of the consumers hold something already, these claims are answered and nothing is claimed for the others.

        Raises:
            Conflict: a uuid holds something else, or is not ours.
            PlacementUnavailable: no answer; with ``outcome_unknown`` the claims may have been made.
        """
        begun = self._boot_clock()

        def ask() -> dict[UUID, Holding]:
            self._placement.replace_consumers([Claim(consumer, what) for consumer, what in wanted.items()])
            return {c: Holding(c, plain(what), made_here=True, seen_at=begun) for c, what in wanted.items()}

        return self._settled(ask, lambda made_here: self._found_of(wanted, made_here=made_here) or None)

    def left_behind(self, consumer: UUID, resources: Mapping[str, int]) -> Holding | None:
        """What an earlier run of the same request claimed of *resources* for *consumer*, wherever it is.

        Raises:
            Conflict: it holds something else, or is not ours.
        """
        return self._found(consumer, {consumer: resources}, made_here=False)

    def stale(self, holdings: Iterable[Holding]) -> list[Holding]:
        """Those that are so old that others may take them for left behind."""
        now = self._boot_clock()
        return [holding for holding in holdings if now - holding.seen_at > FRESH_SECONDS]

    def renewed(self, holding: Holding) -> Holding | None:
        """*holding* as it stands, written anew, so that whoever was about to release it finds it changed; None if it is gone.

        Raises:
            PlacementUnavailable: no answer.
        """
        first, in_doubt = None, False
        for _ in range(TRIES_PER_CANDIDATE):
            seen_at = self._boot_clock()
            held = self._placement.consumer(holding.consumer)
            if held is None or plain(held.allocations) != holding.allocations:
                return None
            if first not in (None, held.generation):  # ourselves, or somebody else, as another run of the same request
                return dataclasses.replace(holding, seen_at=seen_at, generation=held.generation if in_doubt else first)
            first = held.generation
            try:
                self._placement.replace_consumers([Claim(holding.consumer, held.allocations, held.generation)])
            except NoCapacity:  # of a host that has less than it had: what is held is held
                return dataclasses.replace(holding, seen_at=seen_at, generation=held.generation)
            except Conflict:
                continue
            except PlacementUnavailable as error:
                if not error.outcome_unknown:
                    raise
                in_doubt = True
                continue
            return dataclasses.replace(holding, seen_at=seen_at, generation=held.generation + 1)
        raise PlacementUnavailable(f"the claim of {holding.consumer} could not be renewed: Placement did not say that it was")

    def release(self, holding: Holding) -> bool:
        """Give *holding* back where it is still as it was left; False where Placement did not answer.

        Then it stays until its host finds that it has no instance, after ten minutes. One that was written anew meanwhile is
        about to be used by another run of the same request.
        """
        try:
            held = self._placement.consumer(holding.consumer)
            if held is not None and held.generation == holding.generation and plain(held.allocations) == holding.allocations:
                self._placement.release(holding.consumer, held.generation)
        except Conflict:
            log.info("the claim of %s changed while it was released; left as it is", holding.consumer)
        except PlacementUnavailable as error:
            log.info("the claim of %s was not released: %s", holding.consumer, error)
            return False
        return True

    def _settled(self, ask: Callable[[], T], find: Callable[[bool], T | None]) -> T | Refusal:
        """What *ask* answers, or what *find* finds to be held, given whether this run may have made it; until one is certain.

        Raises:
            PlacementUnavailable: it was certainly not done; or, with ``outcome_unknown``, nothing was to be learnt in time.
        """
        deadline = Deadline(self._deadline_seconds, self._clock)
        backoff = Backoff(0.05, 1.0, random=self._dice.random)
        conflicts, in_doubt = 0, False
        while True:
            try:
                return ask()
            except NoCapacity:
                return Refusal.NO_ROOM
            except Conflict:
                # Found after an answer of our own was lost, it is most likely that claim: ours to give back.
                if found := find(in_doubt):
                    return found
                conflicts += 1
                if conflicts >= TRIES_PER_CANDIDATE:
                    return Refusal.CONTENDED
            except PlacementUnavailable as error:
                if not error.outcome_unknown:
                    raise
                in_doubt = True
                if found := find(True):
                    return found
                if deadline.expired:
                    raise
            self._sleep(min(backoff.next(), max(0.0, deadline.remaining())))

    def _found(self, consumer: UUID, allocations: Allocations, *, made_here: bool) -> Holding | None:
        held: Consumer | None = self._placement.consumer(consumer)
        if held is None:
            return None
        if not self._placement.is_ours(held) or totals(held.allocations) != totals(allocations):
            raise Conflict(
                f"the uuid {consumer} holds {describe(totals(held.allocations))} in Placement as {held.consumer_type}, which is"
                " not this request; take another --uuid"
            )
        found = Holding(consumer, plain(held.allocations), made_here, held.generation, self._boot_clock())
        # One that an earlier run left behind may be about to be released.
        return found if made_here else self.renewed(found)

    def _found_of(self, wanted: Mapping[UUID, Allocations], *, made_here: bool) -> dict[UUID, Holding]:
        """What the consumers in *wanted* hold already."""
        found = {c: self._found(c, allocations, made_here=made_here) for c, allocations in wanted.items()}
        return {consumer: holding for consumer, holding in found.items() if holding is not None}


def totals(allocations: Allocations) -> dict[str, int]:
    """The amount per resource class over all providers."""
    total: Counter[str] = Counter()
    for amounts in allocations.values():
        total.update(amounts)
    return dict(total)


def describe(resources: Mapping[str, int]) -> str:
    return ",".join(f"{resource_class}:{amount}" for resource_class, amount in sorted(resources.items())) or "nothing"
