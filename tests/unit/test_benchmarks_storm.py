"""The guests of the metadata benchmark: they ask in order, each from its own address, and tell what went wrong."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.guest_storm import Plan, Storm
from benchmarks.scenarios import metadata
from md_server.http import whole_request
from md_server.listening import listen
from md_server.server import GuestServer
from tests.support.processes import ROOT, free_port

SERVER = "127.0.0.1"
GUESTS = [("127.0.0.21", ["/a", "/b", "/long"]), ("127.0.0.22", ["/b"])]


@contextlib.contextmanager
def serving(asked: list[tuple[str, str]]) -> Iterator[int]:
    def application(environ, start_response):
        asked.append((environ["REMOTE_ADDR"], environ["PATH_INFO"]))
        body = b"x" * (3_000_000 if environ["PATH_INFO"] == "/long" else 10)
        start_response("404 Not Found" if environ["PATH_INFO"] == "/a" else "200 OK", [("Content-Length", str(len(body)))])
        return [body]

    port = free_port()
    server = GuestServer(application, listen(ipaddress.ip_address(SERVER), port))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield port
    finally:
        server.stop()
        thread.join(10)


def test_each_guest_asks_in_order_from_its_own_address():
    asked: list[tuple[str, str]] = []
    with serving(asked) as port:
        seen = Storm(Plan((SERVER, port), GUESTS, ["X: y"], spread_seconds=0.1)).run()
    assert [path for source, path in asked if source == "127.0.0.21"] == ["/a", "/b", "/long"]
    assert [path for source, path in asked if source == "127.0.0.22"] == ["/b"]
    assert (seen.statuses, seen.errors, len(seen.latencies)) == ({"404": 1, "200": 3}, [], 4)
    assert seen.bytes > 3_000_000
    assert seen.seconds >= 0.05


def test_a_guest_that_is_not_answered_gives_up_and_says_so():
    seen = Storm(Plan((SERVER, free_port()), GUESTS, [])).run()
    assert [error.split(":")[0] for error in seen.errors] == ["127.0.0.21, request 0", "127.0.0.22, request 0"]
    assert seen.statuses == {}


def test_as_a_program_it_takes_a_plan_and_gives_what_it_saw():
    with serving([]) as port:
        plan = json.dumps(asdict(Plan((SERVER, port), GUESTS, [], core=min(os.sched_getaffinity(0)))))
        command = [sys.executable, "-m", "benchmarks.guest_storm"]
        done = subprocess.run(command, input=plan, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["statuses"] == {"404": 1, "200": 3}


def test_what_cloud_init_was_seen_to_ask_fits_each_guest():
    for number in range(4):
        paths = metadata.paths_of(number, metadata.document(number))
        assert len(paths) == (29 if number == 3 else 33)
        assert not any("{" in path for path in paths)
    headers = "".join(f"{line}\r\n" for line in metadata.REQUESTS["headers"])
    request = whole_request(f"GET /openstack HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    assert request is not None
    assert request.keeps_open
