"""Many guests that ask a metadata server at once, each from an address of its own: a program of its own, so that it can have a
core to itself.

A guest asks as cloud-init does: one request after the other, each on a new connection, which it closes when the answer is
whole. Reads a plan as JSON from standard input, writes what it saw as JSON to standard output. ``scenarios.metadata`` starts
it.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen at connect(), which then finds one at once
STALLED_SECONDS = 20.0
_LENGTH = b"content-length: "


@dataclass(frozen=True)
class Plan:
    """What to do.

    Args:
        server: address and port.
        guests: a source address and the paths it asks for, in order, for each guest.
        headers: of each request, after Host.
        spread_seconds: the guests begin one after the other over this time; 0: all at once.
        core: the processor to run on; None: any.
    """

    server: tuple[str, int]
    guests: Sequence[tuple[str, Sequence[str]]]
    headers: Sequence[str]
    spread_seconds: float = 0.0
    core: int | None = None


@dataclass
class Seen:
    """What came of it."""

    seconds: float = 0.0  # from the first request to the last answer
    cpu_seconds: float = 0.0  # of this program, in that time
    latencies: list[float] = field(default_factory=list)  # seconds, from connect() to the last byte, as they ended
    statuses: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    errors: list[str] = field(default_factory=list)


class Guest:
    """One guest: where it is in its list, and the connection it has open."""

    def __init__(self, source: str, requests: Sequence[bytes]) -> None:
        self.source, self.requests, self.next = source, requests, 0
        self.connection: socket.socket | None = None
        self.received, self.began = b"", 0.0

    def ask(self, server: tuple[str, int], poll: select.epoll) -> int:
        """Begin the next request; the descriptor of its connection."""
        self.began, self.received = time.perf_counter(), b""
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((self.source, 0))
        self.connection = made
        made.connect_ex(server)  # what is wrong with it, send() tells
        try:
            self.send()
        except BlockingIOError:  # its queue of connections is full
            poll.register(made, select.EPOLLOUT)
        else:
            poll.register(made, select.EPOLLIN)
        return made.fileno()

    def send(self) -> None:
        assert self.connection
        self.connection.send(self.requests[self.next])

    def read(self) -> bool:
        """Take what came; whether the answer is whole."""
        assert self.connection
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("closed before the answer was whole")
        self.received = self.received + data if self.received else data
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return False
        at = self.received[:head].lower().find(_LENGTH)
        length = int(self.received[at + len(_LENGTH) : head].split(b"\r\n", 1)[0]) if at >= 0 else 0
        return len(self.received) >= head + 4 + length

    def close(self) -> None:
        if self.connection:
            self.connection.close()
            self.connection = None


class Storm:
    """The guests of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._server, self._poll, self.seen = plan.server, select.epoll(), Seen()
        apart = plan.spread_seconds / max(1, len(plan.guests))
        head = "".join(f"{line}\r\n" for line in (f"Host: {plan.server[0]}:{plan.server[1]}", *plan.headers))
        self._waiting = deque(
            (number * apart, Guest(source, [f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in paths]))
            for number, (source, paths) in enumerate(plan.guests)
        )
        self._asking: dict[int, Guest] = {}

    def run(self) -> Seen:
        """Until each guest is through, or nothing moved for ``STALLED_SECONDS``."""
        began, cpu_began = time.perf_counter(), time.process_time()
        while self._waiting or self._asking:
            now = time.perf_counter() - began
            while self._waiting and self._waiting[0][0] <= now:
                self._ask(self._waiting.popleft()[1])
            until_next = self._waiting[0][0] - now if self._waiting else STALLED_SECONDS if self._asking else 0
            ready = self._poll.poll(until_next)
            if not (ready or self._waiting) and self._asking:
                self.seen.errors.append(f"{len(self._asking)} requests got no answer within {STALLED_SECONDS:.0f} s")
                break
            for descriptor, event in ready:
                self._on_event(self._asking[descriptor], descriptor, event)
        self.seen.seconds = time.perf_counter() - began
        self.seen.cpu_seconds = time.process_time() - cpu_began
        return self.seen

    def _ask(self, guest: Guest) -> None:
        try:
            self._asking[guest.ask(self._server, self._poll)] = guest
        except OSError as error:
            self._give_up(guest, error)

    def _on_event(self, guest: Guest, descriptor: int, event: int) -> None:
        try:
            if event & select.EPOLLOUT:
                guest.send()
                self._poll.modify(descriptor, select.EPOLLIN)
                return
            if not guest.read():
                return
            self._note(guest)
            guest.next += 1
        except OSError as error:
            self._give_up(guest, error)
        del self._asking[descriptor]
        guest.close()
        if guest.next < len(guest.requests):
            self._ask(guest)

    def _give_up(self, guest: Guest, error: OSError) -> None:
        self.seen.errors.append(f"{guest.source}, request {guest.next}: {error}")
        guest.next = len(guest.requests)
        guest.close()

    def _note(self, guest: Guest) -> None:
        seen = self.seen
        seen.latencies.append(time.perf_counter() - guest.began)
        status = guest.received[9:12].decode("latin-1")
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        seen.bytes += len(guest.received)


def main() -> int:
    asked: dict[str, Any] = json.load(sys.stdin)
    plan = Plan(**{**asked, "server": tuple(asked["server"])})
    if plan.core is not None:
        os.sched_setaffinity(0, {plan.core})
    json.dump(asdict(Storm(plan).run()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
