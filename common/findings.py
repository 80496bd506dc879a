"""What an audit says: findings, and the letters and reports by which ``eschedule`` has a host look at itself.

A finding names one difference between what etcd, Placement and a host hold, with its cause and its cure. A ``Letter`` goes
to ``keys.mail(provider, …)``, its answer, a ``Report``, to ``keys.mail_reply(…)``; both hang on the letter's lease and hold at
most ``MOST_BYTES``. Pure: records, and the rule by which what is only on its way is told from what is wrong (``settled``).
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from common.model import SCHEMA, InstanceSpec, Record

MOST_BYTES = 256 << 10  # of a letter, and of its answer
LEASE_SECONDS = 60  # of a letter


class Kind(enum.StrEnum):
    """What is wrong, in one word for programs. ``docs/operations.md`` says what to do about each."""

    # guests, as their host sees them
    QUARANTINED = "Quarantined"
    STORE_RESTORED = "StoreRestored"
    DUPLICATE_GUEST = "DuplicateGuest"
    FOREIGN_DOMAIN = "ForeignDomain"
    FOREIGN_STAMP = "ForeignStamp"
    DISK_MISSING = "DiskMissing"
    DOMAIN_MISSING = "DomainMissing"
    # what lies about on a host
    LEFTOVER_FILES = "LeftoverFiles"
    LEFTOVER_PARTIAL = "LeftoverPartial"
    LEFTOVER_ADDRESS = "LeftoverAddress"
    LEFTOVER_METADATA = "LeftoverMetadata"
    LEFTOVER_RULES = "LeftoverRules"
    DHCP_ENTRY_MISSING = "DhcpEntryMissing"
    # claims
    MISSING_ALLOCATION = "MissingAllocation"
    WRONG_ALLOCATION = "WrongAllocation"
    ORPHAN_CLAIM = "OrphanClaim"
    # keys
    UNREADABLE_KEY = "UnreadableKey"
    SPEC_WITHOUT_INSTANCE = "SpecWithoutInstance"
    INSTANCE_WITHOUT_SPEC = "InstanceWithoutSpec"
    INSTANCE_WITHOUT_NAME = "InstanceWithoutName"
    NAME_WITHOUT_INSTANCE = "NameWithoutInstance"
    STATUS_WITHOUT_SPEC = "StatusWithoutSpec"
    DUPLICATE_SPEC = "DuplicateSpec"
    MEMBER_WITHOUT_INSTANCE = "MemberWithoutInstance"
    MEMBER_NOT_LISTED = "MemberNotListed"
    ANCHOR_WITHOUT_MEMBERS = "AnchorWithoutMembers"
    ADDRESS_WITHOUT_INSTANCE = "AddressWithoutInstance"
    INSTANCE_WITHOUT_ADDRESS = "InstanceWithoutAddress"
    # volumes
    VOLUME_MISSING = "VolumeMissing"
    LEFTOVER_VOLUME = "LeftoverVolume"
    VOLUME_CLAIM = "VolumeClaim"
    VOLUME_NOT_ATTACHED = "VolumeNotAttached"
    VOLUME_WITHOUT_NAME = "VolumeWithoutName"
    NAME_WITHOUT_VOLUME = "NameWithoutVolume"
    STATUS_WITHOUT_VOLUME = "StatusWithoutVolume"
    # hosts
    HOST_DEAD = "HostDead"
    HOST_SILENT = "HostSilent"
    OWNER_WITHOUT_PROVIDER = "OwnerWithoutProvider"
    PROVIDER_WITHOUT_OWNER = "ProviderWithoutOwner"


@dataclass(frozen=True)
class Finding:
    """One difference.

    Args:
        kind: a ``Kind``, or a word of a newer version.
        where: the host, key or service that it was seen at.
        what: the difference itself. *cause*: how it comes about. *cure*: what to do.
        subject: what tells it from others of its kind where the instance does not: a key, a file.
        name: of the instance, where it is known.
        is_fixable: ``eschedule audit --fix`` cures it.
        proposal: the spec that the host would write for a guest whose own is lost or older than the guest.
    """

    kind: str
    where: str
    what: str
    cause: str
    cure: str
    instance: UUID | None = None
    provider: UUID | None = None
    is_fixable: bool = False
    proposal: InstanceSpec | None = None
    subject: str = ""
    name: str = ""

    @property
    def identity(self) -> tuple[str, UUID | None, UUID | None, str]:
        """The same for two looks at the same difference, whatever their words."""
        return self.kind, self.instance, self.provider, self.subject


@dataclass(frozen=True)
class Letter(Record):
    """A small request to a host.

    Args:
        kind: "audit" or "fix".
        arguments: ``instances``: look at these only; ``kinds``: fix these only.
    """

    kind: str
    arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True)
class Report(Record):
    """A host's answer.

    Args:
        fixed: what a "fix" did, one line each. *problems*: what could not be looked at or done, one line each.
        left_out: how many findings, and *is_cut* whether proposals, did not fit; ask for single instances then.
    """

    provider: UUID
    host: str
    findings: tuple[Finding, ...] = ()
    fixed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    left_out: int = 0
    is_cut: bool = False
    schema: int = SCHEMA


def fitted(report: Report, most_bytes: int = MOST_BYTES) -> str:
    """*report* as JSON of at most *most_bytes*: without its proposals, then without its last findings, where it must be."""
    text = report.to_json()
    if len(text.encode()) <= most_bytes:
        return text
    bare = tuple(dataclasses.replace(finding, proposal=None) for finding in report.findings)
    report = dataclasses.replace(report, findings=bare, is_cut=True)
    while len((text := report.to_json()).encode()) > most_bytes and report.findings:
        kept = len(report.findings) // 2
        left_out = report.left_out + len(report.findings) - kept
        report = dataclasses.replace(report, findings=report.findings[:kept], left_out=left_out)
    return text


def settled(look: Callable[[], Sequence[Finding]], pauses: Iterable[float], sleep: Callable[[float], object]) -> list[Finding]:
    """What *look* finds again and again, after each of *pauses* (seconds); as the last look put it.

    Etcd, Placement and a host cannot be read at one moment, so that whatever is being made or taken away looks wrong between
    its parts. Such a thing is over when it is looked at again. Where nothing is suspected there is no second look.
    """
    found = list(look())
    for pause in pauses:
        if not found:
            break
        sleep(pause)
        before = {finding.identity for finding in found}
        found = [finding for finding in look() if finding.identity in before]
    return found
