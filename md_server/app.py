"""The metadata service as a WSGI application: one request in, one answer out; the next answer never depends on the last.

The guest is known by REMOTE_ADDR alone; no header says who asks. An unknown source gets the same 404 whatever it asks, and
however, so that nobody learns which guests exist. Whether a guest needs a session token is its document's to say. Knows nothing
of sockets; ``server`` feeds it, the gabbi suites feed it directly.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from common.errors import EcomputeError, InvalidSpec
from common.logs import fields
from common.model import MetadataAccess
from common.renderings import ec2, nocloud, openstack
from common.renderings.guest import Guest
from common.renderings.openstack import RandomBytes
from common.renderings.tree import TEXT, Directory, Leaf, find, text
from common.reports import EVERY_SECONDS, GuestReport
from common.text import utc_text
from md_server.http import BODY_BYTES, CONTENT_TYPE, FORWARDED_FOR, HOP_LIMIT, TOKEN, TOKEN_TTL
from md_server.limiter import Limiter, Pace
from md_server.lookup import Lookup
from md_server.ready import is_known_form, report_of
from md_server.tokens import Tokens, ttl_of

log = logging.getLogger(__name__)

MOST_PATH_CHARACTERS = 256
METHODS = ("GET", "HEAD")
READY = "/etcd-compute/v1/ready"
REPORTS_AT_ONCE = 3  # a boot that reports its stages, or repeats itself
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
# All that a path of ours can hold; what escapes (%2F) stood for is seen here already, in PATH_INFO.
_PATH = re.compile(r"/(?:[A-Za-z0-9._:=@+~-]+/)*[A-Za-z0-9._:=@+~-]*")
_WARN_EVERY_SECONDS = 60.0
_MOST_WARNED = 16  # sources in that time

_TOKEN_PATHS = [[version, "api", "token"] for version in ec2.VERSIONS]
_EC2_VERSIONS, _OPENSTACK_VERSIONS = text("\n".join(ec2.VERSIONS)), text("\n".join(openstack.VERSIONS))

Environment = MutableMapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
OnReport = Callable[[UUID, GuestReport], None]


@dataclass(frozen=True)
class Answer:
    """Status, body and further headers of one response."""

    status: str
    leaf: Leaf
    headers: tuple[tuple[str, str], ...] = ()
    hop_limit: int | None = None  # how far it may travel, where that matters

    @property
    def has_length(self) -> bool:
        """Whether it names its body's length and type: all but the one that can have no body."""
        return not self.status.startswith("204")


def _plain(status: str, *headers: tuple[str, str], why: str = "") -> Answer:
    return Answer(status, Leaf(f"{status}{': ' if why else ''}{why}\n".encode(), TEXT), headers)


def _not_allowed(*allowed: str) -> Answer:
    return _plain("405 Method Not Allowed", ("Allow", ", ".join(allowed)))


NO_CONTENT = Answer("204 No Content", Leaf(b""))
BAD_REQUEST = _plain("400 Bad Request")
BAD_TTL = _plain("400 Bad Request", why=f"{TTL_HEADER} needs to be 1 to 21600")
UNAUTHORIZED = _plain("401 Unauthorized")
FORBIDDEN = _plain("403 Forbidden")
NOT_FOUND = _plain("404 Not Found")
NOT_ALLOWED = _not_allowed(*METHODS)
TOO_LARGE = _plain("413 Content Too Large")
UNKNOWN_FORM = _plain("415 Unsupported Media Type")
UNAVAILABLE = _plain("503 Service Unavailable", ("Retry-After", "5"))


