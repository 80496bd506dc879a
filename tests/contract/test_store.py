"""What every ``Store`` does: one suite for the store on etcd and for the fake that other tests use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from common.errors import Conflict, Permanent, StoreUnavailable
from common.etcd_store import EtcdStore
from common.store import Compare, ListWatch, Store, Transaction, Versioned, WatchLost
from tests.fakes.store import FakeStore
from tests.support.etcd import unique_prefix
from tests.support.processes import wait_until
from tests.support.watching import Watching, watching


@dataclass
class Bench:
    """A store under test, a prefix of its own, and how to let time pass for its leases."""

    store: Store
    prefix: str
    let_seconds_pass: Callable[[float], None]

    def key(self, name: str) -> str:
        return self.prefix + name


@pytest.fixture(params=["fake", "etcd"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    prefix = unique_prefix()
    if request.param == "etcd":
        store: Store = EtcdStore(request.getfixturevalue("etcd_config"))
        yield Bench(store, prefix, lambda seconds: None)  # real leases end by themselves
    else:
        now = [1000.0]
        store = FakeStore(clock=lambda: now[0])
        yield Bench(store, prefix, lambda seconds: now.__setitem__(0, now[0] + seconds))
    store.close()


# -- one key ------------------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_there_reads_as_none(bench):
    assert bench.store.get(bench.key("a")) is None
    assert bench.store.get(bench.key("a"), serializable=True) is None


def test_a_created_key_reads_back_with_its_revisions(bench):
    revision = bench.store.create(bench.key("a"), '{"ä": "…"}')
    assert bench.store.get(bench.key("a")) == Versioned(bench.key("a"), '{"ä": "…"}', revision, revision)
    assert bench.store.get(bench.key("a"), serializable=True).value == '{"ä": "…"}'


def test_create_of_what_exists_conflicts_and_leaves_it_alone(bench):
    revision = bench.store.create(bench.key("a"), "theirs")
    with pytest.raises(Conflict, match="exists"):
        bench.store.create(bench.key("a"), "mine")
    assert bench.store.get(bench.key("a")) == Versioned(bench.key("a"), "theirs", revision, revision)


def test_create_repeated_just_so_is_done_already(bench):
    revision = bench.store.create(bench.key("a"), "mine")
    assert bench.store.create(bench.key("a"), "mine") == revision


def test_create_of_the_same_value_under_another_lease_conflicts(bench):
    """A key that ends with someone else's lease is not the one that was asked for."""
    first, second = bench.store.grant_lease(60), bench.store.grant_lease(60)
    bench.store.create(bench.key("a"), "mine", lease_id=first.id)
    with pytest.raises(Conflict):
        bench.store.create(bench.key("a"), "mine", lease_id=second.id)


def test_create_conflicts_where_the_value_was_changed_and_put_back(bench):
    """Its create revision is what a fence compares: a key that lived on under other hands is no fresh one."""
    revision = bench.store.create(bench.key("a"), "mine")
    changed = bench.store.replace(bench.key("a"), "theirs", seen=revision)
    bench.store.replace(bench.key("a"), "mine", seen=changed)
    with pytest.raises(Conflict):
        bench.store.create(bench.key("a"), "mine")


def test_replace_keeps_the_create_revision_and_moves_the_other(bench):
    created = bench.store.create(bench.key("a"), "1")
    replaced = bench.store.replace(bench.key("a"), "2", seen=created)
    assert replaced > created
    assert bench.store.get(bench.key("a")) == Versioned(bench.key("a"), "2", created, replaced)


def test_replace_of_what_changed_meanwhile_conflicts(bench):
    created = bench.store.create(bench.key("a"), "1")
    bench.store.replace(bench.key("a"), "2", seen=created)
    with pytest.raises(Conflict, match="changed"):
        bench.store.replace(bench.key("a"), "3", seen=created)
    with pytest.raises(Conflict):  # the value that is there already does not excuse it
        bench.store.replace(bench.key("a"), "2", seen=created)
    assert bench.store.get(bench.key("a")).value == "2"


