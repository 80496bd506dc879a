"""What is shown: tables, blocks, JSON, the progress line, and the screen that prints them."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import re
from typing import Any
from uuid import UUID

import pytest

from common.model import (
    Address,
    Alternate,
    ConfigDrive,
    Desired,
    Event,
    Forward,
    GroupPolicy,
    HostRecord,
    HostState,
    ImageRef,
    InstanceSpec,
    InstanceStatus,
    IpAddress,
    MetadataAccess,
    Move,
    Nic,
    Phase,
    Progress,
    Ready,
)
from common.nics import AddressSource
from eschedule import render
from eschedule.follow import View
from eschedule.listing import HostName, HostRow, InstanceRow
from eschedule.screen import Far, Screen, seconds_text

NOW = datetime.datetime(2026, 5, 1, 12, 0, 0, tzinfo=datetime.UTC)
INSTANCE = UUID("0b4fd7c1-6f5b-4c6e-9a0e-3d2c5a7e8f10")
PROVIDER = UUID("11111111-2222-4333-8444-555555555555")
HOST = HostName(PROVIDER, "node1", True)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAAkDuLyCVCWMOe7SwQ7Zk1AtMpHHUkV0SxBYTp me@here"
SPEC = InstanceSpec(
    uuid=INSTANCE, name="web-1", image=ImageRef("https://images.example.org/debian-12.qcow2"), keys=(KEY,),
    resources={"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}, user_data_base64="c2VjcmV0",
    created_at="2026-05-01T11:57:00.000+00:00", created_by="me@here",
)  # fmt: skip
STATUS = InstanceStatus(
    phase=Phase.RUNNING, spec_revision=7, addresses=(Address("default", "52:54:c0:a8:7a:32", "192.168.122.50"),),
    events=(
        Event("2026-05-01T11:57:01.000Z", "FetchImage", 400), Event("2026-05-01T11:57:02.000Z", "Start", 30),
        Event("2026-05-01T11:57:03.000Z", "Start", 12, "second try"),
    ),
)  # fmt: skip
ROW = InstanceRow(INSTANCE, "web-1", HOST, Phase.RUNNING, "", SPEC, STATUS)


def row(**changes: Any) -> InstanceRow:
    return dataclasses.replace(ROW, **changes)


class TestTables:
    def test_instances(self) -> None:
        dead = HostName(PROVIDER, "node2", False)
        pending = row(name="b", host=dead, phase=Phase.PENDING, status=None)
        assert render.instance_table([ROW, pending], NOW).splitlines() == [
            "NAME   UUID                                  HOST   PHASE                ADDRESS         AGE  IMAGE",
            f"web-1  {INSTANCE}  node1  Running              192.168.122.50  3m   debian-12.qcow2",
            f"b      {INSTANCE}  node2  Pending (host dead)                  3m   debian-12.qcow2",
        ]

    def test_without_instances_there_is_the_head_alone(self) -> None:
        assert render.instance_table([], NOW) == "NAME  UUID  HOST  PHASE  ADDRESS  AGE  IMAGE\n"

    def test_the_phase_tells_what_qualifies_it(self) -> None:
        assert render.phase_text(row(phase=Phase.FAILED, reason="ImageNotFound")) == "Failed (ImageNotFound)"
        stopping = dataclasses.replace(SPEC, desired=Desired.STOPPED)
        assert render.phase_text(row(spec=stopping)) == "Running (to be stopped)"
        assert render.phase_text(row(spec=stopping, phase=Phase.STOPPED)) == "Stopped"

    def test_what_cannot_be_read_is_shown_as_far_as_it_goes(self) -> None:
        held = row(phase=Phase.HELD, reason="UnsupportedSchema", spec=None, status=None)
        assert "Held (UnsupportedSchema)" in render.instance_table([held], NOW)
        assert json.loads(render.as_json(render.instance_json(held)))["spec"] is None

    def test_nothing_from_outside_moves_the_cursor_or_starts_a_line(self) -> None:
        status = dataclasses.replace(STATUS, message="a\nb\x1b[2J", phase=Phase.FAILED)
        for text in (
            render.instance_table([row(name="x\r\ny")], NOW),
            render.instance_block(row(status=status), NOW),
            render.progress_line(view(status)),
        ):
            assert "\x1b" not in text
            assert "\r" not in text
        assert len(render.instance_table([row(name="x\r\ny")], NOW).splitlines()) == 2

    def test_hosts(self) -> None:
        record = HostRecord(
            "node1", "boot", INSTANCE, "uuid", "qemu:///system", HostState.DEGRADED, "Placement is away",
            capacity={"VCPU": 8, "MEMORY_MB": 7000, "DISK_GB": 90}, since="2026-05-01T09:00:00Z",
        )  # fmt: skip
        live = HostRow(HOST, record, {"VCPU": 3, "MEMORY_MB": 768}, 2)
        dead = HostRow(HostName(PROVIDER, "node2", False), None, None, 1)
        lines = render.host_table([live, dead], NOW).splitlines()
        assert lines[1].split("  ")[:2] == ["node1", "Degraded: Placement is away"]
        assert lines[0].split() == ["NAME", "STATE", "SINCE", "VCPU", "MEMORY_MB", "DISK_GB", "GUESTS", "PROVIDER"]
        assert lines[1].split()[-6:] == ["3h", "3/8", "768/7000", "0/90", "2", str(PROVIDER)]
        assert lines[2].startswith("node2  dead ")
        assert lines[2].count("?/?") == 3
        shown = render.host_list_json([live, dead])
        assert (shown[0]["state"], shown[0]["used"]["VCPU"], shown[1]["state"], shown[1]["used"]) == (
            "Degraded",
            3,
            "dead",
            None,
        )


class TestBlock:
    def test_what_the_guest_said_and_that_it_was_before_its_last_start(self) -> None:
        ready = Ready("2026-05-01T11:58:00.000Z", "up\x1b[2J", (f"SHA256:{'k' * 43} (ED25519)",), boot_request=1)
        status = dataclasses.replace(STATUS, ready=ready)
        lines = render.instance_block(row(status=status), NOW).splitlines()
        assert "ready      2026-05-01T11:58:00.000Z (2m ago): up\\x1b[2J" in lines
        assert f"host key   SHA256:{'k' * 43} (ED25519)" in lines
        again = dataclasses.replace(SPEC, boot_request=2)
        former = render.instance_block(row(status=status, spec=again), NOW)
        assert "up\\x1b[2J; not yet since its last start" in former
        assert render.instance_json(row(status=status))["status"]["ready"]["message"] == "up\x1b[2J"
        assert "ready" not in render.instance_block(ROW, NOW)

    def test_the_group_and_where_it_has_been(self) -> None:
        moved = dataclasses.replace(
            SPEC, group="web", group_policy=GroupPolicy.SOFT_AFFINITY, alternates=(Alternate(PROVIDER, {}),),
            moves=(
                Move(PROVIDER, "node7", "2026-05-01T11:58:00.000Z", "NoSpace", "12 MiB are free"),
                Move(PROVIDER, "", "2026-05-01T11:59:00.000Z", "ImageNotFound"),
            ),
        )  # fmt: skip
        lines = render.instance_block(row(spec=moved), NOW).splitlines()
        for line in (
            "group       web (soft-affinity)",
            "alternates  1 other host left",
            "moved       from node7: NoSpace: 12 MiB are free, 2026-05-01T11:58:00.000Z",
            f"moved       from {PROVIDER}: ImageNotFound, 2026-05-01T11:59:00.000Z",
        ):
            assert line in lines
        spent = dataclasses.replace(moved, alternates=())
        assert "alternates  none left" in render.instance_block(row(spec=spent), NOW).splitlines()
        assert [move["host"] for move in render.instance_json(row(spec=moved))["spec"]["moves"]] == ["node7", ""]

    def test_all_about_an_instance(self) -> None:
        text = render.instance_block(ROW, NOW)
        for line in (
            "phase      Running",
            f"host       node1 (provider {PROVIDER})",
            "resources  DISK_GB 1, MEMORY_MB 256, VCPU 1",
            "keys       ssh-ed25519 me@here",
            "user data  6 bytes",
            "address    192.168.122.50 (52:54:c0:a8:7a:32 on network default, dhcp)",
            "networks   default",
            "metadata   optional, no config drive (auto)",
            "created    2026-05-01T11:57:00.000+00:00 (3m ago) by me@here",
        ):
            assert line in text.splitlines()
        assert text.splitlines()[-1].split() == ["2026-05-01T11:57:03.000Z", "Start", "12", "ms", "second", "try"]

    def test_its_cards_and_how_it_is_reached(self) -> None:
        spec = dataclasses.replace(
            SPEC, nics=(Nic(), Nic("", "br0", 42), Nic("lan", "br1", addresses=(IpAddress("10.0.0.7", 24), IpAddress("fd00::7", 64)))),
            metadata=MetadataAccess.REQUIRED, metadata_hop_limit=2, config_drive=ConfigDrive.NOCLOUD, allow=("tcp:22", "icmp"),
            forwards=(Forward(8080, 80), Forward(53, 53, "udp")),
        )  # fmt: skip
        status = dataclasses.replace(
            STATUS, notes=("port 8080 of the host is taken by another program",), addresses=(
                *STATUS.addresses,
                Address("", "52:54:00:00:00:02", "", bridge="br0", vlan=42, source=AddressSource.NONE),
                Address("lan", "52:54:00:00:00:03", "10.0.0.7", more=(IpAddress("fd00::7", 64),), bridge="br1", source=AddressSource.STATIC),
            ),
        )  # fmt: skip
        lines = render.instance_block(row(spec=spec, status=status), NOW).splitlines()
        for line in (
            "networks   default; bridge br0 vlan 42; lan (bridge br1), 10.0.0.7/24, fd00::7/64",
            "metadata   required, hop limit 2, config drive nocloud",
            "allow      tcp:22, icmp",
            "forward    node1:8080/tcp to port 80",
            "forward    node1:53/udp to port 53",
            "address    192.168.122.50 (52:54:c0:a8:7a:32 on network default, dhcp)",
            "address    not known yet (52:54:00:00:00:02 on bridge br0 vlan 42)",
            "address    10.0.0.7, fd00::7 (52:54:00:00:00:03 on lan (bridge br1), static)",
            "note       port 8080 of the host is taken by another program",
        ):
            assert line in lines, lines
        assert " 192.168.122.50,10.0.0.7 " in render.instance_table([row(spec=spec, status=status)], NOW)
        assert render.instance_list_json([row(status=status)])[0]["addresses"] == ["192.168.122.50", "10.0.0.7"]
        shut = dataclasses.replace(SPEC, allow=(), config_drive=ConfigDrive.NONE)
        lines = render.instance_block(row(spec=shut), NOW).splitlines()
        assert {"allow      nobody", "metadata   optional, no config drive"} <= set(lines)

    def test_user_data_is_not_shown_as_text(self) -> None:
        assert "c2VjcmV0" not in render.instance_block(ROW, NOW)
        assert "secret" not in render.instance_block(ROW, NOW)


class TestJson:
    def test_an_instance(self) -> None:
        value = render.instance_json(ROW, {"total": 12.5})
        assert value["uuid"] == str(INSTANCE)
        assert value["host"] == {"provider": str(PROVIDER), "name": "node1", "is_alive": True}
        assert value["timings_ms"] == {"FetchImage": 400, "Start": 42, "total": 12.5}
        assert InstanceSpec.from_json(json.dumps(value["spec"])) == SPEC
        assert InstanceStatus.from_json(json.dumps(value["status"])) == STATUS
        assert set(value) == {"uuid", "name", "host", "phase", "reason", "spec", "status", "timings_ms"}

    def test_a_list(self) -> None:
        assert render.instance_list_json([ROW]) == [
            {
                "uuid": str(INSTANCE), "name": "web-1", "phase": "Running", "reason": "", "desired": "running", "protected": False,
                "host": {"provider": str(PROVIDER), "name": "node1", "is_alive": True}, "addresses": ["192.168.122.50"],
                "image": "https://images.example.org/debian-12.qcow2", "image_name": None, "created_at": "2026-05-01T11:57:00.000+00:00",
                "labels": {},
            }
        ]  # fmt: skip


def view(status: InstanceStatus | None, *, host: str | None = "node1", spec_revision: int = 7) -> View:
    return View(INSTANCE, "web-1", PROVIDER, host, SPEC, spec_revision, status)


class TestProgress:
    def building(self, progress: Progress | None, reason: str = "") -> InstanceStatus:
        return InstanceStatus(Phase.BUILDING, reason=reason, progress=progress, spec_revision=7)

    @pytest.mark.parametrize(
        ("progress", "said"),
        [
            (Progress("FetchImage", 12 * 1024 * 1024, 40 * 1024 * 1024), "Building FetchImage 12.0 of 40.0 MiB (30 %)"),
            (Progress("FetchImage", 3 * 1024 * 1024, 0), "Building FetchImage 3.0 MiB"),
            (Progress("FetchImage", 0, 0), "Building FetchImage"),
            (Progress("Start", 2, 4, "guests"), "Building Start 2 of 4 guests (50 %)"),
            (None, "Building"),
        ],
    )
    def test_the_line_says_how_far_it_is(self, progress: Progress | None, said: str) -> None:
        assert render.progress_line(view(self.building(progress))) == f"web-1: {said} on node1"

    def test_a_status_of_an_older_spec_is_no_progress(self) -> None:
        assert render.progress_line(view(self.building(None), spec_revision=8)) == "web-1: waiting for the host on node1"
        assert render.progress_line(view(None)) == "web-1: waiting for the host on node1"

    def test_a_reason_and_a_dead_host_are_told(self) -> None:
        line = render.progress_line(view(self.building(None, "Waiting"), host=None))
        assert line == f"web-1: Building (Waiting) on the host of provider {PROVIDER}, which has no heartbeat"

    @pytest.mark.parametrize(("seconds", "said"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (185, "3 m 05 s")])
    def test_durations(self, seconds: float, said: str) -> None:
        assert seconds_text(seconds) == said

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("2026-05-01T11:59:58Z", "2s"),
            ("2026-05-01T11:58:30+00:00", "90s"),
            ("2026-05-01T11:00:00", "60m"),
            ("2026-05-01T09:00:00Z", "3h"),
            ("2026-04-28T12:00:00Z", "3d"),
            ("2026-05-01T12:00:05Z", "0s"),
            ("", ""),
            ("yesterday", ""),
        ],
    )
    def test_ages(self, text: str, said: str) -> None:
        assert render.age(text, NOW) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class TestScreen:
    def test_off_a_terminal_progress_is_a_line_for_each_change(self) -> None:
        output, errors = io.StringIO(), io.StringIO()
        screen = Screen(output=output, errors=errors)
        for text in ("one", "one", "two"):
            screen.progress(text)
        screen.data("data\n")
        assert (errors.getvalue(), output.getvalue()) == ("one\ntwo\n", "data\n")

    def test_on_a_terminal_it_is_one_line_that_is_taken_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "30")
        monkeypatch.setenv("TERM", "xterm")
        errors = Terminal()
        screen = Screen(output=io.StringIO(), errors=errors, clock=lambda: 4.25)
        screen.progress("a text that is longer than the terminal")
        screen.message("done")
        assert errors.getvalue() == "\ra text that is longer…  0.0 s\x1b[K\r\x1b[Keschedule: done\n"
        assert len("a text that is longer…  0.0 s") < 30

    @pytest.mark.parametrize("no_colour", ["", "1"])
    def test_how_far_it_is_is_a_bar_with_the_time_that_is_left(self, monkeypatch: pytest.MonkeyPatch, no_colour: str) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", no_colour)
        now, errors = [0.0], Terminal()
        screen = Screen(output=io.StringIO(), errors=errors, clock=lambda: now[0])
        for now[0] in (0.0, 10.0, 20.0):
            screen.progress("web: Building FetchImage" + 60 * "!", Far("FetchImage", int(now[0]) * 2, 100))
        last = errors.getvalue().rpartition("\r")[2]
        shown = re.sub(r"\x1b\[[0-9;]*[mK]", "", last)
        assert len(shown) < 80 and shown.startswith("web: Building FetchImage!") and shown.endswith(" 0:00:30  20.0 s")
        assert "━━━━━━" in shown and ("\x1b[9" in last) is not bool(no_colour)

    def test_a_bar_takes_no_room_where_there_is_little_or_nothing_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        for columns, far in (("60", Far("x", 1, 2)), ("80", Far("x", 1, 0)), ("80", None)):
            monkeypatch.setenv("COLUMNS", columns)
            errors = Terminal()
            Screen(output=io.StringIO(), errors=errors, clock=lambda: 1.0).progress("text", far)
            assert errors.getvalue() == "\rtext  0.0 s\x1b[K"

    def test_an_error_keeps_its_words_but_nothing_that_a_terminal_obeys(self) -> None:
        errors = io.StringIO()
        Screen(output=io.StringIO(), errors=errors).error('wrong: "a\\nb" \x1b[2J')
        assert errors.getvalue() == 'eschedule: wrong: "a\\nb" \\x1b[2J\n'

    def test_a_closed_standard_error_does_not_stop_the_work(self) -> None:
        screen = Screen(output=io.StringIO(), errors=Broken())
        screen.progress("x")
        screen.message("y")

    def test_a_closed_standard_output_does(self) -> None:
        with pytest.raises(BrokenPipeError):
            Screen(output=Broken(), errors=io.StringIO()).data("x")
