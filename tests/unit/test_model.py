"""Records travel through JSON unharmed, newer ones are held and broken ones refused."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EcomputeError, InvalidSpec, UnsupportedSchema
from common.model import (
    Address,
    Alternate,
    Event,
    HostAdmin,
    HostRecord,
    ImageRef,
    InstanceKey,
    InstanceSpec,
    InstanceStatus,
    Nic,
    OwnerRecord,
    Phase,
    Progress,
)

RECORDS = (InstanceSpec, InstanceStatus, HostRecord, InstanceKey, OwnerRecord, HostAdmin)
A = UUID(int=1)
SPEC = InstanceSpec(A, "web-1", ImageRef("/image"), {"VCPU": 2, "PCPU": 1, "MEMORY_MB": 256, "DISK_GB": 3})

for _kind in (ImageRef, Nic, Alternate, Event, Address, Progress):
    st.register_type_strategy(_kind, st.builds(_kind))


@pytest.mark.parametrize("kind", RECORDS)
def test_json_and_back_is_the_same_record(kind):
    @given(st.builds(kind, schema=st.just(1)))
    def check(record):
        assert kind.from_json(record.to_json()) == record

    check()


@pytest.mark.parametrize("kind", RECORDS)
def test_no_text_gives_another_exception(kind):
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just({}) | st.just([{}]) | st.just("Running")

    @given(
        st.text(max_size=20)
        | st.dictionaries(st.sampled_from(sorted(kind.__annotations__)), values).map(lambda d: json.dumps({"schema": 1, **d}))
    )
    def check(text):
        try:
            kind.from_json(text)
        except EcomputeError as error:
            assert "\n" not in str(error)

    check()


@pytest.mark.parametrize("schema", [6, 0, None, "1", "2", [2]])
def test_another_schema_number_is_unsupported_and_not_guessed_at(schema):
    text = json.dumps({**json.loads(SPEC.to_json()), "schema": schema, "uuid": {"of another": "shape"}})
    with pytest.raises(UnsupportedSchema, match="upgrade"):
        InstanceSpec.from_json(text)


@pytest.mark.parametrize("kind", [kind for kind in RECORDS if kind is not InstanceSpec])
def test_only_specs_have_a_second_number(kind):
    with pytest.raises(UnsupportedSchema, match="this version reads 1: upgrade it"):
        kind.from_json('{"schema":2}')


def test_an_unknown_field_is_dropped():
    text = json.dumps({**json.loads(SPEC.to_json()), "label": "from a newer version"})
    assert InstanceSpec.from_json(text) == SPEC


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"uuid": "x"}, "InstanceSpec.uuid is no UUID"),
        ({"name": 3}, "InstanceSpec.name is int, not str"),
        ({"boot_request": True}, "InstanceSpec.boot_request is bool, not int"),
        ({"boot_request": 1.5}, "InstanceSpec.boot_request is float, not int"),
        ({"resources": []}, "InstanceSpec.resources is no object"),
        ({"nics": {}}, "InstanceSpec.nics is no list"),
        ({"nics": [{"network": 3}]}, "InstanceSpec.nics[0].network is int, not str"),
        ({"image": None}, "InstanceSpec.image is no object"),
        ({"desired": "asleep"}, "InstanceSpec.desired is no Desired"),
    ],
)
def test_a_wrong_field_is_named(changes, said):
    with pytest.raises(InvalidSpec) as caught:
        InstanceSpec.from_json(json.dumps({**json.loads(SPEC.to_json()), **changes}))
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "3"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidSpec):
        InstanceSpec.from_json(text)


def test_a_missing_field_is_refused():
    document = json.loads(SPEC.to_json())
    del document["image"]
    with pytest.raises(InvalidSpec, match="image"):
        InstanceSpec.from_json(json.dumps(document))


def test_json_is_stable_and_compact():
    text = SPEC.to_json()
    assert text == InstanceSpec.from_json(text).to_json()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert ": " not in text


def test_amounts_by_the_names_that_builders_use():
    assert (SPEC.vcpus, SPEC.memory_mib, SPEC.disk_gib) == (3, 256, 3)


def test_user_data_is_bytes():
    assert SPEC.user_data is None
    assert InstanceSpec(A, "a", ImageRef("/i"), {}, user_data_base64="AP8=").user_data == b"\x00\xff"


def test_a_status_keeps_its_phase_as_text():
    assert json.loads(InstanceStatus(Phase.QUARANTINED).to_json())["phase"] == "Quarantined"


def test_fields_that_nobody_looks_at_are_left_at_their_default_however_broken():
    text = json.dumps({**json.loads(SPEC.to_json()), "keys": ["ssh-ed25519 A"], "moves": "nonsense", "hostname": "web"})
    spec = InstanceSpec.from_json(text, without=("keys", "moves"))
    assert (spec.keys, spec.moves, spec.hostname) == ((), (), "web")
    with pytest.raises(InvalidSpec, match="moves is no list"):
        InstanceSpec.from_json(text)
