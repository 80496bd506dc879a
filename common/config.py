"""What the two configuration files say, as frozen dataclasses; ``load_compute`` and ``load_schedule`` build them.

A value that got this far is right: the JSON Schemas of ``common/schemas.py`` and the checks between keys have passed, so
nobody looks again. The defaults here are those of the sample files ``compute.yaml`` and ``schedule.yaml``, which say what
each key is for. No module reads a configuration key in another way, and no other module reads YAML.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from common.config_checks import COMPUTE_CHECKS, ECOMPUTE_FILE_CHECKS, SCHEDULE_CHECKS, Check
from common.config_file import (
    KeyPath,
    Problem,
    dotted,
    find_file,
    key_paths,
    read_document,
    schema_problems,
    search_directories,
)
from common.errors import ConfigError
from common.keys import DEFAULT_PREFIX
from common.schemas import COMPUTE, SCHEDULE, Schema


@dataclass(frozen=True)
class EtcdConfig:
    """Where etcd is and how long to wait for it; lease and heartbeat can be set in compute.yaml only."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    prefix: str = DEFAULT_PREFIX
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    deadline_seconds: float = 5.0
    lease_ttl_seconds: int = 30
    heartbeat_every_seconds: float = 10.0
    journal_days: int = 7  # that what happened is kept; 0: nothing is written down


@dataclass(frozen=True)
class PlacementConfig:
    """Where Placement is and as whom to speak to it."""

    url: str = "http://127.0.0.1:8778"
    token_file: Path | None = None  # None: the token "admin", which Placement's noauth2 takes
    timeout_seconds: float = 10.0  # of one HTTP request
    deadline_seconds: float = 30.0  # of one call with all its retries
    project_id: UUID | None = None  # None: uuid5 of the etcd prefix
    user_id: UUID | None = None


@dataclass(frozen=True)
class LibvirtConfig:
    """Which libvirt and what kind of guest."""

    uri: str = "qemu:///system"
    virt_type: str = "auto"  # "auto" | "kvm" | "qemu" | "test"
    machine_type: str | None = None  # None: what libvirt takes by default
    cpu_mode: str | None = None  # None: host-passthrough under kvm, maximum under qemu
    kvm_probe_deadline_seconds: float = 20.0
    save_directory: Path = Path("/var/lib/libvirt/qemu/save")  # where this libvirt keeps the memory of suspended guests
    graphics: str = "none"  # "none" | "vnc": a screen for each guest, at a socket of the host


@dataclass(frozen=True)
class ResourceConfig:
    """How much of one resource class of the host is offered: (total - reserved) * allocation_ratio."""

    reserved: int = 0
    allocation_ratio: float = 1.0


@dataclass(frozen=True)
class InventoryConfig:
    """What part of the host is offered to guests."""

    vcpu: ResourceConfig = ResourceConfig(0, 4.0)
    memory_mb: ResourceConfig = ResourceConfig(512, 1.0)  # MiB
    disk_gb: ResourceConfig = ResourceConfig(2, 1.0)  # GiB


@dataclass(frozen=True)
class PathsConfig:
    """Where ecompute keeps its files."""

    state_dir: Path = Path("/var/lib/etcd-compute")
    run_dir: Path = Path("/run/etcd-compute")


@dataclass(frozen=True)
class VolumesConfig:
    """Where volumes are kept."""

    directory: Path | None = None  # None: "volumes" in the state directory


@dataclass(frozen=True)
class NetworkConfig:
    """How guests are wired."""

    name: str = "default"  # libvirt network of a NIC that names none
    reserve_ahead: int = 16  # MAC and address pairs kept ready
    filter: str | None = "etcd-compute"  # libvirt nwfilter of each NIC; None: none
    bridge: str | None = None  # of the host; a guest that asked for no NIC gets a second one there


@dataclass(frozen=True)
class MetadataConfig:
    """Who answers the guests at 169.254.169.254."""

    mode: str = "managed"  # "managed": ecompute runs md_server; "external": someone else does; "off": nobody
    address: str = "169.254.169.254"
    port: int = 80
    bridge: str = "virbr0"
    ipv6: str = "auto"  # "auto": served at the addresses of IPv6 too, where the bridge has it; "off": not
    vendor_data_file: Path | None = None  # given to every guest of this host beside its own user data


@dataclass(frozen=True)
class ImagesConfig:
    """Bounds for fetching images."""

    fetch_timeout_seconds: float = 30.0  # not a byte for so long
    max_size_gib: int = 100
    revalidate_after_hours: float | None = 24.0  # an address without a checksum is asked again; None: never
    max_cache_gib: int | None = None  # images that no disk rests on go, the longest unused first; None: while there is room
    evict_after_days: float | None = None  # so long unused an image goes; None: never for its age
    prefetch: tuple[str, ...] = ()  # names, addresses, paths: fetched without a guest, and kept
    publish_directory: Path | None = None  # images of guests are put there; None: none can be made here
    publish_url: str | None = None  # by which all hosts read that folder


