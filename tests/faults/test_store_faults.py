"""The store while etcd is killed, frozen, cut off, compacted, wiped: nothing lost, nothing twice, nothing reported wrongly."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from common.config import EtcdConfig
from common.errors import Conflict, StoreUnavailable
from common.etcd_store import EtcdStore
from common.store import Compare, ListWatch, Transaction, WatchLost
from tests.support.etcd import EtcdAdmin, EtcdCluster, EtcdServer
from tests.support.processes import wait_until
from tests.support.tcp_proxy import TcpProxy
from tests.support.watching import Watching, watching


@contextmanager
def store_at(*endpoints: str, prefix: str, deadline_seconds: float = 5.0) -> Iterator[EtcdStore]:
    """A store that begins at the first of *endpoints*."""
    with closing(EtcdStore(EtcdConfig(endpoints, prefix, deadline_seconds=deadline_seconds), random=lambda: 0.0)) as store:
        yield store


@contextmanager
def proxied(server: EtcdServer) -> Iterator[TcpProxy]:
    proxy = TcpProxy(server.client_port)
    try:
        yield proxy
    finally:
        proxy.close()


class Mirror:
    """A ``ListWatch`` in a thread; *reports* is what it told since it was last cleared."""

    def __init__(self, store: EtcdStore, prefix: str) -> None:
        self.reports: dict[str, str | None] = {}
        self.losses: list[Exception] = []
        self.stop = threading.Event()
        self.follower = ListWatch(store, prefix, self._changed, self.losses.append)
        self.thread = threading.Thread(target=self.follower.run, args=(self.stop,), daemon=True)
        self.thread.start()
        assert self.follower.synced.wait(15)

    def _changed(self, key: str, item: Any) -> None:
        self.reports[key] = item.value if item else None

    def wait_for(self, reports: dict[str, str | None], *, timeout_seconds: float = 15) -> None:
        wait_until(
            lambda: self.reports == reports, timeout_seconds=timeout_seconds, what=f"the reports {reports}",
            evidence=lambda: f"there are {self.reports}, losses {self.losses}",
        )  # fmt: skip

    def close(self) -> None:
        self.stop.set()
        self.thread.join(10)
        assert not self.thread.is_alive()


class Writer:
    """Creates numbered keys, one after the other, until it is stopped; remembers how each went."""

    def __init__(self, store: EtcdStore, prefix: str, *, every_seconds: float) -> None:
        self.store, self.prefix, self.every_seconds = store, prefix, every_seconds
        self.written: list[str] = []
        self.errors: list[Exception] = []
        self.longest_seconds = 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.wait(self.every_seconds):
            key, began_at = f"{self.prefix}{len(self.written) + len(self.errors):05}", time.monotonic()
            try:
                self.store.create(key, "value")
                self.written.append(key)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test has to see it
                self.errors.append(error)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began_at)

    def finish(self) -> list[str]:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        assert not self.errors, self.errors
        return self.written


# -- one etcd, restarted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_over_a_restart_no_write_fails_and_no_event_is_lost_or_doubled(etcd_server, etcd_prefix, how):
    with store_at(etcd_server.endpoint, prefix=etcd_prefix) as store, watching(store, etcd_prefix) as watch:
        writers = [Writer(store, f"{etcd_prefix}{name}/", every_seconds=0.02) for name in "abcd"]
        watch.wait_for(20)
        etcd_server.stop(with_signal=how)
        time.sleep(1.5)  # the outage itself
        etcd_server.start()
        count = len(watch.events)
        watch.wait_for(count + 20)
        keys = sorted(key for writer in writers for key in writer.finish())
        watch.wait_for(len(keys))
        assert sorted(key for key, _ in watch.changes) == keys
        revisions = [event.mod_revision for event in watch.events]
        assert revisions == sorted(set(revisions))


def test_a_restart_in_the_middle_of_a_long_catch_up_loses_nothing(etcd_server, etcd_prefix):
    """etcd sends a backlog in batches of 1,000 revisions whose headers are far ahead of their events."""
    with store_at(etcd_server.endpoint, prefix=etcd_prefix) as store, proxied(etcd_server) as proxy:
        since = store.list(etcd_prefix)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.create(f"{etcd_prefix}{n:05}", "x" * 2000), range(3500)))
        with store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix) as follower:
            stop, events = threading.Event(), []
            watch = follower.watch(etcd_prefix, revision=since.revision + 1, cluster_id=since.cluster_id, stop=stop)
            for batch in watch:
                events.extend(batch)
                if len(events) == len(batch):
                    proxy.cut()
                    etcd_server.restart(with_signal=signal.SIGKILL)
                if len(events) >= 3500:
                    stop.set()
            assert [event.mod_revision for event in events] == list(range(since.revision + 1, since.revision + 3501))


def test_while_etcd_is_away_calls_say_so_and_afterwards_leases_live_on(etcd_server, etcd_prefix):
    with store_at(etcd_server.endpoint, prefix=etcd_prefix, deadline_seconds=1.5) as store:
        lease = store.grant_lease(10)
        store.create(f"{etcd_prefix}host", "1", lease_id=lease.id)
        etcd_server.kill()
        for call in (lambda: store.refresh_lease(lease.id), lambda: store.get("a"), lambda: store.list("a")):
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                call()
            assert time.monotonic() - began_at < 1.8
        etcd_server.start()
        assert store.refresh_lease(lease.id) == 10
        assert store.get(f"{etcd_prefix}host").lease_id == lease.id


def test_what_a_compacted_gap_hid_is_reported_as_differences(etcd_server, etcd_prefix):
    with (
        store_at(etcd_server.endpoint, prefix=etcd_prefix) as store,
        proxied(etcd_server) as proxy,
        store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix) as follower,
    ):
        seen = {name: store.create(f"{etcd_prefix}{name}", "1") for name in ("same", "changed", "gone")}
        mirror = Mirror(follower, etcd_prefix)
        mirror.reports.clear()
        proxy.refuse()
        proxy.cut()
        store.replace(f"{etcd_prefix}changed", "2", seen=seen["changed"])
        store.delete(f"{etcd_prefix}gone", seen=seen["gone"])
        last = store.create(f"{etcd_prefix}new", "1")
        with EtcdAdmin(etcd_server) as admin:
            admin.compact(last)
        proxy.refuse(False)
        mirror.wait_for({f"{etcd_prefix}changed": "2", f"{etcd_prefix}gone": None, f"{etcd_prefix}new": "1"})
        assert [type(error) for error in mirror.losses] == [WatchLost]
        assert "compacted" in str(mirror.losses[0])
        mirror.close()


def test_a_gap_too_large_for_one_answer_is_listed_instead(etcd_server, etcd_prefix):
    with (
        store_at(etcd_server.endpoint, prefix=etcd_prefix) as store,
        proxied(etcd_server) as proxy,
        store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix) as follower,
    ):
        mirror = Mirror(follower, etcd_prefix)
        proxy.refuse()
        proxy.cut()
        values = {f"{etcd_prefix}{n:02}": f"{n}" * 1024 * 500 for n in range(40)}
        for key, value in values.items():
            store.create(key, value)
        proxy.refuse(False)
        mirror.wait_for(values, timeout_seconds=30)
        mirror.close()


# -- another store at the same address --------------------------------------------------------------------------------------


def test_a_wiped_etcd_with_another_cluster_id_has_everything_reported(etcd_server, etcd_prefix):
    with store_at(etcd_server.endpoint, prefix=etcd_prefix) as store:
        store.create(f"{etcd_prefix}gone", "1")
        old_id = store.cluster_id()
        mirror = Mirror(store, etcd_prefix)
        mirror.reports.clear()
        etcd_server.kill()
        etcd_server.wipe()
        etcd_server.options += ["--initial-cluster-token", "another"]
        etcd_server.start()
        mirror.wait_for({f"{etcd_prefix}gone": None})
        assert mirror.follower.cluster_id == store.cluster_id() != old_id
        mirror.close()


def test_a_wiped_etcd_that_kept_its_cluster_id_is_known_by_its_revision(etcd_server, etcd_prefix):
    """The id is made of names, addresses and token: an etcd set up again on the same host has the old one."""
    with store_at(etcd_server.endpoint, prefix=etcd_prefix) as store:
        for n in range(10):
            store.create(f"{etcd_prefix}{n}", "1")
        old_id = store.cluster_id()
        mirror = Mirror(store, etcd_prefix)
        mirror.reports.clear()
        etcd_server.kill()
        etcd_server.wipe()
        etcd_server.start()
        mirror.wait_for({f"{etcd_prefix}{n}": None for n in range(10)})
        assert store.cluster_id() == old_id
        mirror.close()


def test_a_wiped_etcd_that_has_overtaken_the_old_revision_is_known_by_its_raft_term(etcd_server, etcd_prefix):
    etcd_server.restart()  # a term more than a new etcd has
    with (
        store_at(etcd_server.endpoint, prefix=etcd_prefix) as store,
        proxied(etcd_server) as proxy,
        store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix) as follower,
    ):
        mirror = Mirror(follower, etcd_prefix)
        store.create(f"{etcd_prefix}gone", "1")
        mirror.wait_for({f"{etcd_prefix}gone": "1"})  # so the watch has seen the term
        mirror.reports.clear()
        proxy.refuse()
        proxy.cut()
        etcd_server.kill()
        etcd_server.wipe()
        etcd_server.start()
        for n in range(10):
            store.create(f"{etcd_prefix}{n}", "1")
        proxy.refuse(False)
        mirror.wait_for({f"{etcd_prefix}gone": None, **{f"{etcd_prefix}{n}": "1" for n in range(10)}})
        assert "term" in str(mirror.losses[0])
        mirror.close()


# -- an answer that is lost after the write was done --------------------------------------------------------------------------


class LostAnswer:
    """Makes a store's write lose its answer once etcd has executed it."""

    def __init__(self, server: EtcdServer, proxy: TcpProxy, direct: EtcdStore, prefix: str) -> None:
        self.server, self.proxy, self.direct, self.prefix = server, proxy, direct, prefix
        self.meanwhile: Callable[[], object] = lambda: None

    def during(self, write: Callable[[], Any]) -> Any:
        """What *write* answers, when the answer to its first try is lost; *meanwhile* happens before its second one."""
        before = self.direct.list(self.prefix).revision
        self.proxy.lose_answers()
        self.proxy.refuse()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(write)
            wait_until(
                lambda: self.direct.list(self.prefix).revision > before, timeout_seconds=5, what="etcd has executed the write"
            )
            self.meanwhile()
            self.proxy.refuse(False)
            self.proxy.cut()
            return running.result(timeout=10)


