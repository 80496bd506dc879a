"""What of the volumes does not agree: their keys with each other, with instances, and with Placement.

Pure; part of ``audit_checks``. A volume is data: nothing here is cured by ``--fix``. What heals by itself is only named where
it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from common.claim_findings import Held, shown
from common.findings import Finding, Kind
from common.keys import Keys
from common.model import InstanceSpec
from common.store import Versioned
from common.volume_records import VolumeDesired, VolumePlace, VolumeSpec, VolumeStatus

Place = tuple[UUID, UUID]  # provider, volume or instance
_BY_HAND = "it was changed by hand, or only part of a backup of etcd was restored"
_KINDS = ("volumes", "volume-status", "volume-names")


@dataclass
class Volumes:
    """All keys of volumes, read; one that cannot be read still counts as there."""

    specs: dict[Place, VolumeSpec | None] = field(default_factory=dict)
    statuses: set[Place] = field(default_factory=set)
    names: dict[str, VolumePlace] = field(default_factory=dict)

    @property
    def uuids(self) -> set[UUID]:
        return {uuid for _, uuid in self.specs}

    def takes(self, keys: Keys, kind: str, item: Versioned) -> bool:
        """Sort *item* in, where it is of a volume.

        Raises:
            ValueError, EcomputeError: it cannot be read.
        """
        if kind not in _KINDS:
            return False
        if kind == "volume-names":
            self.names[item.key.removeprefix(keys.volume_names())] = VolumePlace.parse(item.value)
            return True
        place = keys.parse_provider_volume(item.key)
        if kind == "volumes":
            self.specs[place] = None
            self.specs[place] = VolumeSpec.from_json(item.value)
        else:
            self.statuses.add(place)
            VolumeStatus.from_json(item.value)
        return True


def check_volumes(
    keys: Keys, volumes: Volumes, instances: Mapping[Place, InstanceSpec | None], place_of: Callable[[UUID], str]
) -> list[Finding]:
    """What is wrong among the keys; *place_of* names a host for people."""
    return [*_names(keys, volumes, place_of), *_statuses(keys, volumes), *_attachments(volumes, instances, place_of)]


def _names(keys: Keys, volumes: Volumes, place_of: Callable[[UUID], str]) -> Iterator[Finding]:
    for (provider, uuid), spec in sorted(volumes.specs.items()):
        if spec is not None and volumes.names.get(spec.name) != VolumePlace(provider, uuid):
            key = keys.volume_name(spec.name)
            yield Finding(
                Kind.VOLUME_WITHOUT_NAME, f"etcd key {key}", f"it does not lead to its volume {uuid} on {place_of(provider)}",
                _BY_HAND, f"name the volume by its uuid; or write the key: etcdctl put {key} {provider}/{uuid}",
                uuid, provider, subject=spec.name, name=spec.name,
            )  # fmt: skip
    for name, place in sorted(volumes.names.items()):
        known = volumes.specs.get((place.provider, place.uuid))
        if (place.provider, place.uuid) in volumes.specs and (known is None or known.name == name):
            continue
        key = keys.volume_name(name)
        yield Finding(
            Kind.NAME_WITHOUT_VOLUME, f"etcd key {key}", f"it leads to {place}, where no volume of that name is", _BY_HAND,
            f"once its host has no file of {place.uuid} either: etcdctl del {key}",
            place.uuid, place.provider, subject=name, name=name,
        )  # fmt: skip


def _statuses(keys: Keys, volumes: Volumes) -> Iterator[Finding]:
    for place in sorted(volumes.statuses - volumes.specs.keys()):
        key = keys.volume_status(*place)
        yield Finding(
            Kind.STATUS_WITHOUT_VOLUME, f"etcd key {key}", f"it speaks of the volume {place[1]}, which is not there", _BY_HAND,
            f"etcdctl del {key}", place[1], place[0], subject=key,
        )  # fmt: skip


def _attachments(
    volumes: Volumes, instances: Mapping[Place, InstanceSpec | None], place_of: Callable[[UUID], str]
) -> Iterator[Finding]:
    """Instances that name a volume which is not noted as theirs. The other way round its host is about to free it."""
    for (provider, uuid), spec in sorted(instances.items()):
        for ref in spec.volumes if spec else ():
            known = volumes.specs.get((provider, ref.uuid))
            if known is not None and known.attached_to == uuid:
                continue
            if known is None and (provider, ref.uuid) in volumes.specs:
                continue  # it cannot be read, which is said
            why = "is not there"
            if known is not None:
                why = f"is noted as {known.attached_to}'s" if known.attached_to else "is noted as nobody's"
            yield Finding(
                Kind.VOLUME_NOT_ATTACHED, place_of(provider),
                f"the instance {spec.name if spec else uuid} has the volume {ref.name}, which {why}",
                _BY_HAND, f"see who is to have it; until then leave it to no other: eschedule volume show {ref.uuid}",
                uuid, provider, subject=str(ref.uuid), name=spec.name if spec else "",
            )  # fmt: skip


def check_volume_claims(
    volumes: Volumes, holdings: Mapping[UUID, Mapping[UUID, Mapping[str, int]]], place_of: Callable[[UUID], str]
) -> Iterator[Finding]:
    """Volumes that do not hold their size on their host."""
    for (provider, uuid), spec in sorted(volumes.specs.items()):
        if spec is None or spec.desired is VolumeDesired.DELETED:
            continue  # a claim goes before its spec
        held = holdings.get(uuid, {})
        if dict(held.get(provider, {})) != spec.resources or len(held) != 1:
            yield Finding(
                Kind.VOLUME_CLAIM, place_of(provider),
                f"the volume {spec.name} holds {shown(held.get(provider, {}))} in Placement, not {shown(spec.resources)}",
                "Placement's database was lost or restored, or the claim was changed by hand",
                f"its host claims it again within a minute where it holds nothing; else look at it: GET /allocations/{uuid}",
                uuid, provider, name=spec.name,
            )  # fmt: skip


def orphan_volume_claim(where: str, consumer: UUID, provider: UUID, held: Held) -> Finding:
    return Finding(
        Kind.ORPHAN_CLAIM, where, f"the claim of {shown(held.resources)} by {consumer} is of a volume that is not there",
        "an eschedule died between its claim and its request, or etcd was wiped or restored",
        "its host releases it by itself after ten minutes, unless it has a file of it, which is named then", consumer, provider,
    )  # fmt: skip
