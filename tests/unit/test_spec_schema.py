"""Which specs a host of an earlier version must hold, and that all writers of specs number them so."""

from __future__ import annotations

import dataclasses
import json
from uuid import UUID

import pytest

from common.errors import UnsupportedSchema
from common.hardware import CardModel, DiskBus, Hardware
from common.model import (
    ConfigDrive,
    Desired,
    DiskContent,
    Forward,
    GuestFile,
    ImageRef,
    InstanceSpec,
    MetadataAccess,
    Nic,
    Record,
    spec_with_fields,
)
from common.nics import IpAddress
from common.volume_refs import VolumeRef

SPEC = InstanceSpec(UUID(int=1), "web", ImageRef("/i"), {"VCPU": 1})
FIXED = (IpAddress("10.0.0.5", 24),)
NEEDS_SECOND = (
    {"allow": ()},
    {"allow": ("tcp:22",)},
    {"forwards": (Forward(8080, 80),)},
    {"metadata": MetadataAccess.REQUIRED},
    {"metadata": MetadataAccess.OFF},
    {"config_drive": ConfigDrive.OPENSTACK},
    {"config_drive": ConfigDrive.NOCLOUD},
    {"nics": (Nic("", "br0"),)},
    {"nics": (Nic(), Nic("lan", "br0", addresses=FIXED))},
    {"nics": (Nic(vlan=42),)},
    {"nics": (Nic(mac="52:54:00:00:00:01"),)},
    {"nics": (Nic(addresses=FIXED),)},
    {"nics": (Nic(name_servers=("10.0.0.1",)),)},
    {"nics": (Nic(mtu=1450),)},
)
NEEDS_THIRD = (
    {"hardware": Hardware(disk_bus=DiskBus.SATA)},
    {"hardware": Hardware(card_model=CardModel.E1000), "allow": ()},
)
NEEDS_FOURTH = (
    {"disk_content": DiskContent(resize=True)},
    {"disk_content": DiskContent(identity=True), "allow": ()},
    {"disk_content": DiskContent(files=(GuestFile("/etc/motd", "aGk="),)), "hardware": Hardware(disk_bus=DiskBus.SATA)},
    {"restore": "before-upgrade", "restore_request": 2},
    {"rebuild_request": 2, "hardware": Hardware(disk_bus=DiskBus.SATA)},
    {"volumes": (VolumeRef(UUID(int=2), "data", 0),)},
    {"volumes": (VolumeRef(UUID(int=2), "data", 0),), "hardware": Hardware(disk_bus=DiskBus.SATA)},
)
NEEDS_FIFTH = (
    {"desired": Desired.PAUSED},
    {"desired": Desired.SUSPENDED, "volumes": (VolumeRef(UUID(int=2), "data", 0),)},
)
READ_BY_ALL = (
    {"protected": True},
    {},
    {"nics": ()},
    {"nics": (Nic("a"), Nic("b"))},
    {"config_drive": ConfigDrive.NONE},
    {"metadata_hop_limit": 2},
    {"hard_stop_request": 1},  # they shut it down
    {"labels": {"app": "web"}},  # no guest is told
    {"query": "resources=VCPU:1"},  # only clients look at it
    {"hardware_is_given": True},  # virtio, which they make anyway
    {"keys": ("ssh-ed25519 A",), "user_data_base64": "AA==", "desired": Desired.STOPPED, "boot_request": 3, "group": "g"},
)


@dataclasses.dataclass(frozen=True)
class EarlierNic:
    network: str = "default"


@dataclasses.dataclass(frozen=True)
class EarlierSpec(Record):
    """What a version knew of a spec that knew nothing of rules, bridges and who may read metadata."""

    uuid: UUID
    name: str
    image: ImageRef
    resources: dict[str, int]
    nics: tuple[EarlierNic, ...] = (EarlierNic(),)
    schema: int = 1


def number_in(text: str) -> int:
    return int(json.loads(text)["schema"])


