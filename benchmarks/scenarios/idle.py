"""What ecompute and md-server hold and use when nothing is asked of them, with 0 and with 50 guests.

One host in namespaces of its own with the settings of the samples, over libvirt's test driver, whose guests cost the machine
nothing: 50 emulated ones would be what is measured. Memory is the resident set, also as a ratio to a Python that has only
imported the same outside libraries; use of the processor is that of all threads over two minutes, or ten with ``--long``.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import yaml

from benchmarks.measure import Bench, Figure, Outcome
from tests.support.deployment import Deployment, make_raw_image
from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.processes import VENV_BIN, wait_until
from tests.support.simulated_host import TEST_HOST

GUESTS = 50
QUERY = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"
WINDOW_SECONDS, LONG_WINDOW_SECONDS = 120, 600
SETTLE_SECONDS = 15  # after which what follows a start or a build is over
FLOORS = {
    "ecompute": "import grpc, etcd3, libvirt, requests, yaml, prometheus_client, waitress",
    "md-server": "import waitress, json",
}
MOST_MB = {"ecompute": 80, "md-server": 45}
MOST_PERCENT = 0.5
TICKS = os.sysconf("SC_CLK_TCK")
NOTE = "libvirt's test driver runs inside ecompute, so its guests' XML is counted as well"


@dataclass(frozen=True)
class Usage:
    """Of one program over one window: *percent* is of one core."""

    rss_mb: float
    percent: float


def run(bench: Bench) -> Outcome:
    window = 0 if bench.is_check else LONG_WINDOW_SECONDS if bench.is_long else WINDOW_SECONDS
    with _deployment(bench.directory) as (host, deployment):
        pids = {"ecompute": deployment.ecompute.pid, "md-server": _md_server(host)} if deployment.ecompute else {}
        bench.say(f"no guests, for {window} s")
        empty = _watched(pids, window)
        if bench.is_check:
            return Outcome(_memory_ratios(empty))
        bench.say(f"making {GUESTS} guests")
        image = make_raw_image(bench.directory / "image.raw")
        deployment.eschedule("create", QUERY, image, "--count", str(GUESTS), "--name", "vm")
        bench.say(f"{GUESTS} guests, for {window} s")
        full = _watched(pids, window)
    return Outcome([*_memory_ratios(empty), *_figures(empty, full, window)])


def _memory_ratios(empty: dict[str, Usage]) -> list[Figure]:
    found = []
    for program, imports in FLOORS.items():
        ours, floor = empty[program].rss_mb, _rss_of_python(imports)
        says = f"{program} without guests: memory against a Python with the same libraries"
        samples = {f"{program} MB": [ours], "floor MB": [floor]}
        found.append(Figure(f"idle.{program}-memory", says, ours / floor, margin=0.1, samples=samples))
    return found


def _figures(empty: dict[str, Usage], full: dict[str, Usage], window: int) -> list[Figure]:
    found = []
    for guests, usages in ((0, empty), (GUESTS, full)):
        for program, usage in usages.items():
            note = NOTE if guests and program == "ecompute" else ""
            who = f"{program}, {guests} guests"
            name = f"idle.{program}-{{}}-{guests}".format
            cpu = f"{who}: of a core over {window} s"
            found += [
                Figure(name("mb"), f"{who}: memory", usage.rss_mb, "MB", at_most=MOST_MB[program], note=note),
                Figure(name("cpu"), cpu, usage.percent, "%", at_most=MOST_PERCENT),
            ]
    return found


# --- Looking -------------------------------------------------------------------------------------------------------------


def _watched(pids: dict[str, int], window_seconds: float) -> dict[str, Usage]:
    """What each process uses over the window, once it has settled."""
    time.sleep(SETTLE_SECONDS)
    before = {program: _cpu_seconds(pid) for program, pid in pids.items()}
    time.sleep(window_seconds)
    return {
        program: Usage(_rss_mb(pid), 100 * (_cpu_seconds(pid) - before[program]) / window_seconds if window_seconds else 0.0)
        for program, pid in pids.items()
    }


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss_mb(pid: int) -> float:
    """In units of 10^6 bytes, as the aims are."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def _rss_of_python(imports: str) -> float:
    """Of a Python that has done *imports* and waits."""
    process = subprocess.Popen(
        [VENV_BIN / "python", "-c", f"{imports}\nprint(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    try:
        return _rss_mb(process.pid)
    finally:
        process.communicate(b"\n", timeout=10)


def _md_server(host: NamespacedHost) -> int:
    """The process of md-server inside *host*, as this machine counts it."""
    inside = Path(f"/proc/{host.process_one}/ns/pid").readlink()

    def found() -> int:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"md_server" in (folder / "cmdline").read_bytes() and (folder / "ns/pid").readlink() == inside:
                    return int(folder.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return 0

    return wait_until(found, timeout_seconds=30, what="md-server runs", evidence=host.logs)


# --- What is looked at ---------------------------------------------------------------------------------------------------


@contextmanager
def _deployment(directory: Path) -> Iterator[tuple[NamespacedHost, Deployment]]:
    with ExitStack() as stack:
        network = HostNetwork()
        stack.callback(network.close)
        host = NamespacedHost(network, directory / "host")
        stack.callback(host.stop)
        host.start()
        driver = directory / "test-host.xml"
        driver.write_text(TEST_HOST)
        deployment = Deployment(
            host, directory, state_dir=f"/var/lib/etcd-compute/{uuid4()}", run_dir=f"/run/etcd-compute/{uuid4()}",
            compute={
                "uuid": str(uuid4()), "libvirt": {"uri": f"test://{driver}", "virt_type": "test"},
                "inventory": {"vcpu": {"allocation_ratio": 16.0}, "disk_gb": {"reserved": 0, "allocation_ratio": 1000.0}},
            },
        )  # fmt: skip
        _as_in_the_sample(deployment.compute_file)
        stack.callback(deployment.stop)
        deployment.start()
        yield host, deployment


def _as_in_the_sample(file: Path) -> None:
    """Tests have a host speak more often and log more than a real one does."""
    config = yaml.safe_load(file.read_text())
    for key in ("lease_ttl_seconds", "heartbeat_every_seconds"):
        config["etcd"].pop(key)
    config.pop("log")
    file.write_text(yaml.safe_dump(config))
