"""The records that cross process boundaries: what should run, how it goes, who is alive.

Frozen dataclasses; how they become JSON, and what readers do with what they do not know, is in ``records``. Which specs readers
must not read without a field is said in ``spec_schema``. No I/O, no clock.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from common.disk_content import AS_IMAGE
from common.disk_content import DiskContent as DiskContent
from common.disk_content import GuestFile as GuestFile
from common.disk_requests import Applied as Applied
from common.disk_requests import DiskRequest, due
from common.guest_metadata import ConfigDrive as ConfigDrive
from common.guest_metadata import MetadataAccess as MetadataAccess
from common.hardware import USUAL
from common.hardware import Hardware as Hardware
from common.nics import Address as Address
from common.nics import Forward as Forward
from common.nics import IpAddress as IpAddress
from common.nics import Nic as Nic
from common.records import SCHEMA as SCHEMA
from common.records import Record as Record
from common.records import with_fields as with_fields
from common.spec_schema import FIRST, SPEC_SCHEMAS, spec_schema
from common.volume_refs import VolumeRef as VolumeRef


class Desired(enum.StrEnum):
    """What a spec asks for."""

    RUNNING = "running"
    PAUSED = "paused"  # there, with its memory, and its CPUs do not run
    SUSPENDED = "suspended"  # its memory is in a file of its host, and it goes on from there
    STOPPED = "stopped"
    DELETED = "deleted"

    @property
    def stands_still(self) -> bool:
        return self in (Desired.PAUSED, Desired.SUSPENDED)

    @property
    def keeps_guest(self) -> bool:
        """Whether a guest is to be there that goes on, at once or some time."""
        return self is Desired.RUNNING or self.stands_still


class Restart(enum.StrEnum):
    """When a guest that went down by itself is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class GroupPolicy(enum.StrEnum):
    """How the members of a group are spread over hosts. The soft ones are wishes, the others are kept or refused."""

    ANTI_AFFINITY = "anti-affinity"
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"
    AFFINITY = "affinity"
    SOFT_AFFINITY = "soft-affinity"


class Phase(enum.StrEnum):
    """Where an instance is in its life, as reported; never an input of a decision."""

    PENDING = "Pending"
    BUILDING = "Building"
    RUNNING = "Running"
    REBOOTING = "Rebooting"
    PAUSED = "Paused"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    DELETING = "Deleting"
    RESCHEDULING = "Rescheduling"
    REFUSED = "Refused"
    FAILED = "Failed"
    HELD = "Held"
    QUARANTINED = "Quarantined"


class Reason(enum.StrEnum):
    """Why an instance is in its phase, where the phase alone does not say it.

    A permanent failure carries its exception's own reason (``ImageNotFound``, ``HypervisorRejected``, …) instead.
    """

    NONE = ""
    NO_ALLOCATION = "NoAllocation"
    ALLOCATION_MISSING = "AllocationMissing"
    START_FAILED = "StartFailed"
    GUEST_SHUTDOWN = "GuestShutdown"
    CRASHED = "Crashed"
    HOST_REBOOTED = "HostRebooted"
    MEMORY_LOST = "MemoryLost"
    STORE_RESTORED = "StoreRestored"
    UNSUPPORTED_SCHEMA = "UnsupportedSchema"
    IO_ERROR = "IoError"
    ATTEMPTS_EXHAUSTED = "AttemptsExhausted"
    WAITING = "Waiting"
    DISK_MISSING = "DiskMissing"
    RESTORING = "Restoring"
    REBUILDING = "Rebuilding"
    FOREIGN_DOMAIN = "ForeignDomain"


class HostState(enum.StrEnum):
    """What a live host says of itself."""

    READY = "Ready"
    DEGRADED = "Degraded"


@dataclass(frozen=True)
class ImageRef:
    """Where a disk image comes from.

    Args:
        url: ``http://``, ``https://``, ``file://`` or an absolute path on the host.
        checksum: ``sha256:<hex>`` or ``sha512:<hex>`` of the bytes at *url*, or None.
        name: what it is registered as, for people; whatever it is called, it is the same image.
    """

    url: str
    checksum: str | None = None
    name: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True)
class Alternate:
    """Another host that had room when the claim was made, and the resources to claim there."""

    provider: UUID
    allocations: dict[str, dict[str, int]]  # provider uuid → resource class → amount, as Placement answered


