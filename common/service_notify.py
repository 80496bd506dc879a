"""What a daemon tells the service manager that started it: that it is up, what it does, that it stops, that it is alive.

The protocol of sd_notify(3) and sd_watchdog_enabled(3): lines of ``KEY=VALUE`` in a datagram to the socket that
``NOTIFY_SOCKET`` names; ``WATCHDOG_USEC`` says how often a sign of life is wanted, ``WATCHDOG_PID`` of which process. Without a
manager nothing is sent. ``alive`` is to be called from the loop whose standing still would be the fault, never from a thread of
its own. Called by the programs' mains and loops; needs nothing but Python, as programs beside ours take it along.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

logger = logging.getLogger(__name__)
SEND_SECONDS = 1.0  # a manager that hangs must not hold up who tells it so
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceNotifier:
    """Speaks to the service manager, from any thread; what cannot be sent is a line in the log, once, and nothing else.

    Args:
        address: of the manager's socket, a path or ``@`` and an abstract name; "" where there is no manager.
        watchdog_seconds: how often a sign of life is wanted; None: never.
        clock: monotonic seconds.
    """

    def __init__(
        self, address: str = "", watchdog_seconds: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address, self._clock = _socket_address(address), clock
        self._watchdog = watchdog_seconds if self._address else None
        self._is_ready, self._is_stopping, self._has_complained = False, False, False
        self._status = ""
        self._last_alive = float("-inf")
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(SEND_SECONDS)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> ServiceNotifier:
        """The manager that *environment* names, by default the process's own; its variables are taken out of there, so that no
        child speaks for this process.
        """
        found = os.environ if environment is None else environment
        address, usec, pid = (found.pop(name, "") for name in _VARIABLES)
        is_ours = not pid or pid == str(os.getpid())
        is_wanted = is_ours and usec.isascii() and usec.isdigit() and int(usec) > 0
        return cls(address, int(usec) / 1e6 if is_wanted else None)

    @property
    def alive_every_seconds(self) -> float | None:
        """How often ``alive`` is to be called at least; None where nobody waits for it."""
        return None if self._watchdog is None else self._watchdog / 3

    def ready(self, status: str = "") -> None:
        """The start is over, with this *status*. Said once; a later call only changes the status."""
        if self._is_ready:
            self.status(status)
            return
        self._is_ready, self._status = True, _one_line(status)
        self._send("READY=1", *self._status_lines())

    def status(self, text: str) -> None:
        """What the service does at the moment, in one line for ``systemctl status``."""
        if _one_line(text) != self._status:
            self._status = _one_line(text)
            self._send(*self._status_lines())

    def alive(self) -> None:
        """A sign of life. May be called as often as one likes."""
        every, now = self.alive_every_seconds, self._clock()
        if every is not None and now - self._last_alive >= every / 2:
            self._last_alive = now
            self._send("WATCHDOG=1")

    def allow(self, seconds: float) -> None:
        """What is done next may take *seconds* without a sign of life, and no start or stop is over before."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")
        if self._watchdog is not None and self._watchdog < seconds:
            self._watchdog = seconds
            self._send(f"WATCHDOG_USEC={round(seconds * 1e6)}", "WATCHDOG=1")

    def stopping(self, within_seconds: float) -> None:
        """The service ends, which may take *within_seconds*. Said once."""
        if not self._is_stopping:
            self._is_stopping = True
            self._send("STOPPING=1", f"EXTEND_TIMEOUT_USEC={round(within_seconds * 1e6)}")

    def _status_lines(self) -> list[str]:
        return [f"STATUS={self._status}"] if self._status else []

    def _send(self, *lines: str) -> None:
        if self._socket is None or not lines:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                logger.warning("the service manager cannot be told %s: %s", lines[0], error)
        else:
            self._has_complained = False

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None


def _socket_address(address: str) -> str:
    """*address* as the kernel takes it; "" for one of a kind that we do not speak."""
    if address.startswith("@"):
        return "\0" + address[1:]
    return address if address.startswith("/") else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
