"""Where the bytes of an image come from: an HTTP server or a file of this host. The only HTTP for images is here.

A source says what identifies its content (``key``) and hands out its bytes once (``open``). It knows nothing of the cache, of
checksums or of formats. Another kind of source is another class with these two methods. Called by ``images``.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import logging
import os
import re
import ssl
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from common.errors import EcomputeError, ImageNotFound, ImageUnavailable, InvalidSpec
from common.retry import Backoff, Deadline, retry
from common.text import escaped, innermost_cause

CONNECT_TIMEOUT_SECONDS = 10.0
_HTTP_CHUNK_BYTES = 256 * 1024
_FILE_CHUNK_BYTES = 1024 * 1024
_MOST_RETRY_AFTER_SECONDS = 3600.0
_FICLONE = 0x40049409  # linux/fs.h: share the extents of one file with another
_TRY_LATER = {408, 425, 429}
_NOTHING: Mapping[str, str] = MappingProxyType({})
_CONDITIONS = {"etag": "If-None-Match", "last_modified": "If-Modified-Since"}
_MOST_RESUMES = 50  # of one download: a server that hangs up after every few bytes is given up
_MOST_RESUMES_IN_VAIN = 3  # one after the other, without a byte
_SETTLED_AFTER_SECONDS = 60.0  # RFC 9110, 8.8.2.2: a younger Last-Modified may belong to two contents of the same second
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stream:
    """An open source.

    Args:
        chunks: the bytes, in pieces; all but the last hold 256 KiB or more, so that the first shows what it is.
        total_bytes: how many there will be; 0 where nobody said.
        validators: what the server said about this version of the content (``etag``, ``last_modified``).
        descriptor: the open file behind it, where it is one.
        is_unchanged: the content is the one that was known; there are no chunks.
    """

    chunks: Iterator[bytes]
    total_bytes: int
    validators: dict[str, str] = field(default_factory=dict)
    descriptor: int | None = None
    is_unchanged: bool = False

    def clone_to(self, target: int) -> bool:
        """Make the empty file *target* share the source's blocks; False where the file systems cannot, and nothing happened."""
        if self.descriptor is None:
            return False
        try:
            fcntl.ioctl(target, _FICLONE, self.descriptor)
        except OSError:
            return False
        return True


class Source(Protocol):
    shown: str  # the address, without what may be secret in it
    may_change: bool  # something else may come to be there while ``key`` stays the same

    def key(self) -> str:
        """Equal keys mean equal content, as far as can be known without reading it.

        Raises:
            ImageNotFound: there is nothing to identify.
        """
        ...

    def open(self, known: Mapping[str, str] = _NOTHING) -> contextlib.AbstractContextManager[Stream]:
        """The bytes, from their beginning; none where they are still those that had the validators *known*.

        Raises, also while they are read:
            ImageNotFound: they are not there, or not for us.
            ImageUnavailable: not now.
        """
        ...


def source_of(url: str, *, fetch_timeout_seconds: float) -> Source:
    """The source that *url* names.

    Raises:
        InvalidSpec: no kind of address that images come from.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https") and rest.startswith("//"):
        return HttpSource(url, fetch_timeout_seconds)
    if scheme.lower() == "file":
        return FileSource(_path_of(url))
    if url.startswith("/"):
        return FileSource(Path(url))
    raise InvalidSpec(f"image {url!r} is neither an http://, https:// or file:// address nor an absolute path")


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise InvalidSpec(f"image {url!r}: a file address names a file of the host itself: file:///path/to/image")
    return Path(path)


class FileSource:
    """A file of this host. It is only ever read: a guest's disk rests on a copy, since the file itself may change."""

    may_change = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = escaped(str(path))

    def key(self) -> str:
        try:
            return _file_key(self._path, self._path.stat())
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error

    @contextlib.contextmanager
    def open(self, known: Mapping[str, str] = _NOTHING) -> Iterator[Stream]:  # noqa: ARG002 - its key tells it all
        try:
            # Not to be held up by a pipe, and not to become the terminal's owner.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ImageNotFound(f"image {self.shown} is no regular file; name a disk image")
            yield Stream(self._chunks(descriptor, before), before.st_size, descriptor=descriptor)
        finally:
            os.close(descriptor)

    def _chunks(self, descriptor: int, before: os.stat_result) -> Iterator[bytes]:
        try:
            while chunk := os.read(descriptor, _FILE_CHUNK_BYTES):
                yield chunk
        except OSError as error:
            raise ImageUnavailable(f"image {self.shown} cannot be read: {error.strerror}") from error
        if _file_key(self._path, os.fstat(descriptor)) != _file_key(self._path, before):
            raise ImageUnavailable(f"image {self.shown} changed while it was read; it is read again")

    def _not_found(self, error: OSError | ValueError) -> ImageNotFound:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return ImageNotFound(f"image {self.shown} cannot be read: {why}; the path must name a file on the host of the instance")


