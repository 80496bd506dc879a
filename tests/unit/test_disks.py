"""Overlays that QEMU's own tools agree with, and folders that come and go whole."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.errors import InvalidSpec, NoSpace
from common.files import partial_path
from ecompute import disks as disks_module
from ecompute import qcow2_overlay
from ecompute.disks import Disks, Folder
from ecompute.images import CachedImage
from tests.support.disk_images import MIB, make_qcow2, make_raw, qemu_img, qemu_img_info, qemu_io, sha256

GIB = 1 << 30
ONE = UUID("11111111-1111-4111-8111-111111111111")


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path / "instances")


@pytest.fixture
def image(tmp_path: Path) -> CachedImage:
    path = make_qcow2(tmp_path / "base.qcow2")
    return CachedImage(path, "qcow2", 4 * MIB, sha256(path))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("size_gib", [1, 2, 20, 511, 4096, 4097, 65536])
@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_qemu_takes_every_overlay_and_reads_and_writes_it(kind: str, size_gib: int, disks: Disks, tmp_path: Path) -> None:
    make = make_qcow2 if kind == "qcow2" else make_raw
    base = make(tmp_path / f"base.{kind}", pattern=0x77)
    before = sha256(base)
    disk = disks.build(ONE, CachedImage(base, kind, 4 * MIB, before), size_gib)
    assert "No errors" in qemu_img("check", disk)
    assert disk.stat().st_blocks * 512 < MIB
    top, bottom = qemu_img_info(disk, "--backing-chain")
    assert (top["format"], top["virtual-size"], top["format-specific"]["data"]["compat"]) == ("qcow2", size_gib * GIB, "1.1")
    assert (top["full-backing-filename"], top["backing-filename-format"], bottom["format"]) == (str(base), kind, kind)
    end = size_gib * 1024 - 1
    qemu_io(
        disk,
        "read -q -P 0x77 1M 1M",
        f"read -q -P 0 {end}M 1M",
        "write -q -P 0x11 1536k 1M",
        f"write -q -P 0x22 {end}M 1M",
        f"write -q -P 0x33 {size_gib * 512}M 64k",
    )
    qemu_io(
        disk, "read -q -P 0x77 1M 512k", "read -q -P 0x11 1536k 1M", f"read -q -P 0x22 {end}M 1M", "discard -q 1M 1M"
    )  # fmt: skip
    assert "No errors" in qemu_img("check", disk)
    assert sha256(base) == before


def test_it_is_what_qemu_img_would_have_made(image: CachedImage, disks: Disks, tmp_path: Path) -> None:
    disk = disks.build(ONE, image, 3)
    qemu_img("create", "-q", "-f", "qcow2", "-b", image.path, "-F", "qcow2", tmp_path / "theirs", "3G")
    ours, theirs = qemu_img_info(disk), qemu_img_info(tmp_path / "theirs")
    for info in (ours, theirs):
        for own in ("filename", "actual-size"):
            del info[own]
    assert ours == theirs


@pytest.mark.parametrize("name", ["with space", "ünïcode", "json:{}", "a" * 200])
def test_a_backing_path_is_taken_as_it_is(name: str, disks: Disks, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    base = make_qcow2(tmp_path / name / "base", pattern=0x44)
    disk = disks.build(ONE, CachedImage(base, "qcow2", 4 * MIB, ""), 1)
    assert qemu_img_info(disk)["full-backing-filename"] == str(base)
    qemu_io(disk, "read -q -P 0x44 1M 1M")


def test_modes_let_qemus_user_pass_and_nobody_read(disks: Disks, image: CachedImage, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        disk = disks.build(ONE, image, 1)
    finally:
        os.umask(before)
    assert disk == disks.disk_path(ONE) == tmp_path / "instances" / str(ONE) / "disk.qcow2"
    assert disks.console_log_path(ONE) == disk.with_name("console.log")
    assert (mode(disk), mode(disk.parent), mode(disk.parent.parent)) == (0o600, 0o711, 0o711)


def test_a_disk_that_is_there_is_never_touched(disks: Disks, image: CachedImage) -> None:
    disk = disks.build(ONE, image, 1)
    disk.write_bytes(b"somebody's data")
    assert disks.build(ONE, image, 2) == disk
    assert disk.read_bytes() == b"somebody's data"


def test_half_a_disk_is_none_and_is_made_anew(disks: Disks, image: CachedImage) -> None:
    folder = disks.disk_path(ONE).parent
    folder.mkdir()
    partial_path(disks.disk_path(ONE)).write_bytes(b"half")
    assert (disks.exists(ONE), disks.has_files(ONE)) == (False, True)
    disks.build(ONE, image, 1)
    assert [path.name for path in folder.iterdir()] == ["disk.qcow2"]
    assert disks.exists(ONE)


def test_a_failure_leaves_no_disk(disks: Disks, image: CachedImage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="free space"):
        disks.build(ONE, image, 1)
    assert list(disks.disk_path(ONE).parent.iterdir()) == []


def test_a_file_system_that_is_all_but_full_takes_no_disk(
    disks: Disks, image: CachedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disks_module.shutil, "disk_usage", lambda _: usage._replace(free=MIB))
    with pytest.raises(NoSpace, match="1 MiB are free"):
        disks.build(ONE, image, 1)
    assert not disks.has_files(ONE)


@pytest.mark.parametrize("size_gib", [0, 1])
def test_an_image_that_is_larger_than_the_disk_is_refused_with_both_sizes(size_gib: int, disks: Disks) -> None:
    image = CachedImage(Path("/base"), "qcow2", GIB + 1, "")
    with pytest.raises(InvalidSpec, match=rf"1 GiB, more than the {size_gib} GiB of DISK_GB: ask for DISK_GB:2"):
        disks.build(ONE, image, size_gib)
    assert not disks.has_files(ONE)


def test_sizes_and_paths_that_no_overlay_can_have() -> None:
    base = Path("/base")
    assert qcow2_overlay.overlay(qcow2_overlay.MOST_BYTES, base, "raw").file_bytes == (3 + 512) * 65536
    for size, path in ((0, base), (qcow2_overlay.MOST_BYTES + 1, base), (GIB, Path("base")), (GIB, Path("/" + "b" * 1023))):
        with pytest.raises(ValueError, match=r"possible|absolute"):
            qcow2_overlay.overlay(size, path, "raw")


def test_a_disk_larger_than_any_is_refused(disks: Disks, image: CachedImage) -> None:
    with pytest.raises(InvalidSpec, match="GiB"):
        disks.build(ONE, image, 1 << 40)


def test_instances_are_listed_by_their_folders(disks: Disks, image: CachedImage, tmp_path: Path) -> None:
    others = [uuid.uuid4() for _ in range(3)]
    for other in others:
        disks.build(other, image, 1)
    for name in ("lost+found", f"{ONE}.1-2.removed", str(ONE).replace("-", ""), "{" + str(ONE) + "}"):
        (tmp_path / "instances" / name).mkdir()
    assert sorted(disks.list()) == sorted(others)


def test_removing_takes_everything_and_may_be_repeated(disks: Disks, image: CachedImage, tmp_path: Path) -> None:
    disks.build(ONE, image, 1)
    disks.console_log_path(ONE).write_text("boot")
    (disks.disk_path(ONE).parent / "more").mkdir()
    disks.remove(ONE)
    disks.remove(ONE)
    assert not disks.has_files(ONE)
    assert list((tmp_path / "instances").iterdir()) == []
    assert image.path.exists()


def test_links_are_removed_and_what_they_lead_to_stays(disks: Disks, image: CachedImage, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("data")
    disks.build(ONE, image, 1)
    (disks.disk_path(ONE).parent / "link").symlink_to(tmp_path / "elsewhere")
    disks.remove(ONE)
    disks.disk_path(ONE).parent.symlink_to(tmp_path / "elsewhere")
    assert disks.has_files(ONE)
    disks.remove(ONE)
    assert not disks.has_files(ONE)
    assert (tmp_path / "elsewhere" / "precious").read_text() == "data"


def test_a_removal_that_died_half_way_is_finished_at_the_next_start(
    disks: Disks, image: CachedImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.build(ONE, image, 1)
    monkeypatch.setattr(disks_module, "_remove_tree", lambda _: None)  # dies after the rename
    disks.remove(ONE)
    monkeypatch.undo()
    assert not disks.has_files(ONE)
    assert not disks.exists(ONE)
    assert len(list((tmp_path / "instances").iterdir())) == 1
    Disks(tmp_path / "instances")
    assert list((tmp_path / "instances").iterdir()) == []


def test_an_instances_folder_is_told_apart_by_what_is_in_it(tmp_path: Path) -> None:
    disks, instance = Disks(tmp_path / "instances"), uuid4()
    assert disks.folder(instance) is None
    path = tmp_path / "instances" / str(instance)
    path.mkdir()
    assert disks.folder(instance) == Folder(path, is_empty=True)
    (path / "disk.qcow2.1-0.partial").touch()
    assert disks.folder(instance) == Folder(path, partials=("disk.qcow2.1-0.partial",), is_empty=True)
    (path / "disk.qcow2").touch()
    assert disks.folder(instance) == Folder(path, True, ("disk.qcow2.1-0.partial",))

    disks.remove_partial(instance, "disk.qcow2.1-0.partial")
    disks.remove_partial(instance, "disk.qcow2.1-0.partial")
    for name in ("disk.qcow2", "../x.partial"):
        with pytest.raises(InvalidSpec):
            disks.remove_partial(instance, name)
    assert disks.folder(instance) == Folder(path, True)


def test_files_that_are_set_aside_stay_whole_and_never_replace_others(tmp_path: Path) -> None:
    disks, instance, lost = Disks(tmp_path / "instances"), uuid4(), tmp_path / "lost"
    folder = tmp_path / "instances" / str(instance)
    for number, expected in enumerate((lost / str(instance), lost / f"{instance}-2")):
        folder.mkdir()
        (folder / "disk.qcow2").write_text(f"data {number}")
        assert disks.set_aside(instance, lost) == expected
        assert (expected / "disk.qcow2").read_text() == f"data {number}"
        assert not disks.has_files(instance)
    folder.mkdir()
    assert disks.set_aside(instance, lost) is None
    assert not folder.exists()
