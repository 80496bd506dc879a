"""What a change of an instance's resources means on its host: what is in force already, what its claim has to hold. Pure.

A disk grows at once. CPUs and memory come into force with the guest's next start, whose definition is made of the spec; until
then the guest runs with what it was started with, and its claim holds the larger of both amounts: no room is given away under
a guest, and what was asked for is there when it starts.
"""

from __future__ import annotations

from common.amounts import most, shown
from common.model import InstanceSpec
from ecompute.hypervisor import Domain

GIB = 1 << 30


def in_force(spec: InstanceSpec, domain: Domain | None) -> dict[str, int]:
    """VCPU and MEMORY_MB that a guest has, where they are not what *spec* asks for; empty where they are, or it has none.

    One that goes on from saved memory has them as one that is up.
    """
    if domain is None or not (domain.is_active or domain.has_saved_memory):
        return {}
    has = {"VCPU": domain.vcpus - spec.resources.get("PCPU", 0), "MEMORY_MB": domain.memory_mib}
    is_same = domain.vcpus == spec.vcpus and domain.memory_mib == spec.memory_mib
    return {} if is_same else {name: amount for name, amount in has.items() if amount > 0}


def claim_wanted(spec: InstanceSpec, domain: Domain | None) -> dict[str, int]:
    """What the instance has to hold in Placement."""
    return most(spec.resources, in_force(spec, domain))


def notes(spec: InstanceSpec, domain: Domain | None) -> tuple[str, ...]:
    """What of *spec* waits for the guest's next start, in at most one line."""
    has = in_force(spec, domain)
    waiting = {name: spec.resources.get(name, 0) for name, amount in has.items() if amount != spec.resources.get(name, 0)}
    return (f"{shown(waiting)} from its next start: eschedule reboot {spec.name}",) if waiting else ()
