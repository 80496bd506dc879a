"""A lock file that says who holds it: one process per file, freed by the kernel when that process ends, however it ends.

The lock is flock(2) on the file; what is written in it is only a note for whoever finds the lock held. The file stays when
the lock is released: removing it would let two processes hold locks on two files of one name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import Conflict, EcomputeError
from common.retry import Backoff, Deadline, retry

LOOKING_SECONDS = 2.0  # nobody who only looks takes longer


class _LookedAt(Conflict):
    """Nobody holds the lock: somebody looks who does."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. *pid* is 0 while the holder has not yet written its note."""

    pid: int
    note: Mapping[str, Any]


class LockFile:
    """The lock at *path*. Not for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, note: Mapping[str, Any]) -> None:
        """Take the lock and leave *note* (JSON values) and our process id in the file; both last until this process ends.

        Raises:
            Conflict: another process holds it.
            EcomputeError: the file cannot be made.
        """
        # A daemon that gave up because a doctor was just looking would not be started again.
        descriptor = retry(self._taken, on=_LookedAt, deadline=Deadline(LOOKING_SECONDS), backoff=Backoff(0.002, 0.05))
        text = json.dumps({**note, "pid": os.getpid()}) + "\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        self._descriptor = descriptor

    def _taken(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return _locked(self.path)
        except BlockingIOError as error:
            holder = self.holder()
            if holder is None:
                raise _LookedAt(f"{self.path} is looked at by others all the time; try again") from error
            raise Conflict(f"{self.path} is held by process {holder.pid or '?'}") from error
        except OSError as error:
            raise EcomputeError(f"lock file {self.path}: {error.strerror}: see to that folder") from error

    def release(self) -> None:
        """Give the lock back. Releasing what is not held succeeds."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def holder(self) -> Holder | None:
        """Who holds the lock now, None where nobody does.

        Looks by taking a shared lock for a moment, in which an ``acquire`` waits.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EcomputeError(f"lock file {self.path}: {error.strerror}: see to that folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder_in(os.pread(descriptor, 65536, 0))
        finally:
            os.close(descriptor)
        return None


def _locked(path: Path) -> int:
    """The descriptor of *path*, locked, and of the file that has this name now."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:  # noqa: PTH116 - beside fstat
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.ENOENT:
                raise
            continue
        os.close(descriptor)  # somebody removed or replaced it between the two lines


def _holder_in(content: bytes) -> Holder:
    try:
        note = json.loads(content)
        return Holder(int(note.pop("pid")), note)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Holder(0, {})
