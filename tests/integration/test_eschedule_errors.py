"""What eschedule says to input that is wrong and to services that are away: one clear line, the right exit code, no traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.eschedule import IMAGE, QUERY, Site
from tests.support.etcd import EtcdServer
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.placement import PlacementServer
from tests.support.processes import ROOT, VENV_BIN, free_port, wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
MUCH = "9" * 30


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A folder whose configuration names services that are not there: whoever asks them ends with 4, not with 2."""
    config = {
        "etcd": {"endpoints": [f"http://127.0.0.1:{free_port()}"], "deadline_seconds": 0.3},
        "placement": {"url": f"http://127.0.0.1:{free_port()}", "timeout_seconds": 0.3, "deadline_seconds": 0.3},
    }
    (tmp_path / "schedule.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "private").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "text").write_text("this is my password: hunter2\n")
    (tmp_path / "large").write_bytes(b"x" * 65537)
    (tmp_path / "key.pub").write_text(KEY)
    return tmp_path


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VENV_BIN / "eschedule", *arguments], check=False, cwd=directory, capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(directory)},
    )  # fmt: skip


def said(answer: subprocess.CompletedProcess[str]) -> str:
    """The one line that it said."""
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("eschedule: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # malformed resources=
        (("resources=", IMAGE), "is empty"),
        (("resources=VCPU", IMAGE), "is no CLASS:AMOUNT"),
        (("resources=VCPU:1,,DISK_GB:1", IMAGE), "is no CLASS:AMOUNT"),
        (("resources=VCPU:one,MEMORY_MB:256,DISK_GB:1", IMAGE), "needs a whole number from 1"),
        (("resource=VCPU:1,MEMORY_MB:256,DISK_GB:1", IMAGE), "did you mean resources?"),
        (("resources=VCPU:1", IMAGE), "lacks MEMORY_MB and DISK_GB"),
        (("create", "VCPU:1", IMAGE), "has no ="),
        # unknown resource class
        (("resources=VCPUS:1,MEMORY_MB:256,DISK_GB:1", IMAGE), "did you mean VCPU?"),
        (("resources=VCPU:1,MEMORY_MB:256,DISK_GB:1,UNICORN:1", IMAGE), "is no resource class"),
        # zero, negative and huge amounts
        (("resources=VCPU:0,MEMORY_MB:256,DISK_GB:1", IMAGE), "VCPU in resources= is 0"),
        (("resources=VCPU:-1,MEMORY_MB:256,DISK_GB:1", IMAGE), "needs a whole number from 1"),
        ((f"resources=VCPU:1,MEMORY_MB:{MUCH},DISK_GB:1", IMAGE), "at most"),
        (("resources=VCPU:5000,MEMORY_MB:256,DISK_GB:1", IMAGE), "at most 4096"),
        # names
        ((QUERY, IMAGE, "--name", "my web"), "has a space"),
        ((QUERY, IMAGE, "--name", "x" * 64), "has 64 characters"),
        ((QUERY, IMAGE, "--name", ""), "is empty"),
        ((QUERY, IMAGE, "--name", "a\nb"), r'has "\n"'),
        ((QUERY, IMAGE, "--hostname", "web_1"), 'host name "web_1"'),
        # keys
        ((QUERY, IMAGE, "--key", "nowhere.pub"), "nowhere.pub cannot be read: No such file"),
        ((QUERY, IMAGE, "--key", "./private"), "private"),
        ((QUERY, IMAGE, "--key", "./text"), "text"),
        ((QUERY, IMAGE, "--key", "alice", "--restart", "allways"), "did you mean always?"),
        (("key", "add", "a/b", "key.pub"), 'key name "a/b"'),
        (("key", "add", "alice", "private"), "private"),
        # how it is told of itself, and reached
        ((QUERY, IMAGE, "--metadata", "on"), "none of optional, required, off"),
        ((QUERY, IMAGE, "--metadata-hop-limit", "0"), "needs a whole number from 1 to 64"),
        ((QUERY, IMAGE, "--config-drive=iso"), "none of auto, openstack, nocloud, none"),
        ((QUERY, IMAGE, "--allow", "tcp"), "names no port"),
        ((QUERY, IMAGE, "--publish", "80"), "is no HOSTPORT:GUESTPORT"),
        (("set", "web-1"), "nothing is to be set"),
        (("set", "web-1", "--key", "alice", "--allow", "22"), "write tcp:22"),
        (("port-forward", "web-1", "80:80", "--rm", "http"), "is no port"),
        # network cards and networks
        ((QUERY, IMAGE, "--nic", "brige=br0"), "did you mean bridge="),
        ((QUERY, IMAGE, "--nic", "bridge=br0,address=10.0.0.5"), "needs its prefix length"),
        (("network", "add", "lan", "--bridge", "br0", "--subnet", "10.0.0.5/24"), "the subnet is 10.0.0.0/24"),
        (("network", "rm", "a/b"), 'network "a/b" is no name'),
        (("apply", "-f", "none.yaml", "--no-wait", "--wait-seconds", "5"), "--no-wait and --wait-seconds exclude each other"),
        (("resize", "web", "--disk", "2G", "--no-wait", "--wait-seconds", "5"), "exclude each other"),
        (("network", "remove", "lan"), '"remove" is no action of eschedule network; there are add, list, '),
        # user data
        ((QUERY, IMAGE, "--user-data", "large"), "at most 65536 (64 KiB)"),
        ((QUERY, IMAGE, "--user-data", "."), "cannot be read: Is a directory"),
        # images
        ((QUERY, "tiny.qcow2"), "is a path on this machine"),
        ((QUERY, "ftp://example.org/x"), "is neither a name (eschedule image list), an http://, https:// or file:// URL nor"),
        ((QUERY, "https://me:hunter2@example.org/x"), "holds a user name or password"),
        ((QUERY,), "no image is given"),
        ((QUERY, IMAGE, "--checksum", "md5:0"), "is of no known kind"),
        # the rest
        ((QUERY, IMAGE, "--uuid", "7"), 'uuid "7" is no uuid'),
        ((QUERY, IMAGE, "--restart", "allways"), "did you mean always?"),
        ((QUERY, IMAGE, "--grace-seconds", "soon"), "--grace-seconds"),
        ((QUERY, IMAGE, "--grace-seconds", "99999"), "--grace-seconds"),
        ((QUERY, IMAGE, "--wait-seconds", "soon"), '--wait-seconds is "soon"'),
        ((QUERY, IMAGE, "--wait-seconds", "3", "--no-wait"), "exclude each other"),
        ((QUERY, IMAGE, "--wait", "ready", "--no-wait"), "exclude each other"),
        ((QUERY, IMAGE, "--wait", "booted"), '--wait "booted": needs to be running or ready'),
        ((QUERY, IMAGE, "--wait", "ready", "--metadata", "off"), "cannot report"),
        ((QUERY, IMAGE, "--timings-file", "no/such/folder.json"), "cannot be written"),
        (("show", "Web 1"), "instance name"),
        (("destroy", "web-1", "WEB 2"), "instance name"),
        (("destory", "web-1"), "did you mean destroy?"),
        ((), "nothing was asked for"),
    ],
)
def test_wrong_input_is_one_line_and_asks_nobody(nowhere: Path, arguments: Sequence[str], expected: str) -> None:
    answer = run(nowhere, *arguments)
    assert answer.returncode == 2, answer.stderr
    line = said(answer)
    assert expected in line
    assert "hunter2" not in line and "c2VjcmV0" not in line


