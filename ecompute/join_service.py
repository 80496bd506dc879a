"""Has ecompute run on this host: by systemd where that runs and has its unit, else as a process of its own with a log.

Asks the world each time and remembers nothing: whether one runs is told by its lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from common.config import ComputeConfig
from common.errors import EcomputeError, Transient
from common.files import file_errors
from ecompute.provider_lock import lock_file

UNIT = "ecompute.service"
UNIT_CONFIG = Path("/etc/etcd-compute/compute.yaml")
EXTERNAL_UNIT = "md-server.service"  # of its own only where ecompute does not run md-server itself
LOG = Path("/var/log/etcd-compute/ecompute.log")
SYSTEMCTL_SECONDS = 180.0  # a unit of Type=notify is started once it says so
STOP_SECONDS = 60.0  # builder.shutdown_deadline_seconds and some more
_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)


class Service:
    """ecompute of *provider* as *config* says."""

    def __init__(self, config: ComputeConfig, provider: UUID, *, systemd: Path = _SYSTEMD, log: Path = LOG) -> None:
        self._config, self._log = config, log
        self._lock = lock_file(config, provider)
        self._child: subprocess.Popen[bytes] | None = None
        # The unit names its configuration; another one is for a process of our own.
        self.is_unit = config.source == UNIT_CONFIG and systemd.is_dir() and _has_unit(UNIT)

    @property
    def where_it_logs(self) -> str:
        return f"journalctl -u {UNIT}" if self.is_unit else str(self._log)

    def is_running(self) -> bool:
        return self._lock.holder() is not None

    def start(self) -> str:
        """Start it where none runs, now and after each reboot where that can be had; what was done, in words.

        Raises:
            EcomputeError: it could not be started.
        """
        if self.is_unit:
            units = [UNIT, EXTERNAL_UNIT] if self._config.metadata.mode == "external" and _has_unit(EXTERNAL_UNIT) else [UNIT]
            _systemctl("reset-failed", *units, may_fail=True)  # where it was tried too often, systemd would not start it
            _systemctl("enable", "--now", *units)
            return f"started by systemd ({' '.join(units)}), now and after each reboot"
        if self.is_running():
            return "runs already"
        self._spawn()
        return (
            f"started; its log is {self._log}; systemd does not run here or has no {UNIT}: nothing starts it after a reboot, "
            "see to that"
        )

    def restart(self) -> str:
        """Have it run with the configuration as it is now; what was done, in words. Guests go on.

        Raises:
            EcomputeError: the one that ran did not end, or none could be started.
        """
        if self.is_unit:
            _systemctl("restart", UNIT)
            return self.start()
        holder = self._lock.holder()
        if holder is not None and holder.pid:
            _end(holder.pid)
        return self.start()

    def failure(self) -> str:
        """Why what ``start`` started has ended, in one line; "" while it runs, or is tried again."""
        if self.is_unit and _run(["systemctl", "is-failed", "--quiet", UNIT]).returncode == 0:
            return f"{UNIT} has failed"
        if self._child is None or self._child.poll() is None or self.is_running():
            return ""  # where another one runs it was first: one that a join began that did not live to see it
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return f"ecompute ended with exit code {self._child.returncode}: {lines[-1] if lines else 'it said nothing'}"

    def _spawn(self) -> None:
        source = self._config.source
        # -P: whatever lies in the working directory is not imported.
        command = [sys.executable, "-P", "-m", "ecompute.main", *(("--config", str(source.absolute())) if source else ())]
        with file_errors("cannot write the log", self._log):
            self._log.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            # In a session of its own, and without our streams: it outlives the terminal, or the ssh, that we were called from.
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor, cwd="/", start_new_session=True
            )
        finally:
            os.close(descriptor)


def has_md_server_unit(config_file: Path, systemd: Path = _SYSTEMD) -> bool:
    """Whether systemd can run the metadata service of a host with *config_file*."""
    return config_file == UNIT_CONFIG and systemd.is_dir() and _has_unit(UNIT) and _has_unit(EXTERNAL_UNIT)


def _has_unit(unit: str) -> bool:
    return _run(["systemctl", "cat", unit]).returncode == 0


def _systemctl(*arguments: str, may_fail: bool = False) -> None:
    answer = _run(["systemctl", *arguments])
    if answer.returncode and not may_fail:
        said = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EcomputeError(f"systemctl {' '.join(arguments)} failed: {said}; see: journalctl -u {UNIT} -n 20")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        raise Transient(f"{' '.join(command)} has not ended after {SYSTEMCTL_SECONDS:.0f} s; try again") from None


def _end(pid: int) -> None:
    """End the ecompute *pid*, which finishes what it has in hand. It is never killed: that is the operator's decision."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(STOP_SECONDS * 1000):
            raise Transient(
                f"the ecompute that runs (process {pid}) has not ended after {STOP_SECONDS:.0f} s; end it, try again"
            )
    finally:
        os.close(descriptor)
