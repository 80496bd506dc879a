"""Who rests on which image, as the disks themselves say it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from uuid import UUID

import pytest

from ecompute import image_users
from ecompute.image_users import Unknown, Users, find_users
from ecompute.qcow2_overlay import overlay
from tests.support.disk_images import make_qcow2, make_raw, qemu_img

ONE, TWO = UUID("11111111-1111-4111-8111-111111111111"), UUID("22222222-2222-4222-8222-222222222222")
A, B = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    for name in ("images", f"instances/{ONE}", f"instances/{TWO}", f"lost/{ONE}-2"):
        (state / name).mkdir(parents=True)
    return state


def found(state: Path, **more: object) -> Users:
    return find_users([state], without=state / "images", **more)  # type: ignore[arg-type]


def rest_on(path: Path, digest: str, image_format: str = "qcow2") -> Path:
    made = overlay(1 << 30, path.parents[2] / "images" / f"{digest}.{image_format}", image_format)
    path.write_bytes(made.head + bytes(made.file_bytes - len(made.head)))
    return path


def test_every_disk_counts_wherever_it_is(state: Path) -> None:
    disk = rest_on(state / "instances" / str(ONE) / "disk.qcow2", A)
    half = rest_on(state / "instances" / str(TWO) / "disk.qcow2.7-0.partial", A, "raw")
    lost = rest_on(state / "lost" / f"{ONE}-2" / "disk.qcow2", B)
    make_raw(state / "instances" / str(TWO) / "disk.raw")
    make_qcow2(state / "instances" / str(TWO) / "alone.qcow2")
    (state / "instances" / str(TWO) / "console.log").write_text(A)
    rest_on(state / "images" / f"{A}.qcow2.x", B).rename(state / "images" / f"{B}.qcow2")
    users = found(state)
    assert users.files == {A: {disk, half}, B: {lost}}
    assert users.instances[A] == {ONE, TWO}
    assert users.instances[B] == frozenset()


@pytest.mark.parametrize(
    "form", ["../../images/{}.qcow2", "file:{}/images/{}.qcow2", 'json:{{"driver":"qcow2","file":"{}/images/{}.qcow2"}}']
)
def test_however_the_name_is_written(form: str, state: Path) -> None:
    name = (form.format(A) if form.count("{}") == 1 and "json" not in form else form.format(state, A)).encode()
    head = struct.pack(">4sIQI", b"QFI\xfb", 3, 104, len(name)).ljust(104, b"\0") + name
    (state / "instances" / str(ONE) / "disk.qcow2").write_bytes(head)
    assert found(state).instances == {A: {ONE}}


def test_a_chain_is_found_at_its_end(state: Path) -> None:
    """As a snapshot makes it: the upper file rests on the lower one, and that on the image."""
    lower = rest_on(state / "instances" / str(ONE) / "disk.qcow2", A)
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", lower, "-F", "qcow2", lower.with_name("top.qcow2"), "1G")
    assert found(state).files == {A: {lower}}


def test_a_disk_that_was_moved_and_linked_is_followed(state: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "more" / "room" / str(ONE)
    elsewhere.mkdir(parents=True)
    rest_on(state / "instances" / str(ONE) / "disk.qcow2", A).rename(elsewhere / "disk.qcow2")
    (state / "instances" / str(ONE) / "disk.qcow2").symlink_to(elsewhere / "disk.qcow2")
    assert found(state).instances == {A: {ONE}}
    (state / "instances").rename(tmp_path / "instances")
    (state / "instances").symlink_to(tmp_path / "instances")
    assert found(state).instances == {A: {ONE}}


def test_a_link_that_leads_round_ends(state: Path) -> None:
    rest_on(state / "instances" / str(ONE) / "disk.qcow2", A)
    (state / "instances" / "round").symlink_to(state)
    assert found(state).instances == {A: {ONE}}


def test_what_cannot_be_read_could_rest_on_anything(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = rest_on(state / "instances" / str(ONE) / "disk.qcow2", A)
    (state / "instances" / str(TWO) / "disk.qcow2").symlink_to("/mnt/not/there")
    with pytest.raises(Unknown, match="cannot be looked at"):
        found(state)
    (state / "instances" / str(TWO) / "disk.qcow2").unlink()

    def refuse(path: Path, *more: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_users.os, "open", refuse)
    with pytest.raises(Unknown, match=f"{disk} cannot be read"):
        found(state)
    monkeypatch.undo()
    monkeypatch.setattr(image_users.os, "scandir", refuse)
    with pytest.raises(Unknown, match="cannot be read"):
        found(state)


def test_a_disk_that_is_renamed_meanwhile_is_not_missed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look meets it under neither name, since it has just moved behind where the look has come."""
    folder = state / "instances" / str(TWO)
    disk = rest_on(folder / "a.qcow2", A)
    open_file, renames = os.open, iter([(disk, folder / "b.qcow2"), (folder / "b.qcow2", disk)])

    def moved_before_it_is_opened(path: Path, *more: int) -> int:
        if path.parent == folder and (step := next(renames, None)):
            step[0].rename(step[1])
        return open_file(path, *more)

    monkeypatch.setattr(image_users.os, "open", moved_before_it_is_opened)
    assert found(state).instances == {A: {TWO}}


def test_folders_that_never_come_to_rest_are_no_answer(state: Path) -> None:
    counter = iter(range(100))

    def churn() -> None:
        rest_on(state / "instances" / str(ONE) / f"{next(counter)}.qcow2", A)

    with pytest.raises(Unknown, match="keep coming and going"):
        found(state, settled=churn)
