"""Many hosts: 100, 500 and 1,000 real agents on libvirt's test driver and 10,000 instances against one etcd and one Placement.

What is asked of both with nothing happening, how long all take to enrol and to be well again after a restart of etcd or of
Placement, what a host and an instance cost in memory, and the time of ``list`` against a bare read of the same keys. The
instances that the hosts have are asked to be stopped and were never started: to the services they are like any others.
"""

from __future__ import annotations

import dataclasses
import datetime
import sqlite3
import statistics
import subprocess
import time
import uuid as uuids
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from uuid import UUID

from benchmarks.farm import PER_PROCESS, WATCHES_PER_HOST, Farm, Rates, Sample, a_farm, rates_over_time
from benchmarks.measure import Bench, Figure, Outcome, Plot, ratio, seconds_of, turn_about
from benchmarks.stand_ins import host_record, write_in_batches
from common.etcd_rules import key_range
from common.etcd_store import etcd3, etcdrpc  # type: ignore[attr-defined] # the one importer of them
from common.keys import Keys
from common.model import Address, Desired, Event, ImageRef, InstanceKey, InstanceSpec, InstanceStatus, OwnerRecord, Phase
from eschedule import render
from eschedule.listing import list_instances
from tests.support.etcd import unique_prefix
from tests.support.processes import VENV_BIN

RESOURCES = {"VCPU": 1, "MEMORY_MB": 256}
IMAGE = ImageRef("http://images/debian-12-generic-amd64.qcow2", "sha256:" + "0" * 64)
STEPS = ("FetchImage", "BuildDisk", "ReserveNetwork", "WriteMetadata", "Define", "Start", "MarkBooted")
HEAL_SECONDS_AT_MOST = 180.0  # then it is given up and said
KEYS_PER_INSTANCE = 3  # spec, instance, name
GIVEN_AT_ONCE = 1000  # instances; how fast hosts take up new ones is what other scenarios measure
LISTED = 2000  # instances, where only the ratio is asked for


@dataclass(frozen=True)
class _Plan:
    """How much is done: *outage_seconds* for etcd and for Placement; *watched_seconds* after each of them."""

    sizes: tuple[int, ...]
    per_host: int
    listed: int
    resync_seconds: float
    steady_seconds: float
    outage_seconds: tuple[float, float]
    watched_seconds: float


FULL = _Plan((100, 500, 1000), 10, 10_000, 60.0, 60.0, (20.0, 30.0), 75.0)
CHECK = _Plan((50,), 2, LISTED, 10.0, 20.0, (0.0, 0.0), 0.0)


def run(bench: Bench) -> Outcome:
    plan = CHECK if bench.is_check else FULL
    with a_farm(bench.directory, resync_seconds=plan.resync_seconds) as farm:
        figures = _list_figures(farm, bench, plan)
        figures += _enrol(farm, bench, plan)
        if not bench.is_check:
            healed, plot = _restarts(farm, bench, plan, _steady(farm, bench, plan))
        figures += _give_instances(farm, bench, plan)
        if not bench.is_check:
            time.sleep(plan.resync_seconds * 1.2)  # looks that the burst asked for are in step for one period
        steady = _steady(farm, bench, plan)
        figures += _steady_figures(farm, steady, plan, is_check=bench.is_check)
        if bench.is_check:
            return Outcome(figures)
        healed_with_instances, plot_with_instances = _restarts(farm, bench, plan, steady, with_instances=True)
    return Outcome([*figures, *healed, *healed_with_instances], [plot, plot_with_instances])


# -- enrolment and memory -----------------------------------------------------------------------------------------------------


def _enrol(farm: Farm, bench: Bench, plan: _Plan) -> list[Figure]:
    """Have all hosts enrol, size by size."""
    figures: list[Figure] = []
    began, empty = time.monotonic(), farm.memory_mib()
    for size in plan.sizes:
        more, calls = size - farm.count, farm.samples[-1].placement_calls if farm.samples else 0
        took = farm.add(more, timeout_seconds=300)
        bench.say(f"{size} hosts are enrolled, the last {more} in {took:.0f} s")
        _next_sample(farm)
        asked = (farm.samples[-1].placement_calls - calls) / more
        note = f"{asked:.1f} requests to Placement each; the agents share the cores with the services"
        figures.append(Figure(f"scale.enrol-{size}", f"{more} more hosts enrol, {size} in all", took, "s", note=note))
    if bench.is_check:
        return []
    total, of_host = time.monotonic() - began, (farm.memory_mib() - empty) / farm.count
    return [
        *figures,
        Figure("scale.enrol", f"all {farm.count} hosts enrol and are Ready, step by step", total, "s", at_most=120),
        Figure("scale.memory-host", f"memory of one host, {PER_PROCESS} in a process", of_host, "MiB"),
        Figure("scale.memory-etcd", f"memory of etcd with {farm.count} hosts", farm.etcd_memory_mib(), "MiB"),
    ]


