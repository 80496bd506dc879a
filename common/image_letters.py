"""What a host says of its cached images, and of one that it is asked to fetch ahead: the answers to two kinds of letters. Pure.

A letter ``PREFETCH`` is a wish, repeated by whoever waits: the first begins the fetch, each is answered at once with how far it
has come. So a long fetch holds up no other letter, and one that was lost with its process begins anew with the next.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from uuid import UUID

from common.findings import MOST_BYTES
from common.model import SCHEMA, Record

PREFETCH, CACHE = "image-prefetch", "image-cache"  # kinds of letters


class FetchState(enum.StrEnum):
    """How a fetch goes."""

    WAITING = "waiting"  # others are fetched first
    FETCHING = "fetching"
    HERE = "here"
    FAILED = "failed"  # for good
    UNAVAILABLE = "unavailable"  # it may work later

    @property
    def is_over(self) -> bool:
        return self in (FetchState.HERE, FetchState.FAILED, FetchState.UNAVAILABLE)


@dataclass(frozen=True)
class PrefetchReport(Record):
    """How far the fetch that a letter asks for has come.

    Args:
        done, total: bytes; total is 0 where it is not known.
        digest: the sha256 of the image, once it is here.
        message: why it failed.
    """

    provider: UUID
    host: str
    state: FetchState
    done: int = 0
    total: int = 0
    digest: str = ""
    message: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class CachedRow:
    """An image in a host's cache.

    Args:
        digest: the sha256 of what guests read. *taken_bytes*: what it takes of the file system.
        used_at: when it was last asked for or seen in use; ISO 8601, UTC.
        instances: how many have a disk that rests on it; -1 where that cannot be told.
        is_pinned: compute.yaml has it stay.
        sources: what led to it. *checksums*: of the files that it was published as, "sha256:…" or "sha512:…".
    """

    digest: str
    format: str
    taken_bytes: int
    used_at: str
    instances: int
    is_pinned: bool = False
    sources: tuple[str, ...] = ()
    checksums: tuple[str, ...] = ()


@dataclass(frozen=True)
class CacheReport(Record):
    """What a host has in its cache, the last used first.

    Args:
        most_bytes: images.max_cache_gib, 0 for no bound.
        problem: why it cannot be told who uses what; "" where it can.
        left_out: how many images did not fit into the letter.
    """

    provider: UUID
    host: str
    images: tuple[CachedRow, ...] = ()
    most_bytes: int = 0
    problem: str = ""
    left_out: int = 0
    schema: int = SCHEMA


def fitted(report: CacheReport, most_bytes: int = MOST_BYTES) -> str:
    """*report* as JSON of at most *most_bytes*: without the images that were unused the longest, where it must be."""
    while len((text := report.to_json()).encode()) > most_bytes and report.images:
        kept = len(report.images) // 2
        left_out = report.left_out + len(report.images) - kept
        report = dataclasses.replace(report, images=report.images[:kept], left_out=left_out)
    return text
