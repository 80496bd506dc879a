"""``eschedule audit`` against the real programs: every kind of difference is made by hand, named, and cured or left to people."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml

from common.config import EtcdConfig
from common.etcd_store import EtcdStore
from common.findings import Letter
from common.keys import Keys
from common.model import GroupMembers, GroupPolicy, InstanceKey
from common.placement import Placement
from common.placement_types import Claim
from common.store import Transaction
from tests.support.deployment import Deployment, make_raw_image
from tests.support.placement import client_for
from tests.support.processes import freeze, wait_until

REQUEST = "resources=VCPU:1,DISK_GB:1,MEMORY_MB:256"
RESOURCES = {"VCPU": 1, "DISK_GB": 1, "MEMORY_MB": 256}


class Site:
    """A deployment, and hands to damage it with."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.keys = Keys(deployment.prefix)
        self.store = EtcdStore(EtcdConfig(endpoints=(f"http://127.0.0.1:{deployment.etcd_port}",)))
        self.placement: Placement = client_for(
            f"http://127.0.0.1:{deployment.placement_port}", etcd_prefix=deployment.prefix
        )  # fmt: skip
        self.image = make_raw_image(deployment.directory / "image.raw")
        self.provider = self.keys.parse_host(self.store.list(self.keys.hosts()).items[0].key)
        self.state = Path(deployment.state_dir)

    def create(self, name: str, *options: str) -> UUID:
        return UUID(
            json.loads(self.deployment.eschedule(REQUEST, self.image, "--name", name, "--json", *options).stdout)["uuid"]
        )

    def audit(self, *options: str, exit_code: int | None = None) -> dict[str, Any]:
        answer = self.run(*options, "--json")
        if exit_code is not None:
            assert answer.returncode == exit_code, f"{answer.stdout}{answer.stderr}\n{self.deployment.evidence()}"
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.deployment.eschedule("audit", *options, check=False)

    def put(self, key: str, value: str) -> None:
        self.store.commit(Transaction(puts={key: value}))

    def delete(self, *keys: str) -> None:
        self.store.commit(Transaction(deletes=keys))

    def close(self) -> None:
        self.store.close()
        self.placement.close()


@pytest.fixture
def site(local_deployment: Deployment) -> Iterator[Site]:
    made = Site(local_deployment)
    yield made
    made.close()


def kinds(report: Mapping[str, Any]) -> list[str]:
    return sorted(finding["kind"] for finding in report["findings"])


def test_a_healthy_deployment_agrees_also_while_instances_come_and_go(site: Site) -> None:
    site.create("steady")
    site.deployment.eschedule("create", REQUEST, site.image, "--name", "off")
    site.deployment.eschedule("stop", "off")
    lost = site.deployment.eschedule(REQUEST, site.deployment.directory / "no-image", "--name", "failed", check=False)
    assert lost.returncode == 1
    report = site.audit(exit_code=0)
    assert report == {
        "is_clean": True, "hosts": 1, "instances": 3, "findings": [], "unanswered": [], "problems": [], "fixed": []
    }  # fmt: skip
    assert site.run().stdout == "all agrees; 1 host and 3 instances were looked at\n"

    failures: list[str] = []
    rounds = threading.Semaphore(0)
    stop = threading.Event()

    def churn(number: int) -> None:
        try:
            while not stop.is_set():
                site.deployment.eschedule(REQUEST, site.image, "--name", f"churn-{number}")
                site.deployment.eschedule("destroy", f"churn-{number}")
                rounds.release()
        except AssertionError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert rounds.acquire(timeout=60), "nothing came and went"
            report = site.audit()
            assert report["findings"] == [] and report["is_clean"], f"{report}\n{site.deployment.evidence()}"
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    assert failures == []
    site.audit(exit_code=0)


