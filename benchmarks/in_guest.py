"""When a guest's ssh answers, and when its QEMU began: looked at from the host that it runs on."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from uuid import UUID

from ecompute.hypervisor import DhcpHost
from tests.support.hosts import NamespacedHost
from tests.support.namespace import call_in_network

TRY_SECONDS = 0.05  # a guest that is not up yet is silent
PORT = 22


def introduce(host: NamespacedHost, pair: DhcpHost) -> None:
    """Have the host know the MAC of an address before it asks: else it asks once a second, and a boot is rounded to that."""
    host.run(["ip", "neigh", "replace", pair.address, "lladdr", pair.mac, "dev", "virbr0", "nud", "permanent"])


def ssh_answers(host: NamespacedHost, address: str, *, within_seconds: float = 120) -> float:
    """When the ssh server at *address* said its name, by ``time.perf_counter``."""
    return call_in_network(host.process_one, lambda: _banner(address, time.perf_counter() + within_seconds))


def _banner(address: str, until: float) -> float:
    while time.perf_counter() < until:
        with socket.socket() as connection:
            connection.settimeout(TRY_SECONDS)
            try:
                connection.connect((address, PORT))
                connection.settimeout(10)
                if connection.recv(4) == b"SSH-":
                    return time.perf_counter()
            except OSError:
                time.sleep(TRY_SECONDS / 5)
    raise AssertionError(f"no ssh at {address}")


def qemu_began(instance: UUID) -> float:
    """When the QEMU of *instance* was started, by ``time.perf_counter``; the kernel notes it in hundredths of a second."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"qemu-system" in command.split(b"\0")[0] and str(instance).encode() in command:
                ticks = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
                since_boot = ticks / os.sysconf("SC_CLK_TCK")
                return since_boot - time.clock_gettime(time.CLOCK_BOOTTIME) + time.perf_counter()
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"no QEMU of {instance}")
