"""What the verb ``doctor`` does: checks everything that a client needs, and says of each how it is, why, and what cures it.

It works where etcd and Placement are away and where the configuration cannot be read. Probes apart it changes nothing;
``--fix`` removes what earlier checks left behind in Placement.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from common import checkup, etcd_checkup, placement_checkup
from common.checkup import Check, Report, Result, failure, ok, warning
from common.config import ScheduleConfig
from common.errors import ConfigError, EcomputeError, StoreUnavailable
from common.host_checkup import few, hosts_of, judge_versions, readable, versions_of
from common.keys import Keys
from common.model import HostAdmin, HostRecord, HostState, OwnerRecord
from common.placement import Placement, Provider
from common.placement_checkup import PROBE_NAME
from common.placement_types import OWNER_TRAIT
from common.store import Store
from eschedule.output import emit
from eschedule.screen import Screen
from eschedule.session import Session

STORE_SECONDS, PLACEMENT_SECONDS = 3.0, 4.0
LEFT_SECONDS = 2.0  # much longer than a check's provider lives
MOST_CLAIMS = 5  # that are looked at for their project
MOST_HOSTS_ASKED = 20  # for claims, one after the other
T = TypeVar("T")


@dataclass(frozen=True)
class Hosts:
    """The hosts as etcd and Placement know them.

    Args:
        owners: everybody who ever enrolled and has not left, with the name of then.
        alive: with a heartbeat now.
        disabled: switched off by an operator.
        providers: of ours in Placement; None where it does not say.
    """

    prefix: str
    owners: Mapping[UUID, str]
    alive: Mapping[UUID, HostRecord]
    disabled: frozenset[UUID] = frozenset()
    providers: Mapping[UUID, str] | None = None


def doctor(session: Session, options: argparse.Namespace) -> int:
    """Look, print the report; with ``--fix`` cure what is ours and look again. 0 where nothing failed, 1 with a failure."""
    checkup.keep_quiet()
    report = examine(session.config)
    fixed = list(checkup.cure(report)) if options.fix else []
    if fixed:
        report = examine(session.config)
    return _print(session.screen, report, fixed, options)


def report_configuration(screen: Screen, error: ConfigError, options: argparse.Namespace) -> int:
    """Say what is wrong with a configuration that cannot be read; without it nobody knows where the services are."""
    cure = "correct it; eschedule --check-config"
    wrong = [failure("configuration", line, cure) for line in str(error).splitlines()]
    rest = failure("services", "not looked at, since the configuration says where they are", "correct the configuration")
    return _print(screen, Report((*wrong, rest)), [], options)


def examine(config: ScheduleConfig) -> Report:
    """What a client with *config* lacks. Takes at most about 10 s; raises nothing for what it finds."""
    bounded = dataclasses.replace(
        config.placement, timeout_seconds=PLACEMENT_SECONDS, deadline_seconds=PLACEMENT_SECONDS
    )  # fmt: skip
    placement = Placement(bounded, etcd_prefix=config.etcd.prefix)
    keys = Keys(config.etcd.prefix)
    members = _Once(lambda: etcd_checkup.look_at(config.etcd))
    store = _Once(lambda: _store(config))
    try:
        found = checkup.run(
            [
                Check("etcd", lambda: etcd_checkup.look(members.get(), config.etcd, store.get, keys)),
                Check("Placement", lambda: placement_checkup.look(placement, config.placement)),
                Check("clock", lambda: placement_checkup.look_at_clock(members.get(), config.placement.url)),
                Check("hosts", lambda: _hosts(store.get(), keys, placement)),
                Check("project", lambda: _project(store.get(), keys, placement)),
                Check("leftovers", lambda: _leftovers(placement)),
            ]
        )
    finally:
        placement.close()
        if store.made is not None:
            store.made.close()
    return Report((_configuration(config), *found.results))


class _Once(Generic[T]):
    """What *make* made when it was first wanted; threads that want it wait for each other."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self.made: T | None = None

    def get(self) -> T:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made


def _print(screen: Screen, report: Report, fixed: list[str], options: argparse.Namespace) -> int:
    emit(screen, options, lambda: json.loads(report.to_json(fixed)), lambda _: report.text(fixed))
    return report.exit_code


def _store(config: ScheduleConfig) -> Store:
    try:
        from common.etcd_store import EtcdStore  # noqa: PLC0415 - the doctor says where its library is missing
    except ImportError as error:
        raise StoreUnavailable(f"etcd's client library cannot be imported: {error}") from error
    return EtcdStore(dataclasses.replace(config.etcd, deadline_seconds=STORE_SECONDS))


def _configuration(config: ScheduleConfig) -> Result:
    if config.source is None:
        return ok("configuration", "no schedule.yaml found: every key has its default")
    return ok("configuration", f"{config.source} can be read and holds nothing wrong")


# -- hosts -------------------------------------------------------------------------------------------------------------------


