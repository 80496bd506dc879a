"""``ListWatch``: a cache that follows a store over all its faults, here a store in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from common.errors import StoreUnavailable
from common.retry import Backoff
from common.store import ListWatch, Transaction, Versioned
from tests.fakes.store import FakeStore
from tests.support.processes import wait_until

PREFIX = "/specs/"


class Following:
    """A ``ListWatch`` in a thread, and what it reported."""

    def __init__(self, store: FakeStore) -> None:
        self.reports: list[tuple[str, str | None]] = []
        self.losses: list[Exception] = []
        self.cluster_ids: list[int] = []
        self.stop = threading.Event()
        self.follower = ListWatch(store, PREFIX, self._changed, self.losses.append, backoff=Backoff(0.01, 0.05))
        self.thread = threading.Thread(target=self.follower.run, args=(self.stop,))
        self.thread.start()

    def _changed(self, key: str, item: Versioned | None) -> None:
        assert self.follower.get(key) == item, "the cache is changed before it is reported"
        self.cluster_ids.append(self.follower.cluster_id)
        self.reports.append((key.removeprefix(PREFIX), item.value if item else None))

    def wait_for(self, *reports: tuple[str, str | None]) -> None:
        """Wait until exactly *reports* came since the last call, in any order."""
        wait_until(
            lambda: sorted(self.reports, key=str) == sorted(reports, key=str),
            timeout_seconds=5, what=f"the reports {reports}", evidence=lambda: f"there are {self.reports}",
        )  # fmt: skip
        self.reports.clear()

    def wait_until_lost(self, count: int) -> None:
        wait_until(
            lambda: len(self.losses) == count, timeout_seconds=5, what=f"{count} losses", evidence=lambda: str(self.losses)
        )


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@contextmanager
def following(store: FakeStore) -> Iterator[Following]:
    run = Following(store)
    try:
        yield run
    finally:
        run.stop.set()
        run.thread.join(5)
        assert not run.thread.is_alive()


def test_before_the_first_list_it_knows_nothing_and_says_so(store):
    follower = ListWatch(store, PREFIX, lambda key, item: None)
    assert not follower.synced.is_set()
    assert (follower.cluster_id, follower.revision, follower.snapshot()) == (0, 0, {})


def test_what_is_there_is_reported_before_it_calls_itself_synced(store):
    store.commit(Transaction(puts={f"{PREFIX}{n}": str(n) for n in range(100)}))
    store.create("/other/key", "not ours")
    with following(store) as run:
        assert run.follower.synced.wait(5)
        assert run.reports == [(str(n), str(n)) for n in sorted(range(100), key=str)]
        assert run.follower.cluster_id == store.cluster_id()
        assert run.follower.revision == store.list(PREFIX).revision


def test_changes_are_reported_and_cached(store):
    with following(store) as run:
        created = store.create(f"{PREFIX}a", "1")
        run.wait_for(("a", "1"))
        replaced = store.replace(f"{PREFIX}a", "2", seen=created)
        run.wait_for(("a", "2"))
        assert run.follower.revision == replaced
        assert run.follower.get(f"{PREFIX}a") == Versioned(f"{PREFIX}a", "2", created, replaced)
        store.delete(f"{PREFIX}a", seen=replaced)
        run.wait_for(("a", None))
        assert run.follower.get(f"{PREFIX}a") is None


def test_a_snapshot_is_a_copy(store):
    with following(store) as run:
        store.create(f"{PREFIX}a", "1")
        run.wait_for(("a", "1"))
        run.follower.snapshot().clear()
        assert set(run.follower.snapshot()) == {f"{PREFIX}a"}


def test_after_a_gap_that_was_compacted_only_the_difference_is_reported(store):
    same = store.create(f"{PREFIX}same", "1")
    changed = store.create(f"{PREFIX}changed", "1")
    gone = store.create(f"{PREFIX}gone", "1")
    with following(store) as run:
        run.wait_for(("same", "1"), ("changed", "1"), ("gone", "1"))
        with store.unwatched():
            store.replace(f"{PREFIX}changed", "2", seen=changed)
            store.delete(f"{PREFIX}gone", seen=gone)
            store.create(f"{PREFIX}new", "1")
            store.compact()
        run.wait_for(("changed", "2"), ("gone", None), ("new", "1"))
        assert run.follower.get(f"{PREFIX}same").mod_revision == same
        assert len(run.losses) == 1
        store.create(f"{PREFIX}later", "1")
        run.wait_for(("later", "1"))


def test_a_refresh_is_ahead_of_the_watch_which_then_brings_back_nothing_old(store):
    """Whoever was paused for long must not act on the events that it slept through, one by one."""
    created = store.create(f"{PREFIX}a", "1")
    reports = []
    follower = ListWatch(store, PREFIX, lambda key, item: reports.append(item.value if item else None))
    follower.refresh()
    replaced = store.replace(f"{PREFIX}a", "2", seen=created)
    store.replace(f"{PREFIX}a", "3", seen=replaced)
    store.create(f"{PREFIX}b", "4")
    late = list(next(store.watch(PREFIX, revision=replaced, cluster_id=store.cluster_id(), stop=threading.Event())))
    follower.refresh()
    assert reports == ["1", "3", "4"]
    for event in late:
        follower._apply(event)
    assert follower.get(f"{PREFIX}a").value == "3"
    assert "2" not in reports


def test_a_store_that_is_away_at_the_start_is_waited_for_and_reported_lost_once(store):
    store.break_with(StoreUnavailable("etcd is away"))
    with following(store) as run:
        run.wait_until_lost(1)
        assert not run.follower.synced.wait(0.3)  # many tries
        assert [str(error) for error in run.losses] == ["etcd is away"]
        store.break_with(None)
        assert run.follower.synced.wait(5)


def test_each_outage_is_told_once_and_logged_once(store, caplog):
    caplog.set_level("INFO")
    with following(store) as run:
        assert run.follower.synced.wait(5)
        for outage in (1, 2):
            with store.unwatched():
                store.compact()
                store.create(f"/other/{outage}", "moves the revision")
                store.compact()
                store.break_with(StoreUnavailable("etcd is away"))
            run.wait_until_lost(outage)
            time.sleep(0.2)  # many tries to list
            store.break_with(None)
            store.create(f"{PREFIX}{outage}", "back")
            run.wait_for((str(outage), "back"))
        assert len(run.losses) == 2
    messages = [record.getMessage() for record in caplog.records]
    assert sum("lost the store" in message for message in messages) == 2
    assert sum("following the store again" in message for message in messages) == 2


def test_another_cluster_has_every_key_reported_under_its_new_id(store):
    store.create(f"{PREFIX}same", "1")
    store.create(f"{PREFIX}gone", "1")
    with following(store) as run:
        run.wait_for(("same", "1"), ("gone", "1"))
        run.cluster_ids.clear()
        with store.unwatched():
            store.wipe(cluster_id=0xBEEF)
            store.create(f"{PREFIX}same", "1")  # even at its old revision
        run.wait_for(("same", "1"), ("gone", None))
        assert set(run.cluster_ids) == {0xBEEF}
        assert run.follower.cluster_id == 0xBEEF


def test_an_older_store_of_the_same_cluster_id_has_every_key_reported(store):
    store.create(f"{PREFIX}same", "1")
    with following(store) as run:
        run.wait_for(("same", "1"))
        store.create(f"{PREFIX}lost", "1")
        run.wait_for(("lost", "1"))
        with store.unwatched():
            store.wipe()
            store.create(f"{PREFIX}same", "1")
        run.wait_for(("same", "1"), ("lost", None))


def test_it_stops_at_once_even_while_it_waits_for_a_lost_store(store):
    store.break_with(StoreUnavailable("etcd is away"))
    stop, lost = threading.Event(), threading.Event()
    follower = ListWatch(store, PREFIX, lambda key, item: None, lambda error: lost.set(), backoff=Backoff(60, 60))
    thread = threading.Thread(target=follower.run, args=(stop,))
    thread.start()
    assert lost.wait(5)
    stopped_at = time.monotonic()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - stopped_at < 0.5
