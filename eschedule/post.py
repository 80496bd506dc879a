"""Letters to hosts, and their answers: how ``eschedule`` has hosts look at themselves. It decides nothing.

All letters of one round hang on one lease, which is given back when the round is over: nothing stays in etcd.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid as uuids
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar
from uuid import UUID

from common.errors import EcomputeError
from common.findings import LEASE_SECONDS, Letter, Report
from common.keys import Keys
from common.retry import Deadline
from common.store import ListWatch, Store, Transaction, Versioned

log = logging.getLogger(__name__)
T = TypeVar("T")
_AT_ONCE = 100  # letters in one transaction


def ask(store: Store, keys: Keys, hosts: Iterable[UUID], letter: Letter, deadline: Deadline) -> dict[UUID, Report]:
    """What each of *hosts* answers to *letter* before *deadline*; those that do not answer are not in it.

    Raises:
        StoreUnavailable: etcd did not take the letters.
    """
    return answers(store, keys, hosts, letter, deadline, read=Report.from_json)


def answers(
    store: Store, keys: Keys, hosts: Iterable[UUID], letter: Letter, deadline: Deadline, *, read: Callable[[str], T]
) -> dict[UUID, T]:  # fmt: skip
    """As ``ask``, for letters whose answer is another record, which *read* makes of its text."""
    letters = {uuids.uuid4(): host for host in hosts}
    if not letters:
        return {}
    lease = store.grant_lease(LEASE_SECONDS)
    tray = _Tray(store, keys, letters, read)
    stop = threading.Event()
    try:
        threading.Thread(target=tray.watch.run, args=(stop,), name="replies", daemon=True).start()
        texts = [(keys.mail(host, uuid), letter.to_json()) for uuid, host in letters.items()]
        for begin in range(0, len(texts), _AT_ONCE):
            store.commit(Transaction(puts=dict(texts[begin : begin + _AT_ONCE]), lease_id=lease.id))
        return tray.wait(deadline)
    finally:
        stop.set()
        with contextlib.suppress(EcomputeError):  # it ends by itself
            store.revoke_lease(lease.id)


class _Tray(Generic[T]):
    """Where the answers to *letters* arrive; those to other people's are passed over."""

    def __init__(self, store: Store, keys: Keys, letters: dict[UUID, UUID], read: Callable[[str], T]) -> None:
        self._keys, self._letters, self._read = keys, letters, read
        self._changed = threading.Condition()
        self._reports: dict[UUID, T] = {}
        self.watch = ListWatch(store, keys.mail_replies(), self._arrived)

    def wait(self, deadline: Deadline) -> dict[UUID, T]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._reports) == len(self._letters), deadline.remaining())
            return dict(self._reports)

    def _arrived(self, key: str, item: Versioned | None) -> None:
        try:
            host = self._letters.get(self._keys.parse_letter(key))
            if host is None or item is None:
                return
            report = self._read(item.value)
        except (ValueError, EcomputeError) as error:
            log.info("an answer that cannot be read was passed over: %s", error)
            return
        with self._changed:
            self._reports[host] = report
            self._changed.notify_all()
