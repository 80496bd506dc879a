"""Zombies and clones: an ecompute that slept through its own death, one whose provider was taken, and copies of a machine.

What each of them wrote is read from etcd's own history, and what it did to guests from the processes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.journal import Subject
from common.model import HostRecord, InstanceSpec, InstanceStatus, OwnerRecord, Phase
from common.placement import OWNER_TRAIT
from common.store import Versioned, WatchEvent
from tests.support.cluster import QUERY, RUN_DIR, Cluster, Node, running_cluster
from tests.support.host_metrics import LogMark
from tests.support.hosts import HostNetwork
from tests.support.processes import VENV_BIN, wait_until
from tests.support.snapshot import World, look

LEASE_SECONDS = 10


@contextlib.contextmanager
def cluster_of_one(directory: Path, network: HostNetwork) -> Iterator[Cluster]:
    """Two hosts, of which the first has an ecompute; the second is what a test makes of it."""
    with running_cluster(directory, network, hosts=2, with_ecompute=False) as cluster:
        cluster.nodes[0].start_ecompute()
        cluster.wait_ready(cluster.nodes[0])
        wait_until(lambda: has_settled(cluster), timeout_seconds=20, what="all is written", evidence=cluster.evidence)
        yield cluster


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory, host_network: HostNetwork) -> Iterator[Cluster]:
    with cluster_of_one(tmp_path_factory.mktemp("fencing"), host_network) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The same for many tests; each leaves the first host serving, and finds no instance."""
    shared_cluster.nodes[1].log.unlink(missing_ok=True)
    yield shared_cluster
    first, second = shared_cluster.nodes
    second.kill_ecompute()
    assert first.is_running, shared_cluster.evidence()
    for item in shared_cluster.store.list(shared_cluster.keys.specs(first.provider)).items:
        shared_cluster.eschedule("destroy", InstanceSpec.from_json(item.value).name)


@pytest.fixture
def own_cluster(tmp_path: Path, host_network: HostNetwork) -> Iterator[Cluster]:
    with cluster_of_one(tmp_path, host_network) as cluster:
        yield cluster


def has_settled(cluster: Cluster) -> bool:
    item = cluster.store.get(cluster.keys.host(cluster.nodes[0].provider))
    return item is not None and HostRecord.from_json(item.value).capacity != {}


