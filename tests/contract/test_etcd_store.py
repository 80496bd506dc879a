"""What only a real etcd can show: sizes, pages, TLS, passwords, alarms, endpoints that do not answer."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common import etcd_store, etcd_watch
from common.config import EtcdConfig
from common.errors import ConfigError, StoreRefused, StoreUnavailable, Transient
from common.etcd_store import EtcdStore
from common.store import Transaction, WatchLost
from tests.support.etcd import Certificates, EtcdAdmin, EtcdCluster, EtcdServer
from tests.support.processes import free_port, wait_until
from tests.support.tcp_proxy import TcpProxy
from tests.support.watching import Watching, watching

KIB = 1024
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates") / "pki")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(64)
        yield listener.getsockname()[1]


# -- sizes --------------------------------------------------------------------------------------------------------------


def test_40_mib_under_one_prefix_are_listed_and_read(etcd_store, etcd_prefix):
    """A page of 200 would be far over the 16 MiB that a channel receives; so would 128 keys in one transaction."""
    value = "x" * 256 * KIB
    for start in range(0, 160, 5):
        etcd_store.commit(Transaction(puts={f"{etcd_prefix}{n:03}": f"{n}{value}" for n in range(start, start + 5)}))
    listing = etcd_store.list(etcd_prefix)
    assert [item.value for item in listing.items] == [f"{n}{value}" for n in range(160)]
    found = etcd_store.get_many([item.key for item in listing.items])
    assert found == {item.key: item for item in listing.items}


def test_a_page_of_more_than_4_mib_comes_in_one_answer(etcd, etcd_store, etcd_prefix):
    """gRPC's own limit would be 4 MiB."""
    for n in range(40):
        etcd_store.create(f"{etcd_prefix}{n:02}", "x" * 200 * KIB)
    before = etcd.handled("Range")
    assert len(etcd_store.list(etcd_prefix).items) == 40
    assert etcd.handled("Range") == before + 1


def test_a_list_that_is_compacted_between_two_pages_starts_again(etcd_server, etcd_prefix, monkeypatch):
    class Compacting(EtcdStore):
        pages = 0

        def _range(self, request: Any, what: str) -> Any:
            page = super()._range(request, what)
            self.pages += 1
            if self.pages == 1:
                revision = self.create(f"{etcd_prefix}late", "written between two pages")
                with EtcdAdmin(etcd_server) as admin:
                    admin.compact(revision)
            return page

    monkeypatch.setattr(etcd_store, "PAGE_KEYS", 200)
    with closing(Compacting(EtcdConfig((etcd_server.endpoint,), etcd_prefix))) as store:
        for start in range(0, 300, 100):
            store.commit(Transaction(puts={f"{etcd_prefix}{n:03}": str(n) for n in range(start, start + 100)}))
        listing = store.list(etcd_prefix)
        assert [item.value for item in listing.items] == [*(str(n) for n in range(300)), "written between two pages"]
        assert store.pages == 3


def test_a_list_shows_one_revision_however_many_pages_it_takes(etcd_config, etcd_prefix, monkeypatch):
    monkeypatch.setattr(etcd_store, "PAGE_KEYS", 200)

    class Meddling(EtcdStore):
        is_first = True

        def _range(self, request: Any, what: str) -> Any:
            page = super()._range(request, what)
            if self.is_first and page.more:
                self.is_first = False
                seen = self.get(f"{etcd_prefix}299")
                assert seen is not None
                self.replace(seen.key, "changed between two pages", seen=seen.mod_revision)
            return page

    with closing(Meddling(etcd_config)) as store:
        for start in range(0, 300, 100):
            last = store.commit(Transaction(puts={f"{etcd_prefix}{n:03}": str(n) for n in range(start, start + 100)}))
        listing = store.list(etcd_prefix)
        assert (listing.items[-1].value, listing.revision) == ("299", last)
        assert store.get(f"{etcd_prefix}299").value == "changed between two pages"


