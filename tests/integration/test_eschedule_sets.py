"""Sets, groups and reboots through the program, against real etcd and Placement; the hosts are stand-ins."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

from common.model import GroupMembers, InstanceSpec, Phase
from tests.support.eschedule import ADDRESS, IMAGE, QUERY, Site, StandInHost, builds_at_once, never_ends
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.processes import freeze, wait_until


def rows(output: str) -> list[dict[str, str]]:
    head, *lines = [line.split() for line in output.splitlines()]
    return [dict(zip(head, line, strict=False)) for line in lines]


def fails_for(name: str, phase: Phase = Phase.FAILED) -> object:
    def build(host: StandInHost, spec: InstanceSpec) -> None:
        if spec.name == name:
            host.report(spec, phase, failure="NoSpace" if phase is Phase.FAILED else "", message="12 MiB are free")
        else:
            builds_at_once(host, spec)

    return build


class TestSets:
    def test_all_run_and_are_listed(self, site: Site) -> None:
        hosts = [site.host("node1"), site.host("node2")]
        answer = site.run(QUERY, IMAGE, "--name", "web", "--count", "4", "--timings-file", "timings.json")
        assert answer.returncode == 0, answer.stderr
        shown = rows(answer.stdout)
        assert [row["NAME"] for row in shown] == ["web-1", "web-2", "web-3", "web-4"]
        assert {row["PHASE"] for row in shown} == {"Running"}
        assert Counter(row["HOST"] for row in shown) == {"node1": 2, "node2": 2}
        assert answer.stderr.splitlines()[-1].startswith("eschedule: all 4 run after ")
        assert site.claimed() == {site.uuid_of(row["NAME"]) for row in shown}
        timings = json.loads((site.directory / "timings.json").read_text())
        assert [one["name"] for one in timings["instances"]] == [row["NAME"] for row in shown]
        assert {one["provider"] for one in timings["instances"]} == {str(host.provider) for host in hosts}
        assert {"candidates", "claim", "store", "wait", "total"} <= set(timings["timings_ms"])

    def test_as_json_it_is_a_list(self, site: Site) -> None:
        site.host("node1")
        answer = site.run(QUERY, IMAGE, "--count", "2", "--json")
        assert answer.returncode == 0, answer.stderr
        first, second = json.loads(answer.stdout)
        assert {first["phase"], second["phase"]} == {"Running"}
        assert first["name"] == f"vm-{first['uuid'][:8]}" != second["name"]
        assert first["status"]["addresses"][0]["address"] == ADDRESS.address

    def test_without_waiting_it_returns_once_all_are_recorded(self, site: Site) -> None:
        site.host("node1", build=never_ends)
        answer = site.run(QUERY, IMAGE, "--count", "3", "--no-wait", "--json")
        assert answer.returncode == 0, answer.stderr
        assert len(json.loads(answer.stdout)) == 3

    def test_one_that_fails_is_named_and_the_others_run(self, site: Site) -> None:
        site.host("node1", build=fails_for("web-2"))
        answer = site.run(QUERY, IMAGE, "--name", "web", "--count", "3")
        assert answer.returncode == 1
        assert [row["PHASE"] for row in rows(answer.stdout)] == ["Running", "Failed", "Running"]
        assert answer.stderr.splitlines()[-1].startswith(
            "eschedule: web-2 on node1: Failed (NoSpace: 12 MiB are free); details:"
        )

    def test_one_that_takes_too_long_is_exit_4(self, site: Site) -> None:
        site.host("node1", build=fails_for("web-2", Phase.BUILDING))
        answer = site.run(QUERY, IMAGE, "--name", "web", "--count", "3", "--wait-seconds", "2")
        assert answer.returncode == 4
        assert "2 of 3 running, 1 building" in answer.stderr.splitlines()
        assert "web-2: Building on node1; it goes on; look: eschedule show web-2" in answer.stderr.splitlines()[-1]

    def test_too_many_are_none_and_it_is_said_how_many_would_fit(self, site: Site) -> None:
        site.host("node1", vcpus=3)
        site.host("node2", vcpus=2)
        answer = site.run(QUERY, IMAGE, "--count", "6")
        assert (answer.returncode, answer.stdout) == (3, "")
        assert answer.stderr.splitlines()[-1] == (
            "eschedule: no room for 6 instances of DISK_GB:1,MEMORY_MB:256,VCPU:1: 5 of them would fit; see: eschedule hosts"
        )
        assert (site.recorded(), site.claimed()) == (set(), set())

    def test_the_same_request_id_makes_one_set(self, site: Site) -> None:
        site.host("node1")
        arguments = (QUERY, IMAGE, "--count", "3", "--request-id", "order 7", "--json")
        first = json.loads(site.run(*arguments).stdout)
        answer = site.run(*arguments)
        assert [one["uuid"] for one in json.loads(answer.stdout)] == [one["uuid"] for one in first]
        assert "3 of 3 instances are there already, from this same request" in answer.stderr
        assert len(site.claimed()) == 3
        other = site.run(QUERY, IMAGE, "--count", "4", "--request-id", "order 7")
        assert other.returncode == 5
        assert "asked for differently" in other.stderr

    def test_an_answer_that_never_came_is_repeated_by_the_line_that_is_told(self, site: Site) -> None:
        site.host("node1")
        proxy = FaultyProxy(site.placement_server.port)
        try:
            site.configure(placement_url=proxy.url, placement_seconds=2)
            proxy.inject(Fault.HOLD_ANSWER, "POST", times=100)
            process = site.spawn(QUERY, IMAGE, "--count", "3", "--no-wait")
            wait_until(site.claimed, timeout_seconds=60, what="the claims are made")
            proxy.inject(Fault.LOSE_ANSWER, "GET", "/allocations/", times=100)
            errors = process.communicate(timeout=120)[1]
        finally:
            proxy.close()
        assert process.returncode == 4, errors
        line = errors.rpartition("to go on, repeat it with the same request id: ")[2].split()
        assert line[:2] == ["eschedule", QUERY] and line[-2] == "--request-id"
        claimed = site.claimed()
        assert len(claimed) == 3
        site.configure()
        assert site.run(*line[1:]).returncode == 0
        assert site.claimed() == claimed

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_between_claim_and_record_leaves_nothing(self, site: Site, number: int, code: int) -> None:
        site.host("node1")
        returncode, errors = site.signalled_between_claim_and_record("POST", number, QUERY, IMAGE, "--count", "3")
        assert returncode == code
        assert errors.splitlines()[-1] == "eschedule: interrupted; nothing was created"
        assert (site.claimed(), site.recorded()) == (set(), set())

    def test_a_client_that_slept_over_its_claims_makes_no_instance_without_one(self, site: Site) -> None:
        """Stopped between claim and record it misses that others took its claims for left behind; the clock is told to have run."""
        host = site.host("node1")
        proxy = FaultyProxy(site.placement_server.port)
        (site.directory / "sitecustomize.py").write_text(
            "import time, pathlib\n_real = time.clock_gettime\n"
            "time.clock_gettime = lambda clock: _real(clock) + 3600 * pathlib.Path('slept').exists()\n"
        )
        try:
            site.configure(placement_url=proxy.url)
            proxy.inject(Fault.HOLD_ANSWER, "POST", "/allocations")
            env = {"PYTHONPATH": str(site.directory)}
            process = site.spawn(QUERY, IMAGE, "--count", "3", "--no-wait", more_env=env)
            claimed = wait_until(site.claimed, timeout_seconds=60, what="the claims are made")
            freeze(process)
            for uuid in list(claimed)[:2]:
                host.release(uuid)
            (site.directory / "slept").touch()
            proxy.released.set()
            process.send_signal(signal.SIGCONT)
            errors = process.communicate(timeout=120)[1]
        finally:
            proxy.close()
        assert process.returncode == 0, errors
        assert site.claimed() == claimed
        assert proxy.count("POST", "/allocations") >= 3


class TestGroups:
    def test_apart_and_where_there_is_no_other_host_that_is_said(self, site: Site) -> None:
        for name in ("node1", "node2"):
            site.host(name)
        for name in ("db-1", "db-2"):
            assert site.run(QUERY, IMAGE, "--name", name, "--group", "db").returncode == 0
        answer = site.run(QUERY, IMAGE, "--group", "db")
        assert answer.returncode == 3
        assert "2 hosts: 2 taken by the group db; see: eschedule hosts" in answer.stderr
        shown = dict(line.split(None, 1) for line in site.run("show", "db-1").stdout.splitlines())
        assert (shown["group"], shown["alternates"]) == ("db (anti-affinity)", "1 other host left")
        assert json.loads(site.run("show", "db-1", "--json").stdout)["spec"]["group_policy"] == "anti-affinity"

    def test_a_place_in_it_is_free_again_once_its_instance_is_gone(self, site: Site) -> None:
        site.host("node1")
        for _ in range(2):
            assert site.run(QUERY, IMAGE, "--name", "db-1", "--group", "db").returncode == 0
            assert site.run("destroy", "db-1").returncode == 0
        assert site.recorded() == set()

    def test_together_and_where_that_host_is_full_that_is_said(self, site: Site) -> None:
        for name in ("node1", "node2"):
            site.host(name, vcpus=3)
        answer = site.run(QUERY, IMAGE, "--name", "db", "--count", "3", "--group", "db", "--policy", "affinity", "--json")
        (host,) = {one["host"]["name"] for one in json.loads(answer.stdout)}
        assert [one["spec"]["alternates"] for one in json.loads(answer.stdout)] == [[], [], []]
        more = site.run(QUERY, IMAGE, "--group", "db", "--policy", "affinity")
        assert more.returncode == 3
        assert f"the group db has affinity and lives on {host}: short of VCPU (0 VCPU free, 1 needed on {host})" in more.stderr

    def test_another_policy_conflicts(self, site: Site) -> None:
        site.host("node1")
        site.run(QUERY, IMAGE, "--name", "db-1", "--group", "db")
        answer = site.run(QUERY, IMAGE, "--group", "db", "--policy", "affinity")
        assert (answer.returncode, answer.stdout) == (5, "")
        assert "the group db has instances under the policy anti-affinity, this request is for affinity" in answer.stderr
        assert len(site.claimed()) == 1

    def test_members_are_in_one_key_for_each_host(self, site: Site) -> None:
        host = site.host("node1")
        answer = site.run(QUERY, IMAGE, "--count", "8", "--group", "db", "--policy", "soft-affinity", "--no-wait")
        assert answer.returncode == 0, answer.stderr
        item = site.store.get(site.keys.group("db", host.provider))
        assert item is not None
        assert set(GroupMembers.from_json(item.value).members) == site.claimed()


class TestReboot:
    def test_another_boot_is_asked_for_and_waited_for(self, site: Site) -> None:
        def build(host: StandInHost, spec: InstanceSpec) -> None:
            if spec.boot_request > 1:  # it is running still before it goes down
                host.report(spec, Phase.RUNNING, booted=spec.boot_request - 1)
                host.report(spec, Phase.REBOOTING, booted=spec.boot_request - 1)
            builds_at_once(host, spec)

        host = site.host("node1", build=build)
        site.run(QUERY, IMAGE, "--name", "web-1")
        for boot_request, hard in ((2, False), (3, True)):
            answer = site.run("reboot", "web-1", *(["--hard"] if hard else []))
            assert answer.returncode == 0, answer.stderr
            assert "web-1" in answer.stderr and "is rebooted after" in answer.stderr
            item = site.store.get(site.keys.spec(host.provider, site.uuid_of("web-1")))
            assert item is not None
            spec = InstanceSpec.from_json(item.value)
            assert (spec.boot_request, spec.hard_reboot, spec.desired) == (boot_request, hard, "running")

    def test_one_that_is_stopped_is_started(self, site: Site) -> None:
        site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        site.run("stop", "web-1")
        assert site.run("reboot", "web-1").returncode == 0
        assert json.loads(site.run("show", "web-1", "--json").stdout)["phase"] == "Running"

    def test_it_need_not_be_waited_for(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        host.build = never_ends
        assert site.run("reboot", "web-1", "--no-wait").returncode == 0
        late = site.run("reboot", "web-1", "--wait-seconds", "0.5")
        assert late.returncode == 4
        assert "not rebooted after" in late.stderr

    def test_one_that_is_being_destroyed_is_left_alone(self, site: Site) -> None:
        host = site.host("node1")
        site.run(QUERY, IMAGE, "--name", "web-1")
        host.close()
        site.run("destroy", "web-1", "--no-wait")
        answer = site.run("reboot", "web-1")
        assert answer.returncode == 5
        assert "web-1 is being destroyed" in answer.stderr
