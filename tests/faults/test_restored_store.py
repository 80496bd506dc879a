"""etcd wiped or restored from a backup, Placement's database lost, all under guests: no guest is touched, everything is named.

Real etcd, Placement, libvirtd and QEMU. The guests have disks without an operating system: it is their processes that count.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.deployment import Deployment
from tests.support.processes import freeze, wait_until
from tests.support.small_guest import make_small_guest

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:64"
RESOURCES = {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 64}
DOMAIN = re.compile("(.*)-[0-9a-f]{8}")  # the name of an instance, in that of its domain
pytestmark = pytest.mark.timeout(400)

# What QEMU processes there are, by the names of their guests, with the moments that they began: a guest that was started again
# has another line.
PROCESSES = 'cd /run/libvirt/qemu; for f in *.pid; do [ -f "$f" ] && echo "${f%.pid} $(cat "$f") $(cut -d" " -f22 /proc/$(cat "$f")/stat)"; done; true'


class Site:
    """A deployment whose services lose their memory."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.image = make_small_guest(deployment.directory / "image.raw")
        self.data = deployment.directory / "etcd"
        self.backup = deployment.directory / "etcd-backup"

    def create(self, name: str, *options: str) -> UUID:
        return UUID(
            json.loads(self.deployment.eschedule(REQUEST, self.image, "--name", name, "--json", *options).stdout)["uuid"]
        )

    def guests(self) -> dict[str, str]:
        """The running guests: name → process and the moment of its start."""
        listed = self.deployment.machine.run(["bash", "-c", PROCESSES], timeout_seconds=30, check=True).stdout
        return {named[1]: line.partition(" ")[2] for line in listed.splitlines() if (named := DOMAIN.match(line.split()[0]))}

    def defined(self) -> set[str]:
        listed = self.deployment.machine.run(["virsh", "-q", "list", "--all", "--name"], timeout_seconds=30, check=True).stdout
        return {named[1] for name in listed.split() if (named := DOMAIN.fullmatch(name))}

    def disks(self) -> dict[str, float]:
        """Every disk and when it was last written to by its name: one that was made anew is another file."""
        found = self.deployment.machine.path(self.deployment.state_dir + "/instances").glob("*/disk.qcow2")
        return {path.parent.name: path.stat().st_ino for path in found}

    def seen(self) -> tuple[dict[str, str], set[str], dict[str, float]]:
        """Everything that no fault of a service may change."""
        return self.guests(), self.defined(), self.disks()

    def audit(self, *options: str) -> tuple[int, dict[str, Any]]:
        answer = self.deployment.eschedule("audit", "--json", *options, check=False)
        return answer.returncode, json.loads(answer.stdout or "{}")

    def named(self) -> dict[str, str]:
        """What an audit says, by the names of the instances."""
        code, report = self.audit()
        assert code == (1 if report["findings"] else 0), f"{report}\n{self.deployment.evidence()}"
        return {finding["name"]: finding["kind"] for finding in report["findings"]}

    def wait_named(self, expected: dict[str, str]) -> None:
        wait_until(
            lambda: self.is_up() and self.named() == expected, timeout_seconds=60, what=f"audit names {expected}",
            evidence=lambda: f"{self.audit()}\n{self.deployment.evidence()}",
        )  # fmt: skip

    def is_up(self) -> bool:
        """Whether the host is alive in what etcd says now."""
        answer = self.deployment.eschedule("hosts", "--json", check=False)
        return answer.returncode == 0 and any(host["state"] == "Ready" for host in json.loads(answer.stdout))

    def wipe_etcd(self) -> None:
        self.deployment.kill_etcd()
        shutil.rmtree(self.data)
        self.deployment.start_etcd()

    def back_up_etcd(self) -> None:
        self.deployment.kill_etcd()
        shutil.copytree(self.data, self.backup)
        self.deployment.start_etcd()
        wait_until(self.is_up, timeout_seconds=60, what="etcd serves again", evidence=self.deployment.evidence)

    def restore_etcd(self) -> None:
        self.deployment.kill_etcd()
        shutil.rmtree(self.data)
        shutil.copytree(self.backup, self.data)
        self.deployment.start_etcd()

    def lose_placement(self) -> None:
        self.deployment.kill_placement()
        for path in (self.deployment.directory / "placement").glob("placement.db*"):
            path.unlink()
        self.deployment.start_placement()

    def restart_ecompute(self) -> None:
        """As after a crash, so that it remembers nothing but what is in etcd and on the host."""
        self.deployment.kill_ecompute()
        self.deployment.start_ecompute()
        self.deployment.wait_ready()


