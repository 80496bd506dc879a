"""Guests that lie about who they are: what they read of others' metadata, and whose addresses they get hold of.

Everything is tried twice: with the filter nothing of it works, and without it (``network.filter: null``) what only the filter
stops does work. That proves the attacks.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.nics import link_local_address
from tests.support.deployment import Deployment, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

pytestmark = pytest.mark.timeout(400)

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
BRIDGE, SECRET = "virbr7", "the-secret-of-the-victim"
NETWORK = f"""\
<network>
  <name>shared</name><forward mode='nat'/><bridge name='{BRIDGE}' stp='off'/>
  <ip address='192.168.150.1' netmask='255.255.255.0'><dhcp><range start='192.168.150.2' end='192.168.150.254'/></dhcp></ip>
  <ip family='ipv6' address='fd00:150::1' prefix='64'/>
</network>
"""
ASK = "timeout 8 wget -q -O - http://{server}/latest/user-data"

# Each prints what it gets; {mine}, {its} and so on are filled in. They leave the guest as it was.
SPOOFS = {
    "another's address": (
        "ip addr add {its} dev eth0; ip route add 169.254.169.254 dev eth0 src {its};"
        f" {ASK.format(server='169.254.169.254')};"
        " ip route del 169.254.169.254 dev eth0; ip addr del {its}/32 dev eth0"
    ),
    "another's MAC and address": (
        "ip link set eth0 address {its_mac}; ip addr add {its} dev eth0; ip route add 169.254.169.254 dev eth0 src {its};"
        f" {ASK.format(server='169.254.169.254')};"
        " ip route del 169.254.169.254 dev eth0; ip addr del {its}/32 dev eth0; ip link set eth0 address {my_mac}"
    ),
    "another's IPv6 address": (
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/dad_transmits; echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_ra;"
        " ip -6 addr flush dev eth0; ip -6 addr add {its_link_local}/64 dev eth0; ip -6 route add fd00:ec2::254 dev eth0;"
        # The host asks the one that it knew by that address first.
        " n=0; until ping -6 -q -c 1 -W 1 fd00:ec2::254 || [ $n -ge 12 ]; do n=$((n+1)); done;"
        f" {ASK.format(server='[fd00:ec2::254]')};"
        " ip -6 addr flush dev eth0; ip -6 addr add {my_link_local}/64 dev eth0"
    ),
}  # fmt: skip
CLAIM = "ip addr add {its} dev eth0; timeout 5 arping -q -c 2 -I eth0 -s {its} 192.168.150.1; ip addr del {its}/32 dev eth0"
# These are nothing that a filter stops.
TRICKS = {
    "from another bridge": (
        "ip link set eth1 up; ip addr add {its} dev eth1; ip route add 192.168.122.1 dev eth1;"
        " ip route add 169.254.169.254 via 192.168.122.1 dev eth1 src {its};"
        f" {ASK.format(server='169.254.169.254')};"
        " ip route del 169.254.169.254; ip route del 192.168.122.1; ip addr del {its}/32 dev eth1; ip link set eth1 down"
    ),
    **{
        name: f"timeout 5 wget -q -O - --header {shlex.quote(header)} http://169.254.169.254/latest/user-data"
        for name, header in {
            "Host": "Host: {its}", "X-Forwarded-For": "X-Forwarded-For: {its}", "X-Real-IP": "X-Real-IP: {its}",
            "Forwarded": "Forwarded: for={its}", "X-Instance-ID": "X-Instance-ID: {its_id}",
        }.items()
    },
    **{
        f"path {path}": f"printf 'GET {path.replace('%', '%%')} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' | timeout 5 nc 169.254.169.254 80"
        for path in (
            "/latest/../../{its_id}.json", "/../{its_id}.json", "/..%2f{its_id}.json", "/%2e%2e/{its_id}.json",
            "//{its_id}.json", "/latest/by-address/{its}", "/by-address/../{its_id}.json", "http://{its}/latest/user-data",
            "/latest/user-data/../../{its_id}/latest/user-data", "/latest/user-data?instance-id={its_id}",
        )
    },
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A guest that tries everything, and one that is as good as away: it is paused and defends nothing."""

    host: NamespacedHost
    attacker: Guest
    victim: dict[str, Any]

    def attack(self, script: str) -> str:
        """What *script* prints in the attacker, who may be unreachable meanwhile."""
        mine, its = self.attacker.shown["status"]["addresses"][0], self.victim["status"]["addresses"][0]
        filled = script.format(
            its=its["address"], its_mac=its["mac"], its_link_local=link_local_address(its["mac"]), its_id=self.victim["uuid"],
            my_mac=mine["mac"], my_link_local=link_local_address(mine["mac"]),
        )  # fmt: skip
        self.attacker.say(f"rm -f /run/done; (sh -c {shlex.quote(filled)}; touch /run/done) >/run/said 2>&1 </dev/null &")
        found: list[str] = []

        def is_done() -> bool:
            answer = self.attacker.ssh("test -e /run/done && cat /run/said")
            found.append(answer.stdout)
            return answer.returncode == 0

        wait_until(is_done, timeout_seconds=60, what="the attack is over", evidence=self.attacker.evidence)
        return found[-1]

    def claimed(self) -> str:
        """Whose the host thinks that the victim's address is, after the attacker claimed it."""
        its = self.victim["status"]["addresses"][0]["address"]
        self.host.run(["ip", "neigh", "flush", "dev", BRIDGE])
        self.attack(CLAIM)
        neighbours = self.host.run(["ip", "neigh", "show", its, "dev", BRIDGE]).stdout.split()
        return neighbours[neighbours.index("lladdr") + 1] if "lladdr" in neighbours else ""


