"""This host leaves the cluster because it was told to, by a letter of ``eschedule host remove``.

The letter is answered first, by a refusal where guests are here; once its sender has the answer, a note is left on the disk
(``leave_note``), and ecompute begins anew. A process that finds that note takes the host out and ends with exit code 0; killed
anywhere, the next one goes on. One that finds it done ends with exit code 5, which systemd does not repeat.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from common.config import ComputeConfig
from common.errors import Conflict, OwnershipError, Transient
from common.findings import Letter, Report
from common.keys import Keys
from common.retry import Backoff
from common.service_notify import ServiceNotifier
from common.store import Store
from common.text import shortened
from ecompute.hypervisor import Hypervisor
from ecompute.leave import StillInUse, leave, refuse_with_instances
from ecompute.leave_note import LeaveNote, path_of, read_note, remove_note, write_note

logger = logging.getLogger(__name__)
KIND = "leave"
TRY_SECONDS = 120.0  # of one try, with all deadlines of etcd, Placement, libvirt and md-server, and the pause after it


class Leaver:
    """Answers the letter that asks this host to leave.

    Args:
        tell: called once the sender has the answer and the note is written.
    """

    def __init__(
        self, hypervisor: Hypervisor, store: Store, keys: Keys, *, provider: UUID, host: str, state_dir: Path,
        now: Callable[[], str], tell: Callable[[], None],
    ) -> None:  # fmt: skip
        self._hypervisor, self._store, self._keys, self._provider, self._host = hypervisor, store, keys, provider, host
        self._state_dir, self._now, self._tell = state_dir, now, tell
        self._agreed: Letter | None = None

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*; None where it is of another kind.

        Raises:
            EcomputeError: whether guests are here cannot be told now.
        """
        if letter.kind != KIND:
            return None
        try:
            refuse_with_instances(self._hypervisor, self._store, self._keys, self._provider)
        except StillInUse as error:
            return Report(self._provider, self._host, problems=(str(error),)).to_json()
        self._agreed = letter
        return Report(self._provider, self._host, fixed=(f"{self._host} leaves the cluster",)).to_json()

    def answered(self, letter: Letter) -> None:
        """The sender has the answer to *letter*: do as it says.

        Raises:
            EcomputeError: the note cannot be written; the host goes on as if nothing had been asked.
        """
        if letter is not self._agreed:
            return
        by = shortened("".join(letter.arguments.get("by", ())) or "somebody", 100)
        write_note(self._state_dir, LeaveNote(by, self._now()))
        logger.warning("this host was told by %s to leave the cluster", by)
        self._tell()


def has_left(config: ComputeConfig, stop: threading.Event, service: ServiceNotifier) -> bool:
    """Whether this host was told to leave and now has; then there is nothing to serve.

    Raises:
        OwnershipError: it had left already; or another ecompute is at it, or another machine has the provider.
        Transient: *stop* was set while a service was away; the next start goes on.
    """
    state_dir = config.paths.state_dir
    note = read_note(state_dir)
    if note is None:
        return False
    if note.is_done:
        raise OwnershipError(
            f"this host was removed from the cluster by {note.by} at {note.at}, and stays out: ecompute join brings it back "
            f"(its note is {path_of(state_dir)})"
        )
    backoff = Backoff(0.5, 10.0)
    service.status(f"leaving the cluster, as {note.by} asked for")
    while True:
        service.allow(TRY_SECONDS)
        try:
            leave(config)
        except (Conflict, StillInUse) as error:
            logger.warning("this host cannot leave the cluster as %s asked, and goes on: %s", note.by, error)
            remove_note(state_dir)
            return False
        except Transient as error:
            logger.warning("leaving the cluster waits: %s", error)
            if stop.wait(backoff.next()):
                raise
            continue
        write_note(state_dir, LeaveNote(note.by, note.at, is_done=True))
        return True
