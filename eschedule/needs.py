"""What an instance needs, said by options (``--cpus 2 --memory 4G --trait …``), as a query string of Placement's.

The options are put into the raw query where both are given: what it does not say is added, and what contradicts it is refused.
Where ``--like`` names an instance its query is the *base*: there the options replace what it says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus
from uuid import UUID

from common.errors import ConfigError
from common.text import quoted
from common.validate import parse_count
from common.validate_query import MOST_OF_CLASS
from eschedule.sizes import GIB, MIB, parse_size

if TYPE_CHECKING:
    from eschedule.session import Session

_TRAIT = re.compile(r"[A-Z0-9_]{1,255}")
OPTION_OF = {"VCPU": "--cpus", "MEMORY_MB": "--memory", "DISK_GB": "--disk"}
OPTIONS = ("cpus", "memory", "disk", "trait", "not_trait", "host", "zone")
_EXAMPLE = "--cpus 2 --memory 4G --disk 20G"


@dataclass(frozen=True)
class Places:
    """Who knows where things are; asked only where an option names a place.

    Args:
        provider_of: the provider of the host with this name.
        trait_of: the trait of the zone with this name.
    """

    provider_of: Callable[[str], UUID]
    trait_of: Callable[[str], str]


def places_of(session: Session) -> Places:
    """Those of the hosts that *session* knows."""
    from eschedule.listing import find_host  # noqa: PLC0415 - most requests name no place
    from eschedule.zones import known_zone, zone_trait  # noqa: PLC0415

    store, keys = session.store, session.keys
    return Places(
        lambda host: find_host(store, keys, host).provider, lambda zone: zone_trait(known_zone(store, keys, zone))
    )  # fmt: skip


def amounts_of(options: argparse.Namespace) -> dict[str, int]:
    """What ``--cpus``, ``--memory`` and ``--disk`` ask for, by resource class.

    Raises:
        ConfigError: one is no amount; one line.
    """
    amounts = {}
    if options.cpus is not None:
        amounts["VCPU"] = parse_count(options.cpus, "--cpus", 1, MOST_OF_CLASS["VCPU"])
    if options.memory is not None:
        amounts["MEMORY_MB"] = parse_size(options.memory, "--memory", MIB, "4G or 512M")
    if options.disk is not None:
        amounts["DISK_GB"] = parse_size(options.disk, "--disk", GIB, "20G")
    return amounts


def query_of(options: argparse.Namespace, places: Callable[[], Places], base: str = "") -> str:
    """The query that *options* make, not checked yet where it came raw.

    Args:
        base: of the instance that this one is to be like.

    Raises:
        ConfigError: an option is none, or contradicts the raw query, or too little is said.
        EcomputeError: as *places*.
    """
    if all(getattr(options, name) is None for name in OPTIONS):
        return base if options.query is None else str(options.query)
    amounts, traits = amounts_of(options), _traits(options)
    known = places() if options.host is not None or options.zone is not None else None
    parts = _Parts(base if options.query is None else options.query, is_base=options.query is None)
    if not parts.text and (missing := [option for name, option in OPTION_OF.items() if name not in amounts]):
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(f"{' and '.join(missing)} {verb} missing; say all that it needs, as in {_EXAMPLE}")
    parts.put_amounts(amounts)
    if known is not None and options.zone is not None:
        traits.append(known.trait_of(options.zone))
    parts.add_traits(traits)
    if known is not None and options.host is not None:
        parts.put_host(options.host, known.provider_of(options.host))
    return parts.text


def _traits(options: argparse.Namespace) -> list[str]:
    found = list[str]()
    for option, mark, values in (("--trait", "", options.trait), ("--not-trait", "!", options.not_trait)):
        found.extend(f"{mark}{check_trait(option, value)}" for value in values or ())
    return found


def check_trait(where: str, text: str) -> str:
    """*text*. Raises: ConfigError: it is no trait."""
    if not _TRAIT.fullmatch(text):
        raise ConfigError(f"{where} {quoted(text)} is no trait; traits have A-Z, 0-9 and _, as in HW_CPU_X86_AVX2")
    return text


class _Parts:
    """A query to which more is added. *is_base*: it is another instance's, so that what is asked for replaces what it says."""

    def __init__(self, text: str, *, is_base: bool) -> None:
        self._parts = text.removeprefix("?").split("&") if text else []
        self._is_base = is_base

    @property
    def text(self) -> str:
        return "&".join(self._parts)

    def put_amounts(self, amounts: Mapping[str, int]) -> None:
        """Have ``resources=`` ask for *amounts*."""
        if not amounts:
            return
        at, known = self._resources()
        grouped = {name for part in self._parts if re.match(r"resources[^=]", part) for name in _items(part)}
        for name, amount in amounts.items():
            option, cpus = OPTION_OF[name], {"VCPU", "PCPU"} if name == "VCPU" else {name}
            if self._is_base and name == "VCPU" and "PCPU" in known:
                known["PCPU"] = str(amount)
            elif cpus & grouped or (name == "VCPU" and "PCPU" in known):
                raise ConfigError(
                    f"{option} is given, and the request asks for {min(cpus & (grouped | known.keys()))} by itself"
                )
            elif self._is_base or known.get(name, str(amount)) == str(amount):
                known[name] = str(amount)
            else:
                raise ConfigError(f"{option} comes to {amount}, and the request says {name}:{known[name]}; give one of them")
        text = "resources=" + ",".join(f"{name}:{amount}" if amount else name for name, amount in known.items())
        self._parts[at : at + 1] = [text]

    def _resources(self) -> tuple[int, dict[str, str]]:
        """Where ``resources=`` is, and what it asks for."""
        for at, part in enumerate(self._parts):
            if part.startswith("resources="):
                return at, _items(part)
        return len(self._parts), {}

    def add_traits(self, traits: list[str]) -> None:
        if traits:
            self._parts.append(f"required={','.join(traits)}")

    def put_host(self, host: str, provider: UUID) -> None:
        """Have it ask for *host* alone."""
        there = [part.partition("=")[2] for part in self._parts if part.startswith("in_tree=")]
        if there and not self._is_base and there != [str(provider)]:
            raise ConfigError(
                f"--host {host} is the provider {provider}, and the request says in_tree={there[0]}; give one of them"
            )
        self._parts = [*(part for part in self._parts if not part.startswith("in_tree=")), f"in_tree={provider}"]


def _items(part: str) -> dict[str, str]:
    """``VCPU: "1"`` of each item of ``resources=VCPU:1,…``; what is none is left for the check of the whole to refuse."""
    items = unquote_plus(part.partition("=")[2]).split(",")
    return {name: amount for name, _, amount in (item.partition(":") for item in items)}
