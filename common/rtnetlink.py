"""The kernel's routing netlink in raw form, so that no package and no child process is needed for it: rtnetlink(7).

``request`` sends one message and gives the answer's, a listing only once it is of one moment. What is in them is the callers'
affair. Knows no policy.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
NLM_F_DUMP_INTR = 0x10

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ALIGNMENT = 4
_TYPE_MASK = 0x3FFF  # without the bits "nested" and "network byte order"
_TIMEOUT_SECONDS = 5.0  # the kernel answers at once; this is only so that no wait is without a bound
_MOST_BYTES = 1 << 20


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute of a message."""
    padding = -len(value) % _ALIGNMENT
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(padding)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes that *data* is made of; nested ones are read by another call."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + _ALIGNMENT - 1) & -_ALIGNMENT


def request(kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """Send one request (*flags* with ``NLM_F_ACK`` or ``NLM_F_DUMP``); the type and body of each message of the answer.

    Raises:
        OSError: the kernel refused; or it did not answer.
    """
    while True:
        answer = list(_exchange(kind, flags, body))
        if not any(found & NLM_F_DUMP_INTR for _, found, _ in answer):  # else something changed while the kernel was listing
            return [(kind_found, body_found) for kind_found, _, body_found in answer]


def _exchange(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as route:
        route.settimeout(_TIMEOUT_SECONDS)
        route.bind((0, 0))
        route.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | NLM_F_REQUEST, 1, 0) + body)
        while True:
            for kind_found, flags_found, body_found in _messages(route.recv(_MOST_BYTES)):
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
        offset += (length + _ALIGNMENT - 1) & -_ALIGNMENT
