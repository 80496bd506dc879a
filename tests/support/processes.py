"""Processes, ports and waiting for tests: everything started here dies with the test, even when the test is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
VENV_BIN = ROOT / ".venv" / "bin"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
# Each pytest process walks the ports from its own start, so that two runs at once seldom try the same.
FIRST_PORT, PORTS_OF_A_WORKER = 20000, 3000
_next_port = (os.getpid() * 37) % PORTS_OF_A_WORKER


def free_port() -> int:
    """A TCP port on loopback that nothing listens on, below 32768 so that no outgoing connection takes it meanwhile.

    A port is handed out once per process, and to one of the processes of a test run only: a server that a test has killed must
    not be followed by another test's on the same port.
    """
    global _next_port  # noqa: PLW0603 - a port is handed out once per process
    first = FIRST_PORT + PORTS_OF_A_WORKER * (_worker_number() % 4)
    for _ in range(PORTS_OF_A_WORKER):
        _next_port = (_next_port + 1) % PORTS_OF_A_WORKER
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", first + _next_port))
            except OSError:
                continue
            return first + _next_port
    raise RuntimeError(f"no free port from {first} on 127.0.0.1")


def _worker_number() -> int:
    """0 where pytest runs by itself; its n-th worker, from 1 on, where xdist has made some."""
    name = os.environ.get("PYTEST_XDIST_WORKER", "")
    return int(name.removeprefix("gw")) + 1 if name else 0


def as_a_child() -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start *command* with its output appended to *log*; the kernel kills it when the starting thread ends."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})}, cwd=cwd, preexec_fn=as_a_child,  # noqa: PLW1509 - tests only
        )  # fmt: skip


def stop(process: subprocess.Popen[bytes], *, timeout_seconds: float = 10, with_signal: int = signal.SIGTERM) -> int:
    """End *process* and wait for it; SIGKILL after *timeout_seconds*. Its exit code."""
    if process.poll() is None:
        process.send_signal(with_signal)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    return process.returncode


def freeze(process: subprocess.Popen[Any]) -> None:
    """Stop *process* with SIGSTOP, and return when each of its threads stands still; until then it may answer."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")

    def stands_still() -> bool:
        try:
            return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir())
        except FileNotFoundError:  # a thread that ended meanwhile
            return False

    wait_until(stands_still, timeout_seconds=10, what=f"process {process.pid} stands still")


def wait_until(
    condition: Callable[[], T], *, timeout_seconds: float, what: str, evidence: Callable[[], str] | None = None
) -> T:
    """The first true answer of *condition*, asked often; after *timeout_seconds* an AssertionError with the *evidence*."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what}\n{evidence() if evidence else ''}")
        time.sleep(0.05)
