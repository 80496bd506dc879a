"""How many hops an answer may travel: one that holds a session token is to be read in the guest, not behind a proxy in it.

The limit is the connection's, and a packet that the kernel sends once more obeys what it is by then. So it stays until the
other side has confirmed all that was sent under it. ``server`` calls this.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios

USUAL = -1  # the kernel's own, whatever the host has it set to
_IPV4, _IPV6 = (socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)


def limit(connection: socket.socket, hops: int) -> None:
    """Let what *connection* sends from now on travel *hops* hops: 1 is to the next machine and no further.

    Raises:
        OSError: the kernel has no such limit (1 to 255), or no such connection any more.
    """
    # IPv4 mapped into IPv6 travels as IPv4.
    for level, option in (_IPV4,) if connection.family == socket.AF_INET else (_IPV6, _IPV4):
        connection.setsockopt(level, option, hops)


def lift(connection: socket.socket) -> bool:
    """Give *connection* the usual limit back, unless something that it sent is not confirmed; whether it has it now.

    Raises:
        OSError: there is no such connection any more.
    """
    unconfirmed = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))  # bytes; tcp(7), SIOCOUTQ
    if struct.unpack("i", unconfirmed)[0]:
        return False
    limit(connection, USUAL)
    return True
