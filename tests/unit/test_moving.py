"""A host that cannot build an instance hands it to the next one: over two and three hosts of fakes, cut off wherever it can be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from common import groups
from common.errors import (
    ChecksumMismatch,
    HypervisorRejected,
    InvalidSpec,
    NoSpace,
    PlacementUnavailable,
    StoreUnavailable,
    Transient,
)
from common.model import Alternate, Desired, GroupMembers, GroupPolicy, HostAdmin, InstanceKey, InstanceSpec, Phase
from common.network_records import address_keys
from common.nics import IpAddress, Nic
from common.placement import Claim
from common.store import Transaction
from ecompute.hypervisor import PowerState
from ecompute.machine import Step
from tests.support.loop import KEYS, Loop

SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


class Hosts:
    """h1, which cannot start a guest, and the others, which can."""

    def __init__(self, directory: Path, count: int = 2) -> None:
        self.first = Loop(self._folder(directory, "h1"), "h1")
        store, placement = self.first.store, self.first.placement
        self.others = [
            Loop(self._folder(directory, f"h{number}"), f"h{number}", store=store, placement=placement)
            for number in range(2, count + 1)
        ]
        self.store, self.placement = store, placement
        self.first.hypervisor.fail_next("start", *[HypervisorRejected("QEMU does not want to")] * 20)

    @staticmethod
    def _folder(directory: Path, name: str) -> Path:
        (directory / name).mkdir()
        return directory / name

    def request(self, **changes: Any) -> InstanceSpec:
        alternates = tuple(Alternate(h.provider, {str(h.provider): SMALL}) for h in self.others)
        return self.first.request(**{"alternates": alternates, **changes})

    def place(self, spec: InstanceSpec) -> UUID:
        item = self.store.get(KEYS.instance(spec.uuid))
        assert item is not None
        return InstanceKey.from_json(item.value).provider

    def settle(self, spec: InstanceSpec) -> None:
        for host in (self.first, *self.others):
            host.settle(spec)

    def assert_runs_at(self, spec: InstanceSpec, host: Loop) -> None:
        """Exactly one guest, one claim, one spec, one status, all of them there, and nothing anywhere else."""
        assert self.place(spec) == host.provider
        held = self.placement.consumer(spec.uuid)
        assert held is not None and held.allocations == {host.provider: SMALL}
        for other in (self.first, *self.others):
            is_there = other is host
            assert (other.power(spec) is PowerState.RUNNING) is is_there
            assert (self.store.get(KEYS.spec(other.provider, spec.uuid)) is not None) is is_there
            assert (self.store.get(KEYS.status(other.provider, spec.uuid)) is not None) is is_there
            assert other.world.disks.has_files(spec.uuid) is is_there
            assert (other.world.networks.assigned(spec.uuid) is not None) is is_there
            assert other.world.metadata.exists(spec.uuid) is is_there
        assert host.status(spec).phase is Phase.RUNNING


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def spec_at(host: Loop, spec: InstanceSpec) -> InstanceSpec:
    item = host.store.get(KEYS.spec(host.provider, spec.uuid))
    assert item is not None
    return InstanceSpec.from_json(item.value)


def test_what_cannot_be_built_here_runs_on_the_next_host_with_the_reason_of_its_move(hosts: Hosts) -> None:
    spec = hosts.request()
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])
    moved = spec_at(hosts.others[0], spec)
    assert moved.alternates == ()
    assert [(m.provider, m.host, m.reason) for m in moved.moves] == [(hosts.first.provider, "h1", "HypervisorRejected")]
    assert "QEMU does not want to" in moved.moves[0].message


def test_its_addresses_go_along_and_are_given_back_where_it_ends(hosts: Hosts) -> None:
    pooled = Nic("lan", "br0", 42, "52:54:00:00:00:01", (IpAddress("10.0.0.50", 24), IpAddress("fd00::50", 64)))
    spec = hosts.request(nics=(Nic(), pooled))
    keys = address_keys(KEYS, spec.nics)
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])
    assert spec_at(hosts.others[0], spec).nics == spec.nics
    moved = hosts.store.get(KEYS.spec(hosts.others[0].provider, spec.uuid))
    assert moved is not None and '"schema":2' in moved.value
    assert [item.value for item in hosts.store.get_many(keys).values()] == [str(spec.uuid)] * 2
    hosts.others[0].change(spec, desired=Desired.DELETED)
    hosts.settle(spec)
    assert hosts.store.get_many([*keys, KEYS.instance(spec.uuid)]) == {}


def test_with_nobody_left_it_fails_there_with_a_reason_and_holds_nothing(hosts: Hosts) -> None:
    hosts.others[0].hypervisor.fail_next("start", NoSpace("full"))
    spec = hosts.request()
    hosts.settle(spec)
    status = hosts.others[0].status(spec)
    assert (status.phase, status.reason) == (Phase.FAILED, "NoSpace")
    assert hosts.placement.consumer(spec.uuid) is None
    assert hosts.place(spec) == hosts.others[0].provider
    assert len(spec_at(hosts.others[0], spec).moves) == 1


def test_a_host_without_room_without_heartbeat_or_with_the_group_on_it_is_passed_by(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=5)
    full, dead, grouped, good = hosts.others
    hosts.placement.claim(UUID(int=5), {full.provider: {"VCPU": 16}})
    hosts.store.delete(KEYS.host(dead.provider), seen=dead.host_key_revision)
    member = GroupMembers(GroupPolicy.ANTI_AFFINITY, (UUID(int=6),))
    hosts.store.create(KEYS.group("web", grouped.provider), member.to_json())
    spec = hosts.request(group="web")
    change = groups.join(KEYS, "web", GroupPolicy.ANTI_AFFINITY, provider=hosts.first.provider, instance=spec.uuid, found={})
    hosts.store.commit(Transaction(change.compares, change.puts))
    hosts.settle(spec)
    hosts.assert_runs_at(spec, good)
    assert hosts.store.get(KEYS.group("web", hosts.first.provider)) is None
    item = hosts.store.get(KEYS.group("web", good.provider))
    assert item is not None and GroupMembers.from_json(item.value).members == (spec.uuid,)
    good.change(spec, desired=Desired.DELETED)
    good.settle(spec)
    assert [i.key for i in hosts.store.list(KEYS.groups("web")).items] == [KEYS.group("web", grouped.provider)]


def test_when_nobody_takes_it_the_reason_names_who_was_asked(hosts: Hosts) -> None:
    hosts.placement.claim(UUID(int=5), {hosts.others[0].provider: {"VCPU": 16}})
    spec = hosts.request()
    hosts.settle(spec)
    hosts.settle(spec)
    status = hosts.first.status(spec)
    assert (status.phase, status.reason) == (Phase.FAILED, "HypervisorRejected")
    assert status.message == f"QEMU does not want to; {hosts.others[0].provider}: no room on {hosts.others[0].provider}"
    assert hosts.placement.consumer(spec.uuid) is None


def test_what_fails_everywhere_is_not_carried_around(hosts: Hosts) -> None:
    hosts.first.hypervisor.fail_next("define", ChecksumMismatch("not the image that was asked for"))
    spec = hosts.request()
    hosts.settle(spec)
    assert hosts.first.status(spec).phase is Phase.FAILED
    assert hosts.placement.consumer(spec.uuid) is None


MOVING = (Step.UNDEFINE, Step.REMOVE_FILES, Step.RELEASE_NETWORK, Step.SWAP_CLAIM, Step.MOVE_SPEC)


@pytest.mark.parametrize("step", MOVING)
def test_killed_after_each_step_of_a_move_it_still_ends_in_one_guest(hosts: Hosts, step: Step) -> None:
    spec = hosts.request()
    _kill_after(hosts.first, step)
    with pytest.raises(Killed):
        hosts.first.settle(spec)
    hosts.first.restart()
    hosts.settle(spec)
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])


@pytest.mark.parametrize("step", MOVING)
def test_destroyed_in_the_middle_of_a_move_nothing_is_left(hosts: Hosts, step: Step) -> None:
    spec = hosts.request()
    _kill_after(hosts.first, step)
    with pytest.raises(Killed):
        hosts.first.settle(spec)
    hosts.first.restart()
    for host in (hosts.first, *hosts.others):
        if host.store.get(KEYS.spec(host.provider, spec.uuid)):
            host.change(spec, desired=Desired.DELETED)
    hosts.settle(spec)
    assert hosts.placement.consumer(spec.uuid) is None
    assert [
        item.key
        for item in hosts.store.list(KEYS.prefix, behind=KEYS.after_journal()).items
        if str(spec.uuid) in item.key + item.value
    ] == []
    assert not any(host.world.disks.has_files(spec.uuid) for host in (hosts.first, *hosts.others))


@pytest.mark.parametrize("is_done", [True, False])
def test_a_swap_whose_answer_is_lost_is_settled_by_reading(hosts: Hosts, is_done: bool) -> None:
    spec = hosts.request()
    hosts.placement.lose_answer(is_done=is_done)
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])


def test_a_move_whose_answer_is_lost_leaves_one_spec(hosts: Hosts) -> None:
    spec = hosts.request()
    commit, lost = hosts.store.commit, []

    def losing(transaction: Transaction) -> int:
        revision = commit(transaction)
        if KEYS.spec(hosts.others[0].provider, spec.uuid) in transaction.puts and not lost:
            lost.append(revision)
            raise StoreUnavailable("the answer was lost")
        return revision

    hosts.store.commit = losing  # type: ignore[method-assign]
    hosts.settle(spec)
    hosts.settle(spec)
    assert lost
    hosts.assert_runs_at(spec, hosts.others[0])


def test_a_host_that_is_fenced_moves_nothing(hosts: Hosts) -> None:
    spec = hosts.request()
    _kill_after(hosts.first, Step.SWAP_CLAIM)
    with pytest.raises(Killed):
        hosts.first.settle(spec)
    hosts.first.restart()
    hosts.store.delete(KEYS.host(hosts.first.provider), seen=hosts.first.host_key_revision)
    hosts.settle(spec)
    assert hosts.place(spec) == hosts.first.provider
    hosts.first.host_key_revision = hosts.store.create(KEYS.host(hosts.first.provider), "{}")
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])


def test_a_claim_of_somebody_else_is_never_swapped(hosts: Hosts) -> None:
    spec = hosts.request()
    hosts.placement.hold(spec.uuid, {hosts.first.provider: SMALL}, project="another")
    hosts.settle(spec)
    held = hosts.placement.consumer(spec.uuid)
    assert held is not None and held.allocations == {hosts.first.provider: SMALL}
    assert hosts.place(spec) == hosts.first.provider


def test_a_guest_that_ran_stays_whatever_happens_to_it(hosts: Hosts) -> None:
    hosts.first.hypervisor = type(hosts.first.hypervisor)()
    hosts.first.restart()
    spec = hosts.request()
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.first)
    hosts.first.hypervisor.guest_powers_off(spec.uuid)
    hosts.first.hypervisor.fail_next("start", *[NoSpace("full")] * 9)
    hosts.first.change(spec, boot_request=2)
    hosts.settle(spec)
    assert (hosts.first.status(spec).phase, hosts.first.status(spec).reason) == (Phase.STOPPED, "StartFailed")
    assert hosts.place(spec) == hosts.first.provider
    assert hosts.first.world.disks.exists(spec.uuid)


def test_attempts_count_per_host_and_over_crashes(hosts: Hosts) -> None:
    """A request that kills its builder is tried as often as allowed, then handed on; it is not built here for ever."""
    spec = hosts.request()
    starts = 0

    def dying(uuid: UUID) -> None:
        nonlocal starts
        starts += 1
        raise Killed

    for _ in range(10):
        hosts.first.hypervisor.start = dying  # type: ignore[method-assign]
        try:
            hosts.first.settle(spec)
        except Killed:
            hosts.first.restart()
    hosts.settle(spec)
    assert starts == 3
    hosts.assert_runs_at(spec, hosts.others[0])
    assert [move.reason for move in spec_at(hosts.others[0], spec).moves] == ["AttemptsExhausted"]


def test_while_placement_is_away_the_move_waits(hosts: Hosts) -> None:
    spec = hosts.request()
    replace = hosts.placement.replace_consumers

    def away(claims: list[Claim]) -> None:
        raise PlacementUnavailable("down")

    hosts.placement.replace_consumers = away  # type: ignore[method-assign,assignment]
    with pytest.raises(Transient):
        for _ in range(5):
            hosts.first.reconciler.reconcile(spec.uuid)
    assert hosts.first.status(spec).phase is Phase.RESCHEDULING
    hosts.placement.replace_consumers = replace  # type: ignore[method-assign]
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[0])


def _kill_after(host: Loop, step: Step) -> None:
    run = host.reconciler._builder.run

    def dying(which: Step, *arguments: Any) -> Any:
        facts = run(which, *arguments)
        if which is step:
            raise Killed
        return facts

    host.reconciler._builder.run = dying  # type: ignore[method-assign]


def test_a_reboot_happens_once_wherever_it_is_cut_off(tmp_path: Path) -> None:
    for number, step in enumerate((None, Step.SHUTDOWN, Step.DESTROY, Step.START, Step.MARK_BOOTED)):
        loop = Loop(Hosts._folder(tmp_path, str(number)))
        spec = loop.request()
        loop.settle(spec)
        starts: list[UUID] = []
        start = loop.hypervisor.start
        loop.hypervisor.start = lambda uuid, start=start, starts=starts: (starts.append(uuid), start(uuid))[1]  # type: ignore[misc]
        loop.change(spec, boot_request=2, reboot_request=2, hard_reboot=step is Step.DESTROY)
        if step is not None:
            _kill_after(loop, step)
            with pytest.raises(Killed):
                loop.settle(spec)
            loop.restart()
        loop.settle(spec)
        loop.settle(spec)
        assert starts == [spec.uuid], step
        assert (loop.status(spec).phase, loop.status(spec).booted) == (Phase.RUNNING, 2)


def test_what_is_no_order_to_boot_never_boots(tmp_path: Path) -> None:
    """Keys, user data and the name of a guest that runs may change; only what says so starts, stops or reboots it."""
    loop = Loop(tmp_path)
    spec = loop.request()
    loop.settle(spec)
    calls: list[str] = []
    for method in ("start", "shutdown", "destroy", "reboot", "define"):
        real = getattr(loop.hypervisor, method)
        setattr(loop.hypervisor, method, lambda *a, real=real, method=method: (calls.append(method), real(*a))[1])
    for changes in ({"keys": ("ssh-ed25519 AAAA",)}, {"name": "other"}, {"user_data_base64": "eA=="}, {"boot_request": 2}):
        loop.change(spec, **changes)
        loop.settle(spec)
        assert calls == [], changes
        assert loop.status(spec).phase is Phase.RUNNING
    document = loop.world.metadata.read(spec.uuid)
    assert document is not None and document.keys == ("ssh-ed25519 AAAA",)
    loop.hypervisor.guest_powers_off(spec.uuid)
    loop.settle(spec)
    for changes in ({"keys": ()}, {"name": "third"}):
        loop.change(spec, **changes)
        loop.settle(spec)
        assert calls == [], changes
    loop.change(spec, boot_request=3)
    loop.settle(spec)
    assert calls == ["define", "start"]
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and domain.name.startswith("web")


def test_an_adopted_guest_answers_to_its_spec_again_and_was_not_touched(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    spec = loop.request()
    loop.settle(spec)
    domain = loop.hypervisor.get(spec.uuid)
    assert domain is not None and domain.stamp is not None
    past = dataclasses.replace(domain.stamp, cluster_id=4711, spec_revision=10**6, booted=7, started_for=7)
    loop.hypervisor.write_stamp(spec.uuid, past)
    loop.settle(spec)
    assert (loop.status(spec).phase, loop.status(spec).reason) == (Phase.HELD, "StoreRestored")
    loop.change(spec, adopts={"cluster_id": 4711, "spec_revision": 10**6})
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING
    assert loop.hypervisor.get(spec.uuid).state_reason == domain.state_reason  # type: ignore[union-attr]
    loop.change(spec, desired=Desired.DELETED)
    loop.settle(spec)
    assert loop.power(spec) is None
    assert loop.placement.consumer(spec.uuid) is None


def test_a_start_that_failed_for_good_is_tried_again_after_a_while(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    spec = loop.request()
    loop.settle(spec)
    loop.hypervisor.guest_powers_off(spec.uuid)
    loop.hypervisor.fail_next("start", NoSpace("full"), NoSpace("full"))
    loop.change(spec, boot_request=2)
    loop.settle(spec)
    assert loop.status(spec).reason == "StartFailed"
    assert loop.delays[spec.uuid] == 300
    loop.now += 301
    loop.settle(spec)
    assert loop.status(spec).reason == "StartFailed"
    loop.settle(spec)
    assert loop.power(spec) is PowerState.SHUTOFF
    loop.now += 301
    loop.settle(spec)
    assert loop.status(spec).phase is Phase.RUNNING


def test_what_has_failed_stays_so_when_its_host_restarts_and_another_has_room_again(hosts: Hosts) -> None:
    hosts.placement.claim(UUID(int=5), {hosts.others[0].provider: {"VCPU": 16}})
    spec = hosts.request()
    hosts.settle(spec)
    assert hosts.first.status(spec).phase is Phase.FAILED
    del hosts.placement.consumers[UUID(int=5)]
    hosts.first.restart()
    hosts.settle(spec)
    assert hosts.first.status(spec).phase is Phase.FAILED
    assert hosts.place(spec) == hosts.first.provider and hosts.placement.consumer(spec.uuid) is None


def test_a_host_that_an_operator_has_disabled_is_passed_by(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=3)
    disabled, good = hosts.others
    hosts.store.create(KEYS.host_admin(disabled.provider), HostAdmin(disabled=True).to_json())
    hosts.store.create(KEYS.host_admin(good.provider), "{}")
    spec = hosts.request()
    hosts.settle(spec)
    hosts.assert_runs_at(spec, good)


def test_a_host_whose_claim_placement_would_never_take_is_passed_by(tmp_path: Path) -> None:
    hosts = Hosts(tmp_path, count=3)
    spec = hosts.request()

    def refuse(_consumer: UUID, _allocations: object) -> None:
        raise InvalidSpec("Placement refuses it")

    hosts.placement.before_claim.append(refuse)
    hosts.settle(spec)
    hosts.assert_runs_at(spec, hosts.others[1])
