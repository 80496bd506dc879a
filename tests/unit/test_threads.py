"""The daemon's threads: a bug costs one of them a pause, not its life."""

from __future__ import annotations

import threading

import pytest

from ecompute import threads


def test_a_thread_outlives_what_it_raises_and_ends_when_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    stop, calls = threading.Event(), []

    def run(_: threading.Event) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise RuntimeError("a bug")

    thread = threads.begin("heartbeat", run, stop, pause_seconds=0.01)
    thread.join(10)
    assert not thread.is_alive()
    assert len(calls) == 3
    assert caplog.text.count("heartbeat ended; this is a bug") == 2


def test_a_thread_that_fails_while_told_to_stop_ends() -> None:
    stop = threading.Event()

    def run(told: threading.Event) -> None:
        told.set()
        raise RuntimeError("a bug")

    thread = threads.begin("watch", run, stop, pause_seconds=60.0)
    thread.join(10)
    assert not thread.is_alive()
