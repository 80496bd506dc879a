"""What common/placement.py promises, against the real openstack-placement; its known answers are pinned here one by one."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import requests

from common.errors import ConfigError, Conflict, EcomputeError, InvalidSpec, NoCapacity, PlacementUnavailable
from common.nics import bridge_trait
from common.placement import MICROVERSION, OWNER_TRAIT, Claim, Inventory, Placement
from common.placement_types import claim_body
from tests.support.databases import DatabaseServer
from tests.support.placement import PlacementServer, client_for, make_provider
from tests.support.processes import VENV_BIN, free_port, spawn, stop

SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"

# The real server, made to forget its newer microversions.
OLD_SERVER = """
import sys, waitress
from placement import microversion
del microversion.VERSIONS[microversion.VERSIONS.index("1.36") + 1 :]
from placement.wsgi.api import application
waitress.serve(application, listen=f"127.0.0.1:{sys.argv[1]}", threads=1)
"""


@pytest.fixture(scope="module")
def placement_server(database: DatabaseServer | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    """On each database that it may be run on; but for SQLite, by two processes."""
    server = PlacementServer(tmp_path_factory.mktemp("placement"), database=database)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def host(placement: Placement) -> UUID:
    return make_provider(placement)


class Raw:
    """The server without our client, to pin what it answers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.headers.update({"X-Auth-Token": "admin", "OpenStack-API-Version": f"placement {MICROVERSION}"})

    def __call__(self, method: str, path: str, body: object = None) -> tuple[int, str, str]:
        answer = self.session.request(method, self.url + path, json=body, timeout=20)
        error = answer.json()["errors"][0] if answer.status_code >= 400 else {}
        return answer.status_code, error.get("code", ""), error.get("detail", "")


@pytest.fixture
def raw(placement_server: PlacementServer) -> Iterator[Raw]:
    client = Raw(placement_server.url)
    yield client
    client.session.close()


def body(placement: Placement, allocations: dict[UUID, dict[str, int]], generation: int | None) -> dict[str, object]:
    return claim_body(Claim(uuid4(), allocations, generation), placement.project_id, placement.user_id)


