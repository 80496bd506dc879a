"""The host key: created, kept, lost and made anew, taken over only from a dead predecessor, and a fence in between."""

from __future__ import annotations

import dataclasses
import threading
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, OwnershipError, StoreUnavailable
from common.keys import Keys
from common.model import HostRecord, HostState, OwnerRecord
from common.store import Compare, Transaction
from ecompute.heartbeat import Heartbeat, enroll
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore

PROVIDER = UUID(int=7)
KEYS = Keys("/t/")
KEY = KEYS.host(PROVIDER)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> FakeStore:
    return FakeStore(clock=clock)


class Stop(threading.Event):
    """Lets a waiting loop take *turns* turns, moving the clock by what it would have slept."""

    def __init__(self, clock: FakeClock, turns: int = 1000) -> None:
        super().__init__()
        self.clock, self.turns = clock, turns

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now += timeout or 0.0
        self.turns -= 1
        return self.turns < 0 or self.is_set()


def record(**changes: object) -> HostRecord:
    base = HostRecord("h1", boot_id="boot", incarnation=uuid4(), libvirt_host_uuid="machine", libvirt_uri="test:///default")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


class Heart:
    """A heartbeat and what it told its agent."""

    def __init__(self, store: FakeStore, clock: FakeClock, mine: HostRecord | None = None) -> None:
        self.usurped: list[OwnershipError] = []
        self.regained = 0
        self.clock = clock
        self.beat = Heartbeat(
            store, KEYS, PROVIDER, mine or record(), ttl_seconds=30, every_seconds=10, clock=clock,
            on_usurped=self.usurped.append, on_regained=self._on_regained,
        )  # fmt: skip

    def _on_regained(self) -> None:
        self.regained += 1

    def claim(self) -> None:
        self.beat.claim(Stop(self.clock))

    def run(self, turns: int) -> None:
        self.beat.run(Stop(self.clock, turns))


