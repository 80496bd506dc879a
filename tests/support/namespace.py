"""A private network and process namespace for tests that touch interfaces or start processes that are meant to outlive their parent.

Everything in it ends with the test, however the test ends: the namespace's first process is killed by the kernel, and with it all
others. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.support.processes import spawn, stop, wait_until

T = TypeVar("T")
CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """Own interfaces (only ``lo``, up), own process ids, own ``/proc``; the file system is the machine's."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "namespace.log"
        self._holder = spawn(
            [
                "unshare",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                "ip link set lo up; exec sleep infinity",
            ],
            log=self._log,
        )
        self.pid = wait_until(
            self._first_process, timeout_seconds=10, what="first process of a namespace", evidence=self._evidence
        )

    def _first_process(self) -> int:
        """The process id, out here, of the namespace's process 1, once it has set up its network."""
        try:
            children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "sleep":
                return int(children[0])
        except FileNotFoundError:
            pass
        return 0

    def _evidence(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        stop(self._holder, with_signal=9)

    def in_network(self, *command: str | Path) -> list[str | Path]:
        """*command*, to run with this network but as an ordinary process of the machine (signals reach it)."""
        return ["nsenter", "-t", str(self.pid), "--net", *command]

    def inside(self, *command: str | Path) -> list[str | Path]:
        """*command*, to run inside altogether; the process that this starts only waits for it."""
        return ["nsenter", "-t", str(self.pid), "--net", "--pid", "--mount", *command]

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run *command* inside to its end, for at most 30 s."""
        return subprocess.run([str(c) for c in self.inside(*command)], capture_output=True, text=True, check=check, timeout=30)

    def call(self, function: Callable[[], T]) -> T:
        """What *function* returns when its sockets are made in this network."""
        return call_in_network(self.pid, function, timeout_seconds=60)


def call_in_network(pid: int, function: Callable[[], T], *, timeout_seconds: float = 180) -> T:
    """What *function* returns when its sockets are made in the network of the process *pid*."""
    result: list[Any] = []

    def enter_and_call() -> None:
        with Path(f"/proc/{pid}/ns/net").open("rb") as network:
            if _libc.setns(network.fileno(), CLONE_NEWNET) != 0:  # of this thread alone
                result[:] = [None, OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))]
                return
        try:
            result[:] = [function(), None]
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            result[:] = [None, error]

    thread = threading.Thread(target=enter_and_call)
    thread.start()
    thread.join(timeout_seconds)
    if not result:
        raise TimeoutError(f"not within {timeout_seconds:g} s")
    if result[1] is not None:
        raise result[1]
    return result[0]  # type: ignore[no-any-return]
