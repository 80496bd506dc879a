"""What may be asked of the disk of an instance that has one: that it go back to a snapshot, or be made anew. Pure.

Each request has a number, which is the ``boot_request`` that came with it; a host notes the last one that it dealt with, done
or given up. So a request is done once, wherever its host dies, and several are done in the order in which they were made.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DiskRequest(enum.StrEnum):
    """One kind of request."""

    RESTORE = "restore"
    REBUILD = "rebuild"


@dataclass(frozen=True)
class Applied:
    """The last request of a kind that a host has dealt with, 0 for none; *problem* says why it was given up, if it was."""

    request: int
    problem: str = ""


NOT_YET = Applied(0)


def due(*, restore: int, restored: Applied, rebuild: int, rebuilt: Applied) -> DiskRequest | None:
    """The request to deal with next, of the numbers that are asked for (0 for none) and those that were dealt with."""
    waiting = [
        (asked, kind)
        for asked, applied, kind in ((restore, restored, DiskRequest.RESTORE), (rebuild, rebuilt, DiskRequest.REBUILD))
        if asked > applied.request
    ]
    return min(waiting)[1] if waiting else None
