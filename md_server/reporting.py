"""What a guest says of itself, handed to ecompute: into a file, and then one knock at ecompute's door.

The knock is best effort and never waits: while ecompute is away, or has its hands full, the file is there for when it looks.
``main`` gives it to the application; knows nothing of HTTP.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from uuid import UUID

from common.reports import SOCKET_NAME, GuestReport, ReportStore


class Reporter:
    """Keeps the reports of guests in *store*, and tells whoever listens in *run_dir* which instance has a new one."""

    def __init__(self, store: ReportStore, run_dir: Path) -> None:
        self._store = store
        # By a descriptor, as the path itself may be longer than a socket's address may be.
        self._run_dir = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def __call__(self, uuid: UUID, report: GuestReport) -> None:
        """Keep *report* as the last one of the instance.

        Raises:
            EcomputeError: the file system refused, and says why; the former report stands.
        """
        self._store.write(uuid, report)
        self._knock(uuid)

    def close(self) -> None:
        self._socket.close()
        os.close(self._run_dir)

    def _knock(self, uuid: UUID) -> None:
        try:
            self._socket.sendto(str(uuid).encode("ascii"), f"/proc/self/fd/{self._run_dir}/{SOCKET_NAME}")
        except OSError:
            return  # nobody listens, or too many knocked already: ecompute looks at all files every minute
