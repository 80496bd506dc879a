"""The full look: every minute or so, and after every gap in the news, all instances are compared with the world.

Watch events and libvirt events can be lost; this makes a loss cost a minute instead of for ever. One list each of domains
and allocations serves all instances; only those that need something are handed to the workers. The same look keeps the
provider's inventory and traits equal to what the host has.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from common.errors import EcomputeError, PlacementUnavailable
from common.placement import Placement, Use
from ecompute.facts import Glimpse
from ecompute.health import INVENTORY, LIBVIRT, PLACEMENT, Health
from ecompute.hypervisor import Domain, Hypervisor
from ecompute.machine import Allocation
from ecompute.reconciler import Reconciler
from ecompute.statuses import Statuses
from ecompute.watcher import SpecWatcher

logger = logging.getLogger(__name__)
MOST_RETRY_SECONDS = 15.0  # between two tries while a service is away
JITTER = 0.2  # of the period, either way, so that hosts that started together do not ask together


def _is_overload(error: EcomputeError) -> bool:
    return isinstance(error, PlacementUnavailable) and error.is_overloaded


class Resync:
    """Looks at everything, now and then and when asked.

    Args:
        keep_inventory: called with all domains and the provider's generation, None where Placement does not know it; makes
            Placement's view of the host equal to the host.
        health: told of every service that was asked.
        looked: told how long each look took in seconds, and whether nothing was in the way.
        audit: given the domains and claims of each look, None where Placement did not say; it never raises.
    """

    def __init__(
        self, *, hypervisor: Hypervisor, placement: Placement, provider: UUID, specs: SpecWatcher, statuses: Statuses,
        reconciler: Reconciler, wake: Callable[[UUID], None], keep_inventory: Callable[[list[Domain], int | None], None],
        every_seconds: float, health: Health, looked: Callable[[float, bool], None] = lambda *_: None,
        audit: Callable[[list[Domain], Mapping[UUID, Mapping[str, int]] | None], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self._hypervisor, self._placement, self._provider = hypervisor, placement, provider
        self._specs, self._statuses, self._reconciler, self._wake = specs, statuses, reconciler, wake
        self._keep_inventory, self._every, self._health, self._looked = keep_inventory, every_seconds, health, looked
        self._audit = audit
        self._asked = threading.Condition()
        self._due_at = math.inf  # of the monotonic clock
        self._is_in_step = False  # with all other hosts
        self._is_overloaded = False  # Placement, when it was last asked
        self._whole_at = 0.0  # before that it is only Placement that is to be asked again

    def ask(self) -> None:
        """Look now: libvirt is back, an operator has set something."""
        self._whole_at = 0.0
        self._look_at(time.monotonic())

    def ask_soon(self) -> None:
        """Look within a fifth of the period: etcd or Placement is back, which all hosts learn at one moment."""
        self._is_in_step, self._whole_at = True, 0.0
        self._look_at(time.monotonic() + self._every * JITTER * random.random())  # noqa: S311 - as in ``run``

    def _look_at(self, moment: float) -> None:
        with self._asked:
            self._due_at = min(self._due_at, moment)
            self._asked.notify_all()

    def run(self, stop: threading.Event) -> None:
        """Look every period, or when asked, until *stop* and then ``ask``."""
        retry_seconds = 1.0
        while not stop.is_set():
            began = time.monotonic()
            is_well = self._look_once()
            self._placement.close()  # where the look did not come so far
            self._looked(time.monotonic() - began, is_well)
            period = self._every * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, keeps no secret
            if is_well and self._is_in_step:
                self._is_in_step, period = False, period * random.random()  # noqa: S311
            is_repeated = not is_well and retry_seconds > 1.0
            retry_seconds = 1.0 if is_well else min(retry_seconds * 2, period, MOST_RETRY_SECONDS)
            pause = retry_seconds * random.uniform(0.5, 1.5)  # noqa: S311
            if self._is_overloaded and is_repeated:
                pause = max(pause, period * random.random())  # noqa: S311 - it can serve all hosts once a period
            self._look_at(time.monotonic() + (period if is_well else pause))
            self._wait_until_due()

    def _wait_until_due(self) -> None:
        with self._asked:
            while (left := self._due_at - time.monotonic()) > 0:
                self._asked.wait(left)
            self._due_at = math.inf

    def _look_once(self) -> bool:
        try:
            self._is_overloaded = False
            if time.monotonic() < self._whole_at and self._use() is None:
                return False
            return self.look()
        except EcomputeError as error:
            if not self._health.note(error):
                logger.error("resync: %s", error)
        except Exception:  # the thread must outlive a bug: the other guests are served
            logger.exception("resync failed; this is a bug, please report it")
        return False

    def look(self) -> bool:
        """Compare everything once; False where something could not be asked.

        Raises:
            HypervisorUnavailable: nothing can be said without the domains.
        """
        self._whole_at = 0.0
        domains = self._hypervisor.list()
        self._health.report(LIBVIRT, "")
        self._whole_at = time.monotonic() + self._every  # before anything can ask for another whole look
        use = self._use()
        if use is not None:
            self._whole_at = 0.0
        # An inventory that cannot be written is no reason to lose sight of the guests.
        is_well = use is not None and self._inventory_is_kept(domains, use.generation)
        self._placement.close()  # it serves some hundred connections at a time; so far ours had its place
        allocations = use.claims if use else None
        if self._specs.synced.is_set():
            self._compare({domain.uuid: domain for domain in domains}, allocations)
            self._audit(domains, allocations)
        for uuid in self._statuses.unwritten() & self._specs.uuids():
            self._wake(uuid)
        return is_well

    def _use(self) -> Use | None:
        try:
            return self._placement.use_of(self._provider)
        except EcomputeError as error:
            self._is_overloaded = _is_overload(error)
            self._health.report(PLACEMENT, str(error))
            return None

    def _inventory_is_kept(self, domains: list[Domain], generation: int | None) -> bool:
        try:
            self._keep_inventory(domains, generation)
        except EcomputeError as error:
            self._is_overloaded = _is_overload(error)
            self._health.report(PLACEMENT if isinstance(error, PlacementUnavailable) else INVENTORY, str(error))
            return False
        self._health.report(PLACEMENT, "")
        self._health.report(INVENTORY, "")
        return True

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
