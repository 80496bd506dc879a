"""What a request costs, exactly: the tables below are what the real programs ask of etcd, Placement, libvirt and the disk.

Who makes it cost less changes a table; who makes it cost more had better know. What happens now and then is put off while a
request is counted, and counted by itself: so the numbers do not depend on how fast the machine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.config import ComputeConfig
from common.etcd_watch import QUIET_SECONDS
from tests.support.counters import Costs, Counted, CountedDeployment, cycles, difference
from tests.support.deployment import make_raw_image
from tests.support.processes import wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
SELDOM = {
    "etcd": {"lease_ttl_seconds": 3600, "heartbeat_every_seconds": 3000},
    "builder": {"resync_every_seconds": 3000},
}

ASKED_FOR = {
    "eschedule etcd": {
        "Txn reads instances+names": 1,
        "Txn reads hosts": 1,
        "Txn writes _journal+instances+names+spec": 1,  # what is written into the journal goes along, and costs no call
    },
    "eschedule placement": {"GET /allocation_candidates": 1, "PUT /allocations/…": 1},
    # Building, with the attempt counted before it is made, and Running.
    "ecompute etcd": {"Txn writes status": 1, "Txn writes _journal+status": 1},
    "ecompute placement": {"GET /allocations/…": 1},
}
WAITED_FOR = {"Txn reads hosts+instances+spec+status": 1, "Watch: status/*": 1}
# In place of a flag that the test driver does not know: start anew, or undefine, with the saved memory that there may be.
SAVED_MEMORY_DROPPED = {"libvirt virDomainIsActive": 1, "libvirt virDomainHasManagedSaveImage": 1}
BUILT = {
    **SAVED_MEMORY_DROPPED,
    "libvirt virDomainLookupByUUID": 3,  # is it there? · start · mark as booted
    "libvirt virDomainDefineXML": 1,
    "libvirt virDomainCreateWithFlags": 1,
    "libvirt virDomainCreate": 1,  # the test driver's alone
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
        "Txn writes _journal+spec": 1,
    },
    "ecompute etcd": {
        "Range: spec": 1,  # is it still to go? asked of etcd itself before anything is taken away
        "Txn writes _journal, deletes instances+names+spec+status": 1,
    },
    "ecompute placement": {"GET /allocations/…": 1, "PUT /allocations/…": 1},
}
DESTROY_WAITED_FOR = {
    "Txn reads hosts+instances+spec+status": 2,  # at first, and when the status went
    "Watch: status/*": 1,
    "Txn reads names+spec+status": 1,  # is nothing of it left?
}
TORN_DOWN = {
    **SAVED_MEMORY_DROPPED,
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


# What happens now and then, on a host with one guest.
BEAT = {  # half a beat apart: each proves to the watches that etcd lives, so that they need not ask
    "LeaseKeepAlive": 1,
    "Range: hosts": 1,  # does the host key still stand?
}
FULL_LOOK = {"GET /resource_providers/…/allocations": 1}
FULL_LOOK_AT_GUESTS = {
    "libvirt virConnectListAllDomains": 1,
    "libvirt virDomainGetState": 1,
    "libvirt virDomainGetInfo": 1,
    "libvirt virDomainGetMetadata": 1,
    # Has every guest its DHCP entry still? once a network
    "libvirt virNetworkLookupByName": 1,
    "libvirt virNetworkGetXMLDesc": 1,
    "libvirt virNetworkIsActive": 1,
}
# A fifth of the usual times, of which only the proportion counts.
HURRIED = {
    "etcd": {"lease_ttl_seconds": 20, "heartbeat_every_seconds": 2.0},
    "builder": {"resync_every_seconds": 2},
}
HURRIED_QUIET_SECONDS = 1.2


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


@pytest.fixture
def quiet(deployment: CountedDeployment) -> Iterator[CountedDeployment]:
    """Nothing happens on it by itself; what a test leaves goes at its end."""
    yield deployment
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
        lambda: Counter(counted.of_thread("networks")) in (NETWORK_LOOKED_AT, twice), timeout_seconds=30, what="the network was looked at",
        evidence=lambda: difference({"networks": NETWORK_LOOKED_AT}, {"networks": Counter(counted.of_thread("networks"))}),
    )  # fmt: skip


def test_a_guest_that_is_waited_for(quiet: CountedDeployment) -> None:
    counted = Counted(quiet)
    create(quiet, "waited")
    assert_work(quiet, counted, "virDomainCreate", BUILT)
    assert_costs(quiet, counted, waited(ASKED_FOR, WAITED_FOR))
    assert_network_is_looked_at(quiet, counted)


def test_a_guest_with_a_config_drive(quiet: CountedDeployment) -> None:
    """Costs two syncs, of the drive and of the folder that names it, and nobody is asked for anything more."""
    counted = Counted(quiet)
    create(quiet, "driven", "--config-drive", "nocloud")
    assert_work(quiet, counted, "virDomainCreate", {**BUILT, "sync fsync": BUILT["sync fsync"] + 2})
    assert_costs(quiet, counted, waited(ASKED_FOR, WAITED_FOR))


def test_a_guest_that_is_only_asked_for(quiet: CountedDeployment) -> None:
    counted = Counted(quiet)
    create(quiet, "asked", "--no-wait")
    wait_until(
        lambda: counted.etcd("ecompute").count("Txn writes _journal+status") >= 1, timeout_seconds=60, what="it is said to run",
        evidence=quiet.evidence,
    )  # fmt: skip
    assert_work(quiet, counted, "virDomainCreate", BUILT)
    assert_costs(quiet, counted, ASKED_FOR)


def test_a_key_that_is_kept_costs_one_question_more(quiet: CountedDeployment) -> None:
    (quiet.directory / "key.pub").write_text(KEY)
    quiet.eschedule("key", "add", "alice", quiet.directory / "key.pub")
    quiet.eschedule("key", "add", "bob", quiet.directory / "key.pub")
    counted = Counted(quiet)
    create(quiet, "keyed", "--key", "alice", "--key", "bob", "--key", str(quiet.directory / "key.pub"))
    asked = {**ASKED_FOR["eschedule etcd"], "Txn reads ssh-keys": 1}
    assert_costs(quiet, counted, waited({**ASKED_FOR, "eschedule etcd": asked}, WAITED_FOR))


def test_what_is_changed_while_it_runs(quiet: CountedDeployment) -> None:
    create(quiet, "changing")
    counted = Counted(quiet)
    quiet.eschedule("set", "changing", "--metadata-hop-limit", "2")
    expected: Costs = {
        "eschedule etcd": {
            "Range: names": 1, "Range: instances": 1, "Txn reads hosts+spec+status": 1, "Txn writes _journal+spec": 1, **WAITED_FOR,
        },
        "ecompute etcd": {"Txn writes status": 1},
    }  # fmt: skip
    assert_costs(quiet, counted, expected)


def test_the_end_of_a_guest_that_is_waited_for(quiet: CountedDeployment) -> None:
    create(quiet, "ending")
    counted = Counted(quiet)
    quiet.eschedule("destroy", "ending")
    assert_work(quiet, counted, "virDomainDestroy", TORN_DOWN)
    assert_costs(quiet, counted, waited(DESTROY_ASKED_FOR, DESTROY_WAITED_FOR))


def test_the_end_of_a_guest_that_is_only_asked_for(quiet: CountedDeployment) -> None:
    create(quiet, "unwatched")
    counted = Counted(quiet)
    quiet.eschedule("destroy", "unwatched", "--no-wait")
    wait_until(lambda: quiet.instance_keys() == [], timeout_seconds=60, what="it is gone", evidence=quiet.evidence)
    assert_work(quiet, counted, "virDomainDestroy", TORN_DOWN)
    assert_costs(quiet, counted, DESTROY_ASKED_FOR)


@pytest.fixture
def hurried(tmp_path: Path) -> Iterator[CountedDeployment]:
    constants = {"common.etcd_watch.QUIET_SECONDS": HURRIED_QUIET_SECONDS, "ecompute.resync.JITTER": 0.0}
    made = CountedDeployment(tmp_path, constants=constants, sections=HURRIED)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def wait_for_three(deployment: CountedDeployment, expected: dict[str, int], found: Callable[[], list[list[str]]]) -> None:
    """Return when three cycles in a row were what is *expected*; on a machine that stood still in between one may be longer."""

    def are_as_expected() -> bool:
        counts = [Counter(cycle) for cycle in found()]
        return any(counts[at : at + 3] == [expected] * 3 for at in range(len(counts) - 2))

    def shown() -> str:
        return "\n--\n".join(
            difference({"a cycle": expected}, {"a cycle": Counter(cycle)}) or "as expected" for cycle in found()
        )

    wait_until(are_as_expected, timeout_seconds=60, what="three cycles as expected", evidence=shown)


def test_an_idle_host(hurried: CountedDeployment) -> None:
    create(hurried, "idle")
    counted = Counted(hurried)
    wait_for_three(hurried, BEAT, lambda: cycles(counted.etcd("ecompute"), "LeaseKeepAlive"))
    wait_for_three(hurried, FULL_LOOK, lambda: cycles(counted.placement("ecompute"), next(iter(FULL_LOOK))))
    wait_for_three(hurried, FULL_LOOK_AT_GUESTS, lambda: cycles(counted.of_thread("resync"), next(iter(FULL_LOOK_AT_GUESTS))))
    assert [line for line in counted.machine("ecompute") if line.what in ("sync", "process")] == []


def test_a_minute_of_an_idle_host_as_it_is_configured_by_default() -> None:
    config = ComputeConfig()
    beats = 60 / config.etcd.heartbeat_every_seconds
    assert beats * sum(BEAT.values()) == 12
    assert 60 / config.builder.resync_every_seconds * sum(FULL_LOOK.values()) == 1
    hurry = HURRIED["etcd"]["heartbeat_every_seconds"] / config.etcd.heartbeat_every_seconds
    assert QUIET_SECONDS * hurry == pytest.approx(HURRIED_QUIET_SECONDS), "it is as hurried as the beats"
