"""Asking a guest's host about the guest, by letters: who is asked, how long, and what is said where no answer comes.

What the letters ask for is up to the commands (``guest_log``, ``screens``, ``guest_exec``).
"""

from __future__ import annotations

from common.errors import Permanent, Transient
from common.findings import Letter
from common.guest_letters import GuestAnswer
from common.retry import Deadline
from common.text import escaped
from common.validate import parse_instance
from eschedule import post
from eschedule.changes import find
from eschedule.listing import InstanceRow
from eschedule.session import Session
from eschedule.waiting import row_of

ANSWER_SECONDS = 15.0  # beyond what the host is told to wait: a busy libvirtd, or a full disk, takes its time


def locate(session: Session, text: str) -> InstanceRow:
    """The instance that *text*, a name or uuid, means, as it is now.

    Raises:
        ConfigError: it can be neither. Permanent: there is none.
    """
    who = parse_instance(text)
    return row_of(session, find(session.store, session.keys, who), who)


def ask(
    session: Session, row: InstanceRow, kind: str, *, wait_seconds: float = 0, **arguments: str | tuple[str, ...]
) -> GuestAnswer:
    """What the host of *row* answers to a letter of *kind*.

    Raises:
        Transient: the host is dead, or it does not answer. Permanent: it answers that it cannot.
    """
    refuse_dead(row)
    all_arguments = {"instance": str(row.uuid), "wait_seconds": f"{wait_seconds:g}", **arguments}
    letter = Letter(kind, {name: (value,) if isinstance(value, str) else value for name, value in all_arguments.items()})
    patience = wait_seconds + ANSWER_SECONDS
    answer = post.ask_about_guest(session.store, session.keys, row.host.provider, letter, Deadline(patience, session.clock))
    if answer is None:
        raise silent(session, row, kind, patience)
    if answer.problem:
        text = f"{row.name} on {row.host.name}: {escaped(answer.problem)}"
        raise Transient(text) if answer.is_transient else Permanent(text, answer.reason or None)
    return answer


def refuse_dead(row: InstanceRow) -> None:
    """Raises: Transient: the host of *row* has no heartbeat."""
    if not row.host.is_alive:
        raise Transient(
            f"{row.name} is on {row.host.name}, which has no heartbeat, so that nobody answers there; look: eschedule hosts"
        )


def silent(session: Session, row: InstanceRow, kind: str, seconds: float) -> Transient:
    """What to say where the host of *row* did not answer a letter of *kind* for *seconds*."""
    host, provider = row.host.name, row.host.provider
    if session.store.get(session.keys.host(provider)) is None:
        return Transient(f"{host}, where {row.name} is, has lost its heartbeat meanwhile; look: eschedule hosts")
    return Transient(
        f"{host}, where {row.name} is, has a heartbeat and did not answer for {seconds:g} s: its ecompute is of a version that "
        f"knows no letters of the kind {kind}, or is busy; look at its version (eschedule hosts --json) and its log"
    )
