"""What the libvirt driver does with a guest's screen and with the agent in it: functions on an open connection.

One of the four modules that import libvirt; called by ``libvirt_driver`` alone, which translates the errors that leave here.
"""

from __future__ import annotations

import libvirt
import libvirt_qemu

from common.errors import HypervisorRejected, Permanent
from ecompute.hypervisor import Picture
from ecompute.libvirt_errors import is_code, one_line, unless
from ecompute.libvirt_xml import screen_socket_of

MOST_PICTURE_BYTES = 64 << 20  # before it is packed: a guest chooses the size of its screen
_BLOCK_BYTES = 256 << 10
_NO_AGENT = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT, getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", -1),
)  # fmt: skip


def screenshot(connection: libvirt.virConnect, handle: libvirt.virDomain) -> Picture:
    if not handle.isActive():
        raise HypervisorRejected("the guest does not run, and has no picture", "NotRunning")
    stream = connection.newStream(0)
    try:
        media_type = handle.screenshot(stream, 0, 0)
        data = bytearray()
        while block := stream.recv(_BLOCK_BYTES):
            data += block
            if len(data) > MOST_PICTURE_BYTES:
                raise Permanent(f"the screen's picture is larger than {MOST_PICTURE_BYTES >> 20} MiB", "TooLarge")
        stream.finish()
    except BaseException:
        with unless(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_STREAM):
            stream.abort()
        raise
    return Picture(media_type, bytes(data))


def screen_socket(handle: libvirt.virDomain) -> str:
    with unless(libvirt.VIR_ERR_NO_DOMAIN):
        return screen_socket_of(handle.XMLDesc(0)) if handle.isActive() else ""
    return ""


def ask_agent(handle: libvirt.virDomain, command: str, seconds: int) -> str:
    try:
        answer = libvirt_qemu.qemuAgentCommand(handle, command, seconds, 0)
    except libvirt.libvirtError as error:
        if is_code(error, *_NO_AGENT):
            raise HypervisorRejected(f"no agent answers in the guest: {one_line(error)}", "NoAgent") from error
        raise
    return str(answer)
