"""The command ``key``: public ssh keys that are kept under names, so that a request need not carry a file."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

from common.errors import ConfigError
from common.model import KeyRecord
from common.text import utc_text
from common.validate import parse_key_name, parse_public_keys
from common.validate_keys import MOST_BYTES, fingerprint
from eschedule import render, stored_keys
from eschedule.guest_options import keys_in_files
from eschedule.output import emit
from eschedule.session import Session, user_at_host
from eschedule.tables import Column, Look, table

STANDARD_INPUT = "-"


def key(session: Session, options: argparse.Namespace) -> int:
    """Run ``key``; its exit code.

    Raises:
        EcomputeError: as the functions of ``stored_keys``.
    """
    actions = {"add": _add, "list": _list, "show": _show, "rm": _remove}
    actions[options.action](session, options)
    return 0


def _add(session: Session, options: argparse.Namespace) -> None:
    name = parse_key_name(options.name)
    keys = _from_standard_input() if options.file == STANDARD_INPUT else keys_in_files([Path(options.file)], "FILE")
    now = utc_text(_now())
    record = KeyRecord(name, keys, created_at=now, created_by=user_at_host())
    kept = stored_keys.keep(session.store, session.keys, record, replace=options.replace)
    for one in keys:
        session.screen.message(f"{name}: {fingerprint(one)}")
    if kept is stored_keys.Kept.SO_ALREADY:
        session.screen.message(f"{name}: these are its keys already")
    elif kept is stored_keys.Kept.REPLACED:
        session.screen.message(f"instances keep the keys that they have; to change one: eschedule set NAME --key {name}")


def _from_standard_input() -> tuple[str, ...]:
    """The keys that another program writes.

    Raises:
        ConfigError: it is a terminal, or holds something else.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no file is given, and standard input is a terminal; give FILE, such as ~/.ssh/id_ed25519.pub")
    return parse_public_keys(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input")


def _list(session: Session, options: argparse.Namespace) -> None:
    records = stored_keys.kept(session.store, session.keys)
    emit(session.screen, options, lambda: [_json(record) for record in records], lambda look: _table(records, look))


def _show(session: Session, options: argparse.Namespace) -> None:
    record = stored_keys.one(session.store, session.keys, parse_key_name(options.name))
    emit(session.screen, options, lambda: _json(record), lambda _: "".join(f"{line}\n" for line in record.keys))


def _remove(session: Session, options: argparse.Namespace) -> None:
    name = parse_key_name(options.name)
    stored_keys.drop(session.store, session.keys, name)
    session.screen.message(f"{name} is kept no more; instances that have its keys keep them")


def _table(records: list[KeyRecord], look: Look) -> str:
    rows = [
        (record.name, fingerprint(one), one.split(" ", 2)[2] if one.count(" ") > 1 else "",
         render.age(record.created_at, _now()), record.created_by)
        for record in records for one in record.keys
    ]  # fmt: skip
    return table(("NAME", Column("FINGERPRINT", 20), Column("COMMENT", 8), "AGE", Column("BY", 8)), rows, look)


def _json(record: KeyRecord) -> dict[str, object]:
    return {
        "name": record.name, "keys": list(record.keys), "fingerprints": [fingerprint(one) for one in record.keys],
        "created_at": record.created_at, "created_by": record.created_by,
    }  # fmt: skip


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
