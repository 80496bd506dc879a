"""Requests that come before the one before them is done: the last one counts, and nothing of the others is left."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from common.model import Desired, Phase
from tests.support.clients import Clients
from tests.support.cluster import Cluster, running_cluster
from tests.support.hosts import HostNetwork
from tests.support.ledger import Ledger
from tests.support.processes import wait_until
from tests.support.small_guest import make_small_guest
from tests.support.snapshot import World, look


class Bench:
    """A cluster of one host, and a guest on it that takes two seconds to go down."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.ledger = cluster, Ledger()
        self.clients = Clients(cluster, self.ledger)
        self.image = str(make_small_guest(cluster.directory / "slow.raw", is_slow=True))

    def guest(self) -> UUID:
        uuid = self.clients.create(self.cluster.nodes[0], image=self.image)
        self.clients.edit(uuid, {"grace_seconds": 20})
        self.settle()
        wait_until(
            lambda: self.boots(uuid) == 1, timeout_seconds=20, what="the guest has booted", evidence=self.cluster.evidence
        )
        return uuid

    def boots(self, uuid: UUID) -> int:
        return look(self.cluster).hosts[0].boots[uuid]

    def settle(self) -> World:
        return self.ledger.settle(self.cluster, timeout_seconds=40)

    def wait_phase(self, uuid: UUID, phase: Phase) -> None:
        def is_there() -> bool:
            status = look(self.cluster).status_of(uuid)
            return status is not None and status.phase is phase

        wait_until(is_there, timeout_seconds=30, what=f"{uuid} is {phase}", evidence=self.cluster.evidence)


@pytest.fixture(scope="module")
def bench(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with running_cluster(tmp_path_factory.mktemp("minds"), host_network, hosts=1) as cluster:
        yield Bench(cluster)


@pytest.fixture
def guest(bench: Bench) -> Iterator[UUID]:
    uuid = bench.guest()
    yield uuid
    if uuid in bench.ledger.known:
        bench.clients.destroy(uuid)
    bench.settle()


def test_started_while_it_goes_down_it_comes_up_again(bench: Bench, guest: UUID) -> None:
    bench.clients.stop(guest)
    bench.wait_phase(guest, Phase.STOPPING)
    bench.clients.start(guest)
    bench.settle()
    wait_until(
        lambda: bench.boots(guest) == 2, timeout_seconds=30, what="it went down and came up", evidence=bench.cluster.evidence
    )
    assert bench.settle().hosts[0].guests[guest].is_active


def test_rebooted_twice_while_it_goes_down_it_comes_up_once(bench: Bench, guest: UUID) -> None:
    bench.clients.reboot(guest)
    bench.wait_phase(guest, Phase.REBOOTING)
    bench.clients.reboot(guest)
    bench.settle()
    wait_until(lambda: bench.boots(guest) == 2, timeout_seconds=30, what="it is up again", evidence=bench.cluster.evidence)
    assert bench.settle().hosts[0].boots[guest] == 2


def test_stopped_while_it_reboots_it_stays_down(bench: Bench, guest: UUID) -> None:
    bench.clients.reboot(guest)
    bench.wait_phase(guest, Phase.REBOOTING)
    bench.clients.stop(guest)
    world = bench.settle()
    assert not world.hosts[0].guests[guest].is_active
    assert bench.boots(guest) == 1


def test_destroyed_while_it_goes_down_it_is_gone_at_once(bench: Bench, guest: UUID) -> None:
    bench.clients.stop(guest)
    bench.wait_phase(guest, Phase.STOPPING)
    bench.clients.destroy(guest)
    world = bench.ledger.settle(bench.cluster, timeout_seconds=10)
    assert world.spec_of(guest) is None


def test_stopped_before_it_was_built_it_is_built_when_it_is_started(bench: Bench) -> None:
    node = bench.cluster.nodes[0]
    node.kill_ecompute()
    uuid = bench.clients.create(node)
    bench.clients.stop(uuid)
    node.start_ecompute()
    bench.cluster.wait_ready(node)
    status = bench.settle().status_of(uuid)
    assert status is not None and (status.phase, status.booted) == (Phase.STOPPED, 0)
    bench.clients.start(uuid)
    world = bench.settle()
    spec = world.spec_of(uuid)
    assert spec is not None and spec.desired is Desired.RUNNING
    assert world.hosts[0].guests[uuid].is_active
    bench.clients.destroy(uuid)
    bench.settle()
