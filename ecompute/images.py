"""The host's cache of disk images: each fetched once, checked, never changed again, used by any number of guests.

``<directory>/<sha256 of the bytes>.<format>`` is an image, whole since it is there under that name. ``<directory>/index/``
holds a small file for each address (and each sha512) that says which image it led to, so that the second guest asks nobody: a
URL once fetched is not asked again unless a checksum is given that no image here has; a local file is known by path, size, time
of change and inode. Threads that want the same image share one fetch. ``*.partial`` files are a fetch in hand, locked by its
process; what a dead process left goes at the next start.

Knows sources only through ``image_sources`` and formats only through ``image_probe``. Called by the builder and the facts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import ImagesConfig
from common.errors import Cancelled, ChecksumMismatch, ImageInvalid, ImageNotFound, InvalidSpec, NoSpace
from common.files import PARTIAL, file_errors, fsync_directory, make_directory, partial_path, remove_partials, write_atomically
from common.model import ImageRef
from ecompute import image_probe
from ecompute.image_flight import Flight
from ecompute.image_sources import Source, Stream, shown_url, source_of

FORMATS = ("qcow2", "raw")
IMAGE_MODE = 0o644  # QEMU, which runs as another user, reads it
DIRECTORY_MODE = 0o711  # and passes through here to it
SPARE_BYTES = 64 << 20  # never fill the file system to the last block: the guests write to it too
_DIGEST_CHARACTERS = {"sha256": 64, "sha512": 128}
_GIB = 1 << 30
_ZEROS = bytes(64 * 1024)


@dataclass(frozen=True)
class CachedImage:
    """An image in the cache, there to be a guest's read-only backing file. *digest* is the sha256 of its bytes, in hex."""

    path: Path
    format: str  # "qcow2" | "raw"; told to QEMU, which must not guess
    virtual_size_bytes: int
    digest: str


