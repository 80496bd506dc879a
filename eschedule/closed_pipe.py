"""The end of a program that follows something, as ``log -f``, once nobody reads what it prints any more.

A write to a pipe without a reader fails, but who follows may have nothing to write for hours. A thread sleeps in poll(2), which
tells that the other end was closed (POLLERR of a pipe, POLLHUP of a socket or terminal).
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TextIO

from eschedule.screen import EXIT_CLOSED_PIPE


def end_with_reader(stream: TextIO) -> None:
    """From now on, end this process with ``EXIT_CLOSED_PIPE`` as soon as nobody can read *stream* any more.

    Nothing is left to tidy then: letters and leases of a reader go by themselves. A stream that is a file has no such end.
    """
    with contextlib.suppress(OSError, ValueError):  # it has no descriptor
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # only what is told unasked
        threading.Thread(target=_await_end, args=(poll,), name="closed pipe", daemon=True).start()


def _await_end(poll: select.poll) -> None:
    poll.poll()
    os._exit(EXIT_CLOSED_PIPE)
