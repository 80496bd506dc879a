"""Letters to hosts, and their answers: how ``eschedule`` has hosts look at themselves and at guests. It decides nothing.

All letters of one round hang on one lease, which is given back when the round is over: nothing stays in etcd.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar
from uuid import UUID

from common.errors import EcomputeError
from common.findings import LEASE_SECONDS, Letter, Report
from common.guest_letters import GuestAnswer
from common.host_letters import PING, Pong
from common.keys import Keys
from common.retry import Deadline
from common.store import ListWatch, Store, Transaction, Versioned

log = logging.getLogger(__name__)
R = TypeVar("R")
_PULSE_SECONDS = 0.2
_AT_ONCE = 100  # letters in one transaction


def ask(store: Store, keys: Keys, hosts: Iterable[UUID], letter: Letter, deadline: Deadline) -> dict[UUID, Report]:
    """``answers``, to letters that are answered by reports."""
    return answers(store, keys, hosts, letter, deadline, read=Report.from_json)


def answers(
    store: Store, keys: Keys, hosts: Iterable[UUID], letter: Letter, deadline: Deadline, *, read: Callable[[str], R],
    pulse: Callable[[], None] = lambda: None,
) -> dict[UUID, R]:  # fmt: skip
    """What each of *hosts* answers to *letter* before *deadline*; those that do not answer are not in it.

    Args:
        read: makes an answer of its text; what it cannot read is passed over.
        pulse: called often while it waits; may raise.

    Raises:
        StoreUnavailable: etcd did not take the letters.
    """
    letters = {uuids.uuid4(): host for host in hosts}
    if not letters:
        return {}
    tray = _Tray(keys, letters, read)
    with _posted(store, keys, letters, letter, ListWatch(store, keys.mail_replies(), tray.arrived)):
        return tray.wait(deadline, pulse)


def ask_about_guest(store: Store, keys: Keys, host: UUID, letter: Letter, deadline: Deadline) -> GuestAnswer | None:
    """What *host* answers to *letter*, which is one of ``guest_letters``, before *deadline*; None where it does not answer.

    Raises:
        StoreUnavailable: etcd did not take the letter.
    """
    letters = {(uuid := uuids.uuid4()): host}
    tray = _Tray(keys, letters, GuestAnswer.from_json)
    with _posted(store, keys, letters, letter, ListWatch(store, keys.mail_reply(uuid), tray.arrived)):
        return tray.wait(deadline, lambda: None).get(host)


def latencies(
    store: Store, keys: Keys, hosts: Iterable[UUID], deadline: Deadline, clock: Callable[[], float]
) -> dict[UUID, float]:
    """How many seconds each of *hosts* took for its answer to a letter, all of them asked at once; silent ones are not in it.

    It is the time over etcd and back, with the host's own, from when the letters lie there.

    Raises:
        StoreUnavailable: etcd did not take the letters.
    """
    letters = {uuids.uuid4(): host for host in hosts}
    if not letters:
        return {}

    def taken(text: str) -> float:
        Pong.from_json(text)
        return clock()

    tray = _Tray(keys, letters, taken)
    with _posted(store, keys, letters, Letter(PING), ListWatch(store, keys.mail_replies(), tray.arrived)):
        begun = clock()
        return {host: max(0.0, at - begun) for host, at in tray.wait(deadline, lambda: None).items()}


@contextlib.contextmanager
def _posted(store: Store, keys: Keys, letters: dict[UUID, UUID], letter: Letter, watch: ListWatch) -> Iterator[None]:
    """Inside, *letter* lies at the hosts of *letters*, and *watch* looks for what they answer."""
    lease = store.grant_lease(LEASE_SECONDS)
    stop = threading.Event()
    try:
        threading.Thread(target=watch.run, args=(stop,), name="replies", daemon=True).start()
        texts = [(keys.mail(host, uuid), letter.to_json()) for uuid, host in letters.items()]
        for begin in range(0, len(texts), _AT_ONCE):
            store.commit(Transaction(puts=dict(texts[begin : begin + _AT_ONCE]), lease_id=lease.id))
        yield
    finally:
        stop.set()
        with contextlib.suppress(EcomputeError):  # it ends by itself
            store.revoke_lease(lease.id)


class _Tray(Generic[R]):
    """Where the answers to *letters*, as *read* makes them of their texts, arrive; those to other people's are passed over."""

    def __init__(self, keys: Keys, letters: dict[UUID, UUID], read: Callable[[str], R]) -> None:
        self._keys, self._letters, self._read = keys, letters, read
        self._changed = threading.Condition()
        self._reports: dict[UUID, R] = {}

    def wait(self, deadline: Deadline, pulse: Callable[[], None]) -> dict[UUID, R]:
        while True:
            with self._changed:
                left = min(_PULSE_SECONDS, deadline.remaining())
                if self._changed.wait_for(lambda: len(self._reports) == len(self._letters), left) or not deadline.remaining():
                    return dict(self._reports)
            pulse()

    def arrived(self, key: str, item: Versioned | None) -> None:
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
