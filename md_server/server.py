"""The HTTP server under the application: one thread and one epoll, with the bounds that guests who may be slow or hostile need.

An answer is a look at a file and some copying, so that threads would only stand in each other's way; and nothing here waits for
a guest. A connection must complete a request every ``STEP_SECONDS`` or is cut, a source has at most ``CONNECTIONS_PER_SOURCE``,
a connection holds at most one request and one answer, and pipelined requests are not served. With no connection open it sleeps
until there is one. ``main`` calls it; knows no documents.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import queue
import select
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from md_server import hops
from md_server.http import CONTINUE, HOP_LIMIT, Request, RequestReader, answer_head, whole_request
from md_server.limiter import Limiter
from md_server.listening import Listener, source_of

log = logging.getLogger(__name__)

CONNECTIONS = 512
CONNECTIONS_PER_SOURCE = 16
STEP_SECONDS = 15.0
FINISH_SECONDS = 1.0  # at a stop, for the answers under way
LOOK_SECONDS = 1.0  # how often connections are looked at, while there are any
_ACCEPTS = 64  # new connections, before those that are open get their turn
_RECEIVE_BYTES = 8192
_WARN_EVERY_SECONDS = 60.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

WsgiApplication = Callable[[dict[str, Any], Callable[..., object]], Iterable[bytes]]


class Connection:
    """One connection of one guest."""

    __slots__ = ("closes_after", "descriptor", "is_limited", "reader", "since", "socket", "source", "unsent")

    def __init__(self, accepted: socket.socket, source: str, now: float) -> None:
        self.socket, self.source, self.descriptor = accepted, source, accepted.fileno()
        self.since = now  # of the last completed request, or of the beginning
        self.reader: RequestReader | None = None  # of a request that is not whole yet
        self.unsent: memoryview | None = None  # of the answer; while there is some, nothing is read
        self.closes_after = False  # when all is sent
        self.is_limited = False  # in its hops


class GuestServer:
    """Serves *application* on the listening socket, and on those of ``serve_also``, until ``stop``.

    *application* is called as WSGI has it, with as much of it as a metadata service needs: the few headers that mean something
    to it, and a body where there is one. Its answers name their length, and it may set ``HOP_LIMIT`` in the environment.

    *alive* is called at every turn, and that is taken every *alive_every_seconds* though nothing happens; None: it sleeps then.
    """

    def __init__(
        self, application: WsgiApplication, listening: socket.socket, clock: Callable[[], float] = time.monotonic, *,
        alive: Callable[[], None] = lambda: None, alive_every_seconds: float | None = None,
    ) -> None:  # fmt: skip
        self._application, self._clock = application, clock
        self._alive, self._alive_every = alive, alive_every_seconds
        self._listening = {listening.fileno(): Listener(listening)}  # by descriptor
        self._first = listening.fileno()
        self._to_serve_also: queue.SimpleQueue[Sequence[Listener]] = queue.SimpleQueue()
        self._connections: dict[int, Connection] = {}  # by descriptor; who completed a request longest ago comes first
        self._open_of: dict[str, set[Connection]] = {}  # by source
        self._is_accepting, self._is_stopping = False, False
        self._accept_again_at = clock()
        self._fullness, self._bugs = Limiter(_WARN_EVERY_SECONDS, 2, clock), Limiter(_WARN_EVERY_SECONDS, 2, clock)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._wake, select.EPOLLIN)
        self._accept_more()

    def run(self) -> None:
        """Serve until ``stop``; then finish the answers under way, for at most ``FINISH_SECONDS``, and close."""
        while not self._is_stopping:
            self._alive()
            self._turn(LOOK_SECONDS if self._connections or not self._is_accepting else self._alive_every)
        self._accept_no_more()
        for listener in self._listening.values():
            listener.socket.close()
        until = self._clock() + FINISH_SECONDS
        while self._clock() < until and any(c.unsent is not None for c in self._connections.values()):
            self._turn(0.05)
        for connection in list(self._connections.values()):
            self._close(connection)
        self._poll.close()
        # _wake stays open: a signal may still come, and must not write into a descriptor that is somebody else's by then.

    def serve_also(self, listeners: Sequence[Listener]) -> None:
        """Serve on *listeners* as well, in place of those that this was called with before; from any thread, at once or soon.
        They are closed when they are replaced, and with the server.
        """
        self._to_serve_also.put(listeners)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End ``run``, from any thread or a signal handler."""
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)

    def _turn(self, timeout_seconds: float | None) -> None:
        """Do what there is to do now, or first comes up within *timeout_seconds*."""
        for descriptor, _ in self._poll.poll(timeout_seconds):
            if descriptor in self._connections:  # else it ended earlier in this turn
                self._go_on(self._connections[descriptor])
            elif descriptor == self._wake:
                os.eventfd_read(self._wake)
                self._replace_listeners()
            elif self._is_accepting and descriptor in self._listening:
                self._accept(self._listening[descriptor])
        self._cut_overdue()
        if not (self._is_accepting or self._is_stopping) and self._has_room():
            self._accept_more()

    # New connections

    def _has_room(self) -> bool:
        return len(self._connections) < CONNECTIONS and self._clock() >= self._accept_again_at

    def _replace_listeners(self) -> None:
        """Take over what ``serve_also`` was called with."""
        while not self._to_serve_also.empty():
            also = {listener.socket.fileno(): listener for listener in self._to_serve_also.get()}
            was_accepting = self._is_accepting
            self._accept_no_more()
            for descriptor in self._listening.keys() - {self._first}:
                self._listening.pop(descriptor).socket.close()
            self._listening |= also
            if was_accepting:
                self._accept_more()

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, peer = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:  # else: who came is gone already
                    self._accept_again_at = self._clock() + LOOK_SECONDS
                    self._pause("no descriptor is left for another connection")
                    return
                continue
            source = source_of(peer, listener.interface)
            if self._has_all_its_connections(source):
                accepted.close()
                continue
            try:
                self._open(Connection(accepted, source, self._clock()))
            except OSError as error:  # the kernel watches no more descriptors for us
                accepted.close()
                self._accept_again_at = self._clock() + LOOK_SECONDS
                self._pause(f"another connection cannot be watched: {error.strerror}")
                return
            if len(self._connections) >= CONNECTIONS:
                self._pause("as many connections are open as may be")
                return

    def _has_all_its_connections(self, source: str) -> bool:
        if len(self._open_of.get(source, ())) < CONNECTIONS_PER_SOURCE:
            return False
        for connection in list(self._open_of[source]):  # some may have ended since they had their turn
            self._go_on(connection)
        return len(self._open_of.get(source, ())) >= CONNECTIONS_PER_SOURCE

    def _open(self, connection: Connection) -> None:
        self._poll.register(connection.descriptor, select.EPOLLIN)
        self._connections[connection.descriptor] = connection
        self._open_of.setdefault(connection.source, set()).add(connection)
        self._go_on(connection)  # mostly its request is there already

    def _pause(self, why: str) -> None:
        """Leave new connections to the kernel's queue, until there is room."""
        self._accept_no_more()
        if self._fullness.may_pass(why):
            log.warning("new guests wait: %s", why)

    def _accept_more(self) -> None:
        for descriptor in self._listening:
            self._poll.register(descriptor, select.EPOLLIN)
        self._is_accepting = True

    def _accept_no_more(self) -> None:
        if self._is_accepting:
            for descriptor in self._listening:
                self._poll.unregister(descriptor)
            self._is_accepting = False

    # Open connections

    def _go_on(self, connection: Connection) -> None:
        """Send or receive what can be at once."""
        try:
            if connection.unsent is not None:
                self._send(connection, connection.unsent)
            else:
                self._receive(connection)
        except Exception:
            if self._bugs.may_pass("connection"):
                log.exception("bug: a connection is given up")
            self._close(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(connection, data)
        else:
            self._close(connection)

    def _take(self, connection: Connection, data: bytes) -> None:
        """Read *data*, and answer the first request in it. With more behind it the connection ends after the answer, by which
        the client knows what to repeat: what nobody reads must not pile up.
        """
        reader = connection.reader
        if reader is None:
            data = data.lstrip(b"\r\n")  # some end a request with one line too many
            request = whole_request(data)
            if request is not None:
                self._answer(connection, request, has_more_behind=False)
                return
            reader = connection.reader = RequestReader()
        rest = data[reader.take(data) :]
        if reader.is_done:
            connection.reader = None
            self._answer(connection, reader.request(), has_more_behind=bool(rest.strip()))
        elif reader.wants_continue():
            self._send(connection, memoryview(CONTINUE))

    def _answer(self, connection: Connection, request: Request, *, has_more_behind: bool) -> None:
        environment = _environment(request, connection.source)
        status, headers, body = self._asked(request, environment)
        self._limit_hops(connection, environment.get(HOP_LIMIT))
        keeps_open = request.keeps_open and not has_more_behind and not self._is_stopping
        head = answer_head(status, headers, is_1_0=request.is_1_0, keeps_open=keeps_open)
        connection.closes_after = not keeps_open
        connection.since = self._clock()
        self._connections[connection.descriptor] = self._connections.pop(connection.descriptor)  # the last one now
        self._send(connection, memoryview(head if request.method == "HEAD" else head + body))

    def _limit_hops(self, connection: Connection, hop_limit: int | None) -> None:
        """Before the answer is sent. A limit outlives its answer until that is confirmed: no copy of it must travel further."""
        if hop_limit is not None:
            hops.limit(connection.socket, hop_limit)
            connection.is_limited = True
        elif connection.is_limited:
            connection.is_limited = not hops.lift(connection.socket)

    def _asked(self, request: Request, environment: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """Status, headers and body of the answer."""
        if request.refusal is not None:
            return _plain(*request.refusal)
        answered: list[tuple[str, list[tuple[str, str]]]] = []
        try:
            parts = self._application(environment, lambda *answer: answered.append(answer))
            return *answered[0], b"".join(parts)
        except Exception:
            if self._bugs.may_pass("answer"):
                log.exception("bug: a request is answered by 500")
            return _plain("500 Internal Server Error", b"500 Internal Server Error\n")

    def _send(self, connection: Connection, rest: memoryview) -> None:
        """Send as much as the other side takes; the remainder when it takes more."""
        waited = connection.unsent is not None
        try:
            rest = rest[connection.socket.send(rest, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close(connection)
            return
        connection.unsent = rest if rest else None
        if connection.unsent is None and connection.closes_after:
            self._close(connection)
        elif (connection.unsent is not None) != waited:
            self._poll.modify(connection.descriptor, select.EPOLLIN if waited else select.EPOLLOUT)

    def _cut_overdue(self) -> None:
        """Close what completed no request for ``STEP_SECONDS``, be it idle, slow to ask or slow to read."""
        latest = self._clock() - STEP_SECONDS
        while self._connections:
            connection = next(iter(self._connections.values()))
            if connection.since >= latest:
                return
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        """Close it; once more does nothing."""
        if self._connections.pop(connection.descriptor, None) is None:
            return
        siblings = self._open_of[connection.source]
        siblings.remove(connection)
        if not siblings:
            del self._open_of[connection.source]
        connection.socket.close()  # which takes it from the poll, too


def _plain(status: str, body: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
    return status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))], body


def _environment(request: Request, source: str) -> dict[str, Any]:
    environment: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "REQUEST_URI": request.target,
        "REMOTE_ADDR": source,
    }
    if request.headers:
        environment.update(request.headers)
    if request.body:
        environment |= {"CONTENT_LENGTH": str(len(request.body)), "wsgi.input": io.BytesIO(request.body)}
    return environment