def _hosts(store: Store, keys: Keys, placement: Placement) -> Iterator[Result]:
    owners, admins = store.list(keys.owners()).items, store.list(keys.host_admins()).items
    names = {keys.parse_host(item.key): readable(OwnerRecord, item.value) for item in owners}
    disabled = frozenset(keys.parse_host(item.key) for item in admins if (a := readable(HostAdmin, item.value)) and a.disabled)
    alive = hosts_of(store, keys)
    try:
        providers = {provider.uuid: provider.name for provider in placement.providers(OWNER_TRAIT)}
    except EcomputeError:
        providers = None  # Placement has lines of its own
    shown = {provider: record.name if record else str(provider) for provider, record in names.items()}
    yield from judge_hosts(Hosts(keys.prefix, shown, alive, disabled, providers))
    if alive:
        yield judge_versions(versions_of(alive), "this client", importlib.metadata.version("etcd-compute"))


def judge_hosts(hosts: Hosts) -> Iterator[Result]:
    """Whether there is somebody to take a guest, and whether etcd and Placement know the same hosts. Pure."""
    if not hosts.owners and not hosts.alive:
        yield failure(
            "hosts", f"no host has ever enrolled under {hosts.prefix}",
            "start ecompute on one (ecompute join), or name the prefix of the hosts' compute.yaml as etcd.prefix",
        )  # fmt: skip
    else:
        yield _living(hosts)
    for record in hosts.alive.values():
        if record.state is not HostState.READY:
            yield warning("hosts", f"{record.name} is {record.state}: {record.message}", f"ecompute doctor, on {record.name}")
    if dead := [name for provider, name in hosts.owners.items() if provider not in hosts.alive]:
        text = f"without a heartbeat: {few(dead)}; their guests most likely run"
        yield warning("hosts", text, "see to them: ecompute doctor there; gone for good: eschedule host remove NAME")
    yield from _providers(hosts)


def _living(hosts: Hosts) -> Result:
    usable = [record for provider, record in hosts.alive.items() if provider not in hosts.disabled]
    text = (
        f"{len(hosts.alive)} of {len(hosts.owners)} have a heartbeat: {few([r.name for r in hosts.alive.values()]) or 'none'}"
    )
    if not hosts.alive:
        return failure("hosts", text, "start ecompute there: systemctl start ecompute; journalctl -u ecompute")
    if not usable:
        return failure("hosts", f"{text}; all are switched off for scheduling", "enable one")
    return ok("hosts", text)


def _providers(hosts: Hosts) -> Iterator[Result]:
    if hosts.providers is None:
        return
    if alone := [f"{name} ({uuid})" for uuid, name in hosts.providers.items() if uuid not in hosts.owners]:
        yield warning(
            "providers", f"in Placement without a host in etcd: {few(alone)}",
            "eschedule audit says more; of hosts that are gone for good delete them: openstack resource provider delete UUID",
        )  # fmt: skip
    if missing := [record.name for uuid, record in hosts.alive.items() if uuid not in hosts.providers]:
        text = f"of hosts that live and are not in Placement: {few(missing)}"
        yield failure("providers", text, "do the hosts name the same placement.url? ecompute doctor there")
    elif not alone:
        yield ok("providers", f"{len(hosts.providers)} in Placement, each of a host that etcd knows")


# -- Placement ---------------------------------------------------------------------------------------------------------------


def _project(store: Store, keys: Keys, placement: Placement) -> Iterator[Result]:
    """Whether instances of these hosts are claimed for the project that this client claims for."""
    instances = {item.key.rpartition("/")[2] for item in store.list(keys.instances(), serializable=True).items}
    others, seen = set(), 0
    for provider in itertools.islice(hosts_of(store, keys), MOST_HOSTS_ASKED):
        if seen >= MOST_CLAIMS:
            break
        for consumer in list(placement.provider_allocations(provider))[: MOST_CLAIMS * 4]:
            if seen >= MOST_CLAIMS or str(consumer) not in instances:
                continue
            held = placement.consumer(consumer)
            seen += 1
            if held is not None and held.project_id != placement.project_id:
                others.add(held.project_id)
    if others:
        yield failure(
            "project", f"the hosts' instances are claimed for project {', '.join(sorted(others))}, and this client claims for "
            f"{placement.project_id}: hosts would not take its claims for theirs",
            "set placement.project_id (or etcd.prefix) in schedule.yaml as in the hosts' compute.yaml",
        )  # fmt: skip
    else:
        known = f"as {seen} of the hosts' instances" if seen else "no instance of the hosts' is there to compare it with"
        yield ok("project", f"{placement.project_id}, {known}")


def _leftovers(placement: Placement) -> Iterator[Result]:
    """Providers that a check made and did not come to delete."""
    left = [provider for provider in placement.providers() if provider.name.startswith(f"{PROBE_NAME}-")]
    time.sleep(LEFT_SECONDS if left else 0)  # one that is just being made is gone by then
    still = {provider.uuid for provider in placement.providers()} if left else set()
    if left := [provider for provider in left if provider.uuid in still]:
        names = few([provider.name for provider in left])
        yield warning(
            "leftovers", f"providers of checks that were cut off: {names}", "openstack resource provider delete UUID",
            lambda: _delete(placement, left),
        )  # fmt: skip
    else:
        yield ok("leftovers", "no check has left a provider in Placement")


def _delete(placement: Placement, providers: list[Provider]) -> str:
    for provider in providers:
        placement.delete_provider(provider.uuid)
    return f"deleted {few([provider.name for provider in providers])}"
