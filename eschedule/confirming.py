"""Asking a person whether that is really meant, before what cannot be taken back; nobody else is asked.

Where either end is no terminal a program asked, which has said what it wants: it is not kept waiting.
"""

from __future__ import annotations

import argparse
import sys

from common.text import escaped
from eschedule.interruption import Interrupted
from eschedule.session import Session

NOT_DONE = 1


def is_meant(session: Session, options: argparse.Namespace, question: str) -> bool:
    """Whether to go on: somebody at a terminal said yes, said so before (``--yes``), or there is nobody.

    Waits as long as that takes; a signal ends the program as anywhere else.
    """
    if not needs_asking(session, options):
        return True
    try:
        answer = session.screen.ask(f"{escaped(question)} [y/N] ", sys.stdin)
        session.interruption.check()
    except Interrupted:
        session.screen.message("nothing was changed")
        raise
    if answer.lower() in ("y", "yes"):
        return True
    session.screen.message("nothing was changed")
    return False


def needs_asking(session: Session, options: argparse.Namespace) -> bool:
    return not options.yes and session.screen.has_error_terminal and sys.stdin is not None and sys.stdin.isatty()
