"""When a disk is prepared, what is remembered of its image, and what becomes of a guest whose disk cannot be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from uuid import uuid4

import pytest

from common.disk_content import DiskContent, GuestFile
from common.errors import Permanent
from common.hardware import USUAL, CardModel, DiskBus, Hardware
from common.model import Desired, InstanceSpec, Phase
from ecompute import appliance
from ecompute.appliance import Appliance
from ecompute.guest_hardware import FoundHardware
from ecompute.guest_system import System, system_from
from ecompute.guestfs_tools import GuestfsTools
from tests.fakes.disk_tools import LINUX
from tests.support.loop import Loop

CHANGED = DiskContent(resize=True, identity=True, files=(GuestFile("/etc/motd", "aGk="),))
OLD = dataclasses.replace(LINUX, has_virtio_disk=False, has_virtio_card=False)
SATA = Hardware(DiskBus.SATA, CardModel.E1000)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def inspecting(loop: Loop, system: System = LINUX) -> Loop:
    loop.inspects, loop.tools.system = True, system
    loop.restart()
    return loop


def built(loop: Loop, **fields: object) -> InstanceSpec:
    spec = loop.request(name=f"vm-{uuid4().hex[:8]}", **fields)
    loop.settle(spec)
    return spec


def hardware(loop: Loop, spec: InstanceSpec) -> Hardware:
    return loop.world.blueprint.as_built(spec).hardware


def test_who_asks_for_nothing_pays_nothing(loop: Loop) -> None:
    spec = built(loop)
    assert loop.status(spec).phase is Phase.RUNNING
    assert (loop.tools.changed, loop.tools.inspected) == ([], [])


def test_the_half_made_disk_is_prepared_with_what_the_guest_is_to_be(loop: Loop) -> None:
    spec = built(loop, disk_content=CHANGED, keys=("ssh-ed25519 AAAA me",), hostname="web")
    ((disk, changes, known),) = loop.tools.changed
    assert disk.name.endswith(".partial") and not disk.exists(), "it has its name only now"
    assert loop.world.disks.exists(spec.uuid)
    assert known is None
    assert (changes.content, changes.hostname, changes.keys) == (CHANGED, "web", ("ssh-ed25519 AAAA me",))
    assert [card.mac for card in changes.cards] == [card.mac for card in loop.world.networks.assigned(spec.uuid) or ()]
    assert changes.size_bytes == 1 << 30


def test_an_image_is_looked_into_once(loop: Loop) -> None:
    built(loop, disk_content=CHANGED)
    loop.restart()
    built(loop, disk_content=CHANGED)
    assert [known for _, _, known in loop.tools.changed] == [None, LINUX]


@pytest.mark.parametrize(
    "spoilt", ["", "{", '{"recipe": 0}', '{"recipe": 1, "system": {"root": 5}}', '{"recipe": 1, "system": []}']
)
def test_what_was_found_and_cannot_be_read_is_looked_for_again(loop: Loop, spoilt: str) -> None:
    built(loop, disk_content=CHANGED)
    (found,) = (loop.directory / "guestfs").iterdir()
    found.write_text(spoilt)
    built(loop, disk_content=CHANGED)
    assert [known for _, _, known in loop.tools.changed] == [None, None]
    assert json.loads(found.read_text())["recipe"] == 1


def test_a_disk_that_cannot_be_prepared_leaves_a_reason_and_nothing_else(loop: Loop) -> None:
    loop.tools.failure = Permanent("the disk of web cannot be prepared: it holds FreeBSD", "CannotChange")
    spec = built(loop, disk_content=CHANGED)
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.FAILED, "CannotChange")
    assert "it holds FreeBSD" in loop.status(spec).message
    assert not loop.world.disks.has_files(spec.uuid)


def test_without_libguestfs_the_reason_says_what_to_install(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(appliance, "missing", lambda: "supermin")
    real = Appliance(tmp_path / "a", tmp_path / "r", uses_kvm=False, deadline_seconds=10)
    loop.world.preparation.tools = GuestfsTools(real)
    spec = built(loop, disk_content=CHANGED)
    assert loop.status(spec).reason == "NoGuestfs"
    assert "apt-get install --no-install-recommends python3-guestfs supermin" in loop.status(spec).message
    assert loop.status(built(loop)).phase is Phase.RUNNING, "everything else works"


# -- hardware ------------------------------------------------------------------------------------------------------------------


def test_an_image_without_drivers_gets_hardware_that_it_can_drive(loop: Loop) -> None:
    spec = built(inspecting(loop, OLD))
    assert hardware(loop, spec) == SATA
    assert loop.status(spec).notes == (
        "its image lacks drivers for virtio: its disk is on sata, its cards are e1000",
    )  # fmt: skip
    assert [path.suffix for path in loop.tools.inspected] == [".raw"], "the image, not the disk"
    built(loop)
    assert len(loop.tools.inspected) == 1


def test_hardware_stays_for_as_long_as_the_disk(loop: Loop) -> None:
    spec = built(inspecting(loop, OLD))
    defined = len(loop.hypervisor.list())
    loop.inspects, loop.tools.system = False, LINUX
    loop.restart()
    loop.settle(spec)
    assert hardware(loop, spec) == SATA
    assert len(loop.hypervisor.list()) == defined
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert FoundHardware(loop.directory / "instances").of(spec.uuid) is None


def test_what_somebody_says_of_the_hardware_counts(loop: Loop) -> None:
    inspecting(loop, OLD)
    assert hardware(loop, built(loop, hardware_is_given=True)) == USUAL
    e1000 = Hardware(card_model=CardModel.E1000)
    assert hardware(loop, built(loop, hardware=e1000)) == e1000
    assert loop.tools.inspected == []


def test_one_look_does_for_both(loop: Loop) -> None:
    spec = built(inspecting(loop, OLD), disk_content=CHANGED)
    assert hardware(loop, spec) == SATA
    assert loop.tools.inspected == []
    assert len(loop.tools.changed) == 1


def test_no_guest_fails_by_a_look_that_nobody_asked_for(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    inspecting(loop, OLD)
    loop.tools.failure = Permanent("image /i cannot be looked into: libguestfs is not on this host", "NoGuestfs")
    spec = built(loop)
    assert loop.status(spec).phase is Phase.RUNNING
    assert hardware(loop, spec) == USUAL
    assert "its guest gets virtio" in caplog.text
    loop.tools.failure = None
    loop.restart()
    loop.settle(spec)
    assert hardware(loop, spec) == USUAL, "and keeps it"


@pytest.mark.parametrize(
    ("disk", "card", "expected"),
    [
        (True, True, USUAL),
        (None, None, USUAL),
        (False, None, Hardware(disk_bus=DiskBus.SATA)),
        (True, False, Hardware(card_model=CardModel.E1000)),
        (False, False, SATA),
    ],
)
def test_hardware_is_other_than_virtio_only_where_a_driver_is_known_to_be_missing(
    disk: bool | None, card: bool | None, expected: Hardware
) -> None:  # fmt: skip
    assert System(has_virtio_disk=disk, has_virtio_card=card).hardware == expected


def test_what_was_found_is_read_as_it_was_written() -> None:
    system = dataclasses.replace(OLD, mounts=(("/boot", "/dev/sda2"),), has_cloud_init=True)
    assert system_from(json.loads(json.dumps(system.to_data()))) == system
    for wrong in ({"root": None}, {"mounts": [["/"]]}, {"mounts": 3}, {"has_virtio_disk": "yes"}, {"name": "x" * 2000}):
        with pytest.raises(ValueError, match="not in the form"):
            system_from({**system.to_data(), **wrong})
