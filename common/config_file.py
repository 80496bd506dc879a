"""Reads one YAML file and judges it by a JSON Schema; every fault becomes a line that a person can act on.

Knows nothing of what the keys mean. The YAML is a subset of 1.2: ``on``, ``off``, ``yes`` and ``no`` are texts, ``010`` and
``12:30`` are texts too, and there are no aliases, tags or repeated keys, since a configuration that surprises is a fault.
Called by ``common/config.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.errors import ConfigError
from common.schema_check import is_certainly_valid
from common.schemas import Schema
from common.text import escaped, nearest, quoted

if TYPE_CHECKING:
    import jsonschema

MOST_BYTES = 1024 * 1024

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """One fault. *paths* are the keys that it speaks of; *text* is the line without the file's name."""

    paths: tuple[KeyPath, ...]
    text: str


def dotted(path: KeyPath) -> str:
    """``("etcd", "endpoints", 0)`` as ``etcd.endpoints[0]``."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{escaped(key)[:80]}" for key in path]
    return "".join(parts).removeprefix(".")


# -- find and read -------------------------------------------------------------------------------------------------------


def search_directories(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a configuration file is looked for when none is named: here, the user's own, the machine's."""
    home = environment.get("HOME", "")
    own = (Path(home) / ".config" / "etcd-compute",) if home.startswith("/") else ()
    return (Path(), *own, Path("/etc/etcd-compute"))


def find_file(name: str, directories: Sequence[Path]) -> Path | None:
    """The first *name* that there is in *directories*.

    Raises:
        ConfigError: nobody may look there.
    """
    for directory in directories:
        path = directory / name
        try:
            if path.exists():
                return path
        except OSError as error:
            raise ConfigError(f"{path}: cannot be looked for: {error.strerror}; name a file with --config") from error
    return None


def read_document(path: Path) -> dict[str, Any]:
    """The mapping that the YAML file *path* holds; an empty file is an empty mapping.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is no YAML mapping.
    """
    text = _read_text(path)
    try:
        node = _compose(text)
        problems = list(_key_problems(node, ()))
        if problems:
            raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
        document = _Loader("").construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_fault(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply to be a configuration") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is {found(document)}, needs to be a mapping (lines of the form key: value)")
    return document


@dataclass(frozen=True)
class Document:
    """One of the mappings of a YAML text; *lines* has the line of each of its keys and items, and of itself under ()."""

    value: dict[str, Any]
    lines: Mapping[KeyPath, int]


def documents_in(text: str, name: str) -> list[Document]:
    """The mappings in *text*, which has ``---`` between them; those without anything in them are left out.

    Args:
        name: what messages call it.

    Raises:
        ConfigError: it is no YAML, or one of them is no mapping; one line for each fault.
    """
    documents = []
    try:
        for node in _composed(text):
            if problems := list(_key_problems(node, ())):
                raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
            value, line = _Loader("").construct_document(node), node.start_mark.line + 1
            if value is None:
                continue
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{name}: line {line} is {found(value)}, needs to be a mapping (lines of the form key: value)"
                )
            documents.append(Document(value, dict(_lines_of(node, ()))))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {_yaml_fault(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name}: is nested too deeply") from None
    return documents


def _read_text(path: Path) -> str:
    try:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file; name an existing one with --config, or leave that out")
        if not path.is_file():
            raise ConfigError(f"{path}: is no file; name one with --config, or leave that out")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: is larger than {MOST_BYTES} bytes, too large to be a configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8; save the file in that encoding") from None


def _yaml_fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    return f"{where}not YAML: {escaped(str(what))}"


def rendered(document: Mapping[str, Any]) -> str:
    """*document* as YAML that ``read_document`` reads as just that."""
    return yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=1000)


# -- a smaller YAML ------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, and without aliases and tags."""

    # The base's table is that of YAML 1.1, where ``mode: off`` is false and 12:30 is 750.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _not_used("aliases (*name)", event)
        if getattr(event, "tag", None) is not None:
            raise _not_used("tags (!name)", event)
        return super().compose_node(parent, index)


