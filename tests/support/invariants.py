"""What has to be true of a cluster whatever was done to it, each as a function over one ``World``.

``LASTING`` hold at every moment, in the middle of every fault. ``SETTLED`` hold once all faults are over and the hosts have had
time: a test waits for them (``settle``) and reports what is still wrong when its patience ends. Each function answers with the
violations it found, in words; none means that the invariant holds. What clients were told is in ``tests/support/ledger.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from common.keys import Keys
from common.model import Desired, InstanceSpec, InstanceStatus, Phase, Reason
from common.network_records import address_keys
from common.nics import link_local_address
from common.volume_records import VolumeDesired, VolumePhase
from tests.support.snapshot import HostView, World

Invariant = Callable[[World], Iterator[str]]
RESERVE_AHEAD = 2  # of the clusters that tests start
MOST_SPARE_ADDRESSES = 2 * RESERVE_AHEAD


def never_two_guests_of_one_instance(world: World) -> Iterator[str]:
    """No uuid has two domains, or two QEMU processes, on all hosts together."""
    domains = Counter(uuid for host in world.hosts for uuid in host.guests)
    processes = Counter(uuid for host in world.hosts for uuid, qemus in host.qemus.items() for _ in qemus)
    for what, count in (("domains", domains), ("QEMUs", processes)):
        yield from (f"{uuid} has {number} {what}" for uuid, number in count.items() if number > 1)


def never_two_specs_of_one_instance(world: World) -> Iterator[str]:
    """A move deletes one spec and creates the other at once."""
    count = Counter(uuid for _, uuid in world.specs)
    yield from (f"{uuid} has {number} specs" for uuid, number in count.items() if number > 1)


def every_request_is_where_it_was_asked_to_be(world: World) -> Iterator[str]:
    """Running, Stopped, or Failed with a reason; what is to be deleted is gone. The status speaks of the spec as it is."""
    for (provider, uuid), (spec, revision) in world.specs.items():
        status = world.statuses.get((provider, uuid))
        if status is None:
            yield f"{spec.name} has no status"
        elif spec.desired is Desired.DELETED:
            yield f"{spec.name} is to be deleted and is {status.phase}"
        elif status.spec_revision != revision:
            yield f"{spec.name}: the status speaks of revision {status.spec_revision}, the spec has {revision}"
        elif problem := _phase_problem(spec, status, world.host(provider)):
            yield f"{spec.name}: {problem}"


def _phase_problem(spec: InstanceSpec, status: InstanceStatus, host: HostView) -> str:
    guest = host.guests.get(spec.uuid)
    is_active = guest is not None and guest.is_active
    if is_active is not (status.phase in (Phase.RUNNING, Phase.PAUSED)):
        return f"is {status.phase}, its guest is {'up' if is_active else 'down'}"
    if is_active is not (spec.uuid in host.qemus):
        return f"libvirt says active={is_active}, its QEMUs are {host.qemus.get(spec.uuid)}"
    if status.phase is Phase.FAILED and not (status.reason and status.message):
        return "is Failed without a reason"
    for asked, applied in ((spec.restore_request, status.restored), (spec.rebuild_request, status.rebuilt)):
        if asked > (applied.request if applied else 0):
            return f"was asked for another disk, by request {asked}, and has {applied}"
    if spec.desired.stands_still and status.phase.value.lower() != spec.desired:
        return f"is to be {spec.desired} and is {status.phase}, {status.reason}: {status.message}"
    if guest is not None and guest.is_saved is not (spec.desired is Desired.SUSPENDED):
        return f"is to be {spec.desired}, and its memory is {'' if guest.is_saved else 'not '}saved"
    if spec.desired is Desired.STOPPED and status.phase not in (Phase.STOPPED, Phase.FAILED):
        return f"is to be stopped and is {status.phase}"
    if spec.desired is Desired.RUNNING and status.phase is Phase.STOPPED and status.reason != Reason.START_FAILED:
        return f"is to run and is Stopped, {status.reason}: {status.message}"
    if spec.desired is Desired.RUNNING and status.phase not in (Phase.RUNNING, Phase.STOPPED, Phase.FAILED):
        return f"is to run and is {status.phase}, {status.reason}: {status.message}"
    return ""


def claims_are_the_specs(world: World) -> Iterator[str]:
    """On each host Placement's allocations are those of the specs that live there, with the very amounts; a Failed one has none."""
    for host in world.hosts:
        wanted = {
            uuid: spec.resources
            for (provider, uuid), (spec, _) in world.specs.items()
            if provider == host.provider and not _is_failed(world, provider, uuid)
        }
        wanted |= {uuid: spec.resources for (provider, uuid), (spec, _) in world.volumes.items() if provider == host.provider}
        for uuid in wanted.keys() - host.claims.keys():
            yield f"{host.name}: {uuid} has a spec and no claim"
        for uuid in host.claims.keys() - wanted.keys():
            yield f"{host.name}: {uuid} has a claim and no living spec"
        for uuid in wanted.keys() & host.claims.keys():
            if wanted[uuid] != host.claims[uuid]:
                yield f"{host.name}: {uuid} claims {host.claims[uuid]}, its spec says {wanted[uuid]}"