def test_every_fault_of_a_configuration_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "schedule.yaml").write_text("polcy: spread\nwait_seconds: soon\netcd: {endpoints: []}\n")
    for arguments in (("list",), ("--check-config",), (QUERY, IMAGE)):
        answer = run(tmp_path, *arguments)
        assert (answer.returncode, answer.stdout) == (2, "")
        for key in ("polcy", "wait_seconds", "etcd.endpoints"):
            assert key in answer.stderr
        assert "did you mean policy?" in answer.stderr
        assert answer.stderr.startswith("eschedule: schedule.yaml: ")


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    answer = run(tmp_path, "--config", "other.yaml", "list")
    assert answer.returncode == 2
    assert "other.yaml" in said(answer)


def test_the_configuration_in_effect_can_be_looked_at(nowhere: Path) -> None:
    answer = run(nowhere, "--check-config")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"# {nowhere / 'schedule.yaml'}\n")
    assert "policy = spread  (default)" in answer.stdout.splitlines()


def test_the_version(nowhere: Path) -> None:
    answer = run(nowhere, "--version")
    assert (answer.returncode, answer.stdout) == (0, "eschedule 0.1.0\n")


@pytest.mark.parametrize("arguments", [("--help",), ("create", "--help"), ("destroy", "--help")])
def test_help_imports_nothing_that_takes_time(arguments: Sequence[str]) -> None:
    heavy = ("grpc", "etcd3", "requests", "jsonschema", "yaml", "os_resource_classes")
    program = (
        "import sys\nfrom eschedule.main import main\n"
        f"try: main({list(arguments)!r})\nexcept SystemExit: pass\n"
        f"sys.exit([m for m in {heavy!r} if m in sys.modules] or 0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: eschedule")


