"""What is to be on a guest's disk, from the command line and from its image."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import ScheduleConfig
from common.disk_content import AS_IMAGE, DiskContent, GuestFile
from common.errors import ConfigError
from common.hardware import USUAL
from common.image_records import ImageRecord
from eschedule.arguments import parse
from eschedule.intake import request_from
from eschedule.request import Request

QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
SUM = "sha256:" + "0" * 64


def request(*words: str | Path, properties: dict[str, str] | None = None) -> Request:
    record = ImageRecord("debian", "https://i.example.org/d.qcow2", SUM, properties=properties or {})
    image = "debian" if properties is not None else "/srv/i.qcow2"
    return request_from(parse(["create", QUERY, image, *map(str, words)]), ScheduleConfig(), registered=lambda _: record)


@pytest.fixture
def motd(tmp_path: Path) -> Path:
    path = tmp_path / "motd"
    path.write_bytes(b"hi")
    return path


def test_what_nobody_asks_for_is_not_said() -> None:
    asked = request()
    assert asked.disk_content == AS_IMAGE
    assert asked.digest() == Request(asked.query, asked.resources, asked.image).digest(), (
        "nor in the digest of earlier versions"
    )


@pytest.mark.parametrize(
    ("behind", "file"),
    [
        ("/etc/motd", GuestFile("/etc/motd", "aGk=")),
        ("/etc/motd:0600", GuestFile("/etc/motd", "aGk=", 0o600)),
        ("/etc/motd:755:33", GuestFile("/etc/motd", "aGk=", 0o755, 33, 33)),
        ("/a b/ü:4755:33:34", GuestFile("/a b/ü", "aGk=", 0o4755, 33, 34)),
    ],
)
def test_a_file_travels_with_the_request(motd: Path, behind: str, file: GuestFile) -> None:
    assert request("--inject", f"{motd}:{behind}").disk_content == DiskContent(files=(file,))


def test_a_source_may_have_colons_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"hi")
    assert request("--inject", f"{tmp_path}/a:b:/c").disk_content.files == (GuestFile("/c", "aGk="),)


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        ("", "DST begins with /"),
        ("etc/motd", "DST begins with /"),
        ("/", "is no path of a file in the guest"),
        ("/etc/", "is no path of a file in the guest"),
        ("/etc/../motd", "is no path of a file in the guest"),
        ("/etc//motd", "is no path of a file in the guest"),
        ("/etc/m\nd", "is no path of a file in the guest"),
        ("/" + "a" * 1024, "is no path of a file in the guest"),
        ("/etc/motd:0888", "it looks like 0600"),
        ("/etc/motd:", "it looks like 0600"),
        ("/etc/motd:0600:root", "names are known in the guest alone"),
        ("/etc/motd:0600:4294967295", "is no number of a user or group"),
        ("/etc/motd:0600:0:0:0", "DST begins with /"),
    ],
)
def test_what_has_no_place_in_a_guest_is_refused(motd: Path, behind: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        request("--inject", f"{motd}:{behind}")


def test_files_are_bounded_in_all(tmp_path: Path, motd: Path) -> None:
    (tmp_path / "most").write_bytes(bytes(65536))
    assert request("--inject", f"{tmp_path}/most:/most").disk_content.files[0].size_bytes == 65536
    with pytest.raises(ConfigError, match=r"more than 65536 bytes \(64 KiB\) in all"):
        request("--inject", f"{tmp_path}/most:/most", "--inject", f"{motd}:/etc/motd")
    with pytest.raises(ConfigError, match="given 65 times, at most 64 files"):
        request(*[word for n in range(65) for word in ("--inject", f"{motd}:/{n}")])
    with pytest.raises(ConfigError, match="names /etc/motd twice"):
        request("--inject", f"{motd}:/etc/motd", "--inject", f"{motd}:/etc/motd")
    with pytest.raises(ConfigError, match=r"--inject .*absent cannot be read"):
        request("--inject", f"{tmp_path}/absent:/x")


def test_an_image_says_what_its_guests_need(motd: Path) -> None:
    properties = {"os_resize": "true", "os_inject_identity": "true"}
    assert request(properties=properties).disk_content == DiskContent(resize=True, identity=True)
    assert request("--resize", properties={"os_resize": "false"}).disk_content == DiskContent(resize=True)
    asked = request("--inject", f"{motd}:/m", properties={"os_resize": "true"}).disk_content
    assert asked == DiskContent(resize=True, files=(GuestFile("/m", "aGk="),))


def test_that_somebody_said_virtio_is_known_to_its_host() -> None:
    assert not request(properties={}).hardware_is_given
    said = request(properties={"hw_disk_bus": "virtio"})
    assert (said.hardware, said.hardware_is_given) == (USUAL, True)
    assert said.digest() == request(properties={}).digest(), "which is the same request as before"


def test_a_spec_carries_what_was_asked_for(motd: Path) -> None:
    from uuid import UUID

    asked = request("--inject", f"{motd}:/m", "--resize", "--inject-identity")
    spec = asked.spec(UUID(int=1), {"VCPU": 1}, (), created_at="", created_by="")
    assert spec.disk_content == asked.disk_content
    assert spec.schema == 4
    assert type(spec).from_json(spec.to_json()) == spec
