"""Guests whose disks stand alone, from the request to the end, and what a change of the configuration means to those that are there."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from common.config import DiskConfig
from common.model import Desired, InstanceSpec, Phase
from ecompute import disk_copies
from ecompute.reconciler import Reconciler
from tests.support.loop import Loop

DEFINED: list[str] = []


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path)
    define = loop.hypervisor.define

    def noted(xml: str) -> None:
        DEFINED.append(xml)
        define(xml)

    loop.hypervisor.define = noted  # type: ignore[method-assign]
    DEFINED.clear()
    return loop


def configured(loop: Loop, config: DiskConfig) -> None:
    loop.disk = config
    loop.restart()


def driver() -> tuple[str, dict[str, str]]:
    """The name of the disk's file, and how QEMU is told to use it, as it was last defined."""
    disk = ET.fromstring(DEFINED[-1]).find("devices/disk")
    assert disk is not None
    source, told = disk.find("source"), disk.find("driver")
    assert source is not None and told is not None
    return Path(source.attrib["file"]).name, dict(told.attrib)


def restarted(loop: Loop, spec: InstanceSpec) -> None:
    loop.change(spec, desired=Desired.STOPPED, grace_seconds=0)
    loop.now += 1000
    loop.settle(spec)
    loop.change(spec, desired=Desired.RUNNING, boot_request=2)
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING


@pytest.mark.parametrize(("mode", "name", "kind"), [("copy", "disk.qcow2", "qcow2"), ("raw", "disk.raw", "raw")])
def test_a_disk_keeps_its_mode_and_follows_the_rest_from_its_next_start(mode: str, name: str, kind: str, loop: Loop) -> None:
    configured(loop, DiskConfig(mode=mode))
    spec = loop.request()
    loop.settle(spec)
    before = driver()
    assert before == (name, {"name": "qemu", "type": kind, "cache": "writeback", "discard": "unmap"})
    inode = loop.world.disks.disk_path(spec.uuid).stat().st_ino

    configured(loop, DiskConfig(cache="none", aio="native"))
    loop.settle(spec)
    assert driver() == before, "one that runs is left as it is"
    restarted(loop, spec)
    after = driver()
    assert after == (name, {"name": "qemu", "type": kind, "cache": "none", "io": "native", "discard": "unmap"})
    assert loop.world.disks.disk_path(spec.uuid).stat().st_ino == inode
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.world.disks.list() == []


def test_a_guest_of_an_earlier_version_is_not_defined_anew(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    configured(loop, DiskConfig(mode="raw"))
    restarted(loop, spec)
    assert len(DEFINED) == 1
    assert driver()[0] == "disk.qcow2"


def test_how_far_a_copy_has_come_is_told(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("ecompute.reconciler.PROGRESS_EVERY_SECONDS", 0.0)
    report = Reconciler.report_progress
    monkeypatch.setattr(
        Reconciler, "report_progress",
        lambda self, uuid, progress: (told.append((progress.step, progress.done, progress.total)), report(self, uuid, progress)),
    )  # fmt: skip
    monkeypatch.setattr(disk_copies, "_PIECE_BYTES", 1 << 18)
    configured(loop, DiskConfig(mode="raw"))
    spec = loop.request()
    loop.settle(spec)
    steps = [step for step in told if step[0] == "BuildDisk"]
    assert steps and steps[-1][1] == steps[-1][2] == loop.image.stat().st_size


def test_a_copy_ends_when_its_instance_is_destroyed(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(loop, DiskConfig(mode="raw"))
    spec = loop.request()
    copied = disk_copies._copy_piece

    def destroyed_meanwhile(source: int, target: int, count: int) -> int:
        monkeypatch.setattr(disk_copies, "_copy_piece", copied)
        loop.change(spec, desired=Desired.DELETED)
        return copied(source, target, min(count, 4096))

    monkeypatch.setattr(disk_copies, "_copy_piece", destroyed_meanwhile)
    loop.settle(spec)
    assert loop.world.disks.list() == [] and loop.hypervisor.get(spec.uuid) is None
    assert loop.placement.consumer(spec.uuid) is None


def test_a_copy_needs_its_image_no_more(loop: Loop) -> None:
    configured(loop, DiskConfig(mode="copy"))
    spec = loop.request()
    loop.settle(spec)
    for path in (loop.directory / "images").glob("*.raw"):
        path.unlink()
    restarted(loop, spec)
