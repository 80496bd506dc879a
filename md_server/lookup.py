"""Who is asking: the source address of a request to the guest that has it. The only place where md_server reads documents.

The file is looked at for every request, and read again unless it is for certain the one that was read before: so there is
nothing to go stale, and ecompute need not tell anybody of a change.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import InvalidSpec
from common.metadata import MetadataStore, Stamp, normal_address
from common.renderings.guest import Guest, Host

MOST_KEPT_BYTES = 16 << 20
_normal = functools.lru_cache(maxsize=1024)(normal_address)


@dataclass(frozen=True)
class _Known:
    stamp: Stamp
    guest: Guest

    @property
    def bytes(self) -> int:
        """At most about what it takes in memory: the document, what is decoded of it, and the trees. These share the user data;
        each of the ten versions of OpenStack's names the keys twice and the cards once, and eight repeat the vendor data.
        """
        document = self.guest.document
        repeated = 22 * sum(map(len, document.keys)) + 8 * len(document.vendor_data_base64 or "")
        return 3 * self.stamp.bytes + repeated + 45_000 + 8_000 * len(document.addresses)


class Lookup:
    """The guests whose documents are in *store*. For one thread.

    Args:
        store: where the documents are.
        host: what they are completed with.
        most_bytes: how much is kept of what was read.
        now_ns: the file system's clock.
    """

    def __init__(
        self, store: MetadataStore, host: Host, *, most_bytes: int = MOST_KEPT_BYTES, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._store, self._host, self._most_bytes, self._now_ns = store, host, most_bytes, now_ns
        self._known: dict[str, _Known] = {}  # by address, in the order in which they were read
        self._bytes = 0

    def guest_at(self, address: str) -> Guest | None:
        """The guest that has *address*, None where none has it.

        Raises:
            EcomputeError: there is a document for it, and it cannot be read.
        """
        try:
            normal = _normal(address)
        except InvalidSpec:
            return None
        stamp, known = self._store.stamp(normal), self._known.get(normal)
        if known is not None:
            if known.stamp == stamp:
                return known.guest
            self._forget(normal)
        document = None if stamp is None else self._store.by_address(normal)
        if document is None:
            return None
        guest = Guest(document, self._host)
        if stamp is not None and stamp.is_settled(self._now_ns()):
            self._remember(normal, _Known(stamp, guest))
        return guest

    def _remember(self, address: str, known: _Known) -> None:
        self._known[address] = known
        self._bytes += known.bytes
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._known)))

    def _forget(self, address: str) -> None:
        self._bytes -= self._known.pop(address).bytes
