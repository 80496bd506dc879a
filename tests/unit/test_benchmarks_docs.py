"""docs/performance.md and its plots: what is written by the benchmarks, what stays as people wrote it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import docs
from benchmarks.measure import Figure, Outcome, Plot
from benchmarks.plots import svg
from benchmarks.records import Result, as_text, outcome_from_json, outcome_to_json, read_results, results_json
from benchmarks.report import markdown
from tests.support.processes import ROOT
from tests.unit.test_benchmarks import MACHINE

PLOT = Plot(
    "many-guests.running", "N guests at once", "guests", "seconds", [1, 2, 4, 8], {"ours": [1, 1.5, 3, 6], "floor": [1, math.nan, 2, 4]},
    is_log_x=True,
)  # fmt: skip
FIGURE = Figure(
    "many-guests.sixteen", "16 at once | all run", 1.31, at_most=1.3, samples={"ours": [2.0, 2.2, 9.0], "floor": [1.7]},
    note="QEMU is started by libvirt, one after the other.",
)  # fmt: skip
OUTCOME = Outcome([FIGURE], [PLOT])
STORED = results_json([Result("many-guests", OUTCOME, 12.0)], MACHINE, "2026-01-02", ["many-guests"])


def test_an_outcome_survives_json():
    again = outcome_from_json(outcome_to_json(OUTCOME))
    assert again.figures == OUTCOME.figures
    assert math.isnan(again.plots[0].lines["floor"][1])
    assert again.plots[0].lines["ours"] == PLOT.lines["ours"]


def test_results_are_kept_with_rows_of_numbers_in_one_line():
    text = as_text({"scenarios": STORED, "odd": "[\n1,\n2]", "none": []})
    assert '"ours": [2.0, 2.2, 9.0]' in text
    assert json.loads(text)["odd"] == "[\n1,\n2]"
    assert json.loads(text)["scenarios"] == STORED


def test_the_table_has_value_aim_verdict_medians_and_what_stands_in_the_way():
    text = markdown(STORED["many-guests"], OUTCOME, [("N guests", "performance/x.svg")])
    assert "| 16 at once &#124; all run | **1.31 ×** | ≤ 1.3 | missed | ours 2.2, floor 1.7 |" in text
    assert "* 16 at once | all run: QEMU is started by libvirt" in text
    assert "![N guests](performance/x.svg)" in text
    assert "2 cores, 8 GiB, Linux 6.1, no KVM, guests are emulated; Python 3.11, etcd 3.4" in text


def test_what_people_wrote_around_the_parts_stays(tmp_path):
    page = tmp_path / "performance.md"
    begin, end = docs.markers("many-guests")
    page.write_text(f"# Performance\n\nBefore.\n\n{begin}\nold\n{end}\n\nBehind.\n")
    (tmp_path / "performance").mkdir()
    for name in ("many-guests.old.svg", "idle.rss.svg"):
        (tmp_path / "performance" / name).touch()
    docs.write_docs(page, STORED)
    text = page.read_text()
    assert text.startswith(f"# Performance\n\nBefore.\n\n{begin}\n<sub>2026-01-02")
    assert text.endswith(f"{end}\n\nBehind.\n")
    assert "old" not in text
    assert {file.name for file in (tmp_path / "performance").iterdir()} == {"many-guests.running.svg", "idle.rss.svg"}


def test_a_scenario_without_a_place_comes_at_the_end():
    text = docs.with_part("# Performance\n", "idle", "part")
    assert text == "# Performance\n\n## idle\n\n<!-- idle: written by benchmarks/run.py -->\npart\n<!-- idle: end -->\n"
    assert docs.with_part(text, "idle", "part") == text


def test_a_plot_is_the_same_each_time_and_nothing_in_it_runs_or_is_fetched():
    drawn = svg(PLOT)
    assert drawn == svg(PLOT)
    assert "script" not in drawn
    assert "href" not in drawn
    assert "prefers-color-scheme: dark" in drawn
    words = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"N guests at once", "guests", "seconds", "ours", "floor", "1", "8"} <= set(words)


@pytest.mark.parametrize("name", ["alone", "seven of them"])
def test_a_plot_of_one_line_and_one_of_many_have_room_for_their_names(name):
    lines = {f"{name} {number}": [1.0, 2.0, 3.0, 4.0] for number in range(1 if name == "alone" else 7)}
    root = ElementTree.fromstring(svg(Plot("x.y", "title", "x", "y", [1, 2, 3, 4], lines)))
    height = float(root.attrib["viewBox"].split()[3])
    assert 340 < height < 460
    assert {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")} >= set(lines)


def test_the_page_shows_what_the_stored_results_say():
    """``./benchmarks/run.py --render`` writes it anew."""
    page = (ROOT / "docs/performance.md").read_text()
    for name, stored in read_results(ROOT / "benchmarks/results.json").items():
        begin, end = docs.markers(name)
        assert f"{begin}\n{docs.part_of(name, stored)}\n{end}" in page
        for plot in outcome_from_json(stored).plots:
            assert (ROOT / "docs" / docs.PLOT_FOLDER / docs.plot_file(name, plot)).read_text() == svg(plot)


def test_no_result_names_the_machine_or_its_paths():
    file: Path = ROOT / "benchmarks/results.json"
    assert "/" not in "".join(str(value) for stored in read_results(file).values() for value in stored["machine"].values())
