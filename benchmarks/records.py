"""Figures, plots and results of scenarios as JSON and back; ``results.json`` is made of these."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Outcome, Plot
from common.files import write_atomically


@dataclass(frozen=True)
class Result:
    """What one run of one scenario gave; *failure* says in one line why it gave nothing."""

    scenario: str
    outcome: Outcome = field(default_factory=lambda: Outcome(()))
    took_seconds: float = 0.0
    failure: str = ""


class BadOutcome(ValueError):
    """A scenario broke the rules for figures."""


def checked(scenario: str, outcome: Outcome) -> Outcome:
    """*outcome*, if its figures can be told apart and compared.

    Raises:
        BadOutcome: a name is not ``<scenario>.<what>``, there twice, or its value is no number.
    """
    names = [figure.name for figure in outcome.figures]
    for figure in outcome.figures:
        if not figure.name.startswith(f"{scenario}.") or names.count(figure.name) > 1:
            raise BadOutcome(f"figure {figure.name} has to be named {scenario}.<what>, and once only")
        if not math.isfinite(figure.value):
            raise BadOutcome(f"figure {figure.name} is {figure.value}, which is no number")
    return outcome


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """*outcome* as what ``json`` takes: gaps in plots are null, values rounded to what they can mean."""
    return {
        "figures": [_figure_to_json(figure) for figure in outcome.figures],
        "plots": [
            {**_fields(plot), "x": list(plot.x), "lines": {name: [_number(y) for y in ys] for name, ys in plot.lines.items()}}
            for plot in outcome.plots
        ],
    }


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """The outcome that ``outcome_to_json`` made *data* of."""
    plots = [
        {**plot, "lines": {name: [math.nan if y is None else y for y in ys] for name, ys in plot["lines"].items()}}
        for plot in data["plots"]
    ]
    return Outcome([Figure(**figure) for figure in data["figures"]], [Plot(**plot) for plot in plots])


def read_results(file: Path) -> dict[str, Any]:
    """What is in *file*, by scenario; nothing where there is no such file."""
    if not file.exists():
        return {}
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["scenarios"]
    return results


def results_json(results: Sequence[Result], machine: Mapping[str, Any], day: str, names: Sequence[str]) -> dict[str, Any]:
    """*results* as they are kept, by scenario in the order of *names*; those that failed are left out."""
    good = {result.scenario: result for result in results if not result.failure}
    return {
        name: {
            "measured": day,
            "took_seconds": round(good[name].took_seconds, 1),
            "machine": dict(machine),
            **outcome_to_json(good[name].outcome),
        }
        for name in names
        if name in good
    }


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write *data* to *file*, whole or not at all."""
    write_atomically(file, as_text(data).encode(), mode=0o644)


def as_text(data: Mapping[str, Any]) -> str:
    """*data* as JSON, one thing a line, but rows of numbers in one."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\n\s*([^][{}\"]*?)\n\s*\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


def _figure_to_json(figure: Figure) -> dict[str, Any]:
    """Without what is not set."""
    samples = {label: [_number(value) for value in values] for label, values in figure.samples.items()}
    unset = {f.name: f.default for f in dataclasses.fields(figure)}
    values = {**_fields(figure), "value": _number(figure.value), "samples": samples}
    return {name: value for name, value in values.items() if value != unset[name] and value != {}}


def _fields(item: Figure | Plot) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}


def _number(value: float) -> float | None:
    """Five significant digits; None for what is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
