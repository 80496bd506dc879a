"""What an audit of the whole cluster finds among keys and claims: one test a kind of damage, and what must not be one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from uuid import UUID, uuid4

import pytest

from common.claim_findings import Held, orphan_claim
from common.findings import Finding, Kind
from common.keys import Keys
from common.model import (
    Alternate,
    Desired,
    GroupMembers,
    GroupPolicy,
    HostRecord,
    ImageRef,
    InstanceKey,
    InstanceSpec,
    InstanceStatus,
    KeyRecord,
    OwnerRecord,
    Phase,
)
from common.nics import IpAddress, Nic
from common.store import Transaction, Versioned
from eschedule.audit_checks import (
    Cluster,
    check_claims,
    check_hosts,
    check_keys,
    consumers_to_ask,
    gathered,
    merged,
    read_cluster,
)
from eschedule.audit_fixes import Fixer

KEYS = Keys()
H1, H2 = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01"), UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e02")
WEB = uuid4()
RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
SPEC = InstanceSpec(WEB, "web", ImageRef("/a.qcow2"), RESOURCES, alternates=(Alternate(H2, {str(H2): RESOURCES}),))
HOLDS = {WEB: {H1: RESOURCES}}
LAN_50 = KEYS.network_address("lan", "10.0.0.50")
ON_LAN = (Nic("lan", "br0", addresses=(IpAddress("10.0.0.50", 24),)),)


def host_record(name: str) -> str:
    return HostRecord(name, "boot", uuid4(), "libvirt", "test:///default").to_json()


def well() -> dict[str, str]:
    """Two hosts, and an instance in a group on the first."""
    grouped = dataclasses.replace(SPEC, group="g", group_policy=GroupPolicy.AFFINITY)
    return {
        KEYS.owner(H1): OwnerRecord("m", "l", "h1").to_json(), KEYS.owner(H2): OwnerRecord("m", "l", "h2").to_json(),
        KEYS.host(H1): host_record("h1"), KEYS.host(H2): host_record("h2"),
        KEYS.instance(WEB): InstanceKey(H1, "web", "digest").to_json(), KEYS.name("web"): str(WEB),
        KEYS.spec(H1, WEB): grouped.to_json(),
        KEYS.status(H1, WEB): InstanceStatus(Phase.RUNNING, spec_revision=1, booted=1).to_json(),
        KEYS.group("g", H1): GroupMembers(GroupPolicy.AFFINITY, (WEB,)).to_json(), KEYS.group_anchor("g"): str(H1),
        KEYS.mail(H1, uuid4()): "whatever", KEYS.mail_reply(uuid4()): "whatever", KEYS.host_admin(H2): '{"schema":1}',
        KEYS.ssh_key("alice"): KeyRecord("alice", ("ssh-ed25519 A",)).to_json(),
    }  # fmt: skip


def cluster(changes: Mapping[str, str] | None = None, without: Iterable[str] = ()) -> Cluster:
    values = {key: value for key, value in {**well(), **(changes or {})}.items() if key not in set(without)}
    return read_cluster(KEYS, [Versioned(key, value, 1, 1) for key, value in values.items()])


def status(phase: Phase, revision: int = 1) -> dict[str, str]:
    return {KEYS.status(H1, WEB): InstanceStatus(phase, spec_revision=revision).to_json()}


def spec(**changes: object) -> dict[str, str]:
    plain = dataclasses.replace(SPEC, **{"group": None, **changes})  # type: ignore[arg-type]
    return {KEYS.spec(H1, WEB): plain.to_json()}


def kinds(found: Iterable[Finding]) -> list[str]:
    return sorted(str(finding.kind) for finding in found)


def test_a_healthy_cluster_has_no_findings() -> None:
    seen = cluster()
    assert check_keys(seen) == [] and seen.unreadable == {}
    assert check_hosts(seen, {H1: "h1", H2: "h2"}) == []
    assert consumers_to_ask(seen, HOLDS) == set()
    assert check_claims(seen, HOLDS, {}, {H1, H2}) == []


POOLED = {KEYS.spec(H1, WEB): dataclasses.replace(SPEC, nics=ON_LAN, group="g", group_policy=GroupPolicy.AFFINITY).to_json()}


@pytest.mark.parametrize(
    ("changes", "without", "expected"),
    [
        ({KEYS.name("alias"): str(WEB)}, (), ["NameWithoutInstance"]),
        ({KEYS.name("stray"): str(uuid4())}, (), ["NameWithoutInstance"]),
        ({}, (KEYS.name("web"),), ["InstanceWithoutName"]),
        ({KEYS.name("web"): "no uuid"}, (), ["InstanceWithoutName", "UnreadableKey"]),
        ({}, (KEYS.instance(WEB),), ["MemberWithoutInstance", "NameWithoutInstance", "SpecWithoutInstance"]),
        ({}, (KEYS.spec(H1, WEB),), ["InstanceWithoutSpec", "StatusWithoutSpec"]),
        ({KEYS.status(H2, WEB): InstanceStatus(Phase.RUNNING).to_json()}, (), ["StatusWithoutSpec"]),
        ({KEYS.spec(H2, WEB): SPEC.to_json()}, (), ["DuplicateSpec", "DuplicateSpec"]),
        ({KEYS.instance(WEB): InstanceKey(H2, "web", "").to_json()}, (), ["MemberWithoutInstance", "SpecWithoutInstance"]),
        ({KEYS.group("x", H1): GroupMembers(GroupPolicy.AFFINITY, (WEB,)).to_json()}, (), ["MemberWithoutInstance"]),
        ({KEYS.group("g", H2): GroupMembers(GroupPolicy.AFFINITY, (WEB,)).to_json()}, (), ["MemberWithoutInstance"]),
        ({KEYS.group_anchor("x"): str(H2)}, (), ["AnchorWithoutMembers"]),
        ({}, (KEYS.group("g", H1),), ["AnchorWithoutMembers", "MemberNotListed"]),
        ({}, (KEYS.group_anchor("g"),), ["MemberNotListed"]),
        ({KEYS.prefix + "other/key": "x"}, (), ["UnreadableKey"]),
        ({KEYS.spec(H1, WEB): '{"schema":5}'}, (), ["UnreadableKey"]),
        ({KEYS.spec(H1, WEB) + "x": "{}"}, (), ["UnreadableKey"]),
        ({KEYS.host_admin(H1): "[]"}, (), ["UnreadableKey"]),
        ({KEYS.network("lan"): "{}"}, (), ["UnreadableKey"]),
        ({LAN_50: "no uuid"}, (), ["UnreadableKey"]),
        ({LAN_50: str(uuid4())}, (), ["AddressWithoutInstance"]),
        ({LAN_50: str(WEB)}, (), ["AddressWithoutInstance"]),
        ({**POOLED, LAN_50: str(WEB)}, (), []),
        ({**POOLED}, (), ["InstanceWithoutAddress"]),
        ({**POOLED, LAN_50: str(uuid4())}, (), ["AddressWithoutInstance", "InstanceWithoutAddress"]),
        ({LAN_50: str(WEB), KEYS.spec(H1, WEB): '{"schema":5}'}, (), ["UnreadableKey"]),
    ],
)  # fmt: skip
def test_damage_among_keys_is_named(changes: dict[str, str], without: tuple[str, ...], expected: list[str]) -> None:
    found = check_keys(cluster(changes, without))
    assert kinds(found) == expected
    assert all(finding.what and finding.cause and finding.cure and finding.where for finding in found)


@pytest.mark.parametrize(("is_whole", "has_guest"), [(True, False), (False, False), (True, True)])
def test_an_address_is_given_back_once_every_host_says_that_no_guest_has_it(is_whole: bool, has_guest: bool) -> None:
    stray = uuid4()
    (found,) = check_keys(cluster({LAN_50: str(stray)}))
    guests = [finding(Kind.QUARANTINED, instance=stray)] if has_guest else []
    told = [one for one in merged([found], guests, {H1, H2}, is_whole=is_whole) if one.kind == Kind.ADDRESS_WITHOUT_INSTANCE]
    assert [one.is_fixable for one in told] == [is_whole and not has_guest]


def test_a_member_that_is_being_destroyed_need_not_be_listed() -> None:
    changes = spec(group="g", desired=Desired.DELETED)
    assert check_keys(cluster(changes, (KEYS.group("g", H1), KEYS.group_anchor("g")))) == []


def test_a_dead_host_and_hosts_that_only_one_side_knows_are_named() -> None:
    assert kinds(check_hosts(cluster({}, (KEYS.host(H2),)), {H1: "h1", H2: "h2"})) == ["HostDead"]
    assert kinds(check_hosts(cluster(), {H1: "h1"})) == ["OwnerWithoutProvider"]
    assert kinds(check_hosts(cluster({}, (KEYS.owner(H2), KEYS.host(H2))), {H1: "h1", H2: "h2"})) == ["ProviderWithoutOwner"]
    assert check_hosts(cluster(), None) == []


# -- claims -------------------------------------------------------------------------------------------------------------


def claims(seen: Cluster, held: Held | None, holdings: Mapping[UUID, Mapping[UUID, Mapping[str, int]]]) -> list[Finding]:
    asked = dict.fromkeys(consumers_to_ask(seen, holdings), held)
    return check_claims(seen, holdings, asked, {H1})


def test_a_claim_that_is_missing_or_wrong_is_named() -> None:
    assert kinds(claims(cluster(), None, {})) == ["MissingAllocation"]
    small = Held({"VCPU": 1}, frozenset({H1}), True)
    assert kinds(claims(cluster(), small, {WEB: {H1: {"VCPU": 1}}})) == ["WrongAllocation"]
    away = Held(RESOURCES, frozenset({H2}), True)
    assert kinds(claims(cluster(), away, {WEB: {H2: RESOURCES}})) == ["WrongAllocation"]
    dead = check_claims(cluster(), {}, {WEB: None}, set())
    assert not dead[0].is_fixable and "when it is back" in dead[0].cure


@pytest.mark.parametrize("phase", [Phase.BUILDING, Phase.RESCHEDULING, Phase.PENDING])
def test_one_that_is_on_its_way_to_another_host_may_hold_its_claim_there(phase: Phase) -> None:
    away = Held(RESOURCES, frozenset({H2}), True)
    assert claims(cluster(status(phase)), away, {WEB: {H2: RESOURCES}}) == []
    nowhere = Held(RESOURCES, frozenset({uuid4()}), True)
    assert kinds(claims(cluster(status(phase)), nowhere, {})) == ["WrongAllocation"]


def test_one_that_failed_or_is_going_need_not_hold_anything() -> None:
    assert claims(cluster(status(Phase.FAILED)), None, {}) == []
    assert claims(cluster(status(Phase.FAILED, revision=0)), None, {}) == []
    assert claims(cluster(spec(desired=Desired.DELETED)), None, {}) == []
    assert kinds(claims(cluster(status(Phase.FAILED)), Held(RESOURCES, frozenset({H1}), True), HOLDS)) == ["WrongAllocation"]


def test_a_claim_over_several_providers_is_what_its_spec_says() -> None:
    both = Held(RESOURCES, frozenset({H1, H2}), True)
    assert claims(cluster(), both, {WEB: {H1: {"VCPU": 1, "MEMORY_MB": 256}}}) == []


def test_only_claims_of_ours_are_orphans() -> None:
    stray = uuid4()
    holdings = {**HOLDS, stray: {H2: RESOURCES}}
    assert consumers_to_ask(cluster(), holdings) == {stray}
    held = Held(RESOURCES, frozenset({H2}), True)
    found = check_claims(cluster(), holdings, {stray: held}, {H1, H2})
    assert kinds(found) == ["OrphanClaim"] and not found[0].is_fixable
    assert check_claims(cluster(), holdings, {stray: dataclasses.replace(held, is_ours=False)}, {H1}) == []
    assert check_claims(cluster(), holdings, {stray: None}, {H1}) == []


def test_claims_are_sorted_by_who_holds_them() -> None:
    assert gathered({H1: {WEB: {"VCPU": 1}}, H2: {WEB: {"DISK_GB": 1}}}) == {WEB: {H1: {"VCPU": 1}, H2: {"DISK_GB": 1}}}


# -- together -----------------------------------------------------------------------------------------------------------


def finding(kind: Kind, provider: UUID = H1, instance: UUID = WEB) -> Finding:
    return Finding(kind, "host h1", "what", "cause", "cure", instance, provider, proposal=SPEC)


def test_the_claim_of_a_quarantined_guest_is_no_orphan_and_an_orphan_is_fixable_where_its_host_says_so() -> None:
    held = Held(RESOURCES, frozenset({H1}), True)
    ours, theirs = orphan_claim("host h1", WEB, H1, held), orphan_claim("host h1", WEB, H1, held, seconds=3, is_fixable=True)
    assert merged([ours], [theirs], {H1}) == [theirs]
    assert merged([ours], [], {H1}) == [ours]
    assert kinds(merged([ours], [finding(Kind.QUARANTINED)], {H1})) == ["Quarantined"]
    assert merged([], [theirs], {H1}) == [], "its request has come since the host looked"


def test_guests_of_one_instance_on_two_hosts_are_duplicates_that_nobody_adopts() -> None:
    both = merged([], [finding(Kind.QUARANTINED), finding(Kind.QUARANTINED, H2)], {H1, H2})
    assert kinds(both) == ["DuplicateGuest", "DuplicateGuest"]
    assert all(f.proposal is None for f in both)


def test_an_instance_without_a_spec_is_only_forgotten_where_its_host_says_that_there_is_no_guest() -> None:
    lost = next(f for f in check_keys(cluster({}, (KEYS.spec(H1, WEB),))) if f.kind == Kind.INSTANCE_WITHOUT_SPEC)
    assert [f.is_fixable for f in merged([lost], [], {H1})] == [True]
    assert [f.is_fixable for f in merged([lost], [], {H2})] == [False]
    kept = merged([lost], [finding(Kind.QUARANTINED)], {H1})
    assert {f.kind: f.is_fixable for f in kept} == {Kind.INSTANCE_WITHOUT_SPEC: False, Kind.QUARANTINED: False}


def test_every_fix_among_keys_compares_what_was_seen_and_deletes_nothing_else() -> None:
    damaged = cluster(
        {KEYS.name("alias"): str(WEB), KEYS.status(H2, WEB): InstanceStatus(Phase.RUNNING).to_json(),
         KEYS.group("x", H1): GroupMembers(GroupPolicy.AFFINITY, (WEB,)).to_json(), KEYS.group_anchor("y"): str(H2)},
    )  # fmt: skip
    fixer = Fixer(None, None, orphan_seconds=60)  # type: ignore[arg-type]
    touched: set[str] = set()
    for found in check_keys(damaged):
        change = fixer._change(damaged, found)
        assert change is not None and found.is_fixable
        transaction: Transaction = change.transaction
        assert {*transaction.deletes, *transaction.puts} <= {compare.key for compare in transaction.compares}
        touched |= {*transaction.deletes, *transaction.puts}
    assert touched == {KEYS.name("alias"), KEYS.status(H2, WEB), KEYS.group("x", H1), KEYS.group_anchor("y")}
