"""What a service manager hears: the socket that systemd gives to a unit of Type=notify."""

from __future__ import annotations

import socket


class ServiceManager:
    """Listens at *address*, a path or ``@`` and an abstract name. ``environment`` is what a unit's process gets."""

    def __init__(self, address: str, watchdog_seconds: float | None = None) -> None:
        self.address = address
        self.environment = {"NOTIFY_SOCKET": address}
        if watchdog_seconds is not None:
            self.environment["WATCHDOG_USEC"] = str(round(watchdog_seconds * 1e6))
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """The messages since the last call."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.lines += [line for message in found for line in message.splitlines()]
                return found

    def has_heard(self, start: str) -> bool:
        """Whether a line that begins with *start* came, ever."""
        self.heard()
        return any(line.startswith(start) for line in self.lines)

    def close(self) -> None:
        self._socket.close()
