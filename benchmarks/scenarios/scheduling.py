"""Claims without guests: what our scheduler adds to what Placement itself takes, from one host to 5,000.

Real etcd and Placement, hosts that are only providers and host keys. The floors are a bare HTTP client with one connection that
asks for candidates just as we do and then writes the claim, and for sets the bare ``POST /allocations`` of as many claims. The
candidates query is compared with the same one without ``limit``.
"""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.measure import Bench, Figure, Outcome, Plot, ratio, seconds_of, turn_about
from benchmarks.stand_ins import Field, a_field
from common.model import ImageRef
from common.placement import MICROVERSION
from eschedule.batch import BatchScheduler
from eschedule.query import Query
from eschedule.request import Request
from eschedule.scheduler import Scheduler

RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
QUERY = "resources=" + ",".join(f"{name}:{amount}" for name, amount in RESOURCES.items())
LIMIT = 10  # schedule.yaml's candidates_limit
SET = 100
IMAGE = ImageRef("/srv/images/tiny.qcow2")
FEW, MANY = 100, 1000  # hosts: those that requests are counted on, and those that sets are measured on
SIZES = (1, 10, FEW, MANY, 5000)
CLIENTS = (1, 4, 16)
CLAIMS_AT_ONCE = 96  # in each measurement of several clients


def run(bench: Bench) -> Outcome:
    figures: list[Figure] = []
    candidates: dict[int, dict[str, list[float]]] = {}
    with a_field(bench.directory) as hosts:
        for size in SIZES[:3] if bench.is_check else SIZES:
            bench.say(f"{size} hosts")
            hosts.grow(size)
            bed = _Bed(hosts)
            try:
                candidates[size] = _candidates(bed, bench.runs)
                if size == FEW:
                    figures += _requests(bed, bench)
                if size in (FEW, MANY):
                    figures += _sets(bed, bench, size)
            finally:
                bed.close()
    return Outcome([*figures, *_candidates_figures(candidates)], [] if bench.is_check else [_plot(candidates)])


# -- what is measured ---------------------------------------------------------------------------------------------------------


class _Bare:
    """The least client: one connection to Placement, kept."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {
            "X-Auth-Token": "admin", "OpenStack-API-Version": f"placement {MICROVERSION}", "Content-Type": "application/json",
        }  # fmt: skip

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 300, (method, path, content)
        return json.loads(content) if content else None

    def candidates(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", f"/allocation_candidates?{query}")["allocation_requests"]
        return found

    def close(self) -> None:
        self._connection.close()


class _Timed:
    """*inner*, with the time inside each of its calls added up in ``seconds``."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._timed(value) if callable(value) else value

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@dataclass
class _Bed:
    """The clients of one field, warm."""

    hosts: Field
    store: Any = field(init=False)
    placement: Any = field(init=False)
    bare: _Bare = field(init=False)

    def __post_init__(self) -> None:
        self.store, self.placement = _Timed(self.hosts.store()), _Timed(self.hosts.placement())
        self.bare = _Bare(self.hosts.placement_server.url)
        self.query = str(Query.parse(QUERY).on_hosts())

    def create(self) -> None:
        _create(Scheduler(self.store, self.placement, self.hosts.keys, candidates_limit=LIMIT))

    def create_set(self) -> dict[str, float]:
        request = Request(QUERY, RESOURCES, IMAGE, name="set-" + uuids.uuid4().hex[:8] + "-{n}", count=SET)
        scheduler = BatchScheduler(self.store, self.placement, self.hosts.keys, candidates_limit=LIMIT)
        return scheduler.create_all(request).timings_ms

    def claim_bare(self) -> None:
        """The floor of one request: as we ask, and then the claim of the first."""
        first = self.bare.candidates(f"{self.query}&limit={LIMIT}")[0]
        self.bare.ask("PUT", f"/allocations/{uuids.uuid4()}", self._claim(first["allocations"]))

    def claim_set_bare(self) -> float:
        """How long the bare write of a set takes, over as many hosts as there are."""
        own = {"resources": RESOURCES}
        hosts = [str(self.hosts.hosts[at % len(self.hosts.hosts)]) for at in range(SET)]
        body = {str(uuids.uuid4()): self._claim({host: own}) for host in hosts}
        return seconds_of(lambda: self.bare.ask("POST", "/allocations", body))

    def _claim(self, allocations: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "allocations": {host: {"resources": held["resources"]} for host, held in allocations.items()},
            "consumer_generation": None, "consumer_type": "INSTANCE", "project_id": self.placement.project_id,
            "user_id": self.placement.user_id,
        }  # fmt: skip

    def close(self) -> None:
        self.bare.close()
        self.placement.close()
        self.store.close()


def _create(scheduler: Scheduler) -> None:
    scheduler.create(Request(QUERY, RESOURCES, IMAGE, name="vm-" + uuids.uuid4().hex[:12]))


def _candidates(bed: _Bed, runs: int) -> dict[str, list[float]]:
    """The candidates query as our scheduler asks it, and the bare one without ``limit``."""
    bare = _Bare(bed.hosts.placement_server.url)
    try:
        return turn_about(
            runs,
            ours=lambda: seconds_of(lambda: bed.placement.candidates(bed.query, LIMIT)),
            bare=lambda: seconds_of(lambda: bare.candidates(QUERY)),
        )
    finally:
        bare.close()


