"""The only place that prints: data to standard output, progress and messages to standard error.

On a terminal progress is one line that is written over; elsewhere a plain line whenever something changed. A standard error
that is closed never stops the work; a closed standard output ends the program quietly (``main``), a full disk below it with an
error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from common.errors import EcomputeError
from common.text import escaped
from eschedule.tables import Look

if TYPE_CHECKING:
    from eschedule.bar import Bar

PROGRAM = "eschedule"
EXIT_CLOSED_PIPE = 141  # what the shell says of a program that SIGPIPE ended
WIDTH_WITH_BAR = 72  # of a terminal; on a narrower one the words are worth more


@dataclass(frozen=True)
class Far:
    """How far *what* has come: *done* of *total*, which is 0 where it is unknown."""

    what: str
    done: int
    total: int


class Screen:
    """Standard output and standard error of one run.

    Args:
        is_quiet: no progress at all.
    """

    def __init__(
        self, *, output: TextIO | None = None, errors: TextIO | None = None, clock: Callable[[], float] = time.monotonic,
        is_quiet: bool = False,
    ) -> None:  # fmt: skip
        self._output = output or sys.stdout
        self._errors = errors or sys.stderr
        self._clock = clock
        self._begun = clock()
        self._is_quiet = is_quiet
        self._is_terminal = self._errors.isatty() and os.environ.get("TERM") != "dumb"
        self._line = ""
        self._last = ""
        self._drawn: Bar | None = None

    def data(self, text: str) -> None:
        """Print *text*, which is what was asked for.

        Raises:
            BrokenPipeError: nobody reads it.
            EcomputeError: it cannot be written, as to a file on a full disk.
        """
        self._clear()
        try:
            self._output.write(text)
            self._output.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(error) from error

    def raw(self, data: bytes) -> None:
        """Print *data* as it is, which is what was asked for; errors as ``data``."""
        self._clear()
        try:
            self._output.flush()
            self._output.buffer.write(data)
            self._output.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unwritable(error) from error

    def end_with_reader(self) -> None:
        """End the program once nobody reads what it prints any more, be there something to print or not."""
        from eschedule.closed_pipe import end_with_reader  # noqa: PLC0415 - few commands go on for long

        end_with_reader(self._output)

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is one: then what a guest wrote must not be obeyed by it."""
        return self._output.isatty()

    def raw_errors(self, data: bytes) -> None:
        """Print *data*, what a program elsewhere said on its standard error, on ours."""
        self._clear()
        with contextlib.suppress(OSError, ValueError):
            self._errors.flush()
            self._errors.buffer.write(data)
            self._errors.buffer.flush()

    @property
    def has_error_terminal(self) -> bool:
        """As ``is_terminal``, of standard error."""
        return self._errors.isatty()

    def look(self, *, is_wide: bool = False) -> Look:
        """How what is printed is to look: as the terminal has room, in colour where nobody minds (https://no-color.org)."""
        if not self._output.isatty():
            return Look(is_wide=is_wide)
        has_colour = os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
        return Look(None if is_wide else shutil.get_terminal_size().columns, is_wide, has_colour)

    def ask(self, question: str, answers: TextIO) -> str:
        """What whoever sits at the terminal types behind *question*, as a line; "" where *answers* ends."""
        self._clear()
        self._write(f"{PROGRAM}: {question}")
        try:
            line = answers.readline()
        except KeyboardInterrupt:
            self._write("\n")
            raise
        if not line.endswith("\n"):
            self._write("\n")
        return line.strip()

    def message(self, text: str) -> None:
        """One line about what happened."""
        self._clear()
        self._write(f"{PROGRAM}: {text}\n")

    def warning(self, text: str) -> None:
        self.message(f"warning: {text}")

    def error(self, text: str) -> None:
        """The line that says what failed; only a configuration with several faults has several."""
        self.message("\n  ".join(_printable(line) for line in text.strip().splitlines()))

    def progress(self, text: str, far: Far | None = None) -> None:
        """Show *text* as what is going on; the time since the start is added, and on a terminal a bar, where it is known how
        *far* it has come.
        """
        if self._is_quiet:
            return
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            elapsed = f"  {seconds_text(self._clock() - self._begun)}"
            bar, bar_width = self._bar(far) if far and far.total > 0 and width >= WIDTH_WITH_BAR else ("", 0)
            # The last column stays free: a terminal that wraps there would leave the line behind.
            self._line = fitted(text, width - bar_width - len(elapsed) - 1) + bar + elapsed
            self._write(f"\r{self._line}\x1b[K")
        elif text != self._last:
            self._write(f"{text}\n")
        self._last = text

    def _bar(self, far: Far) -> tuple[str, int]:
        """The bar with what stands before it, and how many columns that takes."""
        from eschedule.bar import WIDTH, Bar  # noqa: PLC0415 - imports rich, which takes its time

        self._drawn = self._drawn or Bar(self._clock, has_colour=not os.environ.get("NO_COLOR"))
        return f"  {self._drawn.draw(far.what, far.done, far.total)}", WIDTH + 2

    def elapsed(self) -> str:
        return seconds_text(self._clock() - self._begun)

    def _clear(self) -> None:
        if self._line:
            self._line = ""
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._errors.write(text)
            self._errors.flush()


def _unwritable(error: OSError) -> EcomputeError:
    return EcomputeError(f"standard output cannot be written: {error.strerror}; what was to be printed is lost")


def fitted(text: str, width: int) -> str:
    """*text* cut to *width* columns."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def seconds_text(seconds: float) -> str:
    """``4.2 s`` below a minute, ``3 m 05 s`` above."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} m {int(seconds) % 60:02d} s"


def _printable(line: str) -> str:
    """*line* without anything that a terminal would obey; backslashes stay, since most messages are escaped already."""
    return "".join(c if c.isprintable() else escaped(c) for c in line)
