"""``eschedule host remove``: what it refuses, and that a host that leaves leaves nothing, wherever it or its remover is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from common.keys import Keys
from common.model import HostAdmin, InstanceStatus, OwnerRecord, Phase
from tests.support.deployment import Deployment, local_deployment, make_raw_image  # noqa: F401 - a fixture
from tests.support.eschedule import IMAGE, QUERY, Site, StandInHost
from tests.support.processes import VENV_BIN, wait_until

REQUEST = "resources=VCPU:1,MEMORY_MB:64,DISK_GB:1"


# -- from here, of hosts that cannot do it themselves ----------------------------------------------------------------------


def keys_of(site: Site, host: StandInHost) -> list[str]:
    others = site.store.list(site.prefix, behind=site.keys.after_journal()).items
    return [item.key for item in others if str(host.provider) in item.key]


def test_a_host_in_use_an_unknown_and_an_ambiguous_one_are_refused(site: Site) -> None:
    host = site.host("node1")
    site.run("create", QUERY, IMAGE, "--name", "web")
    before = keys_of(site, host)
    refused = site.run("host", "remove", "node1")
    assert refused.returncode == 5 and "1 instance (web)" in refused.stderr and "eschedule destroy web" in refused.stderr
    assert keys_of(site, host) == before and site.placement.provider(host.provider) is not None
    unknown = site.run("host", "remove", "node2")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1) and "did you mean node1?" in unknown.stderr
    site.store.create(site.keys.owner(uuid4()), OwnerRecord("machine", "libvirt", "node1").to_json())
    ambiguous = site.run("host", "remove", "node1")
    assert ambiguous.returncode == 2 and str(host.provider) in ambiguous.stderr
    site.run("destroy", "web")


def test_a_host_with_a_claim_of_nobody_is_refused(site: Site) -> None:
    host, consumer = site.host("node1"), uuid4()
    site.placement.claim(consumer, {host.provider: {"VCPU": 1}})
    host.die()
    refused = site.run("host", "remove", "node1")
    assert refused.returncode == 5 and str(consumer) in refused.stderr and "eschedule audit" in refused.stderr
    host.release(consumer)
    assert site.run("host", "remove", "node1").returncode == 0


def test_a_dead_host_is_removed_with_all_that_is_its_own(site: Site) -> None:
    host, other = site.host("node1"), site.host("node2")
    host.die()
    site.store.create(site.keys.host_admin(host.provider), HostAdmin(disabled=True).to_json())
    site.store.create(site.keys.status(host.provider, uuid4()), InstanceStatus(Phase.FAILED).to_json())
    removed = site.run("host", "remove", str(host.provider).upper())
    assert removed.returncode == 0 and "systemctl disable" in removed.stderr, removed.stderr
    assert keys_of(site, host) == [] and site.placement.provider(host.provider) is None
    assert keys_of(site, other) and site.placement.provider(other.provider) is not None
    assert site.run("host", "remove", "node1").returncode == 1


@pytest.mark.parametrize("done", ["provider", "provider and host-admin"])
def test_a_remover_that_was_killed_is_followed_by_one_that_goes_on(site: Site, done: str) -> None:
    host = site.host("node1")
    host.die()
    if "admin" not in done:
        site.store.create(site.keys.host_admin(host.provider), HostAdmin(disabled=True).to_json())
    site.placement.delete_provider(host.provider)
    assert site.run("host", "remove", "node1").returncode == 0
    assert keys_of(site, host) == []


def test_a_host_that_lives_and_does_not_answer_is_left_alone(site: Site) -> None:
    host = site.host("node1")  # it reads no letters, as an older ecompute
    before = keys_of(site, host)
    silent = site.run("host", "remove", "node1", "--wait-seconds", "1")
    assert silent.returncode == 4 and "does not answer within 1 s" in silent.stderr and "ecompute --leave" in silent.stderr
    assert keys_of(site, host) == before and site.placement.provider(host.provider) is not None
    assert not site.store.list(Keys(site.prefix).mails(host.provider)).items


# -- of a host that leaves -------------------------------------------------------------------------------------------------


class Leaving:
    """A deployment whose ecompute kills itself where it is told to."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.failpoint = deployment, deployment.directory / "failpoint"
        deployment.stop_ecompute()
        self.failpoint.write_text("")
        self.start()
        deployment.wait_ready()

    def start(self) -> None:
        deployment = self.deployment
        deployment.ecompute = deployment.machine.spawn(
            [
                VENV_BIN / "python", "-m", "tests.support.ecompute_with_failpoint", "--failpoint-file", self.failpoint,
                "--config", deployment.compute_file,
            ],
            log=deployment.directory / "ecompute.log",
        )  # fmt: skip

    def ended(self) -> int:
        process = self.deployment.ecompute
        assert isinstance(process, subprocess.Popen)
        try:
            return process.wait(40)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"ecompute has not ended\n{self.deployment.evidence()}") from None

    def assert_nothing_is_left(self) -> None:
        assert self.deployment.etcd_keys() == {}, self.deployment.evidence()
        assert self.deployment.placement("/resource_providers")["resource_providers"] == []


