"""common/files.py: whole files or none."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from common import files
from common.errors import NoSpace, Permanent, Transient


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_replaced_whole_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write_atomically(tmp_path / "a.json", b"old", 0o644)
        files.write_atomically(tmp_path / "a.json", b"new", 0o640)
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomically(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpace, match="free space"):
        files.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, Permanent), (errno.EMFILE, Transient), (errno.EDQUOT, NoSpace)])
def test_an_error_says_what_the_caller_should_do(number: int, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match="cannot read"), files.file_errors("cannot read", tmp_path):
        raise OSError(number, os.strerror(number))


def test_partials_are_removed_and_only_they(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"1")
    files.partial_path(tmp_path / "half").write_bytes(b"2")
    (tmp_path / "dangling.partial").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.partial").mkdir()
    assert len(files.remove_partials(tmp_path)) == 2
    assert names(tmp_path) == ["folder.partial", "whole"]
    assert files.remove_partials(tmp_path / "absent") == []


def test_partial_names_never_meet(tmp_path: Path) -> None:
    assert len({files.partial_path(tmp_path / "a") for _ in range(100)}) == 100


def test_a_directory_gets_exactly_its_mode_and_its_new_parents_let_pass(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.make_directory(tmp_path / "a" / "b", 0o750)
        files.make_directory(tmp_path / "a" / "b", 0o700)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")] == [0o711, 0o700]


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Permanent, match="cannot make the directory"):
        files.make_directory(tmp_path / "file" / "below", 0o700)
