"""What the clients of a cluster were told, and what its guests were seen to be: the memory that invariants over time need.

A test writes down what it asked for and how that went; ``observe`` is given every ``World`` that is looked at, at any moment.
From then on an instance that was seen to have run must keep its disk and its host, and a guest that nobody asked to stop must
keep its QEMU process. ``settle`` waits until nothing is wrong any more.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
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
        reboots: how many other QEMUs may follow that one, since reboots were asked for; *reboots_seen* of them came.
        is_reboot_due: at least one has to come.
    """

    name: str
    may_be: set[Desired | None]
    process: Qemu | None = None
    disk: tuple[UUID, int] | None = None
    reboots: int = 0
    reboots_seen: int = 0
    is_reboot_due: bool = False
    disks_to_come: int = 0  # other disks that may take the place of its own

    def forget_reboots(self) -> None:
        self.reboots, self.reboots_seen, self.is_reboot_due = 0, 0, False


@dataclass
class Ledger:
    """All instances of a cluster, by uuid."""

    known: dict[UUID, Known] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def asked(self, uuid: UUID, name: str, wanted: Desired | None, *, is_certain: bool = True) -> None:
        """*wanted* was asked for; without an answer it may also have stayed as it was."""
        known = self.known.setdefault(uuid, Known(name, {GONE}))
        if wanted not in (Desired.RUNNING, Desired.PAUSED):
            known.process = None
            known.forget_reboots()
        elif known.may_be & {Desired.STOPPED, Desired.SUSPENDED}:
            known.reboots += 1  # it may be up still, and go down before it comes up again
        known.may_be = {wanted} if is_certain else known.may_be | {wanted}

    def asked_to_reboot(self, uuid: UUID) -> None:
        """Another boot was asked for; it has to come once ``reboot_is_certain`` says so."""
        self.known[uuid].reboots += 1

    def reboot_is_certain(self, uuid: UUID) -> None:
        self.known[uuid].is_reboot_due = True

    def asked_for_a_new_disk(self, uuid: UUID, *, times: int = 1) -> None:
        """Its disk may be another one from now on; so many *times*, where it may be made again by who goes on."""
        self.known[uuid].disks_to_come += times

    def observe(self, world: World) -> None:
        """Compare *world* with what was seen before; what is wrong goes to ``problems``."""
        self.problems += violations(world, LASTING)
        for uuid, known in self.known.items():
            self._keeps_its_disk(world, uuid, known)
            self._keeps_its_process(world.qemu_of(uuid), known)

    def observe_processes(self, processes: Mapping[UUID, list[Qemu]]) -> None:
        """The same with nothing known but the QEMUs on all hosts: for moments at which etcd or Placement do not answer."""
        self.problems += [f"{uuid} has {len(found)} QEMUs" for uuid, found in processes.items() if len(found) > 1]
        for uuid, known in self.known.items():
            self._keeps_its_process(next(iter(processes.get(uuid, ())), None), known)

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
        elif known.disk != (provider, inode) and known.disks_to_come and inode is not None:
            known.disk, known.disks_to_come = (provider, inode), known.disks_to_come - 1
        elif known.disk != (provider, inode):
            self.problems.append(f"{known.name} has run with the disk {known.disk} and has {(provider, inode)} now")

    def _keeps_its_process(self, found: Qemu | None, known: Known) -> None:
        if not known.may_be <= {Desired.RUNNING, Desired.PAUSED} or found == known.process:
            return
        if known.process is None:
            known.process = found
        elif known.reboots_seen >= known.reboots:
            self.problems.append(f"{known.name} was to run on as {known.process} and is {found} now")
            known.process = found
        elif found is not None:
            known.process = found
            known.reboots_seen += 1

    def disagreements(self, world: World) -> list[str]:
        """Where the specs are not what clients were told."""
        found = []
        for uuid, known in self.known.items():
            spec = world.spec_of(uuid)
            is_there = GONE if spec is None else spec.desired
            if is_there not in known.may_be:
                found.append(f"{known.name} is asked to be {is_there}, clients were told {known.may_be}")
            if known.is_reboot_due and not known.reboots_seen and is_there is Desired.RUNNING:
                found.append(f"{known.name} was to be rebooted and runs on as {known.process}")
        strangers = {uuid for _, uuid in world.specs} - self.known.keys()
        return found + [f"nobody asked for {uuid}" for uuid in strangers]

    def learn(self, world: World) -> None:
        """Settle what was uncertain by what is there."""
        for uuid, known in list(self.known.items()):
            spec = world.spec_of(uuid)
            known.may_be = {GONE if spec is None else spec.desired}
            known.forget_reboots()
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
