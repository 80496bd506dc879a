"""Reading what there is, for people: instances and hosts by a few serializable prefix lists. Decides nothing.

What a newer version wrote is shown as far as it can be read. Usable as a library; ``render`` makes text of the rows.
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from common.errors import ConfigError, EcomputeError, Permanent, UnsupportedSchema
from common.keys import Keys
from common.model import HostAdmin, HostRecord, InstanceKey, InstanceSpec, InstanceStatus, OwnerRecord, Phase, Reason, Record
from common.store import Store, Versioned
from common.text import nearest, quoted

if TYPE_CHECKING:
    from common.placement import Placement

R = TypeVar("R", bound=Record)
_NOTHING_SET = HostAdmin()
NOT_LISTED = (
    "alternates",
    "keys",
    "user_data_base64",
    "disk_content",
    "moves",
    "events",
    "ready",
    "query",
)  # of specs and statuses


@dataclass(frozen=True)
class HostName:
    """A provider's host: its name as far as known, and whether it has a heartbeat."""

    provider: UUID
    name: str
    is_alive: bool


@dataclass(frozen=True)
class InstanceRow:
    """One instance; *spec* or *status* is None where it is not there or cannot be read, which *phase* then tells.

    Among all instances those of ``list_instances`` are without what only ``show`` looks at: ``NOT_LISTED``.
    """

    uuid: UUID
    name: str
    host: HostName
    phase: str
    reason: str
    spec: InstanceSpec | None
    status: InstanceStatus | None
    spec_revision: int = 0

    @property
    def is_fresh(self) -> bool:
        """Whether *status* speaks of this very *spec*."""
        return self.status is not None and self.status.spec_revision >= self.spec_revision


@dataclass(frozen=True)
class HostRow:
    """One host; *record* is None while it has no heartbeat, *used* None where Placement did not say.

    Args:
        latency_seconds: what its answer to a letter took; None where it did not answer, or was not asked.
    """

    host: HostName
    record: HostRecord | None
    used: Mapping[str, int] | None
    guests: int
    admin: HostAdmin = _NOTHING_SET
    latency_seconds: float | None = None

    @property
    def state(self) -> str:
        return str(self.record.state) if self.record else "dead"


def list_instances(store: Store, keys: Keys) -> list[InstanceRow]:
    """All instances by name."""
    with _collecting_later():
        return _all_rows(store, keys)


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Let the garbage collector rest: it would walk over some hundred thousand new objects and find nothing to free."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _all_rows(store: Store, keys: Keys) -> list[InstanceRow]:
    specs = _by_instance(keys, store.list(keys.specs(), serializable=True).items)
    statuses = _by_instance(keys, store.list(keys.statuses(), serializable=True).items)
    hosts = {keys.parse_host(item.key): item for item in store.list(keys.hosts(), serializable=True).items}
    names = host_names(store, keys, {provider for provider, _ in specs}, hosts)
    rows = [instance_row(key[1], names[key[0]], spec, statuses.get(key), without=NOT_LISTED) for key, spec in specs.items()]
    return sorted(rows, key=lambda row: (row.name, str(row.uuid)))


def instance_row(
    uuid: UUID, host: HostName, spec_item: Versioned, status_item: Versioned | None, *, without: Collection[str] = ()
) -> InstanceRow:
    """An instance from its two items, but for the fields *without*."""
    try:
        spec: InstanceSpec | None = InstanceSpec.from_json(spec_item.value, without=without)
        status = InstanceStatus.from_json(status_item.value, without=without) if status_item else None
    except EcomputeError as error:
        reason = Reason.UNSUPPORTED_SCHEMA if isinstance(error, UnsupportedSchema) else "Unreadable"
        return InstanceRow(uuid, _name_in(spec_item.value), host, Phase.HELD, reason, None, None)
    assert spec is not None  # noqa: S101 - from_json answers one or raises
    phase, reason = (status.phase, status.failure or status.reason) if status else (Phase.PENDING, "")
    return InstanceRow(uuid, spec.name, host, phase, reason, spec, status, spec_item.mod_revision)


