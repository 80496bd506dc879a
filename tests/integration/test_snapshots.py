"""``snapshot`` and ``rebuild`` through the real programs, with libvirt's simulation for a host: guests that are off, and refusals."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.deployment import Deployment, make_raw_image
from tests.support.disk_images import sha256

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"


def test_a_guest_that_is_off_goes_back_and_becomes_another(local_deployment: Deployment, tmp_path: Path) -> None:
    deployment, image = local_deployment, make_raw_image(tmp_path / "image.raw")
    larger = make_raw_image(tmp_path / "larger.raw", size_mib=8)
    deployment.eschedule(REQUEST, image, "--name", "web")

    def refused(code: int, *words: str | Path) -> str:
        answer = deployment.eschedule(*words, check=False)
        assert (answer.returncode, answer.stdout) == (code, ""), answer
        *_, last = answer.stderr.splitlines()  # what comes before is progress
        assert last.startswith("eschedule: "), answer
        return last

    # The simulation has no QEMU that could be asked while it runs.
    assert "take snapshot before+crash+" in refused(1, "snapshot", "create", "web", "before")
    deployment.eschedule("stop", "web")
    created = deployment.eschedule("snapshot", "create", "web", "before").stdout
    assert "consistency  off: the guest was off" in created
    deployment.eschedule("snapshot", "create", "web", "--json")
    assert len(deployment.eschedule("snapshot", "list", "web", "-o", "name").stdout.split()) == 2
    uuid = deployment.show("web")["uuid"]
    disk = Path(deployment.state_dir) / "instances" / uuid / "disk.qcow2"
    subprocess.run(["qemu-io", "-c", "write -P 5 512k 64k", disk], check=True, capture_output=True, timeout=20)

    assert "there is a snapshot before already, of another request" in refused(5, "snapshot", "create", "web", "before")
    assert "has no snapshot other: there are before, " in refused(1, "snapshot", "revert", "web", "other")
    assert "has no snapshot other: there are before, " in refused(1, "snapshot", "rm", "web", "other")
    assert "there is no instance nobody" in refused(1, "snapshot", "list", "nobody")
    assert "needs 1 to 63 letters" in refused(2, "snapshot", "create", "web", "a b")
    assert "--checksum is that of an image" in refused(2, "rebuild", "web", "--checksum", "sha256:00")

    deployment.eschedule("snapshot", "revert", "web", "before")
    read = ["qemu-io", "-r", "-c", "read -P 0 512k 64k", disk]
    assert subprocess.run(read, check=False, capture_output=True, timeout=20).returncode == 0
    assert deployment.phase("web") == "Stopped"

    # A rebuild of what is off stays off; images by name are checked before anything is asked for.
    deployment.eschedule("image", "add", "larger", larger, "--sha256", sha256(larger), "--min-disk", "2")
    assert "needs at least DISK_GB:2; web has DISK_GB:1: ask for more" in refused(2, "rebuild", "web", "--image", "larger")
    assert "its disk was not rebuilt, and is as it was (ImageNotFound: " in refused(1, "rebuild", "web", "--image", "/no/such")
    assert "a rebuild was given up, the disk is as it was: ImageNotFound" in deployment.eschedule("show", "web").stdout
    deployment.eschedule("rebuild", "web", "--image", larger)
    shown = deployment.show("web")
    assert (shown["phase"], shown["spec"]["image"]["url"]) == ("Stopped", str(larger))
    assert shown["spec"]["schema"] == 4
    assert deployment.eschedule("snapshot", "list", "web", "-o", "name").stdout == ""
    deployment.eschedule("start", "web")

    # Only its host has the disk.
    deployment.stop_ecompute()
    for words in (("list", "web"), ("create", "web"), ("rm", "web", "before"), ("revert", "web", "before")):
        assert "has no heartbeat, and only it has the disk: nothing was done" in refused(4, "snapshot", *words)
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.eschedule("destroy", "web")
    deployment.assert_nothing_is_left()
