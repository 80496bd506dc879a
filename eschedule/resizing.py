"""Giving an instance other amounts of VCPU, MEMORY_MB and DISK_GB: its claim first, then its request. Usable as a library.

Placement judges whether there is room: one write by the claim's generation, all or nothing. Then one write by the revision of
the spec. Between the two the claim holds the larger of both amounts, and it is never made smaller here: what the guest still
runs with only its host knows, which lowers the claim once the guest is started with less. A definite failure of etcd gives back
what was claimed more; where the outcome is unknown the claim is kept, and the host has it hold what the request says.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from common.amounts import most, shown
from common.errors import ConfigError, Conflict, EcomputeError, NoCapacity, Permanent, PlacementUnavailable, StoreUnavailable
from common.journal import Act
from common.keys import Keys
from common.model import Alternate, Desired, InstanceSpec, InstanceStatus, Phase, spec_with_fields
from common.placement_types import Claim, Consumer
from common.retry import Backoff, seconds_since_boot
from common.store import Store
from eschedule.acts import noted
from eschedule.changes import TRIES, Instance, check_unchanged, read
from eschedule.claims import FRESH_SECONDS
from eschedule.still_edits import refuse_suspended

if TYPE_CHECKING:
    from common.placement import Placement

log = logging.getLogger(__name__)
RESIZABLE = ("VCPU", "MEMORY_MB", "DISK_GB")
Moreover = Callable[[InstanceSpec, InstanceStatus | None], Mapping[str, Any]]


def nothing_more(_spec: InstanceSpec, _status: InstanceStatus | None) -> Mapping[str, Any]:
    """What a resize without a reboot sets beside the amounts."""
    return {}


@dataclass(frozen=True)
class Resized:
    """An instance before its change, the fields of its spec that were changed, and those of its resources."""

    found: Instance
    fields: Mapping[str, Any]
    changed: Mapping[str, int]


@dataclass(frozen=True)
class _Held:
    """A claim as it was, and what this run has it hold, so that it can be given back."""

    before: Consumer
    generation: int
    is_changed: bool
    since: float


class Resizer:
    """Changes instances' resources.

    Args:
        boot_clock: tells how old a claim is, also over a sleep of the machine.
        act: the command that wants it, for the journal.
    """

    def __init__(
        self, store: Store, keys: Keys, placement: Placement, *, sleep: Callable[[float], None] = time.sleep,
        boot_clock: Callable[[], float] = seconds_since_boot, act: Act | None = None,
    ) -> None:  # fmt: skip
        self._act = act
        self._store, self._keys, self._placement = store, keys, placement
        self._sleep, self._boot_clock = sleep, boot_clock

    def resize(
        self, instance: UUID, wanted: Mapping[str, int], *, who: UUID | str, moreover: Moreover = nothing_more,
        seen: int | None = None,
    ) -> Resized:  # fmt: skip
        """Have *instance* ask for the amounts *wanted*, by resource class; those that it has already change nothing.

        Args:
            moreover: further fields to set in the same write, as a reboot.
            seen: the revision that the spec is to have still; None for any.

        Raises:
            ConfigError: its disk would be smaller, or it has none of such a class.
            Permanent: it is not there, or has failed and holds nothing.
            NoCapacity: its host has no room; one line says how much is missing.
            Conflict: it is going, on its way to another host, or others kept changing it.
            PlacementUnavailable: nothing was changed, or what was claimed more goes back by itself.
            StoreUnavailable: whether it was changed is unknown; repeating it is safe.
        """
        backoff = Backoff(0.02, 0.5)
        for _ in range(TRIES):
            found = read(self._store, self._keys, instance, who)
            check_unchanged(found, seen)
            spec = found.spec
            check(spec, found.status, wanted)
            changed = {name: amount for name, amount in wanted.items() if spec.resources[name] != amount}
            fields = {**fields_for(spec, changed), **moreover(spec, found.status)}
            if not fields:
                return Resized(found, {}, {})
            held = self._claimed(found, {**spec.resources, **changed}) if changed else None
            try:
                self._write(found, fields, held)
            except Conflict:
                self._sleep(backoff.next())
                continue
            return Resized(found, fields, changed)
        raise Conflict(f"the instance {who} kept being changed by others; try again")

    def _write(self, found: Instance, fields: Mapping[str, Any], held: _Held | None) -> None:
        """Write the spec; what was claimed more goes back where it certainly was not written.

        Raises:
            Conflict: the spec changed since it was read.
            StoreUnavailable: perhaps written, or certainly not.
        """
        try:
            if held and self._boot_clock() - held.since > FRESH_SECONDS:
                raise Conflict("the claim is so old that its host may take it for left behind")
            wanted, notes = noted(self._keys, self._act, found, fields, message=shown(fields.get("resources", {})))
            text = spec_with_fields(found.spec_item.value, wanted)
            self._store.replace(found.spec_item.key, text, seen=found.spec_item.mod_revision, notes=notes)
        except StoreUnavailable as error:
            if not error.may_have_happened:
                self._give_back(held)
                raise
            raise StoreUnavailable(
                f"whether {found.name} was changed is unknown: {error}; its claim is kept, so that it can be; say it again, or "
                f"look: eschedule show {found.name}"
            ) from error
        except EcomputeError:
            self._give_back(held)
            raise

    # -- the claim ---------------------------------------------------------------------------------------------------------

    def _claimed(self, found: Instance, resources: Mapping[str, int]) -> _Held:
        """Have the claim of the instance hold what it asks for now and *resources*, whichever is more of each class."""
        backoff = Backoff(0.05, 1.0)
        for _ in range(TRIES):
            before = self._held(found)
            since, has = self._boot_clock(), before.allocations[found.provider]
            holds = most(has, found.spec.resources, resources)
            claim = Claim(found.uuid, {found.provider: holds}, before.generation)
            try:
                # Also where it holds all of it: at another generation its host waits anew before it lowers the claim.
                self._placement.replace_consumers([claim])
            except Conflict:
                self._sleep(backoff.next())
                continue
            except NoCapacity as error:
                if holds == has:  # of a host that has less than it had: what is held is held
                    return _Held(before, before.generation, False, since)
                raise NoCapacity(self._why_not(found, has, holds, error)) from error
            except PlacementUnavailable as error:
                self._settle(found, holds, error)
            return _Held(before, before.generation + 1, holds != has, since)
        raise Conflict(f"the claim of {found.name} in Placement kept being changed by others; try again")

    def _held(self, found: Instance) -> Consumer:
        held = self._placement.consumer(found.uuid)
        if held is None:
            raise Conflict(
                f"Placement knows no claim of {found.name}; its host claims again for a guest that is there, within a minute: "
                f"try again then, or look: eschedule audit"
            )
        if not self._placement.is_ours(held):
            raise Conflict(f"the claim of {found.name} in Placement belongs to another deployment; it is not touched")
        if set(held.allocations) != {found.provider}:
            raise Conflict(
                f"the claim of {found.name} is on {' and '.join(sorted(map(str, held.allocations)))}, not on its host alone: "
                "it is being moved, which is over in a moment, or it holds resources of several providers and cannot be resized"
            )
        return held

    def _settle(self, found: Instance, holds: Mapping[str, int], error: PlacementUnavailable) -> None:
        """Return where a write whose answer was lost was made; else raise *error*."""
        if error.outcome_unknown:
            now = self._placement.consumer(found.uuid)
            if now is not None and now.allocations == {found.provider: dict(holds)}:
                return
        raise error

    def _give_back(self, held: _Held | None) -> None:
        """Have the claim be as it was, unless it was changed since; what cannot be done now its host does."""
        if held is None or not held.is_changed:
            return
        before = held.before
        try:
            self._placement.replace_consumers([Claim(before.uuid, before.allocations, held.generation)])
        except EcomputeError as error:
            log.info("the claim of %s is larger than it need be; its host lowers it: %s", before.uuid, error)

    def _why_not(self, found: Instance, has: Mapping[str, int], holds: Mapping[str, int], error: NoCapacity) -> str:
        """What is missing, as Placement shows it; its own words where that explains nothing."""
        more = {name: amount - has.get(name, 0) for name, amount in holds.items() if amount > has.get(name, 0)}
        parts = []
        try:
            inventories, used = self._placement.inventories(found.provider), self._placement.usages(found.provider)
        except EcomputeError:
            inventories, used = {}, {}
        for name, amount in sorted(more.items()):
            if (inventory := inventories.get(name)) is None:
                continue
            free = max(0, inventory.capacity - used.get(name, 0))
            if free < amount:
                parts.append(f"{free} {name} free, {amount} more needed")
            elif holds[name] > inventory.max_unit:
                parts.append(f"at most {inventory.max_unit} {name} for one instance")
        why = ", ".join(parts) or str(error)
        return f"the host of {found.name} has no room for {shown(more)} more: {why}; nothing was changed; see: eschedule hosts"


# -- pure ----------------------------------------------------------------------------------------------------------------


def check(spec: InstanceSpec, status: InstanceStatus | None, wanted: Mapping[str, int]) -> None:
    """Refuse what cannot be; raises as ``Resizer.resize``."""
    if spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {spec.name} is being destroyed; see: eschedule show {spec.name}")
    refuse_suspended(spec, "resize it")
    phase = status.phase if status and status.boot_request == spec.boot_request else None
    if phase in (Phase.FAILED, Phase.REFUSED):
        raise Permanent(
            f"{spec.name} is {phase} and holds nothing in Placement; create it anew with what it needs, after: "
            f"eschedule destroy {spec.name}"
        )
    if phase in (Phase.HELD, Phase.QUARANTINED, Phase.RESCHEDULING):
        raise Conflict(f"{spec.name} is {phase}, and is left alone until that is over; see: eschedule show {spec.name}")
    if missing := sorted(wanted.keys() - spec.resources.keys()):
        raise ConfigError(f"{spec.name} has no {missing[0]}, only {shown(spec.resources)}; nothing was changed")
    if wanted.get("DISK_GB", 0) and wanted["DISK_GB"] < spec.disk_gib:
        raise ConfigError(
            f"{spec.name} has a disk of {spec.disk_gib} GB, which is never made smaller: what is at its end would be lost; ask "
            f"for DISK_GB:{spec.disk_gib} or more"
        )


def fields_for(spec: InstanceSpec, changed: Mapping[str, int]) -> dict[str, Any]:
    """The fields of *spec* that change with these resources; none where nothing does."""
    if not changed:
        return {}
    fields: dict[str, Any] = {"resources": {**spec.resources, **changed}}
    if spec.alternates:
        fields["alternates"] = alternates_with(spec.alternates, changed)
    return fields


def alternates_with(alternates: tuple[Alternate, ...], changed: Mapping[str, int]) -> tuple[Alternate, ...]:
    """The hosts that an instance which never ran may go to, with what it would claim there now.

    Whether they have so much room is found out there. One whose amounts are of several providers is left out.
    """
    return tuple(
        dataclasses.replace(alternate, allocations={provider: {**amounts, **changed}})
        for alternate in alternates
        for provider, amounts in list(alternate.allocations.items())[:1]
        if len(alternate.allocations) == 1
    )
