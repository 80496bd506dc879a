"""What people and programs see of instances and hosts: tables, blocks, one progress line, JSON. Pure: text out of records.

``tables`` has what all of it is made of. The JSON shapes are stable: fields are added, never renamed. ``screen`` prints what is
made here.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common.model import HostState, InstanceSpec, InstanceStatus, Move, Phase, Ready, Reason
from common.text import counted, escaped, shortened
from eschedule import cards, labels
from eschedule.listing import HostName, HostRow, InstanceRow
from eschedule.output import as_json as as_json
from eschedule.tables import PLAIN, Coloured, Column, Look
from eschedule.tables import block as block
from eschedule.tables import table as table

if TYPE_CHECKING:
    from eschedule.follow import View

_MIB = 1024 * 1024


# -- instances ----------------------------------------------------------------------------------------------------------


_INSTANCE_COLUMNS = (
    Column("NAME", 16), Column("UUID", 9), Column("HOST", 8), Column("PHASE", 12), Column("ADDRESS", 15), "AGE",
    Column("IMAGE", 6), Column("RESOURCES", is_wide=True), Column("DESIRED", is_wide=True), Column("GROUP", is_wide=True),
    Column("LABELS", is_wide=True), Column("BY", is_wide=True), Column("PROTECTED", is_wide=True),
)  # fmt: skip


def instance_table(rows: Sequence[InstanceRow], now: datetime.datetime, look: Look = PLAIN) -> str:
    return table(_INSTANCE_COLUMNS, [_instance_cells(row, now, look) for row in rows], look)


def _instance_cells(row: InstanceRow, now: datetime.datetime, look: Look) -> tuple[str | Coloured, ...]:
    spec, status = row.spec, row.status
    addresses = [address for card in status.addresses for address in card.all_addresses] if status else []
    first = [card.address for card in status.addresses if card.address] if status else []
    return (
        row.name,
        str(row.uuid),
        row.host.name,
        Coloured(phase_text(row), phase_colour(row)),
        ",".join(addresses if look.is_wide else first),
        age(spec.created_at, now) if spec else "",
        shortened(spec.image.name or spec.image.url.rpartition("/")[2], 40) + _doubt_of(status) if spec else "",
        _resources(spec) if spec else "",
        str(spec.desired) if spec else "",
        spec.group or "" if spec else "",
        labels.shown(spec.labels) if spec else "",
        spec.created_by if spec else "",
        "yes" if spec and spec.protected else "",
    )


def _resources(spec: InstanceSpec) -> str:
    return ",".join(f"{name}:{amount}" for name, amount in sorted(spec.resources.items()))


def phase_colour(row: InstanceRow) -> str:
    """Red where somebody should look at it, yellow where it is on its way, green where it runs; "" where it is at rest."""
    if not row.host.is_alive or row.phase in _BAD or row.reason in _BAD_REASONS:
        return "red"
    if row.phase == Phase.RUNNING:
        return "yellow" if row.reason else "green"
    return "" if row.phase in (Phase.STOPPED, Phase.SUSPENDED) else "yellow"


_BAD = frozenset({Phase.FAILED, Phase.REFUSED, Phase.HELD, Phase.QUARANTINED})
_BAD_REASONS = frozenset({Reason.CRASHED, Reason.IO_ERROR, Reason.START_FAILED, Reason.ALLOCATION_MISSING, Reason.DISK_MISSING})


def phase_text(row: InstanceRow) -> str:
    """The phase with what qualifies it: the reason, what is asked for if that is not so yet, and a dead host."""
    notes = [row.reason] if row.reason else []
    if row.spec and row.spec.desired.value not in ("running", row.phase.lower()) and row.phase != Phase.SUSPENDING:
        notes.append(f"to be {row.spec.desired.value}")
    if row.status and row.status.in_force:
        notes.append("resized with its next start")
    if not row.host.is_alive:
        notes.append("host dead")
    return f"{row.phase} ({', '.join(notes)})" if notes else row.phase


def instance_block(row: InstanceRow, now: datetime.datetime) -> str:
    """All there is to know about one instance."""
    spec, status = row.spec, row.status
    pairs = [
        ("name", row.name),
        ("uuid", str(row.uuid)),
        ("phase", phase_text(row)),
        ("message", (status.message or status.failure_message) if status else ""),
        ("progress", progress_text(status) if status else ""),
        ("host", f"{row.host.name} (provider {row.host.provider})"),
    ]
    if spec:
        pairs += _spec_pairs(spec, status, now)
        pairs += [("forward", f"{cards.reached_at(f, row.host.name)} to port {f.guest_port}") for f in spec.forwards]
    if status:
        pairs += [("address", cards.card_text(card)) for card in status.addresses]
        pairs += [("note", note) for note in (*status.notes, *_given_up(status))]
        pairs += ready_pairs(status.ready, is_former=_is_former(spec, status.ready), now=now) if status.ready else []
        pairs += [("attempts", str(status.attempts) if status.attempts > 1 else ""), ("updated", status.updated_at)]
    return block(pairs) + (_events(status) if status and status.events else "")


def _doubt_of(status: InstanceStatus | None) -> str:
    """That its disk is not of the image that its spec names."""
    return " (not rebuilt)" if status and status.rebuilt and status.rebuilt.problem else ""


def _given_up(status: InstanceStatus) -> list[str]:
    """What was asked of its disk last, and was not done."""
    asked = (("a revert to a snapshot", status.restored), ("a rebuild", status.rebuilt))
    return [f"{what} was given up, the disk is as it was: {done.problem}" for what, done in asked if done and done.problem]


def _spec_pairs(spec: InstanceSpec, status: InstanceStatus | None, now: datetime.datetime) -> list[tuple[str, str]]:
    user_data, addresses = spec.user_data, status.addresses if status else ()
    image = f"{spec.image.name} ({spec.image.url})" if spec.image.name else spec.image.url
    return [
        ("image", image + _doubt_of(status)),
        ("checksum", spec.image.checksum or ""),
        ("volumes", ", ".join(f"{volume.name} ({volume.serial})" for volume in spec.volumes)),
        ("resources", ", ".join(f"{c} {amount}" for c, amount in sorted(spec.resources.items()))),
        ("networks", "; ".join(cards.nic_text(nic) for nic in spec.nics)),
        ("hardware", cards.hardware_text(spec)),
        ("disk", _disk_text(spec)),
        ("metadata", cards.metadata_text(spec, addresses)),
        ("allow", cards.allow_text(spec)),
        ("labels", labels.shown(spec.labels)),
        ("hostname", spec.hostname if spec.hostname != spec.name else ""),
        ("keys", ", ".join(_key_text(key) for key in spec.keys)),
        ("user data", f"{len(user_data)} bytes" if user_data else ""),
        ("group", f"{spec.group} ({spec.group_policy})" if spec.group else ""),
        ("desired", str(spec.desired)),
        ("protected", "yes: neither destroyed nor rebuilt" if spec.protected else ""),
        ("restart", str(spec.restart)),
        ("alternates", _alternates(spec)),
        *(("moved", _move(move)) for move in spec.moves),
        ("created", f"{spec.created_at} ({age(spec.created_at, now)} ago) by {spec.created_by}" if spec.created_at else ""),
    ]


def _disk_text(spec: InstanceSpec) -> str:
    """How its disk differs from its image; nothing where it does not."""
    content = spec.disk_content
    said = ["resized"] if content.resize else []
    said += ["host name, keys and network where the image has no cloud-init"] if content.identity else []
    said += [f"{file.path} ({counted(file.size_bytes, 'byte')})" for file in content.files]
    return ", ".join(said)


def ready_pairs(ready: Ready, *, is_former: bool = False, now: datetime.datetime | None = None) -> list[tuple[str, str]]:
    """What a guest said of itself, line by line; *now* adds how long ago, *is_former* that it has been started since."""
    ago = f" ({age(ready.at, now)} ago)" if now and age(ready.at, now) else ""
    said = f": {ready.message}" if ready.message else ""
    since = "; not yet since its last start" if is_former else ""
    return [("ready", f"{ready.at}{ago}{said}{since}"), *(("host key", key) for key in ready.host_keys)]


def _is_former(spec: InstanceSpec | None, ready: Ready) -> bool:
    return spec is not None and ready.boot_request < spec.boot_request


def _alternates(spec: InstanceSpec) -> str:
    """How many other hosts are left for an instance that cannot be built where it is."""
    if not spec.alternates:
        return "none left" if spec.moves else ""
    return f"{len(spec.alternates)} other host{'s' if len(spec.alternates) != 1 else ''} left"


def _move(move: Move) -> str:
    reason = ": ".join(part for part in (move.reason, move.message) if part)
    return f"from {move.host or move.provider}: {reason}, {move.at}"


def _key_text(key: str) -> str:
    """A key's type and comment: what tells it from another for people."""
    kind, _, rest = key.partition(" ")
    comment = rest.partition(" ")[2]
    return f"{kind} {comment}" if comment else f"{kind} …{rest[-8:]}"


