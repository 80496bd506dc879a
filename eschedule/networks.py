"""The command ``network``: networks that hosts share, made, looked at and removed by an operator.

What is made or removed is compared with what was read, in one transaction: two operators cannot make networks that overlap, and
none goes while somebody takes an address of it. The functions on a store are usable as a library and print nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.errors import Conflict, EcomputeError, Permanent
from common.keys import Keys
from common.model import InstanceKey
from common.network_records import NetworkRecord, Subnet
from common.store import Compare, Store, Transaction, Versioned
from common.text import utc_text
from common.validate import parse_network
from eschedule.free_addresses import span_of, used_of
from eschedule.network_options import overlap, record_from, wire_of
from eschedule.output import emit
from eschedule.session import Session, user_at_host
from eschedule.tables import PLAIN, Column, Look, block, table

TRIES = 10  # while others make or remove networks
NAMED_AT_MOST = 5  # of those who keep a network from being removed


@dataclass(frozen=True)
class NetworkRow:
    """A network and who has which of its addresses; *record* is None where it cannot be read, which *problem* tells."""

    name: str
    record: NetworkRecord | None
    owners: Mapping[str, str]
    problem: str = ""


def network(session: Session, options: argparse.Namespace) -> int:
    """Run ``network``; its exit code."""
    actions = {"add": _add, "list": _list, "show": _show, "rm": _remove}
    return actions[options.action](session, options)


def _add(session: Session, options: argparse.Namespace) -> int:
    created_at = utc_text(datetime.datetime.now(datetime.UTC))
    record = record_from(options, created_at=created_at, created_by=user_at_host())
    is_new = add(session.store, session.keys, record)
    if not is_new:
        session.screen.message(f"the network {record.name} is there already, just so")
    owners = {} if is_new else _read(session.store, session.keys, record.name)[1]
    row = NetworkRow(record.name, record, owners)
    emit(session.screen, options, lambda: network_json(row), lambda _: block(_pairs(record)))
    return 0


def _list(session: Session, options: argparse.Namespace) -> int:
    rows = list_networks(session.store, session.keys)
    emit(session.screen, options, lambda: [network_json(row) for row in rows], lambda look: network_table(rows, look))
    return 0


def _show(session: Session, options: argparse.Namespace) -> int:
    name = parse_network(options.name)
    item, owners = _read(session.store, session.keys, name)
    row = NetworkRow(name, NetworkRecord.from_json(item.value), owners)
    names = _names(session.store, session.keys, owners.values())
    emit(
        session.screen, options, lambda: {**network_json(row), "addresses": _addresses_json(owners, names)},
        lambda look: network_block(row, names, look),
    )  # fmt: skip
    return 0


def _remove(session: Session, options: argparse.Namespace) -> int:
    name = parse_network(options.name)
    remove(session.store, session.keys, name)
    session.screen.message(f"the network {name} is removed")
    return 0


# -- on a store ----------------------------------------------------------------------------------------------------------


def add(store: Store, keys: Keys, record: NetworkRecord) -> bool:
    """Make the network *record*; False where it is there already, just so.

    Raises:
        Conflict: the name is another network's, or an address on its bridge is.
        StoreUnavailable: whether it was made is unknown; repeating it is safe.
    """
    for _ in range(TRIES):
        listing = store.list(keys.networks())
        known = {item.key.removeprefix(keys.networks()): NetworkRecord.from_json(item.value) for item in listing.items}
        if (same := known.get(record.name)) is not None:
            if dataclasses.replace(same, created_at=record.created_at, created_by=record.created_by) == record:
                return False
            raise Conflict(f"there is a network {record.name} already; see: eschedule network show {record.name}")
        if problem := overlap(record, known.values()):
            raise Conflict(f"{problem}; choose other addresses, or another --vlan")
        key = keys.network(record.name)
        compares = (Compare.absent(key), Compare.none_newer(keys.networks(), listing.revision))
        try:
            store.commit(Transaction(compares, {key: record.to_json()}))
        except Conflict:
            continue
        return True
    raise Conflict("others kept making networks; try again")


def remove(store: Store, keys: Keys, name: str) -> None:
    """Remove the network *name*.

    Raises:
        Permanent: there is none.
        Conflict: somebody has an address of it.
        StoreUnavailable: whether it was removed is unknown; repeating it is safe.
    """
    for _ in range(TRIES):
        item, owners = _read(store, keys, name)
        if owners:
            raise Conflict(_in_use(name, owners, _names(store, keys, list(owners.values())[:NAMED_AT_MOST])))
        # Whoever takes an address compares the record, and this compares that nobody has: one of the two fails.
        nobody = Compare.none_newer(keys.network_addresses(name), 0)
        try:
            store.commit(Transaction((Compare.unchanged(item.key, item.mod_revision), nobody), deletes=(item.key,)))
        except Conflict:
            continue
        return
    raise Conflict(f"others kept using the network {name}; try again")


def _in_use(name: str, owners: Mapping[str, str], names: Mapping[str, str]) -> str:
    many, more = len(owners) > 1, ", …" if len(set(owners.values())) > len(names) else ""
    return (
        f"{len(owners)} address{'es' * many} of the network {name} {'are' if many else 'is'} in use, by "
        f"{', '.join(names.values())}{more}; destroy {'these' if many else 'this'} first; see: eschedule network show {name}"
    )


def list_networks(store: Store, keys: Keys) -> list[NetworkRow]:
    """All networks, by name, from two serializable lists."""
    owners: dict[str, dict[str, str]] = {}
    for item in store.list(keys.network_addresses(), serializable=True).items:
        with contextlib.suppress(ValueError):  # the audit names it
            name, address = keys.parse_network_address(item.key)
            owners.setdefault(name, {})[address] = item.value
    rows = []
    for item in store.list(keys.networks(), serializable=True).items:
        name, record, problem = item.key.removeprefix(keys.networks()), None, ""
        try:
            record = NetworkRecord.from_json(item.value)
        except EcomputeError as error:
            problem = str(error)
        rows.append(NetworkRow(name, record, owners.get(name, {}), problem))
    return rows


def _read(store: Store, keys: Keys, name: str) -> tuple[Versioned, dict[str, str]]:
    item, prefix = store.get(keys.network(name)), keys.network_addresses(name)
    if item is None:
        raise Permanent(f"there is no network {name}; see: eschedule network list", "NotFound")
    return item, {found.key.removeprefix(prefix): found.value for found in store.list(prefix).items}


def _names(store: Store, keys: Keys, owners: Iterable[str]) -> dict[str, str]:
    """The names of the instances *owners*; of one that is not there its uuid."""
    by_key = {}
    for owner in owners:
        try:
            by_key[keys.instance(UUID(owner))] = owner
        except ValueError:
            continue
    names = {owner: owner for owner in owners}
    for key, item in store.get_many(by_key).items():
        try:
            names[by_key[key]] = InstanceKey.from_json(item.value).name
        except EcomputeError:
            continue
    return names


# -- text and JSON -------------------------------------------------------------------------------------------------------


def network_table(rows: Iterable[NetworkRow], look: Look = PLAIN) -> str:
    lines = []
    for row in rows:
        record = row.record
        if record is None:
            lines.append((row.name, "?", "", row.problem, "", "", ""))
            continue
        for at, subnet in enumerate(record.subnets):
            size, used = span_of(subnet).size, used_of(subnet, row.owners)
            own = (row.name, record.bridge, str(record.vlan or "")) if not at else ("", "", "")
            lines.append((*own, subnet.cidr, f"{subnet.first}-{subnet.last}", str(used), _count(size - used)))
    return table((Column("NAME", 12), "BRIDGE", "VLAN", Column("SUBNET", 18), Column("RANGE", 16), "USED", "FREE"), lines, look)


def network_block(row: NetworkRow, names: Mapping[str, str], look: Look = PLAIN) -> str:
    """All about one network: what it is, and who has which address."""
    assert row.record is not None  # noqa: S101 - only what can be read is shown
    head = block([*_pairs(row.record), *_use(row.record.subnets, row.owners)])
    if not row.owners:
        return head
    by_address = sorted(row.owners.items(), key=lambda pair: _sorting(pair[0]))
    lines = [(address, names.get(owner, owner), owner) for address, owner in by_address]
    return head + "\n" + table(("ADDRESS", Column("INSTANCE", 12), Column("UUID", 9)), lines, look)


def _pairs(record: NetworkRecord) -> list[tuple[str, str]]:
    subnets = [
        ("subnet", f"{s.cidr}, guests {s.first}-{s.last}" + (f", gateway {s.gateway}" if s.gateway else ""))
        for s in record.subnets
    ]
    return [
        ("name", record.name),
        ("bridge", wire_of(record)),
        *subnets,
        ("dns", ", ".join(record.name_servers)),
        ("mtu", str(record.mtu or "")),
        ("created", f"{record.created_at} by {record.created_by}" if record.created_at else ""),
    ]


def _use(subnets: Iterable[Subnet], owners: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs, inside = [], 0
    for subnet in subnets:
        size, used = span_of(subnet).size, used_of(subnet, owners)
        inside += used
        pairs.append(("used", f"{used} of {_count(size)} in {subnet.first}-{subnet.last}, {_count(size - used)} free"))
    outside = len(owners) - inside
    return [*pairs, ("used", f"{outside} outside, asked for by address=" if outside else "")]


def _count(number: int) -> str:
    """*number*, or its power of two where it is one of IPv6's."""
    return str(number) if number < 10**9 else f"about 2^{round(math.log2(number))}"


def _sorting(address: str) -> tuple[int, int]:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return 0, 0
    return ip.version, int(ip)


def network_json(row: NetworkRow) -> dict[str, Any]:
    """The shape is documented in ``docs/operations.md``: fields are added, never renamed."""
    record = row.record
    if record is None:
        return {"name": row.name, "problem": row.problem}
    subnets = [
        {
            **dataclasses.asdict(subnet),
            "size": span_of(subnet).size,
            "used": (used := used_of(subnet, row.owners)),
            "free": span_of(subnet).size - used,
        }
        for subnet in record.subnets
    ]
    return {
        "name": record.name,
        "bridge": record.bridge,
        "vlan": record.vlan,
        "subnets": subnets,
        "name_servers": list(record.name_servers),
        "mtu": record.mtu,
        "created_at": record.created_at,
        "created_by": record.created_by,
    }


def _addresses_json(owners: Mapping[str, str], names: Mapping[str, str]) -> list[dict[str, str]]:
    by_address = sorted(owners.items(), key=lambda pair: _sorting(pair[0]))
    return [{"address": address, "instance": owner, "name": names.get(owner, owner)} for address, owner in by_address]
