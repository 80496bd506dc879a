"""Reading the journal: what belongs to what was asked for, in which order; and following it over everything."""

from __future__ import annotations

import datetime
import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import ConfigError, Permanent
from common.journal import Act, Happening, HostPen, Subject, Target, former_name
from common.keys import Keys
from common.model import Desired, HostRecord, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, Phase, Ready
from common.store import Transaction
from common.validate import parse_duration
from eschedule import changes, host_admin
from eschedule.awaiting import judge_state
from eschedule.events import as_json, event_line, events_table
from eschedule.follow import Ending, Goal, View
from eschedule.happenings import Follower, newest, of_all, of_instance
from eschedule.main import main
from eschedule.tables import Look
from tests.fakes.store import FakeStore
from tests.support.processes import wait_until

KEYS = Keys("/t/")
NODE1, NODE2, WEB, DB = (UUID(int=number) for number in range(1, 5))
NOW = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def at(hour: int) -> str:
    return f"2026-01-02T{hour:02d}:00:00.000Z"


def stop(instance: UUID, provider: UUID, number: int, when: str = at(12)) -> dict[str, str]:
    return Act("stop", "me@here", when).on_instance(KEYS, Target(instance, f"vm-{instance.int}", provider), number)


@pytest.fixture
def store() -> FakeStore:
    made = FakeStore()
    made.commit(Transaction(notes=stop(WEB, NODE1, 0, at(9))))
    made.commit(Transaction(notes=HostPen(KEYS, NODE1, "node1", lambda: at(10)).of_host(0, "ready")))
    made.commit(Transaction(notes=stop(DB, NODE2, 0, at(11))))
    made.commit(Transaction(notes={KEYS.event(Subject.INSTANCE, DB, "user", 9): '{"schema": 99}'}))
    made.commit(Transaction(notes=stop(WEB, NODE1, 1, at(12))))
    return made


def read(store: FakeStore, scope: object, most: int = 100, since: datetime.datetime | None = None) -> list[tuple[str, int]]:
    found = newest(store.newest(scope.prefix), scope, most, since)  # type: ignore[attr-defined, arg-type]
    return [(one.what, one.uuid.int) for one in found]


def test_what_belongs_to_what_was_asked_for_comes_oldest_first(store: FakeStore) -> None:
    assert read(store, of_all(KEYS)) == [("stop", 3), ("ready", 1), ("stop", 4), ("stop", 3)]
    assert read(store, of_all(KEYS, NODE1)) == [("stop", 3), ("ready", 1), ("stop", 3)]
    assert read(store, of_instance(store, KEYS, WEB)) == [("stop", 3), ("stop", 3)]
    assert read(store, of_all(KEYS), 2) == [("stop", 4), ("stop", 3)]
    assert read(store, of_all(KEYS), since=NOW - datetime.timedelta(hours=1.5)) == [("stop", 4), ("stop", 3)]


def test_a_name_means_who_has_it_then_who_had_it_last(store: FakeStore) -> None:
    with pytest.raises(Permanent, match="nothing is known"):
        of_instance(store, KEYS, "web")
    store.commit(Transaction(notes=former_name(KEYS, "web", DB)))
    store.commit(Transaction(notes=former_name(KEYS, "web", WEB)))
    assert of_instance(store, KEYS, "web").prefix == KEYS.events_of(Subject.INSTANCE, WEB)
    store.create(KEYS.name("web"), str(DB))
    assert of_instance(store, KEYS, "web").prefix == KEYS.events_of(Subject.INSTANCE, DB)


class Heard:
    """What a follower tells, in a thread."""

    def __init__(self, follower: Follower) -> None:
        self.told: list[Happening] = []
        threading.Thread(target=self._hear, args=(follower.run(),), daemon=True).start()

    def _hear(self, arriving: Iterator[Happening]) -> None:
        self.told += []
        for one in arriving:
            self.told.append(one)

    def wait_for(self, *whats: str) -> None:
        wait_until(lambda: [one.what for one in self.told] == list(whats), timeout_seconds=10, what=f"{whats}, not {self.told}")


