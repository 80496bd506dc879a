"""Puts an image where all hosts can fetch it: into a folder that they share, or that a web server serves.

Its name there is the sha256 of its bytes, so that it is never another one, and one that is there is not replaced. It appears
whole: written under a name of our own, synced, renamed. Knows nothing of guests and of etcd; called by ``image_making``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.errors import Permanent
from common.files import PARTIAL, file_errors, fsync_directory

FILE_MODE = 0o644  # hosts and web servers read it as others
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Published:
    """A file in the folder; *is_new* where it was not there before."""

    path: Path
    url: str
    checksum: str
    is_new: bool


class PublishFolder:
    """The folder *directory*, which everybody reaches as *url*.

    Args:
        provider: whose files that are not whole yet are told from other hosts' by it.
    """

    def __init__(self, directory: Path, url: str, provider: UUID) -> None:
        self._directory, self._url, self._provider = directory, url.rstrip("/"), provider

    def clean_up(self) -> None:
        """Remove what a dead process of this host left half-written."""
        with file_errors("cannot clean up", self._directory):
            for left in self._directory.glob(f".{self._provider}.*{PARTIAL}"):
                left.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises ``Permanent`` where nothing can be published, before anything is copied."""
        if not self._directory.is_dir() or not os.access(self._directory, os.W_OK | os.X_OK):
            raise Permanent(
                f"images.publish_directory {self._directory} of compute.yaml is no folder that ecompute may write to; is it "
                "mounted?", "CannotPublish",
            )  # fmt: skip

    def publish(self, source: Path, label: str, report: Callable[[int, int], None]) -> Published:
        """Have the folder hold *source*; *label* tells it from others under way here.

        Args:
            report: called often with the bytes done and in all; what it raises ends it.

        Raises:
            NoSpace: the folder is full. Permanent: it cannot be written.
        """
        partial = self._directory / f".{self._provider}.{label}{PARTIAL}"
        with file_errors("cannot publish the image", self._directory):
            try:
                digest = _copied(source, partial, report)
                path = self._directory / f"{digest}.qcow2"
                is_new = not path.exists()
                if is_new:
                    partial.rename(path)
                    fsync_directory(self._directory)
            finally:
                partial.unlink(missing_ok=True)
        return Published(path, f"{self._url}/{path.name}", f"sha256:{digest}", is_new)

    def remove(self, published: Published) -> None:
        """Take back what was published and nobody wants. What is gone already is success."""
        with file_errors("cannot remove the image", published.path):
            published.path.unlink(missing_ok=True)
            fsync_directory(self._directory)


def _copied(source: Path, target: Path, report: Callable[[int, int], None]) -> str:
    """Copy *source*, leaving out what is zeros; the sha256 of its bytes, in hex."""
    digest, zeros = hashlib.sha256(), bytes(_CHUNK_BYTES)
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        os.fchmod(writer.fileno(), FILE_MODE)
        total, done = os.fstat(reader.fileno()).st_size, 0
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            if chunk == zeros[: len(chunk)]:
                writer.seek(len(chunk), os.SEEK_CUR)
            else:
                written = 0
                while written < len(chunk):
                    written += writer.write(chunk[written:]) or 0
            done += len(chunk)
            report(done, total)
        writer.truncate(done)
        os.fsync(writer.fileno())
    return digest.hexdigest()
