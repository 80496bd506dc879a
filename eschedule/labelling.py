"""The commands ``label`` and ``unlabel``: names and values by which people and selectors find instances. No guest notices."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from common.errors import ConfigError
from common.model import InstanceSpec, InstanceStatus
from eschedule.asking import ask
from eschedule.changes import Edit, set_to
from eschedule.commands import first_failure, reporting, whom_of
from eschedule.labels import check_label, few_enough, parse_labels, shown
from eschedule.session import Session


def label(session: Session, options: argparse.Namespace) -> int:
    """Run ``label``; the exit code of the first instance that failed."""
    add, remove = parse_labels(options.labels)
    return _change_all(session, options, relabelled(add, remove))


def unlabel(session: Session, options: argparse.Namespace) -> int:
    """Run ``unlabel``; the exit code of the first instance that failed."""
    for name in options.labels:
        if "=" in name:
            raise ConfigError(f"unlabel takes the names of labels, without values: {name.partition('=')[0]}")
        check_label(name, "", name)
    return _change_all(session, options, relabelled({}, options.labels))


def relabelled(add: Mapping[str, str], remove: Collection[str]) -> Edit:
    """The edit that sets the labels *add* and takes those of *remove* away; who has no such label is as asked.

    Raises (the edit):
        ConfigError: they would be too many.
        Conflict: the instance is being destroyed.
    """

    def edit(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
        labels = {name: value for name, value in {**spec.labels, **add}.items() if name not in remove}
        return set_to({"labels": dict(few_enough(labels, spec.name))})(spec, status)

    return edit


def _change_all(session: Session, options: argparse.Namespace, edit: Edit) -> int:
    codes = [reporting(session, partial(_change, session, who, edit)) for who in whom_of(options)]
    return first_failure(codes)


def _change(session: Session, who: UUID | str, edit: Edit) -> None:
    found = ask(session, who, edit)
    fields = edit(found.spec, found.status) or {}
    session.screen.message(f"{found.name}: {shown(fields.get('labels', found.spec.labels)) or 'no labels'}")
    session.interruption.check()
