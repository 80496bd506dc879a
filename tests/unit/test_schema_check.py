"""The quick judge of configurations never vouches for what the schema library would refuse, and knows what is usual."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.schema_check import is_certainly_valid
from common.schemas import COMPUTE, SCHEDULE
from tests.support.processes import ROOT

SCHEMAS = {"compute.yaml": COMPUTE, "schedule.yaml": SCHEDULE}
ODD = (
    st.none() | st.booleans() | st.integers(-1, 70000) | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=2), max_size=2)
    | st.lists(st.integers(0, 1) | st.booleans(), max_size=3) | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)
    | st.sampled_from(["auto", "never", "/srv", "~/key", "http://a:1", "127.0.0.1:80", "/a/", 1.0, 0.0, 20])
)  # fmt: skip


def leaves(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Documents that have the schema's shape, with odd values in it and now and then another shape."""
    if "properties" not in schema:
        return st.sampled_from(schema.get("enum", ["x"])) | ODD
    inner = {key: leaves(value) for key, value in schema["properties"].items()}
    return st.fixed_dictionaries({}, optional={**inner, "unknown": ODD}) | ODD


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@given(st.data())
def test_nothing_is_vouched_for_that_the_library_refuses(schema, data):
    document = data.draw(leaves(schema))
    if is_certainly_valid(document, schema):
        jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_value_of_the_samples_is_vouched_for_and_none_of_another_kind_is(name):
    document = yaml.safe_load((ROOT / name).read_text())
    assert is_certainly_valid(document, SCHEMAS[name])
    for section, values in document.items():
        for key in values if isinstance(values, dict) else ():
            changed = copy.deepcopy(document)
            changed[section][key] = ["x", 1]
            assert not is_certainly_valid(changed, SCHEMAS[name]), key


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "uri"},
        {"type": "object"},
        {},
        {"type": "array", "contains": {}},
        {"type": "object", "required": ["a"]},
    ],
)
def test_what_it_does_not_know_it_does_not_vouch_for(schema):
    is_known = schema == {"type": "object"}
    assert [is_certainly_valid(value, schema) for value in ("x", {}, ["x"])] == [False, is_known, False]
