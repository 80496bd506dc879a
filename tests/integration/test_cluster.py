"""``eschedule.Cluster`` over real etcd, Placement and ecompute on libvirt's test driver: the example of the handbook, and errors."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import ConfigError, Conflict, NoCapacity, Permanent, Transient
from eschedule import Cluster
from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import ROOT, VENV_BIN

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBP0cEYM8VAEfKNXoLjZ0SO3rGOGzkPyCCNjzcvFbQ0z me@here"


@pytest.fixture
def cluster(local_deployment: Deployment) -> Iterator[Cluster]:
    local_deployment.wait_ready()
    with Cluster(local_deployment.schedule_file) as cluster:
        yield cluster


def test_the_example_of_the_handbook_does_what_it_says(local_deployment: Deployment, tmp_path: Path) -> None:
    local_deployment.wait_ready()
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)
    image = make_raw_image(tmp_path / "image.raw")
    (tmp_path / "example.py").write_text(f"IMAGE = {str(image)!r}\n" + example)
    (tmp_path / "schedule.yaml").write_text(local_deployment.schedule_file.read_text())
    command = [VENV_BIN / "python", tmp_path / "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "testhost Ready 0" and lines[1].startswith("web testhost Running ["), lines
    assert lines[2] == "['web', 'worker-1', 'worker-2']"
    assert local_deployment.eschedule("list", "-o", "name").stdout == ""


def test_what_it_creates_is_what_the_command_line_creates(
    cluster: Cluster, local_deployment: Deployment, tmp_path: Path
) -> None:  # fmt: skip
    image = str(make_raw_image(tmp_path / "image.raw"))
    uuid = uuid4()
    made = [
        cluster.create(REQUEST, image, name="web", keys=[KEY], user_data="#!/bin/sh\ntrue\n", uuid=uuid) for _ in range(2)
    ]  # the second one finds what the first has made
    assert [row.uuid for row in made] == [uuid, uuid] and made[1].phase == "Running"
    shown = local_deployment.show("web")
    assert (shown["uuid"], shown["spec"]["keys"]) == (str(uuid), [KEY])
    (listed,) = cluster.instances()
    assert (listed.name, listed.host.name) == ("web", "testhost")
    (stopped,) = cluster.stop("web", force=True)
    assert stopped.phase == "Stopped" and cluster.instance(uuid).phase == "Stopped"
    changed_as_by_the_command_line(cluster)
    cluster.destroy("shop")
    assert cluster.instances() == []


def changed_as_by_the_command_line(cluster: Cluster) -> None:
    (row,) = cluster.label("web", add={"app": "web", "tier": "front"})
    assert row.spec is not None and row.spec.labels == {"app": "web", "tier": "front"}
    assert cluster.label("web", remove=["tier"])[0].spec.labels == {"app": "web"}  # type: ignore[union-attr]
    assert cluster.rename("web", "shop").name == "shop"
    cluster.protect("shop")
    for refused in (cluster.destroy, cluster.rebuild):
        with pytest.raises(Conflict, match="shop is protected"):
            refused("shop")
    cluster.unprotect("shop")
    (row,) = cluster.resize("shop", memory_mib=96, disk_gib=2)
    assert row.spec is not None and row.spec.resources == {"VCPU": 1, "MEMORY_MB": 96, "DISK_GB": 2}
    (row,) = cluster.start("shop")
    (again,) = cluster.rebuild("shop")
    assert again.phase == "Running" and again.status.rebuilt.request > row.spec.boot_request  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="nothing is to be changed"):
        cluster.resize("shop")
    with pytest.raises(ConfigError, match="bogus"):
        cluster.wait("shop", "bogus")


def test_what_goes_wrong_is_raised_and_nothing_is_left(
    cluster: Cluster, local_deployment: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    image = str(make_raw_image(tmp_path / "image.raw"))
    for wrong in (("resources=VCPU:one", image), (REQUEST, "no image!"), (REQUEST,)):
        with pytest.raises(ConfigError):
            cluster.create(*wrong)
    with pytest.raises(NoCapacity, match="VCPU"):
        cluster.create("resources=VCPU:4000,DISK_GB:1,MEMORY_MB:64", image)
    with pytest.raises(Permanent, match="there is no instance nobody"):
        cluster.stop("nobody")
    with pytest.raises(Permanent, match="ImageNotFound"):
        cluster.create(REQUEST, str(tmp_path / "none.raw"), name="broken")
    cluster.create(REQUEST, image, name="web")
    with pytest.raises(Conflict, match="web"):
        cluster.create(REQUEST, image, name="web")
    with pytest.raises(Transient, match="not ready after"):
        cluster.wait("web", "ready", wait_seconds=0.1)
    cluster.destroy("web", "broken")
    assert local_deployment.eschedule("list", "-o", "name").stdout == ""
    assert capfd.readouterr() == ("", "")
