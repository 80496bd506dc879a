"""A real guest stands still, in its memory and in a file, over a death of ecompute and a restart of libvirtd, and goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.deployment import Deployment
from tests.support.guests import SSH_OPTIONS, Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
BOOT = "cat /proc/sys/kernel/random/boot_id"


@pytest.mark.timeout(900)  # emulated guests, on a machine that does other things as well
def test_a_guest_stands_still_and_goes_on_as_it_was(
    deployment_host: NamespacedHost, host_deployment: Deployment, tiny_image: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    host_deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub")
    guest = Guest(deployment_host, host_deployment, "web", key)
    boot = guest.say(BOOT)
    assert guest.ssh("echo remembered > /proc/sys/kernel/hostname").returncode == 0  # nowhere but in its memory

    host_deployment.eschedule("pause", "web")
    assert host_deployment.show("web")["phase"] == "Paused"
    at_once = [word for option in (*SSH_OPTIONS, "ConnectTimeout=3") for word in ("-o", option)]
    login = ["ssh", "-i", key, *at_once, f"root@{guest.address}", "true"]
    assert deployment_host.run(login, check=False, timeout_seconds=60).returncode == 255, "nothing in it answers"
    refused = host_deployment.eschedule("ssh", "web", "--", "true", check=False)
    assert refused.returncode == 1 and "web is paused, and hears nothing; first: eschedule unpause web" in refused.stderr
    host_deployment.eschedule("unpause", "web")
    assert guest.say(BOOT) == boot

    host_deployment.eschedule("suspend", "web")
    shown = host_deployment.show("web")
    assert (shown["phase"], shown["spec"]["desired"]) == ("Suspended", "suspended")
    running = deployment_host.run(["virsh", "-c", deployment_host.uri, "list", "--name"]).stdout
    assert not running.strip(), "its memory is free"
    host_deployment.kill_ecompute()
    deployment_host.stop_libvirtd(signal.SIGKILL)
    deployment_host.start_libvirtd()
    host_deployment.start_ecompute()
    host_deployment.eschedule("resume", "web")
    assert guest.say(f"{BOOT}; cat /proc/sys/kernel/hostname").split() == [boot, "remembered"]

    host_deployment.eschedule("suspend", "web")
    host_deployment.eschedule("stop", "--force", "web")
    stopped = host_deployment.show("web")
    assert (stopped["phase"], stopped["status"]["events"][-1]["step"]) == ("Stopped", "DropMemory"), "its memory is given up"
    host_deployment.eschedule("start", "web")
    host_deployment.eschedule("stop", "--force", "web")
    steps = [event["step"] for event in host_deployment.show("web")["status"]["events"]]
    assert steps[-1] == "Destroy" and "Shutdown" not in steps, "nobody asks it"
    host_deployment.eschedule("start", "web")
    host_deployment.eschedule("suspend", "web")
    host_deployment.eschedule("destroy", "web")
    host_deployment.assert_nothing_is_left()
    wait_until(
        lambda: not list(deployment_host.path("/var/lib/libvirt/qemu/save").glob("*.save")),
        timeout_seconds=5, what="nothing of its memory is left",
    )  # fmt: skip
