"""Having an edit made to an instance that a user named: found, changed, and told what its host's silence means."""

from __future__ import annotations

from uuid import UUID

from eschedule.changes import Edit, Instance, change, find
from eschedule.session import Session


def ask(session: Session, who: UUID | str, edit: Edit) -> Instance:
    """Have *edit* made to the instance *who*; the instance as it was before.

    A first signal waits until etcd has answered, so that what is said of an interruption is true: call
    ``session.interruption.check`` once the answer is noted.

    Raises:
        EcomputeError: as ``changes.change``.
        Interrupted: before anything was asked for; where it ``was_forced``, whether it was is unknown.
    """
    instance = find(session.store, session.keys, who)
    session.screen.progress(f"asking for {who}")
    session.interruption.check()
    with session.interruption.shield():
        found, _ = change(session.store, session.keys, instance, edit, who=who, act=session.act)
    if found.host is None:
        session.screen.warning(f"the host of {found.name} has no heartbeat; what was asked for happens when it is back")
    return found
