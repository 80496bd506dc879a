"""Making an image of an instance's disk, as a host tells ``eschedule`` of it: the answer to a letter of the kind ``KIND``.

The letter is sent again and again: the first begins the work, each is answered by how far it is. A host that hears no more of
it gives it up. So neither side has to remember the other: whoever died asks anew, or begins anew. Pure: records.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from uuid import UUID

from common.model import SCHEMA, Record

KIND = "image"
DONE = "image-done"  # the letter that says that the image is registered: nobody will ask again
ABANDONED_AFTER_SECONDS = 60.0  # without a letter


class Stage(enum.StrEnum):
    """How far it is."""

    WAITING = "waiting"
    COPYING = "copying"
    SEALING = "sealing"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    FAILED = "failed"


@dataclass(frozen=True)
class ImageJob(Record):
    """An image on its way.

    Args:
        done, total: bytes of this stage; 0 where they are not known.
        problem: why it failed; *reason* is the same in one word for programs.
        url, checksum, virtual_size_bytes: of what was published.
        note: what is to be known of the copy: that the guest's file systems were not frozen.
    """

    provider: UUID
    host: str
    stage: Stage
    done: int = 0
    total: int = 0
    problem: str = ""
    reason: str = ""
    url: str = ""
    checksum: str = ""
    virtual_size_bytes: int = 0
    note: str = ""
    schema: int = SCHEMA
