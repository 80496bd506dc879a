"""The command ``set``: change what a guest is told and who may reach it, without a restart; says what holds from when on."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from common.errors import ConfigError
from common.model import Address, ConfigDrive, InstanceSpec, MetadataAccess
from common.user_data import doubt_about
from common.validate import parse_config_drive, parse_hop_limit, parse_instance, parse_metadata_access
from eschedule.cards import drive_of, untold
from eschedule.changes import set_to
from eschedule.commands import first_failure, reporting
from eschedule.guest_options import allow_of, keys_of, user_data_of
from eschedule.live import apply
from eschedule.session import Session
from eschedule.stored_keys import look_up

SHOWN = {
    "keys": "keys", "user_data_base64": "user data", "metadata": "metadata", "metadata_hop_limit": "hop limit",
    "allow": "rules", "config_drive": "config drive",
}  # fmt: skip
_TOLD = ("keys", "user_data_base64")  # what a guest is told, over HTTP and on a config drive


def set_(session: Session, options: argparse.Namespace) -> int:
    """Run ``set``; the exit code of the first instance that failed.

    Raises:
        ConfigError: an option makes no sense.
    """
    whom = [parse_instance(text) for text in ([options.instance] if options.selector is None else options.instances)]
    wanted = _wanted(session, options)
    if not wanted:
        raise ConfigError("nothing is to be set; say what, as in --key alice or --allow tcp:22; see: eschedule set --help")
    codes = [reporting(session, partial(_set_one, session, options, who, wanted)) for who in whom]
    return first_failure(codes)


def _set_one(session: Session, options: argparse.Namespace, who: UUID | str, wanted: Mapping[str, Any]) -> None:
    applied = apply(session, options, who, set_to(wanted))
    spec, name = applied.spec, applied.spec.name
    if lost := untold(spec.metadata, spec.config_drive, has_keys=bool(spec.keys), has_user_data=spec.user_data is not None):
        session.screen.warning(f"{name}: {lost}")
    if not applied.changed:
        session.screen.message(f"{name}: all of this is so already")
    elif options.no_wait:
        session.screen.message(f"{name}: asked for; look: eschedule show {name}")
    else:
        addresses = applied.status.addresses if applied.status else ()
        for line in effects(applied.former, spec, applied.changed, addresses, is_up=applied.is_up):
            session.screen.message(f"{name}: {line}")


def _wanted(session: Session, options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the spec that *options* name, with their values.

    Raises:
        ConfigError: one of them is wrong.
    """
    wanted: dict[str, Any] = {}
    if options.user_data is not None:
        data = user_data_of(Path(options.user_data))
        if doubt := doubt_about(data):
            session.screen.warning(f"--user-data {options.user_data}: {doubt}")
        wanted["user_data_base64"] = base64.b64encode(data).decode("ascii")
    elif options.no_user_data:
        wanted["user_data_base64"] = None
    if options.metadata is not None:
        wanted["metadata"] = parse_metadata_access(options.metadata)
    if options.metadata_hop_limit is not None:
        wanted["metadata_hop_limit"] = parse_hop_limit(options.metadata_hop_limit)
    if options.config_drive is not None:
        wanted["config_drive"] = parse_config_drive(options.config_drive)
    if options.allow is not None or options.allow_all:
        wanted["allow"] = allow_of(options, None)
    if options.key is not None or options.no_keys:  # last: nobody is asked where anything else is wrong
        wanted["keys"] = keys_of(options.key or (), partial(look_up, session))
    return wanted


def effects(
    former: InstanceSpec, spec: InstanceSpec, changed: frozenset[str], addresses: tuple[Address, ...], *, is_up: bool
) -> list[str]:
    """From when on what was *changed* in *spec*, which was *former*, holds: a line each. Pure."""
    told, others = changed & {*_TOLD}, changed - {*_TOLD} - {"config_drive"}
    had, gets = drive_of(former, addresses), drive_of(spec, addresses)
    again = f"(eschedule {'reboot' if is_up else 'start'} {spec.name})"
    drive = [f"{line} {again}" if had is not gets else line for line in _drive_lines(had, gets, changed)]
    if not is_up:
        return [*([f"{_named(told | others)}: from its next start on {again}"] if told | others else []), *drive]
    lines = [f"{_named(others)}: from now on"] if others else []
    if told and spec.metadata is not MetadataAccess.OFF:
        lines.append(f"{_named(told)}: the metadata service answers so from now on; cloud-init asks at its first boot only")
    if told and gets is not None:
        lines.append(f"{_named(told)}: on its config drive from its next start on {again}")
    return [*lines, *drive]


def _drive_lines(had: ConfigDrive | None, gets: ConfigDrive | None, changed: frozenset[str]) -> list[str]:
    """What becomes of the config drive, in at most one line; none where nothing does and nothing was said of it."""
    if had is gets:
        return [f"config drive: {gets or 'none'}, as before"] if "config_drive" in changed else []
    if gets is None:
        return ["config drive: taken away with its next start"]
    return [f"config drive: {gets}, attached{f' in place of {had}' if had else ''} with its next start"]


def _named(fields: frozenset[str]) -> str:
    return ", ".join(text for name, text in SHOWN.items() if name in fields)
