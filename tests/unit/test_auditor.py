"""The auditor of a host, around the real loop on fakes: what it says once, what it answers, what it cures and what not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import pytest

from common.errors import HypervisorUnavailable, PlacementUnavailable
from common.findings import Kind, Letter, Report
from common.model import Desired, Forward, InstanceKey, InstanceSpec, Phase
from common.placement import Claim
from common.store import Transaction
from ecompute.auditor import Auditor
from ecompute.facts import Glimpse
from ecompute.machine import Allocation
from tests.support.loop import KEYS, Loop


class Audited:
    """A host with a loop, and its auditor."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop(directory)
        self.counts: Mapping[str, int] = {}
        self.slept: list[float] = []
        self.auditor = Auditor(
            world=self.loop.world, placement=self.loop.placement, specs=_Specs(self.loop),  # type: ignore[arg-type]
            statuses=self.loop.statuses, store=self.loop.store, keys=KEYS, provider=self.loop.provider, host="h1",
            state_directory=directory, is_live=lambda: self.loop.is_live, show=self.show, sleep=self.slept.append,
        )  # fmt: skip

    def show(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)

    def run(self, **changes: object) -> InstanceSpec:
        spec = self.loop.request(**changes)
        self.loop.settle(spec)
        assert self.loop.status(spec).phase is Phase.RUNNING
        return spec

    def lose_spec(self, spec: InstanceSpec, *, whole: bool = True) -> None:
        keys = [KEYS.spec(self.loop.provider, spec.uuid), KEYS.status(self.loop.provider, spec.uuid)]
        self.loop.store.commit(Transaction(deletes=(*keys, *([KEYS.instance(spec.uuid)] if whole else []))))

    def resync(self) -> None:
        self.auditor.note(self.loop.hypervisor.list(), self.loop.placement.provider_allocations(self.loop.provider))

    def ask(self, kind: str = "audit", **arguments: tuple[str, ...]) -> Report:
        text = self.auditor.answer(Letter(kind, arguments))
        assert text is not None
        return Report.from_json(text)

    def kinds(self) -> list[str]:
        return [finding.kind for finding in self.ask().findings]


