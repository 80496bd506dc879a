"""Why no host takes a request: which constraint eliminates which hosts, and how far the nearest miss is.

Only ``scheduler`` asks, once nothing was found. Two or three wide questions to Placement show every host that has anything
free; each is then judged by the first thing that it fails. Constraints that only Placement can judge (aggregates, subtrees,
groups) are left out of the question one at a time, to see whom they exclude.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from common.errors import EcomputeError
from common.nics import bridge_trait
from common.placement_types import DISABLED_TRAIT, OWNER_TRAIT, Candidates
from eschedule.claims import describe
from eschedule.grouping import Group
from eschedule.query import Query, any_free, unmet
from eschedule.request import Request

if TYPE_CHECKING:
    from common.placement import Placement

HostNames = Callable[[set[UUID]], Mapping[UUID, str]]
MAX_UNITS_LOOKED_AT = 5
NO_HOST = "there is no host at all; is ecompute running anywhere? See: eschedule hosts"


@dataclass
class Host:
    """One of our hosts as Placement shows it; amounts and traits are summed over its tree of providers."""

    provider: UUID
    free: Counter[str] = field(default_factory=Counter)
    traits: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Judged:
    """What speaks against each host that has anything free; None where it is only Placement that refuses it, or nothing does.

    Args:
        names: of those that are alive.
    """

    hosts: Mapping[UUID, Host]
    names: Mapping[UUID, str]
    reasons: Mapping[UUID, str | None]


def explain(
    request: Request, *, placement: Placement, host_names: HostNames, lost: frozenset[UUID], group: Group | None,
    bridges: Sequence[str] = (),
) -> str:  # fmt: skip
    """One line that says why nothing took *request*.

    Args:
        host_names: the names of those of some hosts that are alive.
        lost: hosts whose room was taken while this request tried them.
        group: the request's group as it is now.
        bridges: what its network cards need of a host.
    """
    found = judged(request, placement=placement, host_names=host_names, lost=lost, group=group, bridges=bridges)
    hosts, names, reasons = found.hosts, found.names, found.reasons
    if group and group.anchor:
        return f"no host can take {describe(request.resources)}: {_of_anchor(request, group.anchor, hosts, names, reasons)}"
    full = max(0, len(placement.providers(OWNER_TRAIT)) - len(hosts))
    return f"no host can take {describe(request.resources)}: {summary(request, hosts, names, reasons, full)}"


def judged(
    request: Request, *, placement: Placement, host_names: HostNames, lost: frozenset[UUID] = frozenset(),
    group: Group | None = None, bridges: Sequence[str] = (), fitting: Collection[UUID] = (),
) -> Judged:  # fmt: skip
    """What speaks against each host that has anything free. As ``explain``; *fitting* are known to be candidates."""
    query = Query.parse(request.query)
    hosts = _hosts(placement.candidates(str(any_free(c)), None) for c in sorted(request.resources))
    names = host_names({*hosts, *([group.anchor] if group and group.anchor else [])})
    reasons = {
        p: _basic_reason(h, bridges, is_alive=p in names)
        or _reason(h, request, query, is_lost=p in lost, is_barred=group is not None and group.bars(p))
        for p, h in hosts.items()
    }
    puzzling = {p for p, reason in reasons.items() if reason is None and p not in fitting}
    reasons |= _excluded(query, bridges, placement, puzzling)
    reasons |= _too_large_for_one(request, placement, [p for p in puzzling if reasons[p] is None])
    return Judged(hosts, names, reasons)


def summary(
    request: Request, hosts: Mapping[UUID, Host], names: Mapping[UUID, str], reasons: Mapping[UUID, str | None], full: int
) -> str:
    """The counted *reasons* in words; *full* hosts have nothing free at all."""
    if not hosts and not full:
        return NO_HOST
    parts = []
    for reason, count in Counter(reason or "refused by Placement" for reason in reasons.values()).most_common():
        of_reason = [hosts[p] for p, r in reasons.items() if (r or "refused by Placement") == reason]
        parts.append(f"{count} {reason}{nearest_miss(reason, request, of_reason, names)}")
    if full:
        parts.append(f"{full} full")
    total = len(hosts) + full
    return f"{total} host{'s' if total != 1 else ''}: {', '.join(parts)}; see: eschedule hosts"


def _of_anchor(
    request: Request, anchor: UUID, hosts: Mapping[UUID, Host], names: Mapping[UUID, str], reasons: Mapping[UUID, str | None]
) -> str:  # fmt: skip
    """Why the one host that a group under strict affinity lives on cannot take another of its instances."""
    if anchor not in names:
        reason = "without a heartbeat"
    elif anchor not in hosts:
        reason = "full"
    else:
        reason = reasons.get(anchor) or "refused by Placement"
        reason += nearest_miss(reason, request, [hosts[anchor]], names)
    name = names.get(anchor, f"the host of provider {anchor}")
    return f"the group {request.group} has affinity and lives on {name}: {reason}; see: eschedule hosts"


def _hosts(answers: Iterable[Candidates]) -> dict[UUID, Host]:
    """Every host in *answers*, once each, though they may come in several."""
    providers = {p: summary for answer in answers for p, summary in answer.summaries.items()}
    hosts: dict[UUID, Host] = {}
    for shown in providers.values():
        host = hosts.setdefault(shown.root, Host(shown.root))
        host.traits |= shown.traits
        for resource_class, usage in shown.resources.items():
            host.free[resource_class] += usage.capacity - usage.used
    return hosts


def _basic_reason(host: Host, bridges: Iterable[str], *, is_alive: bool) -> str | None:
    """What keeps *host* from taking any such request, whatever its size."""
    if not is_alive:
        return "without a heartbeat"
    if DISABLED_TRAIT in host.traits:
        return "disabled"
    missing = next((bridge for bridge in bridges if bridge_trait(bridge) not in host.traits), None)
    return f"without the bridge {missing} (or it is one of libvirt's own networks)" if missing else None


def _reason(host: Host, request: Request, query: Query, *, is_lost: bool, is_barred: bool) -> str | None:
    """The first thing that *host* fails, None where nothing that we can judge speaks against it."""
    if complaints := unmet(query.required_traits(), frozenset(host.traits)):
        return complaints[0]
    if short := [c for c, amount in sorted(request.resources.items()) if host.free[c] < amount]:
        return f"short of {' and '.join(short)}"
    if is_barred:
        return f"taken by the group {request.group}"
    return "lost to another request just now" if is_lost else None


def nearest_miss(reason: str, request: Request, hosts: Sequence[Host], names: Mapping[UUID, str]) -> str:
    """How near the nearest of *hosts* is, where they are short of something."""
    if not reason.startswith("short of "):
        return ""
    classes = reason.removeprefix("short of ").split(" and ")
    best = max(hosts, key=lambda host: min(host.free[c] / request.resources[c] for c in classes))
    misses = "; ".join(f"{best.free[c]} {c} free, {request.resources[c]} needed" for c in classes)
    return f" ({'at best ' if len(hosts) > 1 else ''}{misses} on {names.get(best.provider, best.provider)})"


def _excluded(query: Query, bridges: Sequence[str], placement: Placement, puzzling: set[UUID]) -> dict[UUID, str | None]:
    """For each of the *puzzling* hosts the one constraint without which it would be a candidate."""
    reasons: dict[UUID, str | None] = {}
    for key in query.opaque_keys() if puzzling else ():
        try:
            answer = placement.candidates(str(query.without(key).on_hosts(bridges)), None)
        except EcomputeError:
            continue  # the rest makes no sense to Placement without it
        for provider in {candidate.host(answer.summaries) for candidate in answer.candidates} & puzzling:
            reasons.setdefault(provider, f"excluded by {key}=")
    return reasons


def _too_large_for_one(request: Request, placement: Placement, puzzling: list[UUID]) -> dict[UUID, str | None]:
    """Hosts with enough in all that give less than this to a single instance."""
    reasons: dict[UUID, str | None] = {}
    for provider in puzzling[:MAX_UNITS_LOOKED_AT]:
        inventories = placement.inventories(provider)
        for resource_class, amount in sorted(request.resources.items()):
            if resource_class in inventories and inventories[resource_class].max_unit < amount:
                reasons[provider] = f"giving one instance at most {inventories[resource_class].max_unit} {resource_class}"
    return reasons