class TestServicesAway:
    @pytest.mark.parametrize("arguments", [("list",), ("show", "web-1"), ("destroy", "web-1"), ("hosts",), (QUERY, IMAGE)])
    def test_without_etcd_it_is_exit_4(self, nowhere: Path, arguments: Sequence[str]) -> None:
        answer = run(nowhere, *arguments)
        assert (answer.returncode, answer.stdout) == (4, "")
        lines = [line for line in answer.stderr.splitlines() if line.startswith("eschedule: ")]
        assert len(lines) == 1 and "etcd" in lines[0]
        assert "Traceback" not in answer.stderr

    def test_a_request_says_how_to_repeat_it(self, nowhere: Path) -> None:
        answer = run(nowhere, QUERY, IMAGE, "--key", "key.pub")
        repeated = answer.stderr.rpartition("to go on, repeat it with the same uuid: ")[2]
        assert repeated.startswith(f"eschedule {QUERY} {IMAGE} --key key.pub --uuid ")
        answer = run(nowhere, QUERY, IMAGE, "--request-id", "order 7")
        assert answer.stderr.rstrip().endswith(f"eschedule {QUERY} {IMAGE} --request-id 'order 7'")

    def test_without_placement_it_is_exit_4_and_the_rest_is_shown(self, site: Site) -> None:
        site.host("node1")
        site.configure(placement_url=f"http://127.0.0.1:{free_port()}", placement_seconds=0.3)
        answer = site.run(QUERY, IMAGE)
        assert (answer.returncode, answer.stdout, site.recorded()) == (4, "", set())
        shown = site.run("hosts")
        assert shown.returncode == 4
        assert shown.stdout.splitlines()[1].startswith("node1  Ready")
        assert "?/8" in shown.stdout
        assert site.run("list").returncode == 0

    def test_an_etcd_that_goes_away_between_claim_and_record_keeps_the_claim_and_says_how_to_go_on(
        self, site: Site, etcd_server: EtcdServer
    ) -> None:
        host = site.host("node1")
        own = Site(site.directory, etcd_server, site.placement_server)
        proxy = FaultyProxy(site.placement_server.port)
        try:
            own.store.create(own.keys.host(host.provider), host.record.to_json())
            own.configure(placement_url=proxy.url, etcd_seconds=3)
            proxy.inject(Fault.HOLD_ANSWER, "PUT", "/allocations")
            process = own.spawn(QUERY, IMAGE, "--request-id", "order 7", "--no-wait")
            wait_until(site.claimed, timeout_seconds=60, what="the claim is made")
            etcd_server.freeze()
            proxy.released.set()
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 4
            assert errors.rstrip().endswith("--request-id 'order 7' --no-wait")
            assert len(site.claimed()) == 1
            etcd_server.thaw()
            own.configure()
            answer = own.run(QUERY, IMAGE, "--request-id", "order 7", "--no-wait")
            assert answer.returncode == 0, answer.stderr
            assert len(site.claimed()) == 1
        finally:
            proxy.close()
            own.close()

    def test_what_is_no_placement_is_told_as_that(self, site: Site, module_placement: PlacementServer) -> None:
        proxy = FaultyProxy(module_placement.port)
        try:
            site.configure(placement_url=proxy.url, placement_seconds=1)
            proxy.inject(Fault.GARBAGE, times=100)
            answer = site.run(QUERY, IMAGE)
        finally:
            proxy.close()
        assert answer.returncode in (2, 4)
        assert "Placement" in answer.stderr and "Traceback" not in answer.stderr


