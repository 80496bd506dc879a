"""Real etcd servers for tests: one to share, ones to break, a cluster, with TLS and passwords where a test wants them.

The fixtures are registered in ``tests/conftest.py``. A server keeps its ports and data over stop and start; it dies with the
test process. What it logged is in ``EtcdServer.evidence()``.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.config import EtcdConfig
from common.etcd_rules import key_range
from common.etcd_store import EtcdStore, etcd3, etcdrpc  # not by itself: see there what has to come before
from tests.support.processes import ROOT, free_port, freeze, spawn, stop, wait_until

START_SECONDS = 30.0


class Certificates:
    """A CA with a server certificate for loopback and client certificates, made by openssl in *directory*."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.ca = directory / "ca.crt"
        self._openssl("req", "-x509", *self._new_key("ca"), "-subj", "/CN=test CA", "-days", "2", "-out", str(self.ca))
        self.server = self.issue("127.0.0.1")

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a new certificate with the common name *name* and of its key; good for loopback, server and client."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        request, extensions = self.directory / f"{name}.csr", self.directory / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
        self._openssl("req", "-new", *self._new_key(name), "-subj", f"/CN={name}", "-out", str(request))
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self.directory / "ca.key"),
            "-CAcreateserial", "-days", "2", "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def _new_key(self, name: str) -> list[str]:
        key = str(self.directory / f"{name}.key")
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


