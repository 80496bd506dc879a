"""The metadata service as a WSGI application: one request in, one answer out; the next answer never depends on the last.

The guest is known by REMOTE_ADDR alone; no header is looked at. An unknown source and an unknown path get the same 404, so that
nobody learns which guests exist. Knows nothing of sockets; ``server`` feeds it, the gabbi suites feed it directly.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import EcomputeError
from common.logs import fields
from md_server import ec2, openstack
from md_server.guest import Guest
from md_server.limiter import Limiter
from md_server.lookup import Lookup
from md_server.openstack import RandomBytes
from md_server.tree import TEXT, Directory, Leaf, find, text

log = logging.getLogger(__name__)

MOST_PATH_CHARACTERS = 256
METHODS = ("GET", "HEAD")
# All that a path of ours can hold; what escapes (%2F) stood for is seen here already, in PATH_INFO.
_PATH = re.compile(r"/(?:[A-Za-z0-9._:=@+~-]+/)*[A-Za-z0-9._:=@+~-]*")
_WARN_EVERY_SECONDS = 60.0
_MOST_WARNED = 16  # sources in that time

_EC2_VERSIONS, _OPENSTACK_VERSIONS = text("\n".join(ec2.VERSIONS)), text("\n".join(openstack.VERSIONS))

StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True)
class Answer:
    """Status, body and further headers of one response."""

    status: str
    leaf: Leaf
    headers: tuple[tuple[str, str], ...] = ()


def _plain(status: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, Leaf(f"{status}\n".encode(), TEXT), headers)


BAD_REQUEST = _plain("400 Bad Request")
NOT_FOUND = _plain("404 Not Found")
NOT_ALLOWED = _plain("405 Method Not Allowed", ("Allow", ", ".join(METHODS)))
UNAVAILABLE = _plain("503 Service Unavailable", ("Retry-After", "5"))


class Application:
    """The WSGI callable.

    Args:
        lookup: tells who is asking.
        own_address: where we listen; a request from there comes from this host itself, and is no guest gone astray.
        random_bytes: what the OpenStack tree's random_seed is made of.
        clock: monotonic seconds, for the rate of warnings.
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        own_address: str = "",
        random_bytes: RandomBytes = os.urandom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup, self._own_address, self._random_bytes = lookup, own_address, random_bytes
        self._strangers = Limiter(_WARN_EVERY_SECONDS, _MOST_WARNED, clock)
        self._unreadable = Limiter(_WARN_EVERY_SECONDS, _MOST_WARNED, clock)

    def __call__(self, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        answer = self._answer(environ)
        headers = [("Content-Type", answer.leaf.content_type), ("Content-Length", str(len(answer.leaf.content)))]
        start_response(answer.status, headers + list(answer.headers))
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [answer.leaf.content]

    def _answer(self, environ: Mapping[str, Any]) -> Answer:
        source, path = environ.get("REMOTE_ADDR") or "", environ.get("PATH_INFO") or "/"
        guest: Guest | None = None
        if environ.get("REQUEST_METHOD") not in METHODS:
            answer = NOT_ALLOWED
        elif not is_well_formed(path, environ.get("REQUEST_URI") or ""):
            answer = BAD_REQUEST
        else:
            try:
                guest = self._lookup.guest_at(source)
                answer = NOT_FOUND if guest is None else self._render(guest, path)
            except EcomputeError as error:
                self._warn_unreadable(source, error)
                answer = UNAVAILABLE
            else:
                if guest is None:
                    self._warn_stranger(source)
        if log.isEnabledFor(logging.DEBUG):
            instance = guest.uuid if guest else None
            method, status = environ.get("REQUEST_METHOD"), answer.status[:3]
            log.debug("answered", extra=fields(source=source, method=method, path=path[:80], status=status, instance=instance))
        return answer

    def _render(self, guest: Guest, path: str) -> Answer:
        leaf = resource(guest, path, self._random_bytes)
        return NOT_FOUND if leaf is None else Answer("200 OK", leaf)

    def _warn_stranger(self, source: str) -> None:
        if source != self._own_address and self._strangers.may_pass(source):
            log.warning("a request from an address that no instance here has; answered 404", extra=fields(source=source))

    def _warn_unreadable(self, source: str, error: EcomputeError) -> None:
        if self._unreadable.may_pass(source):
            log.error("metadata cannot be read; answered 503: %s", error, extra=fields(source=source))


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
