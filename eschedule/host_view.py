"""The command ``host show``: all about one host, as etcd and Placement have it. Text and JSON out of what was read."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.model import InstanceKey
from common.placement_types import Inventory
from eschedule import render
from eschedule.listing import HostRow, find_host, read_record, row_of_host
from eschedule.output import emit
from eschedule.session import Session
from eschedule.tables import Look, block, table, wrapped


@dataclass(frozen=True)
class HostView:
    """One host; *inventory* and *traits* are those of its resource provider, empty where it has none."""

    row: HostRow
    inventory: Mapping[str, Inventory]
    traits: Sequence[str]
    guests: Sequence[str]


def show(session: Session, options: argparse.Namespace) -> int:
    """Run ``host show``; its exit code."""
    view = look_at(session, options.name)
    emit(session.screen, options, lambda: host_json(view), lambda look: host_block(view, look))
    return 0


def look_at(session: Session, who: str) -> HostView:
    """The host that has the name or the provider *who*.

    Raises:
        Permanent: there is none. PlacementUnavailable: Placement did not answer.
    """
    host = find_host(session.store, session.keys, who)
    provider, placement = host.provider, session.placement
    known = [read_record(InstanceKey, item) for item in session.store.list(session.keys.instances(), serializable=True).items]
    guests = sorted(one.name for one in known if one is not None and one.provider == provider)
    is_enrolled = placement.provider(provider) is not None
    row = row_of_host(
        session.store, session.keys, host, used=placement.usages(provider) if is_enrolled else None, guests=len(guests)
    )
    inventory = placement.inventories(provider) if is_enrolled else {}
    return HostView(row, inventory, sorted(placement.traits(provider)) if is_enrolled else [], guests)


def host_block(view: HostView, look: Look) -> str:
    row, record, admin = view.row, view.row.record, view.row.admin
    now = datetime.datetime.now(datetime.UTC)
    set_by = f"by {admin.by}, {admin.since} ({render.age(admin.since, now)} ago)" if admin.since else ""
    pairs = [
        ("name", row.host.name),
        ("provider", str(row.host.provider)),
        ("state", render.host_state_text(row)),
        ("disabled", set_by if admin.disabled else ""),
        ("since", f"{record.since} ({render.age(record.since, now)} ago)" if record and record.since else ""),
        ("virt type", record.virt_type if record else ""),
        ("libvirt", record.libvirt_uri if record else ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())) if record else ""),
        *(("label", f"{name}={value}") for name, value in admin.labels.items()),
        *(("operator trait", name) for name in admin.traits),
        *wrapped("guests", view.guests, look),
        *wrapped("traits", view.traits, look),
    ]
    lines = [
        (
            name,
            str(one.total),
            str(one.reserved),
            f"{one.allocation_ratio:g}",
            str(one.capacity),
            str((row.used or {}).get(name, 0)),
        )
        for name, one in sorted(view.inventory.items())
    ]
    columns = ("RESOURCE", "TOTAL", "RESERVED", "RATIO", "CAPACITY", "USED")
    return block(pairs) + (f"\n{table(columns, lines, look)}" if lines else "")


def host_json(view: HostView) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    (row,) = render.host_list_json([view.row])
    return {
        **row,
        "libvirt_uri": view.row.record.libvirt_uri if view.row.record else None,
        "inventory": {
            name: {**dataclasses.asdict(one), "capacity": one.capacity} for name, one in sorted(view.inventory.items())
        },
        "traits": list(view.traits),
        "instances": list(view.guests),
    }
