"""The command ``audit``: look at all of etcd and Placement, have every live host look at itself, say what does not agree.

Nobody can read etcd, Placement and the hosts at one moment, and requests go on meanwhile. So all keys are taken at one
revision; what does not fit Placement is looked at again, for up to five seconds and only while something is left, which is
longer than a client takes between its claim and its request; each host does likewise. What is left then is a finding.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from common.claim_findings import Held
from common.errors import ConfigError, PlacementUnavailable
from common.findings import Finding, Kind, Letter, Report, settled
from common.placement_types import OWNER_TRAIT, VOLUME
from common.retry import Deadline
from common.text import counted, escaped, quoted
from common.validate import parse_seconds
from eschedule import audit_checks, post
from eschedule.audit_checks import Cluster
from eschedule.audit_fixes import Fixer
from eschedule.claims import FRESH_SECONDS, totals
from eschedule.output import emit
from eschedule.session import Session
from eschedule.tables import block

WAIT_SECONDS = 10.0  # for the hosts' answers
ORPHAN_SECONDS = 60.0
LEAST_ORPHAN_SECONDS = FRESH_SECONDS + 10.0  # a client relies on its claim for so long, and then waits for etcd
SETTLING_SECONDS = (0.25, 0.5, 0.75, 1.5, 2.0)
_UNSEEN = (Kind.HOST_DEAD, Kind.HOST_SILENT)


@dataclass(frozen=True)
class Result:
    """What one audit found.

    Args:
        problems: services that did not answer, one line each; then it cannot be said that all agrees.
        answered: the hosts that looked at themselves.
    """

    cluster: Cluster
    findings: tuple[Finding, ...]
    problems: tuple[str, ...]
    answered: frozenset[UUID]

    @property
    def exit_code(self) -> int:
        if self.problems or any(finding.kind in _UNSEEN for finding in self.findings):
            return 4
        return 1 if self.findings else 0


def audit(session: Session, options: argparse.Namespace) -> int:
    """Run ``audit``; its exit code.

    Raises:
        EcomputeError: etcd did not answer; a host that was named is none.
    """
    wait_seconds = parse_seconds(options.wait_seconds or str(WAIT_SECONDS), "--wait-seconds")
    patience = parse_seconds(options.orphan_seconds or str(ORPHAN_SECONDS), "--orphan-seconds", LEAST_ORPHAN_SECONDS)
    auditor = Auditor(session, wait_seconds=wait_seconds, hosts=options.hosts)
    result = auditor.look()
    fixed: list[str] = []
    if options.fix and any(finding.is_fixable for finding in result.findings):
        fixed = Fixer(session, auditor, orphan_seconds=patience).fix(result)
        result = auditor.look()
    emit(session.screen, options, lambda: as_json(result, fixed), lambda _: as_text(result, fixed))
    for problem in result.problems:
        session.screen.warning(problem)
    return result.exit_code


class Auditor:
    """Audits of a cluster, or of *hosts* of it, by their names or providers."""

    def __init__(
        self, session: Session, *, wait_seconds: float, hosts: Sequence[str] = (), sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._session, self._wait_seconds, self._hosts, self._sleep = session, wait_seconds, tuple(hosts), sleep

    def look(self) -> Result:
        """Everything once; what is only under way is left out."""
        cluster = self._read()
        only = self._only(cluster)
        asked = cluster.hosts.keys() if only is None else cluster.hosts.keys() & only
        reports = self.ask(asked, Letter("audit"))
        # Of a guest whose finding did not fit it is not known that it is not there.
        told_all = frozenset(host for host, report in reports.items() if not report.left_out)
        problems: list[str] = []
        self._session.screen.progress("reading etcd and Placement")
        of_cluster = settled(lambda: self._check(told_all, problems), SETTLING_SECONDS, self._pause)
        of_cluster += [audit_checks.silent(cluster, host, self._wait_seconds) for host in sorted(asked - reports.keys())]
        of_hosts = [finding for report in reports.values() for finding in report.findings]
        is_whole = audit_checks.providers_of(cluster) <= told_all
        findings = audit_checks.merged(of_cluster, of_hosts, told_all, is_whole=is_whole)
        if only is not None:
            findings = [finding for finding in findings if finding.provider in only]
        problems += [f"host {report.host}: {problem}" for report in reports.values() for problem in report.problems]
        problems += [f"host {r.host}: {r.left_out} more findings did not fit" for r in reports.values() if r.left_out]
        return Result(cluster, tuple(findings), tuple(problems), frozenset(reports))

    def ask(self, hosts: Collection[UUID], letter: Letter) -> dict[UUID, Report]:
        """What *hosts* answer to *letter* in time."""
        session = self._session
        if hosts:
            who = f"{len(hosts)} hosts to look at themselves" if len(hosts) > 1 else "1 host to look at itself"
            session.screen.progress(f"waiting for {who}")
        return post.ask(session.store, session.keys, hosts, letter, Deadline(self._wait_seconds, session.clock))

    def _pause(self, seconds: float) -> None:
        self._session.screen.progress("something does not agree; looking again")
        self._session.interruption.check()
        self._sleep(seconds)

    def _read(self) -> Cluster:
        """All keys, at one revision, by a linearizable read."""
        keys = self._session.keys
        return audit_checks.read_cluster(keys, self._session.store.list(keys.prefix, behind=keys.after_journal()).items)

    def _check(self, answered: frozenset[UUID], problems: list[str]) -> list[Finding]:
        """One look; *problems* tells what did not answer, and is not asked again, since it would keep us waiting each time."""
        placement, in_placement, allocations = self._session.placement, None, None
        try:
            if not problems:
                # Claims first, keys after: whose request has come meanwhile is known then.
                in_placement = {provider.uuid: provider.name for provider in placement.providers(OWNER_TRAIT)}
                allocations = {provider: placement.provider_allocations(provider) for provider in in_placement}
        except PlacementUnavailable as error:
            problems.append(f"claims could not be looked at: {error}")
        cluster = self._read()
        found = [*audit_checks.check_hosts(cluster, in_placement), *audit_checks.check_keys(cluster)]
        if allocations is not None and not problems:
            holdings = audit_checks.gathered(allocations)
            try:
                asked = {uuid: held_by(self._session, uuid) for uuid in audit_checks.consumers_to_ask(cluster, holdings)}
            except PlacementUnavailable as error:
                problems.append(f"claims could not be looked at: {error}")
            else:
                found += audit_checks.check_claims(cluster, holdings, asked, answered)
        return found

    def _only(self, cluster: Cluster) -> set[UUID] | None:
        """The providers that were named; None where none was.

        Raises:
            ConfigError: one of them is not known.
        """
        if not self._hosts:
            return None
        by_name: dict[str, set[UUID]] = {}
        for provider in audit_checks.providers_of(cluster):
            for name in (str(provider), cluster.hosts.get(provider), cluster.owners.get(provider)):
                by_name.setdefault(name or "", set()).add(provider)
        for name in self._hosts:
            if name not in by_name:
                raise ConfigError(f"there is no host {quoted(name)}; see: eschedule hosts")
        return {provider for name in self._hosts for provider in by_name[name]}


def held_by(session: Session, consumer: UUID) -> Held | None:
    """What *consumer* holds, over all providers."""
    found = session.placement.consumer(consumer)
    if found is None:
        return None
    is_volume = found.consumer_type == VOLUME and found.project_id == session.placement.project_id
    return Held(totals(found.allocations), frozenset(found.allocations), session.placement.is_ours(found), is_volume)


# -- text and JSON ------------------------------------------------------------------------------------------------------


def as_text(result: Result, fixed: Sequence[str]) -> str:
    """What was fixed, one block a finding, and a line that sums up."""
    lines = [f"fixed: {escaped(line)}\n" for line in fixed]
    return "".join([*lines, *(["\n"] if lines else []), *map(_block, result.findings), _summary(result)])


def _block(finding: Finding) -> str:
    who = (
        f" {finding.name} ({finding.instance})" if finding.name and finding.instance else f" {finding.instance or ''}".rstrip()
    )
    title = escaped(f"{finding.kind}{who} at {finding.where}")
    body = block([("what", finding.what), ("cause", finding.cause), ("cure", finding.cure)])
    return f"{title}\n" + "".join(f"  {line}\n" for line in body.splitlines()) + "\n"


def _summary(result: Result) -> str:
    looked = f"{counted(len(result.answered), 'host')} and {counted(len(result.cluster.instances), 'instance')} were looked at"
    if not result.findings:
        return f"{'all agrees' if not result.problems else 'nothing else was found'}; {looked}\n"
    fixable = sum(finding.is_fixable for finding in result.findings)
    more = f", {fixable} of which eschedule audit --fix cures" if fixable else ""
    return f"{counted(len(result.findings), 'finding')}{more}; {looked}\n"


def as_json(result: Result, fixed: Sequence[str]) -> dict[str, Any]:
    """The shape is documented in ``docs/operations.md``: fields are added, never renamed."""
    unseen = [finding for finding in result.findings if finding.kind in _UNSEEN]
    return {
        "is_clean": result.exit_code == 0,
        "hosts": len(result.answered),
        "instances": len(result.cluster.instances),
        "findings": [_finding_json(result.cluster, finding) for finding in result.findings],
        "unanswered": [str(finding.provider) for finding in unseen],
        "problems": list(result.problems),
        "fixed": list(fixed),
    }


def _finding_json(cluster: Cluster, finding: Finding) -> Mapping[str, Any]:
    provider = finding.provider
    return {
        "kind": str(finding.kind),
        "where": finding.where,
        "what": finding.what,
        "cause": finding.cause,
        "cure": finding.cure,
        "instance": str(finding.instance) if finding.instance else None,
        "name": finding.name or None,
        "subject": finding.subject or None,
        "provider": str(provider) if provider else None,
        "host": (cluster.hosts.get(provider) or cluster.owners.get(provider)) if provider else None,
        "is_fixable": finding.is_fixable,
        "proposal": json.loads(finding.proposal.to_json()) if finding.proposal else None,
    }
