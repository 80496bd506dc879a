"""One HTTP request to Placement: connections, token, microversion, time limits, and which answers mean what for a caller.

``common/placement.py`` is its only user and knows what to ask; this module knows only how. An answer that is the server's
decision (2xx, 400, 404, 409) is returned as an ``Answer``; everything else is raised. Thread-safe.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.config import PlacementConfig
from common.errors import ConfigError, EcomputeError, PlacementUnavailable
from common.retry import Backoff, Deadline, retry
from common.text import escaped, shortened

if TYPE_CHECKING:
    import requests

MICROVERSION = "1.39"  # consumer types since 1.38, required=in: since 1.39
NOAUTH_TOKEN = "admin"  # noqa: S105 - what Placement's noauth2 takes from anybody
CONNECTIONS = 32  # kept open; more threads than that still work, their connections are closed after use
MOST_RETRY_AFTER_SECONDS = 60.0

logger = logging.getLogger(__name__)


class NotSent(PlacementUnavailable):
    """No connection was made: whatever was asked has certainly not happened. Does not leave this package as such."""


@dataclass(frozen=True)
class Answer:
    """What Placement decided.

    Args:
        body: the JSON of the answer; None where there is none.
        code: Placement's error code such as ``placement.concurrent_update``; "" for success.
        detail: why, in Placement's words, on one line; "" for success.
    """

    status: int
    body: Any
    code: str = ""
    detail: str = ""

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class PlacementHttp:
    """Sends requests to the server that *config* names.

    Args:
        keeps_connections: keep them open between requests. Who asks once a minute must not: a Placement serves some hundred
            connections at a time, and one that rests keeps others out.
        session: for tests; by default one of our own, made at the first request: importing requests takes 0.1 s.
    """

    def __init__(
        self, config: PlacementConfig, *, keeps_connections: bool = True, session: requests.Session | None = None,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        self._config, self._more_headers = config, {} if keeps_connections else {"Connection": "close"}
        self._url = config.url.rstrip("/")
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._session = session
        self._token: str | None = None

    def deadline(self, more_seconds: float = 0.0) -> Deadline:
        """The time that one call with all its retries may take."""
        return Deadline(self._config.deadline_seconds + more_seconds, self._clock)

    def get(self, path: str, deadline: Deadline, *, is_once: bool = False, more_seconds: float = 0.0) -> Answer:
        """Ask, and ask again while there is no answer and *deadline* allows it.

        Args:
            is_once: the caller asks again itself, when it sees fit.
            more_seconds: how much longer than others it may take.

        Raises:
            PlacementUnavailable: no answer until the deadline.
            ConfigError: the token is refused, or there is no Placement at the configured address.
            EcomputeError: the server is older than we need.
        """
        if is_once:
            return self._once("GET", path, None, deadline, more_seconds)
        return self._retry(lambda: self._once("GET", path, None, deadline, more_seconds), PlacementUnavailable, deadline)

    def write(self, method: str, path: str, body: Any, deadline: Deadline, *, more_seconds: float = 0.0) -> Answer:
        """Send a request that changes something; again only where it has certainly not arrived.

        Args:
            more_seconds: how much longer than others it may take.

        Raises:
            PlacementUnavailable: with ``outcome_unknown`` where it may have been done all the same; else it was not.
            ConfigError, EcomputeError: as ``get``.
        """
        return self._retry(lambda: self._once(method, path, body, deadline, more_seconds), NotSent, deadline)

    def check_version(self, deadline: Deadline) -> str:
        """The newest microversion that the server speaks.

        Raises:
            EcomputeError: it is too old for us.
            ConfigError: it is no Placement.
            PlacementUnavailable: no answer until the deadline.
        """
        answer = self.get("/", deadline)
        try:
            newest = str(answer.body["versions"][0]["max_version"])
            is_enough = _version(newest) >= _version(MICROVERSION)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._no_placement("its root document lists no versions") from error
        if not is_enough:
            raise self._too_old(newest)
        return newest

    def close(self) -> None:
        """Close all kept connections; a later request opens new ones."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    # -- one exchange ----------------------------------------------------------------------------------------------------

    def _retry(self, call: Callable[[], Answer], on: type[PlacementUnavailable], deadline: Deadline) -> Answer:
        return retry(call, on=on, deadline=deadline, backoff=Backoff(0.1, 2.0), sleep=self._sleep)

    def _once(self, method: str, path: str, body: Any, deadline: Deadline, more_seconds: float = 0.0) -> Answer:
        """One request, and one more where the token file holds another token than the one refused."""
        token = self._current_token()
        response = self._exchange(method, path, body, deadline, token=token, more_seconds=more_seconds)
        if response.status_code == 401 and self._has_new_token(token):
            again = self._current_token()
            response = self._exchange(method, path, body, deadline, token=again, more_seconds=more_seconds)
        return self._judged(method, path, response)

    def _exchange(
        self, method: str, path: str, body: Any, deadline: Deadline, *, token: str, more_seconds: float
    ) -> requests.Response:
        import requests  # noqa: PLC0415 - 0.1 s, paid by those who ask Placement
        import urllib3  # noqa: PLC0415

        seconds = min(self._config.timeout_seconds + more_seconds, deadline.remaining())
        if seconds <= 0:
            raise NotSent(f"Placement at {self._url}: no time left for {method} {_shown(path)}")
        headers = {"X-Auth-Token": token, "OpenStack-API-Version": f"placement {MICROVERSION}", "Accept": "application/json"}
        headers |= self._more_headers
        began = self._clock()
        try:
            response = self._open_session().request(
                method, self._url + path, json=body, headers=headers, allow_redirects=False,
                timeout=urllib3.Timeout(total=seconds),  # type: ignore[arg-type] # requests hands it on as it is
            )  # fmt: skip
        except requests.RequestException as error:
            raise self._broken(method, path, error, seconds) from error
        logger.debug("%s %s: %s in %.0f ms", method, _shown(path), response.status_code, 1000 * (self._clock() - began))
        return response

    def _judged(self, method: str, path: str, response: requests.Response) -> Answer:
        """*response* as an ``Answer``, where it is a decision of a Placement that speaks our microversion."""
        status = response.status_code
        if status >= 500 or status == 429:
            error = PlacementUnavailable(
                f"Placement at {self._url} answered {method} {_shown(path)} with {status} {_detail(response)}"
                " (see its log); trying again may help",
                _retry_after(response),
            )
            error.outcome_unknown = method != "GET" and status != 429
            error.is_overloaded = True
            raise error
        if status in (401, 403):
            where = f"the token in {self._config.token_file}" if self._config.token_file else f'the token "{NOAUTH_TOKEN}"'
            raise ConfigError(
                f"Placement at {self._url} refuses {where} for {method} {_shown(path)} ({status} {_detail(response)});"
                " set placement.token_file to a file with a token that may do this"
            )
        if status == 406:
            raise self._too_old(_newest(response))
        if path != "/" and not response.headers.get("OpenStack-API-Version", "").startswith("placement "):
            raise self._no_placement(f"{method} {_shown(path)} answered {status} without a Placement version")
        return self._parsed(method, path, response)

    def _parsed(self, method: str, path: str, response: requests.Response) -> Answer:
        body = _json(response)
        if response.status_code < 300:
            if body is None and response.content:
                broken = PlacementUnavailable(f"Placement at {self._url} answered {method} {_shown(path)} with what is no JSON")
                broken.outcome_unknown = method != "GET"
                raise broken
            return Answer(response.status_code, body)
        return Answer(response.status_code, body, code=str(_first_error(body).get("code", "")), detail=_detail(response))

    def _broken(self, method: str, path: str, error: Exception, seconds: float) -> EcomputeError:
        """What a failure without any answer means."""
        import requests  # noqa: PLC0415

        asked = f"Placement at {self._url}: {method} {_shown(path)}"
        if isinstance(error, ValueError):  # requests' InvalidURL, MissingSchema, …
            return ConfigError(f"placement.url {self._url} cannot be used: {_one_line(str(error))}")
        if _is_unsent(error):
            why = f"no connection ({_cause(error)}); is it running, and is placement.url right?"
            is_late = isinstance(error, requests.Timeout)  # it takes no more connections
            return _slow(NotSent(f"{asked}: {why}"), seconds) if is_late else NotSent(f"{asked}: {why}")
        if isinstance(error, requests.exceptions.SSLError):
            why = f"TLS failed ({_cause(error)}); for a private authority set REQUESTS_CA_BUNDLE to its certificate"
        elif isinstance(error, requests.Timeout):
            why = f"no answer within {seconds:.1f} s; is it overloaded, or does its database not answer?"
        else:
            why = f"the connection broke ({_cause(error)})"
        broken = PlacementUnavailable(f"{asked}: {why}")
        broken.outcome_unknown = method != "GET"
        return _slow(broken, seconds) if isinstance(error, requests.Timeout) else broken

    # -- what is kept ----------------------------------------------------------------------------------------------------

    def _open_session(self) -> requests.Session:
        with self._lock:
            if self._session is None:
                self._session = _new_session()
            return self._session

    def _current_token(self) -> str:
        with self._lock:
            if self._token is None:
                self._token = self._read_token()
            return self._token

    def _has_new_token(self, refused: str) -> bool:
        if self._config.token_file is None:
            return False
        with self._lock:
            self._token = self._read_token()
            return self._token != refused

    def _read_token(self) -> str:
        path = self._config.token_file
        if path is None:
            return NOAUTH_TOKEN
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            # Never repeat the error's own text of a decoding error: it holds bytes of the token.
            why = error.strerror if isinstance(error, OSError) else "it is not plain ASCII"
            raise ConfigError(f"placement.token_file {path} cannot be read: {why}") from None
        if not token or not token.isprintable() or " " in token:
            raise ConfigError(f"placement.token_file {path} must hold one token on one line and nothing else")
        return token

    def _too_old(self, newest: str) -> EcomputeError:
        return EcomputeError(
            f"Placement at {self._url} speaks microversions up to {newest}, etcd-compute needs {MICROVERSION}:"
            " upgrade it to openstack-placement 7.0 (OpenStack Yoga) or later"
        )

    def _no_placement(self, why: str) -> ConfigError:
        return ConfigError(f"placement.url {self._url} is no Placement ({why}); set it to where Placement's own root is")