def test_bytes_that_are_no_text_break_nothing(etcd, etcd_store, etcd_prefix):
    with watching(etcd_store, etcd_prefix) as watch:
        with EtcdAdmin(etcd) as admin:
            admin.put_bytes(etcd_prefix.encode() + b"\xff\xfe", b"\x80{")
        watch.wait_for(1)
    assert [item.value for item in etcd_store.list(etcd_prefix).items] == ["�{"]


# -- endpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_dead_endpoint_is_passed_over(etcd, etcd_prefix, start):
    endpoints = (f"http://127.0.0.1:{free_port()}", etcd.endpoint)
    with closing(EtcdStore(EtcdConfig(endpoints, etcd_prefix), random=lambda: start)) as store:
        began_at = time.monotonic()
        store.create(f"{etcd_prefix}a", "1")
        assert time.monotonic() - began_at < 1


def test_a_silent_endpoint_costs_one_try_and_is_left_for_good(etcd, etcd_prefix, silent_port):
    endpoints = (f"http://127.0.0.1:{silent_port}", etcd.endpoint)
    with closing(EtcdStore(EtcdConfig(endpoints, etcd_prefix), random=lambda: 0.0)) as store:
        began_at = time.monotonic()
        store.create(f"{etcd_prefix}a", "1")
        assert time.monotonic() - began_at < 3.5
        began_at = time.monotonic()
        store.get(f"{etcd_prefix}a")
        assert time.monotonic() - began_at < 0.5


def test_where_nothing_listens_a_write_fails_by_its_deadline_and_has_certainly_not_happened(etcd_prefix):
    endpoint = f"http://127.0.0.1:{free_port()}"
    with closing(EtcdStore(EtcdConfig((endpoint,), etcd_prefix, deadline_seconds=1.5))) as store:
        began_at = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"{endpoint}.*refused.*etcd.endpoints") as caught:
            store.create(f"{etcd_prefix}a", "1")
        assert 0.5 < time.monotonic() - began_at < 1.8
        assert caught.value.may_have_happened is False


def test_no_call_outlasts_the_deadline_where_nobody_answers(etcd_prefix, silent_port):
    with closing(EtcdStore(EtcdConfig((f"http://127.0.0.1:{silent_port}",), etcd_prefix, deadline_seconds=3))) as store:
        for call in (lambda: store.get("a"), lambda: store.refresh_lease(1)):
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable, match="no answer within 3 s"):
                call()
            assert time.monotonic() - began_at < 3.3


def test_a_server_that_is_no_etcd_is_named_as_such(etcd_prefix, tmp_path):
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", free_port()), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        config = EtcdConfig((endpoint,), etcd_prefix, deadline_seconds=1)
        with closing(EtcdStore(config)) as store, pytest.raises(StoreUnavailable, match=re.escape(endpoint)):
            store.get("a")
        server.shutdown()


@pytest.mark.parametrize(
    "url", ["127.0.0.1:2379", "ftp://127.0.0.1", "http://", "http://host:port", "http://host/path", "http://u:secret@host"]
)
def test_what_is_no_endpoint_is_refused_before_anything_is_tried(url):
    with pytest.raises(ConfigError, match=r"etcd.endpoints") as caught:
        EtcdStore(EtcdConfig((url,)))
    assert "secret" not in str(caught.value)


def test_etcd_over_ipv6_is_reached_by_an_address_in_brackets(tmp_path, etcd_prefix):
    port = free_port()
    server = EtcdServer(tmp_path / "etcd")
    server.options += ["--listen-client-urls", f"{server.endpoint},http://[::1]:{port}"]
    server.start()
    try:
        with closing(EtcdStore(EtcdConfig((f"http://[::1]:{port}",), etcd_prefix))) as store:
            assert store.create(f"{etcd_prefix}a", "1") > 1
    finally:
        server.kill()


# -- watches ------------------------------------------------------------------------------------------------------------