class History:
    """What was written to etcd from its making on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.began = cluster.store.list(cluster.prefix).revision

    def events(self, kind: str = "") -> list[WatchEvent]:
        """All events so far, of keys of that *kind* ("status", "hosts", …)."""
        store, prefix = self._cluster.store, self._cluster.prefix
        last = store.create(f"{prefix}test-marker/{uuid4()}", "until here")
        found: list[WatchEvent] = []
        stop = threading.Event()
        for batch in store.watch(prefix, revision=self.began + 1, cluster_id=store.cluster_id(), stop=stop):
            found += [event for event in batch if "test-marker" not in event.key]
            if any(event.mod_revision >= last for event in batch):
                stop.set()
                break
        return [event for event in found if event.key.startswith(f"{prefix}{kind}")]

    def shown(self) -> str:
        return "\n".join(
            f"{event.mod_revision} {event.key} {event.item.value if event.item else '-'}" for event in self.events()
        )


def uuid_of(cluster: Cluster, name: str) -> UUID:
    item = cluster.store.get(cluster.keys.name(name))
    assert item is not None, name
    return UUID(item.value)


def create(cluster: Cluster, name: str, *more: str) -> UUID:
    cluster.eschedule(QUERY, cluster.image, "--name", name, *more)
    return uuid_of(cluster, name)


def wait_phase(cluster: Cluster, instance: UUID, phase: Phase) -> World:
    def is_there() -> World | None:
        world = look(cluster)
        status = world.status_of(instance)
        return world if status is not None and status.phase is phase else None

    found = wait_until(is_there, timeout_seconds=60, what=f"{instance} is {phase}", evidence=cluster.evidence)
    assert found is not None
    return found


def wait_host_key(cluster: Cluster, node: Node, *, there: bool) -> int:
    """Its ``create_revision``, once it is there, or 0 once it is gone."""

    def is_so() -> bool:
        return (cluster.store.get(cluster.keys.host(node.provider)) is not None) is there

    wait_until(
        is_so,
        timeout_seconds=3 * LEASE_SECONDS,
        what=f"the host key is {'there' if there else 'gone'}",
        evidence=cluster.evidence,
    )
    item = cluster.store.get(cluster.keys.host(node.provider))
    return item.create_revision if item else 0


def wait_gone(cluster: Cluster, instance: UUID) -> None:
    wait_until(
        lambda: cluster.store.get(cluster.keys.instance(instance)) is None, timeout_seconds=60, what=f"{instance} is gone",
        evidence=cluster.evidence,
    )  # fmt: skip


def make_copy(original: Node, copy: Node) -> None:
    """Give *copy* the machine id and the configured uuid of *original*, as a cloned disk would."""
    copy.provider = original.provider
    copy.configure()
    machine_id = (original.host.directory / "machine-id").read_text()
    (copy.host.directory / "machine-id").write_text(machine_id)
    assert copy.host.run(["cat", "/etc/machine-id"]).stdout == machine_id


def assert_refused(cluster: Cluster, copy: Node, history: History, words: str) -> None:
    copy.start_ecompute()
    assert copy.wait_ecompute_ended(timeout_seconds=3 * LEASE_SECONDS) == 5, cluster.evidence()
    assert words in copy.log.read_text()
    assert history.events() == [], history.shown()
    assert look(cluster).hosts[1].guests == {}


def test_a_paused_ecompute_acts_on_nothing_that_it_missed(cluster: Cluster) -> None:
    """Paused for longer than its lease, with orders given and taken back meanwhile, which its watch will bring one by one."""
    node = cluster.nodes[0]
    keeps, goes = create(cluster, "keeps"), create(cluster, "goes")
    before = look(cluster)
    old_key = wait_host_key(cluster, node, there=True)
    node.pause_ecompute()
    wait_host_key(cluster, node, there=False)
    wanted_up = cluster.store.get(cluster.keys.spec(node.provider, keeps))
    cluster.eschedule("stop", "keeps", "--no-wait")
    take_back(cluster, wanted_up)
    cluster.eschedule("destroy", "goes", "--no-wait")
    assert cluster.eschedule(QUERY, cluster.image, "--name", "none", check=False).returncode == 3
    history = History(cluster)
    node.resume_ecompute()
    wait_gone(cluster, goes)
    new_key = wait_host_key(cluster, node, there=True)
    assert new_key > old_key
    cluster.wait_ready(node)
    own = (cluster.keys.host(node.provider), cluster.keys.events_of(Subject.HOST, node.provider))  # that it is back
    written = [event for event in history.events() if not event.key.startswith(own)]
    assert all(event.mod_revision > new_key for event in written), history.shown()
    after = wait_phase(cluster, keeps, Phase.RUNNING)
    assert after.qemu_of(keeps) == before.qemu_of(keeps)
    assert after.hosts[0].boots[keeps] == 1
    assert not any(event.step in ("Shutdown", "Destroy") for event in steps(after, keeps))
    assert after.qemu_of(goes) is None
    assert set(after.hosts[0].guests) == set(after.hosts[0].claims) == {keeps}


def take_back(cluster: Cluster, before: Versioned | None) -> None:
    """Have the spec say again what it said *before*. (A start in its place would be carried out as a reboot.)"""
    assert before is not None
    now = cluster.store.get(before.key)
    assert now is not None and now.value != before.value
    cluster.store.replace(before.key, before.value, seen=now.mod_revision)


def steps(world: World, instance: UUID) -> list[object]:
    status = world.status_of(instance)
    assert isinstance(status, InstanceStatus)
    return list(status.events)


@contextlib.contextmanager
def hesitant_server(address: str, image: Path) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Serves *image*, but for its last byte; (its URL, set when somebody asked, lets the last byte go)."""
    asked, may_end = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = image.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:-1])
            self.wfile.flush()
            asked.set()
            may_end.wait(120)
            with contextlib.suppress(OSError):
                self.wfile.write(content[-1:])

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}/image.raw", asked, may_end
    finally:
        may_end.set()
        server.shutdown()
        server.server_close()


