"""Volumes in etcd: found, listed, attached, detached, removed. Usable as a library; prints nothing.

What is asked is one transaction over the volume and the instance, compared with what was read; the volume's host does the rest.
Attaching writes both, so that a volume is never two instances'. Detaching takes the volume out of the instance's spec alone: it
stays noted as the instance's until its host has seen that no domain has it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, Permanent
from common.hardware import DiskBus
from common.journal import Act
from common.keys import Keys
from common.model import Desired, InstanceKey, Phase, spec_with_fields
from common.records import with_fields
from common.retry import Backoff
from common.store import Compare, Store, Transaction, Versioned
from common.text import nearest
from common.volume_records import VolumeDesired, VolumePhase, VolumePlace, VolumeSpec, VolumeStatus
from common.volume_refs import MOST_VOLUMES, VolumeRef
from eschedule import changes, sought
from eschedule.acts import noted
from eschedule.changes import Instance
from eschedule.listing import HostName, host_names
from eschedule.still_edits import refuse_suspended

TRIES = 10  # of a change while others change the same keys
NOT_FOUND = "NotFound"


@dataclass(frozen=True)
class Volume:
    """A volume as its keys were read; *spec* is None where it cannot be read, which *problem* tells.

    Args:
        instance: the name of the instance that it is attached to, its uuid where it has none; "" where it is free.
    """

    place: VolumePlace
    item: Versioned
    spec: VolumeSpec | None
    status: VolumeStatus | None
    host: HostName
    instance: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        return self.spec.name if self.spec else str(self.place.uuid)

    @property
    def readable(self) -> VolumeSpec:
        """Raises: Permanent: a newer version wrote it."""
        if self.spec is None:
            raise Permanent(f"the volume {self.place.uuid} cannot be read: {self.problem}", "Unreadable")
        return self.spec

    @property
    def phase(self) -> str:
        """What its host says, or what is asked of it that the host has not seen yet."""
        if self.spec is None:
            return "Unreadable"
        if self.spec.desired is VolumeDesired.DELETED:
            return "Deleting"
        return (self._passed or self.status.phase) if self.status else "Pending"

    @property
    def message(self) -> str:
        """What its host says of it, where that is not of the phase before."""
        return self.status.message if self.status and not self._passed else ""

    @property
    def _passed(self) -> VolumePhase | None:
        """The phase that it is in by its spec, where its host has not said so yet; only that host writes that it is free."""
        if self.spec is None or self.status is None or self.status.spec_revision >= self.item.mod_revision:
            return None
        if self.spec.attached_to:
            return VolumePhase.ATTACHED if self.status.phase is VolumePhase.AVAILABLE else None
        return VolumePhase.AVAILABLE if self.status.phase in (VolumePhase.ATTACHED, VolumePhase.DETACHING) else None


def find(store: Store, keys: Keys, who: UUID | str) -> VolumePlace:
    """Where the volume with the name or uuid *who* is.

    Raises:
        Permanent: there is none.
    """
    if isinstance(who, str):
        item = store.get(keys.volume_name(who))
        if item is not None:
            return VolumePlace.parse(item.value)
        known = [key.key.removeprefix(keys.volume_names()) for key in store.list(keys.volume_names(), serializable=True).items]
        near = nearest(who, known)
        hint = f"did you mean {near}?" if near else "see: eschedule volume list"
        raise Permanent(f"there is no volume {who}; {hint}", NOT_FOUND)
    for item in store.list(keys.volumes()).items:
        provider, volume = keys.parse_provider_volume(item.key)
        if volume == who:
            return VolumePlace(provider, volume)
    raise Permanent(f"there is no volume {who}; see: eschedule volume list", NOT_FOUND)


def read(store: Store, keys: Keys, place: VolumePlace, who: UUID | str | None = None) -> Volume:
    """The volume at *place* as it is now.

    Raises:
        Permanent: it is not there (any more).
    """
    key, host_key = keys.volume(place.provider, place.uuid), keys.host(place.provider)
    found = store.get_many([key, keys.volume_status(place.provider, place.uuid), host_key])
    if key not in found:
        raise Permanent(f"there is no volume {who or place.uuid} (any more); see: eschedule volume list", NOT_FOUND)
    alive = {place.provider: found[host_key]} if host_key in found else {}
    host = host_names(store, keys, {place.provider}, alive)[place.provider]
    volume = _volume(place, found[key], found.get(keys.volume_status(place.provider, place.uuid)), host)
    if volume.spec and volume.spec.attached_to:
        volume = dataclasses.replace(volume, instance=_instance_name(store, keys, volume.spec.attached_to))
    return volume


def list_volumes(store: Store, keys: Keys) -> list[Volume]:
    """All volumes, by name, from serializable lists."""
    items = {keys.parse_provider_volume(item.key): item for item in store.list(keys.volumes(), serializable=True).items}
    statuses = {
        keys.parse_provider_volume(item.key): item for item in store.list(keys.volume_statuses(), serializable=True).items
    }
    alive = {keys.parse_host(item.key): item for item in store.list(keys.hosts(), serializable=True).items}
    hosts = host_names(store, keys, {provider for provider, _ in items}, alive)
    volumes = [_volume(VolumePlace(*at), item, statuses.get(at), hosts[at[0]]) for at, item in items.items()]
    owners = {volume.spec.attached_to for volume in volumes if volume.spec and volume.spec.attached_to}
    found = store.get_many(keys.instance(owner) for owner in owners) if owners else {}
    named = [
        dataclasses.replace(volume, instance=_name_in(found.get(keys.instance(owner)), owner))
        if (owner := volume.spec.attached_to if volume.spec else None)
        else volume
        for volume in volumes
    ]
    return sorted(named, key=lambda volume: (volume.name, str(volume.place.uuid)))


def attach(
    store: Store, keys: Keys, place: VolumePlace, instance: UUID, *, act: Act | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Volume, Instance, bool]:  # fmt: skip
    """Have *instance* get the volume; both as they were read, and whether anything had to be written.

    Raises:
        Permanent: one of them is not there.
        Conflict: it is another's, on another host, or cannot be attached now.
        ConfigError: the instance has as many as it can.
        StoreUnavailable: whether it was written is unknown; repeating it is safe.
    """
    backoff = Backoff(0.02, 0.5)
    for _ in range(TRIES):
        volume, found = read(store, keys, place), changes.read(store, keys, instance)
        spec, known = volume.readable, found.spec
        if spec.attached_to == instance and any(one.uuid == spec.uuid for one in known.volumes):
            return volume, found, False
        _refuse(store, keys, volume, found)
        slot = min(set(range(MOST_VOLUMES)) - {one.slot for one in known.volumes})
        volumes = (*known.volumes, VolumeRef(spec.uuid, spec.name, slot))
        text, notes = changed_spec(keys, found, volumes, act, spec.name)
        puts = {
            volume.item.key: with_fields(volume.item.value, {"attached_to": instance}),
            found.spec_item.key: text,
        }
        try:
            store.commit(Transaction(_as_read(volume, found), puts, notes=notes))
        except Conflict:
            sleep(backoff.next())
        else:
            return volume, found, True
    raise Conflict(f"the volume {place.uuid} or the instance {instance} kept being changed by others; try again")


def detach(
    store: Store, keys: Keys, place: VolumePlace, *, act: Act | None = None, sleep: Callable[[float], None] = time.sleep
) -> tuple[Volume, Instance | None, bool]:
    """Have its instance lose the volume; both as they were read, and whether anything had to be written.

    Raises:
        Permanent: it is not there.
        Conflict: the instance cannot lose it while it runs.
        StoreUnavailable: whether it was written is unknown; repeating it is safe.
    """
    backoff = Backoff(0.02, 0.5)
    for _ in range(TRIES):
        volume = read(store, keys, place)
        owner = volume.readable.attached_to
        found = _instance(store, keys, owner) if owner else None
        if found is None or all(one.uuid != place.uuid for one in found.spec.volumes):
            return volume, found, False
        refuse_suspended(found.spec, f"detach {volume.name}")
        _refuse_sata(found, "taken out")
        rest = tuple(one for one in found.spec.volumes if one.uuid != place.uuid)
        text, notes = changed_spec(keys, found, rest, act, volume.name)
        try:
            store.commit(Transaction(_as_read(volume, found), {found.spec_item.key: text}, notes=notes))
        except Conflict:
            sleep(backoff.next())
        else:
            return volume, found, True
    raise Conflict(f"the volume {place.uuid} or its instance kept being changed by others; try again")


def remove(store: Store, keys: Keys, place: VolumePlace, *, sleep: Callable[[float], None] = time.sleep) -> Volume:
    """Ask for the end of the volume and all that is in it; the volume as it was read.

    Raises:
        Permanent: it is not there.
        Conflict: an instance has it.
        StoreUnavailable: whether it was written is unknown; repeating it is safe.
    """
    backoff = Backoff(0.02, 0.5)
    for _ in range(TRIES):
        volume = read(store, keys, place)
        spec = volume.readable
        if spec.attached_to:
            raise Conflict(
                f"the volume {spec.name} is attached to {volume.instance}; nothing was removed; take it out first: eschedule "
                f"volume detach {spec.name}"
            )
        if spec.desired is VolumeDesired.DELETED:
            return volume
        text = with_fields(volume.item.value, {"desired": VolumeDesired.DELETED.value})
        try:
            store.replace(volume.item.key, text, seen=volume.item.mod_revision)
        except Conflict:
            sleep(backoff.next())
        else:
            return volume
    raise Conflict(f"the volume {place.uuid} kept being changed by others; try again")


def changed_spec(
    keys: Keys, found: Instance, volumes: tuple[VolumeRef, ...], act: Act | None, volume: str
) -> tuple[str, dict[str, str]]:
    """The instance's spec with *volumes*, and what to write down of it."""
    over = {"adopts": None} if changes.is_adoption_over(found) else {}
    fields, notes = noted(keys, act, found, {"volumes": volumes, **over}, message=volume)
    return spec_with_fields(found.spec_item.value, fields), notes


