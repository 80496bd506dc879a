"""Placement behind a network that loses answers, and a Placement that dies: nothing is lost, doubled, or believed too early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.config import ComputeConfig, PathsConfig
from common.errors import Conflict, PlacementUnavailable
from common.model import HostAdmin
from common.placement import Claim, Inventory, Placement
from ecompute.hypervisor import HostInfo
from ecompute.inventory import InventoryKeeper, wanted_traits
from tests.support.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.support.placement import PlacementServer, client_for, make_provider
from tests.support.processes import free_port, wait_until

SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
LOST = [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.UNAVAILABLE, Fault.ERROR, Fault.CUT_OFF]


@pytest.fixture
def proxy(placement_server: PlacementServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(placement_server.port) as proxy:
        yield proxy


@pytest.fixture
def shaky(proxy: FaultyProxy, placement: Placement) -> Iterator[Placement]:
    """A client of the same deployment as ``placement``, but through the proxy."""
    client = client_for(proxy.url, project_id=UUID(placement.project_id), user_id=UUID(placement.user_id))
    yield client
    client.close()


@pytest.fixture
def host(placement: Placement) -> UUID:
    return make_provider(placement)


class TestLostAnswers:
    @pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.UNAVAILABLE, Fault.ERROR])
    def test_a_claim_without_an_answer_is_unknown_and_sent_once(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID, fault: Fault
    ) -> None:
        consumer = uuid4()
        proxy.inject(fault, "PUT", "/allocations")
        with pytest.raises(PlacementUnavailable) as caught:
            shaky.claim(consumer, {host: SMALL})
        assert caught.value.outcome_unknown
        assert proxy.count("PUT") == 1
        held = shaky.consumer(consumer)
        assert (held is not None) == (fault is Fault.LOSE_ANSWER)

    def test_a_swap_without_an_answer_is_unknown_and_sent_once(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID
    ) -> None:
        consumer, target = uuid4(), make_provider(placement)
        placement.claim(consumer, {host: SMALL})
        proxy.inject(Fault.LOSE_ANSWER, "POST")
        with pytest.raises(PlacementUnavailable) as caught:
            shaky.replace_consumers([Claim(consumer, {target: SMALL}, generation=1)])
        assert caught.value.outcome_unknown
        assert proxy.count("POST") == 1
        assert placement.provider_allocations(target) == {consumer: SMALL}

    @pytest.mark.parametrize("fault", LOST)
    def test_a_release_settles_itself(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID, fault: Fault
    ) -> None:
        consumer, neighbour = uuid4(), uuid4()
        placement.claim(consumer, {host: SMALL})
        placement.claim(neighbour, {host: SMALL})
        proxy.inject(fault, "PUT", f"/allocations/{consumer}")
        proxy.inject(fault, "GET", f"/allocations/{consumer}")
        shaky.release(consumer, 1)
        assert placement.provider_allocations(host) == {neighbour: SMALL}

    def test_a_release_whose_request_was_lost_spares_a_claim_renewed_meanwhile(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID
    ) -> None:
        consumer = uuid4()
        placement.claim(consumer, {host: SMALL})
        placement.replace_consumers([Claim(consumer, {host: SMALL}, generation=1)])
        proxy.inject(Fault.LOSE_REQUEST, "PUT")
        with pytest.raises(Conflict):
            shaky.release(consumer, 1)
        assert placement.provider_allocations(host) == {consumer: SMALL}

    @pytest.mark.parametrize("fault", LOST)
    def test_asserting_a_claim_settles_itself(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID, fault: Fault
    ) -> None:
        consumer = uuid4()
        proxy.inject(fault, "PUT", times=2)
        proxy.inject(fault, "GET")
        shaky.assert_allocation(consumer, {host: SMALL})
        held = placement.consumer(consumer)
        assert held is not None
        assert (held.generation, held.allocations) == (1, {host: SMALL})

    @pytest.mark.parametrize("fault", LOST)
    def test_a_provider_is_made_renamed_and_deleted_in_spite_of_it(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, fault: Fault
    ) -> None:
        uuid = uuid4()
        for method in ("POST", "PUT", "DELETE", "GET"):
            proxy.inject(fault, method)
        assert shaky.ensure_provider(uuid, f"host-{uuid}").uuid == uuid
        assert shaky.ensure_provider(uuid, f"host-{uuid}-new").name == f"host-{uuid}-new"
        shaky.delete_provider(uuid)
        assert placement.provider(uuid) is None

    def test_inventory_written_without_an_answer_is_unknown(
        self, proxy: FaultyProxy, shaky: Placement, placement: Placement, host: UUID
    ) -> None:
        provider = placement.provider(host)
        assert provider is not None
        proxy.inject(Fault.LOSE_ANSWER, "PUT")
        with pytest.raises(PlacementUnavailable) as caught:
            shaky.put_inventories(host, provider.generation, {"VCPU": Inventory(total=3)})
        assert caught.value.outcome_unknown
        assert placement.inventories(host) == {"VCPU": Inventory(total=3)}

    @pytest.mark.parametrize("fault", [*LOST, Fault.GARBAGE])
    def test_reads_are_asked_again(self, proxy: FaultyProxy, shaky: Placement, host: UUID, fault: Fault) -> None:
        proxy.inject(fault, "GET", times=2)
        assert shaky.candidates(f"resources=VCPU:1&in_tree={host}").candidates
        assert proxy.count("GET") == 3

    def test_retry_after_is_kept(self, proxy: FaultyProxy, shaky: Placement) -> None:
        proxy.inject(Fault.UNAVAILABLE, "GET", Retry_After="1")
        began = time.monotonic()
        assert shaky.consumer(uuid4()) is None
        assert time.monotonic() - began >= 1.0


class TestTimeLimits:
    def test_a_slow_read_is_given_up_after_its_timeout_and_asked_again(
        self, proxy: FaultyProxy, placement: Placement, host: UUID
    ) -> None:
        hasty = client_for(proxy.url, timeout_seconds=0.3, deadline_seconds=20)
        proxy.inject(Fault.HOLD_ANSWER, "GET")
        assert hasty.usages(host) == dict.fromkeys(SMALL, 0)
        assert proxy.count("GET") == 2

    def test_a_slow_claim_is_unknown_and_not_sent_again(self, proxy: FaultyProxy, placement: Placement, host: UUID) -> None:
        hasty, consumer = client_for(proxy.url, timeout_seconds=0.3, deadline_seconds=20), uuid4()
        proxy.inject(Fault.HOLD_ANSWER, "PUT")
        with pytest.raises(PlacementUnavailable, match="no answer within") as caught:
            hasty.claim(consumer, {host: SMALL})
        assert caught.value.outcome_unknown
        assert proxy.count("PUT") == 1
        wait_until(lambda: placement.consumer(consumer), timeout_seconds=10, what="the late claim is there")

    @pytest.mark.parametrize("call", [
        lambda client: client.candidates("resources=VCPU:1"),
        lambda client: client.consumer(uuid4()),
        lambda client: client.release(uuid4(), 1),
        lambda client: client.assert_allocation(uuid4(), {uuid4(): SMALL}),
        lambda client: client.ensure_provider(uuid4(), "host"),
        lambda client: client.delete_provider(uuid4()),
        lambda client: client.ensure_traits(["CUSTOM_X"]),
        lambda client: client.check_version(),
    ])  # fmt: skip
    def test_every_call_ends_at_its_deadline_whatever_is_broken(
        self, proxy: FaultyProxy, call: Callable[[Placement], object]
    ) -> None:
        client = client_for(proxy.url, timeout_seconds=10, deadline_seconds=0.5)
        proxy.inject(Fault.HOLD_ANSWER, times=99)
        began = time.monotonic()
        with pytest.raises(PlacementUnavailable):
            call(client)
        assert time.monotonic() - began < 1.5

    @pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.LOSE_REQUEST])
    def test_failing_fast_all_the_time_ends_at_the_deadline_too(self, proxy: FaultyProxy, fault: Fault) -> None:
        client = client_for(proxy.url, timeout_seconds=10, deadline_seconds=0.5)
        proxy.inject(fault, times=9999)
        for call in (lambda: client.consumer(uuid4()), lambda: client.release(uuid4(), 1)):
            began = time.monotonic()
            with pytest.raises(PlacementUnavailable):
                call()
            assert time.monotonic() - began < 1.5
        assert len(proxy.seen) < 40  # with pauses in between


class TestConnections:
    def test_one_connection_serves_one_thread_after_another(self, proxy: FaultyProxy, shaky: Placement, host: UUID) -> None:
        for _ in range(10):
            consumer = uuid4()
            shaky.claim(consumer, {host: {"VCPU": 1}})
            shaky.release(consumer, 1)
        assert len(proxy.seen) == 20
        assert len(proxy.connections) == 1

    def test_threads_at_once_open_no_more_than_they_need(self, proxy: FaultyProxy, shaky: Placement) -> None:
        barrier = threading.Barrier(8)

        def ask() -> None:
            barrier.wait(20)
            for _ in range(5):
                shaky.consumer(uuid4())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(proxy.seen) == 40
        assert len(proxy.connections) <= 8


class TestServerGoesAway:
    def test_a_refused_connection_is_certain_failure_and_bounded(self) -> None:
        client = client_for(f"http://127.0.0.1:{free_port()}", deadline_seconds=0.5)
        began = time.monotonic()
        with pytest.raises(PlacementUnavailable, match=r"no connection \(.*Connection refused") as caught:
            client.claim(uuid4(), {uuid4(): SMALL})
        assert not caught.value.outcome_unknown
        assert time.monotonic() - began < 1.5

    def test_a_name_that_does_not_resolve_is_certain_failure(self) -> None:
        client = client_for("http://placement.invalid:8778", deadline_seconds=0.5)
        with pytest.raises(PlacementUnavailable, match="no connection") as caught:
            client.claim(uuid4(), {uuid4(): SMALL})
        assert not caught.value.outcome_unknown

    def test_killed_and_started_again_it_has_every_claim_and_old_connections_do_no_harm(
        self, own_placement_server: PlacementServer
    ) -> None:
        client = client_for(own_placement_server.url)
        host = make_provider(client)
        claims = {uuid4(): SMALL for _ in range(4)}
        for number, consumer in enumerate(claims):
            client.claim(consumer, {host: SMALL})
            if number == 1:
                own_placement_server.kill()
                own_placement_server.start()
        assert client.provider_allocations(host) == claims

    def test_killed_in_the_middle_of_claims_each_is_there_or_can_be_made(self, own_placement_server: PlacementServer) -> None:
        client = client_for(own_placement_server.url, deadline_seconds=60)
        host = make_provider(client, vcpus=100, memory_mib=100_000, disk_gib=200)
        claimed: list[UUID] = []
        doubtful: list[UUID] = []
        killed = threading.Event()

        def claim_all() -> None:
            while not killed.is_set() or not doubtful:
                consumer = uuid4()
                try:
                    client.claim(consumer, {host: SMALL})
                    claimed.append(consumer)
                except PlacementUnavailable:
                    doubtful.append(consumer)
                if len(claimed) > 80:
                    return

        thread = threading.Thread(target=claim_all)
        thread.start()
        wait_until(lambda: len(claimed) >= 5, timeout_seconds=30, what="some claims are made")
        own_placement_server.kill()
        killed.set()
        own_placement_server.start()
        thread.join(60)
        for consumer in doubtful:
            if client.consumer(consumer) is None:
                client.claim(consumer, {host: SMALL})  # also over what a claim cut in half left behind
        assert client.provider_allocations(host) == dict.fromkeys([*claimed, *doubtful], SMALL)

    def test_reads_wait_for_a_server_that_comes_back_inside_the_deadline(self, own_placement_server: PlacementServer) -> None:
        client = client_for(own_placement_server.url, deadline_seconds=60)
        host = make_provider(client)
        own_placement_server.stop()
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(client.provider(host)))
        thread.start()
        own_placement_server.start()
        thread.join(60)
        assert found
        assert found[0] is not None

    def test_a_frozen_server_is_unavailable_and_a_claim_that_it_took_in_shows_up_later(
        self, own_placement_server: PlacementServer
    ) -> None:
        client = client_for(own_placement_server.url, timeout_seconds=0.5, deadline_seconds=1)
        host = make_provider(client)
        consumer = uuid4()
        own_placement_server.freeze()
        with pytest.raises(PlacementUnavailable) as caught:
            client.claim(consumer, {host: SMALL})
        assert caught.value.outcome_unknown
        with pytest.raises(PlacementUnavailable):
            client.consumer(consumer)
        own_placement_server.thaw()
        held = wait_until(lambda: client.consumer(consumer), timeout_seconds=20, what="the claim sent before the freeze")
        client.release(consumer, held.generation)
        assert client.provider_allocations(host) == {}


class TestInventory:
    MACHINE = HostInfo("", "h1", "x86_64", 4, 8000, frozenset({"avx2"}), (), {})

    def _keeper(self, client: Placement, tmp_path: Path) -> tuple[UUID, InventoryKeeper]:
        provider, config = uuid4(), ComputeConfig(paths=PathsConfig(state_dir=tmp_path / "state"))
        return provider, InventoryKeeper(client, provider, f"host-{provider}", config, measure_disk=lambda _: 100)

    @pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.GARBAGE])
    @pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
    def test_whatever_gets_lost_the_next_sync_ends_with_everything_in_place(
        self, *, proxy: FaultyProxy, shaky: Placement, placement: Placement, tmp_path: Path, fault: Fault, method: str
    ) -> None:
        provider, keeper = self._keeper(shaky, tmp_path)
        proxy.inject(fault, method, times=3)
        admin = HostAdmin(traits=("CUSTOM_GOLD",))
        for _ in range(4):
            try:
                keeper.sync(self.MACHINE, host_admin=admin)
                break
            except PlacementUnavailable:
                continue
        assert placement.traits(provider) == wanted_traits(self.MACHINE, admin)
        assert {name: offer.total for name, offer in placement.inventories(provider).items()} == {
            "VCPU": 4, "MEMORY_MB": 8000, "DISK_GB": 100
        }  # fmt: skip

    def test_after_placement_lost_its_database_host_and_guests_are_written_again(
        self, own_placement_server: PlacementServer, tmp_path: Path
    ) -> None:
        client = client_for(own_placement_server.url)
        provider, keeper = self._keeper(client, tmp_path)
        admin = HostAdmin(traits=("CUSTOM_GOLD",))
        keeper.sync(self.MACHINE, host_admin=admin)
        guests = {uuid4(): SMALL, uuid4(): SMALL}
        for guest in guests:
            client.claim(guest, {provider: SMALL})
        own_placement_server.stop()
        own_placement_server.wipe()
        own_placement_server.start()
        keeper.sync(self.MACHINE, host_admin=admin)
        for guest in guests:
            client.assert_allocation(guest, {provider: SMALL})
        assert client.traits(provider) == wanted_traits(self.MACHINE, admin)
        assert client.provider_allocations(provider) == guests
