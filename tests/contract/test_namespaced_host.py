"""tests/support/hosts.py keeps what it promises, for every other test that builds on it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.processes import ROOT, wait_until


@pytest.fixture
def two_hosts(host_network: HostNetwork, tmp_path: Path) -> Iterator[tuple[NamespacedHost, NamespacedHost]]:
    hosts = (NamespacedHost(host_network, tmp_path / "a"), NamespacedHost(host_network, tmp_path / "b"))
    try:
        for host in hosts:
            host.start()
        yield hosts
    finally:
        for host in hosts:
            host.stop()


def test_hosts_are_apart_and_reach_each_other(two_hosts: tuple[NamespacedHost, NamespacedHost], tmp_path: Path) -> None:
    first, second = two_hosts
    for command in (["hostname"], ["cat", "/etc/machine-id"], ["cat", "/proc/sys/kernel/random/boot_id"]):
        assert first.run(command).stdout != second.run(command).stdout
    first.path("/var/lib/etcd-compute/mark").touch()
    assert second.run(["ls", "/var/lib/etcd-compute"]).stdout == ""

    listen = f"import socket; s = socket.create_server(({first.address!r}, 2000)); s.accept()[0].sendall(b'hello')"
    server = first.spawn(["python3", "-c", listen], log=tmp_path / "server.log")
    ask = f"import socket; print(socket.create_connection(({first.address!r}, 2000), 5).recv(9))"
    answer = wait_until(
        lambda: second.run(["python3", "-c", ask], check=False).stdout, timeout_seconds=10, what="the first host answers"
    )
    assert "hello" in answer
    assert server.wait() == 0


def test_a_killed_host_is_gone_with_all_its_processes_and_boots_anew(
    two_hosts: tuple[NamespacedHost, NamespacedHost], tmp_path: Path
) -> None:
    host, other = two_hosts
    process = host.spawn(["sleep", "infinity"], log=tmp_path / "sleep.log")
    host.path("/var/lib/etcd-compute/kept").touch()
    host.path("/run/etcd-compute/lost").touch()
    before = host.boot_id
    host.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path(f"/proc/{process.pid}").exists()
    host.start()
    assert host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip() == host.boot_id != before
    assert host.run(["ls", "/var/lib/etcd-compute"]).stdout.split() == ["kept"]
    assert host.run(["ls", "/run/etcd-compute"]).stdout == ""
    assert other.run(["virsh", "-q", "net-list", "--name"]).stdout.split() == ["default"]


def test_a_killed_test_run_leaves_nothing_that_the_next_does_not_remove(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from tests.support.hosts import HostNetwork, NamespacedHost
network = HostNetwork()
host = NamespacedHost(network, Path({str(tmp_path)!r}) / "host")
host.start()
print(network.bridge, host.libvirtd.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    bridge, libvirtd = killed.stdout.split()
    wait_until(lambda: not is_running(int(libvirtd)), timeout_seconds=10, what="libvirtd of the killed run is gone")
    assert bridge in interfaces()
    HostNetwork().close()
    assert bridge not in interfaces()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}
