"""Networks of the cluster through the program, against real etcd and Placement; the hosts are stand-ins with a bridge."""

from __future__ import annotations

import ipaddress
import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import HostAdmin, InstanceSpec
from common.network_records import address_keys
from common.nics import bridge_trait, computed_mac
from common.store import Transaction
from eschedule import changes
from tests.support import pool_clients
from tests.support.deployment import Deployment, make_raw_image
from tests.support.eschedule import IMAGE, QUERY, Site, StandInHost, never_ends
from tests.support.etcd_proxy import EtcdProxy, NthWriteLost
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.placement import client_for
from tests.support.processes import wait_until

LAN = ("network", "add", "lan", "--bridge", "br0", "--subnet", "10.0.0.0/24", "--gateway", "10.0.0.1")
ON_LAN = ("--nic", "network=lan")
PROCESSES, THREADS = 4, 50


def host(site: Site, name: str = "node1", **options: object) -> StandInHost:
    return site.host(name, traits=(bridge_trait("br0"),), **options)  # type: ignore[arg-type]


def add(site: Site, *options: str) -> None:
    answer = site.run(*LAN, *options)
    assert answer.returncode == 0, answer.stderr


def owners(site: Site, network: str = "lan") -> dict[str, str]:
    prefix = site.keys.network_addresses(network)
    return {item.key.removeprefix(prefix): item.value for item in site.store.list(prefix).items}


def spec_of(site: Site, uuid: UUID) -> InstanceSpec:
    return changes.read(site.store, site.keys, uuid).spec


def refused(site: Site, code: int, *arguments: str) -> str:
    """The one line that the program says as it refuses *arguments* with exit code *code*."""
    answer = site.run(*arguments)
    assert (answer.returncode, answer.stdout) == (code, ""), answer.stderr
    *_, last = answer.stderr.splitlines()
    assert last.startswith("eschedule: ")
    return last


