"""From two bare machines to a cluster and back, by the documented commands only (docs/install.md): a host that joins by a token, one
that is added over ssh, a guest on each, and a host removed.

The control node is this machine, with etcd and Placement at an address that the hosts reach; the hosts are namespaces with a
libvirtd, folders and a network of their own each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.keys import DEFAULT_PREFIX
from tests.support.etcd import EtcdAdmin, EtcdServer
from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.placement import PlacementServer
from tests.support.processes import VENV_BIN, wait_until
from tests.support.ssh import SshServer

REQUEST = "resources=VCPU:1,MEMORY_MB:128,DISK_GB:1"
PATH = f"{VENV_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Site:
    """The control node: etcd, Placement, schedule.yaml; and bare hosts beside it."""

    def __init__(self, directory: Path, network: HostNetwork) -> None:
        self.directory, self.network = directory, network
        self.etcd = EtcdServer(directory / "etcd", address=network.gateway)
        self.placement = PlacementServer(directory / "placement", address=network.gateway)
        self.hosts: list[NamespacedHost] = []

    def start(self) -> None:
        self.etcd.start()
        self.placement.start()
        services = {"etcd": {"endpoints": [self.etcd.endpoint]}, "placement": {"url": self.placement.url}}
        (self.directory / "schedule.yaml").write_text(yaml.safe_dump(services))

    def bare_host(self) -> NamespacedHost:
        host = NamespacedHost(self.network, self.directory / f"host-{len(self.hosts)}")
        self.hosts.append(host)
        host.start()
        return host

    def stop(self) -> None:
        for host in self.hosts:
            host.kill()
        self.placement.kill()
        self.etcd.kill()

    # -- commands ----------------------------------------------------------------------------------------------------------

    def eschedule(
        self, *arguments: str | Path, code: int = 0, timeout_seconds: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """On the control node."""
        answer = subprocess.run(
            [VENV_BIN / "eschedule", *arguments], check=False, capture_output=True, text=True, timeout=timeout_seconds,
            cwd=self.directory, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(self.directory)},
        )  # fmt: skip
        assert answer.returncode == code, f"{arguments}: {answer.returncode}\n{answer.stdout}{answer.stderr}\n{self.evidence()}"
        return answer

    def on(self, host: NamespacedHost, *command: str, code: int = 0, given: str = "") -> subprocess.CompletedProcess[str]:
        """On *host*, by its operator."""
        answer = host.run(["env", f"PATH={PATH}", *command], check=False, text_input=given, timeout_seconds=180)
        assert answer.returncode == code, f"{command}: {answer.returncode}\n{answer.stdout}{answer.stderr}\n{self.evidence()}"
        return answer

    # -- what is there -----------------------------------------------------------------------------------------------------

    def ready(self) -> set[str]:
        rows = json.loads(self.eschedule("hosts", "--json").stdout)
        return {row["name"] for row in rows if row["state"] == "Ready"}

    def keys_of(self, provider: str) -> list[str]:
        """What etcd has of the host, but for what happened to it, which goes by itself."""
        store = EtcdStore(EtcdConfig(endpoints=(self.etcd.endpoint,)))
        try:
            return [
                item.key for item in store.list(DEFAULT_PREFIX).items if provider in item.key and "/_journal/" not in item.key
            ]
        finally:
            store.close()

    def providers(self) -> dict[str, str]:
        """uuid by name."""
        headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
        request = urllib.request.Request(f"{self.placement.url}/resource_providers", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return {provider["name"]: provider["uuid"] for provider in found["resource_providers"]}

    def evidence(self) -> str:
        logs = [host.path("/var/log/etcd-compute/ecompute.log") for host in self.hosts]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-5000:]}" for log in logs if log.exists())


@pytest.fixture
def site(host_network: HostNetwork, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, host_network)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def is_running(host: NamespacedHost) -> bool:
    return host.run(["pgrep", "-f", "ecompute.main"], check=False).returncode == 0


@pytest.mark.timeout(600)
def test_two_bare_machines_join_have_a_guest_each_and_one_is_removed(site: Site, tiny_image: Path) -> None:
    first, second = site.bare_host(), site.bare_host()
    for host in (first, second):  # as Debian installs libvirt
        host.run(["virsh", "net-destroy", "default"])
        host.run(["virsh", "net-autostart", "--disable", "default"])

    # By a token, on the host itself; repeating it changes nothing.
    token = site.eschedule("host", "token").stdout.strip()
    joined = site.on(first, "ecompute", "join", token)
    assert "fixed: network: started libvirt's network default" in joined.stderr
    assert "is Ready" in joined.stdout and "nothing starts it after a reboot" in joined.stderr
    again = site.on(first, "ecompute", "join", token)
    assert "just so" in again.stderr and "runs already" in again.stderr
    assert site.ready() == {first.name}

    # From the control node, over ssh.
    ssh = SshServer(second, site.directory / "ssh", path=PATH)
    ssh.start()
    options = [part for option in ssh.options for part in ("--ssh-option", option)]
    added = site.eschedule("host", "add", f"root@{second.address}", *options)
    assert "is Ready after" in added.stderr and "etcd" in added.stderr, added.stderr
    assert site.ready() == {first.name, second.name}
    assert is_running(second), "it outlives the ssh that started it"

    for host in (first, second):
        provider = site.providers()[host.name]
        site.eschedule("create", f"{REQUEST}&in_tree={provider}", tiny_image, "--name", f"on-{host.name}")
        assert json.loads(site.eschedule("show", f"on-{host.name}", "--json").stdout)["host"]["name"] == host.name

    # A host with a guest stays; without, nothing of it is left, and it stays out.
    provider = site.providers()[second.name]
    refused = site.eschedule("host", "remove", second.name, code=5)
    assert f"on-{second.name}" in refused.stderr
    assert site.ready() == {first.name, second.name}
    site.eschedule("destroy", f"on-{second.name}")
    removed = site.eschedule("host", "remove", second.name)
    assert f"{second.name} ({provider}) is removed" in removed.stderr and "warning" not in removed.stderr
    assert site.keys_of(provider) == []
    assert set(site.providers()) == {first.name}
    assert site.ready() == {first.name}
    wait_until(lambda: not is_running(second), timeout_seconds=20, what="its ecompute has ended", evidence=site.evidence)
    assert "169.254.169.254" not in second.run(["ip", "-4", "addr", "show", "virbr0"]).stdout
    stays_out = site.on(second, "ecompute", "--config", "/etc/etcd-compute/compute.yaml", code=5)
    assert "was removed from the cluster by" in stays_out.stderr and "ecompute join" in stays_out.stderr
    assert site.eschedule("host", "remove", second.name, code=1).stderr.count("\n") == 1

    # It comes back when it is asked to, as it is configured.
    site.on(second, "ecompute", "join")
    assert site.ready() == {first.name, second.name}
    assert site.providers()[second.name] == provider

    # The guest of the other one has not noticed.
    assert json.loads(site.eschedule("show", f"on-{first.name}", "--json").stdout)["status"]["phase"] == "Running"

    # A host that is dead is removed from here, its guest first.
    second.kill()
    site.eschedule("host", "remove", first.name, code=5)
    wait_until(
        lambda: site.ready() == {first.name}, timeout_seconds=60, what="the dead host's lease is over", evidence=site.evidence
    )
    dead = site.eschedule("host", "remove", provider)
    assert "systemctl disable" in dead.stderr
    assert site.keys_of(provider) == [] and set(site.providers()) == {first.name}
    site.eschedule("audit")


@pytest.mark.timeout(400)
def test_a_token_with_a_password_goes_by_standard_input_and_stays_with_root(site: Site) -> None:
    with EtcdAdmin(site.etcd) as admin:
        admin.add_user("hosts", "geheim-4711")
        admin.grant("hosts", DEFAULT_PREFIX)
        admin.enable_auth("of-root")
    password = site.directory / "password"
    password.write_text("geheim-4711")
    password.chmod(0o600)
    services = {
        "etcd": {"endpoints": [site.etcd.endpoint], "username": "hosts", "password_file": str(password)},
        "placement": {"url": site.placement.url},
    }
    (site.directory / "schedule.yaml").write_text(yaml.safe_dump(services))
    host = site.bare_host()
    answer = site.eschedule("host", "token")
    assert "never on a command line" in answer.stderr

    assert "a password" in site.on(host, "ecompute", "join", answer.stdout.strip(), code=2).stderr
    assert not host.path("/etc/etcd-compute/compute.yaml").exists()
    joined = site.on(host, "ecompute", "join", "-", given=answer.stdout)
    assert site.ready() == {host.name}
    kept = host.path("/etc/etcd-compute/etcd.password")
    assert kept.read_text() == "geheim-4711" and kept.stat().st_mode & 0o777 == 0o600
    shown = joined.stdout + joined.stderr + host.path("/etc/etcd-compute/compute.yaml").read_text() + site.evidence()
    assert "geheim" not in shown
    assert "geheim" not in host.run(["ps", "axww"]).stdout

    other = site.on(host, "ecompute", "join", "http://10.9.9.9:2379", "--placement", site.placement.url, code=5)
    assert "etcd.endpoints" in other.stderr and "--force" in other.stderr
    assert site.ready() == {host.name}


@pytest.mark.timeout(400)
def test_a_join_that_was_killed_goes_on_where_it_is_repeated(site: Site) -> None:
    host = site.bare_host()
    token = site.eschedule("host", "token").stdout.strip()
    for made in ("/etc/etcd-compute/compute.yaml", "/var/log/etcd-compute/ecompute.log"):
        process = host.spawn(["env", f"PATH={PATH}", "ecompute", "join", token], log=site.directory / "join.log")
        wait_until(host.path(made).exists, timeout_seconds=90, what=f"{made} is there", evidence=site.evidence)
        process.stop(with_signal=signal.SIGKILL)
    joined = site.on(host, "ecompute", "join", token)
    assert "just so" in joined.stderr
    assert site.ready() == {host.name}
    assert host.run(["pgrep", "-fc", "ecompute.main"]).stdout.strip() == "1"
