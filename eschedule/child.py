"""A program of the system that has the user's terminal for a while: ``virsh console``, ``ssh``, a viewer.

It shares the terminal and its signals; a Ctrl-C is its own business, and this program only waits for its end. What it says on
standard error may be kept, to tell by it why it failed. However it ends, the terminal is as it was before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.errors import EcomputeError

MOST_ERRORS = 20_000  # characters that are kept
END_SECONDS = 5.0  # for a program that is told to end


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code, 128 and the signal's number where one ended it; *errors* where they were kept."""

    exit_code: int
    errors: str = ""


def run(command: Sequence[str], *, keeps_errors: bool = False) -> Ended:
    """Run *command* on this program's own standard streams, and return when it has ended.

    Raises:
        EcomputeError: it cannot be started.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"} if keeps_errors else None
    with _signals_left_to_it(), _terminal_kept():
        try:
            process = subprocess.Popen(command, stderr=subprocess.PIPE if keeps_errors else None, env=environment)
        except OSError as error:
            raise EcomputeError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            errors = process.stderr.read().decode(errors="backslashreplace") if process.stderr else ""
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    return Ended(code if code >= 0 else 128 - code, errors[-MOST_ERRORS:])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _signals_left_to_it() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGQUIT)
    former = {number: signal.signal(number, _nothing) for number in numbers}  # not SIG_IGN: the program would inherit it
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """A program that was killed leaves the terminal without echo, or worse."""
    try:
        modes = termios.tcgetattr(0)
    except termios.error:  # it is none
        modes = None
    try:
        yield
    finally:
        if modes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, modes)


def _nothing(*_: object) -> None:
    """The program that has the terminal does what a signal from it asks for."""
