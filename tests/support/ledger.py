"""What the clients of a cluster were told, and what its guests were seen to be: the memory that invariants over time need.

A test writes down what it asked for and how that went; ``observe`` is given every ``World`` that is looked at, at any moment.
From then on an instance that was seen to have run must keep its disk and its host, and a guest that nobody asked to stop must
keep its QEMU process. ``settle`` waits until nothing is wrong any more.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from uuid import UUID

from common.model import Desired
from tests.support.cluster import Cluster
from tests.support.invariants import LASTING, violations
from tests.support.snapshot import Qemu, World, look

GONE = None  # what may be asked of an instance beside its ``Desired`` states
SETTLE_SECONDS = 60.0


@dataclass
class Known:
    """One instance.

    Args:
        may_be: what it may have been asked to be: one state where the answer came, several where it was lost.
        process: the QEMU that it has to keep.
        disk: provider and inode of the disk that it has to keep, once it has run.
        reboots: how many other QEMUs may still come, since reboots were asked for; *reboots_due* of them have to.
    """

    name: str
    may_be: set[Desired | None]
    process: Qemu | None = None
    disk: tuple[UUID, int] | None = None
    reboots: int = 0
    reboots_due: int = 0


@dataclass
class Ledger:
    """All instances of a cluster, by uuid."""

    known: dict[UUID, Known] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def asked(self, uuid: UUID, name: str, wanted: Desired | None, *, is_certain: bool = True) -> None:
        """*wanted* was asked for; without an answer it may also have stayed as it was."""
        known = self.known.setdefault(uuid, Known(name, {GONE}))
        known.may_be = {wanted} if is_certain else known.may_be | {wanted}
        if wanted is not Desired.RUNNING:
            known.process, known.reboots, known.reboots_due = None, 0, 0

    def asked_to_reboot(self, uuid: UUID, *, is_certain: bool = True) -> None:
        """Another boot was asked for; without an answer it may or may not come."""
        known = self.known[uuid]
        known.reboots += 1
        known.reboots_due += is_certain

    def observe(self, world: World) -> None:
        """Compare *world* with what was seen before; what is wrong goes to ``problems``."""
        self.problems += violations(world, LASTING)
        for uuid, known in self.known.items():
            self._keeps_its_disk(world, uuid, known)
            self._keeps_its_process(world, uuid, known)

    def _keeps_its_disk(self, world: World, uuid: UUID, known: Known) -> None:
        spec, status = world.spec_of(uuid), world.status_of(uuid)
        if spec is None or spec.desired is Desired.DELETED:
            return
        provider = world.place_of(uuid)
        assert provider is not None
        inode = world.host(provider).disks.get(uuid)
        if known.disk is None:
            if status is not None and status.booted and inode is not None:
                known.disk = provider, inode
        elif known.disk != (provider, inode):
            self.problems.append(f"{known.name} has run with the disk {known.disk} and has {(provider, inode)} now")

    def _keeps_its_process(self, world: World, uuid: UUID, known: Known) -> None:
        if known.may_be != {Desired.RUNNING}:
            return
        found = world.qemu_of(uuid)
        if known.process is None:
            known.process = found
        elif found != known.process and not known.reboots:
            self.problems.append(f"{known.name} was to run on as {known.process} and is {found} now")
            known.process = found
        elif found not in (known.process, None):
            known.process, known.reboots, known.reboots_due = found, known.reboots - 1, max(0, known.reboots_due - 1)

    def disagreements(self, world: World) -> list[str]:
        """Where the specs are not what clients were told."""
        found = []
        for uuid, known in self.known.items():
            spec = world.spec_of(uuid)
            is_there = GONE if spec is None else spec.desired
            if is_there not in known.may_be:
                found.append(f"{known.name} is asked to be {is_there}, clients were told {known.may_be}")
            if known.reboots_due and is_there is Desired.RUNNING:
                found.append(f"{known.name} was to be rebooted and runs on as {known.process}")
        strangers = {uuid for _, uuid in world.specs} - self.known.keys()
        return found + [f"nobody asked for {uuid}" for uuid in strangers]

    def learn(self, world: World) -> None:
        """Settle what was uncertain by what is there."""
        for uuid, known in list(self.known.items()):
            spec = world.spec_of(uuid)
            known.may_be, known.reboots = {GONE if spec is None else spec.desired}, 0
            if spec is None:
                del self.known[uuid]

    def settle(self, cluster: Cluster, *, timeout_seconds: float = SETTLE_SECONDS) -> World:
        """Look until every invariant holds and every doubt is resolved; the world then.

        Raises:
            AssertionError: something that may never be was seen, or it did not settle; with the evidence.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            world = look(cluster)
            self.observe(world)
            assert not self.problems, f"{self.problems}\n{cluster.evidence()}"
            wrong = [*violations(world), *self.disagreements(world)]
            if not wrong:
                self.learn(world)
                return world
            if time.monotonic() >= deadline:
                lines = "\n".join(wrong)
                raise AssertionError(f"after {timeout_seconds:g} s:\n{lines}\n{shown(world)}\n{cluster.evidence()}")
            time.sleep(0.1)


def shown(world: World) -> str:
    """A world for people."""
    lines = [
        f"{spec.name} {uuid} on {world.host(provider).name} wants {spec.desired}"
        for (provider, uuid), (spec, _) in world.specs.items()
    ]
    lines += [f"{uuid}: {dataclasses.replace(status, events=())}" for (_, uuid), status in world.statuses.items()]
    lines += [str(host) for host in world.hosts]
    return "\n".join(lines)
