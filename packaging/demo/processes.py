"""Processes that outlive the demo's run: started detached, written down, found again, ended; never anybody else's.

A process is known by its pid *and* its start time, so that a pid used again is not mistaken for it. Beside that each carries
the run directory in its environment, as do its children: so one is found even where the run that started it was killed
before it could write it down. Only processes in our own namespaces count: a container on this host may hold a demo, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.settings import Settings, write_file

MARK = "ETCD_COMPUTE_DEMO"
_NAMESPACES = ("pid", "net", "mnt")
_NOT_FOR_SERVICES = ("PYTHONPATH",)


@dataclass(frozen=True)
class Record:
    """A process that the demo started.

    Args:
        start_ticks: when it started, in the kernel's clock ticks since boot.
        fingerprint: of all that it was started from; another one asks for a restart.
    """

    name: str
    pid: int
    start_ticks: int
    fingerprint: str = ""


def start_ticks_of(pid: int) -> int | None:
    """When process *pid* started; None where there is none (a zombie is none)."""
    try:
        # The name in parentheses may hold anything, blanks and parentheses too.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_alive(record: Record) -> bool:
    return start_ticks_of(record.pid) == record.start_ticks


class Processes:
    """The demo's processes on this host."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.run_dir / "processes"

    def start(
        self, name: str, command: Sequence[str | Path], *, fingerprint: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        """Start *command* in a session of its own with its output in the log directory, and write it down."""
        self._settings.logs.mkdir(mode=0o755, parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_FOR_SERVICES}
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/", start_new_session=True,
                # In the child, before it becomes the program: it is written down even if we are killed at this moment.
                preexec_fn=lambda: self._write_down(name, os.getpid(), fingerprint),  # noqa: PLW1509 - we have no threads
                env={**environment, **(env or {}), MARK: str(self._settings.run_dir)},
            )  # fmt: skip
        process.returncode = 0  # nobody waits for it: keeps Popen from warning that it still runs

    def _write_down(self, name: str, pid: int, fingerprint: str) -> None:
        record = Record(name, pid, start_ticks_of(pid) or 0, fingerprint)
        write_file(self._path(name), json.dumps(asdict(record)) + "\n")

    def log(self, name: str) -> Path:
        return self._settings.logs / f"{name}.log"

    def running(self, name: str) -> Record | None:
        """The process *name*, if it is up."""
        try:
            record = Record(**json.loads(self._path(name).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return record if is_alive(record) else None

    def stop(self, name: str, *, grace_seconds: float = 15) -> bool:
        """End the process *name*; whether it was up."""
        record = self.running(name)
        if record:
            end(record, grace_seconds=grace_seconds)
        self._path(name).unlink(missing_ok=True)
        return record is not None

    def forget(self, name: str) -> None:
        """Leave the process *name* to the host."""
        self._path(name).unlink(missing_ok=True)

    def marked(self) -> list[Record]:
        """Processes with our mark, written down or not, in the order in which they started; also an ecompute that was started
        by hand with the demo's configuration.
        """
        ours = (str(os.getpid()), str(os.getppid()))
        found = [_marked(pid, self._settings) for pid in _pids() if pid not in ours]
        return sorted((record for record in found if record), key=lambda record: record.start_ticks)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"


def end(record: Record, *, grace_seconds: float = 15) -> None:
    """SIGTERM, and SIGKILL after *grace_seconds*; returns when the process is gone, at the latest 5 s after that."""
    try:
        handle = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        if not is_alive(record):  # looked at with the handle in hand: from now on the pid means this process
            return
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                return
    finally:
        os.close(handle)


def _pids() -> Iterator[str]:
    return (entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _marked(pid: str, settings: Settings) -> Record | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if f"{MARK}={settings.run_dir}".encode() not in environment and not (
            name == "ecompute" and str(settings.compute_yaml).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ):
            return None
        if any(Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink() for kind in _NAMESPACES):
            return None
    except OSError:
        return None
    start_ticks = start_ticks_of(int(pid))
    return Record(name, int(pid), start_ticks) if start_ticks is not None else None
