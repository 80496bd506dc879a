"""Reports of checks: what is worst, what is printed, and that nothing that hangs or breaks holds the others up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

from common.checkup import Check, Level, Report, Result, cure, failure, ok, run, warning
from common.errors import Permanent, Transient


def test_only_a_failure_fails_a_report() -> None:
    assert (Report(()).worst, Report(()).exit_code) == (Level.OK, 0)
    assert (Report((ok("a", ""), warning("b", ""))).worst, Report((ok("a", ""), warning("b", ""))).exit_code) == (
        Level.WARNING,
        0,
    )
    report = Report((ok("a", ""), failure("b", ""), warning("c", "")))
    assert (report.worst, report.exit_code) == (Level.FAILURE, 1)


def test_the_text_has_a_line_for_each_result_its_cure_below_and_the_sum() -> None:
    report = Report((ok("disk", "fine"), failure("network", "gone\nfor good", "bring it back", lambda: "")))
    assert report.text() == (
        "OK       disk     fine\n"
        "FAILURE  network  gone\\nfor good\n"
        "                  -> bring it back (--fix does it)\n"
        "1 OK, 0 warnings, 1 failure\n"
    )
    assert report.text(["disk: removed x\x1b[2J"]).startswith("fixed    disk: removed x\\x1b[2J\nOK       disk")


def test_the_json_says_the_same() -> None:
    report = Report((warning("disk", "slow", "buy one"),))
    assert json.loads(report.to_json(["x"])) == {
        "schema": 1, "worst": "warning", "fixed": ["x"],
        "results": [{"name": "disk", "level": "warning", "text": "slow", "cure": "buy one", "is_ours": False}],
    }  # fmt: skip


def test_a_check_that_hangs_breaks_or_cannot_look_says_so_and_the_others_stand() -> None:
    never = threading.Event()

    def hangs() -> Iterator[Result]:
        yield ok("hangs", "the first half")
        never.wait(30)

    def is_buggy() -> Iterator[Result]:
        yield ok("buggy", "before")
        raise KeyError("x")

    def cannot_look() -> Iterator[Result]:
        raise Transient("libvirt is away")
        yield  # a generator, as checks are

    began = time.monotonic()
    checks = [
        Check("hangs", hangs, 0.2),
        Check("buggy", is_buggy),
        Check("blind", cannot_look),
        Check("fine", lambda: [ok("fine", "well")]),
    ]
    report = run(checks)
    assert time.monotonic() - began < 5
    never.set()
    assert [(r.name, r.level) for r in report.results] == [
        ("hangs", Level.OK), ("hangs", Level.FAILURE), ("buggy", Level.OK), ("buggy", Level.FAILURE),
        ("blind", Level.WARNING), ("fine", Level.OK),
    ]  # fmt: skip
    assert "0.2 s" in report.results[1].text
    assert "libvirt is away" in report.results[4].text


def test_cures_are_done_in_order_and_one_that_fails_does_not_keep_the_next_from_being_done() -> None:
    def refuses() -> str:
        raise Permanent("the kernel refused")

    report = Report((ok("a", ""), failure("b", "", fix=refuses), warning("c", "", fix=lambda: "removed it"), failure("d", "")))
    assert list(cure(report)) == ["b: not fixed: the kernel refused", "c: removed it"]