def _new_session() -> requests.Session:
    import requests  # noqa: PLC0415
    import requests.adapters  # noqa: PLC0415

    session = requests.Session()
    # No .netrc, which would replace our token, and no proxies; reading them costs time on every request, too.
    session.trust_env = False
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _slow(error: PlacementUnavailable, waited_seconds: float) -> PlacementUnavailable:
    """*error*, which says that no answer came in so long, with how long to keep away.

    What nobody waits for any more is still worked on. If all came back at once a thousand hosts would keep a Placement busy
    for good with requests that have been given up.
    """
    error.is_overloaded = True
    if not error.outcome_unknown:  # else what happened is looked up first, and now
        error.retry_after = waited_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
    return error


def _is_unsent(error: BaseException) -> bool:
    """Whether there was no connection to send anything over."""
    import requests  # noqa: PLC0415
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError  # noqa: PLC0415

    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.exceptions.ConnectTimeout) or isinstance(
        reason, (NewConnectionError, ConnectTimeoutError)
    )


def _cause(error: BaseException) -> str:
    """The innermost words of a failure that urllib3 and requests have wrapped, on one line."""
    inner: Any = error
    while inner.args and isinstance(getattr(inner, "reason", None) or inner.args[-1], BaseException):
        inner = getattr(inner, "reason", None) or inner.args[-1]
    cause = inner.__cause__ or inner.__context__ or inner
    return _one_line(str(cause) or type(cause).__name__)


def _json(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _first_error(body: Any) -> dict[str, Any]:
    errors = body.get("errors") if isinstance(body, dict) else None
    return errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}


def _detail(response: requests.Response) -> str:
    """Placement's own words, without webob's preamble and the dump of a JSON schema."""
    text = str(_first_error(_json(response)).get("detail", "")) or str(response.reason or "")
    return _one_line(text.partition("\n\n")[2] or text).partition(" Failed validating ")[0]


def _one_line(text: str) -> str:
    return escaped(shortened(" ".join(text.split()), 1000))


def _shown(path: str) -> str:
    return shortened(path, 200)


def _newest(response: requests.Response) -> str:
    return str(_first_error(_json(response)).get("max_version", "an unknown one"))


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks us to stay away; the form with a date is not used between machines' clocks."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), MOST_RETRY_AFTER_SECONDS) if text.isdecimal() else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
