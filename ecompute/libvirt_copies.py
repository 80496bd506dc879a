"""Copies of a running guest's disk at one moment, by libvirt's backup jobs. One of the modules that import libvirt.

QEMU writes what the disk held when the job began into a file of its own, while the guest runs on and writes. Called by
``libvirt_driver`` alone, which translates the errors that leave here.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt

from common.errors import Conflict, HypervisorRejected
from ecompute.hypervisor import Copying, CopyState
from ecompute.libvirt_errors import is_code, unless

FREEZE_SECONDS = 10  # that a guest may take to write out what it has in memory
THAW_TRIES = 3
# No agent, one that hangs, or one that cannot do it.
_NO_AGENT = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_FAILED,
    libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_INTERNAL_ERROR,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", -1), getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", -1),
)  # fmt: skip
_NO_SUCH_JOB = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED)


def begin(handle: libvirt.virDomain, disk: Path, target: Path) -> Copying:
    """Begin to copy *disk*, as it is now, into the new qcow2 file *target*.

    Raises:
        Conflict: the guest has no such disk now.
    """
    text = _request(handle.XMLDesc(0), disk, target)
    with unless(*_NO_SUCH_JOB):
        handle.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)  # what is told of an earlier job is told once
    with _frozen(handle) as is_frozen:
        try:
            handle.backupBegin(text, None, 0)
        except libvirt.libvirtError as error:
            if is_code(error, libvirt.VIR_ERR_NO_SUPPORT):
                return Copying.NOT_POSSIBLE
            raise
    return Copying.FROZEN if is_frozen else Copying.UNFROZEN


def state(handle: libvirt.virDomain) -> CopyState:
    """How the copy that was begun last goes; how it ended is told once."""
    with unless(*_NO_SUCH_JOB):
        now = handle.jobStats()
        if now.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE:
            return CopyState(True, now.get("disk_processed", 0), now.get("disk_total", 0))
        ended = handle.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        kind = ended.get("type", libvirt.VIR_DOMAIN_JOB_NONE)
        if kind == libvirt.VIR_DOMAIN_JOB_COMPLETED:
            return CopyState(False, ended.get("disk_processed", 0), ended.get("disk_total", 0))
        if kind != libvirt.VIR_DOMAIN_JOB_NONE:
            return CopyState(False, problem=ended.get("errmsg") or "it was ended")
    return CopyState(False, problem="the guest went down, or libvirt was restarted")


def end(handle: libvirt.virDomain) -> None:
    """Have no copy go on, and no file system of the guest be frozen."""
    with unless(*_NO_SUCH_JOB):
        if handle.jobStats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP:
            handle.abortJob()
    with unless(*_NO_SUCH_JOB, *_NO_AGENT), _patient(handle):
        handle.fsThaw()


@contextlib.contextmanager
def _frozen(handle: libvirt.virDomain) -> Iterator[bool]:
    """The guest's file systems hold all that was written to them, and are still, where its agent does that."""
    is_frozen = False
    with _patient(handle):
        with unless(*_NO_AGENT, *_NO_SUCH_JOB):
            is_frozen = handle.fsFreeze() > 0
        try:
            yield is_frozen
        finally:
            _thaw(handle, is_frozen=is_frozen)


def _thaw(handle: libvirt.virDomain, *, is_frozen: bool) -> None:
    """Thaw also where freezing had no answer: it may have been done."""
    for _ in range(THAW_TRIES if is_frozen else 1):
        with unless(*_NO_AGENT, *_NO_SUCH_JOB):
            handle.fsThaw()
            return
    if is_frozen and handle.isActive():
        raise HypervisorRejected(f"the file systems of domain {handle.name()} were frozen, and its agent does not thaw them")


@contextlib.contextmanager
def _patient(handle: libvirt.virDomain) -> Iterator[None]:
    """No answer of the guest's agent is waited for for ever."""
    with unless(*_NO_AGENT, *_NO_SUCH_JOB):  # an older libvirt, or a kind of hypervisor without agents
        handle.agentSetResponseTimeout(FREEZE_SECONDS, 0)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            handle.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


def _request(text: str, disk: Path, target: Path) -> str:
    """What has *disk* alone copied, of the guest that *text* describes."""
    root = ET.Element("domainbackup", {"mode": "push"})
    disks, is_there = ET.SubElement(root, "disks"), False
    for found in ET.fromstring(text).iterfind("devices/disk"):  # noqa: S314 - from the local libvirtd
        source, name = found.find("source"), found.find("target")
        if name is None:
            continue
        is_it = source is not None and source.get("file") == str(disk)
        if not is_it:
            ET.SubElement(disks, "disk", {"name": name.get("dev", ""), "backup": "no"})
            continue
        is_there = True
        copied = ET.SubElement(disks, "disk", {"name": name.get("dev", ""), "backup": "yes", "type": "file"})
        ET.SubElement(copied, "target", {"file": str(target)})
        ET.SubElement(copied, "driver", {"type": "qcow2"})
    if not is_there:
        raise Conflict(f"the guest does not run with {disk}")
    return ET.tostring(root, encoding="unicode")
