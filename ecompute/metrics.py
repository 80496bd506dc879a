"""The numbers that this host offers to Prometheus, and the listener that serves them; the only importer of prometheus_client.

What happened is counted by whoever calls a method here; what *is* is asked for when somebody looks (``Sources``). No label ever
holds anything of which there can be many, such as an instance: those are in etcd. Nothing waits for a reader.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from socketserver import TCPServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    MetricsHandler,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.logs import fields
from ecompute.health import SERVICES, Health

logger = logging.getLogger(__name__)
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
RESYNC_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
READER_SECONDS = 10.0  # a reader that sends or takes nothing for so long is let go


@dataclass(frozen=True)
class Sources:
    """What is asked for at each look; none of it may wait."""

    lease_seconds: Callable[[], float]
    phases: Callable[[], Mapping[str, int]]
    queue_length: Callable[[], int]


class Metrics:
    """All numbers of one process."""

    def __init__(self, health: Health, *, version: str = "") -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        build = Gauge("ecompute_build_info", "Always 1; the version is in the label.", ["version"], registry=registry)
        build.labels(version).set(1)
        self._passes = Counter(
            "ecompute_passes", "Passes over one instance by outcome: done, retry, error, bug.", ["outcome"], registry=registry
        )
        self._retries = Counter("ecompute_retries", "Passes to be repeated by kind of error.", ["cause"], registry=registry)
        self._steps = Histogram(
            "ecompute_step_seconds", "How long steps took that went well.", ["step"], buckets=STEP_BUCKETS, registry=registry
        )
        self._failures = Counter(
            "ecompute_step_failures", "Steps that failed, by the kind of error.", ["step", "cause"], registry=registry
        )
        self._findings = Gauge(
            "ecompute_findings", "Differences that the last audit of this host found, by kind.", ["kind"], registry=registry
        )
        self._troubles = Gauge(
            "ecompute_host_troubles", "What is wrong with this host's network, by kind: 1.", ["kind"], registry=registry
        )
        self._looks = Histogram(
            "ecompute_resync_seconds", "How long the full looks at everything took.", buckets=RESYNC_BUCKETS, registry=registry
        )
        self._looked_at = Gauge(
            "ecompute_resync_last_success_timestamp_seconds",
            "When a full look last went well (Unix time); 0 = not yet.",
            registry=registry,
        )
        self._state = _State(health)
        registry.register(self._state)

    def watch(self, sources: Sources) -> None:
        """From now on show *sources*, too."""
        self._state.sources = sources

    def passed(self, outcome: str, cause: str = "") -> None:
        """A look at an instance ended: "done", or "retry", "error" or "bug" with the name of the error's class as *cause*."""
        self._passes.labels(outcome).inc()
        if outcome != "done":
            self._retries.labels(cause).inc()

    def step_done(self, step: str, seconds: float) -> None:
        self._steps.labels(step).observe(seconds)

    def step_failed(self, step: str, cause: str) -> None:
        self._failures.labels(step, cause).inc()

    def looked(self, seconds: float, is_success: bool) -> None:
        """A full look at everything ended."""
        self._looks.observe(seconds)
        if is_success:
            self._looked_at.set(time.time())

    def set_findings(self, counts: Mapping[str, int]) -> None:
        """What the last audit of this host found: kind → how many; kinds that are not named are gone."""
        self._findings.clear()
        for kind, count in counts.items():
            self._findings.labels(kind).set(count)

    def set_troubles(self, counts: Mapping[str, int]) -> None:
        """What the last look at the host's network found, as in ``set_findings``."""
        self._troubles.clear()
        for kind, count in counts.items():
            self._troubles.labels(kind).set(count)


class _State(Collector):
    """What is, asked for at each look."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self.sources: Sources | None = None

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("ecompute_service_up", "1 while the service answers this host, else 0.", labels=["service"])
        lasts = GaugeMetricFamily(
            "ecompute_service_state_seconds", "For how long the service has been up or away.", labels=["service"]
        )
        states = self._health.states()
        for name in SERVICES:
            up.add_metric([name], float(states[name].is_up))
            lasts.add_metric([name], states[name].seconds)
        yield from (up, lasts)
        if self.sources is not None:
            yield from self._counted(self.sources)

    @staticmethod
    def _counted(sources: Sources) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "ecompute_host_lease_seconds", "How long this host's lease in etcd certainly lasts; 0 = it is lost.",
            value=sources.lease_seconds(),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "ecompute_queue_length", "Instances that wait for a worker, delayed ones not counted.", value=sources.queue_length()
        )
        instances = GaugeMetricFamily("ecompute_instances", "Instances of this host by phase.", labels=["phase"])
        for phase, count in sorted(sources.phases().items()):
            instances.add_metric([phase], count)
        yield instances


class _Handler(MetricsHandler):
    timeout = READER_SECONDS


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int], metrics: Metrics) -> None:
        self.address_family = family
        super().__init__(address, _Handler.factory(metrics.registry))

    def server_bind(self) -> None:
        # HTTPServer's own looks up the host's name, which can take long, for nothing.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's own signature
        logger.debug("a reader of the metrics went away", extra=fields(reader=client_address), exc_info=True)


def serve(metrics: Metrics, listen: str) -> Callable[[], None]:
    """Serve *metrics* at *listen* (HOST:PORT) in a thread of their own; what ends it.

    Where that is not possible it is one warning: guests are served without being counted.
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = _Server(family, (str(address[0]), int(address[1])), metrics)
    except OSError as error:
        logger.warning("no metrics: cannot listen on metrics.listen (%s): %s", listen, error.strerror or error)
        return lambda: None
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics", daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end
