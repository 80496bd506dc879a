"""docs/performance.md: tables and plots between a pair of markers for each scenario; what people wrote around them stays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Plot
from benchmarks.plots import svg
from benchmarks.records import outcome_from_json
from benchmarks.report import markdown

PLOT_FOLDER = "performance"  # beside the page


def write_docs(page: Path, results: Mapping[str, Any]) -> None:
    """Write the part of each scenario in *results* into *page* anew, and its plots beside it."""
    text = page.read_text(encoding="utf-8")
    folder = page.parent / PLOT_FOLDER
    folder.mkdir(exist_ok=True)
    for name, stored in results.items():
        outcome = outcome_from_json(stored)
        files = {plot_file(name, plot): plot for plot in outcome.plots}
        for old in folder.glob(f"{name}.*.svg"):
            if old.name not in files:
                old.unlink()
        for file, plot in files.items():
            (folder / file).write_text(svg(plot), encoding="utf-8")
        text = with_part(text, name, part_of(name, stored))
    page.write_text(text, encoding="utf-8")


def part_of(name: str, stored: Mapping[str, Any]) -> str:
    """What stands between the markers of the scenario *name*."""
    outcome = outcome_from_json(stored)
    plots = [(plot.title, f"{PLOT_FOLDER}/{plot_file(name, plot)}") for plot in outcome.plots]
    return markdown(stored, outcome, plots)


def with_part(text: str, name: str, part: str) -> str:
    """*text* with *part* between the markers of the scenario *name*; where it has none, they come at its end with a heading."""
    begin, end = markers(name)
    if begin not in text or end not in text:
        text = f"{text.rstrip()}\n\n## {name}\n\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{part}\n{end}{after}"


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by benchmarks/run.py -->", f"<!-- {name}: end -->"


def plot_file(name: str, plot: Plot) -> str:
    """Without the scenario's name twice, and fit for a file."""
    return f"{name}.{re.sub(r'[^a-z0-9-]+', '-', plot.name.removeprefix(f'{name}.').lower()).strip('-')}.svg"
