"""One ecompute per provider on a machine: a lock that the kernel drops with the process, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID

from common.errors import ConfigError, OwnershipError


class ProviderLock:
    """Held from ``acquire`` until the process ends; the file stays, its content is the holder's process id, for people."""

    def __init__(self, run_dir: Path, provider: UUID) -> None:
        self._path, self._provider = run_dir / f"{provider}.lock", provider
        self._descriptor = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OwnershipError: another ecompute of this machine holds it.
            ConfigError: the run directory cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot open the lock {self._path}: {error.strerror}; see paths.run_dir, and run as root"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise OwnershipError(
                f"provider {self._provider} is already served by another ecompute on this machine (process {holder}, lock "
                f"{self._path}): stop that one first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