@pytest.mark.parametrize("fields", NEEDS_FOURTH, ids=str)
def test_a_reader_that_knows_no_requests_of_a_disk_holds_a_guest_with_one(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 4
    assert InstanceSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("fields", NEEDS_FIFTH, ids=str)
def test_a_reader_that_knows_no_saved_memory_holds_a_guest_that_stands_still(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 5
    assert InstanceSpec.from_json(spec.to_json()) == spec
    assert number_in(spec_with_fields(spec.to_json(), {"desired": "running", "volumes": ()})) == 1


@pytest.mark.parametrize("fields", NEEDS_THIRD, ids=str)
def test_a_reader_that_knows_no_other_hardware_than_virtio_holds_a_guest_that_cannot_drive_it(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 3
    assert InstanceSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UnsupportedSchema, match="of schema 3; this version reads 1: upgrade it"):
        EarlierSpec.from_json(spec.to_json())


@pytest.mark.parametrize("fields", NEEDS_FOURTH, ids=str)
def test_a_reader_that_writes_nothing_to_disks_and_knows_no_volumes_holds_a_guest_that_counts_on_them(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 4
    assert InstanceSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UnsupportedSchema, match="of schema 4; this version reads 1: upgrade it"):
        EarlierSpec.from_json(spec.to_json())


def test_the_name_of_an_image_is_passed_over_by_who_does_not_know_it():
    spec = dataclasses.replace(SPEC, image=ImageRef("/i", "sha256:00", "debian-12"))
    assert number_in(spec.to_json()) == 1
    assert InstanceSpec.from_json(spec.to_json()).image.name == "debian-12"
    earlier = json.loads(spec.to_json())
    del earlier["image"]["name"]
    assert InstanceSpec.from_json(json.dumps(earlier)) == spec


@pytest.mark.parametrize("fields", NEEDS_SECOND, ids=str)
def test_an_earlier_reader_holds_what_it_would_make_another_guest_of(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 2
    assert InstanceSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UnsupportedSchema, match="of schema 2; this version reads 1: upgrade it"):
        EarlierSpec.from_json(spec.to_json())


@pytest.mark.parametrize("fields", READ_BY_ALL, ids=str)
def test_an_earlier_reader_reads_all_others(fields):
    spec = dataclasses.replace(SPEC, **fields)
    assert number_in(spec.to_json()) == 1
    assert InstanceSpec.from_json(spec.to_json()) == spec
    assert EarlierSpec.from_json(spec.to_json()).nics == tuple(EarlierNic(nic.network) for nic in spec.nics)


def test_each_field_that_is_asked_for_since_is_judged():
    """Whoever adds a field has to say whether earlier readers may pass over it."""
    judged = {name for fields in (*NEEDS_SECOND, *NEEDS_THIRD, *NEEDS_FOURTH, *READ_BY_ALL) for name in fields}
    same_for_all = {
        "uuid", "name", "image", "resources", "hostname", "alternates", "group_policy", "restart", "grace_seconds",
        "reboot_request", "hard_reboot", "adopts", "moves", "acts", "request_digest", "created_at", "created_by", "schema",
    }  # fmt: skip
    assert {field.name for field in dataclasses.fields(InstanceSpec)} == judged | same_for_all
    cards = [nic for fields in NEEDS_SECOND for nic in fields.get("nics", ())]
    said = {field.name for field in dataclasses.fields(Nic) if any(getattr(nic, field.name) != field.default for nic in cards)}
    assert said == {field.name for field in dataclasses.fields(Nic)}


@pytest.mark.parametrize("fields", [*NEEDS_SECOND, *NEEDS_THIRD, *NEEDS_FOURTH], ids=str)
def test_a_change_takes_the_number_up_and_back_down(fields):
    changed = spec_with_fields(SPEC.to_json(), fields)
    assert changed == dataclasses.replace(SPEC, **fields).to_json()
    assert spec_with_fields(changed, {name: getattr(SPEC, name) for name in fields}) == SPEC.to_json()


def test_a_change_of_something_else_keeps_number_and_fields_of_a_newer_version():
    spec = dataclasses.replace(SPEC, allow=())
    for before in (SPEC, spec):
        text = json.dumps({**json.loads(before.to_json()), "of_the_future": [1]})
        after = json.loads(spec_with_fields(text, {"desired": "deleted", "alternates": [], "moves": ()}))
        assert after == {**json.loads(text), "desired": "deleted"}


def test_the_number_is_not_for_a_writer_to_say():
    assert dataclasses.replace(SPEC, schema=2) == SPEC
    assert dataclasses.replace(SPEC, allow=(), schema=1).schema == 2
    assert InstanceSpec.from_json(SPEC.to_json().replace('"schema":1', '"schema":2')) == SPEC
