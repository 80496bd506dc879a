"""md-server in a storm of guests that boot, against nginx with the same bytes as files.

200 guests, each from an address of its own (127.1.x.y), ask what cloud-init asks at a first boot: the sequence of its OpenStack
data source (33 requests, the one that our guests choose) for three of four guests, that of its EC2 one (29) for the fourth, as
recorded in ``benchmarks/data``; each request on a connection of its own, as cloud-init does it. Two storms: *as hosts boot*,
the guests beginning one after the other within ten seconds; and *all at once*, each sending its next request when it has the
answer to the last, which tells what the server can do, and where latency is nothing but waiting in line.

nginx has one worker. Either server has one core, the guests the other. What the server does with its core is compared in
processor time per request, which neither the guests' own speed nor other work on the machine blurs.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from benchmarks import tools
from benchmarks.guest_storm import Plan, Seen
from benchmarks.measure import Bench, Figure, Outcome, Plot, ratio
from common.metadata import SETTLE_NS, MetadataDocument, MetadataStore
from common.model import Address
from common.renderings.guest import Guest, Host
from md_server.app import resource
from md_server.server import CONNECTIONS_PER_SOURCE
from tests.support.processes import ROOT, free_port, spawn, stop, wait_until

GUESTS = 200
SERVER = "127.0.0.1"
BOOT_SECONDS = 10.0
OURS, PEER, BESIDE = "md-server", "nginx", "md-server beside 16 slow connections"
_SHORT = {OURS: OURS, PEER: PEER, BESIDE: "beside-slow"}  # in names of figures
_HARMFUL = "127.1.99.1"
REQUESTS = json.loads((Path(__file__).parent.parent / "data" / "cloud_init_requests.json").read_text())
HOST = Host("bench", "x86_64")
USER_DATA = b"#cloud-config\n" + b"# twenty lines of what people put here, about one kilobyte of it\n" * 20
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEmVhMFl3F9MsVlrXyGgH5mCmnlMbUyVVj3+sYyCLGGs alice@laptop"


def run(bench: Bench) -> Outcome:
    """Both storms on both servers, turn and turn about."""
    documents = [document(number) for number in range(GUESTS)]
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(md_server(bench.directory / OURS, documents))}
        program = tools.nginx()
        if program is None:
            bench.say("no nginx here (packaging/setup-host.sh --tools): no comparison")
        else:
            servers[PEER] = stack.enter_context(nginx(bench.directory / PEER, program, documents))
        settled_at = (time.time_ns() + SETTLE_NS) / 1e9
        wait_until(lambda: time.time() > settled_at, timeout_seconds=10, what="documents as old as when a guest has booted")
        found = {} if bench.is_check else _boot_storms(bench, servers, documents)
        at_once = _storms_at_once(bench, servers, documents)
        memory = servers[OURS].rss_mb()
    if bench.is_check:
        return Outcome(_guarded(at_once))
    figures = [*_boot_figures(found), *_at_once_figures(at_once), *_guarded(at_once)]
    figures.append(Figure("metadata.rss", "memory of md-server after the storms", memory, "MB", at_most=45))
    return Outcome(figures, [_plot(found)])


@dataclass(frozen=True)
class Sample:
    """One storm on one server."""

    seen: Seen
    server_cpu_seconds: float

    @property
    def per_second(self) -> float:
        return len(self.seen.latencies) / self.seen.seconds

    @property
    def cpu_per_request(self) -> float:
        return self.server_cpu_seconds / len(self.seen.latencies)

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.seen.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


Samples = Mapping[str, Sequence[Sample]]


def _boot_storms(bench: Bench, servers: Mapping[str, Server], documents: Sequence[MetadataDocument]) -> Samples:
    """Each server as it started, md-server having read nothing yet; and md-server beside a guest that means harm."""
    found: dict[str, list[Sample]] = {name: [] for name in (*servers, BESIDE)}
    for number in range(min(bench.runs, 3)):
        bench.say(f"guests that boot, {number + 1}")
        for name, server in servers.items():
            found[name].append(storm(server, documents, BOOT_SECONDS))
        with slow_connections(servers[OURS]):
            found[BESIDE].append(storm(servers[OURS], documents, BOOT_SECONDS))
    return found


def _storms_at_once(bench: Bench, servers: Mapping[str, Server], documents: Sequence[MetadataDocument]) -> Samples:
    found: dict[str, list[Sample]] = {name: [] for name in servers}
    bench.say("guests all at once")
    for server in servers.values():
        storm(server, documents)
    for _ in range(bench.runs):
        for name, server in servers.items():
            found[name].append(storm(server, documents))
    return found


def _guarded(at_once: Samples) -> list[Figure]:
    if PEER not in at_once:
        return []
    costs = {name: [sample.cpu_per_request for sample in samples] for name, samples in at_once.items()}
    says = "processor time of md-server per request, by that of nginx"
    note = "the kernel's part of a connection is the same for both"
    return [Figure("metadata.cpu-by-nginx", says, ratio(costs, OURS, PEER), margin=0.3, samples=costs, note=note)]


def _boot_figures(found: Samples) -> list[Figure]:
    within = f"guests that boot within {BOOT_SECONDS:.0f} s"
    figures = []
    for name, samples in found.items():
        for percent in (50, 99):
            values = [sample.percentile_ms(percent) for sample in samples]
            says, aim = f"{within}: latency, p{percent}, {name}", 20 if percent == 99 and name != PEER else None
            figure = f"metadata.boot-p{percent}-{_SHORT[name]}"
            figures.append(Figure(figure, says, statistics.median(values), "ms", at_most=aim, samples={"ms": values}))
    return figures


def _at_once_figures(at_once: Samples) -> list[Figure]:
    figures = []
    for name, samples in at_once.items():
        rates, p99s = [s.per_second for s in samples], [s.percentile_ms(99) for s in samples]
        is_ours = name == OURS
        busy = statistics.median(s.seen.cpu_seconds / s.seen.seconds for s in samples)
        note = "" if is_ours else f"the guests' program was busy for {busy:.0%} of the time: near 100 % it is what limits"
        says = f"{GUESTS} guests at once: requests per second on one core, {name}"
        rate, aim = statistics.median(rates), 1500 if is_ours else None
        figures.append(Figure(f"metadata.rate-{name}", says, rate, "/s", at_least=aim, samples={"/s": rates}, note=note))
        says = f"{GUESTS} guests at once: latency, p99, {name}"
        note = f"each request waits for those of {GUESTS - 1} others: {GUESTS * 1000 / rate:.0f} ms is the mean at that rate"
        p99, aim = statistics.median(p99s), 20 if is_ours else None
        figures.append(Figure(f"metadata.at-once-p99-{name}", says, p99, "ms", at_most=aim, samples={"ms": p99s}, note=note))
    return figures


def _plot(found: Samples) -> Plot:
    percents = (1, 10, 25, 50, 75, 90, 95, 99, 99.9)
    lines = {
        name: [statistics.median(s.percentile_ms(p) for s in samples) for p in percents] for name, samples in found.items()
    }
    title = f"Latency of {GUESTS} guests that boot within {BOOT_SECONDS:.0f} s"
    return Plot("metadata-latency", title, "percentile of requests", "ms", percents, lines)


def document(number: int) -> MetadataDocument:
    """What ecompute would write for the guest *number*."""
    address = Address("default", f"52:54:00:01:{number // 256:02x}:{number % 256:02x}", _source(number), 8, SERVER)
    return MetadataDocument(
        UUID(int=(0xBE << 96) + number),
        f"vm-{number}",
        hostname=f"vm-{number}.example.org",
        keys=(KEY,),
        user_data_base64=b64encode(USER_DATA).decode(),
        addresses=(address,),
        image="debian-12",
        resources={"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 10},
        created_at="2026-01-02T03:04:05Z",
    )


def _source(number: int) -> str:
    return f"127.1.{number // 200}.{number % 200 + 1}"


def paths_of(number: int, guest: MetadataDocument) -> list[str]:
    """What that guest asks for, in order."""
    sequence = REQUESTS["ec2" if number % 4 == 3 else "openstack"]
    return [path.replace("{mac}", guest.addresses[0].mac) for path in sequence]


@dataclass(frozen=True)
class Server:
    """A server under test; *pid* does all its work."""

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """On a processor so far, all its threads together."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def rss_mb(self) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def md_server(directory: Path, documents: Sequence[MetadataDocument]) -> Iterator[Server]:
    """md-server with *documents*, on one core."""
    store = MetadataStore(directory / "state" / "metadata")
    for found in documents:
        store.write(found)
    (directory / "compute.yaml").write_text(f"name: {HOST.zone}\n")
    port = free_port()
    command: list[str | Path] = [sys.executable, "-m", "md_server.main", "--config", directory / "compute.yaml"]
    command += ["--listen", f"{SERVER}:{port}", "--state-dir", directory / "state", "--run-dir", directory / "run"]
    with _running(port, command, directory / "log") as server:
        yield server


