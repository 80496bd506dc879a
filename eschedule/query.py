"""Placement's query string as data: add what every request of ours needs, take one constraint away. Pure.

The user's query is passed through as it is, so that everything that Placement can express works. ``scheduler`` and
``whynot`` ask with what is built here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote
from uuid import UUID

from common.nics import bridge_trait
from common.placement_types import DISABLED_TRAIT, OWNER_TRAIT

# What Placement writes bare in its own documentation; quoting less keeps the messages readable.
_BARE = ",:!"


@dataclass(frozen=True)
class Query:
    """The parameters of one ``GET /allocation_candidates``, in order."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Query:
        return cls(tuple(parse_qsl(text, keep_blank_values=True)))

    def __str__(self) -> str:
        return "&".join(f"{quote(key, safe='')}={quote(value, safe=_BARE)}" for key, value in self.pairs)

    def on_hosts(self, bridges: Iterable[str] = ()) -> Query:
        """The same on hosts of ours that are not disabled and have *bridges*.

        Placement takes ``root_required`` once, so it is merged.
        """
        own = [trait for key, value in self.pairs if key == "root_required" for trait in _parts(value)]
        traits = dict.fromkeys([*own, OWNER_TRAIT, f"!{DISABLED_TRAIT}", *map(bridge_trait, bridges)])
        return Query((*self.without("root_required").pairs, ("root_required", ",".join(traits))))

    def on_host(self, provider: UUID) -> Query:
        """The same on *provider* alone, as far as Placement can be told so: an ``in_tree`` of the user's own stays as it is."""
        keys = {key for key, _ in self.pairs}
        if "in_tree" in keys or "resources" not in keys:
            return self
        return Query((*self.pairs, ("in_tree", str(provider))))

    def without(self, key: str) -> Query:
        return Query(tuple(pair for pair in self.pairs if pair[0] != key))

    def required_traits(self) -> tuple[frozenset[str], ...]:
        """The traits that a host must have, as alternatives: it needs one trait of each set. ``!`` marks an unwanted one."""
        values = [value for key, value in self.pairs if key in ("required", "root_required")]
        return tuple(_alternatives(part) for value in values for part in _parts(value))

    def opaque_keys(self) -> tuple[str, ...]:
        """The parameters whose meaning only Placement knows (aggregates, subtrees, granular groups), each once."""
        known = ("resources", "required", "root_required", "limit")
        return tuple(dict.fromkeys(key for key, _ in self.pairs if key not in known))


def any_free(resource_class: str) -> Query:
    """Every host of ours, disabled ones too, with any of *resource_class* free."""
    return Query((("resources", f"{resource_class}:1"), ("root_required", OWNER_TRAIT)))


def unmet(wanted: Iterable[frozenset[str]], traits: frozenset[str]) -> tuple[str, ...]:
    """Which of the *wanted* alternatives a host with *traits* does not meet, in words: "lacks A or B", "has C"."""
    return tuple(_complaint(one_of) for one_of in wanted if not any(_met(trait, traits) for trait in one_of))


def _met(wanted: str, traits: frozenset[str]) -> bool:
    return wanted.removeprefix("!") not in traits if wanted.startswith("!") else wanted in traits


def _complaint(one_of: frozenset[str]) -> str:
    names = " or ".join(sorted(one_of))
    return f"has {names.removeprefix('!')}" if names.startswith("!") else f"lacks {names}"


def _parts(value: str) -> list[str]:
    """``A,!B`` asks for both; ``in:A,B`` for one of them."""
    return [value] if value.startswith("in:") else [part for part in value.split(",") if part]


def _alternatives(part: str) -> frozenset[str]:
    return frozenset(part.removeprefix("in:").split(",")) if part.startswith("in:") else frozenset((part,))
