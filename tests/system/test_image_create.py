"""An image of a real guest that runs on meanwhile: a second guest begins with what the first one had written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.deployment import deployment_inside
from tests.support.guests import Guest, make_key
from tests.support.hosts import NamespacedHost

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:128"


@pytest.mark.timeout(900)  # emulated guests, on a machine that does other things as well
def test_a_guest_of_the_image_has_the_files_of_the_guest_that_it_was_made_of(
    deployment_host: NamespacedHost, tiny_image: Path, tmp_path: Path
) -> None:
    published, key = tmp_path / "published", make_key(tmp_path)
    published.mkdir()
    images = {"publish_directory": str(published), "publish_url": f"file://{published}"}
    with deployment_inside(deployment_host, tmp_path, images=images) as deployment:
        deployment.eschedule(REQUEST, tiny_image, "--name", "web", "--key", f"{key}.pub")
        first = Guest(deployment_host, deployment, "web", key)
        boot = first.say("echo as-it-was >/root/mark; sync; cat /proc/sys/kernel/random/boot_id")
        said = deployment.eschedule("image", "create", "web-disk", "--from", "web", "--no-seal").stderr
        assert "qemu-guest-agent" in said, "nobody wrote its file systems out"
        assert first.say("cat /proc/sys/kernel/random/boot_id") == boot, "it ran on"
        first.say("echo later >/root/mark; sync")

        deployment.eschedule(REQUEST, "web-disk", "--name", "second", "--key", f"{key}.pub")
        second = Guest(deployment_host, deployment, "second", key)
        assert second.say("cat /root/mark; hostname").split() == ["as-it-was", "second"]
        deployment.eschedule("destroy", "web", "second")
        deployment.assert_nothing_is_left()
    assert len(list(published.iterdir())) == 1
