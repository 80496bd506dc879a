"""A whole deployment of many hosts on one machine, and what it asks of etcd and Placement second by second.

The hosts are real agents, many per process (``benchmarks.agents``). What they ask is counted where it arrives: by etcd's own
metrics and by Placement's access log. What the farm asks itself, to see who is well, is taken off again.
"""

from __future__ import annotations

import http.client
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from benchmarks.agents import provider_of
from common.config import EtcdConfig
from common.errors import EcomputeError
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import HostRecord, HostState
from common.store import Versioned
from tests.support.etcd import EtcdServer, unique_prefix
from tests.support.placement import PlacementServer
from tests.support.processes import ROOT, VENV_BIN, spawn, wait_until

PER_PROCESS = 50  # more threads than those of so many cost the kernel and the interpreter more than they do
WATCHES_PER_HOST = 3  # specs, what an operator set, mail
TICK_SECONDS = 1.0
CLOCK_TICKS = 100  # a second, in /proc/PID/stat


@dataclass(frozen=True)
class Sample:
    """What had happened by *at* (monotonic): counts and seconds of CPU since the beginning, over restarts."""

    at: float
    etcd_calls: float = 0
    etcd_bytes: float = 0
    placement_calls: float = 0
    placement_bytes: float = 0
    etcd_cpu: float = 0
    placement_cpu: float = 0
    agents_cpu: float = 0


@dataclass
class _Running:
    """A counter that begins at 0 again with each restart of who counts, made one that only rises."""

    total: float = 0
    last: float = 0

    def take(self, value: float | None) -> float:
        if value is not None:
            self.total += value - self.last if value >= self.last else value
            self.last = value
        return self.total


