"""The command ``create``, and what it does for one instance: place it, follow it to a running guest, say what came of it.

``creating_set`` does so for several, with what both have in common from here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import ConfigError, Conflict, EcomputeError, Permanent, Transient
from common.files import write_atomically
from common.user_data import doubt_about
from eschedule import render
from eschedule.cards import unheard, untold
from eschedule.follow import Ending, Goal, Outcome
from eschedule.image_registry import registered
from eschedule.intake import request_from
from eschedule.interruption import Interrupted
from eschedule.likeness import like
from eschedule.needs import places_of, query_of
from eschedule.output import is_for_programs, rendered
from eschedule.planning import Planner
from eschedule.request import Request
from eschedule.scheduler import Placed, Scheduler
from eschedule.screen import seconds_text
from eschedule.session import Session, user_at_host
from eschedule.stored_keys import look_up
from eschedule.waiting import check_can_report, goal_of, row_of, tell_notes, unreached, wait, wait_seconds_of

if TYPE_CHECKING:
    from common.placement import Placement

P = TypeVar("P", bound=Planner)
T = TypeVar("T")


def create(session: Session, options: argparse.Namespace) -> int:
    """Run ``create``; its exit code."""
    if options.file is not None:
        from eschedule.applying import create_from_file  # noqa: PLC0415 - imports this module

        return create_from_file(session, options)
    return create_asked(session, options)


def create_asked(session: Session, options: argparse.Namespace) -> int:
    """Create what *options* say; the exit code."""
    request = _request_of(session, options)
    if options.dry_run:
        goal_of(options), wait_seconds_of(session, options)  # judged all the same
        from eschedule.dry_run import dry_run  # noqa: PLC0415 - imports this module

        return dry_run(session, options, request)
    _warn(session, options, request)
    check_can_report(options, request)
    if request.count > 1:
        from eschedule.creating_set import create_set  # noqa: PLC0415 - imports this module, and most requests are for one

        return create_set(session, options, request)
    return create_one(session, options, request)


def ask_for_one(session: Session, options: argparse.Namespace) -> Placed:
    """Ask for the one instance that a file says by *options*; where it was placed. Whoever called waits for it later.

    Raises:
        EcomputeError: as ``create_one``.
    """
    request = _request_of(session, options)
    _warn(session, options, request)
    request = dataclasses.replace(request, uuid=request.instance_uuid(session.keys.prefix, uuids.uuid4))
    return _place(session, request, "file", again_line(options))  # in which the instance has a name


def _request_of(session: Session, options: argparse.Namespace) -> Request:
    base = None if options.like is None else like(session, options.like)
    options.query = query_of(options, partial(places_of, session), base.query if base else "")
    return request_from(
        options, session.config, partial(look_up, session), lambda name: registered(session.store, session.keys, name), base
    )


def _warn(session: Session, options: argparse.Namespace, request: Request) -> None:
    """Tell what will most likely not come to pass as it was meant."""
    access, drive, has_user_data = request.metadata, request.config_drive, request.user_data is not None
    if request.user_data is not None and (doubt := doubt_about(request.user_data)):
        session.screen.warning(f"{f'--user-data {options.user_data}' if options.user_data else 'its user data'}: {doubt}")
    if lost := untold(access, drive, has_keys=bool(request.keys), has_user_data=has_user_data):
        session.screen.warning(lost)
    has_to_report, is_told = goal_of(options) is Goal.READY, bool(request.keys) or has_user_data
    if doubt := unheard(request.nics, access, drive, has_to_report=has_to_report, is_told=is_told):
        session.screen.warning(doubt)


def create_one(session: Session, options: argparse.Namespace, request: Request) -> int:
    """Create what *request* asks for; the exit code.

    Raises:
        EcomputeError: as ``Scheduler.create``; a lost answer comes with the line that repeats the request.
    """
    goal, wait_seconds = goal_of(options), wait_seconds_of(session, options)
    timings_file = timings_file_of(options)
    instance = request.instance_uuid(session.keys.prefix, uuids.uuid4)
    request = dataclasses.replace(request, uuid=instance)
    begun = session.clock()
    try:
        placed = _place(session, request, "uuid", again_line(options, "--uuid", str(instance)))
        waiting_since = session.clock()
        outcome = None
        if not options.no_wait:
            outcome = wait(session, instance, goal, wait_seconds, provider=placed.provider)
    except Interrupted as interrupted:
        session.screen.message(_left_behind(session, request, interrupted))
        return interrupted.exit_code
    ended = session.clock()
    timings_ms = {**placed.timings_ms, "wait": milliseconds(ended - waiting_since), "total": milliseconds(ended - begun)}
    if timings_file:
        write_timings(session, timings_file, place_of(placed), timings_ms)
    return _report(session, options, placed, outcome, timings_ms)


def planner_of(session: Session, kind: type[P], placement: Placement | None = None) -> P:
    """A scheduler of *kind* with what *session* has, and with *placement* where its claims are not of instances."""
    config, screen = session.config, session.screen
    return kind(
        session.store, placement or session.placement, session.keys, policy=config.policy,
        candidates_limit=config.candidates_limit, claim_deadline_seconds=config.placement.deadline_seconds,
        created_by=user_at_host(), act=session.act, interruption=session.interruption, on_step=screen.progress,
        on_warning=screen.warning, clock=session.clock,
    )  # fmt: skip


def repeatable(action: Callable[[], T], what: str, again: str) -> T:
    """The answer of *action*; an error after which it may be repeated comes with *again*, the line that does so."""
    try:
        return action()
    except (Conflict, ConfigError):
        raise
    except Transient as error:
        raise Transient(f"{error}; to go on, repeat it with the same {what}: {again}") from error


def again_line(options: argparse.Namespace, *names_it: str) -> str:
    """The command line that repeats this very request, completed by the option *names_it* unless it has such a one."""
    is_named = options.uuid is not None or options.request_id is not None
    words: Sequence[str] = options.arguments if is_named else [*options.arguments, *names_it]
    return shlex.join(["eschedule", *words])


def _place(session: Session, request: Request, what: str, again: str) -> Placed:
    """Place *request*, which has its uuid by now."""
    screen = session.screen
    placed = repeatable(partial(planner_of(session, Scheduler).create, request), what, again)
    session.close_placement()
    if placed.is_repeat:
        screen.message(f"{placed.name} is there already, from this same request")
    session.interruption.check()
    return placed


def _report(
    session: Session, options: argparse.Namespace, placed: Placed, outcome: Outcome | None, timings_ms: dict[str, float]
) -> int:
    """Print the end of it; the exit code."""
    if is_for_programs(options):
        with contextlib.suppress(Permanent):  # destroyed by somebody else a moment ago
            row = row_of(session, placed.uuid)
            session.screen.data(rendered(render.instance_json(row, timings_ms), options.output))
    if outcome is None or outcome.ending is Ending.REACHED:
        tell_notes(session, placed.name, outcome.view.status if outcome and outcome.view else None)
        if not is_for_programs(options):
            session.screen.data(render.block(_summary(placed, outcome, timings_ms["total"])))
        return 0
    raise unreached(placed.name, outcome, goal_of(options), timings_ms["wait"] / 1000)


def _summary(placed: Placed, outcome: Outcome | None, total_ms: float) -> list[tuple[str, str]]:
    """What came of it, from what is known already: etcd is not asked again."""
    view = outcome.view if outcome else None
    host = (view.host if view else None) or placed.host
    status = view.status if view else None
    addresses = [("address", ", ".join(card.all_addresses)) for card in status.addresses] if status else []
    phase = "Running" if outcome else "asked for; see: eschedule show " + placed.name
    pairs = [("name", placed.name), ("uuid", str(placed.uuid)), ("host", host), ("phase", phase), *addresses]
    if status and status.ready:
        pairs += render.ready_pairs(status.ready)
    return [*pairs, ("elapsed", seconds_text(total_ms / 1000))]


def _left_behind(session: Session, request: Request, interrupted: Interrupted) -> str:
    """What a run that was interrupted leaves of *request*, which has its uuid, as etcd says it now."""
    instance = request.uuid
    assert instance is not None  # noqa: S101 - whoever calls has set it
    name = request.instance_name(instance)
    try:
        with session.last_look() as store:
            is_recorded = store.get(session.keys.instance(instance)) is not None
    except EcomputeError:
        return f"interrupted; whether {name} ({instance}) was recorded is unknown; look: eschedule show {instance}"
    if is_recorded:
        return f"interrupted; {name} goes on being built; look: eschedule show {name}; remove it: eschedule destroy {name}"
    if interrupted.was_forced:
        return "interrupted in the middle; no instance was recorded; a claim, if one was made, is released within ten minutes"
    return "interrupted; nothing was created"


def timings_file_of(options: argparse.Namespace) -> Path | None:
    """Where to write the timings.

    Raises:
        ConfigError: nothing can be written there.
    """
    if options.timings_file is None:
        return None
    path = Path(options.timings_file)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--timings-file {path} cannot be written; give a file in a folder that is there and writable")
    return path


def place_of(placed: Placed) -> dict[str, str]:
    """Which instance went where, for the file with the timings."""
    return {"uuid": str(placed.uuid), "name": placed.name, "provider": str(placed.provider), "host": placed.host}


def write_timings(session: Session, path: Path, what: Mapping[str, Any], timings_ms: Mapping[str, float]) -> None:
    """Write *timings_ms* of *what* to *path*; a failure is only a warning, as the instances are there."""
    value = {**what, "timings_ms": {"candidates": 0, "claim": 0, "store": 0, **timings_ms}}
    try:
        write_atomically(path, (json.dumps(value, indent=2) + "\n").encode(), mode=0o644)
    except EcomputeError as error:
        session.screen.warning(f"the timings were not written: {error}")


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
