"""The commands ``capacity`` and ``explain``: how many of a request fit, what speaks against each host. They claim nothing."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from common.model import ImageRef
from common.placement_types import OWNER_TRAIT
from common.text import counted
from common.validate_query import parse_resources_query
from eschedule import packing, whynot
from eschedule.claims import describe
from eschedule.listing import host_names
from eschedule.needs import places_of, query_of
from eschedule.ordering import in_order
from eschedule.output import emit
from eschedule.packing import Option, Room
from eschedule.query import Query
from eschedule.request import Request
from eschedule.session import Session
from eschedule.tables import Coloured, Column, Look, table

MOST_COUNTED = 10_000  # for each host


@dataclass(frozen=True)
class Verdict:
    """What became of one host; *rank* is its place among the candidates, from 1, None where it is none."""

    provider: UUID
    name: str
    rank: int | None
    reason: str


@dataclass(frozen=True)
class _Asked:
    """A request, and who could take it: live hosts, in the order of schedule.yaml."""

    request: Request
    options: Sequence[Option]
    names: Mapping[UUID, str]
    rooms: Mapping[UUID, Room]


def capacity(session: Session, options: argparse.Namespace) -> int:
    """Run ``capacity``: 0 where at least one fits, else 3."""
    asked = _ask(session, query_of(options, partial(places_of, session)))
    rows = sorted(asked.rooms.items(), key=lambda pair: (-pair[1].count, asked.names[pair[0]]))
    total = sum(room.count for _, room in rows)
    emit(
        session.screen,
        options,
        lambda: _capacity_json(rows, asked.names),
        lambda look: capacity_table(rows, asked.names, look),
    )
    if rows:
        session.screen.message(f"{total} more of {describe(asked.request.resources)} fit, on {counted(len(rows), 'host')}")
        return 0
    session.screen.message(_explained(session, asked.request))
    return 3


def explain(session: Session, options: argparse.Namespace) -> int:
    """Run ``explain``: 0 where a host could take it, else 3."""
    asked = _ask(session, query_of(options, partial(places_of, session)))
    found = verdicts(session, asked)
    emit(session.screen, options, lambda: [_verdict_json(one) for one in found], lambda look: verdict_table(found, look))
    if not found:
        session.screen.message(whynot.NO_HOST)
    return 0 if asked.options else 3


def _ask(session: Session, text: str) -> _Asked:
    parsed = parse_resources_query(text)
    request = Request(parsed.query, parsed.resources, ImageRef(""))
    session.screen.progress("asking Placement for candidates")
    answer = session.placement.candidates(str(Query.parse(request.query).on_hosts()), None)
    ordered = in_order(answer, session.config.policy, random.Random(0))  # noqa: S311 - an order to look at
    found = [(candidate, candidate.host(answer.summaries)) for candidate in ordered]
    names = _alive(session, {host for _, host in found})
    live = [option for option in found if option[1] in names]
    return _Asked(request, live, names, packing.room(live, answer.summaries, MOST_COUNTED))


def _alive(session: Session, providers: set[UUID]) -> dict[UUID, str]:
    """The names of those of *providers* whose host has a heartbeat."""
    keys = {session.keys.host(provider): provider for provider in providers}
    items = session.store.get_many(keys)
    alive = {keys[key]: item for key, item in items.items()}
    return {provider: name.name for provider, name in host_names(session.store, session.keys, alive, alive).items()}


def _explained(session: Session, request: Request) -> str:
    return whynot.explain(
        request, placement=session.placement, host_names=lambda hosts: _alive(session, hosts), lost=frozenset(), group=None
    )


def verdicts(session: Session, asked: _Asked) -> list[Verdict]:
    """What speaks for or against each host: the candidates first, in the order in which they would be tried."""
    ranks = {host: rank for rank, host in enumerate(dict.fromkeys(host for _, host in asked.options), start=1)}
    judged = whynot.judged(
        asked.request, placement=session.placement, host_names=lambda hosts: _alive(session, hosts), fitting=ranks.keys()
    )
    others = {provider.uuid for provider in session.placement.providers(OWNER_TRAIT)} - ranks.keys()
    names = host_names(session.store, session.keys, others, {})
    found = [Verdict(host, asked.names[host], rank, _fits(asked.rooms[host])) for host, rank in ranks.items()]
    for provider, name in sorted(((one, names[one].name) for one in others), key=lambda pair: pair[1]):
        reason = "full"
        if provider in judged.hosts:
            reason = judged.reasons.get(provider) or "refused by Placement"
            reason += whynot.nearest_miss(reason, asked.request, [judged.hosts[provider]], {provider: name})
        found.append(Verdict(provider, name, None, reason))
    return found


def _fits(room: Room) -> str:
    return f"fits, {room.count} of them"


# -- text and JSON -------------------------------------------------------------------------------------------------------


def capacity_table(rows: Sequence[tuple[UUID, Room]], names: Mapping[UUID, str], look: Look) -> str:
    cells = [(names[host], str(room.count), _lacks(room)) for host, room in rows]
    return table((Column("HOST", 12), "FIT", Column("THE NEXT ONE LACKS", 20)), cells, look)


def _lacks(room: Room) -> str:
    return ", ".join(f"{lack.resource_class} ({lack.free} free, {lack.amount} needed)" for lack in room.lacks)


def _capacity_json(rows: Sequence[tuple[UUID, Room]], names: Mapping[UUID, str]) -> list[dict[str, Any]]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return [
        {
            "name": names[host], "provider": str(host), "count": room.count,
            "lacks": [{"resource_class": one.resource_class, "free": one.free, "amount": one.amount} for one in room.lacks],
        }
        for host, room in rows
    ]  # fmt: skip


def verdict_table(found: Sequence[Verdict], look: Look) -> str:
    cells = [
        (str(one.rank or ""), one.name, Coloured(one.reason, "green" if one.rank else "red"), str(one.provider))
        for one in found
    ]
    return table(("ORDER", Column("HOST", 12), Column("VERDICT", 20), Column("PROVIDER", is_wide=True)), cells, look)


def _verdict_json(one: Verdict) -> dict[str, Any]:
    return {"name": one.name, "provider": str(one.provider), "rank": one.rank, "reason": one.reason}