@pytest.fixture
def site(host_deployment: Deployment) -> Site:
    return Site(host_deployment)


def test_etcd_is_wiped_under_running_guests(site: Site, tmp_path: Path) -> None:
    deployment = site.deployment
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\n{}\n")
    web, off = site.create("web", "--user-data", str(data), "--hostname", "www"), site.create("off")
    deployment.eschedule("stop", "off")
    before = deployment.show("web")
    seen = site.seen()
    assert seen[0].keys() == {"web"} and seen[1] == {"web", "off"}

    site.wipe_etcd()
    quarantined = {"web": "Quarantined", "off": "Quarantined"}
    site.wait_named(quarantined)
    site.restart_ecompute()
    site.wait_named(quarantined)
    code, report = site.audit("--fix")
    assert code == 1 and report["fixed"] == []
    assert site.seen() == seen, deployment.evidence()
    assert deployment.allocations().keys() == {str(web), str(off)}

    deployment.eschedule("adopt", "web")
    deployment.eschedule("adopt", "--all")
    after = deployment.show("web")
    for field in ("uuid", "name", "hostname", "user_data_base64", "resources", "image", "nics", "created_at"):
        assert after["spec"][field] == before["spec"][field], field
    assert after["status"]["addresses"] == before["status"]["addresses"]
    assert (deployment.phase("web"), deployment.phase("off")) == ("Running", "Stopped")
    assert site.seen() == seen, deployment.evidence()
    assert site.named() == {}

    deployment.eschedule("start", "off")
    assert site.guests().keys() == {"web", "off"} and site.guests()["web"] == seen[0]["web"]
    assert site.disks() == seen[2]
    deployment.eschedule("destroy", "web", "off")
    deployment.assert_nothing_is_left()


def destroyed_while_paused(site: Site, *names: str) -> None:
    """Ask for the end of instances while nobody serves them, and back etcd up at that moment; then let it happen."""
    assert site.deployment.ecompute is not None
    freeze(site.deployment.ecompute)
    site.deployment.eschedule("destroy", "--no-wait", *names)
    site.deployment.kill_etcd()
    shutil.copytree(site.data, site.backup)
    site.deployment.start_etcd()
    site.deployment.ecompute.send_signal(signal.SIGCONT)
    wait_until(
        lambda: not site.defined() & set(names), timeout_seconds=90, what=f"{names} are gone", evidence=site.deployment.evidence
    )
    wait_until(site.is_up, timeout_seconds=60, what="the host is up", evidence=site.deployment.evidence)