@contextmanager
def nginx(directory: Path, program: Path, documents: Sequence[MetadataDocument]) -> Iterator[Server]:
    """nginx with the same answers as files, one folder for each guest's address, on one core."""
    for number, found in enumerate(documents):
        guest = Guest(found, HOST)
        for path in paths_of(number, found):
            leaf = resource(guest, path, os.urandom)
            assert leaf is not None, path
            file = directory / "www" / _source(number) / path.strip("/")
            file = file / "_" if path.endswith("/") or path == "/openstack" else file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(leaf.content)
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {directory}/{kind};" for kind in kinds)
    (directory / "nginx.conf").write_text(f"""
daemon off; master_process off; worker_processes 1; pid {directory}/pid; error_log stderr;
events {{ worker_connections 2048; }}
http {{
{temporary}
  access_log off; default_type text/plain; index _; tcp_nopush on; sendfile on;
  server {{
    listen {SERVER}:{port} backlog=1024;
    root {directory}/www/$remote_addr;
    location = /openstack {{ try_files /openstack/_ =404; }}
  }}
}}
""")
    command: list[str | Path] = [program, "-e", "stderr", "-p", directory, "-c", directory / "nginx.conf"]
    with _running(port, command, directory / "log") as server:
        yield server


@contextmanager
def _running(port: int, command: Sequence[str | Path], log: Path) -> Iterator[Server]:
    process = spawn(["taskset", "--cpu-list", str(_cores()[0]), *command], log=log, cwd=ROOT)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            connection = http.client.HTTPConnection(SERVER, port, timeout=5, source_address=(_source(0), 0))
            connection.request("GET", "/openstack")
            return connection.getresponse().status == 200
        except OSError:
            return False

    try:
        wait_until(answers, timeout_seconds=15, what="the server answers", evidence=log.read_text)
        yield Server(port, process.pid)
    finally:
        stop(process)


