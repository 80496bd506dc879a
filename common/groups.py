"""Group keys: what has to be compared and written for an instance to join or leave a group on a host. Pure.

``groups/<group>/<provider>`` lists a group's members on one host; ``groups/<group>/anchor`` names the one host of a group under
strict affinity. Whoever creates, moves or forgets an instance reads the keys that ``keys_to_read`` names and puts the change
into the same transaction, so that no two of them can break a policy together: under strict anti-affinity the member key is
created where it is absent, everywhere else it is compared as it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from common.errors import GroupTaken
from common.keys import Keys
from common.model import GroupMembers, GroupPolicy
from common.store import Compare, Versioned


@dataclass(frozen=True)
class GroupChange:
    """Parts of a transaction."""

    compares: tuple[Compare, ...] = ()
    puts: Mapping[str, str] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()


def keys_to_read(keys: Keys, group: str, provider: UUID) -> tuple[str, str]:
    """What ``join`` and ``leave`` want to have been read, at one revision."""
    return keys.group(group, provider), keys.group_anchor(group)


def join(
    keys: Keys, group: str, policy: GroupPolicy, *, provider: UUID, instance: UUID, found: Mapping[str, Versioned]
) -> GroupChange:  # fmt: skip
    """The change by which *instance* becomes a member of *group* on *provider*; *found* is what was read.

    Raises:
        GroupTaken: the policy does not allow it on this host, or the group there has another policy.
    """
    member_key, anchor_key = keys_to_read(keys, group, provider)
    known = GroupMembers.from_json(found[member_key].value) if member_key in found else None
    if known and known.policy is not policy:
        raise GroupTaken(f"the group {group} is {known.policy} on this host, not {policy}")
    others = tuple(member for member in known.members if member != instance) if known else ()
    if policy is GroupPolicy.ANTI_AFFINITY and others:
        raise GroupTaken(f"the group {group} has {others[0]} on this host already")
    compares = [Compare.as_read(member_key, found)]
    puts = {member_key: GroupMembers(policy, (*others, instance)).to_json()}
    if policy is GroupPolicy.AFFINITY:
        if anchor_key in found and found[anchor_key].value != str(provider):
            raise GroupTaken(f"the group {group} lives on another host, {found[anchor_key].value}")
        compares.append(Compare.as_read(anchor_key, found))
        if anchor_key not in found:
            puts[anchor_key] = str(provider)
    return GroupChange(tuple(compares), puts)


def leave(keys: Keys, group: str, *, provider: UUID, instance: UUID, found: Mapping[str, Versioned]) -> GroupChange:
    """The change by which *instance* is no member of *group* on *provider* any more; empty where it is none."""
    member_key, anchor_key = keys_to_read(keys, group, provider)
    known = GroupMembers.from_json(found[member_key].value) if member_key in found else None
    if known is None or instance not in known.members:
        return GroupChange()
    others = tuple(member for member in known.members if member != instance)
    if others:
        return GroupChange((Compare.as_read(member_key, found),), {member_key: GroupMembers(known.policy, others).to_json()})
    compares, deletes = [Compare.as_read(member_key, found)], [member_key]
    if anchor_key in found and found[anchor_key].value == str(provider):
        compares.append(Compare.as_read(anchor_key, found))
        deletes.append(anchor_key)
    return GroupChange(tuple(compares), deletes=tuple(deletes))