def test_a_build_that_was_paused_and_taken_back_is_not_finished(cluster: Cluster) -> None:
    """It wakes up while etcd says nothing, so that its clock alone can tell it that its time was over."""
    node = cluster.nodes[0]
    said_before = node.log.stat().st_size
    with hesitant_server(cluster.address, cluster.image) as (url, asked, may_end):
        cluster.eschedule(QUERY, url, "--name", "half", "--no-wait")
        half = uuid_of(cluster, "half")
        assert asked.wait(30), cluster.evidence()
        node.pause_ecompute()
        wait_host_key(cluster, node, there=False)
        cluster.eschedule("destroy", "half", "--no-wait")
        history, log = History(cluster), LogMark(node)
        may_end.set()
        cluster.etcd.members[0].freeze()
        node.resume_ecompute()
        wait_until(
            lambda: log.having("etcd is away"), timeout_seconds=60, what="it has noticed that etcd is away",
            evidence=cluster.evidence,
        )  # fmt: skip
        cluster.etcd.members[0].thaw()
        wait_gone(cluster, half)
    new_key = wait_host_key(cluster, node, there=True)
    for event in history.events("status"):
        assert event.mod_revision > new_key, history.shown()
        assert event.item is None or InstanceStatus.from_json(event.item.value).phase is Phase.DELETING, history.shown()
    world = look(cluster)
    assert (world.hosts[0].guests, world.hosts[0].folders, world.hosts[0].claims) == ({}, frozenset(), {})
    log = node.log.read_text()[said_before:]
    assert "step=Define" not in log
    assert "step=Start" not in log


def test_the_first_host_ends_and_writes_nothing_when_its_provider_was_taken(own_cluster: Cluster) -> None:
    cluster = own_cluster
    first, second = cluster.nodes
    kept = create(cluster, "kept")
    before = look(cluster)
    first.pause_ecompute()
    second.provider = first.provider
    second.configure()
    second.start_ecompute(VENV_BIN / "ecompute", "--take-provider")
    wait_until(
        lambda: second.is_ready() and cluster.placement.provider(first.provider).name == second.name,  # type: ignore[union-attr]
        timeout_seconds=60, what="the second host serves the provider", evidence=cluster.evidence,
    )  # fmt: skip
    wait_phase(cluster, kept, Phase.STOPPED)
    provider, history = cluster.placement.provider(first.provider), History(cluster)
    first.resume_ecompute()
    assert first.wait_ecompute_ended() == 5, cluster.evidence()
    assert f"belongs to {second.name}" in first.log.read_text()
    assert history.events("status") + history.events("hosts") + history.events("spec") == [], history.shown()
    assert cluster.placement.provider(first.provider) == provider, "its name, inventory and traits are the second host's"
    after = look(cluster)
    on_first = after.hosts[0]
    assert on_first.qemus[kept] == before.hosts[0].qemus[kept]
    assert on_first.folders == before.hosts[0].folders
    assert after.hosts[1].guests == {}, "what has run is not built anew elsewhere"
    assert second.is_running
    first.start_ecompute()
    assert first.wait_ecompute_ended() == 5, "nor does it come back by being started again"
    assert look(cluster).hosts[0].qemus[kept] == before.hosts[0].qemus[kept]


def test_a_machine_in_place_of_a_lost_one_gives_its_instances_up_or_makes_them_anew(own_cluster: Cluster) -> None:
    """As docs/operations.md has it: the guests of the lost machine are gone with it, and so are their disks."""
    cluster = own_cluster
    first, second = cluster.nodes
    for name in ("lost", "again"):
        create(cluster, name)
    cluster.eschedule("volume", "create", "data", "--size", "1", "--host", first.name)
    first.host.kill()
    wait_until(
        lambda: cluster.store.get(cluster.keys.host(first.provider)) is None, timeout_seconds=3 * LEASE_SECONDS,
        what="the first host is dead", evidence=cluster.evidence,
    )  # fmt: skip
    refused = cluster.eschedule("host", "remove", first.name, check=False)
    assert refused.returncode == 5
    assert f"with `uuid: {first.provider}` in its compute.yaml and, once, ecompute --take-provider" in refused.stderr

    second.provider = first.provider
    second.configure()
    second.start_ecompute(VENV_BIN / "ecompute", "--take-provider")
    cluster.wait_ready(second)
    cluster.eschedule("wait", "lost", "again", "--for", "stopped", "--timeout", "60")
    assert cluster.eschedule("list").stdout.count("DiskMissing") == 2
    cluster.eschedule("destroy", "lost")
    cluster.eschedule("volume", "rm", "data")
    cluster.eschedule("rebuild", "again", "--yes")
    assert second.stop_ecompute() == 0
    second.start_ecompute()  # from now on as any other
    cluster.wait_ready(second)
    assert "Running" in cluster.eschedule("list").stdout
    cluster.eschedule("destroy", "again")
    cluster.eschedule("host", "remove", second.name)
    assert cluster.placement.providers(OWNER_TRAIT) == []


