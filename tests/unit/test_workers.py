"""The workers' threads: what a pass may raise, and how long a stop waits for the step in hand."""

from __future__ import annotations

import logging
import threading
from uuid import UUID, uuid4

import pytest

from common.errors import Permanent, StoreUnavailable, Transient
from ecompute.health import Health
from ecompute.workers import Workers
from ecompute.workqueue import WorkQueue


@pytest.mark.parametrize("error", [Transient("later"), Permanent("never"), RuntimeError("a bug"), KeyError("a bug")])
def test_no_error_of_a_pass_ends_a_worker(error: Exception) -> None:
    queue: WorkQueue[UUID] = WorkQueue()
    served = threading.Event()
    bad, good = uuid4(), uuid4()

    def reconcile(uuid: UUID) -> None:
        if uuid == bad:
            raise error
        served.set()

    workers = Workers(queue, reconcile, 1)
    workers.start()
    queue.add(bad)
    queue.add(good)
    assert served.wait(10)
    assert queue.failures(bad) == 1
    queue.close()
    assert workers.join(10)


def test_what_a_missing_service_keeps_from_being_done_is_no_line_for_each_instance(caplog: pytest.LogCaptureFixture) -> None:
    """An hour without etcd and fifty guests would be thousands of lines that say the same."""
    queue: WorkQueue[UUID] = WorkQueue(first_seconds=0.001, most_seconds=0.002)
    instances = [uuid4() for _ in range(50)]
    passed: list[tuple[str, str]] = []
    again = threading.Event()
    health = Health(now=lambda: "now")

    def reconcile(uuid: UUID) -> None:
        if len(passed) > 500:
            again.set()
        raise StoreUnavailable("etcd does not answer")

    workers = Workers(queue, reconcile, 4, is_outage=health.note, passed=lambda *what: passed.append(what))
    with caplog.at_level(logging.INFO):
        for uuid in instances:
            queue.add(uuid)
        workers.start()
        assert again.wait(20)
        queue.close()
        assert workers.join(10)
    assert [record.getMessage() for record in caplog.records] == ["etcd is away: etcd does not answer"]
    assert set(passed) == {("retry", "StoreUnavailable")}


def test_all_of_the_time_is_for_whichever_worker_needs_it() -> None:
    queue: WorkQueue[UUID] = WorkQueue()
    begun, may_end = threading.Event(), threading.Event()

    def reconcile(_: UUID) -> None:
        begun.set()
        may_end.wait(10)

    workers = Workers(queue, reconcile, 50)
    workers.start()
    queue.add(uuid4())
    assert begun.wait(10)
    queue.close()
    timer = threading.Timer(1.0, may_end.set)
    timer.start()
    assert workers.join(20.0), "a fiftieth of the time would not have been enough"