def domains_are_the_specs(world: World) -> Iterator[str]:
    """Each domain has a spec on its host; each instance that has run and did not fail has its domain there."""
    for host in world.hosts:
        here = {uuid for provider, uuid in world.specs if provider == host.provider}
        for uuid in (host.guests.keys() | host.qemus.keys()) - here:
            yield f"{host.name}: {uuid} has a domain and no spec"
        for uuid in here:
            status = world.statuses.get((host.provider, uuid))
            if _is_failed(world, host.provider, uuid) and uuid in host.guests:
                yield f"{host.name}: {uuid} is Failed and has a domain"
            if status and status.booted and uuid not in host.guests:
                yield f"{host.name}: {uuid} has run and has no domain"


def files_are_the_instances(world: World) -> Iterator[str]:
    """No disk, address, metadata document or half-made file without its instance; and whoever has a domain has all of them."""
    for host in world.hosts:
        here = {uuid for provider, uuid in world.specs if provider == host.provider and not _is_failed(world, provider, uuid)}
        kinds = {"a folder": host.folders, "an address": host.addresses.keys(), "a metadata document": host.documents}
        for what, owners in kinds.items():
            yield from (f"{host.name}: {what} of {uuid}, which is not here" for uuid in owners - here)
            yield from (f"{host.name}: {uuid} has a domain, but not {what}" for uuid in (host.guests.keys() & here) - owners)
        yield from (f"{host.name}: the file {stray} was left" for stray in host.strays)
        yield from (f"{host.name}: a report of {uuid}, which is not here" for uuid in host.reports - here)
        yield from (f"{host.name}: {uuid} has a domain and no disk" for uuid in (host.guests.keys() & here) - host.disks.keys())


def addresses_are_kept_in_order(world: World) -> Iterator[str]:
    """Each assigned address has its DHCP entry, no address is assigned twice, no link leads to nobody; spares are few."""
    for host in world.hosts:
        assigned = [pair for pairs in host.addresses.values() for pair in pairs]
        yield from (f"{host.name}: {pair} is assigned twice" for pair, number in Counter(assigned).items() if number > 1)
        yield from (f"{host.name}: {pair} is assigned and has no DHCP entry" for pair in set(assigned) - host.dhcp)
        spare = len(host.dhcp - set(assigned))
        if spare > MOST_SPARE_ADDRESSES:
            yield f"{host.name}: {spare} DHCP entries have no instance, at most {MOST_SPARE_ADDRESSES} are kept ready"
        owners = {
            found_by: uuid
            for uuid, pairs in host.addresses.items()
            for mac, address in pairs
            for found_by in (address, link_local_address(mac))
            if uuid in host.documents
        }
        if host.links != owners:
            yield f"{host.name}: metadata is linked for {host.links}, the documents are of {owners}"


