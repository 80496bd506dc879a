"""The command ``adopt``: an operator decides about guests that etcd has lost, or remembers otherwise than they are.

It only writes etcd. A host proposes the spec of each guest that it keeps untouched (an audit letter); a quarantined guest,
which has no spec, gets that one back, in one transaction that takes nothing from anybody. Of a guest that has seen a later
request than the one in etcd, either counts: ``--spec`` marks the spec that is there, ``--domain`` replaces it by what the guest
is. The mark (``adopts``) names the guest's stamp, so that the decision holds for this very guest as it was seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Sequence
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, Permanent, StoreUnavailable, Transient
from common.findings import Finding, Kind, Letter, Report
from common.journal import Target
from common.keys import Keys
from common.model import Desired, GroupMembers, InstanceKey, InstanceSpec, InstanceStatus, Phase, spec_with_fields
from common.network_records import address_keys
from common.retry import Deadline
from common.store import Compare, ListWatch, Store, Transaction, Versioned
from common.validate import parse_instance, parse_name, parse_seconds
from eschedule import post
from eschedule.session import Session
from eschedule.sought import no_such
from eschedule.verbs import exit_code

HOSTS_WAIT_SECONDS = 10.0
_AT_REST = (Phase.RUNNING, Phase.PAUSED, Phase.SUSPENDED, Phase.STOPPED)
_STUCK = (Phase.FAILED, Phase.REFUSED)
_POWER = {
    Desired.RUNNING: "is up", Desired.PAUSED: "is paused", Desired.SUSPENDED: "is suspended", Desired.STOPPED: "is down",
    Desired.DELETED: "is down",
}  # fmt: skip
Adopted = tuple[InstanceSpec, UUID, int]  # the spec as written, its provider, its revision


def adopt(session: Session, options: argparse.Namespace) -> int:
    """Run ``adopt``; the exit code of the first guest that it did not succeed with.

    Raises:
        ConfigError: what is to be adopted, or which side counts, was not said.
        StoreUnavailable: etcd did not answer; repeating it is safe.
    """
    _check(options)
    wait_seconds = session.config.wait_seconds
    if options.wait_seconds is not None:
        wait_seconds = parse_seconds(options.wait_seconds, "--wait-seconds")
    adopter = Adopter(session)
    targets: Sequence[UUID | str] = [parse_instance(text) for text in options.instances]
    if options.all:
        targets = adopter.quarantined()
        if not targets:
            session.screen.message("there is no quarantined guest")
    failure: EcomputeError | None = None
    for target in targets:
        try:
            adopted = adopter.adopt(target, options)
            if not options.no_wait:
                _await(session, adopted, wait_seconds)
            session.screen.message(_said(adopted[0]))
        except (ConfigError, StoreUnavailable):
            raise
        except EcomputeError as error:
            if len(targets) == 1:
                raise
            session.screen.error(str(error))
            failure = failure or error
    if failure is None:
        return 0
    return exit_code(failure)


def _check(options: argparse.Namespace) -> None:
    if options.all == bool(options.instances):
        raise ConfigError("adopt needs the name or uuid of a guest, or --all for every quarantined one; see: eschedule audit")
    if options.spec and options.domain:
        raise ConfigError("--spec and --domain exclude each other: either etcd counts, or the guest")
    if options.all and (options.spec or options.domain or options.name):
        raise ConfigError("--all adopts quarantined guests, which have no spec: give it without --spec, --domain and --name")
    if options.name is not None:
        parse_name(options.name, "--name")
        if len(options.instances) > 1:
            raise ConfigError("--name is for one guest; adopt the others by themselves")


class Adopter:
    """Finds guests that wait for a decision, and writes it down."""

    def __init__(self, session: Session) -> None:
        self._session, self._store, self._keys = session, session.store, session.keys

    def quarantined(self) -> list[UUID]:
        """Every guest without a spec on every live host.

        Raises:
            Transient: a host did not answer, or could not tell all.
        """
        reports, missing = self._ask(self._alive(), Letter("audit"))
        if missing or any(report.left_out for report in reports.values()):
            self._session.screen.warning("not every host could be asked for all of its guests; run it again afterwards")
        found = [f.instance for r in reports.values() for f in r.findings if f.kind == Kind.QUARANTINED and f.instance]
        return list(dict.fromkeys(found))

    def adopt(self, who: UUID | str, options: argparse.Namespace) -> Adopted:
        """Write the decision about the guest *who*.

        Raises:
            Permanent: no host waits for a decision about it.
            ConfigError: which side counts was not said; the text tells what each would do.
            Conflict: its name is taken, or somebody else changes it.
            Transient: its host did not answer.
        """
        finding = self._find(who)
        if finding.kind == Kind.QUARANTINED:
            if options.spec:
                raise ConfigError(f"etcd has no spec of {finding.name}, only its host knows it: adopt it without --spec")
            return self._write_back(finding, options.name)
        if options.name:
            raise ConfigError(f"{finding.name} has its name in etcd already: adopt it without --name")
        return self._decide(finding, options)

    # -- finding -----------------------------------------------------------------------------------------------------------

    def _find(self, who: UUID | str) -> Finding:
        """What *who*'s host says of it, with a fresh proposal."""
        instance = who if isinstance(who, UUID) else self._named(who)
        hosts = self._alive()
        reports, missing = self._ask(hosts, Letter("audit", {"instances": (str(instance),) if instance else ()}))
        found = [f for report in reports.values() for f in report.findings if _is_about(f, instance, who)]
        if len({finding.instance for finding in found}) > 1:
            uuids = ", ".join(str(finding.instance) for finding in found)
            raise Conflict(f"several guests are called {who}: {uuids}; adopt one by its uuid, another with --name NEW")
        if len(found) > 1:
            where = " and ".join(finding.where for finding in found)
            raise Conflict(f"{who} has a guest on {where}: end all but the right one there by virsh, then adopt it")
        if not found:
            if missing:
                raise Transient(f"{len(missing)} of {len(hosts)} hosts did not answer, {who} may be on one of them; try again")
            self._say_why_not(who, instance)
        finding = found[0]
        if finding.proposal is None and finding.provider and finding.instance:
            again, _ = self._ask([finding.provider], Letter("audit", {"instances": (str(finding.instance),)}))
            found = [f for report in again.values() for f in report.findings if _is_about(f, finding.instance, who)]
        if not found or found[0].proposal is None:
            raise Transient(f"the host of {who} did not say what it knows of it; try again")
        return found[0]

    def _say_why_not(self, who: UUID | str, instance: UUID | None) -> None:
        if instance is not None and self._store.get(self._keys.instance(instance)) is not None:
            raise Permanent(f"{who} needs no decision: its host holds it by its spec; see: eschedule show {who}", "NotHeld")
        raise no_such(who)

    def _named(self, name: str) -> UUID | None:
        item = self._store.get(self._keys.name(name))
        try:
            return UUID(item.value) if item else None
        except ValueError:
            return None

    def _alive(self) -> list[UUID]:
        return [self._keys.parse_host(item.key) for item in self._store.list(self._keys.hosts()).items]

    def _ask(self, hosts: Sequence[UUID], letter: Letter) -> tuple[dict[UUID, Report], set[UUID]]:
        self._session.screen.progress("asking the hosts for guests that wait for a decision")
        reports = post.ask(self._store, self._keys, hosts, letter, Deadline(HOSTS_WAIT_SECONDS, self._session.clock))
        return reports, set(hosts) - reports.keys()

    # -- writing -----------------------------------------------------------------------------------------------------------

    def _write_back(self, finding: Finding, name: str | None) -> Adopted:
        """Make the spec of a quarantined guest anew; what is left of its keys is taken over, nobody else's is touched."""
        assert finding.proposal and finding.provider  # noqa: S101 - _find looked
        spec, provider, keys = finding.proposal, finding.provider, self._keys
        if name is not None and name != spec.name:
            # The guest is told the same as before: who it is for others is no business of its own.
            spec = dataclasses.replace(spec, name=name, hostname=spec.hostname or spec.name)
        spec = self._with_group(spec, provider)
        instance_key, name_key, spec_key = keys.instance(spec.uuid), keys.name(spec.name), keys.spec(provider, spec.uuid)
        addresses = address_keys(keys, spec.nics)
        found = self._store.get_many([instance_key, name_key, spec_key, *addresses])
        _check_free(found, keys, spec, provider)
        compares = [Compare.as_read(key, found) for key in (instance_key, name_key, spec_key, *addresses)]
        puts = {
            instance_key: InstanceKey(provider, spec.name, spec.request_digest).to_json(), name_key: str(spec.uuid),
            spec_key: spec.to_json(), **dict.fromkeys(addresses, str(spec.uuid)),
        }  # fmt: skip
        deletes = self._former_name(found.get(instance_key), spec)
        notes = self._session.act.on_instance(keys, Target(spec.uuid, spec.name, provider), 0) if self._session.act else {}
        return spec, provider, self._store.commit(Transaction(tuple(compares), puts, deletes, notes=notes))

    def _former_name(self, item: Versioned | None, spec: InstanceSpec) -> tuple[str, ...]:
        """The name key of an instance that gets another name, where it leads to it."""
        known = InstanceKey.from_json(item.value) if item else None
        if known is None or known.name == spec.name:
            return ()
        key = self._keys.name(known.name)
        held = self._store.get(key)
        return (key,) if held and held.value == str(spec.uuid) else ()

    def _with_group(self, spec: InstanceSpec, provider: UUID) -> InstanceSpec:
        """*spec* in the group whose keys still list it, where there is one: only they remember it."""
        prefix = self._keys.groups()
        for item in self._store.list(prefix).items:
            group, _, where = item.key.removeprefix(prefix).rpartition("/")
            if where != str(provider):
                continue
            try:
                members = GroupMembers.from_json(item.value)
            except EcomputeError:  # the audit names it
                continue
            if spec.uuid in members.members:
                return dataclasses.replace(spec, group=group, group_policy=members.policy)
        return spec

    def _decide(self, finding: Finding, options: argparse.Namespace) -> Adopted:
        """End the wait of a guest whose spec is older than itself."""
        assert finding.proposal and finding.provider and finding.proposal.adopts  # noqa: S101 - _find looked
        proposal, provider, stamp = finding.proposal, finding.provider, finding.proposal.adopts
        item = self._store.get(self._keys.spec(provider, proposal.uuid))
        if item is None:
            raise Conflict(f"the spec of {finding.name} went away meanwhile; look again: eschedule audit")
        spec = InstanceSpec.from_json(item.value)
        if not (options.spec or options.domain):
            raise ConfigError(_explained(finding.name, spec, proposal))
        mark = {"adopts": proposal.adopts}
        fields = mark if options.spec else _of_domain(proposal)
        text = spec_with_fields(item.value, fields)
        if spec.adopts == proposal.adopts and text == item.value:
            return spec, provider, item.mod_revision  # decided just so before, and not acted on yet
        act = self._session.act
        notes = act.on_instance(self._keys, Target(spec.uuid, spec.name, provider), spec.acts) if act else {}
        decision = self._decision(item, spec, InstanceSpec.from_json(text), text)
        revision = self._store.commit(dataclasses.replace(decision, notes=notes))
        if revision == stamp.spec_revision:
            # The guest would seem to have seen this very spec: revisions of a restored store are given out a second time.
            revision = self._store.replace(item.key, text, seen=revision)
        return InstanceSpec.from_json(text), provider, revision

    def _decision(self, item: Versioned, former: InstanceSpec, spec: InstanceSpec, text: str) -> Transaction:
        """What makes *text* the spec, with the addresses that the guest's cards have, and without those it had before.

        Raises:
            Conflict: an address is somebody else's by now.
        """
        wanted, had = (address_keys(self._keys, one.nics) for one in (spec, former))
        addresses = tuple(dict.fromkeys((*wanted, *had)))
        found = self._store.get_many(addresses)
        _check_addresses(found, self._keys, spec)
        own = str(spec.uuid)
        deletes = tuple(key for key in had if key not in wanted and key in found and found[key].value == own)
        compares = (Compare.unchanged(item.key, item.mod_revision), *(Compare.as_read(key, found) for key in addresses))
        return Transaction(compares, {item.key: text, **dict.fromkeys(wanted, own)}, deletes)


