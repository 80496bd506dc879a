"""The full look: every minute or so, and after every gap in the news, all instances are compared with the world.

Watch events and libvirt events can be lost; this makes a loss cost a minute instead of for ever. One list each of domains
and allocations serves all instances; only those that need something are handed to the workers. The same look keeps the
provider's inventory and traits equal to what the host has.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from uuid import UUID

from common.errors import EcomputeError, Transient
from common.placement import Placement
from ecompute.facts import Glimpse
from ecompute.hypervisor import Domain, Hypervisor
from ecompute.machine import Allocation
from ecompute.reconciler import Reconciler
from ecompute.statuses import Statuses
from ecompute.watcher import SpecWatcher

logger = logging.getLogger(__name__)
JITTER = 0.2  # of the period, either way, so that hosts that started together do not ask together


class Resync:
    """Looks at everything, now and then and when asked.

    Args:
        keep_inventory: called with all domains; makes Placement's view of the host equal to the host.
        on_outcome: called with "" after a look that went well, else with what was in the way.
    """

    def __init__(
        self, *, hypervisor: Hypervisor, placement: Placement, provider: UUID, specs: SpecWatcher, statuses: Statuses,
        reconciler: Reconciler, wake: Callable[[UUID], None], keep_inventory: Callable[[list[Domain]], None],
        every_seconds: float, on_outcome: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._hypervisor, self._placement, self._provider = hypervisor, placement, provider
        self._specs, self._statuses, self._reconciler, self._wake = specs, statuses, reconciler, wake
        self._keep_inventory, self._every, self._on_outcome = keep_inventory, every_seconds, on_outcome
        self._asked = threading.Event()

    def ask(self) -> None:
        """Look soon: a connection is back, a lease was made anew."""
        self._asked.set()

    def run(self, stop: threading.Event) -> None:
        """Look every period, or when asked, until *stop* and then ``ask``."""
        retry_seconds = 1.0
        while not stop.is_set():
            problem = self._look_once()
            self._on_outcome(problem)
            period = self._every * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, keeps no secret
            retry_seconds = min(retry_seconds * 2, period) if problem else 1.0
            self._asked.wait(retry_seconds if problem else period)
            self._asked.clear()

    def _look_once(self) -> str:
        try:
            return self.look()
        except Transient as error:
            return str(error)
        except EcomputeError as error:
            logger.error("resync: %s", error)
            return str(error)
        except Exception:  # the thread must outlive a bug: the other guests are served
            logger.exception("resync failed; this is a bug, please report it")
            return "resync failed, see the log"

    def look(self) -> str:
        """Compare everything once; "" or what could not be asked.

        Raises:
            HypervisorUnavailable: nothing can be said without the domains.
        """
        domains = self._hypervisor.list()
        problem = ""
        allocations: Mapping[UUID, Mapping[str, int]] | None = None
        try:
            allocations = self._placement.provider_allocations(self._provider)
            self._keep_inventory(domains)
        except EcomputeError as error:
            # An inventory that cannot be written is no reason to lose sight of the guests.
            problem = str(error)
        if self._specs.synced.is_set():
            self._compare({domain.uuid: domain for domain in domains}, allocations)
        for uuid in self._statuses.unwritten() & self._specs.uuids():
            self._wake(uuid)
        return problem

    def _compare(self, domains: Mapping[UUID, Domain], allocations: Mapping[UUID, Mapping[str, int]] | None) -> None:
        stamped = {uuid for uuid, domain in domains.items() if domain.stamp and domain.stamp.provider == self._provider}
        claims = set[UUID]() if allocations is None else allocations.keys() | self._reconciler.suspected_orphans()
        for uuid in self._specs.uuids() | stamped | claims:
            if allocations is None:
                allocation = Allocation.UNASKED
            else:
                allocation = Allocation.PRESENT if uuid in allocations else Allocation.ABSENT
            if self._needs_a_pass(uuid, Glimpse(domains.get(uuid), allocation)):
                self._wake(uuid)

    def _needs_a_pass(self, uuid: UUID, glimpse: Glimpse) -> bool:
        try:
            return self._reconciler.glance(uuid, glimpse)
        except Exception:  # noqa: BLE001 - its own pass says what is wrong; it must not hide the others
            return True
