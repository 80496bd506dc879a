"""Disks that are looked into and changed by a real appliance, before they are anybody's."""

from __future__ import annotations

from pathlib import Path

from ecompute.guestfs_tools import GuestfsTools
from tests.support.linux_disks import SYSTEM, Opened, make_disk

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
