"""Runs the YAML files of this folder: md_server's HTTP against the real application and real documents, without sockets.

Each test says which address it comes from by the header ``test-source``; only the wrapper below looks at it. What needs
a socket (slow clients, broken requests, escapes that a client library would clean up) is in tests/integration.
"""

from __future__ import annotations

import base64
import unittest
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gabbi import driver
from gabbi.handlers.base import ResponseHandler
from gabbi.reporter import PyTestResult

from common.metadata import MetadataDocument, MetadataStore
from common.model import Address
from md_server.app import Application
from md_server.guest import Host
from md_server.lookup import Lookup

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


_application: list[Application] = []  # the one that the requests of this module go to


@pytest.fixture(scope="module", autouse=True)
def documents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two guests, a third whose document is of a version to come, and a fourth that is gone."""
    directory = tmp_path_factory.mktemp("state") / "metadata"
    store = MetadataStore(directory)
    later = MetadataDocument(uuid.UUID(int=3), "later", addresses=(Address("default", "m", "192.168.122.52"),))
    gone = MetadataDocument(uuid.UUID(int=4), "gone", addresses=(Address("default", "m", "192.168.122.53"),))
    for document in (FULL, BARE, later, gone):
        store.write(document)
    (directory / f"{later.uuid}.json").write_text('{"schema": 99}')
    (directory / f"{gone.uuid}.json").unlink()  # and its link by address stays, as after a crash
    _application.append(Application(Lookup(store, Host("host-7", "x86_64")), random_bytes=lambda count: b"r" * count))
    yield
    _application.clear()


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
        response_handlers=[BodyHandler],
        test_loader_name="md",
    )
    requests = [request for suite in suites for request in suite]
    metafunc.parametrize("request_of_yaml", requests, ids=[type(request).__name__ for request in requests])


def test_gabbi(request_of_yaml: Any) -> None:
    request_of_yaml(PyTestResult())
