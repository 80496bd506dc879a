"""Since when something has been going on, per instance, by the monotonic clock of this process.

Seven things are waited for: a guest to follow its power button, or to let go of a disk, the client of a claim without a
request to come back, a guest that was started to stay up, a start that failed for good, or memory that could not be saved, to
be worth another try, and a client to write the request that it has claimed other amounts for. Hosts that turned out not to
take an instance are kept here as well. A restart forgets it all, which only makes us wait a little longer, or try once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from ecompute.machine import Problem

PRESS_AGAIN_SECONDS = 10.0  # a guest that is still booting ignores the power button

STANDS_AFTER_SECONDS = 60.0  # up for so long, a guest was started well; going down later is another story


SUSPEND_AGAIN_SECONDS = 60.0  # a guest stands still while its memory is written, be it in vain

SLOW_RETRY_SECONDS = 300.0  # a guest that is wanted up and did not start may start once its host is well again


class Patience:
    """Since when something has been going on, per instance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._first_press: dict[UUID, float] = {}
        self._last_press: dict[UUID, float] = {}
        self._orphan_since: dict[UUID, float] = {}
        self._orphan_generations: dict[UUID, int] = {}
        self._started: dict[UUID, float] = {}
        self._gave_up: dict[UUID, float] = {}
        self._let_go: dict[UUID, float] = {}
        self._ruled_out: dict[UUID, dict[UUID, str]] = {}
        self._not_suspended: dict[UUID, tuple[int, float, Problem]] = {}  # for which spec, since when, and why
        self._wrong_claims: dict[UUID, tuple[int, float]] = {}  # the generation that was seen, and since when

    def pressed(self, uuid: UUID) -> None:
        """The power button was pressed just now."""
        with self._lock:
            now = self._clock()
            self._first_press.setdefault(uuid, now)
            self._last_press[uuid] = now

    def button(self, uuid: UUID, grace_seconds: float) -> tuple[bool, bool]:
        """Whether to press (again), and whether the grace time is over."""
        with self._lock:
            now = self._clock()
            first, last = self._first_press.get(uuid), self._last_press.get(uuid)
        if first is None or last is None:
            return True, False
        return now - last >= PRESS_AGAIN_SECONDS, now - first >= grace_seconds

    def at_rest(self, uuid: UUID) -> None:
        """No power-off is under way."""
        with self._lock:
            self._first_press.pop(uuid, None)
            self._last_press.pop(uuid, None)

    def orphan_seconds(self, uuid: UUID, *, is_orphan: bool) -> float:
        """How long *uuid* has been seen as an orphan without a break."""
        with self._lock:
            if not is_orphan:
                self._orphan_since.pop(uuid, None)
                self._orphan_generations.pop(uuid, None)
                return 0.0
            return self._clock() - self._orphan_since.setdefault(uuid, self._clock())

    def orphan_stands_at(self, uuid: UUID, generation: int) -> bool:
        """Whether the claim was last seen at this *generation*, too; else somebody took it up, and the wait begins anew."""
        with self._lock:
            known = self._orphan_generations.get(uuid, generation)
            self._orphan_generations[uuid] = generation
            if known != generation:
                self._orphan_since[uuid] = self._clock()
            return known == generation

    def is_orphan(self, uuid: UUID) -> bool:
        """Whether *uuid* was an orphan when it was last seen."""
        with self._lock:
            return uuid in self._orphan_since

    def orphans(self) -> set[UUID]:
        """Every one that was an orphan when it was last seen."""
        with self._lock:
            return set(self._orphan_since)

    def started(self, uuid: UUID) -> None:
        """The guest was started just now."""
        with self._lock:
            self._started[uuid] = self._clock()

    def has_stood(self, uuid: UUID) -> bool:
        """Whether the last start of the guest was long ago, or before this process began."""
        with self._lock:
            return self._clock() - self._started.get(uuid, float("-inf")) >= STANDS_AFTER_SECONDS

    def gave_up(self, uuid: UUID) -> None:
        """The guest's start failed for good, now or when it was last said so."""
        with self._lock:
            self._gave_up.setdefault(uuid, self._clock())

    def tries_again(self, uuid: UUID) -> None:
        """The guest is started once more; should that fail, the wait begins anew."""
        with self._lock:
            self._gave_up.pop(uuid, None)

    def slow_retry_is_due(self, uuid: UUID) -> bool:
        with self._lock:
            return self._clock() - self._gave_up.get(uuid, float("inf")) >= SLOW_RETRY_SECONDS

    def wrong_claim_seconds(self, uuid: UUID, generation: int | None) -> float:
        """How long the instance's claim has held at this *generation* what it should not; None: it holds what it should."""
        with self._lock:
            if generation is None:
                self._wrong_claims.pop(uuid, None)
                return 0.0
            known, since = self._wrong_claims.get(uuid, (None, 0.0))
            if known != generation:
                since = self._clock()
                self._wrong_claims[uuid] = generation, since
            return self._clock() - since

    def asked_to_let_go(self, uuid: UUID) -> None:
        """The guest was asked just now to let go of a disk."""
        with self._lock:
            self._let_go[uuid] = self._clock()

    def was_asked_to_let_go(self, uuid: UUID, seconds: float) -> bool:
        """Whether that was less than *seconds* ago."""
        with self._lock:
            return self._clock() - self._let_go.get(uuid, float("-inf")) < seconds

    def could_not_suspend(self, uuid: UUID, revision: int, problem: Problem) -> None:
        """The guest's memory could not be saved just now, as the spec at *revision* asks for."""
        with self._lock:
            self._not_suspended[uuid] = revision, self._clock(), problem

    def suspend_problem(self, uuid: UUID, revision: int) -> Problem | None:
        """Why it could not a short while ago, for that very spec."""
        with self._lock:
            known, since, problem = self._not_suspended.get(uuid, (0, 0.0, None))
            return problem if known == revision and self._clock() - since < SUSPEND_AGAIN_SECONDS else None

    def rule_out(self, uuid: UUID, provider: UUID, why: str) -> None:
        """*provider* does not take the instance."""
        with self._lock:
            self._ruled_out[uuid] = {**self._ruled_out.get(uuid, {}), provider: why}

    def ruled_out(self, uuid: UUID) -> Mapping[UUID, str]:
        """The hosts that do not take the instance, and why."""
        with self._lock:
            return self._ruled_out.get(uuid, {})

    def forget(self, uuid: UUID) -> None:
        """The instance is gone."""
        self.at_rest(uuid)
        with self._lock:
            for known in (self._started, self._gave_up, self._let_go, self._ruled_out, self._wrong_claims, self._not_suspended):
                known.pop(uuid, None)
