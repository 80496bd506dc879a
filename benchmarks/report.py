"""What was measured, for people: tables on the terminal and in Markdown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.baseline import Comparison, Verdict
from benchmarks.machine import in_words
from benchmarks.measure import Figure, Outcome
from benchmarks.records import Result

MOST_LABELS = 4  # of samples beside a figure; more are in the JSON only


def terminal_table(result: Result) -> str:
    """One scenario, a line for each figure with its aim, and its note below it."""
    head = f"== {result.scenario} ({result.took_seconds:.0f} s)"
    figures = result.outcome.figures
    rows = [(figure.says, with_unit(figure), aim(figure), verdict(figure)) for figure in figures]
    lines = []
    for figure, row in zip(figures, aligned(rows), strict=True):
        lines += [f"   {row}"] + ([f"      {figure.note}"] if figure.note else [])
    return "\n".join([head, *lines]) + "\n"


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """A line for each guarded figure: what failed comes last, where it is seen."""
    order = [Verdict.WITHIN, Verdict.BETTER, Verdict.NO_BASELINE, Verdict.NOT_MEASURED, Verdict.WORSE]
    marks = {Verdict.WITHIN: "ok", Verdict.BETTER: "better"}
    ranked = sorted(comparisons, key=lambda comparison: order.index(comparison.verdict))
    return "".join(f"{marks.get(comparison.verdict, 'FAILED'):7}{comparison}\n" for comparison in ranked)


def markdown(stored: Mapping[str, Any], outcome: Outcome, plot_files: Sequence[tuple[str, str]]) -> str:
    """One scenario as it stands in docs/performance.md.

    Args:
        stored: ``measured`` and ``machine`` are taken from it.
        plot_files: title and relative path of each plot.
    """
    lines = [f"<sub>{stored['measured']}: {in_words(stored['machine'])}</sub>", ""]
    lines += ["| | measured | aim | | medians, in s unless they say else |", "|---|---:|---:|---|---|"]
    for figure in outcome.figures:
        cells = [figure.says, f"**{with_unit(figure)}**", aim(figure), verdict(figure), medians(figure)]
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    notes = [f"* {figure.says}: {figure.note}" for figure in outcome.figures if figure.note]
    lines += ["", *notes] if notes else []
    for title, path in plot_files:
        lines += ["", f"![{title}]({path})"]
    return "\n".join(lines)


def with_unit(figure: Figure) -> str:
    return f"{number(figure.value)} {figure.unit}".rstrip()


def aim(figure: Figure) -> str:
    if figure.at_most is not None:
        return f"≤ {number(figure.at_most)}"
    return "" if figure.at_least is None else f"≥ {number(figure.at_least)}"


def verdict(figure: Figure) -> str:
    return {True: "reached", False: "missed", None: ""}[figure.is_reached]


def medians(figure: Figure) -> str:
    if len(figure.samples) > MOST_LABELS:
        return ""
    return ", ".join(f"{label} {number(statistics.median(values))}" for label, values in figure.samples.items() if values)


def number(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be; the second, of numbers, flushed right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(cell.rjust(widths[i]) if i == 1 else cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in rows
    ]
