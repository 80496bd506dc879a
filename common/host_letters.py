"""The letters that ask a host for what only it can say at this moment: that it hears at all, and what its guests use.

A letter of one of these kinds is a ``findings.Letter`` without arguments; a host of an earlier version knows none of them and
answers nothing. Pure: names, bounds and records.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from common.records import SCHEMA, Record

PING = "ping"
USAGE = "usage"

MOST_GUESTS = 800  # in one answer, so that it fits into a letter


@dataclass(frozen=True)
class GuestUsage:
    """What one guest has used since it was started, and uses now; None where the hypervisor does not say it.

    Args:
        memory_kib: of the host's, that it takes. *memory_most_kib*: that it may take.
    """

    uuid: UUID
    vcpus: int | None = None
    cpu_ns: int | None = None
    memory_kib: int | None = None
    memory_most_kib: int | None = None
    disk_read_bytes: int | None = None
    disk_written_bytes: int | None = None
    net_received_bytes: int | None = None
    net_sent_bytes: int | None = None


@dataclass(frozen=True)
class HostUsage(Record):
    """A host's answer to ``USAGE``.

    Args:
        at_ns: by a clock of the host that only goes forward: what lies between two answers of it is a duration.
        is_cut: there are more guests than fit.
        problem: why there are none, "" where all is well.
    """

    at_ns: int = 0
    guests: tuple[GuestUsage, ...] = ()
    is_cut: bool = False
    problem: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Pong(Record):
    """A host's answer to ``PING``: it hears, and writes to etcd."""

    schema: int = SCHEMA