def test_stray_keys_are_named_and_deleted(site: Site) -> None:
    web, nobody = site.create("web", "--group", "g"), uuid4()
    keys, group = site.keys, GroupMembers(GroupPolicy.ANTI_AFFINITY, (nobody,)).to_json()
    before = site.deployment.etcd_keys()
    site.put(keys.name("stray"), str(nobody))
    site.put(keys.name("alias"), str(web))
    site.put(keys.status(site.provider, nobody), '{"schema":1,"phase":"Running"}')
    site.put(keys.group("old", site.provider), group)
    site.put(keys.group_anchor("older"), str(site.provider))
    report = site.audit(exit_code=1)
    assert kinds(report) == [
        "AnchorWithoutMembers", "MemberWithoutInstance", "NameWithoutInstance", "NameWithoutInstance", "StatusWithoutSpec"
    ]  # fmt: skip
    assert all(finding["is_fixable"] and finding["cause"] and finding["cure"] for finding in report["findings"])
    fixed = site.audit("--fix", exit_code=0)
    assert len(fixed["fixed"]) == 5
    assert site.deployment.etcd_keys() == before


def test_missing_keys_of_a_living_instance_are_written_again(site: Site) -> None:
    web = site.create("web")
    before = site.deployment.etcd_keys()
    site.delete(site.keys.name("web"))
    assert kinds(site.audit(exit_code=1)) == ["InstanceWithoutName"]
    site.audit("--fix", exit_code=0)
    site.delete(site.keys.instance(web))
    assert kinds(site.audit(exit_code=1)) == ["NameWithoutInstance", "SpecWithoutInstance"]
    site.audit("--fix")
    site.audit("--fix", exit_code=0)
    after = site.deployment.etcd_keys()
    assert after == before
    assert site.deployment.phase("web") == "Running"


def test_what_people_have_to_look_at_is_named_and_left_alone(site: Site) -> None:
    web, keys = site.create("web"), site.keys
    known = InstanceKey.from_json(site.deployment.etcd_keys()[keys.instance(web)])
    elsewhere = uuid4()
    site.put(keys.spec(elsewhere, web), site.deployment.etcd_keys()[keys.spec(site.provider, web)])
    site.put(keys.prefix + "what/is/this", "x")
    site.put(keys.instance(uuid4()), "no json")
    damaged = site.deployment.etcd_keys()
    report = site.audit(exit_code=4)  # the host that the second spec is for was never seen
    assert kinds(report) == ["DuplicateSpec", "DuplicateSpec", "HostDead", "UnreadableKey", "UnreadableKey"]
    assert not any(finding["is_fixable"] for finding in report["findings"])
    site.audit("--fix", exit_code=4)
    assert site.deployment.etcd_keys() == damaged
    assert known.provider == site.provider
    assert site.deployment.eschedule("list").stdout.count("Running") >= 1


def test_a_guest_whose_spec_was_deleted_is_quarantined_and_adopted_with_all_that_is_known(site: Site) -> None:
    data = site.deployment.directory / "user-data"
    data.write_text("#!/bin/sh\necho héllo\n")
    web = site.create("web", "--user-data", str(data), "--hostname", "www", "--group", "g")
    keys = site.keys
    before = json.loads(site.deployment.etcd_keys()[keys.spec(site.provider, web)])
    site.delete(keys.spec(site.provider, web))
    report = site.audit(exit_code=1)
    assert kinds(report) == ["InstanceWithoutSpec", "Quarantined", "StatusWithoutSpec"]
    quarantined = next(finding for finding in report["findings"] if finding["kind"] == "Quarantined")
    assert quarantined["name"] == "web" and "eschedule adopt" in quarantined["cure"]
    site.audit("--fix")  # cures nothing that the guest needs
    assert site.deployment.allocations().keys() == {str(web)}

    refused = site.deployment.eschedule("adopt", "web", "--spec", check=False)
    assert refused.returncode == 2 and "no spec" in refused.stderr
    adopted = site.deployment.eschedule("adopt", "web")
    assert "is adopted" in adopted.stderr
    after = json.loads(site.deployment.etcd_keys()[keys.spec(site.provider, web)])
    for field in (
        "name",
        "hostname",
        "user_data_base64",
        "keys",
        "resources",
        "image",
        "nics",
        "boot_request",
        "created_at",
        "group",
    ):
        assert after[field] == before[field], field
    assert site.deployment.phase("web") == "Running"
    wait_until(
        lambda: site.run().returncode == 0, timeout_seconds=30, what="all agrees again", evidence=site.deployment.evidence
    )
    again = site.deployment.eschedule("adopt", "web", check=False)
    assert again.returncode == 1 and "needs no decision" in again.stderr
    site.deployment.eschedule("destroy", "web")
    site.deployment.assert_nothing_is_left()


