"""Deployments by ``docker.sh`` on a test's own engine, and what is done to them by docker and by podman alike."""

from __future__ import annotations

import stat
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.engines import Engine, load_images
from tests.support.hosts import HostNetwork, NamespacedHost
from tests.support.placement import client_for, make_provider
from tests.support.processes import ROOT, free_port, wait_until

STATE = "/var/lib/etcd-compute/demo"  # one of the folders that a test host has for itself


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    """*engine*, with the images that docker.sh names."""
    engine.start()
    try:
        load_images(engine)
        yield engine
    finally:
        engine.docker_sh("down", "--volumes", check=False)
        engine.stop()


class Site:
    """One deployment by docker.sh, on ports of its own."""

    def __init__(self, engine: Engine, address: str = "127.0.0.1", **settings: str) -> None:
        self.engine, self.address = engine, address
        self.etcd_port, self.placement_port = free_port(), free_port()
        self.settings = {
            "LISTEN_ADDRESS": address, "ETCD_PORT": str(self.etcd_port), "ETCD_PEER_PORT": str(free_port()),
            "PLACEMENT_PORT": str(self.placement_port), "DATABASE_PORT": str(free_port()), "PLACEMENT_WORKERS": "2", **settings,
        }  # fmt: skip
        self.etcd_url, self.placement_url = f"http://{address}:{self.etcd_port}", f"http://{address}:{self.placement_port}"

    def __call__(self, *arguments: str | Path, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        return self.engine.docker_sh(*arguments, check=check, **{**self.settings, **settings})

    def down(self, *arguments: str, check: bool = True) -> None:
        self("down", *arguments, check=check)

    def refusal(self, *arguments: str | Path, **settings: str) -> str:
        """The one line on standard error of what is refused."""
        answer = self(*arguments, check=False, **settings)
        assert answer.returncode != 0, answer.stdout
        (line,) = answer.stderr.strip().splitlines()
        return line

    def keys(self, prefix: str = "/etcd-compute/") -> dict[str, str]:
        return EtcdKeys(self.etcd_url).under(prefix)

    def allocations(self) -> dict[str, object]:
        found: dict[str, object] = {}
        headers = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39"}
        for provider in requests.get(f"{self.placement_url}/resource_providers", headers=headers, timeout=10).json()[
            "resource_providers"
        ]:
            url = f"{self.placement_url}/resource_providers/{provider['uuid']}/allocations"
            found |= requests.get(url, headers=headers, timeout=10).json()["allocations"]
        return found


class EtcdKeys:
    """etcd by its JSON gateway."""

    def __init__(self, url: str) -> None:
        self.url = url

    def under(self, prefix: str) -> dict[str, str]:
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        body = {"key": b64encode(prefix.encode()).decode(), "range_end": b64encode(end.encode()).decode()}
        found = requests.post(f"{self.url}/v3/kv/range", json=body, timeout=10).json().get("kvs", [])
        return {b64decode(pair["key"]).decode(): b64decode(pair.get("value", "")).decode() for pair in found}

    def put(self, key: str, value: str) -> None:
        body = {"key": b64encode(key.encode()).decode(), "value": b64encode(value.encode()).decode()}
        requests.post(f"{self.url}/v3/kv/put", json=body, timeout=10).raise_for_status()

    def cluster_id(self) -> str:
        return str(requests.post(f"{self.url}/v3/maintenance/status", json={}, timeout=10).json()["header"]["cluster_id"])


def demo(host: NamespacedHost, site: Site, *arguments: str) -> str:
    urls = [f"DEMO_ETCD_URL={site.etcd_url}", f"DEMO_PLACEMENT_URL={site.placement_url}"]
    command = ["env", f"DEMO_STATE_DIR={STATE}", *urls, ROOT / "demo.sh", *arguments]
    answer = host.run(command, timeout_seconds=300, check=False)
    assert answer.returncode == 0, f"demo.sh {arguments}: exit {answer.returncode}\n{answer.stdout}{answer.stderr}"
    return answer.stdout


def guest_processes(host: NamespacedHost) -> str:
    return host.run(["bash", "-c", "cd /run/libvirt/qemu && cat *.pid"]).stdout


def a_guest_lives_through_down_and_up(engine: Engine, host_network: HostNetwork, folder: Path) -> None:
    """The demo against docker.sh's services: its guest, spec and claim are known after ``down`` and ``up``, and go with the demo."""
    site = Site(engine, host_network.gateway)
    host = NamespacedHost(host_network, folder / "host")
    host.start()
    try:
        said = site().stdout  # alone it means up
        assert f"endpoints: [{site.etcd_url}]" in said
        assert f"url: {site.placement_url}" in said
        demo(host, site)
        guests, specs, claims = guest_processes(host), site.keys("/etcd-compute/v1/spec/"), site.allocations()
        assert len(specs) == len(claims) == 1
        assert guests

        site.down()
        assert "does not run" in site("status", check=False).stdout
        site("up")
        assert site("status").stdout.count(" answers\n") == 3
        assert (site.keys("/etcd-compute/v1/spec/"), site.allocations(), guest_processes(host)) == (specs, claims, guests)
        eschedule = [ROOT / ".venv/bin/eschedule", "--config", f"{STATE}/schedule.yaml"]

        def is_known() -> bool:
            hosts = host.run([*eschedule, "hosts"], check=False, timeout_seconds=60).stdout
            return "Ready" in hosts and "Running" in host.run([*eschedule, "show", "demo-1"], check=False).stdout

        wait_until(is_known, timeout_seconds=90, what="the host is Ready again and its guest Running")
        assert "demo-1" in demo(host, site, "status")
        demo(host, site, "down")
        assert site.keys("/etcd-compute/v1/spec/") == site.keys("/etcd-compute/v1/hosts/") == site.allocations() == {}
        site.down("--volumes")
        assert engine.run("volume", "ls", "-q").stdout.split() == []
    finally:
        host.kill()
        site.down("--volumes", check=False)


def a_backup_is_private_and_a_restore_checks_it_first(engine: Engine, database: str, folder: Path) -> None:
    """What was made after the backup is gone after the restore, what was deleted is back; nothing changes by a broken one."""
    site = Site(engine, DATABASE=database)
    try:
        backup = folder / "backup"
        site("up")
        etcd, provider = EtcdKeys(site.etcd_url), make_provider(client_for(site.placement_url))
        etcd.put("/etcd-compute/kept", "one")
        cluster = etcd.cluster_id()
        site("backup", backup)
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        assert "already" in site.refusal("backup", backup)
        etcd.put("/etcd-compute/kept", "two")
        client_for(site.placement_url).delete_provider(provider)

        assert "--replace" in site.refusal("restore", backup)
        content = bytearray(backup.read_bytes())
        content[content.index(b"one") + 1] ^= 1
        (folder / "broken").write_bytes(content)
        assert "checksums" in site.refusal("restore", folder / "broken", "--replace")
        (folder / "cut").write_bytes(backup.read_bytes()[:9000])
        assert "no whole backup" in site.refusal("restore", folder / "cut", "--replace")
        assert etcd.under("/etcd-compute/") == {"/etcd-compute/kept": "two"}

        site("restore", backup, "--replace")
        assert etcd.under("/etcd-compute/") == {"/etcd-compute/kept": "one"}
        assert etcd.cluster_id() != cluster, "hosts know by this that etcd's past is not theirs"
        assert client_for(site.placement_url).provider(provider) is not None
        assert sorted(file.name for file in folder.iterdir() if file.name.startswith(".")) == []
    finally:
        site.down("--volumes", check=False)
