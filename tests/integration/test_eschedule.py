"""The program eschedule against real etcd and Placement; the hosts are stand-ins that answer as an ecompute does."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from common.model import InstanceSpec, Phase
from tests.support.eschedule import ADDRESS, IMAGE, QUERY, Site, StandInHost, fails, never_ends
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.processes import wait_until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"


def spec_of(host: StandInHost, name: str) -> InstanceSpec:
    item = host.site.store.get(host.site.keys.spec(host.provider, host.site.uuid_of(name)))
    assert item is not None
    return InstanceSpec.from_json(item.value)


class TestCreate:
    def test_from_the_request_to_a_running_guest(self, site: Site, tmp_path: Path) -> None:
        host = site.host("node1")
        answer = site.run(QUERY, IMAGE, "--name", "web-1", "--timings-file", "timings.json")
        assert answer.returncode == 0, answer.stderr
        shown = dict(line.split(None, 1) for line in answer.stdout.splitlines())
        instance = site.uuid_of("web-1")
        assert shown.pop("elapsed").endswith(" s")
        assert shown == {
            "name": "web-1", "uuid": str(instance), "host": "node1", "phase": "Running", "address": ADDRESS.address,
        }  # fmt: skip
        assert answer.stderr.splitlines()[-1] == "web-1: Running on node1"
        assert site.claimed() == {instance}
        timings = json.loads((tmp_path / "timings.json").read_text())
        assert timings["uuid"] == str(instance) and timings["provider"] == str(host.provider) and timings["host"] == "node1"
        assert set(timings["timings_ms"]) == {"candidates", "claim", "store", "wait", "total"}
        assert all(milliseconds >= 0 for milliseconds in timings["timings_ms"].values())
        assert not list(tmp_path.glob("*.partial"))

    def test_everything_that_is_asked_for_is_in_the_spec(self, site: Site, tmp_path: Path) -> None:
        host = site.host("node1")
        (tmp_path / "key.pub").write_text(KEY)
        (tmp_path / "user-data").write_bytes(b"#cloud-config\n")
        answer = site.run(
            "create", QUERY, "--image", "https://images.example.org/x.qcow2", "--checksum", "sha256:" + "0" * 64, "--name",
            "web-1", "--hostname", "db", "--key", "key.pub", "--user-data", "user-data", "--network", "lan", "--restart",
            "on-failure", "--json",
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        value = json.loads(answer.stdout)
        spec = spec_of(host, "web-1")
        assert json.loads(spec.to_json()) == value["spec"]
        assert (value["phase"], value["host"]["name"], value["status"]["addresses"][0]["address"]) == (
            "Running", "node1", ADDRESS.address,
        )  # fmt: skip
        assert (spec.hostname, spec.keys, spec.user_data, spec.restart) == ("db", (KEY,), b"#cloud-config\n", "on-failure")
        assert [nic.network for nic in spec.nics] == ["lan"]
        assert "@" in spec.created_by
        assert {"candidates", "claim", "store", "wait", "total"} <= set(value["timings_ms"])

    def test_the_defaults_come_from_the_configuration(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "key.pub").write_text(KEY)
        defaults = {"image": IMAGE, "key_files": [str(tmp_path / "key.pub")], "network": "lan", "restart": "always"}
        site.configure(defaults=defaults)
        host = site.host("node1")
        assert site.run(QUERY, "--name", "web-1").returncode == 0
        spec = spec_of(host, "web-1")
        assert (spec.image.url, spec.keys, spec.nics[0].network, spec.restart) == (IMAGE, (KEY,), "lan", "always")

    def test_without_waiting_it_returns_once_the_instance_is_recorded(self, site: Site) -> None:
        site.host("node1", build=never_ends)
        answer = site.run("create", QUERY, IMAGE, "--no-wait")
        assert answer.returncode == 0, answer.stderr
        name = dict(line.split(None, 1) for line in answer.stdout.splitlines())["name"]
        assert name == f"vm-{site.uuid_of(name).hex[:8]}"

    def test_a_build_that_fails_ends_with_its_reason(self, site: Site) -> None:
        site.host("node1", build=fails)
        answer = site.run("create", QUERY, IMAGE, "--name", "web-1", "--json")
        assert answer.returncode == 1
        assert json.loads(answer.stdout)["reason"] == "ImageNotFound"
        assert answer.stderr.splitlines()[-1] == (
            f"eschedule: web-1 on node1: Failed (ImageNotFound: {IMAGE} is not there);"
            " details: eschedule show web-1; remove it: eschedule destroy web-1"
        )
        assert site.run("destroy", "web-1").returncode == 0
        assert (site.recorded(), site.claimed()) == (set(), set())

    def test_a_wait_that_is_over_says_what_goes_on(self, site: Site) -> None:
        site.host("node1", build=never_ends)
        answer = site.run("create", QUERY, IMAGE, "--name", "web-1", "--wait-seconds", "0.5")
        assert answer.returncode == 4
        last = answer.stderr.splitlines()[-1]
        assert last.startswith("eschedule: not running after 0.")
        doing = "web-1: Building FetchImage 1.0 of 4.0 MiB (25 %) on node1"
        assert last.endswith(f"{doing}; it goes on; look: eschedule show web-1")
        assert doing in answer.stderr.splitlines()
        assert site.uuid_of("web-1") in site.claimed()

    def test_a_host_that_dies_is_named_while_it_is_waited_for(self, site: Site) -> None:
        host = site.host("node1", build=never_ends)
        process = site.spawn(QUERY, IMAGE, "--name", "web-1", "--wait-seconds", "3")
        wait_until(lambda: site.store.get(site.keys.name("web-1")), timeout_seconds=60, what="web-1 is recorded")
        host.die()
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 4
        assert errors.count("which has no heartbeat: web-1 goes on when that host is back") == 1

    def test_it_is_followed_to_another_host(self, site: Site) -> None:
        first = site.host("node1", build=never_ends)
        process = site.spawn(QUERY, IMAGE, "--name", "web-1")
        wait_until(lambda: site.store.get(site.keys.name("web-1")), timeout_seconds=60, what="web-1 is recorded")
        first.move("web-1", site.host("node2"))
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "node2" in output

    def test_alternates_are_the_other_live_hosts(self, site: Site) -> None:
        hosts = {host.provider: host for host in (site.host("node1"), site.host("node2"), site.host("node3"))}
        dead = site.host("node4")
        dead.die()
        value = json.loads(site.run("create", QUERY, IMAGE, "--json").stdout)
        alternates = {alternate["provider"] for alternate in value["spec"]["alternates"]}
        assert alternates == {str(provider) for provider in hosts} - {value["host"]["provider"]}


class TestRepeats:
    def test_the_same_request_id_makes_one_instance(self, site: Site) -> None:
        site.host("node1")
        first = json.loads(site.run("create", QUERY, IMAGE, "--request-id", "order 7", "--json").stdout)
        answer = site.run("create", QUERY, IMAGE, "--request-id", "order 7", "--json")
        assert answer.returncode == 0
        assert json.loads(answer.stdout)["uuid"] == first["uuid"]
        assert "is there already, from this same request" in answer.stderr
        assert len(site.claimed()) == 1

    def test_another_request_with_its_uuid_conflicts(self, site: Site) -> None:
        site.host("node1")
        instance = str(uuid4())
        assert site.run(QUERY, IMAGE, "--uuid", instance).returncode == 0
        answer = site.run(QUERY, "/srv/other.qcow2", "--uuid", instance)
        assert (answer.returncode, answer.stdout) == (5, "")
        assert (
            f"the uuid {instance} belongs to the instance vm-{instance[:8]}, which was asked for differently" in answer.stderr
        )

    def test_a_taken_name_conflicts_and_claims_nothing(self, site: Site) -> None:
        site.host("node1")
        assert site.run(QUERY, IMAGE, "--name", "web-1").returncode == 0
        claimed = site.claimed()
        answer = site.run(QUERY, IMAGE, "--name", "web-1")
        assert (answer.returncode, answer.stdout) == (5, "")
        assert "the name web-1 is taken by the instance" in answer.stderr
        assert site.claimed() == claimed

    @pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.ERROR])
    def test_a_claim_whose_answer_is_lost_is_made_once(self, site: Site, fault: Fault) -> None:
        host = site.host("node1")
        proxy = FaultyProxy(site.placement_server.port)
        try:
            site.configure(placement_url=proxy.url)
            proxy.inject(fault, "PUT", "/allocations")
            answer = site.run(QUERY, IMAGE, "--name", "web-1")
        finally:
            proxy.close()
        assert answer.returncode == 0, answer.stderr
        assert site.placement.provider_allocations(host.provider).keys() == {site.uuid_of("web-1")}


class TestRaces:
    def run_all(self, site: Site, *arguments: tuple[str, ...]) -> tuple[Counter[int], str]:
        """How often each exit code came, and what was said."""
        processes = [site.spawn("create", QUERY, IMAGE, *more) for more in arguments]
        said = [process.communicate(timeout=120)[1] for process in processes]
        return Counter(process.returncode for process in processes), "\n".join(said)

    def test_of_many_that_want_one_name_one_wins(self, site: Site) -> None:
        site.host("node1")
        codes, said = self.run_all(site, *[("--name", "web-1")] * 5)
        assert codes == {0: 1, 5: 4}, said
        assert site.claimed() == {site.uuid_of("web-1")}

    def test_of_many_that_want_the_last_room_as_many_win_as_there_is(self, site: Site) -> None:
        site.host("node1", vcpus=1)
        site.host("node2", vcpus=2)
        codes, said = self.run_all(site, *[()] * 6)
        assert codes == {0: 3, 3: 3}, said
        assert len(site.claimed()) == 3
        assert len(site.store.list(site.keys.instances()).items) == 3


class TestLooking:
    def test_list_show_and_hosts(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        instance = str(site.uuid_of("web-1"))
        lines = site.run("list").stdout.splitlines()
        assert lines[0].split() == ["NAME", "UUID", "HOST", "PHASE", "ADDRESS", "AGE", "IMAGE"]
        assert lines[1].split()[:5] == ["web-1", instance, "node1", "Running", ADDRESS.address]
        (listed,) = json.loads(site.run("list", "--json").stdout)
        assert (listed["name"], listed["addresses"], listed["phase"]) == ("web-1", [ADDRESS.address], "Running")
        by_name, by_uuid = site.run("show", "web-1"), site.run(instance)
        assert len({re.sub(r"\(\d+s ago\)", "", answer.stdout) for answer in (by_name, by_uuid)}) == 1
        assert f"host       node1 (provider {host.provider})" in by_name.stdout.splitlines()
        assert json.loads(site.run("show", "web-1", "--json").stdout)["status"]["phase"] == "Running"
        (shown,) = json.loads(site.run("hosts", "--json").stdout)
        assert (shown["name"], shown["state"], shown["guests"], shown["used"]["MEMORY_MB"]) == ("node1", "Ready", 1, 256)
        assert site.run("hosts").stdout.splitlines()[1].split()[3:7] == ["1/8", "256/8192", "1/100", "1"]

    def test_a_dead_host_is_shown_as_dead(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        host.die()
        assert "node1  Running (host dead)" in site.run("list").stdout
        assert site.run("hosts").stdout.splitlines()[1].split()[:2] == ["node1", "dead"]

    def test_nothing_there_is_an_empty_list(self, site: Site) -> None:
        answer = site.run("list")
        assert (answer.returncode, len(answer.stdout.splitlines()), answer.stderr) == (0, 1, "")
        assert json.loads(site.run("list", "--json").stdout) == []

    def test_a_reader_that_goes_away_is_no_error_of_ours(self, site: Site) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        process = site.spawn("list", stdout=writing)
        os.close(writing)
        errors = process.communicate(timeout=120)[1]
        assert (process.returncode, errors) == (141, "")

    def test_progress_that_nobody_reads_changes_nothing(self, site: Site) -> None:
        site.host("node1")
        reading, writing = os.pipe()
        os.close(reading)
        process = site.spawn(QUERY, IMAGE, stderr=writing)
        os.close(writing)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        assert "phase    Running" in said

    def test_an_output_that_takes_nothing_is_one_line(self, site: Site) -> None:
        with Path("/dev/full").open("w") as full:
            process = site.spawn("list", stdout=full)
            errors = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert errors.startswith("eschedule: standard output cannot be written: No space left on device")
        assert errors.count("\n") == 1

    def test_on_a_terminal_progress_is_one_line(self, site: Site) -> None:
        site.host("node1")
        ours, theirs = pty.openpty()
        process = site.spawn(QUERY, IMAGE, stderr=theirs)
        os.close(theirs)
        process.communicate(timeout=120)
        said = os.read(ours, 65536).decode()
        os.close(ours)
        assert process.returncode == 0
        assert "\n" not in said
        assert "\r" in said and said.endswith("\x1b[K")


class TestChanging:
    def test_stop_start_and_destroy(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        stopped = site.run("stop", "web-1")
        assert (stopped.returncode, stopped.stdout) == (0, "")
        assert "is stopped after" in stopped.stderr
        assert spec_of(host, "web-1").boot_request == 1
        started = site.run("start", "web-1")
        assert started.returncode == 0, started.stderr
        assert spec_of(host, "web-1").boot_request == 2
        assert site.run("start", "web-1").returncode == 0
        assert spec_of(host, "web-1").boot_request == 2
        destroyed = site.run("destroy", "web-1")
        assert destroyed.returncode == 0, destroyed.stderr
        assert (site.recorded(), site.claimed()) == (set(), set())

    def test_several_are_destroyed_at_once_and_one_that_is_not_there_is_told(self, site: Site) -> None:
        site.host("node1")
        for name in ("web-1", "web-2"):
            site.run(QUERY, IMAGE, "--name", name, "--no-wait")
        answer = site.run("destroy", "web-1", "web-9", str(site.uuid_of("web-2")))
        assert answer.returncode == 1
        assert "eschedule: there is no instance web-9; did you mean web-" in answer.stderr
        assert site.recorded() == set()

    def test_on_a_dead_host_it_is_asked_for_and_said_when_it_happens(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        host.close()
        host.die()
        answer = site.run("destroy", "web-1", "--no-wait")
        assert answer.returncode == 0
        assert "the host of web-1 has no heartbeat; what was asked for happens when it is back" in answer.stderr
        assert spec_of(host, "web-1").desired == "deleted"
        conflict = site.run("start", "web-1")
        assert conflict.returncode == 5
        assert "web-1 is being destroyed" in conflict.stderr
        waited = site.run("destroy", "web-1", "--wait-seconds", "0.5")
        assert waited.returncode == 4
        assert "it goes on; look: eschedule show web-1" in waited.stderr

    def test_a_guest_that_does_not_come_up_again_is_a_failure(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        site.run("stop", "web-1")
        host.build = lambda h, spec: h.report(spec, Phase.STOPPED, reason="StartFailed", message="no such network")
        answer = site.run("start", "web-1")
        assert answer.returncode == 1
        assert "web-1 on node1: Stopped (StartFailed: no such network)" in answer.stderr


class TestInterruption:
    def test_at_a_wait_it_says_what_goes_on(self, site: Site) -> None:
        site.host("node1", build=never_ends)
        process = site.spawn(QUERY, IMAGE, "--name", "web-1")
        errors = site.interrupted(process, lambda: any("/status/" in key for key in site.recorded()))
        assert process.returncode == 130, errors
        assert errors.splitlines()[-1] == (
            "eschedule: interrupted; web-1 goes on being built; look: eschedule show web-1; remove it: eschedule destroy web-1"
        )
        assert site.claimed() == {site.uuid_of("web-1")}

    def test_at_the_wait_for_an_end_it_says_so_too(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        host.close()
        process = site.spawn("destroy", "web-1")
        errors = site.interrupted(process, lambda: spec_of(host, "web-1").desired == "deleted", signal.SIGTERM)
        assert process.returncode == 143, errors
        assert "interrupted; what was asked for goes on until web-1 is destroyed; look: eschedule list" in errors

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_between_claim_and_record_nothing_is_left(self, site: Site, number: int, code: int) -> None:
        site.host("node1")
        returncode, errors = site.signalled_between_claim_and_record("PUT", number, QUERY, IMAGE, "--name", "web-1")
        assert returncode == code
        assert errors.splitlines()[-1] == "eschedule: interrupted; nothing was created"
        assert (site.claimed(), site.recorded()) == (set(), set())


def test_a_repeat_goes_on_with_the_claim_of_a_run_that_was_killed(site: Site) -> None:
    site.host("node1")
    proxy = FaultyProxy(site.placement_server.port)
    arguments = (QUERY, IMAGE, "--request-id", "order 7", "--json")
    try:
        site.configure(placement_url=proxy.url)
        proxy.inject(Fault.HOLD_ANSWER, "PUT", "/allocations")
        process = site.spawn(*arguments)
        wait_until(site.claimed, timeout_seconds=60, what="the claim is made")
        process.kill()
        process.communicate(timeout=120)
    finally:
        proxy.close()
    (claimed,) = site.claimed()
    site.configure()
    answer = site.run(*arguments)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["uuid"] == str(claimed)
    assert site.claimed() == {claimed}


def test_what_is_shown_is_also_there_for_programs_that_close_standard_error(site: Site) -> None:
    site.host("node1")
    process = site.spawn(QUERY, IMAGE, "--json", stderr=subprocess.DEVNULL, preexec_fn=lambda: os.close(2))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert json.loads(output)["phase"] == "Running"
