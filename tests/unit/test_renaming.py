"""Another name, in one transaction, whatever others do at the same moment."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, Permanent
from common.keys import Keys
from common.model import Desired, ImageRef, InstanceKey, InstanceSpec
from common.store import Transaction
from eschedule.changes import find
from eschedule.renaming import Renamed, give_name
from tests.fakes.store import FakeStore

KEYS = Keys()
HOST, OTHER_HOST = uuid4(), uuid4()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def add(store: FakeStore, name: str, **more: object) -> UUID:
    spec = InstanceSpec(uuid4(), name, ImageRef("/x"), {"VCPU": 1}, **more)  # type: ignore[arg-type]
    puts = {
        KEYS.instance(spec.uuid): InstanceKey(HOST, name, "digest").to_json(),
        KEYS.spec(HOST, spec.uuid): spec.to_json(),
        KEYS.name(name): str(spec.uuid),
    }
    store.commit(Transaction(puts=puts))
    return spec.uuid


def spec_of(store: FakeStore, uuid: UUID, host: UUID = HOST) -> InstanceSpec:
    item = store.get(KEYS.spec(host, uuid))
    assert item is not None
    return InstanceSpec.from_json(item.value)


def meanwhile(store: FakeStore, act: Callable[[], object]) -> None:
    """Have *act* come between what is read and what is written, once."""
    commit = store.commit

    def late(transaction: Transaction) -> int:
        store.commit = commit  # type: ignore[method-assign]
        act()
        return commit(transaction)

    store.commit = late  # type: ignore[method-assign]


def test_all_that_leads_to_it_follows_and_the_guest_is_told_nothing(store: FakeStore) -> None:
    uuid = add(store, "web")
    assert give_name(store, KEYS, uuid, "shop") == Renamed("web", "shop", "web")
    assert store.get(KEYS.name("web")) is None and find(store, KEYS, "shop") == uuid
    item = store.get(KEYS.instance(uuid))
    assert item is not None and InstanceKey.from_json(item.value) == InstanceKey(HOST, "shop", "digest")
    assert (spec_of(store, uuid).name, spec_of(store, uuid).hostname) == ("shop", "web")
    before = store.get(KEYS.spec(HOST, uuid))
    assert give_name(store, KEYS, uuid, "shop") == Renamed("shop", "shop", "web")
    assert store.get(KEYS.spec(HOST, uuid)) == before, "a repeat writes nothing"
    assert give_name(store, KEYS, uuid, "web") == Renamed("shop", "web", "web")


def test_a_name_of_another_is_refused_also_when_it_is_taken_meanwhile(store: FakeStore) -> None:
    uuid, other = add(store, "web"), add(store, "db")
    with pytest.raises(Conflict, match=f"the name db belongs to the instance {other}; see: eschedule show db"):
        give_name(store, KEYS, uuid, "db")
    meanwhile(store, lambda: add(store, "shop"))
    with pytest.raises(Conflict, match="the name shop belongs to"):
        give_name(store, KEYS, uuid, "shop", sleep=lambda _: None)
    assert spec_of(store, uuid).name == "web" and find(store, KEYS, "web") == uuid


def test_it_is_found_where_it_has_moved_meanwhile_and_keeps_what_others_changed(store: FakeStore) -> None:
    uuid = add(store, "web")

    def move() -> None:
        item = store.get(KEYS.spec(HOST, uuid))
        assert item is not None
        puts = {
            KEYS.spec(OTHER_HOST, uuid): item.value.replace('"boot_request":1', '"boot_request":2'),
            KEYS.instance(uuid): InstanceKey(OTHER_HOST, "web", "digest").to_json(),
        }
        store.commit(Transaction(puts=puts, deletes=(item.key,)))

    meanwhile(store, move)
    assert give_name(store, KEYS, uuid, "shop", sleep=lambda _: None).now == "shop"
    spec = spec_of(store, uuid, OTHER_HOST)
    assert (spec.name, spec.boot_request) == ("shop", 2)
    assert store.get(KEYS.spec(HOST, uuid)) is None


def test_a_name_that_somebody_else_has_by_now_is_left_to_them(store: FakeStore) -> None:
    uuid, other = add(store, "web"), uuid4()
    store.commit(Transaction(puts={KEYS.name("web"): str(other)}))  # as after damage; the audit says so
    give_name(store, KEYS, uuid, "shop")
    item = store.get(KEYS.name("web"))
    assert item is not None and item.value == str(other)


def test_what_goes_or_is_not_there_has_no_other_name(store: FakeStore) -> None:
    with pytest.raises(Permanent, match="there is no instance"):
        give_name(store, KEYS, uuid4(), "shop")
    with pytest.raises(Conflict, match="web is being destroyed"):
        give_name(store, KEYS, add(store, "web", desired=Desired.DELETED), "shop")
