"""What keeps two ecomputes of one provider from running on one machine: a lock file, and a name that all run folders share."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from uuid import UUID

from common.config import ComputeConfig
from common.errors import Conflict, OwnershipError
from common.lockfile import LockFile


@dataclass(frozen=True)
class ProviderLock:
    """Both are given back by the kernel when the process ends."""

    file: LockFile
    name: socket.socket

    def release(self) -> None:
        self.file.release()
        self.name.close()


def lock_file(config: ComputeConfig, provider: UUID) -> LockFile:
    """The file by which others on this machine see who serves *provider*."""
    return LockFile(config.paths.run_dir / f"{provider}.lock")


def lock_provider(config: ComputeConfig, provider: UUID) -> ProviderLock:
    """The lock that makes this process the only ecompute of *provider* on this machine, held until the process ends.

    Raises:
        OwnershipError: another one holds it.
    """
    lock, name = lock_file(config, provider), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.acquire({"program": "ecompute"})
        name.bind(f"\0etcd-compute-{provider}")  # one a machine, whatever its run_dir
    except (Conflict, OSError) as error:
        raise OwnershipError(
            f"provider {provider} is already served by another ecompute on this machine: {error}; stop that one first"
        ) from error
    return ProviderLock(lock, name)