def test_replace_of_what_is_gone_conflicts(bench):
    created = bench.store.create(bench.key("a"), "1")
    bench.store.delete(bench.key("a"), seen=created)
    with pytest.raises(Conflict):
        bench.store.replace(bench.key("a"), "2", seen=created)
    assert bench.store.get(bench.key("a")) is None


def test_delete_compares_and_succeeds_where_it_is_gone_already(bench):
    created = bench.store.create(bench.key("a"), "1")
    replaced = bench.store.replace(bench.key("a"), "2", seen=created)
    with pytest.raises(Conflict, match="changed"):
        bench.store.delete(bench.key("a"), seen=created)
    bench.store.delete(bench.key("a"), seen=replaced)
    assert bench.store.get(bench.key("a")) is None
    bench.store.delete(bench.key("a"), seen=replaced)


# -- many keys ----------------------------------------------------------------------------------------------------------


def test_list_gives_all_keys_of_its_prefix_in_order_and_no_others(bench):
    bench.store.create(bench.key("b/2"), "2")
    bench.store.create(bench.key("b/1"), "1")
    bench.store.create(bench.key("b"), "the prefix without its slash")
    last = bench.store.create(bench.key("c/1"), "a sibling")
    listing = bench.store.list(bench.key("b/"))
    assert [(item.key, item.value) for item in listing.items] == [(bench.key("b/1"), "1"), (bench.key("b/2"), "2")]
    assert listing.revision >= last
    assert listing.cluster_id == bench.store.cluster_id() != 0
    assert bench.store.list(bench.key("b/"), serializable=True).items == listing.items


def test_list_of_nothing_is_empty_and_has_a_revision(bench):
    listing = bench.store.list(bench.key("nothing/"))
    assert listing.items == ()
    assert listing.revision > 0


def test_list_of_more_than_two_pages_is_complete(bench):
    for start in range(0, 450, 90):
        bench.store.commit(Transaction(puts={bench.key(f"{n:04}"): str(n) for n in range(start, start + 90)}))
    assert [item.value for item in bench.store.list(bench.prefix).items] == [str(n) for n in range(450)]


def test_get_many_finds_those_that_exist_however_many_are_asked_for(bench):
    bench.store.commit(Transaction(puts={bench.key(str(n)): str(n) for n in range(0, 300, 3)}))
    found = bench.store.get_many([bench.key(str(n)) for n in range(300)] + [bench.key("0")])
    assert {key: item.value for key, item in found.items()} == {bench.key(str(n)): str(n) for n in range(0, 300, 3)}
    assert bench.store.get_many([]) == {}


# -- transactions -------------------------------------------------------------------------------------------------------


def test_commit_does_everything_at_one_revision(bench):
    bench.store.create(bench.key("old"), "x")
    revision = bench.store.commit(
        Transaction(
            compares=(Compare.absent(bench.key("a")), Compare.present(bench.key("old")), Compare.holds(bench.key("old"), "x")),
            puts={bench.key("a"): "1", bench.key("b"): "2"},
            deletes=(bench.key("old"),),
        )
    )
    items = bench.store.list(bench.prefix).items
    assert [(item.key, item.mod_revision) for item in items] == [(bench.key("a"), revision), (bench.key("b"), revision)]


@pytest.mark.parametrize("broken", ["absent", "present", "created_at", "unchanged", "holds", "holds, absent"])
def test_commit_changes_nothing_where_one_compare_fails(bench, broken):
    created = bench.store.create(bench.key("there"), "1")
    bench.store.replace(bench.key("there"), "2", seen=created)
    compare = {
        "absent": Compare.absent(bench.key("there")),
        "present": Compare.present(bench.key("not there")),
        "created_at": Compare.created_at(bench.key("there"), created + 1),
        "unchanged": Compare.unchanged(bench.key("there"), created),
        "holds": Compare.holds(bench.key("there"), "1"),
        "holds, absent": Compare.holds(bench.key("not there"), ""),
    }[broken]
    with pytest.raises(Conflict):
        bench.store.commit(
            Transaction((compare, Compare.present(bench.key("there"))), {bench.key("new"): "1"}, (bench.key("there"),))
        )
    assert [(item.key, item.value) for item in bench.store.list(bench.prefix).items] == [(bench.key("there"), "2")]


