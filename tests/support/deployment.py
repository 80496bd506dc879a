"""A whole deployment for tests: etcd, Placement and ecompute as real processes, and eschedule to ask them.

``local_deployment`` runs them on this machine over libvirt's test driver, for the flow of requests; ``host_deployment`` runs
them inside a ``NamespacedHost`` over real QEMU, with its own network and metadata address. Everything dies with the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
import yaml

from tests.support.etcd import unique_prefix
from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.placement import give_empty_database
from tests.support.processes import ROOT, VENV_BIN, free_port, spawn, stop, wait_until
from tests.support.simulated_host import TEST_HOST


class Process(Protocol):
    pid: int

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


class Machine(Protocol):
    """Where the processes of a deployment run."""

    def run(
        self, command: Sequence[str | Path], *, timeout_seconds: float, check: bool
    ) -> subprocess.CompletedProcess[str]: ...

    def spawn(self, command: Sequence[str | Path], *, log: Path, cwd: Path | None = None) -> Process: ...

    def path(self, inside: str) -> Path: ...


class ThisMachine:
    """The machine that the tests run on."""

    def run(
        self, command: Sequence[str | Path], *, timeout_seconds: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, check=check, capture_output=True, text=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL
        )

    def spawn(self, command: Sequence[str | Path], *, log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        return spawn(command, log=log, cwd=cwd)

    def path(self, inside: str) -> Path:
        return Path(inside)


class Deployment:
    """One host with everything that it needs.

    Args:
        directory: configuration and logs, as this machine sees them; the same path inside.
        state_dir: ecompute's, as seen inside.
        compute: sections that are merged over the default compute.yaml of tests.
        etcd_endpoints: of an etcd that somebody else runs; empty: it runs one of its own.
        connection_file: of Placement's database (packaging/run-placement); None: SQLite.
    """

    def __init__(
        self, machine: Machine, directory: Path, *, state_dir: str, run_dir: str, compute: Mapping[str, Any],
        etcd_endpoints: Sequence[str] = (), connection_file: Path | None = None,
    ) -> None:  # fmt: skip
        self.machine, self.directory = machine, directory
        self.prefix = unique_prefix()
        self.etcd_port, self.etcd_peer_port, self.placement_port = free_port(), free_port(), free_port()
        self.metrics_port = free_port()
        self.has_own_etcd, self.connection_file = not etcd_endpoints, connection_file
        self.etcd_endpoints = list(etcd_endpoints) or [f"http://127.0.0.1:{self.etcd_port}"]
        self.state_dir, self.run_dir = state_dir, run_dir
        self.compute_file, self.schedule_file = directory / "compute.yaml", directory / "schedule.yaml"
        self._etcd: Process | None = None
        self._placement: Process | None = None
        self.ecompute: Process | None = None
        self._write_configs(compute)

    # --- Life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything; return when the host is Ready."""
        if self.has_own_etcd:
            self.start_etcd()
        self.start_placement()
        self.start_ecompute()
        self.wait_ready()

    def start_etcd(self) -> None:
        ports = [str(self.etcd_port), str(self.etcd_peer_port)]
        self._etcd = self.machine.spawn(
            [ROOT / "packaging/run-etcd", self.directory / "etcd", *ports], log=self.directory / "etcd.log"
        )

    def start_placement(self) -> None:
        command = [ROOT / "packaging/run-placement", self.directory / "placement", str(self.placement_port)]
        if self.connection_file is not None:
            command = ["env", f"CONNECTION_FILE={self.connection_file}", "WORKERS=2", *command]
        else:
            give_empty_database(self.directory / "placement")
        self._placement = self.machine.spawn(command, log=self.directory / "placement.log")
        wait_until(self._placement_answers, timeout_seconds=60, what="Placement answers", evidence=self.evidence)

    def start_ecompute(self) -> Process:
        self.ecompute = self.machine.spawn(
            [VENV_BIN / "ecompute", "--config", self.compute_file], log=self.directory / "ecompute.log"
        )
        return self.ecompute

    def kill_ecompute(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.ecompute is not None
        self._end(self.ecompute, signal.SIGKILL)

    def stop_ecompute(self) -> int:
        """SIGTERM, as an operator would; the exit code."""
        assert self.ecompute is not None
        return self._end(self.ecompute, signal.SIGTERM)

    def stop(self) -> None:
        for process in (self.ecompute, self._placement, self._etcd):
            if process is not None:
                self._end(process, signal.SIGTERM)

    def kill_placement(self) -> None:
        assert self._placement is not None
        self._end(self._placement, signal.SIGKILL)

    def kill_etcd(self) -> None:
        assert self._etcd is not None
        self._end(self._etcd, signal.SIGKILL)

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            assert self.ecompute is not None and self.ecompute.poll() is None, f"ecompute ended\n{self.evidence()}"
            answer = self.eschedule("hosts", "--json", check=False)
            return answer.returncode == 0 and '"Ready"' in answer.stdout

        wait_until(is_ready, timeout_seconds=90, what="the host is Ready", evidence=self.evidence)

    # --- Asking -----------------------------------------------------------------------------------------------------------

    def eschedule(
        self, *arguments: str | Path, check: bool = True, timeout_seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; with *check* an exit code other than 0 fails the test with the evidence."""
        command = [VENV_BIN / "eschedule", "--config", self.schedule_file, *arguments]
        answer = self.machine.run(command, timeout_seconds=timeout_seconds, check=False)
        if check and answer.returncode != 0:
            raise AssertionError(
                f"eschedule {arguments}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}\n{self.evidence()}"
            )
        return answer

    def spawn_eschedule(self, *arguments: str | Path, log: Path) -> Process:
        return self.machine.spawn([VENV_BIN / "eschedule", "--config", self.schedule_file, *arguments], log=log)

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.eschedule("show", name, "--json").stdout)
        return shown

    def phase(self, name: str) -> str:
        status = self.show(name).get("status") or {}
        return str(status.get("phase", ""))

    def wait_phase(self, name: str, phase: str, *, timeout_seconds: float = 90) -> dict[str, Any]:
        wait_until(
            lambda: self.phase(name) == phase,
            timeout_seconds=timeout_seconds,
            what=f"{name} is {phase}",
            evidence=self.evidence,
        )
        return self.show(name)

    def etcd_keys(self) -> dict[str, str]:
        """All keys below the deployment's prefix but for the journal, which grows with all that is done."""
        found = self._peek("etcd", self.etcd_endpoints[0], self.prefix)
        return {key: value for key, value in found.items() if not key.startswith(f"{self.prefix}_journal/")}

    def instance_keys(self) -> list[str]:
        """Keys that belong to instances: what is of hosts, and what operators keep, is left out."""
        others = ("hosts", "owners", "host-admin", "ssh-keys", "networks", "images")
        return [key for key in self.etcd_keys() if key.removeprefix(self.prefix).split("/")[0] not in others]

    def placement(self, path: str) -> dict[str, Any]:
        return self._peek("placement", f"http://127.0.0.1:{self.placement_port}", path)  # type: ignore[no-any-return]

    def allocations(self) -> dict[str, Any]:
        """Consumer uuid → resources, over all providers."""
        found: dict[str, Any] = {}
        for provider in self.placement("/resource_providers")["resource_providers"]:
            found.update(self.placement(f"/resource_providers/{provider['uuid']}/allocations")["allocations"])
        return found

    def files(self, *kinds: str) -> list[Path]:
        """Files of instances below the state directory, in the folders *kinds*."""
        folders = [self.machine.path(f"{self.state_dir}/{kind}") for kind in kinds or ("instances", "network", "metadata")]
        return [path for folder in folders if folder.exists() for path in folder.rglob("*") if not path.is_dir()]

    def assert_nothing_is_left(self) -> None:
        """No key, allocation or file of any instance."""
        assert self.instance_keys() == [], self.evidence()
        assert self.allocations() == {}, self.evidence()
        assert self.files() == [], self.evidence()

    def evidence(self) -> str:
        """The logs' ends, and what is in etcd."""
        logs = sorted(self.directory.glob("*.log"))
        parts = [f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}" for log in logs if log.name != "placement.log"]
        return "\n".join(parts)

    # --- Inside -----------------------------------------------------------------------------------------------------------

    def _peek(self, *arguments: str) -> Any:
        command = [VENV_BIN / "python", "-m", "tests.support.peek", *arguments]
        return json.loads(self.machine.run(command, timeout_seconds=30, check=True).stdout)

    def _placement_answers(self) -> bool:
        assert self._placement is not None and self._placement.poll() is None, (self.directory / "placement.log").read_text()
        command = [VENV_BIN / "python", "-m", "tests.support.peek", "placement", f"http://127.0.0.1:{self.placement_port}", "/"]
        return self.machine.run(command, timeout_seconds=30, check=False).returncode == 0

    def _end(self, process: Process, with_signal: int) -> int:
        if isinstance(process, subprocess.Popen):
            return stop(process, with_signal=with_signal, timeout_seconds=40)
        return process.stop(with_signal=with_signal, timeout_seconds=40)  # type: ignore[attr-defined,no-any-return]

    def _write_configs(self, compute: Mapping[str, Any]) -> None:
        etcd = {"endpoints": self.etcd_endpoints, "prefix": self.prefix}
        placement = {"url": f"http://127.0.0.1:{self.placement_port}"}
        defaults: dict[str, Any] = {
            "etcd": {**etcd, "lease_ttl_seconds": 20, "heartbeat_every_seconds": 5},
            "placement": placement,
            "paths": {"state_dir": self.state_dir, "run_dir": self.run_dir},
            # The machine's own disk must not decide whether a test passes.
            "inventory": {"vcpu": {"allocation_ratio": 16.0}, "disk_gb": {"reserved": 0, "allocation_ratio": 1.0}},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "log": {"level": "debug"},
        }
        self.compute_file.write_text(yaml.safe_dump({**defaults, **compute}))
        self.schedule_file.write_text(yaml.safe_dump({"etcd": etcd, "placement": placement, "wait_seconds": 120}))


def make_raw_image(path: Path, size_mib: int = 4) -> Path:
    """The smallest thing that is a disk image: zeros behind a master boot record."""
    record = bytearray(512)
    record[446:462] = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x83, b"\0\0\0", 2048, size_mib * 2048 - 2048)
    record[510:512] = b"\x55\xaa"
    with path.open("wb") as image:
        image.write(record)
        image.truncate(size_mib * 1024 * 1024)
    return path


@pytest.fixture
def local_deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Everything on this machine over libvirt's test driver; started, Ready, stopped at the end."""
    (tmp_path / "test-host.xml").write_text(TEST_HOST)
    deployment = Deployment(
        ThisMachine(), tmp_path, state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"),
        compute={
            "uuid": str(uuid4()), "name": "testhost", "libvirt": {"uri": f"test://{tmp_path}/test-host.xml", "virt_type": "test"},
            "metadata": {"mode": "off"},
        },
    )  # fmt: skip
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture(scope="session")
def tiny_image() -> Path:
    """The small bootable image that the demo uses, built by its script, which keeps it from run to run."""
    built = subprocess.run(
        [ROOT / "packaging" / "build-tiny-image.sh"], check=True, capture_output=True, text=True, timeout=180
    )
    return Path(built.stdout.split()[-1])


@pytest.fixture(scope="session")
def cloud_images() -> Path:
    """The folder of the Debian cloud image in its forms (packaging/cloud-image), built by its script, which keeps it."""
    command = [ROOT / "packaging" / "build-cloud-image.sh"]
    built = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.split()[-1])


