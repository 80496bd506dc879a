"""``eschedule image create`` over real etcd, Placement and ecompute on libvirt's test driver, whose guests leave their disks alone.

So a test may write to a disk itself, and what it wrote has to be what a guest of the image begins with.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deployment import Deployment, make_raw_image
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"


class Place:
    """A host that publishes images, with one instance that has something on its disk."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment, self.published = deployment, folder / "published"
        self.published.mkdir()
        self.configure({"publish_directory": str(self.published), "publish_url": f"file://{self.published}"})
        deployment.eschedule(REQUEST, make_raw_image(folder / "image.raw"), "--name", "web")

    def configure(self, images: Mapping[str, Any]) -> None:
        """Begin ecompute anew with these settings."""
        config = yaml.safe_load(self.deployment.compute_file.read_text())
        self.deployment.compute_file.write_text(yaml.safe_dump({**config, "images": dict(images)}))
        self.deployment.stop_ecompute()
        self.deployment.start_ecompute()
        self.deployment.wait_ready()

    def disk(self, name: str = "web") -> Path:
        return Path(self.deployment.state_dir) / "instances" / self.deployment.show(name)["uuid"] / "disk.qcow2"

    def write(self, pattern: int, mib: int, *, at: str = "8M") -> None:
        words = ["qemu-io", "-c", f"write -P {pattern} {at} {mib}M", self.disk()]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def make(self, *words: str, code: int = 0) -> str:
        done = self.deployment.eschedule("image", "create", *words, check=False)
        assert done.returncode == code, (done.stderr, self.deployment.evidence())
        return str(done.stderr)

    def images(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.deployment.eschedule("image", "list", "--json").stdout)
        return found

    def image(self, name: str) -> dict[str, Any]:
        (found,) = (row for row in self.images() if row["name"] == name)
        return dict(found)

    def files(self) -> list[str]:
        """What is in the folder, and what is left of copies on the host."""
        copies = Path(self.deployment.state_dir) / "copies"
        return sorted(path.name for folder in (self.published, copies) if folder.is_dir() for path in folder.iterdir())


@pytest.fixture
def place(local_deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """On a host whose libguestfs has no kernel, whatever this machine has."""
    monkeypatch.setenv("SUPERMIN_KERNEL", str(tmp_path / "no-kernel"))
    return Place(local_deployment, tmp_path)


def test_a_guest_of_the_image_begins_with_what_was_on_the_disk(place: Place) -> None:
    place.write(0x5A, 4)
    place.make("web-disk", "--from", "web", "--no-seal", "--user", "debian", "--min-memory", "200")
    image = place.image("web-disk")
    (file,) = place.published.iterdir()
    assert image["checksum"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert (file.name, image["url"]) == (f"{image['checksum'][7:]}.qcow2", f"file://{file}")
    assert (image["min_disk_gib"], image["min_memory_mib"], image["user"]) == (1, 200, "debian")
    assert (file.stat().st_mode & 0o777, place.files()) == (0o644, [file.name])
    told = subprocess.run(["qemu-img", "info", file], check=True, capture_output=True, text=True, timeout=20).stdout
    assert "backing" not in told
    subprocess.run(["qemu-img", "compare", file, place.disk()], check=True, stdout=subprocess.DEVNULL, timeout=30)

    place.deployment.eschedule("destroy", "web")
    place.deployment.eschedule(REQUEST, "web-disk", "--name", "second")
    words = ["qemu-io", "-r", "-U", "-c", "read -P 0x5a 8M 4M", place.disk("second")]
    assert "verification failed" not in subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


def test_the_same_disk_is_the_same_file_and_a_name_is_never_another_image(place: Place) -> None:
    place.deployment.eschedule("stop", "web")
    place.make("first", "--from", "web", "--no-seal")
    place.make("again", "--from", "web", "--no-seal")
    assert place.image("first")["checksum"] == place.image("again")["checksum"]
    assert len(place.files()) == 1
    assert "there is an image first already" in place.make("first", "--from", "web", "--no-seal", code=5)


def test_what_cannot_be_made_is_refused_in_one_line_and_nothing_is_left(place: Place) -> None:
    assert "it has no libguestfs" in place.make("sealed", "--from", "web", code=1)
    assert "there is no instance" in place.make("none", "--from", "nobody", "--no-seal", code=1)
    assert "--min-disk" in place.make("none", "--from", "web", "--no-seal", "--min-disk", "x", code=2)
    place.published.rename(place.published.with_name("elsewhere"))
    assert "is it mounted?" in place.make("none", "--from", "web", "--no-seal", code=1)
    place.configure({})
    said = place.make("none", "--from", "web", "--no-seal", code=1)
    assert "set images.publish_directory and images.publish_url" in said
    assert len([line for line in said.splitlines() if ": waiting" not in line]) == 1, said
    assert place.deployment.stop_ecompute() == 0
    wait_until(
        lambda: "no heartbeat" in place.make("none", "--from", "web", "--no-seal", code=4),
        timeout_seconds=60,
        what="it is known to be away",
    )
    assert place.files() == [] and place.images() == []


def test_a_host_that_is_killed_while_it_publishes_begins_anew_and_leaves_nothing_half_made(
    place: Place, tmp_path: Path
) -> None:
    place.write(0x5A, 700)
    asking = place.deployment.spawn_eschedule(
        "image", "create", "big", "--from", "web", "--no-seal", log=tmp_path / "asking.log"
    )
    wait_until(
        lambda: any(path.suffix == ".partial" for path in place.published.iterdir()), timeout_seconds=60,
        what="it is published", evidence=place.deployment.evidence,
    )  # fmt: skip
    place.deployment.kill_ecompute()
    assert [name for name in place.files() if name.endswith(".partial")], "the half of a file, which nobody takes for an image"
    assert not list(place.published.glob("*.qcow2"))
    place.deployment.start_ecompute()
    wait_until(
        lambda: asking.poll() is not None, timeout_seconds=90, what="the same command ends", evidence=place.deployment.evidence
    )
    assert asking.poll() == 0, (tmp_path / "asking.log").read_text()
    assert place.files() == [f"{place.image('big')['checksum'][7:]}.qcow2"]


def test_one_that_is_interrupted_says_what_becomes_of_it_and_a_restart_leaves_nothing(place: Place, tmp_path: Path) -> None:
    place.write(0x5A, 700)
    log = tmp_path / "asking.log"
    asking = place.deployment.spawn_eschedule("image", "create", "big", "--from", "web", "--no-seal", log=log)
    wait_until(lambda: place.files() != [], timeout_seconds=60, what="it is under way", evidence=place.deployment.evidence)
    assert place.deployment.ecompute is not None
    place.deployment.ecompute.send_signal(signal.SIGSTOP)  # it would be done too soon
    try:
        asking.send_signal(signal.SIGINT)
        wait_until(lambda: asking.poll() is not None, timeout_seconds=30, what="the command ends")
    finally:
        place.deployment.ecompute.send_signal(signal.SIGCONT)
    assert asking.poll() == 130 and "gives it up within two minutes" in log.read_text(), log.read_text()
    assert place.deployment.stop_ecompute() == 0
    place.deployment.start_ecompute()
    wait_until(
        lambda: place.files() == [], timeout_seconds=60, what="nothing is left of it", evidence=place.deployment.evidence
    )
    assert place.images() == []