def _file_key(path: Path, found: os.stat_result) -> str:
    return f"file:{path}|{found.st_size}|{found.st_mtime_ns}|{found.st_dev}:{found.st_ino}"


class HttpSource:
    """What an HTTP server sends for a URL. Redirects are followed to http and https only."""

    may_change = True

    def __init__(self, url: str, fetch_timeout_seconds: float) -> None:
        self._url, self._timeout_seconds = url, fetch_timeout_seconds
        self.shown = shown_url(url)

    def key(self) -> str:
        return f"url:{self._url}"

    @contextlib.contextmanager
    def open(self, known: Mapping[str, str] = _NOTHING) -> Iterator[Stream]:
        conditions = {header: known[name] for name, header in _CONDITIONS.items() if _is_header(known.get(name))}
        with requests.Session() as session, self._answer(session, conditions) as response:
            if conditions and response.status_code == 304:
                yield Stream(iter(()), 0, is_unchanged=True)
                return
            self._check_status(response)
            named = {"etag": "ETag", "last_modified": "Last-Modified"}
            validators = {name: response.headers[header] for name, header in named.items() if header in response.headers}
            total = _content_length(response)
            yield Stream(self._chunks(session, response, total), total, validators)

    def _answer(self, session: requests.Session, more: Mapping[str, str] = _NOTHING) -> requests.Response:
        # The host's own certificate authorities, as for every other program; REQUESTS_CA_BUNDLE goes before them.
        authorities = ssl.get_default_verify_paths()
        session.verify = authorities.cafile or authorities.capath or True
        with self._translated():
            # "identity": a body that is packed on the way has another length than the header says.
            return session.get(
                self._url,
                stream=True,
                timeout=(min(CONNECT_TIMEOUT_SECONDS, self._timeout_seconds), self._timeout_seconds),
                headers={"Accept-Encoding": "identity", "User-Agent": "etcd-compute", **more},
            )

    def _chunks(self, session: requests.Session, response: requests.Response, total: int) -> Iterator[bytes]:
        """The body; what broke off goes on where it ended, as long as the server still has the same content."""
        version, received, head = strong_validator(response.headers), 0, b""
        resumed = in_vain = 0
        try:
            while True:
                try:
                    for chunk in self._body(response, received, total):
                        received, in_vain = received + len(chunk), 0
                        head += chunk
                        if received >= _HTTP_CHUNK_BYTES or received == total:
                            yield head
                            head = b""
                    if head:
                        yield head
                    return
                except ImageUnavailable as error:
                    response.close()
                    resumed, in_vain = resumed + 1, in_vain + 1
                    if not version or received >= total or resumed > _MOST_RESUMES or in_vain > _MOST_RESUMES_IN_VAIN:
                        raise
                    response = self._rest(session, version, received, total, error)
        finally:
            response.close()

    def _body(self, response: requests.Response, received: int, total: int) -> Iterator[bytes]:
        with self._translated():
            try:
                while chunk := response.raw.read(_HTTP_CHUNK_BYTES, decode_content=False):
                    received += len(chunk)
                    yield chunk
            except urllib3.exceptions.ProtocolError as error:
                raise self._broke_off(received, total) from error
        if total and received != total:
            raise self._broke_off(received, total)

    def _rest(
        self, session: requests.Session, version: str, received: int, total: int, broke: ImageUnavailable
    ) -> requests.Response:
        """The answer that goes on behind *received* bytes of *version*, asked for as long as a server may be silent.

        Raises:
            ImageUnavailable: *broke*, where the server does not go on; the caller begins anew.
        """
        headers = {"Range": f"bytes={received}-", "If-Range": version}

        def ask() -> requests.Response | None:
            response = self._answer(session, headers)
            if response.status_code >= 500 or response.status_code in _TRY_LATER:
                with response:
                    self._check_status(response)
            if _goes_on(response, version, received, total):
                return response
            response.close()
            return None

        deadline = Deadline(self._timeout_seconds)
        try:
            answer = retry(ask, on=ImageUnavailable, deadline=deadline, backoff=Backoff(0.2, 5.0))
        except EcomputeError as error:
            raise broke from error
        if answer is None:
            raise broke
        logger.info("image=%s goes on at byte %d of %d: %s", self.shown, received, total, broke)
        return answer

    def _broke_off(self, received: int, total: int) -> ImageUnavailable:
        return ImageUnavailable(
            f"image {self.shown} broke off after {received} of {total or 'unknown'} bytes; it is fetched again"
        )

    def _check_status(self, response: requests.Response) -> None:
        code = response.status_code
        if code == 200:
            return
        answer = f"image {self.shown}: the server answered {code} {response.reason or ''}".rstrip()
        if code >= 500 or code in _TRY_LATER:
            raise ImageUnavailable(answer, retry_after_seconds(response.headers))
        if code in (404, 410):
            raise ImageNotFound(f"{answer}: nothing is there; check the address")
        if code in (401, 403):
            raise ImageNotFound(f"{answer}: it may not be read from this host")
        raise ImageNotFound(f"{answer}, which is no image")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the HTTP libraries' errors into ours."""
        try:
            yield
        except requests.exceptions.TooManyRedirects as error:
            raise ImageNotFound(f"image {self.shown} is redirected in a circle: see to its server") from error
        except requests.exceptions.InvalidSchema as error:
            raise ImageNotFound(
                f"image {self.shown} is redirected to something other than http or https, which is not followed: name the "
                "address where it really is"
            ) from error
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            urllib3.exceptions.LocationParseError,
        ) as error:
            raise ImageNotFound(f"image {self.shown} is no address that can be asked: {innermost_cause(error)}") from error
        except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
            raise self._tls_error(error) from error
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise ImageUnavailable(f"image {self.shown}: the server sent nothing for {self._timeout_seconds:g} s") from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ImageUnavailable(f"image {self.shown} cannot be fetched: {innermost_cause(error)}") from error
        except ValueError as error:  # of urllib, for an address that it cannot read, be it one that a server redirects to
            raise ImageNotFound(f"image {self.shown} is no address, or leads to none, that can be asked: {error}") from error

    def _tls_error(self, error: Exception) -> ImageUnavailable | ImageNotFound:
        text = innermost_cause(error)
        if "EOF" in text:  # the server hung up in the middle of it
            return ImageUnavailable(f"image {self.shown}: the TLS connection broke off: {text}")
        return ImageNotFound(
            f"image {self.shown}: no TLS connection that can be trusted: {text}; "
            "correct the server's certificate, or add its authority to this host (update-ca-certificates)",
            "ImageTlsFailed",
        )


