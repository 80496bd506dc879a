"""Reads a small text from an HTTP server, once, bounded in size and time: a list of checksums.

Redirects are followed one by one, to http and https only, and never from https to http: what is read here is what an image is
trusted by. Called by ``image add``.
"""

from __future__ import annotations

import ssl
import threading
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from common.errors import ConfigError, EcomputeError, Transient
from common.text import escaped, innermost_cause, shortened

MOST_BYTES = 4 * 1024 * 1024
MOST_REDIRECTS = 10
DEADLINE_SECONDS = 30.0
SILENCE_SECONDS = 10.0
_CHUNK_BYTES = 65536
_TRY_LATER = {408, 425, 429}
_CURE = "give another --checksum-url, or --sha256 HEX"


def fetch_text(url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> str:
    """The text at *url*.

    Raises:
        ConfigError: nothing that can be taken for one is there, or nobody who can be trusted.
        Transient: not now.
    """
    texts: list[str] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            texts.append(_fetch(url))
        except BaseException as error:  # noqa: BLE001 - raised below, by who waits for it
            errors.append(error)

    # In a thread: no time limit of a connection ends one whose server sends a byte now and then.
    thread = threading.Thread(target=ask, name="read checksums", daemon=True)
    thread.start()
    thread.join(deadline_seconds)
    if errors:
        raise errors[0]
    if not texts:
        raise Transient(f"{_shown(url)} was not read within {deadline_seconds:g} s; try again, or give --sha256 HEX")
    return texts[0]


def _fetch(url: str) -> str:
    with requests.Session() as session:
        # The machine's own certificate authorities, as for every other program; REQUESTS_CA_BUNDLE goes before them.
        authorities = ssl.get_default_verify_paths()
        session.verify = authorities.cafile or authorities.capath or True
        try:
            return _decoded(_body(session, url), _shown(url))
        except EcomputeError:
            raise
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, UnicodeError, ValueError) as error:
            raise _translated(error, _shown(url)) from error


def _body(session: requests.Session, url: str) -> bytes:
    """What the server says at *url*, or where it sends us to."""
    address = url
    for _ in range(MOST_REDIRECTS + 1):
        with session.get(
            address, stream=True, allow_redirects=False, timeout=SILENCE_SECONDS,
            headers={"Accept-Encoding": "identity", "User-Agent": "etcd-compute"},
        ) as response:  # fmt: skip
            target = session.get_redirect_target(response)
            if target is None:
                _check_status(response, _shown(url))
                return _read(response, _shown(url))
        former, address = address, urljoin(address, target)
        schemes = urlsplit(former).scheme, urlsplit(address).scheme
        if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
            raise ConfigError(f"{_shown(url)} is redirected from {schemes[0]} to {schemes[1] or 'nowhere'}; refused; {_CURE}")
    raise ConfigError(f"{_shown(url)} is redirected more than {MOST_REDIRECTS} times; {_CURE}")


def _check_status(response: requests.Response, shown: str) -> None:
    code = response.status_code
    if code == 200:
        return
    answer = f"{shown}: the server answered {code} {response.reason or ''}".rstrip()
    if code >= 500 or code in _TRY_LATER:
        raise Transient(f"{answer}; try again, or give --sha256 HEX")
    what = {404: ": nothing is there", 410: ": nothing is there", 401: ": it may not be read", 403: ": it may not be read"}
    raise ConfigError(f"{answer}{what.get(code, '')}; {_CURE}")


def _read(response: requests.Response, shown: str) -> bytes:
    data = b""
    while chunk := response.raw.read(_CHUNK_BYTES, decode_content=False):
        data += chunk
        if len(data) > MOST_BYTES:
            raise ConfigError(f"{shown} is larger than {MOST_BYTES} bytes, which no list of checksums is; {_CURE}")
    said = response.headers.get("Content-Length", "")
    if said.isascii() and said.isdigit() and int(said) != len(data):
        raise Transient(f"{shown} broke off after {len(data)} of {said} bytes; try again")
    return data


def _decoded(data: bytes, shown: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{shown} is no text, so no list of checksums; {_CURE}") from None


def _translated(error: Exception, shown: str) -> EcomputeError:
    """An error of the HTTP libraries as one of ours."""
    text = escaped(shortened(innermost_cause(error), 300))
    if isinstance(error, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)):
        return ConfigError(
            f"{shown}: no TLS connection that can be trusted: {text}; correct the server's certificate, or add its authority "
            "to this machine (update-ca-certificates)"
        )
    if isinstance(error, urllib3.exceptions.ProtocolError):  # while the body is read
        return Transient(f"{shown} broke off: {text}; try again")
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)):
        return Transient(f"{shown}: the server sent nothing for {SILENCE_SECONDS:g} s; try again, or give --sha256 HEX")
    if isinstance(error, (ValueError, UnicodeError)):  # the library's errors about addresses among them
        return ConfigError(f"{shown} is no address that can be asked: {text}")
    return Transient(f"{shown} cannot be read: {text}; try again, or give --sha256 HEX")


def _shown(url: str) -> str:
    """*url* without its query, where signatures are."""
    return url.partition("#")[0].partition("?")[0]
