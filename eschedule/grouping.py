"""A group as its keys in etcd say it, and what that means for the choice of a host. Decides nothing about claims.

``common/groups.py`` says what a transaction has to compare and write for one instance to join; here is what comes before it:
which hosts the policy bars, which it prefers; and how several instances join in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from common import groups
from common.errors import Conflict
from common.groups import GroupChange
from common.keys import Keys
from common.model import GroupMembers, GroupPolicy
from common.store import Compare, Store, Versioned


@dataclass(frozen=True)
class Group:
    """A group as it was read.

    Args:
        items: its keys as they were, for ``join_all``.
        members: by host.
        anchor: under strict affinity the host that all of it lives on; None while it is nowhere.
    """

    name: str
    policy: GroupPolicy
    items: Mapping[str, Versioned]
    members: Mapping[UUID, tuple[UUID, ...]]
    anchor: UUID | None = None

    def bars(self, provider: UUID) -> bool:
        """Whether the policy keeps another instance from being on *provider*."""
        if self.policy is GroupPolicy.ANTI_AFFINITY:
            return provider in self.members
        return self.policy is GroupPolicy.AFFINITY and self.anchor not in (None, provider)

    def rank(self, provider: UUID, more: int = 0) -> int:
        """Which hosts a soft policy would have tried first: those of the smallest number. *more* are to join there."""
        count = len(self.members.get(provider, ())) + more
        return {GroupPolicy.SOFT_ANTI_AFFINITY: count, GroupPolicy.SOFT_AFFINITY: -count}.get(self.policy, 0)

    @property
    def favourite(self) -> UUID | None:
        """The host that an affinity asks for first; the one with the most members under a soft one."""
        if self.policy is GroupPolicy.AFFINITY:
            return self.anchor
        if self.policy is GroupPolicy.SOFT_AFFINITY and self.members:
            return max(self.members, key=lambda provider: (len(self.members[provider]), provider))
        return None

    @property
    def keeps_apart(self) -> bool:
        """Whether no two members may be on one host."""
        return self.policy is GroupPolicy.ANTI_AFFINITY

    @property
    def can_move(self) -> bool:
        """Whether a member may be built on another host than the one that was claimed for it."""
        return self.policy is not GroupPolicy.AFFINITY


def read(store: Store, keys: Keys, name: str | None, policy: GroupPolicy) -> Group | None:
    """The group *name* as it is now; None where none is asked for.

    Raises:
        Conflict: it has members under another policy.
    """
    if name is None:
        return None
    prefix = keys.groups(name)
    items = {item.key: item for item in store.list(prefix).items}
    anchor = items.get(keys.group_anchor(name))
    members = {
        UUID(key.removeprefix(prefix)): GroupMembers.from_json(item.value) for key, item in items.items() if item != anchor
    }
    for known in members.values():
        if known.policy is not policy:
            raise Conflict(
                f"the group {name} has instances under the policy {known.policy}, this request is for {policy}; "
                f"ask with --policy {known.policy}, or for another group"
            )
    return Group(name, policy, items, {p: m.members for p, m in members.items()}, UUID(anchor.value) if anchor else None)


def join_all(
    keys: Keys, group: Group, joining: Iterable[tuple[UUID, UUID]], found: Mapping[str, Versioned]
) -> GroupChange:  # fmt: skip
    """The change by which each instance in *joining*, pairs of provider and instance, becomes a member; *found* was read.

    Raises:
        GroupTaken: the policy does not allow one of them.
    """
    known = dict(found)
    compares: dict[str, Compare] = {}
    puts: dict[str, str] = {}
    for provider, instance in joining:
        change = groups.join(keys, group.name, group.policy, provider=provider, instance=instance, found=known)
        for compare in change.compares:
            compares.setdefault(compare.key, compare)  # the first one speaks of what was read
        puts |= change.puts
        known |= {key: Versioned(key, value, 0, 0) for key, value in change.puts.items()}
    return GroupChange(tuple(compares.values()), puts)


def keys_to_read(keys: Keys, group: Group | None, providers: Iterable[UUID]) -> list[str]:
    """What ``join_all`` wants to have been read for *providers*; nothing without a group."""
    if group is None:
        return []
    return list(dict.fromkeys(key for provider in providers for key in groups.keys_to_read(keys, group.name, provider)))
