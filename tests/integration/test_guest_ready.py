"""What a guest says of itself, from its request to the screen of whoever waits: md-server, ecompute and eschedule as processes.

ecompute runs over libvirt's test driver, so that its guests ask nobody anything; their requests are made here, from their
addresses, in a private network where md-server listens.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.deployment import Deployment, Process, ThisMachine, make_raw_image
from tests.support.namespace import Namespace
from tests.support.processes import spawn, stop, wait_until
from tests.support.simulated_host import TEST_HOST

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
METADATA = "169.254.169.254"
FINGERPRINT = "SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDJEOpsXxYc6pXHVJw (ED25519)"
LONG_SECONDS = "100"


class Site:
    """A deployment, and its md-server in a private network that the guests' addresses are in."""

    def __init__(self, folder: Path, resync_seconds: int) -> None:
        (folder / "test-host.xml").write_text(TEST_HOST)
        self.folder, self.network = folder, Namespace(folder)
        self.deployment = Deployment(
            ThisMachine(), folder, state_dir=str(folder / "state"), run_dir=str(folder / "run"),
            compute={
                "uuid": str(uuid4()), "name": "testhost", "metadata": {"mode": "external"},
                "libvirt": {"uri": f"test://{folder}/test-host.xml", "virt_type": "test"},
                "builder": {"resync_every_seconds": resync_seconds},
            },
        )  # fmt: skip
        self.image = make_raw_image(folder / "image.raw")
        self.log = folder / "md-server.log"
        self.network.run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")

    def start(self) -> None:
        self.deployment.start()
        command = [sys.executable, "-m", "md_server.main", "--config", str(self.deployment.compute_file), "--bridge", ""]
        self.md_server = spawn(self.network.in_network(*command), log=self.log)
        wait_until(
            lambda: "message=serving" in self.log.read_text(), timeout_seconds=15, what="md-server", evidence=self.log.read_text
        )

    def close(self) -> None:
        self.deployment.stop()
        stop(self.md_server)
        self.network.close()

    def create(self, name: str, *arguments: str) -> Process:
        """``eschedule create``, under way."""
        return self.deployment.spawn_eschedule(
            REQUEST, self.image, "--name", name, *arguments, log=self.folder / f"create-{name}.log"
        )

    def said(self, name: str) -> str:
        return (self.folder / f"create-{name}.log").read_text()

    def boot(self, name: str) -> str:
        """The address of the guest *name*, once it runs; requests can be made from there."""
        wait_until(
            lambda: "Running" in self.said(name), timeout_seconds=60, what=f"{name} runs", evidence=self.deployment.evidence
        )
        return self.address_of(name)

    def address_of(self, name: str) -> str:
        address: str = self.deployment.show(name)["status"]["addresses"][0]["address"]
        self.network.run("ip", "addr", "replace", f"{address}/32", "dev", "lo")
        return address

    def report(self, address: str, body: Mapping[str, Any]) -> int:
        """The status of the answer to what the guest at *address* says."""

        def ask() -> int:
            connection = http.client.HTTPConnection(METADATA, timeout=10, source_address=(address, 0))
            connection.request("POST", "/etcd-compute/v1/ready", json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse().status

        return self.network.call(ask)

    def ends(self, name: str, process: Process) -> int:
        """The exit code of ``create``."""
        wait_until(
            lambda: process.poll() is not None,
            timeout_seconds=30,
            what=f"create {name} ends",
            evidence=self.deployment.evidence,
        )
        code = process.poll()
        assert code is not None
        return code

    def ready(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.deployment.show(name)["status"]["ready"]
        return found


@contextmanager
def running_site(folder: Path, resync_seconds: int) -> Iterator[Site]:
    made = Site(folder, resync_seconds)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One whose ecompute hears of reports by its bell alone."""
    with running_site(tmp_path_factory.mktemp("ready"), 3600) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """The same for many tests; none leaves an instance behind."""
    yield shared_site
    for row in json.loads(shared_site.deployment.eschedule("list", "--json").stdout):
        shared_site.deployment.eschedule("destroy", row["uuid"])


def test_a_guest_is_waited_for_until_it_says_that_it_is_ready(site: Site) -> None:
    process = site.create("web", "--wait", "ready", "--wait-seconds", LONG_SECONDS)
    address = site.boot("web")
    assert process.poll() is None
    assert "has not said yet that it is ready" in site.said("web")

    assert site.report(address, {"message": "up \x1b[2J after 3 s", "host_keys": [FINGERPRINT]}) == 204
    assert site.ends("web", process) == 0
    assert "up  [2J after 3 s" in site.said("web")
    assert FINGERPRINT in site.said("web")

    ready = site.ready("web")
    assert ready is not None
    assert (ready["message"], ready["host_keys"], ready["boot_request"]) == ("up  [2J after 3 s", [FINGERPRINT], 1)
    shown = site.deployment.eschedule("show", "web").stdout
    assert f"host key   {FINGERPRINT}" in shown
    assert ": up  [2J after 3 s" in shown

    site.deployment.eschedule("reboot", "web", "--hard")
    assert "not yet since its last start" in site.deployment.eschedule("show", "web").stdout
    site.deployment.eschedule("destroy", "web")
    assert site.report(address, {"message": "still here"}) == 404
    site.deployment.assert_nothing_is_left()


def test_what_no_bell_told_is_seen_by_the_next_full_look(tmp_path: Path) -> None:
    with running_site(tmp_path, 2) as site:
        process = site.create("web", "--wait", "ready", "--wait-seconds", LONG_SECONDS)
        address = site.boot("web")
        (site.folder / "run" / "reports.sock").unlink()
        assert site.report(address, {"message": "anybody there?"}) == 204
        assert site.ends("web", process) == 0
        assert site.ready("web") is not None


def test_a_guest_that_says_nothing_is_waited_for_in_vain_and_one_that_talks_too_much_is_refused(site: Site) -> None:
    process = site.create("chatty", "--wait", "ready", "--wait-seconds", "8")
    address = site.boot("chatty")
    assert site.ends("chatty", process) == 4
    assert "not ready after 8" in site.said("chatty")
    assert "has not said yet that it is ready" in site.said("chatty")

    answers = [site.report(address, {"message": str(number)}) for number in range(8)]
    assert 429 in answers
    last = max(number for number, answer in enumerate(answers) if answer == 204)
    wait_until(
        lambda: (site.ready("chatty") or {}).get("message") == str(last), timeout_seconds=20, what="the last that was taken",
        evidence=site.deployment.evidence,
    )  # fmt: skip


def test_interrupted_it_says_what_goes_on(site: Site) -> None:
    process = site.create("slow", "--wait", "ready", "--wait-seconds", LONG_SECONDS)
    site.boot("slow")
    process.send_signal(signal.SIGINT)
    assert site.ends("slow", process) == 130
    assert "interrupted; slow goes on being built" in site.said("slow")


def test_a_set_is_waited_for_until_all_have_said_so(site: Site) -> None:
    process = site.create("set", "--count", "2", "--wait", "ready", "--wait-seconds", LONG_SECONDS)
    wait_until(
        lambda: "0 of 2 ready, 2 running" in site.said("set"),
        timeout_seconds=60,
        what="both run",
        evidence=site.deployment.evidence,
    )
    for number in (1, 2):
        assert process.poll() is None
        assert site.report(site.address_of(f"set-{number}"), {}) == 204
    assert site.ends("set", process) == 0
    assert "all 2 are ready after" in site.said("set")
