"""The metadata service's supervisor: md-server outlives what started it, is adopted, is started again, and goes when told to.

All in a namespace of its own, as md-server is made to survive: with the namespace it ends too. ``metadata_host`` stands in for
ecompute.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.config import load_compute
from common.lockfile import LockFile
from common.metadata import LOCK_NAME, MetadataDocument, MetadataStore
from common.model import Address
from ecompute.metadata_service import MetadataServiceSupervisor, service_problem
from tests.support.namespace import Namespace
from tests.support.processes import ROOT, spawn, wait_until

METADATA = "169.254.169.254"
HOST = ROOT / "tests" / "integration" / "metadata_host.py"


class Machine:
    """A host's network and processes, and the files of one ecompute."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.run_dir.mkdir()
        self.namespace = Namespace(folder)
        self.log, self.md_log = folder / "ecompute.log", self.run_dir / "md-server.log"
        self.config_path = folder / "compute.yaml"
        self.configure()
        MetadataStore(folder / "state" / "metadata").write(
            MetadataDocument(UUID(int=7), "vm", addresses=(Address("default", "m", "192.168.122.1"),))
        )
        for line in ("link add virbr0 type bridge", "addr add 192.168.122.1/24 dev virbr0", "link set virbr0 up"):
            self.namespace.run("ip", *line.split())

    def configure(self, more: str = "") -> None:
        self.config_path.write_text(f"paths: {{state_dir: {self.folder}/state, run_dir: {self.run_dir}}}\n{more}")

    def supervise(self) -> int:
        """Start a stand-in for ecompute; its process id inside."""
        pid_path = self.run_dir / "host.pid"
        pid_path.unlink(missing_ok=True)
        spawn(
            self.namespace.inside(sys.executable, HOST, self.config_path),
            log=self.log,
            cwd=ROOT,
        )
        wait_until(
            lambda: pid_path.exists() and pid_path.read_text(), timeout_seconds=10, what="a supervisor", evidence=self.evidence
        )
        return int(pid_path.read_text())

    def kill(self, pid: int, signal_name: str = "KILL") -> None:
        self.namespace.run("kill", f"-{signal_name}", str(pid))

    def wait_for_end(self, pid: int) -> None:
        """A process whose parent has gone stays as a zombie, as nobody collects it in there."""
        wait_until(lambda: self.is_gone(pid), timeout_seconds=10, what=f"process {pid} ends", evidence=self.evidence)

    def is_gone(self, pid: int) -> bool:
        state = self.namespace.run("cat", f"/proc/{pid}/stat", check=False).stdout
        return not state or state.rpartition(")")[2].split()[0] == "Z"

    def md_server(self) -> int:
        """The process id, inside, of the md-server that holds the lock; 0 while there is none."""
        holder = LockFile(self.run_dir / LOCK_NAME).holder()
        return holder.pid if holder else 0

    def serves(self) -> bool:
        def ask() -> bytes:
            connection = http.client.HTTPConnection(METADATA, timeout=5, source_address=("192.168.122.1", 0))
            connection.request("GET", "/latest/meta-data/instance-id")
            return connection.getresponse().read()

        try:
            return self.namespace.call(ask) == str(UUID(int=7)).encode()
        except OSError:
            return False

    def wait_for_service(self, *, other_than: int = 0) -> int:
        wait_until(
            lambda: self.md_server() not in (0, other_than) and self.serves(),
            timeout_seconds=15, what="a metadata service", evidence=self.evidence,
        )  # fmt: skip
        return self.md_server()

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), timeout_seconds=10, what=text, evidence=self.evidence)

    def evidence(self) -> str:
        return "".join(f"--- {path}\n{path.read_text()}" for path in (self.log, self.md_log) if path.exists())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.namespace.close()


def test_it_starts_md_server_and_starts_it_again_when_it_dies(machine):
    machine.supervise()
    first = machine.wait_for_service()
    machine.kill(first)
    began = time.monotonic()
    second = machine.wait_for_service(other_than=first)
    assert time.monotonic() - began < 5
    assert second != first
    assert "exit code -9" in machine.log.read_text()


def test_ecompute_killed_or_stopped_leaves_it_serving_and_the_next_one_adopts_it(machine):
    supervisor = machine.supervise()
    served_by = machine.wait_for_service()
    for how in ("KILL", "TERM"):
        machine.kill(supervisor, how)
        machine.wait_for_end(supervisor)
        assert machine.serves()
        assert machine.md_server() == served_by
        machine.log.write_text("")
        supervisor = machine.supervise()
        machine.wait_for_log("found running")
        assert machine.md_server() == served_by
    machine.kill(served_by)  # and the adopted one is looked after as well
    machine.wait_for_service(other_than=served_by)


