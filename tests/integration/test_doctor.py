"""``eschedule doctor`` and ``ecompute doctor`` against real services that are broken one way after the other."""

from __future__ import annotations

import email.utils
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.keys import Keys
from common.model import HostAdmin, HostRecord, HostState, OwnerRecord
from common.placement_types import OWNER_TRAIT
from tests.support import faulty_proxy, tcp_proxy
from tests.support.deployment import Deployment, ThisMachine, make_raw_image
from tests.support.doctor import Examination, changed_config, examine, read
from tests.support.etcd import Certificates, EtcdAdmin, EtcdServer, unique_prefix
from tests.support.placement import PlacementServer, client_for
from tests.support.processes import VENV_BIN, free_port

Doctor = Callable[..., Examination]
PREFIX = "/doctor/"


@pytest.fixture(scope="module")
def shared_placement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    server = PlacementServer(tmp_path_factory.mktemp("doctor-placement"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def doctor(tmp_path: Path, etcd: EtcdServer, shared_placement: PlacementServer) -> Doctor:
    """``eschedule doctor`` with etcd, Placement and their keys of schedule.yaml as a test wants them."""

    def run(*arguments: str, etcd: dict[str, Any] | None = None, placement: dict[str, Any] | None = None) -> Examination:
        config = {
            "etcd": {"endpoints": [shared_etcd.endpoint], "prefix": PREFIX, **(etcd or {})},
            "placement": {"url": shared_placement.url, **(placement or {})},
        }
        file = tmp_path / "schedule.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [VENV_BIN / "eschedule", "--config", file, "doctor", "--json", *arguments]
        return read(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))

    shared_etcd = etcd
    return run


@pytest.fixture
def host(etcd: EtcdServer, shared_placement: PlacementServer) -> Iterator[Host]:
    """A host's keys and provider as its ecompute would have written them."""
    host = Host(etcd, shared_placement)
    yield host
    host.leave()


class Host:
    """The keys of one host under ``PREFIX``, and its provider."""

    def __init__(self, etcd: EtcdServer, placement: PlacementServer) -> None:
        self.provider, self.name = uuid4(), f"host-{uuid4().hex[:6]}"
        self.store, self.keys = EtcdStore(EtcdConfig(endpoints=(etcd.endpoint,), prefix=PREFIX)), Keys(PREFIX)
        self.placement = client_for(placement.url, etcd_prefix=PREFIX)
        self.store.create(self.keys.owner(self.provider), OwnerRecord("m", "u", self.name).to_json())
        self.beat()
        generation = self.placement.ensure_provider(self.provider, self.name).generation
        self.placement.ensure_traits([OWNER_TRAIT])
        self.placement.put_traits(self.provider, generation, [OWNER_TRAIT])

    def beat(self, **changes: Any) -> None:
        import importlib.metadata

        usual: dict[str, Any] = {"versions": {"etcd-compute": importlib.metadata.version("etcd-compute")}}
        record = HostRecord(self.name, "boot", uuid4(), "u", "test:///default", **{**usual, **changes})
        self.stop_beating()
        self.store.create(self.keys.host(self.provider), record.to_json())

    def stop_beating(self) -> None:
        self._delete(self.keys.host(self.provider))

    def disable(self) -> None:
        self.store.create(self.keys.host_admin(self.provider), HostAdmin(disabled=True).to_json())

    def leave(self) -> None:
        for key in (self.keys.host(self.provider), self.keys.owner(self.provider), self.keys.host_admin(self.provider)):
            self._delete(key)
        self.placement.delete_provider(self.provider)
        self.placement.close()
        self.store.close()

    def _delete(self, key: str) -> None:
        if (found := self.store.get(key)) is not None:
            self.store.delete(key, seen=found.mod_revision)


# -- the client --------------------------------------------------------------------------------------------------------------


def test_a_healthy_client_is_all_ok_and_leaves_nothing_behind(doctor: Doctor, host: Host) -> None:
    before = {item.key: item.value for item in host.store.list("/").items}
    found = doctor()
    assert (found.exit_code, found.bad) == (0, [])
    assert {item.key: item.value for item in host.store.list("/").items} == before
    assert [provider.name for provider in host.placement.providers()] == [host.name]
    for name in (
        "configuration",
        "etcd",
        "etcd version",
        "etcd space",
        "etcd access",
        "Placement",
        "Placement write",
        "clock",
        "hosts",
    ):
        found.has(name, "OK")


def test_everything_dead_is_said_in_time(doctor: Doctor) -> None:
    nowhere = free_port()
    began = time.monotonic()
    found = doctor(etcd={"endpoints": [f"http://127.0.0.1:{nowhere}"]}, placement={"url": f"http://127.0.0.1:{nowhere}"})
    assert time.monotonic() - began < 15
    assert found.exit_code == 1
    assert "start it" in found.has("etcd", "failure", "Connection refused")["cure"]
    found.has("etcd access", "failure")
    assert "docker.sh up" in found.has("Placement", "failure", "Connection refused")["cure"]
    found.has("hosts", "warning", "could not be looked at")


def test_services_that_hang_are_given_up(
    doctor: Doctor, etcd_server: EtcdServer, own_placement_server: PlacementServer
) -> None:
    etcd_server.freeze()
    own_placement_server.freeze()
    began = time.monotonic()
    found = doctor(etcd={"endpoints": [etcd_server.endpoint]}, placement={"url": own_placement_server.url})
    assert time.monotonic() - began < 15
    assert found.exit_code == 1
    found.has("etcd", "failure", "timed out")
    found.has("Placement", "failure", "no answer within")


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "schedule.yaml"
    file.write_text("etcd: {endpoint: http://127.0.0.1:2379}\n")
    command = [VENV_BIN / "eschedule", "--config", file, "doctor", "--json"]
    found = read(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))
    assert found.exit_code == 1
    found.has("configuration", "failure", "did you mean endpoints")


