"""The HTTP server under the application: waitress, with the bounds that guests who may be slow or hostile make necessary.

waitress lets any client keep a connection open by a byte now and then, lets one that does not read block a worker thread for
ever, and counts connections only in total. Here a connection must complete a request every ``STEP_SECONDS`` or is cut, a source
has at most ``CONNECTIONS_PER_SOURCE``, and pipelined requests are not served. ``main`` calls it; knows no documents.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from common.errors import Conflict, EcomputeError
from common.metadata import SERVER_NAME
from md_server.netlink import IpAddress

IP_FREEBIND, IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h: bind to an address that is not there yet

THREADS = 4
CONNECTIONS = 512
CONNECTIONS_PER_SOURCE = 16
STEP_SECONDS = 15.0
HEADER_BYTES = 8192
BODY_BYTES = 16384
FINISH_SECONDS = 1.0  # at a stop, for the requests in hand


class GuestChannel(HTTPChannel):  # type: ignore[misc]
    """One connection of one guest."""

    def __init__(self, server: GuestServer, *arguments: Any, **more: Any) -> None:
        self.served = 0  # requests, the current one not counted
        self._watched = (0, server.clock())  # what served was when last looked at, and since when
        self._has_pipelined = False
        super().__init__(server, *arguments, **more)

    def received(self, data: bytes) -> bool:
        """Take *data*; of the requests that wait, only one is kept.

        Answers that nobody reads must not pile up. The connection is closed after the next answer, by which the client knows
        which requests to repeat.
        """
        taken: bool = super().received(data)
        with self.requests_lock:
            if len(self.requests) > 1:
                for request in self.requests[1:]:
                    request.close()
                del self.requests[1:]
                self._has_pipelined = True
        return taken

    def service(self) -> None:
        """Called by a worker thread: answer the first request."""
        super().service()
        self.served += 1
        with self.requests_lock:
            if self._has_pipelined:
                self.close_when_flushed = True
                self.server.pull_trigger()

    def is_overdue(self, now: float) -> bool:
        """Whether the connection completed no request for ``STEP_SECONDS``, be it idle, slow to ask or slow to read."""
        if self._watched[0] != self.served:
            self._watched = (self.served, now)
        return now - self._watched[1] > STEP_SECONDS

    def cut(self) -> None:
        """Close from the main loop; a thread that waits to write into the connection is released."""
        self.will_close = True
        # Not closed here: the loop may have this descriptor in hand. The end of the stream makes it come by.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class GuestServer(TcpWSGIServer):  # type: ignore[misc]
    """Serves *application* on the listening socket until ``stop``."""

    def __init__(
        self, application: Callable[..., Any], listening: socket.socket, clock: Callable[[], float] = time.monotonic
    ) -> None:
        adjustments = Adjustments(
            sockets=[listening],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            max_request_header_size=HEADER_BYTES,
            max_request_body_size=BODY_BYTES,
            cleanup_interval=1,
            asyncore_use_poll=True,  # select() ends at descriptor 1023, and fails on one that was closed meanwhile
            log_socket_errors=False,
            clear_untrusted_proxy_headers=False,  # nobody looks at them
            ident=SERVER_NAME,
        )
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a line per request that waits for a thread
        self.clock = clock
        self._stopping = threading.Event()
        self._dispatcher = ThreadedTaskDispatcher()
        self._dispatcher.set_thread_count(THREADS)
        info = (listening.family, listening.type, listening.proto, listening.getsockname())
        super().__init__(
            application, {}, _sock=listening, dispatcher=self._dispatcher, adj=adjustments, sockinfo=info, bind_socket=False
        )

    def channel_class(
        self, _server: GuestServer, connection: socket.socket, source: tuple[Any, ...], adjustments: Adjustments, map: Any
    ) -> None:
        """What waitress calls for a new connection."""
        open_now = sum(1 for channel in self.active_channels.values() if channel.addr[0] == source[0])
        if open_now >= CONNECTIONS_PER_SOURCE:
            connection.close()
            return
        GuestChannel(self, connection, source, adjustments, map=map)

    def maintenance(self, now: float) -> None:  # noqa: ARG002 - waitress's wall clock
        """Called by the loop once a second."""
        moment = self.clock()
        for channel in list(self.active_channels.values()):
            if channel.is_overdue(moment):
                channel.cut()

    def run(self) -> None:
        """Serve until ``stop``; then finish the requests in hand, for at most ``FINISH_SECONDS``, and close."""
        while not self._stopping.is_set():
            self._turn(1.0)
        self.accepting = False
        wasyncore.dispatcher.close(self)  # no new connections
        until = self.clock() + FINISH_SECONDS
        while self.clock() < until and any(c.requests or c.total_outbufs_len for c in self.active_channels.values()):
            self._turn(0.05)
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        self._dispatcher.shutdown(timeout=0.2)
        self.trigger.close()

    def stop(self) -> None:
        """End ``run``, from any thread or a signal handler."""
        self._stopping.set()
        self.pull_trigger()

    def _turn(self, timeout_seconds: float) -> None:
        wasyncore.loop(timeout=timeout_seconds, use_poll=True, map=self._map, count=1)


def listen(address: IpAddress, port: int) -> socket.socket:
    """A listening socket on *address*, which need not be on any interface yet.

    Raises:
        Conflict: another server has the port.
        EcomputeError: the kernel refused.
    """
    is_v4 = isinstance(address, ipaddress.IPv4Address)
    listening = socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    where = f"{address} port {port}"
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(*((socket.IPPROTO_IP, IP_FREEBIND) if is_v4 else (socket.IPPROTO_IPV6, IPV6_FREEBIND)), 1)
        listening.bind((str(address), port))
        listening.listen(1024)
        listening.setblocking(False)
    except PermissionError as error:
        listening.close()
        raise EcomputeError(f"{where} may not be listened on: run as root, or with CAP_NET_BIND_SERVICE") from error
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            advice = f"see which one by ss -ltnp 'sport = :{port}', and stop it or set metadata.port"
            raise Conflict(f"{where} is taken by another server: {advice}") from error
        raise EcomputeError(f"{where} cannot be listened on: {error.strerror}") from error
    return listening


def allow_descriptors(wanted: int = 2 * CONNECTIONS + 64) -> None:
    """Let this process have *wanted* open files if it may: without one for each connection the server would only spin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
