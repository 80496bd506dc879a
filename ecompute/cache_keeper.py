"""Keeps the image cache within its bounds: removes images that nothing rests on, and knows who uses which.

It acts when an image has come, when one finds no room, and with the host's regular look, then at most once an hour. An image
goes only while its lock is held alone (``image_holds``), after all disks of this host were read (``image_users``), and only
where every guest's disk is there to be read: a file system that is not mounted makes all images look unused. Whatever is not
certain stays. It keeps no count and no list: killed anywhere, the next look finds what is there. What it needs beside files it
is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.config import ImagesConfig
from common.errors import EcomputeError
from common.files import fsync_directory
from common.logs import fields
from ecompute import image_holds, image_users
from ecompute.image_eviction import Bounds, KeptImage, to_evict
from ecompute.image_index import ImageIndex
from ecompute.image_users import Unknown, Users

logger = logging.getLogger(__name__)
LOOK_EVERY_SECONDS = 3600.0  # at everything; images grow old by days
_GIB, _DAY_SECONDS, _DIGEST_CHARACTERS = 1 << 30, 86400.0, 64
_FORMATS = (".qcow2", ".raw")


@dataclass(frozen=True)
class Held:
    """An image with all that is known of it.

    Args:
        sources: the addresses that led to it, without what may be secret in them.
        checksums: "sha256:…", "sha512:…" of the files that it was published as.
    """

    image: KeptImage
    instances: frozenset[UUID]
    is_pinned: bool
    sources: tuple[str, ...]
    checksums: tuple[str, ...]


class CacheKeeper:
    """The keeper of the cache in *directory*.

    Args:
        roots: the folders that disks can be in.
        missing: the guests of this host whose disks are not where they should be; may raise ``EcomputeError``.
    """

    def __init__(
        self, directory: Path, roots: Sequence[Path], config: ImagesConfig, *,
        missing: Callable[[], Collection[UUID]] = lambda: (),
        now: Callable[[], float] = time.time, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._directory, self._roots, self._config, self._missing = directory, tuple(roots), config, missing
        self._now, self._clock = now, clock
        self._index = ImageIndex(directory / "index")
        self._lock = threading.Lock()
        self._look_due_at = 0.0  # by the monotonic clock
        self._said = ""

    # -- when to look ------------------------------------------------------------------------------------------------------

    def grown(self) -> None:
        """An image has come: see that they are not too many."""
        if self._config.max_cache_gib is not None:
            self._evict(self._bounds())

    def make_room(self, wanted_bytes: int) -> bool:
        """Remove images until *wanted_bytes* more are free, or as many as can go; whether any went."""
        return self._evict(Bounds(wanted_bytes=wanted_bytes))

    def look(self) -> None:
        """See to the cache, where the last time is an hour ago: note who is in use, remove what is too old or too much."""
        if self._clock() < self._look_due_at:
            return
        self._look_due_at = self._clock() + LOOK_EVERY_SECONDS
        bounds = self._bounds()
        if bounds != Bounds():
            self._evict(bounds, is_thorough=True)

    def _bounds(self) -> Bounds:
        gib, days = self._config.max_cache_gib, self._config.evict_after_days
        return Bounds(None if gib is None else gib * _GIB, None if days is None else days * _DAY_SECONDS)

    # -- what there is -----------------------------------------------------------------------------------------------------

    def images(self) -> list[KeptImage]:
        """Every whole image in the cache."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._directory) as entries:
            for entry in entries:
                digest, image_format = os.path.splitext(entry.name)  # noqa: PTH122 - of a name, not of a path
                if len(digest) == _DIGEST_CHARACTERS and image_format in _FORMATS:
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        found.append(KeptImage(digest, image_format[1:], status.st_blocks * 512, status.st_mtime))
        return found

    def taken_bytes(self) -> int:
        """What the images take of the file system that the guests' disks are on; 0 where theirs is another."""
        try:
            if self._directory.stat().st_dev != self._directory.parent.stat().st_dev:
                return 0
        except OSError:
            return 0
        bound = 0 if self._config.max_cache_gib is None else self._config.max_cache_gib * _GIB
        return max(bound, sum(image.taken_bytes for image in self.images()))

    def held(self, *, with_users: bool = True) -> list[Held]:
        """All images, the last used first; *with_users*, else as if nobody used them.

        Raises:
            Unknown: who uses them cannot be told.
        """
        users = self._users() if with_users else Users({}, {})
        pinned, entries = self._index.pinned(self._config.prefetch), list(self._index.entries())
        found = []
        for image in sorted(self.images(), key=lambda image: image.used_at, reverse=True):
            own = [entry for entry in entries if entry["digest"] == image.digest]
            keys = [str(entry["key"]) for entry in own]
            addresses = {
                str(e["source"])
                for e in own
                if str(e["key"]).startswith(("url:", "file:")) and isinstance(e.get("source"), str)
            }
            sums = tuple(sorted(key for key in keys if key.startswith(("sha256:", "sha512:"))))
            instances = users.instances.get(image.digest, frozenset())
            found.append(Held(image, instances, image.digest in pinned, tuple(sorted(addresses)), sums))
        return found

    def _users(self) -> Users:
        return image_users.find_users(self._roots, without=self._directory)

    # -- eviction ----------------------------------------------------------------------------------------------------------

    def _evict(self, bounds: Bounds, *, is_thorough: bool = False) -> bool:
        """Remove what *bounds* have no room for; whether anything went. It never raises: an image too many harms nobody.

        Args:
            is_thorough: look who is in use, and note that, though nothing is to go by what is known without.
        """
        with self._lock:
            try:
                return self._evict_surplus(bounds, is_thorough=is_thorough)
            except Unknown as error:
                self._complain(f"no cached image is removed, since nobody can say what rests on them: {error}")
            except (EcomputeError, OSError) as error:
                self._complain(f"the image cache cannot be looked after: {error}")
            return False

    def _evict_surplus(self, bounds: Bounds, *, is_thorough: bool) -> bool:
        pinned = self._index.pinned(self._config.prefetch)
        free = [image for image in self.images() if image.digest not in pinned]
        if not free or not (is_thorough or to_evict(self.images(), bounds, spared=pinned, now=self._now())):
            return False
        with contextlib.ExitStack() as locks:
            # Held alone while the disks are read: nobody can begin to rest on one after that.
            alone = {i.digest for i in free if locks.enter_context(image_holds.alone(self._directory / i.file_name))}
            self._check_all_disks_are_there()
            users = self._users()
            used = {image.digest for image in free} & users.files.keys()
            self._note_use([image for image in free if image.digest in used])
            stay = pinned | used | ({image.digest for image in free} - alone)
            images = self.images()
            chosen = to_evict(images, bounds, spared=stay, now=self._now())
            for image in chosen:
                self._remove(image)
            if chosen:
                fsync_directory(self._directory)
        self._index.drop({image.digest for image in chosen})
        self._complain_of_too_much([image for image in images if image not in chosen], bounds)
        return bool(chosen)

    def _check_all_disks_are_there(self) -> None:
        """Raises: Unknown: a guest's disk is missing, and may be on a file system that is."""
        if missing := sorted(map(str, self._missing())):
            raise Unknown(f"the disk of {missing[0]} is not there" + (f", nor {len(missing) - 1} more" if missing[1:] else ""))

    def _note_use(self, used: Collection[KeptImage]) -> None:
        """An image is as old as the time since nothing rests on it, not since the last disk was made of it."""
        now = self._now()
        for image in used:
            with contextlib.suppress(OSError):
                os.utime(self._directory / image.file_name, (now, now))

    def _remove(self, image: KeptImage) -> None:
        (self._directory / image.file_name).unlink(missing_ok=True)
        idle_hours = round((self._now() - image.used_at) / 3600)
        more = fields(digest=image.digest[:12], mib=image.taken_bytes >> 20, idle_hours=idle_hours)
        logger.info("a cached image that nothing rests on is removed", extra=more)

    def _complain_of_too_much(self, left: Collection[KeptImage], bounds: Bounds) -> None:
        taken = sum(image.taken_bytes for image in left)
        if bounds.most_bytes is not None and taken > bounds.most_bytes:
            self._complain(
                f"the cached images take {taken / _GIB:.1f} GiB, more than images.max_cache_gib "
                f"({self._config.max_cache_gib}): they are in use, pinned, or were just fetched"
            )
        else:
            self._said = ""

    def _complain(self, text: str) -> None:
        if text != self._said:
            logger.warning("%s", text)
        self._said = text
