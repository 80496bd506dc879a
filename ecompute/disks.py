"""The disk of each instance, and the folder that it is in: ``<directory>/<uuid>/{disk.qcow2,console.log}``.

A disk is a thin qcow2 overlay over an image of the cache. It is there when its name is there: it is written under a partial
name, synced and renamed. Nothing here overwrites a disk that exists, for it may be somebody's data. Removing begins with
renaming the folder away, so that a crash never leaves half an instance that looks whole. Knows nothing of libvirt, which makes
the files its own when the guest starts; only the folders' modes let QEMU's user pass. Called by the builder and the facts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.errors import InvalidSpec, NoSpace
from common.files import PARTIAL, file_errors, fsync_directory, make_directory, partial_path, remove_partials
from ecompute import disk_growth, qcow2_overlay
from ecompute.images import CachedImage

DISK_NAME = "disk.qcow2"
CONSOLE_LOG_NAME = "console.log"
DIRECTORY_MODE = 0o711  # QEMU, which runs as another user, passes to files whose names it knows
DISK_MODE = 0o600
SPARE_BYTES = 64 << 20
_REMOVED = ".removed"
_GIB = 1 << 30
_serial = itertools.count()


@dataclass(frozen=True)
class Folder:
    """What an instance's folder holds: whether a whole disk, which half-made files, and whether anything else."""

    path: Path
    has_disk: bool = False
    partials: tuple[str, ...] = ()
    is_empty: bool = False  # but for the half-made files


