"""Files applied to a real ecompute on libvirt's test driver: volumes, power, and what no guest may notice."""

from __future__ import annotations

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