def _as_read(volume: Volume, found: Instance) -> tuple[Compare, ...]:
    return (
        Compare.unchanged(volume.item.key, volume.item.mod_revision),
        Compare.unchanged(found.spec_item.key, found.spec_item.mod_revision),
    )


def _refuse(store: Store, keys: Keys, volume: Volume, found: Instance) -> None:
    """Raises: Conflict, ConfigError: *volume* cannot be attached to *found*."""
    spec, known = volume.readable, found.spec
    if spec.desired is VolumeDesired.DELETED:
        raise Conflict(f"the volume {spec.name} is being removed")
    if known.desired is Desired.DELETED:
        raise Conflict(f"the instance {found.name} is being destroyed; see: eschedule show {found.name}")
    refuse_suspended(known, f"attach {spec.name}")
    if spec.attached_to:
        leaving = f"the volume {spec.name} is being taken out of {volume.instance}: try again when it is free"
        taken = (
            f"the volume {spec.name} is attached to {volume.instance}; take it out first: eschedule volume detach {spec.name}"
        )
        raise Conflict(taken if _has(store, keys, spec) else leaving)
    if volume.place.provider != found.provider:
        alive = {found.provider: found.host} if found.host else {}
        other = host_names(store, keys, {found.provider}, alive)[found.provider].name
        raise Conflict(
            f"the volume {spec.name} is on {volume.host.name}, the instance {found.name} on {other}, and neither moves; make "
            f"one there: eschedule volume create NAME --size {spec.size_gib} --host {other}"
        )
    if not (volume.status and volume.status.was_made):
        raise Conflict(f"the volume {spec.name} is not made yet; see: eschedule volume show {spec.name}")
    if known.alternates and not (found.status and found.status.booted):
        raise Conflict(f"the instance {found.name} has not run yet and may move to another host; try again when it runs")
    if len(known.volumes) >= MOST_VOLUMES:
        raise ConfigError(f"the instance {found.name} has {MOST_VOLUMES} volumes, which is as many as it can have")
    _refuse_sata(found, "plugged in")


