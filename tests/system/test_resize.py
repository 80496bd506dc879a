"""A real guest sees its disk grow while it runs, and has other CPUs and memory from its next start on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.deployment import Deployment
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
BOOTED = "cat /proc/sys/kernel/random/boot_id"


@pytest.mark.timeout(900)  # emulated guests, on a machine that does other things as well
def test_a_guest_sees_its_disk_grow_and_its_cpus_after_a_reboot(
    deployment_host: NamespacedHost, host_deployment: Deployment, tiny_image: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    host_deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub")
    guest = Guest(deployment_host, host_deployment, "web", key)
    assert guest.say("cat /sys/block/vda/size; nproc; " + BOOTED).split()[:2] == [str(1 << 21), "1"]
    boot = guest.say(BOOTED)

    said = host_deployment.eschedule("resize", "web", "--disk-gb", "2", "--vcpus", "2", "--memory-mb", "160").stderr
    assert "DISK_GB 1 → 2: from now on" in said
    wait_until(
        lambda: guest.say("cat /sys/block/vda/size") == str(2 << 21),
        timeout_seconds=20,
        what="the guest sees it",
        evidence=guest.evidence,
    )
    assert guest.say(BOOTED) == boot, "it ran on"
    assert host_deployment.show("web")["status"]["in_force"] == {"VCPU": 1, "MEMORY_MB": 128}

    guest.ssh("reboot -f")  # from inside: the same machine goes on, as it was started
    wait_until(lambda: guest.say(BOOTED) != boot, timeout_seconds=90, what="it has rebooted itself", evidence=guest.evidence)
    assert guest.say("nproc") == "1"
    assert int(guest.say("df -k / | tail -1 | awk '{print $2}'")) > 1_800_000, "its file system has grown at that boot"

    host_deployment.eschedule("resize", "web", "--vcpus", "2", "--reboot", "--hard")
    assert guest.say("nproc") == "2"
    assert int(guest.say("awk '/MemTotal/ {print $2}' /proc/meminfo")) > 128 * 1024 * 0.9
    assert host_deployment.show("web")["status"]["in_force"] == {}
    host_deployment.eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()
