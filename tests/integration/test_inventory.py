"""A host's provider, inventory and traits in a real Placement: written where they differ, read once where they do not."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.config import ComputeConfig, InventoryConfig, PathsConfig, PlacementConfig, ResourceConfig
from common.errors import ConfigError, Conflict, NoCapacity
from common.model import HostAdmin
from common.placement import DISABLED_TRAIT, OWNER_TRAIT, Inventory, Placement
from ecompute.hypervisor import HostInfo
from ecompute.inventory import InventoryKeeper, remove_provider, wanted_traits
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy
from tests.support.placement import PlacementServer, client_for

HOST = HostInfo(
    libvirt_host_uuid=str(uuid4()), hostname="h1", architecture="x86_64", cpus=4, memory_mib=8000,
    cpu_flags=frozenset({"sse4_1", "avx2"}), machine_types=("q35",), versions={},
)  # fmt: skip
QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}


class Host:
    """One host: its keeper can be restarted, its disk and config changed."""

    def __init__(self, placement: Placement, state_dir: Path) -> None:
        self.placement = placement
        self.provider = uuid4()
        self.name = f"host-{self.provider}"
        self.disk_gib = 100
        self.config = ComputeConfig(
            paths=PathsConfig(state_dir=state_dir), placement=PlacementConfig(deadline_seconds=20),
            inventory=InventoryConfig(ResourceConfig(0, 4.0), ResourceConfig(512, 1.0), ResourceConfig(2, 1.0)),
        )  # fmt: skip
        self.restart()

    def restart(self, **config: object) -> None:
        self.config = dataclasses.replace(self.config, **config)
        self.keeper = InventoryKeeper(
            self.placement, self.provider, self.name, self.config, measure_disk=lambda _directory: self.disk_gib
        )

    @property
    def traits(self) -> frozenset[str]:
        return self.placement.traits(self.provider)

    @property
    def inventories(self) -> dict[str, Inventory]:
        return self.placement.inventories(self.provider)

    @property
    def generation(self) -> int:
        provider = self.placement.provider(self.provider)
        assert provider is not None
        return provider.generation


@pytest.fixture
def proxy(placement_server: PlacementServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(placement_server.port) as proxy:
        yield proxy


@pytest.fixture
def host(proxy: FaultyProxy, placement: Placement, tmp_path: Path) -> Iterator[Host]:
    """It speaks through the proxy, which counts what it asks."""
    client = client_for(proxy.url, project_id=UUID(placement.project_id))
    yield Host(client, tmp_path / "state")
    client.close()


class TestSync:
    def test_a_new_host_can_be_scheduled_to_at_once(self, host: Host) -> None:
        offers = host.keeper.sync(HOST)
        assert {name: offer.capacity for name, offer in offers.items()} == {"VCPU": 16, "MEMORY_MB": 7488, "DISK_GB": 98}
        answer = host.placement.candidates(f"{QUERY}&required={OWNER_TRAIT},HW_CPU_X86_AVX2&in_tree={host.provider}")
        (candidate,) = answer.candidates
        assert candidate.host(answer.summaries) == host.provider
        capacities = {name: usage.capacity for name, usage in answer.summaries[host.provider].resources.items()}
        assert capacities == {"VCPU": 16, "MEMORY_MB": 7488, "DISK_GB": 98}
        assert answer.summaries[host.provider].traits == wanted_traits(HOST)

    def test_nothing_changed_is_one_read_and_no_write(
        self, host: Host, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        host.keeper.sync(HOST)
        proxy.seen.clear()
        caplog.set_level(logging.INFO, "ecompute")
        caplog.clear()
        host.keeper.sync(HOST)
        assert proxy.seen == [f"GET /resource_providers/{host.provider}"]
        assert not caplog.records

    def test_a_claim_costs_two_more_reads_and_no_write(self, host: Host, proxy: FaultyProxy, placement: Placement) -> None:
        host.keeper.sync(HOST)
        placement.claim(uuid4(), {host.provider: SMALL})
        proxy.seen.clear()
        host.keeper.sync(HOST)
        assert [line.partition(" ")[0] for line in proxy.seen] == ["GET"] * 3
        proxy.seen.clear()
        host.keeper.sync(HOST)
        assert len(proxy.seen) == 1

    def test_a_restart_of_ecompute_writes_nothing(self, host: Host, proxy: FaultyProxy) -> None:
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        host.restart()
        proxy.seen.clear()
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        assert {line.partition(" ")[0] for line in proxy.seen} == {"GET"}

    def test_what_someone_changed_by_hand_is_put_right(self, host: Host, placement: Placement) -> None:
        host.keeper.sync(HOST)
        generation = placement.put_inventories(host.provider, host.generation, {"VCPU": Inventory(total=1)})
        placement.put_traits(host.provider, generation, {"HW_CPU_X86_AVX512F", DISABLED_TRAIT})
        host.keeper.sync(HOST)
        assert {name: offer.total for name, offer in host.inventories.items()} == {"VCPU": 4, "MEMORY_MB": 8000, "DISK_GB": 100}
        assert host.traits == wanted_traits(HOST)

    def test_a_renamed_host_keeps_its_provider(self, host: Host, placement: Placement) -> None:
        host.keeper.sync(HOST)
        placement.claim(uuid4(), {host.provider: SMALL})
        host.name = f"{host.name}-renamed"
        host.restart()
        host.keeper.sync(HOST)
        provider = placement.provider(host.provider)
        assert provider is not None
        assert provider.name == host.name
        assert len(placement.provider_allocations(host.provider)) == 1

    def test_a_name_of_another_host_is_an_error_that_names_it(self, host: Host, placement: Placement, tmp_path: Path) -> None:
        host.keeper.sync(HOST)
        second = Host(placement, tmp_path / "second")
        second.name = host.name
        second.restart()
        with pytest.raises(ConfigError, match=str(host.provider)):
            second.keeper.sync(HOST)

    def test_a_provider_that_was_deleted_is_made_again(self, host: Host, placement: Placement) -> None:
        host.keeper.sync(HOST)
        placement.delete_provider(host.provider)
        host.keeper.sync(HOST)
        assert set(host.inventories) == set(SMALL)
        assert OWNER_TRAIT in host.traits


class TestInventory:
    def test_other_config_disk_and_foreign_guests_change_it(self, host: Host) -> None:
        host.keeper.sync(HOST)
        host.disk_gib = 200
        host.restart(inventory=InventoryConfig(ResourceConfig(1, 1.0), ResourceConfig(), ResourceConfig()))
        host.keeper.sync(HOST, foreign_vcpus=1, foreign_memory_mib=1000)
        assert {name: offer.capacity for name, offer in host.inventories.items()} == {
            "VCPU": 2, "MEMORY_MB": 7000, "DISK_GB": 200
        }  # fmt: skip
        host.keeper.sync(HOST)
        assert host.inventories["MEMORY_MB"].reserved == 0

    def test_a_guest_larger_than_the_host_has_no_candidate_in_spite_of_overcommitment(self, host: Host) -> None:
        host.keeper.sync(HOST)
        assert host.placement.candidates(f"resources=VCPU:4&in_tree={host.provider}").candidates
        assert not host.placement.candidates(f"resources=VCPU:5&in_tree={host.provider}").candidates

    def test_more_reserved_than_there_is_offers_nothing_and_says_so_once(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            host.keeper.sync(HOST, foreign_memory_mib=99_999)
        assert host.inventories["MEMORY_MB"].capacity == 0
        assert [r.getMessage() for r in caplog.records if "MEMORY_MB" in r.getMessage()] == [
            "all 8000 MEMORY_MB of this host are reserved, by inventory.memory_mb.reserved and for guests that are not ours:"
            " nothing can be placed here"
        ]

    def test_shrinking_below_what_is_claimed_keeps_the_claims_and_takes_no_new_ones(
        self, host: Host, placement: Placement, caplog: pytest.LogCaptureFixture
    ) -> None:
        host.keeper.sync(HOST)
        consumer = uuid4()
        placement.claim(consumer, {host.provider: {**SMALL, "DISK_GB": 60}})
        host.disk_gib = 50
        host.keeper.sync(HOST)
        host.keeper.sync(HOST)
        assert host.inventories["DISK_GB"].total == 50
        assert placement.provider_allocations(host.provider) == {consumer: {**SMALL, "DISK_GB": 60}}
        with pytest.raises(NoCapacity):
            placement.claim(uuid4(), {host.provider: SMALL})
        assert len([r for r in caplog.records if "60 DISK_GB of this host are claimed" in r.getMessage()]) == 1
        placement.release(consumer, 1)
        placement.claim(uuid4(), {host.provider: SMALL})

    def test_a_class_that_is_gone_but_claimed_is_reserved_whole_and_dropped_later(
        self, host: Host, placement: Placement, caplog: pytest.LogCaptureFixture
    ) -> None:
        host.keeper.sync(HOST)
        consumer = uuid4()
        placement.claim(consumer, {host.provider: SMALL})
        host.disk_gib = 0
        host.keeper.sync(HOST)
        assert host.inventories["DISK_GB"].capacity == 0
        assert "no DISK_GB any more" in caplog.text
        before = host.generation
        host.keeper.sync(HOST)
        assert host.generation == before
        placement.release(consumer, 1)
        host.keeper.sync(HOST)
        assert set(host.inventories) == {"VCPU", "MEMORY_MB"}

    def test_a_generation_that_the_caller_has_read_saves_asking_for_it(self, host: Host, placement: Placement) -> None:
        capacity = host.keeper.sync(HOST)
        seen = placement.use_of(host.provider).generation
        host.keeper._placement = None  # type: ignore[assignment] # whoever asks it now fails
        assert host.keeper.sync(HOST, generation=seen) == capacity
        host.keeper._placement = placement
        placement.put_inventories(host.provider, host.generation, {"VCPU": Inventory(total=1)})
        host.keeper.sync(HOST, generation=placement.use_of(host.provider).generation)
        assert set(host.inventories) == {"VCPU", "MEMORY_MB", "DISK_GB"}

    def test_what_somebody_writes_to_a_new_provider_meanwhile_stays(
        self, host: Host, placement: Placement, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ensure_traits = host.placement.ensure_traits

        def overtaken(names: frozenset[str]) -> frozenset[str]:
            monkeypatch.undo()
            placement.put_inventories(host.provider, 0, {"VGPU": Inventory(total=2)})
            return ensure_traits(names)

        monkeypatch.setattr(host.placement, "ensure_traits", overtaken)
        host.keeper.sync(HOST)
        assert set(host.inventories) == {"VCPU", "MEMORY_MB", "DISK_GB", "VGPU"}
        assert OWNER_TRAIT in host.traits

    def test_classes_that_others_put_there_stay(self, host: Host, placement: Placement) -> None:
        host.keeper.sync(HOST)
        placement.put_inventories(host.provider, host.generation, {**host.inventories, "VGPU": Inventory(total=2)})
        host.disk_gib = 50
        host.keeper.sync(HOST)
        assert host.inventories["VGPU"] == Inventory(total=2)
        assert host.inventories["DISK_GB"].total == 50


class TestTraits:
    def test_an_operators_traits_come_and_go_also_across_a_restart(self, host: Host) -> None:
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD", "CUSTOM_SSD")))
        assert host.traits - wanted_traits(HOST) == {"CUSTOM_GOLD", "CUSTOM_SSD"}
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        assert host.traits - wanted_traits(HOST) == {"CUSTOM_GOLD"}
        host.restart()
        host.keeper.sync(HOST)
        assert host.traits == wanted_traits(HOST)

    def test_disabling_takes_the_host_out_of_the_candidates_and_enabling_brings_it_back(self, host: Host) -> None:
        query = f"{QUERY}&root_required={OWNER_TRAIT},!{DISABLED_TRAIT}&in_tree={host.provider}"
        for disabled in (True, False):
            host.keeper.sync(HOST, host_admin=HostAdmin(disabled=disabled))
            assert bool(host.placement.candidates(query).candidates) is not disabled

    def test_traits_that_we_never_wrote_are_left_alone(self, host: Host, placement: Placement, tmp_path: Path) -> None:
        theirs = {"CUSTOM_RACK_7", "COMPUTE_VOLUME_ATTACH", "HW_NIC_SRIOV"}
        host.keeper.sync(HOST)
        placement.put_traits(host.provider, host.generation, host.traits | placement.ensure_traits(theirs))
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        host.restart()
        host.keeper.sync(HOST)
        assert host.traits == wanted_traits(HOST) | theirs

    def test_a_trait_that_was_there_before_an_operator_asked_for_it_outlives_the_asking(
        self, host: Host, placement: Placement
    ) -> None:
        host.keeper.sync(HOST)
        placement.put_traits(host.provider, host.generation, host.traits | placement.ensure_traits({"CUSTOM_RACK_7"}))
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_RACK_7",)))
        host.keeper.sync(HOST)
        assert "CUSTOM_RACK_7" in host.traits

    def test_without_the_state_directory_nothing_doubtful_is_removed(self, host: Host, tmp_path: Path) -> None:
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        host.restart(paths=PathsConfig(state_dir=tmp_path / "new-disk"))
        host.keeper.sync(HOST)
        assert host.traits - wanted_traits(HOST) == {"CUSTOM_GOLD"}

    def test_a_measured_trait_goes_when_it_is_no_longer_so(self, host: Host) -> None:
        host.keeper.sync(HOST)
        host.restart()
        host.keeper.sync(dataclasses.replace(HOST, cpu_flags=frozenset({"avx2"})))
        assert "HW_CPU_X86_SSE41" not in host.traits

    def test_a_trait_that_placement_does_not_know_is_said_once_and_does_not_stop_the_rest(
        self, host: Host, caplog: pytest.LogCaptureFixture
    ) -> None:
        admin = HostAdmin(disabled=True, traits=("gold", "CUSTOM_gold", "CUSTOM_GOLD", "HW_NOT_YET"))
        for _ in range(3):
            host.restart() if not host.traits else None
            host.keeper.sync(HOST, host_admin=admin)
        assert host.traits - wanted_traits(HOST) == {"CUSTOM_GOLD", DISABLED_TRAIT}
        refused = [r.getMessage() for r in caplog.records if "does not know these traits" in r.getMessage()]
        assert len(refused) == 1
        assert "CUSTOM_gold, HW_NOT_YET, gold" in refused[0]


class TestAtOnce:
    def test_a_burst_of_claims_does_not_keep_a_change_out(self, host: Host, placement: Placement) -> None:
        """Each claim changes the generation that a write is compared with."""
        host.keeper.sync(HOST)
        outcomes: list[str] = []

        def claim_until_full() -> None:
            while "full" not in outcomes:
                try:
                    placement.claim(uuid4(), {host.provider: {"VCPU": 1}})
                    outcomes.append("claimed")
                except NoCapacity:
                    outcomes.append("full")

        threads = [threading.Thread(target=claim_until_full) for _ in range(3)]
        for thread in threads:
            thread.start()
        host.disk_gib = 120
        host.keeper.sync(HOST, host_admin=HostAdmin(disabled=True))
        for thread in threads:
            thread.join(60)
        assert host.inventories["DISK_GB"].total == 120
        assert DISABLED_TRAIT in host.traits
        assert (
            outcomes.count("claimed") == host.inventories["VCPU"].capacity == len(placement.provider_allocations(host.provider))
        )

    def test_a_change_by_hand_in_the_middle_of_a_sync_is_noticed_by_the_next(
        self, host: Host, placement: Placement, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read_traits = host.placement.traits_to_change

        def meddle(provider: UUID) -> tuple[int, frozenset[str]]:
            monkeypatch.undo()
            placement.put_inventories(provider, host.generation, {"VCPU": Inventory(total=1)})
            return read_traits(provider)

        host.keeper.sync(HOST)
        host.disk_gib = 120
        monkeypatch.setattr(host.placement, "traits_to_change", meddle)
        host.keeper.sync(HOST)
        assert set(host.inventories) == {"VCPU"}
        host.keeper.sync(HOST)
        assert host.inventories["DISK_GB"].total == 120

    def test_two_threads_of_one_keeper_agree(self, host: Host) -> None:
        errors: list[Exception] = []

        def sync() -> None:
            try:
                for _ in range(3):
                    host.keeper.sync(HOST)
            except Exception as error:  # noqa: BLE001 - shown by the assertion below
                errors.append(error)

        threads = [threading.Thread(target=sync) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert host.traits == wanted_traits(HOST)


class TestLeave:
    def test_is_refused_while_something_is_claimed_and_names_it(self, host: Host, placement: Placement) -> None:
        host.keeper.sync(HOST, host_admin=HostAdmin(traits=("CUSTOM_GOLD",)))
        state_dir, consumer = host.config.paths.state_dir, uuid4()
        placement.claim(consumer, {host.provider: SMALL})
        with pytest.raises(Conflict, match=str(consumer)):
            remove_provider(host.placement, host.provider, state_dir)
        assert set(host.inventories) == set(SMALL)
        placement.release(consumer, 1)
        remove_provider(host.placement, host.provider, state_dir)
        assert placement.provider(host.provider) is None
        assert list(state_dir.iterdir()) == []
        remove_provider(host.placement, host.provider, state_dir)