def test_a_living_hosts_provider_cannot_be_taken(cluster: Cluster) -> None:
    first, second = cluster.nodes
    second.provider = first.provider
    second.configure()
    history = History(cluster)
    second.start_ecompute(VENV_BIN / "ecompute", "--take-provider")
    assert second.wait_ecompute_ended(timeout_seconds=3 * LEASE_SECONDS) == 5
    assert f"{first.name} still has a heartbeat" in second.log.read_text()
    assert history.events() == [], history.shown()
    first.kill_ecompute()
    first.start_ecompute()
    cluster.wait_ready(first)


def test_a_cloned_machine_builds_nothing_while_the_first_is_down_or_up(cluster: Cluster) -> None:
    first, copy = cluster.nodes
    off = create(cluster, "off")
    cluster.eschedule("stop", "off")
    make_copy(first, copy)
    assert first.stop_ecompute() == 0
    cluster.eschedule("start", "off", "--no-wait")
    assert_refused(cluster, copy, History(cluster), f"belongs to {first.name}")
    first.start_ecompute()
    cluster.wait_ready(first)
    world = wait_phase(cluster, off, Phase.RUNNING)
    assert set(world.hosts[0].guests) == {off}
    before = world.qemu_of(off)
    assert_refused(cluster, copy, History(cluster), f"belongs to {first.name}")
    assert first.is_running
    assert look(cluster).qemu_of(off) == before


def test_a_clone_cannot_take_the_first_out_of_the_cluster(cluster: Cluster) -> None:
    first, copy = cluster.nodes
    make_copy(first, copy)
    assert first.stop_ecompute() == 0
    history = History(cluster)
    copy.start_ecompute(VENV_BIN / "ecompute", "--leave")
    assert copy.wait_ecompute_ended() == 5
    assert "nothing was removed" in copy.log.read_text()
    assert history.events() == [], history.shown()
    assert cluster.placement.provider(first.provider) is not None
    first.start_ecompute()
    cluster.wait_ready(first)


@pytest.mark.parametrize("run_dir", [RUN_DIR, "/run/another"])
def test_of_two_on_one_machine_the_second_ends(cluster: Cluster, run_dir: str) -> None:
    node = cluster.nodes[0]
    guest = create(cluster, "web")
    before, history = look(cluster), History(cluster)
    first = node.config_file.read_text()
    node.configure(paths={"state_dir": "/var/lib/etcd-compute/state", "run_dir": run_dir})
    second = node.host.run([VENV_BIN / "ecompute", "--config", node.config_file], check=False, timeout_seconds=40)
    node.config_file.write_text(first)
    assert second.returncode == 5
    assert "already served by another ecompute on this machine" in second.stderr
    assert history.events() == [], history.shown()
    assert node.is_running
    assert look(cluster).qemu_of(guest) == before.qemu_of(guest)


def test_a_host_key_deleted_by_hand_comes_back_though_nothing_is_to_be_written(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    guest = create(cluster, "web")
    before, key = look(cluster), cluster.keys.host(node.provider)
    found = cluster.store.get(key)
    assert found is not None
    cluster.store.delete(key, seen=found.mod_revision)
    assert wait_host_key(cluster, node, there=True) > found.create_revision
    cluster.wait_ready(node)
    again = cluster.store.get(key)
    assert again is not None
    assert HostRecord.from_json(again.value).incarnation == HostRecord.from_json(found.value).incarnation
    create(cluster, "next")
    assert look(cluster).qemu_of(guest) == before.qemu_of(guest)


def test_the_owner_is_written_anew_by_the_machine_that_serves_when_etcd_forgot_it(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    for key in (cluster.keys.owner(node.provider), cluster.keys.host(node.provider)):
        found = cluster.store.get(key)
        assert found is not None
        cluster.store.delete(key, seen=found.mod_revision)
    wait_host_key(cluster, node, there=True)
    owner = cluster.store.get(cluster.keys.owner(node.provider))
    assert owner is not None
    assert OwnerRecord.from_json(owner.value).libvirt_host_uuid == node.host.libvirt_uuid
