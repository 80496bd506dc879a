"""The workers' threads: what a pass may raise, and how long a stop waits for the step in hand."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest

from common.errors import Permanent, Transient
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
