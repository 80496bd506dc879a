"""The commands ``protect`` and ``unprotect``: keep instances from being destroyed or rebuilt, until somebody takes that back.

It stands in the spec, and is looked at in the same transaction that would ask for the end: what was protected a moment before
stays. It keeps nobody from stopping a guest, and is no matter of its host.
"""

from __future__ import annotations

import argparse
from functools import partial
from uuid import UUID

from eschedule.changes import Edit, change, find, set_to
from eschedule.commands import first_failure, reporting, whom_of
from eschedule.session import Session

PROTECTED, UNPROTECTED = set_to({"protected": True}), set_to({"protected": False})


def protect(session: Session, options: argparse.Namespace) -> int:
    return _set_all(session, options, PROTECTED, "protected: neither destroyed nor rebuilt")


def unprotect(session: Session, options: argparse.Namespace) -> int:
    return _set_all(session, options, UNPROTECTED, "protected no more")


def _set_all(session: Session, options: argparse.Namespace, edit: Edit, done: str) -> int:
    """Make *edit* to each instance; the exit code of the first that failed. No host has to do anything for it."""
    codes = [reporting(session, partial(_set, session, who, edit, done)) for who in whom_of(options)]
    return first_failure(codes)


def _set(session: Session, who: UUID | str, edit: Edit, done: str) -> None:
    instance = find(session.store, session.keys, who)
    session.interruption.check()
    with session.interruption.shield():
        found, is_new = change(session.store, session.keys, instance, edit, who=who, act=session.act)
    session.screen.message(f"{found.name} is {done}" if is_new else f"{found.name} is so already: {done}")
    session.interruption.check()
