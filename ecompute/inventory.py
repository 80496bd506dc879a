"""Keeps Placement's view of this host equal to the host: its provider, its inventory, its traits.

What should be there is pure (``wanted_inventory``, ``wanted_traits``); ``InventoryKeeper`` compares that with what Placement
has and writes only differences, each by the provider's generation. The agent calls it at the start and at every resync. It
knows nothing of instances: who may use the host is the claims' affair, whether it lives that of the host record.

Whose is what on our provider:

- The classes VCPU, MEMORY_MB and DISK_GB are ours. Others that an operator or another agent put there stay as they are.
- A trait is ours where it is one that we measure (``host_traits.MEASURABLE``), or where we added it because the host has a
  bridge or because the operator's host record asked for it. The latter are in a file in the state directory, written before
  Placement is, so that they are known after a restart. Anything else is left alone, also when that file is lost: what cannot be
  shown to be ours is not removed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from common.config import ComputeConfig, InventoryConfig, ResourceConfig
from common.errors import Conflict
from common.files import file_errors, write_atomically
from common.logs import fields
from common.model import HostAdmin
from common.placement import Inventory, Placement
from common.retry import Backoff, Deadline, retry
from ecompute.disk_use import DiskUse
from ecompute.host_traits import MEASURABLE, wanted_traits
from ecompute.hypervisor import Domain, HostInfo

__all__ = ["InventoryKeeper", "disk_total_gib", "foreign_use", "remove_provider", "wanted_inventory", "wanted_traits"]

GIB = 1024**3
MANAGED_CLASSES = frozenset({"VCPU", "MEMORY_MB", "DISK_GB"})
ADDED_TRAITS_FILE = "placement-traits.json"

logger = logging.getLogger(__name__)
T = TypeVar("T")


def wanted_inventory(
    host: HostInfo, disk_gib: int, config: InventoryConfig, *, foreign_vcpus: int = 0, foreign_memory_mib: int = 0,
    taken_disk_gib: int = 0,
) -> dict[str, Inventory]:  # fmt: skip
    """What *host* has to offer, by resource class; a class of which it has nothing is left out.

    Args:
        disk_gib: size of the file system that guests' disks are on.
        foreign_vcpus: virtual CPUs of running guests that are not ours; as much is reserved as they take of the capacity.
        foreign_memory_mib: likewise their memory.
        taken_disk_gib: what the host itself takes of that file system, cached images above all. The configured reserve is for
            that; where it is less, as much as is taken is reserved.
    """
    disk = dataclasses.replace(config.disk_gb, reserved=max(config.disk_gb.reserved, taken_disk_gib))
    offers = {
        "VCPU": _offer(host.cpus, config.vcpu, foreign_vcpus),
        "MEMORY_MB": _offer(host.memory_mib, config.memory_mb, foreign_memory_mib),
        "DISK_GB": _offer(disk_gib, disk, 0),
    }
    return {name: inventory for name, inventory in offers.items() if inventory.total > 0}


def _offer(total: int, config: ResourceConfig, foreign: int) -> Inventory:
    # Foreign guests take of the capacity, which is (total - reserved) * allocation_ratio; Placement refuses reserved > total.
    reserved = config.reserved + math.ceil(foreign / config.allocation_ratio)
    return Inventory(
        total=total, reserved=min(reserved, total), allocation_ratio=config.allocation_ratio,
        max_unit=total,  # overcommitment is for many guests: one that is larger than the host runs badly or not at all
    )  # fmt: skip


def foreign_use(domains: Iterable[Domain], provider: UUID) -> tuple[int, int]:
    """The virtual CPUs and the memory (MiB) of those of *domains* that run and do not answer to *provider*."""
    foreign = [d for d in domains if d.is_active and (d.stamp is None or d.stamp.provider != provider)]
    return sum(d.vcpus for d in foreign), sum(d.memory_mib for d in foreign)


def disk_total_gib(directory: Path) -> int:
    """The size of the file system of *directory*, or of its nearest parent that is there; whole GiB."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    with file_errors("cannot measure the disk", directory):
        measured = os.statvfs(directory)
    return measured.f_blocks * measured.f_frsize // GIB