@dataclass(frozen=True)
class Adoption:
    """The stamp of a guest that this spec takes over, although it is of another cluster or of a later spec than this one."""

    cluster_id: int
    spec_revision: int


@dataclass(frozen=True)
class Move:
    """A host that an instance was moved away from before it ever ran, and why. *at* is wall time for people."""

    provider: UUID
    host: str
    at: str
    reason: str
    message: str = ""


@dataclass(frozen=True)
class InstanceSpec(Record):
    """What should run. Written by eschedule, by its ``mod_revision``; never leased. *schema* follows from all the rest."""

    SCHEMAS: ClassVar[tuple[int, ...]] = SPEC_SCHEMAS

    uuid: UUID
    name: str
    image: ImageRef
    resources: dict[str, int]  # VCPU, MEMORY_MB (MiB), DISK_GB (GiB), as claimed
    nics: tuple[Nic, ...] = (Nic(),)
    keys: tuple[str, ...] = ()  # OpenSSH public keys, one line each
    user_data_base64: str | None = None
    metadata: MetadataAccess = MetadataAccess.OPTIONAL
    metadata_hop_limit: int = 1  # IP time to live of an answer that holds a session token
    config_drive: ConfigDrive = ConfigDrive.AUTO
    allow: tuple[str, ...] | None = None  # who may reach it: "tcp:22", "udp:53@10.0.0.0/8", "icmp"; None: everybody
    forwards: tuple[Forward, ...] = ()  # ports of the host that lead to it
    hardware: Hardware = USUAL
    hardware_is_given: bool = False  # somebody said so, be it that it is the usual one: no host looks into the image for it
    disk_content: DiskContent = AS_IMAGE  # what is on its disk beside the image
    volumes: tuple[VolumeRef, ...] = ()  # disks that outlive it
    hostname: str = ""
    alternates: tuple[Alternate, ...] = ()
    group: str | None = None
    group_policy: GroupPolicy = GroupPolicy.ANTI_AFFINITY
    restart: Restart = Restart.NEVER
    grace_seconds: int = 30
    desired: Desired = Desired.RUNNING
    boot_request: int = 1  # raised by whatever asks for a boot: create, start, reboot
    reboot_request: int = 0  # the boot_request that a reboot asked for: a guest started for an earlier one goes down first
    hard_reboot: bool = False  # that reboot pulls the plug instead of pressing the power button
    hard_stop_request: int = 0  # the boot_request whose guest is to be stopped by pulling the plug; a later one's is asked
    restore: str = ""  # the snapshot that its disk is to go back to, by the request of this number, which is a boot_request
    restore_request: int = 0
    rebuild_request: int = 0  # its disk is to be made anew, of the image
    protected: bool = False  # neither destroyed nor rebuilt before somebody takes that back
    adopts: Adoption | None = None  # an operator decided that this spec speaks for the guest with that stamp
    moves: tuple[Move, ...] = ()  # hosts that could not build it, oldest first
    labels: dict[str, str] = dataclasses.field(default_factory=dict)  # for people and selectors; no guest is told
    query: str = ""  # Placement's query that chose its host, for more of its like; "" where an earlier version wrote it
    acts: int = 0  # of users that changed it, for their places in the journal
    request_digest: str = ""
    created_at: str = ""  # ISO 8601, UTC; for people
    created_by: str = ""
    schema: int = FIRST

    def __post_init__(self) -> None:
        needed = spec_schema(
            nics=self.nics, metadata=self.metadata, config_drive=self.config_drive, allow=self.allow, forwards=self.forwards,
            hardware=self.hardware, disk_content=self.disk_content, volumes=self.volumes,
            disk_request=max(self.restore_request, self.rebuild_request), stands_still=self.desired.stands_still,
        )  # fmt: skip
        object.__setattr__(self, "schema", needed)

    @property
    def vcpus(self) -> int:
        return self.resources.get("VCPU", 0) + self.resources.get("PCPU", 0)

    @property
    def memory_mib(self) -> int:
        return self.resources.get("MEMORY_MB", 0)

    @property
    def disk_gib(self) -> int:
        return self.resources.get("DISK_GB", 0)

    @property
    def is_hard_stop(self) -> bool:
        """Whether it is to be off at once, whatever its guest is in the middle of."""
        return self.desired is Desired.STOPPED and self.hard_stop_request >= self.boot_request

    def disk_request(self, restored: Applied, rebuilt: Applied) -> DiskRequest | None:
        """What is to be done to its disk next, after what was dealt with already."""
        return due(restore=self.restore_request, restored=restored, rebuild=self.rebuild_request, rebuilt=rebuilt)

    @property
    def user_data(self) -> bytes | None:
        return None if self.user_data_base64 is None else base64.b64decode(self.user_data_base64)


