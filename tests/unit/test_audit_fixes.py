"""What ``eschedule audit`` believes and cures, over a store and a Placement in memory and hosts that answer as a test says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.claim_findings import missing_allocation
from common.errors import ConfigError
from common.findings import Finding, Kind, Letter, Report
from common.model import HostRecord, ImageRef, InstanceKey, InstanceSpec
from common.nics import IpAddress, Nic
from eschedule.audit import Auditor, Result, audit
from eschedule.audit_checks import read_cluster
from eschedule.audit_fixes import Fixer
from eschedule.claims import FRESH_SECONDS
from tests.fakes.placement import FakePlacement
from tests.fakes.store import FakeStore
from tests.support.loop import KEYS

SMALL = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}


class Asserting(FakePlacement):
    def assert_allocation(self, consumer: UUID, allocations: Any) -> None:
        self.claim(consumer, allocations)


class Scene:
    """One host with one instance."""

    def __init__(self) -> None:
        self.store, self.placement, self.warnings = FakeStore(), Asserting(), list[str]()
        self.before_fix: Callable[[], object] = lambda: None
        self.host = self.placement.add_host("h1")
        self.spec = InstanceSpec(uuid4(), "web", ImageRef("/a.qcow2"), SMALL)
        self.store.create(KEYS.host(self.host), HostRecord("h1", "boot", uuid4(), "libvirt", "qemu:///system").to_json())
        self.store.create(KEYS.instance(self.spec.uuid), InstanceKey(self.host, "web", "").to_json())
        self.store.create(KEYS.name("web"), str(self.spec.uuid))
        screen = SimpleNamespace(progress=lambda _: None, warning=self.warnings.append)
        self.session: Any = SimpleNamespace(
            store=self.store, placement=self.placement, keys=KEYS, screen=screen, clock=lambda: 0.0,
            interruption=SimpleNamespace(check=lambda: None),
        )  # fmt: skip

    def look(self, report: Report) -> Result:
        class Told(Auditor):
            def ask(self, hosts: Collection[UUID], letter: Letter) -> dict[UUID, Report]:
                return {report.provider: report}

        return Told(self.session, wait_seconds=1, sleep=lambda _: None).look()

    def fix(self, finding: Finding) -> list[str]:
        cluster = read_cluster(KEYS, self.store.list(KEYS.prefix, behind=KEYS.after_journal()).items)
        result = Result(cluster, (finding,), (), frozenset({self.host}))
        fixer = Fixer(self.session, Auditor(self.session, wait_seconds=1), orphan_seconds=60)
        self.before_fix()
        return fixer.fix(result)


@pytest.mark.parametrize(("left_out", "is_fixable"), [(0, True), (3, False)])
def test_a_host_that_could_not_tell_all_has_not_said_that_there_is_no_guest(left_out: int, is_fixable: bool) -> None:
    scene = Scene()
    result = scene.look(Report(scene.host, "h1", left_out=left_out))
    lost = [finding for finding in result.findings if finding.kind == Kind.INSTANCE_WITHOUT_SPEC]
    assert [finding.is_fixable for finding in lost] == [is_fixable]


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_claim_is_not_made_again_for_what_was_destroyed_since_the_look(is_changed: bool) -> None:
    scene = Scene()
    key = KEYS.spec(scene.host, scene.spec.uuid)
    seen = scene.store.create(key, scene.spec.to_json())
    if is_changed:
        scene.before_fix = lambda: scene.store.delete(key, seen=seen)
    done = scene.fix(missing_allocation("host h1", scene.spec, scene.host, has_guest=True))
    assert (scene.placement.consumer(scene.spec.uuid) is None) is is_changed
    assert len(done) == (not is_changed) and len(scene.warnings) == is_changed


def test_no_claim_is_released_that_its_client_may_still_rely_on() -> None:
    options: Any = SimpleNamespace(wait_seconds=None, orphan_seconds=str(FRESH_SECONDS), hosts=())
    with pytest.raises(ConfigError, match="--orphan-seconds"):
        audit(Scene().session, options)


def test_an_address_of_nobody_is_given_back_and_one_that_is_missing_is_noted_again() -> None:
    scene = Scene()
    nic = Nic("lan", "br0", addresses=(IpAddress("10.0.0.50", 24),))
    spec = dataclasses.replace(scene.spec, nics=(nic,))
    scene.store.create(KEYS.spec(scene.host, spec.uuid), spec.to_json())
    stray, own = KEYS.network_address("lan", "10.0.0.51"), KEYS.network_address("lan", "10.0.0.50")
    scene.store.create(stray, str(uuid4()))
    result = scene.look(Report(scene.host, "h1"))
    found = {finding.kind: finding for finding in result.findings}
    assert found[Kind.ADDRESS_WITHOUT_INSTANCE].is_fixable and found[Kind.INSTANCE_WITHOUT_ADDRESS].is_fixable
    assert len(scene.fix(found[Kind.ADDRESS_WITHOUT_INSTANCE])) == 1
    assert len(scene.fix(found[Kind.INSTANCE_WITHOUT_ADDRESS])) == 1
    assert [(item.key, item.value) for item in scene.store.list(KEYS.network_addresses()).items] == [(own, str(spec.uuid))]


def test_an_address_that_got_its_instance_since_the_look_stays() -> None:
    scene = Scene()
    stray, uuid = KEYS.network_address("lan", "10.0.0.51"), uuid4()
    scene.store.create(stray, str(uuid))
    found = next(f for f in scene.look(Report(scene.host, "h1")).findings if f.kind == Kind.ADDRESS_WITHOUT_INSTANCE)
    cluster = read_cluster(KEYS, scene.store.list(KEYS.prefix, behind=KEYS.after_journal()).items)
    scene.store.create(KEYS.instance(uuid), InstanceKey(scene.host, "web", "").to_json())
    fixer = Fixer(scene.session, Auditor(scene.session, wait_seconds=1), orphan_seconds=60)
    assert fixer.fix(Result(cluster, (found,), (), frozenset({scene.host}))) == []
    assert scene.store.get(stray) is not None


def test_what_is_left_of_an_instance_goes_with_its_addresses() -> None:
    scene = Scene()
    scene.store.create(KEYS.network_address("lan", "10.0.0.50"), str(scene.spec.uuid))
    found = next(f for f in scene.look(Report(scene.host, "h1")).findings if f.kind == Kind.INSTANCE_WITHOUT_SPEC)
    assert len(scene.fix(found)) == 1
    assert scene.store.list(KEYS.network_addresses()).items == ()
