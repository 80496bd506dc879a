"""What may be wrong with an instance's claim in Placement, in words: a host says it of itself, ``eschedule audit`` of all.

Pure. Whether something is wrong the callers decide; both say it alike, so that what both see is one finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from common.findings import Finding, Kind
from common.model import InstanceSpec


@dataclass(frozen=True)
class Held:
    """What Placement says of one consumer, asked by its uuid; *resources* are over all providers.

    Args:
        is_ours: it is an instance's of this deployment. *is_volume*: it is a volume's.
    """

    resources: Mapping[str, int]
    providers: frozenset[UUID]
    is_ours: bool
    is_volume: bool = False


def missing_allocation(where: str, spec: InstanceSpec, provider: UUID, *, has_guest: bool | None) -> Finding:
    """*has_guest*: whether the host has a domain of it; None where the host did not say."""
    if has_guest:
        cure = "ecompute asserts it by itself within a minute, eschedule audit --fix at once; where there is no room, make some"
    elif has_guest is None:
        cure = "its host asserts it by itself when it is back, if the guest is there"
    else:
        # To claim for it would have it built: an etcd that was restored may speak of instances that were destroyed since.
        cure = f"there is no guest of it: eschedule destroy {spec.name}, and create it again if it is wanted"
    return Finding(
        Kind.MISSING_ALLOCATION, where, f"the instance {spec.name} holds nothing in Placement",
        "Placement's database was lost or restored, or the claim was deleted by hand", cure,
        spec.uuid, provider, bool(has_guest), name=spec.name,
    )  # fmt: skip


def wrong_allocation(
    where: str, spec: InstanceSpec, provider: UUID, held: Held, wanted: Mapping[str, int], *, has_guest: bool | None
) -> Finding:
    """*wanted*: what it has to hold, which is more than its spec says while a guest runs with more."""
    on = "" if provider in held.providers else f" on {', '.join(sorted(map(str, held.providers)))}"
    is_fixable = bool(has_guest) and held.is_ours
    cure = f"look at it: eschedule show {spec.name}; it is left alone, since no guest of ours is known to use it"
    if is_fixable:
        cure = "its host sets it right within some minutes, eschedule audit --fix at once, where there is room"
    elif has_guest:
        cure = (
            f"look at it in Placement: GET /allocations/{spec.uuid}; it is left alone, since it is of another project or type "
            "than ours"
        )
    return Finding(
        Kind.WRONG_ALLOCATION, where,
        f"the instance {spec.name} holds {shown(held.resources)}{on}, not {shown(wanted)}",
        "an eschedule resize was cut off, the claim was changed by hand, or etcd or Placement was restored", cure,
        spec.uuid, provider, is_fixable, name=spec.name,
    )  # fmt: skip


def failed_keeps_claim(where: str, spec: InstanceSpec, provider: UUID, held: Held) -> Finding:
    return Finding(
        Kind.WRONG_ALLOCATION, where, f"the instance {spec.name} has failed and still holds {shown(held.resources)}",
        "its host has not released it yet", f"see that its host is up; or: eschedule destroy {spec.name}",
        spec.uuid, provider, name=spec.name,
    )  # fmt: skip


def orphan_claim(
    where: str, consumer: UUID, provider: UUID, held: Held, *, seconds: float | None = None, is_fixable: bool = False
) -> Finding:
    """*seconds*: for how long its host has seen it alone; None where the host did not say."""
    since = "" if seconds is None else f"; its host has seen it so for {seconds:.0f} s"
    cure = "its host could not say whether a guest uses it; see to that host first"
    if is_fixable:
        cure = "its host releases it by itself after a while; eschedule audit --fix, after a minute in which nobody wants it"
    return Finding(
        Kind.ORPHAN_CLAIM, where, f"the claim of {shown(held.resources)} by {consumer} belongs to no instance{since}",
        "an eschedule died between its claim and its request, or etcd was wiped or restored", cure,
        consumer, provider, is_fixable,
    )  # fmt: skip


def shown(resources: Mapping[str, int]) -> str:
    return ",".join(f"{name}:{amount}" for name, amount in sorted(resources.items())) or "nothing"
