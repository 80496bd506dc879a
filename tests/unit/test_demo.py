"""The demo's own parts that decide something: which processes are its own, who holds a port, what a timeline says."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.processes import ROOT, free_port, wait_until

sys.path.insert(0, str(ROOT / "packaging"))

from demo import down, guest, host, processes, settings, up
from demo.ports import listener_on


@pytest.fixture
def here(tmp_path: Path) -> settings.Settings:
    return settings.Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def own(here: settings.Settings):
    found = processes.Processes(here)
    yield found
    for record in found.marked():
        processes.end(record, grace_seconds=0)


def test_a_process_is_found_again_and_ended(here, own):
    own.start("sleeper", ["sleep", "600"])
    record = processes.Processes(here).running("sleeper")
    assert record
    assert [marked.pid for marked in own.marked()] == [record.pid]
    assert os.getsid(record.pid) == record.pid, "it must outlive our terminal"
    assert own.stop("sleeper")
    assert own.running("sleeper") is None
    assert own.marked() == []


def test_a_process_with_the_pid_of_ours_but_another_start_is_left_alone(here, own):
    own.start("sleeper", ["sleep", "600"])
    record = own.running("sleeper")
    stranger = replace(record, start_ticks=record.start_ticks - 1)
    assert not processes.is_alive(stranger)
    processes.end(stranger, grace_seconds=0)
    assert processes.is_alive(record)


def test_an_ecompute_started_by_hand_with_our_configuration_is_ours(here, own):
    with subprocess.Popen(
        ["sh", "-c", "echo ecompute >/proc/$$/comm; read _", "sh", "--config", here.compute_yaml], stdin=subprocess.PIPE
    ) as child:
        wait_until(own.marked, timeout_seconds=10, what="it was found")
        assert [(record.name, record.pid) for record in own.marked()] == [("ecompute", child.pid)]
        assert processes.Processes(replace(here, state_dir=here.state_dir / "other")).marked() == []
        child.communicate(b"\n")


def test_logs_of_our_guests_are_known_by_the_disk_in_them(here, tmp_path, monkeypatch):
    monkeypatch.setattr(down, "QEMU_LOGS", tmp_path)
    (tmp_path / "ours-1.log").write_text(f'-blockdev \'{{"filename":"{here.state_dir}/instances/x/disk.qcow2"}}\'\n')
    (tmp_path / "theirs.log").write_text('-blockdev \'{"filename":"/var/lib/libvirt/images/theirs.qcow2"}\'\n')
    assert [log.name for log in down.qemu_logs(here)] == ["ours-1.log"]


def test_children_and_what_was_never_written_down_carry_the_mark(here, own):
    own.start("parent", ["sh", "-c", "sleep 600 & exec sleep 600"])
    wait_until(lambda: len(own.marked()) == 2, timeout_seconds=10, what="the child was found")
    for file in (here.run_dir / "processes").iterdir():
        file.unlink()
    assert own.running("parent") is None
    assert {record.name for record in own.marked()} == {"sleep"}


def test_what_ignores_sigterm_is_killed(own):
    own.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done"])
    wait_until(lambda: own.log("stubborn").read_text() == "ready\n", timeout_seconds=10, what="the trap was set")
    record = own.running("stubborn")
    processes.end(record, grace_seconds=0.2)
    assert not processes.is_alive(record)


def test_another_demo_s_processes_are_not_ours(here, own, tmp_path):
    own.start("sleeper", ["sleep", "600"])
    assert processes.Processes(replace(here, run_dir=tmp_path / "other")).marked() == []


def test_who_listens_on_a_port_is_told():
    port = free_port()
    assert listener_on(port) is None
    with socket.create_server(("127.0.0.1", port)):
        listener = listener_on(port)
        assert listener
        assert listener.pid == os.getpid()
        assert str(os.getpid()) in str(listener)
        assert listener_on(port, "169.254.169.254") is None


def test_a_listener_on_all_addresses_holds_the_port_of_each():
    port = free_port()
    with socket.create_server(("0.0.0.0", port)):
        assert listener_on(port, "169.254.169.254")
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True):
        assert listener_on(port, "169.254.169.254")


def test_ports_come_from_the_environment_then_from_the_demo_that_is_up(here):
    assert settings.from_environment({}, here).etcd_port == 2379
    chosen = settings.from_environment({"DEMO_ETCD_PORT": "12379"}, here)
    assert (chosen.etcd_port, chosen.etcd_peer_port, chosen.placement_port) == (12379, 12380, 8778)
    settings.remember(chosen, started_network=True)
    assert settings.from_environment({}, here) == chosen
    assert settings.read_facts(here)["started_network"] is True
    settings.remember(chosen, defined_network=True)
    assert settings.read_facts(here)["started_network"] is True, "earlier facts stay"


@pytest.mark.parametrize(
    "environment",
    [{"DEMO_ETCD_PORT": "x"}, {"DEMO_ETCD_PORT": "0"}, {"DEMO_PLACEMENT_PORT": "70000"}, {"DEMO_ETCD_PORT": "8777"}],
)
def test_impossible_ports_are_refused_with_the_variable_s_name(here, environment):
    with pytest.raises(settings.DemoError, match=next(iter(environment))):
        settings.from_environment(environment, here)


def test_the_next_name_is_the_first_that_is_free():
    assert guest.next_name([]) == "demo-1"
    assert guest.next_name(["demo-2", "web"]) == "demo-1"
    assert guest.next_name(["demo-1", "demo-2"]) == "demo-3"


def test_the_mac_of_an_address_is_the_one_that_ecompute_gives():
    assert down.mac_of("192.168.122.50") == "52:54:c0:a8:7a:32"
    assert down.mac_of("") == ""


def test_the_routes_of_this_host_are_read():
    out = subprocess.run(["ip", "-4", "route", "show", "type", "unicast"], capture_output=True, text=True, check=True).stdout
    assert len(host.routes()) == len(out.splitlines())


def test_a_timeline_adds_up():
    events = [
        {"step": "FetchImage", "took_ms": 50, "at": "2026-01-01T00:00:00.400Z"},
        {"step": "Start", "took_ms": 200, "at": "2026-01-01T00:00:01.000Z"},
    ]
    began = guest._seconds("2026-01-01T00:00:00Z")
    made = guest.Guest(
        name="demo-1", address="192.168.122.9", answers={}, asked_at=began, kernel_at=began + 2, logged_in_at=began + 5,
        request_ms={"candidates": 10, "claim": 20, "store": 5}, instance={"status": {"events": events}},
    )  # fmt: skip
    rows = {phase: int(milliseconds) for phase, milliseconds, _ in guest.timeline(made)}
    assert (rows["claim"], rows["etcd"], rows["image"], rows["start"]) == (30, 5, 50, 200)
    assert (rows["kernel up"], rows["ssh"], rows["total"]) == (1000, 3000, 5000)
    assert sum(rows.values()) == 2 * rows["total"]


def test_a_folder_that_is_not_the_demo_s_is_neither_used_nor_removed(here):
    here.state_dir.mkdir()
    (here.state_dir / "letters").touch()
    with pytest.raises(settings.DemoError, match="DEMO_STATE_DIR"):
        up.prepare_folders(here)
    with pytest.raises(settings.DemoError, match="DEMO_STATE_DIR"):
        down.down(here)
    assert (here.state_dir / "letters").exists()


def test_a_removal_that_was_cut_off_is_gone_on_with(here):
    up.prepare_folders(here)
    (here.state_dir / "etcd").mkdir()
    leftovers = here.state_dir.rename(here.state_dir.with_name("state.removing"))
    up.prepare_folders(here)
    assert not leftovers.exists()
    assert here.owns_state_dir


def test_a_folder_that_only_has_the_name_of_leftovers_stays(here):
    leftovers = here.state_dir.with_name("state.removing")
    leftovers.mkdir()
    (leftovers / "letters").touch()
    up.prepare_folders(here)
    assert (leftovers / "letters").exists()


@pytest.mark.parametrize(
    ("mode", "own_group", "lacks"), [(0o660, False, True), (0o660, True, False), (0o666, False, False), (0o600, False, False)]
)
def test_only_a_group_number_that_keeps_qemu_out_is_mended(tmp_path, monkeypatch, mode, own_group, lacks):
    device = tmp_path / "kvm"
    device.touch()
    user = pwd.getpwnam("nobody")
    group = user.pw_gid if own_group else 54321
    os.chown(device, -1, group)
    device.chmod(mode)
    monkeypatch.setattr(host, "KVM", device)
    monkeypatch.setattr(host, "QEMU_USER", "nobody")
    assert host.kvm_group_that_qemu_lacks() == (group if lacks else None)


def test_an_etcd_and_a_placement_that_are_there_already_are_used_and_remembered(here):
    urls = {"DEMO_ETCD_URL": "http://10.0.0.1:2379/", "DEMO_PLACEMENT_URL": "http://10.0.0.1:8778"}
    chosen = settings.from_environment(urls, here)
    assert (chosen.etcd_url, chosen.placement_url) == ("http://10.0.0.1:2379", "http://10.0.0.1:8778")
    settings.remember(chosen)
    assert settings.from_environment({}, here).services_urls == chosen.services_urls
    with pytest.raises(settings.DemoError, match="down first"):
        settings.from_environment({**urls, "DEMO_ETCD_URL": "http://10.0.0.2:2379"}, here)


def test_one_of_the_two_addresses_alone_is_refused(here):
    with pytest.raises(settings.DemoError, match="go together"):
        settings.from_environment({"DEMO_ETCD_URL": "http://10.0.0.1:2379"}, here)
