"""What the two configuration files say, as frozen dataclasses; ``load_compute`` and ``load_schedule`` build them.

A value that got this far is right: the JSON Schemas of ``common/schemas.py`` and the checks between keys have passed, so
nobody looks again. The defaults here are those of the sample files ``compute.yaml`` and ``schedule.yaml``, which say what
each key is for. No module reads a configuration key in another way, and no other module reads YAML.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.keys import DEFAULT_PREFIX


@dataclass(frozen=True)
class EtcdConfig:
    """Where etcd is and how long to wait for it; the last two fields can be set in compute.yaml only."""

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
    cpu_mode: str | None = None  # None: host-passthrough under kvm, libvirt's default else
    kvm_probe_deadline_seconds: float = 20.0


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
class NetworkConfig:
    """How guests are wired."""

    name: str = "default"  # libvirt network of a NIC that names none
    reserve_ahead: int = 8  # MAC and address pairs kept ready
    filter: str | None = "clean-traffic"  # libvirt nwfilter of each NIC; None: none


@dataclass(frozen=True)
class MetadataConfig:
    """Who answers the guests at 169.254.169.254."""

    mode: str = "managed"  # "managed": ecompute runs md_server; "external": someone else does; "off": nobody
    address: str = "169.254.169.254"
    port: int = 80
    bridge: str = "virbr0"


@dataclass(frozen=True)
class ImagesConfig:
    """Bounds for fetching images."""

    fetch_timeout_seconds: float = 30.0  # not a byte for so long
    max_size_gib: int = 100


@dataclass(frozen=True)
class BuilderConfig:
    """How many guests are worked on at once, how often, how long."""

    workers: int | None = None  # None: as many as CPUs, at least 4
    starts_at_once: int = 4
    max_attempts: int = 3  # of one boot_request
    resync_every_seconds: float = 60.0
    orphan_claim_after_seconds: float = 600.0  # a claim without spec and domain is released after so long
    shutdown_deadline_seconds: float = 30.0  # the steps in hand may finish for so long at SIGTERM


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
    network: NetworkConfig = NetworkConfig()
    metadata: MetadataConfig = MetadataConfig()
    images: ImagesConfig = ImagesConfig()
    builder: BuilderConfig = BuilderConfig()
    log: LogConfig = LogConfig()
    source: Path | None = None


@dataclass(frozen=True)
class DefaultsConfig:
    """What a request that does not say otherwise gets."""

    image: str | None = None
    key_files: tuple[Path, ...] = ()  # ~ is expanded
    network: str = "default"
    restart: str = "never"  # model.Restart


@dataclass(frozen=True)
class ScheduleConfig:
    """schedule.yaml. *source* as in ``ComputeConfig``."""

    etcd: EtcdConfig = EtcdConfig()
    placement: PlacementConfig = PlacementConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    policy: str = "spread"  # "spread" | "pack" | "random"
    candidates_limit: int = 10
    wait_seconds: float = 600.0
    log: LogConfig = LogConfig()
    source: Path | None = None
