"""The statuses of one host: fenced, never without their spec, and never overtaken by an older one."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, StoreUnavailable
from common.keys import Keys
from common.model import InstanceStatus, Phase
from common.store import Compare, Transaction
from ecompute.statuses import Statuses
from tests.fakes.store import FakeStore

KEYS, PROVIDER = Keys("/t/"), UUID(int=7)


class LateStore(FakeStore):
    """Keeps back the writes that it is told to, as a frozen member of etcd does: they happen when it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Transaction] = []
        self.is_frozen = False

    def commit(self, transaction: Transaction) -> int:
        if self.is_frozen:
            self.late.append(transaction)
            raise StoreUnavailable("no answer")
        return super().commit(transaction)

    def thaw(self) -> None:
        self.is_frozen = False
        for transaction in self.late:
            try:
                super().commit(transaction)
            except Conflict:
                continue


@pytest.fixture
def store() -> LateStore:
    return LateStore()


@pytest.fixture
def statuses(store: LateStore) -> Statuses:
    fence = Compare.created_at(KEYS.host(PROVIDER), store.create(KEYS.host(PROVIDER), "{}"))
    return Statuses(store, KEYS, PROVIDER, fence=lambda: fence, now=lambda: "now", on_conflict=lambda: None)


def written(store: FakeStore, uuid: UUID) -> Phase | None:
    item = store.get(KEYS.status(PROVIDER, uuid))
    return InstanceStatus.from_json(item.value).phase if item else None


def say(statuses: Statuses, uuid: UUID, phase: Phase) -> None:
    statuses.note(uuid, InstanceStatus(phase=phase))
    statuses.flush(uuid)


@pytest.fixture
def instance(store: LateStore) -> UUID:
    uuid = uuid4()
    store.create(KEYS.spec(PROVIDER, uuid), "{}")
    return uuid


def test_a_write_that_comes_late_does_not_undo_a_newer_one(store: LateStore, statuses: Statuses, instance: UUID) -> None:
    say(statuses, instance, Phase.PENDING)
    store.is_frozen = True
    with pytest.raises(StoreUnavailable):
        say(statuses, instance, Phase.BUILDING)
    store.is_frozen = False
    statuses.flush(instance)
    say(statuses, instance, Phase.RUNNING)
    store.thaw()
    assert written(store, instance) is Phase.RUNNING


def test_a_write_that_came_after_all_is_built_upon(store: LateStore, statuses: Statuses, instance: UUID) -> None:
    store.lose_answers(1)
    with pytest.raises(StoreUnavailable):
        say(statuses, instance, Phase.BUILDING)
    say(statuses, instance, Phase.RUNNING)
    assert written(store, instance) is Phase.RUNNING


def test_a_status_that_somebody_else_changed_is_written_at_the_second_try(
    store: LateStore, statuses: Statuses, instance: UUID
) -> None:
    say(statuses, instance, Phase.BUILDING)
    item = store.get(KEYS.status(PROVIDER, instance))
    assert item is not None
    store.delete(item.key, seen=item.mod_revision)
    with pytest.raises(Conflict):
        say(statuses, instance, Phase.RUNNING)
    assert statuses.unwritten() == {instance}
    statuses.flush(instance)
    assert written(store, instance) is Phase.RUNNING


def test_what_an_earlier_process_said_is_continued(store: LateStore, statuses: Statuses, instance: UUID) -> None:
    say(statuses, instance, Phase.BUILDING)
    fence = Compare.present(KEYS.host(PROVIDER))
    later = Statuses(store, KEYS, PROVIDER, fence=lambda: fence, now=lambda: "now", on_conflict=lambda: None)
    later.load()
    say(later, instance, Phase.RUNNING)
    assert written(store, instance) is Phase.RUNNING


def test_no_status_outlives_its_spec(store: LateStore, statuses: Statuses) -> None:
    uuid = uuid4()
    with pytest.raises(Conflict):
        say(statuses, uuid, Phase.RUNNING)
    assert written(store, uuid) is None
