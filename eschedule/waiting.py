"""Waiting for one instance with live progress, how long, what is said when it did not end well; and what one is like now.

What all commands that change something have in common. ``follow`` knows when a wait is over; here it meets the screen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from uuid import UUID

from common.errors import ConfigError, EcomputeError, Permanent, Transient
from common.model import InstanceKey, InstanceStatus, MetadataAccess, Phase
from common.text import escaped, quoted
from common.validate import parse_seconds
from eschedule import render
from eschedule.changes import read
from eschedule.follow import Ending, Follower, Goal, Outcome, View, is_reached
from eschedule.listing import InstanceRow, host_names, instance_row
from eschedule.request import Request
from eschedule.screen import Far, seconds_text
from eschedule.session import Session


def wait(session: Session, instance: UUID, goal: Goal, wait_seconds: float, *, provider: UUID | None = None) -> Outcome:
    """Follow *instance* to *goal* with live progress; a host without a heartbeat is named once.

    Args:
        provider: where it was a moment ago, which spares a question.
    """
    warned: set[UUID] = set()

    def on_view(view: View) -> None:
        if view.host is None and view.provider not in warned:
            warned.add(view.provider)
            session.screen.warning(f"{view.where}: {view.name} goes on when that host is back")
        session.screen.progress(doing(view, goal), far_of(view))

    follower = Follower(session.store, session.keys, on_view=on_view, clock=session.clock)
    return follower.follow(instance, goal, wait_seconds, provider=provider)


def reach(
    session: Session, name: str, instance: UUID, goal: Goal, wait_seconds: float, *, provider: UUID | None = None
) -> View | None:  # fmt: skip
    """Follow *instance*, which is called *name*, to *goal*; as it is then, None where it is gone.

    Raises:
        EcomputeError: it was not reached; the text says what goes on.
    """
    begun = session.clock()
    outcome = wait(session, instance, goal, wait_seconds, provider=provider)
    if outcome.ending is not Ending.REACHED:
        raise unreached(name, outcome, goal, session.clock() - begun)
    return outcome.view


def far_of(view: View) -> Far | None:
    """How far the step in hand has come, where its host says so."""
    progress = view.status.progress if view.status and view.is_fresh else None
    return Far(progress.step, progress.done, progress.total) if progress else None


def doing(view: View, goal: Goal) -> str:
    """What *view* is doing on its way to *goal*, in one line."""
    status = view.status
    is_up = status is not None and view.is_fresh and status.phase is Phase.RUNNING
    is_silent = goal is Goal.READY and is_up and status is not None and not is_reached(goal, view.spec, status)
    return render.progress_line(view) + (", has not said yet that it is ready" if is_silent else "")


def goal_of(options: argparse.Namespace) -> Goal:
    """What ``create`` waits for.

    Raises:
        ConfigError: the option is none of its words, or contradicts another.
    """
    if options.wait is None:
        return Goal.RUNNING
    if options.no_wait:
        raise ConfigError("--no-wait and --wait exclude each other; give one of them")
    if options.wait not in (Goal.RUNNING, Goal.READY):
        raise ConfigError(f"--wait {quoted(options.wait)}: needs to be running or ready")
    return Goal(options.wait)


def check_can_report(options: argparse.Namespace, request: Request) -> None:
    """Refuse to wait for what cannot come.

    Raises:
        ConfigError: the guest is to be waited for until it reports, and nobody would listen to it.
    """
    if goal_of(options) is Goal.READY and request.metadata is MetadataAccess.OFF:
        raise ConfigError("--wait ready: a guest with --metadata off cannot report; leave one of them out")


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


def bound_of(session: Session, options: argparse.Namespace) -> float | None:
    """How long to wait; None where nobody does. Raises as ``wait_seconds_of``."""
    seconds = wait_seconds_of(session, options)
    return None if options.no_wait else seconds


def row_of(session: Session, instance: UUID, who: UUID | str | None = None) -> InstanceRow:
    """*instance* as it is now.

    Raises:
        Permanent: it is not there.
    """
    found = read(session.store, session.keys, instance, who)
    alive = {found.provider: found.host} if found.host else {}
    host = host_names(session.store, session.keys, {found.provider}, alive)[found.provider]
    return instance_row(found.uuid, host, found.spec_item, found.status_item)


def rows_of(session: Session, instances: Sequence[UUID]) -> list[InstanceRow]:
    """*instances* as they are now, in that order, by two reads; those that are gone are left out."""
    keys = session.keys
    places = session.store.get_many([keys.instance(instance) for instance in instances])
    providers = {i: InstanceKey.from_json(places[k].value).provider for i in instances if (k := keys.instance(i)) in places}
    found = session.store.get_many(
        [key for i, p in providers.items() for key in (keys.spec(p, i), keys.status(p, i), keys.host(p))]
    )
    alive = {provider: item for provider in providers.values() if (item := found.get(keys.host(provider)))}
    names = host_names(session.store, keys, set(providers.values()), alive)
    return [
        instance_row(i, names[p], found[keys.spec(p, i)], found.get(keys.status(p, i)))
        for i, p in providers.items()
        if keys.spec(p, i) in found
    ]


def tell_notes(session: Session, name: str, status: InstanceStatus | None) -> None:
    """Warn of what is not as asked for although the instance runs, as its host notes it."""
    for note in status.notes if status else ():
        session.screen.warning(escaped(f"{name}: {note}"))


def unreached(name: str, outcome: Outcome, goal: Goal, seconds: float) -> EcomputeError:
    """The error for a wait that did not end well; its text says what goes on and how to look at it."""
    view = outcome.view
    where = f" on {view.where}" if view else ""
    if outcome.ending is Ending.TIMED_OUT:
        last = doing(view, goal) if view else name
        return Transient(f"not {goal} after {seconds_text(seconds)}: {last}; it goes on; look: eschedule show {name}")
    # Whoever wanted a guest to stand still wants to keep it.
    remove = "" if goal in (Goal.PAUSED, Goal.SUSPENDED) else f"; remove it: eschedule destroy {name}"
    return Permanent(f"{name}{where}: {outcome.message}; details: eschedule show {name}{remove}")