def _give_instances(farm: Farm, bench: Bench, plan: _Plan) -> list[Figure]:
    """Have each host have instances, claims included, and wait until all statuses are there."""
    before = farm.memory_mib()
    given = [(farm.provider(number), uuids.uuid4()) for number in range(farm.count) for _ in range(plan.per_host)]
    _claim_all(farm, given)
    began = time.monotonic()
    puts = list(_instance_keys(farm.keys, given, desired=Desired.STOPPED).items())
    keys_at_once = KEYS_PER_INSTANCE * GIVEN_AT_ONCE
    for start in range(0, len(puts), keys_at_once):
        some = dict(puts[start : start + keys_at_once])
        write_in_batches(farm.store, some)
        known = (start + len(some)) // KEYS_PER_INSTANCE
        farm.wait_well(180, lambda known=known: len(farm.statuses()) == known)  # type: ignore[misc]
    bench.say(f"{plan.per_host} instances on each host, known to all in {time.monotonic() - began:.0f} s")
    if bench.is_check:
        return []
    per_instance = (farm.memory_mib() - before) / len(given) * 1024
    return [Figure("scale.memory-instance", "and of each instance on it", per_instance, "KiB")]


def _claim_all(farm: Farm, given: Sequence[tuple[UUID, UUID]]) -> None:
    """Write the claims of the instances *given* into Placement's own database: one by one they would take 15 ms each."""
    with closing(sqlite3.connect(farm.placement.directory / "data" / "placement.db", timeout=60)) as db, db:
        db.execute("BEGIN IMMEDIATE")  # Placement is at work on it
        providers = dict(db.execute("SELECT uuid, id FROM resource_providers"))
        classes = dict(db.execute("SELECT name, id FROM resource_classes"))
        project, user = _owner_of_claims(db, farm)
        (kind,) = db.execute("INSERT INTO consumer_types (name) VALUES ('INSTANCE') RETURNING id").fetchone()
        db.executemany(
            "INSERT INTO consumers (uuid, project_id, user_id, generation, consumer_type_id) VALUES (?, ?, ?, 1, ?)",
            [(str(instance), project, user, kind) for _, instance in given],
        )
        db.executemany(
            "INSERT INTO allocations (resource_provider_id, consumer_id, resource_class_id, used) VALUES (?, ?, ?, ?)",
            [
                (providers[str(provider)], str(instance), classes[name], amount)
                for provider, instance in given
                for name, amount in RESOURCES.items()
            ],
        )


def _owner_of_claims(db: sqlite3.Connection, farm: Farm) -> tuple[int, int]:
    """The rows of our project and user, made here."""
    from common.placement_types import default_project  # noqa: PLC0415 - only here

    owner = str(default_project(farm.prefix))
    (project,) = db.execute("INSERT INTO projects (external_id) VALUES (?) RETURNING id", (owner,)).fetchone()
    (user,) = db.execute("INSERT INTO users (external_id) VALUES (?) RETURNING id", (owner,)).fetchone()
    return project, user


def _instance_keys(keys: Keys, given: Sequence[tuple[UUID, UUID]], *, desired: Desired) -> dict[str, str]:
    puts: dict[str, str] = {}
    for number, (provider, instance) in enumerate(given):
        name = f"web-{number:05d}"
        spec = InstanceSpec(
            instance, name, IMAGE, RESOURCES, hostname=name, desired=desired,
            keys=("ssh-ed25519 " + "A" * 68 + " somebody@somewhere",), request_digest="sha256:" + "0" * 64,
            created_at="2026-01-01T00:00:00.000Z", created_by="somebody@somewhere",
        )  # fmt: skip
        puts[keys.spec(provider, instance)] = spec.to_json()
        puts[keys.instance(instance)] = InstanceKey(provider, name, spec.request_digest).to_json()
        puts[keys.name(name)] = str(instance)
    return puts


# -- nothing happens ----------------------------------------------------------------------------------------------------------


def _steady(farm: Farm, bench: Bench, plan: _Plan) -> Rates:
    time.sleep(5)  # what the last change set off is over
    began = time.monotonic()
    bench.say(f"nothing happens for {plan.steady_seconds:.0f} s")
    time.sleep(plan.steady_seconds + 1)
    return Rates.of(*farm.between(began, time.monotonic()))


