"""Whether a document is certainly as a JSON Schema says, without the library that can say what is wrong with it.

jsonschema takes as long to import as everything else that a command needs together, and a configuration is right nearly every
time. So ``common/config_file.py`` asks here first, and the library where the answer is no. What this does not know, it does not
vouch for: a keyword, a kind of value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
_SAYS_NOTHING = {"$schema", "title", "description", "type"}


def is_certainly_valid(value: Any, schema: Schema) -> bool:
    """True only where *value* is valid by *schema*; False says nothing."""
    kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    if not any(kind in _IS_OF_KIND and _IS_OF_KIND[kind](value) for kind in kinds):
        return False
    if value is None:
        return set(schema) <= _SAYS_NOTHING | set(_HOLDS) and ("enum" not in schema or None in schema["enum"])
    return all(key in _SAYS_NOTHING or (key in _HOLDS and _HOLDS[key](value, schema)) for key in schema)


_IS_OF_KIND: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "array": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "object": lambda value: isinstance(value, dict),
}


def _properties_hold(value: Any, schema: Schema) -> bool:
    """Every key is known, and its value is certainly valid."""
    known = schema["properties"]
    return all(key in known and is_certainly_valid(inner, known[key]) for key, inner in value.items())


# What each keyword says of a value of the kind that it is for, as the schemas here use it.
_HOLDS: dict[str, Callable[[Any, Schema], bool]] = {
    "properties": _properties_hold,
    "additionalProperties": lambda _value, schema: schema["additionalProperties"] is False and "properties" in schema,
    "items": lambda value, schema: all(is_certainly_valid(item, schema["items"]) for item in value),
    "minItems": lambda value, schema: len(value) >= schema["minItems"],
    "uniqueItems": lambda value, _schema: len(set(value)) == len(value),
    "enum": lambda value, schema: isinstance(value, str) and value in schema["enum"],
    "pattern": lambda value, schema: re.search(schema["pattern"], value) is not None,
    "maxLength": lambda value, schema: len(value) <= schema["maxLength"],
    "minimum": lambda value, schema: bool(value >= schema["minimum"]),
    "maximum": lambda value, schema: bool(value <= schema["maximum"]),
    "exclusiveMinimum": lambda value, schema: bool(value > schema["exclusiveMinimum"]),
}
