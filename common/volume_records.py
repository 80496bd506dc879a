"""Volumes: disks that outlive instances. What one is to be (``volumes/…``), and how it is (``volume-status/…``). Pure.

A volume never leaves the host that it was made on; its uuid is its consumer's in Placement. ``attached_to`` is written by
eschedule in the transaction that puts the volume into an instance's spec, and taken back by the volume's host alone, once no
domain has the disk any more: so a volume is never in two guests.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from uuid import UUID

from common.errors import InvalidSpec
from common.records import SCHEMA, Record


class VolumeDesired(enum.StrEnum):
    """What is asked for."""

    PRESENT = "present"
    DELETED = "deleted"


class VolumePhase(enum.StrEnum):
    """Where a volume is in its life, as its host reports it; never an input of a decision."""

    PENDING = "Pending"
    AVAILABLE = "Available"
    ATTACHED = "Attached"
    DETACHING = "Detaching"
    DELETING = "Deleting"
    REFUSED = "Refused"
    MISSING = "Missing"


@dataclass(frozen=True)
class VolumeSpec(Record):
    """What is asked for: by eschedule, by its ``mod_revision``. *attached_to* is the instance that may use it."""

    uuid: UUID
    name: str
    size_gib: int
    desired: VolumeDesired = VolumeDesired.PRESENT
    attached_to: UUID | None = None
    request_digest: str = ""
    created_at: str = ""  # ISO 8601, UTC; for people
    created_by: str = ""
    schema: int = SCHEMA

    @property
    def resources(self) -> dict[str, int]:
        """What it claims in Placement."""
        return {"DISK_GB": self.size_gib}


@dataclass(frozen=True)
class VolumeStatus(Record):
    """How it is. Written by the volume's host alone, fenced by its host key."""

    phase: VolumePhase
    message: str = ""
    spec_revision: int = 0  # mod_revision of the spec that this speaks of
    was_made: bool = False  # its file was there once: it is never made again
    updated_at: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class VolumePlace:
    """What ``volume-names/<name>`` holds: where the volume of that name is. Volumes do not move."""

    provider: UUID
    uuid: UUID

    def __str__(self) -> str:
        return f"{self.provider}/{self.uuid}"

    @classmethod
    def parse(cls, text: str) -> VolumePlace:
        """Raises: InvalidSpec: *text* names no place."""
        provider, _, uuid = text.partition("/")
        try:
            return cls(UUID(provider), UUID(uuid))
        except ValueError as error:
            raise InvalidSpec(f"{text[:100]!r} is no place of a volume") from error
