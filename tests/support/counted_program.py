"""A real program that writes down what it asks of its machine: ``python -m tests.support.counted_program --tally FILE
[--set MODULE.NAME=NUMBER]… ecompute|eschedule …`` takes the program's own options behind its name.

FILE gets a line for each call of libvirt's C library, each file that is forced to disk and each process that is started:
``WHAT NAME THREAD PASS``, PASS being the number of the reconciler's pass that the thread is in, 0 for none. ``--set`` changes a
constant, so that what happens now and then happens often, or not at all.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of libvirt's functions those that only look at the handle in hand, or wait for events: they ask nobody.
LOCAL = re.compile(r"virEvent|virRegisterErrorHandler|.*(LastError|Free|GetConnect|GetName|GetUUID|GetUUIDString|Close)$")
STARTS = ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.system", "os.exec")


class Tally:
    """Appends to *file*; one write a line, so that no thread waits for another."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._here = threading.local()
        self._passes = itertools.count(1)

    def note(self, what: str, name: str) -> None:
        thread, number = threading.current_thread().name.replace(" ", "-"), getattr(self._here, "number", 0)
        os.write(self._file, f"{what} {name} {thread} {number}\n".encode())

    def counted(self, what: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            self.note(what, name)
            return function(*arguments, **named)

        return call

    def passes(self, reconcile: Callable[..., Any]) -> Callable[..., Any]:
        """*reconcile*, where each call has a number, and says when it is over."""

        @functools.wraps(reconcile)
        def call(*arguments: Any) -> Any:
            self._here.number = next(self._passes)
            self.note("pass", "begins")
            try:
                return reconcile(*arguments)
            finally:
                self.note("pass", "ends")
                self._here.number = 0

        return call


def count_in_this_process(tally: Tally) -> None:
    for name in ("fsync", "fdatasync"):
        setattr(os, name, tally.counted("sync", name, getattr(os, name)))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            tally.note("process", Path(os.fsdecode(arguments[0])).name if event == "subprocess.Popen" else event)

    sys.addaudithook(hook)


def count_in_ecompute(tally: Tally) -> None:
    import libvirt

    from ecompute.reconciler import Reconciler

    library = libvirt.libvirtmod
    for name, function in list(vars(library).items()):
        if callable(function) and name.startswith("vir") and not LOCAL.match(name):
            setattr(library, name, tally.counted("libvirt", name, function))
    Reconciler.reconcile = tally.passes(Reconciler.reconcile)  # type: ignore[method-assign]


def set_constant(text: str) -> None:
    """Do what ``--set`` says: ``common.etcd_watch.QUIET_SECONDS=600``."""
    path, _, number = text.partition("=")
    module_name, _, name = path.rpartition(".")
    module = importlib.import_module(module_name)
    if not isinstance(getattr(module, name), (int, float)):
        raise SystemExit(f"{path} is no number")
    setattr(module, name, float(number))


def main(arguments: list[str]) -> None:
    assert arguments[0] == "--tally", __doc__
    tally, rest = Tally(Path(arguments[1])), arguments[2:]
    while rest[0] == "--set":
        set_constant(rest[1])
        del rest[:2]
    program = rest[0]
    count_in_this_process(tally)
    if program == "ecompute":
        count_in_ecompute(tally)
    sys.argv = rest
    importlib.import_module(f"{program}.main").command()


if __name__ == "__main__":
    main(sys.argv[1:])
