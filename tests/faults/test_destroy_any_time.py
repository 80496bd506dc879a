"""An instance that is destroyed at every moment of its build: before and after each step, inside some, while its image is being
downloaded, and in the middle of a move to another host. Nothing of it remains.

ecompute is held at the moment in question (``tests/support/ecompute_with_failpoint.py``), the end is asked for, and it goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.model import Phase
from ecompute.machine import Step
from tests.support.clients import Clients
from tests.support.cluster import Cluster, running_cluster
from tests.support.hosts import HostNetwork
from tests.support.ledger import Ledger
from tests.support.processes import wait_until
from tests.support.slow_images import SlowImages, slow_images
from tests.support.small_guest import make_small_guest
from tests.support.snapshot import World, look

BUILD = (
    Step.RESERVE_NETWORK, Step.FETCH_IMAGE, Step.BUILD_DISK, Step.WRITE_METADATA, Step.DEFINE, Step.START, Step.MARK_BOOTED,
)  # fmt: skip
MOVE = (Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.SWAP_CLAIM, Step.MOVE_SPEC)
MOMENTS = [
    f"before:{Step.FETCH_IMAGE}",
    *(f"after:{step}" for step in BUILD),
    "before:BuildDisk:pathlib.Path.rename",
    "before:ReserveNetwork:pathlib.Path.rename",
    "after:WriteMetadata:common.metadata._replace_file",
    "before:Start:ecompute.libvirt_driver.LibvirtDriver.start",
    "after:Start:ecompute.libvirt_driver.LibvirtDriver.start",
    "before:status:Building",
    "before:status:Running",
]
MOMENTS_OF_A_MOVE = [
    f"before:{Step.UNDEFINE}", *(f"after:{step}" for step in MOVE), "after:status:Rescheduling",
    "before:MoveSpec:common.etcd_store.EtcdStore.commit",
]  # fmt: skip
IMAGE_MIB = 2


class Bench:
    def __init__(self, cluster: Cluster, images: SlowImages) -> None:
        self.cluster, self.images, self.ledger = cluster, images, Ledger()
        self.node, self.other = cluster.nodes
        self.clients = Clients(cluster, self.ledger)
        self._numbers = itertools.count()

    def fresh_image(self) -> str:
        """One that nobody has in the cache."""
        return str(make_small_guest(self.cluster.directory / f"image-{next(self._numbers)}.raw"))

    def fresh_url(self) -> str:
        return f"{self.images.url}/{next(self._numbers)}.raw"

    def settle(self, *, timeout_seconds: float = 30) -> World:
        return self.ledger.settle(self.cluster, timeout_seconds=timeout_seconds)

    def assert_nothing_remains(self) -> None:
        world = self.settle()
        assert (world.specs, world.names) == ({}, {})
        assert [(host.guests, host.claims, host.folders, host.strays) for host in world.hosts] == [
            ({}, {}, frozenset(), ())
        ] * 2

    def half_images(self) -> list[Path]:
        return list(self.node.state("images").glob("*.partial"))


@pytest.fixture(scope="module")
def bench(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("destroyed")
    big = make_small_guest(directory / "big.raw", size_mib=IMAGE_MIB)
    with running_cluster(directory / "cluster", host_network, with_ecompute=False) as cluster:
        cluster.nodes[0].start_with_failpoint()
        cluster.nodes[1].start_ecompute()
        cluster.wait_ready()
        with slow_images(big, address=cluster.address) as images:
            yield Bench(cluster, images)


@pytest.fixture
def broken_qemu(bench: Bench) -> Iterator[None]:
    bench.node.refuse_guests()
    yield
    bench.node.refuse_guests(False)


def destroy_at(bench: Bench, moment: str, **request: object) -> UUID:
    bench.node.arm(f"hold {moment}")
    uuid = bench.clients.create(bench.node, image=bench.fresh_image(), **request)
    bench.node.wait_held()
    bench.clients.destroy(uuid)
    bench.node.arm("")
    return uuid


@pytest.mark.parametrize("moment", MOMENTS)
def test_destroyed_in_the_middle_of_a_build(bench: Bench, moment: str) -> None:
    destroy_at(bench, moment)
    bench.assert_nothing_remains()


@pytest.mark.parametrize("moment", MOMENTS_OF_A_MOVE)
def test_destroyed_in_the_middle_of_a_move(bench: Bench, broken_qemu: None, moment: str) -> None:
    destroy_at(bench, moment, has_alternates=True)
    bench.assert_nothing_remains()


@pytest.mark.parametrize("at_once", [-1, 0, 64 * 1024, IMAGE_MIB * 1024 * 1024 - 1])
def test_destroyed_while_its_image_comes(bench: Bench, at_once: int) -> None:
    bench.images.begin(at_once=at_once)
    uuid = bench.clients.create(bench.node, image=bench.fresh_url())
    wait_until(bench.images.asked.is_set, timeout_seconds=20, what="the image is asked for", evidence=bench.cluster.evidence)
    if 0 < at_once < 1024 * 1024:
        wait_until(bench.half_images, timeout_seconds=20, what="the download has begun", evidence=bench.cluster.evidence)
    bench.clients.destroy(uuid)
    bench.assert_nothing_remains()


def test_a_download_that_nobody_waits_for_is_broken_off(bench: Bench) -> None:
    bench.images.begin(at_once=64 * 1024)
    uuid = bench.clients.create(bench.node, image=bench.fresh_url())
    wait_until(bench.half_images, timeout_seconds=20, what="the download has begun", evidence=bench.cluster.evidence)
    bench.clients.destroy(uuid)
    bench.assert_nothing_remains()
    wait_until(bench.images.left.is_set, timeout_seconds=10, what="the server is told to stop", evidence=bench.cluster.evidence)


def test_one_of_two_that_wait_for_an_image_is_destroyed_and_the_other_runs(bench: Bench) -> None:
    bench.images.begin(at_once=64 * 1024)
    url = bench.fresh_url()
    first, second = (bench.clients.create(bench.node, image=url) for _ in range(2))
    wait_until(bench.half_images, timeout_seconds=20, what="the download has begun", evidence=bench.cluster.evidence)
    bench.clients.destroy(first)
    wait_until(
        lambda: look(bench.cluster).spec_of(first) is None, timeout_seconds=20, what="the first is gone",
        evidence=bench.cluster.evidence,
    )  # fmt: skip
    bench.images.hurry()
    status = bench.settle().status_of(second)
    assert status is not None and status.phase is Phase.RUNNING
    bench.clients.destroy(second)
    bench.assert_nothing_remains()
