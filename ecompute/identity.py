"""Who this host is: the ids that tell one machine, one boot and one process from another. Reads files, remembers nothing.

A provider uuid is computed rather than stored, so that a lost state directory or a new host name changes nothing; from
two sources, because cloned machines share the first.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import UUID, uuid5

from common.errors import ConfigError

PROVIDER_NAMESPACE = UUID("6f1c5a5e-55f6-5b2e-9c0c-3a3f0e7a7c11")  # of etcd-compute's own making; never change it


def machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """The installation's id (machine-id(5)), or "" where there is none, as in some containers."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def boot_id(path: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """The id of this boot of the kernel (random(4)); changes with every boot, and only then."""
    return path.read_text(encoding="ascii").strip()


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The kernel's names of what the CPU can: "flags" on x86, "Features" on ARM."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def host_name() -> str:
    return socket.gethostname() or os.uname().nodename


def provider_uuid(configured: UUID | None, machine: str, libvirt_host_uuid: str) -> UUID:
    """The uuid of this host's resource provider: *configured*, else made of both ids.

    Raises:
        ConfigError: neither id is there to make it from.
    """
    if configured is not None:
        return configured
    if not machine and not libvirt_host_uuid:
        raise ConfigError("this host has neither /etc/machine-id nor a libvirt host uuid: set `uuid:` in compute.yaml")
    return uuid5(PROVIDER_NAMESPACE, f"{machine}/{libvirt_host_uuid}")