def test_following_goes_on_after_etcd_has_compacted_its_history(store: FakeStore) -> None:
    follower = Follower(store, KEYS, of_all(KEYS))
    assert len(follower.history(100, None)) == 4
    with store.unwatched():
        store.commit(Transaction(notes=stop(DB, NODE2, 1)))
        store.compact()
        store.commit(Transaction(notes=stop(DB, NODE2, 2)))
        heard = Heard(follower)
    heard.wait_for("stop", "stop")
    with store.unwatched():  # the watch is lost and there is something that it did not tell of
        store.commit(Transaction(notes=HostPen(KEYS, NODE1, "node1", lambda: at(13)).of_host(1, "degraded")))
        store.compact()
    heard.wait_for("stop", "stop", "degraded")
    follower.close()


def test_a_host_whose_heartbeat_ends_is_told_of_by_whoever_follows(store: FakeStore) -> None:
    record = HostRecord("node1", "b", UUID(int=9), "l", "u")
    revision = store.create(KEYS.host(NODE1), record.to_json())
    follower = Follower(store, KEYS, of_all(KEYS))
    heard = Heard(follower)
    store.replace(KEYS.host(NODE1), record.to_json(), seen=revision)
    wait_until(lambda: threading.active_count() > 1, timeout_seconds=10, what="it follows")
    item = store.get(KEYS.host(NODE1))
    assert item is not None

    def is_told() -> bool:
        # Whether the hosts were listed by now nothing shows: the host comes and goes until it is noticed.
        known = store.get(KEYS.host(NODE1))
        if known is None:
            store.create(KEYS.host(NODE1), record.to_json())
        else:
            store.delete(KEYS.host(NODE1), seen=known.mod_revision)
        return any(one.what == "away" and one.name == "node1" for one in heard.told)

    wait_until(is_told, timeout_seconds=10, what="it is told")
    follower.close()


def test_text_and_json() -> None:
    one = Happening(at(9), "stop", Subject.INSTANCE, WEB, "web", NODE1, by="me@here\x1b[2J", reason="why not")
    table = events_table([(one, "node1")])
    assert "me@here\\x1b[2J" in table and "reason: why not" in table and "\x1b" not in table
    assert event_line(one, "node1", Look(60)).startswith("09:00:00  stop        web  node1  me@here")
    line = event_line(one, "node1", Look(200))
    assert line.startswith("2026-01-02 09:00:00  stop") and line.endswith("reason: why not\n") and "\x1b" not in line
    assert as_json(one, "node1")["host"] == {"provider": str(NODE1), "name": "node1"}


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("1.5s", 1.5), ("5m", 300), ("1h", 3600), ("7d", 604800)])
def test_a_span_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text, "--since") == seconds


@pytest.mark.parametrize("text", ["", "-1", "1w", "h", "1 h", "1e3", "9" * 12, "٣m"])
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(ConfigError, match="--since is"):
        parse_duration(text, "--since")


