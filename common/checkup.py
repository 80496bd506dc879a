"""Checks of a machine and its services for people: what was looked at, how it is, why, and the command that cures it.

``ecompute doctor`` and ``eschedule doctor`` bring the checks; here is what they have in common: results, a runner that no check
can hold up, and the report as text and JSON. Nothing here knows what is checked.
"""

from __future__ import annotations

import enum
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from common.errors import EcomputeError
from common.text import counted, escaped

SCHEMA = 1  # of the JSON; fields are added without a new number
CHECK_SECONDS = 10.0
_ORDER = ("OK", "warning", "failure")


class Level(enum.StrEnum):
    """How bad a result is. A warning does not fail a report."""

    OK = "OK"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Result:
    """One thing that was looked at.

    Args:
        text: how it is, with the value that was measured.
        cure: what to do about it, mostly a command; "" where all is well.
        is_ours: ``--fix`` cures it, since it is etcd-compute's own.
        fix: does so, and says what it did; called only when asked for.
    """

    name: str
    level: Level
    text: str
    cure: str = ""
    is_ours: bool = False
    fix: Callable[[], str] | None = field(default=None, compare=False, repr=False)


def ok(name: str, text: str) -> Result:
    return Result(name, Level.OK, text)


def warning(name: str, text: str, cure: str = "", fix: Callable[[], str] | None = None) -> Result:
    return Result(name, Level.WARNING, text, cure, fix is not None, fix)


def failure(name: str, text: str, cure: str = "", fix: Callable[[], str] | None = None) -> Result:
    return Result(name, Level.FAILURE, text, cure, fix is not None, fix)


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Args:
        look: yields what it found. An ``EcomputeError`` means that it could not look.
        seconds: it is given up after so long.
    """

    name: str
    look: Callable[[], Iterable[Result]]
    seconds: float = CHECK_SECONDS


@dataclass(frozen=True)
class Report:
    """Everything that was found, in the order of the checks."""

    results: tuple[Result, ...]

    @property
    def worst(self) -> Level:
        return max((result.level for result in self.results), key=_ORDER.index, default=Level.OK)

    @property
    def exit_code(self) -> int:
        """0 where nothing failed; warnings are allowed."""
        return 1 if self.worst is Level.FAILURE else 0

    def count(self, level: Level) -> int:
        return sum(result.level is level for result in self.results)

    def text(self, fixed: Sequence[str] = ()) -> str:
        """A line for each result, its cure below it, and how many there are of each level.

        Args:
            fixed: as in ``to_json``; stands first.
        """
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"fixed    {escaped(line)}" for line in fixed]
        for result in self.results:
            lines.append(f"{result.level.upper():7}  {result.name:{width}}  {escaped(result.text)}")
            if result.cure:
                lines.append(f"{'':7}  {'':{width}}  -> {escaped(result.cure)}{' (--fix does it)' if result.is_ours else ''}")
        counts = f"{self.count(Level.OK)} OK, {counted(self.count(Level.WARNING), 'warning')}"
        return "\n".join([*lines, f"{counts}, {counted(self.count(Level.FAILURE), 'failure')}"]) + "\n"

    def to_json(self, fixed: Sequence[str] = ()) -> str:
        """The report as one JSON object.

        Args:
            fixed: what ``--fix`` did before.
        """
        results = [
            {"name": r.name, "level": r.level.value, "text": r.text, "cure": r.cure, "is_ours": r.is_ours} for r in self.results
        ]
        document = {"schema": SCHEMA, "worst": self.worst.value, "results": results, "fixed": list(fixed)}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def run(checks: Sequence[Check], *, clock: Callable[[], float] = time.monotonic) -> Report:
    """Make all *checks* at the same time; takes as long as the slowest of them may, whatever hangs.

    A thread that hangs is left behind; it ends with the process.
    """
    began = clock()
    running = [_Running(check) for check in checks]
    return Report(tuple(result for one in running for result in one.results(began + one.check.seconds - clock())))


def keep_quiet() -> None:
    """Have gRPC, if it was not imported yet, print nothing by itself: what is wrong is in the report."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def cure(report: Report) -> Iterator[str]:
    """Do what the results of *report* know to do; what was done, or why it could not be, one line each."""
    for result in report.results:
        if result.fix is None:
            continue
        try:
            yield f"{result.name}: {result.fix()}"
        except (EcomputeError, OSError) as error:
            yield f"{result.name}: not fixed: {error}"


class _Running:
    """One check in a thread of its own."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self._found: list[Result] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, name=f"check {check.name}", daemon=True)
        self._thread.start()

    def results(self, seconds: float) -> list[Result]:
        """What it found within so many *seconds*."""
        self._thread.join(max(0.0, seconds))
        with self._lock:
            found = list(self._found)
        if self._thread.is_alive():
            late = f"no answer within {self.check.seconds:g} s; given up"
            found.append(failure(self.check.name, late, "see what hangs, then look again"))
        return found

    def _look(self) -> None:
        try:
            for result in self.check.look():
                self._note(result)
        except (EcomputeError, OSError) as error:
            self._note(
                warning(self.check.name, f"could not be looked at: {error}", "cure what is above or below, then look again")
            )
        except Exception as error:  # noqa: BLE001 - the other checks are made all the same
            self._note(failure(self.check.name, f"this check has a bug: {error!r}", "please report it"))

    def _note(self, result: Result) -> None:
        with self._lock:
            self._found.append(result)
