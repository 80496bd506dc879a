"""Small disks with a Linux system's files on them that never boots, for tests of what looks into disks and changes them.

Made by ``sfdisk`` and ``mke2fs`` without a loop device or a mount; read by ``debugfs``, which is none of libguestfs' programs.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ecompute.appliance import Appliance
from ecompute.guestfs_tools import GuestfsTools
from tests.support.disk_images import MIB, qemu_img
from tests.support.processes import ROOT
from tests.support.small_guest import make_small_guest

SECTOR = 512
_BOOT_CODE_BYTES = 440  # what is behind it is the partition table's
START_MIB = 1
KERNEL = "6.1.0-test"
SYSTEM = {
    "etc/os-release": 'ID=debian\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    "etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n",
    "etc/hostname": "template\n",
    "bin/sh": "#!\n",
    "usr/bin/true": "#!\n",
    f"lib/modules/{KERNEL}/modules.dep": "kernel/drivers/block/virtio_blk.ko:\nkernel/drivers/net/virtio_net.ko:\n",
}
"""What libguestfs takes for a Debian with virtio's drivers and without cloud-init."""


def _run(command: list[str | Path], *, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def make_disk(
    path: Path, files: Mapping[str, str], *, size_mib: int = 24, label: str = "dos", swap_mib: int = 0, boots: bool = False
) -> Path:  # fmt: skip
    """A qcow2 at *path* with one partition that holds *files*; behind it, with *swap_mib*, another one.

    With *boots* its first sector is the small guest's system (``small_guest``), which does not look at the partition.
    """
    tree, raw = path.with_suffix(".tree"), path.with_suffix(".raw")
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    root_mib = size_mib - START_MIB - 1 - swap_mib
    with raw.open("wb") as output:
        output.truncate(size_mib * MIB)
    table = f"label: {label}\nstart=2048, size={root_mib * MIB // SECTOR}, type=L\n"
    table += f"size={swap_mib * MIB // SECTOR}, type=S\n" if swap_mib else ""
    _run(["sfdisk", "-q", raw], stdin=table)
    _run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", f"offset={START_MIB * MIB},root_owner=0:0", "-d", tree, raw,
         str(root_mib * MIB // 4096)]
    )  # fmt: skip
    if boots:
        code = make_small_guest(path.with_suffix(".boot")).read_bytes()[:_BOOT_CODE_BYTES]
        with raw.open("r+b") as output:
            output.write(code)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    path.chmod(0o644)
    return path


class Opened:
    """What is on the disk *path*, a qcow2, as it is now."""

    def __init__(self, path: Path) -> None:
        self._raw = path.with_suffix(".seen")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, self._raw)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.unlink()

    def partitions(self) -> list[dict[str, Any]]:
        found: dict[str, Any] = json.loads(_run(["sfdisk", "--json", self._raw]))
        return found["partitiontable"]["partitions"]  # type: ignore[no-any-return]

    def check(self) -> None:
        """The partition table and the file system are in order."""
        assert "No errors detected" in _run(["sfdisk", "--verify", self._raw])
        part = self._raw.with_suffix(".part")
        first = self.partitions()[0]
        with self._raw.open("rb") as source, part.open("wb") as target:
            source.seek(first["start"] * SECTOR)
            target.write(source.read(first["size"] * SECTOR))
        _run(["e2fsck", "-f", "-n", part])
        part.unlink()

    def size_mib(self) -> int:
        """Of the first partition's file system."""
        lines = self._debugfs("show_super_stats -h").splitlines()
        blocks = next(line for line in lines if line.startswith("Block count:"))
        return int(blocks.split()[-1]) * 4096 // MIB

    def names(self, folder: str) -> set[str]:
        """What is in *folder*."""
        lines = self._debugfs(f"ls -p {folder}").splitlines()
        return {line.split("/")[5] for line in lines if line.startswith("/")} - {".", ".."}

    def read(self, path: str) -> str:
        return self._debugfs(f"cat {path}")

    def mode_and_owner(self, path: str) -> tuple[int, int, int]:
        """Permissions, user and group."""
        folder, _, name = path.rpartition("/")
        lines = self._debugfs(f"ls -p {folder or '/'}").splitlines()
        _, _, mode, user, group, *_ = next(
            line.split("/") for line in lines if line.startswith("/") and line.split("/")[5] == name
        )
        return stat.S_IMODE(int(mode, 8)), int(user), int(group)

    def _debugfs(self, request: str) -> str:
        return _run(["debugfs", "-R", request, f"{self._raw}?offset={START_MIB * MIB}"])


def use_appliance_kernel() -> None:
    """Have what is started from here on make the appliance with the kernel that setup-host.sh has unpacked."""
    home = ROOT / ".cache/appliance-kernel"
    assert home.is_dir(), "there is no kernel for libguestfs: packaging/setup-host.sh --extra test run demo test guestfs"
    os.environ["SUPERMIN_KERNEL"] = str(next((home / "boot").glob("vmlinuz-*")))
    os.environ["SUPERMIN_MODULES"] = str(next((home / "lib/modules").iterdir()))


@pytest.fixture(scope="session")
def appliance_kernel() -> None:
    use_appliance_kernel()


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A folder that every user can pass to, as a state directory is; pytest shuts its own, at the start of each run of anybody."""
    with tempfile.TemporaryDirectory(prefix="etcd-compute-disks-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="session")
def tools(appliance_kernel: None, open_folder: Path) -> GuestfsTools:
    """libguestfs as a host without KVM has it."""
    return GuestfsTools(
        Appliance(open_folder / "guestfs", open_folder / "run", uses_kvm=False, deadline_seconds=240)
    )  # fmt: skip
