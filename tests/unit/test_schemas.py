"""The schemas say what the code does: each record is valid by its schema, and both name the same fields."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from uuid import UUID

import jsonschema
import pytest

from common.hardware import CardModel, DiskBus, Hardware
from common.image_records import ImageRecord
from common.model import (
    SCHEMA,
    Address,
    Alternate,
    ConfigDrive,
    Desired,
    DiskContent,
    Event,
    Forward,
    GuestFile,
    HostRecord,
    HostState,
    ImageRef,
    InstanceSpec,
    InstanceStatus,
    IpAddress,
    MetadataAccess,
    Nic,
    Phase,
    Progress,
    Ready,
    Restart,
    VolumeRef,
)
from common.network_records import NetworkRecord, Subnet
from common.nics import AddressSource
from common.schemas import COMPUTE, RECORDS, SCHEDULE
from common.spec_schema import SPEC_SCHEMAS
from common.volume_records import VolumeDesired, VolumePhase, VolumeSpec, VolumeStatus

A, B = UUID(int=10), UUID(int=11)
SPECS = (
    InstanceSpec(A, "web-1", ImageRef("/image"), {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}),
    InstanceSpec(
        A, "web-1", ImageRef("http://h/i", "sha256:" + "0" * 64), {"VCPU": 1},
        nics=(Nic("a"), Nic("b")), keys=("ssh-ed25519 AAAA x",), user_data_base64="AA==", hostname="web-1",
        alternates=(Alternate(B, {str(B): {"VCPU": 1}}),), group="web", restart=Restart.ALWAYS, grace_seconds=5,
        desired=Desired.STOPPED, boot_request=3, request_digest="sha256:x", created_at="2026-01-01T00:00:00Z", created_by="ann@desk",
    ),
    InstanceSpec(
        A, "web-1", ImageRef("/image"), {"VCPU": 1},
        nics=(Nic("lan", "br0", 42, "52:54:00:00:00:01", (IpAddress("10.0.0.7", 24, "10.0.0.1"), IpAddress("fd00::7", 64)), ("10.0.0.2",), 1450),),
        metadata=MetadataAccess.REQUIRED, metadata_hop_limit=2, config_drive=ConfigDrive.NOCLOUD, allow=("tcp:22", "icmp@10.0.0.0/8"),
        forwards=(Forward(8080, 80), Forward(53, 53, "udp")),
    ),
    InstanceSpec(A, "web-1", ImageRef("/image"), {"VCPU": 1}, metadata=MetadataAccess.OFF, allow=()),
    InstanceSpec(A, "web-1", ImageRef("/image", name="old"), {"VCPU": 1}, hardware=Hardware(DiskBus.SATA, CardModel.E1000)),
    InstanceSpec(
        A, "web-1", ImageRef("/image"), {"VCPU": 1}, hardware_is_given=True,
        disk_content=DiskContent(resize=True, identity=True, files=(GuestFile("/etc/motd", "aGk=", 0o600, 33, 33),)),
    ),
    InstanceSpec(A, "web-1", ImageRef("/image"), {"VCPU": 1}, volumes=(VolumeRef(B, "data", 0), VolumeRef(A, "logs", 2))),
    *(InstanceSpec(A, "web-1", ImageRef("/image"), {"VCPU": 1}, desired=desired, protected=True) for desired in Desired),
)  # fmt: skip
STATUSES = (
    *(InstanceStatus(phase) for phase in Phase),
    InstanceStatus(
        Phase.BUILDING, "Waiting", "m", Progress("FetchImage", 1, 0), 7, 1, 2, "ImageNotFound", "m",
        addresses=(Address("default", "52:54:c0:a8:7a:32", "192.168.122.50"),),
        events=(Event("2026-01-01T00:00:00.000Z", "FetchImage", 3),), updated_at="2026-01-01T00:00:00Z",
    ),
    *(
        InstanceStatus(
            Phase.RUNNING,
            addresses=(Address("lan", "52:54:00:00:00:01", "", 24, "", (IpAddress("fd00::7", 64),), "br0", 42, source, ("10.0.0.2",), 1450),),
            ready=Ready("2026-01-01T00:00:00Z", "up", ("SHA256:x (ED25519)",)), notes=("port 8080 of the host is taken",), volumes=(A, B),
        )
        for source in AddressSource
    ),
)  # fmt: skip
HOSTS = tuple(
    HostRecord(
        "h1",
        "boot",
        B,
        "uuid",
        "qemu:///system",
        state,
        "m",
        {"qemu": "7.2.9"},
        {"VCPU": 2},
        "qemu",
        "2026-01-01T00:00:00Z",
        {"VCPU": 1},
    )
    for state in HostState
)


NETWORKS = (
    NetworkRecord("lan", "br0", (Subnet("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),)),
    NetworkRecord(
        "lan", "br0", (Subnet("10.0.0.0/24", "10.0.0.2", "10.0.0.9", "10.0.0.1"), Subnet("fd00::/64", "fd00::1", "fd00::9", "fe80::1")),
        42, ("10.0.0.1",), 1450, "2026-01-01T00:00:00Z", "me@here",
    ),
)  # fmt: skip


IMAGES = (
    ImageRecord("debian-12", "/srv/debian.raw", "sha256:" + "0" * 64),
    ImageRecord(
        "debian-12", "https://h/debian.qcow2", "sha512:" + "a" * 128, "https://h/SHA512SUMS", 3, 512, "debian",
        {"hw_disk_bus": "sata", "os_distro": "debian"}, "2026-01-01T00:00:00Z", "me@here",
    ),
)  # fmt: skip


VOLUMES = (
    VolumeSpec(A, "data", 10),
    VolumeSpec(A, "data", 10, VolumeDesired.DELETED, B, "sha256:x", "2026-01-01T00:00:00Z", "me@here"),
    *(VolumeStatus(phase, "m", 7, True, "2026-01-01T00:00:00Z") for phase in VolumePhase),
)


@pytest.mark.parametrize("record", [*SPECS, *STATUSES, *HOSTS, *NETWORKS, *IMAGES, *VOLUMES], ids=lambda r: type(r).__name__)
def test_what_is_written_is_valid_and_read_back_equal(record):
    schema = RECORDS[type(record).__name__]
    jsonschema.validate(json.loads(record.to_json()), schema, cls=jsonschema.Draft202012Validator)
    assert type(record).from_json(record.to_json()) == record


def _object_schemas(kind, schema, where):
    """Each dataclass below *kind* with the schema that describes it."""
    yield kind, schema, where
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner, inner_schema = hints[field.name], schema["properties"][field.name]
        if typing.get_origin(inner) is types.UnionType:
            inner = typing.get_args(inner)[0]
        if typing.get_origin(inner) is tuple:
            inner, inner_schema = typing.get_args(inner)[0], inner_schema["items"]
        if dataclasses.is_dataclass(inner):
            yield from _object_schemas(inner, inner_schema, f"{where}.{field.name}")


@pytest.mark.parametrize(
    "kind", [InstanceSpec, InstanceStatus, HostRecord, NetworkRecord, ImageRecord, VolumeSpec, VolumeStatus]
)
def test_schema_and_dataclass_have_the_same_fields_and_require_the_same(kind):
    for inner, schema, where in _object_schemas(kind, RECORDS[kind.__name__], kind.__name__):
        fields = dataclasses.fields(inner)
        assert set(schema["properties"]) == {f.name for f in fields}, where
        needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
        assert set(schema.get("required", ())) - {"schema"} == needed, where


def test_enumerations_are_those_of_the_model():
    assert RECORDS["InstanceStatus"]["properties"]["phase"]["enum"] == [p.value for p in Phase]
    assert RECORDS["InstanceSpec"]["properties"]["restart"]["enum"] == [r.value for r in Restart]
    assert RECORDS["InstanceSpec"]["properties"]["desired"]["enum"] == [d.value for d in Desired]
    assert RECORDS["InstanceSpec"]["properties"]["metadata"]["enum"] == [a.value for a in MetadataAccess]
    assert RECORDS["InstanceSpec"]["properties"]["config_drive"]["enum"] == [d.value for d in ConfigDrive]
    assert RECORDS["VolumeSpec"]["properties"]["desired"]["enum"] == [d.value for d in VolumeDesired]
    assert RECORDS["VolumeStatus"]["properties"]["phase"]["enum"] == [p.value for p in VolumePhase]
    assert RECORDS["HostRecord"]["properties"]["state"]["enum"] == [s.value for s in HostState]
    assert SCHEDULE["properties"]["defaults"]["properties"]["restart"]["enum"] == [r.value for r in Restart]
    numbers = {title: schema["properties"]["schema"] for title, schema in RECORDS.items()}
    assert tuple(numbers.pop("InstanceSpec")["enum"]) == SPEC_SCHEMAS
    assert all(number == {"const": SCHEMA} for number in numbers.values())


@pytest.mark.parametrize("schema", [COMPUTE, SCHEDULE, *RECORDS.values()], ids=lambda s: s["title"])
def test_schemas_are_schemas_and_plain_data(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (SPECS[0], {"name": "No Name"}),
        (SPECS[0], {"uuid": "x"}),
        (SPECS[0], {"resources": {"VCPU": "1"}}),
        (SPECS[0], {"schema": 6}),
        (STATUSES[0], {"schema": 2}),
        (STATUSES[0], {"phase": "Sleeping"}),
        (STATUSES[0], {"events": [{}]}),
        (HOSTS[0], {"incarnation": ""}),
    ],
)
def test_what_is_wrong_is_not_valid(record, changes):
    document = {**json.loads(record.to_json()), **changes}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, RECORDS[type(record).__name__], cls=jsonschema.Draft202012Validator)


def test_an_unknown_property_is_passed_over():
    document = {**json.loads(SPECS[0].to_json()), "label": "from a newer version"}
    jsonschema.validate(document, RECORDS["InstanceSpec"], cls=jsonschema.Draft202012Validator)
