"""Registered images: from options to a record, and from a record to a request."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from common.config import DefaultsConfig, ScheduleConfig
from common.errors import ConfigError, Permanent, UnsupportedSchema
from common.hardware import CardModel, DiskBus, Hardware
from common.image_records import ImageRecord, hardware_of
from common.keys import Keys
from common.model import ImageRef
from eschedule.arguments import parse
from eschedule.image_choice import made_of
from eschedule.image_options import record_from
from eschedule.image_registry import listed, registered
from eschedule.images import image_block, image_json, image_table
from eschedule.intake import request_from
from eschedule.request import Request
from tests.fakes.store import FakeStore
from tests.unit.test_request import QUERY

URL, SHA256, SHA512 = "https://h/images/debian.qcow2?token=secret", "a" * 64, "b" * 128
RECORD = ImageRecord("debian-12", "/srv/debian.raw", f"sha256:{SHA256}")
REQUEST = Request(QUERY, {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}, ImageRef(""))


def record(*options: str, sums: str = "") -> tuple[ImageRecord, list[str]]:
    """The record that the command line makes, and the addresses that were asked for it."""
    asked: list[str] = []

    def fetch(url: str) -> str:
        asked.append(url)
        return sums

    return record_from(parse(["image", "add", *options]), created_at="now", created_by="me", fetch=fetch), asked


class TestAdding:
    def test_everything_that_is_given_is_in_the_record(self) -> None:
        made, asked = record(
            "debian-12", "/srv/debian.raw", "--sha512", SHA512.upper(), "--min-disk", "3", "--min-memory", "512", "--user", "debian",
            "--property", "hw_disk_bus=sata", "--property", "os_distro=debian",
        )  # fmt: skip
        properties = {"hw_disk_bus": "sata", "os_distro": "debian"}
        assert made == ImageRecord(
            "debian-12", "/srv/debian.raw", f"sha512:{SHA512}", "", 3, 512, "debian", properties, "now", "me"
        )
        assert asked == []

    @pytest.mark.parametrize(
        ("given", "asked_for"),
        [
            ("SHA512SUMS", "https://h/images/SHA512SUMS"),
            ("../SUMS", "https://h/SUMS"),
            ("http://other/x?y", "http://other/x?y"),
        ],
    )
    def test_a_list_of_checksums_may_lie_beside_the_image(self, given: str, asked_for: str) -> None:
        made, asked = record("debian-12", URL, "--checksum-url", given, sums=f"{SHA256}  debian.qcow2\n")
        assert (made.checksum, made.checksum_url, asked) == (f"sha256:{SHA256}", asked_for, [asked_for])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("debian-12", "/i"), "one of the arguments --sha256 --sha512 --checksum-url is required"),
            (("debian-12", "/i", "--sha256", SHA256, "--sha512", SHA512), "not allowed with"),
            (("debian-12", "/i", "--sha256", "abc"), "--sha256: checksum sha256: has 3 characters"),
            (("debian.qcow2", "/i", "--sha256", SHA256), "ends as files do"),
            (("debian-12", "./i", "--sha256", SHA256), "is a path on this machine"),
            (("debian-12", "http://u:pw@h/i", "--sha256", SHA256), "holds a user name or password"),
            (("debian-12", "/i", "--checksum-url", "SHA256SUMS"), "neither an http:// nor an https:// URL"),
            (("debian-12", "http://h/i", "--checksum-url", "file:///etc/passwd"), "neither an http:// nor an https:// URL"),
            (("debian-12", "http://h/i", "--checksum-url", "http://u:pw@h/s"), "holds a user name or password"),
            (("debian-12", "http://h/", "--checksum-url", "SUMS"), "ends in no file name"),
            (("debian-12", "http://h/i", "--checksum-url", "SUMS"), "http://h/SUMS has no checksum of \"i\""),
            (("debian-12", "/i", "--sha256", SHA256, "--min-disk", "-1"), "--min-disk"),
            (("debian-12", "/i", "--sha256", SHA256, "--property", "hw_disk_bus=sata", "--property", "hw_disk_bus=virtio"), "give it once"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_one_line(self, options: tuple[str, ...], said: str) -> None:
        with pytest.raises(ConfigError) as refused:
            record(*options)
        assert said in str(refused.value) and "\n" not in str(refused.value) and "pw" not in str(refused.value)


class TestChoosing:
    def choose(self, *options: str, image: ImageRecord = RECORD, default: str | None = None) -> Request:
        config = ScheduleConfig(defaults=DefaultsConfig(image=default))
        return request_from(parse([QUERY, *options]), config, registered=lambda name: dataclasses.replace(image, name=name))

    def test_a_name_becomes_what_it_stands_for(self) -> None:
        for chosen in (self.choose("debian-12"), self.choose("--image", "debian-12"), self.choose(default="debian-12")):
            assert (chosen.image, chosen.image.name) == (ImageRef("/srv/debian.raw", f"sha256:{SHA256}"), "debian-12")
            by_address = self.choose("/srv/debian.raw", "--checksum", f"sha256:{SHA256}")
            assert chosen.digest() == by_address.digest()

    def test_an_address_is_not_looked_up(self) -> None:
        assert request_from(parse([QUERY, "/srv/x"]), ScheduleConfig()).image == ImageRef("/srv/x")

    def test_who_has_no_registry_knows_no_name(self) -> None:
        with pytest.raises(Permanent, match="there is no image debian-12"):
            request_from(parse([QUERY, "debian-12"]), ScheduleConfig())

    def test_a_checksum_may_be_repeated_but_not_another_one(self) -> None:
        assert self.choose("debian-12", "--checksum", f"sha256:{SHA256}").image.checksum == f"sha256:{SHA256}"
        with pytest.raises(ConfigError, match="is registered with the checksum sha256:aaa"):
            self.choose("debian-12", "--checksum", f"sha512:{SHA512}")

    def test_a_request_that_is_too_small_is_refused(self) -> None:
        image = dataclasses.replace(RECORD, min_disk_gib=3, min_memory_mib=512)
        with pytest.raises(ConfigError) as refused:
            made_of(REQUEST, image)
        said = "the image debian-12 needs at least DISK_GB:3, MEMORY_MB:512; the request has DISK_GB:1, MEMORY_MB:256: ask for more"
        assert str(refused.value) == said
        enough = dataclasses.replace(REQUEST, resources={"DISK_GB": 3, "MEMORY_MB": 512})
        assert made_of(enough, image).image.name == "debian-12"

    def test_properties_become_hardware_and_part_of_what_is_asked_for(self) -> None:
        image = dataclasses.replace(RECORD, properties={"hw_disk_bus": "sata", "hw_vif_model": "e1000", "os_distro": "x"})
        chosen = made_of(REQUEST, image)
        assert chosen.hardware == Hardware(DiskBus.SATA, CardModel.E1000)
        assert chosen.digest() != made_of(REQUEST, RECORD).digest()

    @pytest.mark.parametrize("properties", [{"hw_firmware_type": "uefi"}, {"hw_disk_bus": "scsi"}])
    def test_a_property_of_a_newer_version_is_not_passed_over(self, properties: dict[str, str]) -> None:
        with pytest.raises(UnsupportedSchema, match="this version does not know: upgrade it"):
            hardware_of(dataclasses.replace(RECORD, properties=properties))

    @pytest.mark.parametrize("spoilt", [{"checksum": ""}, {"checksum": "md5:0"}, {"url": "ftp://h/i"}, {"url": ""}])
    def test_a_record_that_was_spoilt_by_hand_makes_no_request(self, spoilt: dict[str, str]) -> None:
        with pytest.raises(ConfigError):
            made_of(REQUEST, dataclasses.replace(RECORD, **spoilt))


class TestLooking:
    def store(self, **values: str) -> tuple[Any, Keys]:
        store, keys = FakeStore(), Keys("/p/")
        for name, value in values.items():
            store.create(keys.image(name), value)
        return store, keys

    def test_what_cannot_be_read_is_listed_and_named(self) -> None:
        newer = RECORD.to_json().replace('"schema":1', '"schema":9')
        store, keys = self.store(debian=RECORD.to_json(), newer=newer, broken="{")
        rows = listed(store, keys)
        assert [(row.name, row.record is None) for row in rows] == [("broken", True), ("debian", False), ("newer", True)]
        with pytest.raises(Permanent, match="the image newer cannot be read: ImageRecord of schema 9"):
            registered(store, keys, "newer")
        import datetime

        table = image_table(rows, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        assert [line.split()[0] for line in table.splitlines()] == ["NAME", "broken", "debian", "newer"]

    def test_a_near_name_is_offered(self) -> None:
        store, keys = self.store(**{"debian-12": RECORD.to_json()})
        with pytest.raises(Permanent, match="there is no image debian-21; did you mean debian-12") as refused:
            registered(store, keys, "debian-21")
        assert refused.value.reason == "NotFound"

    def test_text_and_json_hold_all_of_it(self) -> None:
        full = dataclasses.replace(
            RECORD,
            min_disk_gib=3,
            min_memory_mib=512,
            user="debian",
            properties={"hw_disk_bus": "sata"},
            checksum_url="http://h/S",
        )
        text = image_block(full)
        for part in ("debian-12", "/srv/debian.raw", SHA256, "3 GB", "512 MB", "debian", "hw_disk_bus=sata", "http://h/S"):
            assert part in text
        assert image_json(full)["min_disk_gib"] == 3 and "schema" not in image_json(full)