def test_a_compare_of_a_prefix_holds_for_all_of_its_keys_and_for_no_others(bench):
    first = bench.store.create(bench.key("lan/1"), "x")
    none = bench.store.commit(Transaction((Compare.none_newer(bench.key("wan/"), 0),), {bench.key("lan2/1"): "x"}))
    bench.store.commit(Transaction((Compare.none_newer(bench.key("lan/"), first),), {bench.key("a"): "1"}))
    assert none > first
    for revision in (0, first - 1):
        with pytest.raises(Conflict):
            bench.store.commit(Transaction((Compare.none_newer(bench.key("lan/"), revision),), {bench.key("b"): "1"}))
    bench.store.replace(bench.key("lan/1"), "y", seen=first)
    with pytest.raises(Conflict):
        bench.store.commit(Transaction((Compare.none_newer(bench.key("lan/"), first),), {bench.key("b"): "1"}))
    bench.store.commit(Transaction((Compare.none_newer(bench.key("wan/"), 0),), deletes=(bench.key("lan/1"),)))
    bench.store.commit(Transaction((Compare.none_newer(bench.key("lan/"), 0),), {bench.key("b"): "1"}))


def test_a_fence_on_the_create_revision_survives_changes_but_not_a_new_life(bench):
    created = bench.store.create(bench.key("host"), "1")
    replaced = bench.store.replace(bench.key("host"), "2", seen=created)
    fenced = Transaction((Compare.created_at(bench.key("host"), created),), {bench.key("status"): "running"})
    bench.store.commit(fenced)
    bench.store.delete(bench.key("host"), seen=replaced)
    bench.store.create(bench.key("host"), "another")
    with pytest.raises(Conflict):
        bench.store.commit(Transaction(fenced.compares, {bench.key("status"): "failed"}))
    assert bench.store.get(bench.key("status")).value == "running"


def test_a_commit_whose_effects_are_there_already_is_done(bench):
    transaction = Transaction(
        (Compare.absent(bench.key("a")), Compare.present(bench.key("old"))), {bench.key("a"): "1"}, (bench.key("old"),)
    )
    bench.store.create(bench.key("old"), "x")
    revision = bench.store.commit(transaction)
    assert bench.store.commit(transaction) == revision
    with pytest.raises(Conflict):  # half of it is not all of it
        bench.store.commit(Transaction(transaction.compares, {bench.key("a"): "1", bench.key("b"): "2"}))


def test_a_commit_of_compares_alone_tells_whether_they_hold(bench):
    bench.store.commit(Transaction((Compare.absent(bench.key("a")),)))
    with pytest.raises(Conflict):
        bench.store.commit(Transaction((Compare.present(bench.key("a")),)))


def test_a_commit_of_128_compares_and_128_puts_works_and_of_129_of_either_never_will(bench):
    keys = [bench.key(str(n)) for n in range(129)]
    bench.store.commit(Transaction(tuple(map(Compare.absent, keys[:128])), dict.fromkeys(keys[:128], "1")))
    with pytest.raises(Permanent):
        bench.store.commit(Transaction(puts=dict.fromkeys(keys, "2")))
    with pytest.raises(Permanent):
        bench.store.commit(Transaction(tuple(map(Compare.present, keys)), {keys[0]: "2"}))
    assert bench.store.get(keys[0]).value == "1"


def test_a_key_twice_or_a_value_of_2_mib_is_refused_for_good(bench):
    with pytest.raises(Permanent):
        bench.store.commit(Transaction(puts={bench.key("a"): "1"}, deletes=(bench.key("a"),)))
    with pytest.raises(Permanent, match="large"):
        bench.store.create(bench.key("a"), "x" * 2 * 1024 * 1024)
    assert bench.store.get(bench.key("a")) is None


# -- leases -------------------------------------------------------------------------------------------------------------


