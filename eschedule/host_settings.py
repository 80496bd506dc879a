"""The commands ``host disable``, ``enable``, ``trait`` and ``label``: what is set for a host, and when it is in force."""

from __future__ import annotations

import argparse
import datetime

from common.errors import ConfigError, PlacementUnavailable, Transient
from common.model import HostAdmin
from common.retry import Deadline
from common.text import utc_text
from common.validate import parse_seconds
from eschedule import host_admin, zones
from eschedule.interruption import Interrupted
from eschedule.labels import parse_labels
from eschedule.listing import HostName, find_host
from eschedule.session import Session, user_at_host

WAIT_SECONDS = 30.0  # a host does it at once; one that is starting has its heartbeat first


def disable(session: Session, options: argparse.Namespace) -> int:
    edit = host_admin.disabled(reason=options.reason or "", by=user_at_host(), at=_now())
    found, admin, is_new = _change(session, options, edit)
    reason = f": {admin.reason}" if admin.reason else ""
    _tell(session, f"{found.name} {'takes' if is_new else 'already took'} no new guests{reason}; those that it has run on")
    return _in_force(session, options, found, admin)


def enable(session: Session, options: argparse.Namespace) -> int:
    found, admin, is_new = _change(session, options, host_admin.enabled(by=user_at_host(), at=_now()))
    _tell(session, f"{found.name} {'takes' if is_new else 'already took'} new guests")
    return _in_force(session, options, found, admin)


def trait(session: Session, options: argparse.Namespace) -> int:
    names = {host_admin.parse_trait(text) for text in options.traits}
    is_added = options.trait_action == "add"
    if is_added and (unknown := names - session.placement.ensure_traits(names)):
        raise ConfigError(
            f"Placement does not know the trait {', '.join(sorted(unknown))}; those of your own begin with CUSTOM_"
        )
    found, admin, _ = _change(session, options, host_admin.with_traits(names if is_added else (), () if is_added else names))
    _tell(session, f"{found.name}: {', '.join(admin.traits) if admin.traits else 'no traits'} set by operators")
    return _in_force(session, options, found, admin)


def label(session: Session, options: argparse.Namespace) -> int:
    add, remove = parse_labels(options.labels)
    if traits := zones.traits_of(add):
        session.placement.ensure_traits(traits)
    found, admin, _ = _change(session, options, host_admin.with_labels(add, remove))
    _tell(session, f"{found.name}: {', '.join(f'{k}={v}' for k, v in admin.labels.items()) or 'no labels'}")
    return _in_force(session, options, found, admin) if zones.LABEL in {*add, *remove} else 0


def _change(session: Session, options: argparse.Namespace, edit: host_admin.Edit) -> tuple[HostName, HostAdmin, bool]:
    found = find_host(session.store, session.keys, options.name)
    message = ", ".join(getattr(options, "traits", getattr(options, "labels", ())))
    session.interruption.check()
    with session.interruption.shield():
        admin, is_new = host_admin.change(
            session.store, session.keys, found.provider, edit, act=session.act, name=found.name, message=message
        )
    return found, admin, is_new


def _in_force(session: Session, options: argparse.Namespace, found: HostName, admin: HostAdmin) -> int:
    """Wait for Placement to have it; the exit code.

    Raises:
        Transient: it had not in time.
    """
    if not found.is_alive:
        session.screen.warning(
            f"{found.name} has no heartbeat: no guest goes there anyway, and it takes this over once it is back"
        )
        return 0
    if options.no_wait:
        return 0
    seconds = parse_seconds(options.wait_seconds or str(WAIT_SECONDS), "--wait-seconds")
    try:
        session.interruption.check()
        host_admin.in_force(session.placement, found.provider, admin, Deadline(seconds))
    except PlacementUnavailable:
        raise
    except Interrupted:
        session.screen.message(f"it is recorded, and goes on to Placement; look: eschedule host show {found.name}")
        raise
    except Transient as error:
        raise Transient(f"it is recorded, and {found.name} was not done with it in {seconds:g} s: {error}") from error
    return 0


def _tell(session: Session, text: str) -> None:
    session.screen.message(text)


def _now() -> str:
    return utc_text(datetime.datetime.now(datetime.UTC))
