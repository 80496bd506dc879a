"""Forwards and filters of instances through the whole loop: when they are written, what is told, what stays and what goes."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from uuid import UUID

import pytest

from common.errors import Permanent, Transient
from common.model import Address, Desired, Forward, ImageRef, InstanceSpec, Phase
from ecompute.facts import Glimpse
from ecompute.firewall import interface_name
from ecompute.firewall_keeper import FirewallKeeper, interfaces_of
from ecompute.hypervisor import PowerState
from ecompute.machine import Allocation
from ecompute.nft import FirewallMissing
from tests.fakes.packet_filter import FakePacketFilter
from tests.support.loop import KEYS, Loop

WEB = (Forward(8080, 80),)
MISSING = FirewallMissing("nft is not on this host")


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path)


def steps(loop: Loop, spec: InstanceSpec) -> list[str]:
    return [event.step for event in loop.status(spec).events]


def test_a_guest_that_asks_for_nothing_costs_nothing_of_it(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.world.firewall.keep()
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert (loop.packet_filter.loads, loop.packet_filter.listings) == (0, 0)
    assert not (loop.directory / "firewall").exists()


def test_a_filtered_guest_is_not_started_before_its_rules_are_there(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = loop.request(allow=("tcp:22",))
    start, seen = loop.hypervisor.start, []

    def watched(uuid: UUID) -> None:
        seen.append("tcp dport 22 accept" in loop.packet_filter.tables["bridge"])
        start(uuid)

    monkeypatch.setattr(loop.hypervisor, "start", watched)
    loop.settle(spec)
    assert seen == [True]


def test_what_is_asked_for_comes_and_goes_with_the_spec_and_the_instance(loop: Loop) -> None:
    spec = loop.request(forwards=WEB)
    loop.settle(spec)
    assert loop.power(spec) is PowerState.RUNNING
    assert set(loop.packet_filter.tables) == {"ip"}
    assert loop.packet_filter.let == {"ip": True}
    loop.change(spec, forwards=(), allow=("icmp",))
    loop.settle(spec)
    assert set(loop.packet_filter.tables) == {"bridge"}
    assert loop.packet_filter.let == {"ip": False}
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.packet_filter.tables == {}
    assert list((loop.directory / "firewall").iterdir()) == []
    assert loop.store.get(KEYS.spec(loop.provider, spec.uuid)) is None


def test_rules_that_are_lost_are_written_again_and_the_guest_goes_on(loop: Loop) -> None:
    spec = loop.request(allow=(), forwards=WEB)
    loop.settle(spec)
    loop.packet_filter.flush()
    loop.settle(spec)
    assert set(loop.packet_filter.tables) == {"bridge", "ip"}
    assert loop.status(spec).phase is Phase.RUNNING
    assert "WriteRules" in steps(loop, spec)


def test_after_a_restart_all_is_put_back_at_once_a_guest_without_a_spec_included(loop: Loop) -> None:
    lost, kept = loop.request(allow=(), name="lost"), loop.request(forwards=WEB, name="kept")
    loop.settle(lost)
    loop.settle(kept)
    loop.packet_filter.flush()
    loop.restart()
    item = loop.store.get(KEYS.spec(loop.provider, lost.uuid))
    assert item is not None
    loop.store.delete(item.key, seen=item.mod_revision)
    loop.settle(kept)
    assert f"in_{lost.uuid.hex}" in loop.packet_filter.tables["bridge"], "a lost spec opens nothing"
    assert set(loop.packet_filter.tables) == {"bridge", "ip"}


def test_a_note_tells_of_a_port_that_is_taken_and_goes_when_it_comes_free(loop: Loop) -> None:
    first, second = loop.request(forwards=WEB, name="first"), loop.request(forwards=WEB, name="second")
    loop.settle(first)
    loop.settle(second)
    assert loop.status(second).phase is Phase.RUNNING
    assert loop.status(second).notes == ("port 8080/tcp of this host is taken by instance first; choose another",)
    assert loop.status(first).notes == ()
    loop.change(first, desired=Desired.STOPPED, grace_seconds=0)
    loop.settle(first)
    assert loop.status(second).notes, "a guest that is off keeps its port"
    loop.change(first, forwards=())
    loop.settle(first)
    assert loop.status(first).phase is Phase.STOPPED
    loop.settle(second)
    assert loop.status(second).notes == ()
    assert str(second.uuid) in loop.packet_filter.tables["ip"]


def test_a_resync_sees_that_a_note_has_to_be_told(loop: Loop) -> None:
    spec = loop.request(forwards=WEB)
    loop.packet_filter.failure = MISSING
    loop.settle(spec)
    assert loop.power(spec) is PowerState.RUNNING, "without a forward a guest is as good as any"
    assert loop.status(spec).notes == ("nft is not on this host",)

    def is_needed() -> bool:
        return loop.reconciler.glance(spec.uuid, Glimpse(loop.hypervisor.get(spec.uuid), Allocation.PRESENT))

    assert not is_needed()
    loop.packet_filter.failure = None
    loop.world.firewall.keep()
    assert is_needed()
    loop.settle(spec)
    assert loop.status(spec).notes == ()


def test_a_guest_that_is_to_be_filtered_is_not_built_on_a_host_that_cannot(loop: Loop) -> None:
    spec = loop.request(allow=("tcp:22",))
    loop.packet_filter.failure = MISSING
    loop.settle(spec)
    status = loop.status(spec)
    assert (status.phase, status.reason) == (Phase.FAILED, "FirewallMissing")
    assert "nft is not on this host" in status.message
    assert loop.hypervisor.get(spec.uuid) is None
    assert list((loop.directory / "firewall").iterdir()) == []


def test_a_running_guest_that_is_to_be_filtered_later_and_cannot_be_runs_on_and_says_so(loop: Loop) -> None:
    spec = loop.request()
    loop.settle(spec)
    loop.packet_filter.failure = MISSING
    loop.change(spec, allow=("tcp:22",))
    with pytest.raises(Transient, match="nft is not on this host"):
        loop.reconciler.reconcile(spec.uuid)
    assert loop.power(spec) is PowerState.RUNNING
    assert "nft is not on this host" in loop.status(spec).message
    loop.packet_filter.failure = None
    loop.settle(spec)
    assert loop.status(spec).message == ""
    assert "tcp dport 22 accept" in loop.packet_filter.tables["bridge"]


def test_a_rule_that_cannot_be_read_lets_nobody_in_and_fails_everywhere_alike(loop: Loop) -> None:
    spec = loop.request(allow=("sctp:7",))
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.FAILED, "InvalidSpec")


def test_two_instances_at_once_and_the_sets_of_one_stay_as_they_are(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    one, other = loop.request(allow=(), name="one"), loop.request(allow=("all",), name="other")
    loop.settle(one)
    loop.settle(other)
    assert loop.packet_filter.tables["bridge"].count("chain in_") == 2
    loop.change(one, desired=Desired.DELETED)
    loop.settle(one)
    assert loop.packet_filter.tables["bridge"].count("chain in_") == 1


def test_of_many_that_want_a_port_at_once_one_gets_it(tmp_path: Path) -> None:
    keeper = FirewallKeeper(tmp_path, FakePacketFilter(), listening=lambda: ())
    card = Address("default", "52:54:00:00:00:01", "192.168.122.9")
    specs = [InstanceSpec(UUID(int=n), f"g{n}", ImageRef("/i"), {}, forwards=WEB) for n in range(16)]
    notes: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda s=spec: notes.append(keeper.write(s, (card,)))) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, notes)) == [0, *[1] * 15]
    assert [keeper.look(spec, (card,)).is_current for spec in specs] == [True] * 16


def test_rules_that_cannot_be_kept_are_not_in_force(tmp_path: Path) -> None:
    (tmp_path / "firewall").write_text("in the way")
    kernel = FakePacketFilter()
    keeper = FirewallKeeper(tmp_path / "firewall", kernel, listening=lambda: ())
    spec = InstanceSpec(UUID(int=9), "web", ImageRef("/i"), {}, forwards=WEB)
    card = Address("default", "52:54:00:00:00:01", "192.168.122.9")
    with pytest.raises(Permanent, match="cannot make the directory"):
        keeper.write(spec, (card,))
    assert not keeper.look(spec, (card,)).is_current
    assert (keeper.has(spec.uuid), kernel.loads) == (False, 0)


def test_an_unreadable_file_is_left_and_its_instance_writes_it_anew(tmp_path: Path) -> None:
    (tmp_path / "firewall").mkdir()
    (tmp_path / "firewall" / "x.json").write_text("{")
    keeper = FirewallKeeper(tmp_path / "firewall", FakePacketFilter())
    keeper.keep()
    assert (tmp_path / "firewall" / "x.json").exists()


# -- what the kernel does not take, what nobody can read ------------------------------------------------------------------

CARD = Address("default", "52:54:00:00:00:01", "192.168.122.9")
SECOND_CARD = Address("default", "52:54:00:00:00:02", "192.168.122.10")
GOOD = InstanceSpec(UUID(int=1), "good", ImageRef("/i"), {}, allow=("tcp:22", "tcp:80"), forwards=WEB)
BAD = InstanceSpec(UUID(int=2), "bad", ImageRef("/i"), {}, allow=("tcp:666",), forwards=(Forward(9090, 99),))


def keeper_of(directory: Path, kernel: FakePacketFilter) -> FirewallKeeper:
    return FirewallKeeper(directory, kernel, interfaces=lambda mac: {interface_name(mac)}, listening=lambda: ())


def test_one_guest_whose_rules_are_refused_is_shut_and_fails_alone(tmp_path: Path) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    assert keeper.write(GOOD, (CARD,)) == ()
    kernel.refuses = "dport 666 "
    with pytest.raises(FirewallMissing, match="its own rules cannot be had, so it is shut"):
        keeper.write(BAD, (SECOND_CARD,))
    table = kernel.tables["bridge"]
    assert "dport 22 accept" in table
    assert f"in_{BAD.uuid.hex}" in table, "nobody is let in"
    assert "9090" in kernel.tables["ip"]
    assert keeper.look(GOOD, (CARD,)).is_current
    assert not keeper.look(BAD, (SECOND_CARD,)).is_current
    keeper.keep()
    kernel.refuses = ""
    keeper.write(BAD, (SECOND_CARD,))
    assert keeper.look(BAD, (SECOND_CARD,)).is_current


def test_a_forward_that_is_refused_is_a_note_and_those_of_others_stand(tmp_path: Path) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    kernel.refuses = "192.168.122.10:"
    notes = keeper.write(BAD, (SECOND_CARD,))
    assert any("refused" in note for note in notes)
    assert keeper.write(GOOD, (CARD,)) == ()
    assert "192.168.122.9:80" in kernel.tables["ip"]


def test_who_it_is_whose_rules_are_refused_is_found_after_a_restart(tmp_path: Path) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    many = [dataclasses.replace(GOOD, uuid=UUID(int=100 + n), forwards=()) for n in range(20)]
    for spec in (*many, BAD):
        keeper.write(spec, (SECOND_CARD,))
    kernel.flush()
    kernel.refuses = "dport 666 "
    again = keeper_of(tmp_path, kernel)
    again.keep()
    assert kernel.tables["bridge"].count("dport 22 accept") == 20
    assert f"in_{BAD.uuid.hex}" in kernel.tables["bridge"]
    assert kernel.trials < 16


def test_rules_that_stay_in_the_kernel_are_not_forgotten(tmp_path: Path) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    keeper.write(GOOD, (CARD,))
    kernel.refuses = "delete table ip"
    with pytest.raises(Transient, match="cannot be taken out of the packet filter"):
        keeper.remove(GOOD.uuid)
    assert keeper.has(GOOD.uuid)
    kernel.refuses = ""
    keeper.keep()
    assert kernel.tables == {}, "as soon as it can be"
    keeper.remove(GOOD.uuid)
    assert not keeper.has(GOOD.uuid)


def test_a_table_that_a_former_process_left_goes(tmp_path: Path) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    keeper.write(GOOD, (CARD,))
    (tmp_path / f"{GOOD.uuid}.json").unlink()
    keeper_of(tmp_path, kernel).keep()
    assert kernel.tables == {}


@pytest.mark.parametrize("content", ["{", "newer", "\udce9"])
def test_a_guest_whose_file_cannot_be_read_stays_shut(tmp_path: Path, content: str) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    keeper.write(GOOD, (CARD,))
    keeper.write(BAD, (SECOND_CARD,))
    path = tmp_path / f"{BAD.uuid}.json"
    if content == "newer":
        content = path.read_text().replace('"schema":1', '"schema":999').replace('"schema": 1', '"schema": 999')
        assert "999" in content
        kernel.flush()
    path.write_text(content, errors="surrogateescape")
    again = keeper_of(tmp_path, kernel)
    again.keep()
    assert f'"{interface_name(SECOND_CARD.mac)}" : jump in_{BAD.uuid.hex}' in kernel.tables["bridge"]
    assert "dport 666 " not in kernel.tables["bridge"]
    again.write(BAD, (SECOND_CARD,))
    assert "dport 666 " in kernel.tables["bridge"]


def test_a_name_that_libvirt_gave_to_another_card_since_is_that_ones(tmp_path: Path) -> None:
    kernel, owner = FakePacketFilter(), CARD.mac
    keeper = FirewallKeeper(
        tmp_path,
        kernel,
        listening=lambda: (),
        interfaces=lambda mac: {interface_name(mac), *(["vnet3"] if mac == owner else [])},
    )
    keeper.write(GOOD, (CARD,))
    assert '"vnet3" : jump in_' in kernel.tables["bridge"]
    owner = "52:54:00:00:00:77"  # one of a guest that asked for nothing
    keeper.keep()
    assert "vnet3" not in kernel.tables["bridge"]
    assert interface_name(CARD.mac) in kernel.tables["bridge"]


def test_the_interfaces_of_a_card(tmp_path: Path) -> None:
    mac = "52:54:00:00:00:01"
    for name, address, is_tap in (
        ("vnet3", "fe:54:00:00:00:01", True),
        ("vnet4", "fe:54:00:00:00:02", True),
        ("eth0", "fe:54:00:00:00:01", False),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{address}\n")
        if is_tap:
            (tmp_path / name / "tun_flags").write_text("0x1002\n")
    named = interface_name(mac)
    assert interfaces_of(mac, tmp_path) == {named, "vnet3"}
    (tmp_path / named).mkdir()
    assert interfaces_of(mac, tmp_path) == {named}


def test_a_table_that_somebody_changed_between_look_and_change_is_no_guests_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakePacketFilter()
    keeper = keeper_of(tmp_path, kernel)
    keeper.write(GOOD, (CARD,))
    load, refusals = kernel.load, [FirewallMissing("no such chain")]

    def once_refusing(script: str, *, is_trial: bool = False) -> None:
        if refusals and not is_trial:
            raise refusals.pop()
        load(script, is_trial=is_trial)

    monkeypatch.setattr(kernel, "load", once_refusing)
    keeper.write(BAD, (SECOND_CARD,))
    assert keeper.look(BAD, (SECOND_CARD,)).is_current


def test_while_the_packet_filter_is_broken_a_guest_can_be_rebooted_down_and_comes_up_with_its_rules(loop: Loop) -> None:
    spec = loop.request(allow=("tcp:22",))
    loop.settle(spec)
    loop.packet_filter.flush()
    loop.packet_filter.failure = MISSING
    loop.change(spec, boot_request=2, reboot_request=2, hard_reboot=True)
    loop.settle(spec)
    assert loop.power(spec) is PowerState.SHUTOFF, "never up without its rules"
    assert "nft is not on this host" in loop.status(spec).message
    loop.packet_filter.failure = None
    loop.change(spec, boot_request=3)
    loop.settle(spec)
    assert loop.power(spec) is PowerState.RUNNING
    assert "tcp dport 22 accept" in loop.packet_filter.tables["bridge"]