class TestKnownAnswers:
    """The table that our decisions rest on. When one of these fails, Placement has changed and so must we."""

    def test_a_first_claim_is_204_and_the_same_again_is_concurrent_update(
        self, raw: Raw, placement: Placement, host: UUID
    ) -> None:
        path, claim = f"/allocations/{uuid4()}", body(placement, {host: SMALL}, None)
        assert raw("PUT", path, claim)[0] == 204
        status, code, detail = raw("PUT", path, claim)
        assert (status, code) == (409, "placement.concurrent_update")
        assert "expected 1 but got None" in detail

    def test_too_big_is_409_with_an_undefined_code(self, raw: Raw, placement: Placement, host: UUID) -> None:
        for too_big in ({"VCPU": 99}, {"VCPU": 1, "DISK_GB": 101}):
            answer = raw("PUT", f"/allocations/{uuid4()}", body(placement, {host: too_big}, None))
            assert answer[:2] == (409, "placement.undefined_code")

    def test_a_class_that_the_provider_lacks_is_409(self, raw: Raw, placement: Placement, host: UUID) -> None:
        answer = raw("PUT", f"/allocations/{uuid4()}", body(placement, {host: {"VGPU": 1}}, None))
        assert answer[:2] == (409, "placement.undefined_code")

    def test_an_unknown_provider_is_400_and_leaves_a_consumer_that_no_get_shows(
        self, raw: Raw, placement: Placement, host: UUID
    ) -> None:
        path = f"/allocations/{uuid4()}"
        status, _, detail = raw("PUT", path, body(placement, {uuid4(): SMALL}, None))
        assert status == 400
        assert "does not exist" in detail
        status, code, detail = raw("PUT", path, body(placement, {host: SMALL}, None))
        assert (status, code) == (409, "placement.concurrent_update")
        assert "expected 0 but got None" in detail
        assert raw.session.get(raw.url + path).json() == {"allocations": {}}
        assert raw("PUT", path, body(placement, {}, 0))[0] == 204  # changes nothing, and it may be repeated
        assert raw("PUT", path, body(placement, {}, 0))[0] == 204
        assert raw("PUT", path, body(placement, {host: SMALL}, 0))[0] == 204

    def test_nothing_at_generation_0_is_refused_where_there_is_no_leftover(
        self, raw: Raw, placement: Placement, host: UUID
    ) -> None:
        path = f"/allocations/{uuid4()}"
        assert raw("PUT", path, body(placement, {}, 0))[:2] == (409, "placement.concurrent_update")
        assert raw("PUT", path, body(placement, {host: SMALL}, None))[0] == 204
        assert raw("PUT", path, body(placement, {}, 0))[:2] == (409, "placement.concurrent_update")

    def test_an_empty_put_with_the_generation_releases_and_delete_does_not_compare(
        self, raw: Raw, placement: Placement, host: UUID
    ) -> None:
        path = f"/allocations/{uuid4()}"
        raw("PUT", path, body(placement, {host: SMALL}, None))
        assert raw("PUT", path, body(placement, {}, 7))[:2] == (409, "placement.concurrent_update")
        assert raw("PUT", path, body(placement, {}, 1))[0] == 204
        assert raw("PUT", path, body(placement, {}, 1))[:2] == (409, "placement.concurrent_update")
        assert raw("DELETE", path)[0] == 404

    def test_a_provider_made_twice_is_duplicate_name_by_uuid_and_by_name(self, raw: Raw) -> None:
        uuid, name = str(uuid4()), f"host-{uuid4()}"
        assert raw("POST", "/resource_providers", {"uuid": uuid, "name": name})[0] == 200
        for again in ({"uuid": uuid, "name": name}, {"uuid": str(uuid4()), "name": name}, {"uuid": uuid, "name": f"{name}x"}):
            assert raw("POST", "/resource_providers", again)[:2] == (409, "placement.duplicate_name")

    def test_inventories_of_an_old_generation_and_without_a_class_in_use(
        self, raw: Raw, placement: Placement, host: UUID
    ) -> None:
        path = f"/resource_providers/{host}/inventories"
        stale = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 1}}}
        assert raw("PUT", path, stale)[:2] == (409, "placement.concurrent_update")
        placement.claim(uuid4(), {host: SMALL})
        provider = placement.provider(host)
        assert provider is not None
        empty = {"resource_provider_generation": provider.generation, "inventories": {}}
        assert raw("PUT", path, empty)[:2] == (409, "placement.inventory.inuse")
        below = {**empty, "inventories": {c: {"total": 1, "reserved": 1} for c in SMALL}}
        assert raw("PUT", path, below)[0] == 200  # less than what is claimed is taken

    def test_reserved_may_equal_total_and_not_exceed_it(self, raw: Raw, placement: Placement) -> None:
        uuid = uuid4()
        placement.ensure_provider(uuid, f"host-{uuid}")
        path = f"/resource_providers/{uuid}/inventories"
        over = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4, "reserved": 5}}}
        assert raw("PUT", path, over)[0] == 400
        equal = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4, "reserved": 4}}}
        assert raw("PUT", path, equal)[0] == 200
        nothing = {"resource_provider_generation": 1, "inventories": {"VCPU": {"total": 0}}}
        assert raw("PUT", path, nothing)[0] == 400

    def test_deleting_a_provider_that_is_in_use_or_gone(self, raw: Raw, placement: Placement, host: UUID) -> None:
        placement.claim(uuid4(), {host: SMALL})
        assert raw("DELETE", f"/resource_providers/{host}")[:2] == (409, "placement.resource_provider.inuse")
        assert raw("DELETE", f"/resource_providers/{uuid4()}")[0] == 404