@dataclass(frozen=True)
class DiskConfig:
    """What guests' disks are; the mode is that of disks to come, the rest counts from a guest's next start."""

    mode: str = "overlay"  # "overlay" | "copy" | "raw"
    preallocation: str = "off"  # "off" | "metadata" | "falloc" | "full"; of copies
    cache: str = "writeback"  # "writeback" | "none" | "writethrough" | "directsync"
    aio: str = "threads"  # "threads" | "native" | "io_uring"
    discard: str = "unmap"  # "unmap" | "ignore"
    detect_zeroes: str = "off"  # "off" | "on" | "unmap"


@dataclass(frozen=True)
class GuestfsConfig:
    """What libguestfs is used for, and how long it may take."""

    inspect: str = "never"  # "never" | "auto": whether images are looked into for the drivers that they have
    deadline_seconds: float = 180.0  # of one look into a disk, or one change of it


@dataclass(frozen=True)
class BuilderConfig:
    """How many guests are worked on at once, how often, how long."""

    workers: int | None = None  # None: as many as CPUs, at least twice starts_at_once
    starts_at_once: int = 4
    max_attempts: int = 3  # of one boot_request
    resync_every_seconds: float = 60.0
    orphan_claim_after_seconds: float = 600.0  # a claim without spec and domain is released after so long
    shutdown_deadline_seconds: float = 30.0  # the steps in hand may finish for so long at SIGTERM


@dataclass(frozen=True)
class MetricsConfig:
    """Where Prometheus can read numbers."""

    listen: str | None = "127.0.0.1:9179"  # None: nowhere


@dataclass(frozen=True)
class LogConfig:
    """How much is logged and in what form."""

    level: str = "info"  # "debug" | "info" | "warning" | "error"
    format: str = "auto"  # "auto" | "text" | "json"


@dataclass(frozen=True)
class ComputeConfig:
    """compute.yaml. *source* is the file it came from, None where there was none and all is default."""

    name: str | None = None  # None: the host's own name
    uuid: UUID | None = None  # None: computed from the machine
    etcd: EtcdConfig = EtcdConfig()
    placement: PlacementConfig = PlacementConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    inventory: InventoryConfig = InventoryConfig()
    paths: PathsConfig = PathsConfig()
    volumes: VolumesConfig = VolumesConfig()
    network: NetworkConfig = NetworkConfig()
    metadata: MetadataConfig = MetadataConfig()
    images: ImagesConfig = ImagesConfig()
    guestfs: GuestfsConfig = GuestfsConfig()
    disk: DiskConfig = DiskConfig()
    builder: BuilderConfig = BuilderConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
    source: Path | None = None


@dataclass(frozen=True)
class DefaultsConfig:
    """What a request that does not say otherwise gets."""

    image: str | None = None
    key_files: tuple[Path, ...] = ()  # ~ is expanded
    network: str = "default"
    restart: str = "never"  # model.Restart
    metadata: str = "optional"  # model.MetadataAccess
    metadata_hop_limit: int = 1
    config_drive: str = "auto"  # model.ConfigDrive
    allow: tuple[str, ...] | None = None  # rules of validate_access; None: everybody


@dataclass(frozen=True)
class ReachConfig:
    """How a client reaches hosts and guests itself, where a letter will not do; {host} is the name of the guest's host."""

    libvirt_uri: str = "qemu+ssh://root@{host}/system"  # of a host that is not this machine
    ssh_jump: str | None = None  # None: guests are reached directly


@dataclass(frozen=True)
class ScheduleConfig:
    """schedule.yaml. *source* as in ``ComputeConfig``."""

    etcd: EtcdConfig = EtcdConfig()
    placement: PlacementConfig = PlacementConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    hosts: ReachConfig = ReachConfig()
    policy: str = "spread"  # "spread" | "pack" | "random"
    candidates_limit: int = 10
    wait_seconds: float = 600.0
    log: LogConfig = LogConfig()
    source: Path | None = None


Config = TypeVar("Config", ComputeConfig, ScheduleConfig)
Dataclass = TypeVar("Dataclass")