class InventoryKeeper:
    """Keeps one provider. Thread-safe; one at a time per provider, as the provider's lock file grants.

    Args:
        name: the provider's name in Placement, which no other provider may have.
        measure_disk: the size in GiB of the file system that a directory is on.
        disk_use: what the host itself takes of it.
    """

    def __init__(
        self, placement: Placement, provider: UUID, name: str, config: ComputeConfig, *,
        measure_disk: Callable[[Path], int] = disk_total_gib, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep, disk_use: DiskUse | None = None,
    ) -> None:  # fmt: skip
        self._placement, self._provider, self._name, self._config = placement, provider, name, config
        self._disk_use = disk_use or DiskUse()
        self._measure_disk, self._clock, self._sleep = measure_disk, clock, sleep
        self._added = AddedTraits(config.paths.state_dir / ADDED_TRAITS_FILE, provider)
        self._settled: tuple[object, ...] = ()  # the generation at which all was as wanted, and what was wanted
        self._said: dict[str, str] = {}
        self._lock = threading.Lock()

    def sync(
        self, host: HostInfo, *, host_admin: HostAdmin | None = None, foreign_vcpus: int = 0, foreign_memory_mib: int = 0,
        bridges: Collection[str] = (), generation: int | None = None,
    ) -> dict[str, Inventory]:  # fmt: skip
        """Make Placement's provider, inventory and traits what they should be; what the host has of each class, as it is then.

        Where nothing changed since the last call, not even a claim, that is one read; none where *generation*, the provider's
        as the caller has just read it, says so.

        Raises:
            ConfigError: another provider has this host's name, or the token is refused.
            InvalidSpec: Placement does not take the values.
            PlacementUnavailable: no answer; call it again, it reads before it writes.
            Conflict: the provider kept changing, as by claims that come without a break; call it again.
        """
        disk_gib = self._measure_disk(self._config.paths.state_dir)
        inventory = wanted_inventory(
            host, disk_gib, self._config.inventory, foreign_vcpus=foreign_vcpus, foreign_memory_mib=foreign_memory_mib,
            taken_disk_gib=self._disk_use.gib(),
        )  # fmt: skip
        traits = wanted_traits(host, host_admin, bridges)
        with self._lock:
            self._complain_of_full_reserve(inventory)
            if generation is not None and self._settled == (generation, inventory, traits):
                return dict(inventory)
            deadline = Deadline(self._config.placement.deadline_seconds, self._clock)
            self._retry(lambda: self._sync_all(inventory, traits, deadline), deadline)
        return dict(inventory)

    def _sync_all(self, inventory: Mapping[str, Inventory], traits: frozenset[str], deadline: Deadline) -> None:
        provider = self._placement.ensure_provider(self._provider, self._name)
        if self._settled == (provider.generation, inventory, traits):
            return
        if provider.generation == 0:
            try:
                self._fill(inventory, traits)
                return
            except Conflict:  # somebody else has written to it meanwhile: it is looked at as any other
                logger.debug("the new provider was changed while it was filled")
        # Every claim on this host changes its generation, too: each part is read with it and written at once.
        _, generation = self._retry(lambda: self._sync_inventory(inventory), deadline)
        seen_later, generation_later = self._retry(lambda: self._sync_traits(traits), deadline)
        self._settled = (generation_later, dict(inventory), traits) if seen_later == generation else ()

    def _fill(self, inventory: Mapping[str, Inventory], traits: frozenset[str]) -> None:
        """Write everything to a provider of generation 0, which nobody has given anything: there is nothing to look at first.

        A thousand hosts that are new at one time have Placement to themselves for as long as their requests take.
        """
        usable = self._placement.ensure_traits(traits)
        self._complain_of_refused(traits - usable)
        self._added.remember(usable - MEASURABLE)
        generation = self._placement.put_inventories(self._provider, 0, inventory)
        generation = self._placement.put_traits(self._provider, generation, usable)
        logger.info("provider written to Placement", extra=fields(provider=self._provider, name=self._name))
        self._settled = (generation, dict(inventory), traits)

    def _retry(self, call: Callable[[], T], deadline: Deadline) -> T:
        return retry(call, on=Conflict, deadline=deadline, backoff=Backoff(0.02, 0.5), sleep=self._sleep)

    # -- inventory -------------------------------------------------------------------------------------------------------

    def _sync_inventory(self, wanted: Mapping[str, Inventory]) -> tuple[int, int]:
        """The generations at which it was looked at, and at which it is right."""
        seen, present = self._placement.inventories_to_change(self._provider)
        target = {**self._kept(present, wanted), **wanted}
        if present.keys() == target.keys() and all(_is_same(present[name], target[name]) for name in target):
            return seen, seen
        generation = self._placement.put_inventories(self._provider, seen, target)
        if any(name in target and target[name].capacity < offer.capacity for name, offer in present.items()):
            self._complain_of_overuse(target)
        shown = {name.lower(): f"({offer.total}-{offer.reserved})*{offer.allocation_ratio:g}" for name, offer in target.items()}
        logger.info("inventory written to Placement", extra=fields(provider=self._provider, **shown))
        return seen, generation

    def _kept(self, present: Mapping[str, Inventory], wanted: Mapping[str, Inventory]) -> dict[str, Inventory]:
        """What stays of what is *present* and not *wanted*: classes of others, and ours while they are in use.

        Placement does not drop a class that somebody holds; fully reserved it offers no more of it.
        """
        kept = {name: offer for name, offer in present.items() if name not in MANAGED_CLASSES}
        gone = [name for name in present if name in MANAGED_CLASSES and name not in wanted]
        if not gone:
            return kept
        used = self._placement.usages(self._provider)
        for name in gone:
            if used.get(name, 0) > 0:
                kept[name] = dataclasses.replace(present[name], reserved=present[name].total)
                self._complain(name, f"this host has no {name} any more, but {used[name]} are claimed: none is offered now")
        return kept

    def _complain_of_overuse(self, target: Mapping[str, Inventory]) -> None:
        """Placement takes a capacity below what is claimed, and then gives nothing until enough is released."""
        for name, used in self._placement.usages(self._provider).items():
            if name in target and used > target[name].capacity:
                self._complain(
                    name, f"{used} {name} of this host are claimed, and only {target[name].capacity} can be offered:"
                    " nothing new comes here until enough guests are gone",
                )  # fmt: skip

    def _complain_of_full_reserve(self, inventory: Mapping[str, Inventory]) -> None:
        for name, offer in inventory.items():
            key = f"reserve of {name}"
            if offer.reserved < offer.total:
                self._said.pop(key, None)
            else:
                self._complain(
                    key, f"all {offer.total} {name} of this host are reserved, by inventory.{name.lower()}.reserved and for"
                    f" {'cached images' if name == 'DISK_GB' else 'guests that are not ours'}: nothing can be placed here",
                )  # fmt: skip

    # -- traits ----------------------------------------------------------------------------------------------------------

    def _sync_traits(self, wanted: frozenset[str]) -> tuple[int, int]:
        """As ``_sync_inventory``."""
        seen, present = self._placement.traits_to_change(self._provider)
        usable = wanted & present
        if missing := wanted - present:
            usable |= self._placement.ensure_traits(missing)
            seen, present = self._placement.traits_to_change(self._provider)  # again, for a generation that is still young
        self._complain_of_refused(wanted - usable)
        added, removed = usable - present, (present & (MEASURABLE | self._added.names)) - wanted
        generation = seen
        if added or removed:
            self._added.remember(added - MEASURABLE)
            generation = self._placement.put_traits(self._provider, seen, (present - removed) | added)
            logger.info(
                "traits written to Placement",
                extra=fields(provider=self._provider, added=",".join(sorted(added)), removed=",".join(sorted(removed))),
            )
        self._added.forget(self._added.names - wanted)
        return seen, generation

    def _complain_of_refused(self, refused: frozenset[str]) -> None:
        if not refused:
            self._said.pop("traits", None)
            return
        self._complain(
            "traits", f"Placement does not know these traits, the host goes without them: {', '.join(sorted(refused))};"
            " own ones are CUSTOM_ with A-Z, 0-9 and _, at most 255 characters",
        )  # fmt: skip

    def _complain(self, key: str, text: str) -> None:
        """Warn once, and again only when the *text* has changed."""
        if self._said.get(key) != text:
            self._said[key] = text
            logger.warning("%s", text, extra=fields(provider=self._provider))


