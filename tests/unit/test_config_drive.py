"""Who has a config drive, what other programs see on it, and when it is made anew."""

from __future__ import annotations

import dataclasses
import stat
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import Transient
from common.files import partial_path
from common.model import Address, ConfigDrive, Desired, InstanceSpec, MetadataAccess
from common.nics import AddressSource
from ecompute.config_drive import ConfigDrives, Drive, form_of, image
from ecompute.hypervisor import PowerState
from tests.support.domains import a_spec, a_stamp
from tests.support.loop import Loop

ONE = UUID("11111111-1111-4111-8111-111111111111")
AUTO, NONE, OPENSTACK, NOCLOUD = ConfigDrive.AUTO, ConfigDrive.NONE, ConfigDrive.OPENSTACK, ConfigDrive.NOCLOUD
OPTIONAL, REQUIRED, OFF = MetadataAccess.OPTIONAL, MetadataAccess.REQUIRED, MetadataAccess.OFF
DHCP = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50", 24, "192.168.122.1")
STATIC = Address("lan", "52:54:00:00:00:07", "10.0.0.7", 24, bridge="br0", source=AddressSource.STATIC)
UNKNOWN = Address("", "52:54:00:00:00:08", "", bridge="br1", source=AddressSource.NONE)
LEARNED = dataclasses.replace(UNKNOWN, address="10.9.0.4", source=AddressSource.LEARNED)
KEY, OTHER_KEY = "ssh-ed25519 AAAA me", "ssh-ed25519 BBBB me"


@pytest.mark.parametrize(
    ("asked", "metadata", "addresses", "expected"),
    [
        (AUTO, OPTIONAL, (DHCP,), None),
        (AUTO, OPTIONAL, (STATIC, DHCP), None),
        (AUTO, OPTIONAL, (STATIC,), OPENSTACK),
        (AUTO, OPTIONAL, (UNKNOWN,), OPENSTACK),
        (AUTO, OPTIONAL, (LEARNED,), OPENSTACK),
        (AUTO, OPTIONAL, (), OPENSTACK),
        (AUTO, REQUIRED, (DHCP,), OPENSTACK),
        (AUTO, OFF, (DHCP,), OPENSTACK),
        (NONE, OFF, (STATIC,), None),
        (OPENSTACK, OPTIONAL, (DHCP,), OPENSTACK),
        (NOCLOUD, OPTIONAL, (DHCP,), NOCLOUD),
        (NOCLOUD, OFF, (STATIC,), NOCLOUD),
    ],
)
def test_who_has_which_drive(
    asked: ConfigDrive, metadata: MetadataAccess, addresses: tuple[Address, ...], expected: ConfigDrive | None
) -> None:
    spec = dataclasses.replace(a_spec(), config_drive=asked, metadata=metadata)
    assert form_of(spec, addresses) is expected


# -- the image -----------------------------------------------------------------------------------------------------------

FILES = {
    "openstack/latest/meta_data.json": b'{"uuid": "x"}',
    "openstack/latest/user_data": bytes(range(256)) * 255,
    "openstack/2018-08-27/vendor_data2.json": b"{}",
    "user-data": b"",
}


def a_drive(label: str = "config-2", **files: bytes) -> Drive:
    return Drive(label, lambda _: {**FILES, **files})


def unpacked(made: Path, into: Path, *options: str) -> dict[str, bytes]:
    """What another program than the one that made it finds on a drive."""
    into.mkdir()
    subprocess.run(["bsdtar", "-x", *options, "-f", made, "-C", into], check=True, timeout=10)
    return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}


def blkid(made: Path) -> dict[str, str]:
    """What guests find a drive by."""
    found = subprocess.run(["blkid", "-p", "-o", "export", made], check=True, capture_output=True, text=True, timeout=10)
    return dict(line.split("=", 1) for line in found.stdout.splitlines())


