"""Claiming a host's resources in Placement and giving them back, with every doubtful answer resolved by reading.

A claim is a Placement consumer whose uuid is the instance's. ``scheduler`` decides which host; this module knows only
what Placement's answers mean. Nothing here touches etcd.
"""

from __future__ import annotations

import enum
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from common.errors import Conflict, NoCapacity, PlacementUnavailable
from common.placement_types import Allocations, Consumer, plain
from common.retry import Backoff, Deadline

if TYPE_CHECKING:
    from common.placement import Placement

log = logging.getLogger(__name__)

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
    """

    consumer: UUID
    allocations: dict[UUID, dict[str, int]]
    made_here: bool

    @property
    def resources(self) -> dict[str, int]:
        return totals(self.allocations)


class Claims:
    """Makes and releases claims.

    Args:
        deadline_seconds: how long a claim with an unknown outcome is asked after before it is left as it may be.
    """

    def __init__(
        self, placement: Placement, *, deadline_seconds: float, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep, dice: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._placement = placement
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
        deadline = Deadline(self._deadline_seconds, self._clock)
        backoff = Backoff(0.05, 1.0, random=self._dice.random)
        conflicts, in_doubt = 0, False
        while True:
            try:
                self._placement.claim(consumer, allocations)
                return Holding(consumer, plain(allocations), made_here=True)
            except NoCapacity:
                return Refusal.NO_ROOM
            except Conflict:
                # Found after an answer of our own was lost, it is most likely that claim: ours to give back.
                if found := self._found(consumer, allocations, made_here=in_doubt):
                    return found
                conflicts += 1
                if conflicts >= TRIES_PER_CANDIDATE:
                    return Refusal.CONTENDED
            except PlacementUnavailable as error:
                if not error.outcome_unknown:
                    raise
                in_doubt = True
                if found := self._found(consumer, allocations, made_here=True):
                    return found
                if deadline.expired:
                    raise
            self._sleep(min(backoff.next(), max(0.0, deadline.remaining())))

    def release(self, holding: Holding) -> bool:
        """Give *holding* back where it is still what it was; False where Placement did not answer.

        Then it stays until its host finds that it has no instance, after ten minutes.
        """
        try:
            held = self._placement.consumer(holding.consumer)
            if held is not None and plain(held.allocations) == holding.allocations:
                self._placement.release(holding.consumer, held.generation)
        except Conflict:
            log.info("the claim of %s changed while it was released; left as it is", holding.consumer)
        except PlacementUnavailable as error:
            log.info("the claim of %s was not released: %s", holding.consumer, error)
            return False
        return True

    def _found(self, consumer: UUID, allocations: Allocations, *, made_here: bool) -> Holding | None:
        held: Consumer | None = self._placement.consumer(consumer)
        if held is None:
            return None
        if not self._placement.is_ours(held) or totals(held.allocations) != totals(allocations):
            raise Conflict(
                f"the uuid {consumer} holds {describe(totals(held.allocations))} in Placement as {held.consumer_type}, which is"
                " not this request; take another --uuid"
            )
        return Holding(consumer, plain(held.allocations), made_here=made_here)


def totals(allocations: Allocations) -> dict[str, int]:
    """The amount per resource class over all providers."""
    total: Counter[str] = Counter()
    for amounts in allocations.values():
        total.update(amounts)
    return dict(total)


def describe(resources: Mapping[str, int]) -> str:
    return ",".join(f"{resource_class}:{amount}" for resource_class, amount in sorted(resources.items())) or "nothing"
