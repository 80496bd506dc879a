"""One piece of work that several threads wait for: done once, left by each on its own, given up when nobody waits any more.

Knows nothing of what the work is; ``images`` fetches with it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from common.errors import Cancelled, EcomputeError

T = TypeVar("T")
_LOOK_EVERY_SECONDS = 0.1  # how soon somebody who no longer wants it, or new progress, is noticed


class Flight(Generic[T]):
    """The work in a thread of its own, and everybody who waits for it. It ends early when nobody does any more.

    Args:
        work: does it; calls ``report``.
        landed: called when it is over, before those who wait hear of it.
    """

    def __init__(self, *, work: Callable[[Flight[T]], T], landed: Callable[[Flight[T]], None]) -> None:
        self._work, self._landed = work, landed
        self._changed = threading.Condition()
        self._members, self._seen = 1, (0, 0)
        self._result: T | None = None
        self._failure: Exception | None = None
        self.is_over = False

    def take_off(self, name: str) -> None:
        # A daemon, since a server that sends a byte now and then can hold it for as long as it likes.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def join(self) -> bool:
        """Wait for it too; False where it is over already."""
        with self._changed:
            if not self.is_over:
                self._members += 1
            return not self.is_over

    def leave(self) -> None:
        with self._changed:
            self._members -= 1

    def report(self, done: int, total: int) -> None:
        """So far has it come.

        Raises:
            Cancelled: nobody waits any more.
        """
        with self._changed:
            self._seen = (done, total)
            if self._members == 0:
                raise Cancelled("nobody waits for it any more")

    def wait(self, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]) -> T | None:
        """What *work* returned; None where the caller, or before it joined everybody else, gave up."""
        told = (0, 0)
        while True:
            with self._changed:
                if not self.is_over:
                    self._changed.wait(_LOOK_EVERY_SECONDS)
                is_over, seen = self.is_over, self._seen
            if is_over:
                return self._outcome()
            if is_cancelled():
                return None
            if seen != told:
                progress(*seen)
                told = seen

    def _outcome(self) -> T | None:
        if self._failure is None or isinstance(self._failure, Cancelled):
            return self._result
        if isinstance(self._failure, EcomputeError):
            raise copy.copy(self._failure) from self._failure  # several threads raise it, each with its own traceback
        raise RuntimeError(f"a bug: {self._failure!r}") from self._failure

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            self._failure = error
        self._landed(self)
        with self._changed:
            self.is_over = True
            self._changed.notify_all()
