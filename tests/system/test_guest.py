"""Real guests: from a request to a login, and what of them is left at the end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.deployment import Deployment
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
METADATA = "http://169.254.169.254/latest"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path)


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
    reported = wait_until(
        lambda: host_deployment.show("web")["status"]["ready"],
        timeout_seconds=30,
        what="the image itself says that it is up",
        evidence=guest.evidence,
    )
    assert reported["message"] == "web is up"
    assert guest.say("dropbearkey -y -f /etc/dropbear/host_key | sed -n 's/^Fingerprint: //p'") in reported["host_keys"][0]
    size_kib = int(guest.say("df -k / | tail -1 | awk '{print $2}'"))
    assert size_kib > 900_000, "the root file system has grown to its GiB"

    host_deployment.eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()
    assert domains(deployment_host) == []


def test_a_guest_says_when_it_is_ready(create, tmp_path: Path) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text(
        "#!/bin/sh\nkey=$(dropbearkey -y -f /etc/dropbear/host_key | grep ^ssh-)\n"
        "wget -q -O - --header 'Content-Type: application/json' "
        '--post-data "{\\"message\\": \\"tiny is up\\", \\"host_keys\\": [\\"$key\\"]}" '
        "http://169.254.169.254/etcd-compute/v1/ready\n"
    )
    guest = create("web", "--user-data", user_data, "--wait", "ready")
    ready = guest.shown["status"]["ready"]
    assert ready["message"] == "tiny is up"
    assert guest.say("dropbearkey -y -f /etc/dropbear/host_key | sed -n 's/^Fingerprint: //p'") in ready["host_keys"][0]


def test_a_config_drive_can_only_be_read_and_is_made_anew_with_the_next_start(
    create, host_deployment: Deployment, tmp_path: Path
) -> None:
    user_data = tmp_path / "user-data"
    user_data.write_text("#!/bin/sh\n: first-version\n")
    guest = create("web", "--user-data", user_data, "--config-drive", "nocloud")
    # The label is 40 bytes into the sixteenth sector.
    seen = guest.say(
        "cat /sys/class/dmi/id/product_name /sys/block/vdb/ro; grep -c 'local-hostname: web' /dev/vdb;"
        "dd if=/dev/vdb bs=2048 skip=16 count=1 2>/dev/null | dd bs=1 skip=40 count=8 2>/dev/null"
    )
    assert seen.split("\n") == ["etcd-compute VM", "1", "1", "cidata"]

    drive = host_deployment.machine.path(f"{host_deployment.state_dir}/instances/{guest.shown['uuid']}/config-drive.iso")
    user_data.write_text("#!/bin/sh\n: second-version\n")
    host_deployment.eschedule("set", "web", "--user-data", user_data)
    assert b"first-version" in drive.read_bytes(), "no disk changes under a guest that runs"
    host_deployment.eschedule("reboot", "web", "--hard")
    assert b"first-version" not in drive.read_bytes()
    assert b"second-version" in drive.read_bytes()


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
