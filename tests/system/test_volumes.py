"""Volumes as real guests see them: plugged in and out while they run, and what one guest wrote read by the next."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.deployment import Deployment
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


def device(guest: Guest, serial: str) -> str:
    """The guest's name of the disk with that serial number, once it has seen it."""
    look = f"grep -ls {serial} /sys/block/vd*/serial | cut -d/ -f4"
    return wait_until(lambda: guest.say(look), timeout_seconds=20, what="the guest sees the disk", evidence=guest.evidence)


def test_what_a_guest_wrote_to_a_volume_is_there_for_the_next(
    deployment_host: NamespacedHost, host_deployment: Deployment, tiny_image: Path, tmp_path: Path
) -> None:
    deployment, key = host_deployment, make_key(tmp_path)

    def create(name: str) -> Guest:
        deployment.eschedule(REQUEST, tiny_image, "--name", name, "--key", f"{key}.pub")
        return Guest(deployment_host, deployment, name, key)

    made = json.loads(deployment.eschedule("volume", "create", "data", "--size", "1", "--json").stdout)
    first = create("first")
    first.say("true")
    said = deployment.eschedule("volume", "attach", "data", "first").stderr
    assert f"first has data as /dev/disk/by-id/virtio-{made['serial']}" in said
    disk = device(first, made["serial"])
    assert first.say(f"cat /sys/block/{disk}/size") == str(2 << 20), "in sectors: a GiB"
    first.say(
        f"{{ mke2fs -q /dev/{disk} || mkfs.ext2 -q /dev/{disk}; }} && mount /dev/{disk} /mnt && echo precious > /mnt/file && sync"
    )
    deployment.eschedule("destroy", "first")

    second = create("second")
    deployment.eschedule("volume", "attach", "data", "second")
    disk = device(second, made["serial"])
    assert second.say(f"mount /dev/{disk} /mnt && cat /mnt/file") == "precious"
    deployment.eschedule("reboot", "second")
    disk = device(second, made["serial"])
    assert second.say(f"mount /dev/{disk} /mnt && cat /mnt/file && umount /mnt") == "precious", "it is in its definition, too"
    shown = deployment.eschedule("volume", "detach", "data", "--json").stdout
    assert (json.loads(shown)["phase"], json.loads(shown)["attached_to"]) == ("Available", None)
    assert second.say(f"ls /sys/block/ | grep -c {disk}; true") == "0"
    deployment.eschedule("reboot", "second", "--hard")
    assert second.say(f"ls /sys/block/ | grep -c {disk}; true") == "0"
    deployment.eschedule("volume", "rm", "data")
    deployment.eschedule("destroy", "second")
    assert deployment.files("volumes") == []
    deployment.assert_nothing_is_left()
