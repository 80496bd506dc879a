"""The main job as its user runs it: ``./demo.sh`` twice, ``status``, ``down`` twice; a run that was killed is healed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.processes import ROOT, wait_until

DEMO = ROOT / "demo.sh"
STATE = "/var/lib/etcd-compute/demo"  # one of the folders that a test host has for itself


@pytest.fixture
def host(host_network: HostNetwork, tmp_path: Path, tiny_image: Path) -> Iterator[NamespacedHost]:
    """A host to run the demo in. It reaches no registry, so what the demo would fetch is there: *tiny_image* and ``.venv``."""
    host = NamespacedHost(host_network, tmp_path / "host")
    host.start()
    yield host
    host.stop()


def demo(host: NamespacedHost, *arguments: str, timeout_seconds: float = 240) -> str:
    answer = host.run(["env", f"DEMO_STATE_DIR={STATE}", DEMO, *arguments], timeout_seconds=timeout_seconds, check=False)
    assert answer.returncode == 0, f"demo.sh {arguments}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}"
    return answer.stdout


def guests(host: NamespacedHost) -> list[str]:
    return host.run(["virsh", "-q", "-c", host.uri, "list", "--all", "--name"]).stdout.split()


def addresses(host: NamespacedHost) -> list[list[str]]:
    """Each interface with its addresses, whether or not it is up."""
    return [[words[0], *words[2:]] for words in map(str.split, host.run(["ip", "-brief", "address"]).stdout.splitlines())]


def programs(host: NamespacedHost) -> list[str]:
    """Command lines of the demo's programs that run in the host."""
    listed = host.run(["ps", "-e", "-o", "stat=,args="]).stdout.splitlines()
    names = ("ecompute --config", "run-etcd", "etcd --name", "waitress-serve", "md_server", "qemu-system")
    return [line for line in listed if any(name in line for name in names) and not line.startswith("Z")]


def test_the_demo_runs_twice_shows_its_state_and_goes_without_a_trace(host: NamespacedHost) -> None:
    before = addresses(host)
    first = demo(host)
    for phase in ("claim", "etcd", "image", "disk", "network", "define", "start", "kernel up", "ssh"):
        assert f"\n   {phase} " in first, first
    demo(host)
    assert len(guests(host)) == 2
    status = demo(host, "status")
    assert "demo-1" in status
    assert "demo-2" in status

    demo(host, "down")
    assert guests(host) == []
    assert programs(host) == []
    assert not host.path(STATE).exists()
    assert not host.path("/run/etcd-compute-demo").exists()
    assert "<host " not in host.run(["virsh", "-c", host.uri, "net-dumpxml", "default"]).stdout
    assert "etcd-compute" not in host.run(["virsh", "-c", host.uri, "nwfilter-list"]).stdout
    assert addresses(host) == before
    demo(host, "down")


def test_a_demo_that_was_killed_is_taken_down_and_runs_again(host: NamespacedHost, tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    process = host.spawn(["env", f"DEMO_STATE_DIR={STATE}", DEMO], log=log)
    wait_until(lambda: "== A guest" in log.read_text(), timeout_seconds=120, what="the services are up", evidence=log.read_text)
    process.send_signal(signal.SIGKILL)
    demo(host, "down")
    assert guests(host) == []
    assert programs(host) == []
    assert "192.168.122" in demo(host)
    demo(host, "down")


def test_a_port_in_use_is_said_in_one_line(host: NamespacedHost, tmp_path: Path) -> None:
    other = host.spawn(["python3", "-m", "http.server", "8778", "--bind", "127.0.0.1"], log=tmp_path / "other.log")
    wait_until(
        lambda: "8778" in host.run(["ss", "-ltn"]).stdout, timeout_seconds=10, what="the other server listens"
    )  # fmt: skip
    answer = host.run(["env", f"DEMO_STATE_DIR={STATE}", DEMO], timeout_seconds=120, check=False)
    assert answer.returncode != 0
    (line,) = answer.stderr.strip().splitlines()
    assert "8778" in line
    assert "DEMO_PLACEMENT_PORT" in line
    other.stop()
    demo(host, "down")


def test_without_root_it_says_so_in_one_line() -> None:
    with tempfile.TemporaryDirectory() as folder:  # a checkout below /root could not even be read
        Path(folder).chmod(0o755)
        script = shutil.copy(DEMO, folder)
        answer = subprocess.run(
            [script], capture_output=True, text=True, timeout=30, check=False, user="nobody", group="nogroup"
        )
    assert answer.returncode != 0
    (line,) = answer.stderr.strip().splitlines()
    assert "needs root" in line
