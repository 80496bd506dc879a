"""What every ``DiskTools`` does, checked against libguestfs and against the fake of our own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.disk_content import DiskContent
from common.errors import Cancelled, Permanent
from ecompute.guest_system import System
from ecompute.guestfs_tools import DiskChanges, DiskTools, GuestfsTools
from tests.fakes.disk_tools import LINUX, FakeDiskTools
from tests.support.disk_images import qemu_img_info
from tests.support.linux_disks import SYSTEM, make_disk

CHANGES = DiskChanges(DiskContent(identity=True), 24 << 20, hostname="web")


@pytest.fixture(scope="module", params=["fake", "libguestfs"])
def disk_tools(request: pytest.FixtureRequest) -> DiskTools:
    if request.param == "fake":
        return FakeDiskTools()
    real: GuestfsTools = request.getfixturevalue("tools")
    return real


@pytest.fixture(scope="module")
def disk(open_folder: Path) -> Path:
    return make_disk(open_folder / "contract.qcow2", SYSTEM)


def test_what_is_found_in_an_image_is_the_same_for_all_that_look(disk_tools: DiskTools, disk: Path) -> None:
    before = disk.read_bytes()
    found = disk_tools.inspect(disk, "qcow2", what="image", is_cancelled=lambda: False)
    assert found == LINUX
    assert disk.read_bytes() == before
    assert disk_tools.customize(disk, CHANGES, found, what="a disk", is_cancelled=lambda: False) == found
    assert qemu_img_info(disk)["virtual-size"] == 24 << 20


def test_what_nobody_wants_is_not_begun(disk_tools: DiskTools, disk: Path) -> None:
    with pytest.raises(Cancelled, match="it is no longer wanted"):
        disk_tools.customize(disk, CHANGES, System(), what="a disk", is_cancelled=lambda: True)


def test_a_disk_that_is_not_there_is_said_so(disk_tools: DiskTools, open_folder: Path) -> None:
    with pytest.raises(Permanent, match=r"image cannot be looked into: .*absent") as error:
        disk_tools.inspect(open_folder / "absent", "qcow2", what="image", is_cancelled=lambda: False)
    assert error.value.reason == "FileError"
