"""Amounts per resource class, compared: what an instance's claim has to hold. Pure."""

from __future__ import annotations

from collections.abc import Mapping


def most(*amounts: Mapping[str, int]) -> dict[str, int]:
    """The largest amount of each class in *amounts*.

    So much a claim has to hold of an instance whose guest runs with other amounts than are asked for: it may use what it was
    started with, and is to find what it will be started with.
    """
    found: dict[str, int] = {}
    for each in amounts:
        for resource_class, amount in each.items():
            found[resource_class] = max(amount, found.get(resource_class, 0))
    return found


def shown(amounts: Mapping[str, int]) -> str:
    """*amounts* for people: "512 MEMORY_MB, 2 VCPU"."""
    return ", ".join(f"{amount} {resource_class}" for resource_class, amount in sorted(amounts.items())) or "nothing"
