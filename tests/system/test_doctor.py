"""``ecompute doctor`` on a real host: all is well at first, then one thing after another is broken, seen, and put right."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ecompute.libvirt_xml import STAMP_NAMESPACE
from tests.support.deployment import Deployment, deployment_inside, make_raw_image
from tests.support.doctor import Examination, changed_config, examine
from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.processes import VENV_BIN, wait_until

Doctor = Callable[..., Examination]


@pytest.fixture(scope="module")
def host(host_network: HostNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamespacedHost]:
    """A host of its own, since much of it is broken here."""
    host = NamespacedHost(host_network, tmp_path_factory.mktemp("doctor-host"))
    host.start()
    yield host
    host.stop()


@pytest.fixture(scope="module")
def deployment(appliance_kernel: None, host: NamespacedHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment_inside(host, tmp_path_factory.mktemp("doctor")) as deployment:
        yield deployment


@pytest.fixture
def doctor(deployment: Deployment, tmp_path: Path) -> Doctor:
    """Run it, with sections of compute.yaml changed."""

    def run(*arguments: str, before: tuple[str | Path, ...] = (), **changes: Any) -> Examination:
        config = changed_config(deployment.compute_file, tmp_path / "compute.yaml", changes)
        return examine(deployment.machine, config, *arguments, before=before)

    return run


@pytest.fixture
def without_ecompute(deployment: Deployment) -> None:
    """Its ecompute does not run, whichever test was before."""
    if deployment.ecompute is not None and deployment.ecompute.poll() is None:
        deployment.stop_ecompute()


def names(results: list[dict[str, Any]]) -> set[str]:
    """The lines that *results* are of; that ecompute does not run is a warning of its own."""
    return {result["name"] for result in results}


@contextlib.contextmanager
def broken(host: NamespacedHost, command: str, mended: str) -> Iterator[None]:
    """*command* of the shell has been run inside; *mended* is run in the end."""
    host.run(["bash", "-ec", command])
    try:
        yield
    finally:
        host.run(["bash", "-c", mended])


def test_a_healthy_host_is_all_ok_and_nothing_of_it_is_changed(deployment: Deployment, doctor: Doctor) -> None:
    def state() -> tuple[Any, ...]:
        providers = deployment.placement("/resource_providers")["resource_providers"]
        keys = {key: value for key, value in deployment.etcd_keys().items() if "/mail" not in key}
        return keys, providers, sorted(str(path) for path in deployment.machine.path(deployment.state_dir).rglob("*"))

    deployment.wait_ready()
    before = state()
    found = doctor()
    assert found.bad == []
    assert found.exit_code == 0
    assert state() == before
    found.has("ecompute", "OK", "runs (process", "Ready")
    found.has("metadata service", "OK", "169.254.169.254")

    answer = deployment.machine.run(
        [VENV_BIN / "ecompute", "--config", deployment.compute_file, "doctor"], timeout_seconds=60, check=True
    )
    lines = answer.stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} OK, 0 warnings, 0 failures"
    assert all(line.startswith("OK       ") for line in lines[:-1])


def test_where_ecompute_does_not_run_that_is_all_there_is_to_say(doctor: Doctor, without_ecompute: None) -> None:
    found = doctor()
    cure = found.has("ecompute", "warning", "does not run: this host takes no guests")["cure"]
    assert cure.endswith("compute.yaml join"), "no unit has this configuration"
    assert len(found.bad) == 1, found.bad
    assert found.exit_code == 0


# -- the network -------------------------------------------------------------------------------------------------------------


def test_a_network_that_is_down_is_started_by_fix(host: NamespacedHost, doctor: Doctor) -> None:
    down = "virsh -q net-destroy default; virsh -q net-autostart --disable default"
    with broken(host, down, "virsh -q net-start default; virsh -q net-autostart default"):
        found = doctor()
        assert found.exit_code == 1
        assert found.has("network", "failure", "default is down")["is_ours"]
        assert "default" not in host.run(["virsh", "-q", "net-list", "--name"]).stdout, "it was only looked at"
        fixed = doctor("--fix")
        assert any("started libvirt's network default" in line for line in fixed.fixed)
        assert "default" in host.run(["virsh", "-q", "net-list", "--name", "--autostart"]).stdout
        wait_until(lambda: names(doctor().bad) <= {"ecompute"}, timeout_seconds=30, what="md-server has its address again")


def test_a_network_that_does_not_start_with_the_host(host: NamespacedHost, doctor: Doctor) -> None:
    with broken(host, "virsh -q net-autostart --disable default", "virsh -q net-autostart default"):
        found = doctor()
        assert found.exit_code == 0
        assert found.has("network", "warning", "does not start the network default")["is_ours"]
        assert names(doctor("--fix").bad) <= {"ecompute"}


def test_a_network_or_a_bridge_that_is_not_there(doctor: Doctor) -> None:
    found = doctor(network={"name": "lan", "bridge": "br77"})
    assert found.exit_code == 1
    found.has("network", "failure", "no network lan")
    found.has("bridge", "failure", "no bridge br77")


def test_a_metadata_address_that_is_elsewhere(host: NamespacedHost, doctor: Doctor) -> None:
    add = "ip link add other type bridge; ip link set other up; ip address add 169.254.169.254/32 dev other"
    with broken(host, add, "ip link del other"):
        found = doctor()
        assert found.exit_code == 1
        trouble = found.has("metadata address", "failure", "169.254.169.254 is on other")
        assert "ip address del" in trouble["cure"] and not trouble["is_ours"]
        assert doctor("--fix").exit_code == 1
        assert "169.254.169.254" in host.run(["ip", "address", "show", "other"]).stdout, "it is not ours to take off"


def test_a_stale_metadata_address_on_a_bridge_of_libvirts_is_taken_off(host: NamespacedHost, doctor: Doctor) -> None:
    host.run(["ip", "address", "add", "169.254.169.250/32", "dev", "virbr0"])
    changes = {"metadata": {"address": "169.254.169.250", "mode": "off"}, "paths": {"run_dir": "/run/etcd-compute/none"}}
    assert doctor(**changes).has("metadata address", "warning", "169.254.169.250 is still on virbr0")["is_ours"]
    fixed = doctor("--fix", **changes)
    assert fixed.fixed == ("metadata address: took 169.254.169.250 off virbr0",)
    assert "169.254.169.250" not in host.run(["ip", "address", "show", "virbr0"]).stdout


def test_a_metadata_port_that_somebody_else_has(host: NamespacedHost, doctor: Doctor, tmp_path: Path) -> None:
    serve = "import socket, time; s = socket.create_server(('0.0.0.0', 8099)); time.sleep(600)"
    server = host.spawn(["python3", "-c", serve], log=tmp_path / "server.log")
    try:
        listening = ["bash", "-c", "ss -lnt | grep -q :8099"]
        wait_until(lambda: host.run(listening, check=False).returncode == 0, timeout_seconds=10, what="the port is taken")
        found = doctor(metadata={"port": 8099})
        assert found.exit_code == 1
        found.has("metadata address", "failure", "another server listens at port 8099")
    finally:
        server.stop(with_signal=signal.SIGKILL)


def test_a_host_that_forwards_nothing(host: NamespacedHost, doctor: Doctor) -> None:
    with broken(host, "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"):
        found = doctor()
        assert found.exit_code == 1
        assert "sysctl" in found.has("forwarding", "failure", "forwards no packets")["cure"]


def test_a_bridge_that_drops_what_comes_another_way(host: NamespacedHost, doctor: Doctor) -> None:
    make = "ip link add br5 type bridge; ip link set br5 up; sysctl -qw net.ipv4.conf.br5.rp_filter=1"
    with broken(host, make, "ip link del br5"):
        found = doctor(metadata={"bridge": "br5"})
        assert found.exit_code == 1
        found.has("forwarding", "failure", "br5", "rp_filter")


def test_a_firewalld_that_keeps_guests_from_their_metadata(host: NamespacedHost, doctor: Doctor, tmp_path: Path) -> None:
    program = tmp_path / "firewalld"
    program.symlink_to("/bin/sleep")
    process = host.spawn([program, "600"], log=tmp_path / "firewalld.log")
    try:
        found = doctor()
        assert found.exit_code == 1
        assert "firewall-cmd" in found.has("firewall", "failure", "firewalld runs")["cure"]
    finally:
        process.stop(with_signal=signal.SIGKILL)


def test_a_missing_spoofing_filter(doctor: Doctor) -> None:
    found = doctor(network={"filter": "no-such-filter"})
    assert found.exit_code == 0
    found.has("spoofing filter", "warning", "has not the filter")


def test_a_port_that_any_connection_may_take(doctor: Doctor) -> None:
    found = doctor(metrics={"listen": "127.0.0.1:40000"})
    assert found.exit_code == 0
    found.has("ports", "warning", "metrics.listen (40000)")


# -- libvirt and QEMU --------------------------------------------------------------------------------------------------------


def test_a_libvirtd_that_is_down(host: NamespacedHost, doctor: Doctor) -> None:
    host.stop_libvirtd()
    try:
        began = time.monotonic()
        found = doctor()
        assert time.monotonic() - began < 15
        assert found.exit_code == 1
        assert "systemctl start libvirtd" in found.has("libvirt", "failure", "is libvirtd running")["cure"]
        found.has("network", "warning", "could not be looked at")
        found.has("etcd", "OK")
    finally:
        host.start_libvirtd()


def test_a_libvirtd_that_hangs(host: NamespacedHost, doctor: Doctor) -> None:
    host.libvirtd.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = doctor()
        assert time.monotonic() - began < 20
        assert found.exit_code == 1
        found.has("libvirt", "failure", "did not answer within")
    finally:
        host.libvirtd.send_signal(signal.SIGCONT)


def test_bindings_that_are_missing(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text("raise ImportError('libvirt.so.0: cannot open shared object file')\n")
    found = doctor(before=("env", f"PYTHONPATH={tmp_path}"))
    assert found.exit_code == 1
    assert "python3-libvirt" in found.has("libvirt", "failure", "libvirt.so.0")["cure"]
    found.has("Placement write", "OK")


def test_a_machine_type_that_qemu_has_not(doctor: Doctor) -> None:
    found = doctor(libvirt={"machine_type": "pc-i440fx-99.0"})
    assert found.exit_code == 1
    assert "pc-i440fx-" in found.has("machine types", "failure", "pc-i440fx-99.0")["cure"]


def test_a_program_that_is_not_installed(host: NamespacedHost, doctor: Doctor) -> None:
    with broken(host, "mount --bind /dev/null /usr/sbin/dnsmasq", "umount /usr/sbin/dnsmasq"):
        found = doctor()
        assert found.exit_code == 1
        cure = found.has("programs", "failure", "missing: dnsmasq")["cure"]
        assert cure == "apt-get install --no-install-recommends dnsmasq-base"


def test_a_kvm_that_does_not_work_fails_where_it_is_wanted_and_is_a_warning_where_it_need_not_be(
    host: NamespacedHost, doctor: Doctor, without_ecompute: None
) -> None:
    run_dir = {"paths": {"run_dir": f"/run/etcd-compute/{os.urandom(4).hex()}"}}
    with broken(host, "touch /run/no-kvm; mount --bind /run/no-kvm /dev/kvm", "umount /dev/kvm"):
        found = doctor(libvirt={"virt_type": "kvm"}, paths={**run_dir["paths"], "state_dir": "/var/lib/etcd-compute/k"})
        assert found.exit_code == 1
        found.has("kvm", "failure", "nothing proves that guests would run")
        found = doctor(libvirt={"virt_type": "auto"}, paths={**run_dir["paths"], "state_dir": "/var/lib/etcd-compute/k"})
        assert found.exit_code == 0
        found.has("kvm", "warning", "emulated")


def test_a_kvm_that_qemus_user_may_not_open(host: NamespacedHost, doctor: Doctor) -> None:
    make = "mknod /run/shut-kvm c 10 232; chmod 0600 /run/shut-kvm; mount --bind /run/shut-kvm /dev/kvm"
    with broken(host, make, "umount /dev/kvm"):
        found = doctor()
        assert found.exit_code == 0
        assert "chgrp kvm" in found.has("kvm access", "warning", "libvirt-qemu")["cure"]


def test_another_figure_of_memory_at_libvirt_and_none_left(host: NamespacedHost, doctor: Doctor, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       900000000 kB\nMemFree:  1000 kB\nMemAvailable:       1000 kB\n")
    inside = ("unshare", "--mount", "sh", "-c", f'mount --bind {meminfo} /proc/meminfo && exec "$@"', "sh")
    found = doctor(before=inside)
    assert found.exit_code == 1
    found.has("memory of libvirt", "failure", "the kernel 878906")
    found.has("memory", "warning", "next to nothing")


def test_an_empty_machine_id(host: NamespacedHost, doctor: Doctor) -> None:
    with broken(host, "mount --bind /dev/null /etc/machine-id", "umount /etc/machine-id"):
        found = doctor()
        found.has("machine id", "warning", "/etc/machine-id")


# -- the disk ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(host: NamespacedHost, deployment: Deployment) -> Iterator[dict[str, str]]:
    """The section ``paths`` with a state directory that is a file system of 64 MiB."""
    state = f"/var/lib/etcd-compute/{os.urandom(4).hex()}"
    with broken(host, f"mkdir {state} && mount -t tmpfs -o size=64m tmpfs {state}", f"umount {state}; rmdir {state}"):
        yield {"state_dir": state, "run_dir": deployment.run_dir}


def test_a_disk_without_room(doctor: Doctor, small_disk: dict[str, str]) -> None:
    found = doctor(paths=small_disk)
    assert found.exit_code == 1
    found.has("disk space", "failure", "0.1 of 0.1 GiB free")


def test_a_disk_that_cannot_be_written(host: NamespacedHost, doctor: Doctor, small_disk: dict[str, str]) -> None:
    host.run(["mount", "-o", "remount,ro", small_disk["state_dir"]])
    found = doctor(paths=small_disk)
    assert found.exit_code == 1
    found.has("state directory", "failure", "may not write there")
    found.has("disk speed", "failure", "Read-only file system")


def test_a_disk_that_is_slow(doctor: Doctor) -> None:
    slowed = ("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_exit=600000")
    found = doctor(before=slowed)
    assert found.exit_code == 0
    found.has("disk speed", "warning", "slow:")


def test_a_state_directory_that_all_may_write_to_or_none_pass(
    host: NamespacedHost, doctor: Doctor, small_disk: dict[str, str]
) -> None:
    host.run(["chmod", "0777", small_disk["state_dir"]])
    found = doctor(paths=small_disk)
    assert found.exit_code == 1
    found.has("state directory", "failure", "0777")
    host.run(["chmod", "0700", small_disk["state_dir"]])
    doctor(paths=small_disk).has("state directory", "warning", "may not pass", "0700")


# -- services and names ------------------------------------------------------------------------------------------------------


def test_a_host_that_does_not_know_its_own_name(host: NamespacedHost, doctor: Doctor) -> None:
    lose = "hostname no-such-name; mount --bind /dev/null /etc/resolv.conf"  # else the resolver of tests never answers
    with broken(host, lose, f"hostname {host.name}; umount /etc/resolv.conf"):
        found = doctor()
        assert found.exit_code == 0, found.bad
        assert "/etc/hosts" in found.has("names", "warning", "no-such-name")["cure"]


def test_an_etcd_or_a_placement_of_a_name_that_nobody_has(doctor: Doctor) -> None:
    found = doctor(etcd={"endpoints": ["http://etcd.invalid:2379"]}, placement={"url": "http://placement.invalid:8778"})
    assert found.exit_code == 1
    found.has("names", "failure", "etcd.invalid")
    found.has("names", "failure", "placement.invalid")
    found.has("Placement", "failure")
    found.has("etcd", "failure", "etcd.invalid")


# -- what was left, and who else is there ------------------------------------------------------------------------------------


def test_half_made_files_of_the_dead_are_removed_by_fix_and_those_of_the_living_are_not(
    host: NamespacedHost, deployment: Deployment, doctor: Doctor
) -> None:
    images = deployment.machine.path(deployment.state_dir) / "images"
    dead, young, alive = (images / f"fetch.{pid}-0.partial" for pid in ("3999999", "3999998", "1"))
    for path in (dead, young, alive):
        path.write_text("half")
    for path in (dead, alive):
        os.utime(path, (time.time() - 3600,) * 2)
    try:
        found = doctor()
        assert found.exit_code == 0
        assert found.has("half-made files", "warning", "1 whose writers are dead", dead.name)["is_ours"]
        fixed = doctor("--fix")
        assert names(fixed.bad) <= {"ecompute"}
        assert fixed.fixed == ("half-made files: removed 1 half-made files",)
        assert (dead.exists(), young.exists(), alive.exists()) == (False, True, True)
    finally:
        for path in (young, alive):
            path.unlink(missing_ok=True)


def test_a_folder_and_a_guest_of_no_instance(host: NamespacedHost, deployment: Deployment, doctor: Doctor) -> None:
    folder, guest = deployment.machine.path(deployment.state_dir) / "instances" / str(uuid4()), str(uuid4())
    folder.mkdir()
    provider = next(key for key in deployment.etcd_keys() if "/owners/" in key).rpartition("/")[2]
    define = deployment.directory / "domain.xml"
    define.write_text(domain_of(provider, guest))
    with broken(host, f"virsh -q define {define}", f"virsh -q undefine {guest}; rmdir {folder}"):
        found = doctor()
        assert "adopt" in found.has("guests and folders", "warning", "lost-one")["cure"]
        assert "audit --fix" in found.has("guests and folders", "warning", folder.name)["cure"]


def domain_of(provider: str, uuid: str) -> str:
    """A guest that carries our mark, as libvirt would define it."""
    stamp = f"<e:stamp xmlns:e='{STAMP_NAMESPACE}' provider='{provider}' cluster-id='1' spec-revision='1'/>"
    return (
        f"<domain type='qemu'><name>lost-one</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
        f"<metadata>{stamp}</metadata><os><type arch='x86_64'>hvm</type></os></domain>"
    )


def test_the_heartbeat_of_an_ecompute_that_was_killed(deployment: Deployment, doctor: Doctor) -> None:
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.kill_ecompute()
    found = doctor()
    assert found.exit_code == 0
    found.has("second ecompute", "warning", "still has the heartbeat")


def test_a_lock_of_a_provider_that_this_host_once_was(deployment: Deployment, doctor: Doctor) -> None:
    left = deployment.machine.path(deployment.run_dir) / f"{uuid4()}.lock"
    left.write_text('{"program": "ecompute", "pid": 3999999}')
    assert doctor().has("locks", "warning", left.name)["is_ours"]
    fixed = doctor("--fix")
    assert f"locks: removed {left.name}" in fixed.fixed
    assert not left.exists()
    fixed.has("locks", "OK")


def test_a_second_ecompute_and_one_with_another_run_directory(
    host: NamespacedHost, deployment: Deployment, doctor: Doctor, tmp_path: Path
) -> None:
    other = {"run_dir": f"/run/etcd-compute/{os.urandom(4).hex()}", "state_dir": f"/var/lib/etcd-compute/{os.urandom(4).hex()}"}
    config = changed_config(
        deployment.compute_file, tmp_path / "second.yaml",
        {"uuid": str(uuid4()), "name": "second", "paths": other, "metadata": {"mode": "off"}, "metrics": {"listen": None}},
    )  # fmt: skip
    second = host.spawn([VENV_BIN / "ecompute", "--config", config], log=tmp_path / "second.log")
    try:
        wait_until(
            lambda: hosts_named(deployment, "second"),
            timeout_seconds=40, what="the second one is there", evidence=(tmp_path / "second.log").read_text,
        )  # fmt: skip
        found = doctor()
        assert found.exit_code == 1
        found.has("second ecompute", "failure", "another ecompute of this machine serves")
        found = doctor(uuid=next(iter(hosts_named(deployment, "second"))), name="second")
        found.has("second ecompute", "failure", "with another paths.run_dir")
    finally:
        second.stop()


def hosts_named(deployment: Deployment, name: str) -> list[str]:
    """The providers of the hosts with a heartbeat of that name."""
    hosts = {key: json.loads(value) for key, value in deployment.etcd_keys().items() if "/hosts/" in key}
    return [key.rpartition("/")[2] for key, record in hosts.items() if record["name"] == name]


def test_a_metadata_service_that_hangs(host: NamespacedHost, deployment: Deployment, doctor: Doctor) -> None:
    deployment.start_ecompute()
    deployment.wait_ready()
    wait_until(lambda: doctor().exit_code == 0, timeout_seconds=30, what="all is well")
    try:
        with broken(host, "pkill -STOP -f md_server.main", "pkill -CONT -f md_server.main"):
            found = doctor()
            assert found.exit_code == 1
            found.has("metadata service", "failure", "md-server does not answer")
    finally:
        deployment.stop_ecompute()


def test_rules_of_libvirts_that_somebody_flushed(
    host: NamespacedHost, deployment: Deployment, doctor: Doctor, tmp_path: Path
) -> None:
    deployment.start_ecompute()
    deployment.wait_ready()
    deployment.eschedule("resources=VCPU:1,DISK_GB:1,MEMORY_MB:64", make_raw_image(tmp_path / "image.raw"), "--name", "web")
    deployment.stop_ecompute()  # which would have the filter made again
    try:
        found = doctor()
        assert found.exit_code == 0, found.bad
        found.has("guests and folders", "OK", "1 instances")
        host.run(["nft", "flush", "ruleset"])
        found = doctor()
        assert found.exit_code == 1
        assert "restart libvirtd" in found.has("spoofing filter", "failure", "can speak as others")["cure"]
        found.has("firewall", "failure", "reach nobody beyond this host")
        host.stop_libvirtd()  # its cure
        host.start_libvirtd()
        wait_until(lambda: doctor().exit_code == 0, timeout_seconds=30, what="libvirt's rules are there again")
    finally:
        deployment.start_ecompute()
        deployment.wait_ready()
        deployment.eschedule("destroy", "web")
        deployment.stop_ecompute()


def test_a_configuration_that_is_wrong_is_said_and_the_machine_is_looked_at_all_the_same(doctor: Doctor) -> None:
    found = doctor(network={"nam": "lan"}, builder={"workers": 0})
    assert found.exit_code == 1
    found.has("configuration", "failure", "did you mean name")
    found.has("configuration", "failure", "builder.workers")
    found.has("services", "failure", "not looked at")
    found.has("programs", "OK")
