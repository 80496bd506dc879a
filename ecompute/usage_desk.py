"""Answers the letters by which clients ask what this host's guests use, and whether it hears at all.

Nothing is measured while nobody asks. Who asks in the same moment as another gets the same answer, so that a host that many
look at does no more than for one. Rates are the clients' business: the answer has counters, and the host's own time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import UUID

from common.errors import EcomputeError
from common.findings import Letter
from common.host_letters import MOST_GUESTS, PING, USAGE, HostUsage, Pong
from ecompute.hypervisor import Hypervisor

FRESH_SECONDS = 0.5


class UsageDesk:
    """Tells of one host's guests.

    Args:
        is_known: whether an instance is one of this host's; others' guests are nobody's business.
        clock: one that only goes forward.
    """

    def __init__(
        self, hypervisor: Hypervisor, is_known: Callable[[UUID], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hypervisor, self._is_known, self._clock = hypervisor, is_known, clock
        self._lock = threading.Lock()
        self._last: tuple[float, str] | None = None

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*, as text that fits; None where it is none of ours."""
        if letter.kind == PING:
            return Pong().to_json()
        if letter.kind != USAGE:
            return None
        with self._lock:
            if self._last is None or self._clock() - self._last[0] > FRESH_SECONDS:
                self._last = self._clock(), self._measured().to_json()
            return self._last[1]

    def _measured(self) -> HostUsage:
        try:
            found = self._hypervisor.usage()
        except EcomputeError as error:
            return HostUsage(problem=str(error)[:500])
        at_ns = round(self._clock() * 1e9)
        ours = [usage for usage in found if self._is_known(usage.uuid)]
        return HostUsage(at_ns, tuple(ours[:MOST_GUESTS]), is_cut=len(ours) > MOST_GUESTS)
