"""The command ``port-forward``: ports of a host that lead to a guest on it, so that it is reached from outside its network."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from uuid import UUID

from common.errors import Permanent
from common.model import Forward
from common.port_notes import PortTrouble, troubles
from common.validate import parse_forwards, parse_host_port, parse_instance
from eschedule import cards
from eschedule.changes import find, forwarding
from eschedule.listing import InstanceRow
from eschedule.live import Applied, apply
from eschedule.output import emit
from eschedule.session import Session
from eschedule.tables import Column, Look, table
from eschedule.waiting import row_of

IN_FORCE = "in force"


def port_forward(session: Session, options: argparse.Namespace) -> int:
    """Run ``port-forward``: change what was asked for, then say where the guest is reached; the exit code.

    Raises:
        EcomputeError: as ``live.apply``.
        Permanent: the host has seen it, and one of the ports that were to be added does not lead to the guest.
    """
    who = parse_instance(options.instance)
    add = parse_forwards(options.ports, "port-forward")
    remove = [parse_host_port(text) for text in options.rm or ()]
    applied: Applied | None = None
    if add or remove:
        applied = apply(session, options, who, forwarding(add, remove))
        if not applied.changed:
            session.screen.message(f"{applied.spec.name}: all of this is so already")
        who = applied.spec.uuid
    row = row_of(session, who if isinstance(who, UUID) else find(session.store, session.keys, who), who)
    emit(session.screen, options, lambda: _json(row), lambda look: _table(row, look))
    if applied and applied.status and (failed := failure(applied.spec.name, add, applied.status.notes)):
        raise Permanent(failed)
    return 0


def failure(name: str, asked: Iterable[Forward], notes: Iterable[str]) -> str:
    """Which of *asked* do not lead to the instance *name*, as its host notes it; "" where all do.

    One that the instance's own rules shut does lead there: they may be changed at any time.
    """
    known = troubles(notes)
    found = {(f.host_port, f.protocol): known.get((f.host_port, f.protocol)) for f in asked}
    failed = [(port, there[0]) for port, there in found.items() if there and there[0] is not PortTrouble.SHUT]
    if not failed:
        return ""
    ports = ", ".join(f"{number}/{protocol} ({trouble.shown})" for (number, protocol), trouble in failed)
    number, protocol = failed[0][0]
    return (
        f"the change of {name} is recorded, but not in force: port {ports}; it is tried on; take it back: eschedule "
        f"port-forward {name} --rm {number}/{protocol}"
    )


def states(row: InstanceRow) -> list[tuple[Forward, str, str]]:
    """Every forward of an instance, whether it is in force, and the note of its host on it. Pure."""
    if row.spec is None:
        return []
    if row.status is None or not row.is_fresh:
        return [(forward, cards.NOT_KNOWN, "") for forward in row.spec.forwards]
    known = troubles(row.status.notes)
    found = [(forward, known.get((forward.host_port, forward.protocol))) for forward in row.spec.forwards]
    return [(forward, there[0].shown if there else IN_FORCE, there[1] if there else "") for forward, there in found]


def _table(row: InstanceRow, look: Look) -> str:
    addresses = row.status.addresses if row.status else ()
    rows = [
        (cards.reached_at(forward, row.host.name), cards.leads_to(forward, addresses), state)
        for forward, state, _ in states(row)
    ]
    return table(("REACHED AT", "LEADS TO", Column("STATE", 12)), rows, look)


def _json(row: InstanceRow) -> list[dict[str, object]]:
    address = cards.first_address(row.status.addresses) if row.status else ""
    return [
        {
            "protocol": forward.protocol, "host": row.host.name, "host_port": forward.host_port,
            "address": address, "guest_port": forward.guest_port, "state": state, "note": note,
        }
        for forward, state, note in states(row)
    ]  # fmt: skip
