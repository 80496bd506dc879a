"""A real guest on a disk of its own: a plain file whose blocks were had ahead, around the host's cache; its image may go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.deployment import Deployment, deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"
OWN = {"mode": "raw", "preallocation": "falloc", "cache": "none", "aio": "native", "discard": "ignore"}


def disk_driver(host: NamespacedHost, uuid: str) -> str:
    told = host.run(["virsh", "-c", host.uri, "dumpxml", uuid]).stdout
    return next(line.strip() for line in told.splitlines() if "<driver name='qemu' type='" in line)


def test_a_guest_on_a_plain_file_needs_its_image_no_more(
    deployment_host: NamespacedHost, tiny_image: Path, tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    with deployment_inside(deployment_host, tmp_path, disk=OWN) as deployment:
        deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub")
        guest = Guest(deployment_host, deployment, "web", key)
        assert guest.say("hostname") == "web"
        assert int(guest.say("df -k / | tail -1 | awk '{print $2}'")) > 900_000, "the root file system has grown to its GiB"
        guest.say("echo kept > /root/kept; sync")
        uuid = guest.shown["uuid"]
        driver = disk_driver(deployment_host, uuid)
        for part in ("type='raw'", "cache='none'", "io='native'", "discard='ignore'"):
            assert part in driver, driver
        state = deployment.machine.path(deployment.state_dir)
        disk = state / "instances" / uuid / "disk.raw"
        assert disk.stat().st_size == 1 << 30
        # What resize2fs zeroed is given back whatever discard says: libvirt opens the file so.
        assert disk.stat().st_blocks * 512 > 0.9 * (1 << 30), "its blocks were had ahead"
        assert [row["instances"] for row in cached(deployment)] == [0]

        for path in (state / "images").glob("*.qcow2"):
            path.unlink()
        deployment.eschedule("reboot", "web")
        deployment.wait_phase("web", "Running")
        assert guest.say("cat /root/kept") == "kept"
        deployment.eschedule("destroy", "web")
        deployment.assert_nothing_is_left()
        assert not disk.exists()


def cached(deployment: Deployment) -> list[dict[str, Any]]:
    (host,) = json.loads(deployment.eschedule("image", "cache", "--json").stdout)
    return list(host["images"])
