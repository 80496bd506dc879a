"""The store on a real etcd: the only module that imports etcd3 and grpc, and the only place where their errors are seen.

Everything that the client library leaves to its user happens here: which endpoint, how long, logging in again, and what a
lost answer means. It uses the library's client for the channel and its generated stubs for the calls, which is what etcd3
0.12.0 and cslab-etcd3 0.12.1 share; neither's failover, watcher or error handling is used. What etcd's errors mean is in
``common/etcd_rules.py``, how a watch goes on in ``common/etcd_watch.py``. The programs make one ``EtcdStore`` each and share
it between their threads. It is as long as there are calls, which all need the same few private ones.
"""

from __future__ import annotations

import builtins
import functools
import os
import random as random_module
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from common.bells import Bells
from common.config import EtcdConfig
from common.errors import Conflict, StoreUnavailable
from common.etcd_gate import MOST_TRY_SECONDS, TRY_SECONDS, Gate, backoff_within, is_cut_short
from common.etcd_login import Login
from common.etcd_reach import certificates_of, knock
from common.etcd_rules import (
    NOT_SENT,
    Account,
    Endpoint,
    Fault,
    GrantedLease,
    Verdict,
    describe,
    explain,
    found_by,
    is_as_created,
    is_done,
    key_range,
    unanswered,
    versioned,
)
from common.etcd_watch import LentConnection, Proofs, Shared, Stream, Watch
from common.journal_lease import JournalLease, journal_lease
from common.retry import Deadline
from common.store import NO_NOTES, Compare, Lease, Listing, Transaction, Versioned, WatchEvent

# gRPC's fork handlers make a child that only wanted to exec abort now and then ("epoll_wait error: Bad file descriptor").
# libguestfs and others fork in this process; no child of ours uses gRPC. It is read when grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
import etcd3
import grpc
from etcd3 import etcdrpc

# Each thread that waits for a watch would wake ten times a second, for signal handlers, which in Python 3 run all the same.
with suppress(AttributeError):
    grpc._common.MAXIMUM_WAIT_TIMEOUT = 60.0

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

PAGE_KEYS = 1000  # halved where they are too long for one message
MOST_OPERATIONS = 128  # etcd's --max-txn-ops
LIST_TRIES = 5
CHANNEL_OPTIONS = (
    # etcd takes pings closer than 5 s for an attack and hangs up.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without a call in progress, which a watch is, etcd allows one ping in two hours; calls have short timeouts anyway.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", int(MOST_TRY_SECONDS * 1000)),  # in truth how long connecting may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Channels of equal options would share one TCP connection and its pause between reconnects.
    ("grpc.use_local_subchannel_pool", 1),
    # Members are neighbours; a proxy for the web is not asked about them.
    ("grpc.enable_http_proxy", 0),
)
_COMPARED = {
    "create_revision": etcdrpc.Compare.CREATE, "mod_revision": etcdrpc.Compare.MOD, "value": etcdrpc.Compare.VALUE,
}  # fmt: skip
_OPERATORS = {"==": etcdrpc.Compare.EQUAL, ">": etcdrpc.Compare.GREATER, "<": etcdrpc.Compare.LESS}


