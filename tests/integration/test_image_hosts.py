"""Images that hosts fetch ahead, and what they say of their caches: the real programs over libvirt's test driver."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deployment import Deployment, local_deployment, make_raw_image  # noqa: F401 - a fixture
from tests.support.processes import VENV_BIN, wait_until
from tests.support.slow_images import SlowImages, slow_images

REQUEST = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"


@pytest.fixture
def here(local_deployment: Deployment) -> Deployment:  # noqa: F811
    return local_deployment


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[SlowImages]:
    with slow_images(make_raw_image(tmp_path / "slow.raw", size_mib=16), address="127.0.0.1") as images:
        yield images


@pytest.fixture(autouse=True)
def straight_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def image_of(directory: Path, name: str, mark: bytes = b"") -> tuple[Path, str]:
    path = make_raw_image(directory / f"{name}.raw")
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(mark or name.encode())
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def reconfigured(here: Deployment, **sections: Any) -> None:
    config = yaml.safe_load(here.compute_file.read_text())
    here.compute_file.write_text(yaml.safe_dump({**config, **sections}))
    here.kill_ecompute()
    here.start_ecompute()
    here.wait_ready()


def ecompute(here: Deployment, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [VENV_BIN / "ecompute", "--config", here.compute_file, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def cached(here: Deployment, *more: str) -> list[dict[str, Any]]:
    (host,) = json.loads(here.eschedule("image", "cache", "--json", *more).stdout)
    assert (host["name"], host["problem"], host["left_out"]) == ("testhost", "", 0)
    return host["images"]


def refuse_what_is_wrong(here: Deployment, tmp_path: Path) -> None:
    """It is said for each host, and in the exit code."""
    image, _ = image_of(tmp_path, "debian")
    for code, words, said in (
        (1, (image, "--checksum", f"sha256:{'0' * 64}"), "it was changed at its source"),
        (1, ("/not/there",), "cannot be read"),
        (4, ("http://127.0.0.1:9/x.qcow2", "--wait-seconds", "20"), "cannot be fetched"),
        (2, (image, "--hosts", "node7"), 'no host with a heartbeat is called "node7"'),
        (2, (image, "--hosts", "testhos"), "did you mean testhost?"),
        (2, (image, "--hosts", ","), "names no host"),
        (2, ("x.qcow2",), "is a path on this machine"),
        (1, ("debian-12",), "there is no image debian-12"),
    ):
        answer = here.eschedule("image", "prefetch", *words, check=False)
        assert answer.returncode == code and said in answer.stderr, (words, answer)
    assert cached(here) == []


def test_a_host_is_asked_for_an_image_and_says_what_it_has(here: Deployment, tmp_path: Path) -> None:
    refuse_what_is_wrong(here, tmp_path)
    (image, digest), (other, other_digest) = image_of(tmp_path, "debian"), image_of(tmp_path, "other")
    here.eschedule("image", "add", "debian-12", image, "--sha256", digest)
    asked = here.eschedule("image", "prefetch", "debian-12", "--json")
    assert json.loads(asked.stdout)[0] | {"provider": "", "done_bytes": 0, "total_bytes": 0} == {
        "name": "testhost", "provider": "", "state": "here", "done_bytes": 0, "total_bytes": 0, "digest": f"sha256:{digest}", "message": "",
    }  # fmt: skip
    assert f"testhost: here as sha256:{digest[:12]}" in asked.stderr
    (row,) = cached(here)
    assert (row["names"], row["digest"], row["instances"], row["is_pinned"]) == (["debian-12"], f"sha256:{digest}", 0, False)
    assert row["format"] == "raw" and row["sources"] == [str(image)] and 0 < row["bytes"] < 4 << 20

    here.eschedule(REQUEST, "debian-12", "--name", "web")
    here.eschedule(REQUEST, other, "--name", "db")
    rows = {row["digest"]: row for row in cached(here, "--hosts", "testhost")}
    assert {digest: row["instances"] for digest, row in rows.items()} == {f"sha256:{digest}": 1, f"sha256:{other_digest}": 1}
    table = here.eschedule("image", "cache").stdout.splitlines()
    assert table[0].split() == ["HOST", "IMAGE", "DIGEST", "SIZE_MB", "USED", "INSTANCES", "PINNED"]
    assert {line.split()[1] for line in table[1:]} == {"debian-12", str(other)}
    again = here.eschedule("image", "prefetch", "debian-12", "--hosts", "testhost")
    assert again.stdout.splitlines()[1].split()[:3] == ["testhost", "here", "here"]


def test_a_long_fetch_holds_up_nobody_and_goes_on_alone(here: Deployment, slow: SlowImages) -> None:
    slow.begin(at_once=1 << 20)
    url = f"{slow.url}/slow.raw"
    asked = here.eschedule("image", "prefetch", url, "--no-wait")
    assert asked.stdout.splitlines()[1].split()[:2] in (["testhost", "waiting"], ["testhost", "fetching"])
    slow.asked.wait(10)
    assert here.eschedule("audit").returncode == 0, "another letter is answered meanwhile"
    late = here.eschedule("image", "prefetch", url, "--wait-seconds", "1", check=False)
    assert late.returncode == 4 and "it goes on" in late.stdout
    process = here.spawn_eschedule("image", "prefetch", url, log=here.directory / "prefetch.log")
    slow.hurry()
    assert process.wait(60) == 0, (here.directory / "prefetch.log").read_text()
    assert [row["sources"] for row in cached(here)] == [[url]]
    go_on_after_a_kill(here, slow)
    name_a_silent_host(here)


def go_on_after_a_kill(here: Deployment, slow: SlowImages) -> None:
    """The next letter begins the fetch anew."""
    slow.begin(at_once=1 << 20)
    process = here.spawn_eschedule("image", "prefetch", f"{slow.url}/again.raw", log=here.directory / "prefetch.log")
    assert slow.asked.wait(30)
    here.kill_ecompute()
    slow.hurry()
    here.start_ecompute()
    assert process.wait(100) == 0, (here.directory / "prefetch.log").read_text()
    assert [path for path in (Path(here.state_dir) / "images").iterdir() if ".partial" in path.name] == []


def name_a_silent_host(here: Deployment) -> None:
    assert here.ecompute is not None
    os.kill(here.ecompute.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
    try:
        answer = here.eschedule("image", "prefetch", "/x", "--wait-seconds", "3", check=False)
    finally:
        os.kill(here.ecompute.pid, signal.SIGCONT)  # type: ignore[attr-defined]
    assert answer.returncode == 4 and "silent" in answer.stdout and "does not answer" in answer.stdout


def test_ecompute_fetches_ahead_beside_the_daemon_and_alone(here: Deployment, tmp_path: Path, slow: SlowImages) -> None:
    (image, digest), (named, named_digest) = image_of(tmp_path, "a"), image_of(tmp_path, "b")
    here.eschedule("image", "add", "debian-12", named, "--sha256", named_digest)
    done = ecompute(here, "--prefetch", image, "debian-12")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{image}: is here: sha256:{digest}, ") and second.startswith(
        f"debian-12: is here: sha256:{named_digest}, "
    )
    assert "was here already" in ecompute(here, "--prefetch", "debian-12").stdout
    assert {row["digest"] for row in cached(here)} == {f"sha256:{digest}", f"sha256:{named_digest}"}

    empty = ecompute(here, "--prefetch")
    assert empty.returncode == 2 and "list them in images.prefetch" in empty.stderr
    assert ecompute(here, "--prefetch", "./x").returncode == 2
    mixed = ecompute(here, "--prefetch", "nobody", image, "http://127.0.0.1:9/x")
    assert mixed.returncode == 1 and len(mixed.stdout.splitlines()) == 3
    assert "there is no image nobody in the registry" in mixed.stdout
    assert ecompute(here, "--prefetch", "http://127.0.0.1:9/x").returncode == 4

    slow.begin(at_once=1 << 20)
    process = subprocess.Popen(
        [VENV_BIN / "ecompute", "--config", here.compute_file, "--prefetch", f"{slow.url}/s"], stdout=subprocess.PIPE, text=True
    )
    assert slow.asked.wait(20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 1 and "given up, as asked for" in process.stdout.read()  # type: ignore[union-attr]
    here.kill_etcd()
    assert ecompute(here, "--prefetch", image).returncode == 0, "an address needs no etcd"


def test_what_is_listed_is_fetched_at_the_start_and_stays_and_what_is_kept_is_reserved(
    here: Deployment, tmp_path: Path
) -> None:
    (pinned, digest), (other, _) = image_of(tmp_path, "a"), image_of(tmp_path, "b")
    here.eschedule("image", "add", "debian-12", pinned, "--sha256", digest)
    here.eschedule("image", "prefetch", other)
    before = inventory(here)
    reconfigured(here, images={"prefetch": ["debian-12", "not-registered"], "evict_after_days": 1, "max_cache_gib": 3})
    wait_until(lambda: [row["is_pinned"] for row in cached(here)] == [True, False], timeout_seconds=20, what="it was fetched and pinned", evidence=here.evidence)  # fmt: skip
    assert inventory(here)["reserved"] == 3 and before["reserved"] <= 1
    assert (
        "cannot be fetched, and is tried again: there is no image not-registered"
        in (here.directory / "ecompute.log").read_text()
    )
    for path in (Path(here.state_dir) / "images").glob("*.raw"):
        os.utime(path, (time.time() - 3 * 86400,) * 2)
    reconfigured(here)
    wait_until(lambda: [row["digest"] for row in cached(here)] == [f"sha256:{digest}"], timeout_seconds=20, what="the other one has gone", evidence=here.evidence)  # fmt: skip


def inventory(here: Deployment) -> dict[str, Any]:
    (provider,) = here.placement("/resource_providers")["resource_providers"]
    found = here.placement(f"/resource_providers/{provider['uuid']}/inventories")["inventories"]["DISK_GB"]
    return dict(found)