def _cores() -> tuple[int, int]:
    """The server's core and the guests'; the same one where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


def storm(server: Server, documents: Sequence[MetadataDocument], spread_seconds: float = 0.0) -> Sample:
    """Let the guests loose, from a process on another core than the server's.

    Raises:
        RuntimeError: a request was not answered as it should be.
    """
    guests = [(_source(number), paths_of(number, found)) for number, found in enumerate(documents)]
    plan = Plan((SERVER, server.port), guests, REQUESTS["headers"], spread_seconds, core=_cores()[1])
    command = [sys.executable, "-m", "benchmarks.guest_storm"]
    before = server.cpu_seconds()
    asked = json.dumps(dataclasses.asdict(plan))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    seen = Seen(**json.loads(done.stdout))
    if seen.errors or seen.statuses != {"200": sum(len(paths) for _, paths in guests)}:
        raise RuntimeError(f"a storm went wrong: {seen.statuses}, {seen.errors[:3]}")
    return Sample(seen, server.cpu_seconds() - before)


@contextmanager
def slow_connections(server: Server) -> Iterator[None]:
    """One more guest, with all the connections that it may have, each sending a byte of an endless request now and then."""
    ended = threading.Event()
    rounds: list[int] = []

    def trickle() -> None:
        os.sched_setaffinity(0, {_cores()[1]})  # of this thread alone
        held: list[socket.socket] = []
        while not ended.wait(0.01):
            try:
                while len(held) < CONNECTIONS_PER_SOURCE:
                    held.append(socket.create_connection((SERVER, server.port), 5, (_HARMFUL, 0)))
                rounds.append(len(held))
                for connection in held:
                    connection.send(b"x")
            except OSError:  # cut, or longer than a request may be: begin again
                _close_all(held)
                held = []
        _close_all(held)

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if not rounds:
        raise RuntimeError("the slow connections were never there")


def _close_all(connections: Sequence[socket.socket]) -> None:
    for connection in connections:
        connection.close()
