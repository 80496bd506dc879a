"""Whoever waits for something else than its stop event is woken by it all the same, and by nothing that it has left."""

from __future__ import annotations

import threading

from common.bells import Bells
from tests.support.processes import wait_until


def test_all_who_asked_are_rung_when_their_event_is_set_and_nobody_else():
    bells, ours, others = Bells(), threading.Event(), threading.Event()
    rung: list[str] = []
    with (
        bells.rung_by(ours, lambda: rung.append("first")),
        bells.rung_by(ours, lambda: rung.append("second")),
        bells.rung_by(others, lambda: rung.append("another")),
    ):
        ours.set()
        wait_until(lambda: len(rung) == 2, timeout_seconds=5, what="both are rung")
    assert rung == ["first", "second"]
    others.set()


def test_one_who_comes_after_the_event_is_rung_at_once():
    bells, event, rung = Bells(), threading.Event(), threading.Event()
    event.set()
    with bells.rung_by(event, rung.set):
        assert rung.wait(5)


def test_who_has_left_is_rung_no_more():
    bells, event = Bells(), threading.Event()
    left, stayed = threading.Event(), threading.Event()
    with bells.rung_by(event, stayed.set):
        with bells.rung_by(event, left.set):
            pass
        event.set()
        assert stayed.wait(5)
    assert not left.is_set()


def test_everybody_can_be_rung_without_any_event():
    bells, rung = Bells(), []
    with bells.rung_by(threading.Event(), lambda: rung.append(1)), bells.rung_by(threading.Event(), lambda: rung.append(2)):
        bells.ring()
    assert rung == [1, 2]


def test_however_many_wait_for_one_event_one_thread_does():
    bells, event = Bells(), threading.Event()
    before = threading.active_count()
    for _ in range(10):
        with bells.rung_by(event, lambda: None):
            pass
    assert threading.active_count() == before + 1
    event.set()