def spec_with_fields(text: str, fields: Mapping[str, Any]) -> str:
    """As ``with_fields``, of a spec: its schema number becomes what it needs with them."""
    changed = with_fields(text, fields)
    return with_fields(changed, {"schema": InstanceSpec.from_json(changed).schema})


@dataclass(frozen=True)
class InstanceKey(Record):
    """What ``instances/<uuid>`` holds: uuid → host is one read, and a repeat of a request is known by its digest."""

    provider: UUID
    name: str
    request_digest: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class GroupMembers(Record):
    """What ``groups/<group>/<provider>`` holds: the members of a group on one host. Under strict anti-affinity there is one."""

    policy: GroupPolicy
    members: tuple[UUID, ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Event:
    """One thing that happened to an instance. *at* is wall time for people; *took_ms* is monotonic."""

    at: str  # ISO 8601 with milliseconds, UTC
    step: str
    took_ms: int
    message: str = ""


@dataclass(frozen=True)
class Progress:
    """How far the step in hand has come; *total* 0 where it is unknown."""

    step: str
    done: int
    total: int
    unit: str = "bytes"


@dataclass(frozen=True)
class Ready:
    """What a guest last said of itself. Guests are not believed: it is shown, and nothing is decided by it."""

    at: str  # ISO 8601, UTC; for people
    message: str = ""
    host_keys: tuple[str, ...] = ()  # fingerprints of its ssh host keys, "SHA256:… (ED25519)"
    boot_request: int = 0  # of the boot in which it said so


@dataclass(frozen=True)
class InstanceStatus(Record):
    """How it goes. Written by the host's ecompute alone, fenced by its host key."""

    phase: Phase
    reason: str = ""
    message: str = ""
    progress: Progress | None = None
    spec_revision: int = 0  # mod_revision of the spec that this status speaks of
    boot_request: int = 0
    attempts: int = 0  # of this boot_request, counted before each is made
    failure: str = ""  # reason of a permanent failure of this boot_request, "" while there is none
    failure_message: str = ""
    booted: int = 0  # the highest boot_request that the guest was booted for; above 0 it has run and is never rebuilt
    addresses: tuple[Address, ...] = ()
    volumes: tuple[UUID, ...] = ()  # that its guest has now; of one that is off, those it will find when it starts
    ready: Ready | None = None
    notes: tuple[str, ...] = ()  # what is not as asked for although it runs, one line each: "port 8080 of the host is taken …"
    restored: Applied | None = None  # the last restore_request that was dealt with
    rebuilt: Applied | None = None  # the last rebuild_request
    in_force: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # VCPU and MEMORY_MB, where it runs with others than asked
    events: tuple[Event, ...] = ()  # the last 20
    happened: int = 0  # how often this host has written something into the journal of the instance
    updated_at: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class HostRecord(Record):
    """Who is alive: under the host's lease, one per provider."""

    name: str
    boot_id: str
    incarnation: UUID  # one per process start
    libvirt_host_uuid: str
    libvirt_uri: str
    state: HostState = HostState.READY
    message: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    capacity: dict[str, int] = dataclasses.field(default_factory=dict)  # resource class → (total - reserved) * ratio
    virt_type: str = ""
    since: str = ""  # when this incarnation began; for people
    reserved: dict[str, int] = dataclasses.field(default_factory=dict)  # for the host itself, and whatever else runs there
    schema: int = SCHEMA


@dataclass(frozen=True)
class OwnerRecord(Record):
    """Which machine a provider belongs to; written once, at enrolment."""

    machine_id: str
    libvirt_host_uuid: str
    name: str
    enrolled_at: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class HostAdmin(Record):
    """What an operator set for a host; outlives the host's daemon."""

    disabled: bool = False
    reason: str = ""
    by: str = ""
    since: str = ""
    traits: tuple[str, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    acts: int = 0  # of users that changed it, for their places in the journal
    schema: int = SCHEMA


@dataclass(frozen=True)
class KeyRecord(Record):
    """Public keys that are kept under a name: ``ssh-keys/<name>``. A request copies them, once."""

    name: str
    keys: tuple[str, ...]  # OpenSSH, one line each
    created_at: str = ""
    created_by: str = ""
    schema: int = SCHEMA
