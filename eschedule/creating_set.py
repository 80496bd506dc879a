"""The command ``create --count N``: place the set, follow all of it, say what came of each."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import uuid as uuids
from collections import Counter
from functools import partial
from uuid import UUID

from common.errors import EcomputeError, Permanent
from eschedule import render
from eschedule.batch import BatchScheduler, PlacedSet
from eschedule.creating import again_line, milliseconds, place_of, planner_of, repeatable, timings_file_of, write_timings
from eschedule.follow import Ending, Follower, Goal, Outcome, View, judge
from eschedule.interruption import Interrupted
from eschedule.output import emit
from eschedule.request import Request
from eschedule.session import Session
from eschedule.waiting import goal_of, rows_of, tell_notes, unreached, wait_seconds_of


def create_set(session: Session, options: argparse.Namespace, request: Request) -> int:
    """Create all that *request* asks for, or nothing; the exit code: 1 where one failed, 4 where one was not waited for.

    Raises:
        EcomputeError: as ``BatchScheduler.create_all``; a lost answer comes with the line that repeats the request.
    """
    goal, wait_seconds = goal_of(options), wait_seconds_of(session, options)
    timings_file = timings_file_of(options)
    is_new = request.request_id is None
    if is_new:
        request = dataclasses.replace(request, request_id=str(uuids.uuid4()))
    assert request.request_id is not None  # noqa: S101 - set above
    begun = session.clock()
    outcomes: dict[UUID, Outcome | EcomputeError] = {}
    placed: PlacedSet | None = None
    try:
        placed = _place(session, request, again_line(options, "--request-id", request.request_id), is_new=is_new)
        waiting_since = session.clock()
        if not options.no_wait:
            outcomes = _wait_for_all(session, placed, goal, wait_seconds)
    except Interrupted as interrupted:
        session.screen.message(_left_behind(session, request, placed, interrupted))
        return interrupted.exit_code
    ended = session.clock()
    waited, total = milliseconds(ended - waiting_since), milliseconds(ended - begun)
    if timings_file:
        what = {"instances": [place_of(one) for one in placed.instances]}
        write_timings(session, timings_file, what, {**placed.timings_ms, "wait": waited, "total": total})
    _print(session, options, placed)
    return _tell_failures(session, placed, outcomes, goal, waited / 1000)


def _place(session: Session, request: Request, again: str, *, is_new: bool) -> PlacedSet:
    create_all = partial(planner_of(session, BatchScheduler).create_all, request, is_new=is_new)
    placed = repeatable(create_all, "request id", again)
    session.close_placement()
    known = sum(one.is_repeat for one in placed.instances)
    if known:
        session.screen.message(f"{known} of {request.count} instances are there already, from this same request")
    session.interruption.check()
    return placed


def _wait_for_all(
    session: Session, placed: PlacedSet, goal: Goal, wait_seconds: float
) -> dict[UUID, Outcome | EcomputeError]:  # fmt: skip
    views: dict[UUID, View] = {}
    warned: set[UUID] = set()

    def on_view(view: View) -> None:
        views[view.uuid] = view
        if view.host is None and view.provider not in warned:
            warned.add(view.provider)
            session.screen.warning(f"{view.where}: what is to be built there goes on when that host is back")
        session.screen.progress(progress_of_set(views, len(placed.instances), goal))

    follower = Follower(session.store, session.keys, on_view=on_view, clock=session.clock)
    return follower.follow_all({one.uuid: one.provider for one in placed.instances}, goal, wait_seconds)


def progress_of_set(views: dict[UUID, View], count: int, goal: Goal = Goal.RUNNING) -> str:
    """How far a set of *count* instances has come: ``2 of 4 running, 1 building, 1 waiting for a host``."""
    stages = Counter(_stage(view, goal) for view in views.values() if view.is_fresh)
    there = stages.pop(goal.value, 0)
    waiting = count - there - sum(stages.values())
    others = [f"{number} {stage}" for stage, number in sorted(stages.items())]
    return ", ".join([f"{there} of {count} {goal}", *others, *([f"{waiting} waiting for a host"] if waiting else [])])


def _stage(view: View, goal: Goal) -> str:
    outcome = judge(goal, view)
    if outcome is not None and outcome.ending is Ending.REACHED:
        return goal.value
    return str(view.status.phase).lower() if view.status else ""


def _print(session: Session, options: argparse.Namespace, placed: PlacedSet) -> None:
    rows = rows_of(session, [one.uuid for one in placed.instances])
    now = datetime.datetime.now(datetime.UTC)
    emit(
        session.screen,
        options,
        lambda: [render.instance_json(row) for row in rows],
        lambda look: render.instance_table(rows, now, look),
    )
    for row in rows:
        tell_notes(session, row.name, row.status)


def _tell_failures(
    session: Session, placed: PlacedSet, outcomes: dict[UUID, Outcome | EcomputeError], goal: Goal, waited_seconds: float
) -> int:  # fmt: skip
    """Say of each instance that did not reach *goal* why; the exit code."""
    codes = {0}
    for one in placed.instances:
        outcome = outcomes.get(one.uuid)
        if outcome is None or (isinstance(outcome, Outcome) and outcome.ending is Ending.REACHED):
            continue
        error = unreached(one.name, outcome, goal, waited_seconds) if isinstance(outcome, Outcome) else outcome
        session.screen.error(str(error))
        codes.add(1 if isinstance(error, Permanent) else 4)
    if codes == {0} and outcomes:
        done = "run" if goal is Goal.RUNNING else "are ready"
        session.screen.message(f"all {len(placed.instances)} {done} after {session.screen.elapsed()}")
    return 1 if 1 in codes else max(codes)


def _left_behind(session: Session, request: Request, placed: PlacedSet | None, interrupted: Interrupted) -> str:
    """What a run that was interrupted leaves, as etcd says it now."""
    members = request.members(request.instance_uuid(session.keys.prefix, uuids.uuid4))
    keys = [session.keys.instance(member.uuid) for member in members if member.uuid]
    try:
        with session.last_look() as store:
            found = len(store.get_many(keys))
    except EcomputeError:
        return f"interrupted; what of the set was recorded is unknown; look: eschedule list; request id: {request.request_id}"
    if placed and found:
        return f"interrupted; {found} instances go on being built; look: eschedule list"
    if found:
        return f"interrupted; of {request.count} instances {found} were recorded or are to be destroyed; look: eschedule list"
    if interrupted.was_forced:
        return "interrupted in the middle; no instance was recorded; claims, if any were made, are released within ten minutes"
    return "interrupted; nothing was created"
