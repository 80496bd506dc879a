"""The clients of a random test: eschedule processes that ask for things beside the faults, may be lost in the middle, and of
which it is learnt later what they were told. ``tests/support/chaos.py`` has the faults.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from common.model import Desired, ImageRef
from eschedule.request import Request
from tests.support.cluster import QUERY, Cluster
from tests.support.ledger import GONE, Ledger

CLIENTS_AT_ONCE = 4
KILLED, UNKNOWN_OUTCOME = -9, 4
ONLY_ON_ONE_HOST = "/var/lib/etcd-compute/only-here.raw"


@dataclass
class Client:
    """An eschedule that was started, and what it asked for."""

    process: subprocess.Popen[bytes]
    verb: str
    wanted: Desired | None
    before: dict[UUID, set[Desired | None]]  # what the instances may have been asked for until now
    log: Path
    arguments: tuple[str, ...]
    is_killed: bool = False


@dataclass
class Slot:
    """One instance, or a set of them, as its clients know it."""

    name: str
    uuids: tuple[UUID, ...]
    request: tuple[str, ...]  # the command that created it
    client: Client | None = field(default=None)


class RandomClients:
    """Starts them and keeps *ledger* up to date with what they were told; what no client may be told goes to ``problems``.

    Args:
        note: told of each action, for people.
    """

    def __init__(self, cluster: Cluster, counts: Counter[str], note: Callable[[str], None]) -> None:
        self.cluster, self.counts, self._note = cluster, counts, note
        self.directory = cluster.directory / "clients"
        self._number = 0
        self.begin()

    def begin(self) -> None:
        """A new run: nothing is there yet."""
        self.ledger = Ledger()
        self.slots: list[Slot] = []
        self.problems: list[str] = []

    def create(self, *, count: int, group: int, policy: str, image: int, lost_after: float) -> None:
        name = f"g{self._next()}"
        base = uuid4()
        url = ONLY_ON_ONE_HOST if image == 0 else str(self.cluster.image)
        request = [QUERY, url, "--name", name, "--no-wait"]
        if url == ONLY_ON_ONE_HOST:
            self.counts["image on one host only"] += 1
        uuids: tuple[UUID, ...] = (base,)
        if count == 1:
            request += ["--uuid", str(base)]
        else:
            request += ["--request-id", name, "--count", str(count)]
            asked = Request(QUERY, {}, ImageRef(url), request_id=name, count=count)
            of_the_set = asked.instance_uuid(self.cluster.prefix, uuid4)
            uuids = tuple(member.uuid for member in asked.members(of_the_set) if member.uuid)
        if group:
            request += ["--group", f"{policy}-{group}", "--policy", policy]
        slot = Slot(name, uuids, tuple(request))
        self.slots.append(slot)
        self._ask(slot, "create" if count == 1 else "create --count", slot.request, Desired.RUNNING, lost_after)

    def repeat(self, which: int, lost_after: float) -> None:
        """The same request once more, as whoever got no answer does."""
        slot = self._slot(which)
        if slot and all(GONE in known and len(known) > 1 for known in self._may_be(slot).values()):
            self._ask(slot, "create again", slot.request, Desired.RUNNING, lost_after)

    def change(self, verb: str, which: int, lost_after: float) -> None:
        slot = self._slot(which)
        if slot is None or len(slot.uuids) > 1 or self._may_be(slot)[slot.uuids[0]] == {GONE}:
            return  # a set is spoken of as a whole until it is known to be there
        wanted = {"destroy": GONE, "stop": Desired.STOPPED}.get(verb, Desired.RUNNING)
        if verb.startswith("reboot"):
            self.ledger.asked_to_reboot(slot.uuids[0])
        self._ask(slot, verb, (*verb.split(), slot.name, "--no-wait"), wanted, lost_after)

    def _ask(
        self, slot: Slot, verb: str, arguments: tuple[str, ...], wanted: Desired | None, lost_after: float
    ) -> None:  # fmt: skip
        """Start a client; with *lost_after* above 0 it is killed so many seconds later, unless it is over by then."""
        self._note(f"{verb} {slot.name} {f'lost after {lost_after:.2f} s' if lost_after else ''}")
        self.counts[verb] += 1
        waiting = [other for other in self.slots if other.client]
        if len(waiting) >= CLIENTS_AT_ONCE:
            self._reap(waiting[0], kill=False)
        log = self.directory / f"{self._next()}-{verb.replace(' ', '-')}.log"
        process = self.cluster.spawn_eschedule(*arguments, log=log)
        before = {uuid: set(known) for uuid, known in self._may_be(slot).items()}
        for uuid in slot.uuids:
            self.ledger.asked(uuid, slot.name, wanted, is_certain=False)
        slot.client = Client(process, verb, wanted, before, log, arguments)
        if lost_after:
            self.counts["client lost"] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(lost_after)
            slot.client.is_killed = process.poll() is None
            self._reap(slot, kill=True)

    def _may_be(self, slot: Slot) -> dict[UUID, set[Desired | None]]:
        return {uuid: self.ledger.known[uuid].may_be if uuid in self.ledger.known else {GONE} for uuid in slot.uuids}

    def _slot(self, which: int) -> Slot | None:
        """One that no client speaks of any more."""
        if not self.slots:
            return None
        self._reap(self.slots[which % len(self.slots)], kill=False)
        return self.slots[which % len(self.slots)]

    def _reap(self, slot: Slot, *, kill: bool) -> None:
        client, slot.client = slot.client, None
        if client is None:
            return
        if kill:
            client.process.kill()
        try:
            code = client.process.wait(60)
        except subprocess.TimeoutExpired:
            client.process.kill()
            code = client.process.wait(10)
            self.problems.append(f"{client.arguments} did not come to an end\n{client.log.read_text()}")
        self._learn(slot, client, code)

    def _learn(self, slot: Slot, client: Client, code: int) -> None:
        """What the exit code of *client* says of its instances."""
        if code not in (0, 1, 3, KILLED, UNKNOWN_OUTCOME, 5):
            self.problems.append(f"{client.arguments} ended with {code}\n{client.log.read_text()}")
        for uuid in slot.uuids:
            known = self.ledger.known[uuid]
            if code == 0:
                self.ledger.asked(uuid, slot.name, client.wanted)
                if client.verb.startswith("reboot") and known.process and client.before[uuid] == {Desired.RUNNING}:
                    self.ledger.reboot_is_certain(uuid)
            elif code not in (KILLED, UNKNOWN_OUTCOME):
                known.may_be = client.before[uuid]
        if code == 0 and len(slot.uuids) > 1:
            members = [Slot(f"{slot.name}-{number}", (uuid,), ()) for number, uuid in enumerate(slot.uuids, 1)]
            self.slots[self.slots.index(slot) : self.slots.index(slot) + 1] = members

    def reap_all(self, *, kill: bool) -> None:
        for slot in list(self.slots):
            self._reap(slot, kill=kill)

    def said(self) -> str:
        """The last words of the last clients."""
        logs = sorted(self.directory.glob("*.log"), key=lambda log: int(log.name.partition("-")[0]))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs[-20:])

    def _next(self) -> int:
        self._number += 1
        return self._number