def test_a_key_under_a_lease_names_it_and_ends_with_it(bench):
    lease = bench.store.grant_lease(60)
    assert lease.ttl_seconds == 60
    bench.store.create(bench.key("a"), "1", lease_id=lease.id)
    bench.store.commit(Transaction(puts={bench.key("b"): "1"}, lease_id=lease.id))
    bench.store.create(bench.key("c"), "stays")
    assert bench.store.get(bench.key("a")).lease_id == lease.id
    assert bench.store.refresh_lease(lease.id) == 60
    bench.store.revoke_lease(lease.id)
    assert [item.key for item in bench.store.list(bench.prefix).items] == [bench.key("c")]


def test_a_lease_that_is_gone_lives_zero_seconds_and_takes_no_keys(bench):
    lease = bench.store.grant_lease(60)
    bench.store.revoke_lease(lease.id)
    assert bench.store.refresh_lease(lease.id) == 0
    with pytest.raises(Conflict, match="lease"):
        bench.store.create(bench.key("a"), "1", lease_id=lease.id)
    bench.store.revoke_lease(lease.id)


def test_a_lease_that_nobody_keeps_ends_and_the_watch_sees_its_keys_go(bench):
    lease = bench.store.grant_lease(2)
    bench.store.create(bench.key("a"), "1", lease_id=lease.id)
    with watching(bench.store, bench.prefix) as watch:
        bench.let_seconds_pass(3)
        watch.wait_for(1, timeout_seconds=15)
        assert watch.changes == [(bench.key("a"), None)]
    assert bench.store.get(bench.key("a")) is None
    assert bench.store.refresh_lease(lease.id) == 0


# -- watches ------------------------------------------------------------------------------------------------------------


def test_a_watch_brings_every_change_of_its_prefix_in_order(bench):
    with watching(bench.store, bench.prefix) as watch:
        created = bench.store.create(bench.key("a"), "1")
        bench.store.create(bench.prefix.removesuffix("/") + "-sibling/a", "not ours")
        replaced = bench.store.replace(bench.key("a"), "2", seen=created)
        bench.store.delete(bench.key("a"), seen=replaced)
        events = watch.wait_for(3)
    assert events[0].item == Versioned(bench.key("a"), "1", created, created)
    assert events[1].item == Versioned(bench.key("a"), "2", created, replaced)
    assert (events[2].key, events[2].item) == (bench.key("a"), None)
    assert [event.mod_revision for event in events] == [created, replaced, replaced + 1]


def test_a_watch_from_the_past_brings_what_happened_since(bench):
    before = bench.store.list(bench.prefix)
    for n in range(20):
        bench.store.create(bench.key(str(n)), str(n))
    with watching(bench.store, bench.prefix, since=before) as watch:
        watch.wait_for(20)
        assert [value for _, value in watch.changes] == [str(n) for n in range(20)]


def test_a_transaction_comes_as_one_batch(bench):
    with watching(bench.store, bench.prefix) as watch:
        revision = bench.store.commit(Transaction(puts={bench.key("a"): "1", bench.key("b"): "2"}))
        watch.wait_for(2)
        assert [{event.mod_revision for event in batch} for batch in watch.batches] == [{revision}]


def test_a_watch_ends_soon_after_it_is_stopped(bench):
    with watching(bench.store, bench.prefix) as watch:
        bench.store.create(bench.key("a"), "1")
        watch.wait_for(1)
        stopped_at = time.monotonic()
        watch.stop.set()
        assert watch.wait_for_end() is None
        assert time.monotonic() - stopped_at < 1


def test_a_watch_of_another_cluster_is_lost(bench):
    listing = bench.store.list(bench.prefix)
    watch = Watching(bench.store, bench.prefix, revision=listing.revision + 1, cluster_id=listing.cluster_id + 1)
    assert isinstance(watch.wait_for_end(), WatchLost)


def test_a_watch_from_a_revision_that_the_store_never_reached_is_lost(bench):
    """The store is older than what was seen before: it was restored from a backup."""
    listing = bench.store.list(bench.prefix)
    watch = Watching(bench.store, bench.prefix, revision=listing.revision + 1000, cluster_id=listing.cluster_id)
    assert isinstance(watch.wait_for_end(), WatchLost)


