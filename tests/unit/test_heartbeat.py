"""The host key: created, kept, lost and made anew, taken over only from a dead predecessor, and a fence in between."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from common.errors import Conflict, EcomputeError, NotLive, OwnershipError, StoreUnavailable
from common.journal import Happening, HostPen
from common.keys import Keys
from common.model import HostRecord, HostState, OwnerRecord
from common.placement_types import Inventory
from common.retry import Deadline, seconds_since_boot
from common.store import Compare, Transaction
from ecompute.heartbeat import Heartbeat, enroll, take_provider
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
        if self.turns < 0:
            self.set()
        return self.is_set()


def record(**changes: object) -> HostRecord:
    base = HostRecord("h1", boot_id="boot", incarnation=uuid4(), libvirt_host_uuid="machine", libvirt_uri="test:///default")
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


MINE = OwnerRecord(machine_id="m", libvirt_host_uuid="machine", name="h1")
CLONE = OwnerRecord(machine_id="m", libvirt_host_uuid="two", name="h2")


class Heart:
    """A heartbeat and what it told its agent."""

    def __init__(
        self, store: FakeStore, clock: FakeClock, mine: HostRecord | None = None, alive: Callable[[], None] = lambda: None
    ) -> None:
        self.usurped: list[OwnershipError] = []
        self.regained = 0
        self.cannot_read: EcomputeError | None = None
        self.reports: list[str] = []
        self.clock = clock
        self.stop = Stop(clock)
        self.beat = Heartbeat(
            store, KEYS, PROVIDER, MINE, mine or record(), ttl_seconds=30, every_seconds=10, clock=clock,
            on_usurped=self.usurped.append, on_regained=self._on_regained, report=self.reports.append,
            wait=self._wait, alive=alive, pen=HostPen(KEYS, PROVIDER, "h1", lambda: "now"),
        )  # fmt: skip

    def _on_regained(self) -> None:
        assert not self.beat.is_live, "nothing may be begun before the specs were read anew"
        if self.cannot_read:
            raise self.cannot_read
        self.regained += 1

    def _wait(self, seconds: float) -> bool:
        return self.stop.wait(seconds)

    def claim(self) -> None:
        self.beat.claim(Stop(self.clock))

    def run(self, turns: int) -> None:
        self.stop = Stop(self.clock, turns)
        self.beat.run(self.stop)


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


def test_every_turn_is_a_sign_of_life_also_while_the_store_is_away(store: FakeStore, clock: FakeClock) -> None:
    signs: list[float] = []
    heart = Heart(store, clock, alive=lambda: signs.append(clock.now))
    heart.claim()
    store.break_with(StoreUnavailable("away"))
    heart.run(turns=20)
    assert len(signs) >= 20
    assert max(late - early for early, late in itertools.pairwise(signs)) <= 10


def test_without_a_key_there_is_no_fence(store: FakeStore, clock: FakeClock) -> None:
    with pytest.raises(NotLive):
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


def test_a_process_that_woke_up_takes_nobody_on_its_own_machine_for_its_predecessor(store: FakeStore, clock: FakeClock) -> None:
    """Whoever holds the key now came after it: two that take it from each other would both write."""
    heart, later = Heart(store, clock), Heart(store, clock)
    heart.claim()
    clock.now += 31
    later.claim()
    held = store.get(KEY)
    heart.run(turns=20)
    assert held is not None
    assert store.get(KEY) == held
    assert heart.regained == 0
    assert not heart.beat.is_live


def test_a_machine_whose_provider_was_taken_stops_at_once_and_writes_nothing(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    clock.now += 31
    take(store, CLONE)
    before = store.list("/t/")
    heart.run(turns=1)
    assert [str(error) for error in heart.usurped] and "belongs to h2" in str(heart.usurped[0])
    assert store.list("/t/").items == before.items, "also where the new machine is not up at the moment"


def test_a_host_is_not_live_again_before_its_specs_were_read_anew(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    clock.now += 31
    heart.cannot_read = StoreUnavailable("away")
    heart.run(turns=3)
    assert store.get(KEY) is not None
    assert not heart.beat.is_live
    heart.cannot_read = None
    heart.run(turns=1)
    assert heart.regained == 1
    assert heart.beat.is_live


def test_a_host_that_was_suspended_does_not_believe_in_its_lease() -> None:
    """No test can suspend the machine; that the clock is the one that counts such time must do."""
    assert abs(seconds_since_boot() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5


def test_a_key_deleted_under_a_living_lease_is_made_anew_with_the_next_beat(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    store.delete(KEY, seen=found.mod_revision)
    heart.run(turns=1)
    assert store.get(KEY) is not None
    assert heart.regained == 1


def test_a_beat_is_made_at_once_when_asked_for(store: FakeStore) -> None:
    regained, stop = threading.Event(), threading.Event()
    beat = Heartbeat(
        store, KEYS, PROVIDER, MINE, record(), ttl_seconds=3600, every_seconds=1000, on_usurped=pytest.fail,
        on_regained=regained.set,
    )  # fmt: skip
    beat.claim(stop)
    found = store.get(KEY)
    assert found is not None
    store.delete(KEY, seen=found.mod_revision)
    thread = threading.Thread(target=beat.run, args=(stop,))
    thread.start()
    beat.ask()
    assert regained.wait(10)
    stop.set()
    beat.ask()
    thread.join(10)
    assert not thread.is_alive()


def test_a_store_that_is_away_is_waited_out(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    store.break_with(StoreUnavailable("away"))
    heart.run(turns=10)
    assert not heart.usurped
    assert heart.reports == ["away"] * 10
    store.break_with(None)
    heart.run(turns=2)
    assert heart.beat.is_live
    assert heart.reports[-1] == ""


def test_a_changed_state_is_written_under_the_same_key(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    fence = heart.beat.fence()
    heart.beat.update(state=HostState.DEGRADED, message="Placement is away", inventory={"VCPU": Inventory(3, reserved=1)})
    found = store.get(KEY)
    assert found is not None
    written = HostRecord.from_json(found.value)
    assert (written.state, written.message) == (HostState.DEGRADED, "Placement is away")
    assert (written.capacity, written.reserved) == ({"VCPU": 2}, {"VCPU": 1})
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


def take(store: FakeStore, mine: OwnerRecord) -> None:
    clock = FakeClock()
    take_provider(store, KEYS, PROVIDER, mine, patience=Deadline(35, clock), stop=Stop(clock))


def test_enrolling_twice_on_one_machine_is_fine(store: FakeStore) -> None:
    revision = enroll(store, KEYS, PROVIDER, MINE)
    assert enroll(store, KEYS, PROVIDER, dataclasses.replace(MINE, name="renamed")) == revision


def test_a_clone_is_refused_though_the_first_is_down(store: FakeStore) -> None:
    enroll(store, KEYS, PROVIDER, MINE)
    with pytest.raises(OwnershipError, match="--take-provider"):
        enroll(store, KEYS, PROVIDER, CLONE)


def test_a_successor_may_take_the_provider_when_told(store: FakeStore) -> None:
    enroll(store, KEYS, PROVIDER, MINE)
    take(store, CLONE)
    enroll(store, KEYS, PROVIDER, CLONE)
    with pytest.raises(OwnershipError):
        enroll(store, KEYS, PROVIDER, MINE)


def test_the_provider_of_a_living_machine_is_not_taken_and_stays_its_own(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    with pytest.raises(OwnershipError, match="h1 still has a heartbeat"):
        take(store, CLONE)
    assert enroll(store, KEYS, PROVIDER, MINE)


def test_the_fence_names_this_very_key(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    assert heart.beat.fence() == Compare.created_at(KEY, found.create_revision)


class KeyCannotBeMade(FakeStore):
    """Keeps leases, but takes no new key while *is_refusing*."""

    is_refusing = False

    def commit(self, transaction: Transaction) -> int:
        if self.is_refusing:
            raise StoreUnavailable("away just now")
        return super().commit(transaction)


def test_a_deleted_key_that_could_not_be_made_anew_at_once_is_made_later(clock: FakeClock) -> None:
    store = KeyCannotBeMade(clock=clock)
    heart = Heart(store, clock)
    heart.claim()
    found = store.get(KEY)
    assert found is not None
    store.delete(KEY, seen=found.mod_revision)
    store.is_refusing = True
    heart.run(turns=1)
    assert not heart.beat.is_live
    store.is_refusing = False
    heart.run(turns=2)
    assert store.get(KEY) is not None
    assert heart.beat.is_live
    assert heart.regained == 1


def test_after_standing_still_it_keeps_the_lease_before_it_looks(store: FakeStore, clock: FakeClock) -> None:
    heart = Heart(store, clock)
    heart.claim()
    before = store.get(KEY)
    clock.now += 20.0  # the process was stopped; 10 s of the lease are left, and the next beat would only be a look
    heart.run(turns=4)
    after = store.get(KEY)
    assert before is not None and after is not None
    assert after.create_revision == before.create_revision
    assert heart.beat.is_live


# -- the journal ---------------------------------------------------------------------------------------------------------


def told(store: FakeStore) -> list[tuple[str, str]]:
    found = [Happening.from_json(item.value) for item in store.newest(KEYS.events())]
    return [(one.what, one.message) for one in reversed(found)]


def test_how_a_host_comes_fares_and_goes_is_written_with_its_key(store: FakeStore, clock: FakeClock) -> None:
    mine = record(state=HostState.DEGRADED)
    heart = Heart(store, clock, mine)
    heart.claim()
    heart.beat.update(state=HostState.READY, message="")
    heart.beat.update(inventory={"VCPU": Inventory(4)})
    clock.now += 100  # the lease is over
    heart.run(3)
    store.break_with(StoreUnavailable("away"))
    heart.beat.update(state=HostState.DEGRADED, message="etcd is away")
    store.break_with(None)
    heart.beat.update(message="etcd was away")
    expected = [("began", ""), ("ready", ""), ("back", "its heartbeat was lost"), ("degraded", "etcd is away")]
    assert told(store) == expected
    heart.beat.resign()
    assert told(store) == [*expected, ("stopped", "")] and store.get(KEY) is None
    heart.beat.resign()


def test_a_successor_says_that_the_one_before_ended_without_a_word(store: FakeStore, clock: FakeClock) -> None:
    Heart(store, clock).claim()
    Heart(store, clock).claim()
    assert [message for what, message in told(store) if what == "began"][-1] == "after an end without a word"