def test_quiet_watches_of_one_endpoint_share_their_proofs_of_life(etcd, etcd_store, etcd_prefix, monkeypatch):
    monkeypatch.setattr(etcd_watch, "QUIET_SECONDS", 0.5)
    with ExitStack() as stack:
        watches = [stack.enter_context(watching(etcd_store, f"{etcd_prefix}{n}/")) for n in range(4)]
        wait_until(lambda: all(w.quiet_proofs for w in watches), timeout_seconds=10, what="all watches are quiet")
        before, began_at = etcd.handled("Range"), time.monotonic()
        wait_until(lambda: all(w.quiet_proofs >= 5 for w in watches), timeout_seconds=20, what="five quiet times")
        quiet_times = (time.monotonic() - began_at) / 0.5
        assert 1 <= etcd.handled("Range") - before <= quiet_times + 2


def test_calls_that_are_answered_are_proof_enough_for_a_quiet_watch(etcd, etcd_store, etcd_prefix, monkeypatch):
    monkeypatch.setattr(etcd_watch, "QUIET_SECONDS", 0.5)
    with watching(etcd_store, etcd_prefix) as watch:
        wait_until(lambda: watch.quiet_proofs == 1, timeout_seconds=10, what="the watch is quiet")
        before, calls = etcd.handled("Range"), 0
        while watch.quiet_proofs < 3:
            etcd_store.get("a")
            calls += 1
            time.sleep(0.02)
        assert etcd.handled("Range") == before + calls


def test_a_watch_from_a_compacted_revision_is_lost(etcd_server, etcd_prefix):
    with closing(EtcdStore(EtcdConfig((etcd_server.endpoint,), etcd_prefix))) as store:
        since = store.list(etcd_prefix)
        last = store.create(f"{etcd_prefix}a", "1")
        last = store.replace(f"{etcd_prefix}a", "2", seen=last)
        with EtcdAdmin(etcd_server) as admin:
            admin.compact(last)
        watch = Watching(store, etcd_prefix, revision=since.revision + 1, cluster_id=since.cluster_id)
        error = watch.wait_for_end()
        assert isinstance(error, WatchLost)
        assert "compacted" in str(error)


def test_a_backlog_larger_than_a_channel_takes_loses_the_watch_instead_of_stalling_it(etcd_store, etcd_prefix):
    """etcd sends up to 1,000 revisions in one answer; the list that follows comes in pages."""
    since = etcd_store.list(etcd_prefix)
    for n in range(20):
        etcd_store.create(f"{etcd_prefix}{n}", "x" * 1000 * KIB)
    watch = Watching(etcd_store, etcd_prefix, revision=since.revision + 1, cluster_id=since.cluster_id)
    assert isinstance(watch.wait_for_end(), WatchLost)
    assert len(etcd_store.list(etcd_prefix).items) == 20


def test_programs_that_are_forked_while_calls_run_start_as_ever(etcd_store, etcd_prefix):
    """gRPC's own preparation for forks has them abort or hang before they get to exec."""
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            etcd_store.get(f"{etcd_prefix}a")

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        with watching(etcd_store, etcd_prefix):
            # With a preexec_fn subprocess forks as libraries in C do; else it would use vfork.
            codes = {subprocess.run(["true"], preexec_fn=int, check=False, timeout=10).returncode for _ in range(100)}
    finally:
        done.set()
        for caller in callers:
            caller.join(10)
    assert codes == {0}


