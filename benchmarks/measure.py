"""What a scenario is given and what it answers, and how things are timed.

Absolute times on shared machines mean nothing, so whatever can be is a *ratio*: the same work done by the least code that can
do it (the *floor*) or by another program (a *peer*), in the same run, turn and turn about, medians of several runs each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Args:
        name: stable, ``scenario.what``; the baseline knows it by this.
        says: what it is, in words, for the table.
        value: the number itself.
        unit: of *value*; ``×`` for a ratio.
        at_most: the aim, where less is better.
        at_least: the aim, where more is better.
        more_is_better: for a figure without an aim.
        margin: how far, as a part of the baseline's value, it may be worse before ``--check`` fails; stated from what was seen
            to vary. None: not compared, as for anything that is not a ratio.
        samples: what it was computed from, by label, for the JSON and for who doubts it; seconds unless the label says else.
        note: what stands in the way, or how to read it; one sentence.
    """

    name: str
    says: str
    value: float
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    more_is_better: bool = False
    margin: float | None = None
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the aim was reached; None without an aim."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True)
class Plot:
    """Lines over a common x axis; a NaN leaves a gap."""

    name: str
    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    is_log_x: bool = False


@dataclass(frozen=True)
class Outcome:
    """All that a scenario has to say."""

    figures: Sequence[Figure]
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class Bench:
    """What a scenario is given.

    Args:
        directory: an empty scratch folder of its own; removed afterwards.
        runs: how many samples of each thing that is repeated.
        is_check: only the guarded figures are asked for, in little time: leave out what has no margin, and the long sizes.
        is_long: take all the time that makes a figure better: windows of ten minutes instead of two.
        say: a line of progress for whoever waits.
    """

    directory: Path
    runs: int = 5
    is_check: bool = False
    is_long: bool = False
    say: Callable[[str], None] = print


def seconds_of(action: Callable[[], object]) -> float:
    """How long *action* took."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def turn_about(runs: int, **contenders: Callable[[], float]) -> dict[str, list[float]]:
    """*runs* samples of each contender, turn and turn about, after one of each that does not count.

    A contender does the thing once and answers how long it took. Each round begins with another one, every other one goes
    backwards, so that none always has the same neighbour.
    """
    names = list(contenders)
    for name in names:
        contenders[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(runs):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in reversed(order) if number % 2 else order:
            samples[name].append(contenders[name]())
    return samples


def ratio(samples: Mapping[str, Sequence[float]], ours: str, floor: str) -> float:
    """The median of *ours* over the median of *floor*."""
    return statistics.median(samples[ours]) / statistics.median(samples[floor])
