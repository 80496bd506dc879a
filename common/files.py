"""Files that appear whole or not at all: written under a partial name, synced, then renamed.

Everything of ours that other processes read from a disk (metadata documents, address assignments, images, overlays) goes
through here. A name that ends in ``.partial`` is never data, whoever left it. Knows no format and no directory layout;
``OSError`` leaves as one of ours, named by what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from common.errors import NoSpace, Permanent, Transient

PARTIAL = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.ESTALE}
_serial = itertools.count()


@contextlib.contextmanager
def file_errors(what: str, where: Path) -> Iterator[None]:
    """Turn ``OSError`` of the block into ``NoSpace``, ``Transient`` or ``Permanent``; *what* was tried, *where*."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise NoSpace(f"{what}: {where}: {reason}; free space on that file system, or delete instances") from error
        if error.errno in _PASSING:
            raise Transient(f"{what}: {where}: {reason}") from error
        raise Permanent(f"{what}: {where}: {reason}; check its directory, owner and file system", "FileError") from error


def partial_path(path: Path) -> Path:
    """A name beside *path* that no other writer, thread or process uses, for what is to become *path*."""
    return path.with_name(f"{path.name}.{os.getpid()}-{next(_serial)}{PARTIAL}")


def fsync_directory(directory: Path) -> None:
    """Make the renames and removals done in *directory* survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Make *path* hold *data*: a reader sees the old file or the new one, also after a power cut.

    Raises:
        NoSpace: the file system is full; nothing is left behind.
        Permanent, Transient: any other file error.
    """
    partial = partial_path(path)
    with file_errors("cannot write", path):
        try:
            with partial.open("xb") as output:
                os.fchmod(output.fileno(), mode)  # not by open(): the umask would take bits away
                output.write(data)
                output.flush()
                os.fsync(output.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)


def remove_partials(directory: Path) -> list[Path]:
    """Remove what dead writers left in *directory*, not below it; call it before the first writer starts.

    Returns: what was removed. A directory that is not there holds nothing.
    """
    removed = []
    with file_errors("cannot clean up", directory):
        for path in sorted(directory.glob(f"*{PARTIAL}")):
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def make_directory(path: Path, mode: int) -> None:
    """Make *path* a directory with exactly *mode*; parents that are missing let everybody pass (0711), whatever the umask."""
    with file_errors("cannot make the directory", path):
        for parent in reversed(path.parents):
            if not parent.is_dir():
                parent.mkdir(exist_ok=True)
                parent.chmod(0o711)
        path.mkdir(exist_ok=True)
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
