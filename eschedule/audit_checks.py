"""What of the whole cluster does not agree: all keys with each other, and with Placement, compared. Pure.

``read_cluster`` sorts one list of all keys, taken at one revision, so that no transaction is seen by half. Placement cannot be
read at that moment: what looks wrong between the two is looked at again (``common.findings.settled``) before it is believed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from common.amounts import most
from common.claim_findings import Held, failed_keeps_claim, missing_allocation, orphan_claim, wrong_allocation
from common.errors import EcomputeError
from common.findings import Finding, Kind
from common.image_records import ImageRecord
from common.keys import Keys
from common.model import (
    Desired,
    GroupMembers,
    GroupPolicy,
    HostAdmin,
    HostRecord,
    InstanceKey,
    InstanceSpec,
    InstanceStatus,
    KeyRecord,
    OwnerRecord,
    Phase,
    Record,
)
from common.network_records import NetworkRecord, address_keys
from common.store import Versioned
from eschedule.audit_volumes import Volumes, check_volume_claims, check_volumes, orphan_volume_claim

Place = tuple[UUID, UUID]  # provider, instance
Holdings = Mapping[UUID, Mapping[UUID, Mapping[str, int]]]  # consumer → provider → what is claimed there
_AT_REST = (Phase.RUNNING, Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED, Phase.REFUSED, Phase.HELD)
_ONLY_READABLE: Mapping[str, type[Record]] = {"images": ImageRecord, "ssh-keys": KeyRecord}  # what refers to them copied them
_BY_HAND = "it was changed by hand, or only part of a backup of etcd was restored"


@dataclass
class Cluster:
    """All keys, read. What cannot be read is in *unreadable*, and its key still counts as there."""

    keys: Keys
    items: dict[str, Versioned] = field(default_factory=dict)
    specs: dict[Place, InstanceSpec | None] = field(default_factory=dict)
    statuses: dict[Place, InstanceStatus | None] = field(default_factory=dict)
    instances: dict[UUID, InstanceKey | None] = field(default_factory=dict)
    names: dict[str, UUID] = field(default_factory=dict)
    members: dict[tuple[str, UUID], GroupMembers] = field(default_factory=dict)
    anchors: dict[str, UUID] = field(default_factory=dict)
    networks: dict[str, NetworkRecord] = field(default_factory=dict)
    addresses: dict[str, UUID] = field(default_factory=dict)  # of networks, by their keys
    hosts: dict[UUID, str] = field(default_factory=dict)  # alive ones, by name
    owners: dict[UUID, str] = field(default_factory=dict)
    volumes: Volumes = field(default_factory=Volumes)
    unreadable: dict[str, str] = field(default_factory=dict)

    def place(self, provider: UUID) -> str:
        """A host, for people."""
        return f"host {self.hosts.get(provider) or self.owners.get(provider) or provider}"

    def at_key(self, key: str) -> str:
        return f"etcd key {key}"

    def fresh_phase(self, place: Place) -> Phase | None:
        """What the host says of this very spec; None where it did not say yet."""
        status, item = self.statuses.get(place), self.items.get(self.keys.spec(*place))
        return status.phase if status and item and status.spec_revision >= item.mod_revision else None


def read_cluster(keys: Keys, items: Iterable[Versioned]) -> Cluster:
    """Every key under the prefix in its place; never raises."""
    cluster = Cluster(keys)
    for item in items:
        cluster.items[item.key] = item
        try:
            _sort_in(cluster, item)
        except (ValueError, EcomputeError) as error:
            cluster.unreadable[item.key] = str(error)
    return cluster


def _sort_in(cluster: Cluster, item: Versioned) -> None:
    keys = cluster.keys
    kind, _, rest = item.key.removeprefix(keys.prefix).partition("/")
    if kind == "spec":
        place = keys.parse_provider_instance(item.key)
        cluster.specs[place] = None
        cluster.specs[place] = InstanceSpec.from_json(item.value)
    elif kind == "status":
        place = keys.parse_provider_instance(item.key)
        cluster.statuses[place] = None
        cluster.statuses[place] = InstanceStatus.from_json(item.value)
    elif kind == "instances":
        uuid = UUID(rest)
        cluster.instances[uuid] = None
        cluster.instances[uuid] = InstanceKey.from_json(item.value)
    elif kind == "names":
        cluster.names[rest] = UUID(item.value)
    elif kind == "groups":
        group, _, where = rest.rpartition("/")
        if where == "anchor":
            cluster.anchors[group] = UUID(item.value)
        else:
            cluster.members[group, UUID(where)] = GroupMembers.from_json(item.value)
    elif kind == "networks":
        cluster.networks[rest] = NetworkRecord.from_json(item.value)
    elif kind == "network-addresses":
        keys.parse_network_address(item.key)
        cluster.addresses[item.key] = UUID(item.value)
    elif kind in _ONLY_READABLE:
        _ONLY_READABLE[kind].from_json(item.value)
    elif kind in ("hosts", "owners", "host-admin"):
        _sort_host_in(cluster, kind, item)
    elif kind not in ("mail", "mail-reply") and not cluster.volumes.takes(keys, kind, item):
        raise ValueError("no program of this version writes such a key")


def _sort_host_in(cluster: Cluster, kind: str, item: Versioned) -> None:
    provider = cluster.keys.parse_host(item.key)
    if kind == "host-admin":
        HostAdmin.from_json(item.value)
        return
    known, record = (cluster.hosts, HostRecord) if kind == "hosts" else (cluster.owners, OwnerRecord)
    known[provider] = str(provider)  # a record that cannot be read still is a heartbeat, or an owner
    known[provider] = _name_of(record.from_json(item.value)) or str(provider)


def _name_of(record: Record) -> str:
    return str(getattr(record, "name", ""))


# -- keys ---------------------------------------------------------------------------------------------------------------


def check_keys(cluster: Cluster) -> list[Finding]:
    """What is wrong among the keys."""
    return [
        *_unreadable(cluster), *_specs(cluster), *_instances(cluster), *_names(cluster), *_statuses(cluster), *_groups(cluster),
        *_addresses(cluster), *check_volumes(cluster.keys, cluster.volumes, cluster.specs, cluster.place),
    ]  # fmt: skip


def _unreadable(cluster: Cluster) -> Iterator[Finding]:
    for key, why in sorted(cluster.unreadable.items()):
        yield Finding(
            Kind.UNREADABLE_KEY, cluster.at_key(key), f"it cannot be read: {why}",
            "a newer version of etcd-compute wrote it, or somebody did by hand",
            "if newer programs are about, upgrade this one; else look at it: etcdctl get " + key, subject=key,
        )  # fmt: skip


def _specs(cluster: Cluster) -> Iterator[Finding]:
    count = Counter(uuid for _, uuid in cluster.specs)
    for (provider, uuid), spec in sorted(cluster.specs.items()):
        known, name = cluster.instances.get(uuid), spec.name if spec else ""
        if count[uuid] > 1:
            yield Finding(
                Kind.DUPLICATE_SPEC, cluster.at_key(cluster.keys.spec(provider, uuid)),
                f"{uuid} has {count[uuid]} specs; this one is for {cluster.place(provider)}", _BY_HAND,
                "see on which host its guest is (eschedule audit names it there), and delete the other spec by etcdctl del",
                uuid, provider, name=name,
            )  # fmt: skip
        elif uuid not in cluster.instances or (known and known.provider != provider):
            says = f"says provider {known.provider}" if known else "is missing"
            yield Finding(
                Kind.SPEC_WITHOUT_INSTANCE, cluster.at_key(cluster.keys.spec(provider, uuid)),
                f"the instance {name} is on {cluster.place(provider)}, but {cluster.keys.instance(uuid)} {says}", _BY_HAND,
                "eschedule audit --fix writes it anew" if spec and not known else "see which is right, by etcdctl get",
                uuid, provider, bool(spec and not known), name=name,
            )  # fmt: skip


def _instances(cluster: Cluster) -> Iterator[Finding]:
    with_spec = {uuid for _, uuid in cluster.specs}
    for uuid, known in sorted(cluster.instances.items()):
        if known is None:
            continue
        if uuid not in with_spec:
            yield Finding(
                Kind.INSTANCE_WITHOUT_SPEC, cluster.at_key(cluster.keys.instance(uuid)),
                f"{known.name} is said to be on {cluster.place(known.provider)}, and has no spec there", _BY_HAND,
                f"if its guest is there: eschedule adopt {uuid}; if its host says that there is none: eschedule audit --fix "
                "deletes what is left of it in etcd",
                uuid, known.provider, name=known.name,
            )  # fmt: skip
        elif cluster.names.get(known.name) != uuid:
            taken = cluster.names.get(known.name)
            yield Finding(
                Kind.INSTANCE_WITHOUT_NAME, cluster.at_key(cluster.keys.name(known.name)),
                f"it does not lead to its instance {uuid}" + (f" but to {taken}" if taken else ": it is missing"), _BY_HAND,
                f"two instances have the name; use their uuids, and destroy one: eschedule show {uuid}" if taken
                else "eschedule audit --fix writes it anew",
                uuid, known.provider, taken is None and cluster.keys.name(known.name) not in cluster.items, name=known.name,
            )  # fmt: skip


def _names(cluster: Cluster) -> Iterator[Finding]:
    for name, uuid in sorted(cluster.names.items()):
        known = cluster.instances.get(uuid)
        if uuid in cluster.instances and (known is None or known.name == name):
            continue
        so = f"which is called {known.name}" if known else "which is not there"
        yield Finding(
            Kind.NAME_WITHOUT_INSTANCE, cluster.at_key(cluster.keys.name(name)), f"it leads to {uuid}, {so}", _BY_HAND,
            "eschedule audit --fix deletes it", uuid, None, True, subject=name, name=name,
        )  # fmt: skip


def _statuses(cluster: Cluster) -> Iterator[Finding]:
    for place in sorted(cluster.statuses.keys() - cluster.specs.keys()):
        key = cluster.keys.status(*place)
        yield Finding(
            Kind.STATUS_WITHOUT_SPEC, cluster.at_key(key), f"it speaks of {place[1]}, which has no spec there", _BY_HAND,
            "eschedule audit --fix deletes it", place[1], place[0], True, subject=key,
        )  # fmt: skip


def _groups(cluster: Cluster) -> Iterator[Finding]:
    for (group, provider), known in sorted(cluster.members.items()):
        for uuid in known.members:
            instance = cluster.instances.get(uuid)
            spec = cluster.specs.get((provider, uuid))
            if uuid in cluster.instances and (instance is None or instance.provider == provider):
                if spec is None or spec.group == group:
                    continue
                why = f"which is in {spec.group or 'no group'}"
            else:
                why = f"which lives on {cluster.place(instance.provider)}" if instance else "which is not there"
            yield Finding(
                Kind.MEMBER_WITHOUT_INSTANCE, cluster.at_key(cluster.keys.group(group, provider)), f"it lists {uuid}, {why}",
                _BY_HAND, "eschedule audit --fix takes it off the list", uuid, provider, True, subject=group,
            )  # fmt: skip
    yield from _unlisted(cluster)
    populated = {(group, provider) for (group, provider), known in cluster.members.items() if known.members}
    for group, provider in sorted(cluster.anchors.items()):
        if (group, provider) not in populated:
            yield Finding(
                Kind.ANCHOR_WITHOUT_MEMBERS, cluster.at_key(cluster.keys.group_anchor(group)),
                f"it ties the group {group} to {cluster.place(provider)}, where it has no member", _BY_HAND,
                "eschedule audit --fix deletes it", None, provider, True, subject=group,
            )  # fmt: skip


def _unlisted(cluster: Cluster) -> Iterator[Finding]:
    for (provider, uuid), spec in sorted(cluster.specs.items()):
        if spec is None or spec.group is None or spec.desired is Desired.DELETED:
            continue
        known, anchor = cluster.members.get((spec.group, provider)), cluster.anchors.get(spec.group)
        is_listed = known is not None and uuid in known.members
        is_anchored = spec.group_policy is not GroupPolicy.AFFINITY or anchor == provider
        if not (is_listed and is_anchored):
            yield Finding(
                Kind.MEMBER_NOT_LISTED, cluster.at_key(cluster.keys.group(spec.group, provider)),
                f"{spec.name} is in the group {spec.group}, which is not noted for {cluster.place(provider)}", _BY_HAND,
                "the group's policy does not count it: destroy it and create it again, or leave it so",
                uuid, provider, subject=spec.group, name=spec.name,
            )  # fmt: skip


def _addresses(cluster: Cluster) -> Iterator[Finding]:
    """Addresses of networks that nobody has any more, and instances that have one which is not noted as theirs."""
    wanted = {uuid: set(address_keys(cluster.keys, spec.nics)) for (_, uuid), spec in cluster.specs.items() if spec}
    unread = {uuid for (_, uuid), spec in cluster.specs.items() if spec is None}
    for key, uuid in sorted(cluster.addresses.items()):
        if uuid in unread or (uuid in cluster.instances and key in wanted.get(uuid, {key})):
            continue
        why = "which has no such address" if uuid in cluster.instances else "which is not there"
        yield Finding(
            Kind.ADDRESS_WITHOUT_INSTANCE, cluster.at_key(key), f"it is kept for {uuid}, {why}", _BY_HAND,
            f"if a guest has it: eschedule adopt {uuid}; once every host says that none has, eschedule audit --fix deletes it",
            uuid, subject=key,
        )  # fmt: skip
    for (provider, uuid), spec in sorted(cluster.specs.items()):
        for key in sorted(wanted.get(uuid, ())) if spec else ():
            if cluster.addresses.get(key) != uuid:
                yield _unnoted(cluster, key, provider, uuid, spec.name if spec else "")


def _unnoted(cluster: Cluster, key: str, provider: UUID, uuid: UUID, name: str) -> Finding:
    owner, is_free = cluster.addresses.get(key), key not in cluster.items
    what = "is missing" if is_free else f"says {owner or 'something else'}"
    cure = "eschedule audit --fix writes it anew"
    if not is_free:
        cure = f"two instances have the address; destroy one: eschedule show {uuid}"
    return Finding(
        Kind.INSTANCE_WITHOUT_ADDRESS, cluster.at_key(key), f"{name} has this address, and the key {what}", _BY_HAND, cure,
        uuid, provider, is_free, subject=key, name=name,
    )  # fmt: skip


# -- claims -------------------------------------------------------------------------------------------------------------


def consumers_to_ask(cluster: Cluster, holdings: Holdings) -> set[UUID]:
    """Whose claims have to be read one by one: those of no instance, and those that are not as their specs say."""
    alone = set(holdings) - cluster.instances.keys() - {uuid for _, uuid in cluster.specs} - cluster.volumes.uuids
    return alone | {
        place[1] for place, spec in cluster.specs.items() if spec and not _holds_all(cluster, holdings, place, spec)
    }


def check_claims(
    cluster: Cluster, holdings: Holdings, asked: Mapping[UUID, Held | None], answered: Collection[UUID]
) -> list[Finding]:
    """What is wrong between specs and claims.

    Args:
        asked: what those of ``consumers_to_ask`` hold.
        answered: hosts that look at themselves; they know whether there is a guest, which is not known of the others.
    """
    found = []
    count = Counter(uuid for _, uuid in cluster.specs)
    for place, spec in sorted(cluster.specs.items()):
        if spec and place[1] in asked and count[place[1]] == 1 and not _holds_all(cluster, holdings, place, spec):
            found += _claim(cluster, place, spec, asked[place[1]], has_guest=False if place[0] in answered else None)
    found += check_volume_claims(cluster.volumes, holdings, cluster.place)
    here = cluster.instances.keys() | {uuid for _, uuid in cluster.specs} | cluster.volumes.uuids
    for uuid in sorted(set(holdings) - here):
        held = asked.get(uuid)
        provider = sorted(holdings[uuid])[0]
        if held and (held.is_ours or held.is_volume):
            finding = orphan_claim if held.is_ours else orphan_volume_claim
            found.append(finding(cluster.place(provider), uuid, provider, held))
    return found


def _holds_all(cluster: Cluster, holdings: Holdings, place: Place, spec: InstanceSpec) -> bool:
    """Whether nothing need be asked: exactly its resources on its own provider, or nothing where it may hold nothing."""
    held = holdings.get(place[1])
    if spec.desired is Desired.DELETED:
        return True  # its claim goes before its spec
    phase = cluster.fresh_phase(place)
    if phase is Phase.FAILED:
        return not held
    return (
        held is not None and set(held) == {place[0]} and dict(held[place[0]]) == has_to_hold(spec, cluster.statuses.get(place))
    )


def has_to_hold(spec: InstanceSpec, status: InstanceStatus | None) -> dict[str, int]:
    """What the claim of *spec* has to hold: what a guest runs with, too, until it is started with less."""
    return most(spec.resources, status.in_force if status else {})


def _claim(cluster: Cluster, place: Place, spec: InstanceSpec, held: Held | None, *, has_guest: bool | None) -> list[Finding]:
    provider, phase = place[0], cluster.fresh_phase(place)
    where = cluster.place(provider)
    if phase is Phase.FAILED:
        return [failed_keeps_claim(where, spec, provider, held)] if held else []
    status = cluster.statuses.get(place)
    if status and status.phase is Phase.FAILED:
        return []  # started again, and not looked at yet
    if held is None:
        return [missing_allocation(where, spec, provider, has_guest=has_guest)]
    # One that has not come to rest may be on its way to another host; its claim goes first.
    allowed = {provider} if phase in _AT_REST else {provider, *(a.provider for a in spec.alternates)}
    wanted = has_to_hold(spec, status)
    if dict(held.resources) != wanted or not allowed & held.providers:
        return [wrong_allocation(where, spec, provider, held, wanted, has_guest=has_guest)]
    return []


def gathered(allocations: Mapping[UUID, Mapping[UUID, Mapping[str, int]]]) -> dict[UUID, dict[UUID, Mapping[str, int]]]:
    """By consumer, what was read by provider."""
    found: dict[UUID, dict[UUID, Mapping[str, int]]] = defaultdict(dict)
    for provider, held in allocations.items():
        for consumer, resources in held.items():
            found[consumer][provider] = resources
    return dict(found)


# -- hosts --------------------------------------------------------------------------------------------------------------


def providers_of(cluster: Cluster) -> set[UUID]:
    """Every host that etcd speaks of."""
    used = {provider for provider, _ in (*cluster.specs, *cluster.volumes.specs)} | {
        known.provider for known in cluster.instances.values() if known
    }
    return used | cluster.owners.keys() | cluster.hosts.keys()


def check_hosts(cluster: Cluster, in_placement: Mapping[UUID, str] | None) -> list[Finding]:
    """What is wrong with hosts; *in_placement* are the providers that an ecompute keeps, by name, None where unknown."""
    found = [_dead(cluster, provider) for provider in sorted(providers_of(cluster) - cluster.hosts.keys())]
    if in_placement is None:
        return found
    unknown = sorted(cluster.owners.keys() - in_placement.keys())
    unowned = sorted(in_placement.keys() - cluster.owners.keys())
    return [
        *found,
        *(_without_provider(cluster, provider) for provider in unknown),
        *(_without_owner(cluster, provider, in_placement[provider]) for provider in unowned),
    ]


def _without_provider(cluster: Cluster, provider: UUID) -> Finding:
    return Finding(
        Kind.OWNER_WITHOUT_PROVIDER, cluster.place(provider), f"Placement has no provider {provider} of ours",
        "its ecompute has not come up yet, or Placement's database was lost while it was down",
        f"start ecompute there; of a host that is gone for good: eschedule host remove {provider}", None, provider,
    )  # fmt: skip


def _without_owner(cluster: Cluster, provider: UUID, name: str) -> Finding:
    return Finding(
        Kind.PROVIDER_WITHOUT_OWNER, f"provider {name}",
        f"Placement has the provider {provider} of ours, etcd no {cluster.keys.owner(provider)}",
        "etcd was wiped or restored; a host that runs writes it again by itself",
        "start or restart ecompute on that host; of one that is gone for good, delete the provider in Placement",
        None, provider,
    )  # fmt: skip


def _dead(cluster: Cluster, provider: UUID) -> Finding:
    guests = sum(1 for known in cluster.instances.values() if known and known.provider == provider)
    return Finding(
        Kind.HOST_DEAD, cluster.place(provider),
        f"it has no heartbeat; its guests ({guests} as etcd says) could not be looked at",
        "the host is down or cut off, or its ecompute is",
        "see to the host; start ecompute there; then audit again; of a host that is gone for good: eschedule host remove",
        None, provider,
    )  # fmt: skip


def silent(cluster: Cluster, provider: UUID, seconds: float) -> Finding:
    return Finding(
        Kind.HOST_SILENT, cluster.place(provider), f"it did not answer within {seconds:g} s; its guests could not be looked at",
        "it is very busy, its libvirtd does not answer, or its ecompute is of an older version",
        "look at the log of ecompute there; or wait longer: --wait-seconds", None, provider,
    )  # fmt: skip


# -- together -----------------------------------------------------------------------------------------------------------

_GUEST_KINDS = (Kind.QUARANTINED, Kind.DUPLICATE_GUEST, Kind.FOREIGN_DOMAIN, Kind.FOREIGN_STAMP, Kind.STORE_RESTORED)


def merged(
    of_cluster: Iterable[Finding], of_hosts: Iterable[Finding], answered: Collection[UUID], *, is_whole: bool = False
) -> list[Finding]:
    """Both in one list: what both name is told once, as the host tells it, which can look at the guest.

    Args:
        answered: the hosts that told of all their guests; *is_whole*: there are no others.
    """
    hosts = list(of_hosts)
    guests = {finding.instance for finding in hosts if finding.kind in _GUEST_KINDS}
    proposing = Counter(finding.instance for finding in hosts if finding.kind in (Kind.QUARANTINED, Kind.DUPLICATE_GUEST))
    cluster = {finding.identity: finding for finding in of_cluster}
    result = {}
    for identity, finding in cluster.items():
        if finding.kind == Kind.ORPHAN_CLAIM and finding.instance in guests:
            continue  # the claim of a guest without a spec is the guest's
        result[identity] = _fixable_if_no_guest(finding, guests, answered, is_whole=is_whole)
    for finding in hosts:
        if finding.kind == Kind.ORPHAN_CLAIM and finding.identity not in cluster:
            continue  # its request has come since
        several = finding.kind == Kind.QUARANTINED and proposing[finding.instance] > 1
        result[finding.identity] = _duplicate(finding) if several else finding
    return list(result.values())


def _fixable_if_no_guest(
    finding: Finding, guests: Collection[UUID | None], answered: Collection[UUID], *, is_whole: bool
) -> Finding:
    known: dict[str, bool] = {
        Kind.INSTANCE_WITHOUT_SPEC: finding.provider in answered,
        # A guest that etcd has forgotten still uses it, on whichever host it is.
        Kind.ADDRESS_WITHOUT_INSTANCE: is_whole,
    }
    is_clear = known.get(finding.kind, False) and finding.instance not in guests
    return dataclasses.replace(finding, is_fixable=True) if is_clear else finding


def _duplicate(finding: Finding) -> Finding:
    return dataclasses.replace(
        finding, kind=Kind.DUPLICATE_GUEST, proposal=None, cause="a disk with its domain was copied to another host",
        cure=f"several hosts have a guest of {finding.instance}: end all but the right one by virsh, then eschedule adopt it",
    )  # fmt: skip
