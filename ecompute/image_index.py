"""What led to each cached image: a small file for each address, checksum or pin, by the digest of its text.

An entry is written after its image is there, and may outlive it: whoever reads one looks for the image. Losing one costs a
fetch or a question, never a guest. Knows nothing of images; ``images`` and ``cache_keeper`` use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import file_errors, make_directory, remove_partials, write_atomically

PIN = "pin:"  # and the text of compute.yaml: what it led to when it was fetched


class ImageIndex:
    """The entries in *directory*, which is made where it is missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_directory(directory, 0o700)

    def clean(self) -> None:
        """Remove what dead writers left; before the first writer starts."""
        remove_partials(self._directory)

    def read(self, key: str) -> dict[str, Any] | None:
        """What *key* led to; None where that is not known, or not readable: then it is fetched again."""
        entry = _read(self._path(key))
        return entry if entry and entry["key"] == key else None

    def write(self, key: str, shown: str, digest: str, more: Mapping[str, str]) -> None:
        entry = {"key": key, "source": shown, "digest": digest, **more}
        write_atomically(self._path(key), json.dumps(entry, sort_keys=True).encode())

    def touch(self, key: str) -> None:
        """*key* was asked again just now. Where that cannot be noted it is only asked again the sooner."""
        with contextlib.suppress(OSError):
            os.utime(self._path(key))

    def touched_at(self, key: str) -> float | None:
        """When *key* was written or touched, by the wall clock; None where it is not known."""
        try:
            return self._path(key).stat().st_mtime
        except OSError:
            return None

    def entries(self) -> Iterator[dict[str, Any]]:
        """All that are readable."""
        for path in self._paths():
            if entry := _read(path):
                yield entry

    def drop(self, digests: Collection[str]) -> None:
        """Remove what led to images that are no longer here."""
        for path in self._paths():
            entry = _read(path)
            if entry and entry["digest"] in digests:
                path.unlink(missing_ok=True)

    def pinned(self, items: Collection[str]) -> set[str]:
        """The digests that *items* of compute.yaml led to."""
        return {str(entry["digest"]) for item in items if (entry := self.read(f"{PIN}{item}"))}

    def _paths(self) -> list[Path]:
        with file_errors("cannot list the index of images", self._directory):
            return sorted(self._directory.glob("*.json"))

    def _path(self, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and "key" in entry and isinstance(entry.get("digest"), str) else None
