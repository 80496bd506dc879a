"""ecompute/connection.py: one connection for all, opened again when it breaks, and nobody waits without a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.errors import HypervisorUnavailable
from common.retry import Backoff
from ecompute.connection import KeptConnection
from tests.support.processes import wait_until


class Service:
    """Something to connect to; a connection is a number."""

    def __init__(self) -> None:
        self.opened = 0
        self.discarded: list[int] = []
        self.reconnects = 0
        self.is_down = False
        self.states: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        self.kept = KeptConnection[int](
            "the service",
            self._open,
            self.discarded.append,
            self._reconnected,
            patience_seconds=0.5,
            backoff=Backoff(0.01, 0.05),
            on_state=self.states.append,
        )

    def _open(self) -> int:
        self.answers.wait()
        if self.is_down:
            raise HypervisorUnavailable("nobody listens")
        self.opened += 1
        return self.opened

    def _reconnected(self) -> None:
        self.reconnects += 1


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.answers.set()
    service.kept.close()


def test_it_is_opened_once_for_everybody_and_not_before(service: Service) -> None:
    assert service.opened == 0
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: service.kept.get(), range(32))) == {1}
    assert (service.opened, service.reconnects) == (1, 0)


def test_a_lost_one_is_discarded_and_opened_anew_without_being_asked(service: Service) -> None:
    service.kept.lost(service.kept.get())
    wait_until(lambda: service.reconnects == 1, timeout_seconds=5, what="connected again")
    assert (service.kept.get(), service.discarded) == (2, [1])


def test_losing_an_old_one_again_does_not_touch_the_new(service: Service) -> None:
    old = service.kept.get()
    service.kept.lost(old)
    wait_until(lambda: service.reconnects == 1, timeout_seconds=5, what="connected again")
    service.kept.lost(old)
    assert service.kept.get() == 2


def test_a_service_that_is_down_fails_at_once_and_is_noticed_when_it_comes(service: Service) -> None:
    service.is_down = True
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(HypervisorUnavailable, match="nobody listens"):
            service.kept.get()
        assert time.monotonic() - began < 0.4
    service.is_down = False
    wait_until(lambda: service.reconnects == 1, timeout_seconds=5, what="connected")
    assert service.kept.get() == 1


def test_a_service_that_hangs_holds_a_caller_for_its_patience_only(service: Service) -> None:
    service.answers.clear()
    began = time.monotonic()
    with pytest.raises(HypervisorUnavailable, match=r"within 0\.5 s"):
        service.kept.get()
    assert 0.4 < time.monotonic() - began < 2
    service.answers.set()
    assert service.kept.get() == 1


def test_what_is_open_at_the_end_is_discarded_and_nothing_is_opened_after(service: Service) -> None:
    service.kept.get()
    service.kept.close()
    assert service.discarded == [1]
    with pytest.raises(HypervisorUnavailable, match="closed"):
        service.kept.get()
    service.kept.open_soon()
    assert service.opened == 1


def test_what_was_being_opened_at_the_end_is_discarded_too(service: Service) -> None:
    service.answers.clear()
    service.kept.open_soon()
    closer = threading.Thread(target=service.kept.close)
    closer.start()
    service.answers.set()
    closer.join(5)
    wait_until(lambda: service.discarded == [1] or service.opened == 0, timeout_seconds=5, what="discarded")


def test_it_tells_when_it_is_away_and_when_it_is_back(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    connection = service.kept.get()
    assert service.states == [""]
    service.is_down = True
    service.kept.lost(connection)
    assert service.states[1] == "lost the connection to the service"
    wait_until(lambda: "nobody listens" in service.states, timeout_seconds=10, what="a try failed")
    service.is_down = False
    wait_until(lambda: service.states[-1] == "", timeout_seconds=10, what="it is back")
    assert not caplog.records, "whoever is told says it"
