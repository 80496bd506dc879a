"""The command line of ``benchmarks/run.py``. Needs nothing but Python, so that it answers before anything is installed."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.scenarios import NAMES

SCENARIOS = Path(__file__).resolve().parent / "scenarios"
DEFAULT_RUNS = 5


class UsageError(ValueError):
    """The command line is none; one line."""


@dataclass(frozen=True)
class Options:
    """What was asked for; *names* are those of the scenarios to run, in their order."""

    names: tuple[str, ...]
    runs: int = DEFAULT_RUNS
    is_check: bool = False
    accepts: bool = False
    writes_docs: bool = False
    only_renders: bool = False
    is_long: bool = False
    json_file: Path | None = None
    lists: bool = False
    is_verbose: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")


def parse(arguments: Sequence[str], names: Sequence[str] = NAMES) -> Options:
    """The command line; all of *names* where it has none.

    Raises:
        UsageError: it is none, or asks for what there is not.
        SystemExit: after ``--help``, which is printed.
    """
    given = _parser().parse_args(arguments)
    unknown = [name for name in given.names if name not in names]
    if unknown:
        raise UsageError(f"there is no scenario {', '.join(unknown)}; there are {', '.join(names)}")
    if given.runs < 1:
        raise UsageError(f"--runs is {given.runs}, needs 1 or more")
    if given.accept and not given.check:
        raise UsageError("--accept goes with --check: what that measures becomes the baseline")
    if given.check and (given.write_docs or given.render or given.long):
        raise UsageError("--check measures too little for --write-docs, --render or --long")
    if given.accept and given.json:
        raise UsageError("--accept writes benchmarks/baseline.json only; --json goes with a run without it")
    return Options(
        names=tuple(name for name in names if not given.names or name in given.names),
        runs=given.runs, is_check=given.check, accepts=given.accept, writes_docs=given.write_docs,
        only_renders=given.render, is_long=given.long, json_file=given.json, lists=given.list, is_verbose=given.verbose,
    )  # fmt: skip


def title_of(name: str, folder: Path = SCENARIOS) -> str:
    """The first line of the scenario's opening paragraph, read without running it; "" where there is no such scenario."""
    file = folder / f"{name.replace('-', '_')}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.exists() else None
    return (text or "").partition("\n")[0]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="benchmarks/run.py", allow_abbrev=False,
        description="Measure what the programs cost, beside a floor or a peer in the same run. docs/performance.md has more.",
    )  # fmt: skip
    parser.add_argument("names", metavar="NAME", nargs="*", help="of a scenario (default: all of them)")
    parser.add_argument("--list", action="store_true", help="say what scenarios there are")
    parser.add_argument(
        "--runs", metavar="N", type=int, default=DEFAULT_RUNS, help="samples of each thing (default: %(default)s)"
    )
    parser.add_argument(
        "--long", action="store_true", help="take the time that makes figures better: idle windows of 10 minutes"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write the results there; - for standard output, without tables"
    )
    parser.add_argument(
        "--write-docs", action="store_true", help="put them into benchmarks/results.json and docs/performance.md"
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing; write docs/performance.md from results.json anew"
    )
    parser.add_argument(
        "--check", action="store_true", help="only ratios, in little time: compare them with benchmarks/baseline.json"
    )
    parser.add_argument("--accept", action="store_true", help="with --check: make what was measured the baseline")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where a scenario failed")
    return parser