class TestVersion:
    def test_this_server_is_new_enough(self, placement: Placement) -> None:
        assert placement.check_version() == MICROVERSION

    def test_every_answer_of_placement_names_its_version(self, raw: Raw) -> None:
        answer = raw.session.get(f"{raw.url}/allocations/{uuid4()}")
        assert answer.headers["OpenStack-API-Version"] == f"placement {MICROVERSION}"
        refused = raw.session.get(f"{raw.url}/resource_providers/{uuid4()}")
        assert refused.headers["OpenStack-API-Version"] == f"placement {MICROVERSION}"

    def test_a_server_that_stops_at_1_36_is_refused_by_name_whichever_call_comes_first(self, tmp_path: Path) -> None:
        port = free_port()
        env = {
            "OS_PLACEMENT_DATABASE__CONNECTION": f"sqlite:///{tmp_path}/placement.db",
            "OS_PLACEMENT_DATABASE__SYNC_ON_STARTUP": "true",
            "OS_API__AUTH_STRATEGY": "noauth2",
        }
        server = spawn([VENV_BIN / "python", "-c", OLD_SERVER, str(port)], log=tmp_path / "log", env=env)
        try:
            client = client_for(f"http://127.0.0.1:{port}", deadline_seconds=60)  # it is waited for until it is up
            for call in (
                client.check_version,
                lambda: client.candidates(QUERY),
                lambda: client.claim(uuid4(), {uuid4(): SMALL}),
            ):
                with pytest.raises(
                    EcomputeError, match=r"up to 1\.36, etcd-compute needs 1\.39: upgrade it to openstack-placement 7"
                ):
                    call()
        finally:
            stop(server)