def _steady_figures(farm: Farm, steady: Rates, plan: _Plan, *, is_check: bool) -> list[Figure]:
    looks = farm.count / plan.resync_seconds
    figures = [
        Figure("scale.placement-per-look", "requests to Placement per host and full look", steady.placement / looks, "",
               at_most=1.25, margin=0.3),
        Figure("scale.etcd-per-host", "calls of etcd per idle host and minute", 60 * steady.etcd / farm.count, "",
               at_most=24, margin=0.2),
    ]  # fmt: skip
    if is_check:
        return figures
    cores = 100 * (steady.etcd_cores + steady.placement_cores)
    shares = f"etcd {100 * steady.etcd_cores:.0f} %, Placement {100 * steady.placement_cores:.0f} %"
    return [
        *figures,
        Figure("scale.idle-cpu", f"etcd and Placement together, {farm.count} idle hosts", cores, "% of a core", at_most=30,
               note=f"{shares}; the agents themselves {100 * steady.agents_cores / farm.count:.2f} % each"),
        Figure("scale.idle-etcd", "calls of etcd", steady.etcd, "/s"),
        Figure("scale.idle-etcd-bytes", "in and out of etcd", steady.etcd_bytes / 1024, "KiB/s"),
        Figure("scale.idle-placement", "requests to Placement", steady.placement, "/s"),
        Figure("scale.idle-placement-bytes", "answers of Placement", steady.placement_bytes / 1024, "KiB/s"),
    ]  # fmt: skip


# -- restarts -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outage:
    what: str
    seconds: float
    end: Callable[[], object]
    begin: Callable[[], object]


def _restarts(
    farm: Farm, bench: Bench, plan: _Plan, steady: Rates, *, with_instances: bool = False
) -> tuple[list[Figure], Plot]:  # fmt: skip
    began = time.monotonic() - 30
    outages = (
        _Outage("etcd", plan.outage_seconds[0], farm.etcd.kill, lambda: farm.etcd.start(wait=False)),
        _Outage("Placement", plan.outage_seconds[1], farm.placement.kill, farm.placement.start),
    )
    figures = [figure for outage in outages for figure in _restart(farm, bench, outage, plan.watched_seconds, steady)]
    plot = _plot(farm.samples, began)
    if not with_instances:
        return figures, plot
    figures = [
        dataclasses.replace(one, name=f"{one.name}-with-instances", says=f"{plan.per_host} instances on each: {one.says}")
        for one in figures
    ]
    title = f"{plot.title}; {plan.per_host} instances on each host"
    return figures, dataclasses.replace(plot, name=f"{plot.name}-with-instances", title=title)


def _restart(farm: Farm, bench: Bench, outage: _Outage, watched_seconds: float, steady: Rates) -> list[Figure]:
    """Have a service away for a while; how long all take to be well, and for how long more is asked than twice as usual."""
    bench.say(f"{outage.what} is away for {outage.seconds:.0f} s")
    outage.end()
    time.sleep(outage.seconds)
    back = time.monotonic()
    outage.begin()
    note = ""
    try:
        farm.wait_well(HEAL_SECONDS_AT_MOST, lambda: farm.watches() >= WATCHES_PER_HOST * farm.count)
    except AssertionError:
        note = f"given up: {farm.well()} hosts and {farm.watches():.0f} watches were well then"
    healed = time.monotonic() - back
    bench.say(note or f"all well after {healed:.0f} s")
    time.sleep(max(0.0, back + watched_seconds - time.monotonic()))
    # A lease that was not kept since is over by now, and its host not well.
    if not note and farm.well() < farm.count:
        healed, note = HEAL_SECONDS_AT_MOST, f"only {farm.well()} hosts were still well after {watched_seconds:.0f} s"
    after = rates_over_time([sample for sample in farm.samples if sample.at >= back], 5.0)
    who = outage.what.lower()
    says = f"{farm.count} hosts well again after {outage.what} was away for {outage.seconds:.0f} s"
    etcd = [(at - back, one.etcd) for at, one in after]
    placement = [(at - back, one.placement) for at, one in after]
    return [
        Figure(f"scale.heal-{who}", says, healed, "s", at_most=60, note=note),
        _busy(f"scale.busy-etcd-after-{who}", "etcd", etcd, steady.etcd),
        _busy(f"scale.busy-placement-after-{who}", "Placement", placement, steady.placement),
    ]


