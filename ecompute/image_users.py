"""Who rests on the cached images: read from the disks themselves, whoever made them, never counted.

Every file under the given folders is looked at, half-made ones, snapshots and what was set aside included: a qcow2 names the
file below it in its header. An image's digest anywhere in that name makes it used, in whatever form the name is written. What
cannot be read could rest on anything: then nothing is known, and nothing may be taken away. Changes nothing.

The header is laid out as in QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

_HEADER = struct.Struct(">4sIQI")  # magic, version, where the name of the file below stands, its length
_MOST_NAME_BYTES = 1023
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_LOOKS = 20
_MOST_DEPTH = 16  # of folders; links that lead round are followed no deeper


_Disks = dict[tuple[int, int], str]  # paths by device and inode


@dataclass(frozen=True)
class _Below:
    """What is below the file at a path."""

    digests: tuple[str, ...] = ()
    is_disk: bool = False  # a qcow2
    is_gone: bool = False


class Unknown(Exception):
    """Who rests on what cannot be told; the text says why."""


@dataclass(frozen=True)
class Users:
    """What rests on each image, by its digest: *files*, and the *instances* whose folders those are in."""

    files: Mapping[str, frozenset[Path]]
    instances: Mapping[str, frozenset[UUID]]


def find_users(roots: Iterable[Path], *, without: Path, settled: Callable[[], None] = lambda: None) -> Users:
    """What rests on images in *roots* now.

    A file that is renamed while the folders are read may be met under neither name; so they are read until two looks in a row
    see the same disks, and lose sight of none.

    Args:
        without: the folder of the images themselves.
        settled: called between two looks; for tests.

    Raises:
        Unknown: a disk cannot be read, or the folders change too fast.
    """
    roots = list(roots)
    before: _Disks | None = None
    found: dict[str, set[Path]] = defaultdict(set)
    for _ in range(_MOST_LOOKS):
        disks = _look(roots, without, found)
        if disks is not None and disks == before:
            return _users(found)
        before = disks
        settled()
    raise Unknown("files keep coming and going among the guests' disks")


def _look(roots: Iterable[Path], without: Path, found: dict[str, set[Path]]) -> _Disks | None:
    """Read all disks, adding what they rest on to *found*; None where a file was gone before it could be read."""
    disks, is_whole = _Disks(), True
    try:
        for path, status in _files(roots, without):
            below = _below(path) if status else _Below(is_gone=True)
            is_whole = is_whole and not below.is_gone
            if status and below.is_disk:
                disks[status.st_dev, status.st_ino] = str(path)
            for digest in below.digests:
                found[digest].add(path)
    except FileNotFoundError:  # a folder
        return None
    return disks if is_whole else None


def _users(found: Mapping[str, set[Path]]) -> Users:
    files = {digest: frozenset(paths) for digest, paths in found.items()}
    return Users(files, {digest: frozenset(_instances(paths)) for digest, paths in files.items()})


def _instances(paths: Iterable[Path]) -> Iterator[UUID]:
    for path in paths:
        for part in reversed(path.parts[:-1]):
            try:
                yield UUID(part)
            except ValueError:
                continue
            break


def _files(roots: Iterable[Path], without: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """Files and disks below *roots*; links are followed, since a disk may have been moved to where there is more room.

    What is gone again comes without a status. Raises: FileNotFoundError: a folder is.
    """
    for root in roots:
        if root.exists():
            yield from _below_folder(root, without, _MOST_DEPTH)


def _below_folder(folder: Path, without: Path, depth: int) -> Iterator[tuple[Path, os.stat_result | None]]:
    if depth == 0 or _is_same(folder, without):
        return
    try:
        paths = sorted(folder / entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unknown(f"{folder} cannot be read: {error.strerror}") from error
    for path in paths:
        status = _status(path)
        if status is None:
            yield path, None
        elif stat.S_ISDIR(status.st_mode):
            yield from _below_folder(path, without, depth - 1)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
            yield path, status


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _status(path: Path) -> os.stat_result | None:
    """None where it is gone; a link that leads nowhere may lead to a disk that is only not mounted."""
    try:
        return path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            return None
        raise Unknown(f"{path} cannot be looked at: {error.strerror}") from error


def _below(path: Path) -> _Below:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return _Below(is_gone=True)
    except OSError as error:
        raise Unknown(f"{path} cannot be read: {error.strerror}") from error
    try:
        head = os.pread(descriptor, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(b"QFI\xfb"):
            return _Below()
        _, _, offset, length = _HEADER.unpack(head)
        name = os.pread(descriptor, min(length, _MOST_NAME_BYTES), offset) if offset and length else b""
    except OSError as error:
        raise Unknown(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return _Below(tuple(_DIGEST.findall(name.decode("utf-8", "replace"))), is_disk=True)
