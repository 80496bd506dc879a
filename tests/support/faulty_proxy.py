"""An HTTP proxy that breaks on request: between a client and a real server it loses, delays or replaces answers."""

from __future__ import annotations

import enum
import http.client
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tests.support.processes import free_port


class Fault(enum.Enum):
    LOSE_ANSWER = "the server did it, the client hears nothing"
    LOSE_REQUEST = "the connection breaks before the server has seen anything"
    HOLD_ANSWER = "the server did it, its answer does not come until the proxy is released"
    UNAVAILABLE = "503 from something in between"
    ERROR = "500 with Placement's own JSON"
    GARBAGE = "200 with what is no JSON"
    CUT_OFF = "the answer ends in the middle of its body"


@dataclass
class Rule:
    """Do *fault* to the next *times* requests with *method* whose path begins with *path*."""

    fault: Fault
    method: str = ""
    path: str = "/"
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == (self.method or method) and path.startswith(self.path)


class FaultyProxy:
    """Serves on its own port of *address*, where its server is too, until closed.

    *seen* lists every request that reached it, as "METHOD path".
    """

    def __init__(self, upstream_port: int, *, address: str = "127.0.0.1") -> None:
        self.upstream_port, self.address = upstream_port, address
        self.seen: list[str] = []
        self.connections: set[Any] = set()
        self.released = threading.Event()
        self._rules: list[Rule] = []
        self._lock = threading.Lock()
        self.port = free_port()
        handler = type("BoundHandler", (_Handler,), {"proxy": self})
        self._server = _Server((address, self.port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    def inject(self, fault: Fault, method: str = "", path: str = "/", *, times: int = 1, **headers: str) -> Rule:
        rule = Rule(fault, method, path, times, {name.replace("_", "-"): value for name, value in headers.items()})
        with self._lock:
            self._rules.append(rule)
        return rule

    def take_rule(self, method: str, path: str, client: Any) -> Rule | None:
        with self._lock:
            self.seen.append(f"{method} {path}")
            self.connections.add(client)
            for rule in self._rules:
                if rule.fits(method, path):
                    rule.times -= 1
                    return rule
        return None

    def count(self, method: str, path: str = "/") -> int:
        """How many requests with *method* for a path that begins with *path* came."""
        return sum(1 for line in self.seen if line.startswith(f"{method} {path}"))

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client or a server that hung up is what these tests are about."""
        if not isinstance(sys.exception(), (OSError, http.client.HTTPException)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    proxy: ClassVar[FaultyProxy]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        rule = self.proxy.take_rule(self.command, self.path, self.client_address)
        fault = rule.fault if rule else None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault is Fault.LOSE_REQUEST:
            self.close_connection = True
        elif fault in (Fault.UNAVAILABLE, Fault.ERROR):
            self._answer_error(fault, rule.headers if rule else {})
        else:
            self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(self.proxy.address, self.proxy.upstream_port, timeout=60)
        try:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
            upstream.request(self.command, self.path, body=body or None, headers=kept)
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if fault is Fault.LOSE_ANSWER:
            self.close_connection = True
            return
        if fault is Fault.HOLD_ANSWER:
            self.proxy.released.wait(60)
        if fault is Fault.GARBAGE:
            content = b"<html>It works!</html>"
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault is Fault.CUT_OFF:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def _answer_error(self, fault: Fault, headers: dict[str, str]) -> None:
        status, content = 503, b"no server is available to handle this request"
        if fault is Fault.ERROR:
            status = 500
            content = b'{"errors": [{"status": 500, "title": "Internal Server Error", "detail": "The server has erred.\\n\\n (sqlite3) x  "}]}'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()