@pytest.mark.parametrize("label", ["config-2", "cidata"])
def test_other_programs_find_it_by_its_label_and_read_every_file(label: str, tmp_path: Path) -> None:
    made = tmp_path / "drive.iso"
    made.write_bytes(image(a_drive(label), bytes))
    assert {"LABEL": label, "TYPE": "iso9660"}.items() <= blkid(made).items()
    assert unpacked(made, tmp_path / "rock-ridge") == FILES
    assert unpacked(made, tmp_path / "joliet", "--options", "iso9660:!rockridge") == FILES


def test_in_the_guest_only_root_reads_it(tmp_path: Path) -> None:
    made = tmp_path / "drive.iso"
    made.write_bytes(image(a_drive(), bytes))
    listed = subprocess.run(["bsdtar", "-tvf", made], check=True, capture_output=True, text=True, timeout=10).stdout
    modes = {line.split()[-1]: line.split()[0] for line in listed.splitlines()}
    assert modes["openstack/latest/user_data"] == "-r--------"
    assert modes["openstack/latest"] == "dr-x------"


def test_the_digest_sees_every_name_content_and_the_label_but_nothing_that_is_random() -> None:
    first = a_drive().digest
    assert first == a_drive().digest
    others = [a_drive("cidata"), a_drive(more=b""), a_drive(**{"user-data": b"x"}), Drive("config-2", lambda _: {})]
    assert len({first, *(one.digest for one in others)}) == 5
    seeds = [Drive("config-2", lambda random_bytes: {"seed": random_bytes(8)}), Drive("config-2", lambda _: {"seed": bytes(8)})]
    assert seeds[0].digest == seeds[1].digest


# -- the file ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def drives(tmp_path: Path) -> ConfigDrives:
    return ConfigDrives(tmp_path / "instances")


def test_a_drive_is_current_once_it_is_written_and_until_something_else_is_asked_for(drives: ConfigDrives) -> None:
    assert not drives.is_current(ONE, a_drive())
    drives.write(ONE, a_drive())
    assert drives.is_current(ONE, a_drive())
    assert not drives.is_current(ONE, a_drive(more=b"1"))
    assert stat.S_IMODE(drives.path(ONE).stat().st_mode) == 0o600


@pytest.mark.parametrize(("label", "form"), [("config-2", OPENSTACK), ("cidata", NOCLOUD)])
def test_its_form_is_known_from_itself(label: str, form: ConfigDrive, drives: ConfigDrives) -> None:
    assert drives.form(ONE) is None
    drives.write(ONE, a_drive(label))
    assert drives.form(ONE) is form


def test_one_that_is_as_it_should_be_is_not_touched(drives: ConfigDrives) -> None:
    drives.write(ONE, a_drive())
    before = drives.path(ONE).stat()
    drives.write(ONE, a_drive())
    assert drives.path(ONE).stat() == before


def test_who_is_to_have_none_costs_nothing(drives: ConfigDrives) -> None:
    assert drives.is_current(ONE, None)
    drives.write(ONE, None)
    assert not drives.path(ONE).parent.exists()


@pytest.mark.parametrize("content", [b"", b"short", bytes(100_000), bytes(32768 + 574) + b"ETCD-COMPUTE " + bytes(2000)])
def test_what_is_no_drive_of_ours_is_replaced(content: bytes, drives: ConfigDrives) -> None:
    drives.write(ONE, a_drive())
    drives.path(ONE).write_bytes(content)
    assert not drives.is_current(ONE, a_drive())
    drives.write(ONE, a_drive())
    assert drives.is_current(ONE, a_drive())


def test_what_a_dead_writer_left_goes_with_the_next_write(drives: ConfigDrives) -> None:
    drives.write(ONE, a_drive())
    left = partial_path(drives.path(ONE))
    left.write_bytes(b"half")
    drives.write(ONE, a_drive(more=b"1"))
    assert [path.name for path in drives.path(ONE).parent.iterdir()] == ["config-drive.iso"]


# -- in the life of a guest ------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def is_as_asked(loop: Loop, spec: InstanceSpec) -> bool:
    """Whether the drive is what the spec, as it stands in the store, and the guest's addresses mean."""
    entry = loop.specs.get(spec.uuid)
    assert entry is not None and entry.spec is not None
    drive = loop.world.blueprint.drive(entry.spec, loop.world.networks.assigned(spec.uuid) or ())
    assert drive is not None
    return loop.world.drives.is_current(spec.uuid, drive)


