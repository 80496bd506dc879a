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
from common.retry import Backoff
from ecompute.facts import Glimpse
from ecompute.health import INVENTORY, LIBVIRT, PLACEMENT, Health
from ecompute.hypervisor import Domain, Hypervisor
from ecompute.machine import Allocation
from ecompute.reconciler import Reconciler
from ecompute.statuses import Statuses
from ecompute.watcher import SpecWatcher

logger = logging.getLogger(__name__)
Claims = Mapping[UUID, Mapping[str, int]]
MOST_RETRY_SECONDS = 30.0  # between two tries while a service is away
JITTER = 0.2  # of the period, either way, so that hosts that started together do not ask together
# What an answer that came too late is given more the next time, doubled with each. What is given up is still worked on: would
# all hosts give up as soon as ever, a Placement with a queue would never come to its end.
FIRST_MORE_SECONDS, MOST_MORE_SECONDS = 10.0, 40.0
# Of the period, over which the hosts come back to a service that all of them missed: a small Placement that has other things to
# do at that moment answers some forty a second.
SPREAD = 0.5


class Rests:
    """How long a host rests after each look, so that neither a fault nor its end brings many hosts back at one moment.

    A Placement that has too much to do gets more rest with each look in vain, as a busy Ethernet does: all hosts within half of
    the period may be too many for it, all of them within the whole period are its daily work.

    Args:
        every_seconds: the period between two looks that went well.
        random: a number from 0 up to 1, as ``random.random`` gives.
    """

    def __init__(self, every_seconds: float, random: Callable[[], float] = random.random) -> None:
        self._every, self._random = every_seconds, random
        self._failures = Backoff(2.0, min(MOST_RETRY_SECONDS, every_seconds * SPREAD), random)
        self._window_seconds = every_seconds * SPREAD
        self.more_seconds = 0.0
        """How much more time than others the next request of a look gets."""

    def after_success(self, *, is_in_step: bool) -> float:
        """Seconds until the next look.

        Args:
            is_in_step: all hosts look at this moment, and must not the next time.
        """
        self._failures.reset()
        self._window_seconds, self.more_seconds = self._every * SPREAD, 0.0
        period = self._every * (1 - JITTER + 2 * JITTER * self._random())
        return period * self._random() if is_in_step else period

    def after_failure(self, *, is_overloaded: bool) -> float:
        """Seconds until the next look; more with each failure in a row."""
        pause = self._failures.next()
        if not is_overloaded:
            return pause
        self.more_seconds = min(self.more_seconds * 2 or FIRST_MORE_SECONDS, MOST_MORE_SECONDS)
        window, self._window_seconds = self._window_seconds, min(self._window_seconds * 2, self._every)
        return max(pause, window * self._random())


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
        look_at_host: called at each look before the instances are compared, to see to the host itself; it never raises.
        listed: given the domains of each look at once; it only takes note.
        sort_out: given all claims of each look; answers those that are of instances, or of nobody.
    """

    def __init__(
        self, *, hypervisor: Hypervisor, placement: Placement, provider: UUID, specs: SpecWatcher, statuses: Statuses,
        reconciler: Reconciler, wake: Callable[[UUID], None], keep_inventory: Callable[[list[Domain], int | None], None],
        every_seconds: float, health: Health, looked: Callable[[float, bool], None] = lambda *_: None,
        audit: Callable[[list[Domain], Mapping[UUID, Mapping[str, int]] | None], None] = lambda *_: None,
        look_at_host: Callable[[], None] = lambda: None,
        listed: Callable[[list[Domain]], None] = lambda _: None,
        sort_out: Callable[[Claims], Claims] = lambda claims: claims,
    ) -> None:  # fmt: skip
        self._hypervisor, self._placement, self._provider = hypervisor, placement, provider
        self._specs, self._statuses, self._reconciler, self._wake = specs, statuses, reconciler, wake
        self._keep_inventory, self._every, self._health, self._looked = keep_inventory, every_seconds, health, looked
        self._audit, self._look_at_host, self._listed, self._sort_out = audit, look_at_host, listed, sort_out
        self._rests = Rests(every_seconds)
        self._asked = threading.Condition()
        self._due_at = self._here_due_at = math.inf  # of the monotonic clock
        self._looking: int | None = None  # the thread that does, by its ident
        self._is_in_step = False  # with all other hosts
        self._is_overloaded = False  # Placement, when it was last asked
        self._whole_at = 0.0  # before that it is only Placement that is to be asked again

    def ask(self) -> None:
        """Look now: libvirt is back, an operator has set something."""
        if self._is_under_way():
            return
        self._whole_at = 0.0
        self._look_at(time.monotonic())

    def ask_soon(self) -> None:
        """Look within half of the period: Placement is back, which all hosts learn at one moment."""
        if self._is_under_way():
            return
        self._is_in_step, self._whole_at = True, 0.0
        self._look_at(time.monotonic() + self._every * SPREAD * random.random())  # noqa: S311 - spreads load, keeps no secret

    def ask_here_soon(self) -> None:
        """Look at what is on this host within a fifth of the period: etcd is back.

        Placement has told nobody anything new because of that, and a thousand hosts have better things to do than ask it.
        """
        with self._asked:
            moment = time.monotonic() + self._every * JITTER * random.random()  # noqa: S311 - as in ``ask_soon``
            self._here_due_at = min(self._here_due_at, moment)
            self._asked.notify_all()

    def _is_under_way(self) -> bool:
        """Whether a look itself has found out what the caller has to say, and goes on to compare everything."""
        return threading.get_ident() == self._looking

    def _look_at(self, moment: float) -> None:
        with self._asked:
            self._due_at = min(self._due_at, moment)
            self._asked.notify_all()

    def run(self, stop: threading.Event) -> None:
        """Look every period, or when asked, until *stop* and then ``ask``."""
        is_whole = True
        while not stop.is_set():
            if is_whole:
                self._look_at(time.monotonic() + self._rest_after_look())
            else:
                self._tried(self._look_here)
            is_whole = self._wait_until_due()

    def _wait_until_due(self) -> bool:
        """Returns whether it is time for a whole look."""
        with self._asked:
            while (left := min(self._due_at, self._here_due_at) - time.monotonic()) > 0:
                self._asked.wait(left)
            self._here_due_at = math.inf
            is_whole = self._due_at <= time.monotonic()
            if is_whole:
                self._due_at = math.inf
            return is_whole

    def _rest_after_look(self) -> float:
        began = time.monotonic()
        is_well = self._look_once()
        self._placement.close()  # where the look did not come so far
        self._looked(time.monotonic() - began, is_well)
        if not is_well:
            return self._rests.after_failure(is_overloaded=self._is_overloaded)
        is_in_step, self._is_in_step = self._is_in_step, False
        return self._rests.after_success(is_in_step=is_in_step)

    def _look_once(self) -> bool:
        self._looking, self._is_overloaded = threading.get_ident(), False
        try:
            return self._tried(self._look_again if time.monotonic() < self._whole_at else self.look)
        finally:
            self._looking = None

    def _look_again(self) -> bool:
        use = self._use()
        return use is not None and self.look(use)

    def _tried(self, look: Callable[[], bool]) -> bool:
        try:
            return look()
        except EcomputeError as error:
            if not self._health.note(error):
                logger.error("resync: %s", error)
        except Exception:  # the thread must outlive a bug: the other guests are served
            logger.exception("resync failed; this is a bug, please report it")
        return False

    def _look_here(self) -> bool:
        self._see_to(self._domains(), None)
        return True

    def look(self, use: Use | None = None) -> bool:
        """Compare everything once; False where something could not be asked.

        Args:
            use: Placement's answer, where it has just been asked.

        Raises:
            HypervisorUnavailable: nothing can be said without the domains.
        """
        self._whole_at = 0.0
        domains = self._domains()
        self._whole_at = time.monotonic() + self._every  # before anything can ask for another whole look
        use = use or self._use()
        if use is not None:
            self._whole_at = 0.0
        # An inventory that cannot be written is no reason to lose sight of the guests.
        is_well = use is not None and self._inventory_is_kept(domains, use.generation)
        self._placement.close()  # it serves some hundred connections at a time; so far ours had its place
        allocations = self._sort_out(use.claims) if use else None
        self._see_to(domains, allocations)
        if self._specs.synced.is_set():
            self._audit(domains, allocations)
        return is_well

    def _domains(self) -> list[Domain]:
        domains = self._hypervisor.list()
        self._health.report(LIBVIRT, "")
        self._listed(domains)
        return domains

    def _see_to(self, domains: list[Domain], allocations: Mapping[UUID, Mapping[str, int]] | None) -> None:
        """Have the host and each guest that is not as it should be looked at."""
        try:
            self._look_at_host()
        except Exception:  # what is wrong with the host must not hide the guests
            logger.exception("the host could not be looked at; this is a bug, please report it")
        if self._specs.synced.is_set():
            self._compare({domain.uuid: domain for domain in domains}, allocations)
        for uuid in self._statuses.unwritten() & self._specs.uuids():
            self._wake(uuid)

    def _use(self) -> Use | None:
        try:
            return self._placement.use_of(self._provider, more_seconds=self._rests.more_seconds)
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
            if self._needs_a_pass(uuid, Glimpse(domains.get(uuid), allocation, (allocations or {}).get(uuid))):
                self._wake(uuid)

    def _needs_a_pass(self, uuid: UUID, glimpse: Glimpse) -> bool:
        try:
            return self._reconciler.glance(uuid, glimpse)
        except Exception:  # noqa: BLE001 - its own pass says what is wrong; it must not hide the others
            return True
