"""Everything that a random test does to a cluster: what clients ask for, every fault, and the healing of all of them.

Each action is one method, chosen and given its numbers by ``tests/faults/test_random_faults.py``; each counts itself in
``counts``. Numbers never depend on what happened before, so that a seed gives the same actions again. Clients run beside the
faults: they are started here, and what became of them is learnt (``_reap``) before the next one speaks of the same instance, or
when all is healed. No action waits for a guest.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import yaml

from common.errors import EcomputeError
from common.model import Desired, ImageRef, Phase
from eschedule import changes
from eschedule.request import Request
from tests.support.cluster import QUERY, Cluster, Node
from tests.support.etcd import EtcdAdmin, EtcdServer
from tests.support.etcd_proxy import EtcdProxy
from tests.support.faulty_proxy import Fault, FaultyProxy, Rule
from tests.support.hosts import HostNetwork
from tests.support.ledger import GONE, Ledger
from tests.support.processes import VENV_BIN
from tests.support.small_guest import make_small_guest
from tests.support.snapshot import World, qemus

CLIENTS_AT_ONCE = 4
SETTLE_SECONDS = 75.0
KILLED, UNKNOWN_OUTCOME = -9, 4
ONLY_ON_ONE_HOST = "/var/lib/etcd-compute/only-here.raw"
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


@dataclass
class Client:
    """An eschedule that was started, and what it asked for."""

    process: subprocess.Popen[bytes]
    verb: str
    wanted: Desired | None
    before: dict[UUID, set[Desired | None]]  # what the instances may have been asked for until now
    log: Path
    arguments: tuple[str, ...]
    is_killed: bool = False


@dataclass
class Slot:
    """One instance, or a set of them, as its clients know it."""

    name: str
    uuids: tuple[UUID, ...]
    request: tuple[str, ...]  # the command that created it
    client: Client | None = field(default=None)


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
        address = self.cluster.address
        self._answers_to_lose = 0
        self._lose_lock = threading.Lock()
        self.placement_proxy = RandomPlacement(self.cluster.placement_server.port, address=address)
        self.etcd_proxies = [
            EtcdProxy(member.client_port, address=address, on_write=self._is_lost) for member in self.cluster.etcd.members
        ]
        self._configure()
        self.slots: list[Slot] = []
        self.numbers = 0
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
        self._reap_all(kill=True)
        self.cluster.stop()
        for proxy in self.etcd_proxies:
            proxy.close()
        self.placement_proxy.close()

    # --- Clients ------------------------------------------------------------------------------------------------------------

    def create(self, *, count: int, group: int, policy: str, image: int, lost_after: float) -> None:
        name = f"g{self._next()}"
        base = uuid4()
        url = ONLY_ON_ONE_HOST if image == 0 else str(self.cluster.image)
        request = [QUERY, url, "--name", name, "--no-wait"]
        if url == ONLY_ON_ONE_HOST:
            self.counts["image on one host only"] += 1
        uuids: tuple[UUID, ...] = (base,)
        if count == 1:
            request += ["--uuid", str(base)]
        else:
            request += ["--request-id", name, "--count", str(count)]
            asked = Request(QUERY, {}, ImageRef(url), request_id=name, count=count)
            of_the_set = asked.instance_uuid(self.cluster.prefix, uuid4)
            uuids = tuple(member.uuid for member in asked.members(of_the_set) if member.uuid)
        if group:
            request += ["--group", f"{policy}-{group}", "--policy", policy]
        slot = Slot(name, uuids, tuple(request))
        self.slots.append(slot)
        self._ask(slot, "create" if count == 1 else "create --count", slot.request, Desired.RUNNING, lost_after)

    def repeat(self, which: int, lost_after: float) -> None:
        """The same request once more, as whoever got no answer does."""
        slot = self._slot(which)
        if slot and all(GONE in known and len(known) > 1 for known in self._may_be(slot).values()):
            self._ask(slot, "create again", slot.request, Desired.RUNNING, lost_after)

    def change(self, verb: str, which: int, lost_after: float) -> None:
        slot = self._slot(which)
        if slot is None or len(slot.uuids) > 1 or self._may_be(slot)[slot.uuids[0]] == {GONE}:
            return
        wanted = {"destroy": GONE, "stop": Desired.STOPPED}.get(verb, Desired.RUNNING)
        if verb.startswith("reboot"):
            self.ledger.asked_to_reboot(slot.uuids[0])
        self._ask(slot, verb, (*verb.split(), slot.name, "--no-wait"), wanted, lost_after)

    def destroy_one_of_a_set(self, which: int, lost_after: float) -> None:
        slot = self._slot(which)
        if slot and len(slot.uuids) > 1:
            one = Slot(f"{slot.name}-1", slot.uuids[:1], ())
            if self._may_be(one)[one.uuids[0]] != {GONE}:
                self._ask(one, "destroy", ("destroy", one.name, "--no-wait"), GONE, lost_after)
                self._reap(one, kill=False)

    def _ask(
        self, slot: Slot, verb: str, arguments: tuple[str, ...], wanted: Desired | None, lost_after: float
    ) -> None:  # fmt: skip
        """Start a client; with *lost_after* above 0 it is killed so many seconds later, unless it is over by then."""
        self._note(f"{verb} {slot.name} {f'lost after {lost_after:.2f} s' if lost_after else ''}")
        self.counts[verb] += 1
        waiting = [other for other in self.slots if other.client]
        if len(waiting) >= CLIENTS_AT_ONCE:
            self._reap(waiting[0], kill=False)
        log = self.directory / "clients" / f"{self._next()}-{verb.replace(' ', '-')}.log"
        process = self.cluster.spawn_eschedule(*arguments, log=log)
        before = {uuid: set(known) for uuid, known in self._may_be(slot).items()}
        for uuid in slot.uuids:
            self.ledger.asked(uuid, slot.name, wanted, is_certain=False)
        slot.client = Client(process, verb, wanted, before, log, arguments)
        if lost_after:
            self.counts["client lost"] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(lost_after)
            slot.client.is_killed = process.poll() is None
            self._reap(slot, kill=True)

    def _may_be(self, slot: Slot) -> dict[UUID, set[Desired | None]]:
        return {uuid: self.ledger.known[uuid].may_be if uuid in self.ledger.known else {GONE} for uuid in slot.uuids}

    def _slot(self, which: int) -> Slot | None:
        """One that no client speaks of any more."""
        if not self.slots:
            return None
        slot = self.slots[which % len(self.slots)]
        self._reap(slot, kill=False)
        return slot

    def _reap(self, slot: Slot, *, kill: bool) -> None:
        client, slot.client = slot.client, None
        if client is None:
            return
        if kill:
            client.process.kill()
        try:
            code = client.process.wait(60)
        except subprocess.TimeoutExpired:
            client.process.kill()
            code = client.process.wait(10)
            self.problems.append(f"{client.arguments} did not come to an end\n{client.log.read_text()}")
        self._learn(slot, client, code)

    def _learn(self, slot: Slot, client: Client, code: int) -> None:
        """What the exit code of *client* says of its instances."""
        if code not in (0, 1, 3, KILLED, UNKNOWN_OUTCOME, 5):
            self.problems.append(f"{client.arguments} ended with {code}\n{client.log.read_text()}")
        for uuid in slot.uuids:
            known = self.ledger.known[uuid]
            if code == 0:
                self.ledger.asked(uuid, slot.name, client.wanted)
                if client.verb.startswith("reboot") and known.process and client.before[uuid] == {Desired.RUNNING}:
                    self.ledger.reboot_is_certain(uuid)
            elif code not in (KILLED, UNKNOWN_OUTCOME):
                known.may_be = client.before[uuid]

    def _reap_all(self, *, kill: bool) -> None:
        for slot in self.slots:
            self._reap(slot, kill=kill)

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
        if code not in (5, None):
            self.problems.append(f"a second ecompute on {node.name} ended with {code}")

    def clone_of_a_host(self, which: int) -> None:
        """Another machine with the first one's provider: it has to refuse, or to wait while etcd does not answer."""
        node = self._node(which)
        self._fault("ecompute of a cloned host", node.name)
        code = self._try_ecompute(node, self._clones[which % 2])
        if code not in (5, None):
            self.problems.append(f"the ecompute of a clone on {node.name} ended with {code}")

    def _try_ecompute(self, node: Node, config: Path) -> int | None:
        """The exit code of an ecompute that is to refuse; None where it is still waiting for a service after 3 s."""
        process = node.host.spawn([VENV_BIN / "ecompute", "--config", config], log=node.directory / "others.log")
        deadline = time.monotonic() + 3
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        code = process.poll()
        process.stop(with_signal=signal.SIGKILL)
        return code

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
        self.ledger = Ledger()
        self.slots, self.steps, self.problems = [], [], []
        self._at_begin = Counter(self.counts)

    def watch(self) -> None:
        """Between any two actions: what may never be."""
        self.ledger.observe_processes(qemus(self.cluster))

    def heal_and_check(self) -> None:
        """End every fault, wait for the cluster to settle, check everything, and remove all instances.

        Raises:
            AssertionError: an invariant does not hold; with the steps and the evidence.
        """
        self._note("heal")
        try:
            self._heal()
            world = self.ledger.settle(self.cluster, timeout_seconds=SETTLE_SECONDS)
            self.problems += self._unjust_failures(world)
            assert not self.problems, "\n".join(self.problems)
            self._remove_all()
        except Exception as error:
            steps = "\n".join(self.steps)
            raise AssertionError(f"{error}\n--- what was done\n{steps}\n--- clients\n{self._clients_said()}") from error

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
        self._reap_all(kill=False)
        self.cluster.wait_ready()

    def _unjust_failures(self, world: World) -> Iterator[str]:
        """A service that was away is no reason for a request to fail."""
        injected = self.counts - self._at_begin
        if any(injected[kind] >= number for kind, number in WHY_IT_MAY_FAIL.items()):
            return
        for uuid in self.ledger.known:
            status = world.status_of(uuid)
            if status and (status.phase is Phase.FAILED or status.reason == "StartFailed"):
                yield f"{uuid} is {status.phase}, {status.reason}: {status.message}, and nothing was in its way but {injected}"

    def _remove_all(self) -> None:
        store, keys = self.cluster.store, self.cluster.keys
        for uuid, known in self.ledger.known.items():
            changes.change(store, keys, uuid, changes.destroyed)
            self.ledger.asked(uuid, known.name, GONE)
        self.ledger.settle(self.cluster, timeout_seconds=SETTLE_SECONDS)

    def _clients_said(self) -> str:
        logs = sorted((self.directory / "clients").glob("*.log"), key=lambda log: int(log.name.partition("-")[0]))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs[-20:])

    def _fault(self, kind: str, where: str, number: int = 1) -> None:
        self.counts[kind] += number
        self._note(f"{kind} {where}")

    def _note(self, what: str) -> None:
        self.steps.append(f"{time.strftime('%H:%M:%S')} {what}")

    def _next(self) -> int:
        self.numbers += 1
        return self.numbers