def _has(store: Store, keys: Keys, spec: VolumeSpec) -> bool:
    """Whether the instance that *spec* is attached to is still to have it."""
    found = _instance(store, keys, spec.attached_to) if spec.attached_to else None
    return found is not None and any(one.uuid == spec.uuid for one in found.spec.volumes)


def _refuse_sata(found: Instance, what: str) -> None:
    is_off = found.status is not None and found.status.phase in (Phase.STOPPED, Phase.FAILED)
    if found.spec.hardware.disk_bus is DiskBus.SATA and not is_off:
        raise Conflict(
            f"the disks of {found.name} are SATA, which cannot be {what} while it runs; first: eschedule stop {found.name}"
        )


def _instance(store: Store, keys: Keys, instance: UUID) -> Instance | None:
    """None where it is gone."""
    try:
        return changes.read(store, keys, instance)
    except Permanent as error:
        if error.reason != sought.NOT_FOUND:
            raise
        return None


def _volume(place: VolumePlace, item: Versioned, status_item: Versioned | None, host: HostName) -> Volume:
    spec, status, problem = None, None, ""
    try:
        spec = VolumeSpec.from_json(item.value)
        status = VolumeStatus.from_json(status_item.value) if status_item else None
    except EcomputeError as error:
        problem = str(error)
    owner = str(spec.attached_to) if spec and spec.attached_to else ""
    return Volume(place, item, spec, status, host, owner, problem)


def _instance_name(store: Store, keys: Keys, instance: UUID) -> str:
    return _name_in(store.get(keys.instance(instance)), instance)


def _name_in(item: Versioned | None, instance: UUID) -> str:
    try:
        return InstanceKey.from_json(item.value).name if item else str(instance)
    except EcomputeError:
        return str(instance)
