"""Checks of etcd that a host and a client have in common: members, version, space, certificates, and whether it lets us write.

Members are asked one by one over HTTP, which etcd answers at the same port as its clients' calls; what the programs themselves
do is tried through the ``Store``. What is written is one key that goes with its lease.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from common.checkup import Result, failure, ok, warning
from common.config import EtcdConfig
from common.errors import EcomputeError
from common.etcd_rules import Endpoint
from common.keys import Keys
from common.name_lookup import unresolved
from common.retry import Deadline
from common.store import Store

ASK_SECONDS = 3.0  # for a single answer
MOST_SECONDS = 6.0  # for all that a member is asked
OLDEST = (3, 4)
WITH_KNOWN_FAULTS = (((3, 4), (3, 4, 22)), ((3, 5), (3, 5, 6)))  # from the first on, until the second, which has them cured
SLOW_SECONDS = 0.5  # of four calls; a healthy etcd takes some 20 ms
NEARLY_FULL, FULL = 0.8, 0.95  # of the quota
SOON_DAYS = 30
PROBE_TTL_SECONDS = 10
_MAKE_ROOM = (
    "etcdctl compact REVISION, etcdctl defrag, then etcdctl alarm disarm; and start etcd with --auto-compaction-retention"
)


@dataclass(frozen=True)
class Member:
    """One member as it answered.

    Args:
        problem: why it serves nobody, "" where it does.
        date: its ``Date`` header, with the seconds of Unix time at which it was asked and at which it had answered.
        certificate_ends: Unix time; None without TLS.
    """

    url: str
    problem: str = ""
    version: str = ""
    seconds: float = 0.0
    used_bytes: int = 0
    quota_bytes: int = 0
    alarms: tuple[str, ...] = ()
    date: tuple[str, float, float] | None = None
    certificate_ends: float | None = None


def look_at(config: EtcdConfig) -> list[Member]:
    """All endpoints of *config*, asked at the same time; raises nothing for what it finds."""
    found: dict[str, Member] = {}

    def note(url: str) -> None:
        found[url] = ask(Endpoint.parse(url), config)

    threads = [threading.Thread(target=note, args=(url,), name=f"ask {url}", daemon=True) for url in config.endpoints]
    for thread in threads:
        thread.start()
    deadline = Deadline(MOST_SECONDS)
    for thread in threads:
        thread.join(deadline.remaining())
    late = f"no answer within {MOST_SECONDS:g} s"
    return [found.get(url, Member(url, problem=late)) for url in config.endpoints]


def ask(endpoint: Endpoint, config: EtcdConfig) -> Member:
    """What one member says of itself within a few seconds."""
    if why := unresolved(endpoint.host.strip("[]")):
        return Member(endpoint.url, problem=f"{endpoint.host} is not found: {why}")
    began = time.monotonic()
    try:
        with contextlib.closing(_connection(endpoint, config)) as connection:
            asked = time.time()
            health, date = _exchange(connection, "GET", "/health")
            answered, seconds = time.time(), time.monotonic() - began
            ends = peer_certificate_end(connection.sock)
            if str(health.get("health")) != "true":
                problem = f"it says that it is not healthy: {health.get('reason') or 'it has no leader, or an alarm'}"
            else:
                problem = ""
            version = str(_optional(connection, "GET", "/version").get("etcdserver", ""))
            alarms = _optional(connection, "POST", "/v3/maintenance/alarm", {"action": "GET"}).get("alarms", [])
            used, quota = _space(connection)
    except (OSError, ValueError, http.client.HTTPException, EcomputeError) as error:
        return Member(endpoint.url, problem=f"{type(error).__name__}: {error}" if not str(error) else str(error))
    return Member(
        endpoint.url, problem, version, seconds, used, quota, tuple(str(alarm.get("alarm", "")) for alarm in alarms),
        (date, asked, answered) if date else None, ends,
    )  # fmt: skip


def judge(members: Sequence[Member], config: EtcdConfig, *, now: float) -> Iterator[Result]:
    """What of *members* is well and what is not. Pure.

    Args:
        now: Unix time.
    """
    up = [member for member in members if not member.problem]
    for member in members:
        if member.problem:
            say = failure if not up else warning
            yield say(
                "etcd", f"{member.url}: {member.problem}",
                "start it (systemctl start etcd, ./docker.sh up), or correct etcd.endpoints",
            )  # fmt: skip
    if up:
        fastest = min(member.seconds for member in up) * 1000
        yield ok("etcd", f"{len(up)} of {len(members)} endpoints healthy: {', '.join(m.url for m in up)}; {fastest:.0f} ms")
        yield _version(up)
    answered = [member for member in members if member.version or not member.problem]
    if answered:
        yield from _room(answered)
    yield from _certificates(answered, config, now)


def look(members: Sequence[Member], config: EtcdConfig, store: Callable[[], Store], keys: Keys) -> Iterator[Result]:
    """What of *members* is well, and whether etcd takes what the programs write; *store* is opened where a member answered."""
    yield from judge(members, config, now=time.time())
    if any(member.version for member in members):
        yield from try_out(store(), keys)
    else:
        yield failure("etcd access", "not tried, since no endpoint answers", "see above")


def try_out(store: Store, keys: Keys) -> Iterator[Result]:
    """Read and write under our prefix as the programs do; how that went and how long it took."""
    key = keys.mail_reply(uuid4())  # nobody waits for it
    cure = "see etcd.username, etcd.password_file and the role's permission on the prefix, or etcd's log"
    began = time.monotonic()
    try:
        lease = store.grant_lease(PROBE_TTL_SECONDS)
        try:
            store.create(key, "{}", lease_id=lease.id)
            store.get(key)
        finally:
            with contextlib.suppress(EcomputeError):  # it ends by itself
                store.revoke_lease(lease.id)
    except EcomputeError as error:
        yield failure("etcd access", str(error), cure)
        return
    seconds = time.monotonic() - began
    text = f"a lease, a write and a read under {keys.prefix} took {seconds * 1000:.0f} ms"
    if seconds > SLOW_SECONDS:
        yield warning(
            "etcd access", f"{text}, more than {SLOW_SECONDS * 1000:.0f}",
            "put etcd's data on a faster disk (etcdctl check perf), or nearer to its clients",
        )  # fmt: skip
    else:
        yield ok("etcd access", text)


def certificate_end(path: Path) -> float | None:
    """When the certificate in the PEM file *path* ends, Unix time; None where Python does not say."""
    try:
        decoded = ssl._ssl._test_decode_cert(str(path))  # type: ignore[attr-defined] # nothing public reads a file's
        return ssl.cert_time_to_seconds(decoded["notAfter"])
    except (AttributeError, OSError, KeyError, ValueError):
        return None


def expiry(name: str, what: str, ends: float | None, *, now: float) -> Result | None:
    """How long *what* is good for; None where that is not known."""
    if ends is None:
        return None
    days = (ends - now) / 86400
    until = datetime.datetime.fromtimestamp(ends, datetime.UTC).date().isoformat()
    if days < 0:
        return failure(name, f"{what} has ended on {until}", "make a new one of the same authority")
    if days < SOON_DAYS:
        return warning(name, f"{what} ends on {until}, in {days:.0f} days", "make a new one of the same authority before that")
    return ok(name, f"{what} is good until {until}")


def _version(up: Sequence[Member]) -> Result:
    versions = sorted({member.version for member in up})
    text = f"etcd {', '.join(versions)}"
    numbers = [_numbers(version) for version in versions]
    if any(number < OLDEST for number in numbers):
        return failure("etcd version", f"{text}: too old", "upgrade it to 3.4 or later, 3.5 is best")
    if any(first <= number < cured for number in numbers for first, cured in WITH_KNOWN_FAULTS):
        return warning(
            "etcd version", f"{text}: with faults that cost data", "upgrade it to 3.4.22 or 3.5.6 or later of that series"
        )
    if len({number[:2] for number in numbers}) > 1:
        return warning("etcd version", f"{text}: members of different versions", "finish upgrading the cluster")
    return ok("etcd version", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _room(members: Sequence[Member]) -> Iterator[Result]:
    for member in members:
        if member.alarms:
            yield failure("etcd space", f"{member.url} has raised its alarm {', '.join(member.alarms)}: no writes", _MAKE_ROOM)
            return
    known = [member for member in members if member.quota_bytes > 0]
    if not known:
        yield warning(
            "etcd space", "etcd does not tell its quota (/metrics)", "see that its /metrics answers at the client port"
        )
        return
    fullest = max(known, key=lambda member: member.used_bytes / member.quota_bytes)
    share = fullest.used_bytes / fullest.quota_bytes
    text = (
        f"{_mib(fullest.used_bytes)} of {_mib(fullest.quota_bytes)} MiB of {fullest.url}'s quota in use ({share:.0%}), no alarm"
    )
    if share >= FULL:
        yield failure("etcd space", text, _MAKE_ROOM)
    elif share >= NEARLY_FULL:
        yield warning("etcd space", text, _MAKE_ROOM)
    else:
        yield ok("etcd space", text)


def _certificates(members: Sequence[Member], config: EtcdConfig, now: float) -> Iterator[Result]:
    ends = [(f"the certificate of {member.url}", member.certificate_ends) for member in members]
    for key in ("ca_file", "certificate_file"):
        path = getattr(config, key)
        if path is not None and any(url.startswith("https:") for url in config.endpoints):
            ends.append((f"etcd.{key} {path}", certificate_end(path)))
    for what, end in ends:
        if (result := expiry("etcd certificates", what, end, now=now)) is not None:
            yield result


def _connection(endpoint: Endpoint, config: EtcdConfig) -> http.client.HTTPConnection:
    host = endpoint.host.strip("[]")
    if not endpoint.is_secure:
        return http.client.HTTPConnection(host, endpoint.port, timeout=ASK_SECONDS)
    context = ssl.create_default_context(cafile=str(config.ca_file) if config.ca_file else None)
    if config.certificate_file and config.key_file:
        context.load_cert_chain(config.certificate_file, config.key_file, password="")  # never ask a terminal
    return http.client.HTTPSConnection(host, endpoint.port, timeout=ASK_SECONDS, context=context)


def peer_certificate_end(connected: socket.socket) -> float | None:
    """When the certificate of the server behind *connected* ends, Unix time; None without TLS."""
    if not isinstance(connected, ssl.SSLSocket):
        return None
    text = (connected.getpeercert() or {}).get("notAfter")
    return ssl.cert_time_to_seconds(text) if isinstance(text, str) else None


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """The JSON object that *path* answers, whatever its status, and the moment that the server thinks it is."""
    text, date = _text(connection, method, path, body)
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{path} answered with what is no etcd's: {text[:60]!r}")
    return document, date


def _optional(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return _exchange(connection, method, path, body)[0]
    return {}


def _text(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[str, str]:
    connection.request(method, path, body=None if body is None else json.dumps(body))
    answer = connection.getresponse()
    return answer.read(4 * 1024 * 1024).decode("utf-8", "replace"), answer.headers.get("Date", "")


def _space(connection: http.client.HTTPConnection) -> tuple[int, int]:
    """How much of the quota is in use, and the quota; bytes, 0 where it does not say."""
    text, _ = _text(connection, "GET", "/metrics")
    found = dict(re.findall(r"^(etcd_mvcc_db_total_size_in_bytes|etcd_server_quota_backend_bytes) (\S+)", text, re.MULTILINE))
    used, quota = found.get("etcd_mvcc_db_total_size_in_bytes", "0"), found.get("etcd_server_quota_backend_bytes", "0")
    return int(float(used)), int(float(quota))


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f}"
