"""Random interleavings of requests and faults over a real cluster, after each of which every promise has to be kept.

hypothesis chooses the actions (``tests/support/chaos.py``); after each run all faults are healed, the cluster gets a bounded time
to settle, and all invariants are checked (``tests/support/invariants.py``, ``tests/support/ledger.py``). There is no shrinking: a
run takes seconds, and time itself is no part of what hypothesis can repeat. A seed gives the same actions again:

    ./test.sh soak 30             for half an hour, with new seeds
    ./test.sh soak --seed 1234    one round, again

``SOAK_REPORT=FILE`` has the number of faults of each kind written there as JSON.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.chaos import Chaos
from tests.support.hosts import HostNetwork

SOAK_SECONDS = float(os.environ.get("SOAK_MINUTES") or 0) * 60
SEED = int(os.environ.get("SOAK_SEED") or 0)
USUAL_SEED = 3
RUNS_A_ROUND, STEPS_A_RUN = 6, 16

pytestmark = pytest.mark.timeout(SOAK_SECONDS + 900)

HOST, MEMBER, WHICH = st.integers(0, 1), st.integers(0, 2), st.integers(0, 11)
A_FEW = st.integers(1, 4)
# Mostly clients live; those that are killed die at any point of the half second that a request takes.
LOST_AFTER = st.one_of(st.just(0.0), st.just(0.0), st.just(0.0), st.floats(0.15, 0.8))
POLICIES = st.sampled_from(["anti-affinity", "soft-anti-affinity", "affinity", "soft-affinity"])


class Faults(RuleBasedStateMachine):
    """What is done; ``chaos`` and ``failure`` are set by whoever runs it."""

    chaos: Chaos
    failure: str = ""

    def __init__(self) -> None:
        super().__init__()
        if not self.failure:
            self.chaos.begin()

    def _do(self, action: str, *arguments: object, **named: object) -> None:
        """One action; when an earlier one has failed already, nothing, so that hypothesis comes to its end."""
        if self.failure:
            return
        try:
            attrgetter(action)(self.chaos)(*arguments, **named)
            self.chaos.watch()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        type(self).failure = f"{type(error).__name__}: {error}\n--- steps\n" + "\n".join(self.chaos.steps)

    def teardown(self) -> None:
        if self.failure:
            return
        try:
            self.chaos.heal_and_check()
        except Exception as error:  # noqa: BLE001 - likewise
            self._failed(error)

    # --- requests

    @initialize(number=st.integers(1, 3))
    def begin_with_some(self, number: int) -> None:
        for _ in range(number):
            self._do("clients.create", count=1, group=0, policy="", image=1, lost_after=0.0)
        self._do("settle")

    @rule(image=st.integers(0, 3), lost_after=LOST_AFTER)
    def create(self, image: int, lost_after: float) -> None:
        self._do("clients.create", count=1, group=0, policy="", image=image, lost_after=lost_after)

    @rule(group=st.integers(1, 2), policy=POLICIES, count=st.integers(1, 2), lost_after=LOST_AFTER)
    def create_in_a_group(self, group: int, policy: str, count: int, lost_after: float) -> None:
        self._do("clients.create", count=count, group=group, policy=policy, image=1, lost_after=lost_after)

    @rule(count=st.integers(2, 4), lost_after=LOST_AFTER)
    def create_several(self, count: int, lost_after: float) -> None:
        self._do("clients.create", count=count, group=0, policy="", image=1, lost_after=lost_after)

    @rule(which=WHICH, lost_after=LOST_AFTER)
    def repeat(self, which: int, lost_after: float) -> None:
        self._do("clients.repeat", which, lost_after)

    @rule(which=WHICH, lost_after=LOST_AFTER)
    def stop(self, which: int, lost_after: float) -> None:
        self._do("clients.change", "stop", which, lost_after)

    @rule(which=WHICH, lost_after=LOST_AFTER)
    def start(self, which: int, lost_after: float) -> None:
        self._do("clients.change", "start", which, lost_after)

    @rule(which=WHICH, hard=st.booleans(), lost_after=LOST_AFTER)
    def reboot(self, which: int, hard: bool, lost_after: float) -> None:
        self._do("clients.change", "reboot --hard" if hard else "reboot", which, lost_after)

    @rule(which=WHICH, lost_after=LOST_AFTER)
    def destroy(self, which: int, lost_after: float) -> None:
        self._do("clients.change", "destroy", which, lost_after)

    # --- faults

    @rule(host=HOST)
    def kill_ecompute(self, host: int) -> None:
        self._do("kill_ecompute", host)

    @rule(host=HOST, with_kill=st.booleans())
    def restart_ecompute(self, host: int, with_kill: bool) -> None:
        self._do("restart_ecompute", host, with_kill)

    @rule(host=HOST)
    def pause_ecompute(self, host: int) -> None:
        self._do("pause_ecompute", host)

    @rule(host=HOST)
    def pause_past_the_lease(self, host: int) -> None:
        self._do("pause_past_the_lease", host)

    @rule(host=HOST)
    def resume_ecompute(self, host: int) -> None:
        self._do("resume_ecompute", host)

    @rule(host=HOST, is_clone=st.booleans())
    def another_ecompute(self, host: int, is_clone: bool) -> None:
        self._do("clone_of_a_host" if is_clone else "second_ecompute", host)

    @rule(member=MEMBER, action=st.sampled_from(["kill_member", "freeze_member", "restart_member"]))
    def etcd_member(self, member: int, action: str) -> None:
        self._do(action, member)

    @rule(by_freezing=st.booleans())
    def lose_leader(self, by_freezing: bool) -> None:
        self._do("lose_leader", by_freezing)

    @rule()
    def lose_quorum(self) -> None:
        self._do("lose_quorum")

    @rule()
    def compact(self) -> None:
        self._do("compact")

    @rule(number=A_FEW)
    def lose_etcd_answers(self, number: int) -> None:
        self._do("lose_etcd_answers", number)

    @rule(is_restart=st.booleans())
    def placement_process(self, is_restart: bool) -> None:
        self._do("restart_placement" if is_restart else "kill_placement")

    @rule(kind=st.sampled_from(["500", "503", "slow", "lost"]), number=A_FEW)
    def placement_answers(self, kind: str, number: int) -> None:
        self._do("placement_answers", kind, number)

    @rule(host=HOST, with_kill=st.booleans())
    def restart_libvirtd(self, host: int, with_kill: bool) -> None:
        self._do("restart_libvirtd", host, with_kill)

    @rule(host=HOST, is_full=st.booleans())
    def disk(self, host: int, is_full: bool) -> None:
        self._do("fill_disk" if is_full else "free_disk", host)

    @rule(host=HOST, refuses=st.booleans())
    def qemu(self, host: int, refuses: bool) -> None:
        self._do("refuse_guests", host, refuses)

    @rule(seconds=st.floats(0.1, 2.0))
    def let_time_pass(self, seconds: float) -> None:
        self._do("let_time_pass", seconds)


@pytest.fixture
def chaos(host_network: HostNetwork, tmp_path: Path) -> Iterator[Chaos]:
    chaos = Chaos(tmp_path, host_network)
    try:
        yield chaos.start()
    finally:
        chaos.close()


def one_round(chaos: Chaos, seed: int) -> None:
    """Several runs, whose actions are given by *seed*."""
    machine = type("Faults", (Faults,), {"chaos": chaos, "failure": ""})
    begun = time.monotonic()
    run_state_machine_as_test(
        hypothesis.seed(seed)(machine),
        settings=settings(
            max_examples=RUNS_A_ROUND, stateful_step_count=STEPS_A_RUN, deadline=None, database=None, print_blob=False,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        ),
    )  # fmt: skip
    print(f"seed {seed}: {time.monotonic() - begun:.0f} s", flush=True)
    assert not machine.failure, f"to repeat it: ./test.sh soak --seed {seed}\n{machine.failure}"


def report(chaos: Chaos, rounds: int) -> None:
    """What was done, in all."""
    counts = {"runs": rounds * RUNS_A_ROUND, **dict(sorted(chaos.counts.items()))}
    print("\n".join(f"{number:7} {kind}" for kind, number in counts.items()), flush=True)
    if "SOAK_REPORT" in os.environ:
        Path(os.environ["SOAK_REPORT"]).write_text(json.dumps(counts, indent=1))


def test_whatever_happens_every_promise_is_kept(chaos: Chaos) -> None:
    until = time.monotonic() + SOAK_SECONDS
    seed, rounds = SEED or (random.SystemRandom().randrange(1, 10**9) if SOAK_SECONDS else USUAL_SEED), 0
    try:
        while rounds == 0 or time.monotonic() < until:
            print(f"\nseed {seed}", flush=True)
            rounds += 1
            one_round(chaos, seed)
            seed += 1
    finally:
        report(chaos, rounds)