# -- etcd --------------------------------------------------------------------------------------------------------------------


def test_one_endpoint_of_two_that_is_down(doctor: Doctor, host: Host, etcd: EtcdServer) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    found = doctor(etcd={"endpoints": [etcd.endpoint, gone]})
    assert found.exit_code == 0
    found.has("etcd", "warning", gone)
    found.has("etcd", "OK", "1 of 2")


def test_an_etcd_without_room(doctor: Doctor, etcd_server: EtcdServer) -> None:
    with EtcdAdmin(etcd_server) as admin:
        admin.alarm_no_space(raised=True)
    found = doctor(etcd={"endpoints": [etcd_server.endpoint]})
    assert found.exit_code == 1
    assert "etcdctl alarm disarm" in found.has("etcd space", "failure", "NOSPACE")["cure"]
    found.has("etcd access", "failure", "database space exceeded")


def test_an_etcd_whose_quota_is_nearly_used_up(doctor: Doctor, tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "small", options=["--quota-backend-bytes", str(4 * 1024 * 1024)])
    server.start()
    try:
        with EtcdAdmin(server) as admin:
            for number in range(14):
                admin.put_bytes(b"/ballast/%d" % number, b"x" * 256 * 1024)
        found = doctor(etcd={"endpoints": [server.endpoint]})
        assert "etcdctl compact" in next(r for r in found.results if r["name"] == "etcd space" and r["level"] != "OK")["cure"]
    finally:
        server.kill()


def test_an_etcd_that_asks_who_we_are(doctor: Doctor, etcd_server: EtcdServer) -> None:
    with EtcdAdmin(etcd_server) as admin:
        admin.enable_auth("secret")
    found = doctor(etcd={"endpoints": [etcd_server.endpoint]})
    assert found.exit_code == 1
    assert "etcd.username" in found.has("etcd access", "failure", "user name is empty")["cure"]


