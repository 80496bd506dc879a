"""Moving an instance that never ran to its next host: the claim by one write to Placement, then the spec by one to etcd.

Nobody else need be alive for it. The claim goes first: once it stands at an alternate of the spec, that is the proof that a
move was begun, and whoever looks next goes on from there. The spec follows in a transaction that holds only while this host is
alive, the spec is as it was read, the target has a heartbeat and the group lets the instance go there; no moment shows two
specs or none. A target that does not take it is ruled out, and the table names the next one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from common import groups
from common.errors import Conflict, GroupTaken, InvalidSpec, NoCapacity, UnsupportedSchema
from common.journal import HostPen
from common.keys import Keys
from common.logs import fields
from common.model import Alternate, HostAdmin, HostRecord, InstanceSpec, Move, spec_with_fields, with_fields
from common.placement import Claim
from common.store import Compare, Store, Transaction, Versioned
from ecompute.machine import Allocation, Facts, move_target
from ecompute.world import World

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why an instance leaves, for the record that goes along."""

    reason: str
    message: str = ""


class Mover:
    """The two steps of a move.

    Args:
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        host_name: this host's, for the record of the move. *now* is wall time for it.
        pen: writes the move into the journal.
    """

    def __init__(
        self, world: World, *, store: Store, keys: Keys, fence: Callable[[], Compare], host_name: str, now: Callable[[], str],
        pen: HostPen | None = None,
    ) -> None:  # fmt: skip
        self._pen = pen
        self._world, self._store, self._keys, self._fence = world, store, keys, fence
        self._host_name, self._now = host_name, now

    def swap_claim(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Have the instance's claim stand at its next host instead of here.

        Raises:
            Conflict: the claim is another's, or was changed meanwhile.
            PlacementUnavailable: perhaps done; reading it tells.
        """
        target = _target(spec, facts)
        wanted = {UUID(provider): dict(amounts) for provider, amounts in target.allocations.items()}
        held = self._world.placement.consumer(spec.uuid)
        if held is not None and not self._world.placement.is_ours(held):
            raise Conflict(f"the claim of {spec.name} belongs to another deployment; it is not touched")
        if held is None or held.allocations != wanted:
            try:
                self._world.placement.replace_consumers([Claim(spec.uuid, wanted, held.generation if held else None)])
            except (NoCapacity, InvalidSpec) as error:  # no room, or nothing that Placement would ever let it hold
                return self._ruled_out(spec, facts, target, str(error))
        return dataclasses.replace(facts, allocation=Allocation.ABSENT, claimed_at=frozenset(wanted))

    def move_spec(self, spec: InstanceSpec, facts: Facts, cause: Cause) -> Facts:
        """Hand the spec to the host that the claim stands at; the facts then know of no spec any more.

        Raises:
            Conflict: spec, host key or group changed meanwhile: look again.
        """
        target = _target(spec, facts)
        found = self._store.get_many(self._to_read(spec, target))
        if self._keys.host(target.provider) not in found:
            return self._ruled_out(spec, facts, target, "it has no heartbeat")
        if _is_disabled(found.get(self._keys.host_admin(target.provider))):
            return self._ruled_out(spec, facts, target, "an operator has disabled it")
        try:
            transaction = self._transaction(spec, facts, target, cause, found)
        except GroupTaken as error:
            return self._ruled_out(spec, facts, target, str(error))
        self._store.commit(transaction)
        logger.info("moved to another host", extra=fields(target=target.provider, reason=cause.reason))
        return dataclasses.replace(facts, spec_revision=0)

    def _to_read(self, spec: InstanceSpec, target: Alternate) -> list[str]:
        here, keys = self._world.blueprint.provider, self._keys
        wanted = [
            keys.host(target.provider), keys.host_admin(target.provider), keys.instance(spec.uuid), keys.spec(here, spec.uuid),
        ]  # fmt: skip
        if spec.group:
            wanted += dict.fromkeys(
                groups.keys_to_read(keys, spec.group, here) + groups.keys_to_read(keys, spec.group, target.provider)
            )
        return wanted

    def _transaction(
        self, spec: InstanceSpec, facts: Facts, target: Alternate, cause: Cause, found: Mapping[str, Versioned]
    ) -> Transaction:
        here, keys = self._world.blueprint.provider, self._keys
        old, instance, new = keys.spec(here, spec.uuid), keys.instance(spec.uuid), keys.spec(target.provider, spec.uuid)
        if old not in found or instance not in found or found[old].mod_revision != facts.spec_revision:
            raise Conflict(f"the request {spec.name} changed while it was about to be moved")
        compares = [
            Compare.unchanged(old, facts.spec_revision), self._fence(), Compare.present(keys.host(target.provider)),
            Compare.unchanged(instance, found[instance].mod_revision), Compare.absent(new),
        ]  # fmt: skip
        puts = {
            new: spec_with_fields(found[old].value, self._moved(spec, facts, target, cause)),
            instance: with_fields(found[instance].value, {"provider": target.provider}),
        }
        deletes = [old, keys.status(here, spec.uuid)]
        if spec.group:
            leaving = groups.leave(keys, spec.group, provider=here, instance=spec.uuid, found=found)
            joining = groups.join(
                keys, spec.group, spec.group_policy, provider=target.provider, instance=spec.uuid, found=found
            )  # fmt: skip
            compares += [*leaving.compares, *joining.compares]
            puts |= {**leaving.puts, **joining.puts}
            deletes += leaving.deletes
        notes = self._noted(spec, found[keys.host(target.provider)], cause)
        return Transaction(tuple(compares), puts, tuple(deletes), notes=notes)

    def _noted(self, spec: InstanceSpec, target: Versioned, cause: Cause) -> dict[str, str]:
        if self._pen is None:
            return {}
        why = f"to {_name_in(target)}, since it could not be built here: {cause.reason}"
        return self._pen.last_of_instance(spec.uuid, spec.name, "moved", f"{why}: {cause.message}" if cause.message else why)

    def _moved(self, spec: InstanceSpec, facts: Facts, target: Alternate, cause: Cause) -> dict[str, Any]:
        """The fields of the spec that are new at the target."""
        left = [a for a in spec.alternates if a.provider != target.provider and a.provider not in facts.ruled_out]
        move = Move(self._world.blueprint.provider, self._host_name, self._now(), cause.reason, cause.message[:500])
        return {"alternates": left, "moves": (*spec.moves, move)}

    def _ruled_out(self, spec: InstanceSpec, facts: Facts, target: Alternate, why: str) -> Facts:
        logger.info("a host cannot take it", extra=fields(target=target.provider, why=why))
        self._world.patience.rule_out(spec.uuid, target.provider, why)
        return dataclasses.replace(facts, ruled_out=facts.ruled_out | {target.provider})


def _target(spec: InstanceSpec, facts: Facts) -> Alternate:
    target = move_target(spec, facts)
    if target is None:
        raise Conflict(f"{spec.name} has no host left to be moved to")
    return target


def _name_in(item: Versioned) -> str:
    """The host's name; a record that cannot be read keeps nobody from a move."""
    try:
        return HostRecord.from_json(item.value).name
    except (InvalidSpec, UnsupportedSchema):
        return "another host"


def _is_disabled(item: Versioned | None) -> bool:
    """Whether new instances are to be kept from a host; settings that cannot be read keep nobody from it, there neither."""
    try:
        return item is not None and HostAdmin.from_json(item.value).disabled
    except (InvalidSpec, UnsupportedSchema):
        return False
