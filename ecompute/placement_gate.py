"""Placement for the workers: while it is away one of them asks, and the others hear at once that it is.

Without it a few deletions that wait for Placement would hold all workers in calls that nobody answers, and guests that need
nothing of Placement would wait as well. It repeats nothing and decides nothing. Used by the facts and the builder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar
from uuid import UUID

from common.errors import PlacementUnavailable
from common.placement import Allocations, Claim, Consumer

T = TypeVar("T")


class Claims(Protocol):
    """What is asked of Placement for one instance; ``common.placement.Placement`` has it."""

    def consumer(self, uuid: UUID) -> Consumer | None: ...

    def assert_allocation(self, consumer: UUID, allocations: Allocations) -> None: ...

    def release(self, consumer: UUID, generation: int) -> None: ...

    def replace_consumers(self, claims: Iterable[Claim]) -> None: ...

    def is_ours(self, consumer: Consumer) -> bool: ...


class PlacementGate:
    """*placement*, asked by one thread at a time from its first missing answer until it answers again.

    Args:
        on_outcome: told after each question what was in the way; "" = it answered.
    """

    def __init__(self, placement: Claims, on_outcome: Callable[[str], None] = lambda _: None) -> None:
        self._placement, self._on_outcome = placement, on_outcome
        self._lock = threading.Lock()
        self._problem = ""
        self._is_probed = False

    def consumer(self, uuid: UUID) -> Consumer | None:
        return self._ask(lambda: self._placement.consumer(uuid))

    def assert_allocation(self, consumer: UUID, allocations: Allocations) -> None:
        self._ask(lambda: self._placement.assert_allocation(consumer, allocations))

    def release(self, consumer: UUID, generation: int) -> None:
        self._ask(lambda: self._placement.release(consumer, generation))

    def replace_consumers(self, claims: Iterable[Claim]) -> None:
        self._ask(lambda: self._placement.replace_consumers(claims))

    def is_ours(self, consumer: Consumer) -> bool:
        return self._placement.is_ours(consumer)

    def _ask(self, call: Callable[[], T]) -> T:
        with self._lock:
            is_probe = bool(self._problem)
            if is_probe and self._is_probed:
                raise PlacementUnavailable(self._problem)
            self._is_probed = is_probe
        problem = ""
        try:
            return call()
        except PlacementUnavailable as error:
            problem = str(error)
            raise
        finally:
            with self._lock:
                self._problem = problem
                if is_probe:
                    self._is_probed = False
            self._on_outcome(problem)
