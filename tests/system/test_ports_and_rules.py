"""A real guest behind libvirt's NAT: a port of its host leads to it, its rules keep others out, and both outlive what hosts go through."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path)


@pytest.fixture
def deployment(deployment_host: NamespacedHost, tmp_path: Path) -> Iterator[Deployment]:
    with deployment_inside(deployment_host, tmp_path, builder={"resync_every_seconds": 2}) as made:
        yield made


def from_outside(guest: Guest, port: int, command: str) -> str:
    """What *command* prints in the guest that *port* of the host leads to, asked by this machine; "" where nobody answers."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=2", "BatchMode=yes")
    ssh = ["ssh", "-i", str(guest.key), "-p", str(port), *(word for option in options for word in ("-o", option))]
    answer = subprocess.run(
        [*ssh, f"root@{guest.host.address}", command], capture_output=True, text=True, timeout=30, check=False
    )
    return answer.stdout.strip() if answer.returncode == 0 else ""


def wait_from_outside(guest: Guest, port: int) -> None:
    wait_until(
        lambda: from_outside(guest, port, "hostname") == guest.name,
        timeout_seconds=90,
        what=f"port {port} of the host leads to {guest.name}",
        evidence=lambda: f"{ruleset(guest.host)}\n{guest.evidence()}",
    )


def ruleset(host: NamespacedHost) -> str:
    return host.run(["nft", "list", "ruleset"]).stdout


def pings(guest: Guest, address: str) -> bool:
    return guest.say(f"ping -c 1 -W 2 {address} >/dev/null && echo yes || echo no") == "yes"


@pytest.mark.timeout(400)
def test_a_port_of_the_host_leads_to_a_guest_that_only_its_rules_let_others_reach(
    deployment: Deployment,
    deployment_host: NamespacedHost,
    tiny_image: Path,
    key: Path,
) -> None:
    host = deployment_host
    for name, *more in (("web", "--publish", "2222:22", "--allow", "tcp:22", "--restart", "always"), ("next",)):
        deployment.eschedule(REQUEST, tiny_image, "--name", name, "--key", f"{key}.pub", *more)
    web, neighbour = (Guest(host, deployment, name, key) for name in ("web", "next"))
    assert web.shown["status"]["notes"] == []
    wait_from_outside(web, 2222)
    assert not from_outside(web, 22, "hostname"), "the host itself has no ssh, and no other port leads anywhere"

    neighbour.say("true")
    assert pings(web, neighbour.address), "the answer comes in"
    assert not pings(neighbour, web.address)
    deployment.eschedule("set", "web", "--allow", "tcp:22,icmp")
    assert pings(neighbour, web.address)

    # What is lost comes back: by a flush, by a restart of libvirtd, by a reboot of the host.
    for table in ("ip", "bridge"):
        host.run(["nft", "delete", "table", table, "etcd_compute"])
    wait_from_outside(web, 2222)
    host.stop_libvirtd(signal.SIGKILL)
    host.start_libvirtd()
    wait_from_outside(web, 2222)
    host.kill()
    host.start()
    deployment.start()
    wait_from_outside(web, 2222)
    assert "chain in_" in ruleset(host)

    # A second one that wants the port runs all the same, and is told who has it.
    deployment.eschedule("port-forward", "next", "2222:22", check=False)
    shown = json.loads(deployment.eschedule("show", "next", "--json").stdout)
    assert any("taken by instance web" in note for note in shown["status"]["notes"]), shown
    for name in ("web", "next"):
        deployment.eschedule("destroy", name)
    deployment.assert_nothing_is_left()
    assert "etcd_compute" not in ruleset(host)
    assert "etcd_compute" not in host.run(["iptables", "-S"]).stdout
