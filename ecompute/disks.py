"""The disk of each instance, and the folder that it is in: ``<directory>/<uuid>/{disk.qcow2,console.log}`` and notes of it.

A disk is a thin qcow2 overlay over an image of the cache, or a copy of it that stands alone: a qcow2, or a plain file, then
``disk.raw``. What one is built as it stays, whatever the configuration says later: its name tells its format. It is there when
its name is there: it is written under a partial name, synced and renamed. Nothing here overwrites a disk that exists, for it
may be somebody's data. Removing begins with renaming the folder away, so that a crash never leaves half an instance that looks
whole. A disk that is to take the place of another is made whole beside it, and takes it by a rename, which only ``replace``
does. Knows nothing of libvirt, which makes the files its own when the guest starts; only the folders' modes let QEMU's user
pass. Called by the builder and the facts.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.config import DiskConfig
from common.errors import Cancelled, ConfigError, InvalidSpec, NoSpace, Permanent, Transient
from common.files import PARTIAL, file_errors, fsync_directory, make_directory, partial_path, remove_partials
from ecompute import disk_copies, disk_growth, qcow2_overlay, qcow2_snapshots
from ecompute.disk_notes import NOTHING_NOTED, DiskNotes, Noted
from ecompute.images import CachedImage

DISK_NAME, RAW_DISK_NAME = "disk.qcow2", "disk.raw"
CONSOLE_LOG_NAME = "console.log"
DIRECTORY_MODE = 0o711  # QEMU, which runs as another user, passes to files whose names it knows
DISK_MODE = 0o600
SPARE_BYTES = 64 << 20
_REMOVED = ".removed"
_PREPARED = ".rebuild-"  # and the number of the request
_GIB = 1 << 30
_serial = itertools.count()
Prepare = Callable[[Path, str], None]  # what writes to a half-made disk, by its path and format


def disk_in(folder: Path) -> Path:
    """The disk in an instance's *folder*, where it has one; else where an overlay would be."""
    raw = folder / RAW_DISK_NAME
    return raw if raw.is_file() else folder / DISK_NAME


@dataclass(frozen=True)
class Folder:
    """What an instance's folder holds: whether a whole disk, which half-made files, and whether anything else."""

    path: Path
    has_disk: bool = False
    partials: tuple[str, ...] = ()
    is_empty: bool = False  # but for the half-made files
    noted: Noted = NOTHING_NOTED  # what was done to its disk


