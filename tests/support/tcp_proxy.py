"""A TCP proxy that a test can make deaf, mute or cut: what the network does between a client and a server."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

from tests.support.processes import free_port

PIECE = 64 * 1024


class TcpProxy:
    """Listens on its own port and forwards to *upstream_port* on loopback, until ``close``."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.port = free_port()
        self.accepted = 0
        """How many connections it has forwarded so far."""
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._refuses = False
        self._listener = self._listen()
        threading.Thread(target=self._accept, name=f"proxy {self.port}", daemon=True).start()

    def lose_answers(self) -> None:
        """Requests on the connections that are open now still arrive, their answers do not. New connections are well."""
        with self._lock:
            for pair in self._pairs:
                pair.loses_answers = True

    def refuse(self, refuses: bool = True) -> None:
        """Hang up on whoever connects from now on."""
        self._refuses = refuses

    def cut(self) -> None:
        """Break the connections that are open now."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def close(self) -> None:
        self._refuses = True
        # An accept under way is not ended by close alone.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        return listener

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            try:
                upstream = socket.create_connection(("127.0.0.1", self.upstream_port), timeout=5)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, upstream)
            if self._is_kept(pair):
                threading.Thread(target=pair.forward, daemon=True).start()
            else:
                pair.close()

    def _is_kept(self, pair: _Pair) -> bool:
        """Whether *pair*, which is noted then, may stay: connections may have been refused and cut while it was made."""
        with self._lock:
            if self._refuses:
                return False
            self._pairs.append(pair)
            self.accepted += 1
            return True


class _Pair:
    """The two sides of one connection."""

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.client, self.upstream = client, upstream
        self.loses_answers = False

    def forward(self) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self.client, selectors.EVENT_READ, self.upstream)
                selector.register(self.upstream, selectors.EVENT_READ, self.client)
                while all(self._pass_on(key.fileobj, key.data) for key, _ in selector.select()):
                    pass
            except (OSError, ValueError):  # the other thread closed them
                pass
            finally:
                self.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> bool:
        piece = source.recv(PIECE)
        if piece and not (self.loses_answers and source is self.upstream):
            target.sendall(piece)
        return bool(piece)

    def close(self) -> None:
        for side in (self.client, self.upstream):
            with contextlib.suppress(OSError):  # it may be closed already
                side.shutdown(socket.SHUT_RDWR)
            side.close()
