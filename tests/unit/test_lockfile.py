"""LockFile: one holder, told apart from a note that a dead one left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import Conflict, EcomputeError
from common.lockfile import Holder, LockFile

HOLD = """
import sys
from pathlib import Path
from common.lockfile import LockFile
LockFile(Path(sys.argv[1])).acquire({"version": "7"})
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere(tmp_path: Path):
    """Another process that holds tmp_path/lock; it ends when its input does, so with the test."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait(10)
    process.stdin.close()
    process.stdout.close()


def test_a_free_lock_has_no_holder_and_is_taken(tmp_path):
    lock = LockFile(tmp_path / "run" / "lock")
    assert lock.holder() is None
    lock.acquire({"version": "1"})
    assert LockFile(lock.path).holder() == Holder(os.getpid(), {"version": "1"})
    lock.release()
    lock.release()
    assert LockFile(lock.path).holder() is None


def test_a_held_lock_is_refused_and_names_its_holder(tmp_path, held_elsewhere):
    lock = LockFile(tmp_path / "lock")
    assert lock.holder() == Holder(held_elsewhere.pid, {"version": "7"})
    with pytest.raises(Conflict, match=f"held by process {held_elsewhere.pid}"):
        lock.acquire({})


def test_the_kernel_frees_the_lock_of_a_killed_process_and_its_note_means_nothing(tmp_path, held_elsewhere):
    held_elsewhere.kill()
    held_elsewhere.wait(10)
    lock = LockFile(tmp_path / "lock")
    assert lock.path.read_text() != ""
    assert lock.holder() is None
    lock.acquire({"version": "8"})
    assert LockFile(lock.path).holder() == Holder(os.getpid(), {"version": "8"})
    lock.release()


def test_a_holder_that_has_not_written_its_note_yet(tmp_path, held_elsewhere):
    (tmp_path / "lock").write_text("")
    assert LockFile(tmp_path / "lock").holder() == Holder(0, {})


@pytest.mark.parametrize("text", ["x", "[]", '{"version":"1"}', '{"pid":"x"}'])
def test_a_note_that_makes_no_sense_is_no_note(tmp_path, held_elsewhere, text):
    (tmp_path / "lock").write_text(text)
    assert LockFile(tmp_path / "lock").holder() == Holder(0, {})


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EcomputeError, match=str(tmp_path / "file")):
        LockFile(tmp_path / "file" / "lock").acquire({})


def test_a_lock_file_that_was_removed_while_held_is_not_shared_with_its_successor(tmp_path):
    first, second = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    first.acquire({"version": "1"})
    (tmp_path / "lock").unlink()
    second.acquire({"version": "2"})
    assert LockFile(tmp_path / "lock").holder() == Holder(os.getpid(), {"version": "2"})
    first.release()
    second.release()


def test_who_only_looks_refuses_it_to_nobody(tmp_path):
    """A daemon that gave up for that would stay down: its exit code says that another one runs."""
    path = tmp_path / "lock"
    look = "import sys\nfrom pathlib import Path\nfrom common.lockfile import LockFile\nlock = LockFile(Path(sys.argv[1]))\n"
    lookers = [
        subprocess.Popen(
            [sys.executable, "-c", f"{look}print('looks', flush=True)\nwhile True: lock.holder()", path], stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for looker in lookers:
            assert looker.stdout
            assert looker.stdout.readline() == b"looks\n"
        for _ in range(100):
            lock = LockFile(path)
            lock.acquire({})
            assert lock.holder() is not None
            lock.release()
    finally:
        for looker in lookers:
            looker.kill()
            looker.communicate(timeout=10)
