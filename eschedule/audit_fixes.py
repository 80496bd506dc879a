"""What ``audit --fix`` does: cures what cannot cost anybody a guest or data, and leaves the rest to people.

Every write compares what the look has seen, so that whatever changed since is left alone. Hosts fix what lies about on them
themselves (by letter). A claim is released only when two looks, a minute apart, have both found it without an instance and its
host without a guest, at the same generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from common import groups
from common.errors import Conflict, EcomputeError, PlacementUnavailable, StoreUnavailable
from common.findings import Finding, Kind, Letter
from common.model import InstanceKey
from common.placement_types import Claim
from common.store import Compare, Transaction
from eschedule.audit_checks import Cluster, has_to_hold
from eschedule.session import Session

if TYPE_CHECKING:
    from eschedule.audit import Auditor, Result

_BY_HOST = (
    Kind.LEFTOVER_FILES, Kind.LEFTOVER_PARTIAL, Kind.LEFTOVER_RULES, Kind.LEFTOVER_ADDRESS, Kind.LEFTOVER_METADATA,
    Kind.DHCP_ENTRY_MISSING,
)  # fmt: skip
_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class _Change:
    """One transaction, and what it does in words."""

    done: str
    transaction: Transaction


class Fixer:
    """Cures the fixable ones of an audit's findings.

    Args:
        orphan_seconds: how long a claim must have been seen without an instance.
    """

    def __init__(
        self, session: Session, auditor: Auditor, *, orphan_seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session, self._auditor, self._orphan_seconds, self._sleep = session, auditor, orphan_seconds, sleep

    def fix(self, result: Result) -> list[str]:
        """Do it; one line for each thing that was done. What could not be done is a warning on the screen.

        Raises:
            StoreUnavailable, PlacementUnavailable: a service went away in the middle; what was done stays done.
        """
        begun = self._session.clock()
        wanted = [finding for finding in result.findings if finding.is_fixable]
        orphans = [finding for finding in wanted if finding.kind == Kind.ORPHAN_CLAIM]
        generations = {f.instance: self._generation(f.instance) for f in orphans if f.instance}
        done = self._by_hosts([finding for finding in wanted if finding.kind in _BY_HOST])
        for finding in wanted:
            done += self._one(result.cluster, finding)
        if orphans:
            self._wait_until(begun + self._orphan_seconds, len(orphans))
            done += self._release(orphans, generations)
        return done

    # -- hosts -------------------------------------------------------------------------------------------------------------

    def _by_hosts(self, findings: Sequence[Finding]) -> list[str]:
        hosts = {finding.provider for finding in findings if finding.provider}
        if not hosts:
            return []
        instances = tuple(sorted({str(finding.instance) for finding in findings if finding.instance}))
        letter = Letter("fix", {"kinds": tuple(sorted({str(f.kind) for f in findings})), "instances": instances})
        reports = self._auditor.ask(hosts, letter)
        for report in reports.values():
            for problem in report.problems:
                self._session.screen.warning(f"host {report.host}: {problem}")
        return [line for report in reports.values() for line in report.fixed]

    # -- keys and claims ---------------------------------------------------------------------------------------------------

    def _one(self, cluster: Cluster, finding: Finding) -> list[str]:
        self._session.interruption.check()
        try:
            if finding.kind in (Kind.MISSING_ALLOCATION, Kind.WRONG_ALLOCATION):
                return self._claim(cluster, finding)
            change = self._change(cluster, finding)
            if change is None:
                return []
            self._session.store.commit(change.transaction)
        except (StoreUnavailable, PlacementUnavailable):
            raise
        except EcomputeError as error:
            self._session.screen.warning(f"{finding.kind} at {finding.where} was not fixed: {error}")
            return []
        return [change.done]

    def _claim(self, cluster: Cluster, finding: Finding) -> list[str]:
        """Have the instance hold what its spec says; refused where there is no room.

        Raises:
            Conflict: the spec changed since the look: what is being destroyed is to hold nothing.
        """
        assert finding.instance and finding.provider  # noqa: S101 - findings of claims name both
        spec, key = (
            cluster.specs.get((finding.provider, finding.instance)),
            cluster.keys.spec(finding.provider, finding.instance),
        )
        if spec is None:
            return []
        now = self._session.store.get(key)
        if now is None or now.mod_revision != cluster.items[key].mod_revision:
            raise Conflict(f"the request {spec.name} changed meanwhile; look again: eschedule audit")
        holds = has_to_hold(spec, cluster.statuses.get((finding.provider, finding.instance)))
        wanted, placement = {finding.provider: holds}, self._session.placement
        if finding.kind == Kind.MISSING_ALLOCATION:
            placement.assert_allocation(spec.uuid, wanted)
            return [f"claimed {spec.name}'s resources again in Placement"]
        held = placement.consumer(spec.uuid)
        if held is not None and placement.is_ours(held):
            placement.replace_consumers([Claim(spec.uuid, wanted, held.generation)])
            return [f"set the claim of {spec.name} to what it has to hold"]
        return []

    def _change(self, cluster: Cluster, finding: Finding) -> _Change | None:
        """The transaction that cures a finding among the keys; it holds only while all is as the look has seen it."""
        makers: dict[str, Callable[[Cluster, Finding], _Change | None]] = {
            Kind.NAME_WITHOUT_INSTANCE: _delete_name,
            Kind.STATUS_WITHOUT_SPEC: _delete_status,
            Kind.MEMBER_WITHOUT_INSTANCE: _leave_group,
            Kind.ANCHOR_WITHOUT_MEMBERS: _delete_anchor,
            Kind.SPEC_WITHOUT_INSTANCE: _write_instance,
            Kind.INSTANCE_WITHOUT_NAME: _write_name,
            Kind.INSTANCE_WITHOUT_SPEC: _delete_instance,
            Kind.ADDRESS_WITHOUT_INSTANCE: _delete_address,
            Kind.INSTANCE_WITHOUT_ADDRESS: _write_address,
        }
        maker = makers.get(finding.kind)
        return maker(cluster, finding) if maker else None

    # -- orphan claims -----------------------------------------------------------------------------------------------------

    def _generation(self, consumer: UUID) -> int | None:
        held = self._session.placement.consumer(consumer)
        return held.generation if held else None

    def _wait_until(self, until: float, count: int) -> None:
        while (left := until - self._session.clock()) > 0:
            claims = "a claim" if count == 1 else f"{count} claims"
            self._session.screen.progress(f"waiting whether somebody still wants {claims} without an instance")
            self._session.interruption.check()
            self._sleep(min(left, _TICK_SECONDS))

    def _release(self, orphans: Sequence[Finding], generations: dict[UUID, int | None]) -> list[str]:
        """Release those of *orphans* that their hosts, etcd and Placement still show as before."""
        instances = tuple(str(finding.instance) for finding in orphans)
        hosts = {finding.provider for finding in orphans if finding.provider}
        reports = self._auditor.ask(hosts, Letter("audit", {"instances": instances}))
        still = {
            (finding.provider, finding.instance)
            for report in reports.values()
            for finding in report.findings
            if finding.kind == Kind.ORPHAN_CLAIM
        }
        done = []
        for finding in orphans:
            if finding.instance is None or (finding.provider, finding.instance) not in still:
                continue
            try:
                if self._release_one(finding.instance, generations.get(finding.instance)):
                    done.append(f"released the claim of {finding.instance}, which belonged to no instance")
            except Conflict as error:
                self._session.screen.warning(f"the claim of {finding.instance} was left alone: {error}")
        return done

    def _release_one(self, consumer: UUID, generation: int | None) -> bool:
        session = self._session
        held = session.placement.consumer(consumer)
        if held is None or held.generation != generation or not session.placement.is_ours(held):
            return False
        keys = [session.keys.instance(consumer), *(session.keys.spec(provider, consumer) for provider in held.allocations)]
        if session.store.get_many(keys):
            return False
        session.placement.release(consumer, held.generation)
        return True


# -- transactions -------------------------------------------------------------------------------------------------------


def _as_seen(cluster: Cluster, *keys: str) -> list[Compare]:
    """That *keys* are as they were read, absent ones absent."""
    return [Compare.as_read(key, cluster.items) for key in keys]


def _delete_name(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.instance  # noqa: S101
    name, instance = cluster.keys.name(finding.subject), cluster.keys.instance(finding.instance)
    transaction = Transaction(tuple(_as_seen(cluster, name, instance)), deletes=(name,))
    return _Change(f"deleted the name {finding.subject}, which led nowhere", transaction)


def _delete_status(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.instance and finding.provider  # noqa: S101
    spec = cluster.keys.spec(finding.provider, finding.instance)
    transaction = Transaction(tuple(_as_seen(cluster, finding.subject, spec)), deletes=(finding.subject,))
    return _Change(f"deleted the status of {finding.instance}, which has no spec", transaction)


def _leave_group(cluster: Cluster, finding: Finding) -> _Change | None:
    assert finding.instance and finding.provider  # noqa: S101
    keys, group = cluster.keys, finding.subject
    change = groups.leave(keys, group, provider=finding.provider, instance=finding.instance, found=cluster.items)
    if not change.compares:
        return None
    compares = (*change.compares, *_as_seen(cluster, keys.instance(finding.instance)))
    transaction = Transaction(compares, change.puts, change.deletes)
    return _Change(f"took {finding.instance} off the group {group}", transaction)


def _delete_anchor(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.provider  # noqa: S101
    anchor, members = cluster.keys.group_anchor(finding.subject), cluster.keys.group(finding.subject, finding.provider)
    # Whoever joins there compares the anchor and writes the members: one of the two transactions fails.
    transaction = Transaction(tuple(_as_seen(cluster, anchor, members)), deletes=(anchor,))
    return _Change(f"untied the group {finding.subject} from a host where it had no member", transaction)


def _write_instance(cluster: Cluster, finding: Finding) -> _Change | None:
    assert finding.instance and finding.provider  # noqa: S101
    spec = cluster.specs.get((finding.provider, finding.instance))
    if spec is None:
        return None
    key = cluster.keys.instance(spec.uuid)
    compares = _as_seen(cluster, key, cluster.keys.spec(finding.provider, spec.uuid))
    record = InstanceKey(finding.provider, spec.name, spec.request_digest)
    return _Change(f"wrote the instance key of {spec.name} anew", Transaction(tuple(compares), {key: record.to_json()}))


def _write_name(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.instance  # noqa: S101
    name = cluster.keys.name(finding.name)
    compares = _as_seen(cluster, name, cluster.keys.instance(finding.instance))
    return _Change(f"wrote the name {finding.name} anew", Transaction(tuple(compares), {name: str(finding.instance)}))


def _delete_instance(cluster: Cluster, finding: Finding) -> _Change:
    """The instance's key and its name, where its host has no guest of it; files that are left are the host's to set aside."""
    assert finding.instance and finding.provider  # noqa: S101
    keys = cluster.keys
    instance, spec = keys.instance(finding.instance), keys.spec(finding.provider, finding.instance)
    deletes = [instance]
    if cluster.names.get(finding.name) == finding.instance:
        deletes.append(keys.name(finding.name))
    deletes += [key for key, owner in cluster.addresses.items() if owner == finding.instance]
    transaction = Transaction(tuple(_as_seen(cluster, *deletes, spec)), deletes=tuple(deletes))
    return _Change(f"deleted the instance key of {finding.name}, which had neither a spec nor a guest", transaction)


def _delete_address(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.instance  # noqa: S101
    keys, uuid = cluster.keys, finding.instance
    known = cluster.instances.get(uuid)
    seen = [finding.subject, keys.instance(uuid), *([keys.spec(known.provider, uuid)] if known else [])]
    transaction = Transaction(tuple(_as_seen(cluster, *seen)), deletes=(finding.subject,))
    network, address = keys.parse_network_address(finding.subject)
    return _Change(f"gave {address} back to the network {network}: {uuid} does not have it", transaction)


def _write_address(cluster: Cluster, finding: Finding) -> _Change:
    assert finding.instance and finding.provider  # noqa: S101
    spec = cluster.keys.spec(finding.provider, finding.instance)
    transaction = Transaction(tuple(_as_seen(cluster, finding.subject, spec)), {finding.subject: str(finding.instance)})
    network, address = cluster.keys.parse_network_address(finding.subject)
    return _Change(f"noted that {finding.name} has {address} of the network {network}", transaction)
