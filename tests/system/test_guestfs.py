"""Disks that are looked into and changed by a real appliance, before they are anybody's."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from common.disk_content import DiskContent, GuestFile
from common.errors import Cancelled, Permanent
from common.nics import Address, AddressSource
from ecompute.appliance import Appliance
from ecompute.guest_system import System
from ecompute.guestfs_tools import DiskChanges, GuestfsTools
from tests.support.disk_images import qemu_img
from tests.support.linux_disks import SYSTEM, Opened, make_disk
from tests.support.processes import wait_until

# What makes a disk that of one guest.
OWN = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/ssh/ssh_host_ed25519_key": "SECRET-HOST-KEY\n",
    "etc/ssh/ssh_host_ed25519_key.pub": "ssh-ed25519 AAAA\n",
    "etc/dropbear/host_key": "SECRET-HOST-KEY\n",
    "var/lib/cloud/instances/i-1/sem/config_ssh": "done\n",
    "var/lib/cloud/data/instance-id": "i-1\n",
    "var/lib/dhcp/dhclient.eth0.leases": "lease {}\n",
    "var/log/syslog": "what the guest did\n",
    "var/log/journal/0123/system.journal": "what the guest did\n",
    "var/lib/systemd/random-seed": "random\n",
    "root/.ssh/authorized_keys": "ssh-ed25519 AAAA owner\n",
    "root/.bash_history": "history\n",
    "tmp/left": "over\n",
}
KEPT = {"etc/ssh/sshd_config": "Port 22\n", "srv/data": "stays\n", "var/log/empty/keep": ""}


def test_a_sealed_disk_has_nothing_of_the_guest_that_it_was(tools: GuestfsTools, open_folder: Path) -> None:
    disk = make_disk(open_folder / "own.qcow2", {**SYSTEM, **OWN, **KEPT})
    system = tools.seal(disk, what="own.qcow2")
    assert system.name == "Debian GNU/Linux 12 (bookworm)"
    with Opened(disk) as seen:
        seen.check()
        assert seen.names("/etc/ssh") == {"sshd_config"}
        assert seen.names("/etc/dropbear") == set()
        assert seen.read("/etc/machine-id") == ""
        assert "machine-id" in seen.names("/etc"), "systemd wants an empty one"
        for folder in ("/var/lib/cloud/instances", "/var/lib/cloud/data", "/var/lib/dhcp", "/var/log/journal", "/tmp"):
            assert seen.names(folder) == set(), folder
        assert seen.read("/var/log/syslog") == ""
        assert seen.names("/root/.ssh") == set()
        assert ".bash_history" not in seen.names("/root")
        assert seen.read("/srv/data") == "stays\n"
    assert b"SECRET-HOST-KEY" not in disk.read_bytes(), "nor in blocks that are free"
    assert disk.stat().st_uid == 0
    assert list((open_folder / "run").iterdir()) == []


# -- disks that are made different from their image --------------------------------------------------------------------------


def overlay(base: Path, path: Path, size_mib: int) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path, f"{size_mib}M")
    return path


def changes(content: DiskContent, size_mib: int) -> DiskChanges:
    fixed = Address(
        "lan", "52:54:00:00:00:02", "10.0.0.7", 24, "10.0.0.1", bridge="br0", source=AddressSource.STATIC,
    )  # fmt: skip
    return DiskChanges(content, size_mib << 20, hostname="web", keys=("ssh-ed25519 AAAA new",), cards=(fixed,))


def a_file(path: str, text: str, mode: int = 0o644, owner: int = 0) -> GuestFile:
    return GuestFile(path, base64.b64encode(text.encode()).decode(), mode, owner, owner)


def test_a_disk_has_the_size_files_and_identity_that_were_asked_for(tools: GuestfsTools, open_folder: Path) -> None:
    files = {
        "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 template\n", "etc/network/interfaces": "auto eth0\niface eth0 inet dhcp\n",
        "usr/sbin/ifup": "#!\n", "root/.ssh/authorized_keys": "ssh-ed25519 AAAA image\n",
    }  # fmt: skip
    base = make_disk(open_folder / "base.qcow2", {**SYSTEM, **files}, label="gpt")
    disk = overlay(base, open_folder / "disk.qcow2", 200)
    content = DiskContent(
        resize=True, identity=True, files=(a_file("/etc/app/key", "secret\n", 0o600, 33), a_file("/etc/hostname", "other\n"))
    )
    system = tools.customize(disk, changes(content, 200), None, what="the disk of web")
    assert (system.root, system.distribution, system.has_cloud_init) == ("/dev/sda1", "debian", False)
    with Opened(disk) as seen:
        seen.check()
        (part,) = seen.partitions()
        assert part["start"] + part["size"] == 199 * 2048 + 1, "as far as sfdisk leaves room behind it"
        assert seen.size_mib() == 198
        assert seen.read("/etc/app/key") == "secret\n"
        assert seen.mode_and_owner("/etc/app/key") == (0o600, 33, 33)
        assert seen.read("/etc/hostname") == "other\n", "what is said explicitly counts"
        assert seen.read("/etc/hosts") == "127.0.0.1 localhost\n127.0.1.1 web\n"
        assert seen.read("/root/.ssh/authorized_keys") == "ssh-ed25519 AAAA image\nssh-ed25519 AAAA new\n"
        assert seen.mode_and_owner("/root/.ssh/authorized_keys") == (0o600, 0, 0)
        assert "address 10.0.0.7/24" in seen.read("/etc/network/interfaces")
        assert "eth0" in seen.read("/etc/network/interfaces.before-etcd-compute")
    assert disk.stat().st_uid == 0
    assert not [path for path in open_folder.iterdir() if path.name == "base.raw"]


def test_what_cannot_grow_or_be_written_to_says_why(tools: GuestfsTools, open_folder: Path) -> None:
    base = make_disk(open_folder / "swap.qcow2", SYSTEM, swap_mib=4)
    disk = overlay(base, open_folder / "swapped.qcow2", 64)
    known = System(root="/dev/sda1", kind="linux", has_cloud_init=True)
    with pytest.raises(Permanent, match=r"partition 1, with its root, is not the last on the disk: 2 is behind it") as error:
        tools.customize(disk, changes(DiskContent(resize=True), 64), known, what="the disk of web")
    assert error.value.reason == "CannotChange"
    with pytest.raises(Permanent, match="/etc is a folder on it; name the file"):
        content = DiskContent(files=(a_file("/etc", "x"),))
        tools.customize(disk, changes(content, 64), known, what="the disk of web")
    assert list((open_folder / "run").iterdir()) == []


# -- an appliance that does not end, or ends too soon ------------------------------------------------------------------------


def processes_of_nobody() -> set[int]:
    return {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _user_of(path) == 65534}


def _user_of(process: Path) -> int | None:
    try:
        return process.stat().st_uid
    except FileNotFoundError:
        return None


class Doomed(GuestfsTools):
    """Whose QEMU is sent a signal as soon as it runs."""

    def __init__(self, folder: Path, with_signal: int, deadline_seconds: float) -> None:
        super().__init__(Appliance(folder / "guestfs", folder / "doomed", uses_kvm=False, deadline_seconds=deadline_seconds))
        self._signal, self.struck = with_signal, threading.Event()
        self._before = processes_of_nobody()

    def strike(self) -> None:
        def is_running() -> bool:
            return bool(self.emulators())

        wait_until(is_running, timeout_seconds=60, what="QEMU of the appliance runs", evidence=lambda: "")
        for number in self.emulators():
            os.kill(number, self._signal)
        self.struck.set()

    def emulators(self) -> list[int]:
        def is_emulator(number: int) -> bool:
            with contextlib.suppress(OSError):
                return "qemu-system" in Path(f"/proc/{number}/cmdline").read_text().split("\0")[0]
            return False

        return [number for number in processes_of_nobody() - self._before if is_emulator(number)]

    def left(self) -> set[int]:
        return processes_of_nobody() - self._before


def test_an_appliance_that_crashes_is_told_from_a_disk_that_cannot_be_changed(
    appliance_kernel: None, open_folder: Path
) -> None:  # fmt: skip
    disk = overlay(make_disk(open_folder / "crash.qcow2", SYSTEM), open_folder / "crash-disk.qcow2", 64)
    tools = Doomed(open_folder, signal.SIGKILL, 120.0)
    striking = threading.Thread(target=tools.strike)
    striking.start()
    with pytest.raises(Permanent, match="the disk of web cannot be prepared: libguestfs' appliance") as error:
        tools.customize(disk, changes(DiskContent(resize=True), 64), None, what="the disk of web")
    striking.join()
    assert error.value.reason == "ApplianceFailed"
    wait_until(lambda: not tools.left(), timeout_seconds=60, what="all of it has ended", evidence=lambda: str(tools.left()))
    assert list((open_folder / "doomed").iterdir()) == []
    assert disk.stat().st_uid == 0


def test_it_ends_when_nobody_wants_it_any_more(appliance_kernel: None, open_folder: Path) -> None:
    disk = overlay(make_disk(open_folder / "unwanted.qcow2", SYSTEM), open_folder / "unwanted-disk.qcow2", 64)
    tools = Doomed(open_folder, signal.SIGCONT, 120.0)
    with pytest.raises(Cancelled):
        tools.customize(
            disk,
            changes(DiskContent(resize=True), 64),
            None,
            what="the disk of web",
            is_cancelled=lambda: bool(tools.emulators()),
        )
    wait_until(lambda: not tools.left(), timeout_seconds=60, what="all of it has ended", evidence=lambda: str(tools.left()))
