"""A real HTTP server of images that answers each path as a test scripts it, and all the ways in which one misbehaves."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Callable

from tests.support.processes import free_port

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class ImageServer:
    """Answers each path as the test scripted it, and remembers what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.path)
                server.headers.append(dict(self.headers))
                with contextlib.suppress(OSError):
                    server.answers.get(self.path, status(404))(self)

            def end_headers(self) -> None:
                self.send_header("Connection", "close")
                super().end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.port = free_port()
        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def status(code: int, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def body(
    content: bytes, *, length: int | None = None, says_length: bool = True, pause: Callable[[int], object] = lambda _: None,
    **headers: str,
) -> Answer:  # fmt: skip
    """*content* in pieces of 256 KiB, *pause* called with what was sent before each; *length* is what the header claims."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if says_length:
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for start in range(0, len(content), 256 * 1024):
            pause(start)
            handler.wfile.write(content[start : start + 256 * 1024])

    return answer


def chunked(content: bytes, *, is_whole: bool = True) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 100_000):
            piece = content[start : start + 100_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if is_whole:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


class Resumable:
    """*content* for whole and for a range; the first *breaks* answers break off after *piece* bytes.

    By a reset, where *is_reset*: what the other side had not read yet is then lost.
    """

    def __init__(
        self, content: bytes, *, breaks: int = 1, piece: int = 1_000_000, is_reset: bool = False, **headers: str
    ) -> None:
        self.is_reset = is_reset
        self.content, self.breaks, self.piece, self.headers = content, breaks, piece, headers
        self.ignores_ranges = False
        self.status_between: list[int] = []  # answered to the next requests for a range instead
        self.content_range = "bytes {first}-{last}/{total}"
        self.ranges: list[str] = []

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted, condition = handler.headers.get("Range", ""), handler.headers.get("If-Range")
        if wanted:
            self.ranges.append(wanted)
            if self.status_between:
                status(self.status_between.pop(0))(handler)
                return
        valid = condition in (self.headers.get("ETag"), self.headers.get("Last_Modified"))
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and valid and not self.ignores_ranges else 0
        is_part = bool(wanted) and valid and not self.ignores_ranges
        handler.send_response_only(206 if is_part else 200)
        handler.send_header("Date", "Tue, 01 Jul 2025 12:00:00 GMT")
        for name, value in self.headers.items():
            handler.send_header(name.replace("_", "-"), value)
        total = len(self.content)
        if is_part:
            handler.send_header("Content-Range", self.content_range.format(first=first, last=total - 1, total=total))
        handler.send_header("Content-Length", str(total - first))
        handler.end_headers()
        breaks_off, self.breaks = self.breaks > 0, self.breaks - 1
        rest = self.content[first:]
        handler.wfile.write(rest[: self.piece] if breaks_off else rest)
        handler.close_connection = True
        if breaks_off and self.is_reset:  # by closing a socket that may not linger
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.wfile.close()
            handler.rfile.close()
            handler.connection.close()