def _busy(name: str, who: str, rates: Sequence[tuple[float, float]], usual: float) -> Figure:
    """How long after the return more than twice as much as usual was asked."""
    last = max((seconds for seconds, rate in rates if rate > 2 * usual), default=0.0)
    note = f"at most {max(rate for _, rate in rates):.0f}/s, usually {usual:.0f}/s"
    return Figure(name, f"until no more than twice the usual is asked of {who}", last, "s", at_most=60, note=note)


def _plot(samples: Sequence[Sample], began: float) -> Plot:
    rates = rates_over_time([sample for sample in samples if sample.at >= began], 2.0)
    lines = {
        "etcd": [one.etcd for _, one in rates],
        "Placement": [one.placement for _, one in rates],
    }
    title = "Requests over time: etcd, then Placement, is away and comes back"
    return Plot("scale-restarts", title, "seconds", "requests per second", [at - began for at, _ in rates], lines)


def _next_sample(farm: Farm) -> None:
    seen = len(farm.samples)
    while len(farm.samples) <= seen + 1:
        time.sleep(0.1)


# -- list ---------------------------------------------------------------------------------------------------------------------


def _list_figures(farm: Farm, bench: Bench, plan: _Plan) -> list[Figure]:
    """``list`` in a deployment of its own beside: instances with all that a host tells of them."""
    figures = [_list_ratio(farm, bench)]
    if bench.is_check:
        return figures
    prefix = _fill(farm, plan.listed)
    config = bench.directory / "schedule.yaml"
    config.write_text(f"etcd: {{endpoints: ['{farm.etcd.endpoint}'], prefix: {prefix}, deadline_seconds: 30}}\n")
    command = [str(VENV_BIN / "eschedule"), "--config", str(config), "list"]
    bench.say(f"list of {plan.listed} instances")
    samples = [
        seconds_of(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(bench.runs + 1)
    ][1:]
    what = f"eschedule list of {plan.listed} instances, as a process"
    return [*figures, Figure("scale.list", what, statistics.median(samples), "s", at_most=2.0, samples={"list": samples})]


def _list_ratio(farm: Farm, bench: Bench) -> Figure:
    keys = Keys(_fill(farm, LISTED))
    store = farm.open_store(keys.prefix)
    client = etcd3.client(host="127.0.0.1", port=farm.etcd.client_port, grpc_options=(("grpc.max_receive_message_length", -1),))
    try:
        samples = turn_about(
            bench.runs,
            ours=lambda: seconds_of(
                lambda: render.instance_table(list_instances(store, keys), datetime.datetime.now(datetime.UTC))
            ),
            bare=lambda: seconds_of(lambda: _read_bare(client, keys)),
        )
    finally:
        store.close()
        client.close()
    what = f"list of {LISTED} instances by the Python API, against a bare read of the same keys"
    return Figure("scale.list-ratio", what, ratio(samples, "ours", "bare"), margin=0.3, samples=samples)


def _read_bare(client: object, keys: Keys) -> int:
    """All of these keys in one answer for each kind; how many bytes."""
    stub = etcdrpc.KVStub(client.channel)  # type: ignore[attr-defined]
    size = 0
    for prefix in (keys.specs(), keys.statuses(), keys.hosts()):
        start, end = key_range(prefix)
        answer = stub.Range(etcdrpc.RangeRequest(key=start, range_end=end, serializable=True), timeout=30)
        size += sum(len(pair.value) for pair in answer.kvs)
    return size


def _fill(farm: Farm, instances: int) -> str:
    """A deployment of *instances*, ten on each host, with the statuses of running ones; its prefix."""
    prefix = unique_prefix()
    keys, store = Keys(prefix), farm.open_store(prefix)
    providers = [uuids.uuid4() for _ in range(instances // 10)]
    given = [(providers[number // 10], uuids.uuid4()) for number in range(instances)]
    puts = _instance_keys(keys, given, desired=Desired.RUNNING)
    puts |= {keys.status(provider, instance): _status(number) for number, (provider, instance) in enumerate(given)}
    for number, provider in enumerate(providers):
        puts[keys.host(provider)] = host_record(f"host-{number:04d}")
        puts[keys.owner(provider)] = OwnerRecord("machine", "libvirt", f"host-{number:04d}").to_json()
    write_in_batches(store, puts)
    store.close()
    return prefix


def _status(number: int) -> str:
    at = "2026-01-01T00:00:00.000Z"
    status = InstanceStatus(
        Phase.RUNNING, spec_revision=number, boot_request=1, attempts=1, booted=1, updated_at=at,
        addresses=(Address("default", "52:54:00:00:00:01", "192.168.122.50", 24, "192.168.122.1"),),
        events=tuple(Event(at, step, 12) for step in STEPS),
    )  # fmt: skip
    return status.to_json()
