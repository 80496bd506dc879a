"""The steps that make an instance's disk another one: gone back to a snapshot, or made anew of an image.

What a request asks for and cannot be had (the image, the snapshot, the room) ends the request and not the guest: that is noted
as its end (``disk_notes``), with the reason, and the guest goes on with the disk that it has. As long as that is another one
than the spec names, the guest is defined and told of as what its own disk was made of (``as_built``). ``machine`` decides, the
``builder`` runs these.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Protocol

from common.disk_requests import Applied, DiskRequest
from common.errors import Conflict, EcomputeError, HypervisorRejected, Permanent, UnsupportedSchema
from common.model import ImageRef, InstanceSpec
from ecompute import disk_snapshots
from ecompute.image_sources import shown_url
from ecompute.machine import DiskFacts, Facts, is_up
from ecompute.world import World

logger = logging.getLogger(__name__)


class Hand(Protocol):
    """What a step that lasts may ask of whoever runs it."""

    def is_cancelled(self) -> bool: ...

    def progress(self, done: int, total: int) -> None: ...


def disk_facts(world: World, spec: InstanceSpec | None, *, noted: DiskFacts) -> DiskFacts:
    """*noted* with what is looked at only while a request is due."""
    change = spec.disk_request(noted.restored, noted.rebuilt) if spec else None
    if spec is None or change is None:
        return noted
    if change is DiskRequest.REBUILD:
        return dataclasses.replace(noted, new_disk_is_there=world.disks.has_prepared(spec.uuid, spec.rebuild_request))
    try:
        tag = world.disks.file(spec.uuid).tag(spec.restore)
    except Permanent:  # no disk, or a raw one: the step says so
        tag = None
    return dataclasses.replace(noted, snapshot_is_there=tag is not None)


def as_built(world: World, spec: InstanceSpec, disk: DiskFacts) -> InstanceSpec:
    """*spec*, with the image and the hardware that the disk which is there was made of and for."""
    is_pending = spec.rebuild_request > disk.rebuilt.request
    if not spec.rebuild_request or not (is_pending or disk.rebuilt.problem):
        return spec
    try:
        document = world.metadata.read(spec.uuid)
    except (Permanent, UnsupportedSchema):
        document = None
    if document is None:
        return spec
    image = spec.image if document.image == spec.image.url else ImageRef(document.image)
    return dataclasses.replace(spec, image=image, hardware=document.hardware)


class DiskChanges:
    """Does the steps; each returns the facts as it left them."""

    def __init__(self, world: World) -> None:
        self._world = world

    def restore(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Go back to the snapshot; doing so again changes nothing, as the guest did not run between."""
        try:
            tag = self._world.disks.file(spec.uuid).tag(spec.restore)
            if tag is None:
                raise Permanent(f"the snapshot {spec.restore} is not there any more; {self._others(spec)}", disk_snapshots.WORD)
            if is_up(facts):
                raise Conflict(f"{spec.name} runs; its disk is left alone")
            disk_snapshots.go_back(self._world.disks.disk_path(spec.uuid), tag)
        except Permanent as error:
            return self._end(spec, facts, DiskRequest.RESTORE, error)
        self._world.reports.remove(spec.uuid)  # what the guest said of itself it had not said then
        return self._end(spec, facts, DiskRequest.RESTORE)

    def _others(self, spec: InstanceSpec) -> str:
        names = [one.name for one in self._world.disks.file(spec.uuid).snapshots]
        return f"there are {', '.join(names)}" if names else "there is none"

    def fetch(self, spec: InstanceSpec, facts: Facts, error: Permanent) -> Facts:
        """The image cannot be had, for good: the facts where that ends a rebuild, else *error* is raised."""
        if facts.disk.rebuilt.request >= spec.rebuild_request or not _has_guest(facts):
            raise error
        return self._end(spec, facts, DiskRequest.REBUILD, error)

    def prepare(self, spec: InstanceSpec, facts: Facts, hand: Hand) -> Facts:
        """Make the new disk, beside the old one."""
        try:
            with self._world.images.held(spec.image) as image:
                if image is None:
                    raise Conflict(f"the image {shown_url(spec.image.url)} left the cache again")
                write = self._world.preparation.of(spec, image, facts.addresses or (), hand.is_cancelled)
                self._world.disks.prepare(
                    spec.uuid, image, spec.disk_gib, spec.rebuild_request, write,
                    progress=hand.progress, is_cancelled=hand.is_cancelled,
                )  # fmt: skip
        except Permanent as error:
            return self._end(spec, facts, DiskRequest.REBUILD, error)
        return dataclasses.replace(
            facts, files_are_there=True, disk=dataclasses.replace(facts.disk, new_disk_is_there=True)
        )  # fmt: skip

    def replace(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Put the new disk in the old one's place; from then on the guest is one that has not said anything yet."""
        if is_up(facts):
            raise Conflict(f"{spec.name} runs; its disk is left alone")
        self._world.reports.remove(spec.uuid)
        self._world.disks.replace(spec.uuid, spec.rebuild_request)
        facts = self._end(spec, dataclasses.replace(facts, disk_is_there=True), DiskRequest.REBUILD)
        # Image and hardware are what the spec says from now on.
        return dataclasses.replace(facts, metadata_is_current=False, drive_is_current=False, definition_is_current=False)

    def thaw(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """Let the guest write again; where it has no agent (any more) nobody could, or has kept it from that."""
        try:
            self._world.hypervisor.thaw(spec.uuid)
        except HypervisorRejected as error:
            logger.warning("whether the guest may write again is not known: %s", error)
        return self.not_frozen(spec, facts)

    def not_frozen(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """The guest writes, or has just been started."""
        if facts.disk.is_frozen:
            self._world.disks.notes.clear_frozen(spec.uuid)
        return dataclasses.replace(facts, disk=dataclasses.replace(facts.disk, is_frozen=False))

    def built(self, spec: InstanceSpec, facts: Facts) -> Facts:
        """The first disk was made: of the image that a rebuild asked for meanwhile, if one did."""
        return self._end(spec, facts, DiskRequest.REBUILD) if spec.rebuild_request else facts

    def _end(self, spec: InstanceSpec, facts: Facts, kind: DiskRequest, error: EcomputeError | None = None) -> Facts:
        """Note that a request is done, or given up for *error*."""
        if kind is DiskRequest.REBUILD:
            applied = Applied(spec.rebuild_request, _problem(error))
            self._world.disks.drop_prepared(spec.uuid)
            disk = dataclasses.replace(facts.disk, rebuilt=applied)
        else:
            applied = Applied(spec.restore_request, _problem(error))
            disk = dataclasses.replace(facts.disk, restored=applied)
        self._world.disks.notes.write(spec.uuid, kind, applied)
        return dataclasses.replace(facts, disk=disk_facts(self._world, spec, noted=disk))


def _problem(error: EcomputeError | None) -> str:
    return "" if error is None else f"{getattr(error, 'reason', 'Failed')}: {error}"


def _has_guest(facts: Facts) -> bool:
    """Whether there is one that goes on with what it has."""
    stamp = facts.domain.stamp if facts.domain else None
    return facts.disk_is_there or (stamp is not None and stamp.booted > 0)
