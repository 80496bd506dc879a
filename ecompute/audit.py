"""What of a host does not agree: its specs, domains, disks, addresses, metadata documents and claims, compared. Pure.

``Sight`` is what was gathered (``auditor`` does that), ``compare`` names every difference with its cause and its cure. An
instance that somebody is working on (building, moving, stopping, being deleted) is no difference, only one that is at rest and
wrong. What is caught in the middle by two lists that were not taken at one moment goes with the next look, which is why nobody
believes a single one (``common.findings.settled``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from common.claim_findings import Held, missing_allocation, orphan_claim, wrong_allocation
from common.findings import Finding, Kind
from common.metadata import MetadataDocument
from common.model import Address, Adoption, ConfigDrive, Desired, InstanceSpec, InstanceStatus, Phase
from ecompute.audit_volumes import volume_findings, volumes_of
from ecompute.disk_notes import NOTHING_NOTED
from ecompute.disks import Folder
from ecompute.firewall import GuestRules
from ecompute.hypervisor import DhcpHost, Domain, Stamp
from ecompute.proposal import Remains, proposed
from ecompute.sizing import claim_wanted
from ecompute.volume_book import VolumeEntry
from ecompute.watcher import SpecEntry

# Where nothing is under way; an instance in any other phase is on its way to one of them, and looked at there.
_AT_REST = (Phase.RUNNING, Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED, Phase.REFUSED, Phase.HELD)


@dataclass(frozen=True)
class Sight:
    """What is on this host and what is said of it.

    Args:
        allocations: what is claimed on this provider, by consumer, but for its volumes; None where Placement did not answer.
        asked: of those consumers that looked wrong, what they hold everywhere; None for one that holds nothing.
        places: of what has no spec here, where it lives as etcd says; None where nowhere. Not there: it was not asked.
        orphaned_seconds: since when claims have been seen alone.
        dhcp_entries: of the networks that were read.
    """

    provider: UUID
    host: str
    cluster_id: int
    lost_directory: Path
    specs: Mapping[UUID, SpecEntry] = field(default_factory=dict)
    statuses: Mapping[UUID, InstanceStatus] = field(default_factory=dict)
    domains: Mapping[UUID, Domain] = field(default_factory=dict)
    folders: Mapping[UUID, Folder] = field(default_factory=dict)
    assignments: Mapping[UUID, tuple[Address, ...]] = field(default_factory=dict)
    dhcp_entries: Mapping[str, frozenset[DhcpHost]] = field(default_factory=dict)
    documents: Mapping[UUID, MetadataDocument | None] = field(default_factory=dict)
    drives: Mapping[UUID, ConfigDrive] = field(default_factory=dict)
    rules: Mapping[UUID, GuestRules] = field(default_factory=dict)
    allocations: Mapping[UUID, Mapping[str, int]] | None = None
    asked: Mapping[UUID, Held | None] = field(default_factory=dict)
    places: Mapping[UUID, UUID | None] = field(default_factory=dict)
    orphaned_seconds: Mapping[UUID, float] = field(default_factory=dict)
    volumes: Mapping[UUID, VolumeEntry] = field(default_factory=dict)
    volume_files: frozenset[UUID] = frozenset()
    volumes_directory: Path = Path()

    @property
    def where(self) -> str:
        return f"host {self.host}"

    def stamp(self, uuid: UUID) -> Stamp | None:
        """Our mark on the instance's domain; None where it is another's, or there is none."""
        domain = self.domains.get(uuid)
        return domain.stamp if domain and domain.stamp and domain.stamp.provider == self.provider else None

    def at_rest(self, uuid: UUID) -> InstanceSpec | None:
        """The spec, where nothing is under way for it and it is to stay."""
        entry, status = self.specs.get(uuid), self.statuses.get(uuid)
        if entry is None or entry.spec is None or status is None or entry.spec.desired is Desired.DELETED:
            return None
        is_settled = status.spec_revision == entry.revision and status.phase in _AT_REST
        return entry.spec if is_settled else None


def is_restored(sight: Sight, uuid: UUID) -> bool:
    """Whether the guest has seen another etcd, or a later spec, than the one that speaks for it, and nobody decided yet."""
    stamp, entry = sight.stamp(uuid), sight.specs.get(uuid)
    if stamp is None or entry is None or entry.spec is None:
        return False
    is_older = stamp.cluster_id != sight.cluster_id or stamp.spec_revision > entry.revision
    return is_older and entry.spec.adopts != Adoption(stamp.cluster_id, stamp.spec_revision)


def consumers_to_ask(sight: Sight) -> set[UUID]:
    """Whose claims have to be read one by one: those that stand alone, and those that are not what their specs say."""
    if sight.allocations is None:
        return set()
    alone = {uuid for uuid in sight.allocations if uuid not in sight.specs and uuid not in sight.domains}
    wrong = {
        uuid
        for uuid in sight.specs
        if (spec := sight.at_rest(uuid)) is not None and dict(sight.allocations.get(uuid, {})) != _wanted(sight, spec)
    }
    return alone | wrong


def without_spec(sight: Sight) -> set[UUID]:
    """Everything here that no spec of this host speaks for."""
    stamped = {uuid for uuid in sight.domains if sight.stamp(uuid)}
    claimed = set(sight.allocations or ())
    kept = sight.folders.keys() | sight.assignments.keys() | sight.documents.keys() | sight.rules.keys()
    return (stamped | claimed | kept) - sight.specs.keys()


def compare(sight: Sight) -> list[Finding]:
    """Every difference, guests first."""
    volumes = volume_findings(sight.where, sight.provider, sight.volumes, sight.volume_files, sight.volumes_directory)
    return [*_guests(sight), *_instances(sight), *_leftovers(sight), *_orphans(sight), *volumes]


# -- guests -------------------------------------------------------------------------------------------------------------


def _guests(sight: Sight) -> Iterator[Finding]:
    for uuid, domain in sorted(sight.domains.items()):
        entry = sight.specs.get(uuid)
        if domain.stamp is None:
            if entry is not None:
                yield _foreign_domain(sight, domain)
        elif domain.stamp.provider != sight.provider:
            yield _foreign_stamp(sight, domain, domain.stamp)
        elif entry is None:
            elsewhere = sight.places.get(uuid) not in (None, sight.provider)
            yield _duplicate(sight, domain) if elsewhere else _quarantined(sight, domain, domain.stamp)
        elif is_restored(sight, uuid):
            yield _restored(sight, domain, domain.stamp, entry)


def _remains(sight: Sight, uuid: UUID) -> Remains:
    claim = (sight.allocations or {}).get(uuid)
    noted = sight.folders[uuid].noted if uuid in sight.folders else NOTHING_NOTED
    return Remains(
        sight.documents.get(uuid), sight.assignments.get(uuid), claim, sight.rules.get(uuid), sight.drives.get(uuid),
        noted=noted, volumes=volumes_of(uuid, sight.volumes),
    )  # fmt: skip


def _quarantined(sight: Sight, domain: Domain, stamp: Stamp) -> Finding:
    proposal = proposed(domain, stamp, _remains(sight, domain.uuid))
    gaps = (
        [] if sight.documents.get(domain.uuid) else ["its metadata document is gone as well, so its keys and image are unknown"]
    )
    if domain.uuid not in sight.folders or not sight.folders[domain.uuid].has_disk:
        gaps.append("its disk is not in its folder")
    if sight.allocations is not None and domain.uuid not in sight.allocations:
        gaps.append("Placement knows no claim of it")
    return Finding(
        Kind.QUARANTINED, sight.where,
        "; ".join([f"the guest {proposal.name} ({domain.power_state}) is ours, but etcd has no spec of it", *gaps]),
        "etcd was wiped, or restored from before the guest was made, or the key was deleted by hand; the guest is not touched",
        f"eschedule adopt {domain.uuid} writes its spec back; its restart policy becomes never and its group none, since only "
        "the lost spec knew them. A guest that is not wanted any more: adopt it, then destroy it",
        domain.uuid, sight.provider, proposal=proposal, name=proposal.name,
    )  # fmt: skip


def _restored(sight: Sight, domain: Domain, stamp: Stamp, entry: SpecEntry) -> Finding:
    assert entry.spec is not None  # noqa: S101 - is_restored looked
    spec, proposal = entry.spec, proposed(domain, stamp, _remains(sight, domain.uuid), entry.spec)
    return Finding(
        Kind.STORE_RESTORED, sight.where,
        f"the guest {spec.name} is {domain.power_state} and has seen a later request than the one in etcd, which says "
        f"desired={spec.desired}",
        "etcd was restored from an older backup, or set up anew; the guest is not touched",
        f"decide which counts: eschedule adopt {domain.uuid} --spec (what etcd says), or --domain (what the guest is); "
        "without either, eschedule adopt tells what each would do",
        domain.uuid, sight.provider, proposal=proposal, name=spec.name,
    )  # fmt: skip


def _duplicate(sight: Sight, domain: Domain) -> Finding:
    place = sight.places.get(domain.uuid)
    return Finding(
        Kind.DUPLICATE_GUEST, sight.where,
        f"a domain of ours, {domain.name} ({domain.power_state}), is here, but the instance lives on provider {place}",
        "etcd was restored from before or after a move, or a disk with its domain was copied here",
        f"see which of the two is the right one (virsh dominfo {domain.uuid} on both hosts); end the other by virsh, and "
        "keep its disk",
        domain.uuid, sight.provider, name=domain.name,
    )  # fmt: skip


def _foreign_domain(sight: Sight, domain: Domain) -> Finding:
    return Finding(
        Kind.FOREIGN_DOMAIN, sight.where,
        f"the domain {domain.name} has the uuid of an instance of ours, and not our stamp",
        "it was defined by hand, or its <metadata> was lost in an edit",
        f"virsh dumpxml {domain.uuid}: if it is not wanted, undefine it by virsh; the instance goes on then",
        domain.uuid, sight.provider, name=domain.name,
    )  # fmt: skip


def _foreign_stamp(sight: Sight, domain: Domain, stamp: Stamp) -> Finding:
    return Finding(
        Kind.FOREIGN_STAMP, sight.where,
        f"the domain {domain.name} was made by the ecompute of provider {stamp.provider}, this one is {sight.provider}",
        "this host was given another uuid (compute.yaml, a new machine-id), or the domain was copied from another host",
        f"if this host was provider {stamp.provider}: set `uuid: {stamp.provider}` in compute.yaml and restart ecompute; else "
        "undefine the domain by virsh",
        domain.uuid, sight.provider, name=domain.name,
    )  # fmt: skip


# -- instances at rest --------------------------------------------------------------------------------------------------


def _instances(sight: Sight) -> Iterator[Finding]:
    for uuid in sorted(sight.specs):
        spec = sight.at_rest(uuid)
        if spec is None:
            continue
        yield from _files(sight, spec)
        yield from _partials(sight, uuid, spec.name)
        yield from _dhcp(sight, spec)
        if sight.allocations is not None and uuid in sight.asked and not is_restored(sight, uuid):
            yield from _claim(sight, spec, sight.asked[uuid])


def _files(sight: Sight, spec: InstanceSpec) -> Iterator[Finding]:
    """Where a guest has run, its disk and its domain have to be there."""
    uuid, status, stamp = spec.uuid, sight.statuses[spec.uuid], sight.stamp(spec.uuid)
    folder = sight.folders.get(uuid)
    if not (status.booted or (stamp and stamp.booted)) or (uuid in sight.domains and stamp is None):
        return
    if folder is None or not folder.has_disk:
        yield Finding(
            Kind.DISK_MISSING, sight.where, f"the instance {spec.name} has run, and its disk is gone",
            "it was deleted by hand, or its file system is not mounted",
            "mount it, or put the disk back and `eschedule start` it; without the disk: eschedule destroy " + spec.name,
            uuid, sight.provider, name=spec.name,
        )  # fmt: skip
    elif uuid not in sight.domains:
        yield Finding(
            Kind.DOMAIN_MISSING, sight.where, f"the instance {spec.name} has run; its disk is there, its domain is not defined",
            "it was undefined by hand, or libvirt's configuration was lost",
            f"eschedule start {spec.name} defines it anew over its disk", uuid, sight.provider, name=spec.name,
        )  # fmt: skip


def _partials(sight: Sight, uuid: UUID, name: str = "") -> Iterator[Finding]:
    folder = sight.folders.get(uuid)
    for partial in folder.partials if folder else ():
        yield Finding(
            Kind.LEFTOVER_PARTIAL, sight.where, f"{folder.path / partial if folder else partial} is a half-made file",
            "ecompute was killed while it made it; such a file is never used",
            "eschedule audit --fix deletes it", uuid, sight.provider, True, subject=partial, name=name,
        )  # fmt: skip


def _dhcp(sight: Sight, spec: InstanceSpec) -> Iterator[Finding]:
    for address in sight.assignments.get(spec.uuid, ()):
        entries = None if address.bridge else sight.dhcp_entries.get(address.network)
        if entries is not None and DhcpHost(address.mac, address.address) not in entries:
            yield Finding(
                Kind.DHCP_ENTRY_MISSING, sight.where,
                f"network {address.network} has no DHCP entry for {address.address} of {spec.name}",
                "the network was defined anew, or edited",
                "ecompute puts it back by itself, within a minute or by eschedule audit --fix; if another entry has the "
                f"address, virsh net-edit {address.network}",
                spec.uuid, sight.provider, True, subject=address.address, name=spec.name,
            )  # fmt: skip


def _claim(sight: Sight, spec: InstanceSpec, held: Held | None) -> Iterator[Finding]:
    guest = sight.stamp(spec.uuid) is not None
    if held is None:
        yield missing_allocation(sight.where, spec, sight.provider, has_guest=guest)
    elif held.resources != (wanted := _wanted(sight, spec)) or sight.provider not in held.providers:
        yield wrong_allocation(sight.where, spec, sight.provider, held, wanted, has_guest=guest)


def _wanted(sight: Sight, spec: InstanceSpec) -> dict[str, int]:
    """What the instance has to hold in Placement; a domain that is not ours uses nothing of it."""
    return claim_wanted(spec, sight.domains.get(spec.uuid) if sight.stamp(spec.uuid) else None)


# -- what nobody speaks for ---------------------------------------------------------------------------------------------


def _leftovers(sight: Sight) -> Iterator[Finding]:
    """Files of instances that have neither a spec nor a domain here; those of a guest without a spec are the guest's."""
    for uuid in sorted(without_spec(sight) - sight.domains.keys()):
        # Its key is there and names this host, so its spec was lost: what is left of it is all that there is.
        is_safe = uuid in sight.places and sight.places[uuid] != sight.provider
        yield from _partials(sight, uuid)
        if (folder := sight.folders.get(uuid)) is not None:
            yield _leftover_files(sight, uuid, folder, is_safe)
        if uuid in sight.rules:
            yield _leftover(
                sight, Kind.LEFTOVER_RULES, uuid, "there are rules in the packet filter of an instance that is not here",
                fix="takes them away", is_safe=is_safe,
            )  # fmt: skip
        if uuid in sight.assignments:
            addresses = ", ".join(address.address or address.mac for address in sight.assignments[uuid])
            yield _leftover(
                sight, Kind.LEFTOVER_ADDRESS, uuid, f"{addresses} is assigned to an instance that is not here",
                fix="frees it", is_safe=is_safe,
            )  # fmt: skip
        if uuid in sight.documents:
            yield _leftover(
                sight, Kind.LEFTOVER_METADATA, uuid, "there is a metadata document of an instance that is not here",
                fix="deletes it", is_safe=is_safe,
            )  # fmt: skip