def test_places_of_acts_without_a_number_differ() -> None:
    from eschedule.acts import _places

    assert len(set(itertools.islice(_places, 5))) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("events", "web", "--host", "node1"), "exclude each other"),
        (("events", "--since", "soon"), "--since is"),
        (("events", "--limit", "0"), "--limit"),
        (("events", "-f", "-o", "yaml"), "-f prints lines"),
        (("stop", "web", "--reason", "two\nlines"), "--reason has at most 500"),
        (("stop", "web", "--reason", "x" * 501), "--reason has at most 500"),
        (("host", "label", "node1", "a=b", "--reason", "\x1b[2J"), "--reason has at most 500"),
        (("wait", "web", "--for", "lunch"), "--for"),
        (("wait", "web", "--timeout", "-1"), "--timeout"),
        (("wait",), "NAME|UUID"),
        (("top", "--sort", "luck"), "--sort"),
        (("top", "-n", "2", "-o", "json"), "-n is for tables"),
        (("top", "-n", "0"), "-n"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("setup", "shutdown"):  # of the whole process, whose other tests want their logs
        monkeypatch.setattr(f"common.logs.{name}", lambda *_: None)
    (tmp_path / "schedule.yaml").write_text("etcd: {endpoints: ['http://127.0.0.1:1'], deadline_seconds: 1}\n")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        assert main(["--config", str(tmp_path / "schedule.yaml"), *arguments]) == 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    answer = capsys.readouterr()
    assert answer.out == "" and said in answer.err and answer.err.count("\n") == 1, answer.err


# -- what users do -------------------------------------------------------------------------------------------------------


def test_a_change_of_a_spec_is_written_down_with_it_and_once() -> None:
    store, act = FakeStore(), Act("set", "me@here", at(9), "because")
    spec = InstanceSpec(WEB, "web", ImageRef("/a"), {"VCPU": 1})
    keys = {KEYS.instance(WEB): InstanceKey(NODE1, "web", "d").to_json(), KEYS.spec(NODE1, WEB): spec.to_json()}
    store.commit(Transaction(puts=keys))
    for hops in (2, 2, 3):
        changes.change(store, KEYS, WEB, changes.set_to({"metadata_hop_limit": hops, "grace_seconds": 5}), act=act)
    changes.change(store, KEYS, WEB, changes.stopped)  # as by a program of an earlier version
    found = newest(store.newest(KEYS.events()), of_all(KEYS), 9, None)
    assert [(one.what, one.by, one.reason, one.message) for one in found] == [
        ("set", "me@here", "because", "grace seconds, metadata hop limit"), ("set", "me@here", "because", "metadata hop limit"),
    ]  # fmt: skip
    item = store.get(KEYS.spec(NODE1, WEB))
    assert item is not None and InstanceSpec.from_json(item.value).acts == 2


def test_what_is_set_for_a_host_is_written_down_with_it() -> None:
    store, act = FakeStore(), Act("host label", "me@here", at(9))
    for labels in ({"rack": "7"}, {"rack": "7"}, {"row": "1"}):
        edit = host_admin.with_labels(labels, ())
        admin, _ = host_admin.change(store, KEYS, NODE1, edit, act=act, name="node1", message=str(*labels))
    assert admin.acts == 2
    assert [(one.name, one.message) for one in newest(store.newest(KEYS.events()), of_all(KEYS, NODE1), 9, None)] == [
        ("node1", "rack"), ("node1", "row"),
    ]  # fmt: skip


# -- waiting for a state -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "desired", "status", "ending"),
    [
        (Goal.STOPPED, Desired.RUNNING, InstanceStatus(Phase.RUNNING), None),
        (Goal.STOPPED, Desired.RUNNING, InstanceStatus(Phase.STOPPED), Ending.REACHED),
        (Goal.RUNNING, Desired.STOPPED, InstanceStatus(Phase.STOPPED), None),
        (Goal.RUNNING, Desired.RUNNING, InstanceStatus(Phase.RUNNING), Ending.REACHED),
        (Goal.RUNNING, Desired.RUNNING, InstanceStatus(Phase.RUNNING, spec_revision=-1), None),
        (Goal.RUNNING, Desired.RUNNING, InstanceStatus(Phase.FAILED), Ending.FAILED),
        (Goal.STOPPED, Desired.STOPPED, InstanceStatus(Phase.HELD), Ending.FAILED),
        (Goal.RUNNING, Desired.DELETED, InstanceStatus(Phase.RUNNING), Ending.FAILED),
        (Goal.GONE, Desired.RUNNING, InstanceStatus(Phase.FAILED), None),
        (Goal.HEALTHY, Desired.RUNNING, InstanceStatus(Phase.RUNNING, booted=1), Ending.REACHED),
        (Goal.HEALTHY, Desired.RUNNING, InstanceStatus(Phase.RUNNING), None),
        (Goal.HEALTHY, Desired.RUNNING, InstanceStatus(Phase.RUNNING, booted=1, notes=("a port is taken",)), None),
        (Goal.READY, Desired.RUNNING, InstanceStatus(Phase.RUNNING, ready=Ready("now", boot_request=0)), None),
        (Goal.READY, Desired.RUNNING, InstanceStatus(Phase.RUNNING, ready=Ready("now", boot_request=1)), Ending.REACHED),
    ],
)
def test_wait_gives_up_only_on_what_cannot_come(
    goal: Goal, desired: Desired, status: InstanceStatus, ending: Ending | None
) -> None:
    spec = InstanceSpec(WEB, "web", ImageRef("/a"), {"VCPU": 1}, desired=desired)
    outcome = judge_state(goal, View(WEB, "web", NODE1, "node1", spec, 0, status))
    assert (outcome.ending if outcome else None) is ending
