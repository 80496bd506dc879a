"""The files of volumes: ``<directory>/<uuid>.raw``, thin: what was never written takes no room.

A file is there when its name is there: it is made under a partial name, synced and renamed. Nothing here overwrites a file that
exists, and only ``remove`` takes one away: a volume is data. Knows nothing of libvirt, which makes a file its own while a guest
has it. Called by the volume keeper and by the audit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from uuid import UUID

from common.errors import NoSpace
from common.files import PARTIAL, file_errors, fsync_directory, make_directory, partial_path

DIRECTORY_MODE = 0o711  # QEMU, which runs as another user, passes to files whose names it knows
FILE_MODE = 0o600
_PASS = 0o111
SPARE_BYTES = 64 << 20
_SUFFIX = ".raw"
_GIB = 1 << 30


def volume_file(volume: UUID) -> str:
    """The name of a volume's file."""
    return f"{volume}{_SUFFIX}"


def volume_of(path: Path, directory: Path) -> UUID | None:
    """The volume whose file in *directory* is *path*; None where it is none."""
    with contextlib.suppress(ValueError):
        if path.parent == directory and path.suffix == _SUFFIX and path.name == volume_file(UUID(path.stem)):
            return UUID(path.stem)
    return None


def volumes_in(directory: Path) -> list[UUID]:
    """Every volume that has a file in *directory*; none where that is not there."""
    with file_errors("cannot list the volumes", directory):
        found = [volume_of(Path(entry.path), directory) for entry in os.scandir(directory)] if directory.is_dir() else []
    return [volume for volume in found if volume is not None]


class VolumeFiles:
    """The volumes in *directory*, which is made where it is missing and rid of what a dead process had half made.

    One that is there may be somebody's for other things, too: nothing but half-made volumes is removed from it, and it is only
    opened as far as QEMU's user must pass.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            make_directory(directory, DIRECTORY_MODE)
        with file_errors("cannot clean up", directory):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if mode | _PASS != mode:
                directory.chmod(mode | _PASS)
            for path in directory.glob(f"*{_SUFFIX}.*{PARTIAL}"):
                if volume_of(directory / f"{path.name.partition('.')[0]}{_SUFFIX}", directory):
                    path.unlink(missing_ok=True)

    def path(self, volume: UUID) -> Path:
        return self.directory / volume_file(volume)

    def exists(self, volume: UUID) -> bool:
        return os.path.lexists(self.path(volume))

    def list(self) -> list[UUID]:
        """Every volume that has a file here."""
        return volumes_in(self.directory)

    def make(self, volume: UUID, size_gib: int) -> None:
        """Make the volume's file, empty, *size_gib* GiB; one that is there stays as it is.

        Raises:
            NoSpace: the file system is (all but) full; nothing half-made is left.
        """
        path = self.path(volume)
        if self.exists(volume):
            return
        with file_errors("cannot make the volume", path):
            free = shutil.disk_usage(self.directory).free
            if free < SPARE_BYTES:
                raise NoSpace(
                    f"no volume is made in {self.directory}: {free >> 20} MiB are free there; free space on that file system, "
                    "or delete volumes or instances"
                )
            _write_empty(path, size_gib * _GIB)
            fsync_directory(self.directory)

    def remove(self, volume: UUID) -> None:
        """Take the volume's file, and all that is in it, away for good. What is gone already is success."""
        path = self.path(volume)
        with file_errors("cannot remove the volume", path):
            path.unlink(missing_ok=True)
            fsync_directory(self.directory)


def _write_empty(path: Path, size_bytes: int) -> None:
    partial = partial_path(path)
    try:
        with partial.open("xb", buffering=0) as output:
            os.fchmod(output.fileno(), FILE_MODE)
            output.truncate(size_bytes)
            os.fsync(output.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