def strong_validator(headers: Mapping[str, str]) -> str:
    """What If-Range may be asked with: a strong ETag, or a Last-Modified old enough to tell two versions apart; or nothing."""
    etag = headers.get("ETag", "")
    if etag:
        return etag if _STRONG_ETAG.fullmatch(etag) else ""
    try:
        changed, now = (email.utils.parsedate_to_datetime(headers.get(name, "")) for name in ("Last-Modified", "Date"))
        is_old = (now - changed).total_seconds() >= _SETTLED_AFTER_SECONDS
    except (TypeError, ValueError):
        return ""
    return headers["Last-Modified"] if is_old else ""


def _is_header(value: object) -> bool:
    """Whether *value*, which was read from a file, may be sent as a header."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and bool(value.strip())


def _goes_on(response: requests.Response, version: str, received: int, total: int) -> bool:
    """Whether *response* is what is behind *received* bytes of the same content, to its end."""
    is_dated = not version.startswith('"')
    told = response.headers.get("Last-Modified" if is_dated else "ETag")
    is_same = told == version or (is_dated and told is None)  # a 206 need not repeat the date
    length = _content_length(response)
    return (
        response.status_code == 206
        and response.headers.get("Content-Range", "").strip() == f"bytes {received}-{total - 1}/{total}"
        and length in (0, total - received)
        and is_same
    )


def shown_url(url: str) -> str:
    """*url* for messages: without user, password, query and fragment, where secrets and signatures are."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(an address that cannot be read)"
    if parts.scheme not in ("http", "https"):
        return url
    return f"{parts.scheme}://{host}{parts.path}{'?…' if parts.query else ''}"


def retry_after_seconds(headers: requests.structures.CaseInsensitiveDict[str]) -> float | None:
    """What a Retry-After header asks for, at most an hour; a date in it is compared with the server's own clock."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _MOST_RETRY_AFTER_SECONDS)
    try:
        then, now = (email.utils.parsedate_to_datetime(value) for value in (text, headers.get("Date", "")))
        return min(max((then - now).total_seconds(), 0.0), _MOST_RETRY_AFTER_SECONDS)
    except (TypeError, ValueError):
        return None


def _content_length(response: requests.Response) -> int:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else 0
