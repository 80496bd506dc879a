"""Images of instances that are being made on this host, each in a thread of its own, begun, asked after and given up by letter.

The letter is the same for all of that (``common/image_jobs.py``): it begins what is not there, and is answered at once by how
far it is. Nothing is kept on the disk: a process that begins anew takes away what the last one left, and the next letter begins
the work again. What nobody has asked after for a minute is given up; if it was published by then, and no image of the registry
names it, the file is removed again.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from uuid import UUID

from common.config import ComputeConfig
from common.errors import Cancelled, EcomputeError, Permanent, Transient
from common.findings import Letter
from common.image_jobs import ABANDONED_AFTER_SECONDS, DONE, KIND, ImageJob, Stage
from common.keys import Keys
from common.logs import fields
from common.store import Store
from ecompute.disk_copying import DiskCopier
from ecompute.image_making import ImageMaker, Made, Sealer
from ecompute.image_publishing import PublishFolder
from ecompute.world import World

logger = logging.getLogger(__name__)
LOOK_EVERY_SECONDS = 1.0
CLEAN_AGAIN_SECONDS = 5.0


@dataclasses.dataclass
class _Job:
    """One image on its way; guarded by the lock of ``ImageJobs``."""

    uuid: UUID
    seals: bool
    asked_at: float
    said: ImageJob
    is_done: bool = False  # the client has registered it


class ImageJobs:
    """The images that are being made, one at a time.

    Args:
        is_named: whether the registry has an image of this checksum; may raise ``EcomputeError``.
    """

    def __init__(
        self, maker: ImageMaker, *, provider: UUID, host: str, is_named: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._maker, self._provider, self._host, self._is_named, self._clock = maker, provider, host, is_named, clock
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._jobs: dict[UUID, _Job] = {}
        self._stop = threading.Event()
        self._is_clean = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Take away what a dead process left, over every fault of libvirt; then end all that is under way at *stop*."""
        while not self._is_clean.is_set() and not stop.is_set():
            try:
                self._maker.clean_up()
                self._is_clean.set()
            except EcomputeError as error:
                logger.warning("what an earlier process copied is not cleaned up yet: %s", error)
                stop.wait(CLEAN_AGAIN_SECONDS)
        stop.wait()
        self._stop.set()

    def answer(self, letter: Letter) -> str | None:
        """How far the image is that *letter* asks for, which begins it; None where it is of another kind.

        Raises:
            ValueError: the letter makes no sense.
        """
        if letter.kind not in (KIND, DONE):
            return None
        (job_id,), (uuid,) = (tuple(map(UUID, letter.arguments.get(name, ()))) for name in ("jobs", "instances"))
        with self._lock:
            job = self._jobs.get(job_id)
            if letter.kind == DONE:
                if job is not None:
                    job.is_done = True
                    del self._jobs[job_id]  # the name may be removed and asked for anew at once: that is another image
                return self._said(Stage.PUBLISHED).to_json()
            if job is None:
                job = self._jobs[job_id] = _Job(uuid, letter.arguments.get("seal") == ("yes",), 0.0, self._said(Stage.WAITING))
                threading.Thread(target=self._work, args=(job_id, job), name=f"image-of-{uuid}", daemon=True).start()
            job.asked_at = self._clock()
            if job.said.stage is Stage.FAILED:
                del self._jobs[job_id]  # it was told; asked again, it is tried again
            return job.said.to_json()

    # -- one of them -------------------------------------------------------------------------------------------------------

    def _work(self, job_id: UUID, job: _Job) -> None:
        try:
            with self._in_turn(job):
                logger.info("an image is made", extra=fields(instance=job.uuid, seals=job.seals))
                made = self._maker.make(job.uuid, seals=job.seals, tell=lambda *far: self._tell(job, *far))
        except Cancelled:
            logger.info("an image is given up", extra=fields(instance=job.uuid))
            self._drop(job_id, job)
            return
        except EcomputeError as error:
            self._fail(job_id, job, error)
            return
        except Exception as error:  # other images can be made; this client is told
            logger.exception("an image is not made; this is a bug, please report it", extra=fields(instance=job.uuid))
            self._fail(job_id, job, Permanent(f"a bug in ecompute, see its log: {error!r}", "Bug"))
            return
        logger.info("an image is published", extra=fields(instance=job.uuid, path=made.published.path))
        self._await_client(job_id, job, made)

    def _in_turn(self, job: _Job) -> _Turn:
        """Wait until no other image is made, and what a dead process left is gone.

        Raises:
            Cancelled: nobody waits for it any more.
        """
        while not (self._is_clean.wait(LOOK_EVERY_SECONDS) and self._turn.acquire(timeout=LOOK_EVERY_SECONDS)):
            self._tell(job, Stage.WAITING, 0, 0)
        return _Turn(self._turn)

    def _tell(self, job: _Job, stage: Stage, done: int, total: int) -> None:
        if self._is_over(job):
            raise Cancelled(f"nobody waits for the image of {job.uuid} any more")
        with self._lock:
            job.said = self._said(stage, done=done, total=total)

    def _is_over(self, job: _Job) -> bool:
        with self._lock:
            return self._stop.is_set() or self._clock() - job.asked_at > ABANDONED_AFTER_SECONDS

    def _fail(self, job_id: UUID, job: _Job, error: EcomputeError) -> None:
        reason = error.reason if isinstance(error, Permanent) else "Transient"
        logger.warning("an image is not made: %s", error, extra=fields(instance=job.uuid, reason=reason))
        with self._lock:
            job.said = self._said(Stage.FAILED, problem=str(error), reason=reason)
        while not self._is_over(job):
            with self._lock:
                if self._jobs.get(job_id) is not job:
                    return
            self._stop.wait(LOOK_EVERY_SECONDS)
        self._drop(job_id, job)

    def _await_client(self, job_id: UUID, job: _Job, made: Made) -> None:
        """Tell what was published until the client has registered it; where it never does, take it back."""
        with self._lock:
            job.said = self._said(
                Stage.PUBLISHED, url=made.published.url, checksum=made.published.checksum,
                virtual_size_bytes=made.virtual_size_bytes, note=made.note,
            )  # fmt: skip
        while not (job.is_done or self._stop.is_set()):
            if self._is_over(job) and self._is_settled(job, made):
                break
            self._stop.wait(LOOK_EVERY_SECONDS)
        self._drop(job_id, job)

    def _is_settled(self, job: _Job, made: Made) -> bool:
        """Whether the file is an image of the registry, or gone again; False where that is to be asked once more."""
        try:
            if not self._is_named(made.published.checksum):
                self._maker.take_back(made)
                logger.warning("an image that nobody registered is removed again", extra=fields(instance=job.uuid))
        except Transient as error:
            logger.debug("whether the image is registered cannot be asked: %s", error)
            return False
        except EcomputeError as error:
            logger.warning("an image that nobody registered stays: %s", error, extra=fields(path=made.published.path))
        return True

    def _drop(self, job_id: UUID, job: _Job) -> None:
        with self._lock:
            if self._jobs.get(job_id) is job:
                del self._jobs[job_id]

    def _said(self, stage: Stage, **more: object) -> ImageJob:
        return dataclasses.replace(ImageJob(self._provider, self._host, stage), **more)  # type: ignore[arg-type]


class _Turn:
    """The turn of one image, given back with the block."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def image_jobs(
    world: World, store: Store, keys: Keys, *, config: ComputeConfig, provider: UUID, host: str,
    sealer: Callable[[], Sealer | None],
) -> ImageJobs:  # fmt: skip
    """The images of this host, as *config* has them published."""

    def is_named(checksum: str) -> bool:
        return any(checksum in item.value for item in store.list(keys.images()).items)

    folder, state, images = None, config.paths.state_dir, config.images
    if images.publish_directory is not None and images.publish_url is not None:
        folder = PublishFolder(images.publish_directory, images.publish_url, provider)
    copier = DiskCopier(world.hypervisor, world.disks, directory=state / "copies", images=state / "images")
    return ImageJobs(ImageMaker(copier, folder, sealer), provider=provider, host=host, is_named=is_named)