@pytest.fixture
def lossy(etcd: EtcdServer, etcd_store: EtcdStore, etcd_prefix: str) -> Iterator[tuple[EtcdStore, LostAnswer, EtcdStore]]:
    """A store behind a proxy, what makes it lose an answer, and a store beside the proxy."""
    with proxied(etcd) as proxy, store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix) as store:
        store.get("opens the connection")
        yield store, LostAnswer(etcd, proxy, etcd_store, etcd_prefix), etcd_store


def test_a_create_whose_answer_is_lost_has_its_first_revision(lossy, etcd_prefix):
    store, lost_answer, direct = lossy
    revision = lost_answer.during(lambda: store.create(f"{etcd_prefix}a", "1"))
    item = direct.get(f"{etcd_prefix}a")
    assert (item.create_revision, item.mod_revision) == (revision, revision)


def test_a_replace_whose_answer_is_lost_succeeds_once(lossy, etcd_prefix):
    store, lost_answer, direct = lossy
    created = direct.create(f"{etcd_prefix}a", "1")
    revision = lost_answer.during(lambda: store.replace(f"{etcd_prefix}a", "2", seen=created))
    assert direct.get(f"{etcd_prefix}a").mod_revision == revision > created


def test_a_delete_whose_answer_is_lost_succeeds(lossy, etcd_prefix):
    store, lost_answer, direct = lossy
    created = direct.create(f"{etcd_prefix}a", "1")
    lost_answer.during(lambda: store.delete(f"{etcd_prefix}a", seen=created))
    assert direct.get(f"{etcd_prefix}a") is None


