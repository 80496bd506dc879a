"""Logging: one line per event on one stream, as ``key=value`` for people or as JSON for a journal.

``setup`` is called once by each program's main. Every other module takes ``logging.getLogger(__name__)`` and gives fields
by ``extra=fields(...)``; what holds for a whole stretch of work (``instance=``) is set by ``log_context``. Lines are made
in the thread that logs and written by one other thread, through a bounded queue: a log that nobody reads costs lines,
which are counted, and never holds up the work. User data and secrets are never handed to a logger in the first place.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import logging
import math
import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from common.errors import ConfigError
from common.text import escaped, shortened, utc_text

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "text", "json")
QUEUE_LINES = 10_000
MOST_CHARACTERS = 16_000  # of one value; journald cuts a line at 48 KiB
SHUTDOWN_SECONDS = 2.0

_OWN_KEYS = ("time", "level", "logger", "message", "exception")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_context: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("log_context", default={})  # noqa: B039 - never mutated
_handler: QueuedHandler | None = None


def fields(**values: Any) -> dict[str, Any]:
    """*values* as the ``extra`` of one logging call: ``log.info("built", extra=fields(step="Start", took_ms=412))``."""
    return {"fields": values}


@contextlib.contextmanager
def log_context(**values: Any) -> Iterator[None]:
    """Put *values* on every line that this thread logs inside the ``with``; nested contexts add up."""
    token = _context.set({**_context.get(), **values})
    try:
        yield
    finally:
        _context.reset(token)


def setup(
    level: str = "info",
    format: str = "auto",
    stream: TextIO | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    **constant: Any,
) -> None:
    """Send all logging to *stream* (standard error by default); a second call replaces the first.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        format: ``text``, ``json``, or ``auto``: JSON where *stream* is the journal's, text else.
        environment: where ``JOURNAL_STREAM`` is looked up; the process's own by default.
        constant: fields of every line, such as ``host="h1"``.

    Raises:
        ConfigError: *level* or *format* is none of these.
    """
    global _handler  # noqa: PLW0603 - logging is per process, as logging's own root is
    if level not in LEVELS:
        raise ConfigError(f"log level {level!r} is unknown; it is one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ConfigError(f"log format {format!r} is unknown; it is one of {', '.join(FORMATS)}")
    stream = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and is_journal(stream, os.environ if environment is None else environment))
    shutdown()
    _handler = QueuedHandler(stream, JsonFormatter(constant) if as_json else TextFormatter(constant))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(_handler)
    root.setLevel(LEVELS[level])
    logging.getLogger("urllib3").setLevel(max(logging.INFO, LEVELS[level]))  # our own lines say what was asked, once
    logging.captureWarnings(True)


def shutdown(timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
    """Write what is queued, for at most *timeout_seconds*, and stop logging. Harmless when nothing was set up."""
    global _handler
    if _handler is None:
        return
    handler, _handler = _handler, None
    logging.captureWarnings(False)
    logging.getLogger().removeHandler(handler)
    handler.close(timeout_seconds)


def is_journal(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether *stream* goes to systemd's journal.

    systemd.exec(5): JOURNAL_STREAM is "device:inode" of the stream that systemd connected, and a program should compare
    it, because the variable is inherited by children whose output goes elsewhere.
    """
    if stream is None:
        return False
    try:
        device, _, inode = environment.get("JOURNAL_STREAM", "").partition(":")
        stat = os.fstat(stream.fileno())
        return (stat.st_dev, stat.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return False


class _Formatter(logging.Formatter):
    """Collects what a line holds; the subclasses write it."""

    def __init__(self, constant: Mapping[str, Any]) -> None:
        super().__init__()
        self._constant = dict(constant)

    def format(self, record: logging.LogRecord) -> str:
        return self.line(self.values_of(record))

    def line(self, values: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def values_of(self, record: logging.LogRecord) -> dict[str, Any]:
        values: dict[str, Any] = {
            "time": utc_text(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        given = extra.pop("fields", {})
        for key, value in {**self._constant, **_context.get(), **extra, **given}.items():
            if value is not None:
                values[f"{key}_" if key in _OWN_KEYS else key] = value
        if record.exc_info and record.exc_info[0] is not None:
            values["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            values["stack"] = record.stack_info
        return values


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a wrong logging call must cost its arguments and nothing else
        return f"{record.msg} (its arguments do not fit: {type(error).__name__})"


def _text(value: Any) -> str:
    try:
        return shortened(str(value), MOST_CHARACTERS)
    except Exception as error:  # noqa: BLE001 - any object may be a field, and its __str__ may raise anything
        return f"<{type(value).__name__}: {type(error).__name__}>"


class TextFormatter(_Formatter):
    """``time=… level=… logger=… message="…" instance=…``: one line, values quoted where they need it."""

    def line(self, values: Mapping[str, Any]) -> str:
        return " ".join(f"{key}={_value(_text(value))}" for key, value in values.items())


def _value(text: str) -> str:
    plain = escaped(text)
    if plain and plain == text and not any(c in ' "=' for c in plain):
        return plain
    return '"' + plain.replace('"', '\\"') + '"'


class JsonFormatter(_Formatter):
    """One JSON object per line, in ASCII; numbers and booleans stay what they are."""

    def line(self, values: Mapping[str, Any]) -> str:
        return json.dumps({key: value if _is_json_number(value) else _text(value) for key, value in values.items()})


def _is_json_number(value: Any) -> bool:
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


class QueuedHandler(logging.Handler):
    """Formats in the caller's thread, writes in its own; what does not fit into the queue is dropped and counted.

    The stdlib's QueueHandler is not used: QueueListener waits for its thread without a bound, and cannot stop at all
    while its queue is full.
    """

    def __init__(self, stream: TextIO | None, formatter: logging.Formatter, most_lines: int = QUEUE_LINES) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: queue.Queue[str | None] = queue.Queue(most_lines)  # None: the end
        self._write = _writer(stream)
        self._drop_lock = threading.Lock()
        self._dropped = 0
        self._closing = threading.Event()
        # A daemon thread, so that a reader that never reads cannot keep the process from ending either.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._drop(1)

    def drain(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
        """Wait until all that was logged so far is written, for at most *timeout_seconds*."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, timeout_seconds)

    def close(self, timeout_seconds: float = SHUTDOWN_SECONDS) -> None:
        """Write what is queued, for at most *timeout_seconds*, and end the thread.

        Also called by ``logging.shutdown`` at exit, so that the last words of a program that forgot are not lost.
        """
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread is not waiting for lines, and sees the event when they end
            self._lines.put_nowait(None)
        self._thread.join(timeout_seconds)
        super().close()

    def _drop(self, count: int) -> None:
        with self._drop_lock:
            self._dropped += count

    def _run(self) -> None:
        while not (self._closing.is_set() and self._lines.empty()):
            line = self._lines.get()
            try:
                if line is None:
                    return
                self._write(line + "\n")
                self._report_dropped()
            except (OSError, ValueError):  # the reader is gone, the disk is full, the stream is closed: nowhere to say it
                self._drop(1)
            finally:
                self._lines.task_done()

    def _report_dropped(self) -> None:
        with self._drop_lock:
            count, self._dropped = self._dropped, 0
        if count:
            text = f"{count} log lines were dropped: the reader of this log is too slow, or was gone"
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
            self._write(self.format(record) + "\n")


def _writer(stream: TextIO | None) -> Callable[[str], None]:
    """A function that writes one text to *stream* at once.

    By the descriptor where there is one: a thread that blocks inside *stream* holds its buffer's lock, and Python aborts
    at exit ("could not acquire lock for <_io.BufferedWriter name='<stderr>'>").
    """
    if stream is None:  # sys.stderr of a process that was started with it closed
        return lambda _text: None
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:

        def write_stream(text: str) -> None:
            stream.write(text)
            stream.flush()

        return write_stream

    def write_descriptor(text: str) -> None:
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # somebody else made the terminal non-blocking
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll(1000)

    return write_descriptor