class Application:
    """The WSGI callable.

    Args:
        lookup: tells who is asking.
        tokens: issues and judges session tokens; else those of this application alone.
        on_report: takes what a guest says when it is ready, and may raise; without it there is no such resource.
        own_address: where we listen; a request from there comes from this host itself, and is no guest gone astray.
        random_bytes: what the OpenStack tree's random_seed is made of.
        clock: monotonic seconds, for the rate of warnings and reports.
        now: the time that a report gets.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        tokens: Tokens | None = None,
        on_report: OnReport | None = None,
        own_address: str = "",
        random_bytes: RandomBytes = os.urandom,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lookup, self._own_address, self._random_bytes, self._now = lookup, own_address, random_bytes, now
        self._tokens, self._on_report = tokens or Tokens(os.urandom(32)), on_report
        self._reports = Pace(EVERY_SECONDS, REPORTS_AT_ONCE, clock)
        self._strangers = Limiter(_WARN_EVERY_SECONDS, _MOST_WARNED, clock)
        self._failures = Limiter(_WARN_EVERY_SECONDS, _MOST_WARNED, clock)

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        answer = self._answer(environ)
        headers = list(answer.headers)
        if answer.has_length:
            headers += [("Content-Type", answer.leaf.content_type), ("Content-Length", str(len(answer.leaf.content)))]
        if answer.hop_limit is not None:
            environ[HOP_LIMIT] = answer.hop_limit
        start_response(answer.status, headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.leaf.content]

    def _answer(self, environ: Environment) -> Answer:
        source, path = environ.get("REMOTE_ADDR") or "", environ.get("PATH_INFO") or "/"
        guest: Guest | None = None
        try:
            guest = self._lookup.guest_at(source)
            answer = NOT_FOUND if guest is None else self._answer_guest(guest, path, environ)
        except EcomputeError as error:
            self._warn_failure(source, error)
            answer = UNAVAILABLE
        else:
            if guest is None:
                self._warn_stranger(source)
        if log.isEnabledFor(logging.DEBUG):
            instance = guest.uuid if guest else None
            method, status = environ.get("REQUEST_METHOD"), answer.status[:3]
            log.debug("answered", extra=fields(source=source, method=method, path=path[:80], status=status, instance=instance))
        return answer

    def _answer_guest(self, guest: Guest, path: str, environ: Environment) -> Answer:
        method = environ.get("REQUEST_METHOD")
        if not is_well_formed(path, environ.get("REQUEST_URI") or ""):
            return BAD_REQUEST
        if path.endswith("/api/token") and path.split("/")[1:] in _TOKEN_PATHS:
            return self._issue_token(guest, environ) if method == "PUT" else _not_allowed("PUT")
        refusal = self._refusal(guest, environ.get(TOKEN))
        if refusal is not None:
            return refusal
        if path == READY and self._on_report is not None:
            return self._take_report(guest, self._on_report, environ) if method == "POST" else _not_allowed("POST")
        if method not in METHODS:
            return NOT_ALLOWED
        leaf = resource(guest, path, self._random_bytes)
        return NOT_FOUND if leaf is None else Answer("200 OK", leaf)

    def _refusal(self, guest: Guest, token: str | None) -> Answer | None:
        """Why the guest gets nothing with that *token*; a wrong one is worse than none, so that a program notices."""
        if token is None:
            return UNAUTHORIZED if guest.document.access is MetadataAccess.REQUIRED else None
        if "," in token:  # the header came twice
            return BAD_REQUEST
        return None if self._tokens.is_good(guest.document.uuid, token) else UNAUTHORIZED

    def _issue_token(self, guest: Guest, environ: Environment) -> Answer:
        """As EC2 does: only to who can set a header in a PUT, is no proxy, and is no further away than the limit says."""
        if FORWARDED_FOR in environ:
            return FORBIDDEN
        ttl_seconds = ttl_of(environ.get(TOKEN_TTL, ""))
        if ttl_seconds is None:
            return BAD_TTL
        token = self._tokens.issue(guest.document.uuid, ttl_seconds)
        return Answer("200 OK", text(token), ((TTL_HEADER, str(ttl_seconds)),), max(1, guest.document.hop_limit))

    def _take_report(self, guest: Guest, on_report: OnReport, environ: Environment) -> Answer:
        wait_seconds = self._reports.wait_seconds(guest.document.uuid)
        if wait_seconds:
            return _plain("429 Too Many Requests", ("Retry-After", str(math.ceil(wait_seconds))))
        content_type, body = environ.get(CONTENT_TYPE) or "", _body(environ)
        if len(body) > BODY_BYTES:
            return TOO_LARGE
        if not is_known_form(content_type):
            return UNKNOWN_FORM
        at = utc_text(self._now())
        try:
            report = report_of(content_type, body, at)
        except InvalidSpec as error:
            return _plain("400 Bad Request", why=str(error))
        try:
            on_report(guest.document.uuid, report)
        except EcomputeError:
            raise
        except Exception:
            if self._failures.may_pass(READY):
                log.exception("bug: a guest's report is not taken; answered 503")
            return UNAVAILABLE
        return NO_CONTENT

    def _warn_stranger(self, source: str) -> None:
        if source != self._own_address and self._strangers.may_pass(source):
            log.warning("a request from an address that no instance here has; answered 404", extra=fields(source=source))

    def _warn_failure(self, source: str, error: EcomputeError) -> None:
        if self._failures.may_pass(source):
            log.error("answered 503: %s", error, extra=fields(source=source))


def _body(environ: Environment) -> bytes:
    """What the request holds, and no more than a byte too much."""
    stream = environ.get("wsgi.input")
    length = environ.get("CONTENT_LENGTH") or ""
    if stream is None or not (length.isascii() and length.isdigit()):
        return b""
    found: bytes = stream.read(min(int(length), BODY_BYTES + 1))
    return found


def is_well_formed(path: str, raw_target: str) -> bool:
    """Whether *path* can name anything here: plain characters, no empty or dotted segments, no overlong ones.

    *raw_target* is the request's target before escapes were resolved, where the server tells it: a slash that was escaped
    (``%2F``), or one before the path that a server strips, is no slash of ours.
    """
    if len(path) > MOST_PATH_CHARACTERS or not _PATH.fullmatch(path):
        return False
    if "%2f" in raw_target.lower() or raw_target.startswith("//"):
        return False
    return not any(segment in (".", "..") for segment in path.split("/"))


def resource(guest: Guest, path: str, random_bytes: RandomBytes) -> Leaf | None:
    """What the well-formed *path* holds for *guest*; None where nothing is."""
    segments, has_slash = path.strip("/").split("/"), path.endswith("/")
    if segments == [""]:
        return _EC2_VERSIONS
    if segments[0] == "nocloud":
        return find(_kept(guest, "nocloud", lambda: nocloud.tree(guest)), segments[1:], has_slash=has_slash)
    if segments == ["openstack"]:
        return _OPENSTACK_VERSIONS
    if segments[0] == "openstack" and segments[1] in openstack.VERSIONS:
        version = segments[1]
        return find(
            _kept(guest, version, lambda: openstack.tree(guest, version, random_bytes)), segments[2:], has_slash=has_slash
        )
    if segments[0] in ec2.VERSIONS:
        return find(_kept(guest, "ec2", lambda: ec2.tree(guest)), segments[1:], has_slash=has_slash)
    return None


def _kept(guest: Guest, name: str, make: Callable[[], Directory]) -> Directory:
    """The tree of that *name*, made when first asked for; it is forgotten with *guest*."""
    if name not in guest.trees:
        guest.trees[name] = make()
    return guest.trees[name]
