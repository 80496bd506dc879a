"""What becomes of guests that go down without being asked to: by a reboot of the host, by themselves, by a crash, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest

from common.model import InstanceStatus, Phase, Reason
from tests.support.cluster import QUERY, RUN_DIR, Cluster, Node, running_cluster
from tests.support.hosts import HostNetwork
from tests.support.processes import wait_until
from tests.support.small_guest import BOOT_MARK
from tests.support.snapshot import Qemu, look

KEPT = "/var/lib/etcd-compute/kept"  # on a disk of the host, which outlives its reboot
POLICIES = ("never", "on-failure", "always")
MAX_ATTEMPTS = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, host_network: HostNetwork) -> Iterator[Cluster]:
    directory, paths = tmp_path_factory.mktemp("reboot"), {"state_dir": KEPT, "run_dir": RUN_DIR}
    with running_cluster(directory, host_network, hosts=1, paths=paths) as cluster:
        yield cluster


@pytest.fixture
def guests(cluster: Cluster) -> Iterator[dict[str, UUID]]:
    """A running guest of each policy, by the name of the policy."""
    for policy in POLICIES:
        cluster.eschedule(QUERY, cluster.image, "--name", policy, "--restart", policy)
    yield {policy: uuid_of(cluster, policy) for policy in POLICIES}
    for policy in POLICIES:
        cluster.eschedule("destroy", policy)


def uuid_of(cluster: Cluster, name: str) -> UUID:
    item = cluster.store.get(cluster.keys.name(name))
    assert item is not None, name
    return UUID(item.value)


def status_of(cluster: Cluster, instance: UUID) -> InstanceStatus:
    item = cluster.store.get(cluster.keys.status(cluster.nodes[0].provider, instance))
    assert item is not None, instance
    return InstanceStatus.from_json(item.value)


def wait_status(cluster: Cluster, instance: UUID, phase: Phase, reason: str = "", *, timeout_seconds: float = 60) -> None:
    def is_so() -> bool:
        status = status_of(cluster, instance)
        return (status.phase, status.reason) == (phase, reason)

    def evidence() -> str:
        return f"{status_of(cluster, instance)}\n{cluster.evidence()}"

    wait_until(is_so, timeout_seconds=timeout_seconds, what=f"{instance} is {phase} {reason}", evidence=evidence)


def wait_another_run(cluster: Cluster, instance: UUID, before: Qemu | None) -> Qemu:
    """The QEMU of *instance* once it is another one than *before*."""

    def another() -> Qemu | None:
        qemu = look(cluster).qemu_of(instance)
        return qemu if qemu and qemu != before else None

    found = wait_until(another, timeout_seconds=60, what=f"{instance} runs again", evidence=cluster.evidence)
    assert found is not None
    return found


@dataclass(frozen=True)
class Belongings:
    """What a guest keeps while it is down."""

    disk: int
    addresses: object
    mac: str


def belongings(cluster: Cluster, instance: UUID) -> Belongings:
    host = cluster.nodes[0].host
    disk = host.path(f"{KEPT}/instances/{instance}/disk.qcow2").stat().st_ino
    mac = host.run(["virsh", "-q", "domiflist", str(instance)]).stdout.split()[-1]
    return Belongings(disk, status_of(cluster, instance).addresses, mac)


def kill_qemu(cluster: Cluster, instance: UUID) -> None:
    qemu = look(cluster).qemu_of(instance)
    assert qemu is not None, cluster.evidence()
    cluster.nodes[0].host.run(["kill", "-9", str(qemu.pid)], check=False)


def power_off_as_the_guest_would(cluster: Cluster, instance: UUID) -> None:
    """The button is pressed by nobody of ours; the guest itself then switches off, once it has booted so far."""
    console = cluster.nodes[0].host.path(f"{KEPT}/instances/{instance}/console.log")
    wait_until(lambda: BOOT_MARK in console.read_text(errors="replace"), timeout_seconds=30, what="the guest is up")
    cluster.nodes[0].host.run(["virsh", "-q", "shutdown", str(instance)])


def reboot(cluster: Cluster, node: Node) -> None:
    node.host.kill()
    wait_until(lambda: not node.is_running, timeout_seconds=10, what="ecompute went with its host")
    node.host.start()
    node.start_ecompute()
    cluster.wait_ready(node)


def test_a_host_reboot_brings_back_those_that_want_it(cluster: Cluster, guests: dict[str, UUID]) -> None:
    node = cluster.nodes[0]
    cluster.eschedule(QUERY, cluster.image, "--name", "was-off", "--restart", "on-failure")
    was_off = uuid_of(cluster, "was-off")
    power_off_as_the_guest_would(cluster, was_off)
    wait_status(cluster, was_off, Phase.STOPPED, Reason.GUEST_SHUTDOWN)
    before = {policy: belongings(cluster, uuid) for policy, uuid in guests.items()}
    old_boot = node.host.boot_id
    reboot(cluster, node)
    assert node.host.boot_id != old_boot
    wait_status(cluster, guests["never"], Phase.STOPPED, Reason.HOST_REBOOTED)
    for policy in ("on-failure", "always"):
        wait_status(cluster, guests[policy], Phase.RUNNING)
    wait_status(cluster, was_off, Phase.STOPPED, Reason.GUEST_SHUTDOWN)
    assert {policy: belongings(cluster, uuid) for policy, uuid in guests.items()} == before
    world = look(cluster)
    assert set(world.hosts[0].guests) == {*guests.values(), was_off}, "one domain each"
    assert {uuid for uuid, runs in world.hosts[0].qemus.items() if len(runs) == 1} == {guests["on-failure"], guests["always"]}
    assert set(world.hosts[0].claims) == {*guests.values(), was_off}
    cluster.eschedule("start", "never")
    assert belongings(cluster, guests["never"]) == before["never"]
    cluster.eschedule("destroy", "was-off")


def test_a_suspended_guest_outlives_a_reboot_and_a_paused_one_is_as_any_other(cluster: Cluster) -> None:
    names = {"asleep": "never", "halted": "never", "halts-again": "always"}
    for name, policy in names.items():
        cluster.eschedule(QUERY, cluster.image, "--name", name, "--restart", policy)
    uuids = {name: uuid_of(cluster, name) for name in names}
    console = cluster.nodes[0].host.path(f"{KEPT}/instances/{uuids['asleep']}/console.log")
    wait_until(lambda: BOOT_MARK in console.read_text(errors="replace"), timeout_seconds=30, what="the guest is up")
    cluster.eschedule("suspend", "asleep")
    cluster.eschedule("pause", "halted", "halts-again")
    reboot(cluster, cluster.nodes[0])
    wait_status(cluster, uuids["halted"], Phase.STOPPED, Reason.HOST_REBOOTED)
    wait_status(cluster, uuids["halts-again"], Phase.PAUSED)
    assert status_of(cluster, uuids["asleep"]).phase is Phase.SUSPENDED
    cluster.eschedule("resume", "asleep")
    assert console.read_text(errors="replace").count(BOOT_MARK) == 1, "it went on, and did not boot"
    cluster.eschedule("destroy", *names)


def test_a_guest_that_powers_itself_off_comes_back_under_always_only(cluster: Cluster, guests: dict[str, UUID]) -> None:
    before, kept = look(cluster), {policy: belongings(cluster, uuid) for policy, uuid in guests.items()}
    for uuid in guests.values():
        power_off_as_the_guest_would(cluster, uuid)
    for policy in ("never", "on-failure"):
        wait_status(cluster, guests[policy], Phase.STOPPED, Reason.GUEST_SHUTDOWN)
    wait_another_run(cluster, guests["always"], before.qemu_of(guests["always"]))
    wait_status(cluster, guests["always"], Phase.RUNNING)
    node = cluster.nodes[0]
    node.kill_ecompute()
    node.start_ecompute()
    cluster.wait_ready(node)
    for policy in ("never", "on-failure"):
        wait_status(cluster, guests[policy], Phase.STOPPED, Reason.GUEST_SHUTDOWN)
        assert look(cluster).qemu_of(guests[policy]) is None, "a restart of ecompute is no reason either"
    assert {policy: belongings(cluster, uuid) for policy, uuid in guests.items()} == kept


def test_a_guest_that_crashed_comes_back_unless_never(cluster: Cluster, guests: dict[str, UUID]) -> None:
    before, kept = look(cluster), {policy: belongings(cluster, uuid) for policy, uuid in guests.items()}
    for uuid in guests.values():
        kill_qemu(cluster, uuid)
    for policy in ("on-failure", "always"):
        wait_another_run(cluster, guests[policy], before.qemu_of(guests[policy]))
        wait_status(cluster, guests[policy], Phase.RUNNING)
    wait_status(cluster, guests["never"], Phase.STOPPED, Reason.CRASHED)
    assert {policy: belongings(cluster, uuid) for policy, uuid in guests.items()} == kept


def test_a_guest_that_crashes_again_and_again_is_given_up_and_kept(cluster: Cluster, guests: dict[str, UUID]) -> None:
    instance, seen = guests["always"], set[Qemu]()
    kept = belongings(cluster, instance)

    def is_given_up() -> bool:
        qemu = look(cluster).qemu_of(instance)
        if qemu is not None:
            seen.add(qemu)
            cluster.nodes[0].host.run(["kill", "-9", str(qemu.pid)], check=False)
        status = status_of(cluster, instance)
        return (status.phase, status.reason) == (Phase.STOPPED, Reason.START_FAILED)

    wait_until(is_given_up, timeout_seconds=90, what="it is given up", evidence=cluster.evidence)
    assert 2 <= len(seen) <= MAX_ATTEMPTS + 1, "each attempt, and none without end"
    assert status_of(cluster, instance).message
    assert belongings(cluster, instance) == kept
    assert instance in look(cluster).hosts[0].claims
    cluster.eschedule("start", "always")
    wait_status(cluster, instance, Phase.RUNNING)
    assert belongings(cluster, instance) == kept
