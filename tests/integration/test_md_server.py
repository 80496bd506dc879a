"""md-server as a process: several guests by their source addresses on loopback, requests that no client library would send,
clients that are slow or greedy, its lock, its port and its end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import ipaddress
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.metadata import MetadataDocument, MetadataStore
from common.model import Address
from md_server import server as md_server
from md_server.listening import listen
from md_server.server import GuestServer
from tests.support.processes import free_port, spawn, stop, wait_until

SERVER = "127.0.0.1"
GUEST_1, GUEST_2, STRANGER = "127.0.0.11", "127.0.0.12", "127.0.0.99"
# Answered without reading on: what the client still sends meets a closed socket, and its reset may overtake the answer.
CUT_SHORT = (b"413", b"431")
MD_SERVER = [sys.executable, "-m", "md_server.main"]


def document(number: int, address: str) -> MetadataDocument:
    return MetadataDocument(
        UUID(int=number), f"vm-{number}", addresses=(Address("default", f"52:54:00:00:00:{number:02x}", address),)
    )


def ask(port: int, source: str, path: str = "/latest/meta-data/instance-id", method: str = "GET") -> tuple[int, bytes]:
    """Status and body of one request from *source*."""
    connection = http.client.HTTPConnection(SERVER, port, timeout=10, source_address=(source, 0))
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection((SERVER, port), timeout=10, source_address=(source, 0))


def raw(port: int, source: str, request: bytes) -> bytes:
    """All that comes back for *request*, sent as it is."""
    with connect(port, source) as connection:
        with contextlib.suppress(OSError):  # answered and closed before all was sent
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes; a reset is a close."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


@dataclasses.dataclass
class Service:
    """A running md-server."""

    process: subprocess.Popen[bytes]
    port: int
    store: MetadataStore
    arguments: list[str]
    log: Path


def start(folder: Path, port: int) -> Service:
    arguments = ["--listen", f"{SERVER}:{port}", "--state-dir", str(folder / "state"), "--run-dir", str(folder / "run")]
    (folder / "compute.yaml").write_text("name: h1\nlog: {level: debug}\n")
    arguments = ["--config", str(folder / "compute.yaml"), *arguments]
    log = folder / "md-server.log"
    process = spawn([*MD_SERVER, *arguments], log=log)

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            ask(port, GUEST_1)
        except OSError:
            return False
        return True

    wait_until(is_up, timeout_seconds=15, what="md-server answers", evidence=log.read_text)
    return Service(process, port, MetadataStore(folder / "state" / "metadata"), arguments, log)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One md-server for all tests that leave it running."""
    found = start(tmp_path_factory.mktemp("md-server"), free_port())
    yield found
    assert stop(found.process) == 0, found.log.read_text()


@pytest.fixture
def service(running: Service) -> Service:
    """A running md-server that knows no guest yet."""
    for uuid in running.store.list():
        running.store.remove(uuid)
    return running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """An md-server for a test that ends it."""
    found = start(tmp_path, free_port())
    yield found
    stop(found.process)


def test_each_guest_gets_its_own_at_once_and_nothing_once_it_is_gone(service):
    assert ask(service.port, GUEST_1)[0] == 404
    service.store.write(document(1, GUEST_1))
    service.store.write(document(2, GUEST_2))
    assert ask(service.port, GUEST_1) == (200, str(UUID(int=1)).encode())
    assert ask(service.port, GUEST_2) == (200, str(UUID(int=2)).encode())
    assert ask(service.port, STRANGER)[0] == 404
    service.store.write(dataclasses.replace(document(1, GUEST_1), hostname="renamed"))
    assert ask(service.port, GUEST_1, "/latest/meta-data/hostname") == (200, b"renamed")
    service.store.remove(UUID(int=1))
    assert ask(service.port, GUEST_1)[0] == 404
    assert ask(service.port, GUEST_2)[0] == 200


def test_a_document_that_is_written_over_and_over_is_never_served_old(service):
    """However fast it changes, and also after it was left alone for so long that it is kept."""

    def rewrite(number: int) -> None:
        service.store.write(dataclasses.replace(document(1, GUEST_1), hostname=f"name-{number:03}"))

    asking, seen = threading.Event(), []

    def guest() -> None:
        while not asking.is_set():
            seen.append(ask(service.port, GUEST_1, "/latest/meta-data/hostname"))

    rewrite(0)
    stamp = service.store.stamp(GUEST_1)
    assert stamp is not None
    wait_until(lambda: stamp.is_settled(time.time_ns()), timeout_seconds=10, what="the document counts as old")
    thread = threading.Thread(target=guest)
    thread.start()
    try:
        for number in range(1, 100):
            rewrite(number)
            assert ask(service.port, GUEST_1, "/latest/meta-data/hostname") == (200, f"name-{number:03}".encode())
    finally:
        asking.set()
        thread.join(10)
    assert {status for status, _ in seen} == {200}
    assert seen == sorted(seen)


