"""The commands ``apply`` and ``diff``, and ``create --file``: instances made and changed to be as files say.

All files are judged and compared before anything is changed. A change of one instance is one write of its spec, compared with
what was read; volumes come behind it. Whatever was interrupted is finished by saying it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError
from common.model import Desired, InstanceSpec, InstanceStatus
from common.validate import parse_instance
from eschedule import changes, volume_changes
from eschedule.changes import Instance
from eschedule.commands import reporting
from eschedule.creating import create_asked
from eschedule.follow import Goal
from eschedule.interruption import Interrupted
from eschedule.live import awaited
from eschedule.output import emit
from eschedule.resize import check_image
from eschedule.resizing import Resizer
from eschedule.session import Session
from eschedule.setting import SHOWN, effects
from eschedule.vm_differences import power_edit
from eschedule.vm_file import VmFile, options_of, read_files
from eschedule.vm_plan import Plan, plan_json, plan_text, plans_of
from eschedule.volumes import plug_in, take_out
from eschedule.waiting import wait_seconds_of

EXIT_CONFLICT, EXIT_DIFFERENT = 5, 1


def apply(session: Session, options: argparse.Namespace) -> int:
    """Run ``apply``: 5 where something cannot be changed, and nothing was; else the exit code of the first that failed.

    Raises:
        EcomputeError: as ``plans_of``.
    """
    wait_seconds_of(session, options)
    plans = plans_of(session, options.file)
    if lines := [line for plan in plans for line in obstacles(plan)]:
        for line in lines:
            session.screen.error(line)
        session.screen.message("nothing was changed")
        return EXIT_CONFLICT
    codes = []
    for plan in plans:
        session.interruption.check()
        codes.append(_code(session, plan, options))
    return next((code for code in codes if code), 0)


def _code(session: Session, plan: Plan, options: argparse.Namespace) -> int:
    """Do what *plan* says; the exit code. A failure is told and must not keep the others from being served."""
    codes = [0]
    failed = reporting(session, lambda: codes.append(carry_out(session, plan, options)))
    if (code := failed or codes[-1]) > 128:
        raise Interrupted(code - 128)
    return code


def diff(session: Session, options: argparse.Namespace) -> int:
    """Run ``diff``: 0 where all is as the files say, else 1.

    Raises:
        EcomputeError: as ``plans_of``.
    """
    plans = plans_of(session, options.file)
    emit(session.screen, options, lambda: [plan_json(plan) for plan in plans], lambda _: plan_text(plans))
    return EXIT_DIFFERENT if any(plan.action != "same" for plan in plans) else 0


def obstacles(plan: Plan) -> list[str]:
    """What cannot be changed, a line each."""
    return [
        f"{plan.vm.at(one.field)}: {plan.vm.name} has {one.has}, wanted is {one.wanted}: {one.obstacle}"
        for one in plan.obstacles
    ]


def carry_out(session: Session, plan: Plan, options: argparse.Namespace, *, seen: int | None = None) -> int:
    """Make or change what *plan* is about; the exit code. *options* say how long to wait.

    Args:
        seen: the revision that the instance's spec is to have still; None for any.

    Raises:
        EcomputeError: it was not done, or not waited for to the end, and the text says that it goes on.
    """
    if plan.found is None:
        made = argparse.Namespace(**{**vars(plan.options), **_waiting(options), "is_quiet": True})
        code = _make(session, plan.vm, made)
        if not code:
            session.screen.message(f"{plan.vm.name}: {'asked for' if options.no_wait else 'created'}")
        return code
    if not plan.differences:
        session.screen.message(f"{plan.vm.name}: as the file says")
        return 0
    _change(session, plan, plan.found, options, seen)
    session.screen.message(f"{plan.vm.name}: changed: {', '.join(one.field for one in plan.differences)}")
    return 0


def _waiting(options: argparse.Namespace) -> dict[str, Any]:
    return {"no_wait": options.no_wait, "wait_seconds": options.wait_seconds, "arguments": options.arguments}


# -- making --------------------------------------------------------------------------------------------------------------


def create_from_file(session: Session, options: argparse.Namespace) -> int:
    """Run ``create --file``; its exit code.

    Raises:
        EcomputeError: as ``create``; or the file is wrong.
    """
    found = read_files([options.file])
    if len(found) > 1:
        raise ConfigError(
            f"{found[0].source}: describes {len(found)} instances, create makes one; use: eschedule apply -f FILE"
        )
    return _make(session, found[0], argparse.Namespace(**options_of(found[0], vars(options))))


def _make(session: Session, vm: VmFile, options: argparse.Namespace) -> int:
    """Create what *options* say, then what *vm* says that ``create`` has no option for; the exit code."""
    volumes, is_off = vm.values.get("volumes", []), vm.values.get("power") == "stopped"
    if options.count is not None and (volumes or is_off):
        raise ConfigError(f"{vm.at('volumes' if volumes else 'power')}: goes with one instance; leave it out with --count")
    if vm.values.get("power") in (Desired.PAUSED, Desired.SUSPENDED):
        raise ConfigError(f"{vm.at('power')}: a new instance runs or is stopped; {vm.values['power']} is for one that has run")
    places = [volume_changes.find(session.store, session.keys, parse_instance(name)) for name in volumes]
    if len({place.provider for place in places}) > 1:
        raise ConfigError(f"{vm.at('volumes')}: they are on several hosts, and volumes do not move")
    if places and options.host is None and "in_tree=" not in (options.query or ""):
        options.host = str(places[0].provider)
    code = create_asked(session, options)
    if code or options.dry_run or not (places or is_off):
        return code
    instance = changes.find(session.store, session.keys, options.name)
    seconds = None if options.no_wait else wait_seconds_of(session, options)
    if is_off:  # first: a disk goes into any guest that is off
        found, _ = changes.change(session.store, session.keys, instance, changes.stopped, act=session.act)
        if seconds is not None:
            awaited(session, found, frozenset(("desired",)), seconds, Goal.STOPPED)
    for place in places:
        plug_in(session, place, instance, seconds)
    return 0


# -- changing ------------------------------------------------------------------------------------------------------------


def _change(session: Session, plan: Plan, found: Instance, options: argparse.Namespace, seen: int | None) -> None:
    """Change the spec and the volumes; those first that a guest which is off is to be started with."""
    seconds = None if options.no_wait else wait_seconds_of(session, options)
    are_first = plan.comparison.power == "running" and bool(plan.comparison.attach or plan.comparison.detach)
    session.interruption.check()
    try:
        if are_first:
            changes.check_unchanged(changes.read(session.store, session.keys, found.uuid, found.name), seen)
            _change_volumes(session, plan, found, seconds)
        _change_spec(session, plan, found, seconds, None if are_first else seen)
        if not are_first:
            _change_volumes(session, plan, found, seconds)
    except Interrupted:
        session.screen.message(
            f"what of {found.name} was asked for goes on; to finish it say it again; look: eschedule show {found.name}"
        )
        raise


def _change_volumes(session: Session, plan: Plan, found: Instance, seconds: float | None) -> None:
    for place in plan.comparison.detach:
        take_out(session, place, seconds)
    for place in plan.comparison.attach:
        plug_in(session, place, found.uuid, seconds)


def _change_spec(session: Session, plan: Plan, found: Instance, seconds: float | None, seen: int | None) -> None:
    former, fields = _written(session, plan, found, seen)
    session.interruption.check()
    if former.host is None:
        session.screen.warning(f"the host of {former.name} has no heartbeat; what was asked for happens when it is back")
    if fields and seconds is not None:
        _await(session, former, fields, seconds)


def _written(session: Session, plan: Plan, found: Instance, seen: int | None) -> tuple[Instance, Mapping[str, Any]]:
    """Write all that is of the spec at once; the instance as it was before, and the fields that were set."""
    comparison, store, keys = plan.comparison, session.store, session.keys
    edit = edit_of(plan)
    with session.interruption.shield():
        if comparison.amounts:
            check_image(session, found.uuid, found.name, comparison.amounts)
            resizer = Resizer(store, keys, session.placement, act=session.act)
            resized = resizer.resize(
                found.uuid,
                comparison.amounts,
                who=found.name,
                seen=seen,
                moreover=lambda spec, status: edit(spec, status) or {},
            )
            session.close_placement()
            return resized.found, resized.fields
        former, _ = changes.change(store, keys, found.uuid, edit, who=found.name, seen=seen, act=session.act)
        return former, edit(former.spec, former.status) or {}


def edit_of(plan: Plan) -> changes.Edit:
    """The edit that sets the fields which *plan* changes, and has the instance started or stopped where it says so.

    Raises (the edit):
        ConfigError: the spec becomes too large.
        Conflict: the instance is being destroyed.
    """
    fields, power = plan.comparison.fields, plan.comparison.power

    def edit(spec: InstanceSpec, status: InstanceStatus | None) -> Mapping[str, Any] | None:
        wanted = dict(changes.set_to(fields)(spec, status) or {})
        if power:
            wanted |= power_edit(power)(spec, status) or {}
        return wanted or None

    return edit


def _await(session: Session, former: Instance, fields: Mapping[str, Any], seconds: float) -> None:
    desired = fields.get("desired")
    goal = Goal(desired) if desired else Goal.APPLIED  # both have the same words
    applied = awaited(session, former, frozenset(fields), seconds, goal)
    told, addresses = frozenset(fields) & SHOWN.keys(), applied.status.addresses if applied.status else ()
    for line in effects(applied.former, applied.spec, told, addresses, is_up=applied.is_up):
        session.screen.message(f"{former.name}: {line}")