def _requests(bed: _Bed, bench: Bench) -> list[Figure]:
    """Requests one by one: against the floor, where the time goes, and how many a second from several clients."""
    bench.say("one request after the other")
    parts: list[tuple[float, float, float]] = []

    def ours() -> float:
        bed.store.seconds = bed.placement.seconds = 0.0
        took = seconds_of(bed.create)
        parts.append((bed.placement.seconds, bed.store.seconds, took))
        return took

    samples = turn_about(bench.runs * 5, ours=ours, floor=lambda: seconds_of(bed.claim_bare))
    figures = [
        Figure(
            "scheduling.create", f"one request, {FEW} hosts, against the bare GET and PUT", ratio(samples, "ours", "floor"),
            margin=0.3, samples=samples, note="with what etcd is asked: uuid and name, which hosts live, the transaction",
        ),
    ]  # fmt: skip
    return figures if bench.is_check else [*figures, *_shares(parts), *_rates(bed, bench)]


def _shares(parts: Sequence[tuple[float, float, float]]) -> list[Figure]:
    total = sum(took for *_, took in parts)
    placement, etcd = (sum(part[at] for part in parts) for at in (0, 1))
    shares = {"Placement": placement, "etcd": etcd, "us": total - placement - etcd}
    return [
        Figure(f"scheduling.share-{who.lower()}", f"share of a request that is spent in {who}", 100 * seconds / total, "%")
        for who, seconds in shares.items()
    ]


def _rates(bed: _Bed, bench: Bench) -> list[Figure]:
    figures = []
    for clients in CLIENTS:
        bench.say(f"{clients} clients at once")
        rate = CLAIMS_AT_ONCE / _many_clients(bed.hosts, clients, CLAIMS_AT_ONCE // clients)
        what = f"requests per second from {clients} client{'s' * (clients > 1)}, {FEW} hosts"
        figures.append(Figure(f"scheduling.rate-{clients}", what, rate, "/s", note="Placement on SQLite serves one at a time"))
    return figures


def _many_clients(hosts: Field, clients: int, each: int) -> float:
    """How long *clients* take that create *each* one by one, all beginning together."""
    begin, stores = threading.Barrier(clients + 1), [(hosts.store(), hosts.placement()) for _ in range(clients)]
    failures: list[BaseException] = []

    def work(at: int) -> None:
        try:
            scheduler = Scheduler(*stores[at], hosts.keys, candidates_limit=LIMIT)
            _create(scheduler)  # warm
            begin.wait()
            for _ in range(each):
                _create(scheduler)
        except BaseException as error:
            failures.append(error)
            begin.abort()
            raise

    threads = [threading.Thread(target=work, args=(at,)) for at in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    for store, placement in stores:
        placement.close()
        store.close()
    if failures:
        raise failures[0]
    return took


def _sets(bed: _Bed, bench: Bench, size: int) -> list[Figure]:
    """A set of a hundred: against the bare write of as many claims, and against requests one by one."""
    bench.say(f"sets of {SET} on {size} hosts")
    parts: list[dict[str, float]] = []
    samples = turn_about(
        bench.runs,
        set=lambda: seconds_of(lambda: parts.append(bed.create_set())),
        bare=bed.claim_set_bare,
        single=lambda: seconds_of(bed.create),
    )
    gain = SET * statistics.median(samples["single"]) / statistics.median(samples["set"])
    steps = ", ".join(f"{step} {statistics.median(part[step] for part in parts):.0f} ms" for step in parts[0])
    return [
        Figure(
            f"scheduling.set-{size}", f"--count {SET}, {size} hosts, against the bare POST of as many claims",
            ratio(samples, "set", "bare"), at_most=1.2, margin=0.25, samples=samples, note=f"of the whole: {steps}",
        ),
        Figure(
            f"scheduling.set-gain-{size}", f"guests per second by --count {SET} against one by one, {size} hosts", gain,
            at_least=10 if size == MANY else None, more_is_better=True, margin=0.3, samples=samples,
        ),
        *([] if bench.is_check else [Figure(
            f"scheduling.set-rate-{size}", f"guests per second by --count {SET}, {size} hosts",
            SET / statistics.median(samples["set"]), "/s",
        )]),
    ]  # fmt: skip


def _candidates_figures(candidates: Mapping[int, Mapping[str, Sequence[float]]]) -> list[Figure]:
    return [
        Figure(
            f"scheduling.candidates-{size}", f"candidates as we ask, {size} host{'s' * (size > 1)}, against the bare query",
            ratio(samples, "ours", "bare"), margin=0.6, samples=samples,
            note="Placement builds every candidate before it cuts the answer to the limit" if size >= MANY else "",
        )
        for size, samples in candidates.items()
    ]  # fmt: skip


def _plot(candidates: Mapping[int, Mapping[str, Sequence[float]]]) -> Plot:
    lines = {
        label: [1000 * statistics.median(samples[who]) for samples in candidates.values()]
        for who, label in (("ours", f"as we ask, limit {LIMIT}"), ("bare", "bare, no limit"))
    }
    return Plot("scheduling-candidates", "Candidates query", "hosts", "ms", list(candidates), lines, is_log_x=True)