def disks_of(loop: Loop, spec: InstanceSpec) -> list[str]:
    root = ET.fromstring(loop.world.blueprint.xml(spec, loop.world.networks.assigned(spec.uuid) or (), a_stamp()))
    return [Path(source.get("file", "")).name for source in root.findall("devices/disk/source")]


def test_a_guest_with_a_drive_has_it_before_its_first_start(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request(config_drive=NOCLOUD, keys=(KEY,))
    seen: list[bool] = []
    start = loop.hypervisor.start
    monkeypatch.setattr(loop.hypervisor, "start", lambda uuid: (seen.append(is_as_asked(loop, spec)), start(uuid)))
    loop.settle(spec)
    assert (seen, loop.power(spec)) == ([True], PowerState.RUNNING)
    assert disks_of(loop, spec) == ["disk.qcow2", "config-drive.iso"]


def test_a_guest_without_one_has_none(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    assert not loop.world.drives.path(spec.uuid).exists()
    assert disks_of(loop, spec) == ["disk.qcow2"]


def test_a_running_guests_drive_stays_as_it_is_until_it_is_started_again(loop: Loop) -> None:
    spec = loop.request(config_drive=OPENSTACK, keys=(KEY,))
    loop.settle(spec)
    before = loop.world.drives.path(spec.uuid).stat()
    loop.change(spec, keys=(OTHER_KEY,))
    loop.settle(spec)
    document = loop.world.metadata.read(spec.uuid)
    assert document is not None and document.keys == (OTHER_KEY,), "HTTP has it at once"
    assert loop.world.drives.path(spec.uuid).stat() == before
    assert loop.power(spec) is PowerState.RUNNING

    loop.change(spec, desired=Desired.STOPPED)
    loop.settle(spec)
    loop.change(spec, desired=Desired.RUNNING, boot_request=2)
    loop.settle(spec)
    assert is_as_asked(loop, spec)
    assert loop.power(spec) is PowerState.RUNNING


def test_a_reboot_that_pulls_the_plug_and_starts_again_in_one_pass_makes_it_anew(loop: Loop) -> None:
    spec = loop.request(config_drive=OPENSTACK, keys=(KEY,))
    loop.settle(spec)
    loop.change(spec, keys=(OTHER_KEY,), boot_request=2, reboot_request=2, hard_reboot=True)
    loop.settle(spec)
    assert is_as_asked(loop, spec)
    assert loop.power(spec) is PowerState.RUNNING


def test_a_drive_that_is_gone_when_the_guest_is_to_start_is_made_again(loop: Loop) -> None:
    spec = loop.request(config_drive=OPENSTACK)
    loop.settle(spec)
    loop.change(spec, desired=Desired.STOPPED)
    loop.settle(spec)
    loop.world.drives.path(spec.uuid).unlink()
    loop.change(spec, desired=Desired.RUNNING, boot_request=2)
    loop.settle(spec)
    assert is_as_asked(loop, spec)


def test_a_process_that_died_over_the_drive_is_taken_up_by_the_next(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request(config_drive=OPENSTACK)

    def dying(uuid: UUID, drive: Drive) -> None:
        partial_path(loop.world.drives.path(uuid)).write_bytes(b"half")
        raise Transient("killed")

    monkeypatch.setattr(loop.world.drives, "write", dying)
    with pytest.raises(Transient):
        loop.reconciler.reconcile(spec.uuid)
    assert loop.power(spec) is None
    loop.restart()
    loop.settle(spec)
    assert is_as_asked(loop, spec)
    assert {path.name for path in loop.world.drives.path(spec.uuid).parent.iterdir()} == {"disk.qcow2", "config-drive.iso"}


def test_it_goes_with_the_guest(loop: Loop) -> None:
    spec = loop.request(config_drive=OPENSTACK)
    loop.settle(spec)
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert not loop.world.disks.has_files(spec.uuid)
