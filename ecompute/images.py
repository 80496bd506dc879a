"""The host's cache of disk images: each fetched once, checked, never changed again, used by any number of guests.

``<directory>/<sha256 of the bytes>.<format>`` is an image, whole since it is there under that name. An image that comes
compressed is unpacked on the way, one of another hypervisor's format is converted once: a checksum is held against what was
downloaded, the name is that of what is kept.
``<directory>/index/`` holds a small file for each address (and each checksum that the name does not tell) that says which image
it led to, so that the second guest asks nobody: a URL once fetched is asked again only where a checksum is given that no image
here has, or after ``images.revalidate_after_hours``, by the age of that file; then it is asked whether it has something newer.
A local file is known by path, size, time of change and inode. Threads that want the same image share one fetch.
``*.partial`` files are a fetch in hand, locked by its process; what a dead process left goes at the next start. An image's time
of change is when it was last used: by that ``cache_keeper`` removes what nothing rests on, never while it is held (``held``).

Knows sources only through ``image_sources``, formats only through ``image_probe`` and ``image_conversion``. Called by the
builder and the facts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.config import ImagesConfig
from common.errors import Cancelled, ChecksumMismatch, ImageInvalid, ImageNotFound, ImageUnavailable, InvalidSpec, NoSpace
from common.files import PARTIAL, file_errors, fsync_directory, make_directory, partial_path
from common.model import ImageRef
from ecompute import image_conversion, image_holds, image_probe, image_unpacking
from ecompute.image_flight import Flight
from ecompute.image_index import PIN, ImageIndex
from ecompute.image_sources import Source, Stream, shown_url, source_of

FORMATS = ("qcow2", "raw")
IMAGE_MODE = 0o644  # QEMU, which runs as another user, reads it
DIRECTORY_MODE = 0o711  # and passes through here to it
SPARE_BYTES = 64 << 20  # never fill the file system to the last block: the guests write to it too
_DIGEST_CHARACTERS = {"sha256": 64, "sha512": 128}
_GIB = 1 << 30
_ASKED_IN_VAIN_SECONDS = 300.0  # each guest of a burst would else wait for a server that is not there
_LOOK_AT_ROOM_EVERY_BYTES = 64 << 20  # of an image whose size nobody said, or that is unpacked
_PIECE_BYTES = 4 << 20
_ZEROS = bytes(64 * 1024)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImage:
    """An image in the cache, there to be a guest's read-only backing file. *digest* is the sha256 of its bytes, in hex."""

    path: Path
    format: str  # "qcow2" | "raw"; told to QEMU, which must not guess
    virtual_size_bytes: int
    digest: str