def test_its_end_is_noticed_while_nobody_supervises(machine):
    supervisor = machine.supervise()
    first = machine.wait_for_service()
    for pid in (supervisor, first):
        machine.kill(pid)
        machine.wait_for_end(pid)
    assert not machine.serves()
    machine.supervise()
    machine.wait_for_service(other_than=first)


def test_one_with_other_settings_is_replaced(machine):
    supervisor = machine.supervise()
    first = machine.wait_for_service()
    machine.kill(supervisor, "TERM")
    machine.wait_for_end(supervisor)
    machine.namespace.run("ip", "link", "add", "virbr7", "type", "bridge")
    machine.namespace.run("ip", "link", "set", "virbr7", "up")
    machine.configure("metadata: {bridge: virbr7}\n")
    machine.supervise()
    machine.wait_for_service(other_than=first)
    assert json.loads((machine.run_dir / LOCK_NAME).read_text())["bridge"] == "virbr7"
    assert "of another version or configuration" in machine.log.read_text()
    shown = machine.namespace.run("ip", "-4", "-o", "addr").stdout
    assert [line.split()[1] for line in shown.splitlines() if METADATA in line] == ["virbr7"]


def ipv6_addresses(machine):
    shown = machine.namespace.run("ip", "-6", "-o", "addr", "show", "dev", "virbr0").stdout
    return {line.split()[3] for line in shown.splitlines()} & {"fd00:ec2::254/128", "fe80::a9fe:a9fe/128"}


def test_switching_ipv6_off_takes_its_addresses_away(machine):
    supervisor = machine.supervise()
    first = machine.wait_for_service()
    wait_until(lambda: len(ipv6_addresses(machine)) == 2, timeout_seconds=10, what="IPv6", evidence=machine.evidence)
    machine.kill(supervisor, "TERM")
    machine.wait_for_end(supervisor)
    machine.configure("metadata: {ipv6: off}\n")
    machine.supervise()
    machine.wait_for_service(other_than=first)
    assert ipv6_addresses(machine) == set()
    assert json.loads((machine.run_dir / LOCK_NAME).read_text())["ipv6"] == "off"


def test_leaving_ends_it_and_takes_the_address_away(machine):
    supervisor = machine.supervise()
    served_by = machine.wait_for_service()
    machine.kill(supervisor, "USR1")
    machine.wait_for_end(supervisor)
    assert machine.is_gone(served_by)
    assert machine.md_server() == 0
    shown = machine.namespace.run("ip", "-4", "-o", "addr", "show", "dev", "virbr0").stdout
    assert METADATA not in shown
    assert ipv6_addresses(machine) == set()
    assert "192.168.122.1/24" in shown


def test_one_that_cannot_start_is_tried_again_and_says_why(machine):
    port_80 = "import socket,time; s=socket.socket(); s.bind(('0.0.0.0', 80)); s.listen(); time.sleep(600)"
    other = spawn(machine.namespace.in_network(sys.executable, "-c", port_80), log=machine.folder / "other.log")
    wait_until(lambda: is_listening(machine), timeout_seconds=10, what="the other server listens")
    machine.supervise()
    machine.wait_for_log(f"{METADATA} port 80 is taken by another server")
    assert "exit code 5" in machine.log.read_text()
    other.kill()
    other.wait(10)
    machine.wait_for_service()


def is_listening(machine: Machine) -> bool:
    return ":80 " in machine.namespace.run("ss", "-ltn").stdout


def test_health_tells_what_is_wrong(machine):
    config = load_compute(machine.config_path)
    call = machine.namespace.call
    assert "does not answer" in call(lambda: service_problem(config.metadata))
    machine.supervise()
    machine.wait_for_service()
    assert call(lambda: service_problem(config.metadata)) == ""
    assert call(MetadataServiceSupervisor(config).is_healthy)
    assert "level=warning" not in machine.md_log.read_text()  # the host's own question is no stranger's


def test_another_server_at_the_address_is_not_taken_for_ours(machine):
    machine.namespace.run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
    spawn(
        machine.namespace.in_network(sys.executable, "-m", "http.server", "--bind", METADATA, "80"),
        log=machine.folder / "other.log", cwd=machine.run_dir,
    )  # fmt: skip
    wait_until(lambda: is_listening(machine), timeout_seconds=10, what="the other server listens")
    problem = machine.namespace.call(lambda: service_problem(load_compute(machine.config_path).metadata))
    assert "another server answers" in problem


def test_it_does_not_hold_the_output_of_ecompute_open(machine, tmp_path):
    """Whoever reads ecompute's output must see its end, though md-server lives on."""
    command = machine.namespace.inside(sys.executable, HOST, machine.config_path)
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    machine.wait_for_service()
    machine.kill(int((machine.run_dir / "host.pid").read_text()), "TERM")
    output, _ = process.communicate(timeout=15)
    assert b"md-server started" in output
    assert machine.serves()
