"""What requests cost: every question to etcd and Placement, call of libvirt, process and sync of the real programs, counted.

A ``CountedDeployment`` is one host on libvirt's test driver. Each program has proxies of its own in front of etcd and Placement,
which write down what passes, and runs under ``counted_program``, which writes down the rest. What happens now and then (beats,
proofs of watches, full looks) is put off, so that a request can be counted by itself, or hurried, so that a minute is short.
"""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import yaml

from tests.support.deployment import Deployment, ThisMachine
from tests.support.etcd import etcdrpc
from tests.support.etcd_proxy import UUID_IN_PATH, EtcdProxy
from tests.support.faulty_proxy import FaultyProxy
from tests.support.processes import VENV_BIN, wait_until
from tests.support.simulated_host import TEST_HOST

PROGRAMS = ("ecompute", "eschedule")
NEVER = {"common.etcd_watch.QUIET_SECONDS": 3000.0, "eschedule.board.REREAD_SECONDS": 3000.0}


Sections = Mapping[str, Mapping[str, Any]]  # of a configuration file


class MachineLine(NamedTuple):
    """One line that ``counted_program`` wrote."""

    what: str  # "libvirt" | "sync" | "process" | "pass"
    name: str
    thread: str
    in_pass: int


class EtcdLog:
    """What one program asked of etcd, in words, in the order in which it came."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self.lines: list[str] = []

    def __call__(self, method: str, request: bytes) -> None:
        line = self._described(method.rpartition("/")[2], request)
        if line:
            with self._lock:
                self.lines.append(line)

    def _described(self, method: str, request: bytes) -> str:
        if method == "Range":
            asked = etcdrpc.RangeRequest.FromString(request)
            return "Range, a proof" if asked.keys_only else f"Range: {self._kind(asked.key, asked.range_end)}"
        if method == "Watch":
            message = etcdrpc.WatchRequest.FromString(request)
            create = message.create_request
            return f"Watch: {self._kind(create.key, create.range_end)}" if message.HasField("create_request") else ""
        if method == "Txn":
            return self._transaction(etcdrpc.TxnRequest.FromString(request))
        return method

    def _transaction(self, request: Any) -> str:
        words = []
        for verb, name in (("reads", "request_range"), ("writes", "request_put"), ("deletes", "request_delete_range")):
            keys = [getattr(operation, name).key for operation in request.success if operation.HasField(name)]
            if keys:
                words.append(f"{verb} {'+'.join(sorted({self._kind(key) for key in keys}))}")
        return f"Txn {', '.join(words)}"

    def _kind(self, key: bytes, end: bytes = b"") -> str:
        """What kind of key it is; of a range with a star."""
        kind = key.decode().removeprefix(self._prefix).split("/")[0]
        return f"{kind}/*" if end else kind


def placement_kind(line: str) -> str:
    """A request's method and path, without what it was about."""
    return UUID_IN_PATH.sub("…", line.partition("?")[0])


Costs = Mapping[str, Mapping[str, int]]  # by "PROGRAM etcd", "PROGRAM placement", "PROGRAM machine"; then by what was done


def difference(expected: Costs, found: Costs) -> str:
    """What of *found* was done more or less often than *expected*, in lines for people; "" where nothing was."""
    lines = []
    for who in sorted(expected.keys() | found.keys()):
        wanted, counted = Counter(expected.get(who, {})), Counter(found.get(who, {}))
        differing = sorted(what for what in wanted | counted if counted[what] != wanted[what])
        lines += [f"{who}: {what}: {counted[what]} times, expected {wanted[what]}" for what in differing]
    return "\n".join(lines)


def cycles(lines: Sequence[str], first: str) -> list[list[str]]:
    """*lines*, cut before each one that is *first*; but for what was there before and what is not over yet."""
    starts = [at for at, line in enumerate(lines) if line == first]
    return [list(lines[start:end]) for start, end in itertools.pairwise(starts)]


