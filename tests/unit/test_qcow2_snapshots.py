"""The list of snapshots as our own reader has it, beside what qemu-img says, and lists that make no sense."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.disk_snapshots import Consistency, Snapshot, parse_snapshot_name, snapshot_of
from common.errors import ConfigError, EcomputeError, Permanent, Transient
from ecompute import disk_snapshots, qcow2_snapshots

COUNT_AT, TABLE_AT = 60, 64  # in the header


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True, timeout=20)
    return path


def test_it_reads_what_qemu_img_wrote(disk: Path) -> None:
    tags = [f"name-{number}+off+{number:032x}" for number in range(5)] + ["by hand", "ünïcode"]
    for tag in tags:
        disk_snapshots.take(disk, tag)
    found = qcow2_snapshots.read(disk)
    assert found.tags == tuple(tags)
    assert found.virtual_bytes == 8 << 20
    told = subprocess.run(["qemu-img", "snapshot", "-l", disk], check=True, capture_output=True, text=True, timeout=20).stdout
    dates = [" ".join(line.split()) for line in told.splitlines()]
    for one, tag in zip(found.snapshots, tags, strict=True):
        assert any(tag in line for line in dates)
        assert one.created_at.endswith("Z")
    assert found.snapshots[0] == Snapshot("name-0", found.snapshots[0].created_at, Consistency.OFF, "0" * 32)
    assert (found.tag("name-3"), found.tag("by hand"), found.tag("name-9")) == (tags[3], "by hand", None)


def test_names_that_are_numbers_name_none_surely(disk: Path) -> None:
    for act in (disk_snapshots.take, disk_snapshots.go_back):
        with pytest.raises(Permanent, match="a mere number names none surely"):
            act(disk, "1")


def test_a_change_that_was_cut_off_is_mended_with_the_next_one(disk: Path) -> None:
    subprocess.run(["qemu-io", "-c", "write -P 1 0 1M", disk], check=True, capture_output=True, timeout=20)
    leak_a_cluster(disk)
    assert subprocess.run(["qemu-img", "check", "-q", disk], check=False, timeout=20).returncode == 3, "clusters are leaked"
    disk_snapshots.take(disk, "one")
    assert subprocess.run(["qemu-img", "check", "-q", disk], check=False, timeout=20).returncode == 3, "nobody said so"
    (disk.parent / "snapshot.unfinished").touch()
    disk_snapshots.drop(disk, "one")
    assert subprocess.run(["qemu-img", "check", "-q", disk], check=False, timeout=20).returncode == 0
    assert [path.name for path in disk.parent.iterdir()] == [disk.name]


def leak_a_cluster(disk: Path) -> None:
    """Count one cluster up that nobody uses, as who is killed after that and before its use."""
    with disk.open("r+b") as file:
        head = file.read(104)
        table, _ = struct.unpack_from(">QI", head, 48)
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        file.seek(0, 2)
        cluster = -(-file.tell() // 65536)
        file.truncate((cluster + 1) * 65536)
        file.seek(block + 2 * cluster)
        file.write(struct.pack(">H", 1))


def test_a_disk_that_is_gone_or_raw_has_none(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="cannot read the disk"):
        qcow2_snapshots.read(tmp_path / "none")
    (tmp_path / "raw").write_bytes(bytes(4096))
    with pytest.raises(Permanent, match="a raw disk keeps no snapshots"):
        qcow2_snapshots.read(tmp_path / "raw")


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [(COUNT_AT, ">I", 2**32 - 1), (COUNT_AT, ">I", 3), (TABLE_AT, ">Q", 2**64 - 1), (TABLE_AT, ">Q", 0)],
)
def test_a_list_that_makes_no_sense_is_one_line_and_not_for_ever(disk: Path, offset: int, form: str, value: int) -> None:
    disk_snapshots.take(disk, "one")
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))
    try:
        found = qcow2_snapshots.read(disk)
    except (Transient, Permanent) as error:
        assert "makes no sense" in str(error) or "cannot read the disk" in str(error)
    else:
        assert len(found.tags) <= qcow2_snapshots._MOST_ENTRIES


@given(st.binary(min_size=72, max_size=4096))
def test_no_bytes_do_more_than_be_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "disk"
    path.write_bytes(b"QFI\xfb" + content)
    try:
        qcow2_snapshots.read(path)
    except EcomputeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("tag", ["", "a+b", "a+frozen+0", f"+off+{'0' * 32}", f"a+other+{'0' * 32}", f"a+off+{'0' * 32}+"])
def test_other_tags_are_other_peoples(tag: str) -> None:
    assert snapshot_of(tag, "now") == Snapshot(tag, "now", Consistency.UNKNOWN, "")


@pytest.mark.parametrize("name", ["", "-a", "a b", "a+b", "ä", "a" * 64, "a\n"])
def test_names_are_simple(name: str) -> None:
    with pytest.raises(ConfigError, match="needs 1 to 63 letters"):
        parse_snapshot_name(name)
