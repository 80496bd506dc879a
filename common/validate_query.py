"""Placement's query string as users give it: ``resources=VCPU:1,DISK_GB:1,MEMORY_MB:256&required=HW_CPU_X86_AVX2``.

Checked here, before anything is touched, against what GET /allocation_candidates takes at microversion 1.39, granular
groups (``resources_NAME=``) included, so that a slip of the pen is one line and not an answer of HTTP 400. What only the
server knows (which custom classes, traits, aggregates and providers there are) is left to it. Called through
``common/validate.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote_plus
from uuid import UUID

import os_resource_classes

from common.errors import ConfigError
from common.text import nearest, quoted

EXAMPLE = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
MOST_CHARACTERS = 8192
MOST_AMOUNT = 2**31 - 1  # Placement's column
# More than any host that we know of has, so that a slipped zero is told apart from "no host has so much room".
MOST_OF_CLASS = {"VCPU": 4096, "PCPU": 4096, "MEMORY_MB": 64 * 1024 * 1024, "DISK_GB": 1024 * 1024}

_GROUPED = ("resources", "required", "member_of", "in_tree")
_WHOLE = ("group_policy", "root_required", "same_subtree")
_REPEATABLE = ("required", "member_of", "same_subtree")
_NAME = re.compile(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})?")
_CLASS = re.compile(r"[A-Z0-9_]{1,255}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_STANDARD_CLASSES = frozenset(os_resource_classes.STANDARDS)
_OTHER_NAMES = {"CPU": "VCPU", "CPUS": "VCPU", "VCPUS": "VCPU", "RAM": "MEMORY_MB", "RAM_MB": "MEMORY_MB", "MEM": "MEMORY_MB"}


@dataclass(frozen=True)
class RequestQuery:
    """A checked query.

    Args:
        parameters: name and value of each parameter in a fixed order, so that equal requests are equal.
        resources: the amount of each resource class, summed over all groups.
    """

    parameters: tuple[tuple[str, str], ...]
    resources: dict[str, int]

    @property
    def query(self) -> str:
        """The query string for Placement, without ``limit``."""
        return "&".join(f"{name}={quote(value, safe=':,!-_')}" for name, value in self.parameters)

    def values(self, name: str) -> tuple[str, ...]:
        """Every value of the parameter *name*."""
        return tuple(v for n, v in self.parameters if n == name)


def parse_resources_query(query: str) -> RequestQuery:
    """Check *query* and put it into its normal form.

    Raises:
        ConfigError: it is no query of Placement's, or none for an instance; one line.
    """
    parameters = [_normal(name, value) for name, value in _split(query)]
    _check_repeats([name for name, _ in parameters])
    _check_groups(parameters)
    _check_trait_conflicts(parameters)
    return RequestQuery(tuple(sorted(parameters)), _total(parameters))


def parse_amounts(query: str, classes: Iterable[str]) -> dict[str, int]:
    """The amounts of some of *classes* in ``resources=VCPU:2,DISK_GB:20``, and nothing else; for what is there already.

    Raises:
        ConfigError: it is no such query; one line.
    """
    given = [_normal(name, value) for name, value in _split(query)]
    _check_repeats([name for name, _ in given])
    if others := [name for name, _ in given if name != "resources"]:
        raise ConfigError(f"{others[0]}= chooses a host, and is not taken for an instance that has one; give resources= alone")
    amounts = {c: int(amount) for _, value in given for c, _, amount in (item.partition(":") for item in value.split(","))}
    if strange := sorted(amounts.keys() - set(classes)):
        raise ConfigError(f"{strange[0]} cannot be changed; {', '.join(classes)} can")
    return amounts


def _split(query: str) -> Iterable[tuple[str, str]]:
    text = query.removeprefix("?")
    if not text:
        raise ConfigError(f"the request is empty; give what the instance needs, for example {EXAMPLE}")
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"the request has {len(text)} characters, at most {MOST_CHARACTERS} are taken")
    for part in text.split("&"):
        name, equals, value = part.partition("=")
        if not part:
            raise ConfigError(f"the request {quoted(query)} has an empty part beside a &; parts look like {EXAMPLE}")
        if not equals:
            raise ConfigError(f"{quoted(part)} in the request has no =; parts look like {EXAMPLE}")
        yield _decoded(name), _decoded(value)


def _decoded(text: str) -> str:
    try:
        decoded = unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise ConfigError(f"{quoted(text)} in the request is no UTF-8 behind its % escapes") from None
    if any(c.isspace() or not c.isprintable() for c in decoded):
        raise ConfigError(f"{quoted(decoded)} in the request has spaces or control characters; none are taken, as in {EXAMPLE}")
    return decoded


def _normal(name: str, value: str) -> tuple[str, str]:
    """The parameter *name* with its *value* checked and in normal form."""
    if name == "limit":
        raise ConfigError("limit in the request is not taken: it is candidates_limit in schedule.yaml")
    grouped = _NAME.fullmatch(name)
    if not grouped and name not in _WHOLE:
        near = nearest(name, (*_GROUPED, *_WHOLE))
        known = f"{', '.join(f'{g}[GROUP]' for g in _GROUPED)}, {', '.join(_WHOLE)}"
        raise ConfigError(
            f"{quoted(name)} in the request is unknown; {f'did you mean {near}?' if near else f'known are {known}'}"
        )
    if not value:
        raise ConfigError(
            f"{name}= in the request is empty; " + (f"write it like {EXAMPLE}" if name == "resources" else "leave it out")
        )
    kind = grouped.group(1) if grouped else name
    return name, _CHECKS[kind](name, value)


def _resources(name: str, value: str) -> str:
    amounts: dict[str, int] = {}
    for item in value.split(","):
        resource_class, colon, amount = item.partition(":")
        if not colon or not resource_class or not amount:
            raise ConfigError(f"{quoted(item)} in {name}= is no CLASS:AMOUNT; write it like {EXAMPLE}")
        _check_class(name, resource_class)
        if resource_class in amounts:
            raise ConfigError(f"{name}= names {resource_class} twice; give it once, with the whole amount")
        amounts[resource_class] = _amount(name, resource_class, amount)
    return ",".join(f"{c}:{a}" for c, a in sorted(amounts.items()))


def _check_class(name: str, resource_class: str) -> None:
    if resource_class in _STANDARD_CLASSES:
        return
    if _CLASS.fullmatch(resource_class) and resource_class.startswith("CUSTOM_") and resource_class != "CUSTOM_":
        return
    near = _OTHER_NAMES.get(resource_class.upper()) or nearest(resource_class, _STANDARD_CLASSES)
    hint = f"did you mean {near}?" if near else "usual are VCPU, MEMORY_MB and DISK_GB; others of your own begin with CUSTOM_"
    raise ConfigError(f"{quoted(resource_class)} in {name}= is no resource class; {hint}")


def _amount(name: str, resource_class: str, amount: str) -> int:
    if not re.fullmatch(r"[0-9]+", amount):
        raise ConfigError(f"{resource_class} in {name}= is {quoted(amount)}, needs a whole number from 1")
    value = int(amount) if len(amount) < 20 else MOST_AMOUNT + 1
    if value < 1:
        raise ConfigError(f"{resource_class} in {name}= is 0, needs a whole number from 1; leave out what is not needed")
    _check_most(f"{resource_class} in {name}=", resource_class, value, amount)
    return value


def _check_most(where: str, resource_class: str, value: int, shown: str) -> None:
    most = MOST_OF_CLASS.get(resource_class, MOST_AMOUNT)
    if value > most:
        unit = {"MEMORY_MB": " (MiB)", "DISK_GB": " (GiB)"}.get(resource_class, "")
        raise ConfigError(f"{where} is {shown[:40]}, at most {most}{unit} is taken")


def _traits(name: str, value: str) -> str:
    any_of = value.startswith("in:")
    items = value.removeprefix("in:").split(",")
    if any_of and name == "root_required":
        raise ConfigError("root_required= in the request takes no in:; list traits, each of which is required, or not with !")
    for item in items:
        trait = item if any_of else item.removeprefix("!")
        if not _CLASS.fullmatch(trait):
            form = "in:HW_CPU_X86_AVX2,CUSTOM_GPU" if any_of else "HW_CPU_X86_AVX2,!CUSTOM_OLD"
            raise ConfigError(
                f"{quoted(item)} in {name}= is no trait (capital letters, digits and _); write it like {name}={form}"
            )
    return ("in:" if any_of else "") + ",".join(sorted(set(items)))


def _aggregates(name: str, value: str) -> str:
    prefix = next((p for p in ("!in:", "in:", "!") if value.startswith(p)), "")
    items = value.removeprefix(prefix).split(",")
    if len(items) > 1 and not prefix.endswith("in:"):
        raise ConfigError(f"{name}= in the request lists {len(items)} aggregates; write in: (or !in:) before the first")
    return prefix + ",".join(sorted({_uuid(name, item, "the uuid of an aggregate") for item in items}))


def _in_tree(name: str, value: str) -> str:
    return _uuid(name, value, "the uuid of a host (eschedule hosts)")


def _uuid(name: str, text: str, what: str) -> str:
    if not _UUID.fullmatch(text):
        raise ConfigError(f"{quoted(text)} in {name}= is no uuid; it takes {what}")
    return str(UUID(text))


def _group_policy(name: str, value: str) -> str:
    if value not in ("none", "isolate"):
        raise ConfigError(f"{name}= in the request is {quoted(value)}, needs none or isolate")
    return value


def _same_subtree(name: str, value: str) -> str:
    items = value.split(",")
    if not all(items):
        raise ConfigError(
            f"{name}= in the request has an empty name in {quoted(value)}; list group names, as in resources_NAME="
        )
    return ",".join(sorted(set(items)))


_CHECKS = {
    "resources": _resources,
    "required": _traits,
    "root_required": _traits,
    "member_of": _aggregates,
    "in_tree": _in_tree,
    "group_policy": _group_policy,
    "same_subtree": _same_subtree,
}


def _check_repeats(names: Sequence[str]) -> None:
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and _kind_and_group(name)[0] not in _REPEATABLE:
            raise ConfigError(f"{name}= is given {names.count(name)} times in the request; give it once")


def _kind_and_group(name: str) -> tuple[str, str]:
    grouped = _NAME.fullmatch(name)
    return (grouped.group(1), grouped.group(2) or "") if grouped else (name, "")


def _check_groups(parameters: Sequence[tuple[str, str]]) -> None:
    """What Placement asks of groups: resources in each that is not part of a subtree, and a policy when there are several."""
    grouped = [(name, *_kind_and_group(name)) for name, _ in parameters if _NAME.fullmatch(name)]
    with_resources = {group for _, kind, group in grouped if kind == "resources"}
    groups = {group for _, _, group in grouped}
    subtrees = {suffix for name, value in parameters if name == "same_subtree" for suffix in value.split(",")}
    if not with_resources:
        raise ConfigError(f"the request has no resources=; say what the instance needs, for example {EXAMPLE}")
    for name, _, group in grouped:
        if group not in with_resources and group not in subtrees:
            near = "" if group == "" else f", or name the group in same_subtree=, or write {_kind_and_group(name)[0]}="
            raise ConfigError(f"{name}= in the request has no resources{group}= to apply to; add it{near}")
    for suffix in sorted(subtrees - groups):
        raise ConfigError(f"same_subtree= names the group {quoted(suffix)}, but the request has no resources{suffix}=")
    if len(groups - {""}) > 1 and "group_policy" not in dict(parameters):
        raise ConfigError(
            "the request has several groups; add group_policy=none (may share a provider) or group_policy=isolate"
        )


def _check_trait_conflicts(parameters: Sequence[tuple[str, str]]) -> None:
    for name in sorted({name for name, _ in parameters if _kind_and_group(name)[0] in ("required", "root_required")}):
        values = [value for n, value in parameters if n == name]
        required = {t for v in values if not v.startswith("in:") for t in v.split(",")}
        for trait in sorted(required):
            if f"!{trait}" in required:
                raise ConfigError(f"{name}= in the request both requires and forbids {trait}")


def _total(parameters: Sequence[tuple[str, str]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, value in parameters:
        if _kind_and_group(name)[0] == "resources":
            for resource_class, _, amount in (item.partition(":") for item in value.split(",")):
                total[resource_class] = total.get(resource_class, 0) + int(amount)
    for resource_class, whole in sorted(total.items()):
        _check_most(f"{resource_class} in the whole request", resource_class, whole, str(whole))
    missing = [] if {"VCPU", "PCPU"} & total.keys() else ["VCPU"]
    missing += [c for c in ("MEMORY_MB", "DISK_GB") if c not in total]
    if missing:
        raise ConfigError(f"resources= lacks {' and '.join(missing)}, which every instance needs; for example {EXAMPLE}")
    return total
