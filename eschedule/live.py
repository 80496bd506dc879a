"""Changing an instance while it runs: ask for it, wait until its host has seen it, pass on what the host notes of it.

``setting`` and ``forwarding`` are the commands; nothing here asks for a boot.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from uuid import UUID

from common.errors import Permanent
from common.model import InstanceSpec, InstanceStatus, Phase
from common.text import escaped
from eschedule.asking import ask
from eschedule.changes import Edit, Instance
from eschedule.follow import Ending, Goal
from eschedule.interruption import Interrupted
from eschedule.session import Session
from eschedule.waiting import tell_notes, unreached, wait, wait_seconds_of

_UP = (Phase.RUNNING, Phase.PAUSED, Phase.REBOOTING)


@dataclass(frozen=True)
class Applied:
    """An instance after a change.

    Args:
        former: its spec as it was before.
        spec: as it is now.
        changed: its fields that were changed, none where all was so already.
        status: what its host says of it by now; None where that was not waited for.
    """

    former: InstanceSpec
    spec: InstanceSpec
    changed: frozenset[str]
    status: InstanceStatus | None = None

    @property
    def is_up(self) -> bool:
        return self.status is not None and self.status.phase in _UP

    @property
    def trouble(self) -> str:
        """What keeps the host from doing all that is asked of a guest that is up; what has a reason is about something else."""
        return self.status.message if self.status and self.is_up and not self.status.reason else ""


def apply(session: Session, options: argparse.Namespace, who: UUID | str, edit: Edit) -> Applied:
    """Have *edit*, which asks for no boot, made to the instance *who*, and wait for its host unless *options* say otherwise.

    Raises:
        EcomputeError: as ``change``; or the host was not waited for to the end, and the text says that it goes on.
        Permanent: the host has seen it, and cannot do it.
        Interrupted: it was told what goes on.
    """
    wait_seconds = wait_seconds_of(session, options)
    found = ask(session, who, edit)
    fields = edit(found.spec, found.status) or {}
    if options.no_wait:
        return Applied(found.spec, dataclasses.replace(found.spec, **fields), frozenset(fields))
    try:
        session.interruption.check()
        return awaited(session, found, frozenset(fields), wait_seconds)
    except Interrupted:
        session.screen.message(f"the change of {found.name} is recorded, and goes on; look: eschedule show {found.name}")
        raise


def awaited(
    session: Session, found: Instance, changed: frozenset[str], wait_seconds: float, goal: Goal = Goal.APPLIED
) -> Applied:  # fmt: skip
    """Wait until the host of *found* has seen that the fields *changed*, and *goal* is reached.

    Raises:
        EcomputeError: as ``apply``.
    """
    begun = session.clock()
    outcome = wait(session, found.uuid, goal, wait_seconds, provider=found.provider)
    view = outcome.view
    if outcome.ending is not Ending.REACHED or view is None or view.status is None:
        raise unreached(found.name, outcome, goal, session.clock() - begun)
    tell_notes(session, found.name, view.status)
    applied = Applied(found.spec, view.spec, changed, view.status)
    if applied.trouble:
        raise Permanent(
            f"the change of {found.name} is recorded, but not in force on {view.where}: {escaped(applied.trouble)}; "
            f"it is tried on; look: eschedule show {found.name}"
        )
    return applied
