"""Learns the addresses that foreign DHCP servers gave to our guests: from the guest agent, or whom the host has seen.

Only for cards on bridges whose request named no address. A guest is asked after it was started, a few times with growing
pauses, and with each full look from then on; in one thread of its own, since an agent may take seconds to say nothing. What is
news goes into the instance's file, and its pass is woken: that writes the metadata document and the status. Started by the
agent, told by libvirt's events (``changed``) and by the resync (``look``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from uuid import UUID

from common.errors import EcomputeError
from common.logs import fields
from ecompute.bridge_cards import is_foreign
from ecompute.hypervisor import Domain, Hypervisor
from ecompute.network import AddressPools

logger = logging.getLogger(__name__)
PAUSES_SECONDS = (3.0, 6.0, 12.0, 24.0, 48.0)  # after a start; a guest has its address when it has booted


class AddressLearner:
    """Asks the guests that have something to learn from.

    Args:
        wake: have an instance's pass look at what was learned.
    """

    def __init__(
        self, hypervisor: Hypervisor, networks: AddressPools, wake: Callable[[UUID], None], *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._hypervisor, self._networks, self._wake_pass, self._clock = hypervisor, networks, wake, clock
        self._news = threading.Condition()
        self._due: dict[UUID, float] = {}
        self._asked: dict[UUID, int] = {}  # how often since its start

    def changed(self, uuid: UUID) -> None:
        """The guest was started just now, or something else befell it; nothing is asked of it yet."""
        if any(is_foreign(card) for card in self._networks.assigned(uuid) or ()):
            with self._news:
                self._asked[uuid] = 0
                self._due[uuid] = self._clock() + PAUSES_SECONDS[0]
                self._news.notify_all()

    def look(self, domains: Iterable[Domain]) -> None:
        """Ask those of *domains* that run, soon: addresses change, and ecompute may have been away."""
        if not (foreign := self._networks.foreign()):
            return
        with self._news:
            now = self._clock()
            self._due |= {domain.uuid: now for domain in domains if domain.is_active and domain.uuid in foreign}
            self._news.notify_all()

    def wake(self) -> None:
        """Have ``run`` see that it is to stop."""
        with self._news:
            self._news.notify_all()

    def run(self, stop: threading.Event) -> None:
        """Ask whoever is due until *stop*; who sets it calls ``wake`` too."""
        while True:
            with self._news:
                if stop.is_set():  # looked at here, so that a call of ``wake`` just before the wait is not missed
                    return
                first = min(self._due.values(), default=None)
                if first is None or first > self._clock():
                    self._news.wait(None if first is None else first - self._clock())
                    continue
            self.ask_due()

    def ask_due(self) -> None:
        """Ask every guest that is due, once."""
        with self._news:
            now = self._clock()
            due = [uuid for uuid, at in self._due.items() if at <= now]
            for uuid in due:
                del self._due[uuid]
        for uuid in due:
            try:
                self._ask(uuid)
            except EcomputeError as error:
                logger.debug("no address was learned", extra=fields(instance=uuid, error=str(error)))
            except Exception:  # the thread must outlive a bug: the others are asked
                logger.exception("a bug in learning the addresses of %s", uuid)

    def _ask(self, uuid: UUID) -> None:
        seen = self._hypervisor.guest_addresses(uuid)
        if self._networks.learn(uuid, seen):
            logger.info("addresses learned", extra=fields(instance=uuid))
            self._wake_pass(uuid)
        self._plan_next(uuid)

    def _plan_next(self, uuid: UUID) -> None:
        """A few tries after its start, until each of its cards has an address."""
        cards = self._networks.assigned(uuid) or ()
        with self._news:
            times = self._asked.get(uuid, len(PAUSES_SECONDS)) + 1
            if times < len(PAUSES_SECONDS) and not all(card.address for card in cards):
                self._asked[uuid] = times
                self._due.setdefault(uuid, self._clock() + PAUSES_SECONDS[times])
            else:
                self._asked.pop(uuid, None)