def test_a_user_that_may_not_write_here_and_a_wrong_password(doctor: Doctor, etcd_server: EtcdServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    with EtcdAdmin(etcd_server) as admin:
        admin.add_user("client", "secret")
        admin.grant("client", "/elsewhere/")
        admin.enable_auth("root's own")
    as_client = {"endpoints": [etcd_server.endpoint], "username": "client", "password_file": str(password)}
    found = doctor(etcd=as_client)
    assert found.exit_code == 1
    found.has("etcd access", "failure", "permission denied", "readwrite on the prefix")
    password.write_text("another\n")
    found = doctor(etcd=as_client)
    found.has("etcd access", "failure", "authentication failed")
    assert "another" not in found.printed


def test_certificates_that_end_soon_and_a_client_without_them(doctor: Doctor, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "tls")  # good for two days
    server = EtcdServer(tmp_path / "secure", certificates=certificates)
    server.start()
    try:
        certificate, key = certificates.issue("client")
        key.chmod(0o600)
        files = {"ca_file": str(certificates.ca), "certificate_file": str(certificate), "key_file": str(key)}
        found = doctor(etcd={"endpoints": [server.endpoint], **files})
        found.has("etcd access", "OK")
        found.has("etcd certificates", "warning", f"the certificate of {server.endpoint}", "days")
        found.has("etcd certificates", "warning", "etcd.ca_file")
        found.has("etcd certificates", "warning", "etcd.certificate_file")
        found = doctor(etcd={"endpoints": [server.endpoint], "ca_file": str(certificates.ca)})
        assert found.exit_code == 1
        found.has("etcd", "failure", server.endpoint)
    finally:
        server.kill()


def test_a_slow_etcd(doctor: Doctor, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    passes_on, pause = tcp_proxy._Pair._pass_on, threading.Event()

    def slowly(self: Any, *sides: Any) -> bool:
        pause.wait(0.15)
        return passes_on(self, *sides)

    monkeypatch.setattr(tcp_proxy._Pair, "_pass_on", slowly)
    proxy = tcp_proxy.TcpProxy(etcd.client_port)
    try:
        found = doctor(etcd={"endpoints": [f"http://127.0.0.1:{proxy.port}"]})
        found.has("etcd access", "warning", "more than 500")
    finally:
        proxy.close()


# -- Placement and the clock -------------------------------------------------------------------------------------------------


def test_a_placement_that_is_none(doctor: Doctor, etcd: EtcdServer) -> None:
    found = doctor(placement={"url": etcd.endpoint})
    assert found.exit_code == 1
    assert "placement.url" in found.has("Placement", "failure", "no Placement")["cure"]


def test_a_placement_whose_database_takes_no_writes(doctor: Doctor, own_placement_server: PlacementServer) -> None:
    database = next((own_placement_server.directory / "data").rglob("*.db"))
    with sqlite3.connect(database) as connection:
        connection.execute("begin immediate")
        found = doctor(placement={"url": own_placement_server.url})
        connection.rollback()
    assert found.exit_code == 1
    assert "database" in found.has("Placement write", "failure")["cure"]
    found.has("Placement", "OK")


@pytest.mark.parametrize(("seconds", "said"), [(20, ("warning", "behind")), (-600, ("failure", "ahead of"))])
def test_a_clock_that_is_wrong(
    doctor: Doctor, shared_placement: PlacementServer, monkeypatch: pytest.MonkeyPatch, seconds: int, said: tuple[str, str]
) -> None:
    """As seen from here, the server's is."""

    def date(*_: object) -> str:
        return email.utils.formatdate(time.time() + seconds, usegmt=True)

    monkeypatch.setattr(faulty_proxy._Handler, "date_time_string", date)
    with faulty_proxy.faulty_proxy(shared_placement.port) as proxy:
        found = doctor(placement={"url": proxy.url})
        assert "set-ntp" in found.has("clock", *said, "Placement")["cure"]


# -- hosts -------------------------------------------------------------------------------------------------------------------


def test_a_prefix_that_no_host_has(doctor: Doctor) -> None:
    found = doctor(etcd={"prefix": unique_prefix()})
    assert found.exit_code == 1
    assert "etcd.prefix" in found.has("hosts", "failure", "no host has ever enrolled")["cure"]


def test_hosts_that_are_dead_degraded_switched_off_or_of_another_version(doctor: Doctor, host: Host) -> None:
    host.beat(state=HostState.DEGRADED, message="libvirt is away", versions={"etcd-compute": "0.0.9"})
    found = doctor()
    assert found.exit_code == 0
    found.has("hosts", "warning", host.name, "libvirt is away")
    found.has("versions", "warning", f"0.0.9: {host.name}")
    host.beat()
    host.disable()
    found = doctor()
    assert found.exit_code == 1
    found.has("hosts", "failure", "switched off")
    host.stop_beating()
    found = doctor()
    assert found.exit_code == 1
    found.has("hosts", "failure", "0 of 1 have a heartbeat")
    found.has("hosts", "warning", f"without a heartbeat: {host.name}")


def test_providers_without_a_host_and_hosts_without_a_provider(doctor: Doctor, host: Host) -> None:
    orphan = uuid4()
    generation = host.placement.ensure_provider(orphan, "long-gone").generation
    host.placement.put_traits(orphan, generation, [OWNER_TRAIT])
    try:
        assert str(orphan) in doctor().has("providers", "warning", "long-gone")["text"]
    finally:
        host.placement.delete_provider(orphan)
    host.placement.delete_provider(host.provider)
    found = doctor()
    assert found.exit_code == 1
    found.has("providers", "failure", host.name)


def test_what_a_doctor_that_was_cut_off_left_is_removed_by_fix(doctor: Doctor, host: Host) -> None:
    host.placement.ensure_provider(uuid4(), "etcd-compute-doctor-elsewhere")
    assert doctor().has("leftovers", "warning", "etcd-compute-doctor-elsewhere")["is_ours"]
    fixed = doctor("--fix")
    assert fixed.fixed == ("leftovers: deleted etcd-compute-doctor-elsewhere",)
    assert (fixed.exit_code, fixed.bad) == (0, [])


# -- the host, over libvirt's simulation --------------------------------------------------------------------------------------


def test_another_project_than_the_hosts(local_deployment: Deployment, tmp_path: Path) -> None:
    image = make_raw_image(tmp_path / "image.raw")
    local_deployment.eschedule("resources=VCPU:1,DISK_GB:1,MEMORY_MB:256", image, "--name", "web")
    assert json.loads(local_deployment.eschedule("doctor", "--json").stdout)["worst"] == "OK"
    config = yaml.safe_load(local_deployment.schedule_file.read_text())
    config["placement"]["project_id"] = str(uuid4())
    local_deployment.schedule_file.write_text(yaml.safe_dump(config))
    found = read(local_deployment.eschedule("doctor", "--json", check=False))
    assert found.exit_code == 1
    found.has("project", "failure", config["placement"]["project_id"])


def test_another_machine_that_runs_as_this_hosts_provider_or_under_its_name(local_deployment: Deployment) -> None:
    deployment = local_deployment
    found = examine(ThisMachine(), deployment.compute_file)
    assert found.exit_code == 0, found.bad
    found.has("driver", "warning", "simulation")
    found.has("second ecompute", "OK")
    deployment.stop_ecompute()
    keys = Keys(deployment.prefix)
    store = EtcdStore(EtcdConfig(endpoints=(f"http://127.0.0.1:{deployment.etcd_port}",), prefix=deployment.prefix))
    try:
        provider = keys.parse_host(next(key for key in deployment.etcd_keys() if "/owners/" in key))
        theirs = HostRecord("elsewhere", str(uuid4()), uuid4(), str(uuid4()), "qemu:///system")
        at = store.create(keys.host(provider), theirs.to_json())
        found = examine(ThisMachine(), deployment.compute_file)
        assert found.exit_code == 1
        found.has("second ecompute", "failure", "another machine, elsewhere")
        store.delete(keys.host(provider), seen=at)

        namesake = keys.host(UUID(int=7))
        store.create(namesake, HostRecord("testhost", str(uuid4()), uuid4(), "u", "qemu:///system").to_json())
        found = examine(ThisMachine(), deployment.compute_file)
        assert found.exit_code == 1
        found.has("second ecompute", "failure", "is called testhost, too")
    finally:
        store.close()


def test_a_host_with_everything_dead_says_so_in_time(tmp_path: Path) -> None:
    nowhere = free_port()
    (tmp_path / "compute.yaml").write_text("{}")
    config = changed_config(
        tmp_path / "compute.yaml", tmp_path / "dead.yaml",
        {
            "etcd": {"endpoints": [f"http://127.0.0.1:{nowhere}"]}, "placement": {"url": f"http://127.0.0.1:{nowhere}"},
            "libvirt": {"uri": f"qemu+unix:///system?socket={tmp_path}/none", "virt_type": "qemu"},
            "paths": {"state_dir": str(tmp_path / "state"), "run_dir": str(tmp_path / "run")},
        },
    )  # fmt: skip
    began = time.monotonic()
    found = examine(ThisMachine(), config)
    assert time.monotonic() - began < 15
    assert found.exit_code == 1
    for name in ("libvirt", "etcd", "Placement"):
        found.has(name, "failure")
    for name in ("network", "ecompute", "guests and folders"):
        found.has(name, "warning", "could not be looked at")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compute.yaml", "dead.yaml"], "nothing was made"


def test_a_command_line_that_is_none() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "ecompute.main", "doctor", "--fxi"], capture_output=True, text=True, timeout=30, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
