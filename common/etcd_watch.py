"""How a watch of etcd goes on: over broken connections, restarts, frozen members and lost leaders, and when it cannot.

``EtcdStore.watch`` is a ``Watch`` over connections that ``common/etcd_store.py`` makes; nothing here imports etcd3 or grpc,
messages of etcd are only looked at.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from common.etcd_gate import Gate
from common.etcd_rules import Account, Endpoint, Fault, Verdict, explain, key_of, versioned
from common.retry import Backoff
from common.store import WatchEvent, WatchLost

logger = logging.getLogger(__name__)

# A watch that heard nothing for so long has its endpoint prove that it lives. More than half of the usual time between two
# beats of a host: they and the looks half-way between them are proofs as well, and usually the only ones.
QUIET_SECONDS = 6.0
# After an outage that others saw end, a watch goes on within this share of its length.
SPREAD_SHARE = 0.5
MOST_SPREAD_SECONDS = 10.0


class Stream:
    """One watch stream. A thread reads it into a queue, so that the follower can look at the clock meanwhile, and be woken.

    Args:
        start: begins the stream with the requests that it is given; what it returns yields answers, and has ``cancel``.
        guarded: calls its argument, and turns the errors of the client library into ``Fault``.
    """

    def __init__(
        self,
        start: Callable[[Iterator[Any]], Any],
        request: Any,
        guarded: Callable[[Callable[[], Any]], Any],
        endpoint: Endpoint,
    ) -> None:
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._guarded, self._endpoint = guarded, endpoint
        self._call = guarded(lambda: start(self._requests(request)))
        threading.Thread(target=self._read, name=f"etcd-watch {endpoint.host}:{endpoint.port}", daemon=True).start()

    def next(self, timeout_seconds: float) -> Any | None:
        """The next answer, or None when there was none for so long, or when woken.

        Raises:
            Fault: the stream broke.
        """
        try:
            answer = self._answers.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(answer, Fault):
            raise answer
        return answer

    def wake(self) -> None:
        """Have whoever waits in ``next`` go on; from any thread."""
        self._answers.put(None)

    def close(self) -> None:
        self._is_over.set()
        self._call.cancel()

    def _requests(self, request: Any) -> Iterator[Any]:
        yield request
        self._is_over.wait()  # when this ends, the stream is half closed

    def _read(self) -> None:
        def read_all() -> None:
            for answer in self._call:
                self._answers.put(answer)

        try:
            self._guarded(read_all)
            self._answers.put(Fault("UNAVAILABLE", "the stream ended", self._endpoint))
        except Fault as fault:
            self._answers.put(fault)
        except Exception as error:  # a stream that fell silent would be taken for a quiet one
            logger.exception("reading a watch of etcd failed; this is a bug, please report it")
            self._answers.put(Fault("UNKNOWN", repr(error), self._endpoint))


class Connection(Protocol):
    """What a watch needs of a connection to one endpoint."""

    endpoint: Endpoint

    def probe(self, prefix: str, timeout_seconds: float) -> Any:
        """The header of a linearizable read of the key *prefix*, which whoever may watch it may read."""
        ...

    def stream(self, prefix: str, revision: int) -> Stream: ...

    def close(self) -> None: ...


class LentConnection(Connection, Protocol):
    """One that other watches use, too."""

    def abandon(self) -> None:
        """It has failed: nobody who comes later is to use it."""
        ...


class Shared:
    """One connection for all watches of a store: each has a stream of its own on it. Thread-safe.

    A host watches three things, and thousands of hosts watch one etcd, to which a connection is a quarter of a megabyte.

    Args:
        connect: a new connection, to the endpoint that serves at the moment.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._current: Connection | None = None
        self._is_closed = False
        self._users: dict[int, int] = {}  # of each connection that is open, by its id

    def borrow(self) -> LentConnection:
        """The connection, opened where there is none; closing what is returned gives it back."""
        with self._lock:
            if self._current is None:
                self._current = self._connect()
            connection = self._current
            self._users[id(connection)] = self._users.get(id(connection), 0) + 1
        return _Borrowed(connection, lambda: self._abandon(connection), lambda: self._give_back(connection))

    def turn_from(self, endpoint: Endpoint) -> None:
        """Whoever borrows next gets a new connection, if the present one is to *endpoint*, which has failed."""
        self._let_go(endpoint)

    def _abandon(self, connection: Connection) -> None:
        """Not by its endpoint, of which another watch may have a new connection already."""
        with self._lock:
            if self._current is connection:
                self._current = None

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            self._users[id(connection)] -= 1
            if self._users[id(connection)]:
                return
            del self._users[id(connection)]
            if self._current is connection and not self._is_closed:
                return  # a watch that goes on uses it again
        connection.close()

    def close(self) -> None:
        """Nobody borrows any more."""
        self._is_closed = True
        self._let_go()

    def _let_go(self, of: Endpoint | None = None) -> None:
        """The connection, if it is one *of* that endpoint, goes with the last watch that uses it."""
        with self._lock:
            connection = self._current
            if connection is None or of not in (None, connection.endpoint):
                return
            self._current, is_used = None, id(connection) in self._users
        if not is_used:
            connection.close()