class ImageCache:
    """The cache in *directory*, which is made where it is missing.

    Args:
        make_room: called with how many bytes are missing for a fetch; it may remove images that nothing rests on, and says
            whether it did.
        grown: called when an image has come, before those who wait for it have it; it never raises.
        is_owner: whether it is rid of what dead fetches left; of several at one time only the daemon's own.
    """

    def __init__(
        self, directory: Path, config: ImagesConfig, *, make_room: Callable[[int], bool] = lambda _: False,
        grown: Callable[[], None] = lambda: None, is_owner: bool = True,
    ) -> None:  # fmt: skip
        self._directory, self._config, self._make_room, self._grown = directory, config, make_room, grown
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, str | None], Flight[CachedImage]] = {}
        self._not_asked_until: dict[str, float] = {}  # by the monotonic clock: addresses whose server did not answer
        make_directory(directory, DIRECTORY_MODE)
        self._index = ImageIndex(directory / "index")
        if is_owner:
            _remove_dead_partials(directory)
            self._index.clean()

    def is_cached(self, image: ImageRef) -> CachedImage | None:
        """*image*, where it is here; asks no server and changes nothing."""
        try:
            algorithm, wanted = _checksum(image)
            if algorithm == "sha256" and (found := self._by_digest(wanted)):
                return found
            key = f"{algorithm}:{wanted}" if algorithm else self._source(image).key()
        except (ImageNotFound, InvalidSpec):  # ``fetch`` says so
            return None
        entry = self._index.read(key)
        return self._by_digest(str(entry["digest"])) if entry else None

    @contextlib.contextmanager
    def held(self, image: ImageRef) -> Iterator[CachedImage | None]:
        """*image*, which does not leave the cache meanwhile, and counts as used now; None where it is not here."""
        cached = self.is_cached(image)
        with image_holds.shared(cached.path) if cached else contextlib.nullcontext(False) as is_held:
            yield cached if is_held else None

    def pin(self, item: str, cached: CachedImage) -> None:
        """Note that *item* of compute.yaml, a name or an address, is *cached*, which stays for as long as it stands there."""
        entry = self._index.read(f"{PIN}{item}")
        if entry is None or entry["digest"] != cached.digest:
            self._write_entry(f"{PIN}{item}", item, cached, {})

    def is_ready(self, image: ImageRef) -> bool:
        """Whether *image* is here, and its server need not be asked for something newer before a guest gets it."""
        return self.is_cached(image) is not None and not self._is_due(image)

    def _is_due(self, image: ImageRef) -> bool:
        """Whether the address of *image*, which is here, is to be asked again."""
        hours, source = self._config.revalidate_after_hours, self._source(image)
        if image.checksum is not None or hours is None or not source.may_change:
            return False
        key = source.key()
        if time.monotonic() < self._not_asked_until.get(key, 0.0):
            return False
        touched_at = self._index.touched_at(key)
        # A clock that was set back makes it due, too.
        return touched_at is not None and not 0 <= time.time() - touched_at < hours * 3600

    def fetch(self, image: ImageRef, *, progress: Callable[[int, int], None], is_cancelled: Callable[[], bool]) -> CachedImage:
        """*image*, fetched where it is not here yet, or where its address has something newer; returns at once where it is.

        Args:
            progress: called in this thread with the bytes that came and all that there will be (0: unknown).
            is_cancelled: asked often; others who want the same image go on with the fetch.

        Raises:
            Cancelled: *is_cancelled* said so.
            ImageNotFound, ImageInvalid, ChecksumMismatch, NoSpace, InvalidSpec: it will not work.
            ImageUnavailable: it may work later.
        """
        while True:
            if (cached := self.is_cached(image)) and not self._is_due(image):
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
                    work=lambda mine: self._fetch_or_know(source, image, {"sha256", algorithm or "sha256"}, mine),
                    landed=lambda mine: self._landed(key, mine),
                )
                flight.take_off(f"fetch {source.shown}")
                self._flights[key] = flight
            return flight

    def _landed(self, key: tuple[str, str | None], flight: Flight[CachedImage]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _fetch_or_know(self, source: Source, image: ImageRef, algorithms: set[str], flight: Flight[CachedImage]) -> CachedImage:
        """Fetch it; where nothing newer can be had, what this address led to before is good enough."""
        known = self.is_cached(image)
        try:
            fetched = self._fetch(source, image, algorithms, flight, known)
            self._grown()
            return fetched
        except (ImageInvalid, ImageNotFound, ImageUnavailable, NoSpace) as error:
            if known is None:
                raise
            self._not_asked_until[source.key()] = time.monotonic() + _ASKED_IN_VAIN_SECONDS
            logger.warning("image=%s is used as it was fetched before, nothing newer can be had: %s", source.shown, error)
            return known

    def _fetch(
        self, source: Source, image: ImageRef, algorithms: set[str], flight: Flight[CachedImage], known: CachedImage | None
    ) -> CachedImage:
        key = source.key()
        validators = (self._index.read(key) or {}) if known else {}
        with source.open(validators) as stream, self._partial(source.shown) as partial:
            if known and stream.is_unchanged:
                self._index.touch(key)
                return known
            self._check_room(stream.total_bytes, source.shown)
            published, digest = self._receive(stream, partial.descriptor, source.shown, flight, algorithms)
            _check_checksum(image, published, source.shown)
            image_format = image_conversion.format_of(partial.descriptor)
            if image_format:
                cached = self._converted(partial, image_format, digest, source.shown, flight)
            else:
                cached = self._keep(partial, digest, image_probe.probe(partial.descriptor, f"image {source.shown}"))
        self._write_entry(key, source.shown, cached, stream.validators)
        for algorithm, digits in published.items():
            if digits != cached.digest:  # the name in the cache does not tell it
                self._write_entry(f"{algorithm}:{digits}", source.shown, cached, {})
        return cached

    def _converted(
        self, source: _Partial, image_format: str, digest: str, shown: str, flight: Flight[CachedImage]
    ) -> CachedImage:
        """The qcow2 made of *source*, whose sha256 is *digest*; made once, wherever such a file comes from."""
        what, key = f"image {shown}", f"{image_conversion.RECIPE}:{digest}"
        image_conversion.check(source.descriptor, image_format, what)
        entry = self._index.read(key)
        if entry and (known := self._by_digest(str(entry["digest"]))):
            return known
        size = os.fstat(source.descriptor).st_size

        def go_on() -> None:
            flight.report(size, size)
            self._check_room(0, shown)

        with self._partial(shown) as target:
            most_bytes = self._config.max_size_gib * _GIB
            with file_errors(f"cannot convert {what}", self._directory):
                image_conversion.convert(
                    source.path, target.descriptor, image_format, what=what, most_bytes=most_bytes, report=go_on
                )
            probed = image_probe.probe(target.descriptor, f"{what}, converted,")
            cached = self._keep(target, _sha256(target.descriptor, go_on), probed)
        self._write_entry(key, shown, cached, {})
        return cached

    def _receive(
        self, stream: Stream, descriptor: int, shown: str, flight: Flight[CachedImage], algorithms: set[str]
    ) -> tuple[dict[str, str], str]:
        """Write what comes, unpacked; the digests of what was downloaded, and the sha256 of what was written."""
        published = {name: hashlib.new(name) for name in algorithms}
        kept, unpacker, is_cloned = published["sha256"], None, False
        came = written = room_seen_at = 0
        flight.report(came, stream.total_bytes)
        for chunk in stream.chunks:
            if came == 0:
                unpacker = image_unpacking.unpacker_of(chunk, f"image {shown}")
                kept = hashlib.sha256() if unpacker else kept
                is_cloned = unpacker is None and stream.clone_to(descriptor)
            came += len(chunk)
            for digest in published.values():
                digest.update(chunk)
            for piece in unpacker.feed(chunk) if unpacker else (chunk,):
                if written == 0:
                    image_probe.refuse_foreign(piece, f"image {shown}{', unpacked,' if unpacker else ''}")
                written += len(piece)
                self._check_size(written, shown)
                if not is_cloned:
                    with file_errors(f"cannot keep image {shown}", self._directory):
                        _write_sparsely(descriptor, piece)
                if unpacker:
                    kept.update(piece)
                    flight.report(came, stream.total_bytes)  # a little data can unpack to very much
                if written - room_seen_at >= _LOOK_AT_ROOM_EVERY_BYTES:
                    self._check_room(0, shown)
                    room_seen_at = written
            self._check_size(came, shown)
            flight.report(came, stream.total_bytes)
        if unpacker:
            unpacker.finish()
        with file_errors(f"cannot keep image {shown}", self._directory):
            os.ftruncate(descriptor, written)
        return {name: digest.hexdigest() for name, digest in published.items()}, kept.hexdigest()

    def _check_room(self, total_bytes: int, shown: str) -> None:
        """Before *total_bytes* are fetched (0: unknown) and on the way: they may be kept at all, and there is room for them."""
        self._check_size(total_bytes, shown)
        free = self._free_bytes()
        if free < total_bytes + SPARE_BYTES and self._make_room(total_bytes + SPARE_BYTES - free):
            free = self._free_bytes()
        if free < total_bytes + SPARE_BYTES:
            raise NoSpace(
                f"image {shown} has {f'{total_bytes >> 20} MiB' if total_bytes else 'more to come'}, and {self._directory} has "
                f"{free >> 20} MiB free: "
                "free space on that file system, or move paths.state_dir to a larger one"
            )

    def _free_bytes(self) -> int:
        with file_errors("cannot look at the free space", self._directory):
            return shutil.disk_usage(self._directory).free

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
        with file_errors(f"cannot keep image {shown}", self._directory):
            path, descriptor = _new_partial(self._directory)
        try:
            yield _Partial(path, descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def _keep(self, partial: _Partial, digest: str, probed: image_probe.Probed) -> CachedImage:
        path = self._directory / f"{digest}.{probed.format}"
        with image_holds.shared(path) as is_there:  # the same bytes came from elsewhere before: guests may rest on that file
            pass
        if not is_there:
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

    def _write_entry(self, key: str, shown: str, cached: CachedImage, validators: dict[str, str]) -> None:
        self._index.write(key, shown, cached.digest, validators)

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
            f"image {shown} has {algorithm}:{digests[algorithm]} as downloaded, not {algorithm}:{wanted} as asked for: "
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


def _sha256(descriptor: int, go_on: Callable[[], None]) -> str:
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _PIECE_BYTES, offset):
        digest.update(piece)
        offset += len(piece)
        go_on()
    return digest.hexdigest()


def _new_partial(directory: Path) -> tuple[Path, int]:
    """A new file and its descriptor, locked: whoever cleans up just now may take it for a dead one's until it is."""
    while True:
        path = partial_path(directory / "fetch")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)


def _remove_dead_partials(directory: Path) -> None:
    """Remove what processes left that died in the middle of a fetch; one that lives holds its lock."""
    with file_errors("cannot clean up", directory):
        for path in directory.glob(f"*{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as left, contextlib.suppress(BlockingIOError):
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
