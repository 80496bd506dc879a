"""Makes a copy of an instance's disk that rests on nothing, as the disk is at one moment, while its guest is up or off.

Of a guest that is up QEMU itself writes it, while the guest runs on (``Hypervisor.begin_copy``); of one that is off
``qemu-img`` does, in its cage, and of a copy of the overlay, so that nothing here is in the way of a guest that is started
meanwhile: what was copied then counts for nothing, and is begun anew. The folder ``<directory>/<uuid>`` of a copy under way is
all there is to know of it: one that is found at the start is a dead process's, whose job in QEMU is ended, whose guest is
thawed, and which is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from common.errors import Conflict, HypervisorRejected, NoSpace, Permanent, Transient
from common.files import file_errors, make_directory
from ecompute.disks import RAW_DISK_NAME, Disks
from ecompute.hypervisor import Copying, Hypervisor
from ecompute.image_conversion import Layer, flatten
from ecompute.image_probe import QCOW2_MAGIC, backing_of

DIRECTORY_MODE = 0o711  # QEMU, which runs as another user, passes to the files that it is told of
SPARE_BYTES = 1 << 30
REPORT_EVERY_SECONDS = 1.0
TRIES = 4  # of a copy, where the guest goes up or down meanwhile
MOST_SECONDS = 4 * 3600.0
Report = Callable[[int, int], None]


class DiskCopier:
    """Copies of disks, each in a folder of its own below *directory*.

    Args:
        images: the folder of the cache, all that a guest's disk may rest on.
    """

    def __init__(
        self, hypervisor: Hypervisor, disks: Disks, *, directory: Path, images: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._hypervisor, self._disks, self._directory, self._images = hypervisor, disks, directory, images
        self._clock = clock
        self._changed = threading.Condition()
        hypervisor.subscribe_copies(self._ended)

    def clean_up(self) -> None:
        """End what a dead process began.

        Raises:
            HypervisorUnavailable: later.
        """
        make_directory(self._directory, DIRECTORY_MODE)
        with file_errors("cannot clean up", self._directory):
            left = sorted(self._directory.iterdir())
        for folder in left:
            self._put_away(folder)

    @contextmanager
    def copied(self, uuid: UUID, report: Report) -> Iterator[tuple[Path, Copying | None]]:
        """A copy of the instance's disk, which goes with the block; and how it was made, None where the guest was off.

        Args:
            report: called about every second with the bytes done and in all; what it raises ends it.

        Raises:
            Permanent: there is no disk, or it cannot be copied. NoSpace: there is no room here.
            Conflict: the guest kept going up and down.
        """
        folder = self._directory / str(uuid)
        try:
            self._put_away(folder)  # libvirt was away when an earlier one was to be
            make_directory(folder, DIRECTORY_MODE)
            self._check_room(uuid)
            yield self._copy(uuid, folder, report)
        finally:
            self._put_away(folder)

    def _copy(self, uuid: UUID, folder: Path, report: Report) -> tuple[Path, Copying | None]:
        for number in range(TRIES):
            target = folder / f"{number}.qcow2"
            domain = self._hypervisor.get(uuid)
            is_up = domain is not None and domain.is_active
            try:
                how = self._copy_live(uuid, target, report) if is_up else None
                if how in (None, Copying.NOT_POSSIBLE):
                    self._copy_at_rest(uuid, folder, target, report, is_up=is_up)
                    how = None
                return target, how
            except Conflict:
                if number == TRIES - 1:
                    raise
                target.unlink(missing_ok=True)
        raise AssertionError("the last try returns or raises")

    # -- up --------------------------------------------------------------------------------------------------------------------

    def _copy_live(self, uuid: UUID, target: Path, report: Report) -> Copying:
        how = self._hypervisor.begin_copy(uuid, self._disks.disk_path(uuid), target)
        if how is Copying.NOT_POSSIBLE:
            return how
        ends_at = self._clock() + MOST_SECONDS
        while (state := self._hypervisor.copy_state(uuid)).is_running:
            if self._clock() > ends_at:
                raise Permanent(f"the disk of {uuid} is not copied within {MOST_SECONDS / 3600:g} h", "CopyTooSlow")
            report(state.done_bytes, state.total_bytes)
            with self._changed:  # its end wakes; the rest is for whoever wants to know how far it is
                self._changed.wait(REPORT_EVERY_SECONDS)
        if not state.problem:
            return how
        domain = self._hypervisor.get(uuid)
        if domain is None or not domain.is_active:
            raise Conflict(f"the guest {uuid} went down while its disk was copied: {state.problem}")
        if "No space" in state.problem:
            raise NoSpace(f"the disk of {uuid} cannot be copied to {target.parent}: {state.problem}")
        raise HypervisorRejected(f"the disk of {uuid} cannot be copied: {state.problem}")

    def _ended(self, _uuid: UUID) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- off -------------------------------------------------------------------------------------------------------------------

    def _copy_at_rest(self, uuid: UUID, folder: Path, target: Path, report: Report, *, is_up: bool) -> None:
        """Of a guest that *is_up* where guests use no files, as in a simulation."""
        disk, overlay = self._disks.disk_path(uuid), folder / "overlay"
        overlay.unlink(missing_ok=True)
        with file_errors("cannot copy the disk", disk):
            try:
                before = _mark(disk)
                _clone(disk, overlay, report)
                is_same = _mark(disk) == before
            except FileNotFoundError as error:
                raise Conflict(f"{disk} went away") from error
        domain = self._hypervisor.get(uuid)
        if not is_same or (domain is not None and domain.is_active) != is_up:
            raise Conflict(f"the guest {uuid} was started while its disk was copied")
        with file_errors("cannot copy the disk", target), target.open("xb", buffering=0) as output:
            flatten(
                self._layers(overlay, is_raw=disk.name == RAW_DISK_NAME), output.fileno(), what=f"the disk of {uuid}",
                most_bytes=self._most_bytes(uuid),
                report=lambda: report(os.fstat(output.fileno()).st_blocks * 512, 0),
            )  # fmt: skip
            os.fsync(output.fileno())
        overlay.unlink()

    def _layers(self, overlay: Path, *, is_raw: bool) -> list[Layer]:
        """The disk and the image of the cache that it rests on, each by the format that we gave it.

        What stands at the beginning of a raw disk is the guest's own, and names nothing.
        """
        if is_raw:
            return [Layer(overlay, "raw")]
        with overlay.open("rb", buffering=0) as file:
            head = os.pread(file.fileno(), 65536, 0)
        if not head.startswith(QCOW2_MAGIC):
            raise Permanent(f"{overlay} is no qcow2", "DiskDamaged")
        backing = backing_of(head)
        if backing is None:
            return [Layer(overlay, "qcow2")]
        image = Path(backing)
        if image.parent != self._images.absolute() or image.is_symlink() or image.suffix not in (".qcow2", ".raw"):
            raise Permanent(f"the disk rests on {backing}, which is no image of this host's cache", "DiskDamaged")
        return [Layer(overlay, "qcow2"), Layer(image, image.suffix[1:])]

    # -- both ------------------------------------------------------------------------------------------------------------------

    def _most_bytes(self, uuid: UUID) -> int:
        return self._disks.virtual_size_bytes(uuid) * 2 + SPARE_BYTES

    def _check_room(self, uuid: UUID) -> None:
        if not self._disks.exists(uuid):
            raise Permanent(f"the instance {uuid} has no disk on this host", "NoDisk")
        with file_errors("cannot look at the free space", self._directory):
            free = shutil.disk_usage(self._directory).free
            needed = self._disks.disk_path(uuid).stat().st_blocks * 512 + SPARE_BYTES
        if free < needed:
            raise NoSpace(
                f"{free >> 20} MiB are free in {self._directory}, and a copy of the disk needs {needed >> 20} or more"
            )

    def _put_away(self, folder: Path) -> None:
        try:
            self._hypervisor.end_copy(UUID(folder.name))
        except ValueError:
            pass  # none of ours, and in our folder all the same
        except HypervisorRejected as error:
            raise Transient(f"the copy of {folder.name} cannot be ended: {error}") from error
        with file_errors("cannot remove the copy", folder):
            shutil.rmtree(folder) if folder.is_dir() and not folder.is_symlink() else folder.unlink(missing_ok=True)


def _mark(disk: Path) -> tuple[int, int, int]:
    """What changes with everything that is written to *disk*."""
    found = disk.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _clone(source: Path, target: Path, report: Report) -> None:
    """Copy *source* with its holes, by sharing its blocks where the file system can do that."""
    command = ["cp", "--reflink=auto", "--sparse=always", "--", str(source), str(target)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            ends_at = time.monotonic() + MOST_SECONDS
            while True:
                try:
                    _, errors = process.communicate(timeout=REPORT_EVERY_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > ends_at:
                        raise Permanent(f"{source} is not copied within {MOST_SECONDS / 3600:g} h", "CopyTooSlow") from None
                    report(target.stat().st_blocks * 512 if target.exists() else 0, source.stat().st_blocks * 512)
        finally:
            process.kill()
    if process.returncode:
        if not source.exists():
            raise FileNotFoundError(str(source))
        kind = NoSpace if "No space" in errors else Permanent
        raise kind(f"{source} cannot be copied: {' '.join(errors.split())[-300:]}")