def test_a_name_that_is_taken_meanwhile_is_kept_from_its_new_owner_by_nobody(site: Site) -> None:
    old, keys = site.create("web"), site.keys
    site.delete(keys.spec(site.provider, old), keys.status(site.provider, old), keys.instance(old), keys.name("web"))
    new = site.create("web")
    refused = site.deployment.eschedule("adopt", str(old), check=False)
    assert refused.returncode == 5 and "--name NEW" in refused.stderr, refused.stderr
    site.deployment.eschedule("adopt", str(old), "--name", "web-old")
    assert site.deployment.show("web")["uuid"] == str(new)
    shown = site.deployment.show("web-old")
    assert (shown["uuid"], shown["spec"]["hostname"], shown["status"]["phase"]) == (str(old), "web", "Running")
    site.audit(exit_code=0)


def test_all_quarantined_guests_are_adopted_at_once(site: Site) -> None:
    uuids = [site.create(name) for name in ("one", "two")]
    site.deployment.eschedule("stop", "two")
    for uuid, name in zip(uuids, ("one", "two"), strict=True):
        keys = site.keys
        site.delete(keys.spec(site.provider, uuid), keys.status(site.provider, uuid), keys.instance(uuid), keys.name(name))
    assert kinds(site.audit(exit_code=1)) == ["Quarantined", "Quarantined"]
    site.deployment.eschedule("adopt", "--all")
    assert (site.deployment.phase("one"), site.deployment.phase("two")) == ("Running", "Stopped")
    site.audit(exit_code=0)
    assert "no quarantined guest" in site.deployment.eschedule("adopt", "--all").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name or uuid"),
        (("a", "--all"), "name or uuid"),
        (("a", "--spec", "--domain"), "exclude"),
        (("--all", "--spec"), "--all"),
    ],
)
def test_an_adoption_that_does_not_say_what_is_refused(site: Site, arguments: tuple[str, ...], said: str) -> None:
    refused = site.deployment.eschedule("adopt", *arguments, check=False)
    assert refused.returncode == 2 and said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert site.deployment.eschedule("adopt", "nobody", check=False).returncode == 1


def test_lost_and_changed_claims_are_named_and_set_right(site: Site) -> None:
    # The host asserts what is lost by itself, within a minute; here it is done at once.
    web = site.create("web")

    def lose() -> None:
        held = site.placement.consumer(web)
        assert held is not None
        site.placement.release(web, held.generation)

    def change() -> None:
        held = site.placement.consumer(web)
        assert held is not None
        site.placement.replace_consumers([Claim(web, {site.provider: {"VCPU": 2}}, held.generation)])

    def claimed() -> dict[str, int]:
        return site.placement.provider_allocations(site.provider)[web]

    damages: list[tuple[Callable[[], None], str]] = [(lose, "MissingAllocation"), (change, "WrongAllocation")]
    for damage, kind in damages:
        damage()
        report = site.audit(exit_code=1)
        assert kinds(report) == [kind] and report["findings"][0]["is_fixable"]
        fixed = site.audit("--fix", exit_code=0)
        assert claimed() == RESOURCES and len(fixed["fixed"]) == 1
    assert site.deployment.phase("web") == "Running"


def test_a_claim_of_nobody_is_released_once_nobody_wanted_it_for_long_enough_and_others_never(site: Site) -> None:
    orphan, strangers = uuid4(), uuid4()
    site.placement.claim(orphan, {site.provider: {"VCPU": 1}})
    other = client_for(f"http://127.0.0.1:{site.deployment.placement_port}")
    other.claim(strangers, {site.provider: {"VCPU": 1}})
    other.close()
    report = site.audit(exit_code=1)
    assert kinds(report) == ["OrphanClaim"] and report["findings"][0]["instance"] == str(orphan)
    too_short = site.run("--fix", "--orphan-seconds", "39")
    assert too_short.returncode == 2 and "--orphan-seconds" in too_short.stderr
    fixed = site.audit("--fix", "--orphan-seconds", "40", exit_code=0)
    assert len(fixed["fixed"]) == 1
    assert site.deployment.allocations().keys() == {str(strangers)}


