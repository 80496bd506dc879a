"""The three things that md_server asks of the kernel's routing netlink: which addresses there are, add one, remove one.

rtnetlink(7) in raw form, so that no package and no child process is needed for it; also the socket that tells that links or
addresses changed, whose messages are not looked at: they only wake, and whoever is woken asks. Knows no policy.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
NLM_F_DUMP_INTR = 0x10
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TIMEOUT_SECONDS = 5.0  # the kernel answers at once; this is only so that no wait is without a bound

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
    while True:
        found: list[InterfaceAddress] = []
        consistent = True
        for kind, flags, body in _request(RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            consistent = consistent and not flags & NLM_F_DUMP_INTR
            if kind == RTM_NEWADDR and (parsed := _parsed(body)) is not None:
                found.append(parsed)
        if consistent:  # else something changed while the kernel was listing
            return found


def add_address(index: int, address: IpAddress, prefix_length: int) -> None:
    """Put *address* on the interface *index*; that it is there already is success.

    Raises:
        OSError: the kernel refused: EPERM without CAP_NET_ADMIN, ENODEV when the interface is gone.
    """
    try:
        _change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, index, address, prefix_length)
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
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), IFA_LOCAL) + address.packed
    peer = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), IFA_ADDRESS) + address.packed
    body = _ADDRESS.pack(family, prefix_length, 0, 0, index) + attribute + peer
    for _ in _request(kind, flags | NLM_F_ACK, body):
        pass


def _request(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Send one request; the type, flags and body of each message of the answer. The kernel's errno is raised as OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as route:
        route.settimeout(_TIMEOUT_SECONDS)
        route.bind((0, 0))
        route.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 1, 0) + body)
        while True:
            for kind_found, flags_found, body_found in _messages(route.recv(65536)):
                if kind_found == NLMSG_DONE:
                    return
                if kind_found == NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body_found)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield kind_found, flags_found, body_found


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _parsed(body: bytes) -> InterfaceAddress | None:
    """The local address that an RTM_NEWADDR message is about (IFA_ADDRESS is the other end on a point-to-point link)."""
    _family, prefix_length, _flags, _scope, index = _ADDRESS.unpack_from(body)
    found: dict[int, bytes] = {}
    offset = _ADDRESS.size
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    packed = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS)
    return None if packed is None else InterfaceAddress(index, ipaddress.ip_address(packed), prefix_length)
