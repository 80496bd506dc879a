"""Takes away from a disk what made it the disk of one guest, so that others can begin as copies of it: as virt-sysprep does.

What goes: the machine's id, ssh's host keys, what cloud-init remembers, logs, leases of addresses, seeds of random numbers,
temporary files, histories of shells, and the keys that let its owner in. What is secret is overwritten before it goes, and
blocks that are free afterwards are given back, so that it is not in the image all the same. Runs in the child of
``guestfs_tools``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ecompute.guest_system import Handle, System, mount

# Patterns of the appliance's glob. Folders among them go with all that is in them.
_SECRETS = (
    "/etc/ssh/ssh_host_*", "/etc/dropbear/*key*", "/var/lib/systemd/credential.secret", "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed", "/var/lib/random-seed", "/var/lib/misc/random-seed", "/root/.*_history",
    "/home/*/.*_history", "/var/lib/cloud/instances/*", "/var/lib/cloud/seed/*", "/run/cloud-init/*",
)  # fmt: skip
_REMOVED = (
    *_SECRETS, "/var/lib/dbus/machine-id",
    # cloud-init takes the next guest for a new one only where it remembers none
    "/var/lib/cloud/instance", "/var/lib/cloud/data/*", "/var/lib/cloud/sem/*", "/var/lib/cloud/handlers/*",
    "/var/lib/instance-id", "/etc/netplan/50-cloud-init.yaml", "/etc/network/interfaces.d/50-cloud-init*",
    "/etc/NetworkManager/system-connections/cloud-init-*", "/etc/systemd/network/10-cloud-init-*",
    "/etc/udev/rules.d/70-persistent-net.rules",
    "/var/lib/dhcp/*", "/var/lib/dhclient/*", "/var/lib/dhcpcd/*", "/var/lib/dhcpcd5/*", "/var/lib/NetworkManager/*",
    "/var/lib/systemd/network/*", "/var/log/journal/*", "/var/crash/*", "/var/spool/mail/*",
    *(f"{folder}/{names}" for folder in ("/tmp", "/var/tmp") for names in ("*", ".[!.]*")),  # noqa: S108 - of the guest
    "/root/.lesshst", "/home/*/.lesshst", "/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*",
    "/root/.ssh/known_hosts*", "/home/*/.ssh/known_hosts*",
)  # fmt: skip
_EMPTIED = "/etc/machine-id"  # systemd fills an empty one at the next boot, and takes offence at one that is gone
_LOGS = "/var/log"
_MOST_OVERWRITTEN_BYTES = 1 << 20  # of one file; secrets are small, and the appliance takes no more at once


def seal(handle: Handle, system: System) -> None:
    """Make the disk's system one that has never been a guest; it is mounted afterwards."""
    mount(handle, system)
    for path in _files(handle, _SECRETS):
        _overwrite(handle, path)
    handle.sync()  # else they would be removed before the zeros were written
    for pattern in _REMOVED:
        for path in handle.glob_expand(pattern):
            handle.rm_rf(path.rstrip("/"))
    for path in (_EMPTIED, *_files(handle, (_LOGS,))):
        if handle.is_file(path):
            handle.truncate(path)
    handle.sync()
    for where in ("/", *(where for where, _ in system.mounts)):
        with contextlib.suppress(RuntimeError):  # of a kind that cannot give back
            handle.fstrim(where)


def _files(handle: Handle, patterns: Iterable[str]) -> Iterator[str]:
    """All plain files that the patterns name, and that are below the folders that they name."""
    for pattern in patterns:
        for found in handle.glob_expand(pattern):
            path = found.rstrip("/")
            below = handle.find(path) if handle.is_dir(path) else [""]
            yield from (one for one in (f"{path}/{name.lstrip('/')}".rstrip("/") for name in below) if handle.is_file(one))


def _overwrite(handle: Handle, path: str) -> None:
    size = min(handle.filesize(path), _MOST_OVERWRITTEN_BYTES)
    if size:
        handle.pwrite(path, bytes(size), 0)
