"""A program that is told to end hears of it in whichever thread the signal arrives."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys, threading
from common.signals import upon_end

stop = threading.Event()
upon_end(stop.set)
here = signal.{name}
if sys.argv[1] == "another thread":
    threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), here)).start()
else:
    threading.Timer(0.2, os.kill, (os.getpid(), here)).start()
stop.wait()
print("ended")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("where", ["another thread", "the process"])
def test_it_is_heard(name: str, where: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(name=name), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
