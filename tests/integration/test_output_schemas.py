"""What the real program prints for programs is as docs/json says, in JSON and in YAML."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import yaml

from tests.support.deployment import Deployment, make_raw_image
from tests.support.disk_images import sha256
from tests.support.processes import ROOT

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"
SCHEMAS = ROOT / "docs/json"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"


def test_each_command_prints_what_its_schema_says(local_deployment: Deployment, tmp_path: Path) -> None:
    deployment, image = local_deployment, make_raw_image(tmp_path / "image.raw")
    (tmp_path / "key.pub").write_text(KEY + "\n")
    deployment.eschedule("key", "add", "me", tmp_path / "key.pub")
    deployment.eschedule("image", "add", "small", image, "--sha256", sha256(image))
    deployment.eschedule("network", "add", "lan", "--bridge", "br0", "--subnet", "10.0.0.0/24")
    deployment.eschedule(REQUEST, "small", "--name", "web", "--key", "me", "--publish", "8080:80")
    assert deployment.eschedule("wait", "web", "--for", "running").stdout == ""
    deployment.eschedule(REQUEST, "small", "--name", "up")
    deployment.eschedule("stop", "web")  # the simulation has no QEMU to take a snapshot while it runs
    deployment.eschedule("volume", "create", "data", "--size", "1")
    (tmp_path / "web.yaml").write_text(deployment.eschedule("export", "web").stdout)
    commands = {
        "instances": ["list"],
        "instance": ["show", "web"],
        "hosts": ["hosts"],
        "host": ["host", "show", "testhost"],
        "images": ["image", "list"],
        "image": ["image", "show", "small"],
        "image-prefetch": ["image", "prefetch", "small"],
        "image-cache": ["image", "cache"],
        "keys": ["key", "list"],
        "networks": ["network", "list"],
        "forwards": ["port-forward", "web"],
        "capacity": ["capacity", REQUEST],
        "explain": ["explain", REQUEST],
        "snapshot": ["snapshot", "create", "web", "before"],
        "snapshots": ["snapshot", "list", "web"],
        "volumes": ["volume", "list"],
        "volume": ["volume", "show", "data"],
        "vm-file": ["export", "web"],
        "diff": ["diff", "-f", str(tmp_path / "web.yaml")],
        "dry-run": ["create", REQUEST, "small", "--name", "new", "--dry-run"],
        "events": ["events", "web"],
        "top": ["top"],
        "audit": ["audit"],
        "doctor": ["doctor"],
    }
    assert sorted(commands) == sorted(path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir())
    for name, command in commands.items():
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        value = json.loads(deployment.eschedule(*command, "--json", check=False).stdout)
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
        assert value, f"{name}: an empty list says nothing"
        if isinstance(value, list) and name != "forwards":
            assert deployment.eschedule(*command, "-o", "name").stdout.split() == [row["name"] for row in value]
    shown = yaml.safe_load(deployment.eschedule("show", "web", "-o", "yaml").stdout)
    assert shown == json.loads(deployment.eschedule("show", "web", "-o", "json").stdout)
    for form, said in (("name", "before"), ("custom-columns=HOW:.consistency", "HOW off")):
        assert deployment.eschedule("snapshot", "list", "web", "-o", form).stdout.split() == said.split()
    columns = deployment.eschedule("list", "-o", "custom-columns=WHO:.name,WHERE:.host.name").stdout
    assert columns.split() == ["WHO", "WHERE", "up", "testhost", "web", "testhost"]
    assert "VCPU:1" in deployment.eschedule("list", "-o", "wide").stdout
    refused = deployment.eschedule("list", "-o", "xml", check=False)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
