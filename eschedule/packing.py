"""Where the instances of a set go: which candidate each of them takes, by what the hosts have left. Pure.

Placement answers who could take one instance; whether several fit beside each other is counted here, from the summaries that
came with the answer. What is counted may be old by the time it is claimed: then Placement refuses the whole set, and ``batch``
asks again.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from common.model import GroupPolicy
from common.placement_types import Candidate, ProviderSummary
from eschedule.grouping import Group

Option = tuple[Candidate, UUID]  # and its host


@dataclass(frozen=True)
class Lack:
    """What there is too little of for one more: *free* of the *amount* that it takes."""

    resource_class: str
    free: int
    amount: int


@dataclass(frozen=True)
class Room:
    """How many fit on a host, and what the next one would lack; nothing where nobody counted further."""

    count: int
    lacks: tuple[Lack, ...]


def pack(
    count: int, options: Sequence[Option], summaries: Mapping[UUID, ProviderSummary], *, policy: str,
    group: Group | None, dice: random.Random,
) -> list[Option]:  # fmt: skip
    """The options that up to *count* instances take; fewer, where no more fit.

    Args:
        policy: "spread", "pack" or "random", of schedule.yaml.
        group: what it bars is not among *options*; under strict anti-affinity every host is taken once, under strict affinity
            only one host is.
    """
    if group and group.policy is GroupPolicy.AFFINITY:
        return _on_one_host(count, options, summaries)
    once = group is not None and group.policy is GroupPolicy.ANTI_AFFINITY
    return _Packing(options, summaries, policy, group, dice, once=once).take(count)


def room(options: Sequence[Option], summaries: Mapping[UUID, ProviderSummary], most: int) -> dict[UUID, Room]:
    """How many of what *options* are of each host has room for, at most *most*, and what the next one would lack."""
    hosts: dict[UUID, list[Option]] = {}
    for option in options:
        hosts.setdefault(option[1], []).append(option)
    found = {}
    for host, own in hosts.items():
        packing = _Packing(own, summaries, "pack", None, random.Random(0), once=False)  # noqa: S311 - no choice
        taken = len(packing.take(most))
        found[host] = Room(taken, packing.lacking(own[0]) if taken < most else ())
    return found


def _on_one_host(count: int, options: Sequence[Option], summaries: Mapping[UUID, ProviderSummary]) -> list[Option]:
    """All on the first host that takes all, else as many as the host that takes the most."""
    best: list[Option] = []
    for host in dict.fromkeys(provider for _, provider in options):
        own = [option for option in options if option[1] == host]
        taken = _Packing(own, summaries, "pack", None, random.Random(0), once=False).take(count)  # noqa: S311 - no choice
        best = max(best, taken, key=len)
        if len(best) == count:
            break
    return best


class _Packing:
    """Takes the best option again and again, each time with what is left.

    The heap holds every option that still fits under how good it was when it was last looked at. An option gets worse as it is
    taken, or better under the policies that fill hosts up; so one that is still no worse than the next may be taken at once.
    """

    def __init__(
        self, options: Sequence[Option], summaries: Mapping[UUID, ProviderSummary], policy: str, group: Group | None,
        dice: random.Random, *, once: bool,
    ) -> None:  # fmt: skip
        self._options, self._policy, self._group, self._once = options, policy, group, once
        self._capacity = {(p, c): usage.capacity for p, summary in summaries.items() for c, usage in summary.resources.items()}
        self._used = Counter({(p, c): usage.used for p, summary in summaries.items() for c, usage in summary.resources.items()})
        self._on_host: Counter[UUID] = Counter()
        self._dice = dice

    def take(self, count: int) -> list[Option]:
        heap = [(self._badness(option), self._dice.random(), at) for at, option in enumerate(self._options)]
        heapq.heapify(heap)
        taken: list[Option] = []
        while heap and len(taken) < count:
            badness, tie, at = heap[0]
            option = self._options[at]
            if not self._fits(option):
                heapq.heappop(heap)
            elif (now := self._badness(option)) > badness:
                heapq.heapreplace(heap, (now, tie, at))
            else:
                self._put(option)
                taken.append(option)
                heapq.heapreplace(heap, (self._badness(option), self._dice.random(), at))
        return taken

    def lacking(self, option: Option) -> tuple[Lack, ...]:
        """What is too little now for *option*."""
        found = []
        for key, amount in _amounts(option[0]):
            free = self._capacity.get(key, 0) - self._used[key]
            if free < amount:
                found.append(Lack(key[1], free, amount))
        return tuple(sorted(found, key=lambda lack: lack.resource_class))

    def _put(self, option: Option) -> None:
        candidate, host = option
        self._on_host[host] += 1
        self._used.update(dict(_amounts(candidate)))

    def _fits(self, option: Option) -> bool:
        candidate, host = option
        if self._once and self._on_host[host]:
            return False
        return all(self._used[key] + amount <= self._capacity.get(key, 0) for key, amount in _amounts(candidate))

    def _badness(self, option: Option) -> tuple[int, float, float]:
        """What is taken first is smallest: by what the group would have, then by the order of schedule.yaml."""
        candidate, host = option
        rank = self._group.rank(host, self._on_host[host]) if self._group else 0
        if self._policy == "random":
            return rank, 0.0, 0.0
        most, mean = self._fullness(candidate)
        return (rank, most, mean) if self._policy == "spread" else (rank, -most, -mean)

    def _fullness(self, candidate: Candidate) -> tuple[float, float]:
        shares = [
            (self._used[key] + amount) / capacity if (capacity := self._capacity.get(key, 0)) else 1.0
            for key, amount in _amounts(candidate)
        ]
        return (round(max(shares), 2), round(sum(shares) / len(shares), 2)) if shares else (0.0, 0.0)


def _amounts(candidate: Candidate) -> Iterable[tuple[tuple[UUID, str], int]]:
    for provider, amounts in candidate.allocations.items():
        for resource_class, amount in amounts.items():
            yield (provider, resource_class), amount