class TestToken:
    def test_a_refused_token_is_named_by_its_file_and_never_shown(
        self, placement_server: PlacementServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        token_file = tmp_path / "token"
        token_file.write_text("hunter2-not-admin\n")
        client = client_for(placement_server.url, token_file=token_file)
        with pytest.raises(ConfigError) as caught:
            client.provider(uuid4())
            client.ensure_provider(uuid4(), f"host-{uuid4()}")
        assert str(token_file) in str(caught.value)
        assert "hunter2" not in str(caught.value) + caplog.text

    def test_a_new_token_in_the_file_is_taken_up_without_a_restart(
        self, placement_server: PlacementServer, tmp_path: Path
    ) -> None:
        token_file = tmp_path / "token"
        token_file.write_text("admin")
        client = client_for(placement_server.url, token_file=token_file)
        assert client.consumer(uuid4()) is None


class TestCandidates:
    def test_the_host_is_found_with_its_capacity_use_and_traits(self, placement: Placement) -> None:
        host = make_provider(placement, vcpus=4, traits=(OWNER_TRAIT, "HW_CPU_X86_AVX2"))
        placement.claim(uuid4(), {host: SMALL})
        answer = placement.candidates(f"{QUERY}&in_tree={host}&required=HW_CPU_X86_AVX2", limit=5)
        (candidate,) = answer.candidates
        assert candidate.allocations == {host: SMALL}
        assert candidate.mappings == {"": (host,)}
        assert candidate.host(answer.summaries) == host
        summary = answer.summaries[host]
        assert (summary.root, summary.parent) == (host, None)
        assert summary.traits == {OWNER_TRAIT, "HW_CPU_X86_AVX2"}
        assert (summary.resources["VCPU"].capacity, summary.resources["VCPU"].used, summary.resources["VCPU"].free) == (4, 1, 3)

    def test_no_candidates_is_an_answer(self, placement: Placement, host: UUID) -> None:
        assert placement.candidates(f"resources=VCPU:99&in_tree={host}", limit=10).candidates == ()

    def test_limit_is_added_and_a_limit_of_the_user_wins(self, placement: Placement) -> None:
        trait = f"CUSTOM_{uuid4().hex.upper()}"
        for _ in range(3):
            make_provider(placement, traits=(trait,))
        query = f"{QUERY}&required={trait}"
        assert len(placement.candidates(query).candidates) == 3
        assert len(placement.candidates(query, limit=2).candidates) == 2
        assert len(placement.candidates(f"{query}&limit=1", limit=2).candidates) == 1

    @pytest.mark.parametrize("query", [
        "resources=VCPU:1&nope=2", "resources=NOPE:1", "resources=VCPU:0", "resources=VCPU:x", "resources=VCPU:1&required=NOPE",
        "resources=VCPU:1&limit=0", "", "resources=", "resources=VCPU:1&in_tree=here", "resources=VCPU:1 # what\nis this",
        "resources=VCPU:1&required=!", "resources1=VCPU:1&resources2=VCPU:1", "\N{PILE OF POO}",
    ])  # fmt: skip
    def test_a_query_that_placement_refuses_is_one_clear_line(self, placement: Placement, query: str) -> None:
        with pytest.raises(ConfigError) as caught:
            placement.candidates(query, limit=3)
        assert len(str(caught.value).splitlines()) == 1
        assert "Failed validating" not in str(caught.value)
        assert "malformed or otherwise incorrect" not in str(caught.value)

    def test_granular_groups_and_their_mappings(self, placement: Placement) -> None:
        host = make_provider(placement)
        query = f"resources_A=VCPU:1&resources_B=MEMORY_MB:128&group_policy=none&in_tree_A={host}&in_tree_B={host}"
        (candidate,) = placement.candidates(query).candidates
        assert candidate.mappings == {"_A": (host,), "_B": (host,)}

    def test_a_tree_is_named_by_its_root(self, placement: Placement, raw: Raw) -> None:
        host = make_provider(placement)
        child = uuid4()
        raw("POST", "/resource_providers", {"uuid": str(child), "name": f"gpu-{child}", "parent_provider_uuid": str(host)})
        placement.put_inventories(child, 0, {"VGPU": Inventory(total=2)})
        answer = placement.candidates(f"resources=VCPU:1,VGPU:1&in_tree={host}")
        (candidate,) = answer.candidates
        assert candidate.allocations == {host: {"VCPU": 1}, child: {"VGPU": 1}}
        assert candidate.host(answer.summaries) == host
        assert {p.uuid for p in placement.providers(in_tree=child)} == {host, child}
        with pytest.raises(Conflict, match="child"):
            placement.delete_provider(host)

    def test_shared_storage_is_not_taken_for_the_host(self, placement: Placement, raw: Raw) -> None:
        host, storage, aggregate = uuid4(), uuid4(), str(uuid4())
        placement.ensure_provider(host, f"host-{host}")
        placement.put_inventories(host, 0, {"VCPU": Inventory(total=2)})
        placement.ensure_provider(storage, f"nfs-{storage}")
        generation = placement.put_inventories(storage, 0, {"DISK_GB": Inventory(total=100)})
        placement.put_traits(storage, generation, ["MISC_SHARES_VIA_AGGREGATE"])
        for uuid in (host, storage):
            provider = placement.provider(uuid)
            assert provider is not None
            aggregates = {"aggregates": [aggregate], "resource_provider_generation": provider.generation}
            assert raw("PUT", f"/resource_providers/{uuid}/aggregates", aggregates)[0] == 200
        answer = placement.candidates(f"resources=VCPU:1,DISK_GB:5&member_of={aggregate}")
        (candidate,) = answer.candidates
        assert candidate.allocations == {host: {"VCPU": 1}, storage: {"DISK_GB": 5}}
        assert candidate.host(answer.summaries) == host

    def test_a_placement_where_no_ecompute_ever_was_has_no_candidates(self, own_placement_server: PlacementServer) -> None:
        client = client_for(own_placement_server.url)
        make_provider(client)
        query = f"{QUERY}&root_required={OWNER_TRAIT},!COMPUTE_STATUS_DISABLED"
        assert client.candidates(query, limit=3).candidates == ()
        assert client.candidates(f"{QUERY}&required={OWNER_TRAIT}").candidates == ()
        assert client.providers(OWNER_TRAIT) == []
        host = make_provider(client, traits=(OWNER_TRAIT,))
        assert [c.host({}) for c in client.candidates(query, limit=3).candidates] == [host]
        assert [p.uuid for p in client.providers(OWNER_TRAIT)] == [host]
        # Nor has any host a bridge that no ecompute has ever found.
        on_bridge = f"{QUERY}&root_required={OWNER_TRAIT},!COMPUTE_STATUS_DISABLED,{bridge_trait('br0')},{bridge_trait('br1')}"
        assert client.candidates(on_bridge, limit=3).candidates == ()
        with pytest.raises(ConfigError, match="No such trait"):
            client.candidates(f"{query},CUSTOM_OTHER")


class TestClaims:
    def test_a_claim_is_held_by_us_at_generation_1(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()
        placement.claim(consumer, {host: SMALL})
        held = placement.consumer(consumer)
        assert held is not None
        assert (held.generation, held.consumer_type, held.allocations) == (1, "INSTANCE", {host: SMALL})
        assert (held.project_id, held.user_id) == (placement.project_id, placement.user_id)
        assert placement.is_ours(held)
        assert placement.provider_allocations(host) == {consumer: SMALL}
        assert placement.usages(host) == SMALL

    def test_ours_is_of_our_deployment_and_of_our_type(
        self, placement: Placement, placement_server: PlacementServer, host: UUID, raw: Raw
    ) -> None:
        mine, volume = uuid4(), uuid4()
        placement.claim(mine, {host: SMALL})
        assert (
            raw("PUT", f"/allocations/{volume}", {**body(placement, {host: SMALL}, None), "consumer_type": "VOLUME"})[0] == 204
        )
        held, held_volume = placement.consumer(mine), placement.consumer(volume)
        assert held is not None
        assert held_volume is not None
        assert not placement.is_ours(held_volume)
        assert not client_for(placement_server.url).is_ours(held)
        with_ids = client_for(placement_server.url, project_id=UUID(placement.project_id))
        assert with_ids.is_ours(held)

    def test_claiming_again_conflicts_and_changes_nothing(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()
        placement.claim(consumer, {host: SMALL})
        with pytest.raises(Conflict):
            placement.claim(consumer, {host: {"VCPU": 2}})
        assert placement.provider_allocations(host) == {consumer: SMALL}

    @pytest.mark.parametrize("too_much", [{"VCPU": 9}, {"VCPU": 1, "MEMORY_MB": 8193}, {"VGPU": 1}])
    def test_no_room_is_no_capacity_and_nothing_is_held(
        self, placement: Placement, host: UUID, too_much: dict[str, int]
    ) -> None:
        consumer = uuid4()
        with pytest.raises(NoCapacity):
            placement.claim(consumer, {host: too_much})
        assert placement.consumer(consumer) is None
        placement.claim(consumer, {host: SMALL})

    def test_a_vanished_provider_is_no_capacity_and_the_next_candidate_can_be_claimed(
        self, placement: Placement, host: UUID
    ) -> None:
        consumer = uuid4()
        with pytest.raises(NoCapacity):
            placement.claim(consumer, {uuid4(): SMALL})
        placement.claim(consumer, {host: SMALL})  # over the record that Placement left behind
        assert placement.provider_allocations(host) == {consumer: SMALL}
        held = placement.consumer(consumer)
        assert held is not None and held.generation == 1  # as that of any claim just made, by which it is given back

    @pytest.mark.parametrize("nonsense", [{}, {"VCPU": 0}, {"VCPU": -1}, {"NOPE": 1}, {"nope": 1}, {"VCPU": 2**40}])
    def test_what_placement_does_not_understand_is_an_invalid_spec(
        self, placement: Placement, host: UUID, nonsense: dict[str, int]
    ) -> None:
        consumer = uuid4()
        with pytest.raises((InvalidSpec, NoCapacity)):
            placement.claim(consumer, {host: nonsense})
        assert placement.consumer(consumer) is None

    def test_release_frees_and_repeats_harmlessly(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()
        placement.claim(consumer, {host: SMALL})
        placement.release(consumer, 1)
        assert placement.consumer(consumer) is None
        placement.release(consumer, 1)
        placement.release(uuid4(), 3)
        assert placement.usages(host) == dict.fromkeys(SMALL, 0)

    def test_release_spares_a_claim_that_was_renewed(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()
        placement.claim(consumer, {host: SMALL})
        placement.replace_consumers([Claim(consumer, {host: {"VCPU": 2}}, generation=1)])
        with pytest.raises(Conflict):
            placement.release(consumer, 1)
        assert placement.provider_allocations(host) == {consumer: {"VCPU": 2}}

    def test_assert_allocation_makes_keeps_and_refuses(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()
        placement.assert_allocation(consumer, {host: SMALL})
        placement.assert_allocation(consumer, {host: SMALL})
        held = placement.consumer(consumer)
        assert held is not None
        assert held.generation == 1
        with pytest.raises(Conflict, match="holds"):
            placement.assert_allocation(consumer, {host: {"VCPU": 2}})
        with pytest.raises(NoCapacity):
            placement.assert_allocation(uuid4(), {host: {"VCPU": 9}})

    def test_a_swap_moves_the_claim_at_once_or_not_at_all(self, placement: Placement, host: UUID) -> None:
        target, tiny, consumer = make_provider(placement), make_provider(placement, vcpus=1, memory_mib=16), uuid4()
        placement.claim(consumer, {host: SMALL})
        with pytest.raises(NoCapacity):
            placement.replace_consumers([Claim(consumer, {tiny: SMALL}, generation=1)])
        assert placement.provider_allocations(host) == {consumer: SMALL}
        placement.replace_consumers([Claim(consumer, {target: SMALL}, generation=1)])
        assert placement.provider_allocations(host) == {}
        assert placement.provider_allocations(target) == {consumer: SMALL}
        with pytest.raises(Conflict):
            placement.replace_consumers([Claim(consumer, {host: SMALL}, generation=1)])

    def test_several_claims_are_all_or_nothing_also_over_leftovers(self, placement: Placement) -> None:
        host, first, second, third = make_provider(placement, vcpus=3), uuid4(), uuid4(), uuid4()
        with pytest.raises(NoCapacity):  # and leaves second behind at generation 0
            placement.claim(second, {uuid4(): SMALL})
        with pytest.raises(NoCapacity):
            placement.replace_consumers([Claim(c, {host: {"VCPU": 2}}) for c in (first, second, third)])
        assert placement.provider_allocations(host) == {}
        placement.replace_consumers([Claim(c, {host: SMALL}) for c in (first, second, third)])
        assert placement.provider_allocations(host) == dict.fromkeys((first, second, third), SMALL)
        with pytest.raises(Conflict):
            placement.replace_consumers([Claim(uuid4(), {host: SMALL}), Claim(first, {host: SMALL})])
        placement.replace_consumers([Claim(c, {}, generation=1) for c in (first, second, third)])
        assert placement.provider_allocations(host) == {}
        placement.replace_consumers([])

    def test_16_clients_at_once_are_all_served_and_the_seventeenth_place_is_not_given(self, placement: Placement) -> None:
        host = make_provider(placement, vcpus=40, memory_mib=40 * 256, disk_gib=40)
        outcomes: Counter[str] = Counter()
        barrier = threading.Barrier(16)

        def claim_three(_: int) -> list[str]:
            barrier.wait(30)
            return [_outcome(placement, host) for _ in range(3)]

        with ThreadPoolExecutor(16) as pool:
            for outcome in pool.map(claim_three, range(16)):
                outcomes.update(outcome)
        assert outcomes == {"claimed": 40, "NoCapacity": 8}
        assert len(placement.provider_allocations(host)) == 40

    def test_duplicates_of_one_claim_at_once_give_one_claim(self, placement: Placement, host: UUID) -> None:
        consumer = uuid4()

        def claim(_: int) -> str:
            try:
                placement.claim(consumer, {host: SMALL})
            except Conflict:
                return "Conflict"
            return "claimed"

        with ThreadPoolExecutor(8) as pool:
            assert Counter(pool.map(claim, range(8))) == {"claimed": 1, "Conflict": 7}
        assert placement.provider_allocations(host) == {consumer: SMALL}


def _outcome(placement: Placement, host: UUID) -> str:
    try:
        placement.claim(uuid4(), {host: SMALL})
    except (Conflict, NoCapacity, PlacementUnavailable) as error:
        return type(error).__name__
    return "claimed"


class TestProviders:
    def test_an_unknown_provider_has_nothing(self, placement: Placement) -> None:
        unknown = uuid4()
        assert placement.provider(unknown) is None
        assert placement.inventories(unknown) == {}
        assert placement.traits(unknown) == frozenset()
        assert placement.usages(unknown) == {}
        assert placement.provider_allocations(unknown) == {}
        assert placement.use_of(unknown).generation is None
        placement.delete_provider(unknown)
        for write in (
            lambda: placement.put_inventories(unknown, 0, {}),
            lambda: placement.put_traits(unknown, 0, ["COMPUTE_NODE"]),
        ):
            with pytest.raises(Conflict):
                write()

    def test_ensure_makes_keeps_and_renames(self, placement: Placement) -> None:
        uuid, name = uuid4(), f"host-{uuid4()}"
        made = placement.ensure_provider(uuid, name)
        assert (made.uuid, made.name, made.generation, made.parent, made.root) == (uuid, name, 0, None, uuid)
        placement.put_inventories(uuid, 0, {"VCPU": Inventory(total=1)})
        assert placement.ensure_provider(uuid, name).generation == 1
        assert placement.ensure_provider(uuid, f"{name}-new").name == f"{name}-new"
        assert [p.uuid for p in placement.providers(name=f"{name}-new")] == [uuid]
        assert placement.inventories(uuid)["VCPU"].total == 1

    def test_a_name_that_another_provider_has_is_said_clearly(self, placement: Placement) -> None:
        first, second, name = uuid4(), uuid4(), f"host-{uuid4()}"
        placement.ensure_provider(first, name)
        with pytest.raises(ConfigError, match=str(first)):
            placement.ensure_provider(second, name)
        placement.ensure_provider(second, f"{name}-2")
        with pytest.raises(ConfigError, match=str(first)):
            placement.ensure_provider(second, name)
        with pytest.raises(ConfigError):
            placement.ensure_provider(uuid4(), "x" * 300)

    def test_many_at_once_make_one_provider(self, placement: Placement) -> None:
        uuid = uuid4()
        with ThreadPoolExecutor(8) as pool:
            made = set(pool.map(lambda _: placement.ensure_provider(uuid, f"host-{uuid}"), range(8)))
        assert {provider.uuid for provider in made} == {uuid}

    def test_inventories_come_back_as_they_were_put(self, placement: Placement) -> None:
        uuid = uuid4()
        placement.ensure_provider(uuid, f"host-{uuid}")
        inventories = {
            "VCPU": Inventory(total=4, reserved=1, allocation_ratio=4.5, min_unit=1, max_unit=4, step_size=1),
            "MEMORY_MB": Inventory(total=1024, reserved=1024),
        }
        generation = placement.put_inventories(uuid, 0, inventories)
        assert placement.inventories(uuid) == inventories
        assert inventories["VCPU"].capacity == 13
        with pytest.raises(Conflict):
            placement.put_inventories(uuid, 0, inventories)
        with pytest.raises(InvalidSpec, match="greater than total"):
            placement.put_inventories(uuid, generation, {"VCPU": Inventory(total=4, reserved=5)})

    def test_a_class_in_use_cannot_be_left_out(self, placement: Placement, host: UUID) -> None:
        placement.claim(uuid4(), {host: SMALL})
        provider = placement.provider(host)
        assert provider is not None
        with pytest.raises(Conflict, match="in use"):
            placement.put_inventories(host, provider.generation, {})
        with pytest.raises(Conflict, match="has allocations"):
            placement.delete_provider(host)

    def test_traits_are_made_where_they_can_be(self, placement: Placement, host: UUID) -> None:
        custom = f"CUSTOM_{uuid4().hex.upper()}"
        wanted = {custom, "HW_CPU_X86_AVX2", "NOT_A_TRAIT", "CUSTOM_lower", "CUSTOM_WITH,COMMA", "CUSTOM_" + "X" * 300, ""}
        assert placement.ensure_traits(wanted) == {custom, "HW_CPU_X86_AVX2"}
        assert placement.ensure_traits([]) == frozenset()
        provider = placement.provider(host)
        assert provider is not None
        generation = placement.put_traits(host, provider.generation, {custom, "HW_CPU_X86_AVX2"})
        assert placement.traits(host) == {custom, "HW_CPU_X86_AVX2"}
        with pytest.raises(Conflict):
            placement.put_traits(host, provider.generation, {custom})
        with pytest.raises(InvalidSpec, match="NOT_A_TRAIT"):
            placement.put_traits(host, generation, {"NOT_A_TRAIT"})

    def test_providers_by_trait(self, placement: Placement) -> None:
        trait = f"CUSTOM_{uuid4().hex.upper()}"
        host = make_provider(placement, traits=(trait,))
        assert [p.uuid for p in placement.providers(trait)] == [host]
        with pytest.raises(ConfigError, match="No such trait"):
            placement.providers("CUSTOM_NEVER_HEARD_OF")
