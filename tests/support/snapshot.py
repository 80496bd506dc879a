"""The whole cluster at one moment, as values: etcd's keys, Placement's claims, and each host's domains, QEMUs and files.

``look`` reads all of it from outside, by other ways than the programs under test where it can: QEMU processes from ``/proc``,
files by their names. Nothing is interpreted here; ``tests/support/invariants.py`` says what has to be true of a ``World``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import libvirt

from common.model import GroupMembers, InstanceKey, InstanceSpec, InstanceStatus
from common.volume_records import VolumeSpec, VolumeStatus
from ecompute.address_pairs import is_ours
from ecompute.disks import disk_in
from ecompute.hypervisor import DhcpHost
from ecompute.libvirt_xml import STAMP_NAMESPACE, network_of
from tests.support.cluster import Cluster, Node
from tests.support.small_guest import BOOT_MARK

libvirt.registerErrorHandler(lambda *_: None, None)


@dataclass(frozen=True)
class Qemu:
    """A process: its pid in its host, and when it began, in clock ticks."""

    pid: int
    began: int


@dataclass(frozen=True)
class Guest:
    """A domain as libvirt knows it."""

    is_active: bool
    is_stamped: bool
    is_saved: bool = False  # its memory


@dataclass(frozen=True)
class HostView:
    """What is on one host.

    Args:
        disks: instance → inode of its disk.
        boots: instance → how often it said on its serial line that it booted.
        strays: names of files that belong to no whole instance: half-made, half-removed.
        links: address → instance that the link of the metadata service leads to.
        dhcp: our entries in the default network, as (MAC, address).
    """

    name: str
    provider: UUID
    guests: dict[UUID, Guest]
    qemus: dict[UUID, list[Qemu]]
    folders: frozenset[UUID]
    disks: dict[UUID, int]
    boots: dict[UUID, int]
    strays: tuple[str, ...]
    addresses: dict[UUID, frozenset[tuple[str, str]]]
    documents: frozenset[UUID]
    reports: frozenset[UUID]
    links: dict[str, UUID]
    dhcp: frozenset[tuple[str, str]]
    claims: dict[UUID, dict[str, int]]
    volumes: frozenset[UUID] = frozenset()  # that have a file


@dataclass(frozen=True)
class World:
    """Everything at once; *others* are keys of no known kind."""

    hosts: tuple[HostView, ...]
    specs: dict[tuple[UUID, UUID], tuple[InstanceSpec, int]]  # (provider, instance) → spec, mod_revision
    statuses: dict[tuple[UUID, UUID], InstanceStatus]
    instances: dict[UUID, InstanceKey]
    names: dict[str, UUID]
    groups: dict[tuple[str, UUID], GroupMembers]
    anchors: dict[str, UUID]
    others: frozenset[str] = field(default_factory=frozenset)
    network_addresses: dict[str, UUID] = field(default_factory=dict)  # by key
    volumes: dict[tuple[UUID, UUID], tuple[VolumeSpec, int]] = field(default_factory=dict)
    volume_statuses: dict[tuple[UUID, UUID], VolumeStatus] = field(default_factory=dict)
    volume_names: dict[str, str] = field(default_factory=dict)

    def host(self, provider: UUID) -> HostView:
        return next(host for host in self.hosts if host.provider == provider)

    def place_of(self, instance: UUID) -> UUID | None:
        """The provider of the instance's spec; None without one."""
        return next((provider for provider, uuid in self.specs if uuid == instance), None)

    def spec_of(self, instance: UUID) -> InstanceSpec | None:
        provider = self.place_of(instance)
        return self.specs[provider, instance][0] if provider else None

    def status_of(self, instance: UUID) -> InstanceStatus | None:
        provider = self.place_of(instance)
        return self.statuses.get((provider, instance)) if provider else None

    def qemu_of(self, instance: UUID) -> Qemu | None:
        return next((host.qemus[instance][0] for host in self.hosts if instance in host.qemus), None)


def look(cluster: Cluster) -> World:
    """The cluster now. Everything that is asked has to answer."""
    world = World(_hosts(cluster), {}, {}, {}, {}, {}, {})
    others = set()
    for item in cluster.store.list(cluster.prefix, behind=cluster.keys.after_journal()).items:
        kind, *rest = item.key.removeprefix(cluster.prefix).split("/")
        if kind == "spec":
            world.specs[UUID(rest[0]), UUID(rest[1])] = InstanceSpec.from_json(item.value), item.mod_revision
        elif kind == "status":
            world.statuses[UUID(rest[0]), UUID(rest[1])] = InstanceStatus.from_json(item.value)
        elif kind == "instances":
            world.instances[UUID(rest[0])] = InstanceKey.from_json(item.value)
        elif kind == "names":
            world.names[rest[0]] = UUID(item.value)
        elif kind == "groups" and rest[1] == "anchor":
            world.anchors[rest[0]] = UUID(item.value)
        elif kind == "groups":
            world.groups[rest[0], UUID(rest[1])] = GroupMembers.from_json(item.value)
        elif kind == "network-addresses":
            world.network_addresses[item.key.removeprefix(cluster.prefix)] = UUID(item.value)
        elif kind == "volumes":
            world.volumes[UUID(rest[0]), UUID(rest[1])] = VolumeSpec.from_json(item.value), item.mod_revision
        elif kind == "volume-status":
            world.volume_statuses[UUID(rest[0]), UUID(rest[1])] = VolumeStatus.from_json(item.value)
        elif kind == "volume-names":
            world.volume_names[rest[0]] = item.value
        elif kind not in ("hosts", "owners", "host-admin", "mail", "mail-reply", "networks", "ssh-keys", "images"):
            others.add(item.key)
    return dataclasses.replace(world, others=frozenset(others))


