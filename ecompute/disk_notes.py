"""What is noted of an instance's disk beside it, in the same folder: the requests that were dealt with, and a guest held still.

A note appears by rename, after what it tells of, so that whatever was cut off before it is done again; each of those things may
be. ``frozen`` is the other way round: it is there before a guest's agent is asked to hold its file systems still, and goes once
they are let go, so that a process that dies between leaves no guest standing still. A note that cannot be read counts as the
one of the highest number: nothing is done to a disk on a doubt. Called by ``disk_changes``, the facts and ``snapshotter``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.disk_requests import NOT_YET, Applied, DiskRequest
from common.files import file_errors, fsync_directory, make_directory, write_atomically

UNREADABLE = Applied(2**62, "what was done to the disk last cannot be read; it is left as it is")
DIRECTORY_MODE = 0o711
_NAMES = {DiskRequest.RESTORE: "restored.json", DiskRequest.REBUILD: "rebuilt.json"}
_FROZEN = "frozen"
_MOST_BYTES = 64 << 10


@dataclass(frozen=True)
class Noted:
    """What the notes of one instance say."""

    restored: Applied = NOT_YET
    rebuilt: Applied = NOT_YET
    is_frozen: bool = False


NOTHING_NOTED = Noted()


class DiskNotes:
    """The notes of all instances, in their folders in *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, uuid: UUID) -> Noted:
        folder = self._directory / str(uuid)
        with file_errors("cannot read the notes of the disk", folder):
            return Noted(
                restored=_applied(folder / _NAMES[DiskRequest.RESTORE]),
                rebuilt=_applied(folder / _NAMES[DiskRequest.REBUILD]),
                is_frozen=(folder / _FROZEN).exists(),
            )

    def write(self, uuid: UUID, kind: DiskRequest, applied: Applied) -> None:
        """Note that a request was dealt with."""
        folder = self._directory / str(uuid)
        make_directory(folder, DIRECTORY_MODE)
        write_atomically(folder / _NAMES[kind], json.dumps(dataclasses.asdict(applied), sort_keys=True).encode())

    def set_frozen(self, uuid: UUID) -> None:
        write_atomically(self._directory / str(uuid) / _FROZEN, b"")

    def clear_frozen(self, uuid: UUID) -> None:
        """Note that the guest may write, or is off. What is gone already is success."""
        path = self._directory / str(uuid) / _FROZEN
        with file_errors("cannot remove the note", path):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            fsync_directory(path.parent)


def _applied(path: Path) -> Applied:
    try:
        with path.open("rb") as note:
            value = json.loads(note.read(_MOST_BYTES))
        request, problem = value["request"], value["problem"]
    except (FileNotFoundError, NotADirectoryError):
        return NOT_YET
    except (ValueError, KeyError, TypeError):
        return UNREADABLE
    is_sound = type(request) is int and type(problem) is str
    return Applied(request, problem) if is_sound else UNREADABLE
