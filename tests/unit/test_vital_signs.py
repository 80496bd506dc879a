"""What ecompute tells the service manager, and when it counts as dead."""

from __future__ import annotations

import threading
from pathlib import Path
from uuid import UUID

import pytest

from common.config import ComputeConfig
from common.model import HostState
from common.service_notify import ServiceNotifier
from ecompute.vital_signs import VitalSigns, longest_silence
from ecompute.workers import Workers
from ecompute.workqueue import WorkQueue
from tests.fakes.clock import FakeClock
from tests.support.processes import wait_until
from tests.support.service_manager import ServiceManager

CONFIG = ComputeConfig()
UNIT_SECONDS = 120.0  # WatchdogSec of packaging/systemd/ecompute.service


class Body:
    def __init__(self, tmp_path: Path) -> None:
        self.manager, self.clock, self.stop = ServiceManager(str(tmp_path / "notify")), FakeClock(), threading.Event()
        service = ServiceNotifier(self.manager.address, UNIT_SECONDS, clock=self.clock)
        self.signs = VitalSigns(service, CONFIG, self.stop)

    def is_alive(self) -> bool:
        self.clock.now += UNIT_SECONDS
        self.manager.heard()
        self.signs.alive()
        return self.manager.heard() == ["WATCHDOG=1"]


@pytest.fixture
def body(tmp_path: Path) -> Body:
    return Body(tmp_path)


def test_a_start_with_a_service_away_is_no_failed_start(body):
    body.signs.waiting("etcd", "http://127.0.0.1:2379: refused")
    body.signs.waiting("etcd", "http://127.0.0.1:2379: timeout")
    body.signs.up("starting")
    body.signs.state(HostState.DEGRADED, "Placement is away")
    body.signs.state(HostState.READY, "")
    lines = [line for message in body.manager.heard() for line in message.splitlines()]
    assert lines == [
        "READY=1", "STATUS=waiting for etcd: http://127.0.0.1:2379: refused", "WATCHDOG=1",
        "STATUS=waiting for etcd: http://127.0.0.1:2379: timeout", "STATUS=starting",
        "STATUS=Degraded: Placement is away", "STATUS=Ready",
    ]  # fmt: skip


def test_it_lives_with_its_workers(body):
    queue: WorkQueue[UUID] = WorkQueue()
    workers = Workers(queue, lambda _: None, 2)
    assert body.is_alive(), "before there are any"
    workers.start()
    body.signs.watch(workers)
    assert body.is_alive()
    queue.close()
    wait_until(lambda: not workers.are_alive, timeout_seconds=5, what="the workers end")
    assert not body.is_alive()
    body.stop.set()
    assert body.is_alive(), "they end at a stop"


def test_a_worker_that_has_long_to_do_is_no_hang(body):
    queue: WorkQueue[UUID] = WorkQueue()
    entered, go_on = threading.Event(), threading.Event()

    def fetch_for_hours(_: UUID) -> None:
        entered.set()
        go_on.wait(20)

    workers = Workers(queue, fetch_for_hours, 1)
    workers.start()
    body.signs.watch(workers)
    queue.add(UUID(int=1))
    assert entered.wait(5)
    assert body.is_alive()
    go_on.set()
    queue.close()


def test_the_unit_waits_longer_than_a_healthy_process_is_silent(body):
    assert longest_silence(CONFIG) < UNIT_SECONDS
    body.signs.starting()
    assert not body.manager.has_heard("WATCHDOG_USEC=")