@pytest.fixture
def leaving(local_deployment: Deployment) -> Iterator[Leaving]:  # noqa: F811
    yield Leaving(local_deployment)


def test_a_host_leaves_ends_with_0_and_stays_out(leaving: Leaving, tmp_path: Path) -> None:
    deployment, image = leaving.deployment, make_raw_image(tmp_path / "disk.raw")
    deployment.eschedule("create", REQUEST, image, "--name", "web")
    refused = deployment.eschedule("host", "remove", "testhost", check=False)
    assert refused.returncode == 5 and "web" in refused.stderr
    deployment.wait_phase("web", "Running")
    deployment.eschedule("destroy", "web")
    removed = deployment.eschedule("host", "remove", "testhost")
    assert "is removed" in removed.stderr and "warning" not in removed.stderr
    assert leaving.ended() == 0
    leaving.assert_nothing_is_left()
    leaving.start()
    assert leaving.ended() == 5
    leaving.assert_nothing_is_left()
    (deployment.directory / "state" / "left.json").unlink()
    leaving.start()
    deployment.wait_ready()


@pytest.mark.parametrize(
    "failpoint",
    [
        "before:startup:ecompute.leaving.leave",
        "after:startup:common.placement.Placement.delete_provider",
        "after:startup:common.etcd_store.EtcdStore.delete",
        "after:startup:ecompute.network.AddressPools.remove_all_unassigned",
        "after:startup:ecompute.leaving.leave",
    ],
)
def test_a_host_that_dies_while_it_leaves_is_removed_all_the_same_and_then_stays_out(leaving: Leaving, failpoint: str) -> None:
    deployment = leaving.deployment
    leaving.failpoint.write_text(failpoint)
    removed = deployment.eschedule("host", "remove", "testhost", "--wait-seconds", "3", check=False)
    assert removed.returncode == 0, removed.stderr + deployment.evidence()
    assert leaving.ended() == -9, "it was killed where it was told to"
    leaving.assert_nothing_is_left()
    leaving.start()
    assert leaving.ended() == 0, "it finds the note, and that nothing is left to be done"
    leaving.start()
    assert leaving.ended() == 5
    leaving.assert_nothing_is_left()


def test_a_host_that_dies_while_it_leaves_goes_on_by_itself_when_it_is_started(leaving: Leaving) -> None:
    deployment = leaving.deployment
    leaving.failpoint.write_text("after:startup:common.placement.Placement.delete_provider")
    process = deployment.spawn_eschedule(
        "host", "remove", "testhost", "--wait-seconds", "60", log=deployment.directory / "eschedule.log"
    )
    assert leaving.ended() == -9
    leaving.start()
    assert leaving.ended() == 0
    wait_until(
        lambda: process.poll() is not None, timeout_seconds=30, what="the remover has noticed", evidence=deployment.evidence
    )
    assert process.poll() == 0, deployment.evidence()
    leaving.assert_nothing_is_left()


def test_a_host_that_leaves_while_placement_is_away_waits_for_it(leaving: Leaving) -> None:
    deployment = leaving.deployment
    leaving.failpoint.write_text("hold before:startup:ecompute.leaving.leave")
    process = deployment.spawn_eschedule(
        "host", "remove", "testhost", "--wait-seconds", "120", log=deployment.directory / "eschedule.log"
    )
    wait_until(
        lambda: leaving.failpoint.read_text() == "held", timeout_seconds=60, what="it is about to leave",
        evidence=deployment.evidence,
    )  # fmt: skip
    deployment.kill_placement()
    leaving.failpoint.write_text("")
    log = deployment.directory / "ecompute.log"
    wait_until(
        lambda: log.read_text(errors="replace").count("leaving the cluster waits") >= 2, timeout_seconds=120,
        what="it has tried twice", evidence=deployment.evidence,
    )  # fmt: skip
    deployment.start_placement()
    assert leaving.ended() == 0
    wait_until(
        lambda: process.poll() is not None, timeout_seconds=30, what="the remover has noticed", evidence=deployment.evidence
    )
    assert process.poll() == 0, deployment.evidence()
    leaving.assert_nothing_is_left()
