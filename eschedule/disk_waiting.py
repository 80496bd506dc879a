"""Asking for another disk and waiting for the end of it; what ``snapshot revert`` and ``rebuild`` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from uuid import UUID

from common.errors import EcomputeError, Permanent
from common.text import escaped
from eschedule.asking import ask
from eschedule.changes import Edit, Instance
from eschedule.commands import Finish, ask_then_wait
from eschedule.follow import Ending, Goal, Outcome
from eschedule.interruption import Interrupted
from eschedule.session import Session
from eschedule.waiting import bound_of, unreached, wait


def ask_and_wait(
    session: Session, options: argparse.Namespace, whom: Iterable[UUID | str], *, edit: Edit, goal: Goal, done: str
) -> int:  # fmt: skip
    """Have *edit* made to the instances *whom* and wait for *goal* of each unless *options* say otherwise.

    Args:
        done: what an instance is then, for people: "is rebuilt".

    Returns:
        The exit code of the first that failed.
    """
    wait_seconds = bound_of(session, options)
    asked: list[Instance] = []

    def ask_one(who: UUID | str) -> Finish:
        asked.append(found := ask(session, who, edit))
        session.interruption.check()
        return partial(_finish, session, found, goal, done)

    try:
        return ask_then_wait(session, [partial(ask_one, who) for who in whom], wait_seconds)
    except Interrupted as interrupted:
        names = ", ".join(found.name for found in asked)
        what = f"what {names} {'was' if len(asked) == 1 else 'were'} asked for goes on" if asked else "nothing was changed"
        session.screen.message(f"interrupted; {what}; look: eschedule {f'show {names}' if len(asked) == 1 else 'list'}")
        return interrupted.exit_code


def _finish(session: Session, found: Instance, goal: Goal, done: str, wait_seconds: float | None) -> None:
    if wait_seconds is None:
        session.screen.message(f"{found.name}: asked for; look: eschedule show {found.name}")
        return
    begun = session.clock()
    outcome = wait(session, found.uuid, goal, wait_seconds, provider=found.provider)
    if outcome.ending is not Ending.REACHED:
        raise _not_done(found, outcome, goal, session.clock() - begun)
    session.screen.message(f"{found.name} ({found.uuid}) {done} after {session.screen.elapsed()}")


def _not_done(found: Instance, outcome: Outcome, goal: Goal, seconds: float) -> EcomputeError:
    if outcome.ending is Ending.TIMED_OUT:
        return unreached(found.name, outcome, goal, seconds)
    where = f" on {outcome.view.where}" if outcome.view else ""
    return Permanent(f"{found.name}{where}: {escaped(outcome.message)}; details: eschedule show {found.name}")
