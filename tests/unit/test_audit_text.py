"""What ``eschedule audit`` prints: blocks, a line that sums up, an object; and the exit code that goes with it."""

from __future__ import annotations

from uuid import UUID

import pytest

from common.findings import Finding, Kind
from common.keys import Keys
from common.model import ImageRef, InstanceSpec
from eschedule.audit import Result, as_json, as_text
from eschedule.audit_checks import Cluster

H1, WEB = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01"), UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e09")
PROPOSAL = InstanceSpec(WEB, "web", ImageRef("/a.qcow2"), {"VCPU": 1})
QUARANTINED = Finding(
    Kind.QUARANTINED, "host h1", "no spec\n\x1b[2J", "wiped", "adopt it", WEB, H1, proposal=PROPOSAL, name="web"
)
STRAY = Finding(Kind.STATUS_WITHOUT_SPEC, "etcd key /k", "speaks of nobody", "by hand", "--fix", WEB, H1, True, subject="/k")
DEAD = Finding(Kind.HOST_DEAD, "host h1", "no heartbeat", "down", "see to it", None, H1)


def a_result(*findings: Finding, problems: tuple[str, ...] = ()) -> Result:
    return Result(Cluster(Keys(), hosts={H1: "h1"}), findings, problems, frozenset({H1}))


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (a_result(), 0),
        (a_result(STRAY), 1),
        (a_result(STRAY, DEAD), 4),
        (a_result(problems=("Placement is away",)), 4),
    ],
)
def test_the_exit_code_is_0_only_when_all_was_looked_at_and_agrees(result: Result, code: int) -> None:
    assert result.exit_code == code
    assert as_json(result, [])["is_clean"] is (code == 0)
    assert ("all agrees" in as_text(result, [])) is (code == 0)


def test_each_finding_is_a_block_and_nothing_from_outside_moves_the_cursor() -> None:
    text = as_text(a_result(QUARANTINED, STRAY), ["did this"])
    assert text == (
        "fixed: did this\n"
        "\n"
        f"Quarantined web ({WEB}) at host h1\n"
        "  what   no spec\\n\\x1b[2J\n"
        "  cause  wiped\n"
        "  cure   adopt it\n"
        "\n"
        f"StatusWithoutSpec {WEB} at etcd key /k\n"
        "  what   speaks of nobody\n"
        "  cause  by hand\n"
        "  cure   --fix\n"
        "\n"
        "2 findings, 1 of which eschedule audit --fix cures; 1 host and 0 instances were looked at\n"
    )


def test_the_object_says_all_that_the_text_says() -> None:
    found = as_json(a_result(QUARANTINED, DEAD), ["did this"])
    assert (found["hosts"], found["instances"], found["fixed"], found["unanswered"]) == (1, 0, ["did this"], [str(H1)])
    first = found["findings"][0]
    assert (first["kind"], first["name"], first["host"], first["provider"]) == ("Quarantined", "web", "h1", str(H1))
    assert first["proposal"]["name"] == "web" and found["findings"][1]["instance"] is None
