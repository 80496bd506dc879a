"""Builds what keeps the volumes of a host from its parts; the agent starts and stops it. Holds no logic of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from common.config import ComputeConfig
from common.errors import ConfigError, EcomputeError
from common.files import file_errors
from common.keys import Keys
from common.placement import Placement
from common.store import Compare, Store
from ecompute.hypervisor import Hypervisor
from ecompute.placement_gate import PlacementGate
from ecompute.statuses import Statuses
from ecompute.volume_book import VolumeBook, VolumeWatcher
from ecompute.volume_files import VolumeFiles
from ecompute.volume_keeper import VolumeKeeper
from ecompute.watcher import SpecWatcher


def volumes_directory(config: ComputeConfig) -> Path:
    """Where this host keeps its volumes."""
    return config.volumes.directory or config.paths.state_dir / "volumes"


def volume_files(config: ComputeConfig) -> VolumeFiles:
    """The directory of the volumes, made where it is missing.

    Raises:
        ConfigError: it is on another file system than the instances' disks; nothing was made there or changed.
    """
    directory, state_dir = volumes_directory(config), config.paths.state_dir
    with file_errors("cannot look at", directory):
        if _device(directory) == _device(state_dir):
            return VolumeFiles(directory)
    raise ConfigError(
        f"{config.source or 'compute.yaml'}: volumes.directory is {directory}, on another file system than {state_dir}; "
        "DISK_GB in Placement counts that one only, so that volumes would be promised room that is not theirs: mount one file "
        "system for both, or leave volumes.directory out"
    )


def _device(path: Path) -> int:
    """The file system that *path* is on, or would be on."""
    return next(above for above in (path, *path.parents) if above.exists()).stat().st_dev


class VolumeService:
    """The volumes of one host: what is asked for (*book*), kept by a thread of its own."""

    def __init__(
        self, config: ComputeConfig, *, hypervisor: Hypervisor, store: Store, keys: Keys, provider: UUID, specs: SpecWatcher,
        statuses: Statuses, fence: Callable[[], Compare], is_live: Callable[[], bool], now: Callable[[], str],
        placement: Placement, report: Callable[[EcomputeError], bool],
    ) -> None:  # fmt: skip
        self.book = VolumeBook()
        self.files = volume_files(config)
        self.keeper = VolumeKeeper(
            book=self.book, files=self.files, hypervisor=hypervisor, placement=PlacementGate(placement), store=store, keys=keys,
            provider=provider, statuses=statuses, fence=fence, is_live=is_live, now=now, report=report,
            orphan_after_seconds=config.builder.orphan_claim_after_seconds,
            is_instance=lambda uuid: specs.get(uuid) is not None,
        )  # fmt: skip
        self.watcher = VolumeWatcher(store, keys, provider, self.book, self.keeper.wake)

    def looked_after(self, reconcile: Callable[[UUID], None]) -> Callable[[UUID], None]:
        """*reconcile*, and then a look at the volumes of that instance, however it went."""

        def run(instance: UUID) -> None:
            try:
                reconcile(instance)
            finally:
                self.keeper.instance_was_looked_at(instance)

        return run
