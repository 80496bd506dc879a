"""Where the bytes of an image come from: an HTTP server or a file of this host. The only HTTP for images is here.

A source says what identifies its content (``key``) and hands out its bytes once (``open``). It knows nothing of the cache, of
checksums or of formats. Another kind of source is another class with these two methods. Called by ``images``.
"""

from __future__ import annotations

import contextlib
import email.utils
import fcntl
import os
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from common.errors import ImageNotFound, ImageUnavailable, InvalidSpec

CONNECT_TIMEOUT_SECONDS = 10.0
_HTTP_CHUNK_BYTES = 256 * 1024
_FILE_CHUNK_BYTES = 1024 * 1024
_MOST_RETRY_AFTER_SECONDS = 3600.0
_FICLONE = 0x40049409  # linux/fs.h: share the extents of one file with another
_TRY_LATER = {408, 425, 429}


@dataclass(frozen=True)
class Stream:
    """An open source.

    Args:
        chunks: the bytes, in pieces; all but the last hold 256 KiB or more, so that the first shows what it is.
        total_bytes: how many there will be; 0 where nobody said.
        validators: what the server said about this version of the content (``etag``, ``last_modified``).
        descriptor: the open file behind it, where it is one.
    """

    chunks: Iterator[bytes]
    total_bytes: int
    validators: dict[str, str] = field(default_factory=dict)
    descriptor: int | None = None

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

    def key(self) -> str:
        """Equal keys mean equal content, as far as can be known without reading it.

        Raises:
            ImageNotFound: there is nothing to identify.
        """
        ...

    def open(self) -> contextlib.AbstractContextManager[Stream]:
        """The bytes, from their beginning.

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

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = str(path)

    def key(self) -> str:
        try:
            return _file_key(self._path, self._path.stat())
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error

    @contextlib.contextmanager
    def open(self) -> Iterator[Stream]:
        try:
            # Not to be held up by a pipe, and not to become the terminal's owner.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise self._not_found(error) from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ImageNotFound(f"image {self.shown} is no regular file; name a qcow2 or raw disk image")
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

    def __init__(self, url: str, fetch_timeout_seconds: float) -> None:
        self._url, self._timeout_seconds = url, fetch_timeout_seconds
        self.shown = shown_url(url)

    def key(self) -> str:
        return f"url:{self._url}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Stream]:
        with requests.Session() as session, self._answer(session) as response:
            self._check_status(response)
            total = _content_length(response)
            named = {"etag": "ETag", "last_modified": "Last-Modified"}
            validators = {name: response.headers[header] for name, header in named.items() if header in response.headers}
            yield Stream(self._chunks(response, total), total, validators)

    def _answer(self, session: requests.Session) -> requests.Response:
        # The host's own certificate authorities, as for every other program; REQUESTS_CA_BUNDLE goes before them.
        authorities = ssl.get_default_verify_paths()
        session.verify = authorities.cafile or authorities.capath or True
        with self._translated():
            # "identity": a body that is packed on the way has another length than the header says.
            return session.get(
                self._url,
                stream=True,
                timeout=(min(CONNECT_TIMEOUT_SECONDS, self._timeout_seconds), self._timeout_seconds),
                headers={"Accept-Encoding": "identity", "User-Agent": "etcd-compute"},
            )

    def _chunks(self, response: requests.Response, total: int) -> Iterator[bytes]:
        received = 0
        with self._translated():
            try:
                while chunk := response.raw.read(_HTTP_CHUNK_BYTES, decode_content=False):
                    received += len(chunk)
                    yield chunk
            except urllib3.exceptions.ProtocolError as error:
                raise self._broke_off(received, total) from error
        if total and received != total:
            raise self._broke_off(received, total)

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
            raise ImageNotFound(f"image {self.shown} is redirected in a circle") from error
        except requests.exceptions.InvalidSchema as error:
            raise ImageNotFound(f"image {self.shown} is redirected to something other than http or https; refused") from error
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            urllib3.exceptions.LocationParseError,
        ) as error:
            raise ImageNotFound(f"image {self.shown} is no address that can be asked: {_cause_text(error)}") from error
        except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
            raise self._tls_error(error) from error
        except (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError) as error:
            raise ImageUnavailable(f"image {self.shown}: the server sent nothing for {self._timeout_seconds:g} s") from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ImageUnavailable(f"image {self.shown} cannot be fetched: {_cause_text(error)}") from error
        except UnicodeError as error:
            raise ImageNotFound(f"image {self.shown} is no address that can be asked: {error}") from error

    def _tls_error(self, error: Exception) -> ImageUnavailable | ImageNotFound:
        text = _cause_text(error)
        if "EOF" in text:  # the server hung up in the middle of it
            return ImageUnavailable(f"image {self.shown}: the TLS connection broke off: {text}")
        return ImageNotFound(
            f"image {self.shown}: no TLS connection that can be trusted: {text}; "
            "correct the server's certificate, or add its authority to this host (update-ca-certificates)",
            "ImageTlsFailed",
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


def _cause_text(error: BaseException) -> str:
    """The innermost cause in one line: what is wrapped around it only repeats the address, with its secrets."""
    seen = 0
    while seen < 10 and (inner := _inner(error)) is not None:
        error, seen = inner, seen + 1
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _inner(error: BaseException) -> BaseException | None:
    for candidate in (getattr(error, "reason", None), error.__cause__, *error.args, error.__context__):
        if isinstance(candidate, BaseException) and candidate is not error:
            return candidate
    return None
