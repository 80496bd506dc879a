"""Writes to a disk what its request wants on it: files, and, where no cloud-init will ask for it, host name, keys and network.

Runs in the child of ``guestfs_tools``. The appliance follows the disk's own links, and sees no file but those on it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ecompute.guest_network import Manager, files_for
from ecompute.guest_system import Handle, Refused, System, mount

_ENABLED = "/etc/systemd/system/multi-user.target.wants"
_SAVED = ".before-etcd-compute"
_MOST_KEYS_BYTES = 1 << 20


def write(
    handle: Handle, system: System, *, files: Sequence[Mapping[str, Any]], identity: Mapping[str, Any] | None
) -> None:  # fmt: skip
    """Write *identity* and then *files*, which may replace parts of it. The system is mounted afterwards.

    Raises:
        Refused: it holds no Linux, or one of the paths is a folder there.
    """
    if system.kind != "linux":
        raise Refused(f"it holds {system.name or 'no system that is known'}; files can be written to Linux only")
    mount(handle, system)
    if identity and not system.has_cloud_init:
        _write_identity(handle, identity)
    for file in files:
        owner = (file["user_id"], file["group_id"])
        _write(handle, file["path"], base64.b64decode(file["content_base64"]), file["mode"], owner)
    _relabel(handle)


def _write(handle: Handle, path: str, content: bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    if handle.is_dir(path, followsymlinks=True):
        raise Refused(f"{path} is a folder on it; name the file")
    handle.mkdir_p(path.rpartition("/")[0] or "/")
    handle.write(path, content)
    handle.chown(*owner, path)
    handle.chmod(mode, path)


def _write_identity(handle: Handle, identity: Mapping[str, Any]) -> None:
    hostname, keys = identity["hostname"], identity["keys"]
    _write(handle, "/etc/hostname", f"{hostname}\n".encode())
    _name_in_hosts(handle, hostname)
    if keys:
        _let_in(handle, keys)
    manager = _manager(handle)
    if manager and identity["cards"]:
        for path, (text, mode) in files_for(manager, identity["cards"]).items():
            if handle.is_file(path) and not handle.exists(f"{path}{_SAVED}"):
                handle.cp_a(path, f"{path}{_SAVED}")
            if handle.is_symlink(path):
                handle.rm(path)  # /etc/resolv.conf, to a file that is made anew at each boot
            _write(handle, path, text.encode(), mode)


def _name_in_hosts(handle: Handle, hostname: str) -> None:
    """Debian's own line: without it the host's name is looked for in the network."""
    path = "/etc/hosts"
    if not handle.is_file(path):
        return
    lines = [line for line in handle.read_lines(path) if line.split()[:1] != ["127.0.1.1"]]
    short = hostname.partition(".")[0]
    lines.append(f"127.0.1.1 {hostname}{f' {short}' if short != hostname else ''}")
    _write(handle, path, ("\n".join(lines) + "\n").encode())


def _let_in(handle: Handle, keys: Sequence[str]) -> None:
    """Let root in with *keys*, beside those that the image lets in."""
    folder, path = "/root/.ssh", "/root/.ssh/authorized_keys"
    if not handle.is_dir(folder):
        handle.mkdir_p(folder)
        handle.chmod(0o700, folder)
    known = handle.read_file(path) if handle.is_file(path) and handle.filesize(path) <= _MOST_KEYS_BYTES else b""
    lines = known.decode("utf-8", "surrogateescape").splitlines()
    lines += [key for key in keys if key not in lines]
    _write(handle, path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"), 0o600)


def _manager(handle: Handle) -> Manager | None:
    """What configures the network there; None where that cannot be told, and the image's own configuration stays."""
    for manager in (Manager.NETWORK_MANAGER, Manager.NETWORKD):
        unit = f"{_ENABLED}/{manager}.service"
        if handle.is_symlink(unit) or handle.is_file(unit):
            return manager
    is_ifupdown = handle.is_file("/etc/network/interfaces") and any(
        handle.is_file(path, followsymlinks=True) for path in ("/usr/sbin/ifup", "/sbin/ifup")
    )
    return Manager.IFUPDOWN if is_ifupdown else None


def _relabel(handle: Handle) -> None:
    """Have SELinux, where it is in force, label at the next boot what was written: nobody may read what has no label."""
    config = "/etc/selinux/config"
    if handle.is_file(config) and handle.egrep("^SELINUX=(enforcing|permissive)", config):
        handle.touch("/.autorelabel")
