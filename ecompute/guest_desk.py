"""Answers the letters by which ``eschedule`` reaches a guest on this host: its serial log, its screen, a command in it.

A guest may take its time, and who follows a log waits until it grows. So each such letter has a thread of its own, of which
there are a bounded number, and the mailbox goes on. Remembers nothing: each letter says all that is needed to answer it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

from common.errors import EcomputeError, HypervisorRejected, Permanent, Transient
from common.findings import Letter
from common.guest_letters import (
    EXEC,
    EXEC_RESULT,
    KINDS,
    LOG,
    MOST_DATA_BYTES,
    MOST_WAIT_SECONDS,
    SCREENSHOT,
    VNC,
    GuestAnswer,
    encoded,
)
from common.host_letters import USAGE
from common.retry import Deadline
from ecompute import guest_agent, serial_log
from ecompute.file_watch import FileWatch
from ecompute.hypervisor import Domain, Hypervisor, Picture
from ecompute.picture import as_png

MOST_AT_ONCE = 24
MOST_WAITING = 16  # who follow a log: the others answer those that want something now


_NO_SCREEN = (
    "the guest has no screen: set libvirt.graphics to vnc in compute.yaml there, restart ecompute, then have the guest stopped "
    "and started"
)


class GuestDesk:
    """Reaches the guests of one host.

    Args:
        log_path: where a guest's serial log is, if it has one.
        stop: ends all waiting; whoever sets it calls ``wake`` as well.
    """

    def __init__(self, hypervisor: Hypervisor, log_path: Callable[[UUID], Path], stop: threading.Event) -> None:
        self._hypervisor, self._log_path, self._stop = hypervisor, log_path, stop
        self._busy = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._kinds = {
            LOG: self._log, SCREENSHOT: self._screenshot, VNC: self._vnc, EXEC: self._exec, EXEC_RESULT: self._exec_result,
        }  # fmt: skip

    def wake(self) -> None:
        """Have all that wait look whether they are to stop."""
        os.eventfd_write(self._bell, 1)

    def hand_on(self, letter: Letter, finish: Callable[[], None]) -> bool:
        """Have *finish* answer *letter*, which is about guests, in a thread of its own; False where it is about none.

        Raises:
            Transient: too many are being answered.
        """
        if letter.kind not in KINDS and letter.kind != USAGE:  # which asks libvirt, too, for all of them at once
            return False
        if not self._busy.acquire(blocking=False):
            raise Transient(f"{MOST_AT_ONCE} letters about guests are being answered already")

        def run() -> None:
            try:
                finish()
            finally:
                self._busy.release()

        try:
            threading.Thread(target=run, name=f"letter {letter.kind}", daemon=True).start()
        except RuntimeError as error:  # no more threads
            self._busy.release()
            raise Transient(f"a letter about a guest has to wait: {error}") from error
        return True

    def answer(self, letter: Letter) -> str | None:
        """The answer to *letter*, as text that fits; None where it is none of ours.

        Raises:
            ValueError: the letter makes no sense.
        """
        if letter.kind not in KINDS:
            return None
        uuid = UUID(_one(letter, "instance"))
        try:
            return self._kinds[letter.kind](uuid, letter).to_json()
        except EcomputeError as error:
            reason = error.reason if isinstance(error, Permanent) else type(error).__name__
            return GuestAnswer(problem=str(error)[:2000], reason=reason, is_transient=isinstance(error, Transient)).to_json()

    # -- the serial log ----------------------------------------------------------------------------------------------------

    def _log(self, uuid: UUID, letter: Letter) -> GuestAnswer:
        path, deadline = self._log_path(uuid), Deadline(_seconds(letter))
        if tail := _one(letter, "tail", ""):
            return _answered(uuid, serial_log.read_tail(path, int(tail[:9]), MOST_DATA_BYTES))
        position = _one(letter, "position", "")
        with self._follower() as may_wait:
            while True:
                watch = FileWatch(path)
                try:
                    piece = serial_log.read_from(path, position, MOST_DATA_BYTES)
                    is_old = piece is None or not (piece.data or piece.is_gap)
                    if not (is_old and may_wait) or deadline.expired or self._stop.is_set():
                        return _answered(uuid, piece)
                    watch.wait(deadline.remaining(), self._bell)
                finally:
                    watch.close()

    @contextlib.contextmanager
    def _follower(self) -> Iterator[bool]:
        """Whether one more may wait here; who may not gets what there is, and asks again."""
        may_wait = self._waiting.acquire(blocking=False)
        try:
            yield may_wait
        finally:
            if may_wait:
                self._waiting.release()

    # -- the screen --------------------------------------------------------------------------------------------------------

    def _screenshot(self, uuid: UUID, _letter: Letter) -> GuestAnswer:
        self._running(uuid)
        png = as_png(self._picture(uuid))
        if len(png) > MOST_DATA_BYTES:
            raise Permanent(
                f"the picture has {len(png) >> 10} KiB, and a letter carries {MOST_DATA_BYTES >> 10} KiB; look at the screen "
                "itself by eschedule vnc",
                "TooLarge",
            )
        return GuestAnswer(data_base64=encoded(png))

    def _picture(self, uuid: UUID) -> Picture:
        try:
            return self._hypervisor.screenshot(uuid)
        except HypervisorRejected:
            if not self._hypervisor.screen_socket(uuid):
                raise Permanent(_NO_SCREEN, "NoScreen") from None
            raise

    def _vnc(self, uuid: UUID, _letter: Letter) -> GuestAnswer:
        self._running(uuid)
        path = self._hypervisor.screen_socket(uuid)
        if not path:
            raise Permanent(_NO_SCREEN, "NoScreen")
        return GuestAnswer(path=path)

    # -- a command ---------------------------------------------------------------------------------------------------------

    def _exec(self, uuid: UUID, letter: Letter) -> GuestAnswer:
        self._running(uuid)
        command = letter.arguments.get("command", ())
        if not command:
            raise ValueError("it names no command")
        return GuestAnswer(process=guest_agent.begin(self._hypervisor, uuid, command))

    def _exec_result(self, uuid: UUID, letter: Letter) -> GuestAnswer:
        process = int(_one(letter, "process")[:19])
        found = guest_agent.outcome(
            self._hypervisor, uuid, process, deadline=Deadline(_seconds(letter)), pause=self._stop.wait,
            most_bytes=MOST_DATA_BYTES,
        )  # fmt: skip
        return GuestAnswer(
            process=process, exit_code=found.exit_code, data_base64=encoded(found.output), errors_base64=encoded(found.errors),
            is_cut=found.is_cut,
        )  # fmt: skip

    def _running(self, uuid: UUID) -> Domain:
        """Raises: Permanent: the guest does not run, or it is none of ours."""
        domain = self._hypervisor.get(uuid)
        if domain is None or domain.stamp is None:
            raise Permanent("there is no such guest on this host; look: eschedule show", "NotHere")
        if domain.has_saved_memory:
            raise Permanent("the guest is suspended; resume it: eschedule resume", "NotRunning")
        if not domain.is_active:
            raise Permanent("the guest does not run; start it: eschedule start", "NotRunning")
        return domain


def _answered(uuid: UUID, piece: serial_log.Piece | None) -> GuestAnswer:
    if piece is None:
        raise Permanent(f"there is no serial log of {uuid}: it was not started on this host yet", "NoLog")
    return GuestAnswer(
        data_base64=encoded(piece.data), position=piece.position, has_more=piece.has_more, is_gap=piece.is_gap
    )  # fmt: skip


def _one(letter: Letter, name: str, default: str | None = None) -> str:
    """The only value of the argument *name*.

    Raises:
        ValueError: there is none, and no *default*; or several.
    """
    found = letter.arguments.get(name, () if default is None else (default,))
    if len(found) != 1:
        raise ValueError(f"it names {len(found)} values of {name}")
    return found[0]


def _seconds(letter: Letter) -> float:
    """How long the letter may wait.

    Raises:
        ValueError: it says nothing that is a number of seconds.
    """
    seconds = float(_one(letter, "wait_seconds", "0"))
    if not 0 <= seconds <= MOST_WAIT_SECONDS:
        raise ValueError(f"it asks for {seconds:g} s")
    return seconds
