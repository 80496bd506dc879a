"""The command ``events``: what happened to an instance, on a host or in the cluster, with who and why; ``-f``: what happens."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.errors import ConfigError, Permanent
from common.journal import Happening, Subject
from common.text import escaped
from common.validate import parse_count, parse_duration, parse_instance
from eschedule.happenings import Follower, Names, Scope, newest, of_all, of_instance
from eschedule.listing import find_host
from eschedule.output import emit
from eschedule.session import Session
from eschedule.sought import no_such
from eschedule.tables import PLAIN, Coloured, Column, Look, table

DEFAULT_LIMIT, MOST_LIMIT = 100, 10_000
_COLUMNS = (
    "TIME (UTC)", "EVENT", Column("OF", 14), Column("HOST", 8), Column("BY", 8), Column("DETAIL", 20),
    Column("UUID", is_wide=True),
)  # fmt: skip
_WIDTHS = (19, 16, 20, 12, 16)  # of lines that come one by one; what is longer moves the rest
_NARROW, ROOMY = (8, 10, 0, 0, 0), 120  # on terminals of fewer columns than that nothing is aligned but time and event
_BAD = frozenset(
    {"failed", "refused", "held", "crashed", "trouble", "away", "degraded", "not reverted", "not rebuilt", "moved"}
)
_GOOD = frozenset({"built", "started", "ready", "running again", "back", "resumed"})


def events(session: Session, options: argparse.Namespace) -> int:
    """Run ``events``; its exit code.

    Raises:
        ConfigError: the options contradict each other. Permanent: there is no such instance or host.
    """
    most = parse_count(options.limit, "--limit", most=MOST_LIMIT) if options.limit is not None else DEFAULT_LIMIT
    since = _since(options.since)
    if options.host is not None and (options.instance is not None or options.selector is not None):
        raise ConfigError("instances and --host exclude each other: give one of them, or none for all that happened")
    if options.follow and options.output not in (None, "wide", "json"):
        raise ConfigError("-f prints lines, or JSON, one happening a line (-o json); other forms need all of it at once")
    scope = _scope(session, options)
    names = Names(session.store, session.keys)
    if options.follow:
        return _follow(session, options, scope, names, most=most, since=since)
    found = newest(session.store.newest(scope.prefix, serializable=True), scope, most, since)
    if not found and options.instance is not None:
        _refuse_unknown(session, parse_instance(options.instance))
    names.learn(found)
    emit(
        session.screen, options, lambda: [as_json(one, names.of(one)) for one in found],
        lambda look: events_table([(one, names.of(one)) for one in found], look),
    )  # fmt: skip
    return 0


def _refuse_unknown(session: Session, who: UUID | str) -> None:
    """Raises: Permanent: nothing happened to *who*, and it is not there either; a name was found already."""
    if isinstance(who, UUID) and session.store.get(session.keys.instance(who)) is None:
        raise no_such(who)


def _since(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=parse_duration(text, "--since"))


def _scope(session: Session, options: argparse.Namespace) -> Scope:
    if options.selector is not None:
        return of_all(session.keys, instances=frozenset(map(UUID, options.instances)))
    if options.instance is not None:
        return of_instance(session.store, session.keys, parse_instance(options.instance))
    if options.host is not None:
        return of_all(session.keys, _provider(session, options.host))
    return of_all(session.keys)


def _provider(session: Session, who: str) -> UUID:
    """The host that is meant; one that was removed is still known by its provider."""
    try:
        return find_host(session.store, session.keys, who).provider
    except Permanent:
        with contextlib.suppress(ValueError):
            return UUID(who)
        raise


def _follow(
    session: Session, options: argparse.Namespace, scope: Scope, names: Names, *, most: int, since: datetime.datetime | None
) -> int:
    """Print what happened, then what happens, until the program is interrupted."""
    follower = Follower(session.store, session.keys, scope)

    def show(happening: Happening) -> None:
        names.learn([happening])
        if options.output == "json":
            session.screen.data(json.dumps(as_json(happening, names.of(happening)), ensure_ascii=False) + "\n")
        else:
            look = session.screen.look(is_wide=options.output == "wide")
            session.screen.data(event_line(happening, names.of(happening), look))

    session.screen.end_with_reader()
    try:
        past = follower.history(most, since)
        names.learn(past)
        for happening in past:
            show(happening)
        for happening in follower.run():
            show(happening)
    finally:
        follower.close()
    return 0


# -- text and JSON, pure -------------------------------------------------------------------------------------------------


def events_table(rows: Sequence[tuple[Happening, str]], look: Look = PLAIN) -> str:
    """What happened, each with its host's name."""
    return table(_COLUMNS, [_cells(one, host, look) for one, host in rows], look)


def event_line(one: Happening, host: str, look: Look) -> str:
    """One line of what is followed, whole: what matters most is at its end."""
    is_narrow = look.width is not None and look.width < ROOMY
    widths = _NARROW if is_narrow else _WIDTHS
    cells = [escaped(cell.text if isinstance(cell, Coloured) else cell) for cell in _cells(one, host, look)]
    if is_narrow and not look.is_wide:
        cells[0] = cells[0][11:]  # the day is that of the line before, or today's
    parts = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False) if cell or width]
    parts += cells[len(widths) : 6 + look.is_wide]
    return "  ".join(parts).rstrip() + "\n"


def _cells(one: Happening, host: str, look: Look) -> tuple[str | Coloured, ...]:
    colour = "red" if one.what in _BAD else "green" if one.what in _GOOD else ""
    of = f"host {one.name or host}" if one.subject is Subject.HOST else one.name or str(one.uuid)
    return (
        one.at[:19].replace("T", " ") if not look.is_wide else one.at,
        Coloured(one.what, colour), of, host, one.by, _detail(one), str(one.uuid),
    )  # fmt: skip


def _detail(one: Happening) -> str:
    return "; ".join(part for part in (one.message, f"reason: {one.reason}" if one.reason else "") if part)


def as_json(one: Happening, host: str) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return {
        "at": one.at,
        "event": one.what,
        "of": str(one.subject),
        "uuid": str(one.uuid),
        "name": one.name,
        "host": {"provider": str(one.provider) if one.provider else None, "name": host},
        "by": one.by,
        "reason": one.reason,
        "message": one.message,
    }
