"""etcd, Placement or libvirtd away: guests go on, the host says so once and everywhere, and comes back without help."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.model import Phase
from tests.support.cluster import QUERY, Cluster, Node, running_cluster
from tests.support.host_metrics import LISTEN, METRICS_PORT, LogMark, is_up, metrics
from tests.support.hosts import HostNetwork
from tests.support.processes import VENV_BIN, wait_until
from tests.support.snapshot import look

GUESTS = ("web-1", "web-2", "web-3")
HANDFUL = 12  # lines about one outage, its beginning and its end, whatever happened to the guests meanwhile
LEASE_SECONDS = 10
ASK_AS_GUEST = """
import http.client, sys
connection = http.client.HTTPConnection("169.254.169.254", 80, timeout=10, source_address=(sys.argv[1], 0))
connection.request("GET", "/latest/meta-data/instance-id")
print(connection.getresponse().read().decode())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, host_network: HostNetwork) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("degraded")
    with running_cluster(directory, host_network, hosts=1, metadata={"mode": "managed"}, metrics=LISTEN) as cluster:
        for name in GUESTS:
            cluster.eschedule(QUERY, cluster.image, "--name", name)
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Node:
    cluster.wait_ready()
    return cluster.nodes[0]


def uuid_of(cluster: Cluster, name: str) -> UUID:
    item = cluster.store.get(cluster.keys.name(name))
    assert item is not None, name
    return UUID(item.value)


def wait_phase(cluster: Cluster, name: str, phase: Phase) -> None:
    instance = uuid_of(cluster, name)

    def is_there() -> bool:
        status = look(cluster).status_of(instance)
        return status is not None and status.phase is phase

    wait_until(is_there, timeout_seconds=60, what=f"{name} is {phase}", evidence=cluster.evidence)


def wait_service(cluster: Cluster, node: Node, service: str, *, up: bool) -> None:
    what = f"{service} is {'up' if up else 'away'} in the metrics"
    wait_until(
        lambda: bool(metrics(node)) and is_up(node, service) is up, timeout_seconds=60, what=what, evidence=cluster.evidence
    )


def hosts_line(cluster: Cluster) -> str:
    return cluster.eschedule("hosts", check=False).stdout  # with Placement away it shows what etcd says, and exits 4


def assert_said_once(log: LogMark, service: str) -> None:
    lines = "\n".join(log.lines())
    assert len(log.having(f"{service} is away")) == 1, lines
    assert len(log.having(f"{service} is back")) == 1, lines
    assert len(log.lines()) <= HANDFUL, lines


@contextlib.contextmanager
def address_of_guest(cluster: Cluster, node: Node, name: str) -> Iterator[str]:
    """The guest's address, given to the host as well, so that the host can ask as the guest would."""
    status = look(cluster).status_of(uuid_of(cluster, name))
    assert status is not None
    address = status.addresses[0].address
    node.host.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    yield address
    node.host.run(["ip", "address", "del", f"{address}/32", "dev", "lo"])


def test_etcd_away_for_longer_than_the_lease(cluster: Cluster, node: Node) -> None:
    before = look(cluster)
    instances = {name: uuid_of(cluster, name) for name in GUESTS}
    log = LogMark(node)
    with address_of_guest(cluster, node, "web-1") as address:
        cluster.etcd.members[0].kill()
        wait_service(cluster, node, "etcd", up=False)
        wait_until(
            lambda: metrics(node)["ecompute_host_lease_seconds"] == 0.0, timeout_seconds=2 * LEASE_SECONDS,
            what="the lease is over", evidence=cluster.evidence,
        )  # fmt: skip
        # Something to report that cannot be reported: it is retried, and that is not said each time.
        crashed = node.host.run(["pgrep", "-f", f"qemu-system.*{instances['web-3']}"]).stdout.split()[0]
        node.host.run(["kill", "-9", crashed])
        wait_until(
            lambda: metrics(node).get("ecompute_passes_total{outcome=\"retry\"}", 0.0) >= 3, timeout_seconds=60,
            what="it is tried again and again", evidence=cluster.evidence,
        )  # fmt: skip
        answer = node.host.run([VENV_BIN / "python", "-c", ASK_AS_GUEST, address])
        assert answer.stdout.strip() == str(instances["web-1"]), "the metadata service needs no etcd"
        assert metrics(node)['ecompute_service_state_seconds{service="etcd"}'] > 0
        assert cluster.eschedule("list", check=False).returncode == 4
        cluster.etcd.members[0].start()
    wait_service(cluster, node, "etcd", up=True)
    cluster.wait_ready()
    wait_phase(cluster, "web-3", Phase.STOPPED)
    assert_said_once(log, "etcd")
    cluster.eschedule(QUERY, cluster.image, "--name", "web-4")
    after = look(cluster)
    for name in ("web-1", "web-2"):
        assert before.qemu_of(instances[name]) == after.qemu_of(instances[name]), name
    assert metrics(node)["ecompute_host_lease_seconds"] > 0
    cluster.eschedule("start", "web-3")
    cluster.eschedule("destroy", "web-4")


