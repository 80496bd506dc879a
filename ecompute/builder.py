"""What each step does. One method a step, each idempotent, each returning the facts as the step left them.

The facts that a step has just made are not asked for again, so that the way from a request to a running guest pays for
the work and not for the loop. No method decides, retries or waits for anything but the work itself: ``machine`` decides,
the reconciler's worker retries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Protocol
from uuid import UUID

from common import groups
from common.errors import Conflict, HypervisorRejected, Permanent
from common.journal import HostPen, former_name
from common.keys import Keys
from common.model import InstanceSpec
from common.network_records import address_keys
from common.placement import Claim
from common.store import Compare, Store, Transaction
from ecompute.disk_changes import DiskChanges, as_built
from ecompute.hypervisor import Domain, PowerState
from ecompute.image_sources import shown_url
from ecompute.machine import Allocation, Facts, Step, is_up
from ecompute.moving import Cause, Mover
from ecompute.sizing import GIB, claim_wanted
from ecompute.stamping import acknowledged, with_power, with_stamp
from ecompute.standing_still import StandStill
from ecompute.volume_plugs import Plugs, as_defined
from ecompute.world import World

_OF_THE_GUEST = {Step.RESERVE_NETWORK, Step.WRITE_METADATA, Step.DEFINE}  # they tell of the disk that it has


class Hand(Protocol):
    """What the builder may ask of whoever runs it."""

    def is_cancelled(self) -> bool: ...

    def progress(self, done: int, total: int) -> None: ...

    def cause(self) -> Cause:
        """Why the instance could not be built here."""
        ...


class Builder:
    """Runs steps against the world.

    Args:
        fence: the compare of the living host key; may raise ``StoreUnavailable``.
        mover: the two steps that take an instance to another host.
        starts_at_once: how many guests may be in their start at one time; more only slow each other down.
        pen: writes the end of an instance into the journal.
    """

    def __init__(
        self, world: World, *, store: Store, keys: Keys, fence: Callable[[], Compare], mover: Mover, starts_at_once: int,
        pen: HostPen | None = None,
    ) -> None:  # fmt: skip
        self._pen = pen
        self._world, self._store, self._keys, self._fence = world, store, keys, fence
        self._starts = threading.Semaphore(starts_at_once)
        self._disk_changes = changes = DiskChanges(world)
        plugs, still = Plugs(world), StandStill(world)
        self._spec_steps: dict[Step, Callable[[InstanceSpec, Facts, Hand], Facts]] = {
            Step.ASSERT_ALLOCATION: self._assert_allocation,
            Step.FETCH_IMAGE: self._fetch_image,
            Step.BUILD_DISK: self._build_disk,
            Step.GROW_DISK: self._grow_disk,
            Step.FIT_CLAIM: self._fit_claim,
            Step.RESERVE_NETWORK: self._reserve_network,
            Step.WRITE_METADATA: self._write_metadata,
            Step.WRITE_RULES: self._write_rules,
            Step.DEFINE: self._define,
            Step.START: self._start,
            Step.CONNECT: self._connect,
            Step.MARK_BOOTED: self._mark_booted,
            Step.PAUSE: lambda spec, facts, _: still.pause(spec, facts),
            Step.UNPAUSE: lambda spec, facts, _: still.unpause(spec, facts),
            Step.SUSPEND: lambda spec, facts, _: still.suspend(spec, facts),
            Step.RESUME: lambda spec, facts, _: still.resume(spec, facts),
            Step.DROP_MEMORY: lambda spec, facts, _: still.drop(spec, facts),
            Step.SHUTDOWN: self._shutdown,
            Step.SWAP_CLAIM: lambda spec, facts, _: mover.swap_claim(spec, facts),
            Step.MOVE_SPEC: lambda spec, facts, hand: mover.move_spec(spec, facts, hand.cause()),
            Step.RESTORE_DISK: lambda spec, facts, _: changes.restore(spec, facts),
            Step.PREPARE_DISK: changes.prepare,
            Step.REPLACE_DISK: lambda spec, facts, _: changes.replace(spec, facts),
            Step.THAW: lambda spec, facts, _: changes.thaw(spec, facts),
            Step.ACKNOWLEDGE: self._adopt,
            Step.FORGET: self._forget,
            Step.ATTACH_VOLUME: lambda spec, facts, _: plugs.attach(spec, facts),
            Step.DETACH_VOLUME: lambda spec, facts, _: plugs.detach(spec, facts),
        }
        self._clean_steps: dict[Step, Callable[[UUID, Facts], Facts]] = {
            Step.DESTROY: self._destroy,
            Step.UNDEFINE: self._undefine,
            Step.REMOVE_FILES: self._remove_files,
            Step.RELEASE_NETWORK: self._release_network,
            Step.RELEASE: self._release,
        }

    def run(self, step: Step, uuid: UUID, spec: InstanceSpec | None, facts: Facts, hand: Hand) -> Facts:
        """Do *step* for *uuid*; the facts afterwards.

        Raises:
            Transient: try again. Permanent: it will not work on this host. Conflict: look again.
        """
        if step in self._clean_steps:
            return self._clean_steps[step](uuid, facts)
        if spec is None:
            raise ValueError(f"{step} of {uuid} without a spec")
        return self._spec_steps[step](as_built(self._world, spec, facts.disk) if step in _OF_THE_GUEST else spec, facts, hand)

    def _assert_allocation(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        self._world.placement.assert_allocation(spec.uuid, {self._world.blueprint.provider: claim_wanted(spec, facts.domain)})
        return dataclasses.replace(facts, allocation=Allocation.PRESENT)

    def _fetch_image(self, spec: InstanceSpec, facts: Facts, hand: Hand) -> Facts:
        try:
            self._world.images.fetch(spec.image, progress=hand.progress, is_cancelled=hand.is_cancelled)
        except Permanent as error:
            return self._disk_changes.fetch(spec, facts, error)
        return dataclasses.replace(facts, image_is_cached=True)

    def takes_long(self, step: Step, spec: InstanceSpec) -> bool:
        """Whether *step* may last, so that only some of the workers are to be at such."""
        is_long_build = self._world.disks.copies or self._world.preparation.takes_long(spec)
        if step in (Step.BUILD_DISK, Step.PREPARE_DISK):
            return is_long_build
        return step in (Step.FETCH_IMAGE, Step.SUSPEND, Step.RESUME)

    def _build_disk(self, spec: InstanceSpec, facts: Facts, hand: Hand) -> Facts:
        with self._world.images.held(spec.image) as image:
            if image is None:
                raise Conflict(f"the image {shown_url(spec.image.url)} left the cache again")
            self._world.reports.remove(spec.uuid)  # a new disk is a new guest, and has not said anything yet
            prepare = self._world.preparation.of(spec, image, facts.addresses or (), hand.is_cancelled)
            self._world.disks.build(
                spec.uuid, image, spec.disk_gib, prepare, progress=hand.progress, is_cancelled=hand.is_cancelled
            )
        facts = dataclasses.replace(
            facts, disk_is_there=True, files_are_there=True, disk_is_large_enough=True,
            notes=(*self._world.blueprint.notes(spec), *facts.notes),
        )  # fmt: skip
        return self._disk_changes.built(spec, facts)

    def _grow_disk(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        disks, hypervisor = self._world.disks, self._world.hypervisor
        if not (is_up(facts) and hypervisor.grow_disk(spec.uuid, disks.disk_path(spec.uuid), spec.disk_gib * GIB)):
            disks.grow(spec.uuid, spec.disk_gib)
        return dataclasses.replace(facts, disk_is_large_enough=True)

    def _fit_claim(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        """Have the instance hold what it has to; a claim that is elsewhere, or another's, is an audit's business."""
        provider, wanted = self._world.blueprint.provider, claim_wanted(spec, facts.domain)
        held = self._world.placement.consumer(spec.uuid)
        is_ours = held is not None and self._world.placement.is_ours(held) and set(held.allocations) == {provider}
        if held is not None and is_ours and held.allocations[provider] != wanted:
            self._world.placement.replace_consumers([Claim(spec.uuid, {provider: wanted}, held.generation)])
        return dataclasses.replace(facts, claim_is_wrong=False)

    def _reserve_network(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        addresses = self._world.networks.reserve(spec.uuid, spec.nics)
        current = self._world.metadata.is_current(self._world.blueprint.document(spec, addresses))
        rules = self._world.firewall.look(spec, addresses)
        return dataclasses.replace(
            facts, addresses=addresses, metadata_is_current=current, definition_is_current=False,
            drive_is_current=self._world.drives.is_current(spec.uuid, self._world.blueprint.drive(spec, addresses)),
            rules_are_current=rules.is_current, notes=rules.notes,
        )  # fmt: skip

    def _write_metadata(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        addresses = facts.addresses or ()
        self._world.metadata.write(self._world.blueprint.document(spec, addresses))
        facts = dataclasses.replace(facts, metadata_is_there=True, metadata_is_current=True)
        if is_up(facts) or (facts.domain and facts.domain.has_saved_memory):
            return facts  # its drive is in use; it is made anew before the next start
        self._world.drives.write(spec.uuid, self._world.blueprint.drive(spec, addresses))
        return dataclasses.replace(facts, drive_is_current=True)

    def _write_rules(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        notes = (*self._world.blueprint.notes(spec), *self._world.firewall.write(spec, facts.addresses or ()))
        return dataclasses.replace(facts, rules_are_there=True, rules_are_current=True, notes=notes)

    def _define(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        known = facts.domain.stamp if facts.domain else None
        stamp = self._world.blueprint.stamp(
            spec, facts.addresses or (), cluster_id=facts.cluster_id, revision=facts.spec_revision,
            booted=known.booted if known else 0,
        )  # fmt: skip
        known_as = facts.domain.name if facts.domain else ""
        if known and known.booted:
            # It tells why the guest is down, and so whether it is to be started again.
            stamp = dataclasses.replace(stamp, boot_id=known.boot_id)
        self._world.hypervisor.define(self._world.blueprint.xml(spec, facts.addresses or (), stamp, known_as=known_as))
        reason = facts.domain.state_reason if facts.domain else ""
        domain = Domain(spec.uuid, known_as or spec.name, PowerState.SHUTOFF, reason, stamp, spec.vcpus, spec.memory_mib)
        return as_defined(spec, dataclasses.replace(facts, domain=domain, definition_is_current=True))

    def _start(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        if facts.domain is None:
            raise Conflict(f"the domain of {spec.name} is not there to start")
        known = facts.domain.stamp
        if known and known.started_for != spec.boot_request:
            # A guest carries while it runs what it was started with: a reboot that was asked for is then known as done.
            known = dataclasses.replace(known, started_for=spec.boot_request)
            self._world.hypervisor.write_stamp(spec.uuid, known)
            facts = with_stamp(facts, known)
        with self._starts:
            self._world.hypervisor.start(spec.uuid)
        self._world.patience.started(spec.uuid)
        facts = self._disk_changes.not_frozen(spec, facts)
        self._world.networks.started(spec.uuid)
        is_connected = not any(address.vlan for address in facts.addresses or ())
        facts = as_defined(spec, with_power(facts, PowerState.RUNNING, "booted"), is_started=True)
        return dataclasses.replace(facts, is_connected=is_connected)

    def _connect(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        """Put each card that is to be in a VLAN into it, and only then plug its cable in."""
        cards = {card.mac: card for card in self._world.hypervisor.cards(spec.uuid)}
        for address in facts.addresses or ():
            card = cards.get(address.mac)
            if address.vlan and card and not card.link_is_up:
                self._world.bridges.put_into_vlan(card.device, address.vlan)
                self._world.hypervisor.raise_link(spec.uuid, address.mac)
        return dataclasses.replace(facts, is_connected=True)

    def _mark_booted(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        known = facts.domain.stamp if facts.domain else None
        if known is None:
            raise Conflict(f"the domain of {spec.name} is not there to be marked as booted")
        # The definition stays as it was stamped: the running guest was made from that one, whatever the spec says by now.
        stamp = dataclasses.replace(
            known,
            booted=spec.boot_request,
            boot_id=self._world.blueprint.boot_id,
            spec_revision=facts.spec_revision,
            cluster_id=facts.cluster_id,
        )
        self._world.hypervisor.write_stamp(spec.uuid, stamp)
        return with_stamp(facts, stamp)

    def _shutdown(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        facts = acknowledged(self._world.hypervisor, facts)
        # Some guests and states take no button; the grace time ends it all the same.
        with contextlib.suppress(HypervisorRejected):
            self._world.hypervisor.shutdown(spec.uuid)
        self._world.patience.pressed(spec.uuid)
        return dataclasses.replace(facts, shutdown_is_due=False)

    def _destroy(self, uuid: UUID, facts: Facts) -> Facts:
        self._world.hypervisor.destroy(uuid)
        self._world.patience.at_rest(uuid)
        return with_power(facts, PowerState.SHUTOFF, "destroyed")

    def _undefine(self, uuid: UUID, facts: Facts) -> Facts:
        self._world.hypervisor.undefine(uuid)
        return dataclasses.replace(facts, domain=None)

    def _remove_files(self, uuid: UUID, facts: Facts) -> Facts:
        self._world.firewall.remove(uuid)
        self._world.metadata.remove(uuid)  # first: without it nobody can report any more
        self._world.reports.remove(uuid)
        self._world.disks.remove(uuid)
        facts = dataclasses.replace(facts, rules_are_there=False, notes=())
        return dataclasses.replace(
            facts, metadata_is_there=False, metadata_is_current=False, files_are_there=False, disk_is_there=False,
            drive_is_current=False,
        )  # fmt: skip

    def _release_network(self, uuid: UUID, facts: Facts) -> Facts:
        self._world.networks.release(uuid)
        return dataclasses.replace(facts, addresses=None)

    def _release(self, uuid: UUID, facts: Facts) -> Facts:
        consumer = self._world.placement.consumer(uuid)
        has_spec = facts.spec_revision != 0
        if consumer is not None and (has_spec or self._world.blueprint.provider in consumer.allocations):
            is_ours = self._world.placement.is_ours(consumer)
            if not has_spec and (not is_ours or self._store.get(self._keys.instance(uuid)) is not None):
                # Without a spec here only a claim that nobody can still mean to use is given back; ask again in a while.
                self._world.patience.orphan_seconds(uuid, is_orphan=False)
                return dataclasses.replace(facts, allocation=Allocation.UNASKED)
            if not has_spec and not self._world.patience.orphan_stands_at(uuid, consumer.generation):
                return dataclasses.replace(facts, allocation=Allocation.UNASKED)  # a client has just written it anew
            if is_ours or self._world.blueprint.provider in consumer.allocations:
                # A spec that is here speaks for its claim wherever that stands: a move may have been cut off.
                self._world.placement.release(uuid, consumer.generation)
        return dataclasses.replace(facts, allocation=Allocation.ABSENT, claimed_at=frozenset())

    def _forget(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        """Delete spec, status, instance, name, address and group keys at once; the last act of a deletion."""
        keys, provider = self._keys, self._world.blueprint.provider
        held = (keys.name(spec.name), *address_keys(keys, spec.nics))
        if spec.group or not self._is_done(self._parting(spec, facts, held)):
            found = self._store.get_many([*held, *self._group_keys(spec)])
            own = [key for key in held if key in found and found[key].value == str(spec.uuid)]
            leaving = groups.GroupChange()
            if spec.group:
                leaving = groups.leave(keys, spec.group, provider=provider, instance=spec.uuid, found=found)
            self._store.commit(self._parting(spec, facts, own, leaving))
        return dataclasses.replace(facts, spec_revision=0)

    def _parting(
        self, spec: InstanceSpec, facts: Facts, own: Iterable[str], leaving: groups.GroupChange | None = None
    ) -> Transaction:
        """What deletes the keys of *spec*, and of its name and addresses those that are its *own*."""
        keys, provider, change = self._keys, self._world.blueprint.provider, leaving or groups.GroupChange()
        compares = [Compare.unchanged(keys.spec(provider, spec.uuid), facts.spec_revision), self._fence()]
        compares += [Compare.holds(key, str(spec.uuid)) for key in own]
        deletes = [keys.spec(provider, spec.uuid), keys.status(provider, spec.uuid), keys.instance(spec.uuid), *own]
        return Transaction((*compares, *change.compares), change.puts, (*deletes, *change.deletes), notes=self._obituary(spec))

    def _obituary(self, spec: InstanceSpec) -> dict[str, str]:
        """What goes into the journal with the end of an instance: that it was, and how it was called."""
        if self._pen is None:
            return {}
        name = spec.name
        return {**self._pen.last_of_instance(spec.uuid, name, "destroyed"), **former_name(self._keys, name, spec.uuid)}

    def _group_keys(self, spec: InstanceSpec) -> Iterable[str]:
        return groups.keys_to_read(self._keys, spec.group, self._world.blueprint.provider) if spec.group else ()

    def _is_done(self, transaction: Transaction) -> bool:
        """Whether *transaction* could be made; where not, nothing has changed and the keys in question are to be read."""
        try:
            self._store.commit(transaction)
        except Conflict:
            return False
        return True

    def _adopt(self, spec: InstanceSpec, facts: Facts, _: Hand) -> Facts:
        """Note in the domain that it answers to this spec from now on. Its power is left as it is, and counts as asked for."""
        known = facts.domain.stamp if facts.domain else None
        if known is None or facts.domain is None:
            raise Conflict(f"the domain of {spec.name} is not there to be adopted")
        has_run = facts.domain.is_active or known.booted > 0
        stamp = dataclasses.replace(
            known,
            cluster_id=facts.cluster_id,
            spec_revision=facts.spec_revision,
            booted=spec.boot_request if has_run else 0,
            started_for=spec.boot_request,
        )
        self._world.hypervisor.write_stamp(spec.uuid, stamp)
        return with_stamp(facts, stamp)
