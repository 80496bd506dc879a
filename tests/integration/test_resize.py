"""``eschedule resize`` over real etcd, Placement and ecompute on libvirt's test driver: every exit, and what is so afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecompute.disk_growth import virtual_size_bytes
from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
SIZE = {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}
GIB = 1 << 30


class Web:
    """One instance, and what all three stores say of its size."""

    def __init__(self, deployment: Deployment, image: Path) -> None:
        self.deployment = deployment
        deployment.eschedule(REQUEST, image, "--name", "web")

    def resize(self, *words: str, code: int = 0) -> str:
        done = self.deployment.eschedule("resize", "web", *words, check=False)
        assert done.returncode == code, (done.stderr, self.deployment.evidence())
        return str(done.stderr)

    def shown(self) -> dict[str, Any]:
        return self.deployment.show("web")

    def claimed(self) -> dict[str, int]:
        (held,) = self.deployment.allocations().values()
        return dict(held["resources"])

    def disk_bytes(self) -> int:
        return virtual_size_bytes(Path(self.deployment.state_dir) / "instances" / self.shown()["uuid"] / "disk.qcow2")


def looks_often(deployment: Deployment) -> None:
    """Begin ecompute anew, for a host that looks at everything often. The test driver's guests go with it."""
    config = yaml.safe_load(deployment.compute_file.read_text())
    config["builder"] = {"resync_every_seconds": 2, "orphan_claim_after_seconds": 5}
    deployment.compute_file.write_text(yaml.safe_dump(config))
    deployment.stop_ecompute()
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.eschedule("start", "web")


@pytest.fixture
def web(local_deployment: Deployment, tmp_path: Path) -> Web:
    return Web(local_deployment, make_raw_image(tmp_path / "image.raw"))


def test_a_disk_grows_at_once_and_the_rest_comes_with_a_reboot(web: Web) -> None:
    said = web.resize("--disk-gb", "3", "resources=VCPU:2")
    assert "DISK_GB 1 → 3: from now on" in said and "2 VCPU from its next start: eschedule reboot web" in said
    assert web.disk_bytes() == 3 * GIB
    assert web.claimed() == {"VCPU": 2, "DISK_GB": 3, "MEMORY_MB": 256} == web.shown()["spec"]["resources"]
    shown = web.shown()["status"]
    assert shown["in_force"] == {"VCPU": 1, "MEMORY_MB": 256} and shown["booted"] == 1
    assert "resized with its next start" in web.deployment.eschedule("list").stdout
    assert "it has that already" in web.resize("--disk-gb", "3", "--vcpus", "2")
    assert "rebooted" in web.resize("--vcpus", "2", "--reboot", "--hard"), "what waits comes into force"
    shown = web.shown()["status"]
    assert (shown["in_force"], shown["notes"], shown["booted"]) == ({}, [], 2)
    assert "it has that already" in web.resize("--vcpus", "2", "--reboot"), "nothing waits any more"
    assert web.shown()["status"]["booted"] == 2
    web.deployment.eschedule("audit")
    web.deployment.eschedule("destroy", "web")
    web.deployment.assert_nothing_is_left()


def test_less_is_claimed_once_the_guest_was_started_with_less(web: Web) -> None:
    looks_often(web.deployment)
    web.resize("--memory-mb", "128")
    assert web.claimed()["MEMORY_MB"] == 256, "it still runs with that"
    web.deployment.eschedule("audit")
    assert "128" in web.shown()["status"]["notes"][0]
    web.resize("--memory-mb", "128", "--reboot", "--hard")
    wait_until(
        lambda: web.claimed()["MEMORY_MB"] == 128,
        timeout_seconds=30,
        what="the room is given back",
        evidence=web.deployment.evidence,
    )
    web.deployment.eschedule("audit")


def test_one_that_is_off_grows_and_starts_with_what_was_asked_for(web: Web) -> None:
    web.deployment.eschedule("stop", "web")
    said = web.resize("--vcpus", "2", "--disk-gb", "2")
    assert "VCPU 1 → 2: from its next start on" in said and "the guest sees it" not in said
    assert web.disk_bytes() == 2 * GIB
    web.deployment.eschedule("start", "web")
    shown = web.shown()
    assert (shown["phase"], shown["status"]["in_force"]) == ("Running", {})


def test_what_cannot_be_is_refused_in_one_line_and_changes_nothing(web: Web, tmp_path: Path) -> None:
    before = web.shown()["spec"]
    refused = {
        3: (("--vcpus", "4000"), "free, 3999 more needed"),
        2: (("--disk-gb", "1", "--vcpus", "0"), "--vcpus"),
        5: (("--vcpus", "2"), "is being destroyed"),
        4: (("--vcpus", "2"), "Placement"),
    }
    for code in (3, 2):
        words, why = refused[code]
        said = web.resize(*words, code=code)
        assert why in said and len([line for line in said.splitlines() if "asking for" not in line]) == 1, said
    web.resize("--disk-gb", "2")
    assert "never made smaller" in web.resize("--disk-gb", "1", code=2)
    gone = web.deployment.eschedule("resize", "nobody", "--vcpus", "2", check=False)
    assert gone.returncode == 1 and "there is no instance nobody" in gone.stderr
    web.deployment.kill_placement()
    assert refused[4][1] in web.resize(*refused[4][0], code=4)
    assert web.shown()["spec"]["resources"] == {**before["resources"], "DISK_GB": 2}
    assert web.deployment.ecompute is not None
    web.deployment.eschedule("destroy", "web", "--no-wait")  # its claim cannot be released yet
    assert refused[5][1] in web.resize(*refused[5][0], code=5)


def test_an_image_may_need_more_memory_than_is_asked_for(local_deployment: Deployment, tmp_path: Path) -> None:
    image = make_raw_image(tmp_path / "image.raw")
    local_deployment.eschedule("image", "add", "tiny", image, "--sha256", _sha256(image), "--min-memory", "200")
    web = Web(local_deployment, Path("tiny"))
    assert "needs at least MEMORY_MB:200" in web.resize("--memory-mb", "128", code=2)
    web.resize("--memory-mb", "220")
    local_deployment.eschedule("image", "rm", "tiny")
    web.resize("--memory-mb", "128")  # nobody knows any more
    assert json.loads(local_deployment.eschedule("show", "web", "--json").stdout)["spec"]["resources"]["MEMORY_MB"] == 128


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
