"""A request: its identity, its digest, the spec that it becomes; the query and the order of candidates beside it."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import os
import random
import re
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.config import DefaultsConfig, ScheduleConfig
from common.errors import ConfigError
from common.model import (
    Alternate,
    ConfigDrive,
    Forward,
    GroupPolicy,
    ImageRef,
    InstanceSpec,
    MetadataAccess,
    Nic,
    Restart,
)
from common.nics import IpAddress
from common.placement_types import Candidate, Candidates, ProviderSummary, Usage
from eschedule.arguments import parse
from eschedule.intake import request_from
from eschedule.ordering import in_order
from eschedule.query import Query, unmet
from eschedule.request import Request
from eschedule.verbs import PLACES

INSTANCE = UUID("0b4fd7c1-6f5b-4c6e-9a0e-3d2c5a7e8f10")
IMAGE = "https://images.example.org/tiny.qcow2"
QUERY = "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
REQUEST = Request(QUERY, {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}, ImageRef(IMAGE))


class TestIdentity:
    def test_a_uuid_that_is_given_is_the_instances(self) -> None:
        asked = dataclasses.replace(REQUEST, uuid=INSTANCE)
        assert asked.instance_uuid("/p/", uuid4) == INSTANCE

    def test_a_request_id_gives_the_same_uuid_each_time_and_another_in_another_deployment(self) -> None:
        asked = dataclasses.replace(REQUEST, request_id="order 7")
        first = asked.instance_uuid("/p/", uuid4)
        assert first == asked.instance_uuid("/p/", uuid4)
        assert first != asked.instance_uuid("/q/", uuid4)
        assert first != dataclasses.replace(REQUEST, request_id="order 8").instance_uuid("/p/", uuid4)

    def test_otherwise_a_new_one_is_made(self) -> None:
        assert REQUEST.instance_uuid("/p/", lambda: INSTANCE) == INSTANCE

    def test_the_default_name_is_computed_from_the_uuid(self) -> None:
        assert REQUEST.instance_name(INSTANCE) == "vm-0b4fd7c1"
        assert dataclasses.replace(REQUEST, name="web-1").instance_name(INSTANCE) == "web-1"


class TestDigest:
    def test_who_asks_under_which_uuid_is_no_part_of_it(self) -> None:
        assert REQUEST.digest() == dataclasses.replace(REQUEST, uuid=INSTANCE, request_id="x").digest()

    @pytest.mark.parametrize(
        "change",
        [
            {"query": "resources=VCPU:2,MEMORY_MB:256,DISK_GB:1"},
            {"image": ImageRef(IMAGE + "x")},
            {"image": ImageRef(IMAGE, "sha256:" + "0" * 64)},
            {"name": "web-1"},
            {"keys": (KEY,)},
            {"user_data": b""},
            {"user_data": b"\xff\x00"},
            {"hostname": "web"},
            {"nics": (Nic(), Nic())},
            {"nics": (Nic("lan"),)},
            {"nics": (Nic("", "br0"),)},
            {"nics": (Nic(mac="52:54:00:00:00:01"),)},
            {"nics": (Nic(addresses=(IpAddress("10.0.0.5", 0),)),)},
            {"restart": Restart.ALWAYS},
            {"grace_seconds": 5},
            {"group": "web"},
            {"count": 2},
            {"metadata": MetadataAccess.OFF},
            {"metadata_hop_limit": 2},
            {"config_drive": ConfigDrive.NOCLOUD},
            {"allow": ()},
            {"allow": ("tcp:22",)},
            {"forwards": (Forward(8080, 80),)},
        ],
    )
    def test_everything_that_is_asked_for_is_part_of_it(self, change: dict[str, Any]) -> None:
        assert REQUEST.digest() != dataclasses.replace(REQUEST, **change).digest()

    def test_requests_of_earlier_versions_are_still_known(self) -> None:
        """As they computed them: a repeat over an upgrade finds its instance."""
        assert REQUEST.digest() == "sha256:4784955fde15bcbf2abeb2f4faa80ecd2a1163d0a931229e1b4deb9b5b226a68"
        two = dataclasses.replace(REQUEST, nics=(Nic(), Nic("lan")))
        assert two.digest() == "sha256:f46d0b99dd5e52fca33fe7e656ed4963107f637ce96f45cf8e17ba0cd2531452"


class TestSpec:
    def test_it_carries_the_request_and_the_claim(self) -> None:
        asked = dataclasses.replace(
            REQUEST, name="web-1", keys=(KEY,), user_data=b"#!\xff", nics=(Nic(), Nic("lan")), restart=Restart.ALWAYS
        )
        alternates = tuple(Alternate(uuid4(), {}) for _ in range(5))
        spec = asked.spec(INSTANCE, {"VCPU": 1}, alternates, created_at="now", created_by="me@here")
        assert spec == InstanceSpec(
            uuid=INSTANCE, name="web-1", image=ImageRef(IMAGE), resources={"VCPU": 1}, nics=(Nic("default"), Nic("lan")),
            keys=(KEY,), user_data_base64="IyH/", hostname="web-1", alternates=alternates[:3], restart=Restart.ALWAYS,
            request_digest=asked.digest(), created_at="now", created_by="me@here", query=QUERY,
        )  # fmt: skip
        assert spec.user_data == b"#!\xff"
        reached = dataclasses.replace(
            asked, metadata=MetadataAccess.REQUIRED, metadata_hop_limit=2, config_drive=ConfigDrive.NOCLOUD, allow=("icmp",),
            forwards=(Forward(8080, 80),),
        ).spec(INSTANCE, {"VCPU": 1}, (), created_at="", created_by="")  # fmt: skip
        assert (reached.metadata, reached.metadata_hop_limit, reached.config_drive) == ("required", 2, "nocloud")
        assert (reached.allow, reached.forwards) == (("icmp",), (Forward(8080, 80),))
        assert InstanceSpec.from_json(spec.to_json()) == spec

    def test_the_host_name_is_the_name_unless_one_is_given(self) -> None:
        asked = dataclasses.replace(REQUEST, hostname="db")
        assert asked.spec(INSTANCE, {}, (), created_at="", created_by="").hostname == "db"
        assert REQUEST.spec(INSTANCE, {}, (), created_at="", created_by="").hostname == "vm-0b4fd7c1"


class TestQuery:
    def test_only_our_live_hosts_are_asked_for(self) -> None:
        assert str(Query.parse(QUERY).on_hosts()) == (f"{QUERY}&root_required=CUSTOM_ETCD_COMPUTE,!COMPUTE_STATUS_DISABLED")

    def test_a_root_required_of_the_users_own_is_kept_in_the_one_that_placement_takes(self) -> None:
        merged = Query.parse(f"{QUERY}&root_required=CUSTOM_FAST,!COMPUTE_STATUS_DISABLED").on_hosts()
        assert merged.pairs[-1] == ("root_required", "CUSTOM_FAST,!COMPUTE_STATUS_DISABLED,CUSTOM_ETCD_COMPUTE")
        assert sum(key == "root_required" for key, _ in merged.pairs) == 1

    def test_repeated_and_granular_parameters_survive(self) -> None:
        text = "resources_a=VCPU:1&required=A&required=in:B,C&member_of=in:x,y&group_policy=none"
        assert str(Query.parse(text)) == text
        assert Query.parse(text).opaque_keys() == ("resources_a", "member_of", "group_policy")
        assert str(Query.parse(text).without("required")) == "resources_a=VCPU:1&member_of=in:x,y&group_policy=none"

    def test_traits_that_a_host_does_not_meet_in_words(self) -> None:
        wanted = Query.parse("required=A,!B&required=in:C,D&root_required=E").required_traits()
        assert unmet(wanted, frozenset("AE")) == ("lacks C or D",)
        assert unmet(wanted, frozenset("BCE")) == ("lacks A", "has B")
        assert unmet(wanted, frozenset("ADE")) == ()


class TestOrder:
    def candidates(self, *used: int) -> Candidates:
        hosts = [uuid4() for _ in used]
        return Candidates(
            tuple(Candidate({host: {"VCPU": 1}}) for host in hosts),
            {h: ProviderSummary(h, h, {"VCPU": Usage(10, u)}, frozenset()) for h, u in zip(hosts, used, strict=True)},
        )

    def used(self, candidates: Candidates, policy: str, seed: int = 1) -> list[int]:
        ordered = in_order(candidates, policy, random.Random(seed))
        return [candidates.summaries[host].resources["VCPU"].used for c in ordered for host in c.allocations]

    def test_spread_begins_with_the_emptiest_and_pack_with_the_fullest(self) -> None:
        candidates = self.candidates(3, 0, 8)
        assert self.used(candidates, "spread") == [0, 3, 8]
        assert self.used(candidates, "pack") == [8, 3, 0]

    def test_equals_are_shuffled(self) -> None:
        candidates = self.candidates(*[2] * 8)
        orders = {tuple(in_order(candidates, "spread", random.Random(seed))[0].allocations) for seed in range(40)}
        assert len(orders) > 4

    def test_random_is_any_order_of_all(self) -> None:
        candidates = self.candidates(*range(6))
        orders = {tuple(self.used(candidates, "random", seed)) for seed in range(20)}
        assert len(orders) > 5
        assert all(sorted(order) == list(range(6)) for order in orders)

    def test_the_fullest_of_the_resources_decides(self) -> None:
        cpu, memory = uuid4(), uuid4()
        asked = {"VCPU": 1, "MEMORY_MB": 1}
        summaries = {
            cpu: ProviderSummary(cpu, cpu, {"VCPU": Usage(10, 8), "MEMORY_MB": Usage(10, 0)}, frozenset()),
            memory: ProviderSummary(memory, memory, {"VCPU": Usage(10, 5), "MEMORY_MB": Usage(10, 5)}, frozenset()),
        }
        answer = Candidates((Candidate({cpu: asked}), Candidate({memory: asked})), summaries)
        assert next(iter(in_order(answer, "spread", random.Random(1))[0].allocations)) == memory


class TestIntake:
    @pytest.fixture
    def key_file(self, tmp_path: Path) -> Path:
        path = tmp_path / "key.pub"
        path.write_text(KEY + "\n")
        return path

    def request(self, *arguments: str, config: ScheduleConfig | None = None) -> Request:
        return request_from(parse(["create", QUERY, *arguments]), config or ScheduleConfig())

    def test_everything_that_can_be_asked_for(self, key_file: Path, tmp_path: Path) -> None:
        (tmp_path / "user-data").write_bytes(b"#cloud-config\n")
        made = self.request(
            IMAGE, "--checksum", "sha256:" + "A" * 64, "--name", "web-1", "--hostname", "web", "--key", str(key_file),
            "--key", str(key_file), "--user-data", str(tmp_path / "user-data"), "--network", "lan", "--network", "wan",
            "--restart", "always", "--grace-seconds", "5", "--uuid", str(INSTANCE).upper(),
        )  # fmt: skip
        assert made == Request(
            query="resources=DISK_GB:1,MEMORY_MB:256,VCPU:1", resources={"DISK_GB": 1, "MEMORY_MB": 256, "VCPU": 1},
            image=ImageRef(IMAGE, "sha256:" + "a" * 64), name="web-1", keys=(KEY,), user_data=b"#cloud-config\n", hostname="web",
            nics=(Nic("lan"), Nic("wan")), restart=Restart.ALWAYS, grace_seconds=5, uuid=INSTANCE,
        )  # fmt: skip

    def test_the_configuration_fills_in_what_is_not_said(self, key_file: Path) -> None:
        defaults = DefaultsConfig(image="/srv/tiny.qcow2", key_files=(key_file,), network="lan", restart="on-failure")
        made = self.request(config=ScheduleConfig(defaults=defaults))
        assert (made.image.url, made.keys, made.nics) == ("/srv/tiny.qcow2", (KEY,), (Nic("lan"),))
        assert made.restart is Restart.ON_FAILURE
        assert self.request(IMAGE, config=ScheduleConfig(defaults=defaults)).image.url == IMAGE

    def test_cards_are_in_the_order_in_which_they_are_asked_for(self) -> None:
        config = ScheduleConfig(defaults=DefaultsConfig(network="office"))
        made = self.request(IMAGE, "--nic", "bridge=br0,vlan=7", "--network", "lan", "--nic", "default", config=config)
        assert made.nics == (Nic("", "br0", 7), Nic("lan"), Nic("office"))

    def test_requests_that_mean_the_same_are_the_same(self) -> None:
        one = request_from(parse(["create", "resources=VCPU:1,MEMORY_MB:256,DISK_GB:1", IMAGE]), ScheduleConfig())
        two = request_from(parse(["resources=DISK_GB:1,VCPU:01,MEMORY_MB:256", "--image", IMAGE]), ScheduleConfig())
        assert one.digest() == two.digest()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "no image is given"),
            ((IMAGE, "--image", IMAGE), "given twice"),
            ((IMAGE, "--uuid", str(INSTANCE), "--request-id", "x"), "give one of them"),
            ((IMAGE, "--key", "/nowhere/key.pub"), "--key /nowhere/key.pub cannot be read: No such file"),
            ((IMAGE, "--user-data", "/"), "--user-data / cannot be read: Is a directory"),
            ((IMAGE, "--user-data", "a\0b"), "cannot be read"),
            ((IMAGE, "--name", "two words"), "has a space"),
            ((IMAGE, *["--network", "lan"] * 17), "at most 16"),
            ((IMAGE, "--nic", "lan"), "is no KEY=VALUE"),
            ((IMAGE, "--nic", "network=lan,address=10.0.0.5", "--count", "2"), r"10\.0\.0\.5 is one card's own, and --count 2"),
            ((IMAGE, "--nic", "network=lan,mac=52:54:00:00:00:01", "--count", "2"), "is one card's own, and --count 2"),
            ((IMAGE, "--policy", "affinity"), "--policy says how the instances of a group are spread; give --group NAME"),
            ((IMAGE, "--group", "web", "--policy", "afinity"), "did you mean affinity?"),
            ((IMAGE, "--group", "web", "--policy", "pack"), "the one of schedule.yaml is another"),
            ((IMAGE, "--group", "web 1"), "group"),
            ((IMAGE, "--count", "0"), "--count is"),
            ((IMAGE, "--count", "1001"), "a whole number from 1 to 1000"),
            ((IMAGE, "--count", "2.5"), "a whole number from 1 to 1000"),
            ((IMAGE, "--count", "2", "--uuid", str(INSTANCE)), "--uuid names one instance, --count asks for several"),
            ((IMAGE, "--count", "1000", "--name", "x" * 59), "it is --name x+ with its number"),
            ((IMAGE, "--name", "web-{m}"), 'has "{"'),
            (
                (IMAGE, "--key", "alice"),
                "neither the name of a key that is kept .* nor a file here; keep it: eschedule key add",
            ),
            ((IMAGE, "--metadata", "on"), "none of optional, required, off"),
            ((IMAGE, "--metadata-hop-limit", "65"), "a whole number from 1 to 64"),
            ((IMAGE, "--config-drive=iso"), "none of auto, openstack, nocloud, none"),
            ((IMAGE, "--allow", "22"), "write tcp:22"),
            ((IMAGE, "--allow", "tcp:22", "--allow-all"), "give one of them"),
            ((IMAGE, "--publish", "80"), "is no HOSTPORT:GUESTPORT"),
            ((IMAGE, "--publish", "80:80", "--publish", "80:81"), "is to lead to 80 and to 81"),
            ((IMAGE, "--publish", "80:80", "--count", "2"), "give --group NAME as well"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, arguments: tuple[str, ...], said: str) -> None:
        with pytest.raises(ConfigError, match=said) as caught:
            self.request(*arguments)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), (None, GroupPolicy.ANTI_AFFINITY)),
            (("--group", "web"), ("web", GroupPolicy.ANTI_AFFINITY)),
            (("--group", "web", "--policy", "soft-affinity"), ("web", GroupPolicy.SOFT_AFFINITY)),
        ],
    )
    def test_groups(self, arguments: tuple[str, ...], expected: tuple[str | None, GroupPolicy]) -> None:
        asked = self.request(IMAGE, *arguments)
        assert (asked.group, asked.group_policy) == expected

    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            (("--name", "web"), ["web"]),
            (("--name", "web-{n}"), ["web-1"]),
            (("--name", "web", "--count", "1"), ["web"]),
            (("--name", "web", "--count", "2"), ["web-1", "web-2"]),
            (("--name", "{n}web", "--count", "2"), ["1web", "2web"]),
            (("--name", "x" * 61, "--count", "9"), [f"{'x' * 61}-{n}" for n in range(1, 10)]),
        ],
    )
    def test_names_of_several(self, arguments: tuple[str, ...], names: list[str]) -> None:
        asked = self.request(IMAGE, *arguments)
        members = asked.members(INSTANCE) if asked.count > 1 else (asked,)
        assert [member.name for member in members] == names

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ((), ("optional", 1, "auto", None, ())),
            (("--metadata", "required", "--metadata-hop-limit", "2"), ("required", 2, "auto", None, ())),
            (("--config-drive", "--allow", "tcp:22,icmp", "--allow", "udp:53"), ("optional", 1, "openstack", ("tcp:22", "icmp", "udp:53"), ())),
            (("--config-drive=nocloud", "--allow", "none"), ("optional", 1, "nocloud", (), ())),
            (("--no-config-drive", "--publish", "8080:80", "--publish", "udp:53:53"), ("optional", 1, "none", None, (Forward(8080, 80), Forward(53, 53, "udp")))),
        ],
    )  # fmt: skip
    def test_how_it_is_told_of_itself_and_reached(self, arguments: tuple[str, ...], expected: tuple[Any, ...]) -> None:
        made = self.request(IMAGE, *arguments)
        assert (made.metadata, made.metadata_hop_limit, made.config_drive, made.allow, made.forwards) == expected

    def test_the_configuration_says_how_it_is_reached_where_the_request_does_not(self) -> None:
        defaults = DefaultsConfig(
            metadata="required", metadata_hop_limit=3, config_drive="nocloud", allow=("tcp:22-22", "icmp")
        )
        config = ScheduleConfig(defaults=defaults)
        made = self.request(IMAGE, config=config)
        assert (made.metadata, made.metadata_hop_limit, made.config_drive, made.allow) == (
            "required",
            3,
            "nocloud",
            ("tcp:22", "icmp"),
        )
        said = ("--metadata", "off", "--metadata-hop-limit", "1", "--no-config-drive", "--allow-all")
        made = self.request(IMAGE, *said, config=config)
        assert (made.metadata, made.metadata_hop_limit, made.config_drive, made.allow) == ("off", 1, "none", None)

    def test_keys_are_files_or_names_and_the_store_is_asked_once_for_names_alone(self, key_file: Path) -> None:
        asked: list[list[str]] = []
        other = KEY.replace("me@here", "other")

        def stored(names: Collection[str]) -> dict[str, tuple[str, ...]]:
            asked.append(list(names))
            return {"alice": (other,)}

        options = parse(["create", QUERY, IMAGE, "--key", str(key_file)])
        assert request_from(options, ScheduleConfig(), stored).keys == (KEY,)
        assert asked == []
        options = parse(["create", QUERY, IMAGE, "--key", "alice", "--key", str(key_file), "--key", "alice"])
        assert request_from(options, ScheduleConfig(), stored).keys == (other, KEY)
        assert asked == [["alice", "alice"]]

    def test_keys_are_counted_together(self, tmp_path: Path) -> None:
        names = [str(tmp_path / f"{n}.pub") for n in range(2)]
        for n, name in enumerate(names):
            blobs = (b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(30) + bytes((n, i)) for i in range(60))
            Path(name).write_text("\n".join(f"ssh-ed25519 {base64.b64encode(blob).decode()}" for blob in blobs))
        assert len(self.request(IMAGE, "--key", names[0], "--key", names[0]).keys) == 60
        with pytest.raises(ConfigError, match="120 keys are given in all, at most 100 are taken"):
            self.request(IMAGE, "--key", names[0], "--key", names[1])

    def test_a_name_that_is_not_kept_may_be_a_file_here(self, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        key_file.rename(key_file.with_name("alice"))
        monkeypatch.chdir(key_file.parent)
        assert self.request(IMAGE, "--key", "alice").keys == (KEY,)

    def test_a_default_key_file_that_is_missing_names_the_configuration(self) -> None:
        config = ScheduleConfig(defaults=DefaultsConfig(key_files=(Path("/nowhere.pub"),)))
        with pytest.raises(ConfigError, match=r"defaults\.key_files /nowhere\.pub cannot be read"):
            self.request(IMAGE, config=config)

    @pytest.mark.parametrize("option", ["--key", "--user-data"])
    def test_a_pipe_that_nobody_writes_to_is_not_waited_for(self, option: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="is a pipe that nobody writes to"):
            self.request(IMAGE, option, str(tmp_path / "pipe"))

    def test_what_another_program_writes_into_a_pipe_is_read(self) -> None:
        reading, writing = os.pipe()
        writer = threading.Timer(0.05, lambda: (os.write(writing, f"{KEY}\n".encode()), os.close(writing)))
        writer.start()
        assert self.request(IMAGE, "--key", f"/dev/fd/{reading}").keys == (KEY,)
        os.close(reading)

    def test_of_a_file_that_never_ends_little_is_read(self) -> None:
        with pytest.raises(ConfigError, match="at most 65536"):
            self.request(IMAGE, "--user-data", "/dev/zero")


class TestArguments:
    def parsed(self, *arguments: str) -> argparse.Namespace:
        return parse(arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            (QUERY, IMAGE),
            ("create", QUERY, IMAGE),
            ("--config", "f.yaml", QUERY, IMAGE),
            ("--name", "web", QUERY, IMAGE),
            ("-v", "create", QUERY, IMAGE, "--json"),
        ],
    )
    def test_a_request_is_create(self, arguments: tuple[str, ...]) -> None:
        options = self.parsed(*arguments)
        assert (options.command, options.query, options.image_argument) == ("create", QUERY, IMAGE)

    def test_common_options_stand_before_or_behind_the_verb(self) -> None:
        for arguments in (["--config", "f", "-v", "list"], ["list", "--config", "f", "-v"]):
            options = self.parsed(*arguments)
            assert (options.config, options.verbose, options.command) == ("f", True, "list")
        assert (self.parsed("list").config, self.parsed("list").verbose) == (None, False)

    @pytest.mark.parametrize(
        ("arguments", "drive", "image"),
        [
            (("--config-drive", QUERY, IMAGE), "openstack", IMAGE),
            (("create", QUERY, "--config-drive", "nocloud"), "nocloud", None),
            (("create", QUERY, IMAGE, "--config-drive"), "openstack", IMAGE),
            (("create", QUERY, IMAGE, "--config-drive=auto"), "auto", IMAGE),
            (("create", QUERY, IMAGE, "--no-config-drive"), "none", IMAGE),
        ],
    )
    def test_a_config_drive_may_be_asked_for_without_its_form(
        self, arguments: tuple[str, ...], drive: str, image: str | None
    ) -> None:
        options = self.parsed(*arguments)
        assert (options.config_drive, options.image_argument) == (drive, image)

    def test_help_before_a_verb_lists_all_of_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (("--help",), ("-v", "--help"), ("--help", "list")):
            with pytest.raises(SystemExit):
                self.parsed(*arguments)
            said = capsys.readouterr().out
            assert all(f"\n    {verb} " in said for verb in PLACES), said

    def test_ports_are_added_and_taken_away(self) -> None:
        options = self.parsed("port-forward", "web-1", "80:8080", "--rm", "81", "53:53/udp", "--rm", "82/udp")
        assert (options.instance, options.ports, options.rm) == ("web-1", ["80:8080", "53:53/udp"], ["81", "82/udp"])
        assert (self.parsed("port-forward", "web-1").ports, self.parsed("port-forward", "web-1").rm) == ([], None)

    def test_words_may_stand_among_the_options(self) -> None:
        options = self.parsed("create", "resources=VCPU:1", "--name", "q", "--json", "/x.qcow2", "--key=a", "--no-wait")
        assert (options.query, options.image_argument, options.name, options.key) == (
            "resources=VCPU:1",
            "/x.qcow2",
            "q",
            ["a"],
        )
        assert options.json and options.no_wait
        assert self.parsed("create", "--name", "q", "resources=VCPU:1", "--", "/x").image_argument == "/x"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("create", "resources=VCPU:1", "/x", "/y"), "unrecognized arguments: /y; see: eschedule create --help"),
            (("create", "resources=VCPU:1", "--nome", "q"), "--nome; did you mean --name?"),
            (("set", "web-1", "--publish", "80:80"), "use: eschedule port-forward"),
            (("set", "web-1", "--config-drive", "--no-config-drive"), "not allowed with argument --config-drive"),
            (("create", "resources=VCPU:1", "--no-config-drive", "--config-drive=nocloud"), "not allowed with argument"),
        ],
    )
    def test_what_a_verb_does_not_take(self, arguments: tuple[str, ...], said: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(said)):
            self.parsed(*arguments)

    def test_help_is_a_word_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            self.parsed("help", "host", "show")
        assert capsys.readouterr().out.startswith("usage: eschedule host show")

    def test_several_are_resized_and_their_query_is_found_among_them(self) -> None:
        options = self.parsed("resize", "web-1", "resources=VCPU:2", "web-2")
        assert (options.instances, options.query) == (["web-1", "web-2"], "resources=VCPU:2")
        assert self.parsed("resize", "-l", "app=web", "--cpus", "2").instances == []

    def test_a_uuid_is_show(self) -> None:
        options = self.parsed(str(INSTANCE), "--json")
        assert (options.command, options.instance, options.json) == ("show", str(INSTANCE), True)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "nothing was asked for"),
            (("-v",), "nothing was asked for"),
            (("lst",), "did you mean list?"),
            (("VCPU:1",), "a request for an instance looks like resources="),
            (("destroy",), "the following arguments are required: NAME|UUID, or -l SELECTOR; see: eschedule destroy --help"),
            (("create",), "required: 'resources=…'"),
            (("list", "--frob"), "unrecognized arguments: --frob"),
            (("create", QUERY, IMAGE, "more"), "unrecognized arguments: more"),
            (("--config",), "expected one argument"),
            (("key",), "required: add|list|show|rm; see: eschedule key --help"),
            (("key", "ad", "x"), '"ad" is no action of eschedule key; did you mean add?'),
            (("volume", "xyz"), "there are create, attach, detach, list, show, rm"),
            (("host", "show", "h", "--jsn"), "unrecognized arguments: --jsn; did you mean --json?"),
            (("host", "show", "h", "--frob"), "unrecognized arguments: --frob; see: eschedule host show --help"),
            (("resize", "resources=VCPU:2"), "required: NAME|UUID, or -l SELECTOR"),
            (("resize", "web", "resources=VCPU:2", "resources=VCPU:3"), "resize takes one"),
            (("events", "web", "-l", "app=web"), "instances are named, and chosen by -l"),
            (("key", "rm"), "required: NAME; see: eschedule key rm --help"),
            (("set", "web-1", "--key", "a", "--no-keys"), "not allowed with argument --key"),
            (("create", QUERY, IMAGE, "--wait-sec", "3"), "unrecognized arguments: --wait-sec 3"),
        ],
    )
    def test_what_is_no_command_line_is_said_in_one_line(self, arguments: tuple[str, ...], said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.parsed(*arguments)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