def test_the_key_says_who_is_there_and_is_live_while_the_lease_stands(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    assert not heart.beat.is_live
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    assert HostRecord.from_json(found.value) == heart.beat.record
    assert heart.beat.is_live
    clock.now += 29.5
    assert not heart.beat.is_live, "too near the lease's end to begin anything"


def test_beats_keep_the_key_far_beyond_one_lease(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    before = store.get(KEY)
    heart.run(turns=20)
    after = store.get(KEY)
    assert before is not None
    assert after is not None
    assert after.create_revision == before.create_revision
    assert heart.beat.is_live


def test_without_a_key_there_is_no_fence(store: FakeStore, clock: FakeClock) -> None:
    with pytest.raises(StoreUnavailable):
        Heart(store, clock).beat.fence()


def test_our_own_crashed_predecessor_is_replaced_at_once_under_a_new_create_revision(
    store: FakeStore, clock: FakeClock
) -> None:
    first, second = Heart(store, clock), Heart(store, clock)
    first.claim()
    old_fence = first.beat.fence()
    began = clock.now
    second.claim()
    assert clock.now - began < 1
    with pytest.raises(Conflict):
        store.commit(Transaction(compares=(old_fence,), puts={"/t/x": "written by a zombie"}))
    store.commit(Transaction(compares=(second.beat.fence(),), puts={"/t/x": "fine"}))


@pytest.mark.parametrize("difference", [{"boot_id": "other"}, {"libvirt_host_uuid": "clone"}])
def test_a_living_other_one_is_waited_for_and_then_given_way_to(
    store: FakeStore, clock: FakeClock, difference: dict[str, str]
) -> None:
    store.create(KEY, record(**difference).to_json())
    with pytest.raises(OwnershipError, match="already served by h1"):
        Heart(store, clock).claim()
    found = store.get(KEY)
    assert found is not None
    assert HostRecord.from_json(found.value).incarnation != Heart(store, clock).beat.record.incarnation


def test_a_dead_other_one_is_gone_after_one_lease(store: FakeStore, clock: FakeClock) -> None:
    lease = store.grant_lease(30)
    store.create(KEY, record(boot_id="before the reboot").to_json(), lease_id=lease.id)
    heart = Heart(store, clock)
    heart.claim()
    assert heart.beat.is_live


def test_a_lost_lease_is_made_anew_and_the_agent_is_told(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    old_fence = heart.beat.fence()
    clock.now += 31
    assert not heart.beat.is_live
    heart.run(turns=1)
    assert heart.regained == 1
    assert heart.beat.is_live
    assert heart.beat.fence() != old_fence


def test_a_process_that_woke_up_after_another_took_over_stops(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    clock.now += 31
    store.create(KEY, record(boot_id="elsewhere").to_json())
    heart.run(turns=500)
    assert len(heart.usurped) == 1
    assert not heart.beat.is_live


def test_a_key_deleted_under_a_living_lease_is_noticed_on_suspicion(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    store.delete(KEY, seen=found.mod_revision)
    heart.run(turns=1)
    assert store.get(KEY) is None
    heart.beat.suspect()
    heart.run(turns=1)
    assert store.get(KEY) is not None
    assert heart.regained == 1


def test_a_store_that_is_away_is_waited_out(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    store.break_with(StoreUnavailable("away"))
    heart.run(turns=10)
    assert not heart.usurped
    store.break_with(None)
    heart.run(turns=2)
    assert heart.beat.is_live


def test_a_changed_state_is_written_under_the_same_key(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    fence = heart.beat.fence()
    heart.beat.update(state=HostState.DEGRADED, message="Placement is away", capacity={"VCPU": 2})
    found = store.get(KEY)
    assert found is not None
    written = HostRecord.from_json(found.value)
    assert (written.state, written.message, written.capacity) == (HostState.DEGRADED, "Placement is away", {"VCPU": 2})
    assert found.lease_id
    assert heart.beat.fence() == fence


def test_a_state_changed_while_the_store_was_away_is_written_with_the_next_beat(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    store.break_with(StoreUnavailable("away"))
    heart.beat.update(state=HostState.DEGRADED)
    store.break_with(None)
    heart.run(turns=1)
    found = store.get(KEY)
    assert found is not None
    assert HostRecord.from_json(found.value).state is HostState.DEGRADED


def test_resigning_takes_the_key_away(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    heart.beat.resign()
    assert store.get(KEY) is None
    assert not heart.beat.is_live


MINE = OwnerRecord(machine_id="m", libvirt_host_uuid="one", name="h1")
CLONE = OwnerRecord(machine_id="m", libvirt_host_uuid="two", name="h2")


def test_enrolling_twice_on_one_machine_is_fine(store: FakeStore) -> None:
    enroll(store, KEYS, PROVIDER, MINE)
    enroll(store, KEYS, PROVIDER, dataclasses.replace(MINE, name="renamed"))
    assert store.get(KEYS.owner(PROVIDER)) is not None


def test_a_clone_is_refused_though_the_first_is_down(store: FakeStore) -> None:
    enroll(store, KEYS, PROVIDER, MINE)
    with pytest.raises(OwnershipError, match="--take-provider"):
        enroll(store, KEYS, PROVIDER, CLONE)


def test_a_successor_may_take_the_provider_when_told(store: FakeStore) -> None:
    enroll(store, KEYS, PROVIDER, MINE)
    enroll(store, KEYS, PROVIDER, CLONE, take=True)
    with pytest.raises(OwnershipError):
        enroll(store, KEYS, PROVIDER, MINE)


def test_the_fence_names_this_very_key(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    assert heart.beat.fence() == Compare.created_at(KEY, found.create_revision)


class KeyCannotBeMade(FakeStore):
    """Keeps leases, but takes no new key while *is_refusing*."""

    is_refusing = False

    def create(self, key: str, value: str, *, lease_id: int = 0) -> int:
        if self.is_refusing:
            raise StoreUnavailable("away just now")
        return super().create(key, value, lease_id=lease_id)


def test_a_deleted_key_that_could_not_be_made_anew_at_once_is_made_later(clock: FakeClock) -> None:
    store = KeyCannotBeMade(clock=clock)
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    store.delete(KEY, seen=found.mod_revision)
    heart.beat.suspect()
    store.is_refusing = True
    heart.run(turns=1)
    assert not heart.beat.is_live
    store.is_refusing = False
    heart.run(turns=2)
    assert store.get(KEY) is not None
    assert heart.beat.is_live
    assert heart.regained == 1
