"""An HTTP server of disk images that lets a test decide how fast they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.support.processes import free_port

PIECE = 64 * 1024
PIECE_EVERY_SECONDS = 0.05


class SlowImages:
    """Serves one image under any path, at ``address``.

    Its first *at_once* bytes come at once (-1: not even the headers), the rest in pieces every 50 ms until ``hurry``.
    """

    def __init__(self, image: Path, *, address: str) -> None:
        self.content = image.read_bytes()
        self.at_once = 0
        self.asked, self.left, self._in_a_hurry = threading.Event(), threading.Event(), threading.Event()
        port = free_port()
        self.url = f"http://{address}:{port}"
        self._server = ThreadingHTTPServer((address, port), type("BoundHandler", (_Handler,), {"images": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def begin(self, *, at_once: int) -> None:
        self.at_once = at_once
        for event in (self.asked, self.left, self._in_a_hurry):
            event.clear()

    def hurry(self) -> None:
        """Send what is left of the images under way as fast as it goes."""
        self._in_a_hurry.set()

    def pause(self) -> None:
        self._in_a_hurry.wait(PIECE_EVERY_SECONDS)

    def close(self) -> None:
        self.hurry()
        self._server.shutdown()
        self._server.server_close()

    @property
    def is_in_a_hurry(self) -> bool:
        return self._in_a_hurry.is_set()


class _Handler(BaseHTTPRequestHandler):
    images: ClassVar[SlowImages]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        images = self.images
        images.asked.set()
        try:
            while images.at_once < 0 and not images.is_in_a_hurry:
                images.pause()
            self.send_response(200)
            self.send_header("Content-Length", str(len(images.content)))
            self.end_headers()
            sent = max(0, images.at_once)
            self.wfile.write(images.content[:sent])
            while sent < len(images.content):
                images.pause()
                self.wfile.write(images.content[sent : sent + PIECE])
                sent += PIECE
        except OSError:
            images.left.set()
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def slow_images(image: Path, *, address: str) -> Iterator[SlowImages]:
    images = SlowImages(image, address=address)
    try:
        yield images
    finally:
        images.close()
