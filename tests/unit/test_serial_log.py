"""A serial log read from where the last reader ended, over rotations, and its last lines."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecompute.file_watch import FileWatch
from ecompute.serial_log import read_from, read_tail


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "console.log"


def rotate(log: Path) -> None:
    """As virtlogd does with three old files."""
    for number in (1, 0):
        old = log.with_name(f"console.log.{number}")
        if old.exists():
            old.rename(log.with_name(f"console.log.{number + 1}"))
    log.rename(log.with_name("console.log.0"))
    log.touch()


def read_all(log: Path, position: str = "", most_bytes: int = 4) -> tuple[bytes, str]:
    data = b""
    while True:
        piece = read_from(log, position, most_bytes)
        assert piece is not None and len(piece.data) <= most_bytes
        data, position = data + piece.data, piece.position
        if not piece.has_more:
            return data, position


def test_no_log_is_none(log: Path) -> None:
    assert read_from(log, "", 10) is None and read_tail(log, 10, 10) is None


def test_an_empty_log_is_there(log: Path) -> None:
    log.touch()
    piece = read_from(log, "", 10)
    assert piece is not None and (piece.data, piece.has_more, piece.is_gap) == (b"", False, False)


def test_it_goes_on_where_it_ended_over_rotations(log: Path) -> None:
    log.write_bytes(b"one\n")
    data, position = read_all(log)
    with log.open("ab") as file:
        file.write(b"two\n")
    rotate(log)
    log.write_bytes(b"three\n")
    rotate(log)
    log.write_bytes(b"four\n")
    more, end = read_all(log, position)
    assert data + more == b"one\ntwo\nthree\nfour\n"
    assert read_all(log) == (b"one\ntwo\nthree\nfour\n", end)


def test_what_was_rotated_away_is_said_to_be_missing(log: Path) -> None:
    log.write_bytes(b"lost\n")
    _, position = read_all(log)
    rotate(log)
    log.with_name("console.log.0").rename(log.parent / "kept-so-that-its-number-is-not-used-again")
    log.write_bytes(b"new\n")
    piece = read_from(log, position, 100)
    assert piece is not None and piece.is_gap and piece.data == b"new\n"
    again = read_from(log, piece.position, 100)
    assert again is not None and not again.is_gap and not again.data


def test_a_log_that_was_cut_off_begins_anew(log: Path) -> None:
    log.write_bytes(b"0123456789")
    _, position = read_all(log)
    os.truncate(log, 0)
    log.write_bytes(b"abc")
    piece = read_from(log, position, 100)
    assert piece is not None and piece.is_gap and piece.data == b"abc"


@pytest.mark.parametrize("position", ["x", "1:", "1:2:3", "-1:0", "1" * 30 + ":0"])
def test_a_position_that_is_none(log: Path, position: str) -> None:
    with pytest.raises(ValueError, match="no position"):
        read_from(log, position, 10)


def test_a_link_is_not_followed(log: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    log.symlink_to(secret)
    with pytest.raises(Exception, match="cannot read the log"):
        read_from(log, "", 10)


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 12), st.integers(1, 100))
def test_the_tail_is_the_last_lines(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int, lines: int, most: int
) -> None:
    log = tmp_path_factory.mktemp("tail") / "console.log"
    log.with_name("console.log.0").write_bytes(data[:cut])
    log.write_bytes(data[cut:])
    expected = b"\n".join(data.split(b"\n")[-lines - data.endswith(b"\n") :]) if lines else b""
    piece = read_tail(log, lines, most)
    assert piece is not None and piece.data == expected[-most:]
    rest = read_from(log, piece.position, 10)
    assert rest is not None and not rest.data and not rest.has_more and not rest.is_gap


@pytest.mark.parametrize("act", ["grows", "appears", "is rotated"])
def test_a_wait_ends_when_the_file_changes(log: Path, act: str) -> None:
    if act != "appears":
        log.touch()
    watch = FileWatch(log)
    bell = os.eventfd(0)

    def change() -> None:
        if act == "is rotated":
            rotate(log)
        else:
            with log.open("ab") as file:
                file.write(b"x")

    begun = time.monotonic()
    thread = threading.Thread(target=change)
    thread.start()
    watch.wait(30, bell)
    thread.join()
    watch.close()
    os.close(bell)
    assert time.monotonic() - begun < 10


def test_a_wait_ends_by_the_bell_and_by_its_bound(tmp_path: Path) -> None:
    watch = FileWatch(tmp_path / "none" / "console.log")
    bell = os.eventfd(0)
    begun = time.monotonic()
    watch.wait(0.05, bell)
    os.eventfd_write(bell, 1)
    watch.wait(30, bell)
    watch.close()
    os.close(bell)
    assert time.monotonic() - begun < 10


def test_writing_to_another_file_of_the_folder_wakes_nobody(log: Path) -> None:
    log.touch()
    disk = log.with_name("disk.qcow2")
    disk.touch()
    watch = FileWatch(log)
    bell = os.eventfd(0)
    with disk.open("ab") as file:
        file.write(b"x")
    begun = time.monotonic()
    watch.wait(0.2, bell)
    watch.close()
    os.close(bell)
    assert time.monotonic() - begun >= 0.2
