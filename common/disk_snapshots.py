"""The letters by which ``eschedule`` asks a host for the snapshots of an instance's disk, and their answers.

A snapshot is inside the disk's own file. What is known of it stands in its name there, so that it comes and goes with it: the
name that people gave it, how it came about, and the request that asked for it. No I/O.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from uuid import UUID

from common.errors import ConfigError
from common.records import SCHEMA, Record
from common.text import quoted

CREATE, LIST, REMOVE = "snapshot-create", "snapshot-list", "snapshot-rm"
KINDS = frozenset({CREATE, LIST, REMOVE})  # of letters
MOST_SNAPSHOTS = 32  # of one disk
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TAG = re.compile(rf"({_NAME.pattern})\+(frozen|crash|off)\+([0-9a-f]{{32}})")


class Consistency(enum.StrEnum):
    """What a guest finds that goes back to a snapshot."""

    FROZEN = "frozen"  # its file systems whole: its agent had them held still
    CRASH = "crash"  # what it would find after a power cut
    OFF = "off"  # what it left when it was last off
    UNKNOWN = "unknown"  # somebody made it by hand


class Trouble(enum.StrEnum):
    """Why a host does not do it, for programs."""

    NONE = ""
    TAKEN = "taken"  # another request made a snapshot of that name
    NOT_FOUND = "not-found"
    BUSY = "busy"  # its guest is being built, changed or moved just now
    REFUSED = "refused"  # it cannot be, however often it is asked for


@dataclass(frozen=True)
class Snapshot:
    """One snapshot; *request* is the uuid of the request for it, as 32 hex digits, "" where it was made by hand."""

    name: str
    created_at: str  # ISO 8601, UTC, by the host's clock; for people
    consistency: Consistency = Consistency.UNKNOWN
    request: str = ""


@dataclass(frozen=True)
class SnapshotAnswer(Record):
    """What a host says of an instance's snapshots.

    Args:
        snapshots: all that there are, oldest first.
        disk_bytes: as the guest sees it. *file_bytes*: what its file takes, snapshots included. *free_bytes*: on that file
            system.
        trouble: why what was asked for was not done, and *message* in words.
    """

    provider: UUID
    host: str
    snapshots: tuple[Snapshot, ...] = ()
    disk_bytes: int = 0
    file_bytes: int = 0
    free_bytes: int = 0
    trouble: Trouble = Trouble.NONE
    message: str = ""
    schema: int = SCHEMA


def parse_snapshot_name(text: str) -> str:
    """*text*, where a snapshot may be called so.

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"snapshot {quoted(text)}: needs 1 to 63 letters, digits, dots, dashes and underscores, the first a letter or digit"
        )
    return text


def tag_of(name: str, consistency: Consistency, request: UUID) -> str:
    """What a snapshot is called inside the disk's file."""
    return f"{name}+{consistency}+{request.hex}"


def snapshot_of(tag: str, created_at: str) -> Snapshot:
    """The snapshot that is called *tag* inside the disk's file."""
    found = _TAG.fullmatch(tag)
    if found is None:
        return Snapshot(tag, created_at)
    return Snapshot(found[1], created_at, Consistency(found[2]), found[3])
