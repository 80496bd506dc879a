"""The metadata service's addresses of IPv6 on the guests' bridge, and the sockets that listen there.

Both are bound to the bridge: whoever asks there is on that link, so that a link-local source tells which guest it is. They are
made anew with the bridge. That it has no IPv6 is nothing to worry about, and nothing that goes wrong here keeps IPv4 from being
served. ``main`` has it called by the keeper of the address.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence

from common.errors import EcomputeError
from common.logs import fields
from md_server.address import BridgeAddress, Presence, interface_index
from md_server.listening import Listener, listen

log = logging.getLogger(__name__)

# The first as EC2 has it on Nitro hosts; the second, 169.254.169.254 behind fe80::/64, as OpenStack has it since Victoria.
ADDRESSES = (ipaddress.IPv6Address("fd00:ec2::254"), ipaddress.IPv6Address("fe80::a9fe:a9fe"))


class Ipv6Service:
    """Keeps ``ADDRESSES`` on *bridge*, and hands the sockets that listen there to *serve*, all of them each time."""

    def __init__(self, bridge: str, port: int, serve: Callable[[Sequence[Listener]], None]) -> None:
        self._bridge, self._port, self._serve = bridge, port, serve
        self._wanted = tuple(BridgeAddress(bridge, address) for address in ADDRESSES)
        self._index: int | None = None  # of the bridge that is listened on
        self._said = ""

    def look(self) -> bool:
        """Put right what is not; whether nothing is left to be tried again. Never raises for what others do."""
        try:
            presences = [wanted.ensure() for wanted in self._wanted]
            index = interface_index(self._bridge)
            if Presence.NO_IPV6 in presences:
                self._say(logging.INFO, "the bridge has no IPv6; guests are served by IPv4")
            elif index is not None and Presence.NO_BRIDGE not in presences:
                self._listen(index)
        except (EcomputeError, OSError) as error:  # the latter: no descriptor is left
            self._say(logging.WARNING, f"guests are not served by IPv6: {error}")
            return False
        return True

    def _listen(self, index: int) -> None:
        """Listen on the bridge with the number *index*, unless that is so."""
        if self._index == index:
            return
        listeners: list[Listener] = []
        try:
            for address in ADDRESSES:
                listeners.append(Listener(listen(address, self._port, self._bridge), index))  # noqa: PERF401 - closed below
        except (EcomputeError, OSError):
            for listener in listeners:
                listener.socket.close()
            self._index = None
            self._serve(())  # should it be our own former ones that are in the way
            raise
        self._index, self._said = index, ""
        self._serve(listeners)
        self._say(logging.INFO, "guests are served by IPv6 as well")

    def _say(self, level: int, message: str) -> None:
        if message != self._said:
            self._said = message
            log.log(level, message, extra=fields(bridge=self._bridge, port=self._port))


def remove(bridge: str) -> list[str]:
    """Take the addresses from *bridge*; those that were there.

    Raises:
        EcomputeError: the kernel refused.
    """
    return [str(address) for address in ADDRESSES if BridgeAddress(bridge, address).remove()]
