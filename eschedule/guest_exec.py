"""The command ``exec``: a program in a guest, run by the agent in it and asked for by letters.

One letter begins it, others ask for its end, each for some seconds, so that nothing on the host remembers it. The exit code is
the program's own; 124 where it did not end in time, and 125 for whatever fails of ours, since a program may end with any other.
"""

from __future__ import annotations

import argparse

from common.errors import ConfigError, EcomputeError
from common.guest_letters import EXEC, EXEC_RESULT, MOST_WAIT_SECONDS, GuestAnswer
from common.retry import Deadline
from common.validate import parse_seconds
from eschedule.guest_log import printer
from eschedule.guest_post import ask, locate
from eschedule.interruption import Interrupted
from eschedule.listing import InstanceRow
from eschedule.reaching import refuse_still
from eschedule.session import Session
from eschedule.terminal_text import Plain

EXIT_TOO_LATE = 124
EXIT_OURS = 125
MOST_COMMAND_BYTES = 64 << 10
_TIMEOUT_SECONDS = 60.0


def exec_(session: Session, options: argparse.Namespace) -> int:
    """Run ``exec``; the exit code, see above.

    Raises:
        ConfigError: the command line is wrong; nothing was run.
    """
    seconds = parse_seconds(options.timeout_seconds or str(_TIMEOUT_SECONDS), "--timeout-seconds", 1)
    if not options.words:
        raise ConfigError("no COMMAND was named; it stands behind --, as in: eschedule exec web-1 -- uptime")
    if sum(len(word.encode(errors="surrogateescape")) for word in options.words) > MOST_COMMAND_BYTES:
        raise ConfigError(f"the command is longer than {MOST_COMMAND_BYTES >> 10} KiB; bring a script into the guest instead")
    if any(word.encode(errors="ignore").decode() != word for word in options.words):
        raise ConfigError("the command is not in UTF-8, which is all that the agent takes")
    try:
        row = locate(session, options.instance)
        refuse_still(row)
        process = ask(session, row, EXEC, command=tuple(options.words)).process
        return _end(session, row, process, Deadline(seconds, session.clock), is_raw=options.raw)
    except EcomputeError as error:
        session.screen.error(str(error))
        return EXIT_OURS


def _end(session: Session, row: InstanceRow, process: int, deadline: Deadline, *, is_raw: bool) -> int:
    """Wait for *process* in the guest, print what it printed; its exit code."""
    goes_on = f"the command goes on in {row.name}, as process {process}"
    try:
        while True:
            wait_seconds = round(min(MOST_WAIT_SECONDS, max(0.0, deadline.remaining())), 1)
            answer = ask(session, row, EXEC_RESULT, wait_seconds=wait_seconds, process=str(process))
            if answer.exit_code is not None:
                return _shown(session, row, answer, is_raw=is_raw)
            if deadline.expired:
                session.screen.message(f"{goes_on}, and did not end in time; what it prints is not shown any more")
                return EXIT_TOO_LATE
    except Interrupted:
        session.screen.message(goes_on)
        raise


def _shown(session: Session, row: InstanceRow, answer: GuestAnswer, *, is_raw: bool) -> int:
    if output := answer.data:
        printer(session, is_raw=is_raw)(output)
    if errors := answer.errors:
        is_obeyed = session.screen.has_error_terminal and not is_raw
        session.screen.raw_errors(Plain().feed(errors, is_last=True).encode() if is_obeyed else errors)
    if answer.is_cut:
        session.screen.warning(f"{row.name} printed more than a letter carries; the rest is left out")
    assert answer.exit_code is not None  # noqa: S101 - looked at by whoever called
    return answer.exit_code & 0xFF