def test_a_claim_whose_request_comes_while_it_is_waited_for_is_left_alone(site: Site) -> None:
    orphan = uuid4()
    site.placement.claim(orphan, {site.provider: RESOURCES})
    log = site.deployment.directory / "fix.log"
    fix = site.deployment.spawn_eschedule("audit", "--fix", "--orphan-seconds", "40", log=log)
    wait_until(lambda: "still wants" in log.read_text(), timeout_seconds=40, what="it waits", evidence=site.deployment.evidence)
    site.deployment.eschedule(REQUEST, site.image, "--name", "late", "--uuid", str(orphan))
    wait_until(lambda: fix.poll() is not None, timeout_seconds=90, what="the fix ended", evidence=site.deployment.evidence)
    assert fix.poll() == 0, log.read_text()
    assert "released" not in log.read_text()
    assert site.deployment.phase("late") == "Running"
    assert site.deployment.allocations().keys() == {str(orphan)}


def test_leftovers_on_a_host_are_set_aside_and_never_deleted_while_they_may_be_data(site: Site) -> None:
    nobody, empty = uuid4(), uuid4()
    folder = site.state / "instances" / str(nobody)
    folder.mkdir()
    (folder / "disk.qcow2").write_text("somebody's data")
    (folder / "disk.qcow2.1-1.partial").write_text("half")
    (site.state / "instances" / str(empty)).mkdir()
    document = site.state / "metadata" / f"{nobody}.json"
    site.create("web")
    document.write_text("{}")
    report = site.audit(exit_code=1)
    assert kinds(report) == ["LeftoverFiles", "LeftoverFiles", "LeftoverMetadata", "LeftoverPartial"]
    text = site.run().stdout
    assert f"{site.state}/lost/{nobody}" in text
    fixed = site.audit("--fix", exit_code=0)
    assert len(fixed["fixed"]) == 4
    assert (site.state / "lost" / str(nobody) / "disk.qcow2").read_text() == "somebody's data"
    assert not (site.state / "lost" / str(nobody) / "disk.qcow2.1-1.partial").exists()
    assert not document.exists() and not (site.state / "instances" / str(empty)).exists()
    assert site.deployment.phase("web") == "Running"


def test_a_disk_that_is_gone_is_named(site: Site) -> None:
    web = site.create("web")
    (site.state / "instances" / str(web) / "disk.qcow2").unlink()
    report = site.audit(exit_code=1)
    assert kinds(report) == ["DiskMissing"] and not report["findings"][0]["is_fixable"]


def test_services_and_hosts_that_do_not_answer_are_said_and_exit_4(site: Site) -> None:
    site.create("web")
    named = site.audit("testhost", exit_code=0)
    assert named["hosts"] == 1
    assert site.run("nosuchhost").returncode == 2

    assert site.deployment.ecompute is not None
    process = site.deployment.ecompute
    freeze(process)
    try:
        silent = site.audit("--wait-seconds", "1", exit_code=4)
        assert kinds(silent) == ["HostSilent"]
    finally:
        process.send_signal(18)  # SIGCONT
    config = yaml.safe_load(site.deployment.schedule_file.read_text())
    config["placement"] |= {"timeout_seconds": 2, "deadline_seconds": 3}
    site.deployment.schedule_file.write_text(yaml.safe_dump(config))
    site.deployment.kill_placement()
    blind = site.run("--json")
    assert blind.returncode == 4 and "claims could not be looked at" in blind.stderr
    assert any("Placement" in problem for problem in json.loads(blind.stdout)["problems"])
    site.deployment.stop_ecompute()
    dead = site.audit(exit_code=4)
    assert kinds(dead) == ["HostDead"] and dead["unanswered"] == [str(site.provider)]


def test_hostile_letters_do_not_stop_the_audit(site: Site) -> None:
    lease = site.store.grant_lease(60)
    texts = ["\x00\x1b[2J", "{}", '{"schema":1,"kind":"format-the-disk"}', Letter("fix", {"instances": ("x",)}).to_json()]
    for text in texts:
        site.store.commit(Transaction(puts={site.keys.mail(site.provider, uuid4()): text}, lease_id=lease.id))
    site.audit(exit_code=0)
    assert site.store.list(site.keys.mail_replies()).items == ()
    log = (site.deployment.directory / "ecompute.log").read_text()
    assert log.count("ignored a letter") == len(texts)
