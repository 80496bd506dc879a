"""Fetches images that no guest waits for: those that compute.yaml lists, and those that letters name; one after the other.

A letter is answered at once with how far its fetch has come, so that nobody's letters wait for a download. What is listed is
looked at again every hour, since a name may mean another image by then, and is pinned: it stays in the cache for as long as it
is listed. A fetch that guests wait for, too, is the same one. It remembers nothing that a new process would miss.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from common.errors import Cancelled, EcomputeError, Permanent, Transient
from common.image_letters import FetchState
from common.image_records import ImageRecord
from common.keys import Keys
from common.model import ImageRef
from common.store import Store
from common.validate import is_image_name, parse_image
from ecompute.images import CachedImage, ImageCache

logger = logging.getLogger(__name__)
AGAIN_SECONDS, AGAIN_AFTER_FAILURE_SECONDS = 3600.0, 300.0
_MOST_REMEMBERED = 100  # fetches that are over, whose askers may still want to know how


@dataclass(frozen=True)
class Progress:
    """How far a fetch has come; fields as in ``image_letters.PrefetchReport``."""

    state: FetchState = FetchState.WAITING
    done: int = 0
    total: int = 0
    digest: str = ""
    message: str = ""


@dataclass
class _Job:
    """Written by the thread that fetches, read by the one that answers letters; each change is one assignment."""

    image: Callable[[], ImageRef]
    pinned_as: str = ""
    progress: Progress = field(default_factory=Progress)


def resolved(store: Store, keys: Keys, item: str) -> ImageRef:
    """The image that *item* of compute.yaml means: a name of the registry, an address or a path.

    Raises:
        Permanent: the name is not registered, or cannot be read. ConfigError: it is none of these.
        StoreUnavailable: no answer.
    """
    if not is_image_name(item):
        return parse_image(item)
    there = store.get(keys.image(item))
    if there is None:
        raise Permanent(f"there is no image {item} in the registry; see: eschedule image list", "NotFound")
    return ImageRecord.from_json(there.value).ref


class Prefetcher:
    """One host's.

    Args:
        wanted: images.prefetch of compute.yaml.
    """

    def __init__(
        self, images: ImageCache, store: Store, keys: Keys, wanted: Sequence[str], *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._images, self._store, self._keys, self._clock = images, store, keys, clock
        self._due_at = dict.fromkeys(wanted, 0.0)
        self._jobs: dict[str, _Job] = {}  # by the request that letters repeat
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: look whether it is time to stop
        self._said: dict[str, str] = {}

    def ask(self, request: str, image: ImageRef) -> Progress:
        """How far the fetch of *image* has come that *request* asked for; the first time it is begun."""
        job = self._jobs.get(request)
        if job is None:
            self._forget_some()
            job = self._jobs[request] = _Job(lambda: image)
            if (cached := self._images.is_cached(image)) and self._images.is_ready(image):
                job.progress = Progress(FetchState.HERE, digest=cached.digest)
            else:
                self._queue.put(job)
        return job.progress

    def look(self) -> None:
        """Have what is listed fetched where it is time to look at it."""
        for item, due_at in self._due_at.items():
            if self._clock() >= due_at:
                self._due_at[item] = float("inf")  # until it is done
                self._queue.put(_Job(lambda item=item: resolved(self._store, self._keys, item), item))  # type: ignore[misc]

    def wake(self) -> None:
        """Have ``run`` look whether it is to stop."""
        self._queue.put(None)

    def run(self, stop: threading.Event) -> None:
        """Fetch until *stop*. Who sets *stop* calls ``wake`` too."""
        self.look()
        while not stop.is_set():
            job = self._queue.get()
            if job is not None and not stop.is_set():
                self._do(job, stop)

    def _do(self, job: _Job, stop: threading.Event) -> None:
        try:
            job.progress = Progress(FetchState.FETCHING)
            cached = self._fetch(job, stop)
            if job.pinned_as:
                self._images.pin(job.pinned_as, cached)
            job.progress = replace(job.progress, state=FetchState.HERE, digest=cached.digest)
        except Cancelled:
            return
        except EcomputeError as error:
            state = FetchState.UNAVAILABLE if isinstance(error, Transient) else FetchState.FAILED
            job.progress = replace(job.progress, state=state, message=str(error))
        except Exception as error:  # the next image is another one's
            logger.exception("an image is not fetched; this is a bug, please report it")
            job.progress = replace(job.progress, state=FetchState.FAILED, message=f"a bug of ecompute: {error!r}")
        if job.pinned_as:
            self._note(job.pinned_as, job.progress)

    def _fetch(self, job: _Job, stop: threading.Event) -> CachedImage:
        def progress(done: int, total: int) -> None:
            job.progress = Progress(FetchState.FETCHING, done, total)

        return self._images.fetch(job.image(), progress=progress, is_cancelled=stop.is_set)

    def _note(self, item: str, progress: Progress) -> None:
        is_here = progress.state is FetchState.HERE
        self._due_at[item] = self._clock() + (AGAIN_SECONDS if is_here else AGAIN_AFTER_FAILURE_SECONDS)
        said = progress.digest if is_here else progress.message
        if self._said.get(item) == said:
            return
        self._said[item] = said
        if is_here:
            logger.info("image=%s of images.prefetch is here: sha256:%s", item, said)
        else:
            logger.warning("image=%s of images.prefetch cannot be fetched, and is tried again: %s", item, said)

    def _forget_some(self) -> None:
        over = [request for request, job in self._jobs.items() if job.progress.state.is_over]
        for request in over[: max(0, len(self._jobs) - _MOST_REMEMBERED)]:
            del self._jobs[request]