def _leftover_files(sight: Sight, uuid: UUID, folder: Folder, is_safe: bool) -> Finding:
    holds = "a disk" if folder.has_disk else "no disk"
    cure = (
        "deletes the empty folder" if folder.is_empty else f"moves it to {sight.lost_directory / str(uuid)} and deletes nothing"
    )
    return _leftover(
        sight,
        Kind.LEFTOVER_FILES,
        uuid,
        f"{folder.path} belongs to no instance and no domain; {holds} is in it",
        fix=cure,
        is_safe=is_safe,
    )


def _leftover(sight: Sight, kind: Kind, uuid: UUID, what: str, *, fix: str, is_safe: bool) -> Finding:
    lost = f"etcd still names this host for it, and its spec is lost; see to that first: eschedule show {uuid}"
    return Finding(
        kind, sight.where, what, "etcd was wiped or restored, or ecompute's folders were copied here from another host",
        f"eschedule audit --fix {fix}" if is_safe else lost, uuid, sight.provider, is_safe,
    )  # fmt: skip


def _orphans(sight: Sight) -> Iterator[Finding]:
    """Claims without a spec and a domain, where etcd says that there is no such instance at all."""
    for uuid in sorted(set(sight.allocations or ()) - sight.specs.keys() - sight.domains.keys()):
        held = sight.asked.get(uuid)
        if held is None or not held.is_ours or sight.places.get(uuid, sight.provider) is not None:
            continue
        seconds = sight.orphaned_seconds.get(uuid, 0.0)
        yield orphan_claim(sight.where, uuid, sight.provider, held, seconds=seconds, is_fixable=True)
