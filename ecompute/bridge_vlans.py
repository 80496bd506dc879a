"""Which VLANs a port of a bridge is in, as ``bridge vlan`` shows and sets them: by rtnetlink. Knows no policy.

Needs a kernel with CONFIG_BRIDGE_VLAN_FILTERING and CAP_NET_ADMIN. Called by ``bridges``.
"""

from __future__ import annotations

import socket
import struct

from common import rtnetlink

# linux/rtnetlink.h, linux/if_link.h, linux/if_bridge.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
AF_BRIDGE = 7
IFLA_AF_SPEC, IFLA_EXT_MASK = 26, 29
RTEXT_FILTER_BRVLAN = 2
IFLA_BRIDGE_VLAN_INFO = 2
VLAN_INFO_PVID, VLAN_INFO_UNTAGGED = 2, 4

_LINK = struct.Struct("=BBHiII")  # family, padding, type, index, flags, change
_VLAN = struct.Struct("=HH")  # flags, id


def vlans_of(device: str) -> dict[int, int]:
    """The VLANs that the port *device* is in, with their flags.

    Raises:
        OSError: there is no such device, or the kernel refused.
    """
    index = socket.if_nametoindex(device)
    body = _LINK.pack(AF_BRIDGE, 0, 0, 0, 0, 0) + rtnetlink.attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_BRVLAN))
    found: dict[int, int] = {}
    for kind, message in rtnetlink.request(RTM_GETLINK, rtnetlink.NLM_F_DUMP, body):
        if kind == RTM_NEWLINK and _LINK.unpack_from(message)[3] == index:
            found |= _vlans_in(message[_LINK.size :])
    return found


def set_vlan(device: str, vlan: int) -> None:
    """Put the port *device* into *vlan* alone: what comes in without a tag is of it, what goes out has none.

    Raises:
        OSError: there is no such device, it is no port of a bridge, or the kernel refused.
    """
    wanted = {vlan: VLAN_INFO_PVID | VLAN_INFO_UNTAGGED}
    index = socket.if_nametoindex(device)
    for former in vlans_of(device).keys() - wanted.keys():  # first: it is in none rather than in two
        _change(RTM_DELLINK, index, former, 0)
    for number, flags in wanted.items():
        _change(RTM_SETLINK, index, number, flags)
    if (found := vlans_of(device)) != wanted:
        raise OSError(f"it is in {sorted(found)} all the same")


def _change(kind: int, index: int, vlan: int, flags: int) -> None:
    info = rtnetlink.attribute(IFLA_BRIDGE_VLAN_INFO, _VLAN.pack(flags, vlan))
    body = _LINK.pack(AF_BRIDGE, 0, 0, index, 0, 0) + rtnetlink.attribute(IFLA_AF_SPEC, info)
    rtnetlink.request(kind, rtnetlink.NLM_F_ACK, body)


def _vlans_in(message: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    for kind, value in rtnetlink.attributes(message):
        if kind == IFLA_AF_SPEC:
            for inner, info in rtnetlink.attributes(value):
                if inner == IFLA_BRIDGE_VLAN_INFO:
                    flags, number = _VLAN.unpack_from(info)
                    found[number] = flags & (VLAN_INFO_PVID | VLAN_INFO_UNTAGGED)
    return found
