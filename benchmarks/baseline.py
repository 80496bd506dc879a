"""The regression guard: guarded figures against those of ``baseline.json``, each within its own margin.

Pure but for reading and writing the file. Only ratios are guarded, so that the file holds on another machine of the kind; a
margin is a part of the baseline's value and is stated with the figure in its scenario.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure
from benchmarks.records import write_json


class Verdict(Enum):
    WITHIN = "within"
    BETTER = "much better"
    WORSE = "worse"
    NOT_MEASURED = "not measured"
    NO_BASELINE = "no baseline"

    @property
    def is_failure(self) -> bool:
        return self in (Verdict.WORSE, Verdict.NOT_MEASURED, Verdict.NO_BASELINE)


@dataclass(frozen=True)
class Comparison:
    """One guarded figure beside its baseline; *allowed* is the worst value that still passes."""

    name: str
    verdict: Verdict
    value: float | None = None
    baseline: float | None = None
    allowed: float | None = None

    def __str__(self) -> str:
        if self.verdict is Verdict.NOT_MEASURED:
            return f"{self.name}: not measured, and the baseline has it at {self.baseline:.3g}"
        if self.verdict is Verdict.NO_BASELINE:
            return f"{self.name}: {self.value:.3g}, and the baseline does not have it; --accept puts it there"
        text = f"{self.name}: {self.value:.3g}, baseline {self.baseline:.3g}, allowed {self.allowed:.3g}"
        return f"{text}; better by more than its margin: --accept keeps it so" if self.verdict is Verdict.BETTER else text


def guarded(figures: Iterable[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.margin is not None]


def compare(figures: Iterable[Figure], baseline: Mapping[str, float]) -> list[Comparison]:
    """Each guarded one of *figures* beside *baseline*, in their order; then what the baseline has and nobody measured."""
    measured = guarded(figures)
    found = [_compared(figure, baseline.get(figure.name)) for figure in measured]
    missing = [name for name in baseline if name not in {figure.name for figure in measured}]
    return found + [Comparison(name, Verdict.NOT_MEASURED, baseline=baseline[name]) for name in missing]


def better_of(first: Sequence[Figure], second: Sequence[Figure]) -> list[Figure]:
    """Of two attempts at the same scenario the better value of each figure: noise only ever makes slower."""
    again = {figure.name: figure for figure in second}
    best = [_better(figure, again.pop(figure.name, figure)) for figure in first]
    return best + list(again.values())


def read_baseline(file: Path, scenarios: Iterable[str]) -> dict[str, float]:
    """The values of these *scenarios*' figures by name; nothing where there is no such file."""
    return {name: value for name, value in _all(file).items() if _scenario_of(name) in set(scenarios)}


def accept(file: Path, figures: Iterable[Figure], scenarios: Iterable[str], machine: Mapping[str, Any]) -> None:
    """Make *figures* the baseline of these *scenarios*; the others' stay."""
    replaced = set(scenarios)
    kept = {name: value for name, value in _all(file).items() if _scenario_of(name) not in replaced}
    new = {figure.name: float(f"{figure.value:.4g}") for figure in guarded(figures)}
    write_json(file, {"machine": dict(machine), "figures": dict(sorted({**kept, **new}.items()))})


def _all(file: Path) -> dict[str, float]:
    if not file.exists():
        return {}
    figures: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["figures"]
    return figures


def _scenario_of(figure_name: str) -> str:
    return figure_name.partition(".")[0]


def _compared(figure: Figure, baseline: float | None) -> Comparison:
    if baseline is None:
        return Comparison(figure.name, Verdict.NO_BASELINE, figure.value)
    assert figure.margin is not None, "only guarded figures come here"
    # Of how much time or room something takes less is better; of how much it does per second, more.
    worse_by = abs(baseline) * figure.margin * (-1 if _is_more_better(figure) else 1)
    distance = (figure.value - baseline) * (-1 if _is_more_better(figure) else 1)
    verdict = Verdict.WITHIN
    if distance > abs(worse_by):
        verdict = Verdict.WORSE
    elif distance < -abs(worse_by):
        verdict = Verdict.BETTER
    return Comparison(figure.name, verdict, figure.value, baseline, baseline + worse_by)


def _is_more_better(figure: Figure) -> bool:
    return figure.more_is_better or figure.at_least is not None


def _better(one: Figure, other: Figure) -> Figure:
    if _is_more_better(one):
        return one if one.value >= other.value else other
    return one if one.value <= other.value else other