def test_keeping_connections_alive_does_not_make_etcd_hang_up(tmp_path, etcd_prefix, monkeypatch):
    """etcd takes pings on a connection without a call in progress for an attack; here all is ten times as fast as usual."""
    faster = {"grpc.keepalive_time_ms": 1000}
    options = tuple((name, faster.get(name, value)) for name, value in etcd_store.CHANNEL_OPTIONS)
    monkeypatch.setattr(etcd_store, "CHANNEL_OPTIONS", options)
    server = EtcdServer(tmp_path / "etcd", options=["--grpc-keepalive-min-time", "500ms"])
    server.start()
    proxy = TcpProxy(server.client_port)
    try:
        config = EtcdConfig((f"http://127.0.0.1:{proxy.port}",), etcd_prefix)
        with closing(EtcdStore(config)) as store, watching(store, etcd_prefix) as watch:
            store.create(f"{etcd_prefix}a", "1")
            watch.wait_for(1)
            time.sleep(5)  # etcd forgives two pings
            store.create(f"{etcd_prefix}b", "1")
            watch.wait_for(2)
            assert proxy.accepted == 2, "one connection for calls, one for the watch"
    finally:
        proxy.close()
        server.kill()


# -- alarms -------------------------------------------------------------------------------------------------------------


def test_a_full_etcd_is_named_at_once_and_can_still_be_read_and_cleared(etcd_server, etcd_prefix):
    with closing(EtcdStore(EtcdConfig((etcd_server.endpoint,), etcd_prefix))) as store, EtcdAdmin(etcd_server) as admin:
        revision = store.create(f"{etcd_prefix}a", "1")
        admin.alarm_no_space(raised=True)
        began_at = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"NOSPACE.*etcdctl alarm disarm") as caught:
            store.create(f"{etcd_prefix}b", "1")
        assert time.monotonic() - began_at < 1
        assert caught.value.may_have_happened is False
        assert store.get(f"{etcd_prefix}a").value == "1"
        store.delete(f"{etcd_prefix}a", seen=revision)
        admin.alarm_no_space(raised=False)
        store.create(f"{etcd_prefix}b", "1")


# -- TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("tls-etcd"), certificates=certificates)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tls_config(tls_etcd: EtcdServer, certificates: Certificates, etcd_prefix: str) -> EtcdConfig:
    certificate, key = certificates.issue("host")
    return EtcdConfig(
        (tls_etcd.endpoint,), etcd_prefix, certificates.ca, certificate, key, deadline_seconds=1.5
    )  # fmt: skip


def test_with_its_certificate_a_store_reads_writes_and_watches_over_tls(tls_config, etcd_prefix):
    with closing(EtcdStore(tls_config)) as store, watching(store, etcd_prefix) as watch:
        store.create(f"{etcd_prefix}a", "1")
        watch.wait_for(1)


def test_without_a_client_certificate_nothing_is_read(tls_config):
    config = replace(tls_config, certificate_file=None, key_file=None)
    with closing(EtcdStore(config)) as store, pytest.raises(StoreUnavailable, match=r"etcd\.certificate_file"):
        store.get("a")


def test_a_server_that_another_ca_vouches_for_is_not_trusted(tls_config, tmp_path):
    config = replace(tls_config, ca_file=Certificates(tmp_path / "another").ca)
    with closing(EtcdStore(config)) as store, pytest.raises(StoreUnavailable, match=r"not of the CA in etcd\.ca_file"):
        store.get("a")


def test_a_last_try_that_was_cut_short_does_not_hide_what_the_others_were_told(etcd_config):
    """Whoever connects first is hung up on; the others are held, and hear nothing until no time is left."""
    held = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            server.accept()[0].close()
            while True:
                held.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", free_port())) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        config = replace(etcd_config, endpoints=(f"http://127.0.0.1:{server.getsockname()[1]}",), deadline_seconds=1.5)
        try:
            with closing(EtcdStore(config)) as store, pytest.raises(StoreUnavailable, match="UNAVAILABLE"):
                store.get("a")
        finally:
            server.shutdown(socket.SHUT_RDWR)  # close alone ends no accept
    thread.join(10)
    assert held, "there was a second try"
    for connection in held:
        connection.close()


def test_plaintext_to_a_tls_port_says_that_the_address_may_be_wrong(tls_config, tls_etcd):
    config = replace(tls_config, endpoints=(tls_etcd.endpoint.replace("https", "http"),))
    with closing(EtcdStore(config)) as store, pytest.raises(StoreUnavailable, match=r"http or https"):
        store.get("a")


