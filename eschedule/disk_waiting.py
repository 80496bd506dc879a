"""Asking for another disk and waiting for the end of it; what ``snapshot revert`` and ``rebuild`` have in common."""

from __future__ import annotations

import argparse
from uuid import UUID

from common.errors import EcomputeError, Permanent
from common.text import escaped
from eschedule.asking import ask
from eschedule.changes import Edit, Instance
from eschedule.follow import Ending, Goal, Outcome
from eschedule.interruption import Interrupted
from eschedule.session import Session
from eschedule.waiting import unreached, wait, wait_seconds_of


def ask_and_wait(session: Session, options: argparse.Namespace, who: UUID | str, *, edit: Edit, goal: Goal, done: str) -> int:
    """Have *edit* made to the instance *who* and wait for *goal* unless *options* say otherwise; the exit code.

    Args:
        done: what the instance is then, for people: "is rebuilt".

    Raises:
        EcomputeError: as ``ask``; or it was not reached, and the text says why and what goes on.
    """
    wait_seconds = wait_seconds_of(session, options)
    found = ask(session, who, edit)
    try:
        session.interruption.check()
        if options.no_wait:
            session.screen.message(f"{found.name}: asked for; look: eschedule show {found.name}")
            return 0
        begun = session.clock()
        outcome = wait(session, found.uuid, goal, wait_seconds, provider=found.provider)
    except Interrupted as interrupted:
        session.screen.message(f"interrupted; what {found.name} was asked for goes on; look: eschedule show {found.name}")
        return interrupted.exit_code
    if outcome.ending is not Ending.REACHED:
        raise _not_done(found, outcome, goal, session.clock() - begun)
    session.screen.message(f"{found.name} ({found.uuid}) {done} after {session.screen.elapsed()}")
    return 0


def _not_done(found: Instance, outcome: Outcome, goal: Goal, seconds: float) -> EcomputeError:
    if outcome.ending is Ending.TIMED_OUT:
        return unreached(found.name, outcome, goal, seconds)
    where = f" on {outcome.view.where}" if outcome.view else ""
    return Permanent(f"{found.name}{where}: {escaped(outcome.message)}; details: eschedule show {found.name}")