class _Specs:
    """A watcher that is never late."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.get = loop.specs.get

    @property
    def cluster_id(self) -> int:
        return self._loop.store.cluster_id()

    def uuids(self) -> set[object]:
        listed = self._loop.store.list(KEYS.specs(self._loop.provider)).items
        return {KEYS.parse_provider_instance(item.key)[1] for item in listed}


@pytest.fixture
def host(tmp_path: Path) -> Audited:
    return Audited(tmp_path)


def test_a_healthy_host_answers_at_once_that_all_agrees(host: Audited) -> None:
    host.run()
    assert host.ask() == Report(host.loop.provider, "h1")
    assert host.slept == []


def test_what_two_resyncs_find_is_said_once_and_counted_and_its_end_is_said(
    host: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    spec = host.run()
    value = host.loop.store.get(KEYS.spec(host.loop.provider, spec.uuid))
    assert value is not None
    host.lose_spec(spec)
    with caplog.at_level(logging.INFO, logger="ecompute.auditor"):
        host.resync()
        assert host.auditor.findings == () and caplog.records == []
        for _ in range(3):
            host.resync()
        assert [finding.kind for finding in host.auditor.findings] == [Kind.QUARANTINED]
        assert host.counts == {"Quarantined": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        host.loop.store.create(value.key, value.value.replace('"adopts":null', '"adopts":{"cluster_id":1,"spec_revision":1}'))
        host.resync()
        assert host.counts == {}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_service_that_is_away_never_ends_a_resync_and_is_named_in_an_answer(host: Audited) -> None:
    host.run()
    host.loop.hypervisor.fail_next("network", HypervisorUnavailable("libvirtd is away"))
    host.resync()

    def away(*_: object) -> dict[object, object]:
        raise PlacementUnavailable("Placement is away")

    host.loop.placement.provider_allocations = away  # type: ignore[method-assign, assignment]
    report = host.ask()
    assert report.findings == () and "Placement is away" in report.problems[0]


def test_an_answer_can_be_about_some_instances_only(host: Audited) -> None:
    one, two = host.run(), host.run(name="two")
    host.lose_spec(one)
    host.lose_spec(two)
    assert {finding.instance for finding in host.ask().findings} == {one.uuid, two.uuid}
    assert [finding.instance for finding in host.ask(instances=(str(two.uuid),)).findings] == [two.uuid]
    with pytest.raises(ValueError, match="UUID"):
        host.ask(instances=("no uuid",))
    assert host.auditor.answer(Letter("screenshot")) is None


def leave_files(host: Audited, **changes: object) -> InstanceSpec:
    """An instance of which only files, an address and a document are left."""
    spec = host.run(**changes)
    host.lose_spec(spec)
    host.loop.hypervisor.destroy(spec.uuid)
    host.loop.hypervisor.undefine(spec.uuid)
    held = host.loop.placement.consumer(spec.uuid)
    assert held is not None
    host.loop.placement.release(spec.uuid, held.generation)
    return spec


LEFT = ("LeftoverFiles", "LeftoverAddress", "LeftoverMetadata")


def test_leftovers_are_cured_only_when_and_where_it_is_asked_for(host: Audited, tmp_path: Path) -> None:
    spec = leave_files(host)
    assert host.kinds() == list(LEFT)
    assert host.ask("fix", kinds=LEFT, instances=(str(uuid4()),)).fixed == ()
    assert host.ask("fix", kinds=()).fixed == ()
    assert host.kinds() == list(LEFT)
    report = host.ask("fix", kinds=LEFT, instances=(str(spec.uuid),))
    assert len(report.fixed) == 3 and report.problems == ()
    assert (tmp_path / "lost" / str(spec.uuid) / "disk.qcow2").exists()
    assert host.loop.world.networks.assigned(spec.uuid) is None
    assert not host.loop.world.metadata.exists(spec.uuid)
    assert host.kinds() == []


@pytest.mark.parametrize("kind", ["LeftoverRules", "LeftoverAddress"])
def test_rules_of_an_instance_that_is_gone_are_found_and_go_before_its_address_is_anothers(host: Audited, kind: str) -> None:
    spec = leave_files(host, forwards=(Forward(8080, 80),))
    assert host.kinds() == [LEFT[0], "LeftoverRules", *LEFT[1:]]
    report = host.ask("fix", kinds=(kind,), instances=(str(spec.uuid),))
    assert (len(report.fixed), report.problems) == (1, ())
    assert host.loop.packet_filter.tables == {}
    assert "LeftoverRules" not in host.kinds()


def test_nothing_is_cured_without_a_live_lease(host: Audited) -> None:
    spec = leave_files(host)
    host.loop.is_live = False
    report = host.ask("fix", kinds=LEFT)
    assert report.fixed == () and len(report.problems) == 3
    assert host.loop.world.disks.exists(spec.uuid)


def test_what_etcd_still_says_to_be_here_is_left_alone(host: Audited) -> None:
    spec = leave_files(host)
    host.loop.store.create(KEYS.instance(spec.uuid), InstanceKey(host.loop.provider, "web", "").to_json())
    assert host.kinds() == list(LEFT)
    assert host.ask("fix", kinds=LEFT).fixed == ()
    assert host.loop.world.disks.exists(spec.uuid)


def test_a_quarantined_guest_is_never_cured_away(host: Audited) -> None:
    spec = host.run()
    host.lose_spec(spec)
    report = host.ask("fix", kinds=tuple(Kind), instances=())
    assert report.fixed == ()
    assert host.loop.power(spec) is not None and host.loop.world.disks.exists(spec.uuid)


def test_the_proposal_of_an_answer_brings_the_guest_back_untouched(host: Audited) -> None:
    spec = host.run(keys=("ssh-ed25519 A",), user_data_base64="QQ==", hostname="www")
    before = host.loop.hypervisor.get(spec.uuid)
    document = host.loop.world.metadata.read(spec.uuid)
    host.lose_spec(spec, whole=False)
    proposal = host.ask().findings[0].proposal
    assert proposal is not None and proposal.desired is Desired.RUNNING
    host.loop.store.create(KEYS.spec(host.loop.provider, spec.uuid), proposal.to_json())
    host.loop.settle(proposal)
    after = host.loop.hypervisor.get(spec.uuid)
    assert before is not None and after is not None and before.stamp is not None and after.stamp is not None
    assert after.power_state == before.power_state
    assert (after.stamp.booted, after.stamp.definition) == (before.stamp.booted, before.stamp.definition)
    assert host.loop.world.metadata.read(spec.uuid) == document
    assert host.loop.status(proposal).phase is Phase.RUNNING
    assert host.kinds() == []


def test_a_claim_that_its_client_takes_up_after_a_long_time_is_not_released_before_it_is_recorded(host: Audited) -> None:
    loop, uuid = host.loop, uuid4()
    alone, held = Glimpse(None, Allocation.PRESENT), {loop.provider: {"VCPU": 1}}
    loop.placement.claim(uuid, held)
    assert not loop.reconciler.glance(uuid, alone)
    host.resync()
    loop.now += 601
    loop.placement.replace_consumers([Claim(uuid, held, 1)])
    assert loop.reconciler.glance(uuid, alone)
    loop.reconciler.reconcile(uuid)
    assert loop.placement.consumer(uuid) is not None
    loop.now += 601
    loop.reconciler.reconcile(uuid)
    assert loop.placement.consumer(uuid) is None
