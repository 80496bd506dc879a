"""In which order candidates are tried: the policy of schedule.yaml as a pure function; the caller brings the dice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from uuid import UUID

from common.placement_types import Candidate, Candidates, ProviderSummary


def in_order(candidates: Candidates, policy: str, dice: random.Random) -> list[Candidate]:
    """*candidates* as *policy* has them tried: "spread" the emptiest host first, "pack" the fullest, "random" any.

    Hosts that come to the same hundredth are shuffled, so that many clients at once do not all run to one host.
    """
    shuffled = list(candidates.candidates)
    dice.shuffle(shuffled)
    if policy == "random":
        return shuffled
    return sorted(shuffled, key=lambda candidate: fullness(candidate, candidates.summaries), reverse=policy == "pack")


def fullness(candidate: Candidate, summaries: Mapping[UUID, ProviderSummary]) -> tuple[float, float]:
    """How full the candidate's providers would be: the fullest of the resources asked for, then their mean; 0 to 1."""
    shares = []
    for provider, amounts in candidate.allocations.items():
        for resource_class, amount in amounts.items():
            usage = summaries[provider].resources[resource_class]
            shares.append((usage.used + amount) / usage.capacity if usage.capacity else 1.0)
    return (round(max(shares), 2), round(sum(shares) / len(shares), 2)) if shares else (0.0, 0.0)
