"""One scenario in a process of its own: ``python -m benchmarks.one NAME REQUEST RESULT``, started by ``attempts``.

So no scenario measures the threads, imports and memory that another left, and one that dies takes no other with it. REQUEST is
what ``Bench`` takes, as JSON; RESULT is a file. An interrupt lets the scenario tidy up.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench, Outcome
from benchmarks.records import checked, outcome_to_json

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Request:
    """What one run of a scenario is told; *package* is where its module is."""

    package: str
    directory: str
    runs: int
    is_check: bool
    is_long: bool

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def main(arguments: list[str]) -> int:
    """Run the scenario; the exit code. What it gave, or why it failed, is in the file then."""
    name, request, result = arguments
    try:
        outcome = checked(name, _run(name, Request(**json.loads(request))))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - whatever it was, the other scenarios go on
        _write(Path(result), {"failure": _in_one_line(error), "traceback": traceback.format_exc()})
        return EXIT_FAILED
    _write(Path(result), outcome_to_json(outcome))
    return 0


def _run(name: str, request: Request) -> Outcome:
    scenario = importlib.import_module(f"{request.package}.{name.replace('-', '_')}")
    bench = Bench(
        Path(request.directory), runs=request.runs, is_check=request.is_check, is_long=request.is_long,
        say=lambda line: print(f"   {line}", file=sys.stderr, flush=True),
    )  # fmt: skip
    outcome: Outcome = scenario.run(bench)
    return outcome


def _in_one_line(error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
