"""Looks at this host for ``audit``, keeps what it found, and cures what is safe when it is asked to.

Each resync hands it the lists that it has just made (``note``); what two resyncs in a row find is logged once and counted for
metrics. A letter (``answer``) makes it look afresh, its own specs by a linearizable list, and a few times over where something
looks wrong. A fix deletes half-made files and what is only an index, moves folders aside, and never touches a guest.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from common.claim_findings import Held
from common.errors import Conflict, EcomputeError, InvalidSpec, Transient, UnsupportedSchema
from common.findings import Finding, Kind, Letter, Report, fitted, settled
from common.keys import Keys
from common.logs import fields
from common.metadata import MetadataDocument
from common.model import InstanceKey
from common.placement import Placement
from common.placement_types import Consumer
from common.store import Store
from ecompute import audit
from ecompute.audit import Sight
from ecompute.hypervisor import DhcpHost, Domain
from ecompute.statuses import Statuses
from ecompute.volume_files import volumes_in
from ecompute.watcher import SpecEntry, SpecWatcher, read_entry
from ecompute.world import World

logger = logging.getLogger(__name__)
SETTLING_SECONDS = (0.5, 1.0, 1.5)  # between the looks that a letter makes; a watch, a release, a rename take less in all

Domains = Mapping[UUID, Domain]
Allocations = Mapping[UUID, Mapping[str, int]]


class Auditor:
    """The audits of one host.

    Args:
        placement: to be asked while others work; it takes one try a call.
        is_live: whether the host lease certainly stands; nothing is fixed without it.
        show: given how many findings there are of each kind, after each look.
    """

    def __init__(
        self, *, world: World, placement: Placement, specs: SpecWatcher, statuses: Statuses, store: Store, keys: Keys,
        provider: UUID, host: str, state_directory: Path, is_live: Callable[[], bool],
        show: Callable[[Mapping[str, int]], None] = lambda _: None, sleep: Callable[[float], object] = time.sleep,
    ) -> None:  # fmt: skip
        self._world, self._placement, self._specs, self._statuses = world, placement, specs, statuses
        self._store, self._keys, self._provider, self._host = store, keys, provider, host
        self._lost, self._is_live, self._show, self._sleep = state_directory / "lost", is_live, show, sleep
        self._lock = threading.Lock()
        self._suspected: frozenset[object] = frozenset()
        self._findings: tuple[Finding, ...] = ()

    # -- with every resync -------------------------------------------------------------------------------------------------

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the last two resyncs both found."""
        with self._lock:
            return self._findings

    def note(self, domains: Sequence[Domain], allocations: Allocations | None) -> None:
        """Compare what a resync has listed; say what is new and what is over. Never raises: the guests come first."""
        try:
            found = audit.compare(
                self._sight({d.uuid: d for d in domains}, allocations, self._cached(), self._specs.cluster_id)
            )
        except EcomputeError as error:
            logger.debug("no audit this time: %s", error)
            return
        except Exception:  # a bug here must not keep the guests from being looked at
            logger.exception("the audit failed; this is a bug, please report it")
            return
        identities = frozenset[object](finding.identity for finding in found)
        confirmed = tuple(finding for finding in found if finding.identity in self._suspected)
        with self._lock:
            before, self._findings, self._suspected = self._findings, confirmed, identities
        self._show(Counter(str(finding.kind) for finding in confirmed))
        _say_changes(before, confirmed)

    # -- when asked --------------------------------------------------------------------------------------------------------

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*, as text that fits; None where it is none that this version knows.

        Raises:
            EcomputeError: nothing can be said without the domains or the specs.
            ValueError: the letter names no instance where one should be.
        """
        if letter.kind not in ("audit", "fix"):
            return None
        only = frozenset(UUID(text) for text in letter.arguments.get("instances", ()))
        findings, problems = self._look_afresh(only)
        if letter.kind == "audit":
            return fitted(Report(self._provider, self._host, tuple(findings), (), tuple(problems)))
        wanted = [f for f in findings if f.is_fixable and f.kind in letter.arguments.get("kinds", ())]
        done: list[str] = []
        for finding in wanted:
            try:
                done += self._fix(finding)
            except EcomputeError as error:
                problems.append(f"{finding.kind} of {finding.instance}: {error}")
        return fitted(Report(self._provider, self._host, (), tuple(done), tuple(problems)))

    def _look_afresh(self, only: Collection[UUID]) -> tuple[list[Finding], list[str]]:
        """What several looks agree on, of the instances *only* where some are named; and what could not be looked at."""
        problems: list[str] = []

        def look() -> list[Finding]:
            problems.clear()
            # The world first, the specs last: what was made meanwhile is known then, what went is gone at the next look.
            domains = {domain.uuid: domain for domain in self._world.hypervisor.list()}
            allocations: Allocations | None = None
            try:
                allocations = self._placement.provider_allocations(self._provider)
            except EcomputeError as error:
                problems.append(f"the claims on this host could not be looked at: {error}")
            listing = self._store.list(self._keys.specs(self._provider))
            specs: dict[UUID, SpecEntry] = {}
            for item in listing.items:
                try:
                    specs[self._keys.parse_provider_instance(item.key)[1]] = read_entry(item)
                except ValueError:  # a key that names no instance; the audit of all keys says so
                    continue
            found = audit.compare(self._sight(domains, allocations, specs, listing.cluster_id))
            return [finding for finding in found if not only or finding.instance in only]

        return settled(look, SETTLING_SECONDS, self._sleep), problems

    # -- gathering ---------------------------------------------------------------------------------------------------------

    def _cached(self) -> dict[UUID, SpecEntry]:
        return {uuid: entry for uuid in self._specs.uuids() if (entry := self._specs.get(uuid)) is not None}

    def _sight(
        self, domains: Domains, allocations: Allocations | None, specs: Mapping[UUID, SpecEntry], cluster_id: int
    ) -> Sight:
        disks, assignments = self._world.disks, self._world.networks.assignments()
        volumes, directory = self._world.volumes.all(), self._world.blueprint.volumes_directory
        if allocations is not None:
            allocations = {consumer: held for consumer, held in allocations.items() if consumer not in volumes}
        sight = Sight(
            provider=self._provider, host=self._host, cluster_id=cluster_id, lost_directory=self._lost,
            domains=domains, allocations=allocations, specs=specs, assignments=assignments,
            statuses={uuid: status for uuid in specs if (status := self._statuses.get(uuid)) is not None},
            folders={uuid: folder for uuid in disks.list() if (folder := disks.folder(uuid)) is not None},
            dhcp_entries=self._dhcp_entries({a.network for cards in assignments.values() for a in cards if not a.bridge}),
            documents={uuid: self._document(uuid) for uuid in self._world.metadata.list()},
            drives={uuid: form for uuid in domains if (form := self._world.drives.form(uuid)) is not None},
            rules=self._world.firewall.all_rules(), volumes=volumes, volumes_directory=directory,
            volume_files=frozenset(volumes_in(directory)),
        )  # fmt: skip
        places = self._places(audit.without_spec(sight))
        asked = {uuid: self._held(uuid) for uuid in audit.consumers_to_ask(sight)} if places is not None else {}
        alone = {
            uuid: self._world.patience.orphan_seconds(uuid, is_orphan=True)
            for uuid, held in asked.items()
            if held and held.is_ours and uuid not in specs and uuid not in domains
        }
        return dataclasses.replace(sight, asked=asked, places=places or {}, orphaned_seconds=alone)

    def _places(self, uuids: Iterable[UUID]) -> dict[UUID, UUID | None] | None:
        """Where each instance lives as etcd says now, None for nowhere; nothing at all where etcd does not answer."""
        wanted = {self._keys.instance(uuid): uuid for uuid in uuids}
        if not wanted:
            return {}
        try:
            found = self._store.get_many(wanted)
        except EcomputeError:
            return None
        places: dict[UUID, UUID | None] = {}
        for key, uuid in wanted.items():
            try:
                places[uuid] = InstanceKey.from_json(found[key].value).provider if key in found else None
            except (InvalidSpec, UnsupportedSchema):
                places[uuid] = self._provider  # it may well be here: nothing of it is safe to take away
        return places

    def _held(self, uuid: UUID) -> Held | None:
        consumer: Consumer | None = self._placement.consumer(uuid)
        if consumer is None:
            return None
        if self._world.patience.is_orphan(uuid):
            self._world.patience.orphan_stands_at(uuid, consumer.generation)
        total: Counter[str] = Counter()
        for amounts in consumer.allocations.values():
            total.update(amounts)
        return Held(dict(total), frozenset(consumer.allocations), self._placement.is_ours(consumer))

    def _dhcp_entries(self, networks: Iterable[str]) -> dict[str, frozenset[DhcpHost]]:
        read = {name: self._world.hypervisor.network(name) for name in sorted(networks)}
        return {name: frozenset(network.dhcp_hosts) for name, network in read.items() if network is not None}

    def _document(self, uuid: UUID) -> MetadataDocument | None:
        try:
            return self._world.metadata.read(uuid)
        except (InvalidSpec, UnsupportedSchema):
            return None

    # -- curing ------------------------------------------------------------------------------------------------------------

    def _fix(self, finding: Finding) -> list[str]:
        """Cure *finding*; what was done, in one line or none.

        Raises:
            EcomputeError: it could not be done, or nobody can be sure any more that it is safe.
        """
        uuid = finding.instance
        if uuid is None or not self._is_live():
            raise Transient("the host lease is not certain; nothing is fixed")
        where = f"on {self._host}"
        if finding.kind == Kind.DHCP_ENTRY_MISSING:
            self._world.networks.wake()
            return [f"asked for the DHCP entry of {finding.subject} {where} to be made again"]
        if finding.kind == Kind.LEFTOVER_PARTIAL:
            self._world.disks.remove_partial(uuid, finding.subject)
            return [f"deleted the half-made file {finding.subject} of {uuid} {where}"]
        if finding.kind not in (Kind.LEFTOVER_FILES, Kind.LEFTOVER_RULES, Kind.LEFTOVER_ADDRESS, Kind.LEFTOVER_METADATA):
            return []
        self._check_nobody_wants(uuid)
        return [self._take_away(finding.kind, uuid, where)]

    def _take_away(self, kind: str, uuid: UUID, where: str) -> str:
        """What was done, in one line."""
        if kind == Kind.LEFTOVER_RULES:
            self._world.firewall.remove(uuid)
            return f"took the rules of {uuid} out of the packet filter {where}"
        if kind == Kind.LEFTOVER_ADDRESS:
            self._world.firewall.remove(uuid)  # first: a port would lead to whoever has the address next
            self._world.networks.release(uuid)
            return f"freed the addresses of {uuid} {where}"
        if kind == Kind.LEFTOVER_METADATA:
            self._world.metadata.remove(uuid)
            self._world.reports.remove(uuid)
            return f"deleted the metadata document of {uuid} {where}"
        went_to = self._world.disks.set_aside(uuid, self._lost)
        return f"moved the files of {uuid} to {went_to} {where}" if went_to else f"deleted the empty folder of {uuid} {where}"

    def _check_nobody_wants(self, uuid: UUID) -> None:
        """Asked at the last moment: a request with the same uuid may have come since the look."""
        spec_key = self._keys.spec(self._provider, uuid)
        is_known = self._specs.get(uuid) is not None or spec_key in self._store.get_many([spec_key])
        if is_known or (self._places([uuid]) or {uuid: self._provider})[uuid] == self._provider:
            raise Conflict(f"{uuid} is an instance of this host again; its files are left alone")
        if self._world.hypervisor.get(uuid) is not None:
            raise Conflict(f"{uuid} has a domain again; its files are left alone")


def _say_changes(before: Sequence[Finding], now: Sequence[Finding]) -> None:
    known, left = {finding.identity for finding in before}, {finding.identity for finding in now}
    for finding in now:
        if finding.identity not in known:
            more = fields(kind=finding.kind, instance=finding.instance or "", cure=finding.cure)
            logger.warning("audit: %s", finding.what, extra=more)
    over = [finding for finding in before if finding.identity not in left]
    for finding in over:
        logger.info("audit: no more: %s", finding.what, extra=fields(kind=finding.kind, instance=finding.instance or ""))