def _is_about(finding: Finding, instance: UUID | None, who: UUID | str) -> bool:
    if finding.kind not in (Kind.QUARANTINED, Kind.STORE_RESTORED):
        return False
    return finding.instance == instance if instance else finding.name == who


def _check_free(found: dict[str, Versioned], keys: Keys, spec: InstanceSpec, provider: UUID) -> None:
    """Raises: Conflict: one of its keys is somebody else's."""
    name, known = found.get(keys.name(spec.name)), found.get(keys.instance(spec.uuid))
    if name is not None and name.value != str(spec.uuid):
        raise Conflict(
            f"the name {spec.name} is taken by the instance {name.value}; adopt it under another: "
            f"eschedule adopt {spec.uuid} --name NEW"
        )
    if known is not None and InstanceKey.from_json(known.value).provider != provider:
        raise Conflict(f"the instance {spec.uuid} lives on another host as etcd says; see: eschedule show {spec.uuid}")
    _check_addresses(found, keys, spec)
    if keys.spec(provider, spec.uuid) in found:
        raise Conflict(f"the instance {spec.uuid} has a spec again; look again: eschedule audit")


def _check_addresses(found: dict[str, Versioned], keys: Keys, spec: InstanceSpec) -> None:
    """Raises: Conflict: an address of one of its cards is somebody else's."""
    for key in address_keys(keys, spec.nics):
        if key in found and found[key].value != str(spec.uuid):
            network, address = keys.parse_network_address(key)
            raise Conflict(
                f"the address {address} of the network {network}, which the guest has, was given to {found[key].value} since; "
                "destroy that one, or end the guest by virsh"
            )


