"""``common.etcd_rules``: what is known about etcd without asking it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import Conflict, Permanent, StoreRefused, StoreUnavailable
from common.etcd_rules import (
    Account,
    Endpoint,
    Fault,
    Verdict,
    describe,
    explain,
    is_as_created,
    is_done,
    key_range,
    unanswered,
)
from common.store import Compare, Transaction, Versioned

ENDPOINT = Endpoint.parse("http://etcd-1:2379")
ACCOUNT = Account("host", Path("/etc/etcd-compute/password"), "/etcd-compute/v1/")


@pytest.mark.parametrize(
    ("url", "host", "port", "is_secure"),
    [
        ("http://127.0.0.1:2379", "127.0.0.1", 2379, False),
        ("https://etcd-1.example.org", "etcd-1.example.org", 2379, True),
        ("https://[fd00::1]:12379/", "[fd00::1]", 12379, True),
    ],
)
def test_endpoints_are_taken_apart(url, host, port, is_secure):
    assert Endpoint.parse(url) == Endpoint(url, host, port, is_secure)


@pytest.mark.parametrize(
    ("prefix", "start", "end"),
    [
        ("/a/", b"/a/", b"/a0"),
        ("ä", b"\xc3\xa4", b"\xc3\xa5"),
        ("", b"\0", b"\0"),  # etcd's way to say all keys
    ],
)
def test_a_prefix_becomes_a_range_that_holds_its_keys_only(prefix, start, end):
    assert key_range(prefix) == (start, end)


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        ("UNAVAILABLE", "Socket closed", Verdict.RETRY),
        ("UNAVAILABLE", "etcdserver: leader changed", Verdict.RETRY),
        ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure", Verdict.RETRY),
        ("UNAVAILABLE", "etcdserver: no leader", Verdict.RETRY),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Verdict.RETRY),
        ("CANCELLED", "Channel closed!", Verdict.RETRY),
        ("INTERNAL", "Received RST_STREAM with error code 2", Verdict.RETRY),
        ("UNKNOWN", "lessor is not primary", Verdict.RETRY),
        ("UNKNOWN", "etcdserver: not a primary lessor", Verdict.RETRY),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: … Connection refused", Verdict.RETRY_UNSENT),
        ("UNAVAILABLE", "DNS resolution failed for etcd-1:2379", Verdict.RETRY_UNSENT),
        ("UNAVAILABLE", "errors resolving etcd-1:2379: [field:hostname lookup error:…]", Verdict.RETRY_UNSENT),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Verdict.RETRY_UNSENT),
        ("UNIMPLEMENTED", "Received http2 header with status: 404", Verdict.RETRY_UNSENT),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Verdict.LOGIN),
        ("UNKNOWN", "auth: revision in header is old", Verdict.LOGIN),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", Verdict.LOGIN),
        ("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user ID or password", Verdict.REFUSED),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", Verdict.REFUSED),
        ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", Verdict.REFUSED),
        ("PERMISSION_DENIED", "etcdserver: permission denied", Verdict.REFUSED),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", Verdict.ALARM),
        ("DATA_LOSS", "etcdserver: corrupt cluster", Verdict.ALARM),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Verdict.COMPACTED),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", Verdict.AHEAD),
        ("NOT_FOUND", "etcdserver: requested lease not found", Verdict.LEASE_GONE),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (1 vs. 0)", Verdict.ANSWER_TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (1 vs. 0)", Verdict.ANSWER_TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (1 vs. 0)", Verdict.INVALID),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Verdict.INVALID),
        ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", Verdict.INVALID),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", Verdict.INVALID),
    ],
)
def test_what_etcd_says_means(code, details, verdict):
    assert Fault(code, details).verdict is verdict


def test_explanations_say_where_what_why_and_what_now():
    refused = explain(Fault("PERMISSION_DENIED", "etcdserver: permission denied", ENDPOINT), "read /a", ACCOUNT)
    assert isinstance(refused, StoreRefused)
    assert str(refused) == (
        "etcd http://etcd-1:2379: read /a: etcdserver: permission denied; grant a role of the user 'host' readwrite on the "
        "prefix /etcd-compute/v1/"
    )
    assert isinstance(explain(Fault("NOT_FOUND", "etcdserver: requested lease not found"), "create /a", ACCOUNT), Conflict)
    assert isinstance(explain(Fault("INVALID_ARGUMENT", "etcdserver: request is too large"), "create /a", ACCOUNT), Permanent)


def test_a_refusal_after_a_lost_answer_leaves_the_write_unknown():
    fault = Fault("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", ENDPOINT)
    definite = explain(fault, "create /a", ACCOUNT)
    fault.is_doubtful = True
    unknown = explain(fault, "create /a", ACCOUNT)
    assert isinstance(definite, StoreUnavailable) and isinstance(unknown, StoreUnavailable)
    assert (definite.may_have_happened, unknown.may_have_happened) == (False, True)


def test_an_outage_names_all_endpoints_the_time_and_the_last_words():
    fault = Fault("UNAVAILABLE", "failed to connect to all addresses; … CERTIFICATE_VERIFY_FAILED …", ENDPOINT)
    error = unanswered(
        fault, "list /a", (ENDPOINT, Endpoint.parse("http://etcd-2")), 5.0, ACCOUNT, is_doubtful=fault.is_doubtful
    )
    assert str(error).startswith("etcd http://etcd-1:2379, http://etcd-2: list /a: no answer within 5 s, the last try said ")
    assert "etcd.ca_file" in str(error)


def versioned(key: str, value: str, *, created: int = 5, changed: int = 5, lease_id: int = 0) -> Versioned:
    return Versioned(key, value, created, changed, lease_id)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([versioned("a", "1"), versioned("b", "2")], True),
        ([versioned("a", "1")], False),
        ([versioned("a", "1"), versioned("b", "other")], False),
        ([versioned("a", "1"), versioned("b", "2", lease_id=9)], False),
        ([versioned("a", "1"), versioned("b", "2"), versioned("old", "still there")], False),
        ([], False),
    ],
)
def test_a_transaction_is_done_when_all_its_effects_stand(found, expected):
    transaction = Transaction((Compare.absent("a"),), {"a": "1", "b": "2"}, deletes=("old",))
    assert is_done(transaction, {item.key: item for item in found}) is expected


def test_a_transaction_without_effects_is_never_done_already():
    assert is_done(Transaction((Compare.present("a"),)), {}) is False


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (versioned("a", "1", lease_id=7), True),
        (versioned("a", "2", lease_id=7), False),
        (versioned("a", "1", lease_id=8), False),
        (versioned("a", "1", changed=6, lease_id=7), False),
        (None, False),
    ],
)
def test_a_key_is_as_created_when_nothing_touched_it_since(item, expected):
    assert is_as_created(item, "1", 7) is expected


def test_transactions_are_described_by_their_first_key():
    assert describe(Transaction(puts={"/a": "1", "/b": "2"}, deletes=("/c",))) == "transaction on /a and 2 more"
    assert describe(Transaction(compares=(Compare.absent("/a"),))) == "transaction on /a"


def test_who_only_needs_the_protocol_does_not_pay_for_the_client():
    """``eschedule --help`` must not import gRPC."""
    script = (
        "import sys, common.store, common.config, common.etcd_rules; sys.exit(any(m in sys.modules for m in ('grpc', 'etcd3')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
