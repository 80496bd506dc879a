"""Waiting until a file grows or appears, by the kernel's inotify; Python has no module of its own for it.

Whoever waits looks at the file itself: an event only ends the wait. Where the kernel gives no inotify any more (they are
counted) the wait ends after a second, so that its caller looks again. Knows nothing of what the file is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from pathlib import Path

_MODIFIED, _MOVED_FROM, _MOVED_TO, _CREATED, _DELETED_SELF, _MOVED_SELF = 0x2, 0x40, 0x80, 0x100, 0x400, 0x800
_OF_THE_FOLDER = _MOVED_FROM | _MOVED_TO | _CREATED | _DELETED_SELF | _MOVED_SELF  # not what other files in it are written
BLIND_SECONDS = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Made before the file is looked at, so that nothing is missed between the look and the wait. ``close`` it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._has_folder = self._add(path.parent, _OF_THE_FOLDER)
        self._add(path, _MODIFIED | _DELETED_SELF | _MOVED_SELF)

    def wait(self, seconds: float, wake_descriptor: int) -> None:
        """Return when something happened, after *seconds*, or when *wake_descriptor* can be read."""
        if not self._has_folder:
            seconds = min(seconds, BLIND_SECONDS)
        poll = select.poll()
        for descriptor in (self._descriptor, wake_descriptor):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        poll.poll(max(0, seconds) * 1000)

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def _add(self, path: Path, events: int) -> bool:
        return self._descriptor >= 0 and _libc.inotify_add_watch(self._descriptor, os.fsencode(path), events) >= 0
