"""What guests say of themselves, on its way from md_server's files into their statuses.

Guests are not believed: what they say is shown and decides nothing. Each look may be a write to etcd, so a guest that talks
without end is looked at less and less often, from every ``EVERY_SECONDS`` to every ``MOST_SECONDS``. The bell only wakes; the
file is what counts, so that a bell that nobody heard costs a minute, as the resync looks too. Called by the agent, the
reconciler and the builder; knows nothing of etcd.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from common.errors import EcomputeError
from common.logs import fields
from common.model import InstanceStatus, Ready
from common.reports import EVERY_SECONDS, SOCKET_NAME, GuestReport, ReportStore

logger = logging.getLogger(__name__)
MOST_SECONDS = 60.0  # as often as the resync looks anyway
AGAIN_SECONDS = 60.0  # after the socket could not be made; until then the resync sees what guests say
SOCKET_MODE = 0o620
_MOST_BYTES = 64  # of a datagram: a uuid has 36
_MOST_REMEMBERED = 1024  # instances; those that rang longest ago are forgotten from there on


def with_report(status: InstanceStatus, reports: ReportStore, uuid: UUID) -> InstanceStatus:
    """*status* with what the guest said last, which counts for the boot that the status knows of when it is first seen.

    While the report cannot be read, what was known stays.
    """
    try:
        report = reports.read(uuid)
    except EcomputeError as error:
        logger.warning("what a guest reported is not shown: %s", error, extra=fields(instance=uuid))
        return status
    if _is_same(status.ready, report):
        return status
    ready = Ready(report.at, report.message, report.host_keys, status.booted) if report else None
    return dataclasses.replace(status, ready=ready)


def remove_strays(reports: ReportStore, is_wanted: Callable[[UUID], bool]) -> None:
    """Remove the reports of instances that are gone: one may have come in the moment in which its guest was destroyed."""
    try:
        for uuid in reports.list():
            if not is_wanted(uuid):
                reports.remove(uuid)
    except EcomputeError as error:
        logger.warning("reports of guests that are gone are left: %s", error)


def _is_same(ready: Ready | None, report: GuestReport | None) -> bool:
    if ready is None or report is None:
        return ready is None and report is None
    return (ready.at, ready.message, ready.host_keys) == (report.at, report.message, report.host_keys)


@dataclass(frozen=True)
class _Look:
    """At what an instance said last: when it was or will be, and how long the next one is put off at least."""

    at: float
    pause: float
    boot: object


class ReportBell:
    """Hears of each report by a datagram with the instance's uuid, and has the instance looked at.

    Args:
        run_dir: where the socket is made.
        is_known: whether an instance is one of ours.
        add: have an instance looked at now.
        add_after: have it looked at after so many seconds.
        boot_of: tells one boot of an instance from another.
        clock: monotonic seconds.
    """

    def __init__(
        self, run_dir: Path, *, is_known: Callable[[UUID], bool], add: Callable[[UUID], None],
        add_after: Callable[[UUID, float], None], boot_of: Callable[[UUID], object] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._run_dir, self._is_known, self._add, self._add_after = run_dir, is_known, add, add_after
        self._boot_of, self._clock = boot_of, clock
        self._looks: dict[UUID, _Look] = {}  # the latest one last
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wake(self) -> None:
        """Have ``run`` look whether it is to stop."""
        os.eventfd_write(self._wake, 1)

    def run(self, stop: threading.Event) -> None:
        """Listen until *stop*. Who sets *stop* calls ``wake`` too."""
        while not stop.is_set():
            try:
                with _listening(self._run_dir) as bell:
                    self._listen(bell, stop)
            except OSError as error:
                where = self._run_dir / SOCKET_NAME
                logger.warning("what guests report is seen within a minute only: %s: %s", where, error.strerror or error)
                stop.wait(AGAIN_SECONDS)

    def _listen(self, bell: socket.socket, stop: threading.Event) -> None:
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not stop.is_set():
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self.rung(bell.recv(_MOST_BYTES))

    def rung(self, datagram: bytes) -> None:
        """Have the instance that *datagram* names looked at, after a pause that grows while it goes on."""
        with contextlib.suppress(ValueError):  # nobody but root and md-server can send other things
            uuid = UUID(datagram.decode("ascii"))
            if self._is_known(uuid):
                self._have_looked_at(uuid)

    def started(self, uuid: UUID) -> None:
        """The guest was started, or something else befell it: what it says next is seen at once."""
        self._looks.pop(uuid, None)

    def _have_looked_at(self, uuid: UUID) -> None:
        now, boot, last = self._clock(), self._boot_of(uuid), self._looks.get(uuid)
        if last is None or last.boot != boot or now - last.at >= MOST_SECONDS:
            self._note(uuid, _Look(now, EVERY_SECONDS, boot))
            self._add(uuid)
        elif last.at <= now:  # else that look will see it
            due = max(now, last.at + last.pause)
            self._note(uuid, _Look(due, min(2 * last.pause, MOST_SECONDS), boot))
            self._add_after(uuid, due - now)

    def _note(self, uuid: UUID, look: _Look) -> None:
        self._looks.pop(uuid, None)
        if len(self._looks) >= _MOST_REMEMBERED:
            self._looks.pop(next(iter(self._looks)), None)
        self._looks[uuid] = look


@contextlib.contextmanager
def _listening(run_dir: Path) -> Iterator[socket.socket]:
    """The socket, in place of one that a process before us left. For root, and the group that *run_dir* hands on, if it does:
    md-server's, where that is not root.
    """
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path, new = run_dir / SOCKET_NAME, run_dir / f"{SOCKET_NAME}.new"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as bell:
            new.unlink(missing_ok=True)
            bell.bind(f"/proc/self/fd/{directory}/{new.name}")  # the path itself may be longer than an address may be
            new.chmod(SOCKET_MODE)
            new.replace(path)  # so nobody finds none meanwhile, or one that is not for md-server yet
            yield bell
            path.unlink(missing_ok=True)
    finally:
        os.close(directory)
