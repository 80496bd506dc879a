"""Disks are made larger where they lie, by qemu-img in its cage; QEMU's own tools say what came of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import Conflict, HypervisorRejected
from ecompute.disk_growth import grow, virtual_size_bytes
from ecompute.disks import Disks
from ecompute.images import CachedImage
from tests.support.processes import wait_until

GIB = 1 << 30


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A guest's disk of 1 GiB over a small image with something on it."""
    base = tmp_path / "base.raw"
    base.write_bytes(b"from the image" + bytes((4 << 20) - 14))
    return Disks(tmp_path / "instances").build(uuid4(), CachedImage(base, "raw", 4 << 20, "0" * 64), 1)


def info(disk: Path) -> dict[str, object]:
    told = subprocess.run(["qemu-img", "info", "--output=json", disk], check=True, capture_output=True, timeout=20).stdout
    found: dict[str, object] = json.loads(told)
    return found


def test_a_disk_grows_keeps_what_it_rests_on_and_belongs_to_whom_it_belonged(disk: Path) -> None:
    before, owner = info(disk), disk.stat()
    assert virtual_size_bytes(disk) == GIB == before["virtual-size"]
    for _ in range(2):
        grow(disk, 600 * GIB)  # more than its first table of clusters can tell of
    assert virtual_size_bytes(disk) == 600 * GIB == info(disk)["virtual-size"]
    assert info(disk)["backing-filename"] == before["backing-filename"]
    assert (disk.stat().st_uid, disk.stat().st_mode) == (owner.st_uid, owner.st_mode)
    subprocess.run(["qemu-img", "check", "-q", disk], check=True, timeout=20)
    read = subprocess.run(
        ["qemu-io", "-r", "-c", "read -v 0 16", "-c", f"read -P 0 {599 * GIB} 4k", disk],
        check=False,
        capture_output=True,
        timeout=20,
        text=True,
    )
    assert read.returncode == 0 and "from.the.image" in read.stdout and "verification failed" not in read.stdout


def test_a_disk_is_never_made_smaller(disk: Path) -> None:
    grow(disk, 2 * GIB)
    grow(disk, GIB)
    assert virtual_size_bytes(disk) == 2 * GIB


def test_a_raw_disk_grows_whatever_is_on_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"QFI\xfb" + bytes(1 << 20))  # a guest may write what it likes there
    grow(disk, GIB)
    assert virtual_size_bytes(disk) == disk.stat().st_size == GIB


def test_a_disk_in_use_is_left_alone(disk: Path) -> None:
    user = subprocess.Popen(["qemu-io", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdin is not None
        wait_until(lambda: any(p.name.isdigit() and p.resolve() == disk for p in Path(f"/proc/{user.pid}/fd").iterdir()),
                   timeout_seconds=20, what="it is open")  # fmt: skip
        wait_until(lambda: _is_locked(disk), timeout_seconds=20, what="QEMU has its lock")
        with pytest.raises(Conflict, match="lock"):
            grow(disk, 2 * GIB)
        assert virtual_size_bytes(disk) == GIB
    finally:
        user.kill()
        user.wait(10)
    grow(disk, 2 * GIB)
    assert virtual_size_bytes(disk) == 2 * GIB


def _is_locked(disk: Path) -> bool:
    return (
        subprocess.run(["qemu-img", "resize", "-q", disk, "1G"], capture_output=True, check=False, timeout=20).returncode != 0
    )


def test_what_is_no_disk_is_refused_and_what_is_gone_is_a_conflict(tmp_path: Path) -> None:
    strange = tmp_path / "disk.qcow2"
    strange.write_bytes(b"no disk at all")
    assert virtual_size_bytes(strange) == 0
    with pytest.raises(HypervisorRejected) as refused:
        grow(strange, GIB)
    assert "\n" not in str(refused.value) and "made larger" in str(refused.value)
    assert strange.read_bytes() == b"no disk at all"
    assert virtual_size_bytes(tmp_path / "nothing") == 0
    with pytest.raises(Conflict, match="went away"):
        grow(tmp_path / "nothing", GIB)


def test_a_header_that_leads_elsewhere_leads_nowhere(disk: Path, tmp_path: Path) -> None:
    """A guest that broke out of its QEMU may have written it: nothing of another file comes into the disk."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's own" + bytes(1 << 20))
    secret.chmod(0o600)
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", secret, disk], check=True, timeout=20)
    grow(disk, 2 * GIB)
    assert virtual_size_bytes(disk) == 2 * GIB
    assert b"the host's own" not in disk.read_bytes()


def test_disks_say_whether_one_is_as_large_as_asked_for(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(4 << 20))
    disks, uuid = Disks(tmp_path / "instances"), uuid4()
    assert disks.is_large_enough(uuid, 5), "there is none"
    disks.build(uuid, CachedImage(base, "raw", 4 << 20, "0" * 64), 1)
    assert (disks.is_large_enough(uuid, 1), disks.is_large_enough(uuid, 2)) == (True, False)
    disks.grow(uuid, 2)
    assert disks.is_large_enough(uuid, 2)
