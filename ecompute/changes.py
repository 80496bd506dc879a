"""When a change that was asked of a hypervisor is made already, and when it cannot be made: idempotence, as pure decisions.

``libvirt_driver`` asks before it acts, and again when libvirt refused, for the domain may have changed meanwhile. The fake
of the tests decides by the same functions, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.errors import Conflict
from ecompute.hypervisor import DhcpHost, PowerState

ACTIVE = frozenset({PowerState.RUNNING, PowerState.PAUSED, PowerState.SHUTTING_DOWN})


@dataclass(frozen=True)
class PowerChange:
    """One way to change a domain's power.

    Args:
        verb: for messages.
        is_done: whether a domain in this state needs nothing.
        needs_active: it can be done to an active domain only.
        absent_is_done: a domain that is not there needs nothing.
        is_refused_when_done: libvirt refuses it where it is so already, so that nobody need look before.
    """

    verb: str
    is_done: Callable[[PowerState], bool]
    needs_active: bool = True
    absent_is_done: bool = False
    is_refused_when_done: bool = False

    def is_settled(self, what: str, power: PowerState | None) -> bool:
        """Whether nothing is left to do to a domain in state *power*; None is one that is not there.

        Raises:
            Conflict: it cannot be done in this state, however the domain came there; *what* begins the message.
        """
        if power is None:
            if self.absent_is_done:
                return True
            raise Conflict(f"{what}: there is no such domain")
        if self.is_done(power):
            return True
        if self.needs_active and power not in ACTIVE:
            raise Conflict(f"{what}: it is {power}")
        return False


START = PowerChange("start", lambda power: power in ACTIVE, needs_active=False, is_refused_when_done=True)
# A paused guest hears nothing, and one that is going down has heard.
SHUTDOWN = PowerChange("shut down", lambda power: power != PowerState.RUNNING, absent_is_done=True)
DESTROY = PowerChange(
    "destroy", lambda power: power == PowerState.SHUTOFF, needs_active=False, absent_is_done=True, is_refused_when_done=True
)
RESET = PowerChange("reset", lambda _: False)
PAUSE = PowerChange("pause", lambda power: power == PowerState.PAUSED)
UNPAUSE = PowerChange("unpause", lambda power: power == PowerState.RUNNING)


def may_undefine(what: str, power: PowerState | None) -> bool:
    """Whether there is a definition to forget.

    Raises:
        Conflict: the domain is active: libvirt would take the definition away under the guest and leave it running.
    """
    if power is None:
        return False
    if power != PowerState.SHUTOFF:
        raise Conflict(f"{what}: it is {power}; destroy it first")
    return True


def dhcp_entry_differs(what: str, entries: Iterable[DhcpHost], host: DhcpHost, *, should_be_there: bool) -> bool:
    """Whether *host* has to be added to *entries*, or removed from them.

    Raises:
        Conflict: it is to be added, and another entry has its MAC or its address.
    """
    entries = tuple(entries)
    if should_be_there:
        for other in entries:
            if other != host and (other.mac == host.mac or other.address == host.address):
                raise Conflict(f"{what}: {other.mac or 'an entry without a MAC'} has {other.address} there")
    return (host in entries) != should_be_there
