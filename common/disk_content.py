"""What is on a guest's disk beside its image: asked for in a request, written by its host before the first boot. Pure."""

from __future__ import annotations

import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class GuestFile:
    """A file to be on the disk.

    Args:
        path: absolute, in the guest.
        mode: its permissions, as a number.
    """

    path: str
    content_base64: str
    mode: int = 0o644
    user_id: int = 0
    group_id: int = 0

    @property
    def size_bytes(self) -> int:
        return len(base64.b64decode(self.content_base64))


@dataclass(frozen=True)
class DiskContent:
    """How a guest's disk differs from its image.

    Args:
        resize: the root's partition, the last one, and its file system grow to the disk's size: its system does not do that.
        identity: host name, ssh keys and network are written to it, unless the image has cloud-init, which does that.
    """

    resize: bool = False
    identity: bool = False
    files: tuple[GuestFile, ...] = ()


AS_IMAGE = DiskContent()
