"""What ``benchmarks/run.py`` does once its environment is there: the scenarios one after the other, then the report."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.attempts import attempt
from benchmarks.baseline import Comparison, Verdict, accept, better_of, compare, read_baseline
from benchmarks.measure import Outcome
from benchmarks.options import Options
from benchmarks.records import Result, as_text, read_results, results_json, write_json
from benchmarks.report import comparison_table, terminal_table
from benchmarks.scenarios import NAMES

Attempt = Callable[[str, Options], Result]


@dataclass(frozen=True)
class Files:
    """What is kept in the repository."""

    results: Path
    baseline: Path
    page: Path

    @classmethod
    def of(cls, root: Path) -> Files:
        return cls(root / "benchmarks/results.json", root / "benchmarks/baseline.json", root / "docs/performance.md")


def run(
    options: Options, files: Files, *, attempt: Attempt = attempt, describe: Callable[[], Mapping[str, Any]] = machine.describe
) -> int:
    """Do what *options* say; the exit code: 1 where a scenario failed or a guarded figure is beyond its margin."""
    if options.only_renders:
        _render(files, options.names)
        return 0
    if options.is_check and not options.accepts:
        return _check(options, files, attempt)
    results = [_told(name, options, attempt) for name in options.names]
    if options.accepts:
        for result in results:
            if not result.failure:
                accept(files.baseline, result.outcome.figures, [result.scenario], describe())
    elif options.json_file or options.writes_docs:
        _keep(results, options, files, describe())
    return 1 if any(result.failure for result in results) else 0


def _told(name: str, options: Options, attempt: Attempt) -> Result:
    """One attempt; its table, or the line that says why there is none, as soon as it ends."""
    print(f"== {name}", file=sys.stderr, flush=True)
    result = attempt(name, options)
    if result.failure:
        print(f"run.py: {name} failed: {result.failure}", file=sys.stderr, flush=True)
    elif options.json_file != Path("-"):
        print(terminal_table(result), flush=True)
    return result


# --- Results -------------------------------------------------------------------------------------------------------------


def _keep(results: Sequence[Result], options: Options, files: Files, description: Mapping[str, Any]) -> None:
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    new = results_json(results, description, day, NAMES)
    if options.json_file == Path("-"):
        print(as_text({"scenarios": new}), end="")
    elif options.json_file:
        write_json(options.json_file, {"scenarios": new})
    if options.writes_docs:
        kept = {**read_results(files.results), **new}
        write_json(files.results, {"scenarios": {name: kept[name] for name in NAMES if name in kept}})
        _render(files, list(new))


def _render(files: Files, names: Sequence[str]) -> None:
    from benchmarks.docs import write_docs  # noqa: PLC0415 - draws plots, which nothing else needs

    write_docs(files.page, {name: stored for name, stored in read_results(files.results).items() if name in names})


# --- Check ---------------------------------------------------------------------------------------------------------------


def _check(options: Options, files: Files, attempt: Attempt) -> int:
    results, comparisons = [], []
    for name in options.names:
        baseline = read_baseline(files.baseline, [name])
        result, compared = _compared(name, baseline, options, attempt)
        results.append(result)
        comparisons += compared
    if options.json_file == Path("-"):
        print(as_text({"scenarios": results_json(results, {}, "", NAMES)}), end="")
    elif options.json_file:
        write_json(options.json_file, {"scenarios": results_json(results, {}, "", NAMES)})
    print(comparison_table(comparisons), end="", file=sys.stderr if options.json_file == Path("-") else sys.stdout)
    failed = [*(result.failure for result in results), *(comparison.verdict.is_failure for comparison in comparisons)]
    return 1 if any(failed) else 0


def _compared(name: str, baseline: Mapping[str, float], options: Options, attempt: Attempt) -> tuple[Result, list[Comparison]]:
    """The scenario beside its baseline. Beyond a margin it gets a second attempt, and the better of both counts."""
    result = _told(name, options, attempt)
    if result.failure:
        return result, []
    compared = compare(result.outcome.figures, baseline)
    worse = [comparison.name for comparison in compared if comparison.verdict is Verdict.WORSE]
    if not worse:
        return result, compared
    print(f"   once more, because of {', '.join(worse)}", file=sys.stderr)
    again = _told(name, options, attempt)
    if again.failure:
        return again, []
    figures = better_of(result.outcome.figures, again.outcome.figures)
    return replace(result, outcome=Outcome(figures)), compare(figures, baseline)
