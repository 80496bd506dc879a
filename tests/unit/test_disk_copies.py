"""Disks that stand alone: what QEMU's tools read of them, what they take of the file system, and copies that end early."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import DiskConfig
from common.errors import Cancelled, ConfigError, ImageInvalid, InvalidSpec, NoSpace
from ecompute import disk_copies
from ecompute import disks as disks_module
from ecompute.disks import Disks, Folder
from ecompute.images import CachedImage
from tests.support.disk_images import MIB, make_qcow2, make_raw, qemu_img, qemu_img_info, sha256
from tests.support.processes import ROOT

GIB = 1 << 30
ONE = UUID("11111111-1111-4111-8111-111111111111")


def image_of(directory: Path, kind: str, *, size_mib: int = 4, options: str = "") -> CachedImage:
    path = directory / f"base.{kind}"
    if kind == "qcow2":
        make_qcow2(path, size_mib=size_mib, pattern=0x77, options=options)
    else:
        make_raw(path, size_mib=size_mib, pattern=0x77)
    return CachedImage(path, kind, size_mib * MIB, sha256(path))


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512


def assert_reads_as(disk: Path, image: CachedImage) -> None:
    """The disk of a GiB holds what *image* has, then zeros, and needs no other file."""
    disk_format = "raw" if disk.suffix == ".raw" else "qcow2"
    info = qemu_img_info(disk, "-f", disk_format)
    assert (info["format"], info["virtual-size"]) == (disk_format, GIB)
    assert "backing-filename" not in info
    qemu_img("compare", "-f", image.format, "-F", disk_format, image.path, disk)  # zeros behind the smaller one's end are equal
    if disk_format == "qcow2":
        assert "No errors" in qemu_img("check", disk)


PREALLOCATIONS = {"copy": ("off", "metadata", "falloc", "full"), "raw": ("off", "falloc", "full")}
MODES = [
    (mode, preallocation, kind)
    for mode, preallocations in PREALLOCATIONS.items()
    for preallocation in preallocations
    for kind in ("qcow2", "raw")
    if (mode, preallocation, kind) not in (("copy", "full", "raw"), ("raw", "full", "qcow2"))  # each writes a whole GiB
]


@pytest.mark.parametrize(("mode", "preallocation", "kind"), MODES)
def test_a_copy_reads_as_its_image_and_needs_it_no_more(mode: str, preallocation: str, kind: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, kind)
    disks = Disks(tmp_path / "instances", DiskConfig(mode=mode, preallocation=preallocation, discard="ignore"))
    told: list[tuple[int, int]] = []
    disk = disks.build(ONE, image, 1, progress=lambda done, total: told.append((done, total)))
    assert disk.name == ("disk.raw" if mode == "raw" else "disk.qcow2")
    assert disk == disks.disk_path(ONE) and disks.exists(ONE)
    assert disks.folder(ONE) == Folder(disk.parent, has_disk=True)
    assert (disk.stat().st_mode & 0o777, disk.stat().st_uid) == (0o600, os.geteuid())
    assert_reads_as(disk, image)
    assert sha256(image.path) == image.digest
    assert (image.path.stat().st_mode & 0o777, image.path.stat().st_uid) == (0o644, os.geteuid())
    if preallocation in ("falloc", "full"):
        assert taken(disk) >= GIB
    else:
        assert taken(disk) < 16 * MIB, "zeros take nothing"
    assert told and all(0 <= done <= total for done, total in told)


def test_a_compressed_image_can_be_copied(tmp_path: Path) -> None:
    image = image_of(tmp_path, "qcow2")
    qemu_img("convert", "-c", "-O", "qcow2", image.path, tmp_path / "packed")
    image = dataclasses.replace(image, path=tmp_path / "packed")
    for mode in ("copy", "raw"):
        assert_reads_as(Disks(tmp_path / mode, DiskConfig(mode=mode)).build(ONE, image, 1), image)


def test_the_same_format_is_cloned_where_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def clone(target: int, request: int, source: int) -> None:
        asked.append(request)
        os.pwrite(target, os.pread(source, 64 * MIB, 0), 0)

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(disk_copies, "_copy", None)
    for mode, kind in (("copy", "qcow2"), ("raw", "raw")):
        image = image_of(tmp_path, kind)
        assert_reads_as(Disks(tmp_path / mode, DiskConfig(mode=mode)).build(ONE, image, 1), image)
    assert asked == [0x40049409] * 2


def test_one_that_has_its_blocks_ahead_shares_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_copies, "_clone", None)  # a shared block has to be had anew when it is written
    config = DiskConfig(mode="raw", preallocation="falloc", discard="ignore")
    image = image_of(tmp_path, "raw")
    assert_reads_as(Disks(tmp_path / "instances", config).build(ONE, image, 1), image)


@pytest.mark.parametrize("then", ["overlay", "copy", "raw"])
def test_a_disk_stays_as_it_was_built(then: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, "qcow2")
    disk = Disks(tmp_path / "instances", DiskConfig(mode="raw")).build(ONE, image, 1)
    inode = disk.stat().st_ino
    assert Disks(tmp_path / "instances", DiskConfig(mode=then)).build(ONE, image, 1) == disk
    assert disk.stat().st_ino == inode
    assert [path.name for path in disk.parent.iterdir()] == ["disk.raw"]


CASES = [("copy", "qcow2"), ("copy", "raw"), ("raw", "raw"), ("raw", "qcow2")]


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_a_copy_that_nobody_wants_any_more_ends_and_leaves_nothing(mode: str, kind: str, tmp_path: Path) -> None:
    disks, told = Disks(tmp_path / "instances", DiskConfig(mode=mode)), []
    with pytest.raises(Cancelled):
        disks.build(
            ONE, image_of(tmp_path, kind), 1, progress=lambda *step: told.append(step), is_cancelled=lambda: len(told) >= 1
        )
    assert len(told) == 1
    assert list((tmp_path / "instances" / str(ONE)).iterdir()) == []


def test_zeros_ahead_are_given_up_in_the_middle_as_well(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "instances", DiskConfig(mode="raw", preallocation="full", discard="ignore"))
    done: list[int] = []
    with pytest.raises(Cancelled):
        disks.build(ONE, image_of(tmp_path, "raw"), 1, progress=lambda now, _: done.append(now),
                    is_cancelled=lambda: bool(done) and done[-1] > 100 * MIB)  # fmt: skip
    assert 100 * MIB < done[-1] < 200 * MIB
    assert list((tmp_path / "instances" / str(ONE)).iterdir()) == []


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_an_image_that_is_damaged_is_no_disk(mode: str, kind: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, kind)
    if kind == "qcow2":
        with image.path.open("r+b") as file:
            file.seek(40)
            file.write(b"\xff" * 16)  # where the tables are
        with pytest.raises(ImageInvalid, match="cannot be copied"):
            Disks(tmp_path / "instances", DiskConfig(mode=mode)).build(ONE, image, 1)
    else:
        with pytest.raises(InvalidSpec, match="DISK_GB:3"):
            Disks(tmp_path / "instances", DiskConfig(mode=mode)).build(
                ONE, dataclasses.replace(image, virtual_size_bytes=3 * GIB), 1
            )
    assert not list((tmp_path / "instances").glob("*/*"))


def test_blocks_that_cannot_be_had_are_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = disks_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disks_module.shutil, "disk_usage", lambda _: usage._replace(free=GIB))
    image = image_of(tmp_path, "raw")
    Disks(tmp_path / "a", DiskConfig(mode="raw")).build(ONE, image, 1)
    with pytest.raises(NoSpace, match="it would take 1024 MiB"):
        Disks(tmp_path / "b", DiskConfig(mode="raw", preallocation="falloc", discard="ignore")).build(ONE, image, 1)


def test_a_full_file_system_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(NoSpace):
        Disks(tmp_path / "instances", DiskConfig(mode="raw")).build(ONE, image_of(tmp_path, "raw"), 1)
    assert not list((tmp_path / "instances").glob("*/*"))


def test_a_file_system_without_direct_access_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cache in ("none", "directsync"):
        Disks(tmp_path / "instances", DiskConfig(cache=cache))
    assert list((tmp_path / "instances").iterdir()) == []
    real = os.open

    def refuse(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="which needs O_DIRECT"):
        Disks(tmp_path / "instances", DiskConfig(cache="none"))


EXTENTS = st.lists(st.tuples(st.integers(0, 255), st.integers(1, 20)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(EXTENTS, st.integers(0, 300), st.integers(1, 5))
def test_whatever_is_where_in_a_file_comes_along_and_holes_stay_holes(
    tmp_path_factory: pytest.TempPathFactory, extents: list[tuple[int, int]], tail: int, piece: int
) -> None:
    directory = tmp_path_factory.mktemp("sparse")
    with (directory / "a").open("w+b", buffering=0) as source, (directory / "b").open("w+b", buffering=0) as target:
        for block, count in extents:
            os.pwrite(source.fileno(), os.urandom(count * 4096), block * 4096)
        os.ftruncate(source.fileno(), os.fstat(source.fileno()).st_size + tail * 4096 + 1)
        before, disk_copies._PIECE_BYTES = disk_copies._PIECE_BYTES, piece * 4096 + 1
        try:
            disk_copies._copy(source.fileno(), target.fileno(), lambda *_: None)
        finally:
            disk_copies._PIECE_BYTES = before
    assert (directory / "a").read_bytes() == (directory / "b").read_bytes()
    assert taken(directory / "b") <= taken(directory / "a") + 128 * 1024


DYING = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from common.config import DiskConfig
from ecompute import disk_copies, disks, qemu_img
from ecompute.images import CachedImage
point, mode, directory, image, kind = sys.argv[1:]
module, name, when = point.split(":")
owner = {"copies": disk_copies, "disks": disks, "cage": qemu_img, "path": Path, "os": os}[module]
original = getattr(owner, name)
def die(*arguments, **named):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = original(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, die)
cached = CachedImage(Path(image), kind, 4 << 20, "")
disks.Disks(Path(directory), DiskConfig(mode=mode)).build(UUID(int=1), cached, 1)
"""
POINTS = {
    ("copy", "qcow2"): ("copies:_copy_piece", "copies:_run", "cage:_wait"),
    ("copy", "raw"): ("copies:_prepare", "copies:_convert", "cage:_wait"),
    ("raw", "raw"): ("copies:_clone", "copies:_copy_piece", "copies:_take"),
    ("raw", "qcow2"): ("copies:_convert", "os:fsync", "path:rename"),
}


@pytest.mark.parametrize(
    ("mode", "kind", "point", "when"),
    [(*case, point, when) for case, points in POINTS.items() for point in points for when in ("before", "after")],
)
def test_whoever_is_killed_on_the_way_leaves_a_whole_disk_or_none(
    mode: str, kind: str, point: str, when: str, tmp_path: Path
) -> None:
    image, uuid = image_of(tmp_path, kind), UUID(int=1)
    command = [sys.executable, "-c", DYING, f"{point}:{when}", mode, str(tmp_path / "i"), str(image.path), kind]
    died = subprocess.run(command, cwd=ROOT, timeout=60, check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    disks = Disks(tmp_path / "i", DiskConfig(mode=mode))
    assert disks.exists(uuid) == (point == "path:rename" and when == "after")
    disk = disks.build(uuid, image, 1)
    assert_reads_as(disk, image)
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]
    assert sha256(image.path) == image.digest
