"""Who uses a cached image just now: a lock on the file itself, shared by those who are about to rest a disk on it.

Whoever evicts takes it alone, and looks who rests on the image only then; so an image cannot go between the look of a build and
its disk. It is the kernel's lock (flock): it holds between threads and between processes, and ends with whoever held it. QEMU's
own locks are of another kind and are not met.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def shared(path: Path) -> Iterator[bool]:
    """Keep the image at *path* from eviction, and note that it is used now; False where it is gone.

    Waits for as long as somebody looks who rests on it.
    """
    with _opened(path) as descriptor:
        if descriptor is None:
            yield False
            return
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        is_there = os.fstat(descriptor).st_nlink > 0  # else it went while we waited
        if is_there:
            with contextlib.suppress(OSError):  # it only goes the sooner
                os.utime(descriptor)
        yield is_there


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Have the image at *path* to oneself; False where it is gone, or held by somebody."""
    with _opened(path) as descriptor:
        is_ours = False
        if descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = os.fstat(descriptor).st_nlink > 0
        yield is_ours


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