def test_etcd_is_restored_from_a_backup_in_which_instances_were_otherwise(site: Site) -> None:
    deployment = site.deployment
    again, doomed = uuid4(), uuid4()
    for name in ("same", "started", "shut", "halted", "gone"):
        site.create(name)
    site.create("again", "--uuid", str(again))
    site.create("doomed", "--uuid", str(doomed))
    deployment.eschedule("stop", "started", "shut")
    destroyed_while_paused(site, "again", "doomed")
    # Everything since is what the backup does not know.
    deployment.eschedule("start", "started", "shut")
    deployment.eschedule("stop", "halted", timeout_seconds=180)
    deployment.eschedule("destroy", "gone")
    site.create("again", "--uuid", str(again))
    site.create("doomed", "--uuid", str(doomed))
    site.create("new")
    seen = site.seen()
    assert seen[0].keys() == {"same", "started", "shut", "again", "doomed", "new"}

    site.restore_etcd()
    expected = {
        "started": "StoreRestored",
        "shut": "StoreRestored",
        "halted": "StoreRestored",
        "again": "StoreRestored",
        "doomed": "StoreRestored",
        "new": "Quarantined",
        "gone": "MissingAllocation",
    }
    site.wait_named(expected)
    assert site.seen() == seen, deployment.evidence()
    site.restart_ecompute()
    wait_until(lambda: site.named().keys() == expected.keys(), timeout_seconds=60, what="audit names them still")
    code, report = site.audit("--fix")
    assert code == 1 and report["fixed"] == [], report
    assert site.seen() == seen, deployment.evidence()

    undecided = deployment.eschedule("adopt", "started", check=False)
    assert undecided.returncode == 2
    assert "--spec" in undecided.stderr and "--domain" in undecided.stderr and "the guest is shut down" in undecided.stderr
    warned = deployment.eschedule("adopt", "doomed", check=False)
    assert warned.returncode == 2 and "destroyed, with its disk" in warned.stderr
    assert site.seen() == seen

    deployment.eschedule("adopt", "new")
    deployment.eschedule("adopt", "--domain", "started", "again")
    deployment.eschedule("adopt", "--spec", "halted")
    assert site.seen() == seen, deployment.evidence()
    phases = {name: deployment.phase(name) for name in ("same", "new", "started", "again", "halted")}
    assert phases == {"same": "Running", "new": "Running", "started": "Running", "again": "Running", "halted": "Stopped"}

    deployment.eschedule("adopt", "--spec", "shut", timeout_seconds=180)
    assert deployment.phase("shut") == "Stopped" and "shut" not in site.guests()
    deployment.eschedule("adopt", "--spec", "doomed")
    assert "doomed" not in site.defined()
    deployment.eschedule("destroy", "gone")
    wait_until(lambda: site.named() == {}, timeout_seconds=30, what="all agrees again", evidence=deployment.evidence)
    kept = ("same", "new", "started", "again")
    assert site.guests() == {name: seen[0][name] for name in kept}
    deployment.eschedule("start", "halted", "shut")
    assert site.guests().keys() == {*kept, "halted", "shut"}


def test_the_database_of_placement_is_lost_under_guests(site: Site) -> None:
    deployment = site.deployment
    web, off = site.create("web"), site.create("off")
    deployment.eschedule("stop", "off")
    seen = site.seen()

    site.lose_placement()
    assert deployment.allocations() == {}
    both = {str(web): RESOURCES, str(off): RESOURCES}
    wait_until(
        lambda: {uuid: held["resources"] for uuid, held in deployment.allocations().items()} == both, timeout_seconds=120,
        what="every claim is back", evidence=deployment.evidence,
    )  # fmt: skip
    providers = deployment.placement("/resource_providers")["resource_providers"]
    inventories = deployment.placement(f"/resource_providers/{providers[0]['uuid']}/inventories")["inventories"]
    assert inventories.keys() >= RESOURCES.keys()
    assert site.named() == {}
    assert site.seen() == seen
    deployment.eschedule("destroy", "web", "off")
    deployment.assert_nothing_is_left()


def test_etcd_and_placement_are_both_lost_and_adoption_claims_again(site: Site) -> None:
    deployment = site.deployment
    web = site.create("web")
    seen = site.seen()
    site.wipe_etcd()
    site.lose_placement()
    site.wait_named({"web": "Quarantined"})
    assert site.seen() == seen
    deployment.eschedule("adopt", "web")
    wait_until(
        lambda: {uuid: held["resources"] for uuid, held in deployment.allocations().items()} == {str(web): RESOURCES},
        timeout_seconds=90, what="the claim is back", evidence=deployment.evidence,
    )  # fmt: skip
    wait_until(lambda: site.named() == {}, timeout_seconds=30, what="all agrees", evidence=deployment.evidence)
    assert site.seen() == seen
