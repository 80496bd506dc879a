"""Makes an image of an instance's disk: copied, sealed, published. What is asked for by letter is in ``image_jobs``.

Each stage leaves nothing behind but the last, which is the file that was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from common.errors import ImageInvalid, Permanent
from common.image_jobs import Stage
from ecompute import image_probe
from ecompute.disk_copying import DiskCopier
from ecompute.hypervisor import Copying
from ecompute.image_publishing import Published, PublishFolder

NOT_CONFIGURED = (
    "this host publishes no images: set images.publish_directory and images.publish_url in its compute.yaml, a folder that it "
    "may write to and the address by which all hosts read it, and restart ecompute"
)
CANNOT_SEAL = (
    "this host cannot seal images, without which two guests of one image would be taken for one machine: it has no libguestfs "
    "that ecompute could use (ecompute doctor says what is missing); say --no-seal where the guest's own identity may be in "
    "the image"
)
UNFROZEN = (
    "the guest's agent did not answer, so that its file systems were not written out first: the image is as after a power cut; "
    "for a clean one install qemu-guest-agent in the guest, or stop it first"
)
Tell = Callable[[Stage, int, int], None]


class Sealer(Protocol):
    """Takes away what makes a disk one guest's: keys, machine id, logs."""

    def seal(self, disk: Path, *, what: str) -> object:
        """In place; raises ``EcomputeError`` where it cannot be done, and *disk* is to be thrown away then."""
        ...


@dataclass(frozen=True)
class Made:
    """An image that is published."""

    published: Published
    virtual_size_bytes: int
    note: str = ""


class ImageMaker:
    """Makes images of the disks of one host.

    Args:
        folder: where images are published; None where that is not configured.
        sealer: what seals, asked for each image; None where this host cannot seal now.
    """

    def __init__(self, copier: DiskCopier, folder: PublishFolder | None, sealer: Callable[[], Sealer | None]) -> None:
        self._copier, self._folder, self._sealer = copier, folder, sealer

    def clean_up(self) -> None:
        """Take away what a dead process left; raises ``EcomputeError`` where that is to be tried again."""
        self._copier.clean_up()
        if self._folder:
            self._folder.clean_up()

    def make(self, uuid: UUID, *, seals: bool, tell: Tell) -> Made:
        """Publish an image of the instance's disk as it is now.

        Args:
            tell: called often; what it raises ends the work.

        Raises:
            Permanent: it cannot be done, as where nothing is configured. Transient: perhaps later.
        """
        if self._folder is None:
            raise Permanent(NOT_CONFIGURED, "NotConfigured")
        sealer = self._sealer() if seals else None
        if seals and sealer is None:
            raise Permanent(CANNOT_SEAL, "CannotSeal")
        self._folder.check()
        with self._copier.copied(uuid, lambda done, total: tell(Stage.COPYING, done, total)) as (path, how):
            size = _checked(path)
            if sealer is not None:
                tell(Stage.SEALING, 0, 0)
                sealer.seal(path, what=f"the image of {uuid}")
                size = _checked(path)
            published = self._folder.publish(path, str(uuid), lambda done, total: tell(Stage.PUBLISHING, done, total))
        return Made(published, size, UNFROZEN if how is Copying.UNFROZEN else "")

    def take_back(self, made: Made) -> None:
        """Remove an image that nobody has registered; one that was there before stays."""
        if self._folder and made.published.is_new:
            self._folder.remove(made.published)


def _checked(path: Path) -> int:
    """The size of the disk that guests of the image will see.

    Raises:
        ImageInvalid: the file leads to others: whoever wrote it, no host is to be given that.
    """
    with path.open("rb", buffering=0) as file:
        probed = image_probe.probe(file.fileno(), "the copy of the disk")
        if probed.format != "qcow2":
            raise ImageInvalid(f"the copy of the disk is no qcow2, but {probed.format}")
        os.fsync(file.fileno())
    return probed.virtual_size_bytes