def list_hosts(store: Store, keys: Keys, placement: Placement | None) -> list[HostRow]:
    """All hosts that ever enrolled, by name; without *placement* their use is left out.

    Raises:
        PlacementUnavailable: Placement did not answer.
    """
    alive = {keys.parse_host(item.key): item for item in store.list(keys.hosts(), serializable=True).items}
    enrolled = {keys.parse_host(item.key) for item in store.list(keys.owners(), serializable=True).items}
    guests = Counter(
        known.provider
        for item in store.list(keys.instances(), serializable=True).items
        if (known := read_record(InstanceKey, item)) is not None
    )
    admins = {keys.parse_host(item.key): item for item in store.list(keys.host_admins(), serializable=True).items}
    names = host_names(store, keys, enrolled | set(alive), alive)
    rows = [
        HostRow(
            names[provider],
            read_record(HostRecord, alive.get(provider)),
            placement.usages(provider) if placement else None,
            guests[provider],
            read_record(HostAdmin, admins.get(provider)) or HostAdmin(),
        )
        for provider in names
    ]
    return sorted(rows, key=lambda row: (row.host.name, str(row.host.provider)))


def row_of_host(store: Store, keys: Keys, host: HostName, *, used: Mapping[str, int] | None, guests: int) -> HostRow:
    """*host* as etcd has it now."""
    items = store.get_many((keys.host(host.provider), keys.host_admin(host.provider)))
    record, admin = (items.get(key) for key in (keys.host(host.provider), keys.host_admin(host.provider)))
    return HostRow(host, read_record(HostRecord, record), used, guests, read_record(HostAdmin, admin) or _NOTHING_SET)


def find_host(store: Store, keys: Keys, who: str) -> HostName:
    """The host that has the name or the provider *who*.

    Raises:
        Permanent: there is none.
        ConfigError: there are several.
    """
    alive = {keys.parse_host(item.key): item for item in store.list(keys.hosts()).items}
    known = {keys.parse_host(item.key) for prefix in (keys.owners(), keys.host_admins()) for item in store.list(prefix).items}
    hosts = host_names(store, keys, known | alive.keys(), alive).values()
    found = [host for host in hosts if who.lower() == str(host.provider)] or [host for host in hosts if host.name == who]
    if len(found) > 1:
        providers = ", ".join(sorted(str(host.provider) for host in found))
        raise ConfigError(f"there are {len(found)} hosts {quoted(who)}; name one by its provider: {providers}")
    if not found:
        near = nearest(who, [host.name for host in hosts])
        hint = f"did you mean {near}?" if near else "see: eschedule hosts"
        raise Permanent(f"there is no host {quoted(who)}; {hint}", "NotFound")
    return found[0]


def host_names(store: Store, keys: Keys, providers: Iterable[UUID], alive: Mapping[UUID, Versioned]) -> dict[UUID, HostName]:
    """The hosts of *providers*; the names of those without a heartbeat come from their enrolment."""
    wanted = set(providers)
    dead = {keys.owner(provider): provider for provider in wanted - alive.keys()}
    owners = {dead[key]: item for key, item in store.get_many(dead).items()} if dead else {}
    names = {}
    for provider in wanted:
        record = read_record(HostRecord, alive.get(provider)) or read_record(OwnerRecord, owners.get(provider))
        names[provider] = HostName(provider, record.name if record else str(provider), provider in alive)
    return names


def silent_hosts(store: Store, keys: Keys, alive: Collection[UUID]) -> list[str]:
    """The names of those that enrolled and are not among the *alive*."""
    enrolled = {keys.parse_host(item.key): read_record(OwnerRecord, item) for item in store.list(keys.owners()).items}
    return sorted(owner.name if owner else str(host) for host, owner in enrolled.items() if host not in alive)


def read_record(kind: type[R], item: Versioned | None) -> R | None:
    """What *item* holds; None without it, or where this version cannot read it."""
    try:
        return kind.from_json(item.value) if item else None
    except EcomputeError:
        return None


def _by_instance(keys: Keys, items: Iterable[Versioned]) -> dict[tuple[UUID, UUID], Versioned]:
    return {keys.parse_provider_instance(item.key): item for item in items}


def _name_in(text: str) -> str:
    """The name in a record that we cannot read otherwise."""
    try:
        value = json.loads(text)
    except ValueError:
        return "?"
    return str(value.get("name", "?")) if isinstance(value, dict) else "?"