class Farm:
    """etcd, Placement, and hosts by ``add``. ``samples`` grows by one each second.

    Args:
        resync_seconds: how often each host looks at everything.
    """

    def __init__(self, directory: Path, *, resync_seconds: float) -> None:
        self.directory, self.resync_seconds = directory, resync_seconds
        self.etcd, self.placement = EtcdServer(directory / "etcd"), PlacementServer(directory / "placement")
        self.prefix = unique_prefix()
        self.keys = Keys(self.prefix)
        self.store = self.open_store(self.prefix)
        self.count = 0
        self.samples: list[Sample] = []
        self._agents: list[subprocess.Popen[bytes]] = []
        self._own_calls = 0
        self._running: dict[str, _Running] = {}
        self._log_offset = 0
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        self.etcd.start()
        self.placement.start()
        self._sampler.start()

    def close(self) -> None:
        self._stop.set()
        for process in self._agents:
            process.kill()
        self.store.close()
        self.placement.kill()
        self.etcd.kill()

    def open_store(self, prefix: str) -> EtcdStore:
        return EtcdStore(EtcdConfig(endpoints=(self.etcd.endpoint,), prefix=prefix, deadline_seconds=30))

    # -- hosts ------------------------------------------------------------------------------------------------------------

    def provider(self, number: int) -> UUID:
        return provider_of(self.prefix, number)

    def add(self, hosts: int, timeout_seconds: float) -> float:
        """Start *hosts* more; how many seconds it took until all are Ready and their inventory is in Placement.

        One process begins after the other is done, so that it is etcd and Placement that are measured: what a thousand hosts
        do at their start, each on a machine of its own, two cores do not do at once.
        """
        began, wanted = time.monotonic(), self.count + hosts
        for first in range(self.count, wanted, PER_PROCESS):
            size = min(PER_PROCESS, wanted - first)
            self._agents.append(spawn(self._command(first, size), log=self.log, cwd=ROOT))
            self.count += size
            self.wait_well(timeout_seconds)
        return time.monotonic() - began

    def _command(self, first: int, size: int) -> list[str]:
        options = {
            "first": first, "count": size, "directory": self.directory / "hosts", "etcd": self.etcd.endpoint,
            "prefix": self.prefix, "placement": self.placement.url, "resync": self.resync_seconds,
        }  # fmt: skip
        given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        return [str(VENV_BIN / "python"), "-m", "benchmarks.agents", *given]

    @property
    def log(self) -> Path:
        return self.directory / "agents.log"

    def wait_well(self, timeout_seconds: float, also: Callable[[], bool] = lambda: True) -> None:
        def is_so() -> bool:
            assert all(process.poll() is None for process in self._agents), f"agents ended\n{self.evidence()}"
            time.sleep(TICK_SECONDS / 2)
            return also() and self.well() == self.count

        wait_until(is_so, timeout_seconds=timeout_seconds, what=f"{self.count} hosts are well", evidence=self.evidence)

    def well(self) -> int:
        """How many hosts say that they are Ready, with all that they have in Placement."""
        try:
            items = self.store.list(self.keys.hosts(), serializable=True).items
        except EcomputeError:
            return 0
        self._own_calls += len(items) // 200 + 1
        records = [HostRecord.from_json(item.value) for item in items]
        return sum(record.state is HostState.READY and bool(record.capacity) for record in records)

    def statuses(self) -> tuple[Versioned, ...]:
        """What the hosts say of their instances."""
        return self.store.list(self.keys.statuses(), serializable=True).items

    def watches(self) -> float:
        """How many watches etcd serves."""
        return self._metric(self._etcd_metrics(), r"etcd_debugging_mvcc_watcher_total") or 0

    def memory_mib(self) -> float:
        """Of all agents, shared pages counted once."""
        rolls = [Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in self._agents]
        return sum(int(re.findall(r"^Pss: +(\d+)", roll, re.M)[0]) for roll in rolls) / 1024

    def etcd_memory_mib(self) -> float:
        return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self._etcd_pid()}/status").read_text())[0]) / 1024

    def evidence(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    # -- sampling ---------------------------------------------------------------------------------------------------------

    def between(self, began: float, ended: float) -> tuple[Sample, Sample]:
        """The samples next to both moments."""
        inside = [sample for sample in self.samples if began <= sample.at <= ended]
        return inside[0], inside[-1]

    def _sample(self) -> None:
        while not self._stop.wait(TICK_SECONDS):
            with suppress(OSError, ValueError, IndexError, http.client.HTTPException):  # it is restarted now and then
                self.samples.append(self._sampled())

    def _sampled(self) -> Sample:
        metrics = self._etcd_metrics()
        calls = self._take("calls", self._metric(metrics, r"grpc_server_started_total\{[^}]*\}"))
        sent = self._take("sent", self._metric(metrics, r"etcd_network_client_grpc_sent_bytes_total"))
        received = self._take("received", self._metric(metrics, r"etcd_network_client_grpc_received_bytes_total"))
        lines, size = self._placement_lines()
        return Sample(
            time.monotonic(), calls - self._own_calls, sent + received, lines, size,
            etcd_cpu=self._take("etcd cpu", _cpu_of(self._etcd_pid())),
            placement_cpu=self._take("placement cpu", _cpu_of(self._placement_pid())),
            agents_cpu=sum(_cpu_of(process.pid) or 0 for process in self._agents),
        )  # fmt: skip

    def _take(self, name: str, value: float | None) -> float:
        return self._running.setdefault(name, _Running()).take(value)

    def _placement_lines(self) -> tuple[float, float]:
        """Requests and bytes of answers so far, of the access log; only whole lines are read."""
        with self.placement.log.open("rb") as log:
            log.seek(self._log_offset)
            text, newline, _ = log.read().rpartition(b"\n")
        self._log_offset += len(text) + len(newline)
        found = re.findall(rb'" status: \d+ len: (\d+|-)', text)
        lines, size = (self._running.setdefault(name, _Running()) for name in ("lines", "bytes"))
        lines.total += len(found)
        size.total += sum(int(length) for length in found if length != b"-")
        return lines.total, size.total

    def _etcd_metrics(self) -> str:
        try:
            with urllib.request.urlopen(f"{self.etcd.endpoint}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    @staticmethod
    def _metric(text: str, pattern: str) -> float | None:
        found = re.findall(rf"^{pattern} (\S+)$", text, re.M)
        return sum(float(value) for value in found) if found else None

    def _etcd_pid(self) -> int | None:
        process = self.etcd._process
        return process.pid if process else None

    def _placement_pid(self) -> int | None:
        process = self.placement._process
        return process.pid if process else None


def _cpu_of(pid: int | None) -> float | None:
    """Seconds of CPU that *pid* has used; None where it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@dataclass(frozen=True)
class Rates:
    """What goes on per second in a stretch of time; CPU in cores."""

    etcd: float
    etcd_bytes: float
    placement: float
    placement_bytes: float
    etcd_cores: float
    placement_cores: float
    agents_cores: float = field(default=0)

    @classmethod
    def of(cls, first: Sample, last: Sample) -> Rates:
        seconds = last.at - first.at
        return cls(
            (last.etcd_calls - first.etcd_calls) / seconds, (last.etcd_bytes - first.etcd_bytes) / seconds,
            (last.placement_calls - first.placement_calls) / seconds,
            (last.placement_bytes - first.placement_bytes) / seconds, (last.etcd_cpu - first.etcd_cpu) / seconds,
            (last.placement_cpu - first.placement_cpu) / seconds, (last.agents_cpu - first.agents_cpu) / seconds,
        )  # fmt: skip


def rates_over_time(samples: Sequence[Sample], every_seconds: float) -> list[tuple[float, Rates]]:
    """Rates of stretches of *every_seconds*, each with the moment at which it ends."""
    found, first = [], samples[0]
    for sample in samples[1:]:
        if sample.at - first.at >= every_seconds:
            found.append((sample.at, Rates.of(first, sample)))
            first = sample
    return found


@contextmanager
def a_farm(directory: Path, *, resync_seconds: float) -> Iterator[Farm]:
    """A started ``Farm`` that is gone at the end."""
    farm = Farm(directory, resync_seconds=resync_seconds)
    try:
        farm.start()
        yield farm
    finally:
        farm.close()
