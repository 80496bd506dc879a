"""What a host finds wrong with itself: one test a kind of difference, and what must not be one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.claim_findings import Held
from common.findings import Finding, Kind
from common.hardware import CardModel, DiskBus, Hardware
from common.metadata import MetadataDocument
from common.model import (
    Address,
    Adoption,
    ConfigDrive,
    Desired,
    Forward,
    ImageRef,
    InstanceSpec,
    InstanceStatus,
    MetadataAccess,
    Nic,
    Phase,
    Reason,
)
from common.nics import AddressSource, IpAddress
from ecompute.audit import Sight, compare, consumers_to_ask, without_spec
from ecompute.disks import Folder
from ecompute.domain_xml import domain_name
from ecompute.firewall import GuestRules, Way
from ecompute.hypervisor import DhcpHost, Domain, PowerState, Stamp
from ecompute.proposal import Remains, proposed
from ecompute.watcher import SpecEntry

PROVIDER, OTHER = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01"), UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e02")
CLUSTER = 77
RESOURCES = {"VCPU": 1, "MEMORY_MB": 256, "DISK_GB": 1}
ADDRESS = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50")
UUID_1 = uuid4()
SPEC = InstanceSpec(UUID_1, "web", ImageRef("/a.qcow2"), RESOURCES, created_at="then")
STAMP = Stamp(PROVIDER, CLUSTER, spec_revision=5, booted=1)
DOMAIN = Domain(UUID_1, domain_name("web", UUID_1), PowerState.RUNNING, "booted", STAMP, 1, 256)
DOCUMENT = MetadataDocument(UUID_1, "web", "web", ("ssh-ed25519 A",), "QQ==", (ADDRESS,), "/a.qcow2", RESOURCES, "then")
FOLDER = Folder(Path(f"/state/instances/{UUID_1}"), has_disk=True)


def sight(**changes: object) -> Sight:
    """A healthy host with one running guest, but for *changes*."""
    well = Sight(
        PROVIDER, "h1", CLUSTER, Path("/state/lost"), specs={UUID_1: SpecEntry(5, SPEC)},
        statuses={UUID_1: InstanceStatus(Phase.RUNNING, spec_revision=5, boot_request=1, booted=1)},
        domains={UUID_1: DOMAIN}, folders={UUID_1: FOLDER}, assignments={UUID_1: (ADDRESS,)},
        dhcp_entries={"default": frozenset({DhcpHost(ADDRESS.mac, ADDRESS.address)})}, documents={UUID_1: DOCUMENT},
        allocations={UUID_1: RESOURCES},
    )  # fmt: skip
    return dataclasses.replace(well, **changes)  # type: ignore[arg-type]


def status(phase: Phase, **fields: object) -> dict[UUID, InstanceStatus]:
    return {UUID_1: InstanceStatus(phase, **{"spec_revision": 5, "booted": 1, **fields})}  # type: ignore[arg-type]


def only(found: list[Finding]) -> Finding:
    assert len(found) == 1, found
    return found[0]


def test_a_healthy_host_has_no_findings() -> None:
    assert compare(sight()) == []
    assert consumers_to_ask(sight()) == set() == without_spec(sight())
    stopped = dataclasses.replace(DOMAIN, power_state=PowerState.SHUTOFF)
    assert compare(sight(domains={UUID_1: stopped}, statuses=status(Phase.STOPPED))) == []
    empty = Sight(PROVIDER, "h1", CLUSTER, Path("/state/lost"))
    assert compare(empty) == []


@pytest.mark.parametrize(
    "phase", [Phase.PENDING, Phase.BUILDING, Phase.STOPPING, Phase.DELETING, Phase.RESCHEDULING, Phase.REBOOTING, Phase.FAILED]
)
def test_what_is_under_way_is_no_finding(phase: Phase) -> None:
    partial = dataclasses.replace(FOLDER, has_disk=False, partials=("disk.qcow2.1-1.partial",))
    busy = sight(
        statuses=status(phase), domains={}, folders={UUID_1: partial}, allocations={}, dhcp_entries={"default": frozenset()}
    )
    assert consumers_to_ask(busy) == set()
    assert compare(busy) == []


def test_neither_is_a_changed_spec_that_was_not_looked_at_yet_nor_one_that_is_to_go() -> None:
    wrong = {"folders": {}, "allocations": {}}
    assert compare(sight(specs={UUID_1: SpecEntry(6, SPEC)}, **wrong)) == []
    going = dataclasses.replace(SPEC, desired=Desired.DELETED)
    assert compare(sight(specs={UUID_1: SpecEntry(5, going)}, **wrong)) == []
    assert compare(sight(statuses={}, **wrong)) == []
    assert compare(sight(specs={UUID_1: SpecEntry(5, None, "newer")}, **wrong)) == []


# -- guests -------------------------------------------------------------------------------------------------------------


def test_a_guest_without_a_spec_is_quarantined_with_the_spec_that_would_bring_it_back() -> None:
    finding = only(compare(sight(specs={}, statuses={}, places={UUID_1: None})))
    assert (finding.kind, finding.instance, finding.provider, finding.is_fixable) == (Kind.QUARANTINED, UUID_1, PROVIDER, False)
    assert finding.name == "web" and f"eschedule adopt {UUID_1}" in finding.cure
    wanted = dataclasses.replace(
        SPEC, keys=("ssh-ed25519 A",), user_data_base64="QQ==", adopts=Adoption(CLUSTER, 5), created_by="eschedule adopt"
    )
    assert finding.proposal == wanted


def test_a_quarantined_guest_of_which_only_the_domain_is_left_is_still_proposed() -> None:
    finding = only(compare(sight(specs={}, statuses={}, places={}, folders={}, assignments={}, documents={}, allocations={})))
    assert finding.proposal is not None
    assert finding.proposal.resources == {"VCPU": 1, "MEMORY_MB": 256}
    assert finding.proposal.name == "web"
    for gap in ("metadata document", "disk", "no claim"):
        assert gap in finding.what


def test_a_guest_that_is_off_is_proposed_as_stopped_for_the_boot_that_it_had() -> None:
    stamp = dataclasses.replace(STAMP, booted=4)
    domain = dataclasses.replace(DOMAIN, power_state=PowerState.SHUTOFF, stamp=stamp)
    spec = proposed(domain, stamp, Remains(DOCUMENT, (ADDRESS, dataclasses.replace(ADDRESS, network="back")), RESOURCES))
    assert (spec.desired, spec.boot_request) == (Desired.STOPPED, 4)
    assert spec.nics == (Nic("default"), Nic("back"))


@pytest.mark.parametrize(
    ("changes", "desired"),
    [
        ({"power_state": PowerState.PAUSED, "state_reason": "user"}, Desired.PAUSED),
        ({"power_state": PowerState.PAUSED, "state_reason": "ioerror"}, Desired.RUNNING),
        ({"power_state": PowerState.SHUTOFF, "has_saved_memory": True}, Desired.SUSPENDED),
    ],
)
def test_a_guest_that_stands_still_is_proposed_as_it_is(changes: dict[str, Any], desired: Desired) -> None:
    domain = dataclasses.replace(DOMAIN, **changes)
    assert proposed(domain, STAMP, Remains(DOCUMENT, (ADDRESS,), RESOURCES)).desired is desired


def test_a_guest_is_proposed_with_the_cards_that_it_has() -> None:
    pooled = Address(
        "lan", "52:54:00:00:00:01", "10.0.0.50", 24, "10.0.0.1", (IpAddress("fd00::50", 64),), "br0", 42, AddressSource.STATIC,
        ("10.0.0.1",), 1400,
    )  # fmt: skip
    learned = Address("", "52:54:00:00:00:02", "10.9.0.7", 24, bridge="br1", source=AddressSource.LEARNED)
    spec = proposed(DOMAIN, STAMP, Remains(DOCUMENT, (ADDRESS, pooled, learned), RESOURCES))
    fixed = (IpAddress("10.0.0.50", 24, "10.0.0.1"), IpAddress("fd00::50", 64))
    assert spec.nics == (
        Nic("default"), Nic("lan", "br0", 42, pooled.mac, fixed, ("10.0.0.1",), 1400), Nic("", "br1", 0, learned.mac),
    )  # fmt: skip


def test_what_only_the_older_spec_knows_is_kept() -> None:
    known = dataclasses.replace(SPEC, restart="always", group="g", desired=Desired.STOPPED, boot_request=1, grace_seconds=5)
    stamp = dataclasses.replace(STAMP, booted=3)
    document = dataclasses.replace(DOCUMENT, hostname="other")
    spec = proposed(DOMAIN, stamp, Remains(document, (ADDRESS,), {"VCPU": 2}), known)
    assert (spec.restart, spec.group, spec.grace_seconds) == ("always", "g", 5)
    assert (spec.desired, spec.boot_request, spec.hostname) == (Desired.RUNNING, 3, "other")
    assert spec.resources == {"VCPU": 2}
    assert spec.adopts == Adoption(CLUSTER, 5)


def test_an_adopted_spec_tells_the_guest_the_same_as_before() -> None:
    """Else its metadata document would change, and a guest that is off would be defined anew."""
    for hostname in ("web", "other"):
        document = dataclasses.replace(DOCUMENT, hostname=hostname)
        spec = proposed(DOMAIN, STAMP, Remains(document, (ADDRESS,), RESOURCES))
        assert (spec.hostname or spec.name) == hostname


def test_an_adopted_guest_keeps_the_hardware_that_it_can_drive() -> None:
    hardware = Hardware(DiskBus.SATA, CardModel.E1000)
    document = dataclasses.replace(DOCUMENT, hardware=hardware)
    assert proposed(DOMAIN, STAMP, Remains(document, (ADDRESS,), RESOURCES)).hardware == hardware
    assert proposed(DOMAIN, STAMP, Remains(document, (ADDRESS,), RESOURCES), SPEC).hardware == hardware


def test_an_adopted_guest_is_read_by_nobody_who_could_not_before() -> None:
    document = dataclasses.replace(DOCUMENT, access=MetadataAccess.REQUIRED, hop_limit=2)
    spec = proposed(DOMAIN, STAMP, Remains(document, (ADDRESS,), RESOURCES))
    assert (spec.metadata, spec.metadata_hop_limit) == (MetadataAccess.REQUIRED, 2)


@pytest.mark.parametrize(
    ("drive", "access", "expected"),
    [
        (None, MetadataAccess.OPTIONAL, ConfigDrive.AUTO),
        (ConfigDrive.NOCLOUD, MetadataAccess.OPTIONAL, ConfigDrive.NOCLOUD),
        (ConfigDrive.OPENSTACK, MetadataAccess.OPTIONAL, ConfigDrive.OPENSTACK),
        (ConfigDrive.OPENSTACK, MetadataAccess.REQUIRED, ConfigDrive.AUTO),
        (None, MetadataAccess.REQUIRED, ConfigDrive.NONE),
    ],
)
def test_an_adopted_guest_keeps_the_drive_that_it_has(
    drive: ConfigDrive | None, access: MetadataAccess, expected: ConfigDrive
) -> None:
    documents = {UUID_1: dataclasses.replace(DOCUMENT, access=access)}
    drives = {UUID_1: drive} if drive else {}
    finding = only(compare(sight(specs={}, statuses={}, places={}, documents=documents, drives=drives)))
    assert finding.proposal is not None
    assert finding.proposal.config_drive is expected


def test_an_adopted_guest_is_reached_by_those_who_could_before() -> None:
    ways = tuple(Way("tcp", 8080, 80, address) for address in ("10.0.0.5", "fd00::5"))
    rules = GuestRules(UUID_1, "web", ("tcp:22",), ("ec525400000001",), ways)
    finding = only(compare(sight(specs={}, statuses={}, places={}, rules={UUID_1: rules})))
    assert finding.proposal is not None
    assert (finding.proposal.allow, finding.proposal.forwards) == (("tcp:22",), (Forward(8080, 80),))
    known = dataclasses.replace(SPEC, allow=("icmp",))
    assert proposed(DOMAIN, STAMP, Remains(DOCUMENT, (ADDRESS,), RESOURCES), known).allow == ("icmp",), (
        "rather too shut than open"
    )


@pytest.mark.parametrize("stamp", [dataclasses.replace(STAMP, spec_revision=9), dataclasses.replace(STAMP, cluster_id=1)])
@pytest.mark.parametrize("desired", list(Desired))
def test_a_guest_that_has_seen_a_later_request_is_store_restored_whatever_the_spec_asks(stamp: Stamp, desired: Desired) -> None:
    spec = dataclasses.replace(SPEC, desired=desired)
    held = status(Phase.HELD, reason=Reason.STORE_RESTORED)
    domains = {UUID_1: dataclasses.replace(DOMAIN, stamp=stamp)}
    finding = only(compare(sight(specs={UUID_1: SpecEntry(5, spec)}, statuses=held, domains=domains)))
    assert (finding.kind, finding.is_fixable) == (Kind.STORE_RESTORED, False)
    assert "--spec" in finding.cure and "--domain" in finding.cure
    assert finding.proposal is not None and finding.proposal.desired is Desired.RUNNING

    adopted = dataclasses.replace(spec, adopts=Adoption(stamp.cluster_id, stamp.spec_revision))
    assert compare(sight(specs={UUID_1: SpecEntry(5, adopted)}, statuses=held, domains=domains)) == []


def test_domains_that_are_not_ours_are_named_only_where_they_are_in_our_way() -> None:
    foreign = dataclasses.replace(DOMAIN, stamp=None)
    assert [f.kind for f in compare(sight(domains={UUID_1: foreign}, statuses=status(Phase.HELD)))] == [Kind.FOREIGN_DOMAIN]
    unrelated = dataclasses.replace(foreign, uuid=uuid4())
    assert compare(sight(domains={UUID_1: DOMAIN, unrelated.uuid: unrelated})) == []
    other = dataclasses.replace(unrelated, stamp=dataclasses.replace(STAMP, provider=OTHER))
    finding = only(compare(sight(domains={UUID_1: DOMAIN, other.uuid: other})))
    assert finding.kind == Kind.FOREIGN_STAMP and str(OTHER) in finding.cure


def test_a_guest_of_an_instance_that_lives_elsewhere_is_a_duplicate_and_not_to_be_adopted() -> None:
    finding = only(compare(sight(specs={}, statuses={}, places={UUID_1: OTHER})))
    assert (finding.kind, finding.proposal) == (Kind.DUPLICATE_GUEST, None)
    assert str(OTHER) in finding.what


# -- instances ----------------------------------------------------------------------------------------------------------


def test_a_guest_that_ran_misses_its_disk() -> None:
    assert only(compare(sight(folders={}))).kind == Kind.DISK_MISSING
    off = {"domains": {}, "statuses": status(Phase.STOPPED, reason=Reason.DISK_MISSING)}
    assert only(compare(sight(folders={}, **off))).kind == Kind.DISK_MISSING
    never_ran = {"domains": {}, "statuses": status(Phase.STOPPED, booted=0)}
    assert compare(sight(folders={}, **never_ran)) == []


def test_a_guest_that_ran_misses_its_domain() -> None:
    finding = only(compare(sight(domains={}, statuses=status(Phase.STOPPED))))
    assert finding.kind == Kind.DOMAIN_MISSING and "eschedule start web" in finding.cure


def test_a_lost_claim_is_fixable_only_where_there_is_a_guest() -> None:
    gone = {"allocations": {}, "asked": {UUID_1: None}}
    assert consumers_to_ask(sight(allocations={})) == {UUID_1}
    finding = only(compare(sight(**gone)))
    assert (finding.kind, finding.is_fixable) == (Kind.MISSING_ALLOCATION, True)
    refused = sight(domains={}, folders={}, statuses=status(Phase.REFUSED, booted=0), **gone)
    finding = only(compare(refused))
    assert (finding.kind, finding.is_fixable) == (Kind.MISSING_ALLOCATION, False)
    assert "eschedule destroy web" in finding.cure


def test_a_claim_of_another_size_or_elsewhere_is_wrong_and_one_over_several_providers_is_not() -> None:
    wrong = sight(allocations={UUID_1: {"VCPU": 9}}, asked={UUID_1: Held({"VCPU": 9}, frozenset({PROVIDER}), True)})
    finding = only(compare(wrong))
    assert finding.kind == Kind.WRONG_ALLOCATION and finding.is_fixable
    assert "VCPU:9" in finding.what
    of_another = sight(allocations={UUID_1: {"VCPU": 9}}, asked={UUID_1: Held({"VCPU": 9}, frozenset({PROVIDER}), False)})
    finding = only(compare(of_another))
    assert not finding.is_fixable and "another project or type than ours" in finding.cure
    elsewhere = sight(allocations={}, asked={UUID_1: Held(RESOURCES, frozenset({OTHER}), True)})
    assert only(compare(elsewhere)).kind == Kind.WRONG_ALLOCATION
    shared = sight(allocations={UUID_1: {"VCPU": 1}}, asked={UUID_1: Held(RESOURCES, frozenset({PROVIDER, OTHER}), True)})
    assert compare(shared) == []


def test_without_placement_nothing_is_said_of_claims() -> None:
    assert compare(sight(allocations=None)) == [] and consumers_to_ask(sight(allocations=None)) == set()


def test_a_missing_dhcp_entry_and_a_half_made_file_of_a_guest_at_rest_are_fixable() -> None:
    finding = only(compare(sight(dhcp_entries={"default": frozenset()})))
    assert (finding.kind, finding.subject, finding.is_fixable) == (Kind.DHCP_ENTRY_MISSING, ADDRESS.address, True)
    assert compare(sight(dhcp_entries={})) == []
    left = dataclasses.replace(FOLDER, partials=("disk.qcow2.7-0.partial",))
    finding = only(compare(sight(folders={UUID_1: left})))
    assert (finding.kind, finding.subject, finding.is_fixable) == (Kind.LEFTOVER_PARTIAL, "disk.qcow2.7-0.partial", True)


# -- leftovers ----------------------------------------------------------------------------------------------------------


def test_what_belongs_to_no_instance_is_left_over_and_fixable() -> None:
    found = compare(sight(specs={}, statuses={}, domains={}, allocations={}, places={UUID_1: None}))
    assert [f.kind for f in found] == [Kind.LEFTOVER_FILES, Kind.LEFTOVER_ADDRESS, Kind.LEFTOVER_METADATA]
    assert all(f.is_fixable for f in found)
    assert f"/state/lost/{UUID_1}" in found[0].cure


@pytest.mark.parametrize("places", [{}, {UUID_1: PROVIDER}])
def test_it_is_left_alone_where_etcd_still_names_this_host_or_could_not_be_asked(places: dict[UUID, UUID | None]) -> None:
    found = compare(sight(specs={}, statuses={}, domains={}, allocations={}, places=places))
    assert len(found) == 3 and not any(f.is_fixable for f in found)


def test_a_claim_alone_is_an_orphan_only_where_it_is_ours_and_no_host_has_the_instance() -> None:
    alone = {"specs": {}, "statuses": {}, "domains": {}, "folders": {}, "assignments": {}, "documents": {}}
    held = Held(RESOURCES, frozenset({PROVIDER}), True)
    assert consumers_to_ask(sight(**alone)) == {UUID_1}
    finding = only(compare(sight(asked={UUID_1: held}, places={UUID_1: None}, orphaned_seconds={UUID_1: 61.0}, **alone)))
    assert (finding.kind, finding.is_fixable) == (Kind.ORPHAN_CLAIM, True)
    assert "61 s" in finding.what
    theirs = dataclasses.replace(held, is_ours=False)
    assert compare(sight(asked={UUID_1: theirs}, places={UUID_1: None}, **alone)) == []
    assert compare(sight(asked={UUID_1: held}, places={UUID_1: OTHER}, **alone)) == []
    assert compare(sight(asked={UUID_1: held}, places={}, **alone)) == []


def test_the_claim_of_a_quarantined_guest_is_the_guests() -> None:
    assert [f.kind for f in compare(sight(specs={}, statuses={}, places={UUID_1: None}))] == [Kind.QUARANTINED]
