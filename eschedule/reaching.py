"""How this machine reaches a guest's host: which libvirt URI, and programs of the system that talk to it for the user.

A host's name comes from etcd, where each host writes its own; so a name that could be taken for an option, or for more than a
name, is not put into a command.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from common.errors import ConfigError, EcomputeError, Permanent
from common.model import HostRecord, Phase
from common.text import quoted
from eschedule.guest_post import refuse_dead
from eschedule.listing import InstanceRow
from eschedule.session import Session

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_PHASES_UP = (Phase.RUNNING, Phase.PAUSED, Phase.REBOOTING, Phase.STOPPING)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def refuse_down(row: InstanceRow) -> None:
    """Raises: Permanent: *row* does not run. Transient: its host is dead."""
    refuse_dead(row)
    if row.phase in (Phase.SUSPENDED, Phase.SUSPENDING):
        raise Permanent(f"{row.name} is suspended; first: eschedule resume {row.name}", "NotRunning")
    if row.phase not in _PHASES_UP:
        raise Permanent(
            f"{row.name} does not run: it is {row.phase}{f' ({row.reason})' if row.reason else ''}; look: eschedule show "
            f"{row.name}",
            "NotRunning",
        )


def refuse_still(row: InstanceRow) -> None:
    """Raises: Permanent: nothing in *row* answers, since it does not run, or is paused. Transient: its host is dead."""
    refuse_down(row)
    if row.phase == Phase.PAUSED:
        why, do = (f" ({row.reason})", "look: eschedule show") if row.reason else ("", "first: eschedule unpause")
        raise Permanent(f"{row.name} is paused{why}, and hears nothing; {do} {row.name}", "NotRunning")


def libvirt_uri(session: Session, row: InstanceRow, given: str | None) -> str:
    """The URI of the libvirt that runs *row*: as *given*, its host's own where that is this machine, else as configured.

    Raises:
        ConfigError: *given* is none, or the host's name cannot be in one.
    """
    if given is not None:
        if not re.fullmatch(r"[a-z]+(\+[a-z]+)?://\S*", given):
            raise ConfigError(f"--uri {quoted(given)} is none of libvirt; it looks like qemu+ssh://root@node1/system")
        return given
    item = session.store.get(session.keys.host(row.host.provider))
    if item is not None:
        try:
            record = HostRecord.from_json(item.value)
        except EcomputeError:
            record = None
        if record is not None and record.boot_id == own_boot_id():
            return record.libvirt_uri
    return for_host(session.config.hosts.libvirt_uri, row.host.name)


def for_host(template: str, host: str) -> str:
    """*template* with the name of *host* in it.

    Raises:
        ConfigError: the name is none that can be put there.
    """
    if "{host}" in template and not _HOST.fullmatch(host):
        raise ConfigError(f"the host's name {quoted(host)} cannot be in an address; say where it is by an option")
    return template.replace("{host}", host)


def own_boot_id(path: Path = BOOT_ID) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def program(name: str, package: str) -> str:
    """Where the program *name* is.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"{name} is not installed on this machine; install it: apt-get install {package}")
    return found
