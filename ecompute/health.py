"""Which of the services that this host needs are there, said once when one goes away and once when it is back.

Whoever asks a service tells ``Health`` how that went; every retry may do so, only a change is logged. It also makes the
sentence that the host record carries and the numbers that metrics show. It asks nobody anything and decides nothing: what
goes on without a service is the affair of whoever needs it.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import EcomputeError, HypervisorUnavailable, NotLive, PlacementUnavailable, StoreUnavailable

logger = logging.getLogger(__name__)

ETCD, PLACEMENT, LIBVIRT, INVENTORY, NETWORK = "etcd", "placement", "libvirt", "inventory", "network"
SERVICES = (ETCD, PLACEMENT, LIBVIRT)
_AWAY = {ETCD: "etcd is away", PLACEMENT: "Placement is away", LIBVIRT: "libvirt is away"}
_BACK = {ETCD: "etcd is back", PLACEMENT: "Placement is back", LIBVIRT: "libvirt is back"}

# Of a service that comes and goes, so many outages are said within so long; the others only if they last.
MOST_SAID, SAID_WITHIN_SECONDS, LASTS_SECONDS = 3, 600.0, 60.0


@dataclass(frozen=True)
class ServiceState:
    """How a service is at the moment, and for how long it has been so."""

    is_up: bool
    seconds: float


@dataclass
class _Service:
    problem: str = ""  # "" = well
    since: float = 0.0  # when the present state began, by our clock
    since_wall: str = ""
    is_said: bool = False  # the present outage was logged


def service_of(error: EcomputeError) -> str:
    """The service whose absence *error* tells of; "" where it tells of none."""
    if isinstance(error, StoreUnavailable):
        return ETCD
    if isinstance(error, PlacementUnavailable):
        return PLACEMENT
    return LIBVIRT if isinstance(error, HypervisorUnavailable) else ""


class Health:
    """The state of all services. Safe to use from any thread; ``report`` takes no time.

    Args:
        clock: monotonic seconds.
        now: wall time as ISO 8601 text, for people.
        on_back: told the name of a service that was away and is back.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, now: Callable[[], str],
        on_back: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._clock, self._now, self._on_back = clock, now, on_back
        self._lock = threading.Lock()
        begun = clock()
        self._services = {name: _Service(since=begun) for name in (*SERVICES, INVENTORY, NETWORK)}
        self._said: dict[str, collections.deque[float]] = {}
        self.changed = threading.Event()
        """Set at every change; whoever waits for it clears it."""

    def report(self, service: str, problem: str) -> None:
        """*service* was asked, and this was in the way; "" = it answered."""
        with self._lock:
            known = self._services.setdefault(service, _Service(since=self._clock()))
            is_change = bool(problem) != bool(known.problem)
            if is_change:
                lasted = self._clock() - known.since
                known.problem, known.since, known.since_wall = problem, self._clock(), self._now()
                if not problem and known.is_said:
                    known.is_said = False
                    logger.info("%s after %.0f s", _BACK.get(service, f"{service} is well again"), lasted)
            if known.problem and not known.is_said:
                self._say_away(service, known)
        if is_change:
            self.changed.set()
            if not problem:
                self._on_back(service)

    def note(self, error: EcomputeError) -> bool:
        """Take in what a call met with; True where it tells of an outage that is spoken of here, so that nobody else need."""
        service = service_of(error)
        if isinstance(error, NotLive):
            return True  # the heartbeat makes the host key anew, and says so
        if service in (ETCD, PLACEMENT):
            self.report(service, str(error))
        # One domain can be busy while libvirt is well: whether that is away is told by its connection alone.
        return bool(service) and self.is_away(service)

    def is_away(self, service: str) -> bool:
        with self._lock:
            known = self._services.get(service)
            return bool(known and known.problem)

    def message(self) -> str:
        """Every service that is away, since when and why, for people; "" when all is well."""
        with self._lock:
            away = [(name, known) for name, known in self._services.items() if known.problem]
            return "; ".join(f"{_AWAY.get(name, name)} since {known.since_wall}: {known.problem}" for name, known in away)

    def states(self) -> dict[str, ServiceState]:
        """Every service that can be away."""
        with self._lock:
            now = self._clock()
            return {name: ServiceState(not known.problem, now - known.since) for name, known in self._services.items()}

    def _say_away(self, service: str, known: _Service) -> None:
        said = self._said.setdefault(service, collections.deque(maxlen=MOST_SAID))
        now = self._clock()
        is_often = len(said) == MOST_SAID and now - said[0] < SAID_WITHIN_SECONDS
        if is_often and now - known.since < LASTS_SECONDS:
            return
        said.append(now)
        known.is_said = True
        logger.warning("%s: %s", _AWAY.get(service, service), known.problem)
