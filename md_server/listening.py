"""The sockets that the server listens on, and the descriptors for those it accepts. ``main`` and ``ipv6`` call it."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from typing import Any, NamedTuple

from common.errors import Conflict, EcomputeError
from md_server.netlink import IpAddress

IP_FREEBIND, IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h: bind to an address that is not there yet


class Listener(NamedTuple):
    """A listening socket, and the interface that it is bound to (the kernel's number; 0 for none)."""

    socket: socket.socket
    interface: int = 0


def source_of(peer: tuple[Any, ...], interface: int) -> str:
    """The address of *peer*, who came over *interface*. One that means something on one link only is known without its scope
    where that link is the interface, and as nobody's elsewhere.
    """
    address: str = peer[0]
    scope = peer[3] if len(peer) > 3 else 0
    return f"{address}%{scope}" if scope and scope != interface else address


def listen(address: IpAddress, port: int, device: str = "") -> socket.socket:
    """A listening socket on *address*, which need not be on any interface yet.

    Args:
        device: the interface over which alone it is reached; needed for an address of one link.

    Raises:
        Conflict: another server has the port.
        EcomputeError: the kernel refused.
    """
    is_v4 = isinstance(address, ipaddress.IPv4Address)
    listening = socket.socket(socket.AF_INET if is_v4 else socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    where = f"{address} port {port}"
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(*((socket.IPPROTO_IP, IP_FREEBIND) if is_v4 else (socket.IPPROTO_IPV6, IPV6_FREEBIND)), 1)
        # Accepted connections inherit it: the end of a long answer is not held back.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not is_v4:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if device:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
        listening.bind((str(address), port))
        listening.listen(1024)
        listening.setblocking(False)
    except PermissionError as error:
        listening.close()
        raise EcomputeError(f"{where} may not be listened on: run as root, or with CAP_NET_BIND_SERVICE") from error
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            advice = f"see which one by ss -ltnp 'sport = :{port}', and stop it or set metadata.port"
            raise Conflict(f"{where} is taken by another server: {advice}") from error
        raise EcomputeError(f"{where} cannot be listened on: {error.strerror}") from error
    return listening


def allow_descriptors(wanted: int) -> None:
    """Let this process have *wanted* open files, or as many as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