def test_a_connection_serves_one_request_after_the_other(service):
    service.store.write(document(1, GUEST_1))
    connection = http.client.HTTPConnection(SERVER, service.port, timeout=10, source_address=(GUEST_1, 0))
    for _ in range(5):
        connection.request("GET", "/openstack/latest/meta_data.json")
        used = connection.sock
        assert connection.getresponse().read().startswith(b"{")
        assert connection.sock is used
    connection.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /latest/meta-data%2Finstance-id HTTP/1.1", b"400"),
        (b"GET /latest%2fmeta-data/instance-id HTTP/1.1", b"400"),
        (b"GET //latest/meta-data/instance-id HTTP/1.1", b"400"),
        (b"GET /latest/meta-data//instance-id HTTP/1.1", b"400"),
        (b"GET /../latest/meta-data/instance-id HTTP/1.1", b"400"),
        (b"GET /latest/../../../etc/passwd HTTP/1.1", b"400"),
        (b"GET /latest/%2e%2e/%2e%2e/etc/passwd HTTP/1.1", b"400"),
        (b"GET /latest/..%252f..%252fetc HTTP/1.1", b"400"),
        (b"GET /\xff\xfe HTTP/1.1", b"400"),
        (b"GET /%00 HTTP/1.1", b"400"),
        (b"GET latest HTTP/1.1", b"400"),
        (b"GET /" + b"a" * 4000 + b" HTTP/1.1", b"400"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1", b"431"),
        (b"get / HTTP/1.1", b"400"),
        (b"GET http://[ HTTP/1.1", b"400"),
        (b" ", b"400"),
        (b"GET", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"PUT /latest/api/token HTTP/1.1", b"400"),
        (b"PUT /latest HTTP/1.1", b"405"),
        (b"OPTIONS * HTTP/1.1", b"400"),
        (b"TRACE / HTTP/1.1", b"405"),
        (b"GET http://10.0.0.1/latest/meta-data/instance-id HTTP/1.1", b"200"),
        (b"GET /latest/meta-data/instance-id HTTP/1.0", b"200"),
    ],
)
def test_requests_that_no_client_library_sends(service, request_line, status):
    service.store.write(document(1, GUEST_1))
    answer = raw(service.port, GUEST_1, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1:2] == [status] or (answer == b"" and status in CUT_SHORT), answer
    assert ask(service.port, GUEST_1)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Content-Length: 99999999\r\n", b"413"),
        (b"Content-Length: 4097\r\n", b"413"),
        (b"Content-Length: -1\r\n", b"400"),
        (b"Content-Length: x\r\n", b"400"),
        (b"Transfer-Encoding: x\r\n", b"501"),
        (b"X: " + b"a" * 9000 + b"\r\n", b"431"),
        (b"X-Forwarded-For: 127.0.0.12\r\nForwarded: for=127.0.0.12\r\n", b"404"),
    ],
)
def test_headers_that_no_client_library_sends(service, headers, status):
    service.store.write(document(2, GUEST_2))
    answer = raw(service.port, GUEST_1, b"GET / HTTP/1.1\r\nHost: 127.0.0.12\r\n" + headers + b"\r\n")
    assert answer.split(b" ")[1:2] == [status] or (answer == b"" and status in CUT_SHORT), answer


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT"])
@pytest.mark.parametrize("path", [b"/latest/meta-data/instance-id", b"/latest/nothing", b"/../x"])
def test_an_answer_names_its_length_once(service, method, path):
    """Clients refuse two, even equal ones."""
    service.store.write(document(1, GUEST_1))
    answer = raw(service.port, GUEST_1, method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    lengths = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    whole = raw(service.port, GUEST_1, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert lengths == [str(len(whole.partition(b"\r\n\r\n")[2] if method == b"HEAD" else body)).encode()]
    assert method != b"HEAD" or not body


def test_a_stranger_learns_nothing_about_who_exists(service):
    service.store.write(document(1, GUEST_1))
    known = raw(service.port, GUEST_1, b"GET /latest/nothing HTTP/1.1\r\nConnection: close\r\n\r\n")
    strange = raw(service.port, STRANGER, b"GET /latest/meta-data/instance-id HTTP/1.1\r\nConnection: close\r\n\r\n")
    lines = [[line for line in answer.split(b"\r\n") if not line.startswith(b"Date:")] for answer in (known, strange)]
    assert lines[0] == lines[1]


def test_pipelined_requests_are_not_piled_up(service):
    service.store.write(document(1, GUEST_1))
    answer = raw(service.port, GUEST_1, b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
    assert 1 <= answer.count(b"HTTP/1.1 200 OK") < 100  # the first of each packet


def test_a_guest_that_takes_all_its_connections_takes_none_of_another_s(service):
    service.store.write(document(1, GUEST_1))
    service.store.write(document(2, GUEST_2))
    greedy = [connect(service.port, GUEST_1) for _ in range(60)]
    try:
        for connection in greedy:
            connection.sendall(b"GET /latest/meta-data/")
        closed = [c for c in greedy[md_server.CONNECTIONS_PER_SOURCE :] if everything(c) == b""]
        assert len(closed) == 60 - md_server.CONNECTIONS_PER_SOURCE
        for _ in range(20):
            assert ask(service.port, GUEST_2)[0] == 200
        greedy[0].sendall(b"instance-id HTTP/1.1\r\n\r\n")  # and those it has go on
        assert greedy[0].recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for connection in greedy:
            connection.close()
    wait_until(lambda: is_served(service.port, GUEST_1), timeout_seconds=5, what="a guest that let go is served again")


def is_served(port: int, source: str) -> bool:
    try:
        return ask(port, source)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_guests_that_do_not_read_hold_up_no_other(service):
    big = "eHh4" * 20000  # 60 kB
    service.store.write(dataclasses.replace(document(1, GUEST_1), user_data_base64=big))
    service.store.write(document(2, GUEST_2))
    deaf = []
    for _ in range(md_server.CONNECTIONS_PER_SOURCE):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.bind((GUEST_1, 0))
        connection.connect((SERVER, service.port))
        connection.sendall(b"GET /latest/user-data HTTP/1.1\r\n\r\n" * 200)
        deaf.append(connection)
    for _ in range(20):
        began = time.monotonic()
        assert ask(service.port, GUEST_2)[0] == 200
        assert time.monotonic() - began < 2
    for connection in deaf:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_and_soon_whatever_its_clients_do(own_service, number):
    own_service.store.write(document(1, GUEST_1))
    held = [connect(own_service.port, GUEST_1) for _ in range(4)]
    held[1].sendall(b"GET / HT")
    held[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
    began = time.monotonic()
    assert stop(own_service.process, with_signal=number) == 0, own_service.log.read_text()
    assert time.monotonic() - began < 2
    assert "message=stopped" in own_service.log.read_text()
    for connection in held:
        connection.close()


def test_killed_and_started_again_it_goes_on_as_before(own_service, tmp_path):
    own_service.store.write(document(1, GUEST_1))
    stop(own_service.process, with_signal=signal.SIGKILL)
    again = start(tmp_path, own_service.port)
    assert ask(again.port, GUEST_1)[0] == 200
    stop(again.process)


def test_a_second_one_says_who_is_in_the_way(service):
    second = subprocess.run([*MD_SERVER, *service.arguments], capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 5
    assert second.stderr.count("\n") == 1
    assert f"held by process {service.process.pid}" in second.stderr


def test_another_server_on_the_port_is_one_clear_line(tmp_path):
    with socket.socket() as other:
        other.bind((SERVER, 0))
        other.listen()
        port = other.getsockname()[1]
        arguments = ["--listen", f"{SERVER}:{port}", "--state-dir", tmp_path, "--run-dir", tmp_path]
        refused = subprocess.run([*MD_SERVER, *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert refused.returncode == 5
    assert refused.stderr.startswith(f"md-server: {SERVER} port {port} is taken by another server")
    assert refused.stderr.count("\n") == 1


class SlowClock:
    """Time that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def says_ok(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class RecordingServer(GuestServer):
    """Notes how long it was ready to sleep."""

    def __init__(self, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self.turns: list[float | None] = []

    def _turn(self, timeout_seconds: float | None) -> None:
        self.turns.append(timeout_seconds)
        super()._turn(timeout_seconds)


@contextlib.contextmanager
def serving(server: GuestServer, clock: SlowClock) -> Iterator[GuestServer]:
    """*server* in a thread of this process."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        clock.now += 60  # also ends the time for answers under way
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def slow_server() -> Iterator[tuple[int, SlowClock]]:
    """The HTTP server alone, in this process, with a clock of ours."""
    clock, port = SlowClock(), free_port()
    with serving(GuestServer(says_ok, listen(ipaddress.ip_address(SERVER), port), clock), clock):
        yield port, clock


def test_while_nobody_is_connected_it_sleeps_until_somebody_is():
    clock, port = SlowClock(), free_port()
    with serving(RecordingServer(says_ok, listen(ipaddress.ip_address(SERVER), port), clock), clock) as server:
        for _ in range(3):
            assert ask(port, GUEST_1)[0] == 200
        wait_until(lambda: server.turns[-1] is None, timeout_seconds=5, what="it sleeps")
    assert [turn for turn in server.turns if turn is not None]  # and not for ever while somebody is


def test_connections_that_ended_unnoticed_do_not_count_against_their_guest():
    clock, port = SlowClock(), free_port()
    server = GuestServer(says_ok, listen(ipaddress.ip_address(SERVER), port), clock)
    for _ in range(3 * md_server.CONNECTIONS_PER_SOURCE):  # all before it takes the first
        with connect(port, GUEST_1) as ended:
            ended.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with connect(port, GUEST_1) as last, serving(server, clock):
        assert serves_ok(last)


def test_with_all_connections_taken_the_next_guest_waits_for_one_to_end(monkeypatch):
    monkeypatch.setattr(md_server, "CONNECTIONS", 3)
    clock, port = SlowClock(), free_port()
    with serving(GuestServer(says_ok, listen(ipaddress.ip_address(SERVER), port), clock), clock):
        taken = [connect(port, f"127.0.0.{20 + n}") for n in range(3)]
        assert all(serves_ok(connection) for connection in taken)
        waiting = connect(port, GUEST_2)
        waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert serves_ok(taken[0])
        waiting.settimeout(0.2)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        waiting.settimeout(10)
        taken[0].close()
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in (*taken, waiting):
            connection.close()


class Exhausted(socket.socket):
    """A listening socket for which the process has no descriptor left, until it has."""

    refusals = 0
    is_exhausted = True

    def accept(self):
        if self.is_exhausted:
            self.refusals += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_a_descriptor_for_the_next_guest_it_tries_once_a_second_and_goes_on_once_it_has_one():
    clock, port = SlowClock(), free_port()
    listening = Exhausted(fileno=listen(ipaddress.ip_address(SERVER), port).detach())
    listening.setblocking(False)
    server = RecordingServer(says_ok, listening, clock)
    with connect(port, GUEST_1) as guest, serving(server, clock):
        wait_until(lambda: len(server.turns) >= 2, timeout_seconds=5, what="it waits")
        assert listening.refusals == 1
        listening.is_exhausted = False
        clock.now += md_server.LOOK_SECONDS
        assert serves_ok(guest)
    assert len(server.turns) < 20


def test_a_body_is_asked_for_where_the_client_waits_to_be_asked(slow_server):
    port, _ = slow_server
    with connect(port, GUEST_1) as guest:
        guest.sendall(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        assert guest.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        guest.sendall(b"body")
        assert guest.recv(65536).endswith(b"\r\n\r\nok")
        assert serves_ok(guest)


def test_a_bug_under_a_request_is_told_and_costs_that_answer_only(caplog):
    clock, port = SlowClock(), free_port()

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/bug":
            raise RuntimeError("of the application")
        return says_ok(environ, start_response)

    server = GuestServer(application, listen(ipaddress.ip_address(SERVER), port), clock)
    with connect(port, GUEST_1) as guest, serving(server, clock):
        for _ in range(3):
            assert ask(port, GUEST_2, "/bug")[0] == 500
        assert serves_ok(guest)
    assert [record.message for record in caplog.records] == ["bug: a request is answered by 500"]


def test_a_connection_that_completes_no_request_is_cut_however_busy_it_looks(slow_server):
    port, clock = slow_server
    idle, trickling, saying, working = (connect(port, GUEST_1) for _ in range(4))
    saying.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
    for _ in range(2):
        trickling.sendall(b"G")  # a byte now and then
        saying.sendall(b"x")
        assert serves_ok(working)
        clock.now += md_server.STEP_SECONDS * 0.6
    assert everything(idle) == b""
    assert everything(trickling) == b""
    assert everything(saying) == b""
    assert serves_ok(working)
    for connection in (idle, trickling, saying, working):
        connection.close()


def serves_ok(connection: socket.socket) -> bool:
    """One request on a connection that stays open."""
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        data = connection.recv(65536)
        if not data:
            return False
        answer += data
    return answer.startswith(b"HTTP/1.1 200")


def test_descriptors_do_not_leak(service):
    service.store.write(document(1, GUEST_1))
    folder = Path(f"/proc/{service.process.pid}/fd")
    ask(service.port, GUEST_1)
    before = len(list(folder.iterdir()))
    for _ in range(50):
        ask(service.port, GUEST_1, "/openstack/latest/meta_data.json")
        raw(service.port, GUEST_1, b"GET / HT")
    wait_until(lambda: len(list(folder.iterdir())) <= before, timeout_seconds=5, what="as many descriptors as before")
