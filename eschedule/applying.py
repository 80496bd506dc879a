"""The commands ``apply`` and ``diff``, and ``create --file``: instances made and changed to be as files say.

All files are judged and compared before anything is changed. A change of one instance is one write of its spec, compared with
what was read; volumes come behind it. Whatever was interrupted is finished by saying it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from common.errors import ConfigError
from common.model import Desired, InstanceSpec, InstanceStatus
from common.validate import parse_instance
from common.volume_records import VolumePlace
from eschedule import changes, render, volume_changes
from eschedule.changes import Instance
from eschedule.commands import Finish, ask_then_wait
from eschedule.creating import ask_for_one, create_asked
from eschedule.follow import Goal
from eschedule.interruption import Interrupted
from eschedule.live import awaited
from eschedule.output import emit, is_for_programs, rendered
from eschedule.resize import check_image
from eschedule.resizing import Resizer
from eschedule.session import Session
from eschedule.setting import SHOWN, effects
from eschedule.vm_differences import power_edit
from eschedule.vm_file import VmFile, options_of, read_files
from eschedule.vm_plan import Plan, plan_json, plan_text, plans_of
from eschedule.volumes import plug_in, take_out
from eschedule.waiting import bound_of, reach, rows_of, tell_notes

EXIT_CONFLICT, EXIT_DIFFERENT = 5, 1


def apply(session: Session, options: argparse.Namespace) -> int:
    """Run ``apply``: 5 where something cannot be changed, and nothing was; else the exit code of the first that failed.

    Raises:
        EcomputeError: as ``plans_of``.
    """
    seconds = bound_of(session, options)
    plans = plans_of(session, options.file)
    if lines := [line for plan in plans for line in obstacles(plan)]:
        for line in lines:
            session.screen.error(line)
        session.screen.message("nothing was changed")
        return EXIT_CONFLICT
    begun: list[str] = []

    def begin_one(plan: Plan) -> Finish:
        session.interruption.check()
        finish = begin(session, plan, options)
        begun.append(plan.vm.name)
        return finish

    try:
        code = ask_then_wait(session, [partial(begin_one, plan) for plan in plans], seconds)
    except Interrupted as interrupted:
        session.screen.message(_going_on(begun))
        return interrupted.exit_code
    if is_for_programs(options):
        _print(session, plans, options)
    return code


def _print(session: Session, plans: Sequence[Plan], options: argparse.Namespace) -> None:
    """All that the files name, as it is by now; what could not be made is not among it."""
    keys = session.keys
    names = session.store.get_many([keys.name(plan.vm.name) for plan in plans])
    rows = rows_of(session, [UUID(item.value) for plan in plans if (item := names.get(keys.name(plan.vm.name)))])
    session.screen.data(rendered([render.instance_json(row) for row in rows], options.output))


def _going_on(begun: Collection[str]) -> str:
    whose = f" of {', '.join(begun)}" if begun else ", if anything was,"
    return f"interrupted; what was asked for{whose} goes on; to do the rest say it again; look: eschedule list"


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


def carry_out(session: Session, plan: Plan, options: argparse.Namespace, *, seen: int | None = None) -> None:
    """Make or change what *plan* is about, and wait for it as *options* say.

    Args:
        seen: the revision that the instance's spec is to have still; None for any.

    Raises:
        EcomputeError: it was not done, or not waited for to the end, and the text says that it goes on.
        Interrupted: it was told what goes on.
    """
    seconds = bound_of(session, options)
    finish = begin(session, plan, options, seen=seen)
    try:
        finish(seconds)
    except Interrupted:
        session.screen.message(_going_on([plan.vm.name]))
        raise


def begin(session: Session, plan: Plan, options: argparse.Namespace, *, seen: int | None = None) -> Finish:
    """Ask for the first part of what *plan* is about; what does the rest, which waits so many seconds, or not for None.

    Raises:
        EcomputeError: it was not asked for.
    """
    if plan.found is None:
        return _begin_making(session, plan, options)
    if not plan.differences:
        return lambda _: session.screen.message(f"{plan.vm.name}: as the file says")
    return _begin_changing(session, plan, plan.found, seen)


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


def _begin_making(session: Session, plan: Plan, options: argparse.Namespace) -> Finish:
    vm, wanted = plan.vm, argparse.Namespace(**{**vars(plan.options), "arguments": options.arguments})
    places = _volumes_of(session, vm, wanted)
    placed = ask_for_one(session, wanted)

    def finish(seconds: float | None) -> None:
        if seconds is not None:
            view = reach(session, placed.name, placed.uuid, Goal.RUNNING, seconds, provider=placed.provider)
            tell_notes(session, placed.name, view.status if view else None)
        _complete(session, vm, placed.uuid, places, seconds)
        session.screen.message(f"{vm.name}: {'asked for' if seconds is None else 'created'}")

    return finish


def _make(session: Session, vm: VmFile, options: argparse.Namespace) -> int:
    """Create what *options* say, then what *vm* says that ``create`` has no option for; the exit code."""
    volumes, is_off = vm.values.get("volumes", []), _is_off(vm)
    if options.count is not None and (volumes or is_off):
        raise ConfigError(f"{vm.at('volumes' if volumes else 'power')}: goes with one instance; leave it out with --count")
    places = _volumes_of(session, vm, options)
    code = create_asked(session, options)
    if code or options.dry_run or not (places or is_off):
        return code
    instance = changes.find(session.store, session.keys, options.name)
    _complete(session, vm, instance, places, bound_of(session, options))
    return 0


def _is_off(vm: VmFile) -> bool:
    return vm.values.get("power") == "stopped"


def _volumes_of(session: Session, vm: VmFile, options: argparse.Namespace) -> list[VolumePlace]:
    """The volumes that *vm* names; *options* ask for the host that they are on.

    Raises:
        ConfigError: they are on several; or a new instance cannot be as *vm* says.
    """
    if vm.values.get("power") in (Desired.PAUSED, Desired.SUSPENDED):
        raise ConfigError(f"{vm.at('power')}: a new instance runs or is stopped; {vm.values['power']} is for one that has run")
    places = [volume_changes.find(session.store, session.keys, parse_instance(name)) for name in vm.values.get("volumes", [])]
    if len({place.provider for place in places}) > 1:
        raise ConfigError(f"{vm.at('volumes')}: they are on several hosts, and volumes do not move")
    if places and options.host is None and "in_tree=" not in (options.query or ""):
        options.host = str(places[0].provider)
    return places


def _complete(
    session: Session, vm: VmFile, instance: UUID, places: Sequence[VolumePlace], seconds: float | None
) -> None:  # fmt: skip
    """Have the new *instance* be what ``create`` has no option for."""
    if _is_off(vm):  # first: a disk goes into any guest that is off
        found, _ = changes.change(session.store, session.keys, instance, changes.stopped, act=session.act)
        if seconds is not None:
            awaited(session, found, frozenset(("desired",)), seconds, Goal.STOPPED)
    for place in places:
        plug_in(session, place, instance, seconds)


# -- changing ------------------------------------------------------------------------------------------------------------


def _begin_changing(session: Session, plan: Plan, found: Instance, seen: int | None) -> Finish:
    """Change the spec and the volumes; those first that a guest which is off is to be started with."""
    if plan.comparison.power == "running" and (plan.comparison.attach or plan.comparison.detach):
        changes.check_unchanged(changes.read(session.store, session.keys, found.uuid, found.name), seen)

        def change(seconds: float | None) -> None:
            _change_volumes(session, plan, found, seconds)
            _await(session, *_written(session, plan, found, None), seconds)
    else:
        former, fields = _written(session, plan, found, seen)

        def change(seconds: float | None) -> None:
            _await(session, former, fields, seconds)
            _change_volumes(session, plan, found, seconds)

    def finish(seconds: float | None) -> None:
        change(seconds)
        session.screen.message(f"{plan.vm.name}: changed: {', '.join(one.field for one in plan.differences)}")

    return finish


def _change_volumes(session: Session, plan: Plan, found: Instance, seconds: float | None) -> None:
    for place in plan.comparison.detach:
        take_out(session, place, seconds)
    for place in plan.comparison.attach:
        plug_in(session, place, found.uuid, seconds)


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


def _await(session: Session, former: Instance, fields: Mapping[str, Any], seconds: float | None) -> None:
    if former.host is None:
        session.screen.warning(f"the host of {former.name} has no heartbeat; what was asked for happens when it is back")
    if not fields or seconds is None:
        return
    desired = fields.get("desired")
    goal = Goal(desired) if desired else Goal.APPLIED  # both have the same words
    applied = awaited(session, former, frozenset(fields), seconds, goal)
    told, addresses = frozenset(fields) & SHOWN.keys(), applied.status.addresses if applied.status else ()
    for line in effects(applied.former, applied.spec, told, addresses, is_up=applied.is_up):
        session.screen.message(f"{former.name}: {line}")