def load_compute(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directories: Sequence[Path] | None = None,
    reads_files: bool = True,
) -> ComputeConfig:
    """compute.yaml, checked; all defaults (and ``source`` None) where no file is named and none is found.

    Args:
        path: what ``--config`` names; it must be there.
        environment: where ``HOME`` is looked up; the process's own by default.
        directories: where to look when *path* is None; by default the working directory, ``~/.config/etcd-compute`` and
            ``/etc/etcd-compute``.
        reads_files: whether the caller reads the files that it names, passwords and keys among them; else they are not
            looked at, and the caller may be somebody who may not read them.

    Raises:
        ConfigError: anything is wrong with it; one line for each fault.
    """
    checks = COMPUTE_CHECKS if reads_files else tuple(check for check in COMPUTE_CHECKS if check not in ECOMPUTE_FILE_CHECKS)
    return _load(ComputeConfig(), _Kind("compute.yaml", COMPUTE, checks), path, environment, directories)


def load_schedule(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directories: Sequence[Path] | None = None,
) -> ScheduleConfig:
    """schedule.yaml; arguments and errors as in ``load_compute``."""
    return _load(ScheduleConfig(), _Kind("schedule.yaml", SCHEDULE, SCHEDULE_CHECKS), path, environment, directories)


def describe(config: ComputeConfig | ScheduleConfig) -> list[str]:
    """The effective values, a line each, for ``--check-config``; of files with secrets only the names."""
    is_compute = isinstance(config, ComputeConfig)
    values, defaults = _flat(config), _flat(ComputeConfig() if is_compute else ScheduleConfig())
    lines = [f"# {config.source or 'no file was found: all values are defaults'}"]
    known = [dotted(path) for path in key_paths(COMPUTE if is_compute else SCHEDULE)]
    for key in [key for key in known if key in values]:
        mark = "" if values[key] != defaults[key] else "  (default)"
        lines += [f"{key} = {_shown(values[key])}{mark}"]
    return lines


@dataclass(frozen=True)
class _Kind:
    """One of the two files: its name, and what it is judged by."""

    file_name: str
    schema: Schema
    checks: Sequence[Check]


def _load(
    default: Config,
    kind: _Kind,
    path: Path | None,
    environment: Mapping[str, str] | None,
    directories: Sequence[Path] | None,
) -> Config:
    environment = os.environ if environment is None else environment
    if path is None:
        path = find_file(kind.file_name, search_directories(environment) if directories is None else directories)
        if path is None:
            return default
    document = _without_empty_sections(read_document(path), kind.schema)
    problems = schema_problems(document, kind.schema)
    bad = [p for problem in problems for p in problem.paths]
    config = _merged(default, _without(document, bad), environment.get("HOME", ""))
    values = _flat(config)
    problems += [problem for check in kind.checks for problem in check(values) if not _touches(problem, bad)]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem.text}" for problem in problems))
    return dataclasses.replace(config, source=path.absolute())


def _without_empty_sections(document: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """*document* without sections that hold nothing, as when all keys in them are commented out."""
    kept = {}
    for key, value in document.items():
        inner = schema.get("properties", {}).get(key, {})
        if inner.get("type") == "object" and value is None:
            continue
        kept[key] = _without_empty_sections(value, inner) if isinstance(value, dict) else value
    return kept


def _without(document: Mapping[str, Any], bad: Sequence[KeyPath]) -> dict[str, Any]:
    """*document* without the keys that failed, so that the checks between the others can still be made."""
    good = copy.deepcopy(dict(document))
    for path in bad:
        keys = [key for key in path if isinstance(key, str)]
        inner: Any = good
        for key in keys[:-1]:
            inner = inner.get(key, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict) and keys:
            inner.pop(keys[-1], None)
    return good


def _touches(problem: Problem, bad: Sequence[KeyPath]) -> bool:
    """Whether *problem* speaks of a key that failed already; then it judges a default that nobody wrote."""
    return any(p[: len(b)] == b or b[: len(p)] == p for p in problem.paths for b in bad)


def _merged(default: Dataclass, given: Mapping[str, Any], home: str) -> Dataclass:
    """The dataclass *default* with what is *given* put over it."""
    hints = typing.get_type_hints(type(default))
    changes = {key: _typed(hints[key], getattr(default, key), value, home) for key, value in given.items()}
    return typing.cast(Dataclass, dataclasses.replace(typing.cast(Any, default), **changes))


def _typed(kind: Any, default: Any, value: Any, home: str) -> Any:
    if typing.get_origin(kind) is types.UnionType:
        if value is None:
            return None
        kind = next(a for a in typing.get_args(kind) if a is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return _merged(default, value, home)
    if typing.get_origin(kind) is tuple:
        return tuple(_typed(typing.get_args(kind)[0], None, item, home) for item in value)
    if kind is Path and value.startswith("~/") and home:
        return Path(home) / value[2:]
    return kind(value)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of *config* by its dotted key."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(_flat(value, f"{prefix}{field.name}."))
        else:
            flat[f"{prefix}{field.name}"] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(str(v) for v in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
