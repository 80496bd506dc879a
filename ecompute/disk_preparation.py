"""What is done to a new disk before it has its name: written to as its request asks, and its image looked into for its drivers.

Most requests ask for none of it, and pay nothing. An image is looked into once; what was found is kept by its digest in
``<directory>/<digest>.json``. Knows libguestfs only as ``DiskTools``; called by the builder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.config import ComputeConfig
from common.disk_content import AS_IMAGE
from common.errors import Cancelled, Permanent, Transient
from common.files import make_directory, remove_partials, write_atomically
from common.hardware import USUAL
from common.logs import fields
from common.model import Address, InstanceSpec
from ecompute.appliance import Appliance
from ecompute.guest_hardware import FoundHardware
from ecompute.guest_system import System, system_from
from ecompute.guestfs_tools import DiskChanges, DiskTools, GuestfsTools
from ecompute.image_sources import shown_url
from ecompute.images import CachedImage

RECIPE = 1  # of what is looked for; to be raised where it becomes more
_LOOK_EVERY_SECONDS = 0.1
_GIB = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Disk:
    path: Path
    format: str  # as QEMU names it


class DiskPreparation:
    """Prepares the disks of one host's guests.

    Args:
        tools: kept for whoever else changes disks.
        directory: for what was found in images; made where it is missing.
        inspects: images are looked into where a request does not say which hardware they need.
    """

    def __init__(self, tools: DiskTools, directory: Path, hardware: FoundHardware, *, inspects: bool) -> None:
        self.tools, self._directory, self._hardware, self._inspects = tools, directory, hardware, inspects
        self._looking = threading.Lock()
        make_directory(directory, 0o700)
        remove_partials(directory)

    def takes_long(self, spec: InstanceSpec) -> bool:
        """Whether something is to be done for *spec*, which takes seconds, and may have to wait for others."""
        return spec.disk_content != AS_IMAGE or self._looks_for_hardware(spec)

    def of(
        self, spec: InstanceSpec, image: CachedImage, cards: tuple[Address, ...], is_cancelled: Callable[[], bool]
    ) -> Callable[[Path, str], None] | None:
        """What is to be done to the half-made disk of *spec* over *image*, by its path and format; None for nothing.

        It raises ``Permanent`` where the disk cannot become what was asked for, ``Cancelled`` where *is_cancelled* said so.
        """
        if not self.takes_long(spec):
            return None

        def prepare(disk: Path, disk_format: str) -> None:
            system = self._prepared(spec, image, cards, _Disk(disk, disk_format), is_cancelled)
            if self._looks_for_hardware(spec):
                found = system.hardware if system else USUAL
                if found != USUAL:
                    logger.info(
                        "the image lacks drivers for virtio",
                        extra=fields(name=spec.name, disk=found.disk_bus, cards=found.card_model),
                    )
                self._hardware.keep(spec.uuid, found)

        return prepare

    def _looks_for_hardware(self, spec: InstanceSpec) -> bool:
        return self._inspects and spec.hardware == USUAL and not spec.hardware_is_given

    def _prepared(
        self,
        spec: InstanceSpec,
        image: CachedImage,
        cards: tuple[Address, ...],
        disk: _Disk,
        is_cancelled: Callable[[], bool],
    ) -> System | None:
        """What is on the disk, once it is as it is to be; None where that cannot be told, and nothing was to be written."""
        known = self._known(image)
        if known:
            return self._changed(spec, cards, disk, known, is_cancelled)
        with _held(self._looking, is_cancelled):  # of an image that many want at once one finds out
            known = self._known(image)
            if not known and spec.disk_content == AS_IMAGE:
                return self._inspected(spec, image, is_cancelled)
            system = self._changed(spec, cards, disk, known, is_cancelled)
            self._keep(image, system)
            return system

    def _changed(
        self,
        spec: InstanceSpec,
        cards: tuple[Address, ...],
        disk: _Disk,
        known: System | None,
        is_cancelled: Callable[[], bool],
    ) -> System:
        if known and spec.disk_content == AS_IMAGE:
            return known
        changes = DiskChanges(
            spec.disk_content, spec.disk_gib * _GIB, hostname=spec.hostname or spec.name, keys=spec.keys, cards=cards
        )
        return self.tools.customize(
            disk.path, changes, known, what=f"the disk of {spec.name}", is_cancelled=is_cancelled, disk_format=disk.format
        )

    def _inspected(self, spec: InstanceSpec, image: CachedImage, is_cancelled: Callable[[], bool]) -> System | None:
        """What *image* holds. Nobody asked for the look, so that no guest fails by it: it gets virtio, as without."""
        what = f"image {shown_url(spec.image.url)}"
        try:
            system = self.tools.inspect(image.path, image.format, what=what, is_cancelled=is_cancelled)
        except Cancelled:
            raise
        except (Permanent, Transient) as error:
            logger.warning("%s; its guest gets virtio (guestfs.inspect of compute.yaml)", error)
            return None
        self._keep(image, system)
        return system

    # -- what was found ----------------------------------------------------------------------------------------------------

    def _known(self, image: CachedImage) -> System | None:
        try:
            found = json.loads(self._path(image).read_bytes())
            return system_from(found["system"]) if found["recipe"] == RECIPE else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # it is looked into again

    def _keep(self, image: CachedImage, system: System) -> None:
        write_atomically(self._path(image), json.dumps({"recipe": RECIPE, "system": system.to_data()}).encode())

    def _path(self, image: CachedImage) -> Path:
        return self._directory / f"{image.digest}.json"


def preparation_by_libguestfs(config: ComputeConfig, *, uses_kvm: bool) -> DiskPreparation:
    """The preparation of disks on a host that is configured so."""
    state = config.paths.state_dir / "guestfs"
    appliance = Appliance(
        state, config.paths.run_dir / "guestfs", uses_kvm=uses_kvm, deadline_seconds=config.guestfs.deadline_seconds
    )  # fmt: skip
    hardware = FoundHardware(config.paths.state_dir / "instances")
    return DiskPreparation(GuestfsTools(appliance), state / "systems", hardware, inspects=config.guestfs.inspect == "auto")


@contextlib.contextmanager
def _held(lock: threading.Lock, is_cancelled: Callable[[], bool]) -> Iterator[None]:
    while not lock.acquire(timeout=_LOOK_EVERY_SECONDS):
        if is_cancelled():
            raise Cancelled("it is no longer wanted")
    try:
        yield
    finally:
        lock.release()
