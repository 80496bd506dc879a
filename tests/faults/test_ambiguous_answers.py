"""Every operation with the answer to one of its writes lost after the server had done it, once for each of its writes.

eschedule and both hosts reach etcd and Placement through proxies that count the writes to both together and break the connection
in place of the n-th answer: n = 1, 2, … until an operation is over before its n-th write. Whatever was lost, the client has to
hear that all went well, and in the end every invariant has to hold: nothing is done twice, nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest

from common.model import Desired
from tests.support.clients import Clients
from tests.support.cluster import QUERY, Cluster
from tests.support.etcd_proxy import EtcdProxy, NthWriteLost, kind_of
from tests.support.faulty_proxy import Fault, FaultyProxy, Rule
from tests.support.hosts import HostNetwork
from tests.support.ledger import Ledger
from tests.support.processes import VENV_BIN
from tests.support.snapshot import look

MOST_WRITES = 25  # of one operation; more than any makes


class LossyPlacement(FaultyProxy):
    """Loses the answers that *lost* names."""

    def __init__(self, upstream_port: int, *, address: str, lost: NthWriteLost) -> None:
        self._lost = lost
        super().__init__(upstream_port, address=address)

    def take_rule(self, method: str, path: str, client: object) -> Rule | None:
        is_write = method in ("PUT", "POST", "DELETE")
        if is_write and self._lost(f"{method} {path.partition('?')[0]}"):
            return Rule(Fault.LOSE_ANSWER)
        return None


class Bench:
    def __init__(self, cluster: Cluster, lost: NthWriteLost) -> None:
        self.cluster, self.lost, self.ledger = cluster, lost, Ledger()
        self.node, self.other = cluster.nodes
        self.clients = Clients(cluster, self.ledger)
        self.guest = UUID(int=0)
        self.count = 0

    def cli(self, *arguments: str) -> None:
        """Run eschedule, which must not notice that an answer was lost."""
        answer = self.cluster.eschedule(*arguments, check=False)
        said = f"{answer.stdout}{answer.stderr}"
        writes = f"lost: {self.lost.lost!r}, the writes were {self.lost.seen}"
        assert answer.returncode == 0, f"exit {answer.returncode}: {said}\n{writes}\n{self.cluster.evidence()}"

    def asked(self, names: list[str], wanted: Desired | None) -> None:
        for name in names:
            item = self.cluster.store.get(self.cluster.keys.name(name))
            assert item is not None, f"{name} was created and is not there"
            self.ledger.asked(UUID(item.value), name, wanted)

    def fresh_name(self) -> str:
        self.count += 1
        return f"g{self.count}"

    def settle(self) -> None:
        self.ledger.settle(self.cluster, timeout_seconds=40)

    def name_of(self, uuid: UUID) -> str:
        return self.ledger.known[uuid].name


Operation = Callable[[Bench], None]


@pytest.fixture(scope="module")
def bench(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    cluster, lost = Cluster(tmp_path_factory.mktemp("ambiguous"), host_network), NthWriteLost()
    placement = LossyPlacement(cluster.placement_server.port, address=cluster.address, lost=lost)
    etcd = EtcdProxy(cluster.etcd.members[0].client_port, address=cluster.address, on_write=lost)
    cluster.placement_url, cluster.etcd_endpoints = placement.url, [etcd.endpoint]
    cluster.configure_client()
    for node in cluster.nodes:
        node.configure(builder={"max_attempts": 3, "resync_every_seconds": 2, "orphan_claim_after_seconds": 3})
    try:
        cluster.start()
        bench = Bench(cluster, lost)
        bench.guest = bench.clients.create(bench.node)
        bench.settle()
        yield bench
    finally:
        cluster.stop()
        etcd.close()
        placement.close()


def each_write_lost(bench: Bench, *operations: Operation) -> set[str]:
    """Do *operations* one after the other, in each another write's answer lost each time, and settle; the kinds of what was lost."""
    lost: set[str] = set()
    for n in range(1, MOST_WRITES):
        is_over = True
        for operation in operations:
            bench.lost.begin(n)
            operation(bench)
            bench.settle()
            is_over = is_over and not bench.lost.lost
            lost.add(kind_of(bench.lost.lost))
        if is_over:
            return lost - {""}
    raise AssertionError(f"it does not come to an end; lost was {lost}")


def this_write_lost(bench: Bench, kind: str, *operations: Operation) -> set[str]:
    """Do *operations* with the answer to the first write of *kind* lost in each; the kinds of what was lost."""
    lost: set[str] = set()
    for operation in operations:
        bench.lost.begin(0, kind)
        operation(bench)
        bench.settle()
        lost.add(kind_of(bench.lost.lost))
    return lost


