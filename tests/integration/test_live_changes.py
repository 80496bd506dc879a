"""What is changed of an instance reaches what its guest is told, and what reaches it, while it runs.

Real etcd, Placement and ecompute over libvirt's test driver; where packets are filtered, all in a network of their own.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.lockfile import LockFile
from common.metadata import LOCK_NAME, MetadataDocument, MetadataStore
from tests.support.deployment import Deployment, ThisMachine, make_raw_image
from tests.support.namespace import Namespace
from tests.support.processes import spawn, wait_until
from tests.support.simulated_host import TEST_HOST

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDILStVBInh3Ai7jej/rm6hMRZ2YrjZvE5uCqxz8bYS4 other"
METADATA = "169.254.169.254"
BUILDS = ("BuildDisk", "Define", "Start", "MarkBooted", "Shutdown", "Destroy")


class Guest:
    """One instance, and what md-server would tell it."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.deployment, self.name = deployment, name
        self.documents = MetadataStore(Path(deployment.state_dir) / "metadata")

    def show(self) -> dict[str, Any]:
        return self.deployment.show(self.name)

    @property
    def address(self) -> str:
        return str(self.show()["status"]["addresses"][0]["address"])

    def told(self, address: str) -> MetadataDocument | None:
        return self.documents.by_address(address)

    def rules(self) -> dict[str, Any]:
        """What the host keeps of its ports and rules: what its kernel has, unless libvirt is simulated as here.

        That the kernel has it as well is what test_firewall and tests/system show.
        """
        path = Path(self.deployment.state_dir) / "firewall" / f"{self.show()['uuid']}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def boots(self) -> tuple[Counter[str], int]:
        """The steps that a restart or a rebuild would take, and the boot that it was marked with."""
        status = self.show()["status"]
        return Counter(event["step"] for event in status["events"] if event["step"] in BUILDS), status["booted"]


