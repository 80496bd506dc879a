"""HTTP/1.x as far as the server needs it: bytes to a request, an answer to bytes. Pure; the only place that knows waitress.

What reads the bytes of guests is waitress's parser, which has seen more of what can be sent than we ever shall; nothing else of
waitress is used. Of a request's headers only what frames it is looked at here, and only those of ``HANDED_ON`` are handed on:
nothing else that a guest says of itself reaches the application.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

from waitress.parser import HTTPRequestParser
from waitress.utilities import build_http_date

from common.metadata import SERVER_NAME

HEADER_BYTES = 8192
BODY_BYTES = 4096  # the longest body that is taken
TOKEN, TOKEN_TTL = "HTTP_X_AWS_EC2_METADATA_TOKEN", "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
FORWARDED_FOR, CONTENT_TYPE = "HTTP_X_FORWARDED_FOR", "CONTENT_TYPE"
# As the parser names a header, and as WSGI does. The parser drops names with underscores, so that no two spellings meet, and
# joins the values of one that comes twice by ", ".
HANDED_ON = {name.removeprefix("HTTP_"): name for name in (TOKEN, TOKEN_TTL, FORWARDED_FOR, CONTENT_TYPE)}
# In the environment of a request: set by the application where its answer must not travel further than so many hops.
HOP_LIMIT = "md_server.hop_limit"
_MOST_KEPT_BYTES = 1024
_IN_MEMORY_BYTES = 32768  # more than a body and one reading of the socket together, so that none is put into a file
# What is its own path, whatever stands around it: nothing in it is an escape, a query, a host or a scheme.
_PLAIN_TARGET = re.compile(rb"(GET|HEAD) (/(?!/)[A-Za-z0-9._:=@+~/-]*)(?= HTTP/1\.[01]\r\n)")
# A token is another one for each guest, and so not kept; one that is spelt otherwise is read, too, only not as fast.
_PLAIN_TOKEN = re.compile(rb"\r\nX-[Aa]ws-[Ee]c2-[Mm]etadata-[Tt]oken: ([A-Za-z0-9_-]{2,128})(?=\r\n)")
_PLACEHOLDER = "x"  # shorter than what it stands for, and nobody's token
_BAD_REQUEST = ("400 Bad Request", b"400 Bad Request\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# What the parser reads of waitress's settings, of which the others would be looked up in vain.
_SETTINGS = SimpleNamespace(
    max_request_header_size=HEADER_BYTES,
    max_request_body_size=BODY_BYTES + 1,  # the first that is refused
    inbuf_overflow=_IN_MEMORY_BYTES,
    url_scheme="http",
)


class Request(NamedTuple):
    """One request that is whole, or that is refused: then *refusal* is what to answer, and the rest says nothing."""

    method: str = ""
    path: str = ""  # escapes resolved
    target: str = ""  # as it was sent
    query: str = ""
    is_1_0: bool = False
    keeps_open: bool = False
    headers: tuple[tuple[str, str], ...] = ()  # those that are handed on, by WSGI's names
    body: bytes = b""
    refusal: tuple[str, bytes] | None = None  # status and body


class RequestReader:
    """Takes the bytes of one request as they come."""

    def __init__(self) -> None:
        self._parser = HTTPRequestParser(_SETTINGS)
        self._was_encouraged = False
        self._is_hopeless = False

    def take(self, data: bytes) -> int:
        """Read on; how many bytes of *data* belong to this request."""
        taken = 0
        try:
            while taken < len(data) and not self._parser.completed:  # the head and the body are taken one after the other
                taken += self._parser.received(data[taken:])
        except ValueError:  # an address that urlsplit refuses, such as http://[
            self._is_hopeless = True
            return len(data)
        return taken

    @property
    def is_done(self) -> bool:
        return self._is_hopeless or bool(self._parser.completed)

    def wants_continue(self) -> bool:
        """Whether the client waits for ``CONTINUE`` before it sends the body. True once."""
        parser = self._parser
        if self._was_encouraged or parser.completed or not (parser.headers_finished and parser.expect_continue):
            return False
        self._was_encouraged = True
        return True

    def request(self) -> Request:
        """What was asked, once it is done."""
        try:
            return self._read()
        finally:
            self._parser.close()

    def _read(self) -> Request:
        parser = self._parser
        if self._is_hopeless or parser.empty:  # empty: nothing but white space
            return Request(refusal=_BAD_REQUEST)
        if parser.error is not None:
            status, _, body = parser.error.to_response(SERVER_NAME)
            return Request(refusal=(status, body))
        is_1_1 = parser.version == "1.1"
        connection = parser.headers.get("CONNECTION", "").lower()
        return Request(
            parser.command,
            parser.path,
            parser.request_uri,
            parser.query,
            is_1_0=not is_1_1,
            keeps_open=connection != "close" if is_1_1 else parser.version == "1.0" and connection == "keep-alive",
            headers=tuple((name, parser.headers[key]) for key, name in HANDED_ON.items() if key in parser.headers),
            body=parser.get_body_stream().read(),
        )


def whole_request(data: bytes) -> Request | None:
    """The request that *data* is, where it is just one without a body, as nearly always; None: it takes a ``RequestReader``."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or end + 4 != len(data) or len(data) > _MOST_KEPT_BYTES:
        return None
    token = _PLAIN_TOKEN.search(data) if b"oken: " in data else None
    if token is None:
        return _request_by_path(data)
    request = _request_by_path(data[: token.start(1)] + _PLACEHOLDER.encode() + data[token.end(1) :])
    if request is None or (TOKEN, _PLACEHOLDER) not in request.headers:  # refused, or the header was not as it looked
        return _request_by_path(data)
    real = token[1].decode()
    return request._replace(headers=tuple([(name, real if name == TOKEN else value) for name, value in request.headers]))


def _request_by_path(data: bytes) -> Request | None:
    plain = _PLAIN_TARGET.match(data)
    if plain is None:
        return _whole_request(data)
    method, target = plain.groups()
    same = _whole_request(method + b" /" + data[plain.end() :])
    if same is None or same.refusal is not None:
        return same
    path = target.decode("ascii")
    return Request(same.method, path, path, "", same.is_1_0, same.keeps_open, same.headers)


@functools.lru_cache(maxsize=64)
def _whole_request(data: bytes) -> Request | None:
    """Kept, as guests with the same programs send the same bytes around path and token; they mean the same each time."""
    reader = RequestReader()
    is_all = reader.take(data) == len(data) and reader.is_done
    return reader.request() if is_all else None


def answer_head(status: str, headers: Sequence[tuple[str, str]], *, is_1_0: bool, keeps_open: bool) -> bytes:
    """The head of an answer. *headers* have to name the length of its body, where that status has one."""
    connection = ("Connection: Keep-Alive\r\n" if is_1_0 else "") if keeps_open else "Connection: close\r\n"
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return (
        f"HTTP/1.{0 if is_1_0 else 1} {status}\r\n{connection}{lines}"
        f"Date: {_date(int(time.time()))}\r\nServer: {SERVER_NAME}\r\n\r\n"
    ).encode("latin-1")


@functools.lru_cache(maxsize=1)
def _date(seconds: int) -> str:
    text: str = build_http_date(seconds)
    return text
