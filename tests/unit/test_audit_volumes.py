"""What an audit finds of volumes, and what must not be a finding: of all keys and claims, and of the files on a host."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from common.claim_findings import Held
from common.findings import Kind
from common.keys import Keys
from common.model import ImageRef, InstanceKey, InstanceSpec, OwnerRecord, VolumeRef
from common.store import Versioned
from common.volume_records import VolumeDesired, VolumePhase, VolumePlace, VolumeSpec, VolumeStatus
from ecompute.audit_volumes import volume_findings, volumes_of
from ecompute.hypervisor import Domain, PowerState, Stamp
from ecompute.proposal import Remains, proposed
from ecompute.volume_book import VolumeEntry
from eschedule.audit_checks import Cluster, check_claims, check_keys, consumers_to_ask, read_cluster

KEYS = Keys()
H1, H2 = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01"), UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e02")
WEB, DATA = uuid4(), uuid4()
RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
SPEC = InstanceSpec(WEB, "web", ImageRef("/a.qcow2"), RESOURCES)
HOLDS = {WEB: {H1: RESOURCES}}


def well() -> dict[str, str]:
    return {
        KEYS.owner(H1): OwnerRecord("m", "l", "h1").to_json(), KEYS.instance(WEB): InstanceKey(H1, "web", "").to_json(),
        KEYS.spec(H1, WEB): SPEC.to_json(), KEYS.name("web"): str(WEB),
    }  # fmt: skip


def cluster_of(keys: dict[str, str]) -> Cluster:
    return read_cluster(KEYS, [Versioned(key, value, 1, 1) for key, value in keys.items()])


VOLUME = VolumeSpec(DATA, "data", 3)
VOLUME_HOLDS = {DATA: {H1: {"DISK_GB": 3}}}


def with_volume(*, spec: VolumeSpec | None = VOLUME, name: str | None = "data", attached: bool = False) -> Cluster:
    keys = well()
    if spec is not None:
        keys[KEYS.volume(H1, DATA)] = dataclasses.replace(spec, attached_to=WEB if attached else None).to_json()
    if name:
        keys[KEYS.volume_name(name)] = str(VolumePlace(H1, DATA))
    if attached:
        keys[KEYS.spec(H1, WEB)] = dataclasses.replace(SPEC, volumes=(VolumeRef(DATA, "data", 0),)).to_json()
    return cluster_of(keys)


def test_a_volume_that_is_well_is_no_finding() -> None:
    for attached in (False, True):
        cluster = with_volume(attached=attached)
        assert [f.kind for f in check_keys(cluster) if "olume" in f.kind] == []
        assert cluster.unreadable == {}
        assert consumers_to_ask(cluster, {**HOLDS, **VOLUME_HOLDS}) == set()
        assert check_claims(cluster, {**HOLDS, **VOLUME_HOLDS}, {}, {H1}) == []
    leaving = with_volume(attached=True)
    leaving.specs[H1, WEB] = SPEC
    assert [f.kind for f in check_keys(leaving) if "olume" in f.kind] == [], "its host is about to free it"


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (with_volume(name=None), Kind.VOLUME_WITHOUT_NAME),
        (with_volume(spec=None), Kind.NAME_WITHOUT_VOLUME),
        (with_volume(name="other"), Kind.VOLUME_WITHOUT_NAME),
    ],
    ids=["no-name", "no-volume", "another-name"],
)
def test_names_that_lead_nowhere_are_found_and_never_fixed(found: Cluster, kind: Kind) -> None:
    findings = [f for f in check_keys(found) if "olume" in f.kind]
    assert findings[0].kind == kind and not any(f.is_fixable for f in findings)


def test_an_instance_with_a_volume_that_is_not_noted_as_its_own() -> None:
    for cluster in (with_volume(attached=True), with_volume(attached=True)):
        cluster.volumes.specs[H1, DATA] = VOLUME
        (finding,) = [f for f in check_keys(cluster) if f.kind == Kind.VOLUME_NOT_ATTACHED]
        assert "the instance web has the volume data, which is noted as nobody's" in finding.what
        del cluster.volumes.specs[H1, DATA]
        assert "which is not there" in next(f.what for f in check_keys(cluster) if f.kind == Kind.VOLUME_NOT_ATTACHED)


def test_a_status_of_no_volume() -> None:
    keys = {**well(), KEYS.volume_status(H1, DATA): VolumeStatus(VolumePhase.AVAILABLE).to_json()}
    assert [f.kind for f in check_keys(cluster_of(keys)) if "olume" in f.kind] == [Kind.STATUS_WITHOUT_VOLUME]


def test_claims_of_volumes() -> None:
    cluster = with_volume()
    for wrong in ({}, {DATA: {H1: {"DISK_GB": 2}}}, {DATA: {H2: {"DISK_GB": 3}}}):
        (finding,) = check_claims(cluster, {**HOLDS, **wrong}, {}, {H1})
        assert finding.kind == Kind.VOLUME_CLAIM and not finding.is_fixable
    going = with_volume(spec=dataclasses.replace(VOLUME, desired=VolumeDesired.DELETED))
    assert check_claims(going, HOLDS, {}, {H1}) == []
    alone = cluster_of(well())
    assert consumers_to_ask(alone, {**HOLDS, **VOLUME_HOLDS}) == {DATA}
    held = Held({"DISK_GB": 3}, frozenset({H1}), is_ours=False, is_volume=True)
    (finding,) = check_claims(alone, {**HOLDS, **VOLUME_HOLDS}, {DATA: held}, {H1})
    assert finding.kind == Kind.ORPHAN_CLAIM and not finding.is_fixable and "of a volume that is not there" in finding.what


def test_files_and_specs_of_a_host_are_compared_and_nothing_is_fixed() -> None:
    stray, directory = uuid4(), Path("/v")
    entries = {DATA: VolumeEntry(5, VOLUME)}
    assert list(volume_findings("host h1", H1, entries, {DATA}, directory)) == []
    (leftover,) = volume_findings("host h1", H1, entries, {DATA, stray}, directory)
    assert (leftover.kind, leftover.instance, leftover.is_fixable) == (Kind.LEFTOVER_VOLUME, stray, False)
    assert f"/v/{stray}.raw" in leftover.what
    (missing,) = volume_findings("host h1", H1, entries, set(), directory)
    assert (missing.kind, missing.name, missing.is_fixable) == (Kind.VOLUME_MISSING, "data", False)
    going = {
        DATA: VolumeEntry(5, dataclasses.replace(VOLUME, desired=VolumeDesired.DELETED)),
        stray: VolumeEntry(5, None, "newer"),
    }
    assert list(volume_findings("host h1", H1, going, {stray}, directory)) == []


def test_a_guest_that_etcd_has_forgotten_is_proposed_with_the_volumes_that_are_noted_as_its_own() -> None:
    logs, others = uuid4(), uuid4()
    entries = {
        logs: VolumeEntry(5, dataclasses.replace(VOLUME, uuid=logs, name="logs", attached_to=WEB)),
        DATA: VolumeEntry(5, dataclasses.replace(VOLUME, attached_to=WEB)),
        others: VolumeEntry(5, dataclasses.replace(VOLUME, uuid=others, attached_to=uuid4())),
        uuid4(): VolumeEntry(5, None, "newer"),
    }
    assert volumes_of(WEB, entries) == (VolumeRef(DATA, "data", 0), VolumeRef(logs, "logs", 1))
    domain = Domain(WEB, "web-12345678", PowerState.RUNNING, "booted", Stamp(H1, 1, 5, 1))
    assert (
        proposed(domain, domain.stamp or Stamp(H1, 1, 5), Remains(volumes=volumes_of(WEB, entries))).volumes[0].name == "data"
    )
