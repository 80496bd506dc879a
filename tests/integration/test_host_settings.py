"""Hosts that operators disable, mark and look at, by the real programs: Placement has it when the command is done."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"


def test_what_operators_set_is_in_force_when_the_command_ends(local_deployment: Deployment, tmp_path: Path) -> None:
    deployment, image = local_deployment, make_raw_image(tmp_path / "image.raw")
    deployment.eschedule(REQUEST, image, "--name", "before")

    told = deployment.eschedule("host", "disable", "testhost", "--reason", "new disks")
    assert "takes no new guests: new disks" in told.stderr
    refused = deployment.eschedule(REQUEST, image, "--name", "late", check=False)
    assert refused.returncode == 3 and "disabled" in refused.stderr
    assert deployment.phase("before") == "Running"
    assert "Ready, disabled (new disks)" in deployment.eschedule("hosts").stdout
    assert "already took no new guests" in deployment.eschedule("host", "disable", "testhost").stderr
    shown = json.loads(deployment.eschedule("host", "show", "testhost", "-o", "json").stdout)
    assert shown["disabled"] and shown["disabled_reason"] == "new disks" and shown["instances"] == ["before"]
    assert shown["inventory"]["VCPU"]["capacity"] == shown["capacity"]["VCPU"] and shown["used"]["VCPU"] == 1
    assert "COMPUTE_STATUS_DISABLED" in shown["traits"]

    deployment.eschedule("host", "enable", "testhost")
    deployment.eschedule(REQUEST, image, "--name", "after")

    deployment.eschedule("host", "trait", "add", "testhost", "CUSTOM_GPU", "CUSTOM_FAST")
    deployment.eschedule(f"{REQUEST}&required=CUSTOM_GPU", image, "--name", "wants-gpu")
    deployment.eschedule("host", "trait", "rm", "testhost", "CUSTOM_GPU")
    assert deployment.eschedule(f"{REQUEST}&required=CUSTOM_GPU", image, check=False).returncode == 3
    deployment.eschedule("host", "label", "testhost", "rack=7", "row=2")
    deployment.eschedule("host", "label", "testhost", "row-")
    text = deployment.eschedule("host", "show", "testhost").stdout
    assert "rack=7" in text and "row=2" not in text and "CUSTOM_FAST" in text
    assert "rack=7" in deployment.eschedule("hosts", "-o", "wide").stdout

    deployment.eschedule("host", "label", "testhost", "zone=a")
    deployment.eschedule("create", REQUEST, image, "--zone", "a", "--name", "in-a")
    told = deployment.eschedule("create", REQUEST, image, "--zone", "b", check=False)
    assert told.returncode == 1 and "there are a; a host is put into one by" in told.stderr
    deployment.eschedule("host", "label", "testhost", "zone=b")
    assert deployment.eschedule("capacity", REQUEST, "--zone", "b").returncode == 0
    assert deployment.eschedule("create", f"{REQUEST}&required=CUSTOM_ZONE_A", image, check=False).returncode == 3

    for arguments, code, words in (
        (("disable", "nohost"), 1, "no host"),
        (("disable", "testhos"), 1, "did you mean testhost?"),
        (("trait", "add", "testhost", "COMPUTE_STATUS_DISABLED"), 2, "host disable"),
        (("trait", "add", "testhost", "HW_CPU_X86_NONSENSE"), 2, "CUSTOM_"),
        (("label", "testhost", "rack"), 2, "NAME=VALUE"),
        (("trait", "add", "testhost", "CUSTOM_ZONE_C"), 2, "host label HOST zone=NAME"),
        (("show", "nohost"), 1, "no host"),
    ):
        answer = deployment.eschedule("host", *arguments, check=False)
        assert answer.returncode == code and words in answer.stderr and answer.stderr.count("\n") == 1, answer.stderr

    deployment.kill_ecompute()
    wait_until(
        lambda: "dead" in deployment.eschedule("hosts").stdout,
        timeout_seconds=60,
        what="it is dead",
        evidence=deployment.evidence,
    )
    told = deployment.eschedule("host", "disable", "testhost", "--reason", "gone")
    assert "no heartbeat" in told.stderr
    deployment.start_ecompute()
    deployment.wait_ready()
    assert "COMPUTE_STATUS_DISABLED" in json.loads(deployment.eschedule("host", "show", "testhost", "--json").stdout)["traits"]
