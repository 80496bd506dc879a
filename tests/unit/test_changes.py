"""Changing what a spec asks for, over a store in memory that loses answers."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.errors import ConfigError, Conflict, Permanent
from common.keys import Keys
from common.model import Adoption, Desired, Forward, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, Phase
from common.store import Transaction
from eschedule import changes
from tests.fakes.store import FakeStore

KEYS = Keys()
PROVIDER, INSTANCE = uuid4(), UUID(int=7)


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    spec = InstanceSpec(INSTANCE, "web", ImageRef("/srv/a.img"), {"VCPU": 1})
    puts = {
        KEYS.spec(PROVIDER, INSTANCE): spec.to_json(),
        KEYS.instance(INSTANCE): InstanceKey(PROVIDER, "web", "digest").to_json(),
    }
    store.commit(Transaction(puts=puts))
    return store


def answer_is_lost_and_the_host_is_quick(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is done and carried out before the client can read it back."""

    def replace(key: str, value: str, *, seen: int, **_: object) -> int:
        store.commit(Transaction(deletes=(key, KEYS.instance(INSTANCE))))
        raise Conflict(f"{key} changed")

    monkeypatch.setattr(store, "replace", replace)


def test_a_destroy_that_was_carried_out_before_its_answer_came_has_worked(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_is_lost_and_the_host_is_quick(store, monkeypatch)
    found, _ = changes.change(store, KEYS, INSTANCE, changes.destroyed, sleep=lambda _: None)
    assert found.name == "web"


def test_any_other_change_of_an_instance_that_goes_meanwhile_has_not(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_is_lost_and_the_host_is_quick(store, monkeypatch)
    with pytest.raises(Permanent, match="there is no instance"):
        changes.change(store, KEYS, INSTANCE, changes.stopped, sleep=lambda _: None)


def test_destroying_what_is_not_there_says_so() -> None:
    with pytest.raises(Permanent, match="there is no instance"):
        changes.change(FakeStore(), KEYS, INSTANCE, changes.destroyed)


@pytest.mark.parametrize(
    ("phase", "lag", "is_kept"), [(Phase.RUNNING, 0, False), (Phase.HELD, 0, True), (Phase.RUNNING, 1, True), (None, 0, True)]
)
def test_the_mark_of_an_adoption_goes_with_the_first_change_after_the_host_has_acted_on_it(
    store: FakeStore, phase: Phase | None, lag: int, is_kept: bool
) -> None:
    """It names a stamp; a later stamp that looks like it would be taken for the adopted one."""
    adoption, key = Adoption(5, 20), KEYS.spec(PROVIDER, INSTANCE)
    changes.change(store, KEYS, INSTANCE, lambda _spec, _status: {"adopts": {"cluster_id": 5, "spec_revision": 20}})
    adopted = store.get(key)
    assert adopted is not None
    if phase:
        status = InstanceStatus(phase, spec_revision=adopted.mod_revision - lag)
        store.commit(Transaction(puts={KEYS.status(PROVIDER, INSTANCE): status.to_json()}))
    changes.change(store, KEYS, INSTANCE, changes.stopped)
    after = store.get(key)
    assert after is not None
    spec = InstanceSpec.from_json(after.value)
    assert (spec.adopts, spec.desired) == (adoption if is_kept else None, Desired.STOPPED)


def spec_in(store: FakeStore) -> InstanceSpec:
    item = store.get(KEYS.spec(PROVIDER, INSTANCE))
    assert item is not None
    return InstanceSpec.from_json(item.value)


def test_what_takes_no_boot_is_set_without_one(store: FakeStore) -> None:
    before = spec_in(store)
    wanted = {"keys": ("ssh-ed25519 AAAA x",), "allow": (), "metadata": "required", "user_data_base64": None}
    _, is_changed = changes.change(store, KEYS, INSTANCE, changes.set_to(wanted))
    after = spec_in(store)
    assert is_changed
    assert (after.keys, after.allow, after.metadata, after.boot_request) == (
        ("ssh-ed25519 AAAA x",),
        (),
        "required",
        before.boot_request,
    )
    _, is_changed = changes.change(store, KEYS, INSTANCE, changes.set_to(wanted))
    assert not is_changed


def test_hosts_of_earlier_versions_hold_it_while_what_they_do_not_know_is_set(store: FakeStore) -> None:
    before = store.get(KEYS.spec(PROVIDER, INSTANCE))
    assert before is not None and spec_in(store).schema == 1
    steps = (
        (changes.set_to({"allow": ("tcp:22",)}), 2),
        (changes.forwarding([Forward(80, 80)], []), 2),
        (changes.stopped, 2),
        (changes.set_to({"allow": None}), 2),
        (changes.forwarding([], [(80, "tcp")]), 1),
    )
    for edit, expected in steps:
        changes.change(store, KEYS, INSTANCE, edit)
        item = store.get(before.key)
        assert item is not None and json.loads(item.value)["schema"] == expected
    assert item.value == before.value.replace('"desired":"running"', '"desired":"stopped"')


def test_a_field_that_only_a_newer_version_knows_survives_a_change(store: FakeStore) -> None:
    item = store.get(KEYS.spec(PROVIDER, INSTANCE))
    assert item is not None
    store.replace(item.key, item.value.replace('"name":"web"', '"name":"web","tomorrow":1'), seen=item.mod_revision)
    changes.change(store, KEYS, INSTANCE, changes.set_to({"allow": ("icmp",)}))
    item = store.get(item.key)
    assert item is not None and '"tomorrow":1' in item.value and '"allow":["icmp"]' in item.value


def test_a_spec_that_would_be_too_large_stays_as_it_is(store: FakeStore) -> None:
    large = {
        "keys": tuple(f"ssh-rsa {'A' * 4000} {n}" for n in range(50)),
        "user_data_base64": base64.b64encode(bytes(65536)).decode(),
    }
    with pytest.raises(ConfigError, match=r"web would be \d+ bytes, at most 262144 fit"):
        changes.change(store, KEYS, INSTANCE, changes.set_to(large))
    assert spec_in(store).keys == ()


def test_nothing_is_set_of_what_is_being_destroyed(store: FakeStore) -> None:
    changes.change(store, KEYS, INSTANCE, changes.destroyed)
    for edit in (changes.set_to({"allow": ()}), changes.forwarding([Forward(80, 80)], [])):
        with pytest.raises(Conflict, match="is being destroyed"):
            changes.change(store, KEYS, INSTANCE, edit)


def forwarded(store: FakeStore, add: list[Forward], remove: list[tuple[int, str]]) -> tuple[Any, ...]:
    changes.change(store, KEYS, INSTANCE, changes.forwarding(add, remove))
    return spec_in(store).forwards


def test_ports_are_added_and_taken_away(store: FakeStore) -> None:
    web, dns = Forward(8080, 80), Forward(53, 53, "udp")
    assert forwarded(store, [web, dns], []) == (web, dns)
    assert forwarded(store, [web], []) == (web, dns), "there already"
    assert forwarded(store, [Forward(8080, 81)], [(8080, "tcp")]) == (dns, Forward(8080, 81))
    assert forwarded(store, [], [(53, "udp"), (8080, "tcp")]) == ()


def test_a_port_that_is_taken_or_not_there_is_named(store: FakeStore) -> None:
    forwarded(store, [Forward(8080, 80)], [])
    with pytest.raises(Conflict, match="port 8080/tcp leads to 80 of web already; take that away: --rm 8080/tcp"):
        forwarded(store, [Forward(8080, 81)], [])
    with pytest.raises(Permanent, match="port 8080/udp does not lead to web"):
        forwarded(store, [], [(8080, "udp")])
    with pytest.raises(ConfigError, match="33 ports of the host, at most 32"):
        forwarded(store, [Forward(port, port) for port in range(1, 33)], [])
