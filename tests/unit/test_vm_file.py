"""Files that describe instances: what is wrong in them and where, what of them differs, and that an export says what is so."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import ConfigError
from common.model import DiskContent, Forward, GuestFile, ImageRef, InstanceSpec, InstanceStatus, Nic, Phase, Restart
from common.nics import IpAddress
from common.store import Versioned
from common.volume_records import VolumePlace
from common.volume_refs import VolumeRef
from eschedule.arguments import parse
from eschedule.changes import Instance
from eschedule.likeness import left_out, query_like, request_like
from eschedule.needs import Places
from eschedule.vm_differences import ANEW, Comparison, Lookups, compare
from eschedule.vm_export import Whereabouts, as_yaml, document_of
from eschedule.vm_file import VmFile, files_in, options_of
from eschedule.vm_schema import VM_FILE
from tests.support.processes import ROOT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
INSTANCE, HOST, VOLUME = (UUID(int=n) for n in (1, 2, 3))
SPEC = InstanceSpec(
    uuid=INSTANCE, name="web", image=ImageRef("http://images/debian", "sha256:" + "0" * 64, "debian-12"),
    resources={"VCPU": 2, "MEMORY_MB": 4096, "DISK_GB": 20}, hostname="web", keys=(KEY,), labels={"app": "web", "on": "off"},
    user_data_base64="I2Nsb3VkLWNvbmZpZwpydW5jbWQ6IFtdCg==", allow=("tcp:22",), forwards=(Forward(8080, 80), Forward(53, 53, "udp")),
    nics=(Nic(), Nic("lan", "br0", 7, "52:54:00:00:00:01", (IpAddress("10.0.0.7", 24),)), Nic("", "br1", 3)),
    volumes=(VolumeRef(VOLUME, "data", 0),), restart=Restart.ALWAYS,
    query="required=!CUSTOM_OLD,CUSTOM_GPU,CUSTOM_ZONE_A&resources=DISK_GB:20,MEMORY_MB:4096,VCPU:2&root_required=CUSTOM_X",
)  # fmt: skip
LOOKUPS = Lookups(
    lambda: Places(lambda _name: HOST, lambda zone: f"CUSTOM_ZONE_{zone.upper()}"), lambda names: dict.fromkeys(names, (KEY,)),
    lambda name: VolumePlace(HOST if name != "far" else UUID(int=9), VOLUME if name == "data" else UUID(int=8)), "default",
)  # fmt: skip


def vm_of(text: str) -> VmFile:
    (vm,) = files_in(text, "vm.yaml", Path("/srv"))
    return vm


def compared(text: str, spec: InstanceSpec = SPEC) -> Comparison:
    status = InstanceStatus(Phase.RUNNING, boot_request=1, booted=1)
    found = Instance(INSTANCE, "web", HOST, Versioned("s", spec.to_json(), 1, 1), Versioned("t", status.to_json(), 1, 1), None)
    vm = vm_of(text)
    return compare(vm, argparse.Namespace(**options_of(vm, vars(parse(["create", "--file", "x"])))), found, LOOKUPS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: web\ncpu: 2\n", "vm.yaml: line 2: cpu is unknown; did you mean cpus?"),
        ("name: web\n\nmemory: 4\n", "line 3: memory is 4, needs a size, as 4G or 512M; put it in quotes"),
        ("name: web\nmemory: 4GB\n", 'line 2: memory: the size "4GB": "GB" is none of the units'),
        ("cpus: 2\n", "line 1: has no name"),
        ("name: Web\n", "line 1: name: instance name"),
        ("name: web\nnics:\n- default\n- lan\n", "line 4: nics: --nic"),
        ("name: web\nlabels: {rack: 7}\n", "line 2: labels.rack is 7, needs a text"),
        ("name: web\nlabels: [rack]\n", "line 2: labels is a list, needs a mapping of names to texts"),
        ("name: web\nrestart: sometimes\n", 'line 2: restart is "sometimes", needs one of never, on-failure, always'),
        ("name: web\nname: b\n", "name is given twice, in lines 1 and 2"),
        ("name: web\nuser_data: a\nuser_data_file: b\n", "line 3: user_data_file: user_data is given, too"),
        ("name: web\npolicy: affinity\n", "line 2: policy: says how"),
        ("- web\n", "line 1 is a list, needs to be a mapping"),
        ("name: web\n---\nname: [\n", "not YAML"),
        ("name: web\nallow: [ssh]\n", "line 2: allow: allow"),
        ("# nothing\n---\n", "describes no instance"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        files_in(text, "vm.yaml", Path())
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_documented_schema_is_the_one_that_judges() -> None:
    assert json.loads((ROOT / "docs/json/vm-file.schema.json").read_text()) == VM_FILE


def test_fields_are_options_of_create_and_paths_begin_at_the_file() -> None:
    text = "name: web\ncpus: 2\nkeys: [alice, ./a.pub, 'ssh-ed25519 AAAA x']\nallow: []\ninject: ['motd:/etc/motd']\ngrow: true\nlabels: {a: b}\n"
    options = argparse.Namespace(**options_of(vm_of(text), vars(parse(["create", "--file", "x", "--cpus", "4"]))))
    assert (options.cpus, options.allow, options.resize, options.label) == ("4", ["none"], True, ["a=b"])
    assert options.key == ["alice", "/srv/a.pub", "ssh-ed25519 AAAA x"] and options.inject == ["/srv/motd:/etc/motd"]
    everybody = argparse.Namespace(**options_of(vm_of("name: w\nallow: null\n"), vars(parse(["create", "--file", "x"]))))
    assert everybody.allow_all and everybody.allow is None


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        dataclasses.replace(SPEC, user_data_base64="H4sIAAAA", query="", allow=None, keys=()),
        dataclasses.replace(SPEC, query="resources=VCPU:2,MEMORY_MB:4096&resources_X=DISK_GB:20", image=ImageRef("/srv/x")),
        dataclasses.replace(SPEC, user_data_base64="Zm9vICAKICBiYXIJCg==", resources={**SPEC.resources, "CUSTOM_GPU": 1}),
    ],
)
def test_what_is_exported_is_what_is_so(spec: InstanceSpec) -> None:
    document = document_of(spec, Whereabouts(HOST, "node1", "a"))
    text = as_yaml(document, ["a note"])
    assert dict(vm_of(text).values) == document
    assert compared(text, spec).differences == []


def test_an_export_names_the_zone_and_traits_that_were_asked_for() -> None:
    document = document_of(SPEC, Whereabouts(HOST, "node1", "a"))
    assert document["zone"] == "a" and document["traits"] == ["CUSTOM_GPU"] and document["not_traits"] == ["CUSTOM_OLD"]
    assert document["request"] == "root_required=CUSTOM_X" and "host" not in document
    assert document["nics"] == ["network=default", "network=lan", "bridge=br1,vlan=3"] and document["memory"] == "4G"


def test_what_can_be_changed_becomes_fields_amounts_power_and_volumes() -> None:
    found = compared(
        "name: web\nlabels: {app: db}\nkeys: [alice]\nuser_data: null\nallow: null\npublish: ['80:80']\nrestart: never\n"
        "grace_seconds: 5\nmetadata: required\ncpus: 4\nmemory: 8G\ndisk: 20G\npower: stopped\nvolumes: [more]\n"
    )
    assert not [one for one in found.differences if one.obstacle]
    assert found.fields == {
        "labels": {"app": "db"}, "user_data_base64": None, "allow": None, "forwards": (Forward(80, 80),), "restart": "never",
        "grace_seconds": 5, "metadata": "required",
    }  # fmt: skip
    assert found.amounts == {"VCPU": 4, "MEMORY_MB": 8192} and found.power == "stopped"
    assert [place.uuid for place in found.attach] == [UUID(int=8)] and [place.uuid for place in found.detach] == [VOLUME]
    assert "cloud" not in str(found.differences), "user data is never shown"


@pytest.mark.parametrize(
    ("text", "field", "obstacle"),
    [
        ("disk: 10G", "disk", "never made smaller"),
        ("request: resources=CUSTOM_GPU:1", "CUSTOM_GPU", ANEW),
        ("image: debian-13", "image", "eschedule rebuild web --image debian-13"),
        ("checksum: sha256:" + "1" * 64, "checksum", "rebuild"),
        ("hostname: other", "hostname", ANEW),
        ("group: g", "group", ANEW),
        ("nics: [default]", "nics", ANEW),
        ("nics: [default, network=lan, 'bridge=br1,vlan=4']", "nics", ANEW),
        ("traits: [CUSTOM_GPU, CUSTOM_MORE]", "traits", ANEW),
        ("not_traits: []", "not_traits", ANEW),
        ("zone: b", "zone", ANEW),
        ("request: root_required=CUSTOM_Y", "request", ANEW),
        ("grow: true", "grow", ANEW),
        ("volumes: [data, far]", "volumes", "volumes do not move"),
    ],
)
def test_what_an_instance_is_made_with_cannot_be_changed(text: str, field: str, obstacle: str) -> None:
    (one,) = compared(f"name: web\n{text}\n").differences
    assert one.field == field and obstacle in one.obstacle


def test_another_like_it_has_what_several_can_have() -> None:
    content = DiskContent(files=(GuestFile("/etc/motd", "aGk="),))
    request = request_like(dataclasses.replace(SPEC, disk_content=content))
    assert request.query == SPEC.query and request.image == SPEC.image and request.disk_content == content
    assert request.nics == (Nic(), Nic("lan"), Nic("", "br1", 3)) and request.forwards == () and request.name is None
    assert (request.keys, request.restart, request.labels) == ((KEY,), Restart.ALWAYS, (("app", "web"), ("on", "off")))
    told = left_out(SPEC)
    assert len(told) == 2 and "ports" in told[0] and "data" in told[1]
    resized = dataclasses.replace(SPEC, resources={**SPEC.resources, "VCPU": 4})
    assert "VCPU:4" in query_like(resized) and "CUSTOM_GPU" in query_like(resized)
    assert query_like(dataclasses.replace(SPEC, query="")) == "resources=DISK_GB:20,MEMORY_MB:4096,VCPU:2"
    grouped = dataclasses.replace(resized, query="resources=VCPU:2,MEMORY_MB:4096&resources_X=DISK_GB:20")
    with pytest.raises(ConfigError, match="was resized"):
        query_like(grouped)