def _of_domain(proposal: InstanceSpec) -> dict[str, object]:
    """The fields that the host knows better than an old spec; what only specs hold stays as it is there."""
    names = (
        "resources", "nics", "keys", "user_data_base64", "hostname", "image", "desired", "boot_request", "alternates", "adopts",
        "metadata", "metadata_hop_limit", "allow", "forwards", "hardware",
    )  # fmt: skip
    return {name: getattr(proposal, name) for name in names}


def _explained(name: str, spec: InstanceSpec, proposal: InstanceSpec) -> str:
    is_there = proposal.desired.keeps_guest
    guest = _POWER[proposal.desired]
    effects = {
        Desired.RUNNING: "the guest goes on" if is_there else "the guest stays down until it is started",
        Desired.PAUSED: "the guest is paused" if is_there else "the guest stays down until it is started",
        Desired.SUSPENDED: "the guest is suspended" if is_there else "the guest stays down until it is started",
        Desired.STOPPED: "the guest is shut down" if is_there else "the guest stays down",
        Desired.DELETED: "the guest is destroyed, with its disk",
    }
    changes = "" if spec.resources == proposal.resources else f", of the size {proposal.resources} that the guest has"
    return (
        f"etcd has an older request for {name} than the guest has seen (desired={spec.desired}), and the guest {guest}. "
        f"Say which counts: --spec (what etcd says: {effects[spec.desired]}), or --domain (what the guest is: it stays as it "
        f"is, and etcd will say desired={proposal.desired}{changes})"
    )