class TestTheLifeOfANetwork:
    def test_from_its_making_to_its_end(self, site: Site) -> None:
        host(site)
        answer = site.run(
            *LAN, "--range", "10.0.0.50-10.0.0.99", "--vlan", "42", "--dns", "10.0.0.1", "--subnet", "fd00:1::/64"
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.splitlines()[:4] == [
            "name     lan",
            "bridge   br0 vlan 42",
            "subnet   10.0.0.0/24, guests 10.0.0.50-10.0.0.99, gateway 10.0.0.1",
            "subnet   fd00:1::/64, guests fd00:1::1-fd00:1::ffff:ffff:ffff:ff7f",
        ]
        made = site.run(QUERY, IMAGE, "--name", "web-1", *ON_LAN, "--json")
        assert made.returncode == 0, made.stderr
        (nic,) = json.loads(made.stdout)["spec"]["nics"]
        four, six = (one["address"] for one in nic["addresses"])
        assert (nic["bridge"], nic["vlan"], nic["mac"]) == ("br0", 42, computed_mac("lan", four))
        assert ipaddress.ip_address(six) in ipaddress.ip_network("fd00:1::/64")
        first, second = (line.split() for line in site.run("network", "list").stdout.splitlines()[1:])
        assert first == ["lan", "br0", "42", "10.0.0.0/24", "10.0.0.50-10.0.0.99", "1", "49"]
        assert second[0] == "fd00:1::/64" and second[2:] == ["1", "about", "2^64"]
        uuid = str(site.uuid_of("web-1"))
        shown = site.run("network", "show", "lan").stdout.splitlines()
        assert [line.split() for line in shown[-2:]] == [[four, "web-1", uuid], [six, "web-1", uuid]]
        in_json = json.loads(site.run("network", "show", "lan", "--json").stdout)
        assert in_json["addresses"][0] == {"address": four, "instance": uuid, "name": "web-1"}
        assert [one["used"] for one in in_json["subnets"]] == [1, 1]
        said = refused(site, 5, "network", "rm", "lan")
        assert "2 addresses of the network lan are in use, by web-1; destroy these first" in said
        assert site.run("destroy", "web-1").returncode == 0
        assert owners(site) == {}
        assert site.run("network", "rm", "lan").returncode == 0
        assert site.store.get(site.keys.network("lan")) is None
        assert "there is no network lan" in refused(site, 1, "network", "rm", "lan")

    def test_what_does_not_go_together_is_refused(self, site: Site) -> None:
        add(site)
        again = site.run(*LAN)
        assert again.returncode == 0 and "is there already, just so" in again.stderr
        assert "there is a network lan already" in refused(site, 5, *LAN, "--mtu", "1400")
        office = ("network", "add", "office", "--bridge", "br0", "--subnet", "10.0.0.0/16")
        assert "10.0.0.0/16 overlaps 10.0.0.0/24 of the network lan" in refused(site, 5, *office)
        assert site.run(*office, "--vlan", "7").returncode == 0
        assert "not an address of a machine" in refused(site, 2, *office, "--gateway", "10.1.0.1")
        assert "add|list|show|rm" in refused(site, 2, "network")
        assert "there is no network wan" in refused(site, 1, "network", "show", "wan")


class TestCreating:
    def test_only_hosts_with_the_bridge_are_asked_and_the_others_are_named(self, site: Site) -> None:
        site.host("node0")
        add(site)
        assert "1 host: 1 without the bridge br0" in refused(site, 3, QUERY, IMAGE, *ON_LAN)
        host(site)
        for number in range(3):
            answer = site.run(QUERY, IMAGE, "--name", f"web-{number}", *ON_LAN, "--no-wait")
            assert answer.returncode == 0 and "node1" in answer.stdout, answer.stderr
        assert "2 hosts: 2 without the bridge br7" in refused(site, 3, QUERY, IMAGE, "--nic", "bridge=br7")

    def test_a_fixed_address_is_one_instances(self, site: Site) -> None:
        host(site)
        add(site)
        fixed = ("--nic", "default", "--nic", "network=lan,address=10.0.0.7")
        assert site.run(QUERY, IMAGE, "--name", "web-1", *fixed).returncode == 0
        said = refused(site, 5, QUERY, IMAGE, "--name", "web-2", *fixed)
        assert f"the address 10.0.0.7 of the network lan is used by the instance web-1 ({site.uuid_of('web-1')})" in said
        assert len(site.claimed()) == 1
        assert [nic.network for nic in spec_of(site, site.uuid_of("web-1")).nics] == ["default", "lan"]

    def test_a_full_network_is_exit_3_and_leaves_no_claim(self, site: Site) -> None:
        host(site)
        add(site, "--range", "10.0.0.50-10.0.0.51")
        for name in ("web-1", "web-2"):
            assert site.run(QUERY, IMAGE, "--name", name, *ON_LAN, "--no-wait").returncode == 0
        said = refused(site, 3, QUERY, IMAGE, *ON_LAN)
        assert "the network lan is full: no address is free; 2 of 2 in 10.0.0.50-10.0.0.51 are in use" in said
        assert len(site.claimed()) == 2
        assert site.run("destroy", "web-1").returncode == 0
        assert site.run(QUERY, IMAGE, "--name", "web-3", *ON_LAN).returncode == 0

    def test_the_same_request_again_has_the_same_address(self, site: Site) -> None:
        host(site)
        add(site)
        request = (QUERY, IMAGE, "--name", "web-1", "--request-id", "order 7", *ON_LAN, "--json")
        first = json.loads(site.run(*request).stdout)
        again = site.run(*request)
        assert "web-1 is there already, from this same request" in again.stderr
        assert json.loads(again.stdout)["spec"]["nics"] == first["spec"]["nics"]
        assert len(owners(site)) == 1

    def test_a_client_that_is_killed_between_claim_and_record_leaves_no_address(self, site: Site) -> None:
        """It takes none before: the address comes with the instance. The repeat finds the claim and takes one."""
        host(site)
        add(site)
        proxy = FaultyProxy(site.placement_server.port)
        request = (QUERY, IMAGE, "--name", "web-1", "--request-id", "order 7", *ON_LAN)
        try:
            site.configure(placement_url=proxy.url)
            proxy.inject(Fault.HOLD_ANSWER, "PUT", "/allocations")
            process = site.spawn(*request)
            wait_until(site.claimed, timeout_seconds=60, what="the claim is made")
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        finally:
            proxy.close()
        assert (site.recorded(), len(site.claimed())) == (set(), 1)
        site.configure()
        assert site.run("network", "rm", "lan").returncode == 0, "nobody has an address"
        add(site)
        answer = site.run(*request)
        assert answer.returncode == 0, answer.stderr
        assert list(owners(site).values()) == [str(site.uuid_of("web-1"))]
        assert len(site.claimed()) == 1

    @pytest.mark.parametrize("where", ["PUT", "POST"])
    def test_a_signal_between_claim_and_record_leaves_nothing(self, site: Site, where: str) -> None:
        host(site)
        add(site)
        count = ("--count", "3") if where == "POST" else ()
        code, errors = site.signalled_between_claim_and_record(where, signal.SIGTERM, QUERY, IMAGE, *ON_LAN, *count)
        assert code == 143
        assert errors.splitlines()[-1] == "eschedule: interrupted; nothing was created"
        assert (site.claimed(), site.recorded()) == (set(), set())


def lease_the_journal(site: Site) -> None:
    """Every six hours the first write that is noted makes the journal's lease; then it is there."""
    assert site.run(QUERY, IMAGE, "--name", "first", "--no-wait").returncode == 0


class TestEtcdsAnswers:
    """What passes between the program and etcd."""

    def proxied(self, site: Site, **options: Any) -> EtcdProxy:
        proxy = EtcdProxy(int(site.etcd.endpoint.rpartition(":")[2]), address="127.0.0.1", **options)
        site.configure(etcd={"endpoints": [proxy.endpoint], "prefix": site.prefix, "deadline_seconds": 30})
        return proxy

    def test_a_lost_answer_to_any_write_takes_no_address_twice_and_leaves_none(self, site: Site) -> None:
        host(site, vcpus=50, memory_mib=20_000)
        lease_the_journal(site)
        lost = NthWriteLost()
        proxy = self.proxied(site, on_write=lost)
        try:
            for step, (arguments, addresses) in enumerate(
                [
                    ((*LAN, "--subnet", "fd00:1::/64"), 0),
                    ((QUERY, IMAGE, "--name", "web", *ON_LAN, "--no-wait"), 2),
                    ((QUERY, IMAGE, "--name", "set", "--count", "30", *ON_LAN, "--no-wait"), 62),
                ]
            ):
                lost.begin(1)
                answer = site.run(*arguments)
                assert answer.returncode == 0, f"{step}: {answer.stderr}"
                assert lost.lost.startswith("Txn "), lost.seen
                assert len(owners(site)) == addresses
            specs = [spec_of(site, UUID(uuid)) for uuid in set(owners(site).values())]
            assert {one.address for spec in specs for nic in spec.nics for one in nic.addresses} == set(owners(site))
            assert site.run("destroy", *(spec.name for spec in specs)).returncode == 0
            assert owners(site) == {}
            lost.begin(1)
            assert site.run("network", "rm", "lan").returncode == 0
            assert lost.lost == "Txn networks"
        finally:
            proxy.close()

    def test_a_network_of_the_cluster_costs_one_question_more_and_a_libvirt_network_none(self, site: Site) -> None:
        host(site)
        add(site)
        lease_the_journal(site)
        asked: list[str] = []
        proxy = self.proxied(site, on_request=lambda method, _: asked.append(method.rpartition("/")[2]))
        try:
            costs = []
            for number, nics in enumerate([(), ("--nic", "default"), ("--nic", "network=lab"), ON_LAN]):
                asked.clear()
                answer = site.run(QUERY, IMAGE, "--name", f"web-{number}", *nics, "--no-wait")
                assert answer.returncode == 0, answer.stderr
                costs.append(Counter(asked))
        finally:
            proxy.close()
        plain = Counter(Txn=3)  # instance and name, hosts, the record
        assert costs == [plain, plain, plain, plain + Counter(Range=1)]


class TestARealHost:
    """The real ecompute on libvirt's test driver, where nothing is real and every bridge is there; VLANs it cannot play."""

    def test_from_the_pool_to_the_guest_and_back(self, local_deployment: Deployment) -> None:
        keys = Keys(local_deployment.prefix)
        store = EtcdStore(EtcdConfig(endpoints=(f"http://127.0.0.1:{local_deployment.etcd_port}",)))
        placement = client_for(f"http://127.0.0.1:{local_deployment.placement_port}", etcd_prefix=local_deployment.prefix)
        try:
            provider = keys.parse_host(store.list(keys.hosts()).items[0].key)
            store.create(keys.host_admin(provider), HostAdmin(traits=(bridge_trait("br0"),)).to_json())
            wait_until(
                lambda: bridge_trait("br0") in placement.traits(provider), timeout_seconds=90, what="the bridge is known"
            )  # fmt: skip
            local_deployment.eschedule(*LAN, "--dns", "10.0.0.1")
            image = make_raw_image(local_deployment.directory / "image.raw")
            made = local_deployment.eschedule(QUERY, image, "--name", "web", "--nic", "default", *ON_LAN, "--json")
            (taken,) = store.list(keys.network_addresses()).items
            address = keys.parse_network_address(taken.key)[1]
            told = json.loads(made.stdout)["status"]["addresses"]
            assert [(one["network"], one["bridge"]) for one in told] == [("default", ""), ("lan", "br0")]
            assert (told[1]["address"], told[1]["mac"]) == (address, computed_mac("lan", address))
            assert (told[1]["source"], told[1]["gateway"]) == ("static", "10.0.0.1")
            audit = local_deployment.eschedule("audit", check=False)
            assert audit.returncode == 0, audit.stdout
            store.commit(Transaction(deletes=(taken.key,)))
            assert "InstanceWithoutAddress" in local_deployment.eschedule("audit", check=False).stdout
            fixed = local_deployment.eschedule("audit", "--fix", check=False)
            assert fixed.returncode == 0 and f"noted that web has {address}" in fixed.stdout, fixed.stdout
            local_deployment.eschedule("destroy", "web")
            assert store.list(keys.network_addresses()).items == ()
            stray = keys.network_address("lan", "10.0.0.9")
            store.create(stray, str(uuid4()))
            fixed = local_deployment.eschedule("audit", "--fix", check=False)
            assert fixed.returncode == 0 and "gave 10.0.0.9 back to the network lan" in fixed.stdout, fixed.stdout
            local_deployment.eschedule("network", "rm", "lan")
        finally:
            store.close()
            placement.close()


class TestMany:
    def test_a_set_of_100_and_its_end(self, site: Site) -> None:
        host(site, vcpus=100, memory_mib=100_000, disk_gib=1000)
        add(site, "--subnet", "fd00:1::/64")
        made = site.run(QUERY, IMAGE, "--name", "web", "--count", "100", "--request-id", "order 7", *ON_LAN, "--json")
        assert made.returncode == 0, made.stderr
        instances = [UUID(one["uuid"]) for one in json.loads(made.stdout)]
        known = owners(site)
        assert len(known) == 200 and Counter(known.values()) == {str(uuid): 2 for uuid in instances}
        for uuid in instances:
            keys = address_keys(site.keys, spec_of(site, uuid).nics)
            assert {item.value for item in site.store.get_many(keys).values()} == {str(uuid)}
        again = site.run(QUERY, IMAGE, "--name", "web", "--count", "100", "--request-id", "order 7", *ON_LAN, "--json")
        assert "100 of 100 instances are there already" in again.stderr
        assert owners(site) == known
        said = refused(site, 3, QUERY, IMAGE, "--count", "154", *ON_LAN)
        assert "153 addresses are free, 154 are wanted; 100 of 253 in 10.0.0.1-10.0.0.254" in said
        assert site.run("destroy", *map(str, instances)).returncode == 0
        assert (site.recorded(), site.claimed()) == (set(), set())

    def test_200_at_one_moment_have_200_addresses_and_leave_none(self, site: Site) -> None:
        """As many as there are addresses, from four processes: the last one has one to find."""
        hosts = [host(site, f"node{n}", vcpus=200, memory_mib=200_000, disk_gib=1000, build=never_ends) for n in range(2)]
        add(site, "--range", "10.0.0.2-10.0.0.201")
        specs = self.race(site, hosts)
        given = Counter(one.address for spec in specs for nic in spec.nics for one in nic.addresses)
        assert given == Counter(f"10.0.0.{n}" for n in range(2, 202))
        assert owners(site) == {spec.nics[0].addresses[0].address: str(spec.uuid) for spec in specs}
        assert len({spec.nics[0].mac for spec in specs}) == 200
        assert "no address is free; 200 of 200" in refused(site, 3, QUERY, IMAGE, *ON_LAN)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda spec: changes.change(site.store, site.keys, spec.uuid, changes.destroyed), specs))
        wait_until(lambda: not site.recorded(), timeout_seconds=120, what="all are destroyed and nothing is left")
        assert (owners(site), site.claimed()) == ({}, set())

    def race(self, site: Site, hosts: list[StandInHost]) -> list[InstanceSpec]:
        names = [[f"vm-{process}-{thread}" for thread in range(THREADS)] for process in range(PROCESSES)]
        processes = [pool_clients.start(site, "lan", some) for some in names]
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        came: dict[str, dict[str, str]] = {}
        for process in processes:
            came |= json.loads(process.communicate(timeout=300)[0])
        assert {name: one["error"] for name, one in came.items() if "error" in one} == {}
        found = [item for node in hosts for item in site.store.list(site.keys.specs(node.provider)).items]
        specs = [InstanceSpec.from_json(item.value) for item in found]
        assert {str(spec.uuid) for spec in specs} == {one["uuid"] for one in came.values()}
        return specs
