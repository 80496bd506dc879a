"""Labels of hosts and instances as they are typed, and selectors (``-l app=web,!old``) that choose instances by them. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.errors import ConfigError
from common.text import quoted

MOST_LABELS = 64
# As Kubernetes has them, without prefixes.
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?")
_RULE = "names and values of labels have 1 to 63 of A-Z a-z 0-9 _ . / -, letters or digits at the ends"
_SELECTORS = "app=web, app!=web, app and !app, with commas between those that are all to hold"


def parse_labels(texts: Collection[str]) -> tuple[dict[str, str], set[str]]:
    """``NAME=VALUE`` to set and ``NAME-`` to take away, as kubectl has them.

    Raises:
        ConfigError: one is neither, or a name is there twice.
    """
    add, remove = dict[str, str](), set[str]()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and text.endswith("-"):
            name = text[:-1]
        elif not equals:
            raise ConfigError(f"{quoted(text)} is neither NAME=VALUE, which sets a label, nor NAME-, which takes it away")
        check_label(name, value, text)
        if name in add or name in remove:
            raise ConfigError(f"the label {name} is named twice")
        if equals:
            add[name] = value
        else:
            remove.add(name)
    return add, remove


def parse_given(texts: Collection[str], where: str = "--label") -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE`` for something new, in the order of the names.

    Raises:
        ConfigError: one is no label, a name is there twice, or there are too many.
    """
    add, remove = parse_labels(texts)
    if remove:
        raise ConfigError(f"{where} {quoted(f'{min(remove)}-')} takes a label away, and there is none yet; give NAME=VALUE")
    return tuple(sorted(few_enough(add, "an instance").items()))


def check_label(name: str, value: str, text: str) -> None:
    """Raises: ConfigError: *text*, which says *name* and *value*, is no label."""
    if not _LABEL.fullmatch(name) or (value and not _LABEL.fullmatch(value)):
        raise ConfigError(f"{quoted(text)}: {_RULE}")


def few_enough(labels: Mapping[str, str], whose: str) -> Mapping[str, str]:
    """*labels*. Raises: ConfigError: they are too many."""
    if len(labels) > MOST_LABELS:
        raise ConfigError(f"{whose} has at most {MOST_LABELS} labels; take some away: NAME-")
    return labels


def shown(labels: Mapping[str, str]) -> str:
    """*labels* in one cell: ``app=web,tier=front``."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


class _Kind(enum.Enum):
    IS, IS_NOT, HAS, HAS_NOT = range(4)


@dataclass(frozen=True)
class Selector:
    """What the labels of an instance must be like: all of *parts* are to hold."""

    parts: tuple[tuple[_Kind, str, str], ...]

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether *labels* are so. Who lacks a label has not its value either, as with kubectl."""
        return all(_holds(kind, labels.get(name), value) for kind, name, value in self.parts)


def _holds(kind: _Kind, found: str | None, value: str) -> bool:
    if kind is _Kind.IS:
        return found == value
    if kind is _Kind.IS_NOT:
        return found != value
    return (found is not None) == (kind is _Kind.HAS)


def parse_selector(text: str) -> Selector:
    """What follows ``-l``.

    Raises:
        ConfigError: it is no selector.
    """
    return Selector(tuple(_part(part.strip(), text) for part in text.split(",")))


def _part(part: str, text: str) -> tuple[_Kind, str, str]:
    name, equals, value = part.partition("=")
    if equals and name.endswith("!"):
        kind, name = _Kind.IS_NOT, name[:-1]
    elif equals:
        kind, value = _Kind.IS, value.removeprefix("=")  # kubectl's app==web
    else:
        kind, name = (_Kind.HAS_NOT, part[1:]) if part.startswith("!") else (_Kind.HAS, part)
    if not _LABEL.fullmatch(name) or (value and not _LABEL.fullmatch(value)):
        what = "has an empty part" if not part else f"has {quoted(part)}, which is none"
        raise ConfigError(f"the selector {quoted(text)} {what}; selectors are {_SELECTORS}; {_RULE}")
    return kind, name, value