def test_a_commit_whose_answer_is_lost_has_its_first_revision(lossy, etcd_prefix):
    store, lost_answer, direct = lossy
    direct.create(f"{etcd_prefix}old", "1")
    revision = lost_answer.during(
        lambda: store.commit(
            Transaction(
                (Compare.present(f"{etcd_prefix}old"), Compare.absent(f"{etcd_prefix}a")),
                {f"{etcd_prefix}a": "1", f"{etcd_prefix}b": "2"},
                (f"{etcd_prefix}old",),
            )
        )
    )
    assert [item.mod_revision for item in direct.list(etcd_prefix).items] == [revision, revision]


def test_a_write_that_someone_changed_before_it_was_read_back_is_a_conflict(lossy, etcd_prefix):
    store, lost_answer, direct = lossy
    created = direct.create(f"{etcd_prefix}a", "1")

    def change() -> None:
        direct.replace(f"{etcd_prefix}a", "theirs", seen=direct.get(f"{etcd_prefix}a").mod_revision)

    lost_answer.meanwhile = change
    with pytest.raises(Conflict):
        lost_answer.during(lambda: store.replace(f"{etcd_prefix}a", "mine", seen=created))
    assert direct.get(f"{etcd_prefix}a").value == "theirs"


def test_a_write_that_cannot_be_read_back_is_reported_as_unknown(etcd, etcd_store, etcd_prefix):
    with (
        proxied(etcd) as proxy,
        store_at(f"http://127.0.0.1:{proxy.port}", prefix=etcd_prefix, deadline_seconds=3) as store,
    ):
        store.get("opens the connection")
        proxy.lose_answers()
        proxy.refuse()
        with pytest.raises(StoreUnavailable) as caught:
            store.create(f"{etcd_prefix}a", "1")
        assert caught.value.may_have_happened is True
        assert etcd_store.get(f"{etcd_prefix}a").value == "1"


