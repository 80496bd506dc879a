"""The host's images in one place: the cache, its keeper, what is fetched ahead, and the letters that ask about them.

The agent makes it, has it look with each resync, and gives it a thread; all work is in the modules that it puts together.
"""

from __future__ import annotations

import datetime
import threading
from uuid import UUID

from common.config import ComputeConfig
from common.errors import ConfigError
from common.findings import Letter
from common.image_letters import CACHE, PREFETCH, CachedRow, CacheReport, PrefetchReport, fitted
from common.keys import Keys
from common.store import Store
from common.text import utc_text
from common.validate import parse_image
from ecompute.cache_keeper import CacheKeeper, Held
from ecompute.disk_use import DiskUse
from ecompute.disks import disk_in
from ecompute.hypervisor import Hypervisor
from ecompute.image_users import Unknown
from ecompute.images import ImageCache
from ecompute.prefetcher import Prefetcher


class ImageService:
    """One host's images."""

    def __init__(
        self, config: ComputeConfig, hypervisor: Hypervisor, store: Store, keys: Keys, *, provider: UUID, host: str
    ) -> None:  # fmt: skip
        state, self._most_gib = config.paths.state_dir, config.images.max_cache_gib or 0
        self._provider, self._host, self._hypervisor, self._instances = provider, host, hypervisor, state / "instances"
        self.keeper = CacheKeeper(state / "images", (state,), config.images, missing=self._guests_without_disk)
        self.cache = ImageCache(
            state / "images", config.images, make_room=self.keeper.make_room, grown=self.keeper.grown
        )  # fmt: skip
        self.prefetcher = Prefetcher(self.cache, store, keys, config.images.prefetch)
        self.disk_use = DiskUse()
        self.disk_use.add("cached images", self.keeper.taken_bytes)

    def look(self) -> None:
        """See to the cache and to what is to be in it; quick where it is not time for that."""
        self.keeper.look()
        self.prefetcher.look()

    def run(self, stop: threading.Event) -> None:
        """Fetch ahead until *stop* and then ``wake``."""
        self.prefetcher.run(stop)

    def wake(self) -> None:
        self.prefetcher.wake()

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*, at once; None where it is of another kind.

        Raises:
            ValueError: it names no image, or several.
            EcomputeError: the cache cannot be read.
        """
        if letter.kind == PREFETCH:
            return self._prefetch(letter)
        return self._list() if letter.kind == CACHE else None

    def _prefetch(self, letter: Letter) -> str:
        (url,), (request,) = letter.arguments.get("url", ()), letter.arguments.get("request", ())
        checksum = next(iter(letter.arguments.get("checksum", ())), None)
        try:
            image = parse_image(url, checksum)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        now = self.prefetcher.ask(request, image)
        return PrefetchReport(
            self._provider, self._host, now.state, now.done, now.total, now.digest, now.message[:2000]
        ).to_json()  # fmt: skip

    def _list(self) -> str:
        problem, most = "", self._most_gib << 30
        try:
            held = self.keeper.held()
        except Unknown as error:
            problem, held = str(error), self.keeper.held(with_users=False)
        rows = tuple(_row(one, has_users=not problem) for one in held)
        return fitted(CacheReport(self._provider, self._host, rows, most, problem))

    def _guests_without_disk(self) -> list[UUID]:
        ours = [d.uuid for d in self._hypervisor.list() if d.stamp and d.stamp.provider == self._provider]
        return [uuid for uuid in ours if not disk_in(self._instances / str(uuid)).is_file()]


def _row(one: Held, *, has_users: bool) -> CachedRow:
    image = one.image
    used_at = utc_text(datetime.datetime.fromtimestamp(image.used_at, datetime.UTC))
    instances = len(one.instances) if has_users else -1
    return CachedRow(
        image.digest, image.format, image.taken_bytes, used_at, instances, one.is_pinned, one.sources, one.checksums
    )  # fmt: skip
