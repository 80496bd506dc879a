"""Which lease of etcd the journal's keys hang on, so that they go by themselves. Pure.

The number of a lease may be chosen by whoever asks for it. Ours follows from the prefix, the time to keep and the quarter of a
day: so every program knows it without a question, all share it, and only the first one in six hours has to ask for it. Clocks
that differ only make for another lease; how long it lasts etcd alone counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

DAY_SECONDS = 86400
SHARED_SECONDS = DAY_SECONDS // 4


@dataclass(frozen=True)
class JournalLease:
    """The lease for what is written at one moment."""

    id: int
    ttl_seconds: int


def journal_lease(prefix: str, days: int, wall_seconds: float) -> JournalLease:
    """The one that what is written under *prefix* at *wall_seconds* hangs on, so that it is kept for *days*."""
    quarter = int(wall_seconds // SHARED_SECONDS)
    digest = hashlib.blake2b(f"{prefix} {days} {quarter}".encode(), digest_size=8).digest()
    return JournalLease(int.from_bytes(digest) >> 1 or 1, days * DAY_SECONDS + SHARED_SECONDS)
