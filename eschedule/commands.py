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
from eschedule.follow import Goal
from eschedule.interruption import Interrupted
from eschedule.session import Session
from eschedule.still_edits import paused, resumed, suspended, unpaused
from eschedule.verbs import exit_code
from eschedule.waiting import bound_of, reach, row_of

Finish = Callable[[float | None], None]  # what is left of one once all are asked: waits so long, or, for None, not


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
    """Ask for *edit* on every instance that *options* name, then wait for each; the exit code of the first that failed."""
    whom, wait_seconds = whom_of(options), bound_of(session, options)
    codes: list[int] = []
    asked: dict[UUID, Instance] = {}

    def ask_one(who: UUID | str) -> Finish | None:
        found = ask(session, who, edit)
        is_new = found.uuid not in asked  # one may be named twice, by its name and its uuid
        asked[found.uuid] = found
        session.interruption.check()
        return partial(_finish, session, found, goal, done) if is_new else None

    try:
        return ask_then_wait(session, [partial(ask_one, who) for who in whom], wait_seconds, codes)
    except Interrupted as interrupted:
        is_sure = not (interrupted.was_forced or any(codes))
        session.screen.message(_going_on((found.name for found in asked.values()), done, is_sure=is_sure))
        return interrupted.exit_code


def ask_then_wait(
    session: Session, asks: Iterable[Callable[[], Finish | None]], wait_seconds: float | None, codes: list[int] | None = None
) -> int:  # fmt: skip
    """Do all *asks*, then what each of them has left to be done; the exit code of the first that failed.

    All are asked before the first is waited for, so that waiting takes as long as the slowest, not as all together. A failure
    is told and must not keep the others from being served.

    Args:
        wait_seconds: for all waits together; None: nothing is waited for.
        codes: where the exit codes are kept as they come, for who is interrupted.
    """
    codes, finishes = [] if codes is None else codes, list[Finish]()

    def ask_one(one: Callable[[], Finish | None]) -> None:
        if finish := one():
            finishes.append(finish)

    codes.extend(reporting(session, partial(ask_one, one)) for one in asks)
    until = session.clock() + (wait_seconds or 0.0)
    for finish in finishes:
        left = None if wait_seconds is None else max(0.0, until - session.clock())
        codes.append(reporting(session, partial(finish, left)))
    return first_failure(codes)


def first_failure(codes: Iterable[int]) -> int:
    """The exit code of several that have one each."""
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


def _finish(session: Session, found: Instance, goal: Goal, done: str, wait_seconds: float | None) -> None:
    if wait_seconds is None:
        session.screen.message(f"{found.name}: to be {done}; look: eschedule show {found.name}")
        return
    reach(session, found.name, found.uuid, goal, wait_seconds, provider=found.provider)
    session.screen.message(f"{found.name} ({found.uuid}) is {done} after {session.screen.elapsed()}")


def _going_on(names: Iterable[str], done: str, *, is_sure: bool) -> str:
    if asked := ", ".join(names):
        be = "are" if ", " in asked else "is"
        return f"interrupted; what was asked for goes on until {asked} {be} {done}; look: eschedule list"
    return "interrupted; nothing was changed" if is_sure else "interrupted; look at what was changed: eschedule list"