def _is_same(one: Inventory, other: Inventory) -> bool:
    """Equal but for the precision that Placement's database keeps the ratio with."""
    same_ratio = math.isclose(one.allocation_ratio, other.allocation_ratio, rel_tol=1e-5)
    return same_ratio and dataclasses.replace(one, allocation_ratio=other.allocation_ratio) == other


class AddedTraits:
    """The traits that we gave *provider* because an operator asked for them, kept in the file *path*.

    A file that cannot be read is as good as none: no trait is then taken for ours.
    """

    def __init__(self, path: Path, provider: UUID) -> None:
        self._path, self._provider = path, provider
        self.names = self._read()

    def remember(self, names: frozenset[str]) -> None:
        """Call it before they are written to Placement."""
        self._write(self.names | names)

    def forget(self, names: frozenset[str]) -> None:
        """Call it after they are gone from Placement."""
        self._write(self.names - names)

    def _read(self) -> frozenset[str]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["provider"] == str(self._provider):
                return frozenset(str(name) for name in content["traits"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is not readable, traits that operators set before now stay as they are: %s", self._path, error)
        return frozenset()

    def _write(self, names: frozenset[str]) -> None:
        """Raises: NoSpace, Permanent, Transient: the file cannot be written."""
        if names == self.names:
            return
        with file_errors("cannot make the directory", self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"schema": 1, "provider": str(self._provider), "traits": sorted(names)}
        write_atomically(self._path, json.dumps(content).encode(), 0o640)
        self.names = names


def remove_provider(placement: Placement, provider: UUID, state_dir: Path | None = None) -> None:
    """Take this host out of Placement for good; success where it is out already.

    Args:
        state_dir: where the keeper's own file is removed, too.

    Raises:
        Conflict: instances, or somebody else, still hold something of it.
        PlacementUnavailable: no answer.
    """
    if holders := placement.provider_allocations(provider):
        shown = ", ".join(str(uuid) for uuid in sorted(holders)[:5]) + (", …" if len(holders) > 5 else "")
        raise Conflict(
            f"{len(holders)} claims in Placement are still on this host (provider {provider}): {shown};"
            " destroy or move these instances first"
        )
    placement.delete_provider(provider)
    if state_dir is not None:
        with file_errors("cannot remove", state_dir / ADDED_TRAITS_FILE):
            (state_dir / ADDED_TRAITS_FILE).unlink(missing_ok=True)
