"""What a command found, in the form that was asked for: for people (``-o wide`` with more columns), or for programs (``json``,
``yaml``, ``name``, ``custom-columns=…``). Pure but for ``emit``, which prints.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.text import quoted
from eschedule.tables import Look, table

if TYPE_CHECKING:
    from eschedule.screen import Screen

CUSTOM = "custom-columns="
FORMS = ("json", "yaml", "name", "wide")
ABSENT = "<none>"  # as kubectl has it
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\[([0-9]+)\]|\.?\[(['\"])(.*?)\3\]")
Path = tuple[str | int, ...]


def emit(screen: Screen, options: argparse.Namespace, value: Callable[[], Any], human: Callable[[Look], str]) -> None:
    """Print what was found: *value*, of JSON types, for programs; what *human* makes of it for people.

    Raises:
        ConfigError: such columns make no sense.
    """
    form = options.output
    if not is_for_programs(options):
        screen.data(human(screen.look(is_wide=form == "wide")))
    else:
        screen.data(rendered(value(), form))


def is_for_programs(options: argparse.Namespace) -> bool:
    """Whether programs are to read what is printed."""
    return options.output not in (None, "wide")


def parse_form(text: str) -> str:
    """The form of ``-o``, as it was given.

    Raises:
        ConfigError: there is none such.
    """
    if text.startswith(CUSTOM):
        columns_of(text.removeprefix(CUSTOM))
    elif text not in FORMS:
        raise ConfigError(f"-o {quoted(text)} is no form of output; there are {', '.join(FORMS)} and {CUSTOM}NAME:.field,…")
    return text


def rendered(value: Any, form: str) -> str:
    """*value* in a *form* for programs."""
    if form == "json":
        return as_json(value)
    if form == "yaml":
        import yaml  # noqa: PLC0415 - only this form needs it

        plain = json.loads(json.dumps(value))  # words that are enumerations here are text there
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)
    rows = value if isinstance(value, list) else [value]
    if form == "name":
        return "".join(f"{row.get('name', '')}\n" for row in rows)
    columns = columns_of(form.removeprefix(CUSTOM))
    return table([name for name, _ in columns], [[_cell(found(row, path)) for _, path in columns] for row in rows])


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def columns_of(text: str) -> list[tuple[str, Path]]:
    """Names and paths of ``NAME:.name,ADDRESS:.addresses[0]``.

    Raises:
        ConfigError: it is not of that kind.
    """
    columns = []
    for part in text.split(","):
        name, colon, path = part.partition(":")
        if not name or not colon:
            raise ConfigError(f"{CUSTOM}{part}: a column is a name and a field, as in NAME:.name,HOST:.host.name")
        columns.append((name, _path(path, part)))
    return columns


def _path(text: str, part: str) -> Path:
    steps: list[str | int] = []
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None:
            raise ConfigError(f"{CUSTOM}{part}: {quoted(text)} is no field; fields look like .name, .host.name, .addresses[0]")
        steps.append(int(step[2]) if step[2] is not None else step[1] if step[1] is not None else step[4])
        at = step.end()
    if not steps:
        raise ConfigError(f"{CUSTOM}{part}: it names no field; fields look like .name, .host.name, .addresses[0]")
    return tuple(steps)


def found(value: Any, path: Sequence[str | int]) -> Any:
    """What is at *path* in *value*; None where there is nothing."""
    for step in path:
        if isinstance(value, dict) and isinstance(step, str):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
