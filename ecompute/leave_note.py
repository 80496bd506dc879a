"""The note by which a host that was told to leave the cluster remembers it: ``left.json`` in its state directory.

It is written before anything is taken away, so that a host that dies in the middle goes on when it is started again, and it
stays when all is done: a host that was removed does not come back by itself at its next reboot. ``ecompute join`` removes it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import OwnershipError
from common.files import file_errors, fsync_directory, make_directory, write_atomically

FILE_NAME = "left.json"


@dataclass(frozen=True)
class LeaveNote:
    """Who had this host leave, and when, for people; *is_done* once nothing of it is left in the cluster."""

    by: str
    at: str
    is_done: bool = False


def path_of(state_dir: Path) -> Path:
    return state_dir / FILE_NAME


def has_note(state_dir: Path) -> bool:
    with file_errors("cannot look for", path_of(state_dir)):
        return path_of(state_dir).exists()


def read_note(state_dir: Path) -> LeaveNote | None:
    """The note; None where this host was not told to leave.

    Raises:
        OwnershipError: there is one that makes no sense.
    """
    path = path_of(state_dir)
    try:
        with file_errors("cannot read", path):
            if not path.exists():
                return None
            content = json.loads(path.read_text(encoding="utf-8"))
        return LeaveNote(str(content["by"]), str(content["at"]), content["is_done"] is True)
    except (ValueError, KeyError, TypeError):
        raise OwnershipError(
            f"{path} cannot be read: this host was told to leave the cluster, and nobody knows whether it has; bring it back "
            "by ecompute join, or remove that file"
        ) from None


def write_note(state_dir: Path, note: LeaveNote) -> None:
    if not state_dir.is_dir():
        make_directory(state_dir, 0o711)
    content = {"schema": 1, "by": note.by, "at": note.at, "is_done": note.is_done}
    write_atomically(path_of(state_dir), json.dumps(content).encode(), 0o644)


def remove_note(state_dir: Path) -> None:
    path = path_of(state_dir)
    with file_errors("cannot remove", path), contextlib.suppress(FileNotFoundError):
        path.unlink()
        fsync_directory(state_dir)
