"""The ecompute of this host: whether it runs, alone, as the provider that is its own, and which versions the hosts have."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.checkup import Check, Result, failure, ok, warning
from common.config import ComputeConfig
from common.errors import EcomputeError
from common.host_checkup import hosts_of, judge_versions, readable, versions_of
from common.keys import Keys
from common.model import HostRecord, HostState, OwnerRecord
from common.store import Store
from ecompute import identity
from ecompute.doctor.scene import Scene
from ecompute.join_service import UNIT_CONFIG, Service
from ecompute.leave_note import read_note

SOCKETS = Path("/proc/thread-self/net/unix")
_NAME = re.compile(r" @etcd-compute-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$", re.MULTILINE)


@dataclass(frozen=True)
class Claims:
    """Who etcd and this machine say that serves a provider.

    Args:
        pid: of the ecompute that holds our lock; None where none runs, 0 where it is just starting.
        on_machine: providers that an ecompute of this machine serves, ours among them.
        owner: of our provider, None where nobody is noted.
        hosts: with a heartbeat now.
        left: who had this host leave the cluster, and when; "" where nobody did.
        is_joining: ecompute is about to be started.
        start: the command that has it run.
    """

    provider: UUID
    libvirt_host_uuid: str
    boot_id: str
    name: str
    pid: int | None
    on_machine: frozenset[UUID]
    owner: OwnerRecord | None
    hosts: Mapping[UUID, HostRecord]
    left: str = ""
    is_joining: bool = False
    start: str = "systemctl start ecompute"


def checks(scene: Scene) -> list[Check]:
    return [Check("ecompute", lambda: _ecompute(scene))]


def _ecompute(scene: Scene) -> Iterator[Result]:
    provider, name = scene.provider, scene.config.name or identity.host_name()
    holder = scene.ecompute()
    pid, on_machine = (None if holder is None else holder.pid), served_here()
    try:
        hosts = hosts_of(scene.store, scene.keys)
        owner = _owner(scene.store, scene.keys, provider)
    except EcomputeError as error:
        yield warning("ecompute", f"who serves provider {provider} cannot be looked at: {error}", "cure etcd, then look again")
        return
    found = Claims(
        provider, _libvirt_uuid(scene), identity.boot_id(), name, pid, on_machine, owner, hosts,
        left=_left(scene), is_joining=scene.is_joining, start=how_to_start(scene.config, provider),
    )  # fmt: skip
    yield from judge_claims(found, is_simulated=scene.is_simulated)
    installed = importlib.metadata.version("etcd-compute")
    yield judge_versions(versions_of(hosts), name, installed)


def served_here(sockets: Path = SOCKETS) -> frozenset[UUID]:
    """The providers that an ecompute of this machine serves, by the names that they hold."""
    try:
        return frozenset(UUID(text) for text in _NAME.findall(sockets.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return frozenset()


def _owner(store: Store, keys: Keys, provider: UUID) -> OwnerRecord | None:
    item = store.get(keys.owner(provider))
    return readable(OwnerRecord, item.value) if item else None


def how_to_start(config: ComputeConfig, provider: UUID) -> str:
    """The command that has ecompute run with *config*. The unit is passed over, without a word, where nothing is configured."""
    if config.source is None:
        return "ecompute join TOKEN, or: ecompute join http://ETCD:2379 --placement http://PLACEMENT:8778"
    if Service(config, provider).is_unit:
        return "systemctl start ecompute"
    return "ecompute join" if config.source == UNIT_CONFIG else f"ecompute --config {config.source} join"


def _left(scene: Scene) -> str:
    try:
        note = read_note(scene.config.paths.state_dir)
    except EcomputeError:
        return "somebody, in a note that cannot be read"
    return f"{note.by} at {note.at}" if note else ""


def _libvirt_uuid(scene: Scene) -> str:
    try:
        return scene.host.libvirt_host_uuid
    except EcomputeError:
        return ""


def judge_claims(claims: Claims, *, is_simulated: bool = False) -> Iterator[Result]:
    """Whether this host serves its provider, alone and as itself. Pure."""
    name, mine, provider = "second ecompute", claims.hosts.get(claims.provider), claims.provider
    others = sorted(str(uuid) for uuid in claims.on_machine - {provider})
    wrong = []
    if claims.libvirt_host_uuid and claims.owner and claims.owner.libvirt_host_uuid != claims.libvirt_host_uuid:
        text = f"provider {provider} is that of {claims.owner.name} (libvirt host {claims.owner.libvirt_host_uuid})"
        cure = "take `uuid:` out of a compute.yaml that was copied; or, where that machine is gone: ecompute --take-provider"
        wrong.append(failure(name, text, cure))
    elif mine and claims.pid is None and provider not in claims.on_machine:
        wrong.append(_heartbeat_without_process(mine, claims))
    if provider in claims.on_machine and claims.pid is None:
        text = f"an ecompute of this machine serves provider {provider} with another paths.run_dir"
        wrong.append(failure(name, text, "pgrep -af ecompute: stop that one, or use its configuration"))
    if others and not is_simulated:
        text = f"another ecompute of this machine serves {', '.join(others)}: both offer the same CPUs"
        wrong.append(failure(name, text, "pgrep -af ecompute, and stop one"))
    namesakes = [uuid for uuid, record in claims.hosts.items() if record.name == claims.name and uuid != provider]
    if namesakes:
        text = f"another host, provider {namesakes[0]}, is called {claims.name}, too: Placement takes a name once"
        wrong.append(failure(name, text, "give one of them another `name:` in compute.yaml"))
    yield from wrong or [ok(name, f"none: provider {provider} is this machine's alone")]
    yield _own(claims, mine)


def _heartbeat_without_process(mine: HostRecord, claims: Claims) -> Result:
    name, provider = "second ecompute", claims.provider
    if mine.boot_id == claims.boot_id:
        text = f"provider {provider} still has the heartbeat of an ecompute of this machine that died"
        return warning(name, text, "none: it ends within 30 s, and an ecompute that starts takes it over")
    text = f"another machine, {mine.name}, runs as this host's provider {provider}"
    return failure(name, text, "stop one of the two; take `uuid:` out of a compute.yaml that was copied")


def _own(claims: Claims, mine: HostRecord | None) -> Result:
    if claims.is_joining and (claims.pid is None or mine is None):  # one that runs may be of a join that was cut off
        return ok("ecompute", "does not run yet" if claims.pid is None else f"runs (process {claims.pid}), and is starting")
    if claims.pid is None and claims.left:
        return warning("ecompute", f"does not run: this host was told to leave the cluster by {claims.left}", "ecompute join")
    if claims.pid is None:
        return warning("ecompute", "does not run: this host takes no guests", claims.start)
    if mine is None:
        return failure(
            "ecompute", f"runs (process {claims.pid}), and has no heartbeat in etcd", "see its log: journalctl -u ecompute"
        )
    if mine.state is not HostState.READY:
        return warning(
            "ecompute", f"runs (process {claims.pid}), {mine.state}: {mine.message}", "as it says; journalctl -u ecompute"
        )
    return ok("ecompute", f"runs (process {claims.pid}) as {mine.name}, {mine.state} since {mine.since}")
