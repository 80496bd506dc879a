"""What the verbs that only look do: read, and hand what was read to the screen. They neither wait nor change anything."""

from __future__ import annotations

import argparse
import dataclasses
import datetime

from common.errors import Permanent, PlacementUnavailable
from common.retry import Deadline
from common.text import counted, quoted
from eschedule import render
from eschedule.labels import parse_selector
from eschedule.listing import HostRow, list_hosts, list_instances
from eschedule.output import emit, is_for_programs
from eschedule.session import Session

LATENCY_SECONDS = 3.0  # that a host has to answer; one that takes longer is as good as silent


def list_(session: Session, options: argparse.Namespace) -> int:
    selector = None if options.selector is None else parse_selector(options.selector)
    rows = list_instances(session.store, session.keys)
    if selector is not None:
        rows = [row for row in rows if row.spec is not None and selector.takes(row.spec.labels)]
        if not rows and not is_for_programs(options):
            raise no_match(options.selector)
    emit(
        session.screen, options, lambda: render.instance_list_json(rows), lambda look: render.instance_table(rows, _now(), look)
    )
    if selector is not None and not rows:
        raise no_match(options.selector)
    return 0


def no_match(selector: str) -> Permanent:
    """What is said where *selector* chooses nothing."""
    return Permanent(f"no instance has labels like {quoted(selector)}; see: eschedule list -o wide", "NotFound")


def show(session: Session, options: argparse.Namespace) -> int:
    from common.validate import parse_instance  # noqa: PLC0415 - these are more than list and hosts need
    from eschedule.changes import find  # noqa: PLC0415
    from eschedule.waiting import row_of  # noqa: PLC0415

    whom = [parse_instance(text) for text in ([options.instance] if options.selector is None else options.instances)]
    rows = [row_of(session, find(session.store, session.keys, who), who) for who in whom]
    found = [render.instance_json(row) for row in rows]
    emit(
        session.screen,
        options,
        lambda: found[0] if options.selector is None else found,
        lambda _: "\n".join(render.instance_block(row, _now()) for row in rows),
    )
    return 0


def hosts(session: Session, options: argparse.Namespace) -> int:
    """The hosts with what is used of them; without an answer of Placement the rest is printed and the exit code is 4."""
    unavailable: PlacementUnavailable | None = None
    try:
        rows = list_hosts(session.store, session.keys, session.placement)
    except PlacementUnavailable as error:
        unavailable = error
        rows = list_hosts(session.store, session.keys, None)
    if options.output == "wide":
        rows = _with_latency(session, rows)
    emit(session.screen, options, lambda: render.host_list_json(rows), lambda look: render.host_table(rows, _now(), look))
    if unavailable:
        raise unavailable
    return 0


def _with_latency(session: Session, rows: list[HostRow]) -> list[HostRow]:
    """*rows* with how long each host took to answer a letter; all are asked at once, and waited for a moment only."""
    from eschedule.post import latencies  # noqa: PLC0415 - only for the wide table

    alive = [row.host.provider for row in rows if row.host.is_alive]
    session.screen.progress(f"asking {counted(len(alive), 'host')}")
    found = latencies(session.store, session.keys, alive, Deadline(LATENCY_SECONDS, session.clock), session.clock)
    return [dataclasses.replace(row, latency_seconds=found.get(row.host.provider)) for row in rows]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
