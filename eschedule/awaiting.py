"""The command ``wait``: until instances are what scripts want them to be, whoever brings that about.

``create``, ``stop`` and others wait for what they asked for, and give up when somebody asks for something else. This one asks
for nothing: it waits over stops and starts, and gives up only on what cannot come any more. Changes come by a watch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from uuid import UUID

from common.errors import ConfigError, EcomputeError, Permanent, Transient
from common.model import Desired, InstanceStatus, Phase
from common.text import escaped, quoted
from common.validate import parse_duration, parse_instance
from eschedule.follow import Ending, Follower, Goal, Outcome, View, because, is_reached
from eschedule.interruption import Interrupted
from eschedule.screen import seconds_text
from eschedule.session import Session
from eschedule.sought import meant, no_such
from eschedule.verbs import exit_code
from eschedule.waiting import doing

GOALS = (Goal.RUNNING, Goal.STOPPED, Goal.PAUSED, Goal.SUSPENDED, Goal.READY, Goal.HEALTHY, Goal.GONE)
_NEVER = (Phase.FAILED, Phase.REFUSED, Phase.HELD, Phase.QUARANTINED)
MOST_WAIT_SECONDS = 7 * 86400


def wait(session: Session, options: argparse.Namespace) -> int:
    """Run ``wait``; the exit code of the first instance, in the order of the command line, that did not come to be it.

    Raises:
        ConfigError: the goal is none. Permanent: there is no such instance.
    """
    goal = _goal(options.goal)
    seconds = session.config.wait_seconds
    if options.timeout is not None:
        seconds = parse_duration(options.timeout, "--timeout", MOST_WAIT_SECONDS)
    named = _found(session, [parse_instance(text) for text in options.instances], goal)
    follower = Follower(session.store, session.keys, on_view=_progress(session, goal), clock=session.clock, judge=judge_state)
    begun = session.clock()
    try:
        outcomes = follower.follow_all(dict.fromkeys(named), goal, seconds)
    except Interrupted:
        session.screen.message("the wait changed nothing, and whatever is under way goes on; look: eschedule list")
        raise
    code = 0
    for uuid, name in named.items():
        try:
            _tell(session, outcomes[uuid], name, goal, session.clock() - begun)
        except EcomputeError as error:
            session.screen.error(str(error))
            code = code or exit_code(error)
    return code


def _goal(text: str) -> Goal:
    if text not in GOALS:
        raise ConfigError(f"--for {quoted(text)}: needs to be {', '.join(GOALS[:-1])} or {GOALS[-1]}")
    return Goal(text)


def _found(session: Session, who: Sequence[UUID | str], goal: Goal) -> dict[UUID, str]:
    """The instances that are meant, with what the user called them, by one read; one that is gone already is told at once.

    Raises:
        Permanent: there is no such instance, and its end is not what is waited for.
    """
    by_name = {session.keys.name(one): one for one in who if isinstance(one, str)}
    items = session.store.get_many(by_name)
    found: dict[UUID, str] = {}
    for one in who:
        item = None if isinstance(one, UUID) else items.get(session.keys.name(one))
        if isinstance(one, UUID) or item is not None:
            found.setdefault(one if isinstance(one, UUID) else UUID(item.value), str(one))  # type: ignore[union-attr]
        elif goal is Goal.GONE:
            session.screen.message(f"{one} is gone")
        else:
            found.setdefault(meant(session.store, session.keys, one), one)
    return found


def _progress(session: Session, goal: Goal) -> Callable[[View], None]:
    warned: set[UUID] = set()

    def on_view(view: View) -> None:
        if view.host is None and view.provider not in warned:
            warned.add(view.provider)
            session.screen.warning(f"{view.where}: nothing new is heard of {view.name} until that host is back")
        session.screen.progress(doing(view, goal))

    return on_view


def _tell(session: Session, outcome: Outcome | EcomputeError, name: str, goal: Goal, seconds: float) -> None:
    """Say what came of waiting for one instance.

    Raises:
        EcomputeError: it is not what was waited for.
    """
    if isinstance(outcome, EcomputeError):
        raise outcome
    name = outcome.view.name if outcome.view else name
    if outcome.ending is Ending.TIMED_OUT:
        last = doing(outcome.view, goal) if outcome.view else "etcd did not say in time how it is"
        raise Transient(f"{name} is not {goal} after {seconds_text(seconds)}: {last}; look: eschedule show {name}")
    if outcome.ending is Ending.FAILED:
        if outcome.view is None:
            raise no_such(name)
        raise Permanent(escaped(f"{name} will not be {goal}: {outcome.message}; look: eschedule events {name}"))
    session.screen.message(f"{name} is {goal} after {seconds_text(seconds)}")


# -- pure ----------------------------------------------------------------------------------------------------------------


def judge_state(goal: Goal, view: View) -> Outcome | None:
    """What *view* means for *goal*, whatever is asked for; None as long as it may come to be."""
    if goal is Goal.GONE:  # which shows by there being no view any more
        return None
    if view.spec.desired is Desired.DELETED:
        return Outcome(Ending.FAILED, "it is being destroyed", view)
    status = view.status
    if status is None or not view.is_fresh or view.host is None:  # nobody knows how it is where nobody says so
        return None
    if status.phase in _NEVER:
        return Outcome(Ending.FAILED, because(status), view)
    is_there = is_healthy(view, status) if goal is Goal.HEALTHY else is_reached(goal, view.spec, status)
    return Outcome(Ending.REACHED, view=view) if is_there else None


def is_healthy(view: View, status: InstanceStatus) -> bool:
    """Whether it runs as it is asked for: this very boot, its host alive, and nothing that the host notes against it."""
    is_up = status.phase is Phase.RUNNING and status.booted >= view.spec.boot_request and view.spec.desired is Desired.RUNNING
    is_clear = not (status.reason or status.message or status.notes or status.failure)
    return is_up and is_clear and view.host is not None
