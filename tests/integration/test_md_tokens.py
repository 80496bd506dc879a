"""Session tokens and guests' reports over real connections: how far an answer travels, headers that come twice, bodies in pieces,
and a server that was killed. What a token is good for is in tests/gabbits.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from common.metadata import MetadataDocument, MetadataStore
from common.model import Address, MetadataAccess
from common.renderings.guest import Host
from common.reports import GuestReport
from md_server import hops
from md_server.app import READY, Application
from md_server.listening import listen
from md_server.lookup import Lookup
from md_server.server import GuestServer
from md_server.tokens import SECRET_NAME
from tests.integration.test_md_server import connect, everything, start
from tests.support.processes import free_port, stop, wait_until

GUEST, OTHER = "127.0.0.21", "127.0.0.22"
PUT = b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
USUAL_TTL = int(Path("/proc/sys/net/ipv4/ip_default_ttl").read_text())
USUAL_HOPS = int(Path("/proc/sys/net/ipv6/conf/default/hop_limit").read_text())


def document(number: int, address: str, **fields: object) -> MetadataDocument:
    card = Address("default", f"52:54:00:00:00:{number:02x}", address, 8)
    return MetadataDocument(UUID(int=number), f"vm-{number}", addresses=(card,), **fields)


@dataclass
class Running:
    """The server in a thread of this process, and what was reported to it."""

    port: int
    store: MetadataStore
    reports: list[GuestReport]


@contextlib.contextmanager
def running(folder: Path, address: str) -> Iterator[Running]:
    store, reports, port = MetadataStore(folder / "metadata"), [], free_port()
    application = Application(Lookup(store, Host("h1", "x86_64")), on_report=lambda uuid, report: reports.append(report))
    server = GuestServer(application, listen(ipaddress.ip_address(address), port))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Running(port, store, reports)
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, "127.0.0.1") as found:
        found.store.write(document(1, GUEST))
        found.store.write(document(2, OTHER))
        yield found


def answer_to(connection: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer on a connection that stays open."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += receive(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < sum(lengths):
        body += receive(connection)
    return int(head.split(b" ")[1]), body


def receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    assert data, "the connection was closed"
    return data


def asked(*headers: bytes, path: bytes = b"/latest/meta-data/instance-id") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def shown(token: bytes) -> bytes:
    return b"X-aws-ec2-metadata-token: " + token


@contextlib.contextmanager
def wire(port: int) -> Iterator[Callable[[bytes], list[int]]]:
    """Looks at what really leaves *port*: the times to live, or hop limits, of all packets that held some bytes."""
    packets: list[bytes] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as tap:  # 3: ETH_P_ALL
        tap.bind(("lo", 3))
        tap.setblocking(False)

        def seen(content: bytes) -> list[int]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packets.append(tap.recv(1 << 17))
            return [hops_of(packet) for packet in packets if content in packet and source_port(packet) == port]

        yield seen


def hops_of(packet: bytes) -> int:
    return packet[8] if packet[0] >> 4 == 4 else packet[7]


def source_port(packet: bytes) -> int:
    at = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
    found: tuple[int] = struct.unpack_from("!H", packet, at)
    return found[0]


def test_the_answer_that_holds_a_token_goes_no_further_than_the_guest(server):
    instance = str(UUID(int=1)).encode()
    with wire(server.port) as seen, connect(server.port, GUEST) as guest:
        assert answer_to(guest, asked())[1] == instance
        status, token = answer_to(guest, PUT)
        assert (status, set(seen(token))) == (200, {1})
        assert set(seen(instance)) == {USUAL_TTL}
        assert answer_to(guest, asked(shown(token), path=b"/latest/meta-data/hostname"))[1] == b"vm-1"
        assert set(seen(b"vm-1")) == {USUAL_TTL}
        assert set(seen(answer_to(guest, PUT)[1])) == {1}


def test_another_connection_is_not_limited_meanwhile(server):
    with wire(server.port) as seen, connect(server.port, GUEST) as guest, connect(server.port, OTHER) as other:
        answer_to(guest, PUT)
        assert answer_to(other, asked())[0] == 200
        assert set(seen(str(UUID(int=2)).encode())) == {USUAL_TTL}


def test_the_answer_goes_as_far_as_the_document_says(server):
    server.store.write(document(1, GUEST, hop_limit=2))  # for a container in the guest
    with wire(server.port) as seen, connect(server.port, GUEST) as guest:
        assert set(seen(answer_to(guest, PUT)[1])) == {2}


def test_a_refused_token_and_one_that_ends_its_connection(server):
    with wire(server.port) as seen, connect(server.port, GUEST) as guest:
        assert answer_to(guest, PUT.replace(b"60", b"0"))[0] == 400
        assert set(seen(b"400 Bad Request")) == {USUAL_TTL}
        status, token = answer_to(guest, PUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (status, set(seen(token)), everything(guest)) == (200, {1}, b"")


def test_the_same_over_ipv6(tmp_path):
    with running(tmp_path, "::1") as server, wire(server.port) as seen:
        server.store.write(document(1, "::1"))
        with socket.create_connection(("::1", server.port), timeout=10) as guest:
            assert set(seen(answer_to(guest, PUT)[1])) == {1}
            assert answer_to(guest, asked())[0] == 200
            assert set(seen(str(UUID(int=1)).encode())) == {USUAL_HOPS}


def test_the_limit_stays_while_anything_is_unconfirmed():
    """Else a copy that is sent once more would travel as far as any packet."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
    with client, accepted:
        hops.limit(accepted, 1)
        accepted.sendall(b"x" * 100_000)
        assert not hops.lift(accepted)
        assert accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 1
        left = 100_000
        while left:
            left -= len(receive(client))
        wait_until(lambda: hops.lift(accepted), timeout_seconds=5, what="all is confirmed")
        assert accepted.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == USUAL_TTL