def _said(spec: InstanceSpec) -> str:
    if spec.desired is Desired.DELETED:
        return f"{spec.name} ({spec.uuid}) is destroyed, as etcd says"
    return f"{spec.name} ({spec.uuid}) is adopted; desired={spec.desired}, restart={spec.restart}, group={spec.group or 'none'}"


# -- waiting ------------------------------------------------------------------------------------------------------------


def _await(session: Session, adopted: Adopted, wait_seconds: float) -> None:
    """Wait until the host says that it acts by the spec: the guest is up or down, or gone.

    Raises:
        Transient: it did not say so in time.
        Permanent: it cannot be.
    """
    spec, provider, revision = adopted
    session.screen.progress(f"waiting for the host of {spec.name}")
    status = _Awaited(session.store, session.keys, spec, provider).until(revision, Deadline(wait_seconds, session.clock))
    if status is None and spec.desired is Desired.DELETED:
        return
    if status is None or status.spec_revision < revision or status.phase not in (*_AT_REST, *_STUCK):
        doing = f"{status.phase}: {status.message}" if status else "it has said nothing yet"
        raise Transient(f"the host does not yet act by the spec of {spec.name} ({doing}); look: eschedule show {spec.name}")
    if status.phase in _STUCK:
        raise Permanent(f"{spec.name} is {status.phase}: {status.message}; details: eschedule show {spec.name}")


class _Awaited:
    """The status of one instance, followed by a watch."""

    def __init__(self, store: Store, keys: Keys, spec: InstanceSpec, provider: UUID) -> None:
        self._is_to_go, self._instance = spec.desired is Desired.DELETED, keys.instance(spec.uuid)
        self._status = keys.status(provider, spec.uuid)
        self._changed = threading.Condition()
        self._watches = [ListWatch(store, key, self._note) for key in (self._status, self._instance)]

    def until(self, revision: int, deadline: Deadline) -> InstanceStatus | None:
        """The status once it speaks of the spec at *revision* and is at rest, or the last one; None where it is gone."""
        stop = threading.Event()
        for watch in self._watches:
            threading.Thread(target=watch.run, args=(stop,), name="adopt", daemon=True).start()
        try:
            for watch in self._watches:  # a first list that changes nothing tells nobody that it is there
                watch.synced.wait(deadline.remaining())
            with self._changed:
                self._changed.wait_for(lambda: self._is_over(revision), deadline.remaining())
            return None if self._is_gone() else self._known()
        finally:
            stop.set()

    def _is_over(self, revision: int) -> bool:
        if not all(watch.synced.is_set() for watch in self._watches):
            return False
        if self._is_to_go:
            return self._is_gone()
        status = self._known()
        return status is not None and status.spec_revision >= revision and status.phase in (*_AT_REST, *_STUCK)

    def _is_gone(self) -> bool:
        """As its own key says; its status may be heard of later, though both go at once."""
        return self._watches[1].synced.is_set() and self._watches[1].get(self._instance) is None

    def _known(self) -> InstanceStatus | None:
        item = self._watches[0].get(self._status)
        return InstanceStatus.from_json(item.value) if item else None

    def _note(self, _key: str, _item: Versioned | None) -> None:
        with self._changed:
            self._changed.notify_all()
