"""The real ecompute, which kills itself, or waits, at a chosen moment: ``python -m tests.support.ecompute_with_failpoint --failpoint-file
FILE …`` takes ecompute's own options behind it.

FILE holds one failpoint, or nothing; it may change while the program runs, and is emptied when it strikes, so that the next
process lives. A failpoint is ``WHEN:STEP`` or ``WHEN:STEP:FUNCTION``, WHEN being ``before`` or ``after``:

    after:Start                                          the step is done, nobody was told yet
    after:RemoveFiles:common.metadata.MetadataStore.remove   inside a step, between two of its effects
    before:status:Running                                the status of that phase is about to be written
    after:startup:common.etcd_store.EtcdStore.delete     before it serves at all

It strikes by SIGKILL: no handler runs, nothing is flushed, as when the machine's memory runs out. With ``hold `` in front the
program only waits there: it writes ``held`` to FILE and goes on when that is gone.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from common.model import InstanceStatus
from ecompute import main as program
from ecompute.builder import Builder
from ecompute.statuses import Statuses
from ecompute.volume_keeper import VolumeKeeper

STARTUP, STATUS = "startup", "status"
HOLD, HELD = "hold ", "held"


class Failpoints:
    """Wraps what a failpoint may name."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._wrapped: set[str] = set()
        self._here = threading.local()  # the step that this thread runs
        self._latest = ""  # the step that was begun last by any thread, for those that work on its behalf

    def install(self) -> None:
        self._wrap_steps(Builder, "run")
        self._wrap_steps(VolumeKeeper, "run_step")
        self._wrap_statuses()
        _, step, function = self._armed()
        if step == STARTUP:
            self._wrap(function)
            self._here.step = STARTUP

    def _armed(self) -> tuple[str, str, str]:
        when, _, rest = self._text().removeprefix(HOLD).partition(":")
        step, _, function = rest.partition(":")
        return when, step, function

    def _text(self) -> str:
        return self._file.read_text() if self._file.exists() else ""

    def _strike_if(self, when: str, step: str, function: str = "") -> None:
        if self._armed() == (when, step, function):
            self._hold() if self._text().startswith(HOLD) else self._strike()

    def _hold(self) -> None:
        self._file.write_text(HELD)
        while self._text() == HELD:
            time.sleep(0.005)

    def _strike(self) -> NoReturn:
        self._file.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit("SIGKILL has no effect here")

    def _wrap_steps(self, kind: type, name: str) -> None:
        run = getattr(kind, name)

        def run_or_die(builder: Any, step: Any, *arguments: Any) -> Any:
            _, armed_step, function = self._armed()
            if function and armed_step == step:
                self._wrap(function)
            self._strike_if("before", step)
            self._here.step = self._latest = str(step)
            try:
                facts = run(builder, step, *arguments)
            finally:
                self._here.step = self._latest = ""
            self._strike_if("after", step)
            return facts

        setattr(kind, name, run_or_die)

    def _wrap_statuses(self) -> None:
        flush = Statuses.flush

        def flush_or_die(statuses: Statuses, uuid: Any, **named: Any) -> None:
            status: InstanceStatus | None = statuses.get(uuid)
            phase = status.phase.value if status and uuid in statuses.unwritten() else ""
            self._strike_if("before", STATUS, phase)
            flush(statuses, uuid, **named)
            self._strike_if("after", STATUS, phase)

        Statuses.flush = flush_or_die  # type: ignore[method-assign]

    def _wrap(self, function: str) -> None:
        """Have *function*, a dotted name, strike where it is called in the armed step."""
        if function in self._wrapped:
            return
        self._wrapped.add(function)
        owner, name = _owner(function)
        original = getattr(owner, name)

        @functools.wraps(original)
        def call_or_die(*arguments: Any, **named: Any) -> Any:
            step = getattr(self._here, "step", self._latest)
            self._strike_if("before", step, function)
            answer = original(*arguments, **named)
            self._strike_if("after", step, function)
            return answer

        setattr(owner, name, call_or_die)


def _owner(function: str) -> tuple[Any, str]:
    """The module or class that has *function*, and its name there."""
    parts = function.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise LookupError(f"there is no {function}")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--failpoint-file"]:
        sys.exit("usage: ecompute_with_failpoint --failpoint-file FILE [OPTION OF ECOMPUTE…]")
    Failpoints(Path(sys.argv[2])).install()
    del sys.argv[1:3]
    program.command()
