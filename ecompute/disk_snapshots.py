"""Snapshots of the disk of a guest that is off: taken, given up and gone back to by a caged ``qemu-img``, inside its file.

Each is idempotent: what is so already is success. QEMU locks the file of a guest that runs, so that a start behind our back
ends in a Conflict and not in a spoilt disk. A child that is killed in the middle leaves a file that is whole, in which clusters
may be held that nobody uses: qcow2 counts one up before it is used, and down after. So a file that such a child may have left,
which a note beside it tells, is gone through once (``qemu-img check -r leaks``). Who may be at the disk is decided by whoever
calls.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import Conflict, NoSpace, Permanent, Transient
from common.files import file_errors, write_atomically
from ecompute import qcow2_snapshots, qemu_img

WORD = "NoSnapshot"  # reason of who wants to go back to one that is not there
_SECONDS = 120  # it copies tables, a few MiB at most, and counts clusters
_CHECK_SECONDS = 600
_MORE_BYTES = 1 << 30  # that the file may grow by: tables, of which there are 32 MiB at most for each snapshot
_UNFINISHED = "snapshot.unfinished"


def take(disk: Path, tag: str) -> None:
    """Note the state of *disk* as *tag*.

    Raises:
        Conflict: it is in use. NoSpace, Permanent: it cannot be.
    """
    if tag not in qcow2_snapshots.read(disk).tags:
        _change(disk, "-c", tag)


def drop(disk: Path, tag: str) -> None:
    """Give up the snapshot *tag*.

    Raises:
        Conflict: the disk is in use. Permanent: it cannot be.
    """
    if tag in qcow2_snapshots.read(disk).tags:
        _change(disk, "-d", tag)


def go_back(disk: Path, tag: str) -> None:
    """Have *disk* hold what it held when *tag* was taken; what was written since is gone.

    Raises:
        Conflict: it is in use. NoSpace, Permanent: it cannot be; nothing, or all, of it is as it was.
    """
    _change(disk, "-a", tag)


def _change(disk: Path, option: str, tag: str) -> None:
    if tag.isdigit():  # qemu-img would look among its own numbers first
        raise Permanent(f"the snapshot {tag} of {disk} was made by hand, and a mere number names none surely", "SnapshotFailed")
    with _noted(disk) as is_to_be_mended:
        _run(disk, ["snapshot", option, tag], f"the snapshots of {disk} cannot be changed", _SECONDS)
        if is_to_be_mended:
            with contextlib.suppress(Permanent):  # at worst some space is held for nothing
                _run(disk, ["check", "-q", "-r", "leaks"], f"{disk} cannot be gone through", _CHECK_SECONDS)


@contextlib.contextmanager
def _noted(disk: Path) -> Iterator[bool]:
    """Whether an earlier change of *disk* was cut off; a note says so of this one until it is over."""
    note = disk.with_name(_UNFINISHED)
    is_to_be_mended = note.exists()
    write_atomically(note, b"")
    yield is_to_be_mended
    with file_errors("cannot remove the note", note):
        note.unlink(missing_ok=True)


def _run(disk: Path, command: list[str], what: str, seconds: int) -> None:
    with file_errors("cannot open the disk", disk):
        descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        # What it rests on is not opened: none of it is read, and the child could not.
        file = {"driver": "file", "filename": f"/proc/self/fd/{descriptor}"}
        name = json.dumps({"driver": "qcow2", "file": file, "backing": None})
        most = os.fstat(descriptor).st_size + _MORE_BYTES
        with qemu_img.lent((descriptor,), what):
            ending = qemu_img.run([*command, f"json:{name}"], (descriptor,), what=what, seconds=seconds, most_file_bytes=most)
    finally:
        os.close(descriptor)
    if ending.code is None:
        raise Transient(f"{what}: qemu-img is not done within {seconds} s")
    if ending.code:
        raise _failure(what, ending)


def _failure(what: str, ending: qemu_img.Ending) -> Conflict | NoSpace | Permanent:
    assert ending.code is not None  # noqa: S101 - it ended by itself
    if " lock" in ending.text:
        return Conflict(f"{what}: another process has it open: {ending.text}")
    if "No space left" in ending.text:
        return NoSpace(f"{what}: {ending.text}; free space on the file system of paths.state_dir")
    how = f"qemu-img was ended by signal {-ending.code}" if ending.code < 0 else f"qemu-img says: {ending.text}"
    return Permanent(f"{what}: {how}", "SnapshotFailed")
