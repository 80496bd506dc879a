"""The tiny image as one that asks nobody for anything: it is who its disk says, and its disk stays as it is.

For tests of what a host writes to disks: no metadata, no growth of partition or file system. Made by ``debugfs`` and ``cpio``'s
format alone, without a mount.
"""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

from tests.support.disk_images import MIB, qemu_img

RC = """#!/bin/sh
export PATH=/bin:/sbin:/usr/sbin:/usr/bin
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -o remount,rw /
ip link set lo up
ip link set eth0 up
hostname "$(cat /etc/hostname)"
udhcpc -t 10 -T 1 -A 1 -b -i eth0 -s /usr/share/udhcpc/default.script >/var/log/udhcpc.log 2>&1
[ -f /etc/dropbear/host_key ] || dropbearkey -t ed25519 -f /etc/dropbear/host_key >/dev/null 2>&1
dropbear -r /etc/dropbear/host_key -s -E 2>>/var/log/dropbear.log
modprobe evdev && modprobe button && acpid
echo "PLAIN-READY $(hostname)" >/dev/console
"""
_GROWS, _STAYS = b"\ngrow_partition\n", b"\n: as it is now\n"


def make_plain_image(tiny: Path, path: Path) -> Path:
    """Write the qcow2 to *path*."""
    raw, part = path.with_suffix(".raw"), path.with_suffix(".part")
    qemu_img("convert", "-O", "raw", tiny, raw)
    with raw.open("rb") as disk:
        disk.seek(MIB)
        part.write_bytes(disk.read())
    rc, initrd = path.with_suffix(".rc"), path.with_suffix(".initrd")
    rc.write_text(RC)
    _debugfs(part, f"dump /boot/initrd {initrd}")
    unpacked = gzip.decompress(initrd.read_bytes())
    assert unpacked.count(_GROWS) == 1 and len(_GROWS) == len(_STAYS)
    initrd.write_bytes(gzip.compress(unpacked.replace(_GROWS, _STAYS), 6))
    for source, target, mode in ((rc, "/etc/rc", "0100755"), (initrd, "/boot/initrd", "0100644")):
        _debugfs(part, f"rm {target}", f"write {source} {target}", f"set_inode_field {target} mode {mode}")
    with raw.open("r+b") as disk:
        disk.seek(MIB)
        disk.write(part.read_bytes())
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    for left in (raw, part, rc, initrd):
        left.unlink()
    path.chmod(0o644)
    return path


def _debugfs(device: Path, *requests: str) -> None:
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", device], input="\n".join(requests), capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
    assert done.returncode == 0 and not said, f"debugfs {requests}: {done.stderr}"
