"""The numbers for Prometheus: what they show, that nothing unbounded is a label, and that a taken port harms nobody."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.errors import Transient
from ecompute.health import ETCD, Health
from ecompute.machine import Step
from ecompute.measured_builder import MeasuredBuilder
from ecompute.metrics import Metrics, Sources, serve
from tests.fakes.clock import FakeClock
from tests.support.processes import free_port


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock=clock, now=lambda: "now")


@pytest.fixture
def metrics(health: Health) -> Metrics:
    return Metrics(health, version="1.2.3")


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    port = free_port()
    end = serve(metrics, f"127.0.0.1:{port}")
    yield port
    end()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 5)


def read(port: int) -> dict[str, float]:
    """Every sample, by its name and labels as they are written."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {f"{s.name}{{{','.join(f'{k}={v}' for k, v in sorted(s.labels.items()))}}}": s.value for s in samples}


def test_services_and_how_long_they_are_as_they_are(port: int, health: Health, clock: FakeClock) -> None:
    clock.now += 5
    health.report(ETCD, "away")
    clock.now += 2
    shown = read(port)
    assert shown["ecompute_service_up{service=etcd}"] == 0
    assert shown["ecompute_service_state_seconds{service=etcd}"] == 2
    assert shown["ecompute_service_up{service=placement}"] == 1
    assert shown["ecompute_service_state_seconds{service=libvirt}"] == 7
    assert shown["ecompute_build_info{version=1.2.3}"] == 1
    assert "ecompute_host_lease_seconds{}" not in shown, "before there is a lease nothing is said of it"


def test_what_is_is_asked_for_at_each_look(port: int, metrics: Metrics) -> None:
    phases = {"Running": 2}
    metrics.watch(Sources(lambda: 17.5, lambda: phases, lambda: 3))
    shown = read(port)
    assert shown["ecompute_host_lease_seconds{}"] == 17.5
    assert shown["ecompute_queue_length{}"] == 3
    assert shown["ecompute_instances{phase=Running}"] == 2
    phases.clear()
    phases["Failed"] = 1
    shown = read(port)
    assert "ecompute_instances{phase=Running}" not in shown
    assert shown["ecompute_instances{phase=Failed}"] == 1


def test_passes_retries_steps_and_looks_are_counted(port: int, metrics: Metrics) -> None:
    metrics.passed("done")
    metrics.passed("retry", "StoreUnavailable")
    metrics.passed("bug", "KeyError")
    metrics.step_done(Step.START, 0.7)
    metrics.step_failed(Step.FETCH_IMAGE, "ImageUnavailable")
    metrics.looked(0.2, False)
    assert read(port)["ecompute_resync_last_success_timestamp_seconds{}"] == 0
    metrics.looked(0.2, True)
    shown = read(port)
    assert [shown[f"ecompute_passes_total{{outcome={outcome}}}"] for outcome in ("done", "retry", "bug")] == [1, 1, 1]
    assert shown["ecompute_retries_total{cause=StoreUnavailable}"] == 1
    assert shown["ecompute_step_seconds_count{step=Start}"] == 1
    assert shown["ecompute_step_seconds_sum{step=Start}"] == pytest.approx(0.7)
    assert shown["ecompute_step_seconds_bucket{le=0.5,step=Start}"] == 0
    assert shown["ecompute_step_seconds_bucket{le=1.0,step=Start}"] == 1
    assert shown["ecompute_step_failures_total{cause=ImageUnavailable,step=FetchImage}"] == 1
    assert shown["ecompute_resync_seconds_count{}"] == 2
    assert time.time() - shown["ecompute_resync_last_success_timestamp_seconds{}"] < 60


def test_findings_that_are_gone_are_not_shown(port: int, metrics: Metrics) -> None:
    metrics.set_findings({"OrphanClaim": 2, "LeftoverFiles": 1})
    metrics.set_findings({"OrphanClaim": 1})
    shown = read(port)
    assert shown["ecompute_findings{kind=OrphanClaim}"] == 1
    assert "ecompute_findings{kind=LeftoverFiles}" not in shown


def test_the_builders_steps_are_timed_and_its_failures_counted(
    port: int, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = MeasuredBuilder.__new__(MeasuredBuilder)
    builder._metrics = metrics
    outcomes = iter(["facts", Transient("later")])

    def run(*_: object) -> object:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("ecompute.builder.Builder.run", run)
    assert builder.run(Step.DEFINE, uuid4(), None, None, None) == "facts"  # type: ignore[arg-type, comparison-overlap]
    with pytest.raises(Transient):
        builder.run(Step.DEFINE, uuid4(), None, None, None)  # type: ignore[arg-type]
    shown = read(port)
    assert shown["ecompute_step_seconds_count{step=Define}"] == 1
    assert shown["ecompute_step_failures_total{cause=Transient,step=Define}"] == 1


@pytest.mark.parametrize("listen", ["127.0.0.1:{port}", "[::ffff:127.0.0.1]:{port}", "no-such-host.invalid:{port}"])
def test_a_port_that_cannot_be_had_is_one_warning(metrics: Metrics, listen: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = listen.format(port=taken.getsockname()[1])
        with caplog.at_level(logging.INFO):
            serve(metrics, listen)()
    assert [(record.levelname, listen in record.getMessage()) for record in caplog.records] == [("WARNING", True)]


def test_a_reader_that_goes_away_in_the_middle_harms_nobody(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), 5) as reader:
                reader.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert read(port)
    assert not caplog.records