class Disks:
    """The instances' folders in *directory*, which is made where it is missing and rid of what dead removals left.

    Args:
        config: what disks to come are.

    Raises:
        ConfigError: the file system cannot do as *config* says.
    """

    def __init__(self, directory: Path, config: DiskConfig = DiskConfig()) -> None:  # noqa: B008 - frozen
        self._directory, self._config, self.notes = directory, config, DiskNotes(directory)
        make_directory(directory, DIRECTORY_MODE)
        if config.cache in ("none", "directsync"):
            _check_direct(directory, config.cache)
        with file_errors("cannot clean up", directory):
            for left in directory.glob(f"*{_REMOVED}"):
                _remove_tree(left)

    @property
    def copies(self) -> bool:
        """Whether disks to come are copied, which may last."""
        return self._config.mode != "overlay"

    def disk_path(self, uuid: UUID) -> Path:
        return disk_in(self._folder(uuid))

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
        has_disk, noted = DISK_NAME in names or RAW_DISK_NAME in names, self.notes.read(uuid)
        return Folder(path, has_disk, partials, is_empty=len(partials) == len(names), noted=noted)

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

    def file(self, uuid: UUID) -> qcow2_snapshots.DiskFile:
        """The disk's file: its sizes and its snapshots.

        Raises:
            Permanent: there is none, or it is raw.
        """
        return qcow2_snapshots.read(self.disk_path(uuid))

    def free_bytes(self) -> int:
        with file_errors("cannot look at the free space", self._directory):
            return shutil.disk_usage(self._directory).free

    def bytes_beyond_claims(self) -> int:
        """What all disks take beyond what their guests may fill: snapshots hold what was overwritten since.

        Where a disk goes, or is none of ours, while it is looked at, it counts nothing.
        """
        beyond = 0
        for uuid in self.list():
            with contextlib.suppress(Permanent, Transient):
                found = self.file(uuid)
                beyond += max(0, found.file_bytes - found.virtual_bytes)
        return beyond

    def has_prepared(self, uuid: UUID, request: int) -> bool:
        """Whether the disk that is to take the old one's place for this *request* is whole."""
        return self._prepared(uuid, request).is_file()

    def prepare(
        self, uuid: UUID, image: CachedImage, size_gib: int, request: int, prepare: Prepare | None = None, *,
        progress: Callable[[int, int], None] = lambda *_: None, is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Make the disk that ``replace`` puts in place, beside the old one and in its format; others that were prepared go.

        Args, Raises: as ``build``; the old disk is as it was.
        """
        path = self._prepared(uuid, request)
        self.drop_prepared(uuid, but=request)
        if not path.is_file():
            report = _reporter(uuid, progress, is_cancelled)
            self._make(path, image, size_gib, prepare, report)

    def replace(self, uuid: UUID, request: int) -> None:
        """Put the prepared disk in place of the old one, which is gone then. Without a prepared one nothing changes."""
        path = self._prepared(uuid, request)
        with file_errors("cannot put the new disk in place", path):
            try:
                path.rename(self.disk_path(uuid))
            except FileNotFoundError:
                return
            fsync_directory(path.parent)

    def drop_prepared(self, uuid: UUID, *, but: int = 0) -> None:
        """Remove disks that were prepared and are not wanted any more; what is gone already is success."""
        folder = self._folder(uuid)
        with file_errors("cannot remove a disk that is not wanted any more", folder):
            for path in folder.glob(f"disk.*{_PREPARED}*"):
                if path != self._prepared(uuid, but):
                    path.unlink(missing_ok=True)

    def build(
        self, uuid: UUID, image: CachedImage, size_gib: int, prepare: Prepare | None = None, *,
        progress: Callable[[int, int], None] = lambda *_: None, is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Path:  # fmt: skip
        """Make the instance's disk, *size_gib* GiB of *image*; one that is there already stays as it is.

        Not for two threads and one instance at once.

        Args:
            prepare: writes to the half-made disk at the path, which has that format; what it raises leaves none.
            progress: called with the bytes that are copied and all that will be, where there is much to copy.
            is_cancelled: asked often meanwhile.

        Raises:
            Cancelled: *is_cancelled* said so; nothing half-made is left.
            InvalidSpec: the image's disk is larger, or no such disk can be.
            ImageInvalid: QEMU cannot read the image.
            NoSpace: the file system is (all but) full; nothing half-made is left.
        """
        path = self.disk_path(uuid)
        if not path.is_file():
            path = path.with_name(RAW_DISK_NAME if self._config.mode == "raw" else DISK_NAME)
            self._make(path, image, size_gib, prepare, _reporter(uuid, progress, is_cancelled))
        return path

    def _make(self, path: Path, image: CachedImage, size_gib: int, prepare: Prepare | None, report: disk_copies.Report) -> None:
        disk_format = _format_of(path)
        _check_fits(image, size_gib)
        if self._config.mode == "overlay" and disk_format == "qcow2":
            write = _overlayer(image, size_gib)
            self._check_room()
        else:
            write = self._copier(image, size_gib, disk_format, report)
        make_directory(path.parent, DIRECTORY_MODE)
        remove_partials(path.parent)
        with file_errors("cannot make the disk", path):
            _write_disk(path, disk_format, write, prepare)
            fsync_directory(self._directory)

    def _copier(
        self, image: CachedImage, size_gib: int, disk_format: str, report: disk_copies.Report
    ) -> Callable[[int], None]:  # fmt: skip
        size_bytes, preallocation = size_gib * _GIB, self._config.preallocation
        if preallocation in ("falloc", "full"):
            self._check_room(size_bytes)
        else:
            self._check_room()

        plan = disk_copies.Plan(image, size_bytes, disk_format, preallocation, report)
        return lambda descriptor: disk_copies.write_copy(descriptor, plan)

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

    def _prepared(self, uuid: UUID, request: int) -> Path:
        return self._folder(uuid) / f"{self.disk_path(uuid).name}{_PREPARED}{request}"

    def _folder(self, uuid: UUID) -> Path:
        return self._directory / str(uuid)

    def _check_room(self, needed_bytes: int = 0) -> None:
        free = self.free_bytes()
        if free < needed_bytes + SPARE_BYTES:
            why = f"it would take {needed_bytes >> 20} MiB" if needed_bytes else "a guest could not write to it"
            raise NoSpace(
                f"no disk is made in {self._directory}: {free >> 20} MiB are free there, and {why}; "
                "free space on that file system, or delete instances"
            )


def _check_fits(image: CachedImage, size_gib: int) -> None:
    if image.virtual_size_bytes > size_gib * _GIB:
        needed = -(-image.virtual_size_bytes // _GIB)
        raise InvalidSpec(
            f"the image's disk has {image.virtual_size_bytes / _GIB:.4g} GiB, more than the {size_gib} GiB of DISK_GB: "
            f"ask for DISK_GB:{needed} or more"
        )


def _check_direct(directory: Path, cache: str) -> None:
    """See that files of *directory* can be opened around the host's cache; else no guest could start."""
    remove_partials(directory)
    partial = partial_path(directory / "direct")
    with file_errors("cannot look at what the file system can", directory):
        try:
            os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT, 0o600))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ConfigError(
                f"disk.cache is {cache}, which needs O_DIRECT, and the file system of {directory} does not have it: "
                "set disk.cache to writeback, or move paths.state_dir"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def _overlayer(image: CachedImage, size_gib: int) -> Callable[[int], None]:
    try:
        layout = qcow2_overlay.overlay(size_gib * _GIB, image.path.absolute(), image.format)
    except ValueError as error:
        raise InvalidSpec(f"no disk of {size_gib} GiB over {image.path} can be made: {error}") from error

    def write(descriptor: int) -> None:
        os.write(descriptor, layout.head)
        os.ftruncate(descriptor, layout.file_bytes)

    return write


def _format_of(path: Path) -> str:
    """Of a disk, or of one that is to take its place."""
    return "raw" if path.name.startswith(RAW_DISK_NAME) else "qcow2"


def _reporter(uuid: UUID, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]) -> disk_copies.Report:
    def report(done: int, total: int) -> None:
        if is_cancelled():
            raise Cancelled(f"the disk of {uuid} was given up: it is no longer wanted")
        progress(done, total)

    return report


def _write_disk(path: Path, disk_format: str, write: Callable[[int], None], prepare: Prepare | None) -> None:
    partial = partial_path(path)
    try:
        with partial.open("x+b", buffering=0) as output:
            os.fchmod(output.fileno(), DISK_MODE)
            write(output.fileno())
            if prepare:
                prepare(partial, disk_format)
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
