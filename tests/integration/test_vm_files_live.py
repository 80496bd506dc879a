"""Files applied to a real ecompute on libvirt's test driver: volumes, power, what no guest may notice, and many at once."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.deployment import Deployment, make_raw_image

FILE = """\
name: web
cpus: 1
memory: 64M
disk: 1G
zone: a
image: {image}
labels: {{app: web}}
volumes: [data]
power: stopped
"""


def test_files_have_volumes_power_and_labels_as_they_say(local_deployment: Deployment, tmp_path: Path) -> None:
    deployment, image = local_deployment, make_raw_image(tmp_path / "image.raw")
    deployment.eschedule("host", "label", "testhost", "zone=a")
    deployment.eschedule("volume", "create", "data", "--size", "1")
    file = tmp_path / "web.yaml"
    file.write_text(FILE.format(image=image))
    deployment.eschedule("apply", "-f", file)
    shown = deployment.show("web")
    assert (shown["phase"], [one["name"] for one in shown["spec"]["volumes"]]) == ("Stopped", ["data"])
    assert deployment.eschedule("diff", "-f", file).stdout == "web: as the file says\n"

    file.write_text(FILE.format(image=image).replace("stopped", "running").replace("[data]", "[]").replace("1G", "2G"))
    told = deployment.eschedule("apply", "-f", file)
    assert "web: changed: disk, volumes, power" in told.stderr
    shown = deployment.show("web")
    assert (shown["phase"], shown["spec"]["volumes"], shown["spec"]["resources"]["DISK_GB"]) == ("Running", [], 2)
    booted = shown["status"]["booted"]
    deployment.eschedule("label", "web", "tier=front")
    deployment.eschedule("apply", "-f", file)
    shown = deployment.show("web")
    assert (shown["spec"]["labels"], shown["status"]["booted"]) == ({"app": "web"}, booted), "no guest notices a label"
    assert deployment.eschedule("export", "web").stdout.count("zone: a") == 1
    deployment.eschedule("create", "--like", "web", "--name", "web-2")
    deployment.eschedule("destroy", "-l", "app=web")
    deployment.eschedule("volume", "rm", "data")
    deployment.assert_nothing_is_left()


FLEET = """\
name: {name}
cpus: 1
memory: 64M
disk: 1G
image: {image}
labels: {{app: web}}
"""


def test_many_are_made_changed_stopped_rebuilt_and_looked_at_at_once(local_deployment: Deployment, tmp_path: Path) -> None:
    deployment, image, names = local_deployment, make_raw_image(tmp_path / "image.raw"), ["web-1", "web-2", "web-3"]
    site = tmp_path / "site.yaml"
    site.write_text("---\n".join(FLEET.format(name=name, image=image) for name in names))
    made = deployment.eschedule("apply", "-f", site, "-o", "json")
    assert [(one["name"], one["phase"]) for one in json.loads(made.stdout)] == [(name, "Running") for name in names]
    assert [f"{name}: created" in made.stderr for name in names] == [True] * 3

    exported = tmp_path / "exported.yaml"
    exported.write_text(deployment.eschedule("export", "-l", "app=web").stdout)
    assert deployment.eschedule("diff", "-f", exported).stdout == "".join(f"{name}: as the file says\n" for name in names)

    told = deployment.eschedule("resize", "-l", "app=web", "--disk", "2G").stderr
    assert [f"{name}: DISK_GB 1 → 2: from now on" in told for name in names] == [True] * 3
    deployment.eschedule("stop", "--force", "web-3", "--reason", "it hangs")
    happened = json.loads(deployment.eschedule("events", "-l", "app=web", "-o", "json").stdout)
    assert {one["name"] for one in happened} == set(names)
    (forced,) = [one for one in happened if one["event"] == "stop"]
    assert (forced["name"], forced["message"], forced["reason"]) == ("web-3", "hard stop request", "it hangs")
    assert deployment.show("web-3")["spec"]["hard_stop_request"] == deployment.show("web-3")["spec"]["boot_request"]
    deployment.eschedule("start", "web-3")

    told = deployment.eschedule("rebuild", "-l", "app=web").stderr
    assert all(f"{name} (" in told for name in names) and told.count(") is rebuilt after ") == 3
    used = json.loads(deployment.eschedule("top", "-l", "app=web", "--once", "-o", "json").stdout)
    assert sorted(one["name"] for one in used) == names
    deployment.eschedule("destroy", "-l", "app=web")
    deployment.assert_nothing_is_left()
