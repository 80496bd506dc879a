#!/usr/bin/env python3
"""``./benchmarks/run.py [NAME…]``: measures, prints, writes docs/performance.md, and guards against regressions.

From any folder and with any Python of 3.11 or later: it makes the checkout's environment where that is missing, as test.sh
does, and goes on in it. Exit codes: 0 done, 1 a scenario failed or is worse than its baseline, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
if str(ROOT) not in sys.path:
    sys.path[0] = str(ROOT)  # in place of this folder, whose modules are to be seen as benchmarks.… only

from benchmarks.options import UsageError, parse, title_of  # noqa: E402 - found by the line above
from benchmarks.scenarios import NAMES  # noqa: E402


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    try:
        options = parse(arguments)
    except UsageError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    if options.lists:
        print("\n".join(f"{name:14}{title_of(name)}" for name in NAMES))
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if Path(sys.prefix) != VENV:
            return _run_in_environment(arguments)
        from benchmarks.runner import Files, run  # noqa: PLC0415 - needs the environment

        return run(options, Files.of(ROOT))
    except KeyboardInterrupt:
        print("\nrun.py: interrupted", file=sys.stderr)
        return 130


def _run_in_environment(arguments: list[str]) -> int:
    """Make the environment where it is not whole, and start again in it; returns only where that failed."""
    setup = [str(ROOT / "packaging/setup-host.sh"), "--extra", "benchmarks", "--tools", "run", "demo", "test"]
    if subprocess.run(setup, check=False).returncode == 0:
        python = VENV / "bin" / "python"
        os.execv(python, [str(python), str(Path(__file__).resolve()), *arguments])
    return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
