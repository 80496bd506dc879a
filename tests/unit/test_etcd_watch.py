"""Whose word a watch takes for it that etcd lives and is the store that it follows, and when it comes back after an outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from common import etcd_watch
from common.etcd_gate import Gate
from common.etcd_rules import Account, Endpoint, Fault
from common.etcd_watch import MOST_SPREAD_SECONDS, QUIET_SECONDS, Proofs, Watch
from common.store import WatchLost

ENDPOINT = Endpoint.parse("http://127.0.0.1:2379")
BROKEN = Fault("UNAVAILABLE", "Stream removed", ENDPOINT)
REFUSED = Fault("UNAVAILABLE", "failed to connect to all addresses", ENDPOINT)


def header(revision: int = 10, raft_term: int = 5, cluster_id: int = 1) -> Any:
    return SimpleNamespace(revision=revision, raft_term=raft_term, cluster_id=cluster_id)


class Stream:
    """Answers nothing, or breaks where that is told; each time it is asked so much time passes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def next(self, timeout_seconds: float) -> None:
        self.bench.now += timeout_seconds / 2
        self.bench.meanwhile()
        self.bench.now += timeout_seconds / 2
        if self.bench.breaks:
            raise self.bench.breaks.pop(0)

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Bench:
    """One watch from revision 8 on over one endpoint, which answers ``answer``; ``probes`` are the times it was asked."""

    endpoint = ENDPOINT

    def __init__(self) -> None:
        self.now = 100.0
        self.answer = header()
        self.probes: list[float] = []
        self.pauses: list[float] = []
        self.pauses_take = 0.0
        self.breaks: list[Fault] = []
        self.refusals: list[Fault] = []
        self.proofs = Proofs(lambda: self.now)
        self.gate = Gate(lambda: self.now)
        self.before_connecting: Callable[[], object] = lambda: None
        self.meanwhile: Callable[[], object] = lambda: None
        watch = Watch(
            "/t/", 8, 1, connect=self.connect, turn_from=self.proofs.forget, is_over=lambda: False, pause=self.pause,
            woken=self.woken, proofs=self.proofs, gate=self.gate, account=Account(None, None, "/t/"), random=lambda: 1.0,
        )  # fmt: skip
        self.batches = watch.batches()

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += self.pauses_take

    @contextmanager
    def woken(self, _: Callable[[], None]) -> Iterator[None]:
        yield

    def connect(self) -> Bench:
        self.before_connecting()
        return self

    def probe(self, _: str, __: float) -> Any:
        self.probes.append(self.now)
        if self.refusals:
            raise self.refusals.pop(0)
        return self.answer

    def stream(self, *_: object) -> Stream:
        return Stream(self)

    def abandon(self) -> None: ...

    def close(self) -> None: ...

    def note(self, answer: Any, *, asked_at: float | None = None) -> None:
        """Somebody else was answered."""
        self.proofs.note(ENDPOINT, answer, self.now if asked_at is None else asked_at)

    def quiet(self) -> None:
        """Until the next proof of life."""
        assert next(self.batches) == ()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_without_anybodys_answer_it_asks_at_the_beginning_and_after_each_quiet_time(bench: Bench) -> None:
    bench.quiet()
    bench.quiet()
    assert bench.probes == [100.0, 100.0 + QUIET_SECONDS, 100.0 + 2 * QUIET_SECONDS]


def test_it_believes_what_others_have_just_heard(bench: Bench) -> None:
    bench.note(header(12))
    bench.meanwhile = lambda: bench.note(header(12))
    for _ in range(3):
        bench.quiet()
    assert bench.probes == []


def test_what_others_heard_before_it_broke_counts_no_more(bench: Bench) -> None:
    bench.note(header(12))
    bench.breaks.append(BROKEN)
    asked_at = bench.now
    bench.before_connecting = lambda: bench.now > 100.0 and bench.note(header(12), asked_at=asked_at)
    bench.quiet()
    assert bench.probes[:1] == [100.0 + QUIET_SECONDS], "an answer that was on its way when the stream broke proves nothing"


def test_what_others_heard_since_does(bench: Bench) -> None:
    bench.note(header(12))
    bench.breaks.append(BROKEN)
    bench.before_connecting = lambda: bench.now > 100.0 and bench.note(header(12))
    bench.quiet()
    assert bench.probes[:1] != [100.0 + QUIET_SECONDS]


@pytest.mark.parametrize(
    "other", [header(revision=3), header(raft_term=1), header(cluster_id=9)], ids=["older", "an earlier term", "another"]
)
def test_what_others_heard_is_compared_with_what_was_followed(bench: Bench, other: Any) -> None:
    bench.quiet()
    bench.answer = other
    bench.now += QUIET_SECONDS - 1
    bench.note(other)
    with pytest.raises(WatchLost):
        bench.quiet()


def test_after_an_outage_that_others_saw_end_it_waits_its_part(bench: Bench) -> None:
    bench.note(header())
    bench.breaks.append(BROKEN)
    bench.gate.failed(REFUSED)

    def others_are_answered(_: Callable[[], float], __: Callable[[], bool]) -> bool:
        bench.now += 60.0
        bench.gate.answered()
        bench.note(header())
        return True

    bench.gate.enter = others_are_answered  # type: ignore[method-assign]
    bench.quiet()
    assert bench.pauses[0] == MOST_SPREAD_SECONDS


def test_after_a_short_one_it_waits_a_part_of_that(bench: Bench) -> None:
    bench.gate.failed(REFUSED)

    def others_are_answered(_: Callable[[], float], __: Callable[[], bool]) -> bool:
        bench.now += 2.0
        bench.gate.answered()
        return True

    bench.gate.enter = others_are_answered  # type: ignore[method-assign]
    bench.quiet()
    assert bench.pauses[0] == 2.0 * etcd_watch.SPREAD_SHARE


def test_where_it_is_the_one_that_asks_it_does_not_wait(bench: Bench) -> None:
    bench.gate.failed(REFUSED)
    bench.now += 60.0
    bench.quiet()
    assert bench.pauses == []
    assert bench.gate.fault is None


def test_its_failure_closes_the_gate_for_the_others_and_gives_the_turn_on(bench: Bench) -> None:
    bench.refusals.append(REFUSED)
    bench.pauses_take = 60.0
    seen: list[Fault | None] = []
    bench.before_connecting = lambda: seen.append(bench.gate.fault)
    bench.quiet()
    assert seen == [None, REFUSED]
    assert bench.gate._asker is None


def test_after_somebody_had_no_answer_others_answers_say_nothing_about_its_own_connection(bench: Bench) -> None:
    """The connection of the calls failed and is made anew; that of the watches may be as dead and not know it."""
    bench.quiet()
    asked = len(bench.probes)
    bench.now += 1.0
    bench.proofs.forget(ENDPOINT)
    bench.meanwhile = lambda: bench.note(header(12))
    bench.quiet()
    assert len(bench.probes) == asked + 1
    bench.quiet()
    assert len(bench.probes) == asked + 1, "once is enough"