class EtcdServer:
    """One etcd process.

    Args:
        options: more options of etcd.
        certificates: speak TLS to clients with these, and demand a client certificate of their CA.
        address: where clients reach it.
    """

    def __init__(
        self, directory: Path, *, options: Sequence[str] = (), certificates: Certificates | None = None,
        address: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self.directory, self.certificates, self.address = directory, certificates, address
        self.client_port, self.peer_port = free_port(), free_port()
        self.scheme = "https" if certificates else "http"
        self.endpoint = f"{self.scheme}://{address}:{self.client_port}"
        self.options = ["--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint, *options]
        self.options += self._tls_options()
        self.log = directory / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False

    def start(self, *, wait: bool = True) -> EtcdServer:
        """Start the process on its ports and data; with *wait*, return when it serves."""
        command = [ROOT / "packaging" / "run-etcd", self.directory / "data", str(self.client_port), str(self.peer_port)]
        self._process = spawn([*command, *self.options], log=self.log)
        return self.wait_ready() if wait else self

    def wait_ready(self) -> EtcdServer:
        wait_until(
            self.is_healthy, timeout_seconds=START_SECONDS, what=f"etcd serves at {self.endpoint}", evidence=self.evidence
        )
        return self

    def is_healthy(self) -> bool:
        """Whether it has a leader and answers a linearizable read."""
        assert self._process is not None and self._process.poll() is None, f"etcd ended\n{self.evidence()}"
        return json.loads(self._http("/health") or "{}").get("health") == "true"

    def is_leader(self) -> bool:
        return "\netcd_server_is_leader 1" in self._http("/metrics")

    def handled(self, method: str) -> int:
        """How many calls of the gRPC *method* it has finished so far."""
        found = re.findall(
            rf'^grpc_server_handled_total{{[^}}]*grpc_method="{method}"[^}}]*}} (\S+)', self._http("/metrics"), re.M
        )
        return sum(int(float(count)) for count in found)

    def stop(self, *, with_signal: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self.thaw()
            stop(self._process, with_signal=with_signal)
            self._process = None

    def kill(self) -> None:
        self.stop(with_signal=signal.SIGKILL)

    def restart(self, *, with_signal: int = signal.SIGTERM) -> None:
        self.stop(with_signal=with_signal)
        self.start()

    def freeze(self) -> None:
        """Stop it from running; its connections stay open and silent."""
        assert self._process is not None
        freeze(self._process)
        self._is_frozen = True

    def thaw(self) -> None:
        if self._process is not None and self._is_frozen:
            self._process.send_signal(signal.SIGCONT)
        self._is_frozen = False

    def wipe(self) -> None:
        """Delete its data; it has to be stopped."""
        assert self._process is None
        shutil.rmtree(self.directory / "data")

    @property
    def is_running(self) -> bool:
        return self._process is not None and not self._is_frozen

    def evidence(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def _http(self, path: str) -> str:
        context = None
        if self.certificates:
            context = ssl.create_default_context(cafile=str(self.certificates.ca))
            context.load_cert_chain(*self.certificates.server)
        try:
            with urllib.request.urlopen(self.endpoint + path, timeout=2, context=context) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError):
            return ""

    def _tls_options(self) -> list[str]:
        if self.certificates is None:
            return []
        certificate, key = self.certificates.server
        return [
            "--client-cert-auth", "--cert-file", str(certificate), "--key-file", str(key), "--trusted-ca-file", str(self.certificates.ca),
        ]  # fmt: skip


class EtcdCluster:
    """Three etcd processes that form one cluster; clients speak TLS to it where *certificates* are given.

    Args:
        address: where clients reach the members.
        members: how many there are, at most three.
    """

    def __init__(
        self, directory: Path, *, certificates: Certificates | None = None, address: str = "127.0.0.1", members: int = 3
    ) -> None:  # fmt: skip
        names = ("first", "second", "third")[:members]
        self.members = [EtcdServer(directory / name, certificates=certificates, address=address) for name in names]
        peers = ",".join(
            f"{name}=http://127.0.0.1:{member.peer_port}" for name, member in zip(names, self.members, strict=True)
        )
        for name, member in zip(names, self.members, strict=True):
            member.options += ["--name", name, "--initial-cluster", peers]

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def start(self) -> EtcdCluster:
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_ready()
        return self

    def heal(self) -> EtcdCluster:
        """Thaw and start whatever is not running, and wait until every member serves."""
        for member in self.members:
            member.thaw()
            if not member.is_running:
                member.start(wait=False)
        for member in self.members:
            member.wait_ready()
        return self

    def leader(self) -> EtcdServer:
        return wait_until(
            lambda: next((member for member in self.members if member.is_running and member.is_leader()), None),
            timeout_seconds=START_SECONDS, what="the cluster has a leader",
        )  # fmt: skip

    def followers(self) -> list[EtcdServer]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def stop(self) -> None:
        for member in self.members:
            member.kill()


class EtcdAdmin:
    """What an operator does to an etcd with ``etcdctl``; as root with a password once authentication is on."""

    def __init__(self, server: EtcdServer, *, password: str | None = None) -> None:
        certificates = server.certificates
        certificate, key = certificates.server if certificates else (None, None)
        self._client = etcd3.client(
            host=server.address, port=server.client_port, timeout=10,
            ca_cert=certificates and certificates.ca, cert_cert=certificate, cert_key=key,
            user="root" if password else None, password=password,
        )  # fmt: skip
        channel = self._client.channel
        self._auth, self._kv = etcdrpc.AuthStub(channel), etcdrpc.KVStub(channel)
        self._maintenance = etcdrpc.MaintenanceStub(channel)

    def __enter__(self) -> EtcdAdmin:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def compact(self, revision: int) -> None:
        self._call(self._kv.Compact, etcdrpc.CompactionRequest(revision=revision))

    def put_bytes(self, key: bytes, value: bytes) -> None:
        self._call(self._kv.Put, etcdrpc.PutRequest(key=key, value=value))

    def alarm_no_space(self, *, raised: bool) -> None:
        action = etcdrpc.AlarmRequest.ACTIVATE if raised else etcdrpc.AlarmRequest.DEACTIVATE
        self._call(self._maintenance.Alarm, etcdrpc.AlarmRequest(action=action, alarm=etcdrpc.NOSPACE))

    def enable_auth(self, password: str) -> None:
        """Make the user root with *password* and switch authentication on."""
        self._call(self._auth.UserAdd, etcdrpc.AuthUserAddRequest(name="root", password=password))
        self._call(self._auth.RoleAdd, etcdrpc.AuthRoleAddRequest(name="root"))
        self._call(self._auth.UserGrantRole, etcdrpc.AuthUserGrantRoleRequest(user="root", role="root"))
        self._call(self._auth.AuthEnable, etcdrpc.AuthEnableRequest())

    def add_user(self, name: str, password: str) -> None:
        """Make a user with a role of the same name, which may do nothing yet."""
        self._call(self._auth.UserAdd, etcdrpc.AuthUserAddRequest(name=name, password=password))
        self._call(self._auth.RoleAdd, etcdrpc.AuthRoleAddRequest(name=name))
        self._call(self._auth.UserGrantRole, etcdrpc.AuthUserGrantRoleRequest(user=name, role=name))

    def grant(self, name: str, prefix: str) -> None:
        """Let the role *name* read and write under *prefix*."""
        start, end = key_range(prefix)
        request = etcdrpc.AuthRoleGrantPermissionRequest(name=name)
        request.perm.key, request.perm.range_end = start, end
        request.perm.permType = request.perm.READWRITE
        self._call(self._auth.RoleGrantPermission, request)

    def change_password(self, name: str, password: str) -> None:
        self._call(self._auth.UserChangePassword, etcdrpc.AuthUserChangePasswordRequest(name=name, password=password))

    def _call(self, method: Callable[..., Any], request: Any) -> None:
        method(request, timeout=10, metadata=self._client.metadata)


def unique_prefix() -> str:
    """A key prefix that no other test uses."""
    return f"/test/{uuid.uuid4()}/"


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests of the session: use an own prefix, and do not break it."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def etcd_prefix() -> str:
    """The test's own prefix."""
    return unique_prefix()


@pytest.fixture
def etcd_config(etcd: EtcdServer, etcd_prefix: str) -> EtcdConfig:
    """How to reach the shared etcd under the test's own prefix."""
    return EtcdConfig(endpoints=(etcd.endpoint,), prefix=etcd_prefix)


@pytest.fixture
def etcd_store(etcd_config: EtcdConfig) -> Iterator[EtcdStore]:
    """A store on the shared etcd; its keys go under ``etcd_prefix``."""
    store = EtcdStore(etcd_config)
    yield store
    store.close()


@pytest.fixture
def etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own, to break."""
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def module_etcd_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def etcd_cluster(module_etcd_cluster: EtcdCluster) -> EtcdCluster:
    """Three members, all well; a test may stop and freeze them, the next one finds them healed."""
    return module_etcd_cluster.heal()
