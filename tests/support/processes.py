"""Processes, ports and waiting for tests: everything started here dies with the test, even when the test is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
VENV_BIN = ROOT / ".venv" / "bin"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)
# Ports are claimed in blocks, by a socket in the abstract namespace that goes with its process: whatever else runs tests on this
# machine gets other ones.
FIRST_PORT, BLOCKS, PORTS_OF_A_BLOCK = 20000, 255, 50
_claims: dict[int, socket.socket] = {}
_ports: Iterator[int] = iter(())


def free_port() -> int:
    """A TCP port on loopback that nothing listens on, below 32768 so that no outgoing connection takes it meanwhile.

    A port is handed out once, as long as there are others: a server that a test has killed must not be followed by another test's
    on the same port.
    """
    global _ports  # noqa: PLW0603 - a port is handed out once per process
    while True:
        for port in _ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        first = FIRST_PORT + PORTS_OF_A_BLOCK * _claimed_block()
        _ports = iter(range(first, first + PORTS_OF_A_BLOCK))


def _claimed_block() -> int:
    """The number of a block that is this process's until it ends; its own oldest where all are taken.

    Each looks from a place of its own, so that a block that somebody has just given back is seldom the next.
    """
    for offset in range(BLOCKS):
        block = (os.getpid() * 37 + len(_claims) + offset) % BLOCKS
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0etcd-compute-test-ports-{block}")
        except OSError:
            claim.close()
            continue
        _claims[block] = claim
        return block
    if not _claims:
        raise RuntimeError(f"all ports from {FIRST_PORT} on are claimed by tests that run now; end some of those")
    block = next(iter(_claims))  # the one that was used up longest ago
    _claims[block] = _claims.pop(block)
    return block


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
    """The first true answer of *condition*, asked often; after *timeout_seconds* an AssertionError with the *evidence*.

    One that takes long to answer, such as a program that is run, is asked half of the time only: the processor is for what is
    waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        asked = time.monotonic()
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what}\n{evidence() if evidence else ''}")
        time.sleep(min(max(0.05, time.monotonic() - asked), 1))