class Counted:
    """What was done since it was made, by both programs of *deployment*."""

    def __init__(self, deployment: CountedDeployment) -> None:
        self._deployment = deployment
        self._begins = {program: self._lengths(program) for program in PROGRAMS}

    def _lengths(self, program: str) -> tuple[int, int, int]:
        deployment = self._deployment
        lines = len(deployment.etcd_logs[program].lines), len(deployment.placement_proxies[program].seen)
        return *lines, len(deployment.machine_lines(program))

    def etcd(self, program: str) -> list[str]:
        return self._deployment.etcd_logs[program].lines[self._begins[program][0] :]

    def placement(self, program: str) -> list[str]:
        seen = self._deployment.placement_proxies[program].seen[self._begins[program][1] :]
        return [placement_kind(line) for line in seen]

    def services(self) -> dict[str, Counter[str]]:
        """What was asked of etcd and Placement."""
        asked = {f"{program} etcd": Counter(self.etcd(program)) for program in PROGRAMS}
        return asked | {f"{program} placement": Counter(self.placement(program)) for program in PROGRAMS}

    def machine(self, program: str) -> list[MachineLine]:
        return self._deployment.machine_lines(program)[self._begins[program][2] :]

    def passes(self) -> dict[int, Counter[str]]:
        """What each pass of ecompute's reconciler did on its machine, by the pass's number."""
        found: dict[int, Counter[str]] = {}
        for line in self.machine("ecompute"):
            if line.in_pass and line.what != "pass":
                found.setdefault(line.in_pass, Counter())[f"{line.what} {line.name}"] += 1
        return found

    def of_thread(self, thread: str) -> list[str]:
        return [f"{line.what} {line.name}" for line in self.machine("ecompute") if line.thread == thread]

    def wait_for_passes_to_end(self) -> None:
        def are_over() -> bool:
            marks = Counter(line.name for line in self._deployment.machine_lines("ecompute") if line.what == "pass")
            return marks["begins"] == marks["ends"]

        wait_until(are_over, timeout_seconds=30, what="the passes are over", evidence=self._deployment.evidence)


class CountedDeployment(Deployment):
    """As ``local_deployment``; *sections* are merged over its compute.yaml, *constants* are of ecompute."""

    def __init__(
        self, directory: Path, *, constants: Mapping[str, float] = NEVER, sections: Sections | None = None
    ) -> None:  # fmt: skip
        (directory / "test-host.xml").write_text(TEST_HOST)
        super().__init__(
            ThisMachine(), directory, state_dir=str(directory / "state"), run_dir=str(directory / "run"),
            compute={
                "uuid": str(uuid4()), "name": "testhost", "metadata": {"mode": "off"},
                "libvirt": {"uri": f"test://{directory}/test-host.xml", "virt_type": "test"},
            },
        )  # fmt: skip
        self._constants = constants
        self.etcd_logs = {program: EtcdLog(self.prefix) for program in PROGRAMS}
        self._etcd_proxies = {
            program: EtcdProxy(self.etcd_port, address="127.0.0.1", on_request=log) for program, log in self.etcd_logs.items()
        }
        self.placement_proxies = {program: FaultyProxy(self.placement_port) for program in PROGRAMS}
        self._point_at_proxies(self.compute_file, "ecompute", sections or {})
        self._point_at_proxies(self.schedule_file, "eschedule", {})

    def stop(self) -> None:
        super().stop()
        for proxy in (*self._etcd_proxies.values(), *self.placement_proxies.values()):
            proxy.close()

    def start_ecompute(self) -> Any:
        self.ecompute = self.machine.spawn(
            [*self._counted("ecompute", self._constants), "--config", self.compute_file], log=self.directory / "ecompute.log"
        )
        return self.ecompute

    def eschedule(
        self, *arguments: str | Path, check: bool = True, timeout_seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        constants = {name: value for name, value in NEVER.items() if not name.startswith("ecompute")}
        command = [*self._counted("eschedule", constants), "--config", self.schedule_file, *arguments]
        answer = self.machine.run(command, timeout_seconds=timeout_seconds, check=False)
        said = f"eschedule {arguments}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}"
        assert not check or answer.returncode == 0, f"{said}\n{self.evidence()}"
        return answer

    def machine_lines(self, program: str) -> list[MachineLine]:
        """What *program* asked of its machine so far."""
        file = self._tally(program)
        lines = file.read_text().splitlines() if file.exists() else []
        return [MachineLine(what, name, thread, int(number)) for what, name, thread, number in map(str.split, lines)]

    def _tally(self, program: str) -> Path:
        return self.directory / f"{program}.tally"

    def _counted(self, program: str, constants: Mapping[str, float]) -> Sequence[str | Path]:
        settings = [word for name, value in constants.items() for word in ("--set", f"{name}={value}")]
        return [VENV_BIN / "python", "-m", "tests.support.counted_program", "--tally", self._tally(program), *settings, program]

    def _point_at_proxies(self, file: Path, program: str, sections: Sections) -> None:
        values = yaml.safe_load(file.read_text())
        values["etcd"]["endpoints"] = [self._etcd_proxies[program].endpoint]
        values["placement"]["url"] = self.placement_proxies[program].url
        for name, more in sections.items():
            values[name] = {**values.get(name, {}), **more}
        file.write_text(yaml.safe_dump(values))