def _not_used(what: str, event: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=f"{what} are not used in this file", problem_mark=event.start_mark)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]{0,17})", "-+0123456789"),
    ("float", r"[-+]?((0|[1-9][0-9]{0,17})?\.[0-9]{1,18}|(0|[1-9][0-9]{0,17})\.?)([eE][-+]?[0-9]{1,3})?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _composed(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            if (node := loader.get_node()) is not None:
                yield node
    finally:
        loader.dispose()


def _lines_of(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Where each key and item is; a key counts, not its value, which may begin further down."""
    if not path:
        yield path, node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _lines_of(item, (*path, index))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines_of(value, (*path, key.value))


def _key_problems(node: yaml.Node | None, path: KeyPath) -> Iterator[str]:
    """Repeated keys and keys that are no text, at any depth; once they are constructed the repeats are gone."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, (*path, index))
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            yield f"line {line}: a key is no text; put it in quotes if it is meant"
            continue
        here = (*path, key.value)
        if key.value in lines:
            yield f"{dotted(here)} is given twice, in lines {lines[key.value]} and {line}; keep one"
        lines[key.value] = line
        yield from _key_problems(value, here)


# -- judge ---------------------------------------------------------------------------------------------------------------


def schema_problems(document: Mapping[str, Any], schema: Schema, *, of_lines: Collection[str] = ()) -> list[Problem]:
    """What in *document* is not as *schema* says: one problem a key.

    Args:
        of_lines: the keys whose texts may have several lines.
    """
    by_path = {} if is_certainly_valid(document, schema) else _judged(document, schema)
    for path, text_value in _texts(document, ()):
        if not text_value.isprintable() and path[0] not in of_lines:
            by_path.setdefault(path, Problem((path,), f"{dotted(path)} has control characters in it; take them out"))
    return list(by_path.values())


def _judged(document: Mapping[str, Any], schema: Schema) -> dict[KeyPath, Problem]:
    import jsonschema  # noqa: PLC0415 - takes longer than the rest of most commands, and is needed where something is wrong

    by_path: dict[KeyPath, Problem] = {}
    validator = jsonschema.Draft202012Validator(schema)
    for error in validator.iter_errors(document):
        path = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            for key in [k for k in error.instance if k not in error.schema["properties"]]:
                here = (*path, key)
                by_path.setdefault(here, Problem((here,), _unknown(here, error.schema, schema)))
        else:
            text = f"{dotted(path)} is {found(error.instance)}, needs {allowed(error.schema)}{_quote_hint(error)}"
            by_path.setdefault(path, Problem((path,), text))
    return by_path


def _quote_hint(error: jsonschema.ValidationError) -> str:
    wants_text = error.validator == "type" and "string" in str(error.validator_value)
    return "; put it in quotes" if wants_text and isinstance(error.instance, bool | int | float) else ""


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


def _unknown(path: KeyPath, section: Schema, whole: Schema) -> str:
    """The line for a key that there is not; its value is not shown, since it may be a password put in the wrong place."""
    key, siblings = str(path[-1]), list(section["properties"])
    near = nearest(key, siblings)
    if near:
        return f"{dotted(path)} is unknown; did you mean {near}?"
    elsewhere = [dotted(p) for p in key_paths(whole) if p[-1] == key]
    if elsewhere:
        return f"{dotted(path)} is unknown; did you mean {' or '.join(elsewhere)}?"
    return f"{dotted(path)} is unknown; known here: {', '.join(siblings)}"


def key_paths(schema: Schema, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key that *schema* knows, sections too."""
    for key, inner in schema.get("properties", {}).items():
        yield (*path, key)
        yield from key_paths(inner, (*path, key))


def found(value: Any) -> str:
    """*value* as a message names it."""
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return quoted(value) if isinstance(value, str) else str(value)


def allowed(schema: Schema) -> str:
    """What *schema* takes, in words."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    also = " or null" if "null" in kinds else ""
    if "enum" in schema:
        return f"one of {', '.join(str(v) for v in schema['enum'] if v is not None)}{also}"
    return _allowed_kind(kinds[0], schema) + also


def _allowed_kind(kind: str, schema: Schema) -> str:
    if kind == "object" and "properties" not in schema:
        return str(schema.get("description", "a mapping"))
    if kind == "object":
        return f"a mapping with any of {', '.join(schema['properties'])}"
    if kind == "array":
        repeats = " without repeats" if schema.get("uniqueItems") else ""
        return f"a list{', not empty and' if 'minItems' in schema else ''}{repeats}, each {allowed(schema['items'])}"
    if kind in ("integer", "number"):
        noun = "a whole number" if kind == "integer" else "a number"
        if "exclusiveMinimum" in schema:
            return f"{noun} > {schema['exclusiveMinimum']} and <= {schema.get('maximum', math.inf)}"
        return f"{noun} from {schema['minimum']} to {schema['maximum']}"
    return str(schema.get("description", "a text"))
