"""What the verbs that change instances do: reads arguments, calls the library, waits, says what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from uuid import UUID

from common.errors import EcomputeError
from common.validate import parse_instance
from eschedule.asking import ask
from eschedule.changes import Edit, Instance, destroyed, find, powered_off, rebooted, refuse_protected, started, stopped
from eschedule.confirming import NOT_DONE, is_meant, needs_asking
from eschedule.follow import Ending, Goal
from eschedule.interruption import Interrupted
from eschedule.session import Session
from eschedule.still_edits import paused, resumed, suspended, unpaused
from eschedule.verbs import exit_code
from eschedule.waiting import row_of, unreached, wait, wait_seconds_of


def destroy(session: Session, options: argparse.Namespace) -> int:
    if needs_asking(session, options) and not is_meant(session, options, _question(session, options)):
        return NOT_DONE
    return _change_all(session, options, destroyed, Goal.GONE, "destroyed")


def stop(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, powered_off if options.force else stopped, Goal.STOPPED, "stopped")


def start(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, started, Goal.RUNNING, "running")


def reboot(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, rebooted(hard=options.hard), Goal.REBOOTED, "rebooted")


def pause(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, paused, Goal.PAUSED, "paused")


def unpause(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, unpaused, Goal.RUNNING, "running")


def suspend(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, suspended, Goal.SUSPENDED, "suspended")


def resume(session: Session, options: argparse.Namespace) -> int:
    return _change_all(session, options, resumed, Goal.RUNNING, "running")


def _question(session: Session, options: argparse.Namespace) -> str:
    """What would go, for whoever is asked whether it is meant.

    Raises:
        EcomputeError: one is not there, or protected: then there is nothing to be asked.
    """
    found = []
    for who in whom_of(options):
        row = row_of(session, find(session.store, session.keys, who), who)
        if row.spec:
            refuse_protected(row.spec, "destroyed")
        found.append(f"{row.name} ({row.phase} on {row.host.name})")
    whose = "its disk" if len(found) == 1 else "their disks"
    return f"destroy {', '.join(found)}, with all that is on {whose}, for good?"


def _change_all(session: Session, options: argparse.Namespace, edit: Edit, goal: Goal, done: str) -> int:
    """Ask for *edit* on every instance that *options* name, then wait for each; the exit code of the first that failed.

    All are asked before the first is waited for, so that waiting takes as long as the slowest, not as all together.
    """
    wait_seconds = wait_seconds_of(session, options)
    names = whom_of(options)
    codes: list[int] = []
    asked: dict[UUID, Instance] = {}
    try:
        codes.extend(reporting(session, partial(_ask, session, who, edit, asked)) for who in names)
        if options.no_wait:
            for found in asked.values():
                session.screen.message(f"{found.name}: to be {done}; look: eschedule show {found.name}")
        else:
            until = session.clock() + wait_seconds
            for found in asked.values():
                left = max(0.0, until - session.clock())
                codes.append(reporting(session, partial(_await, session, found, goal, wait_seconds=left, done=done)))
    except Interrupted as interrupted:
        is_sure = not (interrupted.was_forced or any(codes))
        session.screen.message(_going_on((found.name for found in asked.values()), done, is_sure=is_sure))
        return interrupted.exit_code
    return next((code for code in codes if code), 0)


def whom_of(options: argparse.Namespace) -> list[UUID | str]:
    """The instances that *options* name, each once.

    Raises:
        ConfigError: one is neither a name nor a uuid.
    """
    return list(dict.fromkeys(parse_instance(text) for text in options.instances))


def reporting(session: Session, action: Callable[[], None]) -> int:
    """Do *action* for one of several instances: its failure is told and must not keep the others from being served."""
    try:
        action()
    except EcomputeError as error:
        session.screen.error(str(error))
        return exit_code(error)
    return 0


def _ask(session: Session, who: UUID | str, edit: Edit, asked: dict[UUID, Instance]) -> None:
    found = ask(session, who, edit)
    asked[found.uuid] = found
    session.interruption.check()


def _await(session: Session, found: Instance, goal: Goal, *, wait_seconds: float, done: str) -> None:
    begun = session.clock()
    outcome = wait(session, found.uuid, goal, wait_seconds, provider=found.provider)
    if outcome.ending is not Ending.REACHED:
        raise unreached(found.name, outcome, goal, session.clock() - begun)
    session.screen.message(f"{found.name} ({found.uuid}) is {done} after {session.screen.elapsed()}")


def _going_on(names: Iterable[str], done: str, *, is_sure: bool) -> str:
    if asked := ", ".join(names):
        be = "are" if ", " in asked else "is"
        return f"interrupted; what was asked for goes on until {asked} {be} {done}; look: eschedule list"
    return "interrupted; nothing was changed" if is_sure else "interrupted; look at what was changed: eschedule list"