class TestNoCapacity:
    def why(self, site: Site, query: str = QUERY) -> str:
        answer = site.run(query, IMAGE)
        assert (answer.returncode, answer.stdout) == (3, ""), answer.stderr
        assert (site.recorded(), site.claimed()) == (set(), set())
        return answer.stderr.splitlines()[-1]

    def test_no_host_at_all(self, site: Site) -> None:
        assert "there is no host at all; is ecompute running anywhere?" in self.why(site)

    def test_each_host_is_counted_under_what_speaks_against_it(self, site: Site) -> None:
        site.host("node1", memory_mib=128)
        site.host("node2", traits=("COMPUTE_STATUS_DISABLED",))
        site.host("node3").die()
        line = self.why(site)
        assert line.startswith("eschedule: no host can take DISK_GB:1,MEMORY_MB:256,VCPU:1: 3 hosts: ")
        for part in ("1 short of MEMORY_MB (128 MEMORY_MB free, 256 needed on node1)", "1 disabled", "1 without a heartbeat"):
            assert part in line

    def test_a_trait_that_no_host_has(self, site: Site) -> None:
        site.host("node1")
        assert "1 host: 1 lacks HW_CPU_X86_AVX512F" in self.why(site, f"{QUERY}&required=HW_CPU_X86_AVX512F")

    def test_an_aggregate_that_no_host_is_in(self, site: Site) -> None:
        site.host("node1")
        aggregate = "0b4fd7c1-6f5b-4c6e-9a0e-3d2c5a7e8f10"
        assert "1 host: 1 excluded by member_of=" in self.why(site, f"{QUERY}&member_of={aggregate}")

    def test_more_than_one_instance_may_have(self, site: Site) -> None:
        host = site.host("node1", vcpus=8)
        inventories = site.placement.inventories(host.provider)
        provider = site.placement.provider(host.provider)
        assert provider is not None
        ratio = inventories | {"VCPU": type(inventories["VCPU"])(total=8, allocation_ratio=4.0, max_unit=8)}
        site.placement.put_inventories(host.provider, provider.generation, ratio)
        line = self.why(site, "resources=VCPU:16,MEMORY_MB:256,DISK_GB:1")
        assert "1 giving one instance at most 8 VCPU" in line

    def test_a_full_host(self, site: Site) -> None:
        site.host("node1", vcpus=1, memory_mib=256, disk_gib=1)
        assert site.run(QUERY, IMAGE, "--name", "web-1").returncode == 0
        answer = site.run(QUERY, IMAGE)
        assert answer.returncode == 3
        assert "1 host: 1 full; see: eschedule hosts" in answer.stderr

    def test_a_trait_that_placement_does_not_know_is_wrong_input(self, site: Site) -> None:
        site.host("node1")
        answer = site.run(f"{QUERY}&required=CUSTOM_NOBODY_HAS_THIS", IMAGE)
        assert answer.returncode == 2
        assert "No such trait(s): CUSTOM_NOBODY_HAS_THIS" in answer.stderr
        assert "no host has CUSTOM_NOBODY_HAS_THIS: eschedule host show" in answer.stderr
        assert site.recorded() == set()

    def test_a_mistyped_trait_names_the_one_that_a_host_has(self, site: Site) -> None:
        site.host("node1", traits=("CUSTOM_FAST_SSD",))
        for typed in ("CUSTOM_FAST_SDD", "FAST_SSD"):
            answer = site.run("create", "--cpus", "1", "--memory", "128M", "--disk", "1G", "--trait", typed, IMAGE)
            assert answer.returncode == 2
            assert f"no host has {typed}; did you mean CUSTOM_FAST_SSD?" in answer.stderr


def test_nothing_that_is_not_there_is_changed(site: Site) -> None:
    for command in ("show", "destroy", "stop", "start"):
        answer = site.run(command, "web-1")
        assert answer.returncode == 1
        assert answer.stderr == "eschedule: there is no instance web-1; see: eschedule list\n"


def test_an_instance_is_found_by_the_beginning_of_its_uuid_and_a_near_name_is_offered(site: Site) -> None:
    site.host("node1")
    uuids = ("3f2a91c0-0000-4000-8000-000000000001", "3f2a91c0-0000-4000-8000-000000000002")
    for number, uuid in enumerate(uuids, start=1):
        assert site.run(QUERY, IMAGE, "--name", f"web-{number}", "--uuid", uuid, "--no-wait").returncode == 0
    before = site.recorded()
    several = site.run("destroy", "3f2a91", "--no-wait")
    assert several.returncode == 2 and "2 instances have a uuid that begins with 3f2a91: " in several.stderr
    assert all(uuid in several.stderr for uuid in uuids) and several.stderr.count("\n") == 1
    assert json.loads(site.run("show", uuids[1], "--json").stdout)["name"] == "web-2"
    assert json.loads(site.run("show", "web-1", "--json").stdout)["uuid"] == uuids[0]
    assert site.run("stop", "wbe-1", "--no-wait").stderr == "eschedule: there is no instance wbe-1; did you mean web-1?\n"
    assert site.run("stop", "facade").stderr == "eschedule: there is no instance facade; see: eschedule list\n"
    assert site.recorded() == before
