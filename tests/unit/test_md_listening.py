"""Who is at the other end of a connection, and several listening sockets that one thread serves and exchanges."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Any

import pytest

from md_server.listening import Listener, listen, source_of
from md_server.server import GuestServer
from tests.support.processes import wait_until

BRIDGE = 7


@pytest.mark.parametrize(
    ("peer", "interface", "source"),
    [
        (("192.168.122.5", 4711), BRIDGE, "192.168.122.5"),
        (("fd00::5", 4711, 0, 0), BRIDGE, "fd00::5"),
        (("fe80::5", 4711, 0, BRIDGE), BRIDGE, "fe80::5"),
        (("fe80::5", 4711, 0, 8), BRIDGE, "fe80::5%8"),  # of another link, where anybody may have this address
        (("fe80::5", 4711, 0, BRIDGE), 0, "fe80::5%7"),
    ],
)
def test_an_address_of_one_link_counts_on_the_bridge_alone(peer: tuple[Any, ...], interface: int, source: str) -> None:
    assert source_of(peer, interface) == source


def application(environ: Mapping[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    body = environ["REMOTE_ADDR"].encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def ask(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.fixture
def first() -> socket.socket:
    return listen(ip_address("127.0.0.1"), 0)


@pytest.fixture
def server(first: socket.socket) -> Iterator[GuestServer]:
    made = GuestServer(application, first)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_further_sockets_are_served_exchanged_and_closed(server: GuestServer, first: socket.socket) -> None:
    former, newer = listen(ip_address("127.0.0.2"), 0), listen(ip_address("::1"), 0)
    server.serve_also([Listener(former)])
    assert (ask(first), ask(former)) == ("127.0.0.1", "127.0.0.1")
    server.serve_also([Listener(newer)])
    assert (ask(first), ask(newer)) == ("127.0.0.1", "::1")
    wait_until(lambda: former.fileno() == -1, timeout_seconds=5, what="the former socket is closed")
    server.serve_also([])
    wait_until(lambda: newer.fileno() == -1, timeout_seconds=5, what="the newer socket is closed")
    assert ask(first) == "127.0.0.1"


def test_all_are_closed_at_the_end(first: socket.socket) -> None:
    made, also = GuestServer(application, first), listen(ip_address("127.0.0.2"), 0)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    made.serve_also([Listener(also)])
    ask(also)
    made.stop()
    thread.join(5)
    assert (first.fileno(), also.fileno()) == (-1, -1)


def test_while_there_is_no_room_new_sockets_wait_with_the_others(
    server: GuestServer, first: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("md_server.server.CONNECTIONS", 1)
    also = listen(ip_address("127.0.0.2"), 0)
    with contextlib.closing(socket.create_connection(first.getsockname()[:2], timeout=5)) as busy:
        wait_until(lambda: not server._is_accepting, timeout_seconds=5, what="no more are accepted")
        server.serve_also([Listener(also)])
        answers: list[str] = []
        waiting = threading.Thread(target=lambda: answers.append(ask(also)), daemon=True)
        waiting.start()
        busy.close()
        waiting.join(5)
    assert answers == ["127.0.0.1"]