class ImageCache:
    """The cache in *directory*, which is made where it is missing and rid of what dead fetches left."""

    def __init__(self, directory: Path, config: ImagesConfig) -> None:
        self._directory, self._index, self._config = directory, directory / "index", config
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, str | None], Flight[CachedImage]] = {}
        make_directory(directory, DIRECTORY_MODE)
        make_directory(self._index, 0o700)
        _remove_dead_partials(directory)
        remove_partials(self._index)

    def is_cached(self, image: ImageRef) -> CachedImage | None:
        """*image*, where it is here; asks no server and changes nothing."""
        try:
            algorithm, wanted = _checksum(image)
            if algorithm == "sha256":
                return self._by_digest(wanted)
            key = f"sha512:{wanted}" if algorithm else self._source(image).key()
        except (ImageNotFound, InvalidSpec):  # ``fetch`` says so
            return None
        entry = self._read_entry(key)
        return self._by_digest(str(entry["digest"])) if entry else None

    def fetch(self, image: ImageRef, *, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]) -> CachedImage:
        """*image*, fetched where it is not here yet; returns at once where it is.

        Args:
            progress: called in this thread with the bytes that came and all that there will be (0: unknown).
            is_cancelled: asked often; others who want the same image go on with the fetch.

        Raises:
            Cancelled: *is_cancelled* said so.
            ImageNotFound, ImageInvalid, ChecksumMismatch, NoSpace, InvalidSpec: it will not work.
            ImageUnavailable: it may work later.
        """
        while True:
            if cached := self.is_cached(image):
                return cached
            if is_cancelled():
                raise _cancelled(image)
            flight = self._join(image)
            try:
                if found := flight.wait(progress, is_cancelled):
                    return found
                if not flight.is_over:
                    raise _cancelled(image)
            finally:
                flight.leave()

    # -- one fetch, for all who want it ------------------------------------------------------------------------------------

    def _join(self, image: ImageRef) -> Flight[CachedImage]:
        """The fetch of *image* that is under way, or a new one."""
        algorithm, _ = _checksum(image)
        source = self._source(image)
        key = (source.key(), image.checksum)
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or not flight.join():
                flight = Flight(
                    work=lambda mine: self._fetch(source, image, {"sha256", algorithm or "sha256"}, mine),
                    landed=lambda mine: self._landed(key, mine),
                )
                flight.take_off(f"fetch {source.shown}")
                self._flights[key] = flight
            return flight

    def _landed(self, key: tuple[str, str | None], flight: Flight[CachedImage]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _fetch(self, source: Source, image: ImageRef, algorithms: set[str], flight: Flight[CachedImage]) -> CachedImage:
        key = source.key()
        with source.open() as stream, self._partial(source.shown) as partial:
            self._check_room(stream.total_bytes, source.shown)
            hashes = {name: hashlib.new(name) for name in algorithms}
            for chunk in self._received(stream, partial.descriptor, source.shown, flight):
                for digest in hashes.values():
                    digest.update(chunk)
            digests = {name: digest.hexdigest() for name, digest in hashes.items()}
            _check_checksum(image, digests, source.shown)
            probed = image_probe.probe(partial.descriptor, f"image {source.shown}")
            cached = self._keep(partial, digests["sha256"], probed)
        self._write_entry(key, source.shown, cached, stream.validators)
        if "sha512" in digests:
            self._write_entry(f"sha512:{digests['sha512']}", source.shown, cached, {})
        return cached

    def _received(self, stream: Stream, descriptor: int, shown: str, flight: Flight[CachedImage]) -> Iterator[bytes]:
        """What comes, passed on when it is written."""
        is_cloned, done = stream.clone_to(descriptor), 0
        flight.report(done, stream.total_bytes)
        for chunk in stream.chunks:
            if done == 0:
                image_probe.refuse_foreign(chunk, f"image {shown}")
            done += len(chunk)
            self._check_size(done, shown)
            if not is_cloned:
                with file_errors(f"cannot keep image {shown}", self._directory):
                    _write_sparsely(descriptor, chunk)
            yield chunk
            flight.report(done, stream.total_bytes)
        with file_errors(f"cannot keep image {shown}", self._directory):
            os.ftruncate(descriptor, done)

    def _check_room(self, total_bytes: int, shown: str) -> None:
        """Before a byte is fetched, where the size is known: it may be kept at all, and there is room for it."""
        self._check_size(total_bytes, shown)
        with file_errors("cannot look at the free space", self._directory):
            free = shutil.disk_usage(self._directory).free
        if free < total_bytes + SPARE_BYTES:
            raise NoSpace(
                f"image {shown} has {total_bytes >> 20} MiB, and {self._directory} has {free >> 20} MiB free: "
                "free space on that file system, or move paths.state_dir to a larger one"
            )

    def _check_size(self, size_bytes: int, shown: str) -> None:
        if size_bytes > self._config.max_size_gib * _GIB:
            raise ImageInvalid(
                f"image {shown} has more than {self._config.max_size_gib} GiB: raise images.max_size_gib where that is right",
                "ImageTooLarge",
            )

    # -- files -------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _partial(self, shown: str) -> Iterator[_Partial]:
        """A new file to be filled; it is gone afterwards, unless it was kept under its final name."""
        path = partial_path(self._directory / "fetch")
        with file_errors(f"cannot keep image {shown}", self._directory):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield _Partial(path, descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _keep(self, partial: _Partial, digest: str, probed: image_probe.Probed) -> CachedImage:
        path = self._directory / f"{digest}.{probed.format}"
        if not path.exists():  # else the same bytes came from elsewhere before, and guests may rest on that file
            with file_errors("cannot keep image", path):
                os.fchmod(partial.descriptor, IMAGE_MODE)
                os.fsync(partial.descriptor)
                partial.path.rename(path)
                fsync_directory(self._directory)
        return CachedImage(path, probed.format, probed.virtual_size_bytes, digest)

    def _by_digest(self, digest: str) -> CachedImage | None:
        for image_format in FORMATS:
            path = self._directory / f"{digest}.{image_format}"
            with file_errors("cannot read the image", path):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    return CachedImage(path, image_format, image_probe.virtual_size(descriptor, image_format), digest)
                finally:
                    os.close(descriptor)
        return None

    def _entry_path(self, key: str) -> Path:
        return self._index / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    def _read_entry(self, key: str) -> dict[str, Any] | None:
        """What *key* led to; None where that is not known, or not readable: then it is fetched again."""
        try:
            entry = json.loads(self._entry_path(key).read_bytes())
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) and entry.get("key") == key and "digest" in entry else None

    def _write_entry(self, key: str, shown: str, cached: CachedImage, validators: dict[str, str]) -> None:
        entry = {"key": key, "source": shown, "digest": cached.digest, **validators}
        write_atomically(self._entry_path(key), json.dumps(entry, sort_keys=True).encode())

    def _source(self, image: ImageRef) -> Source:
        return source_of(image.url, fetch_timeout_seconds=self._config.fetch_timeout_seconds)


@dataclass(frozen=True)
class _Partial:
    path: Path
    descriptor: int


def _cancelled(image: ImageRef) -> Cancelled:
    return Cancelled(f"fetching image {shown_url(image.url)} was given up: it is no longer wanted")


def _checksum(image: ImageRef) -> tuple[str, str]:
    """Algorithm and hex digits that the user gave; two empty texts where he gave none.

    Raises:
        InvalidSpec: no such checksum exists.
    """
    if image.checksum is None:
        return "", ""
    algorithm, _, digits = image.checksum.lower().partition(":")
    length = _DIGEST_CHARACTERS.get(algorithm)
    if length is None or len(digits) != length or not set(digits) <= set("0123456789abcdef"):
        raise InvalidSpec(f"checksum {image.checksum!r} is neither sha256:<64 hex digits> nor sha512:<128 hex digits>")
    return algorithm, digits


def _check_checksum(image: ImageRef, digests: dict[str, str], shown: str) -> None:
    algorithm, wanted = _checksum(image)
    if algorithm and digests[algorithm] != wanted:
        raise ChecksumMismatch(
            f"image {shown} has {algorithm}:{digests[algorithm]}, not {algorithm}:{wanted} as asked for: "
            "it was changed at its source, or the checksum is that of another image"
        )


def _write_sparsely(descriptor: int, chunk: bytes) -> None:
    """Append *chunk*; blocks of zeros become holes, as they are most of a raw image."""
    for start in range(0, len(chunk), len(_ZEROS)):
        block = chunk[start : start + len(_ZEROS)]
        if block == _ZEROS:
            os.lseek(descriptor, len(block), os.SEEK_CUR)
            continue
        while block:
            block = block[os.write(descriptor, block) :]


def _remove_dead_partials(directory: Path) -> None:
    """Remove what processes left that died in the middle of a fetch; one that lives holds its lock."""
    with file_errors("cannot clean up", directory):
        for path in directory.glob(f"*{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as left, contextlib.suppress(BlockingIOError):
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
