"""JSON in and out for the records that cross process boundaries, by the annotations of their dataclasses.

A record is refused by ``from_json`` with ``UnsupportedSchema`` when its schema number is unknown: a newer writer is held, never
guessed at. Unknown *fields* of a known schema are dropped by readers, so a field may be added without a new number when old
readers can do without it. No I/O, no clock.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Self
from uuid import UUID

from common.errors import InvalidSpec, UnsupportedSchema

SCHEMA = 1  # of all records but specs, which have the lowest of several that says all of it


def _plain(value: Any) -> Any:
    """*value* as JSON types: enums and uuids as text, tuples as lists, dataclasses as objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (enum.Enum,)):
        return value.value
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value


class _Misfit(ValueError):
    """A value that is not of its annotated type; *where* it stands grows as it is passed outwards."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"{where}{what}")
        self._what, self._where = what, where

    def inside(self, outer: str) -> _Misfit:
        return _Misfit(self._what, f"{outer}{self._where}")


Reader = Callable[[Any], Any]


@functools.cache
def _reader(kind: Any) -> Reader:  # noqa: PLR0911 - a table of types
    """What reads a value of JSON as the annotated type *kind*, or raises ``_Misfit``.

    Made once for each type: looking at annotations takes many times longer than reading a record.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = _reader(next(a for a in arguments if a is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _tuple_reader(_reader(arguments[0]))
    if origin is dict:
        return _dict_reader(_reader(arguments[0]), _reader(arguments[1]))
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    if kind is float:
        return lambda value: float(value) if type(value) is int else _exactly(float, value)
    if kind in (int, str, bool):
        return functools.partial(_exactly, kind)
    return functools.partial(_converted, kind)


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Misfit(f" is {type(value).__name__}, not {kind.__name__}")
    return value


def _converted(kind: type, value: Any) -> Any:
    try:
        return kind(value)
    except (ValueError, AttributeError, TypeError) as error:
        raise _Misfit(f" is no {kind.__name__}: {value!r}") from error


def _tuple_reader(read: Reader) -> Reader:
    def read_tuple(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _Misfit(" is no list")
        found: list[Any] = []
        try:
            for item in value:
                found.append(read(item))  # noqa: PERF401 - how far it came tells which one is wrong
        except _Misfit as misfit:
            raise misfit.inside(f"[{len(found)}]") from misfit.__cause__
        return tuple(found)

    return read_tuple


def _dict_reader(read_key: Reader, read_value: Reader) -> Reader:
    def read_dict(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise _Misfit(" is no object")
        found: dict[Any, Any] = {}
        for key, item in value.items():
            name = read_key(key)
            try:
                found[name] = read_value(item)
            except _Misfit as misfit:
                raise misfit.inside(f".{key}") from misfit.__cause__
        return found

    return read_dict


def _dataclass_reader(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
    # Most fields are of these, and a list of many records spends most of its time here: a look in place of a call.
    plain = {name: hint for name, hint in hints.items() if name in readers and hint in (int, str, bool)}

    def read_dataclass(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Misfit(" is no object")
        known: dict[str, Any] = {}
        name = ""
        try:
            for name, item in value.items():
                if type(item) is plain.get(name):
                    known[name] = item
                elif name in readers:
                    known[name] = readers[name](item)
        except _Misfit as misfit:
            raise misfit.inside(f".{name}") from misfit.__cause__
        try:
            return kind(**known)
        except TypeError as error:
            raise _Misfit(f": {error}") from error

    return read_dataclass


class Record:
    """JSON in and out for the dataclasses below that stand alone under a key."""

    SCHEMAS: ClassVar[tuple[int, ...]] = (SCHEMA,)  # the numbers that this version reads

    def to_json(self) -> str:
        return json.dumps(_plain(self), separators=(",", ":"), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, without: Collection[str] = ()) -> Self:
        """The record that *text* holds.

        Args:
            without: fields that nobody looks at and that are left at their default; of many records that saves time.

        Raises:
            UnsupportedSchema: its schema number is not ours.
            InvalidSpec: it is no such record at all.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidSpec(f"{cls.__name__}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InvalidSpec(f"{cls.__name__}: not a JSON object")
        if value.get("schema") not in cls.SCHEMAS:
            known = " and ".join(map(str, cls.SCHEMAS))
            raise UnsupportedSchema(f"{cls.__name__} of schema {value.get('schema')!r}; this version reads {known}: upgrade it")
        for name in without:
            value.pop(name, None)
        try:
            return typing.cast(Self, _reader(typing.cast(Any, cls))(value))
        except _Misfit as misfit:
            raise InvalidSpec(str(misfit.inside(cls.__name__))) from misfit


def with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """The record *text* with some *fields* changed; those of a newer version stay as they are."""
    return json.dumps({**json.loads(text), **_plain(dict(fields))}, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
