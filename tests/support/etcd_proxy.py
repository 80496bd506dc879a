"""A proxy in front of etcd that understands gRPC, so that it can lose the answer to exactly the write that a test wants.

All calls are passed on as bytes, streams too. ``on_write`` is asked about each call that may change something, once etcd has
executed it; where it says so the client hears of a broken connection instead of the answer.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.support.etcd import etcdrpc  # before grpc: see common/etcd_store.py
from tests.support.processes import free_port

import grpc  # isort: skip

STREAMS = ("/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive")
WRITES = ("Put", "DeleteRange", "LeaseGrant", "LeaseRevoke")
CALL_SECONDS = 20.0


class EtcdProxy:
    """Serves on its own port of *address* in front of the etcd there at *upstream_port*, until ``close``.

    Args:
        on_write: given what a write was ("Txn spec/…"), says whether its answer is lost. Called from many threads.
        on_request: told the method and the bytes of every request before it is passed on; of a stream, of each one on it.
    """

    def __init__(
        self, upstream_port: int, *, address: str, on_write: Callable[[str], bool] = lambda _: False,
        on_request: Callable[[str, bytes], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.endpoint = f"http://{address}:{(port := free_port())}"
        self._on_write, self._on_request = on_write, on_request
        self._channel = grpc.insecure_channel(f"{address}:{upstream_port}")
        # A stream keeps a thread for as long as it lives.
        # It is no business of gRPC's how often a client looks whether its connection lives.
        options = (("grpc.http2.max_ping_strikes", 0),)
        self._server = grpc.server(ThreadPoolExecutor(64, "etcd-proxy"), handlers=[_Handler(self)], options=options)
        self._server.add_insecure_port(f"{address}:{port}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(0).wait(10)
        self._channel.close()

    def call(self, method: str, request: bytes, context: Any) -> bytes:
        self._on_request(method, request)
        try:
            answer = self._channel.unary_unary(method)(request, timeout=CALL_SECONDS, metadata=_passed_on(context))
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        write = _described(method, request)
        if write and self._on_write(write):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
        return answer  # type: ignore[no-any-return]

    def stream(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        def noted() -> Iterator[bytes]:
            for request in requests:
                self._on_request(method, request)
                yield request

        upstream = self._channel.stream_stream(method)(noted(), metadata=_passed_on(context))
        if not context.add_callback(upstream.cancel):
            upstream.cancel()
        try:
            yield from upstream
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, proxy: EtcdProxy) -> None:
        self._proxy = proxy

    def service(self, details: Any) -> Any:
        method = details.method
        if method in STREAMS:
            return grpc.stream_stream_rpc_method_handler(lambda r, c: self._proxy.stream(method, r, c))
        return grpc.unary_unary_rpc_method_handler(lambda r, c: self._proxy.call(method, r, c))


def _passed_on(context: Any) -> list[tuple[str, str]]:
    """The client's metadata, without what belongs to its own connection."""
    return [(key, value) for key, value in context.invocation_metadata() if key in ("hasleader", "token", "authorization")]


def _described(method: str, request: bytes) -> str:
    """What a call writes, in a few words; "" where it only reads."""
    name = method.rpartition("/")[2]
    if name in WRITES:
        return name
    if name != "Txn":
        return ""
    operations = etcdrpc.TxnRequest.FromString(request).success
    keys = [o.request_put.key or o.request_delete_range.key for o in operations if not o.HasField("request_range")]
    # Under a test's prefix "/test/<uuid>/": what kind of keys; what goes into the journal goes along with others.
    kinds = sorted({key.decode().split("/")[3] for key in keys} - {"_journal"})
    return f"Txn {'+'.join(kinds)}" if kinds else ""


UUID_IN_PATH = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def kind_of(write: str) -> str:
    """*write* without what it was about."""
    return UUID_IN_PATH.sub("…", write)


class NthWriteLost:
    """Counts the writes to all services together, and says of the *n*-th, or the first of a *kind*, that its answer is lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: list[str] = []
        self.lost = ""
        self._n, self._kind = 0, ""

    def begin(self, n: int, kind: str = "") -> None:
        """Count anew; 0 and no *kind* lose nothing."""
        with self._lock:
            self.seen, self.lost, self._n, self._kind = [], "", n, kind

    def __call__(self, write: str) -> bool:
        with self._lock:
            self.seen.append(write)
            is_lost = len(self.seen) == self._n or (not self.lost and bool(self._kind) and kind_of(write) == self._kind)
            if is_lost:
                self.lost = write
            return is_lost
