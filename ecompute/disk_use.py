"""What the host itself takes of the file system that guests' disks are on, beyond what their claims cover.

Whoever keeps files there, such as the image cache, adds a measure; the inventory reserves their sum. Whole GiB, to the nearest,
so that what changes by a few bytes changes nothing in Placement. Knows nothing of what is measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from common.errors import EcomputeError

logger = logging.getLogger(__name__)
_GIB = 1 << 30


class DiskUse:
    """The sum of what is added."""

    def __init__(self) -> None:
        self._measures: dict[str, Callable[[], int]] = {}
        self._known: dict[str, int] = {}

    def add(self, what: str, measure: Callable[[], int]) -> None:
        """Count what *measure* says, in bytes, from now on. It is called with each look at the host, and has to be quick."""
        self._measures[what] = measure

    def gib(self) -> int:
        """All of it now; a part that cannot be measured counts as it was last."""
        for what, measure in self._measures.items():
            try:
                self._known[what] = measure()
            except (EcomputeError, OSError) as error:
                logger.warning("what %s take of the disk cannot be measured: %s", what, error)
        return (sum(self._known.values()) + _GIB // 2) // _GIB
