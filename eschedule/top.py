"""The command ``top``: what instances use of their hosts at this moment, asked of the hosts by letters.

On a terminal it is asked again every few seconds; elsewhere once, by two letters a second apart. No host does anything for it
while nobody looks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from uuid import UUID

from common.errors import ConfigError, Transient
from common.findings import Letter
from common.host_letters import USAGE, HostUsage
from common.model import HostRecord, InstanceKey
from common.retry import Deadline
from common.text import counted, escaped, quoted
from common.validate import parse_count
from eschedule import post
from eschedule.full_screen import FullScreen, full_screen
from eschedule.listing import find_host, read_record, silent_hosts
from eschedule.output import emit, is_for_programs
from eschedule.session import Session
from eschedule.tables import Look
from eschedule.usage import SORTS, Use, in_order, usage_json, usage_table, uses

EVERY_SECONDS = 3.0
FIRST_SECONDS = 1.0  # between the first two letters, so that there are rates soon
ANSWER_SECONDS = 5.0
LOOK_FOR_HOSTS_EVERY = 10  # rounds
_KEYS = {sort[0]: sort for sort in SORTS}


class _Left(Exception):
    """The user has seen enough."""


def top(session: Session, options: argparse.Namespace) -> int:
    """Run ``top``; its exit code.

    Raises:
        ConfigError: the options make no sense. Permanent: there is no such host. Transient: no host answers.
    """
    sort = options.sort
    if sort not in SORTS:
        raise ConfigError(f"--sort {quoted(sort)}: needs to be {', '.join(SORTS[:-1])} or {SORTS[-1]}")
    times = 1 if options.once else parse_count(options.times, "-n") if options.times is not None else None
    if is_for_programs(options) and times not in (None, 1):
        raise ConfigError("-n is for tables; -o for programs prints what is used once")
    provider = None if options.host is None else find_host(session.store, session.keys, options.host).provider
    chosen = None if options.selector is None else frozenset(map(UUID, options.instances))
    rounds = Rounds(session, provider, chosen)
    if is_for_programs(options) or not session.screen.is_terminal or times == 1:
        return _print(session, rounds, options, times=times or 1, sort=sort)
    with full_screen(session.screen) as screen:
        _show(session, screen, rounds, options, times=times, sort=sort)
    return 0


def _print(session: Session, rounds: Rounds, options: argparse.Namespace, *, times: int, sort: str) -> int:
    """Print what is used, *times* times, one below the other."""
    rounds.ask()
    for number in range(times):
        session.interruption.check()
        rounds.pause(EVERY_SECONDS if number else FIRST_SECONDS)
        rows = in_order(rounds.ask(), sort, rounds.names)
        if rounds.hosts and not rounds.answered:
            raise Transient(f"none of {counted(len(rounds.hosts), 'host')} answered; look: eschedule hosts -o wide")
        for trouble in rounds.troubles():
            session.screen.warning(trouble)
        if not rounds.hosts and rounds.silent:
            raise Transient("no host has a heartbeat, so that nobody answers; look: eschedule hosts")
        emit(
            session.screen, options, lambda rows=rows: [usage_json(use, rounds.names, rounds.hosts) for use in rows],  # type: ignore[misc]
            lambda look, rows=rows: usage_table(rows, rounds.names, rounds.hosts, look),  # type: ignore[misc]
        )  # fmt: skip
    return 0


def _show(
    session: Session, screen: FullScreen, rounds: Rounds, options: argparse.Namespace, *, times: int | None, sort: str
) -> None:
    """Show what is used until somebody types q, or *times* times."""
    rows: list[Use] = []
    number = 0

    def react(key: str) -> None:
        nonlocal sort
        if key in ("q", "Q", "\x1b"):
            raise _Left
        if key in _KEYS:
            sort = _KEYS[key]
            draw()

    def draw() -> None:
        look = session.screen.look(is_wide=options.output == "wide")
        ordered = in_order(rows, sort, rounds.names)
        screen.show(_head(rounds, rows, sort, look) + usage_table(ordered, rounds.names, rounds.hosts, look))

    try:
        while times is None or number <= times:
            rows = rounds.ask(lambda: react(screen.key(0)))
            draw()
            until = session.clock() + (EVERY_SECONDS if number else FIRST_SECONDS)
            while (left := until - session.clock()) > 0:
                react(screen.key(left))
            number += 1
    except _Left:
        return


def _head(rounds: Rounds, rows: list[Use], sort: str, look: Look) -> str:
    count = len(rounds.hosts) + len(rounds.silent) - len(rounds.answered)
    silent = f", {count} not answering" if count else ""
    text = f"{counted(len(rows), 'guest')} on {counted(len(rounds.hosts) + len(rounds.silent), 'host')}{silent}; by {sort}"
    text += "  [c]pu [m]emory [d]isk [n]et [q]uit"
    return f"{text[: look.width]}\n\n"


class Rounds:
    """Rounds of letters to the living hosts, or to *provider* alone, and what is known of names by now.

    Args:
        chosen: the instances that are looked at; None for all.
    """

    def __init__(self, session: Session, provider: UUID | None, chosen: frozenset[UUID] | None = None) -> None:
        self._session, self._provider, self._chosen = session, provider, chosen
        self._number = 0
        self._last: dict[UUID, HostUsage] = {}
        self.answered: dict[UUID, HostUsage] = {}
        self.hosts: dict[UUID, str] = {}
        self.silent: list[str] = []  # the names of those without a heartbeat
        self.names: dict[UUID, str] = {}

    def ask(self, pulse: Callable[[], None] = lambda: None) -> list[Use]:
        """What the guests of all hosts that answer use, at rates since their last answers."""
        session = self._session
        if self._number % LOOK_FOR_HOSTS_EVERY == 0:
            self.hosts = self._alive()
        self._number += 1
        self.answered = post.answers(
            session.store, session.keys, self.hosts, Letter(USAGE), Deadline(ANSWER_SECONDS, session.clock),
            read=HostUsage.from_json, pulse=pulse,
        )  # fmt: skip
        rows = [use for host, now in self.answered.items() if not now.problem for use in uses(host, self._last.get(host), now)]
        if self._chosen is not None:
            rows = [use for use in rows if use.uuid in self._chosen]
        self._last |= {host: now for host, now in self.answered.items() if not now.problem}
        self._learn(rows)
        return rows

    def pause(self, seconds: float) -> None:
        """Wait, so that there is something to be counted."""
        time.sleep(seconds)

    def troubles(self) -> list[str]:
        """Which hosts did not say what their guests use, and why."""
        silent = [f"{name} has no heartbeat, and does not answer" for name in self.silent]
        silent += [f"{name} did not answer" for host, name in self.hosts.items() if host not in self.answered]
        said = [(self.hosts[host], one) for host, one in self.answered.items()]
        return [
            *silent,
            *(escaped(f"{name}: {one.problem}") for name, one in said if one.problem),
            *(f"{name} has more guests than it can tell of at once" for name, one in said if one.is_cut),
        ]

    def _alive(self) -> dict[UUID, str]:
        keys = self._session.keys
        prefix = keys.hosts() if self._provider is None else keys.host(self._provider)
        items = {keys.parse_host(item.key): item for item in self._session.store.list(prefix, serializable=True).items}
        if self._provider is not None and not items:
            raise Transient("that host has no heartbeat, so that nobody answers there; look: eschedule hosts")
        if self._provider is None:
            self.silent = silent_hosts(self._session.store, keys, items)
        return {host: record.name if (record := read_record(HostRecord, item)) else str(host) for host, item in items.items()}

    def _learn(self, rows: list[Use]) -> None:
        """The names of instances that are not known yet, by one read."""
        by_key = {self._session.keys.instance(use.uuid): use.uuid for use in rows if use.uuid not in self.names}
        for key, item in (self._session.store.get_many(by_key) if by_key else {}).items():
            if known := read_record(InstanceKey, item):
                self.names[by_key[key]] = known.name