def test_https_without_a_ca_file_trusts_the_system_and_never_falls_back_to_plaintext(etcd, tls_config):
    with closing(EtcdStore(replace(tls_config, ca_file=None))) as store, pytest.raises(StoreUnavailable):
        store.get("a")
    plain = replace(tls_config, endpoints=(etcd.endpoint.replace("http", "https"),), ca_file=None)
    with closing(EtcdStore(plain)) as store, pytest.raises(StoreUnavailable):
        store.get("a")


BROKEN_FILES = [
    *((field, content) for field in ("ca_file", "certificate_file", "key_file") for content in ("missing", "junk")),
    ("certificate_file", "not configured"),
    ("key_file", "not configured"),
]


@pytest.mark.parametrize(("field", "content"), BROKEN_FILES)
def test_a_certificate_file_that_cannot_be_used_is_named(tls_config, tmp_path, field, content):
    path = None if content == "not configured" else tmp_path / "broken.pem"
    if content == "junk":
        path.write_text("junk")
    config = replace(tls_config, **{field: path})
    with closing(EtcdStore(config)) as store, pytest.raises(StoreRefused, match=f"etcd.{field} {path}"):
        store.get("a")


# -- users and passwords ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd on plaintext that asks for a password; the user ``host`` may use ``/guarded/``."""
    server = EtcdServer(tmp_path_factory.mktemp("guarded-etcd"))
    server.start()
    with EtcdAdmin(server) as admin:
        admin.add_user("host", PASSWORD)
        admin.grant("host", "/guarded/")
        admin.enable_auth(PASSWORD)
    yield server
    server.kill()


@pytest.fixture
def guarded_config(guarded_etcd: EtcdServer, tmp_path: Path) -> EtcdConfig:
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    return EtcdConfig((guarded_etcd.endpoint,), "/guarded/", username="host", password_file=password_file)


def test_a_password_opens_a_plaintext_etcd_to_every_kind_of_call(guarded_config, etcd_prefix):
    prefix = f"/guarded{etcd_prefix}"
    with closing(EtcdStore(guarded_config)) as store, watching(store, prefix) as watch:
        lease = store.grant_lease(60)
        revision = store.create(f"{prefix}a", "1", lease_id=lease.id)
        assert store.refresh_lease(lease.id) == 60
        assert store.get_many([f"{prefix}a"]) == {item.key: item for item in store.list(prefix).items}
        store.delete(f"{prefix}a", seen=revision)
        watch.wait_for(2)


def test_all_connections_of_a_store_share_one_login(guarded_etcd, guarded_config, etcd_prefix):
    before = guarded_etcd.handled("Authenticate")
    with closing(EtcdStore(guarded_config)) as store, ExitStack() as stack:
        for n in range(3):
            stack.enter_context(watching(store, f"/guarded{etcd_prefix}{n}/"))
        store.create(f"/guarded{etcd_prefix}0/a", "1")
        assert guarded_etcd.handled("Authenticate") == before + 1


def test_after_a_restart_that_voids_the_tokens_calls_and_watches_log_in_again(guarded_etcd, guarded_config, etcd_prefix):
    prefix = f"/guarded{etcd_prefix}"
    with closing(EtcdStore(guarded_config)) as store, watching(store, prefix) as watch:
        store.create(f"{prefix}a", "1")
        watch.wait_for(1)
        guarded_etcd.restart()
        store.create(f"{prefix}b", "2")
        watch.wait_for(2)
        assert watch.changes == [(f"{prefix}a", "1"), (f"{prefix}b", "2")]


