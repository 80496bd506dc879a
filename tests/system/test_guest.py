"""Real guests: from a request to a login, and what of them is left at the end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.deployment import Deployment
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
METADATA = "http://169.254.169.254/latest"


class Guest:
    """A guest that one can log into."""

    def __init__(self, host: NamespacedHost, deployment: Deployment, name: str, key: Path) -> None:
        self.host, self.deployment, self.name, self.key = host, deployment, name, key
        self.shown = deployment.show(name)
        self.address = self.shown["status"]["addresses"][0]["address"]

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        options = [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "ConnectTimeout=3",
            "-o",
            "BatchMode=yes",
        ]
        return self.host.run(
            ["ssh", "-i", self.key, *options, f"root@{self.address}", command], check=False, timeout_seconds=20
        )

    def say(self, command: str) -> str:
        """What *command* prints in the guest, once it can be logged into."""
        answers: list[str] = []

        def answered() -> bool:
            answer = self.ssh(command)
            answers.append(answer.stdout if answer.returncode == 0 else "")
            return answer.returncode == 0

        wait_until(answered, timeout_seconds=90, what=f"{self.name} answers by ssh", evidence=self.evidence)
        return answers[-1].strip()

    def evidence(self) -> str:
        log = self.host.path(f"{self.deployment.state_dir}/instances/{self.shown['uuid']}/console.log")
        console = log.read_text(errors="replace")[-3000:] if log.exists() else "no console log"
        return f"--- console of {self.name}\n{console}\n{self.deployment.evidence()}"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture
def create(deployment_host: NamespacedHost, host_deployment: Deployment, tiny_image: Path, key: Path):  # type: ignore[no-untyped-def]
    def _create(name: str, *more: str | Path) -> Guest:
        host_deployment.eschedule(REQUEST, tiny_image, "--name", name, "--key", f"{key}.pub", *more)
        return Guest(deployment_host, host_deployment, name, key)

    return _create


def domains(host: NamespacedHost) -> list[str]:
    return host.run(["virsh", "-q", "-c", host.uri, "list", "--all", "--uuid"]).stdout.split()


def test_a_guest_knows_who_it_is_and_is_gone_after_destroy(
    create, host_deployment: Deployment, deployment_host: NamespacedHost, tmp_path: Path
) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#!/bin/sh\necho made-by-user-data > /run/mark\n")
    guest = create("web", "--user-data", user_data)

    assert guest.say("hostname") == "web"
    assert guest.say(f"wget -q -O - {METADATA}/meta-data/instance-id") == guest.shown["uuid"]
    assert guest.address in guest.say("ip -4 addr show eth0"), "the address that was published before it started"
    assert guest.say("cat /sys/class/net/eth0/address") == guest.shown["status"]["addresses"][0]["mac"]
    wait_until(
        lambda: guest.say("cat /run/mark; true") == "made-by-user-data",
        timeout_seconds=20,
        what="user data ran",
        evidence=guest.evidence,
    )
    size_kib = int(guest.say("df -k / | tail -1 | awk '{print $2}'"))
    assert size_kib > 900_000, "the root file system has grown to its GiB"

    host_deployment.eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()
    assert domains(deployment_host) == []


def test_two_creates_at_once_give_two_guests(
    create, host_deployment: Deployment, tiny_image: Path, key: Path, deployment_host: NamespacedHost
) -> None:
    processes = [
        host_deployment.spawn_eschedule(
            REQUEST, tiny_image, "--name", name, "--key", f"{key}.pub", log=host_deployment.directory / f"{name}.log"
        )
        for name in ("left", "right")
    ]
    for process in processes:
        wait_until(
            lambda p=process: p.poll() is not None,
            timeout_seconds=90,
            what="eschedule ended",
            evidence=host_deployment.evidence,
        )
        assert process.poll() == 0, host_deployment.evidence()
    for name in ("left", "right"):
        assert Guest(deployment_host, host_deployment, name, key).say("hostname") == name


def test_stop_presses_the_power_button_and_start_boots_the_same_disk(create, host_deployment: Deployment) -> None:
    guest = create("web")
    guest.say("echo kept > /root/mark; sync")
    host_deployment.eschedule("stop", "web")
    steps = [event["step"] for event in host_deployment.show("web")["status"]["events"]]
    assert "Shutdown" in steps
    assert "Destroy" not in steps, "the guest went down by itself"
    host_deployment.eschedule("start", "web")
    assert guest.say("cat /root/mark") == "kept"


def test_a_guest_that_powers_itself_off_stays_off_and_keeps_everything(create, host_deployment: Deployment) -> None:
    guest = create("web")
    guest.say("true")
    guest.ssh("poweroff")
    shown = host_deployment.wait_phase("web", "Stopped")
    assert shown["status"]["reason"] == "GuestShutdown"
    assert list(host_deployment.allocations()) == [shown["uuid"]]


def test_ecompute_killed_in_the_middle_of_a_build_finishes_it_at_the_next_start(
    host_deployment: Deployment, tiny_image: Path, key: Path, deployment_host: NamespacedHost
) -> None:
    host_deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub", "--no-wait")
    log = host_deployment.directory / "ecompute.log"
    wait_until(
        lambda: "step=FetchImage" in log.read_text(),
        timeout_seconds=20,
        what="the build is under way",
        evidence=host_deployment.evidence,
    )
    host_deployment.kill_ecompute()
    host_deployment.start_ecompute()
    host_deployment.wait_phase("web", "Running")
    guest = Guest(deployment_host, host_deployment, "web", key)
    assert guest.say("hostname") == "web"
    assert domains(deployment_host) == [guest.shown["uuid"]]
    assert list(host_deployment.allocations()) == [guest.shown["uuid"]]


def test_a_guest_outlives_ecompute_and_its_metadata_does_too(create, host_deployment: Deployment) -> None:
    guest = create("web")
    boot = guest.say("cat /proc/sys/kernel/random/boot_id")
    host_deployment.kill_ecompute()
    assert guest.say(f"wget -q -O - {METADATA}/meta-data/instance-id") == guest.shown["uuid"]
    host_deployment.start_ecompute()
    host_deployment.wait_ready()
    assert host_deployment.phase("web") == "Running"
    assert guest.say("cat /proc/sys/kernel/random/boot_id") == boot


def test_a_guest_outlives_libvirtd(create, host_deployment: Deployment, deployment_host: NamespacedHost) -> None:
    guest = create("web")
    boot = guest.say("cat /proc/sys/kernel/random/boot_id")
    deployment_host.stop_libvirtd(signal.SIGKILL)
    deployment_host.start_libvirtd()
    assert guest.say("cat /proc/sys/kernel/random/boot_id") == boot
    host_deployment.eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()


def test_no_dhcp_entry_or_metadata_address_stays_when_a_host_leaves(
    create, host_deployment: Deployment, deployment_host: NamespacedHost
) -> None:
    create("web")
    host_deployment.eschedule("destroy", "web")
    host_deployment.stop_ecompute()
    from tests.support.processes import VENV_BIN

    deployment_host.run([VENV_BIN / "ecompute", "--config", host_deployment.compute_file, "--leave"])
    assert "<host" not in deployment_host.run(["virsh", "-c", deployment_host.uri, "net-dumpxml", "default"]).stdout
    assert "etcd-compute" not in deployment_host.run(["virsh", "-c", deployment_host.uri, "nwfilter-list"]).stdout
    assert "169.254.169.254" not in deployment_host.run(["ip", "address"]).stdout
    assert host_deployment.etcd_keys() == {}
