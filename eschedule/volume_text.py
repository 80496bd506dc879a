"""Volumes as text and JSON for people and programs. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from common.volume_refs import serial_of
from eschedule.render import age
from eschedule.tables import PLAIN, Column, Look, block, table
from eschedule.volume_changes import Volume


def device_of(volume: Volume) -> str:
    """Where a guest with virtio disks finds it."""
    return f"/dev/disk/by-id/virtio-{serial_of(volume.place.uuid)}"


def volume_table(volumes: Iterable[Volume], now: datetime.datetime, look: Look = PLAIN) -> str:
    columns = (Column("NAME", 16), "SIZE_GB", "PHASE", Column("HOST", 12), Column("INSTANCE", 12), "AGE", Column("UUID", 9))
    return table(columns, [_cells(volume, now) for volume in volumes], look)


def _cells(volume: Volume, now: datetime.datetime) -> tuple[str, ...]:
    spec = volume.spec
    size, since = (str(spec.size_gib), age(spec.created_at, now)) if spec else ("?", "")
    return (volume.name, size, volume.phase, _host(volume), volume.instance, since, str(volume.place.uuid))


def volume_block(volume: Volume) -> str:
    """All about one volume."""
    spec = volume.spec
    pairs = [("name", volume.name), ("uuid", str(volume.place.uuid)), ("host", _host(volume)), ("phase", volume.phase)]
    if volume.problem or volume.message:
        pairs.append(("message", volume.problem or volume.message))
    if spec:
        pairs += [("size", f"{spec.size_gib} GB"), ("instance", volume.instance), ("device", device_of(volume))]
        pairs.append(("created", f"{spec.created_at} by {spec.created_by}" if spec.created_at else ""))
    return block(pairs)


def _host(volume: Volume) -> str:
    return volume.host.name if volume.host.is_alive else f"{volume.host.name} (dead)"


def volume_json(volume: Volume) -> dict[str, Any]:
    """The shape is documented in ``docs/volumes.md``: fields are added, never renamed."""
    spec = volume.spec
    host = {"name": volume.host.name, "provider": str(volume.host.provider), "is_alive": volume.host.is_alive}
    if spec is None:
        return {"name": volume.name, "uuid": str(volume.place.uuid), "host": host, "problem": volume.problem}
    return {
        "name": spec.name,
        "uuid": str(spec.uuid),
        "host": host,
        "size_gib": spec.size_gib,
        "phase": volume.phase,
        "message": volume.message,
        "attached_to": str(spec.attached_to) if spec.attached_to else None,
        "instance": volume.instance,
        "serial": serial_of(spec.uuid),
        "created_at": spec.created_at,
        "created_by": spec.created_by,
    }
