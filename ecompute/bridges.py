"""The bridges that this host has, made by its operator: are they there, do they know VLANs, and put a guest's card into one.

Reads ``/sys/class/net`` and never changes an interface of the host's, but for the VLAN of the port that is the guest's own.
Under libvirt's mock nothing is real, and every bridge is there. Called by ``network`` before a guest is built, by the builder
when one runs, and by the agent for the host's traits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from common.errors import Permanent, Transient
from common.nics import Nic
from ecompute import bridge_vlans

NO_BRIDGE = "NoBridge"  # the reason of a failure that another host may be spared


class HostBridges:
    """The bridges of this host.

    Args:
        interfaces: a folder as ``/sys/class/net``; None where nothing is real.
        set_vlan: for a port and a VLAN; raises ``OSError``.
    """

    def __init__(
        self, interfaces: Path | None = Path("/sys/class/net"), *,
        set_vlan: Callable[[str, int], None] = bridge_vlans.set_vlan,
    ) -> None:  # fmt: skip
        self._interfaces, self._set_vlan = interfaces, set_vlan
        self._lock = threading.Lock()
        self._usable: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())  # all there were, and those for guests

    def names(self) -> frozenset[str]:
        """Every bridge, whoever made it."""
        if self._interfaces is None:
            return frozenset()
        return frozenset(path.parent.name for path in self._interfaces.glob("*/bridge"))

    def usable(self, own_bridges: Callable[[], frozenset[str]]) -> frozenset[str]:
        """Those that a request may name: not the ones of libvirt's own networks, which have addresses of their own to give.

        Args:
            own_bridges: tells the latter; called only when bridges have come or gone since the last time.
        """
        names = self.names()
        with self._lock:
            if self._usable[0] != names:
                self._usable = names, names - own_bridges()
            return self._usable[1]

    def check(self, nic: Nic) -> None:
        """Raises ``Permanent`` where a card cannot be as *nic*, which has a bridge, asks."""
        if self._interfaces is None:
            if nic.vlan:  # libvirt's test driver has no cable to plug in
                raise Permanent(
                    f"this host is simulated, and a card in VLAN {nic.vlan} cannot be: take another host", NO_BRIDGE
                )
            return
        folder = self._interfaces / nic.bridge / "bridge"
        if not folder.is_dir():
            raise Permanent(f"this host has no bridge {nic.bridge}: make it, or take another host", NO_BRIDGE)
        if nic.vlan and not self._filters_vlans(folder):
            raise Permanent(
                f"the bridge {nic.bridge} of this host lets VLANs pass unseen, a card in VLAN {nic.vlan} would be in all: "
                f"ip link set {nic.bridge} type bridge vlan_filtering 1",
                NO_BRIDGE,
            )

    def put_into_vlan(self, device: str, vlan: int) -> None:
        """Put a guest's card, which is *device* on the host, into *vlan* alone.

        Raises:
            Transient: the kernel refused; the card is to stay unplugged.
        """
        if self._interfaces is None:
            return
        folder = self._interfaces / device / "master" / "bridge"
        try:
            if not self._filters_vlans(folder):
                raise OSError("its bridge has no VLANs any more: ip link set BRIDGE type bridge vlan_filtering 1")
            self._set_vlan(device, vlan)
        except OSError as error:
            raise Transient(f"cannot put {device} into VLAN {vlan}: {error.strerror or error}") from error

    @staticmethod
    def _filters_vlans(folder: Path) -> bool:
        try:
            return (folder / "vlan_filtering").read_text().strip() == "1"
        except OSError:
            return False  # a kernel without