class Network(ThisMachine):
    """This machine, but for its network."""

    def __init__(self, folder: Path) -> None:
        self.namespace = Namespace(folder)

    def run(
        self, command: Sequence[str | Path], *, timeout_seconds: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return super().run(self.namespace.in_network(*command), timeout_seconds=timeout_seconds, check=check)

    def spawn(self, command: Sequence[str | Path], *, log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        return spawn(self.namespace.in_network(*command), log=log, cwd=cwd)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Deployment]:
    """A host on libvirt's test driver in a network of its own, with its md-server."""
    (tmp_path / "test-host.xml").write_text(TEST_HOST)
    network, run_dir = Network(tmp_path), tmp_path / "run"
    for line in ("link add virbr0 type bridge", "addr add 192.168.122.1/24 dev virbr0", "link set virbr0 up"):
        network.run(["ip", *line.split()])
    deployment = Deployment(
        network, tmp_path, state_dir=str(tmp_path / "state"), run_dir=str(run_dir),
        compute={
            "uuid": str(uuid4()), "name": "node1", "libvirt": {"uri": f"test://{tmp_path}/test-host.xml", "virt_type": "test"},
        },
    )  # fmt: skip
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()
        if md_server := LockFile(run_dir / LOCK_NAME).holder():  # it outlives ecompute
            os.kill(md_server.pid, signal.SIGKILL)
        network.namespace.close()


class Program:
    """A program on a guest, which asks at 169.254.169.254."""

    def __init__(self, network: Network, address: str) -> None:
        network.run(["ip", "addr", "add", f"{address}/32", "dev", "virbr0"])
        self._network, self._address = network, address

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection(METADATA, timeout=10, source_address=(self._address, 0))
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        return self._network.namespace.call(ask)


@pytest.fixture
def guest(local_deployment: Deployment, tmp_path: Path) -> Guest:
    (tmp_path / "key.pub").write_text(KEY)
    (tmp_path / "other.pub").write_text(OTHER)
    (tmp_path / "user-data").write_bytes(b"#cloud-config\nhostname: x\n")
    local_deployment.eschedule(REQUEST, make_raw_image(tmp_path / "image.raw"), "--name", "web", "--key", tmp_path / "key.pub")
    return Guest(local_deployment, "web")


def test_keys_and_user_data_reach_the_document_of_a_guest_that_runs(guest: Guest, tmp_path: Path) -> None:
    deployment, address, boots = guest.deployment, guest.address, guest.boots()
    told, stamp = guest.told(address), guest.documents.stamp(address)
    assert told is not None and (told.keys, told.user_data) == ((KEY,), None)
    deployment.eschedule("key", "add", "team", tmp_path / "other.pub")
    deployment.eschedule("set", "web", "--key", "team", "--key", tmp_path / "key.pub", "--user-data", tmp_path / "user-data")
    told = guest.told(address)  # no waiting: it is there when the command has ended
    assert told is not None and (told.keys, told.user_data) == ((OTHER, KEY), b"#cloud-config\nhostname: x\n")
    assert guest.documents.stamp(address) != stamp, "md-server reads it anew"
    assert guest.boots() == boots, "nothing was started, stopped or built"
    shown = guest.show()
    assert (shown["phase"], shown["spec"]["boot_request"]) == ("Running", 1)
    assert Counter(event["step"] for event in shown["status"]["events"])["WriteMetadata"] == 2
    deployment.eschedule("set", "web", "--no-keys", "--no-user-data")
    told = guest.told(address)
    assert told is not None and (told.keys, told.user_data) == ((), None)
    deployment.eschedule("destroy", "web")
    deployment.eschedule("key", "rm", "team")
    deployment.assert_nothing_is_left()


def test_who_may_read_it_changes_while_it_runs(guest: Guest) -> None:
    deployment, address, boots = guest.deployment, guest.address, guest.boots()
    deployment.eschedule("set", "web", "--metadata", "required", "--metadata-hop-limit", "2")
    told = guest.told(address)
    assert told is not None and (told.access, told.hop_limit) == ("required", 2)
    deployment.eschedule("set", "web", "--metadata", "off")
    assert guest.told(address) is None, "nobody is found by its address any more"
    assert guest.documents.read(UUID(guest.show()["uuid"])) is not None
    deployment.eschedule("set", "web", "--metadata", "optional")
    assert guest.told(address) is not None
    assert guest.boots() == boots


def test_what_is_changed_while_ecompute_stands_still_is_told_when_it_goes_on(guest: Guest, tmp_path: Path) -> None:
    """The test driver's guests live in the process, so that it cannot be killed here."""
    deployment, address, boots = guest.deployment, guest.address, guest.boots()
    assert deployment.ecompute is not None
    deployment.ecompute.send_signal(signal.SIGSTOP)
    try:
        deployment.eschedule("set", "web", "--key", tmp_path / "other.pub", "--no-wait")
        told = guest.told(address)
        assert told is not None and told.keys == (KEY,)
    finally:
        deployment.ecompute.send_signal(signal.SIGCONT)
    deployment.eschedule("set", "web", "--key", tmp_path / "other.pub")  # so already; waits for the host all the same
    told = guest.told(address)
    assert told is not None and told.keys == (OTHER,)
    assert guest.boots() == boots


def test_a_guest_that_is_down_is_told_when_it_starts(guest: Guest, tmp_path: Path) -> None:
    deployment, address = guest.deployment, guest.address
    deployment.eschedule("stop", "web")
    said = deployment.eschedule("set", "web", "--key", tmp_path / "other.pub").stderr
    assert "from its next start on (eschedule start web)" in said
    assert guest.show()["phase"] == "Stopped"
    deployment.eschedule("start", "web")
    told = guest.told(address)
    assert told is not None and told.keys == (OTHER,)
    assert guest.address == address


def ways(guest: Guest) -> list[tuple[int, str, int]]:
    """The ports of the host that lead to the guest: port, address, the guest's port."""
    return [(way["host_port"], way["address"], way["guest_port"]) for way in guest.rules().get("ways", [])]


def test_ports_of_the_host_come_and_go_with_what_is_asked_for(apart: Deployment, tmp_path: Path) -> None:
    network = apart.machine
    assert isinstance(network, Network)
    apart.eschedule(REQUEST, make_raw_image(tmp_path / "image.raw"), "--name", "web", "--publish", "2222:22")
    guest = Guest(apart, "web")
    address, boots = guest.address, guest.boots()
    assert ways(guest) == [(2222, address, 22)]
    said = apart.eschedule("port-forward", "web", "8080:80", "--rm", "2222")
    assert said.stdout.splitlines()[1].split() == ["node1:8080/tcp", f"{address}:80", "in", "force"]
    assert ways(guest) == [(8080, address, 80)]  # no waiting: it is there when the command has ended
    with network.namespace.call(lambda: socket.create_server(("0.0.0.0", 0))) as listener:
        port = listener.getsockname()[1]
        said = apart.eschedule("port-forward", "web", f"{port}:80", check=False)
    assert said.returncode == 1
    assert f"eschedule: warning: web: port {port}/tcp of this host is taken by a process" in said.stderr
    assert "note " in apart.eschedule("show", "web").stdout
    assert "warning" not in apart.eschedule("port-forward", "web", "--rm", str(port)).stderr
    assert guest.boots() == boots
    apart.eschedule("destroy", "web")
    apart.assert_nothing_is_left()


def test_rules_come_and_go_with_what_is_asked_for(apart: Deployment, tmp_path: Path) -> None:
    apart.eschedule(REQUEST, make_raw_image(tmp_path / "image.raw"), "--name", "web")
    guest = Guest(apart, "web")
    boots = guest.boots()
    assert guest.rules() == {}
    assert "rules: from now on" in apart.eschedule("set", "web", "--allow", "tcp:2200-2201@192.168.122.0/24").stderr
    assert guest.rules()["allow"] == ["tcp:2200-2201@192.168.122.0/24"]
    apart.eschedule("set", "web", "--allow", "tcp:2300")
    assert guest.rules()["allow"] == ["tcp:2300"]
    said = apart.eschedule("port-forward", "web", "8080:80", check=False).stderr
    assert "which its rules let nobody reach; allow it" in said
    apart.eschedule("set", "web", "--allow-all")
    assert guest.rules()["allow"] is None
    assert guest.boots() == boots
    assert guest.show()["status"]["notes"] == []


def test_the_metadata_service_answers_with_what_was_changed(apart: Deployment, tmp_path: Path) -> None:
    network = apart.machine
    assert isinstance(network, Network)
    (tmp_path / "key.pub").write_text(KEY)
    (tmp_path / "other.pub").write_text(OTHER)
    (tmp_path / "user-data").write_bytes(b"#!/bin/sh\n")
    apart.eschedule(REQUEST, make_raw_image(tmp_path / "image.raw"), "--name", "web", "--key", tmp_path / "key.pub")
    guest = Guest(apart, "web")
    program, boots = Program(network, guest.address), guest.boots()
    key = "/latest/meta-data/public-keys/0/openssh-key"
    wait_until(lambda: program.ask(key)[0] == 200, timeout_seconds=30, what="md-server answers", evidence=apart.evidence)
    assert (program.ask(key)[1].strip(), program.ask("/latest/user-data")[0]) == (KEY, 404)
    apart.eschedule("set", "web", "--key", tmp_path / "other.pub", "--user-data", tmp_path / "user-data")
    assert (program.ask(key)[1].strip(), program.ask("/latest/user-data")) == (OTHER, (200, "#!/bin/sh\n"))
    apart.eschedule("set", "web", "--metadata", "required")
    assert program.ask(key)[0] == 401
    status, token = program.ask("/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    assert (status, program.ask(key, X_aws_ec2_metadata_token=token)[0]) == (200, 200)
    apart.eschedule("set", "web", "--metadata", "off")
    assert program.ask(key, X_aws_ec2_metadata_token=token)[0] == 404
    apart.eschedule("set", "web", "--metadata", "optional")
    assert program.ask(key)[0] == 200
    assert guest.boots() == boots
