"""Small requests to this host, that are no state: letters under ``mail/<provider>/``, answered under ``mail-reply/``.

A letter hangs on its sender's lease, and so does its answer, so that both go when nobody waits any more. An answer is fenced by
the host key: a process that slept through its own death answers nothing. A letter that makes no sense gets one line in the log,
and no answer. It knows nothing of what is asked; whoever serves a kind of letter says so in ``answer``, and whoever takes long
over one takes it off this thread by ``hand_on``.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from uuid import UUID

from common.errors import Conflict, EcomputeError, Permanent
from common.findings import MOST_BYTES, Letter
from common.keys import Keys
from common.logs import fields
from common.store import Compare, ListWatch, Store, Transaction, Versioned
from ecompute import threads

logger = logging.getLogger(__name__)
SLOW_AT_ONCE = 2
MOST_WAITING = 64  # letters; more than that nobody answers in time


class Mailbox:
    """The letters to one host, answered one after the other.

    Args:
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        answer: the text to answer with; None where the kind of letter is not known. It may raise ``EcomputeError`` where it
            cannot be answered now, ``ValueError`` where the letter makes no sense.
        answered: called once the answer to a letter stands in etcd; may raise ``EcomputeError``.
        takes_long: kinds of letters that may take long to answer; the others need not wait for those.
        hand_on: given a letter and what answers it, which raises nothing; True where it is answered in another thread.
    """

    def __init__(
        self, store: Store, keys: Keys, provider: UUID, *, fence: Callable[[], Compare],
        answer: Callable[[Letter], str | None], answered: Callable[[Letter], None] = lambda _: None,
        hand_on: Callable[[Letter, Callable[[], None]], bool] = lambda *_: False, takes_long: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._answered, self._hand_on, self._takes_long = answered, hand_on, frozenset(takes_long)
        self._slow: queue.SimpleQueue[Versioned | None] = queue.SimpleQueue()
        self._store, self._keys, self._provider = store, keys, provider
        self._fence, self._answer = fence, answer
        self._letters: queue.SimpleQueue[Versioned | None] = queue.SimpleQueue()  # None: look whether it is time to stop
        self._list_watch = ListWatch(store, keys.mails(provider), self._arrived)

    def watch(self, stop: threading.Event) -> None:
        """Take letters in until *stop*, over every fault of the store."""
        self._list_watch.run(stop)

    def wake(self) -> None:
        """Have ``run`` look whether it is to stop."""
        self._letters.put(None)
        for _ in range(SLOW_AT_ONCE):
            self._slow.put(None)

    def run(self, stop: threading.Event) -> None:
        """Answer letters until *stop*, those that take long in threads of their own. Who sets *stop* calls ``wake`` too."""
        for number in range(SLOW_AT_ONCE if self._takes_long else 0):
            threads.begin(f"slow-mail-{number}", lambda stop: self._run(stop, self._slow, self._serve_slow), stop)
        self._run(stop, self._letters, self._serve)

    def _run(
        self, stop: threading.Event, letters: queue.SimpleQueue[Versioned | None], serve: Callable[[Versioned], None]
    ) -> None:
        while not stop.is_set():
            item = letters.get()
            if item is not None:
                with _said(item):
                    serve(item)

    def _arrived(self, key: str, item: Versioned | None) -> None:
        if item is None:
            return
        if self._letters.qsize() >= MOST_WAITING:
            logger.warning("a letter is not answered: too many others wait", extra=fields(key=key))
            return
        self._letters.put(item)

    def _serve(self, item: Versioned) -> None:
        """Answer *item*, or leave that to who has time for it."""
        found = self._wanted(item)
        if found is None:
            return
        reply_key, letter = found
        if letter.kind in self._takes_long:
            if self._slow.qsize() >= MOST_WAITING:
                logger.warning("a letter is not answered: too many others wait", extra=fields(key=item.key))
            else:
                self._slow.put(item)
            return

        def finish() -> None:
            with _said(item):
                self._finish(item, reply_key, letter)

        if not self._hand_on(letter, finish):
            self._finish(item, reply_key, letter)

    def _serve_slow(self, item: Versioned) -> None:
        if found := self._wanted(item):
            self._finish(item, *found)

    def _wanted(self, item: Versioned) -> tuple[str, Letter] | None:
        """Where the answer belongs, and the letter; None where it is none, or nobody waits for its answer."""
        try:
            reply_key = self._keys.mail_reply(self._keys.parse_letter(item.key))
            letter = self._read(item)
        except (ValueError, EcomputeError) as error:
            _ignore(item, str(error))
            return None
        if self._list_watch.get(item.key) is None or self._store.get(reply_key) is not None:
            return None  # its sender does not wait any more, or has its answer from before we were restarted
        return reply_key, letter

    def _finish(self, item: Versioned, reply_key: str, letter: Letter) -> None:
        try:
            text = self._answer(letter)
        except ValueError as error:
            _ignore(item, str(error))
            return
        if text is None:
            _ignore(item, f"letters of the kind {letter.kind[:40]!r} are not known to this version")
            return
        compares = (self._fence(), Compare.unchanged(item.key, item.mod_revision), Compare.absent(reply_key))
        try:
            self._store.commit(Transaction(compares, {reply_key: text}, lease_id=item.lease_id))
        except Conflict:
            logger.info("an answer came too late, or from a host that lost its lease", extra=fields(key=item.key))
            return
        self._answered(letter)

    def _read(self, item: Versioned) -> Letter:
        if not item.lease_id:
            raise Permanent("it hangs on no lease, so that its answer would stay for ever")
        if len(item.value.encode()) > MOST_BYTES:
            raise Permanent(f"it is longer than {MOST_BYTES} bytes")
        return Letter.from_json(item.value)


@contextlib.contextmanager
def _said(item: Versioned) -> Iterator[None]:
    """Whatever ends the block is said in the log: the next letter is another one's."""
    try:
        yield
    except EcomputeError as error:
        logger.warning("a letter is not answered: %s", error, extra=fields(key=item.key))
    except Exception:
        logger.exception("a letter is not answered; this is a bug, please report it", extra=fields(key=item.key))


def _ignore(item: Versioned, why: str) -> None:
    logger.warning("ignored a letter: %s", why[:300], extra=fields(key=item.key[:200]))