# -- closing, and the list-then-watch on top ------------------------------------------------------------------------------


def test_a_closed_store_ends_its_watches_and_answers_no_more(bench):
    with watching(bench.store, bench.prefix) as watch:
        bench.store.create(bench.key("a"), "1")
        watch.wait_for(1)
        bench.store.close()
        assert watch.wait_for_end() is None
    with pytest.raises(StoreUnavailable, match="closed"):
        bench.store.get(bench.key("a"))


def test_a_list_watch_reports_what_was_there_and_what_changes(bench):
    created = bench.store.create(bench.key("a"), "1")
    seen: list[tuple[str, str | None]] = []
    stop = threading.Event()
    follower = ListWatch(bench.store, bench.prefix, lambda key, item: seen.append((key, item.value if item else None)))
    thread = threading.Thread(target=follower.run, args=(stop,))
    thread.start()
    try:
        assert follower.synced.wait(10)
        assert follower.get(bench.key("a")).mod_revision == created
        assert follower.cluster_id == bench.store.cluster_id()
        bench.store.create(bench.key("b"), "2")
        last = bench.store.commit(Transaction(puts={bench.key("c"): "3"}, deletes=(bench.key("a"),)))
        wait_until(lambda: follower.revision == last, timeout_seconds=10, what="the cache reaches the newest revision")
        assert {key: item.value for key, item in follower.snapshot().items()} == {bench.key("b"): "2", bench.key("c"): "3"}
        wait_until(lambda: len(seen) == 4, timeout_seconds=10, what="four reports", evidence=lambda: str(seen))
        assert seen[:2] == [(bench.key("a"), "1"), (bench.key("b"), "2")]
        assert set(seen[2:]) == {(bench.key("c"), "3"), (bench.key("a"), None)}
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


# -- the journal --------------------------------------------------------------------------------------------------------


def test_notes_are_written_with_the_change_or_not_at_all_and_hang_on_a_lease_of_their_own(bench):
    key, note = bench.key("a"), bench.key("events/a")
    bench.store.create(key, "1", notes={note: "made"})
    made = bench.store.get(note)
    assert made.value == "made" and made.lease_id and not bench.store.get(key).lease_id
    with pytest.raises(Conflict):
        bench.store.replace(key, "3", seen=1, notes={note: "never"})
    bench.store.replace(key, "2", seen=made.mod_revision, notes={note: "changed"})
    bench.store.commit(Transaction(notes={bench.key("events/b"): "alone"}))
    assert bench.store.get(note).value == "changed"
    assert bench.store.get(note).lease_id == bench.store.get(bench.key("events/b")).lease_id == made.lease_id


def test_whether_a_repeated_transaction_is_done_is_not_told_by_its_notes(bench):
    wanted = Transaction((Compare.absent(bench.key("a")),), {bench.key("a"): "1"}, notes={bench.key("events/a"): "first"})
    revision = bench.store.commit(wanted)
    bench.store.commit(Transaction(notes={bench.key("events/a"): "another"}))
    assert bench.store.commit(wanted) == revision
    assert bench.store.get(bench.key("events/a")).value == "another"


def test_the_newest_keys_come_first_over_all_pages(bench, monkeypatch):
    monkeypatch.setattr("common.etcd_store.PAGE_KEYS", 3)
    for number in range(8):
        bench.store.commit(Transaction(puts={bench.key(f"k/{number}-{half}"): "" for half in "ab"}))
    bench.store.commit(Transaction(puts={bench.key("k/2-a"): "again", bench.key("other"): ""}))
    names = [item.key.rpartition("/")[2] for item in bench.store.newest(bench.key("k/"))]
    assert names[0] == "2-a" and sorted(names) == sorted({f"{number}-{half}" for number in range(8) for half in "ab"})
    assert [int(name[0]) for name in names[1:]] == sorted((int(name[0]) for name in names[1:]), reverse=True)
    assert list(bench.store.newest(bench.key("none/"))) == []
