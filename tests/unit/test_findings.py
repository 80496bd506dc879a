"""Findings, letters and reports: there and back, what does not fit, and what is only on its way."""

from __future__ import annotations

import dataclasses
from uuid import UUID, uuid4

import pytest

from common.errors import InvalidSpec, UnsupportedSchema
from common.findings import MOST_BYTES, Finding, Kind, Letter, Report, fitted, settled
from common.keys import Keys
from common.model import Adoption, ImageRef, InstanceSpec

PROVIDER = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01")


def a_finding(kind: str = Kind.QUARANTINED, *, proposal: InstanceSpec | None = None, subject: str = "") -> Finding:
    return Finding(
        kind, "host h1", "a guest without a spec", "etcd was wiped", "adopt it", uuid4(), PROVIDER, False, proposal, subject
    )


def a_proposal(size: int = 0) -> InstanceSpec:
    return InstanceSpec(
        uuid4(), "web", ImageRef("/a.qcow2"), {"VCPU": 1}, user_data_base64="A" * size, adopts=Adoption(2**64 - 1, 7)
    )


def test_a_report_comes_back_as_it_was_written() -> None:
    report = Report(PROVIDER, "h1", (a_finding(proposal=a_proposal()), a_finding("Newer")), ("did it",), ("no answer",))
    assert Report.from_json(report.to_json()) == report


def test_a_letter_comes_back_and_a_garbled_one_is_refused() -> None:
    letter = Letter("fix", {"kinds": ("OrphanClaim",), "instances": ()})
    assert Letter.from_json(letter.to_json()) == letter
    assert Letter.from_json('{"schema":1,"kind":"audit"}') == Letter("audit")
    with pytest.raises(UnsupportedSchema):
        Letter.from_json('{"schema":2,"kind":"audit"}')
    for text in ("", "[]", '{"schema":1}', '{"schema":1,"kind":"audit","arguments":{"kinds":"x"}}'):
        with pytest.raises((InvalidSpec, UnsupportedSchema)):
            Letter.from_json(text)


def test_a_report_that_fits_keeps_its_proposals() -> None:
    report = Report(PROVIDER, "h1", (a_finding(proposal=a_proposal(100_000)),))
    assert Report.from_json(fitted(report)) == report


def test_a_report_that_is_too_large_loses_its_proposals_first_then_findings_and_says_so() -> None:
    large = Report(PROVIDER, "h1", tuple(a_finding(proposal=a_proposal(90_000)) for _ in range(3)))
    cut = Report.from_json(fitted(large))
    assert cut.is_cut and cut.left_out == 0
    assert [dataclasses.replace(f, proposal=None) for f in large.findings] == list(cut.findings)

    many = Report(PROVIDER, "h1", tuple(a_finding() for _ in range(3000)))
    text = fitted(many)
    assert len(text.encode()) <= MOST_BYTES
    cut = Report.from_json(text)
    assert cut.is_cut and len(cut.findings) + cut.left_out == 3000 and cut.findings


def test_only_what_every_look_finds_is_settled_and_it_is_worded_by_the_last_look() -> None:
    lasting = a_finding(subject="x")
    looks = [[lasting, a_finding()], [dataclasses.replace(lasting, what="still"), a_finding()], [lasting]]
    slept: list[float] = []
    assert settled(lambda: looks.pop(0), (0.5, 1.0), slept.append) == [lasting]
    assert slept == [0.5, 1.0]


def test_where_nothing_is_suspected_nobody_waits() -> None:
    assert settled(lambda: [], (9.0,), lambda _: pytest.fail("waited")) == []


def test_a_letter_is_told_by_its_keys() -> None:
    keys, letter = Keys(), uuid4()
    assert keys.parse_letter(keys.mail(PROVIDER, letter)) == letter == keys.parse_letter(keys.mail_reply(letter))
    assert keys.mail_reply(letter).startswith(keys.mail_replies())
    with pytest.raises(ValueError, match="no mail key"):
        keys.parse_letter(keys.instance(letter))
