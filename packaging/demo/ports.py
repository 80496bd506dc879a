"""Who listens on a TCP port of this host, from /proc."""

from __future__ import annotations

import ipaddress
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN in include/net/tcp_states.h


@dataclass(frozen=True)
class Listener:
    """A socket that listens; *pid* is None where its process cannot be told."""

    port: int
    pid: int | None = None
    command: str = ""
    user: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "a process that cannot be told"
        return f"{self.command} (pid {self.pid}{f', user {self.user}' if self.user not in ('', 'root') else ''})"


def listener_on(port: int, address: str = "127.0.0.1") -> Listener | None:
    """Who listens on *port* of *address* or of all addresses; None where nobody does."""
    sockets = {socket for family in ("tcp", "tcp6") for socket in _listening(Path(f"/proc/net/{family}"), port, address)}
    if not sockets:
        return None
    return _owner(port, {f"socket:[{socket}]" for socket in sockets}) or Listener(port)


def _listening(table: Path, port: int, address: str) -> list[str]:
    """The inodes of the sockets in *table* that listen on *port*."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    ours = struct.unpack("=I", ipaddress.IPv4Address(address).packed)[0]  # as /proc writes it: the host's integer
    inodes = []
    for row in rows:
        bound, _, number = row[1].partition(":")
        if row[3] == _LISTEN and int(number, 16) == port and (int(bound, 16) == 0 or bound.endswith(f"{ours:08X}")):
            inodes.append(row[9])
    return inodes


def _owner(port: int, links: set[str]) -> Listener | None:
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir()):
                return Listener(port, int(process.name), _command(process), _user(process))
        except OSError:
            continue  # it ended, or is not ours to look at
    return None


def _command(process: Path) -> str:
    words = [word for word in (process / "cmdline").read_text(errors="replace").split("\0") if word]
    return Path(words[0]).name if words else (process / "comm").read_text().strip()


def _user(process: Path) -> str:
    try:
        return pwd.getpwuid(process.stat().st_uid).pw_name
    except KeyError:
        return str(process.stat().st_uid)