def test_after_users_and_roles_changed_calls_log_in_again(guarded_etcd, guarded_config, etcd_prefix):
    """etcd then refuses all older tokens, in words and codes of its own."""
    prefix = f"/guarded{etcd_prefix}"
    with closing(EtcdStore(guarded_config)) as store:
        store.create(f"{prefix}a", "1")
        with EtcdAdmin(guarded_etcd, password=PASSWORD) as admin:
            admin.add_user(f"someone-{etcd_prefix}", "else")
        store.create(f"{prefix}b", "2")
        with EtcdAdmin(guarded_etcd, password=PASSWORD) as admin:
            admin.change_password("host", PASSWORD)
        assert len(store.list(prefix).items) == 2


def test_a_wrong_password_names_the_user_and_the_file_but_not_the_password(guarded_config):
    guarded_config.password_file.write_text("battery staple")
    with closing(EtcdStore(guarded_config)) as store:
        began_at = time.monotonic()
        with pytest.raises(StoreRefused, match=r"'host' with the password in .*password.*password_file") as caught:
            store.create("/guarded/a", "1")
        assert time.monotonic() - began_at < 1.5
        assert "battery" not in str(caught.value)
        assert isinstance(caught.value, ConfigError) and isinstance(caught.value, Transient)
        assert caught.value.may_have_happened is False
        guarded_config.password_file.write_text(PASSWORD)
        store.get("/guarded/a")  # once corrected, it goes on without a restart


def test_a_missing_password_file_is_named(guarded_config):
    guarded_config.password_file.unlink()
    with closing(EtcdStore(guarded_config)) as store, pytest.raises(StoreRefused, match=r"cannot read .*password"):
        store.get("/guarded/a")


def test_an_etcd_that_asks_for_a_user_says_so(guarded_config):
    anonymous = replace(guarded_config, username=None, password_file=None)
    with closing(EtcdStore(anonymous)) as store, pytest.raises(StoreRefused, match=r"set etcd.username"):
        store.get("/guarded/a")


def test_a_user_for_an_etcd_without_authentication_is_pointed_out(etcd, guarded_config):
    config = replace(guarded_config, endpoints=(etcd.endpoint,))
    with closing(EtcdStore(config)) as store, pytest.raises(StoreRefused, match=r"remove etcd.username"):
        store.get("/guarded/a")


def test_keys_that_the_user_may_not_touch_are_refused_with_what_to_grant(guarded_config):
    with closing(EtcdStore(guarded_config)) as store:
        for call in (
            lambda: store.get("/elsewhere/a"),
            lambda: store.create("/elsewhere/a", "1"),
            lambda: store.list("/elsewhere/"),
        ):
            with pytest.raises(StoreRefused, match="'host' readwrite on the prefix /guarded/"):
                call()
        watch = Watching(store, "/elsewhere/", revision=1, cluster_id=store.cluster_id())
        assert isinstance(watch.wait_for_end(), StoreRefused)


def test_a_cluster_with_tls_and_a_password_serves_over_all_its_members(tmp_path, certificates, etcd_prefix):
    cluster = EtcdCluster(tmp_path / "cluster", certificates=certificates)
    cluster.start()
    try:
        with EtcdAdmin(cluster.members[0]) as admin:
            admin.add_user("host", PASSWORD)
            admin.grant("host", etcd_prefix)
            admin.enable_auth(PASSWORD)
        password_file = tmp_path / "password"
        password_file.write_text(PASSWORD)
        certificate, key = certificates.issue("host")
        config = EtcdConfig(cluster.endpoints, etcd_prefix, certificates.ca, certificate, key, "host", password_file)
        with closing(EtcdStore(config, random=lambda: 0.0)) as store, watching(store, etcd_prefix) as watch:
            store.create(f"{etcd_prefix}a", "1")
            cluster.members[0].kill()
            store.create(f"{etcd_prefix}b", "2")
            watch.wait_for(2)
    finally:
        cluster.stop()


def test_the_try_limit_is_below_the_default_deadline():
    """Else a single frozen member would use up a whole call."""
    assert EtcdConfig().deadline_seconds > etcd_store.TRY_SECONDS * 2
