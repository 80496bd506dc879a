"""Running other programs: always with a bound, their last words in the error."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from demo.settings import LIBVIRT_URI, DemoError

T = TypeVar("T")
POLL_SECONDS = 0.05


def run(command: Sequence[str | Path], *, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run to the end, whatever its exit code; one that does not end in time has the exit code 124."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=timeout_seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"no answer in {timeout_seconds:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: {error.strerror}")


def last_words(answer: subprocess.CompletedProcess[str]) -> str:
    """The last line that it printed, for a message."""
    lines = [text.strip() for text in (answer.stderr + "\n" + answer.stdout).splitlines() if text.strip()]
    return lines[-1] if lines else f"exit code {answer.returncode}"


def virsh(*words: str, timeout_seconds: float = 30) -> subprocess.CompletedProcess[str]:
    return run(["virsh", "-q", "-c", LIBVIRT_URI, *words], timeout_seconds=timeout_seconds)


def wait_for(condition: Callable[[], T | None], *, timeout_seconds: float, what: str, evidence: Callable[[], str]) -> T:
    """The first true answer of *condition*.

    Raises:
        DemoError: there was none in that time; says *what* was waited for, and the *evidence*.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise DemoError(f"{what} not within {timeout_seconds:g} s: {evidence()}")
        time.sleep(POLL_SECONDS)


def tail(path: Path) -> str:
    """The last line of a log, and where there is more."""
    try:
        lines = [text.strip() for text in path.read_text(errors="replace").splitlines() if text.strip()]
    except OSError:
        lines = []
    return f"{lines[-1][:300] if lines else 'it said nothing'} (log: {path})"
