"""The program eschedule: keys that are kept, and changes of instances that run, against real etcd; hosts are stand-ins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from common.model import Forward, InstanceSpec, Phase
from tests.support.eschedule import ADDRESS, IMAGE, QUERY, Site, StandInHost, builds_at_once

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDILStVBInh3Ai7jej/rm6hMRZ2YrjZvE5uCqxz8bYS4 other"
FINGERPRINT = "SHA256:0myzyHgUbfasmahIPAdCQ7eTHeLQTb0eV5iXbtv24C8 (ED25519)"


def spec_of(site: Site, name: str) -> InstanceSpec:
    (item,) = [item for item in site.store.list(site.keys.specs()).items if item.key.endswith(str(site.uuid_of(name)))]
    return InstanceSpec.from_json(item.value)


def done(answer: subprocess.CompletedProcess[str]) -> str:
    """What was said on standard error by a run that succeeded."""
    assert answer.returncode == 0, answer.stderr
    return answer.stderr


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    (tmp_path / "key.pub").write_text(f"{KEY}\n")
    return "key.pub"


class TestKeys:
    def test_from_a_file_to_an_instance_and_away(self, site: Site, key_file: str) -> None:
        site.host("node1")
        said = done(site.run("key", "add", "alice", key_file))
        assert said.startswith("eschedule: alice: SHA256:") and said.count("\n") == 1
        assert site.run("key", "show", "alice").stdout == f"{KEY}\n"
        done(site.run(QUERY, IMAGE, "--name", "web-1", "--key", "alice"))
        assert spec_of(site, "web-1").keys == (KEY,)
        done(site.run("key", "rm", "alice"))
        assert site.run("key", "list").stdout == "NAME  FINGERPRINT  COMMENT  AGE  BY\n"
        assert spec_of(site, "web-1").keys == (KEY,), "a copy of its own"
        answer = site.run(QUERY, IMAGE, "--key", "alice")
        assert (answer.returncode, answer.stdout) == (2, "")
        assert '--key "alice" is neither the name of a key that is kept' in answer.stderr

    def test_from_another_program(self, site: Site) -> None:
        process = site.spawn("key", "add", "team", stdin=subprocess.PIPE)
        _, errors = process.communicate(f"# both\n{KEY}\n{OTHER}\n", timeout=60)
        assert process.returncode == 0, errors
        assert errors.splitlines()[1] == f"eschedule: team: {FINGERPRINT}"
        (listed,) = json.loads(site.run("key", "list", "--json").stdout)
        assert (listed["name"], listed["keys"], listed["fingerprints"][1]) == ("team", [KEY, OTHER], FINGERPRINT)
        assert json.loads(site.run("key", "show", "team", "--json").stdout) == listed
        lines = site.run("key", "list").stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["NAME", "team", "team"]
        assert lines[2].split()[1:4] == [*FINGERPRINT.split(), "other"]

    def test_a_name_is_not_taken_twice_unless_that_is_asked_for(self, site: Site, key_file: str, tmp_path: Path) -> None:
        done(site.run("key", "add", "alice", key_file))
        (tmp_path / "other.pub").write_text(OTHER)
        answer = site.run("key", "add", "alice", "other.pub")
        assert answer.returncode == 5
        assert "the name alice has keys already" in answer.stderr
        assert "alice: these are its keys already" in done(site.run("key", "add", "alice", key_file))
        assert site.run("key", "show", "alice").stdout == f"{KEY}\n"
        assert "eschedule set NAME --key alice" in done(site.run("key", "add", "alice", "other.pub", "--replace"))
        assert site.run("key", "show", "alice").stdout == f"{OTHER}\n"

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("add", "a/b", "key.pub"), 2, 'key name "a/b" is none'),
            (("add", "alice", "/nowhere.pub"), 2, "FILE /nowhere.pub cannot be read"),
            (("add", "alice"), 2, "standard input holds no public key"),
            (("show", "alice"), 1, "there are no keys under the name alice"),
            (("rm", "alice"), 1, "there are no keys under the name alice"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, site: Site, arguments: tuple[str, ...], code: int, said: str) -> None:
        answer = site.run("key", *arguments)
        assert (answer.returncode, answer.stdout) == (code, "")
        assert said in answer.stderr and answer.stderr.count("\n") == 1
        assert list(site.store.list(site.keys.ssh_keys()).items) == []

    def test_a_private_key_is_neither_kept_nor_repeated(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n")
        answer = site.run("key", "add", "alice", "./id")
        assert answer.returncode == 2
        assert "is a PRIVATE key" in answer.stderr and "c2VjcmV0" not in answer.stderr


class TestSet:
    def test_what_is_changed_and_what_is_not(self, site: Site, key_file: str, tmp_path: Path) -> None:
        host = site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1", "--config-drive", "--allow", "tcp:22"))
        before = spec_of(site, "web-1")
        (tmp_path / "user-data").write_bytes(b"#cloud-config\n")
        said = done(
            site.run(
                "set", "web-1", "--key", key_file, "--user-data", "user-data", "--metadata", "required",
                "--metadata-hop-limit", "2", "--allow", "tcp:22,icmp", "--config-drive=nocloud",
            )
        )  # fmt: skip
        after = spec_of(site, "web-1")
        assert (after.keys, after.user_data, after.metadata, after.metadata_hop_limit) == (
            (KEY,),
            b"#cloud-config\n",
            "required",
            2,
        )
        assert (after.allow, after.config_drive) == (("tcp:22", "icmp"), "nocloud")
        assert (after.boot_request, after.reboot_request, after.desired) == (before.boot_request, 0, "running")
        assert after.request_digest == before.request_digest
        lines = [line.removeprefix("eschedule: web-1: ") for line in said.splitlines() if line.startswith("eschedule: ")]
        assert lines == [
            "metadata, hop limit, rules: from now on",
            "keys, user data: the metadata service answers so from now on; cloud-init asks at its first boot only",
            "keys, user data: on its config drive from its next start on (eschedule reboot web-1)",
            "config drive: nocloud, attached in place of openstack with its next start (eschedule reboot web-1)",
        ]
        assert host.site.claimed() == {after.uuid}
        assert "all of this is so already" in done(
            site.run("set", str(after.uuid), "--key", key_file, "--metadata", "required")
        )
        lost = "eschedule: warning: web-1: its keys and user data will reach nobody: with --metadata off and --no-config-drive"
        assert lost in done(site.run("set", "web-1", "--metadata", "off", "--no-config-drive"))
        done(site.run("set", "web-1", "--no-keys", "--no-user-data", "--allow-all"))
        after = spec_of(site, "web-1")
        assert (after.keys, after.user_data, after.allow, after.metadata, after.config_drive) == ((), None, None, "off", "none")

    def test_it_waits_until_the_host_has_seen_it(self, site: Site) -> None:
        host = site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1"))
        host.build = lambda _host, _spec: None  # it hears of the change, and says nothing
        answer = site.run("set", "web-1", "--allow", "none", "--wait-seconds", "0.5")
        assert answer.returncode == 4
        assert "not applied after 0." in answer.stderr and "it goes on; look: eschedule show web-1" in answer.stderr
        assert "asked for; look: eschedule show web-1" in done(site.run("set", "web-1", "--allow", "icmp", "--no-wait"))
        process = site.spawn("set", "web-1", "--allow", "tcp:22")
        host.build = builds_at_once
        done(site.run("set", "web-1", "--metadata-hop-limit", "3"))  # any status of a later spec tells it, too
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert spec_of(site, "web-1").allow == ("tcp:22",)

    def test_what_its_host_notes_is_passed_on(self, site: Site) -> None:
        def notes(host: StandInHost, spec: InstanceSpec) -> None:
            host.report(spec, Phase.RUNNING, addresses=(ADDRESS,), booted=1, notes=("rules cannot be enforced: no nft\x1b[2J",))

        site.host("node1", build=notes)
        warning = "eschedule: warning: web-1: rules cannot be enforced: no nft\\x1b[2J\n"
        assert warning in done(site.run(QUERY, IMAGE, "--name", "web-1"))
        assert warning in done(site.run("set", "web-1", "--allow", "tcp:22"))
        assert warning.replace("web-1", "db-2") in done(site.run(QUERY, IMAGE, "--name", "db", "--count", "2"))
        assert "note" in site.run("show", "web-1").stdout

    def test_a_host_that_cannot_do_it_is_named(self, site: Site) -> None:
        host = site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1"))
        host.build = lambda host, spec: host.report(spec, Phase.RUNNING, booted=1, message="WriteRules: there is no nft here")
        answer = site.run("set", "web-1", "--allow", "tcp:22")
        assert answer.returncode == 1
        assert answer.stderr.splitlines()[-1] == (
            "eschedule: the change of web-1 is recorded, but not in force on node1: WriteRules: there is no nft here; "
            "it is tried on; look: eschedule show web-1"
        )

    def test_of_a_guest_that_is_down_it_holds_from_its_next_start_on(self, site: Site) -> None:
        site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1"))
        done(site.run("stop", "web-1"))
        said = done(site.run("set", "web-1", "--allow", "tcp:22"))
        assert said.splitlines()[-1] == "eschedule: web-1: rules: from its next start on (eschedule start web-1)"
        assert spec_of(site, "web-1").desired == "stopped"

    def test_user_data_that_no_guest_will_know_is_told_and_taken(self, site: Site, tmp_path: Path) -> None:
        site.host("node1")
        (tmp_path / "user-data").write_bytes(b"# cloud-config\n")
        warning = "eschedule: warning: --user-data user-data: its first line is not #cloud-config to the letter"
        assert warning in done(site.run(QUERY, IMAGE, "--name", "web-1", "--user-data", "user-data"))
        assert warning not in done(site.run("set", "web-1", "--allow", "none"))
        assert warning in done(site.run("set", "web-1", "--user-data", "user-data"))

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("web-1",), 2, "nothing is to be set"),
            (("nobody", "--allow", "none"), 1, "there is no instance nobody"),
            (("web-1", "--allow", "22"), 2, "write tcp:22"),
            (("web-1", "--key", "alice"), 2, "neither the name of a key that is kept"),
            (("web-1", "--key", "alice,bob"), 2, "give --key twice: --key alice --key bob"),
            (("web-1", "--allow", "icmp", "--no-wait", "--wait-seconds", "1"), 2, "exclude each other"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, site: Site, arguments: tuple[str, ...], code: int, said: str) -> None:
        answer = site.run("set", *arguments)
        assert (answer.returncode, answer.stdout) == (code, "")
        assert said in answer.stderr.splitlines()[-1]


class TestPortForward:
    def test_ports_come_and_go(self, site: Site) -> None:
        site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1", "--publish", "2222:22"))
        answer = site.run("port-forward", "web-1", "8080:80", "53:5353/udp")
        done(answer)
        assert [line.split() for line in answer.stdout.splitlines()[1:]] == [
            ["node1:2222/tcp", f"{ADDRESS.address}:22", "in", "force"],
            ["node1:8080/tcp", f"{ADDRESS.address}:80", "in", "force"],
            ["node1:53/udp", f"{ADDRESS.address}:5353", "in", "force"],
        ]
        assert site.run("port-forward", "web-1").stdout == answer.stdout
        assert "forward    node1:8080/tcp to port 80" in site.run("show", "web-1").stdout
        answer = site.run("port-forward", "web-1", "--rm", "2222", "8080:81", "--rm", "8080")
        done(answer)
        assert spec_of(site, "web-1").forwards == (Forward(53, 5353, "udp"), Forward(8080, 81))
        assert spec_of(site, "web-1").boot_request == 1
        assert json.loads(site.run("port-forward", "web-1", "--json").stdout)[1] == {
            "protocol": "tcp", "host": "node1", "host_port": 8080, "address": ADDRESS.address, "guest_port": 81,
            "state": "in force", "note": "",
        }  # fmt: skip
        assert "all of this is so already" in done(site.run("port-forward", "web-1", "8080:81"))

    def test_one_that_is_not_in_force_is_listed_so_and_a_failure(self, site: Site) -> None:
        taken = "port 8080/tcp of this host is taken by instance db; choose another"
        shut = "port 81/tcp of the host leads to tcp:80, which its rules let nobody reach; allow it"

        def notes(host: StandInHost, spec: InstanceSpec) -> None:
            host.report(spec, Phase.RUNNING, booted=1, notes=(taken, shut) if spec.forwards else ())

        site.host("node1", build=notes)
        done(site.run(QUERY, IMAGE, "--name", "web-1"))
        answer = site.run("port-forward", "web-1", "8080:80", "81:80", "82:80")
        assert answer.returncode == 1
        assert [line.split("  ")[-1].strip() for line in answer.stdout.splitlines()] == [
            "STATE", "taken", "shut by its rules", "in force",
        ]  # fmt: skip
        assert answer.stderr.splitlines()[-1].startswith(
            "eschedule: the change of web-1 is recorded, but not in force: port 8080/tcp (taken); it is tried on; take it back: "
        )
        listed = site.run("port-forward", "web-1", "--json")
        assert (listed.returncode, json.loads(listed.stdout)[0]["state"], json.loads(listed.stdout)[0]["note"]) == (
            0,
            "taken",
            taken,
        )
        assert site.run("port-forward", "web-1", "8080:80").returncode == 1
        done(site.run("port-forward", "web-1", "83:80"))

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("8080:81",), 5, "port 8080/tcp leads to 80 of web-1 already"),
            (("--rm", "81"), 1, "port 81/tcp does not lead to web-1"),
            (("8081",), 2, "is no HOSTPORT:GUESTPORT"),
            (("--rm", "http"), 2, "is no port"),
            (("--rm", "8080:80"), 2, "names two ports"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, site: Site, arguments: tuple[str, ...], code: int, said: str) -> None:
        site.host("node1")
        done(site.run(QUERY, IMAGE, "--name", "web-1", "--publish", "8080:80"))
        answer = site.run("port-forward", "web-1", *arguments)
        assert (answer.returncode, answer.stdout) == (code, "")
        assert said in answer.stderr.splitlines()[-1]
        assert spec_of(site, "web-1").forwards == (Forward(8080, 80),)
