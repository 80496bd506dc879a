"""What is known about etcd without talking to it: addresses, key ranges, what its errors mean, when a write has happened.

All pure; ``common/etcd_store.py`` is the caller. It must not import etcd3 or grpc: gRPC status codes come in by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common.errors import ConfigError, Conflict, EcomputeError, Permanent, StoreRefused, StoreUnavailable
from common.store import Transaction, Versioned

DEFAULT_PORT = 2379
NOT_SENT = "NOT_SENT"  # our own, beside gRPC's codes: the request never left this process


@dataclass(frozen=True)
class Endpoint:
    """One etcd member's client address; *host* is in brackets where it is an IPv6 address."""

    url: str
    host: str
    port: int
    is_secure: bool

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """The endpoint that *url* names.

        Raises:
            ConfigError: it is not ``http[s]://host[:port]``.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or DEFAULT_PORT
            is_plain = not (parts.username or parts.password or parts.query or parts.fragment or parts.path.strip("/"))
        except ValueError:
            host, is_plain = "", False
        if not host or not is_plain or parts.scheme not in ("http", "https"):
            # The address itself stays out of the message where it may hold a password.
            shown = "an address with more than host and port" if "@" in url else repr(url)
            raise ConfigError(f"etcd.endpoints: {shown} is no etcd endpoint; write http://HOST:PORT or https://HOST:PORT")
        bracketed = f"[{host}]" if ":" in host else host
        return cls(url, bracketed, port, parts.scheme == "https")


def key_range(prefix: str) -> tuple[bytes, bytes]:
    """The first key of *prefix* and the first one after it, as etcd wants them; zero bytes for the whole key space."""
    start = prefix.encode()
    cut = start.rstrip(b"\xff")
    if not cut:
        return start or b"\0", b"\0"
    return start, cut[:-1] + bytes([cut[-1] + 1])


class Verdict(Enum):
    """What a failed request means for the caller."""

    RETRY = "another try may work; a write may have been executed"
    RETRY_UNSENT = "another try may work; a write was certainly not executed"
    LOGIN = "the token is void: log in, then the same again"
    REFUSED = "a person must correct user, password or permission"
    ALARM = "etcd takes no writes until a person clears its alarm"
    COMPACTED = "the revision is gone"
    AHEAD = "the revision is not there yet: a member that lags, or an older store"
    LEASE_GONE = "the lease is gone"
    LEASE_THERE = "there is such a lease already"
    ANSWER_TOO_LARGE = "ask for less at once"
    INVALID = "etcd can never take this request"


@dataclass(frozen=True)
class _Rule:
    """An error of this *code* (None: any) whose text has a match of *pattern* means *verdict*; *advice* is for people."""

    code: str | None
    pattern: str
    verdict: Verdict
    advice: str = ""


# First match wins. The texts are etcd's api/v3rpc/rpctypes/error.go, and gRPC core's where noted.
_RULES = (
    _Rule(NOT_SENT, "", Verdict.RETRY_UNSENT),
    _Rule("UNAUTHENTICATED", "", Verdict.LOGIN),
    # A role or user was changed since the login; etcd 3.4 sends the first text without a proper code.
    _Rule(None, "revision in header is old", Verdict.LOGIN),
    _Rule(None, "revision of auth store is old", Verdict.LOGIN),
    _Rule(
        None, "authentication failed", Verdict.REFUSED,
        "{username!r} with the password in {password_file} is not accepted: correct etcd.username or etcd.password_file",
    ),
    _Rule(
        None, "user name is empty", Verdict.REFUSED, "etcd asks who we are: set etcd.username and etcd.password_file",
    ),
    _Rule(
        None, "authentication is not enabled", Verdict.REFUSED,
        "etcd has no authentication switched on: run `etcdctl auth enable`, or remove etcd.username",
    ),
    _Rule(
        "PERMISSION_DENIED", "", Verdict.REFUSED,
        "grant a role of the user {username!r} readwrite on the prefix {prefix}",
    ),
    _Rule(
        None, "database space exceeded", Verdict.ALARM,
        "etcd has raised its alarm NOSPACE: compact and defragment it or raise its quota, then `etcdctl alarm disarm`",
    ),
    _Rule(
        None, "corrupt", Verdict.ALARM,
        "etcd has raised its alarm CORRUPT: replace the member whose data differs, then `etcdctl alarm disarm`",
    ),
    _Rule(None, "required revision has been compacted", Verdict.COMPACTED),
    _Rule(None, "required revision is a future revision", Verdict.AHEAD),
    _Rule(None, "requested lease not found", Verdict.LEASE_GONE),
    _Rule(None, "lease already exists", Verdict.LEASE_THERE),
    # Go's gRPC at the server says "grpc: received message …": our request. gRPC core here: its answer.
    _Rule("RESOURCE_EXHAUSTED", "grpc: ", Verdict.INVALID, "etcd takes at most 1.5 MiB in one request"),
    _Rule("RESOURCE_EXHAUSTED", "message larger than max", Verdict.ANSWER_TOO_LARGE),
    _Rule("RESOURCE_EXHAUSTED", "too many requests", Verdict.RETRY_UNSENT),
    _Rule("INVALID_ARGUMENT", "request is too large", Verdict.INVALID, "etcd takes at most 1.5 MiB in one request"),
    _Rule("INVALID_ARGUMENT", "", Verdict.INVALID),
    _Rule("UNIMPLEMENTED", "", Verdict.RETRY_UNSENT, "is this address etcd's client port, and etcd 3.4 or newer?"),
    # gRPC core: it had no connection to send anything on.
    _Rule(
        "UNAVAILABLE", "failed to connect to all addresses.*CERTIFICATE_VERIFY_FAILED", Verdict.RETRY_UNSENT,
        "the certificate that etcd shows is not of the CA in etcd.ca_file, has ended, or is for another host name",
    ),
    _Rule(
        "UNAVAILABLE", "failed to connect to all addresses.*(TSI_|Unwrap failed|handshake)", Verdict.RETRY_UNSENT,
        "TLS failed: does etcd accept etcd.certificate_file, and is it https?",
    ),
    _Rule("UNAVAILABLE", "failed to connect to all addresses|resolution failed|errors resolving", Verdict.RETRY_UNSENT),
    # The rest is for another try: UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL, CANCELLED, UNKNOWN (such as "not a primary
    # lessor", which a new leader says for a moment: etcd-io/etcd#21671), and whatever a proxy makes up.
    _Rule(None, "", Verdict.RETRY),
)  # fmt: skip


class Fault(Exception):
    """A request that failed: what it means, and etcd's own words. Stays between the two etcd modules."""

    def __init__(self, code: str, details: str, endpoint: Endpoint | None = None) -> None:
        super().__init__(f"{code}: {details}")
        self.rule = next(rule for rule in _RULES if rule.code in (None, code) and re.search(rule.pattern, details))
        self.code, self.details, self.endpoint = code, details, endpoint
        self.is_doubtful = False
        """Whether this or an earlier try of the same write may have been executed."""

    @property
    def verdict(self) -> Verdict:
        return self.rule.verdict

    @property
    def is_of_endpoint(self) -> bool:
        """Whether another endpoint, or this one later, may well answer."""
        return self.verdict in (Verdict.RETRY, Verdict.RETRY_UNSENT)


