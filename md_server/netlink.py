"""The three things that md_server asks of the kernel's routing netlink: which addresses there are, add one, remove one.

Also the socket that tells that links or addresses changed, whose messages are not looked at: they only wake, and whoever is
woken asks. Knows no policy.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass

from common import rtnetlink

# linux/rtnetlink.h, linux/if_addr.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class InterfaceAddress:
    """One address of one interface."""

    index: int
    address: IpAddress
    prefix_length: int


def addresses() -> list[InterfaceAddress]:
    """Every IP address of this network namespace.

    Raises:
        OSError: the kernel refused.
    """
    messages = rtnetlink.request(RTM_GETADDR, rtnetlink.NLM_F_DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return [parsed for kind, body in messages if kind == RTM_NEWADDR and (parsed := _parsed(body)) is not None]


def add_address(index: int, address: IpAddress, prefix_length: int) -> None:
    """Put *address* on the interface *index*; that it is there already is success. One of IPv6 is usable at once.

    Raises:
        OSError: the kernel refused: EPERM without CAP_NET_ADMIN, ENODEV when the interface is gone.
    """
    try:
        _change(RTM_NEWADDR, rtnetlink.NLM_F_CREATE | rtnetlink.NLM_F_EXCL, index, address, prefix_length)
    except FileExistsError:
        return


def delete_address(index: int, address: IpAddress, prefix_length: int) -> None:
    """Take *address* from the interface *index*; that it is gone already is success. Raises as ``add_address``."""
    try:
        _change(RTM_DELADDR, 0, index, address, prefix_length)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise


def change_socket() -> socket.socket:
    """A non-blocking socket that becomes readable when a link or an address of this namespace changes."""
    changes = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    changes.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
    return changes


def drain(changes: socket.socket) -> None:
    """Throw away what waits in *changes*."""
    while True:
        try:
            changes.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # messages were lost: all the more reason to look
                raise


def _change(kind: int, flags: int, index: int, address: IpAddress, prefix_length: int) -> None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # The kernel would ask the link for a second or two whether somebody has it; and it is ours on every host.
    address_flags = IFA_F_NODAD if address.version == 6 else 0
    ends = rtnetlink.attribute(IFA_LOCAL, address.packed) + rtnetlink.attribute(IFA_ADDRESS, address.packed)
    body = _ADDRESS.pack(family, prefix_length, address_flags, 0, index) + ends
    rtnetlink.request(kind, flags | rtnetlink.NLM_F_ACK, body)


def _parsed(body: bytes) -> InterfaceAddress | None:
    """The local address that an RTM_NEWADDR message is about (IFA_ADDRESS is the other end on a point-to-point link)."""
    _family, prefix_length, _flags, _scope, index = _ADDRESS.unpack_from(body)
    found = dict(rtnetlink.attributes(body[_ADDRESS.size :]))
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
    return None if packed is None else InterfaceAddress(index, ipaddress.ip_address(packed), prefix_length)
