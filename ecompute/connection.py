"""One connection to a local service for all threads: opened when first asked for, opened again when it breaks.

Knows no service: opening and discarding are functions. Used by ``libvirt_driver``, whose ``libvirt.open`` has no time limit of
its own, which is why only a thread of this class ever calls it, and why everybody else waits for that thread with a bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from common.errors import HypervisorUnavailable
from common.retry import Backoff

logger = logging.getLogger(__name__)
T = TypeVar("T")


class KeptConnection(Generic[T]):
    """Keeps one connection open.

    Args:
        what: what is connected to, for messages.
        open_connection: raises ``HypervisorUnavailable``; may take for ever.
        discard: closes a connection, a broken one too; raises nothing.
        on_reconnect: called when a connection is there that callers had to do without, in this class's thread.
        patience_seconds: how long ``get`` waits for an attempt.
        on_state: told why there is no connection, at each failure, and "" when there is one; it must only take note. Without
            it a loss and a return are logged here.
    """

    def __init__(
        self,
        what: str,
        open_connection: Callable[[], T],
        discard: Callable[[T], None],
        on_reconnect: Callable[[], None],
        *,
        patience_seconds: float,
        backoff: Backoff,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self._what, self._open, self._discard, self._on_reconnect = what, open_connection, discard, on_reconnect
        self._patience_seconds, self._on_state = patience_seconds, on_state
        self._backoff = backoff
        self._changed = threading.Condition()
        self._current: T | None = None
        self._lost: T | None = None
        self._failure: HypervisorUnavailable | None = None
        self._attempts = 0  # that have ended
        self._is_asked = False  # somebody waits: do not sleep out the pause
        self._is_missed = False  # callers had to do without; only the thread touches it
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def get(self) -> T:
        """The connection, waiting for one attempt to open it where there is none.

        Raises:
            HypervisorUnavailable: that attempt failed, or did not end in time.
        """
        with self._changed:
            if self._current is None:
                self._begin()
                seen = self._attempts
                self._is_asked = True
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._current is not None or self._is_closed or self._attempts > seen, self._patience_seconds
                )
                if self._is_closed:
                    raise HypervisorUnavailable(f"the connection to {self._what} is closed: this process is ending")
                if self._current is None:
                    raise self._last_failure(attempted=self._attempts > seen)
            return self._current

    def open_soon(self) -> None:
        """Open it in the background, where it is not open yet."""
        with self._changed:
            self._begin()

    def lost(self, connection: T) -> None:
        """Say that *connection* broke; said of any but the current one it does nothing. Returns at once."""
        with self._changed:
            if connection is self._current:
                self._current, self._lost = None, connection
                self._tell(f"lost the connection to {self._what}")
                self._changed.notify_all()

    def close(self) -> None:
        """Discard the connection for good. A thread that hangs in opening one is left behind; it is a daemon."""
        with self._changed:
            self._is_closed = True
            self._lost, self._current = self._current or self._lost, None
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(2.0)

    def _begin(self) -> None:
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._keep, name=f"connection {self._what}", daemon=True)
            self._thread.start()

    def _last_failure(self, *, attempted: bool) -> HypervisorUnavailable:
        if attempted and self._failure is not None:
            return HypervisorUnavailable(str(self._failure))
        return HypervisorUnavailable(
            f"{self._what} did not answer within {self._patience_seconds:g} s; is it overloaded or stopped?"
        )

    def _keep(self) -> None:
        while self._wait_until_needed():
            try:
                self._try_once()
            except Exception:
                logger.exception("a bug in keeping the connection to %s", self._what)
                self._pause()

    def _wait_until_needed(self) -> bool:
        """Return when there is no connection; False when there shall be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._current is None)
            lost, self._lost = self._lost, None
        if lost is not None:
            self._discard(lost)
            if not self._is_closed:
                if self._on_state is None:
                    logger.warning("lost the connection to %s", self._what)
                self._is_missed = True
                self._pause()  # the service that broke it is hardly back yet
        return not self._is_closed

    def _try_once(self) -> None:
        try:
            connection = self._open()
        except HypervisorUnavailable as failure:
            self._settle(None, failure)
            self._is_missed = True
            self._pause()
            return
        if not self._settle(connection, None):
            self._discard(connection)
        elif self._is_missed:
            self._is_missed = False
            if self._on_state is None:
                logger.info("connected again to %s", self._what)
            self._on_reconnect()

    def _settle(self, connection: T | None, failure: HypervisorUnavailable | None) -> bool:
        """Tell everybody how an attempt ended; False when nobody wants to know any more."""
        with self._changed:
            if self._is_closed:
                return False
            self._current, self._failure = connection, failure
            self._tell("" if failure is None else str(failure))
            self._attempts += 1
            self._is_asked = False
            if connection is not None:
                self._backoff.reset()
            self._changed.notify_all()
            return True

    def _tell(self, problem: str) -> None:
        """Called with the lock held, so that what is told last is what is so."""
        if self._on_state is not None:
            self._on_state(problem)

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._is_asked, self._backoff.next())