def a_scene(host: NamespacedHost, deployment: Deployment, image: Path, folder: Path) -> Scene:
    key, secret = make_key(folder), folder / "user-data"
    secret.write_text(f"#!/bin/sh\n# {SECRET}\n")
    words = [REQUEST, image, "--key", f"{key}.pub", "--nic", "network=shared"]
    deployment.eschedule("create", *words, "--name", "victim", "--user-data", secret)
    deployment.eschedule("create", *words, "--name", "attacker", "--nic", "network=default")
    attacker = Guest(host, deployment, "attacker", key)
    attacker.say("true")
    deployment.eschedule("pause", "victim")  # whom virsh paused would be set going again
    return Scene(host, attacker, deployment.show("victim"))


@pytest.fixture(scope="module")
def shared_network(deployment_host: NamespacedHost) -> Iterator[None]:
    file = deployment_host.directory / "shared.xml"
    file.write_text(NETWORK)
    for command in (["net-define", file], ["net-start", "shared"]):
        deployment_host.run(["virsh", "-q", *command])
    yield
    for verb in ("net-destroy", "net-undefine"):
        deployment_host.run(["virsh", "-q", verb, "shared"])


@pytest.fixture(scope="module", params=["etcd-compute", None], ids=["filtered", "unfiltered"])
def scene(
    request: pytest.FixtureRequest, deployment_host: NamespacedHost, shared_network: None, tiny_image: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:  # fmt: skip
    folder = tmp_path_factory.mktemp("spoofing")
    # Other tests on this host served the default network, where the addresses of the metadata service stay.
    for address in ("169.254.169.254", "fd00:ec2::254"):
        deployment_host.run(
            ["sh", "-c", f"ip address show dev virbr0 | grep -q {address} && ip address del {address} dev virbr0; true"]
        )
    sections = {"network": {"name": "shared", "filter": request.param}, "metadata": {"bridge": BRIDGE}}
    with deployment_inside(deployment_host, folder, **sections) as deployment:
        scene = a_scene(deployment_host, deployment, tiny_image, folder)
        yield scene
        for name in ("victim", "attacker"):
            deployment.eschedule("destroy", name)


@pytest.fixture
def is_filtered(request: pytest.FixtureRequest) -> bool:
    return "unfiltered" not in request.node.name


def test_the_attacker_is_served_as_itself(scene: Scene) -> None:
    assert (
        scene.attack("timeout 5 wget -q -O - http://169.254.169.254/latest/meta-data/instance-id")
        == (scene.attacker.shown["uuid"])
    )
    ask = (
        "ip -6 route add fd00:ec2::254 dev eth0; n=0;"
        " while ip -6 addr show dev eth0 | grep -q tentative && [ $n -lt 30 ]; do n=$((n+1)); sleep 1; done;"
        " ip -6 addr show dev eth0; timeout 20 wget -q -O - http://[fd00:ec2::254]/latest/meta-data/instance-id"
    )
    assert scene.attacker.shown["uuid"] in scene.attack(ask)


@pytest.mark.parametrize("spoof", SPOOFS)
def test_who_speaks_as_another_reads_its_metadata_only_without_the_filter(scene: Scene, is_filtered: bool, spoof: str) -> None:
    said = scene.attack(SPOOFS[spoof])
    assert (SECRET in said) is not is_filtered, f"{said}\n{scene.attacker.evidence()}"


def test_an_address_is_claimed_only_without_the_filter(scene: Scene, is_filtered: bool) -> None:
    mine = scene.attacker.shown["status"]["addresses"][0]["mac"]
    assert (scene.claimed() == mine) is not is_filtered, scene.attacker.evidence()


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_shows_the_metadata_of_another(scene: Scene, is_filtered: bool, trick: str) -> None:
    if not is_filtered and trick == "from another bridge":
        return  # the answer goes to the victim, filter or not; with it not even the question arrives
    said = scene.attack(TRICKS[trick])
    assert SECRET not in said, said
    assert scene.victim["uuid"] not in said.replace(f"{scene.victim['uuid']}.json", ""), said
