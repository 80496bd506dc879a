"""One line per event whatever is in it, and a log that nobody reads never holds anything up."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import logs
from common.errors import ConfigError
from common.logs import fields, log_context
from common.text import escaped, nearest, quoted
from tests.support.processes import ROOT, wait_until

logger = logging.getLogger("tests.logs")


@pytest.fixture(autouse=True)
def _root_logger_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logs.shutdown()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def text():
    """Set up text logging; call it for the lines so far."""
    return _capture("text")


@pytest.fixture
def objects():
    """Set up JSON logging; call it for the objects so far."""
    lines = _capture("json")
    return lambda: [json.loads(line) for line in lines()]


def _capture(form: str, level: str = "info", **constant):
    stream = io.StringIO()
    logs.setup(level, form, stream, environment={}, **constant)

    def lines() -> list[str]:
        logs.shutdown()
        return stream.getvalue().splitlines()

    return lines


def test_a_line_has_time_level_logger_message_and_fields(text):
    with log_context(instance="i-1"):
        logger.info("step done", extra=fields(step="Start", took_ms=412))
    (line,) = text()
    assert line.startswith("time=20")
    assert line.endswith('Z level=info logger=tests.logs message="step done" instance=i-1 step=Start took_ms=412')


def test_json_has_the_same_and_keeps_numbers(objects):
    with log_context(instance="i-1"):
        logger.warning("retrying", extra=fields(count=3, delay_seconds=0.5, ok=False, nothing=None, bad=float("nan")))
    (value,) = objects()
    assert value.pop("time").endswith("Z")
    assert value == {
        "level": "warning", "logger": "tests.logs", "message": "retrying",
        "instance": "i-1", "count": 3, "delay_seconds": 0.5, "ok": False, "bad": "nan",
    }  # fmt: skip


def test_constant_fields_are_on_every_line_and_contexts_add_up_and_end():
    lines = _capture("json", host="h1")
    with log_context(instance="i-1"):
        with log_context(step="Define"):
            logger.info("a")
        logger.info("b")
    logger.info("c", extra={"plain": 1})
    a, b, c = (json.loads(line) for line in lines())
    assert (a["host"], a["instance"], a["step"]) == ("h1", "i-1", "Define")
    assert (b["host"], b["instance"], "step" in b) == ("h1", "i-1", False)
    assert (c["host"], "instance" in c, c["plain"]) == ("h1", False, 1)


def test_a_context_belongs_to_its_thread(objects):
    with log_context(instance="i-1"):
        thread = threading.Thread(target=lambda: logger.info("elsewhere"))
        thread.start()
        thread.join(5)
    assert "instance" not in objects()[0]


def test_a_context_ends_with_an_exception(objects):
    with pytest.raises(KeyError), log_context(instance="i-1"):
        raise KeyError
    logger.info("after")
    assert "instance" not in objects()[0]


def test_level_is_kept(text):
    logger.debug("quiet")
    logger.info("loud")
    assert len(text()) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_forged_line_stays_inside_its_own(form):
    lines = _capture(form)
    forged = 'x\ntime=now level=error message="forged"\r\x1b[2J\u2028\u202e\x85'
    logger.info("name %s", forged, extra=fields(name=forged))
    (line,) = lines()
    assert line.isprintable()


def test_an_exception_is_part_of_the_line(objects, text):
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it failed")
    (line,) = text()
    assert 'message="it failed"' in line
    assert "ValueError: first\\nsecond" in line


def test_a_field_cannot_take_the_place_of_the_lines_own(objects):
    logger.info("true", extra=fields(message="false", level="false", time=0))
    (value,) = objects()
    assert (value["message"], value["level"], value["message_"]) == ("true", "info", "false")


def test_a_wrong_logging_call_costs_its_arguments_only():
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    stream = io.StringIO()
    private = _handler(stream, 10)  # pytest's own handler on the root logger would raise
    private.info("%d of %s", *["x"])
    private.info("value %s", Broken(), extra=fields(broken=Broken()))
    private.handlers[0].close()
    first, second = stream.getvalue().splitlines()
    assert "%d of %s (its arguments do not fit: TypeError)" in first
    assert 'broken="<Broken: RuntimeError>"' in second


def test_a_very_long_value_is_cut(text):
    logger.info("x" * 100_000)
    (line,) = text()
    assert len(line) < 20_000
    assert "(84000 more characters)" in line


def test_warnings_are_lines_too(objects):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nthing", stacklevel=1)
    (value,) = objects()
    assert value["logger"] == "py.warnings"
    assert "old\nthing" in value["message"]


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_logged_it_is_one_printable_line(message, value):
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", "fields": {"v": value}})
    assert logs.TextFormatter({}).format(record).isprintable()
    as_json = logs.JsonFormatter({}).format(record)
    assert as_json.isascii()
    assert as_json.isprintable()
    assert json.loads(as_json)["v"] == value


def test_auto_is_json_only_where_the_stream_is_the_journals(tmp_path):
    with (
        (tmp_path / "journal").open("w", encoding="utf-8") as journal,
        (tmp_path / "other").open("w", encoding="utf-8") as other,
    ):
        stat = os.fstat(journal.fileno())
        environment = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        for stream in (journal, other):
            logs.setup("info", "auto", stream, environment=environment)
            logger.info("hello")
            logs.shutdown()
        assert (tmp_path / "journal").read_text(encoding="utf-8").startswith("{")
        assert (tmp_path / "other").read_text(encoding="utf-8").startswith("time=")
        assert not logs.is_journal(journal, {})
        assert not logs.is_journal(journal, {"JOURNAL_STREAM": "rubbish"})
        assert not logs.is_journal(io.StringIO(), environment)


def test_an_unknown_level_or_format_is_refused():
    with pytest.raises(ConfigError, match="debug, info, warning, error"):
        logs.setup("loud")
    with pytest.raises(ConfigError, match="auto, text, json"):
        logs.setup("info", "xml")


def test_a_second_setup_replaces_the_first_and_shutdown_can_be_repeated():
    first, second = io.StringIO(), io.StringIO()
    logs.setup("info", "text", first, environment={})
    logger.info("one")
    logs.setup("info", "text", second, environment={})
    logger.info("two")
    logs.shutdown()
    logs.shutdown()
    assert "one" in first.getvalue()
    assert "two" not in first.getvalue()
    assert "two" in second.getvalue()


# -- a log that nobody reads ---------------------------------------------------------------------------------------------


def _handler(stream, most_lines: int) -> logging.Logger:
    handler = logs.QueuedHandler(stream, logs.TextFormatter({}), most_lines)
    private = logging.Logger("private")
    private.addHandler(handler)
    return private


def test_a_full_pipe_costs_lines_that_are_counted_and_no_time():
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream, os.fdopen(read_end, "rb", 0) as reader:
        private = _handler(stream, 100)
        began = time.monotonic()
        for number in range(3000):
            private.info("line %d %s", number, "x" * 100)
        assert time.monotonic() - began < 5
        received = bytearray()

        def drained() -> bool:
            received.extend(os.read(read_end, 65536))
            return b"log lines were dropped" in received

        wait_until(drained, timeout_seconds=10, what="the count of dropped lines")
        private.handlers[0].close()
        lines = [line for line in received.decode().splitlines() if "log lines were dropped" in line]
        assert "level=warning" in lines[0]
        assert reader.readable()


def test_a_reader_that_is_gone_stops_nothing():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        private = _handler(stream, 100)
        for _ in range(10):
            private.info("into the void")
        handler = private.handlers[0]
        handler.drain()
        handler.close()
        assert not handler._thread.is_alive()


def test_a_closed_stream_stops_nothing():
    stream = io.StringIO()
    private = _handler(stream, 100)
    stream.close()
    private.info("into the void")
    private.handlers[0].drain()
    private.handlers[0].close()


def test_flush_waits_for_what_was_logged():
    stream = io.StringIO()
    private = _handler(stream, 10_000)
    for number in range(500):
        private.info("line %d", number)
    private.handlers[0].drain(10)
    assert stream.getvalue().count("\n") == 500
    private.handlers[0].close()


def test_a_process_whose_log_is_stuck_still_ends_cleanly():
    program = """