class _Borrowed:
    """A connection whose ``close`` leaves it to the others."""

    def __init__(self, connection: Connection, abandon: Callable[[], None], give_back: Callable[[], None]) -> None:
        self.endpoint, self.probe, self.stream = connection.endpoint, connection.probe, connection.stream
        self.abandon, self.close = abandon, give_back


@dataclass(frozen=True)
class _Proof:
    """An answer to a request, both by the clock."""

    asked_at: float
    answered_at: float
    header: Any


_NO_PROOF = _Proof(-math.inf, -math.inf, None)


class Proofs:
    """When each endpoint last answered a linearizable request: one quiet watch asks, the others of that endpoint believe it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._asking = threading.Lock()
        self._proven: dict[Endpoint, _Proof] = {}
        self._forgotten: dict[Endpoint, float] = {}

    def note(self, endpoint: Endpoint, header: Any, asked_at: float) -> None:
        """*endpoint* has just answered with *header*, asked at *asked_at* of the clock."""
        self._proven[endpoint] = _Proof(asked_at, self.clock(), header)

    def forget(self, endpoint: Endpoint) -> None:
        self._proven.pop(endpoint, None)
        self._forgotten[endpoint] = self.clock()

    def has_failed_since(self, endpoint: Endpoint, moment: float) -> bool:
        """Whether somebody had no answer of *endpoint*: what others hear of it since says nothing about older connections."""
        return self._forgotten.get(endpoint, -math.inf) > moment

    def due_at(self, endpoint: Endpoint) -> float:
        """When the next proof is wanted of *endpoint*; long ago where there is none."""
        return self._proven.get(endpoint, _NO_PROOF).answered_at + QUIET_SECONDS

    def fresh(self, endpoint: Endpoint, *, asked_since: float) -> Any | None:
        """The header of *endpoint*'s last answer, if that was within the quiet time, to somebody who asked since then."""
        proof = self._proven.get(endpoint, _NO_PROOF)
        is_fresh = self.clock() - proof.answered_at < QUIET_SECONDS and proof.asked_at >= asked_since
        return proof.header if is_fresh else None

    def renew(self, endpoint: Endpoint, ask: Callable[[], None]) -> None:
        """Have *endpoint* answer *ask*, unless another watch or call has had an answer within the quiet time."""
        with self._asking:
            if self.clock() >= self.due_at(endpoint):
                ask()


