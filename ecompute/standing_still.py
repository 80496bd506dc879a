"""The steps that make a guest stand still, and go on: paused in its memory, or with that saved to a file of the host.

What a paused guest holds stays its own, what a suspended one held as well: its claim, its addresses, its disks and its size. So
nothing of those is changed before it has gone on. ``machine`` decides, the ``builder`` runs these.
"""

from __future__ import annotations

import dataclasses
import logging
from uuid import UUID

from common.errors import Permanent
from common.logs import fields
from common.model import InstanceSpec
from ecompute.hypervisor import PowerState
from ecompute.machine import Facts, Problem
from ecompute.stamping import acknowledged, needed_domain, with_power, with_stamp
from ecompute.world import World

logger = logging.getLogger(__name__)


class StandStill:
    """Does the steps; each returns the facts as it left them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def pause(self, spec: InstanceSpec, facts: Facts) -> Facts:
        facts = acknowledged(self._world.hypervisor, facts)
        self._world.hypervisor.pause(spec.uuid)
        return with_power(facts, PowerState.PAUSED, "user")

    def unpause(self, spec: InstanceSpec, facts: Facts) -> Facts:
        facts = acknowledged(self._world.hypervisor, facts)
        self._world.hypervisor.unpause(spec.uuid)
        return with_power(facts, PowerState.RUNNING, "unpaused")

    def suspend(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Save its memory. What keeps it from that is no failure of the guest's, which goes on: that is noted, and said."""
        domain, _ = needed_domain(facts, spec.name, "suspended")
        facts = acknowledged(self._world.hypervisor, facts)
        try:
            self._world.saved_memory.check_room(domain.memory_mib)
            facts = self._unplugged(spec.uuid, facts)
            self._world.hypervisor.suspend(spec.uuid)
        except Permanent as error:
            logger.warning("not suspended, the guest goes on", extra=fields(reason=error.reason, error=str(error)))
            problem = Problem(error.reason, str(error))
            self._world.patience.could_not_suspend(spec.uuid, facts.spec_revision, problem)
            return dataclasses.replace(facts, suspend_problem=problem)
        return with_power(facts, PowerState.SHUTOFF, "saved", has_saved_memory=True)

    def _unplugged(self, uuid: UUID, facts: Facts) -> Facts:
        """Its cards in VLANs wait for their cables when it goes on, as when it is started: before, they would be in none."""
        vlans = {address.mac for address in facts.addresses or () if address.vlan}
        for card in self._world.hypervisor.cards(uuid) if vlans else ():
            if card.mac in vlans and card.link_is_up:
                facts = dataclasses.replace(facts, is_connected=False)
                self._world.hypervisor.lower_link(uuid, card.mac)
        return facts

    def resume(self, spec: InstanceSpec, facts: Facts) -> Facts:
        _, stamp = needed_domain(facts, spec.name, "resumed")
        self._world.hypervisor.resume(spec.uuid)
        # Its memory brought along the mark of the time when it was saved; since then somebody may have adopted it.
        stamp = dataclasses.replace(stamp, spec_revision=max(stamp.spec_revision, facts.spec_revision))
        self._world.hypervisor.write_stamp(spec.uuid, stamp)
        self._world.patience.started(spec.uuid)
        self._world.networks.started(spec.uuid)
        is_connected = not any(address.vlan for address in facts.addresses or ())
        facts = with_power(with_stamp(facts, stamp), PowerState.RUNNING, "restored")
        return dataclasses.replace(facts, is_connected=is_connected)

    def drop(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Give up its memory; what it had not written to its disk is lost, as after a power cut."""
        self._world.hypervisor.drop_memory(spec.uuid)
        return with_power(facts, PowerState.SHUTOFF, "destroyed")
