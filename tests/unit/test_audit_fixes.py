"""What ``eschedule audit`` believes and cures, over a store and a Placement in memory and hosts that answer as a test says."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.claim_findings import missing_allocation
from common.errors import ConfigError
from common.findings import Finding, Kind, Letter, Report
from common.model import HostRecord, ImageRef, InstanceKey, InstanceSpec
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
        cluster = read_cluster(KEYS, self.store.list(KEYS.prefix).items)
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
