"""What the demo prints: one line a stage while it works, tables at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BOLD, _DIM, _PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


def title(text: str) -> None:
    print(f"{_BOLD}== {text}{_PLAIN}", flush=True)


def line(text: str = "") -> None:
    print(f"   {text}" if text else "", flush=True)


def command(text: str, comment: str = "") -> None:
    """A command to copy."""
    line(f"{text}   {_DIM}# {comment}{_PLAIN}" if comment else text)


@contextmanager
def stage(what: str) -> Iterator[list[str]]:
    """One line when it is done: what, how long, and what is appended to the list meanwhile."""
    notes: list[str] = []
    begun = time.monotonic()
    yield notes
    text = f"{what}: {'; '.join(notes)}" if notes else what
    line(f"{text} {_DIM}({time.monotonic() - begun:.1f} s){_PLAIN}")


def table(rows: Sequence[Sequence[str]], *, numbers: frozenset[int] = frozenset()) -> None:
    """Columns as wide as they must be; those of *numbers* are flushed right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        line("  ".join(cells).rstrip())
