"""ReportStore: guests' reports reach ecompute within their bounds, whatever a guest said and whatever lies there."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import InvalidSpec, UnsupportedSchema
from common.reports import MESSAGE_BYTES, MOST_HOST_KEYS, GuestReport, ReportStore, report_store

UUID_1, UUID_2 = UUID(int=1), UUID(int=2)
AT = "2026-11-21T12:00:00.000Z"


def fingerprint(number: int, kind: str = "ED25519") -> str:
    return f"SHA256:{number:043d} ({kind})"


@pytest.fixture
def store(tmp_path: Path) -> ReportStore:
    return report_store(tmp_path / "state")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "metadata" / "reports"


def put(directory: Path, content: bytes) -> None:
    directory.mkdir(parents=True)
    (directory / f"{UUID_1}.json").write_bytes(content)


def test_what_was_written_is_read(store, directory):
    report = GuestReport(AT, "up after 12 s", (fingerprint(1), fingerprint(2, "RSA")))
    store.write(UUID_1, report)
    assert store.read(UUID_1) == report
    assert store.read(UUID_2) is None
    assert store.list() == (UUID_1,)
    assert [path.name for path in directory.iterdir()] == [f"{UUID_1}.json"]
    assert (directory / f"{UUID_1}.json").stat().st_mode & 0o007 == 0


def test_the_last_report_counts(store):
    store.write(UUID_1, GuestReport(AT, "first"))
    store.write(UUID_1, GuestReport(AT, "second"))
    assert store.read(UUID_1) == GuestReport(AT, "second")


def test_removing_leaves_nothing_and_is_idempotent(store, directory):
    store.write(UUID_1, GuestReport(AT))
    (directory / f"{UUID_1}.json.partial").touch()  # of a crash
    store.remove(UUID_1)
    store.remove(UUID_1)
    assert list(directory.iterdir()) == []


def test_nothing_there_is_no_error(store):
    assert store.read(UUID_1) is None
    assert store.list() == ()
    store.remove(UUID_1)


def test_a_crash_while_writing_is_written_over(store, directory):
    store.write(UUID_1, GuestReport(AT, "old"))
    (directory / f"{UUID_2}.json.partial").write_text("half")
    assert store.list() == (UUID_1, UUID_2)  # so that it is cleaned up
    assert store.read(UUID_2) is None
    store.write(UUID_2, GuestReport(AT, "new"))
    assert store.read(UUID_2) == GuestReport(AT, "new")


def test_a_message_is_one_printable_line():
    said = GuestReport(AT, "\x1b[2Jready\nphase Failed\u202e\ud800\x00 ").bounded()
    assert said.message == "[2Jready phase Failed"


def test_a_message_is_cut_between_characters():
    assert GuestReport(AT, "ä" * 5000).bounded().message == "ä" * (MESSAGE_BYTES // 2)
    assert GuestReport(AT, "x" + "ä" * 5000).bounded().message == "x" + "ä" * (MESSAGE_BYTES // 2 - 1)


def test_only_fingerprints_are_host_keys_and_each_once():
    bad = ["ssh-ed25519 AAAA", "SHA256:short (RSA)", fingerprint(1) + "\n", fingerprint(1, "R SA"), "\x1b[2J"]
    good = [fingerprint(number) for number in range(20)]
    assert GuestReport(AT, "", (*bad, good[0], *good)).bounded().host_keys == tuple(good[:MOST_HOST_KEYS])


def test_a_time_that_is_none_is_dropped():
    assert GuestReport("\x1b[31m").bounded().at == ""


def test_bounds_hold_for_what_somebody_else_wrote(store, directory):
    report = {"schema": 1, "at": AT, "message": "a\tb" + "x" * 3000, "host_keys": ["no", fingerprint(1)], "more": 1}
    put(directory, json.dumps(report).encode())
    found = store.read(UUID_1)
    assert found is not None
    assert found.message.startswith("a bxxx")
    assert len(found.message) == MESSAGE_BYTES
    assert found.host_keys == (fingerprint(1),)


def test_the_largest_report_can_be_read_again(store):
    report = GuestReport(AT, '"\\' * 5000, tuple(fingerprint(number, "E" * 24) for number in range(20)))
    store.write(UUID_1, report)
    assert store.read(UUID_1) == report.bounded()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"schema": 1}', b" " * 100_000], ids=repr)
def test_what_is_no_report_is_refused(store, directory, content):
    put(directory, content)
    with pytest.raises((InvalidSpec, UnsupportedSchema)):
        store.read(UUID_1)


def test_other_files_are_no_reports(store, directory):
    put(directory, b"{}")
    for name in ("notes.json", f"{UUID_2}.json.bak", f"{UUID_2.hex}.json", "x"):
        (directory / name).touch()
    assert store.list() == (UUID_1,)
