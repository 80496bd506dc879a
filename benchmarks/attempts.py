"""Runs a scenario as a process of its own, in a scratch folder that is gone afterwards, within a bound of time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.one import EXIT_INTERRUPTED, Request
from benchmarks.options import Options
from benchmarks.records import Result, outcome_from_json

ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 3600
MOST_CHECK_SECONDS = 900
TIDY_SECONDS = 60


def attempt(name: str, options: Options, package: str = "benchmarks.scenarios") -> Result:
    """Run the scenario *name* to its end; a failure of any kind is in the result.

    Raises:
        KeyboardInterrupt: of this process, or the scenario's; it has tidied up by then.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ec-bench-", ignore_cleanup_errors=True) as scratch:
        directory, result = Path(scratch) / name, Path(scratch) / "result.json"
        Path(scratch).chmod(0o711)  # QEMU, which is another user, has to reach its disks
        directory.mkdir()
        request = Request(package, str(directory), options.runs, options.is_check, options.is_long)
        code = _run([name, request.as_json(), str(result)], MOST_CHECK_SECONDS if options.is_check else MOST_SECONDS)
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        data = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        shutil.rmtree(directory, ignore_errors=True)
    took = time.monotonic() - began
    if code != 0 or "failure" in data:
        return Result(name, took_seconds=took, failure=_why(code, data, options.is_verbose))
    return Result(name, outcome_from_json(data), took)


def _why(code: int, data: dict[str, Any], is_verbose: bool) -> str:
    if "failure" in data:
        return f"{data['failure']}\n{data['traceback']}" if is_verbose else str(data["failure"])
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and said nothing"


def _run(arguments: list[str], most_seconds: float) -> int:
    # A session of its own: Ctrl-C comes to this process only, which passes it on once; two would cut the tidying short.
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.one", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True,
        env=_environment(), preexec_fn=_as_a_child,  # noqa: PLW1509 - this process has one thread
    )  # fmt: skip
    try:
        return process.wait(most_seconds)
    except subprocess.TimeoutExpired:
        print(f"   not done after {most_seconds:g} s; ending it", file=sys.stderr)
        return -signal.SIGINT
    finally:
        _end(process)


def _environment() -> dict[str, str]:
    """This process's own, but that byte code is kept: no installed program compiles itself at each start."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _as_a_child() -> None:
    from tests.support.processes import as_a_child  # noqa: PLC0415 - not before the environment is there

    as_a_child()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have it tidy up and end; a second interrupt, or ``TIDY_SECONDS``, and the kernel takes it with all that it started."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(TIDY_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
