"""Checks of the cluster's hosts as etcd knows them, common to hosts and clients: who is alive, and of which version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar
from uuid import UUID

from common.checkup import Result, ok, warning
from common.errors import InvalidSpec, UnsupportedSchema
from common.keys import Keys
from common.model import HostRecord, Record
from common.store import Store
from common.text import counted

R = TypeVar("R", bound=Record)


def readable(kind: type[R], text: str) -> R | None:
    """The record in *text*; None where this version cannot read it."""
    try:
        return kind.from_json(text)
    except (InvalidSpec, UnsupportedSchema):
        return None


def hosts_of(store: Store, keys: Keys) -> dict[UUID, HostRecord]:
    """The hosts that have a heartbeat; records of newer versions are left out. Raises ``StoreUnavailable``."""
    found = {}
    for item in store.list(keys.hosts()).items:
        try:
            found[keys.parse_host(item.key)] = HostRecord.from_json(item.value)
        except (InvalidSpec, UnsupportedSchema, ValueError):
            continue
    return found


def versions_of(hosts: Mapping[UUID, HostRecord]) -> dict[str, str]:
    """The version of etcd-compute that each host runs, by the host's name."""
    return {record.name: record.versions.get("etcd-compute", "?") for record in hosts.values()}


def judge_versions(versions: Mapping[str, str], own: str, installed: str) -> Result:
    """Whether all hosts have one version of etcd-compute. Pure.

    Args:
        versions: by the names of the hosts that have a heartbeat.
        own: the name of this host or client.
        installed: what is installed here.
    """
    running = versions.get(own)
    if running is not None and running != installed:
        text = f"{own} runs {running}, and {installed} is installed"
        return warning("versions", text, "systemctl restart ecompute, which guests do not notice")
    by_version = defaultdict(list)
    for name, version in {own: installed, **versions}.items():
        by_version[version].append(name)
    if len(by_version) > 1:
        text = "; ".join(f"{version}: {few(names)}" for version, names in sorted(by_version.items()))
        return warning("versions", f"different versions: {text}", "upgrade the older ones")
    return ok("versions", f"etcd-compute {installed} here and on {counted(len(versions.keys() - {own}), 'other host')}")


def few(names: Iterable[str], most: int = 3) -> str:
    """The first of *names*, and how many more there are."""
    shown = sorted(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