@pytest.fixture(scope="session")
def deployment_host(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedHost]:
    """A host for whole deployments, apart from the one that driver tests use."""
    host = NamespacedHost(host_network, tmp_path_factory.mktemp("deployment-host"))
    host.start()
    yield host
    host.stop()


@contextlib.contextmanager
def deployment_inside(host: NamespacedHost, directory: Path, **compute: Any) -> Iterator[Deployment]:
    """Everything inside *host* with real QEMU; started, Ready; its guests and its files are gone at the end.

    Args:
        compute: sections of compute.yaml.
    """
    folder = f"/var/lib/etcd-compute/{os.urandom(4).hex()}"
    deployment = Deployment(
        host, directory, state_dir=folder, run_dir=f"/run/etcd-compute/{os.urandom(4).hex()}",
        compute={"libvirt": {"uri": "qemu:///system", "virt_type": "qemu"}, **compute},
    )  # fmt: skip
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()
        virsh = "for d in $(virsh -q list --all --uuid); do virsh -q destroy $d; virsh -q undefine $d; done; pkill md-server || pkill -f md_server || true"
        host.run(["bash", "-c", virsh], check=False)


@pytest.fixture
def host_deployment(deployment_host: NamespacedHost, tmp_path: Path) -> Iterator[Deployment]:
    """Everything inside a host with real QEMU, for one test."""
    with deployment_inside(deployment_host, tmp_path) as deployment:
        yield deployment
