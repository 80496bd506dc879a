"""A whole cluster for fault tests: hosts with real QEMU and their ecompute, etcd, Placement, and eschedule to ask them.

Each host is a ``NamespacedHost``; etcd (one member or three) and Placement listen on the address that the machine has on the
bridge of those hosts, so that all hosts and the test reach them and nobody else does. Everything can be killed, frozen and
started again by itself, and ``tests/support/snapshot.py`` looks at all of it at once. It all dies with the test.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import yaml

from common.config import EtcdConfig
from common.errors import EcomputeError
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import HostRecord, HostState
from common.placement import Placement
from common.placement_types import VOLUME
from tests.support.etcd import EtcdCluster, unique_prefix
from tests.support.hosts import HostNetwork, HostProcess, NamespacedHost
from tests.support.placement import PlacementServer, client_for
from tests.support.processes import VENV_BIN, freeze, spawn, wait_until
from tests.support.small_guest import make_small_guest

STATE_DIR = "/var/lib/etcd-compute/state"
RUN_DIR = "/run/etcd-compute"
STATE_MIB = 1280  # of memory, taken as it is used
QUERY = "resources=VCPU:1,MEMORY_MB:32,DISK_GB:1"
LOG_TAIL = 5000
SHOWN_LOGS = ("ecompute.log", "etcd.log", "eschedule.log", "libvirtd.log")
# libvirt asks it before each start of a guest.
REFUSING_HOOK = """\
#!/bin/sh
[ "$2" != prepare ] || [ ! -e /run/refuse-guests ] || { echo "this QEMU does not work today" >&2; exit 1; }
"""


class Node:
    """One host of the cluster, with its ecompute.

    Its state directory is a file system of its own, so that a test can fill it. ``provider`` is in its configuration, so that
    another node can be told to claim the same.
    """

    def __init__(self, cluster: Cluster, host: NamespacedHost) -> None:
        self.cluster, self.host, self.name = cluster, host, host.name
        self.provider = uuid4()
        self.directory = cluster.directory / host.name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config_file = self.directory / "compute.yaml"
        self.log = self.directory / "ecompute.log"
        self.failpoint_file = self.directory / "failpoint"
        self.ecompute: HostProcess | None = None
        self.is_paused = False
        self._earlier = ""  # the host record as the incarnation before left it
        self.configure()

    def configure(self, *, placement_url: str = "", etcd_endpoints: Sequence[str] = (), **sections: Any) -> None:
        """Write compute.yaml anew; *sections* are merged over the cluster's own."""
        cluster = self.cluster
        usual: dict[str, Any] = {
            "uuid": str(self.provider),
            "name": self.name,
            "etcd": {
                "endpoints": list(etcd_endpoints or cluster.etcd_endpoints), "prefix": cluster.prefix, **cluster.etcd_times,
            },
            "placement": {"url": placement_url or cluster.placement_url, **cluster.placement_times},
            "libvirt": {"uri": "qemu:///system", "virt_type": "qemu"},
            "paths": {"state_dir": STATE_DIR, "run_dir": RUN_DIR},
            "inventory": {"vcpu": {"allocation_ratio": 16.0}, "disk_gb": {"reserved": 0, "allocation_ratio": 64.0}},
            "network": {"reserve_ahead": 2},
            "metadata": {"mode": "off"},
            "builder": {"max_attempts": 3, "resync_every_seconds": 5, "orphan_claim_after_seconds": 10},
            "log": {"level": "debug"},
        }  # fmt: skip
        for name, values in {**cluster.compute, **sections}.items():
            usual[name] = {**usual.get(name, {}), **values} if isinstance(values, Mapping) else values
        self.config_file.write_text(yaml.safe_dump(usual))

    # --- Life -------------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start the host; its state directory is empty."""
        hook = self.host.path("/etc/libvirt/hooks/qemu")
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(REFUSING_HOOK)
        hook.chmod(0o755)
        self.host.start()
        self.host.run(["mkdir", "-p", STATE_DIR])
        self.host.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_MIB}m", "tmpfs", STATE_DIR])

    def start_ecompute(self, *command: str | Path) -> HostProcess:
        """Start it, or what *command* says in its place; does not wait."""
        assert self.ecompute is None or self.ecompute.poll() is not None, f"{self.name} has an ecompute already"
        program = command or (VENV_BIN / "ecompute",)
        self._earlier = self._incarnation()
        self.ecompute = self.host.spawn([*program, "--config", self.config_file], log=self.log)
        self.is_paused = False
        return self.ecompute

    def start_with_failpoint(self, failpoint: str = "") -> HostProcess:
        """Start it so that it kills itself where *failpoint* says; see ``ecompute_with_failpoint``."""
        self.arm(failpoint)
        return self.start_ecompute(
            VENV_BIN / "python", "-m", "tests.support.ecompute_with_failpoint", "--failpoint-file", self.failpoint_file
        )

    def arm(self, failpoint: str) -> None:
        """Have an ecompute that was started with failpoints die at *failpoint*; "" disarms."""
        partial = self.failpoint_file.with_suffix(".partial")
        partial.write_text(failpoint)
        partial.rename(self.failpoint_file)

    def wait_held(self) -> None:
        """Return when an ecompute that was started with failpoints waits at the one that it was told to hold at."""
        wait_until(
            lambda: self.failpoint_file.read_text() == "held", timeout_seconds=30,
            what=f"the ecompute of {self.name} came to its failpoint", evidence=self.cluster.evidence,
        )  # fmt: skip

    def kill_ecompute(self) -> None:
        self._end(signal.SIGKILL)

    def stop_ecompute(self) -> int | None:
        return self._end(signal.SIGTERM)

    def pause_ecompute(self) -> None:
        if self.is_running:
            assert self.ecompute is not None
            freeze(self.ecompute)
            self.is_paused = True

    def resume_ecompute(self) -> None:
        if self.ecompute is not None and self.is_paused:
            self.ecompute.send_signal(signal.SIGCONT)
        self.is_paused = False

    @property
    def is_running(self) -> bool:
        return self.ecompute is not None and self.ecompute.poll() is None

    def wait_ecompute_ended(self, *, timeout_seconds: float = 30) -> int:
        """The exit code of an ecompute that ends by itself."""
        assert self.ecompute is not None
        process = self.ecompute
        wait_until(
            lambda: process.poll() is not None, timeout_seconds=timeout_seconds, what=f"the ecompute of {self.name} ended",
            evidence=self.cluster.evidence,
        )  # fmt: skip
        return process.wait()

    def is_ready(self) -> bool:
        """Whether the host record of the process started last says so, and that all that it has is in Placement."""
        item = self.cluster.store.get(self.cluster.keys.host(self.provider))
        record = HostRecord.from_json(item.value) if item else None
        if record is None or str(record.incarnation) == self._earlier:
            return False
        return record.state is HostState.READY and bool(record.capacity)

    def _incarnation(self) -> str:
        """Of the host record that is there now; "" where none is, or etcd does not say."""
        try:
            item = self.cluster.store.get(self.cluster.keys.host(self.provider), serializable=True)
        except EcomputeError:
            return ""
        return str(HostRecord.from_json(item.value).incarnation) if item else ""

    def _end(self, with_signal: int) -> int | None:
        process, self.ecompute = self.ecompute, None
        if process is None:
            return None
        process.send_signal(signal.SIGCONT)
        self.is_paused = False
        return process.stop(with_signal=with_signal, timeout_seconds=40)

    # --- Its surroundings -------------------------------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Where this machine sees the path *inside*, mounts of the host's own included."""
        return Path(f"/proc/{self.host.process_one}/root{inside}")

    def state(self, *parts: str) -> Path:
        return self.path("/".join((STATE_DIR, *parts)))

    def fill_disk(self) -> None:
        """Leave no room in the state directory."""
        with (self.state() / "ballast").open("ab") as ballast, contextlib.suppress(OSError):
            while True:
                os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), 1 << 20)
                ballast.seek(0, os.SEEK_END)

    def free_disk(self) -> None:
        (self.state() / "ballast").unlink(missing_ok=True)

    def restart_libvirtd(self, with_signal: int = signal.SIGKILL) -> None:
        self.host.stop_libvirtd(with_signal)
        self.host.start_libvirtd()

    def refuse_guests(self, refuses: bool = True) -> None:
        """Have libvirt refuse to start any guest, as it does where QEMU does not work."""
        flag = self.host.path("/run/refuse-guests")
        flag.touch() if refuses else flag.unlink(missing_ok=True)


