"""At which ports of this host a process listens, from ``/proc/net``: no process is started and nothing is opened to find out.

Ports of the loopback addresses and of link-local ones do not count: none of them ever leads to a guest.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# include/net/tcp_states.h: a listening socket of TCP, and one of UDP that is bound and not connected.
_TABLES = (("tcp", "tcp", "0A"), ("tcp", "tcp6", "0A"), ("udp", "udp", "07"), ("udp", "udp6", "07"))


def listening_ports(directory: Path = Path("/proc/thread-self/net")) -> frozenset[tuple[str, int]]:
    """All ("tcp" or "udp", port) at which somebody listens; without IPv6 in the kernel those of IPv4 alone."""
    found: set[tuple[str, int]] = set()
    for protocol, name, state in _TABLES:
        for address, port in bound(directory / name, state):
            if not (address.is_loopback or address.is_link_local):
                found.add((protocol, port))
    return frozenset(found)


def listeners(
    directory: Path = Path("/proc/thread-self/net"),
) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Each address and port at which somebody listens by TCP."""
    for name in ("tcp", "tcp6"):
        yield from bound(directory / name, "0A")


def bound(path: Path, state: str) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """The local address and port of each socket in *state* that the table at *path* has."""
    try:
        lines: Iterable[str] = path.read_text(encoding="ascii").splitlines()[1:]
    except OSError:  # a kernel without that family
        return
    for line in lines:
        fields = line.split()
        if len(fields) > 3 and fields[3] == state:
            address, _, port = fields[1].partition(":")
            yield _address(address), int(port, 16)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel writes an address as words of 32 bits, each in the order of the processor's bytes."""
    words = [
        bytes.fromhex(text[start : start + 8])[:: -1 if sys.byteorder == "little" else 1] for start in range(0, len(text), 8)
    ]
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address
