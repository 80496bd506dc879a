"""What is known of a domain after it was changed: its power, and our mark in it. Used by whoever does the steps."""

from __future__ import annotations

import dataclasses

from common.errors import Conflict
from ecompute.hypervisor import Domain, Hypervisor, PowerState, Stamp
from ecompute.machine import Facts


def with_power(facts: Facts, power: PowerState, reason: str, *, has_saved_memory: bool = False) -> Facts:
    if facts.domain is None:
        return facts
    domain = dataclasses.replace(facts.domain, power_state=power, state_reason=reason, has_saved_memory=has_saved_memory)
    return dataclasses.replace(facts, domain=domain)


def with_stamp(facts: Facts, stamp: Stamp) -> Facts:
    if facts.domain is None:
        return facts
    return dataclasses.replace(facts, domain=dataclasses.replace(facts.domain, stamp=stamp))


def needed_domain(facts: Facts, name: str, what: str) -> tuple[Domain, Stamp]:
    """The domain, with its stamp.

    Raises:
        Conflict: it is not there, to be *what*.
    """
    if facts.domain is None or facts.domain.stamp is None:
        raise Conflict(f"the domain of {name} is not there to be {what}")
    return facts.domain, facts.domain.stamp


def acknowledged(hypervisor: Hypervisor, facts: Facts) -> Facts:
    """Note in the domain that this spec was seen, before acting on it: an older one is then from a restored store."""
    domain = facts.domain
    stamp = domain.stamp if domain else None
    if domain is None or stamp is None or stamp.spec_revision >= facts.spec_revision:
        return facts
    newer = dataclasses.replace(stamp, spec_revision=facts.spec_revision)
    hypervisor.write_stamp(domain.uuid, newer)
    return with_stamp(facts, newer)
