"""The protocol of sd_notify, as a service manager sees it: this test holds the socket that systemd would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.service_notify import ServiceNotifier
from tests.fakes.clock import FakeClock
from tests.support.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(str(tmp_path / "notify") if request.param == "path" else f"@etcd-compute-test-{os.getpid()}")
    yield manager
    manager.close()


def test_a_start_a_status_and_a_stop(manager):
    service = ServiceNotifier.from_environment({"NOTIFY_SOCKET": manager.address})
    service.status("looking at\nthe host")
    service.ready("waiting for etcd: refused")
    service.ready("Ready")
    service.status("Ready")
    service.stopping(30)
    service.stopping(30)
    service.alive()
    assert manager.heard() == [
        "STATUS=looking at the host",
        "READY=1\nSTATUS=waiting for etcd: refused",
        "STATUS=Ready",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000",
    ]


def test_signs_of_life_as_often_as_they_are_wanted(manager):
    clock = FakeClock()
    service = ServiceNotifier(manager.address, 60.0, clock=clock)
    assert service.alive_every_seconds == 20.0
    for _ in range(100):
        service.alive()
        clock.now += 1.0
    assert manager.heard() == ["WATCHDOG=1"] * 10


def test_a_silence_that_is_longer_than_the_watchdog_is_announced(manager):
    service = ServiceNotifier(manager.address, 60.0)
    service.allow(50)
    service.allow(90.5)
    assert manager.heard() == [
        "EXTEND_TIMEOUT_USEC=50000000",
        "EXTEND_TIMEOUT_USEC=90500000",
        "WATCHDOG_USEC=90500000\nWATCHDOG=1",
    ]
    assert service.alive_every_seconds == pytest.approx(30.2, abs=0.1)


def test_children_speak_for_nobody(manager):
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    service = ServiceNotifier.from_environment(environment)
    assert environment == {"HOME": "/"}
    assert service.alive_every_seconds == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}],
)
def test_nobody_waits_for_signs_of_life(manager, watchdog):
    service = ServiceNotifier.from_environment({"NOTIFY_SOCKET": manager.address, **watchdog})
    assert service.alive_every_seconds is None
    service.alive()
    assert manager.heard() == []


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"WATCHDOG_USEC": "1"}])
def test_without_a_manager_that_we_know_nothing_is_sent(environment):
    service = ServiceNotifier.from_environment(dict(environment))
    service.ready("up")
    service.alive()
    service.allow(1000)
    service.stopping(1)
    service.close()


def test_a_manager_that_is_gone_or_does_not_listen_holds_nobody_up(tmp_path, caplog):
    manager = ServiceManager(str(tmp_path / "notify"))
    service = ServiceNotifier(manager.address, 0.003)
    manager.close()
    service.ready("up")
    service.status("again")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_module_needs_nothing_but_python():
    """Programs that are not ours take it along as one file."""
    source = Path(__file__).parents[2] / "common" / "service_notify.py"
    subprocess.run([sys.executable, "-I", source], check=True, timeout=20)