class Disks:
    """The instances' folders in *directory*, which is made where it is missing and rid of what dead removals left."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_directory(directory, DIRECTORY_MODE)
        with file_errors("cannot clean up", directory):
            for left in directory.glob(f"*{_REMOVED}"):
                _remove_tree(left)

    def disk_path(self, uuid: UUID) -> Path:
        return self._folder(uuid) / DISK_NAME

    def console_log_path(self, uuid: UUID) -> Path:
        return self._folder(uuid) / CONSOLE_LOG_NAME

    def exists(self, uuid: UUID) -> bool:
        """Whether the instance has a whole disk."""
        return self.disk_path(uuid).is_file()

    def is_large_enough(self, uuid: UUID, size_gib: int) -> bool:
        """Whether the guest sees *size_gib* GiB at least; also where it has no disk, or none that can be read."""
        size = self.virtual_size_bytes(uuid)
        return not 0 < size < size_gib * _GIB

    def virtual_size_bytes(self, uuid: UUID) -> int:
        """How large the guest sees its disk; 0 where it has none."""
        return disk_growth.virtual_size_bytes(self.disk_path(uuid))

    def grow(self, uuid: UUID, size_gib: int) -> None:
        """Make the disk of a guest that is off *size_gib* GiB large, if it is smaller; errors as ``disk_growth.grow``."""
        disk_growth.grow(self.disk_path(uuid), size_gib * _GIB)

    def has_files(self, uuid: UUID) -> bool:
        """Whether anything of the instance is here, were it only half a disk."""
        return os.path.lexists(self._folder(uuid))

    def list(self) -> list[UUID]:
        """Every instance that has files here."""
        found = []
        with file_errors("cannot list the instances", self._directory), os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(ValueError):
                    uuid = UUID(entry.name)
                    if entry.name == str(uuid):
                        found.append(uuid)
        return found

    def folder(self, uuid: UUID) -> Folder | None:
        """What is in the instance's folder; None where it has none."""
        path = self._folder(uuid)
        with file_errors("cannot look into the instance's folder", path):
            try:
                names = sorted(entry.name for entry in os.scandir(path))
            except FileNotFoundError:
                return None
            except NotADirectoryError:
                return Folder(path)
        partials = tuple(name for name in names if name.endswith(PARTIAL))
        return Folder(path, DISK_NAME in names, partials, is_empty=len(partials) == len(names))

    def remove_partial(self, uuid: UUID, name: str) -> None:
        """Remove a half-made file that no living writer has. What is gone already is success."""
        path = self._folder(uuid) / name
        if not name.endswith(PARTIAL) or path.parent != self._folder(uuid):
            raise InvalidSpec(f"{path} is no half-made file of an instance")
        with file_errors("cannot remove", path):
            path.unlink(missing_ok=True)

    def set_aside(self, uuid: UUID, directory: Path) -> Path | None:
        """Move the instance's folder into *directory*, under a name that is free there; where it went.

        An empty folder is removed instead: None. Nothing that could be data is ever deleted.

        Raises:
            Permanent: *directory* is on another file system, or cannot be written.
        """
        folder = self._folder(uuid)
        with file_errors("cannot set the instance's files aside", folder):
            with contextlib.suppress(OSError):
                folder.rmdir()
                fsync_directory(self._directory)
                return None
            make_directory(directory, 0o700)
            names = itertools.chain([str(uuid)], (f"{uuid}-{number}" for number in itertools.count(2)))
            target = next(directory / name for name in names if not os.path.lexists(directory / name))
            folder.rename(target)
            fsync_directory(directory)
            fsync_directory(self._directory)
            return target

    def build(self, uuid: UUID, image: CachedImage, size_gib: int) -> Path:
        """Make the instance's disk, *size_gib* GiB over *image*; one that is there already stays as it is.

        Not for two threads and one instance at once.

        Raises:
            InvalidSpec: the image's disk is larger, or no such disk can be.
            NoSpace: the file system is (all but) full; nothing half-made is left.
        """
        path = self.disk_path(uuid)
        if path.is_file():
            return path
        layout = _layout(image, size_gib)
        self._check_room()
        make_directory(path.parent, DIRECTORY_MODE)
        remove_partials(path.parent)
        with file_errors("cannot make the disk", path):
            _write_disk(path, layout)
            fsync_directory(self._directory)
        return path

    def remove(self, uuid: UUID) -> None:
        """Remove everything of the instance. What is gone already is success."""
        folder = self._folder(uuid)
        away = folder.with_name(f"{folder.name}.{os.getpid()}-{next(_serial)}{_REMOVED}")
        with file_errors("cannot remove the instance's files", folder):
            try:
                folder.rename(away)
            except FileNotFoundError:
                return
            fsync_directory(self._directory)
            _remove_tree(away)

    def _folder(self, uuid: UUID) -> Path:
        return self._directory / str(uuid)

    def _check_room(self) -> None:
        with file_errors("cannot look at the free space", self._directory):
            free = shutil.disk_usage(self._directory).free
        if free < SPARE_BYTES:
            raise NoSpace(
                f"no disk is made in {self._directory}: {free >> 20} MiB are free there, and a guest could not write to it; "
                "free space on that file system, or delete instances"
            )


def _layout(image: CachedImage, size_gib: int) -> qcow2_overlay.Overlay:
    if image.virtual_size_bytes > size_gib * _GIB:
        needed = -(-image.virtual_size_bytes // _GIB)
        raise InvalidSpec(
            f"the image's disk has {image.virtual_size_bytes / _GIB:.4g} GiB, more than the {size_gib} GiB of DISK_GB: "
            f"ask for DISK_GB:{needed} or more"
        )
    try:
        return qcow2_overlay.overlay(size_gib * _GIB, image.path.absolute(), image.format)
    except ValueError as error:
        raise InvalidSpec(f"no disk of {size_gib} GiB over {image.path} can be made: {error}") from error


def _write_disk(path: Path, layout: qcow2_overlay.Overlay) -> None:
    partial = partial_path(path)
    try:
        with partial.open("xb", buffering=0) as output:
            os.fchmod(output.fileno(), DISK_MODE)
            output.write(layout.head)
            output.truncate(layout.file_bytes)
            os.fsync(output.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _remove_tree(path: Path) -> None:
    """Remove a folder with all in it, or a link without what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
