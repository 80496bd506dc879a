"""Many eschedule processes at once for what only some can have: exactly those that fit win, and the losers leave nothing.

Real etcd and Placement; a host is a provider with inventory and a host key, and a stand-in that says of each spec that it runs.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from uuid import UUID

import pytest

from common.model import GroupMembers, InstanceKey
from tests.support.eschedule import IMAGE, QUERY, Site, StandInHost
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.processes import wait_until

KILLS = 3  # of a client, at each moment


class Race:
    """Clients that were all started before the first was waited for, and what came of them."""

    def __init__(self, site: Site, commands: list[list[str]]) -> None:
        self.site = site
        processes = [site.spawn(QUERY, IMAGE, "--no-wait", "--json", *command) for command in commands]
        self.answers = [self._answer(process) for process in processes]

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        try:
            output, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    @property
    def codes(self) -> Counter[int]:
        return Counter(answer.returncode for answer in self.answers)

    @property
    def evidence(self) -> str:
        return "\n".join(f"{answer.returncode}: {answer.stderr[-400:]}" for answer in self.answers)

    def won(self) -> dict[UUID, UUID]:
        """The instances that the winners say they made, with their providers."""
        values = [json.loads(answer.stdout) for answer in self.answers if answer.returncode == 0]
        made = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return {UUID(one["uuid"]): UUID(one["host"]["provider"]) for one in made}


def assert_nothing_but(site: Site, instances: dict[UUID, UUID]) -> None:
    """Exactly *instances* are claimed and recorded, each once and where it is said to be, and nothing else is in etcd."""
    claims = [
        (consumer, host.provider) for host in site.hosts for consumer in site.placement.provider_allocations(host.provider)
    ]
    assert sorted(claims) == sorted(instances.items())
    keys = site.keys
    assert {
        UUID(item.key.removeprefix(keys.instances())): InstanceKey.from_json(item.value).provider
        for item in site.store.list(keys.instances()).items
    } == instances
    specs = {keys.parse_provider_instance(item.key) for item in site.store.list(keys.specs()).items}
    assert specs == {(provider, instance) for instance, provider in instances.items()}
    assert Counter(item.value for item in site.store.list(keys.names()).items) == Counter(map(str, instances))
    members = [member for _, found in group_members(site).items() for member in found]
    assert set(members) <= set(instances) and len(members) == len(set(members))
    known = (
        keys.instances(), keys.specs(), keys.statuses(), keys.names(), keys.groups(), keys.hosts(), keys.owners(),
    )  # fmt: skip
    assert [
        item.key for item in site.store.list(keys.prefix, behind=keys.after_journal()).items if not item.key.startswith(known)
    ] == []


def group_members(site: Site, group: str = "web") -> dict[UUID, tuple[UUID, ...]]:
    """The members of *group*, by provider."""
    prefix = site.keys.groups(group)
    items = [item for item in site.store.list(prefix).items if item.key != site.keys.group_anchor(group)]
    return {UUID(item.key.removeprefix(prefix)): GroupMembers.from_json(item.value).members for item in items}


def hosts(site: Site, *vcpus: int) -> list[StandInHost]:
    return [site.host(f"node{i}", vcpus=n, memory_mib=65536, disk_gib=1000) for i, n in enumerate(vcpus, 1)]


@pytest.mark.parametrize("vcpus", [(5,), (2, 2, 1)])
def test_of_20_clients_for_the_room_of_5_exactly_5_win(site: Site, vcpus: tuple[int, ...]) -> None:
    hosts(site, *vcpus)
    race = Race(site, [[] for _ in range(20)])
    assert race.codes == {0: 5, 3: 15}, race.evidence
    assert len(race.won()) == 5
    assert_nothing_but(site, race.won())


def test_of_10_clients_for_one_name_one_wins(site: Site) -> None:
    hosts(site, 20)
    race = Race(site, [["--name", "web-1"] for _ in range(10)])
    assert race.codes == {0: 1, 5: 9}, race.evidence
    assert all("the name web-1 is taken by the instance" in a.stderr for a in race.answers if a.returncode == 5)
    assert_nothing_but(site, race.won())


def test_of_10_clients_with_one_request_id_all_have_the_same_instance(site: Site) -> None:
    hosts(site, 20, 20)
    race = Race(site, [["--request-id", "order 7"] for _ in range(10)])
    assert race.codes == {0: 10}, race.evidence
    assert len(race.won()) == 1
    assert_nothing_but(site, race.won())


def test_a_group_that_is_kept_apart_has_one_on_each_host(site: Site) -> None:
    hosts(site, 20, 20, 20)
    race = Race(site, [["--group", "web"] for _ in range(10)])
    assert race.codes == {0: 3, 3: 7}, race.evidence
    assert len(set(race.won().values())) == 3
    assert {p: set(m) for p, m in group_members(site).items()} == {p: {i} for i, p in race.won().items()}
    assert_nothing_but(site, race.won())


def test_a_group_that_is_kept_together_is_on_one_host(site: Site) -> None:
    hosts(site, 20, 20, 20)
    race = Race(site, [["--group", "web", "--policy", "affinity"] for _ in range(10)])
    assert race.codes == {0: 10}, race.evidence
    (provider,) = set(race.won().values())
    assert {p: set(m) for p, m in group_members(site).items()} == {provider: set(race.won())}
    anchor = site.store.get(site.keys.group_anchor("web"))
    assert anchor is not None and anchor.value == str(provider)
    assert_nothing_but(site, race.won())


@pytest.mark.parametrize("policy", ["soft-affinity", "soft-anti-affinity"])
def test_a_wish_turns_nobody_away(site: Site, policy: str) -> None:
    hosts(site, 4, 4, 4)
    race = Race(site, [["--group", "web", "--policy", policy] for _ in range(10)])
    assert race.codes == {0: 10}, race.evidence
    assert {member for found in group_members(site).values() for member in found} == set(race.won())
    assert_nothing_but(site, race.won())


@pytest.mark.parametrize("vcpus", [(10,), (4, 4, 2)])
def test_of_5_sets_of_4_for_the_room_of_10_exactly_2_win(site: Site, vcpus: tuple[int, ...]) -> None:
    hosts(site, *vcpus)
    race = Race(site, [["--count", "4"] for _ in range(5)])
    assert race.codes == {0: 2, 3: 3}, race.evidence
    assert len(race.won()) == 8
    assert_nothing_but(site, race.won())


def test_sets_that_are_kept_apart_do_not_share_hosts(site: Site) -> None:
    hosts(site, *[20] * 5)
    race = Race(site, [["--count", "2", "--group", "web"] for _ in range(5)])
    assert race.codes[0] <= 2 and set(race.codes) <= {0, 3}, race.evidence
    assert len(set(race.won().values())) == len(race.won()) == 2 * race.codes[0]
    wait_until(lambda: len(site.claimed()) == len(race.won()), timeout_seconds=30, what="what was taken back is gone")
    assert_nothing_but(site, race.won())


class Killed:
    """A client that makes a set and is killed at some moment of it, and the same request after that.

    The proxy shows how far the client is, and holds it there: a client that is quick has passed most moments before they are seen.
    """

    COUNT = 30  # more than one transaction takes

    def __init__(self, site: Site, request_id: str) -> None:
        self.site = site
        self.proxy = FaultyProxy(site.placement_server.port)
        site.configure(placement_url=self.proxy.url)
        self.command = (QUERY, IMAGE, "--count", str(self.COUNT), "--request-id", request_id, "--no-wait", "--json")

    def run(self, fault: tuple[str, str] | None, is_reached: Callable[[Killed], object], pause_seconds: float) -> None:
        if fault:
            self.proxy.inject(Fault.HOLD_ANSWER, *fault)
        process = self.site.spawn(*self.command)
        try:
            wait_until(
                lambda: is_reached(self) or process.poll() is not None, timeout_seconds=60, what="the moment for the kill"
            )
            time.sleep(pause_seconds)  # where exactly it is by then is left to chance
        finally:
            process.kill()
            process.communicate(timeout=60)
            self.proxy.close()

    def repeat(self) -> dict[UUID, UUID]:
        self.site.configure()
        answer = self.site.run(*self.command)
        assert answer.returncode == 0, answer.stderr
        return {UUID(one["uuid"]): UUID(one["host"]["provider"]) for one in json.loads(answer.stdout)}


MOMENTS: dict[str, tuple[tuple[str, str] | None, Callable[[Killed], object]]] = {
    "as it asks for candidates": (("GET", "/allocation_candidates"), lambda k: k.proxy.count("GET", "/allocation_candidates")),
    "once all is claimed": (("POST", "/allocations"), lambda k: k.site.claimed()),
    "once the first is recorded": (None, lambda k: k.site.store.list(k.site.keys.names()).items),
    "as it is about to claim": (None, lambda k: k.proxy.count("POST", "/allocations")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_set_whose_client_was_killed_is_finished_by_the_same_request(site: Site, moment: str) -> None:
    hosts(site, Killed.COUNT * KILLS, Killed.COUNT * KILLS)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    complete: dict[UUID, UUID] = {}
    for number in range(KILLS):
        killed = Killed(site, f"order {number}")
        killed.run(*MOMENTS[moment], pause_seconds=dice.uniform(0, 0.05) * number)
        claimed_before = site.claimed()
        made = killed.repeat()
        assert len(made) == Killed.COUNT
        assert claimed_before <= complete.keys() | made.keys()
        complete |= made
        assert_nothing_but(site, complete)
