"""What of a host's statuses goes into the journal, and that it is written once, in few places, with the status."""

from __future__ import annotations

import dataclasses
from typing import Any
from uuid import UUID

import pytest

from common.errors import StoreUnavailable
from common.journal import PLACES, Act, Happening, HostPen, Target, former_name
from common.keys import Keys
from common.model import Applied, Event, InstanceStatus, Phase, Ready, Reason
from common.store import Compare, Transaction
from ecompute.chronicle import entries
from ecompute.statuses import Statuses, with_event
from tests.fakes.store import FakeStore

KEYS = Keys("/t/")
HOST, WEB = UUID(int=1), UUID(int=2)
RUNNING = InstanceStatus(Phase.RUNNING, booted=1)


def status(phase: Phase, **fields: Any) -> InstanceStatus:
    return InstanceStatus(phase, **fields)


def event(step: str, message: str = "", at: str = "now") -> Event:
    return Event(at, step, 0, message)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, status(Phase.BUILDING), []),
        (None, RUNNING, [("built", "")]),
        (status(Phase.BUILDING), RUNNING, [("built", "")]),
        (status(Phase.BUILDING), dataclasses.replace(RUNNING, attempts=2), [("built", "attempt 2")]),
        (status(Phase.BUILDING, booted=1), status(Phase.RUNNING, booted=2), [("started", "")]),
        (status(Phase.BUILDING, booted=1), RUNNING, [("running again", "")]),
        (status(Phase.BUILDING, booted=1), with_event(with_event(RUNNING, event("Start")), event("Resume")), [("resumed", "")]),
        (status(Phase.BUILDING, booted=1), with_event(with_event(RUNNING, event("Resume")), event("Start")), [("running again", "")]),
        (status(Phase.PAUSED, booted=1), RUNNING, [("unpaused", "")]),
        (RUNNING, status(Phase.SUSPENDED, booted=1), [("suspended", "")]),
        (status(Phase.SUSPENDED, booted=1), RUNNING, [("resumed", "")]),
        (RUNNING, dataclasses.replace(RUNNING, message="a note"), []),
        (RUNNING, status(Phase.STOPPED, booted=1), [("stopped", "")]),
        (RUNNING, status(Phase.STOPPED, booted=1, reason=Reason.HOST_REBOOTED), [("host rebooted", "")]),
        (RUNNING, with_event(status(Phase.STOPPED, reason=Reason.CRASHED), event(Reason.CRASHED)), [("crashed", "")]),
        (RUNNING, with_event(RUNNING, event(Reason.CRASHED, "the guest crashed")), [("crashed", "")]),
        (RUNNING, status(Phase.PAUSED, reason=Reason.IO_ERROR, message="full"), [("paused", "IoError: full")]),
        (
            status(Phase.BUILDING), status(Phase.FAILED, failure="ImageNotFound", failure_message="404"),
            [("failed", "ImageNotFound: 404")],
        ),
        (status(Phase.FAILED), status(Phase.FAILED, message="still"), []),
        (RUNNING, dataclasses.replace(RUNNING, ready=Ready("now", "rm -rf /", boot_request=1)), [("ready", "")]),
        (RUNNING, dataclasses.replace(RUNNING, restored=Applied(2)), [("reverted", "")]),
        (RUNNING, dataclasses.replace(RUNNING, rebuilt=Applied(2, "no image")), [("not rebuilt", "no image")]),
    ],
)  # fmt: skip
def test_one_status_after_another(before: InstanceStatus | None, after: InstanceStatus, expected: list[Any]) -> None:
    assert entries(before, after) == expected


def test_the_same_trouble_again_is_no_news() -> None:
    first = with_event(status(Phase.BUILDING), event("FetchImage", "no route", "1"))
    assert entries(status(Phase.BUILDING), first) == [("trouble", "FetchImage: no route")]
    again = with_event(first, event("FetchImage", "no route", "2"))
    assert entries(first, again) == []
    assert entries(again, with_event(again, event("FetchImage", "404", "3"))) == [("trouble", "FetchImage: 404")]


# -- with the status -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> FakeStore:
    made = FakeStore()
    made.commit(Transaction(puts={KEYS.host(HOST): "{}", KEYS.spec(HOST, WEB): "{}"}))
    return made


def statuses(store: FakeStore) -> Statuses:
    fence = Compare.present(KEYS.host(HOST))
    made = Statuses(
        store, KEYS, HOST, fence=lambda: fence, now=lambda: "now", on_conflict=lambda: None,
        pen=HostPen(KEYS, HOST, "node1", lambda: "then"), name_of=lambda _: "web",
    )  # fmt: skip
    made.load()
    return made


def journal(store: FakeStore) -> list[Happening]:
    return [Happening.from_json(item.value) for item in store.newest(KEYS.events())][::-1]


def test_what_happened_is_written_with_the_status_that_tells_of_it_and_never_twice(store: FakeStore) -> None:
    known = statuses(store)
    known.note(WEB, RUNNING)
    store.lose_answers(1)
    with pytest.raises(StoreUnavailable):
        known.flush(WEB)
    known.flush(WEB)
    assert [(one.what, one.name, one.host, one.uuid) for one in journal(store)] == [("built", "web", "node1", WEB)]
    later = statuses(store)  # of the next process
    later.note(WEB, status(Phase.STOPPED, booted=1))
    later.flush(WEB)
    assert [one.what for one in journal(store)] == ["built", "stopped"]


def test_a_guest_that_comes_and_goes_all_the_time_fills_its_places_and_no_more(store: FakeStore) -> None:
    known = statuses(store)
    for number in range(1, 2 * PLACES):
        phase = Phase.RUNNING if number % 2 else Phase.STOPPED
        known.note(WEB, status(phase, booted=number))
        known.flush(WEB)
    assert len(journal(store)) == PLACES
    last = store.get(KEYS.status(HOST, WEB))
    assert last is not None and InstanceStatus.from_json(last.value).happened == 2 * PLACES - 1


def test_a_record_is_small_whatever_is_said(store: FakeStore) -> None:
    act = Act("stop", "root@here", "now", "r" * 500)
    (text,) = act.on_instance(KEYS, Target(WEB, "web", HOST), 0, "m" * 10_000).values()
    assert len(text) < 1500
    (key,) = former_name(KEYS, "web", WEB)
    assert key < KEYS.after_journal() < KEYS.hosts() and key.startswith(KEYS.former_names("web"))