class Watch:
    """One call of ``EtcdStore.watch``.

    Args:
        connect: a new connection, to the endpoint that serves at the moment.
        turn_from: told that a connection failed: the next one goes elsewhere.
        is_over: whether the watch was stopped.
        pause: sleeps so many seconds, or less when it was stopped.
        woken: as long as it is entered its argument is called when ``is_over`` changes, or an endpoint was turned from.
    """

    def __init__(
        self,
        prefix: str,
        revision: int,
        cluster_id: int,
        *,
        connect: Callable[[], LentConnection],
        turn_from: Callable[[Endpoint], None],
        is_over: Callable[[], bool],
        pause: Callable[[float], object],
        woken: Callable[[Callable[[], None]], AbstractContextManager[None]],
        proofs: Proofs,
        gate: Gate,
        account: Account,
        random: Callable[[], float],
    ) -> None:
        self._prefix, self._cluster_id = prefix, cluster_id
        self._revision = revision  # the next one that is wanted
        self._raft_term = 0
        self._connect, self._turn_from, self._is_over, self._pause = connect, turn_from, is_over, pause
        self._woken = woken
        self._proofs, self._gate, self._account, self._random = proofs, gate, account, random
        self._backoff = Backoff(0.05, 10.0)  # of a service that is slow rather than away, where all ask less and less often
        self._is_broken = False
        self._failed_at = -math.inf  # by the proofs' clock
        self._proven_at = -math.inf  # when this connection was made, or last answered itself

    def batches(self) -> Iterator[tuple[WatchEvent, ...]]:
        """Yield changes until it is over; an empty batch after each quiet time that ended in a proof of life."""
        while not self._is_over():
            try:
                for batch in self._follow():
                    self._backoff.reset()
                    yield batch
            except Fault as fault:
                self._bear(fault)
                self._pause(self._backoff.next())

    def _bear(self, fault: Fault) -> None:
        """Return where the watch can resume after *fault*; raise what the consumer must know otherwise."""
        self._failed_at = self._proofs.clock()
        if fault.verdict in (Verdict.COMPACTED, Verdict.ANSWER_TOO_LARGE):
            raise WatchLost(f"watch {self._prefix} from revision {self._revision}: {fault.details}") from fault
        is_anonymous = fault.verdict is Verdict.LOGIN and self._account.username is None
        if is_anonymous or fault.verdict in (Verdict.REFUSED, Verdict.INVALID):
            raise explain(fault, f"watch {self._prefix}", self._account) from fault
        if not self._is_broken and fault.verdict is not Verdict.LOGIN:
            logger.warning("a watch broke, resuming: %s", fault, extra={"prefix": self._prefix, "revision": self._revision})
            self._is_broken = True

    def _follow(self) -> Iterator[tuple[WatchEvent, ...]]:
        """Yield what one stream brings, until it breaks."""
        if not self._is_let_in():
            return
        connection = self._connected()
        try:
            stream = connection.stream(self._prefix, self._revision)
            try:
                with self._woken(stream.wake):
                    yield from self._hear(stream, connection)
            finally:
                stream.close()
        except Fault as fault:
            self._turn(fault, connection)
            raise
        finally:
            connection.close()

    def _is_let_in(self) -> bool:
        """Wait while etcd is known to be away, unless it is for this watch to find out; False where it was stopped."""
        if self._gate.fault is None:
            return True
        with self._woken(self._gate.wake):
            is_let_in = self._gate.enter(lambda: math.inf, self._is_over)
        if is_let_in and self._gate.fault is None:
            self._gate.leave()
            # The watches of all hosts, which cost most, come back one after the other; their leases did before.
            self._pause(self._random() * min(self._gate.outage_seconds * SPREAD_SHARE, MOST_SPREAD_SECONDS))
        return is_let_in

    def _connected(self) -> LentConnection:
        """A connection of which it is certain that the store behind it is the one that is followed."""
        connection = None
        try:
            connection = self._connect()
            self._proven_at = self._proofs.clock()
            # A stream's own header may come from a member that lags; this one is of the whole cluster.
            if not self._is_known(connection.endpoint):
                self._prove(connection)
        except BaseException as error:
            if isinstance(error, Fault):
                self._turn(error, connection)
                if error.is_of_endpoint:
                    self._gate.failed(error)
            if connection is not None:
                connection.close()
            raise
        finally:
            self._gate.leave()
        return connection

    def _turn(self, fault: Fault, connection: LentConnection | None) -> None:
        """Have the next connection be another one, where *fault* is that of its endpoint."""
        if not fault.is_of_endpoint or self._gate.is_connection_kept(fault):
            return
        if connection is not None:
            connection.abandon()
        if fault.endpoint is not None:
            self._turn_from(fault.endpoint)

    def _hear(self, stream: Stream, connection: LentConnection) -> Iterator[tuple[WatchEvent, ...]]:
        endpoint, clock = connection.endpoint, self._proofs.clock
        due_at = clock() + QUIET_SECONDS
        while not self._is_over():
            answer = stream.next(max(0.0, due_at - clock()))
            if answer is not None:
                due_at = clock() + QUIET_SECONDS
                self._check_answer(answer, endpoint)
                if answer.events:
                    # Not from the header: while a watch catches up, that is ahead of the events.
                    self._revision = answer.events[-1].kv.mod_revision + 1
                    yield tuple(_event(event) for event in answer.events)
            elif clock() >= min(due_at, self._proofs.due_at(endpoint)):
                self._proofs.renew(endpoint, lambda: self._prove(connection))
                if not self._is_known(endpoint) or self._proofs.has_failed_since(endpoint, self._proven_at):
                    self._prove(connection)  # another's answer does not fit what this watch has seen: it may be older than that
                due_at = self._proofs.due_at(endpoint)
                yield ()

    def _check_answer(self, answer: Any, endpoint: Endpoint) -> None:
        if answer.header.cluster_id != self._cluster_id:
            raise WatchLost(f"etcd {endpoint.url} has become another cluster: {answer.header.cluster_id:x}")
        if answer.canceled:
            raise _cancelled(answer, endpoint)
        if self._is_broken:
            logger.info("the watch goes on", extra={"prefix": self._prefix, "revision": self._revision})
            self._is_broken = False

    def _is_known(self, endpoint: Endpoint) -> bool:
        """Whether *endpoint* has just said, to whomever, that its store is the one that is followed, and no older.

        Never by an answer that was asked for before this watch broke. False says nothing: the answer may be from before the
        last event.
        """
        header = self._proofs.fresh(endpoint, asked_since=self._failed_at)
        if header is None or header.cluster_id != self._cluster_id or self._is_older(header):
            return False
        self._raft_term = header.raft_term
        return True

    def _prove(self, connection: Connection) -> None:
        """Have the endpoint answer a linearizable read, and compare the store with the one that was followed so far.

        Raises:
            WatchLost: it is another one, or an older state of it. A wiped etcd that kept its peer addresses and token has
                its old cluster id, but its revision or its raft term went back.
        """
        asked_at = self._proofs.clock()
        header, url = connection.probe(self._prefix, self._gate.try_seconds), connection.endpoint.url
        self._gate.answered()
        self._proven_at = self._proofs.clock()
        self._proofs.note(connection.endpoint, header, asked_at)
        if header.cluster_id != self._cluster_id:
            raise WatchLost(f"etcd {url} is of another cluster: {header.cluster_id:x}, not {self._cluster_id:x}")
        if self._is_older(header):
            raise WatchLost(
                f"etcd {url} was restored or wiped: it is at revision {header.revision}, raft term {header.raft_term}, but "
                f"revision {self._revision - 1}, term {self._raft_term} was seen before"
            )
        self._raft_term = header.raft_term

    def _is_older(self, header: Any) -> bool:
        """Whether *header* is of a store that has not come as far as the one that was followed."""
        return bool(header.revision < self._revision - 1 or header.raft_term < self._raft_term)


def _event(event: Any) -> WatchEvent:
    is_deletion = event.type == event.DELETE
    return WatchEvent(key_of(event.kv), None if is_deletion else versioned(event.kv), event.kv.mod_revision)


def _cancelled(answer: Any, endpoint: Endpoint) -> Fault:
    """Why etcd ended a watch; its reason is a text only."""
    if answer.compact_revision:
        return Fault("OUT_OF_RANGE", f"required revision has been compacted, the oldest is {answer.compact_revision}", endpoint)
    code = "PERMISSION_DENIED" if "permission denied" in answer.cancel_reason else "UNAVAILABLE"
    return Fault(code, answer.cancel_reason or "the watch was cancelled", endpoint)