def test_placement_away(cluster: Cluster, node: Node) -> None:
    cluster.eschedule(QUERY, cluster.image, "--name", "going")
    before = look(cluster)
    instances = {name: uuid_of(cluster, name) for name in GUESTS}
    log = LogMark(node)
    cluster.placement_server.kill()
    cluster.eschedule("destroy", "going", "--no-wait")
    wait_phase_by_etcd(cluster, "going", Phase.DELETING)
    wait_service(cluster, node, "placement", up=False)
    wait_until(
        lambda: "Degraded: Placement is away since " in hosts_line(cluster), timeout_seconds=20,
        what="hosts are told", evidence=lambda: hosts_line(cluster) + cluster.evidence(),
    )  # fmt: skip
    assert is_up(node, "etcd")
    assert is_up(node, "libvirt")
    cluster.placement_server.start()
    wait_service(cluster, node, "placement", up=True)
    wait_until(
        lambda: cluster.store.get(cluster.keys.name("going")) is None, timeout_seconds=60,
        what="the deletion ends", evidence=cluster.evidence,
    )  # fmt: skip
    cluster.wait_ready()
    assert "Degraded" not in hosts_line(cluster)
    lines = "\n".join(log.lines())
    assert len(log.having("Placement is away")) == 1, lines
    assert len(log.having("Placement is back")) == 1, lines
    assert len(log.having("trying again")) == 0, lines
    after = look(cluster)
    assert {name: before.qemu_of(uuid) for name, uuid in instances.items()} == {
        name: after.qemu_of(uuid) for name, uuid in instances.items()
    }


def wait_phase_by_etcd(cluster: Cluster, name: str, phase: Phase) -> None:
    """As ``wait_phase``, without Placement."""
    key = cluster.keys.status(cluster.nodes[0].provider, uuid_of(cluster, name))

    def is_there() -> bool:
        item = cluster.store.get(key)
        return item is not None and f'"{phase}"' in item.value

    wait_until(is_there, timeout_seconds=60, what=f"{name} is {phase}", evidence=cluster.evidence)


def test_libvirtd_away(cluster: Cluster, node: Node) -> None:
    before = look(cluster)
    instances = {name: uuid_of(cluster, name) for name in GUESTS}
    log = LogMark(node)
    node.host.stop_libvirtd(signal.SIGKILL)
    wait_service(cluster, node, "libvirt", up=False)
    wait_until(
        lambda: "Degraded: libvirt is away since " in hosts_line(cluster), timeout_seconds=20,
        what="hosts are told", evidence=lambda: hosts_line(cluster) + cluster.evidence(),
    )  # fmt: skip
    cluster.eschedule("stop", "web-2", "--no-wait")
    wait_until(
        lambda: metrics(node).get("ecompute_retries_total{cause=\"HypervisorUnavailable\"}", 0.0) >= 2, timeout_seconds=60,
        what="it is tried again and again", evidence=cluster.evidence,
    )  # fmt: skip
    node.host.start_libvirtd()
    wait_service(cluster, node, "libvirt", up=True)
    wait_phase(cluster, "web-2", Phase.STOPPED)
    assert len(log.having("libvirt is away")) == 1, "\n".join(log.lines())
    assert len(log.having("libvirt is back")) == 1, "\n".join(log.lines())
    assert not log.having("trying again"), "\n".join(log.lines())
    after = look(cluster)
    for name in ("web-1", "web-3"):
        assert before.qemu_of(instances[name]) == after.qemu_of(instances[name]), name
    cluster.wait_ready()
    cluster.eschedule("start", "web-2")


def test_a_frozen_etcd_is_away_too(cluster: Cluster, node: Node) -> None:
    """Its connections stay open and silent, which is no answer."""
    log = LogMark(node)
    cluster.etcd.members[0].freeze()
    wait_service(cluster, node, "etcd", up=False)
    cluster.etcd.members[0].thaw()
    wait_service(cluster, node, "etcd", up=True)
    assert_said_once(log, "etcd")


def test_metrics_show_the_instances_and_the_work(cluster: Cluster, node: Node) -> None:
    shown = metrics(node)
    assert shown['ecompute_instances{phase="Running"}'] == len(GUESTS)
    assert shown['ecompute_step_seconds_count{step="Start"}'] >= len(GUESTS)
    assert shown['ecompute_passes_total{outcome="done"}'] > 0
    assert shown["ecompute_resync_last_success_timestamp_seconds"] > 0
    text = "\n".join(shown)
    assert not [name for name in GUESTS if str(uuid_of(cluster, name)) in text], "no label holds an instance"


def test_a_port_for_metrics_that_is_taken_keeps_nobody_from_serving(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    node.stop_ecompute()
    log = LogMark(node)
    listener = f"import socket, time; taken = socket.create_server(('0.0.0.0', {METRICS_PORT})); time.sleep(600)"
    taker = node.host.spawn([VENV_BIN / "python", "-c", listener], log=tmp_path / "taker.log")
    wait_until(
        lambda: f":{METRICS_PORT:04X} " in node.host.run(["cat", "/proc/net/tcp"]).stdout,
        timeout_seconds=10, what="the port is taken",
    )  # fmt: skip
    node.start_ecompute()
    cluster.wait_ready()
    assert len(log.having("level=warning.*no metrics: cannot listen")) == 1
    taker.stop(with_signal=signal.SIGKILL)