def create(bench: Bench) -> None:
    name = bench.fresh_name()
    bench.cli(QUERY, str(bench.cluster.image), "--name", name)
    bench.asked([name], Desired.RUNNING)


def create_two(bench: Bench) -> None:
    name = bench.fresh_name()
    bench.cli(QUERY, str(bench.cluster.image), "--name", name, "--count", "2")
    bench.asked([f"{name}-1", f"{name}-2"], Desired.RUNNING)


def destroy(bench: Bench) -> None:
    """All but the one that stays."""
    for uuid in bench.ledger.known.keys() - {bench.guest}:
        name = bench.name_of(uuid)
        bench.ledger.asked(uuid, name, None)
        bench.cli("destroy", name)


def stop(bench: Bench) -> None:
    bench.ledger.asked(bench.guest, "", Desired.STOPPED)
    bench.cli("stop", bench.name_of(bench.guest))


def start(bench: Bench) -> None:
    bench.ledger.asked(bench.guest, "", Desired.RUNNING)
    bench.cli("start", bench.name_of(bench.guest))


def reboot(bench: Bench) -> None:
    bench.ledger.asked_to_reboot(bench.guest)
    bench.cli("reboot", bench.name_of(bench.guest))
    bench.ledger.reboot_is_certain(bench.guest)


def reschedule(bench: Bench) -> None:
    """QEMU does not work on the first host."""
    bench.node.refuse_guests()
    try:
        uuid = bench.clients.create(bench.node, has_alternates=True)
        bench.settle()
    finally:
        bench.node.refuse_guests(False)
    assert look(bench.cluster).place_of(uuid) == bench.other.provider


def give_up(bench: Bench) -> None:
    """There is no such image."""
    bench.clients.create(bench.node, image="/nowhere/at.all")
    bench.settle()


def regain_a_claim(bench: Bench) -> None:
    held = bench.cluster.placement.consumer(bench.guest)
    assert held is not None
    bench.cluster.placement.release(bench.guest, held.generation)
    bench.settle()


def begin_as_a_new_host(bench: Bench) -> None:
    """The second host is enrolled: its owner, lease and host key in etcd; provider, inventory and traits in Placement."""
    bench.other.start_ecompute()
    bench.cluster.wait_ready(bench.other)


def leave(bench: Bench) -> None:
    """The second host is no part of the cluster any more."""
    bench.other.stop_ecompute()
    left = bench.other.host.run([VENV_BIN / "ecompute", "--config", bench.other.config_file, "--leave"], check=False)
    assert left.returncode == 0, f"{left.stderr}\n{bench.lost.lost}: {bench.lost.seen}"


CASES: dict[str, tuple[tuple[Operation, ...], set[str]]] = {
    "create and destroy": (
        (create, destroy),
        {"PUT /allocations/…", "Txn instances+names+spec", "Txn status", "Txn spec", "Txn instances+names+spec+status"},
    ),
    "create two at once": ((create_two, destroy), {"POST /allocations", "Txn instances+names+spec"}),
    "stop, start and reboot": ((stop, start, reboot), {"Txn spec", "Txn status"}),
    "reschedule": ((reschedule, destroy), {"POST /allocations", "Txn instances+spec+status", "Txn status"}),
    "give up": ((give_up, destroy), {"PUT /allocations/…", "Txn status"}),
    "regain a claim": ((regain_a_claim,), {"PUT /allocations/…"}),
    "leave and begin as a new host": (
        (leave, begin_as_a_new_host),
        {
            "Txn owners", "LeaseGrant", "Txn hosts", "LeaseRevoke", "POST /resource_providers", "PUT /resource_providers/…/traits",
            "PUT /resource_providers/…/inventories", "DELETE /resource_providers/…",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_survives_the_loss_of_any_of_its_answers(bench: Bench, name: str) -> None:
    operations, expected = CASES[name]
    lost = each_write_lost(bench, *operations)
    for kind in sorted(expected - lost):  # a late write of the round before may have taken its turn
        lost |= this_write_lost(bench, kind, *operations)
    assert lost >= expected


def test_a_claim_whose_client_died_before_it_recorded_the_instance_is_given_back(bench: Bench) -> None:
    bench.lost.begin(0)
    bench.cluster.placement.claim(uuid4(), {bench.node.provider: {"VCPU": 1, "MEMORY_MB": 32, "DISK_GB": 1}})
    bench.settle()
