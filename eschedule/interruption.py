"""Ctrl-C and SIGTERM without leaks: what was begun is finished or undone, then the program ends.

Between a claim in Placement and its record in etcd, and until etcd has answered a change, a signal only raises a flag, which
whoever put up the shield looks at; everywhere else it interrupts at once. A second signal always does, since the user has been
told by then what is going on.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user or the system asked this program to end. No error of ours: nothing but the command line catches it."""

    def __init__(self, signal_number: int, *, was_forced: bool = False) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.was_forced = was_forced  # in the middle of something that should have been finished or undone

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number


class Interruption:
    """The flag and the shield. As it is made it hears no signals, which is what a library wants; ``listen`` makes it."""

    def __init__(self, on_deferred: Callable[[], None] = lambda: None) -> None:
        self._on_deferred = on_deferred
        self._shields = 0
        self._pending: int | None = None

    @property
    def is_pending(self) -> bool:
        return self._pending is not None

    def listen(self) -> None:
        """Take SIGINT and SIGTERM. Call it from the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            # Whoever started this program with a signal ignored, as nohup and shells do, wants it so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._heard)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Inside, a first signal only sets the flag. It stays set: call ``check`` where ending is clean."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def check(self) -> None:
        """End here if a signal came meanwhile.

        Raises:
            Interrupted: one did.
        """
        if self._pending is not None:
            raise Interrupted(self._pending)

    def _heard(self, signal_number: int, _frame: FrameType | None) -> None:
        first, self._pending = self._pending is None, signal_number
        if not first or not self._shields:
            raise Interrupted(signal_number, was_forced=self._shields > 0)
        self._on_deferred()
