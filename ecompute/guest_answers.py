"""What a guest answers to the question for its addresses: which of it is taken, and which guests are not asked for a while.

A guest writes its agent's answer itself, all of it. So an address counts only as one that ``ipaddress`` reads and could be
reached from elsewhere, in the spelling that ``ipaddress`` gives it, and only the first few count at all. Knows no libvirt;
called by ``libvirt_networks``.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from common.nics import IpAddress

MOST_ADDRESSES = 8  # of one card
MOST_CARDS = 64  # of one guest
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MOST_TEXT = 45  # characters of the longest way to write an address
SLOW_SECONDS = 1.0  # an agent that is well answers in a few milliseconds
SPARED_SECONDS, MOST_SPARED_SECONDS = 120.0, 1920.0
_MOST_REMEMBERED = 1024  # guests


def addresses_of(answer: object) -> dict[str, tuple[IpAddress, ...]]:
    """What ``virDomainInterfaceAddresses`` says, by MAC; whatever is not as it should be is left out."""
    known: dict[str, tuple[IpAddress, ...]] = {}
    cards = answer.values() if isinstance(answer, Mapping) else ()
    for card in islice(cards, MOST_CARDS):
        mac = str(card.get("hwaddr") or "").lower()
        if _MAC.fullmatch(mac) and not known.get(mac):
            known[mac] = tuple(_routable(card.get("addrs") or ()))
    return known


def _routable(found: Iterable[Mapping[str, object]]) -> Iterable[IpAddress]:
    for one in islice(found, MOST_ADDRESSES):
        text = str(one.get("addr") or "")
        try:
            address = ipaddress.ip_address(text if len(text) <= _MOST_TEXT else "")
            prefix_length = int(str(one.get("prefix")))
        except ValueError:
            continue
        if _is_somebodys(address):
            # The neighbour table knows no prefix and says 0.
            usual = {4: 24, 6: 64}[address.version]
            yield IpAddress(str(address), prefix_length if 1 <= prefix_length <= address.max_prefixlen else usual)


def _is_somebodys(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it is an address of one host, wherever it is looked at from."""
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        return False  # any text may follow the %; and one address has one spelling
    return not (address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified)


class SlowAgents:
    """The guests whose agents took long, which are spared the question for minutes, for longer each time. Thread-safe.

    A guest that hangs, or means harm, holds up the question to the others for as long as it is waited for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._spared: dict[str, tuple[float, float]] = {}  # by guest: until when, and how long that is

    def is_spared(self, guest: str) -> bool:
        with self._lock:
            until, _ = self._spared.get(guest, (0.0, 0.0))
            return self._clock() < until

    def began(self) -> float:
        """To be given to ``ended``."""
        return self._clock()

    def ended(self, guest: str, began: float) -> None:
        """Note how long *guest* took."""
        now = self._clock()
        with self._lock:
            _, before = self._spared.pop(guest, (0.0, 0.0))
            if now - began >= SLOW_SECONDS:
                if len(self._spared) >= _MOST_REMEMBERED:
                    del self._spared[next(iter(self._spared))]
                pause = min(max(2 * before, SPARED_SECONDS), MOST_SPARED_SECONDS)
                self._spared[guest] = now + pause, pause
