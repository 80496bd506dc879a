"""What the verbs that only look do: read, and hand what was read to the screen. They neither wait nor change anything."""

from __future__ import annotations

import argparse
import datetime

from common.errors import PlacementUnavailable
from eschedule import render
from eschedule.listing import list_hosts, list_instances
from eschedule.session import Session


def list_(session: Session, options: argparse.Namespace) -> int:
    rows = list_instances(session.store, session.keys)
    json = options.json
    session.screen.data(render.as_json(render.instance_list_json(rows)) if json else render.instance_table(rows, _now()))
    return 0


def show(session: Session, options: argparse.Namespace) -> int:
    from common.validate import parse_instance  # noqa: PLC0415 - these are more than list and hosts need
    from eschedule.changes import find  # noqa: PLC0415
    from eschedule.waiting import row_of  # noqa: PLC0415

    who = parse_instance(options.instance)
    row = row_of(session, find(session.store, session.keys, who), who)
    session.screen.data(render.as_json(render.instance_json(row)) if options.json else render.instance_block(row, _now()))
    return 0


def hosts(session: Session, options: argparse.Namespace) -> int:
    """The hosts with what is used of them; without an answer of Placement the rest is printed and the exit code is 4."""
    unavailable: PlacementUnavailable | None = None
    try:
        rows = list_hosts(session.store, session.keys, session.placement)
    except PlacementUnavailable as error:
        unavailable = error
        rows = list_hosts(session.store, session.keys, None)
    session.screen.data(render.as_json(render.host_list_json(rows)) if options.json else render.host_table(rows, _now()))
    if unavailable:
        raise unavailable
    return 0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
