"""The command ``image``: names for images, with the checksums that make them mean the same for good, and what hosts have."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Iterable
from typing import Any

from common.image_records import ImageRecord
from common.text import shortened, utc_text
from common.validate import parse_image_name
from eschedule import image_registry, render
from eschedule.image_making import create_from
from eschedule.image_options import record_from
from eschedule.image_registry import ImageRow
from eschedule.output import emit
from eschedule.session import Session, user_at_host
from eschedule.tables import PLAIN, Column, Look, block, table


def image(session: Session, options: argparse.Namespace) -> int:
    """Run ``image``; its exit code.

    Raises:
        EcomputeError: as the functions of ``image_registry``, ``image_options`` and ``image_hosts``.
    """
    if options.action in ("prefetch", "cache"):
        from eschedule import image_hosts  # noqa: PLC0415 - the others ask no host

        return (image_hosts.prefetch if options.action == "prefetch" else image_hosts.cache)(session, options)
    actions = {"add": _add, "create": _create, "list": _list, "show": _show, "rm": _remove}
    actions[options.action](session, options)
    return 0


def _add(session: Session, options: argparse.Namespace) -> None:
    def fetch(url: str) -> str:
        from eschedule.sums_fetch import fetch_text  # noqa: PLC0415 - imports requests

        session.screen.progress(f"reading {url.partition('?')[0]}")
        return fetch_text(url)

    record = record_from(options, created_at=utc_text(_now()), created_by=user_at_host(), fetch=fetch)
    if not image_registry.add(session.store, session.keys, record):
        session.screen.message(f"the image {record.name} is there already, just so")
        record = image_registry.registered(session.store, session.keys, record.name)  # by whom, and when
    emit(session.screen, options, lambda: image_json(record), lambda _: image_block(record))


def _create(session: Session, options: argparse.Namespace) -> None:
    record = create_from(session, options, created_at=utc_text(_now()), created_by=user_at_host())
    emit(session.screen, options, lambda: image_json(record), lambda _: image_block(record))


def _list(session: Session, options: argparse.Namespace) -> None:
    rows = image_registry.listed(session.store, session.keys)
    emit(session.screen, options, lambda: [_row_json(row) for row in rows], lambda look: image_table(rows, _now(), look))


def _show(session: Session, options: argparse.Namespace) -> None:
    record = image_registry.registered(session.store, session.keys, parse_image_name(options.name))
    emit(session.screen, options, lambda: image_json(record), lambda _: image_block(record))


def _remove(session: Session, options: argparse.Namespace) -> None:
    name = parse_image_name(options.name)
    image_registry.remove(session.store, session.keys, name)
    session.screen.message(f"the image {name} is removed; instances that were made of it stay")


# -- text and JSON -------------------------------------------------------------------------------------------------------


def image_table(rows: Iterable[ImageRow], now: datetime.datetime, look: Look = PLAIN) -> str:
    columns = (Column("NAME", 16), "MIN_DISK_GB", "MIN_MEMORY_MB", "USER", Column("CHECKSUM", 14), "AGE", Column("URL", 12))
    return table(columns, [_cells(row, now) for row in rows], look)


def _cells(row: ImageRow, now: datetime.datetime) -> tuple[str, ...]:
    record = row.record
    if record is None:
        return (row.name, "?", "?", "", "", "", row.problem)
    algorithm, _, digest = record.checksum.partition(":")
    return (
        row.name, str(record.min_disk_gib or ""), str(record.min_memory_mib or ""), record.user, f"{algorithm}:{digest[:12]}",
        render.age(record.created_at, now), shortened(record.url, 100),
    )  # fmt: skip


def image_block(record: ImageRecord) -> str:
    """All about one image."""
    return block(
        [
            ("name", record.name),
            ("url", record.url),
            ("checksum", record.checksum),
            ("read at", record.checksum_url),
            ("min disk", f"{record.min_disk_gib} GB" if record.min_disk_gib else ""),
            ("min memory", f"{record.min_memory_mib} MB" if record.min_memory_mib else ""),
            ("user", record.user),
            *(("property", f"{name}={value}") for name, value in sorted(record.properties.items())),
            ("created", f"{record.created_at} by {record.created_by}" if record.created_at else ""),
        ]
    )


def image_json(record: ImageRecord) -> dict[str, Any]:
    """The shape is documented in ``docs/images.md``: fields are added, never renamed."""
    value = dataclasses.asdict(record)
    del value["schema"]
    return value


def _row_json(row: ImageRow) -> dict[str, Any]:
    return {"name": row.name, "problem": row.problem} if row.record is None else image_json(row.record)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