import logging, sys
from common import logs
logs.setup("info", "text")
for number in range(20_000):
    logging.getLogger("x").info("line %d %s", number, "x" * 100)
sys.stdout.write("worked\\n")
sys.stdout.flush()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout.readline() == b"worked\n"
        assert process.wait(15) == 0  # nobody has read a byte of its stderr
    finally:
        process.kill()
        process.communicate()


def test_the_last_words_of_a_process_that_does_not_shut_down_are_written():
    program = 'import logging\nfrom common import logs\nlogs.setup("info", "json")\nlogging.getLogger("x").info("bye")\nraise SystemExit(3)'
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert done.returncode == 3
    assert json.loads(done.stderr)["message"] == "bye"


def test_a_process_without_standard_error_logs_nowhere():
    program = 'import logging\nfrom common import logs\nlogs.setup("info")\nlogging.getLogger("x").info("bye")\nlogs.shutdown()\nprint("ok")'
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"ok\n")


# -- text ----------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_escaped_text_is_printable_and_keeps_printable_text(text):
    assert escaped(text).isprintable()
    if text.isprintable() and "\\" not in text:
        assert escaped(text) == text


def test_quoted_text_is_cut():
    assert quoted("a\nb") == '"a\\nb"'
    assert quoted("x" * 70) == f'"{"x" * 60}… (10 more characters)"'


def test_nearest_finds_slips_and_not_strangers():
    assert nearest("lease-ttl", ["lease_ttl_seconds", "prefix"]) == "lease_ttl_seconds"
    assert nearest("VCPUS", ["VCPU", "DISK_GB"]) == "VCPU"
    assert nearest("banana", ["lease_ttl_seconds", "prefix"]) is None
