"""Who may join a group on a host, and what that takes: over the fake store, where transactions mean what they do in etcd."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from common import groups
from common.errors import Conflict, GroupTaken
from common.keys import Keys
from common.model import GroupMembers, GroupPolicy
from common.store import Transaction
from tests.fakes.store import FakeStore

KEYS = Keys("/t/")
H1, H2 = uuid4(), uuid4()
STRICT, SOFT = GroupPolicy.ANTI_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY


class Group:
    """One group in a store."""

    def __init__(self) -> None:
        self.store = FakeStore()

    def plan_join(self, policy: GroupPolicy, provider: UUID, instance: UUID) -> Transaction:
        found = self.store.get_many(groups.keys_to_read(KEYS, "web", provider))
        change = groups.join(KEYS, "web", policy, provider=provider, instance=instance, found=found)
        return Transaction(change.compares, change.puts, change.deletes)

    def join(self, policy: GroupPolicy, provider: UUID, instance: UUID) -> None:
        self.store.commit(self.plan_join(policy, provider, instance))

    def plan_leave(self, provider: UUID, instance: UUID) -> Transaction:
        found = self.store.get_many(groups.keys_to_read(KEYS, "web", provider))
        change = groups.leave(KEYS, "web", provider=provider, instance=instance, found=found)
        return Transaction(change.compares, change.puts, change.deletes)

    def leave(self, provider: UUID, instance: UUID) -> None:
        self.store.commit(self.plan_leave(provider, instance))

    def members(self, provider: UUID) -> set[UUID]:
        item = self.store.get(KEYS.group("web", provider))
        return set(GroupMembers.from_json(item.value).members) if item else set()


@pytest.fixture
def group() -> Group:
    return Group()


def test_strict_anti_affinity_has_one_member_a_host(group: Group) -> None:
    a, b = uuid4(), uuid4()
    group.join(STRICT, H1, a)
    group.join(STRICT, H1, a)  # a repeat of its own
    with pytest.raises(GroupTaken, match="already"):
        group.join(STRICT, H1, b)
    group.join(STRICT, H2, b)
    assert (group.members(H1), group.members(H2)) == ({a}, {b})


@pytest.mark.parametrize("policy", list(GroupPolicy))
def test_two_that_join_at_once_from_the_same_view_cannot_both(group: Group, policy: GroupPolicy) -> None:
    first, second = group.plan_join(policy, H1, uuid4()), group.plan_join(policy, H1, uuid4())
    group.store.commit(first)
    with pytest.raises(Conflict):
        group.store.commit(second)


def test_strict_affinity_has_one_host_even_for_two_first_members_at_once(group: Group) -> None:
    first, second = group.plan_join(GroupPolicy.AFFINITY, H1, uuid4()), group.plan_join(GroupPolicy.AFFINITY, H2, uuid4())
    group.store.commit(first)
    with pytest.raises(Conflict):
        group.store.commit(second)
    with pytest.raises(GroupTaken, match=str(H1)):
        group.plan_join(GroupPolicy.AFFINITY, H2, uuid4())


def test_the_last_one_to_leave_takes_the_anchor_along(group: Group) -> None:
    a, b = uuid4(), uuid4()
    group.join(GroupPolicy.AFFINITY, H1, a)
    group.join(GroupPolicy.AFFINITY, H1, b)
    group.leave(H1, a)
    assert group.members(H1) == {b}
    assert group.store.get(KEYS.group_anchor("web")) is not None
    group.leave(H1, b)
    assert group.store.list(KEYS.groups()).items == ()
    group.join(GroupPolicy.AFFINITY, H2, a)


def test_a_group_that_somebody_joins_while_its_last_member_leaves_keeps_its_anchor(group: Group) -> None:
    a, b = uuid4(), uuid4()
    group.join(GroupPolicy.AFFINITY, H1, a)
    leaving = group.plan_leave(H1, a)
    group.join(GroupPolicy.AFFINITY, H1, b)
    with pytest.raises(Conflict):
        group.store.commit(leaving)


def test_soft_policies_take_everybody(group: Group) -> None:
    members = {uuid4() for _ in range(3)}
    for member in members:
        group.join(SOFT, H1, member)
    assert group.members(H1) == members


def test_one_host_has_one_policy_a_group(group: Group) -> None:
    group.join(SOFT, H1, uuid4())
    with pytest.raises(GroupTaken, match="is soft-anti-affinity on this host, not anti-affinity"):
        group.join(STRICT, H1, uuid4())


def test_whoever_is_no_member_leaves_without_a_trace(group: Group) -> None:
    group.join(STRICT, H1, uuid4())
    assert group.plan_leave(H1, uuid4()) == Transaction()
    assert group.plan_leave(H2, uuid4()) == Transaction()
