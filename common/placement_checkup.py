"""Checks of Placement, and of the clock against it and etcd, that a host and a client have in common.

What is written is one provider with an inventory of nothing, whose uuid follows from the machine's name: what a doctor that was
killed left behind the next one takes away.
"""

from __future__ import annotations

import email.utils
import http.client
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from common.checkup import Result, failure, ok, warning
from common.config import PlacementConfig
from common.errors import ConfigError, EcomputeError, PlacementUnavailable
from common.etcd_checkup import Member, expiry, peer_certificate_end
from common.name_lookup import unresolved
from common.placement import MICROVERSION, Placement

ASK_SECONDS = 3.0
SLOW_SECONDS = 3.0  # of a provider made and deleted, which takes some 50 ms where nobody else asks
SKEW_SECONDS, WRONG_SECONDS = 2.0, 60.0
PROBE_NAMESPACE = UUID("0d7b7c9e-1f0b-4b8e-8a55-3b1c64c1a0f7")  # of etcd-compute's own making
PROBE_NAME = "etcd-compute-doctor"
Moment = tuple[str, float, float]  # a Date header, when it was asked for and when it was there, Unix time


def look(placement: Placement, config: PlacementConfig) -> Iterator[Result]:
    """Whether it is there and new enough, and whether it takes what the programs write."""
    host = urlsplit(config.url).hostname or ""
    if why := unresolved(host):
        yield failure("Placement", f"{host} is not found: {why}", "correct placement.url, or add it to DNS or /etc/hosts")
        return
    try:
        began = time.monotonic()
        newest = placement.check_version()
    except PlacementUnavailable as error:
        yield failure(
            "Placement",
            str(error),
            "start it (systemctl start etcd-compute-placement, ./docker.sh up), or correct placement.url",
        )
        return
    except ConfigError as error:
        yield failure("Placement", str(error), "correct placement.url or placement.token_file")
        return
    except EcomputeError as error:
        yield failure("Placement", str(error), "upgrade Placement")
        return
    seconds = time.monotonic() - began
    yield ok(
        "Placement", f"{config.url} answers in {seconds * 1000:.0f} ms, microversions up to {newest} ({MICROVERSION} is needed)"
    )
    yield _written(placement)
    end = certificate_end_of(config.url)
    if (result := expiry("Placement certificate", f"the certificate of {config.url}", end, now=time.time())) is not None:
        yield result


def _written(placement: Placement) -> Result:
    host = socket.gethostname()
    uuid, name = uuid5(PROBE_NAMESPACE, host), f"{PROBE_NAME}-{host}"
    began = time.monotonic()
    try:
        placement.ensure_provider(uuid, name)
        placement.delete_provider(uuid)
    except EcomputeError as error:
        cure = "see Placement's log and its database; a token needs the role admin (placement.token_file)"
        return failure("Placement write", str(error), cure)
    seconds = time.monotonic() - began
    text = f"a provider made and deleted in {seconds * 1000:.0f} ms"
    if seconds > SLOW_SECONDS:
        return warning("Placement write", f"{text}, more than {SLOW_SECONDS * 1000:.0f}", "see its database and its workers")
    return ok("Placement write", text)


def certificate_end_of(url: str) -> float | None:
    """When the certificate of the server at *url* ends, Unix time; None without TLS or an answer."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        return None
    try:
        plain = socket.create_connection((parts.hostname, parts.port or 443), ASK_SECONDS)
        with plain, ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as secure:
            return peer_certificate_end(secure)
    except (OSError, ValueError):
        return None


def date_of(url: str) -> Moment | None:
    """What time the server at *url* thinks it is; None where it does not say."""
    parts = urlsplit(url)
    if unresolved(parts.hostname or ""):
        return None
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        with closing(kind(parts.hostname or "", parts.port, timeout=ASK_SECONDS)) as connection:
            asked = time.time()
            connection.request("GET", parts.path or "/")
            date = connection.getresponse().headers.get("Date", "")
            return (date, asked, time.time()) if date else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


def skew_of(moment: Moment) -> float:
    """How many seconds the clock here is ahead of the server's, negative where it is behind; 0 within what cannot be told.

    Raises:
        ValueError: the header is no date.
    """
    date, asked, answered = moment
    theirs = email.utils.parsedate_to_datetime(date).timestamp()  # cut to the second
    if answered < theirs:
        return answered - theirs
    return max(0.0, asked - theirs - 1.0)


def look_at_clock(members: Iterable[Member], url: str) -> Iterator[Result]:
    """The clock here against those of etcd's *members* and of Placement at *url*."""
    moments = {f"etcd {member.url}": member.date for member in members}
    moments["Placement"] = date_of(url)
    yield from judge_clock({name: moment for name, moment in moments.items() if moment is not None})


def judge_clock(moments: Mapping[str, Moment]) -> Iterator[Result]:
    """The clock here against those of the services, by their names. Pure."""
    skews = {}
    for name, moment in moments.items():
        try:
            skews[name] = skew_of(moment)
        except (ValueError, TypeError):
            continue
    if not skews:
        yield warning(
            "clock", "no service told its time, so the clock cannot be compared", "cure etcd and Placement, then look again"
        )
        return
    name, skew = max(skews.items(), key=lambda item: abs(item[1]))
    if abs(skew) <= SKEW_SECONDS:
        yield ok("clock", f"agrees within {SKEW_SECONDS:g} s with {', '.join(skews)}")
        return
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {name}"
    say = failure if abs(skew) > WRONG_SECONDS else warning
    yield say("clock", text, "timedatectl set-ntp true (systemd-timesyncd or chrony), here and there")