def _hosts(cluster: Cluster) -> tuple[HostView, ...]:
    """All hosts, looked at one after the other.

    An instance that moves in between would be seen twice. What one host still has when the others have been looked at was there at
    the same time as theirs; what it has no more was not.
    """
    hosts = [_host(cluster, node) for node in cluster.nodes]
    seen = Counter(uuid for host in hosts for uuid in {*host.guests, *host.qemus})
    if max(seen.values(), default=0) < 2:
        return tuple(hosts)
    for at, node in enumerate(cluster.nodes[:-1]):
        guests, processes = _libvirt(node)[0], qemus_on(node)
        hosts[at] = dataclasses.replace(
            hosts[at],
            guests={uuid: guest for uuid, guest in hosts[at].guests.items() if seen[uuid] < 2 or uuid in guests},
            qemus={uuid: found for uuid, found in hosts[at].qemus.items() if seen[uuid] < 2 or uuid in processes},
        )
    return tuple(hosts)


def _host(cluster: Cluster, node: Node) -> HostView:
    guests, dhcp = _libvirt(node)
    instances, strays = _folders(node.state("instances"))
    strays += [str(path.name) for path in node.state("images").rglob("*") if ".partial" in path.name]
    volumes = [path.name for path in node.state("volumes").iterdir()] if node.state("volumes").is_dir() else []
    strays += [name for name in volumes if not name.endswith(".raw")]
    return HostView(
        name=node.name, provider=node.provider, guests=guests, qemus=qemus_on(node), folders=frozenset(instances),
        disks={uuid: disk_in(folder).stat().st_ino for uuid, folder in instances.items() if _has_disk(folder)},
        boots={uuid: _boots(folder / "console.log") for uuid, folder in instances.items()},
        strays=tuple(strays), addresses=_addresses(node.state("network")), documents=_documents(node.state("metadata")),
        reports=_documents(node.state("metadata", "reports")),
        links=_links(node.state("metadata", "by-address")), dhcp=dhcp,
        claims=cluster.placement.provider_allocations(node.provider),
        volumes=frozenset(UUID(name.removesuffix(".raw")) for name in volumes if name.endswith(".raw")),
    )  # fmt: skip


def qemus(cluster: Cluster) -> dict[UUID, list[Qemu]]:
    """Every QEMU process of every host, by instance; asks nobody."""
    found: dict[UUID, list[Qemu]] = {}
    for node in cluster.nodes:
        for uuid, processes in qemus_on(node).items():
            found.setdefault(uuid, []).extend(processes)
    return found


def _libvirt(node: Node) -> tuple[dict[UUID, Guest], frozenset[tuple[str, str]]]:
    connection = libvirt.open(node.host.uri)
    try:
        guests = {}
        for domain in connection.listAllDomains():
            with contextlib.suppress(libvirt.libvirtError):  # gone since it was listed
                guests[UUID(domain.UUIDString())] = Guest(
                    bool(domain.isActive()), STAMP_NAMESPACE in domain.XMLDesc(), bool(domain.hasManagedSaveImage())
                )
        network = network_of(connection.networkLookupByName("default").XMLDesc(), is_active=True)
        entries = [DhcpHost(entry.mac, entry.address) for entry in network.dhcp_hosts]
        return guests, frozenset((entry.mac, entry.address) for entry in entries if is_ours(entry))
    finally:
        connection.close()


def qemus_on(node: Node) -> dict[UUID, list[Qemu]]:
    found: dict[UUID, list[Qemu]] = {}
    for folder in node.path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "qemu-system" in words[0] and "-uuid" in words and fields[0] != "Z":
            found.setdefault(UUID(words[words.index("-uuid") + 1]), []).append(Qemu(int(folder.name), int(fields[19])))
    return found


def _folders(directory: Path) -> tuple[dict[UUID, Path], list[str]]:
    """The instances' folders, and what else is there or half-made in them."""
    found, strays = {}, []
    for folder in directory.iterdir() if directory.is_dir() else ():
        try:
            found[UUID(folder.name)] = folder
        except ValueError:
            strays.append(folder.name)
            continue
        with contextlib.suppress(FileNotFoundError):
            strays += [f"{folder.name}/{path.name}" for path in folder.iterdir() if ".partial" in path.name]
    return found, strays


def _has_disk(folder: Path) -> bool:
    return disk_in(folder).is_file()


def _boots(log: Path) -> int:
    try:
        return log.read_text(errors="replace").count(BOOT_MARK)
    except FileNotFoundError:
        return 0


def _addresses(directory: Path) -> dict[UUID, frozenset[tuple[str, str]]]:
    found = {}
    for path in directory.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            addresses = json.loads(path.read_text())["addresses"]
            found[UUID(path.stem)] = frozenset((address["mac"], address["address"]) for address in addresses)
    return found


def _documents(directory: Path) -> frozenset[UUID]:
    return frozenset(UUID(path.stem) for path in directory.glob("*.json"))


def _links(directory: Path) -> dict[str, UUID]:
    found = {}
    for link in directory.iterdir() if directory.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            found[link.name] = UUID(link.readlink().stem)
    return found
