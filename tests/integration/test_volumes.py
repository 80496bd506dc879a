"""Volumes from create to rm, by the real programs over real etcd and Placement; libvirt is its test driver.

That driver plugs no disks into guests that run: what a guest sees of that is in tests/system/test_volumes.py.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from tests.support.deployment import Deployment, Process, make_raw_image
from tests.support.placement import client_for
from tests.support.processes import VENV_BIN, wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"


class Site:
    """A deployment with an instance that is off."""

    def __init__(self, deployment: Deployment, image: Path) -> None:
        self.deployment, self.image = deployment, image

    def volume(self, *arguments: str, code: int = 0) -> str:
        """What ``eschedule volume`` prints, on both streams where it fails, as it has to with another *code*."""
        answer = self.deployment.eschedule("volume", *arguments, check=False)
        assert answer.returncode == code, f"{answer.stdout}{answer.stderr}\n{self.deployment.evidence()}"
        if code:
            assert answer.stdout == "" and answer.stderr.splitlines()[-1].startswith("eschedule: ")
        return answer.stdout if code == 0 else answer.stderr

    def shown(self, name: str) -> dict[str, Any]:
        return json.loads(self.volume("show", name, "--json"))  # type: ignore[no-any-return]

    def files(self) -> list[Path]:
        return self.deployment.files("volumes")

    def claim(self, uuid: str) -> dict[str, Any]:
        return self.deployment.placement(f"/allocations/{uuid}")

    def instance(self, name: str) -> None:
        """One that has run and is off."""
        self.deployment.eschedule(REQUEST, self.image, "--name", name)
        self.deployment.eschedule("stop", name)


@pytest.fixture
def site(local_deployment: Deployment, tmp_path: Path) -> Site:
    return Site(local_deployment, make_raw_image(tmp_path / "image.raw"))


def test_a_volume_outlives_the_instances_that_have_it(site: Site) -> None:
    deployment = site.deployment
    made = json.loads(site.volume("create", "data", "--size", "2", "--host", "testhost", "--json"))
    assert (made["name"], made["size_gib"], made["phase"], made["attached_to"]) == ("data", 2, "Available", None)
    (file,) = site.files()
    assert (file.name, file.stat().st_size, file.stat().st_mode & 0o777) == (f"{made['uuid']}.raw", 2 << 30, 0o600)
    assert file.stat().st_blocks * 512 < 1 << 20, "thin"
    held = site.claim(made["uuid"])
    assert held["consumer_type"] == "VOLUME"
    assert [amounts["resources"] for amounts in held["allocations"].values()] == [{"DISK_GB": 2}]

    site.instance("web")
    attached = json.loads(site.volume("attach", "data", "web", "--json"))
    assert (attached["instance"], attached["phase"]) == ("web", "Attached")
    shown = deployment.show("web")
    assert shown["spec"]["volumes"] == [{"uuid": made["uuid"], "name": "data", "slot": 0}]
    assert (shown["spec"]["schema"], shown["status"]["volumes"]) == (4, [made["uuid"]])
    deployment.eschedule("start", "web")
    assert deployment.show("web")["status"]["volumes"] == [made["uuid"]]
    assert site.volume("attach", "data", "web").splitlines()[0].startswith("name")
    for verb in (("rm", "data"), ("attach", "data", "other")):
        if verb[0] == "attach":
            site.instance("other")
        assert "attached to web" in site.volume(*verb, code=5)
    file.write_bytes(b"precious")

    deployment.eschedule("destroy", "web")
    wait_until(
        lambda: site.shown("data")["phase"] == "Available", timeout_seconds=20, what="it is free", evidence=deployment.evidence
    )
    assert file.read_bytes() == b"precious"
    site.volume("attach", "data", "other")
    site.volume("detach", "data")
    assert deployment.show("other")["status"]["volumes"] == []
    assert deployment.show("other")["spec"]["schema"] == 1
    assert "no instance" in deployment.eschedule("volume", "detach", "data").stderr
    table = site.volume("list").splitlines()
    assert table[0].split() == ["NAME", "SIZE_GB", "PHASE", "HOST", "INSTANCE", "AGE", "UUID"]
    assert table[1].split()[:4] == ["data", "2", "Available", "testhost"]
    site.volume("rm", made["uuid"])
    assert json.loads(site.volume("list", "--json")) == []
    deployment.eschedule("destroy", "other")
    assert site.files() == []
    deployment.assert_nothing_is_left()


def test_what_cannot_be_is_refused_in_a_line_and_changes_nothing(site: Site) -> None:
    deployment = site.deployment
    before = deployment.etcd_keys().keys()
    refused = {
        ("create", "data", "--size", "0"): (2, '--size is "0", needs a whole number from 1'),
        ("create", "data", "--size", "ten"): (2, "needs a whole number"),
        ("create", "Data", "--size", "1"): (2, 'volume name "Data" has capital letters'),
        ("create", "data", "--size", "1", "--host", "testhots"): (1, "did you mean testhost?"),
        ("create", "data", "--size", "1", "--uuid", "x"): (2, "--uuid"),
        ("create", "data", "--size", "1000000"): (3, "no host can take DISK_GB:1000000"),
        ("show", "data"): (1, "there is no volume data; see: eschedule volume list"),
        ("rm", "data"): (1, "there is no volume data"),
        ("detach", "data"): (1, "there is no volume data"),
        ("attach", "data", "web"): (1, "there is no volume data"),
        ("attach", "data"): (2, "the following arguments are required: INSTANCE"),
        ("list", "--wait"): (2, "unrecognized arguments"),
    }
    for words, (code, said) in refused.items():
        assert said in site.volume(*words, code=code), words
    assert deployment.etcd_keys().keys() == before and deployment.allocations() == {}

    site.volume("create", "data", "--size", "1", "--request-id", "once")
    assert "there already" in deployment.eschedule("volume", "create", "data", "--size", "1", "--request-id", "once").stderr
    assert "there is a volume data already" in site.volume("create", "data", "--size", "1", code=5)
    assert "there is a volume data already" in site.volume("create", "data", "--size", "2", "--request-id", "once", code=5)
    assert "holds DISK_GB:1" in site.volume("create", "more", "--size", "2", "--uuid", site.shown("data")["uuid"], code=5)
    assert "there is no instance web" in site.volume("attach", "data", "web", code=1)
    assert "did you mean data?" in site.volume("show", "dta", code=1)
    assert len(deployment.allocations()) == 1

    checksum = hashlib.sha256(site.image.read_bytes()).hexdigest()
    deployment.eschedule("image", "add", "old", site.image, "--sha256", checksum, "--property", "hw_disk_bus=sata")
    deployment.eschedule(REQUEST, "old", "--name", "old")
    assert "the disks of old are SATA, which cannot be plugged in while it runs; first: eschedule stop old" in site.volume(
        "attach", "data", "old", code=5
    )
    deployment.eschedule("stop", "old")
    site.volume("attach", "data", "old")
    deployment.eschedule("start", "old")
    assert "eschedule stop old" in site.volume("detach", "data", code=5)
    deployment.eschedule("stop", "old")
    site.volume("detach", "data")

    deployment.eschedule(REQUEST, site.image, "--name", "running")
    said = site.volume("attach", "data", "running", "--wait-seconds", "10", code=4)
    assert "data is not in running after 10.0 s: AttachVolume: plug a disk" in said, "as libvirt's test driver cannot"
    assert deployment.show("running")["phase"] == "Running"
    site.volume("detach", "data")
    deployment.eschedule("destroy", "running", "old")
    deployment.eschedule("image", "rm", "old")
    site.volume("rm", "data")
    deployment.assert_nothing_is_left()


def test_services_that_are_away_and_a_host_that_is_dead_are_named(site: Site) -> None:
    deployment = site.deployment
    site.volume("create", "data", "--size", "1")
    assert deployment.stop_ecompute() == 0
    assert "no host can take DISK_GB:1" in site.volume("create", "more", "--size", "1", code=3)
    said = site.volume("rm", "data", "--wait-seconds", "1", code=4)
    assert "testhost has no heartbeat" in said and "data is not gone after 1.0 s" in said
    assert site.shown("data")["phase"] == "Deleting" and site.files()
    deployment.start_ecompute()
    wait_until(lambda: not site.files(), timeout_seconds=60, what="it is removed", evidence=deployment.evidence)
    wait_until(
        lambda: deployment.allocations() == {}, timeout_seconds=20, what="its claim is released", evidence=deployment.evidence
    )
    deployment.wait_ready()
    deployment.kill_placement()
    assert "Placement" in site.volume("create", "more", "--size", "1", code=4)
    deployment.kill_etcd()
    assert "etcd" in site.volume("list", code=4)


def test_a_directory_on_another_file_system_is_refused_and_one_of_its_own_is_used(site: Site, tmp_path: Path) -> None:
    deployment = site.deployment
    assert deployment.stop_ecompute() == 0
    config = yaml.safe_load(deployment.compute_file.read_text())

    def start_with(directory: str) -> Process:
        deployment.compute_file.write_text(yaml.safe_dump({**config, "volumes": {"directory": directory}}))
        return deployment.start_ecompute()

    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        process = start_with(f"{elsewhere}/deep")
        wait_until(lambda: process.poll() is not None, timeout_seconds=60, what="it ended", evidence=deployment.evidence)
        assert process.poll() == 2, deployment.evidence()
        assert list(Path(elsewhere).iterdir()) == []
        assert f"volumes.directory is {elsewhere}/deep, on another file system than" in deployment.evidence()
    start_with(str(tmp_path / "own"))
    deployment.wait_ready()
    made = json.loads(site.volume("create", "data", "--size", "1", "--json"))
    assert (tmp_path / "own" / f"{made['uuid']}.raw").stat().st_size == 1 << 30
    assert "1 volume (data)" in deployment.eschedule("host", "remove", "testhost", check=False).stderr
    assert deployment.stop_ecompute() == 0
    left = deployment.machine.run(
        [VENV_BIN / "ecompute", "--config", deployment.compute_file, "--leave"], timeout_seconds=60, check=False
    )
    assert left.returncode != 0 and "1 volumes (data)" in left.stderr


def test_a_claim_of_a_volume_that_was_never_recorded_is_given_back(site: Site) -> None:
    """An eschedule died between claim and record; a volume's own claim that was lost is asked for again."""
    deployment = site.deployment
    assert deployment.stop_ecompute() == 0
    config = yaml.safe_load(deployment.compute_file.read_text())
    config["builder"] = {"resync_every_seconds": 1, "orphan_claim_after_seconds": 2}
    deployment.compute_file.write_text(yaml.safe_dump(config))
    deployment.start_ecompute()
    deployment.wait_ready()
    made = json.loads(site.volume("create", "data", "--size", "1", "--json"))
    placement = client_for(
        f"http://127.0.0.1:{deployment.placement_port}", etcd_prefix=deployment.prefix, consumer_type="VOLUME"
    )
    provider, orphan = UUID(made["host"]["provider"]), UUID(int=7)
    try:
        placement.claim(orphan, {provider: {"DISK_GB": 1}})
        held = placement.consumer(UUID(made["uuid"]))
        assert held is not None
        placement.release(held.uuid, held.generation)
        wait_until(
            lambda: set(deployment.allocations()) == {made["uuid"]}, timeout_seconds=30, what="the claims are right",
            evidence=deployment.evidence,
        )  # fmt: skip
    finally:
        placement.close()