class Cluster:
    """Hosts, etcd, Placement; ``start`` brings all of it up.

    Args:
        compute: sections that are merged over each host's compute.yaml.
    """

    def __init__(
        self, directory: Path, network: HostNetwork, *, hosts: int = 2, etcd_members: int = 1,
        compute: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.directory, self.address = directory, network.gateway
        self.prefix = unique_prefix()
        self.keys = Keys(self.prefix)
        self.compute = dict(compute or {})
        self.etcd = EtcdCluster(directory / "etcd", address=self.address, members=etcd_members)
        self.etcd_endpoints = list(self.etcd.endpoints)
        self.etcd_times = {"deadline_seconds": 4, "heartbeat_every_seconds": 2, "lease_ttl_seconds": 10}
        self.placement_server = PlacementServer(directory / "placement", address=self.address)
        self.placement_url = self.placement_server.url
        self.placement_times = {"timeout_seconds": 8, "deadline_seconds": 12}
        self.store = EtcdStore(EtcdConfig(endpoints=self.etcd.endpoints, prefix=self.prefix, deadline_seconds=20))
        self.placement: Placement = client_for(self.placement_server.url, etcd_prefix=self.prefix)
        self.volume_placement = client_for(self.placement_server.url, etcd_prefix=self.prefix, consumer_type=VOLUME)
        self.schedule_file = directory / "schedule.yaml"
        self.nodes = [Node(self, NamespacedHost(network, directory / f"host-{number}")) for number in range(hosts)]
        self.image = make_small_guest(directory / "polite.raw")
        self.deaf_image = make_small_guest(directory / "deaf.raw", follows_the_button=False)
        self.configure_client()

    def configure_client(
        self, *, file: Path | None = None, placement_url: str = "", etcd_endpoints: Sequence[str] = ()
    ) -> Path:
        """Write a schedule.yaml: the usual one, or *file* for a client of its own."""
        target = file or self.schedule_file
        values = {
            "etcd": {"endpoints": list(etcd_endpoints or self.etcd_endpoints), "prefix": self.prefix, "deadline_seconds": 8},
            "placement": {"url": placement_url or self.placement_url, "timeout_seconds": 5, "deadline_seconds": 10},
            "wait_seconds": 60,
        }
        target.write_text(yaml.safe_dump(values))
        return target

    # --- Life -------------------------------------------------------------------------------------------------------------

    def start(self, *, with_ecompute: bool = True) -> Cluster:
        self.etcd.start()
        self.placement_server.start()
        for node in self.nodes:
            node.boot()
            if with_ecompute:
                node.start_ecompute()
        if with_ecompute:
            self.wait_ready()
        return self

    def wait_ready(self, *nodes: Node) -> None:
        for node in nodes or self.nodes:
            wait_until(node.is_ready, timeout_seconds=60, what=f"{node.name} is Ready", evidence=self.evidence)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill_ecompute()
            node.host.stop()
        self.placement.close()
        self.volume_placement.close()
        self.store.close()
        self.placement_server.kill()
        self.etcd.stop()

    def node_of(self, provider: UUID) -> Node:
        return next(node for node in self.nodes if node.provider == provider)

    # --- Asking -----------------------------------------------------------------------------------------------------------

    def spawn_eschedule(
        self, *arguments: str | Path, log: Path | None = None, config: Path | None = None
    ) -> subprocess.Popen[bytes]:
        command = [VENV_BIN / "eschedule", "--config", config or self.schedule_file, *arguments]
        return spawn(command, log=log or self.directory / "eschedule.log", cwd=self.directory)

    def eschedule(
        self, *arguments: str | Path, check: bool = True, timeout_seconds: float = 120, config: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; with *check* an exit code other than 0 fails the test with the evidence."""
        command = [VENV_BIN / "eschedule", "--config", config or self.schedule_file, *arguments]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_seconds, stdin=subprocess.DEVNULL, check=False,
            cwd=self.directory,
        )  # fmt: skip
        if check and answer.returncode != 0:
            said = f"{answer.stdout}{answer.stderr}"
            raise AssertionError(f"eschedule {arguments}: exit {answer.returncode}\n{said}\n{self.evidence()}")
        return answer

    # --- What there is ----------------------------------------------------------------------------------------------------

    def evidence(self) -> str:
        """The ends of the logs of each ecompute and etcd, of eschedule and of the libvirtds."""
        logs = [log for log in sorted(self.directory.rglob("*.log")) if log.name in SHOWN_LOGS]
        return "\n".join(f"--- {log.relative_to(self.directory)}\n{_end_of(log)}" for log in logs)


def _end_of(log: Path) -> str:
    """Its last lines but those of successful requests."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if "logger=common.placement_http" not in line or ": 20" not in line)[-LOG_TAIL:]


@contextlib.contextmanager
def running_cluster(
    directory: Path, network: HostNetwork, *, hosts: int = 2, etcd_members: int = 1, with_ecompute: bool = True, **compute: Any
) -> Iterator[Cluster]:
    """A started ``Cluster`` that is gone at the end."""
    cluster = Cluster(directory, network, hosts=hosts, etcd_members=etcd_members, compute=compute)
    try:
        yield cluster.start(with_ecompute=with_ecompute)
    finally:
        cluster.stop()
