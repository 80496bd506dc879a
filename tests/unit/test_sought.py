"""Which instance somebody meant who typed no name that there is."""

from __future__ import annotations

from uuid import UUID

import pytest

from common.errors import ConfigError, Permanent
from common.keys import Keys
from eschedule.changes import find
from tests.fakes.store import FakeStore

KEYS = Keys("/test/")
FIRST, SECOND = UUID("3f2a91c0-0000-4000-8000-000000000001"), UUID("3f2a91c0-0000-4000-9000-000000000002")


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    for name, uuid in (("web", FIRST), ("3f2a91", SECOND)):
        store.create(KEYS.instance(uuid), "{}")
        store.create(KEYS.name(name), str(uuid))
    return store


@pytest.mark.parametrize(
    ("text", "meant"), [("web", FIRST), ("3f2a91", SECOND), ("3f2a91c0-0000-4000-8", FIRST), (str(SECOND)[:-1], SECOND)]
)
def test_a_name_goes_before_the_beginning_of_a_uuid(store: FakeStore, text: str, meant: UUID) -> None:
    assert find(store, KEYS, text) == meant


def test_what_several_begin_with_is_nobody(store: FakeStore) -> None:
    with pytest.raises(ConfigError, match=f"2 instances have a uuid that begins with 3f2a91c: {FIRST}, {SECOND}; say more"):
        find(store, KEYS, "3f2a91c")


@pytest.mark.parametrize(("text", "hint"), [("wbe", "did you mean web"), ("3f2a9", "3f2a91"), ("other", "see: eschedule list")])
def test_a_near_name_is_offered_and_never_taken(store: FakeStore, text: str, hint: str) -> None:
    with pytest.raises(Permanent, match=f"there is no instance {text}; .*{hint}"):
        find(store, KEYS, text)
