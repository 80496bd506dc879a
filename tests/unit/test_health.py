"""What is said of services that go away and come back: once each, and what the host record and the metrics then show."""

from __future__ import annotations

import logging

import pytest

from common.errors import (
    Conflict,
    HypervisorUnavailable,
    ImageUnavailable,
    NotLive,
    PlacementUnavailable,
    StoreUnavailable,
)
from ecompute.health import ETCD, INVENTORY, LIBVIRT, PLACEMENT, Health
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def back() -> list[str]:
    return []


@pytest.fixture
def health(clock: FakeClock, back: list[str], caplog: pytest.LogCaptureFixture) -> Health:
    caplog.set_level(logging.DEBUG)
    return Health(clock=clock, now=lambda: f"second {clock.now:g}", on_back=back.append)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_an_hour_of_retries_is_one_line_and_the_return_is_another(
    health: Health, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3600):
        clock.now += 1
        assert health.note(StoreUnavailable(f"no answer at {clock.now}"))
    health.report(ETCD, "")
    assert said(caplog) == ["WARNING etcd is away: no answer at 1001.0", "INFO etcd is back after 3599 s"]


def test_the_message_names_everything_that_is_away_and_since_when(health: Health, clock: FakeClock) -> None:
    assert health.message() == ""
    clock.now = 5
    health.report(PLACEMENT, "connection refused")
    clock.now = 7
    health.report(LIBVIRT, "no socket")
    health.report(PLACEMENT, "connection refused again")
    assert health.message() == (
        "Placement is away since second 5: connection refused; libvirt is away since second 7: no socket"
    )
    health.report(PLACEMENT, "")
    assert health.message() == "libvirt is away since second 7: no socket"


def test_states_say_for_how_long(health: Health, clock: FakeClock) -> None:
    clock.now += 10
    health.report(ETCD, "away")
    clock.now += 3
    states = health.states()
    assert (states[ETCD].is_up, states[ETCD].seconds) == (False, 3)
    assert states[LIBVIRT].is_up
    assert states[LIBVIRT].seconds == 13


def test_what_changed_is_told(health: Health, back: list[str]) -> None:
    health.report(PLACEMENT, "")
    assert not health.changed.is_set()
    health.report(PLACEMENT, "away")
    assert health.changed.is_set()
    assert back == []
    health.report(PLACEMENT, "")
    assert back == [PLACEMENT]


@pytest.mark.parametrize(("error", "service"), [(StoreUnavailable("x"), ETCD), (PlacementUnavailable("x"), PLACEMENT)])
def test_an_outage_that_a_pass_met_is_taken_in(health: Health, error: Exception, service: str) -> None:
    assert health.note(error)  # type: ignore[arg-type]
    assert health.is_away(service)


@pytest.mark.parametrize("error", [ImageUnavailable("x"), Conflict("x")])
def test_what_is_no_outage_is_for_the_pass_to_say(health: Health, error: Exception) -> None:
    assert not health.note(error)  # type: ignore[arg-type]
    assert health.message() == ""


def test_one_busy_domain_is_no_outage_of_libvirt_but_a_lost_connection_is(health: Health) -> None:
    assert not health.note(HypervisorUnavailable("another call holds the domain"))
    assert not health.is_away(LIBVIRT)
    health.report(LIBVIRT, "lost the connection")
    assert health.note(HypervisorUnavailable("no connection"))


def test_a_lease_that_is_made_anew_is_the_heartbeats_to_speak_of(health: Health) -> None:
    assert health.note(NotLive("it is being made anew"))
    assert not health.is_away(ETCD)


def test_what_is_wrong_with_the_inventory_is_said_in_its_own_words(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    health.report(INVENTORY, "another provider has this name")
    health.report(INVENTORY, "")
    assert said(caplog) == ["WARNING inventory: another provider has this name", "INFO inventory is well again after 0 s"]


def test_a_service_that_comes_and_goes_does_not_fill_the_log(
    health: Health, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(300):
        health.report(ETCD, "away")
        clock.now += 1
        health.report(ETCD, "")
        clock.now += 1
    assert len(said(caplog)) == 6
    caplog.clear()
    for _ in range(90):
        health.report(ETCD, "away for good")
        clock.now += 1
    assert said(caplog) == ["WARNING etcd is away: away for good"], "one that lasts is said"
