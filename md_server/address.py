"""Keeps the metadata addresses on the guests' bridge, and touches no other address and no other interface.

Asks the kernel when it tells that a link or an address changed, so that the address is back at once when the bridge was made
anew; needs no libvirt, etcd or Placement. ``main`` calls it; knows nothing of HTTP.
"""

from __future__ import annotations

import enum
import fcntl
import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from common.errors import Conflict, EcomputeError
from common.logs import fields
from common.retry import Backoff
from md_server import netlink
from md_server.netlink import IpAddress

log = logging.getLogger(__name__)

SIOCGIFFLAGS, IFF_UP = 0x8913, 0x1  # linux/sockios.h, linux/if.h
_REQUEST = struct.Struct("16sh22x")  # struct ifreq with ifr_flags


class Presence(enum.StrEnum):
    """What ``ensure`` found or did."""

    PRESENT = "present"
    ADDED = "added"
    NO_BRIDGE = "no bridge"  # it does not exist, or is down: it will be looked at again when that changes
    NO_IPV6 = "no IPv6"  # the kernel has none, or not on this bridge: likewise


class BridgeAddress:
    """*address*, which belongs on the interface *bridge* of this network namespace."""

    def __init__(self, bridge: str, address: IpAddress) -> None:
        self.bridge, self.address = bridge, address

    def ensure(self) -> Presence:
        """Put the address on the bridge if the bridge is up and has it not.

        A bridge that is still down is left alone: libvirt gives it the network's own address before it brings it up, and
        that must stay the first one, which programs take for *the* address of the interface.

        Raises:
            Conflict: another interface has the address.
            EcomputeError: the kernel refused.
        """
        index = interface_index(self.bridge)
        try:
            found = [a.index for a in netlink.addresses() if a.address == self.address]
            elsewhere = [i for i in found if i != index]
            is_of_one_link = self.address.version == 6 and self.address.is_link_local  # one of IPv4 is not to us
            if elsewhere and not is_of_one_link:
                raise Conflict(
                    f"{self.address} is on interface {_name(elsewhere[0])} already, not on {self.bridge}: take it away there "
                    f"(ip address del), or name that interface as metadata.bridge"
                )
            if index in found:
                return Presence.PRESENT
            if index is None or not _is_up(self.bridge):
                return Presence.NO_BRIDGE
            if self.address.version == 6 and not has_ipv6(self.bridge):
                return Presence.NO_IPV6
            netlink.add_address(index, self.address, self.address.max_prefixlen)
        except OSError as error:
            raise self._refused("put on", error) from error
        return Presence.ADDED

    def remove(self) -> bool:
        """Take the address from the bridge; whether it was there.

        Raises:
            EcomputeError: the kernel refused.
        """
        index = interface_index(self.bridge)
        try:
            found = [a for a in netlink.addresses() if a.address == self.address and a.index == index]
            for entry in found:
                netlink.delete_address(entry.index, entry.address, entry.prefix_length)
        except OSError as error:
            raise self._refused("taken from", error) from error
        return bool(found)

    def _refused(self, done: str, error: OSError) -> EcomputeError:
        return EcomputeError(
            f"{self.address} could not be {done} {self.bridge}: {error.strerror or error}: run as root (CAP_NET_ADMIN), "
            f"or put the address there yourself"
        )


class AddressKeeper:
    """Calls ``ensure`` whenever links or addresses change, until ``stop``.

    Args:
        also: called after it; whether it is satisfied, else both are called again after a while. It must not raise.
    """

    def __init__(
        self, wanted: BridgeAddress, *, also: Callable[[], bool] = lambda: True, backoff: Backoff | None = None
    ) -> None:  # fmt: skip
        self._wanted, self._also = wanted, also
        self._backoff = backoff or Backoff(1, 60)
        # Opened here, not in run(): what changes from now on is noticed, however late the thread starts.
        self._changes = netlink.change_socket()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._said = ""

    def run(self) -> None:
        """Keep the address until ``stop``. Never raises for what the kernel or another program does."""
        poll = select.poll()
        poll.register(self._changes, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            retry_seconds = self._look()
            ready = poll.poll(None if retry_seconds is None else retry_seconds * 1000)
            if any(descriptor == self._wake for descriptor, _ in ready):
                return
            netlink.drain(self._changes)

    def stop(self) -> None:
        """End ``run``, from any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Free the descriptors; after ``run`` has ended."""
        self._changes.close()
        os.close(self._wake)

    def _look(self) -> float | None:
        """Seconds to the next look if nothing changes before; None: only then."""
        is_well = self._look_at_address()
        if self._also() and is_well:
            self._backoff.reset()
            return None
        return self._backoff.next()

    def _look_at_address(self) -> bool:
        try:
            presence = self._wanted.ensure()
        except EcomputeError as error:
            self._say(logging.WARNING, f"guests are not served: {error}")
            return False
        if presence is Presence.NO_BRIDGE:
            self._say(logging.INFO, "bridge is not up; waiting for it")
        elif presence is Presence.ADDED:
            self._said = ""
            self._say(logging.INFO, "address put on bridge")
        return True

    def _say(self, level: int, message: str) -> None:
        if message != self._said:
            self._said = message
            log.log(level, message, extra=fields(address=self._wanted.address, bridge=self._wanted.bridge))


def interface_index(interface: str) -> int | None:
    """The kernel's number of *interface*, None while there is none of that name."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"number {index}"


def has_ipv6(interface: str) -> bool:
    """Whether *interface* takes addresses of IPv6; libvirt switches it off on bridges of networks that have none."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").read_text().strip() == "0"
    except OSError:  # no such interface, or a kernel without IPv6
        return False


def _is_up(interface: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFFLAGS, _REQUEST.pack(interface.encode(), 0))
        except OSError:
            return False
    return bool(_REQUEST.unpack(answer)[1] & IFF_UP)
