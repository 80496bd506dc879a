"""ecompute and eschedule on what a deployment of some size has: an etcd of three members, Placement on PostgreSQL or MariaDB.

Over libvirt's test driver; everything else is real. A member, the database and Placement die under it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.databases import SERVERS, DatabaseServer, running
from tests.support.deployment import Deployment, ThisMachine, make_raw_image
from tests.support.etcd import EtcdCluster
from tests.support.processes import wait_until
from tests.support.simulated_host import TEST_HOST

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"
pytestmark = pytest.mark.timeout(300)


class Site:
    """A deployment over services that die by themselves."""

    def __init__(self, directory: Path, database: DatabaseServer) -> None:
        (directory / "test-host.xml").write_text(TEST_HOST)
        self.database, self.etcd = database, EtcdCluster(directory / "etcd-cluster")
        self.image = make_raw_image(directory / "image.raw")
        connection = directory / "connection"
        connection.touch(mode=0o600)
        connection.write_text(database.new_connection())
        self.deployment = Deployment(
            ThisMachine(), directory, state_dir=str(directory / "state"), run_dir=str(directory / "run"),
            etcd_endpoints=self.etcd.endpoints, connection_file=connection,
            compute={
                "uuid": str(uuid4()), "name": "testhost", "metadata": {"mode": "off"},
                "libvirt": {"uri": f"test://{directory}/test-host.xml", "virt_type": "test"},
            },
        )  # fmt: skip

    def create(self, name: str) -> None:
        self.deployment.eschedule(REQUEST, self.image, "--name", name)
        assert self.deployment.phase(name) == "Running"

    def is_ready(self) -> bool:
        answer = self.deployment.eschedule("hosts", "--json", check=False)
        return answer.returncode == 0 and '"Ready"' in answer.stdout


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def site(server: DatabaseServer, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, server)
    try:
        site.etcd.start()
        site.deployment.start()
        yield site
    finally:
        site.deployment.stop()
        site.etcd.stop()


def test_instances_come_and_go_while_one_member_of_etcd_is_lost(site: Site) -> None:
    site.create("before")
    lost = site.etcd.leader()
    lost.kill()
    site.create("while-it-is-lost")
    site.deployment.eschedule("destroy", "before")
    lost.start()
    for member in site.etcd.followers():  # the host's and the client's next choice, whichever it is
        member.restart(with_signal=signal.SIGKILL)
    wait_until(site.is_ready, timeout_seconds=60, what="the host is Ready", evidence=site.deployment.evidence)
    assert site.deployment.phase("while-it-is-lost") == "Running"
    site.deployment.eschedule("destroy", "while-it-is-lost")
    site.deployment.assert_nothing_is_left()


def test_claims_outlive_the_death_of_placement_and_of_its_database(site: Site) -> None:
    site.create("before")
    claims = site.deployment.allocations()
    assert len(claims) == 1
    site.deployment.kill_placement()
    site.database.kill()
    site.deployment.eschedule("show", "before")
    assert site.deployment.eschedule(REQUEST, site.image, "--name", "refused", check=False).returncode == 4
    site.database.start()
    site.deployment.start_placement()
    assert site.deployment.allocations() == claims
    site.create("after")
    site.deployment.eschedule("destroy", "before", "after")
    site.deployment.assert_nothing_is_left()


def test_a_database_that_restarts_under_placement_is_met_again_without_its_restart(site: Site) -> None:
    site.create("before")
    site.database.stop()
    site.database.start()
    site.create("after")
    site.deployment.eschedule("destroy", "before", "after")
    site.deployment.assert_nothing_is_left()
