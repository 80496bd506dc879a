"""The commands ``protect`` and ``unprotect``: keep instances from being destroyed or rebuilt, until somebody takes that back.

It stands in the spec, and is looked at in the same transaction that would ask for the end: what was protected a moment before
stays. It keeps nobody from stopping a guest, and is no matter of its host.
"""

from __future__ import annotations

import argparse
from uuid import UUID

from common.errors import EcomputeError
from common.validate import parse_instance
from eschedule.changes import Edit, change, find, set_to
from eschedule.session import Session
from eschedule.verbs import exit_code


def protect(session: Session, options: argparse.Namespace) -> int:
    return _set_all(session, options, set_to({"protected": True}), "protected: neither destroyed nor rebuilt")


def unprotect(session: Session, options: argparse.Namespace) -> int:
    return _set_all(session, options, set_to({"protected": False}), "protected no more")


def _set_all(session: Session, options: argparse.Namespace, edit: Edit, done: str) -> int:
    """Make *edit* to each instance; the exit code of the first that failed. No host has to do anything for it."""
    codes = []
    for who in dict.fromkeys(parse_instance(text) for text in options.instances):
        try:
            _set(session, who, edit, done)
        except EcomputeError as error:
            session.screen.error(str(error))
            codes.append(exit_code(error))
    return next(iter(codes), 0)


def _set(session: Session, who: UUID | str, edit: Edit, done: str) -> None:
    instance = find(session.store, session.keys, who)
    session.interruption.check()
    with session.interruption.shield():
        found, is_new = change(session.store, session.keys, instance, edit, who=who, act=session.act)
    session.screen.message(f"{found.name} is {done}" if is_new else f"{found.name} is so already: {done}")
    session.interruption.check()
