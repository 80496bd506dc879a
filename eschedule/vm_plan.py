"""From files (``vm.yaml``) to what is to be done about each instance: make it, change it, leave it, or refuse."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from common.errors import ConfigError, Permanent
from common.validate import parse_instance, parse_resources_query
from eschedule import changes, volume_changes
from eschedule.arguments import parse
from eschedule.changes import Instance
from eschedule.needs import places_of, query_of
from eschedule.session import Session
from eschedule.sought import NOT_FOUND
from eschedule.stored_keys import look_up
from eschedule.tables import block
from eschedule.vm_differences import Comparison, Difference, Lookups, compare, refuse_ending
from eschedule.vm_file import NEEDS, VmFile, options_of, read_files


@dataclass(frozen=True)
class Plan:
    """What is to be done about one instance of a file.

    Args:
        options: what the file says, as those of ``create``.
        found: the instance that is there, None where it is to be made.
    """

    vm: VmFile
    options: argparse.Namespace
    found: Instance | None
    comparison: Comparison = field(default_factory=Comparison)

    @property
    def differences(self) -> Sequence[Difference]:
        return self.comparison.differences

    @property
    def obstacles(self) -> list[Difference]:
        return [one for one in self.differences if one.obstacle]

    @property
    def action(self) -> str:
        if self.found is None:
            return "create"
        return "refuse" if self.obstacles else "change" if self.differences else "same"


def plans_of(session: Session, names: Sequence[str]) -> list[Plan]:
    """What is to be done about all that the files *names* describe; nothing is changed yet.

    Raises:
        ConfigError: a file is wrong; a line for each fault.
        EcomputeError: etcd did not answer, or an instance cannot be changed at all now.
    """
    return [plan_of(session, vm) for vm in read_files(names)]


def plan_of(session: Session, vm: VmFile) -> Plan:
    """What is to be done about *vm*; raises as ``plans_of``."""
    options = argparse.Namespace(**options_of(vm, vars(parse(["create", "--file", vm.source]))))
    found = _found(session, vm.name)
    if found is None:
        _check_needs(session, vm, options)
        return Plan(vm, options, None)
    refuse_ending(found)
    return Plan(vm, options, found, compare(vm, options, found, _lookups(session)))


def _found(session: Session, name: str) -> Instance | None:
    try:
        return changes.read(session.store, session.keys, changes.find(session.store, session.keys, name), name)
    except Permanent as error:
        if error.reason != NOT_FOUND:
            raise
        return None


def _check_needs(session: Session, vm: VmFile, options: argparse.Namespace) -> None:
    """Raises: ConfigError: what a new instance needs is not said, or wrong; with the line."""
    try:
        parse_resources_query(query_of(options, partial(places_of, session)))
    except ConfigError as error:
        said = [key for key in NEEDS if key in vm.values]
        raise ConfigError(f"{vm.line(*said[-1:])}: {vm.name} is to be created: {error}") from None


def _lookups(session: Session) -> Lookups:
    store, keys = session.store, session.keys
    return Lookups(
        partial(places_of, session), partial(look_up, session),
        lambda name: volume_changes.find(store, keys, parse_instance(name)), session.config.defaults.network,
    )  # fmt: skip


# -- text and JSON -------------------------------------------------------------------------------------------------------


def plan_text(plans: Sequence[Plan]) -> str:
    """*plans* for people: a line for each instance, and below it one for each difference."""
    return "".join(f"{plan.vm.name}: {_HEADS[plan.action]}\n{_lines(plan)}" for plan in plans)


_HEADS = {"create": "to be created", "change": "to be changed", "same": "as the file says", "refuse": "cannot be made so"}


def _lines(plan: Plan) -> str:
    pairs = [
        (one.field, f"{one.has} → {one.wanted}" + (f" ({one.obstacle})" if one.obstacle else "")) for one in plan.differences
    ]
    return "".join(f"  {line}\n" for line in block(pairs).splitlines())


def plan_json(plan: Plan) -> dict[str, Any]:
    """The shape is documented in ``docs/json``: fields are added, never renamed."""
    return {
        "name": plan.vm.name, "action": plan.action, "uuid": str(plan.found.uuid) if plan.found else None,
        "differences": [
            {"field": one.field, "has": one.has, "wanted": one.wanted, "obstacle": one.obstacle} for one in plan.differences
        ],
    }  # fmt: skip