@dataclass(frozen=True)
class GrantedLease:
    """``common.store.Lease``, as etcd granted it."""

    id: int
    ttl_seconds: int


@dataclass(frozen=True)
class Account:
    """Who we are to etcd, for messages; never the password itself."""

    username: str | None
    password_file: Path | None
    prefix: str

    def advise(self, rule_advice: str) -> str:
        return rule_advice.format(username=self.username, password_file=self.password_file, prefix=self.prefix)


def explain(fault: Fault, what: str, account: Account) -> EcomputeError:
    """The error of ours that says what *fault* means for *what*, which was asked of one endpoint."""
    where = f"etcd {fault.endpoint.url}" if fault.endpoint else "etcd"
    advice = account.advise(fault.rule.advice)
    text = f"{where}: {what}: {fault.details or fault.code}" + (f"; {advice}" if advice else "")
    if fault.verdict in (Verdict.REFUSED, Verdict.LOGIN):
        return StoreRefused(text, may_have_happened=fault.is_doubtful)
    if fault.verdict is Verdict.LEASE_GONE:
        return Conflict(text)
    if fault.verdict is Verdict.INVALID:
        return Permanent(text, "StoreRejected")
    return StoreUnavailable(text, may_have_happened=fault.is_doubtful)


def unanswered(
    fault: Fault, what: str, endpoints: tuple[Endpoint, ...], seconds: float, account: Account, *, is_doubtful: bool
) -> StoreUnavailable:  # fmt: skip
    """The error for *what* when no endpoint answered in *seconds*; *fault* is the last of them, to whomever it was told."""
    advice = account.advise(fault.rule.advice) or "check that etcd runs there, and etcd.endpoints (http or https?)"
    return StoreUnavailable(
        f"etcd {', '.join(endpoint.url for endpoint in endpoints)}: {what}: no answer within {seconds:g} s, the last try said "
        f"{fault.code}: {fault.details}; {advice}",
        may_have_happened=is_doubtful,
    )


def is_done(transaction: Transaction, found: Mapping[str, Versioned]) -> bool:
    """Whether all that *transaction* would do stands in *found*, which holds those of its keys that exist."""
    if not transaction.puts and not transaction.deletes:
        return False
    return not any(key in found for key in transaction.deletes) and all(
        key in found and found[key].value == value and found[key].lease_id == transaction.lease_id
        for key, value in transaction.puts.items()
    )


def is_as_created(item: Versioned | None, value: str, lease_id: int) -> bool:
    """Whether *item* is what a ``create`` of these would have left, unchanged since."""
    return (
        item is not None
        and (item.value, item.lease_id) == (value, lease_id)
        and item.create_revision == item.mod_revision
    )  # fmt: skip


def describe(transaction: Transaction) -> str:
    """A transaction in a few words for a message: its first key, and how many more."""
    keys = [*transaction.puts, *transaction.deletes] or [compare.key for compare in transaction.compares]
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"transaction on {keys[0] if keys else 'nothing'}{more}"


def versioned(pair: Any) -> Versioned:
    """etcd's ``KeyValue`` as ours. Bytes that are no UTF-8 are not ours either; whoever parses the value finds out."""
    return Versioned(
        key_of(pair), pair.value.decode("utf-8", "replace"), pair.create_revision, pair.mod_revision, pair.lease
    )  # fmt: skip


def key_of(pair: Any) -> str:
    """The key of etcd's ``KeyValue``."""
    return str(pair.key.decode("utf-8", "backslashreplace"))


def found_by(answer: Any) -> dict[str, Versioned]:
    """What the reads of a transaction found, by key."""
    items = [versioned(pair) for response in answer.responses for pair in response.response_range.kvs]
    return {item.key: item for item in items}
