"""What instances use at the moment: from two answers of their host, the difference over the time between, by the host's clock.

Pure: rows, their order, a table for people, JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.host_letters import GuestUsage, HostUsage
from eschedule.tables import PLAIN, Column, Look, table

SORTS = ("cpu", "memory", "disk", "net")
_COLUMNS = (
    Column("NAME", 12), Column("HOST", 8), "CPU%", "VCPUS", "RSS/MEMORY", "DISK_R/s", "DISK_W/s", "NET_IN/s", "NET_OUT/s",
    Column("UUID", is_wide=True),
)  # fmt: skip
_UNITS = ("B", "K", "M", "G", "T")


@dataclass(frozen=True)
class Use:
    """What one instance uses: rates a second, *cpu_percent* of one CPU; None where it is not known (yet)."""

    uuid: UUID
    provider: UUID
    vcpus: int | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_most_bytes: int | None = None
    disk_read: float | None = None
    disk_written: float | None = None
    net_received: float | None = None
    net_sent: float | None = None


def uses(provider: UUID, before: HostUsage | None, now: HostUsage) -> list[Use]:
    """What the guests of a host use *now*, at rates since *before*."""
    seconds = (now.at_ns - before.at_ns) / 1e9 if before else 0.0
    known = {guest.uuid: guest for guest in before.guests} if before and seconds > 0 else {}
    return [_use(provider, known.get(guest.uuid), guest, seconds) for guest in now.guests]


def _use(provider: UUID, before: GuestUsage | None, now: GuestUsage, seconds: float) -> Use:
    def rate(field: str) -> float | None:
        later, earlier = getattr(now, field), getattr(before, field) if before else None
        # A guest that was started between the two counts from nothing.
        return None if later is None or earlier is None or later < earlier else (later - earlier) / seconds

    cpu = rate("cpu_ns")
    return Use(
        now.uuid, provider, now.vcpus, None if cpu is None else cpu / 1e7, _bytes(now.memory_kib), _bytes(now.memory_most_kib),
        rate("disk_read_bytes"), rate("disk_written_bytes"), rate("net_received_bytes"), rate("net_sent_bytes"),
    )  # fmt: skip


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib << 10


def in_order(rows: Sequence[Use], sort: str, names: Mapping[UUID, str]) -> list[Use]:
    """*rows*, those that use most of *sort* first; equal ones by name."""

    def amount(use: Use) -> float:
        parts = {
            "cpu": (use.cpu_percent,), "memory": (use.memory_bytes,), "disk": (use.disk_read, use.disk_written),
            "net": (use.net_received, use.net_sent),
        }[sort]  # fmt: skip
        return sum(part or 0.0 for part in parts)

    return sorted(rows, key=lambda use: (-amount(use), names.get(use.uuid, str(use.uuid))))


def usage_table(rows: Sequence[Use], names: Mapping[UUID, str], hosts: Mapping[UUID, str], look: Look = PLAIN) -> str:
    return table(_COLUMNS, [_cells(use, names, hosts) for use in rows], look)


def _cells(use: Use, names: Mapping[UUID, str], hosts: Mapping[UUID, str]) -> tuple[str, ...]:
    memory = _amount(use.memory_bytes)
    return (
        names.get(use.uuid, str(use.uuid)), hosts.get(use.provider, str(use.provider)),
        "-" if use.cpu_percent is None else f"{use.cpu_percent:.1f}",
        "-" if use.vcpus is None else str(use.vcpus),
        memory if use.memory_most_bytes is None else f"{memory}/{_amount(use.memory_most_bytes)}",
        _amount(use.disk_read), _amount(use.disk_written), _amount(use.net_received), _amount(use.net_sent), str(use.uuid),
    )  # fmt: skip


def _amount(amount: float | None) -> str:
    """In the unit of 1024 that leaves one to four digits before the point."""
    if amount is None:
        return "-"
    unit = 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.0f}{_UNITS[unit]}" if amount >= 10 or unit == 0 else f"{amount:.1f}{_UNITS[unit]}"


def usage_json(use: Use, names: Mapping[UUID, str], hosts: Mapping[UUID, str]) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return {
        "uuid": str(use.uuid),
        "name": names.get(use.uuid, str(use.uuid)),
        "host": {"provider": str(use.provider), "name": hosts.get(use.provider, str(use.provider))},
        "vcpus": use.vcpus,
        "cpu_percent": _rounded(use.cpu_percent),
        "memory_bytes": use.memory_bytes,
        "memory_most_bytes": use.memory_most_bytes,
        "disk_read_bytes_per_second": _rounded(use.disk_read),
        "disk_written_bytes_per_second": _rounded(use.disk_written),
        "net_received_bytes_per_second": _rounded(use.net_received),
        "net_sent_bytes_per_second": _rounded(use.net_sent),
    }


def _rounded(amount: float | None) -> float | None:
    return None if amount is None else round(amount, 1)
