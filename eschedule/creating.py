"""The command ``create``: check the request, place it, follow it to a running guest, say what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import uuid as uuids
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, Permanent, Transient
from common.files import write_atomically
from common.validate import parse_seconds
from eschedule import render
from eschedule.changes import read
from eschedule.follow import Ending, Follower, Goal, Outcome, View
from eschedule.intake import request_from
from eschedule.interruption import Interrupted
from eschedule.listing import InstanceRow, host_names, instance_row
from eschedule.request import Request
from eschedule.scheduler import Placed, Scheduler
from eschedule.screen import seconds_text
from eschedule.session import Session, user_at_host


def create(session: Session, options: argparse.Namespace) -> int:
    """Run ``create``; its exit code.

    Raises:
        EcomputeError: as ``Scheduler.create``; a lost answer comes with the line that repeats the request.
    """
    request = request_from(options, session.config)
    wait_seconds = wait_seconds_of(session, options)
    timings_file = _timings_file(options)
    instance = request.instance_uuid(session.keys.prefix, uuids.uuid4)
    request = dataclasses.replace(request, uuid=instance)
    begun = session.clock()
    try:
        placed = _place(session, request, _again(options, instance))
        waiting_since = session.clock()
        outcome = None if options.no_wait else wait(session, instance, Goal.RUNNING, wait_seconds)
    except Interrupted as interrupted:
        session.screen.message(_left_behind(session, request, instance, interrupted))
        return interrupted.exit_code
    ended = session.clock()
    timings_ms = {**placed.timings_ms, "wait": _ms(ended - waiting_since), "total": _ms(ended - begun)}
    if timings_file:
        _write_timings(session, timings_file, placed, timings_ms)
    return _report(session, options, placed, outcome, timings_ms)


def _place(session: Session, request: Request, again: str) -> Placed:
    config, screen = session.config, session.screen
    scheduler = Scheduler(
        session.store, session.placement, session.keys, policy=config.policy,
        candidates_limit=config.candidates_limit, claim_deadline_seconds=config.placement.deadline_seconds,
        created_by=user_at_host(), interruption=session.interruption, on_step=screen.progress, on_warning=screen.warning,
        clock=session.clock,
    )  # fmt: skip
    try:
        placed = scheduler.create(request)
    except (Conflict, ConfigError):
        raise
    except Transient as error:
        raise Transient(f"{error}; to go on, repeat it with the same uuid: {again}") from error
    if placed.is_repeat:
        screen.message(f"{placed.name} is there already, from this same request")
    session.interruption.check()
    return placed


def wait(session: Session, instance: UUID, goal: Goal, wait_seconds: float) -> Outcome:
    """Follow *instance* to *goal* with live progress; a host without a heartbeat is named once."""
    warned: set[UUID] = set()

    def on_view(view: View) -> None:
        if view.host is None and view.provider not in warned:
            warned.add(view.provider)
            session.screen.warning(f"{view.where}: {view.name} goes on when that host is back")
        session.screen.progress(render.progress_line(view))

    return Follower(session.store, session.keys, on_view=on_view, clock=session.clock).follow(instance, goal, wait_seconds)


def wait_seconds_of(session: Session, options: argparse.Namespace) -> float:
    """How long to wait.

    Raises:
        ConfigError: the option is no number.
    """
    if options.wait_seconds is None:
        return session.config.wait_seconds
    if options.no_wait:
        raise ConfigError("--no-wait and --wait-seconds exclude each other; give one of them")
    return parse_seconds(options.wait_seconds, "--wait-seconds")


def row_of(session: Session, instance: UUID, who: UUID | str | None = None) -> InstanceRow:
    """*instance* as it is now.

    Raises:
        Permanent: it is not there.
    """
    found = read(session.store, session.keys, instance, who)
    alive = {found.provider: found.host} if found.host else {}
    host = host_names(session.store, session.keys, {found.provider}, alive)[found.provider]
    return instance_row(found.uuid, host, found.spec_item, found.status_item)


def _report(
    session: Session, options: argparse.Namespace, placed: Placed, outcome: Outcome | None, timings_ms: dict[str, float]
) -> int:
    """Print the end of it; the exit code."""
    if options.json:
        try:
            row = row_of(session, placed.uuid)
        except Permanent:  # destroyed by somebody else a moment ago
            row = None
        if row:
            session.screen.data(render.as_json(render.instance_json(row, timings_ms)))
    if outcome is None or outcome.ending is Ending.REACHED:
        if not options.json:
            session.screen.data(render.block(_summary(placed, outcome, timings_ms["total"])))
        return 0
    raise unreached(placed.name, outcome, Goal.RUNNING, timings_ms["wait"] / 1000)


def _summary(placed: Placed, outcome: Outcome | None, total_ms: float) -> list[tuple[str, str]]:
    """What came of it, from what is known already: etcd is not asked again."""
    view = outcome.view if outcome else None
    host = (view.host if view else None) or placed.host
    addresses = [("address", address.address) for address in view.status.addresses] if view and view.status else []
    phase = "Running" if outcome else "asked for; see: eschedule show " + placed.name
    pairs = [("name", placed.name), ("uuid", str(placed.uuid)), ("host", host), ("phase", phase), *addresses]
    return [*pairs, ("elapsed", seconds_text(total_ms / 1000))]


def unreached(name: str, outcome: Outcome, goal: Goal, seconds: float) -> EcomputeError:
    """The error for a wait that did not end well; its text says what goes on and how to look at it."""
    view = outcome.view
    where = f" on {view.where}" if view else ""
    if outcome.ending is Ending.TIMED_OUT:
        doing = render.progress_line(view) if view else name
        return Transient(f"not {goal} after {seconds_text(seconds)}: {doing}; it goes on; look: eschedule show {name}")
    return Permanent(f"{name}{where}: {outcome.message}; details: eschedule show {name}; remove it: eschedule destroy {name}")


def _again(options: argparse.Namespace, instance: UUID) -> str:
    """The command line that repeats this very request."""
    names_instance = options.uuid is not None or options.request_id is not None
    words: Sequence[str] = options.arguments if names_instance else [*options.arguments, "--uuid", str(instance)]
    return shlex.join(["eschedule", *words])


def _left_behind(session: Session, request: Request, instance: UUID, interrupted: Interrupted) -> str:
    """What a run that was interrupted leaves, as etcd says it now."""
    name = request.instance_name(instance)
    try:
        is_recorded = session.store.get(session.keys.instance(instance)) is not None
    except EcomputeError:
        return f"interrupted; whether {name} ({instance}) was recorded is unknown; look: eschedule show {instance}"
    if is_recorded:
        return f"interrupted; {name} goes on being built; look: eschedule show {name}; remove it: eschedule destroy {name}"
    if interrupted.was_forced:
        return "interrupted in the middle; no instance was recorded; a claim, if one was made, is released within ten minutes"
    return "interrupted; nothing was created"


def _timings_file(options: argparse.Namespace) -> Path | None:
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


def _write_timings(session: Session, path: Path, placed: Placed, timings_ms: dict[str, float]) -> None:
    value = {
        "uuid": str(placed.uuid),
        "name": placed.name,
        "provider": str(placed.provider),
        "host": placed.host,
        "timings_ms": {"candidates": 0, "claim": 0, "store": 0, **timings_ms},
    }
    try:
        write_atomically(path, (json.dumps(value, indent=2) + "\n").encode(), mode=0o644)
    except EcomputeError as error:
        session.screen.warning(f"the timings were not written: {error}")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
