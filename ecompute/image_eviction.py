"""Which cached images go: by how long they were not used, and until what they take fits. Pure.

``cache_keeper`` gathers what there is, spares what is in use, and removes what is chosen here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

FRESH_SECONDS = 900.0  # what was fetched or asked for a moment ago is about to be used, and would only be fetched again


@dataclass(frozen=True)
class KeptImage:
    """An image in the cache: what it takes of the file system, and when it was last used, by the wall clock."""

    digest: str
    format: str
    taken_bytes: int
    used_at: float

    @property
    def file_name(self) -> str:
        return f"{self.digest}.{self.format}"


@dataclass(frozen=True)
class Bounds:
    """What the cache may hold; None for no bound.

    Args:
        wanted_bytes: to be had at least, for an image that finds no room.
    """

    most_bytes: int | None = None
    most_idle_seconds: float | None = None
    wanted_bytes: int = 0


def to_evict(images: Sequence[KeptImage], bounds: Bounds, *, spared: Collection[str], now: float) -> list[KeptImage]:
    """Those of *images* to be removed, in this order: all that are too old, then, the longest unused first, what must go.

    Args:
        spared: the digests of those that stay whatever the bounds say: in use, held, or pinned.
        now: the wall clock.
    """
    free = sorted(
        (image for image in images if image.digest not in spared and now - image.used_at >= FRESH_SECONDS),
        key=lambda image: (image.used_at, image.digest),
    )
    idle, total = bounds.most_idle_seconds, sum(image.taken_bytes for image in images)
    surplus = max(bounds.wanted_bytes, 0 if bounds.most_bytes is None else total - bounds.most_bytes)
    chosen = []
    for image in free:
        if surplus > 0 or (idle is not None and now - image.used_at >= idle):
            chosen.append(image)
            surplus -= image.taken_bytes
    return chosen