def keys_are_the_instances(world: World) -> Iterator[str]:
    """No instance, name, status, group, anchor or address key without a spec, and none missing."""
    specs = {uuid: (provider, spec) for (provider, uuid), (spec, _) in world.specs.items()}
    expected = {uuid: (provider, spec.name) for uuid, (provider, spec) in specs.items()}
    found = {uuid: (key.provider, key.name) for uuid, key in world.instances.items()}
    if found != expected:
        yield f"instance keys say {found}, specs say {expected}"
    names = {spec.name: uuid for uuid, (_, spec) in specs.items()}
    if names != world.names:
        yield f"name keys say {world.names}, specs say {names}"
    yield from (f"a status without a spec: {uuid} at {provider}" for provider, uuid in world.statuses.keys() - world.specs)
    addresses = {key: uuid for uuid, (_, spec) in specs.items() for key in address_keys(Keys(""), spec.nics)}
    if addresses != world.network_addresses:
        yield f"address keys say {world.network_addresses}, specs say {addresses}"
    yield from (f"an unknown key: {key}" for key in world.others)
    yield from _group_problems(world, specs)


def _group_problems(world: World, specs: dict[UUID, tuple[UUID, InstanceSpec]]) -> Iterator[str]:
    members: dict[tuple[str, UUID], set[UUID]] = {}
    for uuid, (provider, spec) in specs.items():
        if spec.group:
            members.setdefault((spec.group, provider), set()).add(uuid)
    found = {place: set(known.members) for place, known in world.groups.items()}
    if found != members:
        yield f"group keys say {found}, specs say {members}"
    for (group, provider), known in world.groups.items():
        if known.policy == "anti-affinity" and len(known.members) > 1:
            yield f"{group} is strictly apart and has {known.members} on {provider}"
    anchored = {(group, provider) for group, provider in world.anchors.items()}
    together = {place for place, known in world.groups.items() if known.policy == "affinity"}
    if anchored != together:
        yield f"anchors are {anchored}, the groups that stay together are on {together}"


def volumes_are_as_asked_for(world: World) -> Iterator[str]:
    """Each volume has its file, its name and a status of the spec as it is, and is the instance's that names it, and no other's."""
    owners: dict[UUID, list[UUID]] = {}
    for spec, _ in world.specs.values():
        for volume in spec.volumes:
            owners.setdefault(volume.uuid, []).append(spec.uuid)
    for (provider, uuid), (volume_spec, revision) in world.volumes.items():
        status = world.volume_statuses.get((provider, uuid))
        if volume_spec.desired is VolumeDesired.DELETED:
            yield f"volume {volume_spec.name} is to be deleted and is there"
        elif (
            status is None
            or status.spec_revision != revision
            or status.phase not in (VolumePhase.AVAILABLE, VolumePhase.ATTACHED)
        ):
            yield f"volume {volume_spec.name} is {status}, its spec has {revision}"
        if owners.get(uuid, []) != ([volume_spec.attached_to] if volume_spec.attached_to else []):
            yield f"volume {volume_spec.name} is attached to {volume_spec.attached_to}, {owners.get(uuid)} name it"
    names = {spec.name: f"{provider}/{uuid}" for (provider, uuid), (spec, _) in world.volumes.items()}
    if names != world.volume_names:
        yield f"names of volumes say {world.volume_names}, specs say {names}"
    yield from (f"a status without a volume: {at}" for at in world.volume_statuses.keys() - world.volumes)
    for host in world.hosts:
        here = {uuid for provider, uuid in world.volumes if provider == host.provider}
        if host.volumes != here:
            yield f"{host.name}: files of the volumes {host.volumes}, specs of {here}"


def _is_failed(world: World, provider: UUID, uuid: UUID) -> bool:
    status = world.statuses.get((provider, uuid))
    return status is not None and status.phase is Phase.FAILED


LASTING: tuple[Invariant, ...] = (never_two_guests_of_one_instance, never_two_specs_of_one_instance)
SETTLED: tuple[Invariant, ...] = (
    *LASTING, every_request_is_where_it_was_asked_to_be, claims_are_the_specs, domains_are_the_specs, files_are_the_instances,
    addresses_are_kept_in_order, keys_are_the_instances, volumes_are_as_asked_for,
)  # fmt: skip


def violations(world: World, invariants: tuple[Invariant, ...] = SETTLED) -> list[str]:
    """What is wrong, each with the invariant's name."""
    return [f"{invariant.__name__}: {problem}" for invariant in invariants for problem in invariant(world)]
