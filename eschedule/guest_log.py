"""The command ``log``: what a guest said on its serial console, from any machine, piece by piece from its host.

Each letter asks for what is behind the last one's end. With ``-f`` the host keeps a letter until the log grows, so that nobody
asks in vain; a guest that writes all the time is asked twice a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from common.errors import ConfigError, Permanent
from common.guest_letters import LOG, MOST_WAIT_SECONDS, GuestAnswer
from common.text import quoted
from eschedule.guest_post import ask, locate
from eschedule.interruption import Interrupted
from eschedule.listing import InstanceRow
from eschedule.session import Session
from eschedule.terminal_text import Plain

PACE_SECONDS = 0.5  # between two letters of one reader who follows
MOST_TAIL_LINES = 10**6


def log(session: Session, options: argparse.Namespace) -> int:
    """Run ``log``; the exit code.

    Raises:
        EcomputeError: there is no such instance, it has no log, or its host does not answer.
    """
    tail = _lines(options.tail)
    show, last = printer(session, is_raw=options.raw), b"\n"

    def note(data: bytes) -> None:
        nonlocal last
        show(data)
        last = data[-1:]

    reader = Reader(session, locate(session, options.instance), note)
    try:
        if tail is not None:
            reader.begin_at_tail(tail, may_wait=options.follow)
        reader.read_all(may_wait=options.follow)
        if options.follow:
            session.screen.end_with_reader()
            reader.follow()
    except Interrupted:
        if last != b"\n" and session.screen.is_terminal:
            session.screen.raw(b"\n")  # what is said of it begins on a line of its own
        raise
    return 0


def _lines(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= MOST_TAIL_LINES):
        raise ConfigError(f"--tail {quoted(text)} is no number of lines; needs 0 to {MOST_TAIL_LINES}, as in --tail 20")
    return int(text)


def printer(session: Session, *, is_raw: bool) -> Callable[[bytes], None]:
    """What prints a guest's bytes: as they are, or, to a terminal, as text that it does not obey."""
    if is_raw or not session.screen.is_terminal:
        return session.screen.raw
    plain = Plain()
    return lambda data: session.screen.data(plain.feed(data))


class Reader:
    """Reads one guest's log from where it is to where it ends."""

    def __init__(
        self, session: Session, row: InstanceRow, show: Callable[[bytes], None], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session, self._row, self._show, self._sleep = session, row, show, sleep
        self._position = ""
        self._is_begun = False

    def begin_at_tail(self, lines: int, *, may_wait: bool) -> None:
        """Print the last *lines* lines; what follows begins behind them."""
        if answer := self._ask(may_wait=may_wait, tail=str(lines)):
            self._take(answer)

    def read_all(self, *, may_wait: bool) -> None:
        """Print all that there is by now."""
        has_more = not self._is_begun
        while has_more:
            answer = self._ask(may_wait=may_wait, position=self._position)
            if answer is None:
                return
            has_more = self._take(answer)

    def follow(self) -> None:
        """Print what is added, until the instance is gone."""
        while True:
            begun = self._session.clock()
            answer = self._ask(may_wait=True, position=self._position, wait_seconds=MOST_WAIT_SECONDS)
            is_more = answer is not None and self._take(answer)
            if answer is None or not answer.data_base64:
                try:  # it may have been moved to another host, or destroyed
                    self._row = locate(self._session, str(self._row.uuid))
                except Permanent:
                    self._session.screen.message(f"{self._row.name} is gone, and its log with it")
                    return
            if not is_more:
                self._session.interruption.check()
                self._sleep(max(0.0, PACE_SECONDS - (self._session.clock() - begun)))

    def _ask(self, *, may_wait: bool, wait_seconds: float = 0, **arguments: str) -> GuestAnswer | None:
        """The host's answer; None where there is no log yet and the reader *may_wait* for it."""
        try:
            return ask(self._session, self._row, LOG, wait_seconds=wait_seconds, **arguments)
        except Permanent as error:
            if error.reason != "NoLog":
                raise
            if not may_wait:
                raise Permanent(
                    f"there is no log of {self._row.name} on {self._row.host.name}: it was not started there yet; look: "
                    f"eschedule show {self._row.name}",
                    "NoLog",
                ) from None
            return None

    def _take(self, answer: GuestAnswer) -> bool:
        """Print it; whether there is more."""
        if answer.is_gap and self._is_begun:
            self._session.screen.message(f"a part of the log of {self._row.name} was rotated away before it was read")
        if data := answer.data:
            self._show(data)
        self._position, self._is_begun = answer.position, True
        return answer.has_more