def _events(status: InstanceStatus) -> str:
    rows = [(event.at, event.step, f"{event.took_ms} ms", event.message) for event in status.events]
    return "\n" + table(("AT", "STEP", "TOOK", "MESSAGE"), rows)


def instance_json(row: InstanceRow, timings_ms: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What ``show --json`` and ``create --json`` print; *timings_ms* of a request stand beside those of the steps."""
    steps: dict[str, float] = {}
    for event in row.status.events if row.status else ():
        steps[event.step] = steps.get(event.step, 0) + event.took_ms
    return {
        "uuid": str(row.uuid),
        "name": row.name,
        "host": _host_json(row.host),
        "phase": row.phase,
        "reason": row.reason,
        "spec": json.loads(row.spec.to_json()) if row.spec else None,
        "status": json.loads(row.status.to_json()) if row.status else None,
        "timings_ms": {**steps, **(timings_ms or {})},
    }


def instance_list_json(rows: Sequence[InstanceRow]) -> list[dict[str, Any]]:
    return [
        {
            "uuid": str(row.uuid),
            "name": row.name,
            "host": _host_json(row.host),
            "phase": row.phase,
            "reason": row.reason,
            "desired": str(row.spec.desired) if row.spec else None,
            "protected": bool(row.spec and row.spec.protected),
            "addresses": [a.address for a in row.status.addresses if a.address] if row.status else [],
            "image": row.spec.image.url if row.spec else None,
            "image_name": (row.spec.image.name or None) if row.spec else None,
            "created_at": row.spec.created_at if row.spec else None,
            "labels": row.spec.labels if row.spec else {},
        }
        for row in rows
    ]


# -- hosts --------------------------------------------------------------------------------------------------------------


_MORE_OF_HOSTS = ("RESERVED", "LATENCY", "VIRT_TYPE", "VERSIONS", "LIBVIRT_URI", "LABELS", "TRAITS")


def host_table(rows: Sequence[HostRow], now: datetime.datetime, look: Look = PLAIN) -> str:
    classes = ("VCPU", "MEMORY_MB", "DISK_GB")
    columns: tuple[str | Column, ...] = (
        Column("NAME", 12), Column("STATE", 12), "SINCE", *classes, "GUESTS", Column("PROVIDER", 9),
        *(Column(name, is_wide=True) for name in _MORE_OF_HOSTS),
    )  # fmt: skip
    return table(columns, [_host_cells(row, classes, now) for row in rows], look)


def _host_cells(row: HostRow, classes: Sequence[str], now: datetime.datetime) -> tuple[str | Coloured, ...]:
    record = row.record
    is_bad = record is None or record.state is not HostState.READY
    return (
        row.host.name,
        Coloured(host_state_text(row), "red" if is_bad else "yellow" if row.admin.disabled else "green"),
        age(record.since, now) if record else "",
        *(_share(row, c) for c in classes),
        str(row.guests),
        str(row.host.provider),
        ",".join(f"{name}:{amount}" for name, amount in sorted(record.reserved.items()) if amount) if record else "",
        f"{row.latency_seconds * 1000:.0f} ms" if row.latency_seconds is not None else "-",
        record.virt_type if record else "",
        ",".join(f"{name} {version}" for name, version in sorted(record.versions.items())) if record else "",
        record.libvirt_uri if record else "",
        ",".join(f"{name}={value}" for name, value in row.admin.labels.items()),
        ",".join(row.admin.traits),
    )


def host_state_text(row: HostRow) -> str:
    """The state with what qualifies it: what the host says of it, and that an operator disabled it."""
    parts = [f"{row.state}: {row.record.message}" if row.record and row.record.message else row.state]
    if row.admin.disabled:
        parts.append(f"disabled ({row.admin.reason})" if row.admin.reason else "disabled")
    return ", ".join(parts)


def _share(row: HostRow, resource_class: str) -> str:
    used = row.used.get(resource_class, 0) if row.used is not None else "?"
    total = row.record.capacity.get(resource_class, "?") if row.record else "?"
    return f"{used}/{total}"


def host_list_json(rows: Sequence[HostRow]) -> list[dict[str, Any]]:
    return [
        {
            "provider": str(row.host.provider),
            "name": row.host.name,
            "state": row.state,
            "message": row.record.message if row.record else "",
            "since": row.record.since if row.record else None,
            "capacity": row.record.capacity if row.record else None,
            "reserved": row.record.reserved if row.record else None,
            "used": dict(row.used) if row.used is not None else None,
            "guests": row.guests,
            "virt_type": row.record.virt_type if row.record else None,
            "versions": row.record.versions if row.record else None,
            "disabled": row.admin.disabled,
            "disabled_reason": row.admin.reason,
            "disabled_by": row.admin.by if row.admin.disabled else "",
            "disabled_since": (row.admin.since or None) if row.admin.disabled else None,
            "labels": row.admin.labels,
            "operator_traits": list(row.admin.traits),
        }
        for row in rows
    ]


def _host_json(host: HostName) -> dict[str, Any]:
    return {"provider": str(host.provider), "name": host.name, "is_alive": host.is_alive}


# -- progress -----------------------------------------------------------------------------------------------------------


def progress_line(view: View) -> str:
    """What an instance is doing now, without the time: phase, host, step and how far it has come."""
    status = view.status
    if status is None or not view.is_fresh:
        doing = "waiting for the host"
    else:
        reason = f"({status.reason})" if status.reason else ""
        doing = " ".join(part for part in (str(status.phase), reason, progress_text(status)) if part)
    return escaped(f"{view.name}: {doing} on {view.where}")


def progress_text(status: InstanceStatus) -> str:
    """The step in hand: ``FetchImage 12.3 of 40.0 MiB (31 %)``."""
    progress = status.progress
    if progress is None:
        return ""
    if progress.total <= 0:
        return f"{progress.step} {_amount(progress.done, progress.unit)}" if progress.done else progress.step
    percent = min(100, 100 * progress.done // progress.total)
    if progress.unit == "bytes":
        return f"{progress.step} {progress.done / _MIB:.1f} of {_amount(progress.total, progress.unit)} ({percent} %)"
    return f"{progress.step} {progress.done} of {_amount(progress.total, progress.unit)} ({percent} %)"


def _amount(amount: int, unit: str) -> str:
    return f"{amount / _MIB:.1f} MiB" if unit == "bytes" else f"{amount} {unit}"


def age(text: str, now: datetime.datetime) -> str:
    """How long ago *text*, an ISO 8601 time, was, in the largest fitting unit; nothing where it is no time."""
    try:
        then = datetime.datetime.fromisoformat(text)
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    # Clocks of two machines differ: a little ahead of ours is now.
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size or (unit == "d" and seconds >= size):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
