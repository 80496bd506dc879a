"""What a request costs, exactly: the tables below are what the real programs ask of etcd, Placement, libvirt and the disk.

Who makes it cost less changes a table; who makes it cost more had better know. What happens now and then is put off while a
request is counted, and counted by itself: so the numbers do not depend on how fast the machine is.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.counters import Costs, Counted, CountedDeployment, difference
from tests.support.deployment import make_raw_image
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
SELDOM = {
    "etcd": {"lease_ttl_seconds": 3600, "heartbeat_every_seconds": 3000},
    "builder": {"resync_every_seconds": 3000},
}

ASKED_FOR = {
    "eschedule etcd": {
        "Txn reads instances+names": 1,
        "Txn reads hosts": 1,
        "Txn writes instances+names+spec": 1,
    },
    "eschedule placement": {"GET /allocation_candidates": 1, "PUT /allocations/…": 1},
    # Building, with the attempt counted before it is made, and Running.
    "ecompute etcd": {"Txn writes status": 2},
    "ecompute placement": {"GET /allocations/…": 1},
}
WAITED_FOR = {"Txn reads hosts+instances+spec+status": 1, "Watch: status/*": 1}
BUILT = {
    "libvirt virDomainLookupByUUID": 3,  # is it there? · start · mark as booted
    "libvirt virDomainDefineXML": 1,
    "libvirt virDomainCreate": 1,
    "libvirt virDomainSetMetadata": 1,
    "sync fsync": 5,  # the addresses: file and folder · the disk: file, its folder and the folder of that
}
# A pass that something of its own doing has woken: it finds that all is as it should be.
GLANCE = {
    "libvirt virDomainLookupByUUID": 1,
    "libvirt virDomainGetState": 1,
    "libvirt virDomainGetInfo": 1,
    "libvirt virDomainGetMetadata": 1,
}
DESTROY_ASKED_FOR = {
    "eschedule etcd": {
        "Range: names": 1,
        "Range: instances": 1,
        "Txn reads hosts+spec+status": 1,
        "Txn writes spec": 1,
    },
    "ecompute etcd": {
        "Range: spec": 1,  # is it still to go? asked of etcd itself before anything is taken away
        "Txn deletes instances+names+spec+status": 1,
    },
    "ecompute placement": {"GET /allocations/…": 1, "PUT /allocations/…": 1},
}
DESTROY_WAITED_FOR = {
    "Txn reads hosts+instances+spec+status": 2,  # at first, and when the status went
    "Watch: status/*": 1,
    "Txn reads names+spec+status": 1,  # is nothing of it left?
}
TORN_DOWN = {
    "libvirt virDomainLookupByUUID": 3,  # is it there? · destroy · undefine
    "libvirt virDomainGetInfo": 1,
    "libvirt virDomainGetMetadata": 1,
    "libvirt virDomainGetState": 2,
    "libvirt virDomainDestroy": 1,
    "libvirt virDomainUndefineFlags": 2,  # the test driver knows none of the flags
    "sync fsync": 3,
}
GLANCE_AT_NOTHING = {"libvirt virDomainLookupByUUID": 1}
# The thread that keeps addresses ready: as many are as should be.
NETWORK_LOOKED_AT = {
    "libvirt virNetworkLookupByName": 2,
    "libvirt virNetworkGetXMLDesc": 1,
    "libvirt virNetworkIsActive": 1,
    "libvirt virNetworkGetDHCPLeases": 1,
}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountedDeployment]:
    """One host, whose image is cached, and which has an address ready that a guest has given back."""
    made = CountedDeployment(tmp_path_factory.mktemp("costs"), sections=SELDOM)
    try:
        made.start()
        create(made, "first")
        made.eschedule("destroy", "first")
        yield made
    finally:
        made.stop()


@pytest.fixture(autouse=True)
def _nothing_stays(deployment: CountedDeployment) -> Iterator[None]:
    yield
    for key in [key for key in deployment.instance_keys() if "/names/" in key]:
        deployment.eschedule("destroy", key.rpartition("/")[2])


def create(deployment: CountedDeployment, name: str, *options: str) -> None:
    deployment.eschedule(REQUEST, make_raw_image(deployment.directory / "image.raw"), "--name", name, *options)


def waited(costs: Costs, more: dict[str, int]) -> Costs:
    """*costs*, and what a client that waits for the end asks besides."""
    return {**costs, "eschedule etcd": {**costs["eschedule etcd"], **more}}


def assert_costs(deployment: CountedDeployment, counted: Counted, expected: Costs) -> None:
    """The services were asked just what is *expected*; the client did nothing on its machine."""
    assert not (more := difference(expected, counted.services())), f"\n{more}\n{deployment.evidence()}"
    assert [line for line in counted.machine("eschedule") if line.what != "pass"] == []


def assert_work(deployment: CountedDeployment, counted: Counted, call: str, expected: dict[str, int]) -> None:
    """One pass made *call*, and did what is *expected*; others, which events have woken, only took a glance."""
    counted.wait_for_passes_to_end()
    passes = counted.passes()
    working = [done for done in passes.values() if f"libvirt {call}" in done]
    assert len(working) == 1, f"{len(working)} passes with {call}: {passes}\n{deployment.evidence()}"
    assert not (more := difference({"the pass": expected}, {"the pass": working[0]})), more
    others = [done for done in passes.values() if done is not working[0]]
    assert [done for done in others if done not in (GLANCE, GLANCE_AT_NOTHING)] == []


def assert_network_is_looked_at(deployment: CountedDeployment, counted: Counted) -> None:
    """Once for the guest; and perhaps once more, if a minute ended just now."""
    twice = {name: 2 * count for name, count in NETWORK_LOOKED_AT.items()}
    wait_until(
        lambda: counted.of_thread("networks") in (NETWORK_LOOKED_AT, twice), timeout_seconds=30, what="the network was looked at",
        evidence=lambda: difference({"networks": NETWORK_LOOKED_AT}, {"networks": counted.of_thread("networks")}),
    )  # fmt: skip


def test_a_guest_that_is_waited_for(deployment: CountedDeployment) -> None:
    counted = Counted(deployment)
    create(deployment, "waited")
    assert_work(deployment, counted, "virDomainCreate", BUILT)
    assert_costs(deployment, counted, waited(ASKED_FOR, WAITED_FOR))
    assert_network_is_looked_at(deployment, counted)


def test_a_guest_that_is_only_asked_for(deployment: CountedDeployment) -> None:
    counted = Counted(deployment)
    create(deployment, "asked", "--no-wait")
    wait_until(
        lambda: counted.etcd("ecompute")["Txn writes status"] >= 2, timeout_seconds=60, what="it is said to run",
        evidence=deployment.evidence,
    )  # fmt: skip
    assert_work(deployment, counted, "virDomainCreate", BUILT)
    assert_costs(deployment, counted, ASKED_FOR)


def test_the_end_of_a_guest_that_is_waited_for(deployment: CountedDeployment) -> None:
    create(deployment, "ending")
    counted = Counted(deployment)
    deployment.eschedule("destroy", "ending")
    assert_work(deployment, counted, "virDomainDestroy", TORN_DOWN)
    assert_costs(deployment, counted, waited(DESTROY_ASKED_FOR, DESTROY_WAITED_FOR))


def test_the_end_of_a_guest_that_is_only_asked_for(deployment: CountedDeployment) -> None:
    create(deployment, "unwatched")
    counted = Counted(deployment)
    deployment.eschedule("destroy", "unwatched", "--no-wait")
    wait_until(lambda: deployment.instance_keys() == [], timeout_seconds=60, what="it is gone", evidence=deployment.evidence)
    assert_work(deployment, counted, "virDomainDestroy", TORN_DOWN)
    assert_costs(deployment, counted, DESTROY_ASKED_FOR)
