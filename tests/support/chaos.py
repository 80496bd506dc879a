"""Everything that a random test does to a cluster: the clients that ask it for things, every fault, and the healing of all of them.

Each action is one method, chosen and given its numbers by ``tests/faults/test_random_faults.py``; each counts itself in
``counts``. Numbers never depend on what happened before, so that a seed gives the same actions again. No action waits for a
guest. The clients are in ``tests/support/random_clients.py``.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from common.errors import EcomputeError
from common.model import Phase
from eschedule import changes
from tests.support.cluster import Cluster, Node
from tests.support.etcd import EtcdAdmin, EtcdServer
from tests.support.etcd_proxy import EtcdProxy
from tests.support.faulty_proxy import Fault, FaultyProxy, Rule
from tests.support.hosts import HostNetwork
from tests.support.ledger import GONE
from tests.support.processes import VENV_BIN
from tests.support.random_clients import ONLY_ON_ONE_HOST, RandomClients
from tests.support.small_guest import make_small_guest
from tests.support.snapshot import World, qemus

SETTLE_SECONDS = 75.0
REFUSED_AFTER_SECONDS = 15.0
ETCD_TIMES = {"deadline_seconds": 2, "heartbeat_every_seconds": 1, "lease_ttl_seconds": 5}
# A request may end as Failed only where one of these was in its way so often.
WHY_IT_MAY_FAIL = {"QEMU refuses": 1, "full disk": 1, "image on one host only": 1, "ecompute killed": 3}


class RandomPlacement(FaultyProxy):
    """Placement behind a network that does what the next answers are told to."""

    def __init__(self, upstream_port: int, *, address: str) -> None:
        self.next_answers: list[tuple[Fault | None, float]] = []
        self._next_lock = threading.Lock()
        super().__init__(upstream_port, address=address)

    def take_rule(self, method: str, path: str, client: object) -> Rule | None:
        with self._next_lock:
            fault, delay_seconds = self.next_answers.pop(0) if self.next_answers else (None, 0.0)
        time.sleep(delay_seconds)  # the slowness of the answer
        return Rule(fault) if fault else None

    def forget(self) -> None:
        with self._next_lock:
            self.next_answers.clear()


class Chaos:
    """One cluster and what is done to it; ``heal_and_check`` after each run, ``close`` at the end."""

    def __init__(self, directory: Path, network: HostNetwork) -> None:
        self.directory = directory
        self.counts: Counter[str] = Counter()
        self.steps: list[str] = []
        self.problems: list[str] = []
        self.cluster = Cluster(directory, network, hosts=2, etcd_members=3, compute={
            "builder": {"max_attempts": 3, "resync_every_seconds": 2, "orphan_claim_after_seconds": 14},
        })  # fmt: skip
        self.cluster.etcd_times = dict(ETCD_TIMES)
        address = self.cluster.address
        self._answers_to_lose = 0
        self._lose_lock = threading.Lock()
        self.placement_proxy = RandomPlacement(self.cluster.placement_server.port, address=address)
        self.etcd_proxies = [
            EtcdProxy(member.client_port, address=address, on_write=self._is_lost) for member in self.cluster.etcd.members
        ]
        self._configure()
        self.clients = RandomClients(self.cluster, self.counts, self._note)
        self._placement_is_up = True

    def _configure(self) -> None:
        """The first host and the clients reach etcd through proxies, the second one directly."""
        cluster, proxied = self.cluster, [proxy.endpoint for proxy in self.etcd_proxies]
        first, second = cluster.nodes
        first.configure(placement_url=self.placement_proxy.url, etcd_endpoints=proxied)
        second.configure(placement_url=self.placement_proxy.url)
        cluster.configure_client(placement_url=self.placement_proxy.url, etcd_endpoints=proxied)
        self._clones = [self._clone_config(node, other) for node, other in ((first, second), (second, first))]

    def start(self) -> Chaos:
        self.cluster.start()
        make_small_guest(self.cluster.nodes[1].host.path(ONLY_ON_ONE_HOST))
        return self

    def close(self) -> None:
        self.clients.reap_all(kill=True)
        self.cluster.stop()
        for proxy in self.etcd_proxies:
            proxy.close()
        self.placement_proxy.close()

    # --- ecompute -----------------------------------------------------------------------------------------------------------

    def kill_ecompute(self, which: int) -> None:
        node = self._node(which)
        if node.is_running:
            self._fault("ecompute killed", node.name)
            node.kill_ecompute()

    def restart_ecompute(self, which: int, with_kill: bool) -> None:
        """Start it if it was killed, else replace it as an upgrade does."""
        node = self._node(which)
        self._check_alive(node)
        if node.is_running and node.is_paused:
            node.resume_ecompute()
        if node.is_running:
            self._fault("ecompute killed" if with_kill else "ecompute restarted", node.name)
            node.kill_ecompute() if with_kill else node.stop_ecompute()
        self._note(f"start ecompute on {node.name}")
        node.start_ecompute()

    def pause_ecompute(self, which: int) -> None:
        node = self._node(which)
        if node.is_running and not node.is_paused:
            self._fault("ecompute paused", node.name)
            node.pause_ecompute()

    def pause_past_the_lease(self, which: int) -> None:
        """It wakes up as a process whose host key is gone, amid whatever it was doing."""
        node = self._node(which)
        if node.is_running and not node.is_paused:
            self._fault("ecompute paused past its lease", node.name)
            node.pause_ecompute()
            self.let_time_pass(ETCD_TIMES["lease_ttl_seconds"] + 1)
            node.resume_ecompute()

    def resume_ecompute(self, which: int) -> None:
        node = self._node(which)
        if node.is_paused:
            self._note(f"resume ecompute on {node.name}")
            node.resume_ecompute()

    def second_ecompute(self, which: int) -> None:
        """Another process for the same provider on the same host: it has to refuse."""
        node = self._node(which)
        if not node.is_running:
            return
        self._fault("second ecompute on one host", node.name)
        code = self._try_ecompute(node, node.config_file)
        if code != 5:
            self.problems.append(f"a second ecompute on {node.name} did not refuse: {code}")

    def clone_of_a_host(self, which: int) -> None:
        """Another machine with the first one's provider: it has to refuse, or to wait while etcd does not answer."""
        node = self._node(which)
        self._fault("ecompute of a cloned host", node.name)
        code = self._try_ecompute(node, self._clones[which % 2], may_wait=not self._etcd_answers())
        if code not in (5, None):
            self.problems.append(f"the ecompute of a clone on {node.name} did not refuse: {code}")

    def _try_ecompute(self, node: Node, config: Path, *, may_wait: bool = False) -> int | None:
        """The exit code of an ecompute that is to refuse; None where it waits for a service, -9 where it did not end."""
        process = node.host.spawn([VENV_BIN / "ecompute", "--config", config], log=node.directory / "others.log")
        deadline = time.monotonic() + (REFUSED_AFTER_SECONDS / 5 if may_wait else REFUSED_AFTER_SECONDS)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        is_waiting = process.poll() is None and may_wait
        code = process.stop(with_signal=signal.SIGKILL)
        return None if is_waiting else code

    def _etcd_answers(self) -> bool:
        return any(member.is_running and member.is_healthy() for member in self.cluster.etcd.members)

    def _clone_config(self, node: Node, other: Node) -> Path:
        """For *node*'s machine, with *other*'s provider; nothing else is shared."""

        values = yaml.safe_load(node.config_file.read_text())
        values["uuid"] = str(other.provider)
        values["paths"] = {"state_dir": "/var/lib/etcd-compute/clone", "run_dir": "/run/etcd-compute-clone"}
        config = node.directory / "clone.yaml"
        config.write_text(yaml.safe_dump(values))
        return config

    def _node(self, which: int) -> Node:
        return self.cluster.nodes[which % len(self.cluster.nodes)]

    def _check_alive(self, node: Node) -> None:
        """An ecompute that nobody killed has to be there."""
        if node.ecompute is not None and node.ecompute.poll() is not None:
            self.problems.append(f"ecompute of {node.name} ended by itself with {node.ecompute.poll()}")

    # --- etcd ---------------------------------------------------------------------------------------------------------------

    def kill_member(self, which: int) -> None:
        member = self._member(which)
        if member.is_running:
            self._fault("etcd member killed", member.endpoint)
            member.kill()

    def freeze_member(self, which: int) -> None:
        member = self._member(which)
        if member.is_running:
            self._fault("etcd member frozen", member.endpoint)
            member.freeze()

    def restart_member(self, which: int) -> None:
        self._bring_back(self._member(which))

    def lose_quorum(self) -> None:
        for member in self.cluster.etcd.members[:2]:
            if member.is_running:
                member.freeze()
        self._fault("etcd quorum lost", "")

    def lose_leader(self, by_freezing: bool) -> None:
        leader = next((m for m in self.cluster.etcd.members if m.is_running and m.is_leader()), None)
        if leader:
            self._fault("etcd leader lost", leader.endpoint)
            leader.freeze() if by_freezing else leader.kill()

    def compact(self) -> None:
        """Throw away all history, as etcd does now and then."""
        with contextlib.suppress(EcomputeError):
            for member in self.cluster.etcd.members:
                if member.is_running and member.is_healthy():
                    self._fault("etcd compacted", "")
                    revision = self.cluster.store.list(self.cluster.prefix).revision
                    with EtcdAdmin(member) as admin, contextlib.suppress(Exception):  # by somebody else, in between
                        admin.compact(revision)
                    return

    def lose_etcd_answers(self, number: int) -> None:
        self._fault("etcd answer lost after commit", str(number), number)
        with self._lose_lock:
            self._answers_to_lose += number

    def _is_lost(self, _write: str) -> bool:
        with self._lose_lock:
            is_lost = self._answers_to_lose > 0
            self._answers_to_lose -= is_lost
            return is_lost

    def _member(self, which: int) -> EtcdServer:
        return self.cluster.etcd.members[which % 3]

    def _bring_back(self, member: EtcdServer) -> None:
        self._note(f"bring back {member.endpoint}")
        member.thaw()
        if not member.is_running:
            member.start(wait=False)

    # --- Placement ----------------------------------------------------------------------------------------------------------

    def kill_placement(self) -> None:
        if self._placement_is_up:
            self._fault("Placement killed", "")
            self.cluster.placement_server.kill()
            self._placement_is_up = False

    def restart_placement(self) -> None:
        if not self._placement_is_up:
            self._note("start Placement")
            self.cluster.placement_server.start()
            self._placement_is_up = True

    def placement_answers(self, kind: str, number: int) -> None:
        """The next *number* answers are "500", "slow" or "lost"."""
        faults = {
            "500": (Fault.ERROR, 0.0),
            "503": (Fault.UNAVAILABLE, 0.0),
            "slow": (None, 1.0),
            "lost": (Fault.LOSE_ANSWER, 0.0),
        }
        self._fault(
            {"slow": "Placement slow", "lost": "Placement answer lost"}.get(kind, f"Placement {kind}"), str(number), number
        )
        self.placement_proxy.next_answers += [faults[kind]] * number

    # --- The host around it ---------------------------------------------------------------------------------------------------

    def restart_libvirtd(self, which: int, with_kill: bool) -> None:
        node = self._node(which)
        self._fault("libvirtd restarted", node.name)
        node.restart_libvirtd(signal.SIGKILL if with_kill else signal.SIGTERM)

    def fill_disk(self, which: int) -> None:
        node = self._node(which)
        self._fault("full disk", node.name)
        node.fill_disk()

    def free_disk(self, which: int) -> None:
        self._note(f"free the disk of {self._node(which).name}")
        self._node(which).free_disk()

    def refuse_guests(self, which: int, refuses: bool) -> None:
        node = self._node(which)
        if refuses:
            self._fault("QEMU refuses", node.name)
        node.refuse_guests(refuses)

    def let_time_pass(self, seconds: float) -> None:
        self._note(f"{seconds:.2f} s pass")
        time.sleep(seconds)

    # --- A run and its end --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.clients.begin()
        self.steps, self.problems = [], []
        self._at_begin = Counter(self.counts)

    def settle(self) -> None:
        """With nothing broken yet: have what was asked for come up, so that there is something to lose."""
        self.clients.reap_all(kill=False)
        self.clients.ledger.settle(self.cluster, timeout_seconds=SETTLE_SECONDS)

    def watch(self) -> None:
        """Between any two actions: what may never be."""
        self.clients.ledger.observe_processes(qemus(self.cluster))

    def heal_and_check(self) -> None:
        """End every fault, wait for the cluster to settle, check everything, and remove all instances.

        Raises:
            AssertionError: an invariant does not hold; with the steps and the evidence.
        """
        self._note("heal")
        try:
            self._heal()
            world = self.clients.ledger.settle(self.cluster, timeout_seconds=SETTLE_SECONDS)
            problems = [*self.problems, *self.clients.problems, *self._unjust_failures(world)]
            assert not problems, "\n".join(problems)
            self._remove_all()
        except Exception as error:
            steps = "\n".join(self.steps)
            raise AssertionError(f"{error}\n--- what was done\n{steps}\n--- clients\n{self.clients.said()}") from error

    def _heal(self) -> None:
        self.placement_proxy.forget()
        with self._lose_lock:
            self._answers_to_lose = 0
        for member in self.cluster.etcd.members:
            member.thaw()
        self.cluster.etcd.heal()
        self.restart_placement()
        for node in self.cluster.nodes:
            self._check_alive(node)
            node.free_disk()
            node.refuse_guests(False)
            node.resume_ecompute()
            if not node.is_running:
                node.kill_ecompute()
                node.start_ecompute()
        self.clients.reap_all(kill=False)
        self.cluster.wait_ready()

    def _unjust_failures(self, world: World) -> Iterator[str]:
        """A service that was away is no reason for a request to fail."""
        injected = self.counts - self._at_begin
        if any(injected[kind] >= number for kind, number in WHY_IT_MAY_FAIL.items()):
            return
        for uuid in self.clients.ledger.known:
            status = world.status_of(uuid)
            if status and (status.phase is Phase.FAILED or status.reason == "StartFailed"):
                yield f"{uuid} is {status.phase}, {status.reason}: {status.message}, and nothing was in its way but {injected}"

    def _remove_all(self) -> None:
        store, keys = self.cluster.store, self.cluster.keys
        for uuid, known in self.clients.ledger.known.items():
            changes.change(store, keys, uuid, changes.destroyed)
            self.clients.ledger.asked(uuid, known.name, GONE)
        self.clients.ledger.settle(self.cluster, timeout_seconds=SETTLE_SECONDS)

    def _fault(self, kind: str, where: str, number: int = 1) -> None:
        self.counts[kind] += number
        self._note(f"{kind} {where}")

    def _note(self, what: str) -> None:
        self.steps.append(f"{time.strftime('%H:%M:%S')} {what}")