# -- a cluster --------------------------------------------------------------------------------------------------------------


def test_members_killed_in_turn_cost_no_write_no_event_and_no_lease(etcd_cluster: EtcdCluster, etcd_prefix):
    with store_at(*etcd_cluster.endpoints, prefix=etcd_prefix) as store, watching(store, etcd_prefix) as watch:
        lease = store.grant_lease(20)
        store.create(f"{etcd_prefix}host", "1", lease_id=lease.id)
        writer = Writer(store, f"{etcd_prefix}k/", every_seconds=0.05)
        for member in [etcd_cluster.leader(), *etcd_cluster.followers()]:
            member.kill()
            killed_at = time.monotonic()
            while time.monotonic() - killed_at < 2:
                assert store.refresh_lease(lease.id) > 0
            member.start()
        written = writer.finish()
        assert writer.longest_seconds < 5
        watch.wait_for(1 + len(written))
        assert [key for key, _ in watch.changes] == [f"{etcd_prefix}host", *written]


def test_a_frozen_member_is_left_by_calls_within_a_try_and_by_watches_within_a_quiet_time(etcd_cluster, etcd_prefix):
    frozen = etcd_cluster.followers()[0]
    others = [member.endpoint for member in etcd_cluster.members if member is not frozen]
    with (
        store_at(frozen.endpoint, *others, prefix=etcd_prefix) as store,
        store_at(*others, prefix=etcd_prefix) as beside,
        watching(store, etcd_prefix) as watch,
    ):
        store.create(f"{etcd_prefix}before", "1")
        watch.wait_for(1)
        frozen.freeze()
        frozen_at = time.monotonic()
        for n in range(20):
            beside.create(f"{etcd_prefix}{n:02}", "1")
        store.create(f"{etcd_prefix}own", "1")
        assert time.monotonic() - frozen_at < 4
        watch.wait_for(22, timeout_seconds=12)
        assert time.monotonic() - frozen_at < 9
        assert [key for key, _ in watch.changes] == [
            f"{etcd_prefix}{name}" for name in ["before", *(f"{n:02}" for n in range(20)), "own"]
        ]
        frozen.thaw()


def test_a_member_that_lost_its_leader_ends_its_watches_and_they_go_on_when_there_is_one(etcd_cluster, etcd_prefix, caplog):
    left, *lost = [*etcd_cluster.followers(), etcd_cluster.leader()]
    with store_at(left.endpoint, prefix=etcd_prefix, deadline_seconds=2) as store, watching(store, etcd_prefix) as watch:
        store.create(f"{etcd_prefix}before", "1")
        watch.wait_for(1)
        for member in lost:
            member.freeze()
        wait_until(
            lambda: any("no leader" in record.getMessage() for record in caplog.records),
            timeout_seconds=10, what="the watch is told that there is no leader", evidence=lambda: caplog.text,
        )  # fmt: skip
        with pytest.raises(StoreUnavailable):
            store.get("a")
        for member in lost:
            member.thaw()
        etcd_cluster.heal()
        store.create(f"{etcd_prefix}after", "1")
        watch.wait_for(2)
        assert [key for key, _ in watch.changes] == [f"{etcd_prefix}before", f"{etcd_prefix}after"]


def test_a_write_without_a_quorum_is_unknown_and_repeating_it_later_finds_it_done(etcd_cluster, etcd_prefix):
    leader = etcd_cluster.leader()
    followers = etcd_cluster.followers()
    with store_at(leader.endpoint, prefix=etcd_prefix, deadline_seconds=3) as store:
        store.get("opens the connection")
        for member in followers:
            member.freeze()
        with pytest.raises(StoreUnavailable) as caught:
            store.create(f"{etcd_prefix}a", "mine")
        assert caught.value.may_have_happened is True
        for member in followers:
            member.thaw()
        etcd_cluster.heal()
        revision = store.create(f"{etcd_prefix}a", "mine")
        assert store.get(f"{etcd_prefix}a").create_revision == revision


def test_a_watch_moves_on_from_a_member_that_was_killed_while_it_was_quiet(etcd_cluster, etcd_prefix):
    first = etcd_cluster.followers()[0]
    others = [member.endpoint for member in etcd_cluster.members if member is not first]
    with (
        store_at(first.endpoint, *others, prefix=etcd_prefix) as store,
        store_at(*others, prefix=etcd_prefix) as beside,
    ):
        listing = store.list(etcd_prefix)
        watch = Watching(store, etcd_prefix, revision=listing.revision + 1, cluster_id=listing.cluster_id)
        first.kill()
        beside.create(f"{etcd_prefix}a", "1")
        watch.wait_for(1, timeout_seconds=5)
        watch.close()
