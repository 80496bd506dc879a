"""Runs the YAML files of this folder: md_server's HTTP against the real application and real documents, without sockets.

Each test says which address it comes from by the header ``test-source``, and whose token it shows by ``test-token``; only the
wrapper below looks at them. What needs a socket (slow clients, broken requests, escapes that a client library would clean up, how
far an answer travels) is in tests/integration.
"""

from __future__ import annotations

import base64
import unittest
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from gabbi import driver
from gabbi.handlers.base import ResponseHandler
from gabbi.reporter import PyTestResult

from common.errors import NoSpace
from common.metadata import MetadataDocument, MetadataStore
from common.model import Address, IpAddress, MetadataAccess
from common.nics import AddressSource
from common.renderings.guest import Host
from common.reports import GuestReport
from md_server.app import Application
from md_server.lookup import Lookup
from md_server.tokens import Tokens

FULL = MetadataDocument(
    uuid=uuid.UUID("11111111-2222-3333-4444-555555555555"),
    name="web-1",
    hostname="web-1.example.org",
    keys=("ssh-ed25519 AAAAC3Nza alice@laptop", "ssh-ed25519 AAAAC3Nzb"),
    user_data_base64=base64.b64encode(b"#cloud-config\npackages: [jq]\n").decode(),
    addresses=(
        Address("default", "52:54:c0:a8:7a:32", "192.168.122.50", 24, "192.168.122.1"),
        Address("storage", "52:54:0a:01:00:07", "10.1.0.7", 16),
    ),
    image="https://user:secret@images.example.org/debian.qcow2",
    resources={"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 4},
    created_at="2026-01-02T03:04:05Z",
)
BARE = MetadataDocument(
    uuid=uuid.UUID("66666666-7777-8888-9999-000000000000"),
    name="db-1",
    addresses=(Address("default", "52:54:c0:a8:7a:33", "192.168.122.51"),),
)
REQUIRED = MetadataDocument(
    uuid=uuid.UUID("77777777-0000-0000-0000-000000000001"),
    name="guarded",
    addresses=(Address("default", "52:54:c0:a8:7a:36", "192.168.122.54"),),
    user_data_base64=base64.b64encode(b"secret").decode(),
    access=MetadataAccess.REQUIRED,
    hop_limit=2,
)
OFF = MetadataDocument(
    uuid=uuid.UUID("77777777-0000-0000-0000-000000000002"),
    name="silent",
    addresses=(Address("default", "52:54:c0:a8:7a:37", "192.168.122.55"),),
    access=MetadataAccess.OFF,
)
STATIC = MetadataDocument(
    uuid=uuid.UUID("77777777-0000-0000-0000-000000000003"),
    name="lan-1",
    keys=("ssh-ed25519 AAAAC3Nza alice@laptop",),
    vendor_data_base64=base64.b64encode(b"#cloud-config\nntp: {enabled: true}\n").decode(),
    addresses=(
        Address(
            "lan", "52:54:00:00:00:06", "10.0.0.6", 24, "10.0.0.1", (IpAddress("fd00:1::6", 64, "fd00:1::1"),), "br0", 42,
            AddressSource.STATIC, ("10.0.0.2",), 1400,
        ),
        Address("default", "52:54:c0:a8:7a:38", "192.168.122.56", 24, "192.168.122.1"),
    ),
)  # fmt: skip
TALKERS = [  # each may report three times, as no time passes
    MetadataDocument(
        uuid.UUID(int=number), f"vm-{number}", addresses=(Address("default", "52:54:00:00:01:01", f"192.168.122.{number}"),)
    )
    for number in range(60, 72)
]
NO_ROOM = TALKERS[-1].uuid  # for its report
TOKENS = Tokens(b"s" * 32, lambda: 1e9)
SHOWN = {"full": TOKENS.issue(FULL.uuid, 60), "bare": TOKENS.issue(BARE.uuid, 60), "required": TOKENS.issue(REQUIRED.uuid, 60)}
SHOWN |= {"expired": Tokens(b"s" * 32, lambda: 1e9 - 60).issue(FULL.uuid, 60), "forged": SHOWN["full"][:-2] + "AA"}
SHOWN |= {"other-secret": Tokens(b"t" * 32, lambda: 1e9).issue(FULL.uuid, 60), "wrong": "wrong", "empty": ""}
SHOWN |= {"twice": f"{SHOWN['full']}, {SHOWN['full']}", "too-far": Tokens(b"s" * 32, lambda: 2e9).issue(FULL.uuid, 60)}

_application: list[Application] = []  # the one that the requests of this module go to
_reports: list[tuple[uuid.UUID, GuestReport]] = []


@pytest.fixture(scope="module", autouse=True)
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two guests, a third whose document is of a version to come, and a fourth that is gone."""
    directory = tmp_path_factory.mktemp("state") / "metadata"
    store = MetadataStore(directory)
    later = MetadataDocument(uuid.UUID(int=3), "later", addresses=(Address("default", "m", "192.168.122.52"),))
    gone = MetadataDocument(uuid.UUID(int=4), "gone", addresses=(Address("default", "m", "192.168.122.53"),))
    for document in (FULL, BARE, later, gone, REQUIRED, OFF, STATIC, *TALKERS):
        store.write(document)
    (directory / "by-address" / "192.168.122.55").symlink_to(f"../{OFF.uuid}.json")  # as if it had been readable until now
    (directory / f"{later.uuid}.json").write_text('{"schema": 99}')
    (directory / f"{gone.uuid}.json").unlink()  # and its link by address stays, as after a crash
    lookup = Lookup(store, Host("host-7", "x86_64"))
    _application.append(
        Application(
            lookup, tokens=TOKENS, on_report=take_report, random_bytes=lambda count: b"r" * count, clock=lambda: 0.0,
            now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
    )  # fmt: skip
    yield
    _application.clear()
    _reports.clear()


def take_report(guest: uuid.UUID, report: GuestReport) -> None:
    if guest == NO_ROOM:
        raise NoSpace("no room for reports")
    if report.message == "bug":
        raise RuntimeError("of the receiver")
    _reports.append((guest, report))


class ReportHandler(ResponseHandler):
    """``response_report:``: message and host keys that were taken of the request, or ``is_taken: false``."""

    test_key_suffix = "report"
    test_key_value: ClassVar[dict[str, Any]] = {}

    def __call__(self, test: Any) -> None:
        wanted = test.test_data[self._key]
        if wanted:
            taken = [report for _, report in _reports]
            _reports.clear()
            found = {"message": taken[-1].message, "host_keys": list(taken[-1].host_keys)} if taken else {"is_taken": False}
            test.assertEqual(wanted, found)
            test.assertTrue(all(report.at == "2026-01-02T03:04:05.000Z" for report in taken))


class BodyHandler(ResponseHandler):
    """``response_body:``: the body, to the byte."""

    test_key_suffix = "body"
    test_key_value = ""

    def __call__(self, test: Any) -> None:
        wanted = test.test_data[self._key]
        if wanted != "":
            output = test.output.decode() if isinstance(test.output, bytes) else test.output
            test.assertEqual(wanted, output)


def _wrapped() -> Callable[..., Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        source = environ.pop("HTTP_TEST_SOURCE", "192.168.122.50")
        if "HTTP_TEST_TOKEN" in environ:
            environ["HTTP_X_AWS_EC2_METADATA_TOKEN"] = SHOWN[environ.pop("HTTP_TEST_TOKEN")]
        return _application[0]({**environ, "REMOTE_ADDR": source}, start_response)

    return application


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each request. Not by gabbi's own pytest plugin: that takes every test of the session with a colon in its name
    for one of its own.
    """
    suites = driver.build_tests(
        str(Path(__file__).parent),
        unittest.TestLoader(),
        intercept=_wrapped,
        response_handlers=[BodyHandler, ReportHandler],
        test_loader_name="md",
    )
    requests = [request for suite in suites for request in suite]
    metafunc.parametrize("request_of_yaml", requests, ids=[type(request).__name__ for request in requests])


def test_gabbi(request_of_yaml: Any) -> None:
    request_of_yaml(PyTestResult())