@pytest.mark.parametrize("spelling", [b"X-aws-ec2-metadata-token", b"x-AWS-ec2-metadata-TOKEN"])
def test_a_token_that_comes_twice_is_no_token(server, spelling):
    with connect(server.port, GUEST) as guest:
        token = answer_to(guest, PUT)[1]
        assert answer_to(guest, asked(shown(token)))[0] == 200
        assert answer_to(guest, asked(shown(token), spelling + b": " + token))[0] == 400
        assert answer_to(guest, asked(shown(token), spelling + b":"))[0] == 400
        assert answer_to(guest, asked(shown(token) + b"\r\n more"))[0] == 401
        assert answer_to(guest, asked(b"X_aws_ec2_metadata_token: wrong"))[0] == 200  # which is no such header
        assert answer_to(guest, PUT.replace(b": 60", b": 60\r\nx-aws-ec2-metadata-token-ttl-seconds: 60"))[0] == 400


def test_one_guest_s_token_is_worth_nothing_for_another(server):
    server.store.write(document(2, OTHER, access=MetadataAccess.REQUIRED))
    with connect(server.port, GUEST) as guest, connect(server.port, OTHER) as other:
        token = answer_to(guest, PUT)[1]
        assert [answer_to(guest, asked(shown(token)))[0], answer_to(other, asked(shown(token)))[0]] == [200, 401]
        assert answer_to(other, asked(shown(answer_to(other, PUT)[1]))) == (200, str(UUID(int=2)).encode())


@pytest.mark.parametrize(
    "pieces",
    [
        (b"Content-Length: 5\r\n\r\nready",),
        (b"Content-Length: 5\r\n\r\n", b"ready"),
        (b"Content-Length: 5\r\n\r\nre", b"ady"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n",),
        (b"Transfer-Encoding: chunked\r\n\r\n2\r\nre\r\n", b"3\r\nady\r\n0\r\n\r\n"),
    ],
)
def test_a_report_is_taken_however_it_comes(server, pieces):
    head = f"POST {READY} HTTP/1.1\r\nContent-Type: text/plain\r\n".encode()
    with connect(server.port, GUEST) as guest:
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest.sendall(head)
        for piece in pieces[:-1]:
            guest.sendall(piece)
        assert answer_to(guest, pieces[-1]) == (204, b"")
        assert answer_to(guest, asked())[0] == 200  # on the same connection
    assert [report.message for report in server.reports] == ["ready"]


def test_a_report_that_is_too_long_is_refused(server):
    with connect(server.port, GUEST) as guest:
        guest.sendall(f"POST {READY} HTTP/1.1\r\nContent-Length: 4097\r\n\r\n".encode())
        assert guest.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert server.reports == []


def test_a_report_that_does_not_come_keeps_nobody_waiting(server):
    with connect(server.port, GUEST) as slow, connect(server.port, OTHER) as other:
        slow.sendall(f"POST {READY} HTTP/1.1\r\nContent-Length: 9\r\n\r\nx".encode())
        assert answer_to(other, asked())[0] == 200


def test_a_token_outlives_the_server(tmp_path):
    service = start(tmp_path, free_port())
    service.store.write(document(1, GUEST, access=MetadataAccess.REQUIRED))
    with connect(service.port, GUEST) as guest:
        token = answer_to(guest, PUT)[1]
    secret = tmp_path / "run" / SECRET_NAME
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    service.process.kill()
    service.process.wait(10)
    again = start(tmp_path, service.port)
    try:
        with connect(again.port, GUEST) as guest:
            assert answer_to(guest, asked(shown(token)))[0] == 200
            assert answer_to(guest, asked())[0] == 401
        assert secret.read_bytes() not in (tmp_path / "md-server.log").read_bytes()
        assert token not in (tmp_path / "md-server.log").read_bytes()
    finally:
        assert stop(again.process) == 0
