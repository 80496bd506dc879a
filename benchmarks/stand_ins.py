"""Thousands of hosts without daemons, as far as a scheduler sees of them: providers in Placement, host keys in etcd.

The first provider is made through Placement's own interface, with the traits of a real host. The others are copies of its rows,
written into Placement's SQLite file while the server is down: one by one they would take 10 ms each, and be no different.
"""

from __future__ import annotations

import sqlite3
import uuid as uuids
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import HostRecord
from common.placement import Placement
from common.store import Transaction
from ecompute.host_traits import wanted_traits
from ecompute.hypervisor import HostInfo
from tests.support.etcd import EtcdServer, unique_prefix
from tests.support.placement import PlacementServer, client_for, make_provider

# Flags of a common server: answers about candidates carry every trait of every host.
FLAGS = frozenset({
    "mmx", "sse", "sse2", "pni", "ssse3", "sse4_1", "sse4_2", "aes", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm",
    "pclmulqdq", "pdpe1gb", "sha_ni", "stibp", "vmx", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
})  # fmt: skip
KEYS_AT_ONCE = 100  # in one transaction of etcd, which takes 128


class Field:
    """etcd, Placement, and as many stand-ins for hosts as ``grow`` was told. ``hosts`` are their providers."""

    def __init__(self, directory: Path) -> None:
        self.etcd, self.placement_server = EtcdServer(directory / "etcd"), PlacementServer(directory / "placement")
        self.prefix = unique_prefix()
        self.keys = Keys(self.prefix)
        self.hosts: list[UUID] = []

    def grow(self, hosts: int) -> None:
        """Have *hosts* of them, alive and empty but for what was claimed before; Placement is restarted over it."""
        store = self.store()
        placement = self.placement()
        try:
            if not self.hosts:
                self.hosts.append(make_provider(placement, vcpus=4096, memory_mib=1 << 22, disk_gib=1 << 16, traits=_traits()))
            new = [uuids.uuid4() for _ in range(hosts - len(self.hosts))]
            self.placement_server.stop()
            _copy_provider(self.placement_server.directory / "data" / "placement.db", self.hosts[0], new)
            self.placement_server.start()
            self.hosts += new
            self._write_keys(store)
        finally:
            store.close()
            placement.close()

    def store(self) -> EtcdStore:
        return EtcdStore(EtcdConfig(endpoints=(self.etcd.endpoint,), prefix=self.prefix, deadline_seconds=30))

    def placement(self) -> Placement:
        return client_for(self.placement_server.url, etcd_prefix=self.prefix, timeout_seconds=60, deadline_seconds=60)

    def _write_keys(self, store: EtcdStore) -> None:
        puts = {self.keys.host(provider): host_record(f"host-{number:04d}") for number, provider in enumerate(self.hosts)}
        write_in_batches(store, puts)


@contextmanager
def a_field(directory: Path) -> Iterator[Field]:
    """A ``Field`` that is gone at the end."""
    field = Field(directory)
    try:
        field.etcd.start()
        field.placement_server.start()
        yield field
    finally:
        field.placement_server.kill()
        field.etcd.kill()


def host_record(name: str) -> str:
    capacity = {"VCPU": 4096, "MEMORY_MB": 1 << 22, "DISK_GB": 1 << 16}
    versions = {"etcd-compute": "1", "libvirt": "9.0.0", "qemu": "7.2.0"}
    record = HostRecord(
        name, "boot", uuids.uuid4(), "libvirt", "qemu:///system", capacity=capacity, versions=versions, virt_type="kvm",
        since="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    return record.to_json()


def write_in_batches(store: EtcdStore, puts: Mapping[str, str]) -> None:
    """Write *puts*, as many at once as etcd takes."""
    items = list(puts.items())
    for at in range(0, len(items), KEYS_AT_ONCE):
        store.commit(Transaction(puts=dict(items[at : at + KEYS_AT_ONCE])))


def _traits() -> tuple[str, ...]:
    host = HostInfo("", "host", "x86_64", cpus=64, memory_mib=1 << 20, cpu_flags=FLAGS, machine_types=(), versions={})
    return tuple(wanted_traits(host))


def _copy_provider(database: Path, model: UUID, copies: Sequence[UUID]) -> None:
    """Write *copies* of the provider *model* into Placement's *database*, with its inventory and traits."""
    with closing(sqlite3.connect(database)) as db, db:
        (source,) = db.execute("SELECT id FROM resource_providers WHERE uuid = ?", (str(model),)).fetchone()
        (last,) = db.execute("SELECT max(id) FROM resource_providers").fetchone()
        ids = list(range(last + 1, last + 1 + len(copies)))
        db.executemany(
            "INSERT INTO resource_providers (id, uuid, name, generation, root_provider_id) VALUES (?, ?, ?, 2, ?)",
            [(at, str(uuid), f"host-{uuid}", at) for at, uuid in zip(ids, copies, strict=True)],
        )
        columns = "resource_class_id, total, reserved, min_unit, max_unit, step_size, allocation_ratio"
        db.executemany(
            f"INSERT INTO inventories (resource_provider_id, {columns}) SELECT ?, {columns} FROM inventories"
            " WHERE resource_provider_id = ?",
            [(at, source) for at in ids],
        )
        db.executemany(
            "INSERT INTO resource_provider_traits (trait_id, resource_provider_id) SELECT trait_id, ?"
            " FROM resource_provider_traits WHERE resource_provider_id = ?",
            [(at, source) for at in ids],
        )
