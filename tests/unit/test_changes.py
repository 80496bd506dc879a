"""Changing what a spec asks for, over a store in memory that loses answers."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, Permanent
from common.keys import Keys
from common.model import Adoption, Desired, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, Phase
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

    def replace(key: str, value: str, *, seen: int, lease_id: int = 0) -> int:
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