class _Connection:
    """One channel to one endpoint. Every call through it has a timeout and fails with ``Fault``, nothing of the library's."""

    def __init__(self, endpoint: Endpoint, config: EtcdConfig, login: Login) -> None:
        self.endpoint, self._login = endpoint, login
        self._is_closed = False
        self._client = _client(endpoint, config)
        self.kv = etcdrpc.KVStub(self._client.channel)

    @functools.cached_property
    def lease(self) -> Any:
        return etcdrpc.LeaseStub(self._client.channel)

    def call(self, method: Callable[..., Any], request: Any, timeout_seconds: float) -> Any:
        """The answer of the unary *method* to *request*."""
        deadline = Deadline(timeout_seconds)
        metadata = self._metadata(timeout_seconds)
        return self._guarded(lambda: method(request, timeout=deadline.remaining(), metadata=metadata), metadata)

    def keep_alive(self, request: Any, timeout_seconds: float) -> Any:
        """The one answer to *request* on a short stream of its own."""
        deadline = Deadline(timeout_seconds)
        metadata = self._metadata(timeout_seconds)

        def ask() -> Any:
            stream = self.lease.LeaseKeepAlive(iter((request,)), timeout=deadline.remaining(), metadata=metadata)
            try:
                return next(stream, None)
            finally:
                stream.cancel()

        answer = self._guarded(ask, metadata)
        if answer is None:
            raise Fault("UNAVAILABLE", "the stream ended without an answer", self.endpoint)
        return answer

    def probe(self, prefix: str, timeout_seconds: float) -> Any:
        request = etcdrpc.RangeRequest(key=prefix.encode() or b"\0", keys_only=True)
        return self.call(self.kv.Range, request, timeout_seconds).header

    def stream(self, prefix: str, revision: int) -> Stream:
        start, end = key_range(prefix)
        create = etcdrpc.WatchCreateRequest(key=start, range_end=end, start_revision=revision)
        # A member that lost its leader then ends the stream; else it would stay silent.
        metadata = (*self._metadata(TRY_SECONDS), ("hasleader", "true"))
        request = etcdrpc.WatchRequest(create_request=create)
        watch = etcdrpc.WatchStub(self._client.channel).Watch
        return Stream(lambda requests: watch(requests, metadata=metadata), request, self._guarded, self.endpoint)

    def close(self) -> None:
        self._is_closed = True
        self._client.close()

    def _metadata(self, timeout_seconds: float) -> Metadata:
        """What every call carries. The token goes here alone: grpcio refuses call credentials on a plaintext channel."""
        token = self._login.token(lambda name, password: self._authenticate(name, password, timeout_seconds), timeout_seconds)
        return (("token", token),) if token else ()

    def _authenticate(self, name: str, password: str, timeout_seconds: float) -> str:
        request = etcdrpc.AuthenticateRequest(name=name, password=password)
        authenticate = etcdrpc.AuthStub(self._client.channel).Authenticate
        try:
            return str(self._guarded(lambda: authenticate(request, timeout=timeout_seconds)).token)
        except Fault as fault:
            if fault.verdict is Verdict.RETRY:
                raise Fault(NOT_SENT, f"logging in: {fault}", self.endpoint) from fault
            raise

    def _guarded(self, ask: Callable[[], T], metadata: Metadata = ()) -> T:
        """What *ask* answers, gRPC's errors as ``Fault``; a token that etcd does not know is forgotten."""
        try:
            return ask()
        except grpc.RpcError as error:
            fault = Fault(error.code().name, error.details() or "", self.endpoint)
            if fault.verdict is Verdict.LOGIN and metadata:
                self._login.void(metadata[0][1])
            raise fault from error
        except ValueError as error:
            if not self._is_closed:
                raise
            raise Fault(NOT_SENT, "another thread gave this connection up", self.endpoint) from error


def _client(endpoint: Endpoint, config: EtcdConfig) -> Any:
    """The library's client for *endpoint*. It connects with the first call; certificates are read here, so renewed ones too."""
    return etcd3.client(endpoint.host, endpoint.port, grpc_options=CHANNEL_OPTIONS, **certificates_of(endpoint, config))


