"""Internal snapshots of the disk of a guest that runs, and its file systems held still meanwhile; a part of ``libvirt_driver``.

libvirt has no call for it: its own internal snapshots stop the guest and keep its memory as well, its others make another file
that must be merged again. So QEMU is asked itself, by the monitor that libvirt lends; libvirt marks such a domain as tainted
("custom-monitor"), which changes nothing else. Only this module says anything to a monitor, and nothing that a guest chose.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from common.errors import Conflict, HypervisorRejected
from ecompute.hypervisor import Frozen
from ecompute.libvirt_errors import is_code, is_unavailable, one_line

AGENT_SECONDS = 10  # that a guest's agent may take to answer; it waits for everything to be on the disk
_AGENT_IS_LATE = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED)
_MOST_MESSAGE = 300
_IS_COPIED = "Need a root block node"  # QEMU's words while a backup job stands between the guest and its disk


def take(handle: libvirt.virDomain, disk: Path, tag: str) -> None:
    """Note the state of *disk* as *tag*; one of that name there is an error of QEMU's."""
    _ask(handle, "blockdev-snapshot-internal-sync", {"device": _node_of(handle, disk), "name": tag})


def drop(handle: libvirt.virDomain, disk: Path, tag: str) -> None:
    """Give up the snapshot *tag* of *disk*; one that is not there is success."""
    node = _node_of(handle, disk)
    try:
        _ask(handle, "blockdev-snapshot-delete-internal-sync", {"device": node, "name": tag})
    except HypervisorRejected as error:
        if "does not exist" not in str(error):
            raise


def freeze(handle: libvirt.virDomain) -> Frozen:
    try:
        handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
        handle.fsFreeze()
    except libvirt.libvirtError as error:
        if is_unavailable(error):
            raise
        return Frozen.UNCERTAIN if _is_late(error) else Frozen.NO
    return Frozen.YES


def thaw(handle: libvirt.virDomain) -> None:
    try:
        handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
        handle.fsThaw()
    except libvirt.libvirtError as error:
        if _is_late(error):
            raise Conflict(f"the guest's agent does not let it write again: {one_line(error)}") from error
        raise


def _is_late(error: libvirt.libvirtError) -> bool:
    """Whether there is an agent, which does not answer in time."""
    return is_code(error, *_AGENT_IS_LATE) and "not connected" not in one_line(error)


def _node_of(handle: libvirt.virDomain, disk: Path) -> str:
    """QEMU's name of *disk*.

    Raises:
        Conflict: the guest has no such disk.
    """
    for node in _ask(handle, "query-named-block-nodes", {"flat": True}):
        if node.get("drv") == "qcow2" and node.get("file") == str(disk):
            return str(node["node-name"])
    raise Conflict(f"the guest runs without the disk {disk}")


def _ask(handle: libvirt.virDomain, command: str, arguments: Mapping[str, object]) -> Any:
    """QEMU's answer.

    Raises:
        Conflict: the disk is being copied. HypervisorRejected: QEMU refuses.
    """
    text = json.dumps({"execute": command, "arguments": dict(arguments)})
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(handle, text, 0))
    if "return" not in answer:
        said = str(answer.get("error", {}).get("desc", "nothing that makes sense"))
        if _IS_COPIED in said:
            raise Conflict("its disk is being copied, as for an image of it; try again when that is done")
        raise HypervisorRejected(f"{command}: QEMU says: {' '.join(said.split())[:_MOST_MESSAGE]}")
    return answer["return"]
