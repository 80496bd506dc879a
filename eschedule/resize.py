"""The command ``resize``: give an instance other amounts of CPU, memory and disk; says what holds from when on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import UUID

from common.errors import ConfigError, Permanent
from common.model import InstanceSpec, InstanceStatus, Phase
from common.text import escaped
from common.validate import parse_amounts, parse_count
from common.validate_query import MOST_OF_CLASS
from eschedule.changes import find, read, rebooted
from eschedule.commands import Finish, ask_then_wait, whom_of
from eschedule.follow import Ending, Goal
from eschedule.image_registry import registered
from eschedule.interruption import Interrupted
from eschedule.needs import OPTION_OF, amounts_of
from eschedule.resizing import RESIZABLE, Moreover, Resized, Resizer, nothing_more
from eschedule.session import Session
from eschedule.waiting import bound_of, tell_notes, unreached, wait

_OPTIONS = {"VCPU": "vcpus", "MEMORY_MB": "memory_mb", "DISK_GB": "disk_gb"}
_UP = (Phase.RUNNING, Phase.PAUSED, Phase.REBOOTING)


def resize(session: Session, options: argparse.Namespace) -> int:
    """Run ``resize``; its exit code.

    Raises:
        EcomputeError: as ``Resizer.resize``; or it was not waited for to the end, and the text says that it goes on.
    """
    whom, wanted, wait_seconds = whom_of(options), wanted_of(options), bound_of(session, options)
    if options.hard and not options.reboot:
        raise ConfigError("--hard says how to --reboot; give both, or neither")
    moreover = rebooting(wanted, hard=options.hard) if options.reboot else nothing_more
    asked: list[Resized] = []

    def ask_one(who: UUID | str) -> Finish:
        asked.append(resized := ask_for_amounts(session, who, wanted, moreover))
        session.interruption.check()
        return partial(_tell, session, resized)

    try:
        return ask_then_wait(session, [partial(ask_one, who) for who in whom], wait_seconds)
    except Interrupted:
        names = ", ".join(resized.found.name for resized in asked)
        session.screen.message(
            f"the change of {names} is recorded, and goes on; look: eschedule list"
            if names
            else "interrupted; nothing was changed"
        )
        raise


def wanted_of(options: argparse.Namespace) -> dict[str, int]:
    """The amounts that *options* name, by resource class.

    Raises:
        ConfigError: there are none, one is no amount, or two contradict each other.
    """
    wanted = {} if options.query is None else parse_amounts(options.query, RESIZABLE)
    for name, attribute in _OPTIONS.items():
        text = getattr(options, attribute)
        if text is None:
            continue
        option = f"--{attribute.replace('_', '-')}"
        amount = parse_count(text, option, 1, MOST_OF_CLASS[name])
        if wanted.setdefault(name, amount) != amount:
            raise ConfigError(f"{option} is {amount}, and the request says {name}:{wanted[name]}; give one of them")
    for name, amount in amounts_of(options).items():
        if wanted.setdefault(name, amount) != amount:
            raise ConfigError(f"{OPTION_OF[name]} comes to {amount}, and {name}:{wanted[name]} is asked for; give one of them")
    if not wanted:
        raise ConfigError("nothing is to be changed; say what, as in --cpus 4 or --disk 20G; see: eschedule resize --help")
    return wanted


def rebooting(wanted: Mapping[str, int], *, hard: bool) -> Moreover:
    """What asks for a reboot, unless all that is *wanted* is in force: so that a repeat reboots nothing."""

    def moreover(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any]:
        is_new = any(spec.resources.get(name) != amount for name, amount in wanted.items() if name != "DISK_GB")
        is_waiting = status is not None and bool(status.in_force) and spec.reboot_request <= status.booted
        return rebooted(hard=hard)(spec, status) or {} if is_new or is_waiting else {}

    return moreover


def ask_for_amounts(session: Session, who: UUID | str, wanted: Mapping[str, int], moreover: Moreover) -> Resized:
    """Have the instance *who* get *wanted*, and what *moreover* says in the same write; its Placement stays open.

    Raises:
        EcomputeError: as ``check_image`` and ``Resizer.resize``.
    """
    instance = find(session.store, session.keys, who)
    check_image(session, instance, who, wanted)
    session.screen.progress(f"asking for {who}")
    session.interruption.check()
    with session.interruption.shield():
        resizer = Resizer(session.store, session.keys, session.placement, act=session.act)
        resized = resizer.resize(instance, wanted, who=who, moreover=moreover)
    if resized.found.host is None:
        session.screen.warning(f"the host of {resized.found.name} has no heartbeat; it is done when that is back")
    return resized


def check_image(session: Session, instance: UUID, who: UUID | str, wanted: Mapping[str, int]) -> None:
    """Refuse less memory than its image needs, as far as that is still registered as it was.

    Raises:
        ConfigError: it is less.
    """
    memory = wanted.get("MEMORY_MB")
    if memory is None:
        return
    spec = read(session.store, session.keys, instance, who).spec
    if not spec.image.name:
        return
    try:
        record = registered(session.store, session.keys, spec.image.name)
    except Permanent:
        return  # it was removed since, which changes no instance
    if record.ref == spec.image and memory < record.min_memory_mib:
        raise ConfigError(f"the image {record.name} needs at least MEMORY_MB:{record.min_memory_mib}; asked for is {memory}")


def _tell(session: Session, resized: Resized, wait_seconds: float | None) -> None:
    name, screen = resized.found.name, session.screen
    session.close_placement()  # nobody needs it while the host is at work
    if wait_seconds is None:
        screen.message(f"{name}: asked for; look: eschedule show {name}" if resized.fields else f"{name}: it has that already")
        return
    is_reboot = "reboot_request" in resized.fields
    status = _awaited(session, resized, Goal.REBOOTED if is_reboot else Goal.APPLIED, wait_seconds)
    if not resized.fields:
        screen.message(f"{name}: it has that already")
    for line in effects(resized, status, is_rebooted=is_reboot):
        screen.message(f"{name}: {line}")
    tell_notes(session, name, status)


def _awaited(session: Session, resized: Resized, goal: Goal, wait_seconds: float) -> InstanceStatus:
    found, begun = resized.found, session.clock()
    outcome = wait(session, found.uuid, goal, wait_seconds, provider=found.provider)
    view = outcome.view
    if outcome.ending is not Ending.REACHED or view is None or view.status is None:
        raise unreached(found.name, outcome, goal, session.clock() - begun)
    status = view.status
    if status.message and not status.reason and status.phase in (*_UP, Phase.STOPPED):
        raise Permanent(
            f"the change of {found.name} is recorded, but not in force on {view.where}: {escaped(status.message)}; "
            f"it is tried on; look: eschedule show {found.name}"
        )
    return status


def effects(resized: Resized, status: InstanceStatus, *, is_rebooted: bool) -> list[str]:
    """From when on what was changed holds: a line each; what waits for a reboot the host's note says. Pure."""
    before, changed = resized.found.spec.resources, resized.changed
    shown = {name: f"{name} {before[name]} → {amount}" for name, amount in sorted(changed.items())}
    lines = []
    if disk := shown.pop("DISK_GB", None):
        lines.append(
            f"{disk}: from now on"
            + ("; the guest sees it; to grow its file systems is for the guest" if status.phase in _UP else "")
        )
    if shown and (is_rebooted or not status.in_force):
        when = "from now on" if status.phase in _UP else "from its next start on"
        lines.append(f"{', '.join(shown.values())}: {when}")
    if is_rebooted:
        lines.append("rebooted")
    return lines