class EtcdStore:
    """``common.store.Store`` on etcd; thread-safe. It connects with the first call.

    Args:
        random: decides at which endpoint to begin, so that the clients of a cluster spread over its members.

    Raises:
        ConfigError: an endpoint's address is none.
    """

    def __init__(
        self, config: EtcdConfig, *, clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:  # fmt: skip
        self._config, self._clock, self._random = config, clock, random
        self._account = Account(config.username, config.password_file, config.prefix)
        self._login = Login(config)
        self._endpoints = tuple(Endpoint.parse(url) for url in config.endpoints)
        self._at = int(random() * len(self._endpoints))
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._is_closed = threading.Event()
        self._proofs, self._for_watches = Proofs(clock), Shared(self._connect)
        self._bells = Bells()
        self._gate = Gate(clock, backoff_within(config.deadline_seconds), is_alone=len(self._endpoints) == 1)

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, key: str, *, serializable: bool = False) -> Versioned | None:
        request = etcdrpc.RangeRequest(key=key.encode(), serializable=serializable)
        with self._explained(f"read {key}") as what:
            answer = self._range(request, what)
        return versioned(answer.kvs[0]) if answer.kvs else None

    def get_many(self, keys: Iterable[str]) -> dict[str, Versioned]:
        wanted = tuple(dict.fromkeys(keys))
        return {item.key: item for item in self.list_keys(wanted).items} if wanted else {}

    def list_keys(self, keys: Iterable[str]) -> Listing:
        wanted = tuple(dict.fromkeys(keys))
        found: dict[str, Versioned] = {}
        headers: list[Any] = []
        for start in range(0, len(wanted), MOST_OPERATIONS):
            batch = wanted[start : start + MOST_OPERATIONS]
            with self._explained(f"read {batch[0]} and {len(batch) - 1} more") as what:
                for answer in self._get_batch(batch, what):
                    headers.append(answer.header)
                    found.update(found_by(answer))
        return Listing(tuple(found.values()), int(headers[0].revision), int(headers[0].cluster_id))

    def list(self, prefix: str, *, serializable: bool = False, behind: str = "") -> Listing:
        with self._explained(f"list {prefix}") as what:
            for _ in range(LIST_TRIES):
                try:
                    listing = self._list_pages(prefix, what, serializable=serializable, behind=behind)
                except Fault as fault:
                    # Compacted between two pages, or the next page came from a member that lags.
                    if fault.verdict not in (Verdict.COMPACTED, Verdict.AHEAD):
                        raise
                    continue
                if listing is not None:
                    return listing
        raise StoreUnavailable(f"etcd: {what}: compacted or replaced during each of {LIST_TRIES} tries; try again")

    def newest(self, prefix: str, *, serializable: bool = False) -> Iterator[Versioned]:
        start, end = key_range(prefix)
        seen: set[str] = set()  # of the last page, since all keys of one transaction have the same revision
        at_most, limit = 0, PAGE_KEYS
        while True:
            request = etcdrpc.RangeRequest(
                key=start, range_end=end, limit=limit, sort_order=etcdrpc.RangeRequest.DESCEND,
                sort_target=etcdrpc.RangeRequest.MOD, max_mod_revision=at_most, serializable=serializable,
            )  # fmt: skip
            with self._explained(f"list the newest of {prefix}") as what:
                page = self._range(request, what)
            items = [versioned(pair) for pair in page.kvs]
            yield from (item for item in items if item.key not in seen)
            # A page that holds nothing but one revision would come again for ever: no transaction is as long as a page.
            if len(items) < limit or items[0].mod_revision == items[-1].mod_revision:
                return
            at_most = items[-1].mod_revision
            seen = {item.key for item in items if item.mod_revision == at_most}

    def cluster_id(self) -> int:
        with self._explained("ask for the cluster id") as what:
            header, _ = self._tries(lambda c, timeout: c.probe(self._config.prefix, timeout), what)
        return int(header.cluster_id)

    def _range(self, request: Any, what: str) -> Any:
        return self._tries(lambda c, timeout: c.call(c.kv.Range, request, timeout), what, is_proof=not request.serializable)[0]

    def _transact(self, request: Any, what: str) -> tuple[Any, bool]:
        return self._tries(lambda c, timeout: c.call(c.kv.Txn, request, timeout), what, is_proof=True)

    def _get_batch(self, keys: tuple[str, ...], what: str) -> builtins.list[Any]:
        """The answers to reads of *keys*, in the order in which they were given."""
        try:
            return [self._transact(etcdrpc.TxnRequest(success=_reads(keys)), what)[0]]
        except Fault as fault:
            if fault.verdict is not Verdict.ANSWER_TOO_LARGE or len(keys) == 1:
                raise
        half = len(keys) // 2
        return self._get_batch(keys[:half], what) + self._get_batch(keys[half:], what)

    def _list_pages(self, prefix: str, what: str, *, serializable: bool, behind: str) -> Listing | None:
        """The whole listing, or None where another cluster answered between two pages."""
        start, end = key_range(prefix)
        start = max(start, behind.encode())
        items: list[Versioned] = []
        limit, revision, cluster_id = PAGE_KEYS, 0, 0
        while True:
            request = etcdrpc.RangeRequest(key=start, range_end=end, limit=limit, revision=revision, serializable=serializable)
            try:
                page = self._range(request, what)
            except Fault as fault:
                if fault.verdict is not Verdict.ANSWER_TOO_LARGE or limit == 1:
                    raise
                limit //= 2
                continue
            if cluster_id not in (0, page.header.cluster_id):
                return None
            cluster_id, revision = page.header.cluster_id, revision or page.header.revision
            items.extend(versioned(pair) for pair in page.kvs)
            if not page.more:
                return Listing(tuple(items), revision, cluster_id)
            start = page.kvs[-1].key + b"\0"

    # -- writing ------------------------------------------------------------------------------------------------------

    def create(self, key: str, value: str, *, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        transaction = Transaction((Compare.absent(key),), {key: value}, lease_id=lease_id, notes=notes)
        answer, _ = self._write(transaction, f"create {key}")
        if answer.succeeded:
            return int(answer.header.revision)
        item = found_by(answer).get(key)
        if item is not None and is_as_created(item, value, lease_id):
            return item.mod_revision
        raise Conflict(f"etcd: {key} exists already; read it and decide again")

    def replace(self, key: str, value: str, *, seen: int, lease_id: int = 0, notes: Mapping[str, str] = NO_NOTES) -> int:
        transaction = Transaction((Compare.unchanged(key, seen),), {key: value}, lease_id=lease_id, notes=notes)
        answer, is_repeat = self._write(transaction, f"replace {key}")
        if answer.succeeded:
            return int(answer.header.revision)
        found = found_by(answer)
        if is_repeat and is_done(transaction, found):
            return found[key].mod_revision
        raise Conflict(f"etcd: {key} changed or went away since revision {seen}; read it and decide again")

    def delete(self, key: str, *, seen: int) -> None:
        transaction = Transaction((Compare.unchanged(key, seen),), deletes=(key,))
        answer, _ = self._write(transaction, f"delete {key}")
        if not answer.succeeded and found_by(answer):
            raise Conflict(f"etcd: {key} changed since revision {seen}; read it and decide again")

    def commit(self, transaction: Transaction) -> int:
        answer, _ = self._write(transaction, describe(transaction))
        if answer.succeeded:
            return int(answer.header.revision)
        found = found_by(answer)
        if is_done(transaction, found):
            return max((item.mod_revision for item in found.values()), default=int(answer.header.revision))
        raise Conflict(f"etcd: {describe(transaction)}: something that it compares has changed; read again, decide again")

    def _write(self, transaction: Transaction, what: str) -> tuple[Any, bool]:
        """The answer to *transaction*, and whether an earlier try of it may have been executed.

        Where a compare does not hold it reads what is there instead, in the same step: so each try after a lost answer is
        also the look whether that one was executed.
        """
        days = self._config.journal_days
        lease = journal_lease(self._config.prefix, days, time.time()) if transaction.notes and days else None
        request = _transaction_request(transaction, lease)
        with self._explained(what):
            try:
                return self._transact(request, what)
            except Fault as fault:
                if fault.verdict is not Verdict.LEASE_GONE or lease is None:
                    raise
            self._begin_journal(lease)  # nothing was written: etcd looks at leases before it writes
            return self._transact(request, what)

    def _begin_journal(self, lease: JournalLease) -> None:
        """Have etcd grant *lease*, unless another program was faster."""
        request = etcdrpc.LeaseGrantRequest(ID=lease.id, TTL=lease.ttl_seconds)
        try:
            self._tries(lambda c, timeout: c.call(c.lease.LeaseGrant, request, timeout), "grant the journal's lease")
        except Fault as fault:
            if fault.verdict is not Verdict.LEASE_THERE:
                raise

    # -- leases -------------------------------------------------------------------------------------------------------

    def grant_lease(self, ttl_seconds: int) -> Lease:
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_seconds)
        with self._explained("grant a lease") as what:
            # Where an answer is lost, the lease that it granted ends by itself.
            answer, _ = self._tries(lambda c, timeout: c.call(c.lease.LeaseGrant, request, timeout), what)
        return GrantedLease(int(answer.ID), int(answer.TTL))

    def refresh_lease(self, lease_id: int) -> int:
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease_id)
        with self._explained(f"keep lease {lease_id:x}") as what:
            try:
                answer, _ = self._tries(lambda c, timeout: c.keep_alive(request, timeout), what, is_proof=True)
                return int(answer.TTL)
            except Fault as fault:
                if fault.verdict is Verdict.LEASE_GONE:
                    return 0
                raise

    def revoke_lease(self, lease_id: int) -> None:
        request = etcdrpc.LeaseRevokeRequest(ID=lease_id)
        with self._explained(f"revoke lease {lease_id:x}") as what:
            try:
                self._tries(lambda c, timeout: c.call(c.lease.LeaseRevoke, request, timeout), what)
            except Fault as fault:
                if fault.verdict is not Verdict.LEASE_GONE:
                    raise

    # -- watching -----------------------------------------------------------------------------------------------------

    def watch(
        self, prefix: str, *, revision: int, cluster_id: int, stop: threading.Event
    ) -> Iterator[tuple[WatchEvent, ...]]:  # fmt: skip
        return Watch(
            prefix, revision, cluster_id, connect=self._borrow, turn_from=self._turn_from,
            is_over=lambda: stop.is_set() or self._is_closed.is_set(), pause=stop.wait,
            woken=lambda ring: self._bells.rung_by(stop, ring), proofs=self._proofs, gate=self._gate, account=self._account,
            random=self._random,
        ).batches()  # fmt: skip

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the connection back; watches end, later calls fail."""
        with self._lock:
            self._is_closed.set()
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._for_watches.close()
        self._gate.wake()
        self._bells.ring()

    @contextmanager
    def _explained(self, what: str) -> Iterator[str]:
        """A ``Fault`` inside leaves as the error of ours that says what it means for *what*."""
        try:
            yield what
        except Fault as fault:
            raise explain(fault, what, self._account) from fault

    def _tries(
        self, ask: Callable[[_Connection, float], T], what: str, *, is_proof: bool = False
    ) -> tuple[T, bool]:  # fmt: skip
        """What *ask* is answered by any endpoint, and whether an earlier try may have been executed.

        Args:
            is_proof: the answer is linearizable, or comes from the leader, and proves that the endpoint lives.

        Raises:
            Fault: an answer that no other endpoint or moment would better.
            StoreUnavailable: no answer within the store's deadline.
        """
        deadline = Deadline(self._config.deadline_seconds, self._clock)
        is_doubtful, last = False, None
        while self._gate.enter(deadline.remaining, self._is_closed.is_set) or self._is_closed.is_set():
            connection = None
            try:
                seconds = min(self._gate.try_seconds, deadline.remaining())
                self._knock(min(seconds, TRY_SECONDS))
                connection = self._shared_connection()
                asked_at = self._clock()
                answer = ask(connection, min(seconds, deadline.remaining()))
            except Fault as fault:
                is_doubtful = fault.is_doubtful = is_doubtful or fault.verdict is Verdict.RETRY
                last = last if last and is_cut_short(fault, seconds) else fault
                if not self._is_worth_another(fault, connection, seconds):
                    raise
            else:
                self._gate.answered()
                if is_proof:
                    self._proofs.note(connection.endpoint, answer.header, asked_at)  # type: ignore[attr-defined]
                return answer, is_doubtful
            finally:
                self._gate.leave()
        said = last or self._gate.fault or Fault(NOT_SENT, "there was no time left to ask")
        seconds = self._config.deadline_seconds
        raise unanswered(said, what, self._endpoints, seconds, self._account, is_doubtful=is_doubtful) from last

    def _is_worth_another(self, fault: Fault, connection: _Connection | None, seconds: float) -> bool:
        """Whether to try again after *fault* of a try of *seconds*; elsewhere then, where endpoint or line is at fault."""
        is_relogin = fault.verdict is Verdict.LOGIN and self._config.username is not None
        if not (is_relogin or fault.is_of_endpoint):
            self._gate.answered()  # if only to refuse this
            return False
        has_learned_nothing = is_cut_short(fault, seconds)
        if not has_learned_nothing or self._gate.fault is not None:
            self._gate.failed(fault)
        if is_relogin or has_learned_nothing or self._gate.is_connection_kept(fault):
            return True
        with self._lock:
            if self._connection is connection:
                self._connection = None
        if fault.endpoint is not None:
            self._turn_from(fault.endpoint)
        if connection is not None:
            connection.close()  # other threads' calls on it fail over as well
        return True

    def _shared_connection(self) -> _Connection:
        """The connection that all calls share at the moment; watches share another one."""
        with self._lock:
            if self._is_closed.is_set():
                raise StoreUnavailable("this program has closed its connection to etcd", may_have_happened=False)
            if self._connection is None:
                self._connection = self._connect()
            return self._connection

    def _connect(self) -> _Connection:
        return _Connection(self._endpoints[self._at], self._config, self._login)

    def _borrow(self) -> LentConnection:
        self._knock(TRY_SECONDS)
        return self._for_watches.borrow()

    def _knock(self, timeout_seconds: float) -> None:
        """Where etcd is away: a channel for each try in vain would cost a host more than all that it does else."""
        if self._gate.fault is not None:
            knock(self._endpoints[self._at], timeout_seconds)

    def _turn_from(self, endpoint: Endpoint) -> None:
        """Begin at the next endpoint from now on, unless another thread has turned from *endpoint* already."""
        self._proofs.forget(endpoint)
        if self._endpoints[at := self._at] == endpoint and len(self._endpoints) > 1:
            self._at = (at + 1) % len(self._endpoints)
            self._for_watches.turn_from(endpoint)  # after: whoever borrows from now on is to get the next one
            self._bells.ring()  # watches of that endpoint are to see whether it lives


def _transaction_request(transaction: Transaction, journal: JournalLease | None) -> Any:
    leased = [(key, value, transaction.lease_id) for key, value in transaction.puts.items()]
    leased += [(key, value, journal.id) for key, value in transaction.notes.items()] if journal else []
    puts = [
        etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease))
        for key, value, lease in leased
    ]
    deletes = [
        etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key.encode())) for key in transaction.deletes
    ]
    compares = [_compare(compare) for compare in transaction.compares]
    keys = (*transaction.puts, *transaction.deletes)
    return etcdrpc.TxnRequest(compare=compares, success=puts + deletes, failure=_reads(keys))


def _reads(keys: tuple[str, ...]) -> list[Any]:
    return [etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key.encode())) for key in keys]


def _compare(compare: Compare) -> Any:
    value = {compare.field: compare.value.encode() if isinstance(compare.value, str) else compare.value}
    start, end = key_range(compare.key) if compare.is_prefix else (compare.key.encode(), b"")
    target, result = _COMPARED[compare.field], _OPERATORS[compare.operator]
    return etcdrpc.Compare(key=start, range_end=end, target=target, result=result, **value)
