"""Real guests of an image that does nothing by itself: their hosts have written to their disks who they are."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.plain_image import make_plain_image
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


@pytest.fixture(scope="module")
def image(tiny_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain_image(tiny_image, tmp_path_factory.mktemp("plain") / "plain.qcow2")


@pytest.fixture(scope="module")
def deployment(
    appliance_kernel: None, deployment_host: NamespacedHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    with deployment_inside(deployment_host, tmp_path_factory.mktemp("prepared"), guestfs={"deadline_seconds": 280}) as found:
        yield found


def children(deployment: Deployment) -> str:
    """What runs for disks now, as nobody; so does libvirt's own DHCP server."""
    told = deployment.machine.run(["ps", "-U", "nobody", "-o", "pid=,args="], timeout_seconds=10, check=False).stdout
    return "\n".join(line for line in told.splitlines() if "dnsmasq" not in line)


def create(deployment: Deployment, *words: str | Path) -> None:
    deployment.eschedule(*words, "--wait-seconds", "300", timeout_seconds=320)


@pytest.mark.timeout(900)  # two guests, of which each waits for an appliance, on a machine that does other things as well
def test_a_guest_has_the_size_the_files_and_the_identity_that_it_was_asked_for(
    deployment: Deployment, deployment_host: NamespacedHost, image: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    (tmp_path / "secret").write_text("of web alone\n")
    known = ("--key", f"{key}.pub", "--inject-identity")
    create(deployment, REQUEST, image, "--name", "as-it-is", *known)
    guest = Guest(deployment_host, deployment, "as-it-is", key)
    assert int(guest.say("df -k / | tail -1 | awk '{print $2}'")) < 60_000, "the image does not grow by itself"

    injected = f"{tmp_path}/secret:/etc/app/secret:0600:7"
    create(deployment, REQUEST, image, "--name", "web", *known, "--inject", injected, "--resize")
    web = Guest(deployment_host, deployment, "web", key)
    answers = web.answers(
        {
            "hostname": "hostname",
            "file": "cat /etc/app/secret; stat -c '%a %u %g' /etc/app/secret",
            "size": "df -k / | tail -1 | awk '{print $2}'",
            "partition": "cat /sys/class/block/vda1/size",
        }
    )
    assert answers["hostname"] == "web"
    assert answers["file"] == "of web alone\n600 7 7"
    assert int(answers["size"]) > 900_000
    assert int(answers["partition"]) == (1 << 30) // 512 - 2048
    assert "/etc/app/secret (13 bytes)" in deployment.eschedule("show", "web").stdout
    for name in ("web", "as-it-is"):
        deployment.eschedule("destroy", name)
    deployment.assert_nothing_is_left()
    assert children(deployment) == ""


def test_an_appliance_that_hangs_is_ended_at_the_deadline_and_the_reason_is_shown(
    deployment: Deployment, image: Path
) -> None:  # fmt: skip
    usual = deployment.compute_file.read_text()
    deployment.compute_file.write_text(usual.replace("deadline_seconds: 280", "deadline_seconds: 15"))
    deployment.stop_ecompute()
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.eschedule(REQUEST, image, "--name", "web", "--resize", "--no-wait")

    def emulators() -> list[int]:
        lines = [line.split(maxsplit=1) for line in children(deployment).splitlines()]
        return [int(number) for number, command in lines if "qemu-system" in command.split()[0]]

    wait_until(lambda: bool(emulators()), timeout_seconds=60, what="the appliance runs", evidence=deployment.evidence)
    for number in emulators():
        deployment.machine.run(["kill", f"-{signal.SIGSTOP}", str(number)], timeout_seconds=10, check=True)
    shown = deployment.wait_phase("web", "Failed", timeout_seconds=120)
    assert shown["status"]["reason"] == "ApplianceTimeout"
    assert "the disk of web cannot be prepared: libguestfs' appliance was not done after" in shown["status"]["message"]
    deployment.compute_file.write_text(usual)
    deployment.stop_ecompute()
    deployment.start_ecompute()
    deployment.wait_ready()
    assert children(deployment) == ""
    assert deployment.files("instances") == []
    deployment.eschedule("destroy", "web")
    deployment.assert_nothing_is_left()


def test_a_kill_in_the_middle_leaves_nothing_half_made(deployment: Deployment, image: Path, tmp_path: Path) -> None:
    deployment.eschedule(REQUEST, image, "--name", "web", "--resize", "--no-wait")
    wait_until(
        lambda: "qemu-system" in children(deployment),
        timeout_seconds=60,
        what="the appliance runs",
        evidence=deployment.evidence,
    )
    deployment.kill_ecompute()
    wait_until(
        lambda: children(deployment) == "", timeout_seconds=20, what="it ends with ecompute", evidence=deployment.evidence
    )
    partials = [path for path in deployment.files("instances") if path.name.endswith(".partial")]
    assert [path.name for path in deployment.files("instances") if path not in partials] == []
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.wait_phase("web", "Running", timeout_seconds=120)
    assert [path for path in deployment.files("instances") if path.name.endswith(".partial")] == []
    assert list(deployment.machine.path(f"{deployment.run_dir}/guestfs").iterdir()) == []
    deployment.eschedule("destroy", "web")
    deployment.assert_nothing_is_left()
