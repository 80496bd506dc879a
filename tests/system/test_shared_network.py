"""Guests on different hosts, on one wire: a network of the cluster over a bridge that each of the hosts has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import RUN_DIR, STATE_DIR, Cluster, Node, running_cluster
from tests.support.guests import Guest, make_key
from tests.support.hosts import HostNetwork

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
POOL = [f"10.77.0.{number}" for number in range(50, 53)]


class Reached:
    """A node of the cluster and what runs there, as ``Guest`` asks for them."""

    state_dir, run_dir = STATE_DIR, RUN_DIR

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster, self.run, self.path = cluster, node.host.run, node.path

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self._cluster.eschedule("show", name, "--json").stdout)
        return shown

    def evidence(self) -> str:
        return self._cluster.evidence()


@pytest.mark.timeout(400)
def test_guests_on_two_hosts_reach_each_other_by_addresses_of_a_shared_pool(
    host_network: HostNetwork, tmp_path: Path, tiny_image: Path
) -> None:
    key = make_key(tmp_path)
    with running_cluster(tmp_path, host_network, hosts=2, with_ecompute=False) as cluster:
        for number, node in enumerate(cluster.nodes, start=1):
            node.host.add_bridge("br0", f"10.77.0.{number}/24")
            node.start_ecompute()
        cluster.wait_ready()
        cluster.eschedule(
            "network", "add", "lan", "--bridge", "br0", "--subnet", "10.77.0.0/24", "--gateway", "10.77.0.1",
            "--range", f"{POOL[0]}-{POOL[-1]}",
        )  # fmt: skip
        cluster.eschedule(
            "create", REQUEST, tiny_image, "--name", "pair", "--count", "2", "--group", "apart", "--key", f"{key}.pub",
            "--nic", "network=lan", "--config-drive", "nocloud",
        )  # fmt: skip
        first, second = (guest_of(cluster, f"pair-{number}", key) for number in (1, 2))

        assert {first.shown["host"]["name"], second.shown["host"]["name"]} == {node.name for node in cluster.nodes}
        assert {first.address, second.address} < set(POOL)
        for guest, other in ((first, second), (second, first)):
            assert guest.say("hostname") == guest.name
            assert f"{guest.address}/24" in guest.say("ip -4 addr show eth0")
            assert "1 packets received" in guest.say(f"ping -c 1 -w 20 {other.address}")
            banner = guest.say(f"nc -w 20 {other.address} 22 </dev/null | head -n 1")
            assert banner.startswith("SSH-2.0-dropbear"), "TCP goes through as well"

        taken = json.loads(cluster.eschedule("network", "show", "lan", "--json").stdout)["addresses"]
        assert {entry["address"] for entry in taken} == {first.address, second.address}
        cluster.eschedule("destroy", "pair-1", "pair-2")
        assert json.loads(cluster.eschedule("network", "show", "lan", "--json").stdout)["addresses"] == []


def guest_of(cluster: Cluster, name: str, key: Path) -> Guest:
    """The guest *name*, reached from its own host."""
    shown = json.loads(cluster.eschedule("show", name, "--json").stdout)
    node = next(node for node in cluster.nodes if node.name == shown["host"]["name"])
    reached = Reached(cluster, node)
    return Guest(reached, reached, name, key)
