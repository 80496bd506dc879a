"""Notices that somebody has changed the packet filter, and has ours put back: a flush lasts a second, not until the next look.

The kernel tells of each change by netlink. Many come together, and our own are among them, so that after the first there is a
pause, and then one call for all of them; where changes never end, the pauses grow. What the kernel does not tell (the older
iptables, a lost message) is seen at the latest after ``EVERY_SECONDS``, also while ecompute waits for etcd and compares no
instances. One thread, started by the agent.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable

from ecompute.nft import NETLINK_NETFILTER

logger = logging.getLogger(__name__)
NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1.0, 16.0
EVERY_SECONDS = 60.0
MOST_MESSAGES = 100_000  # read at a time; the rest makes for another look


class FirewallWatch:
    """Waits for changes of this network namespace's packet filter.

    Args:
        keep: puts back what is missing; told whether the kernel may have kept something from us. What it changes itself
            makes it called once more, and then it must have nothing to change.
    """

    def __init__(self, keep: Callable[[bool], None], *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._keep, self._pause_seconds = keep, pause_seconds
        self._wakeup, self._waking = socket.socketpair()
        self._changes: socket.socket | None = None
        with contextlib.suppress(OSError):  # a kernel without nftables, or not root: then by time alone
            self._changes = _subscribed()

    def wake(self) -> None:
        """Have ``run`` see that it is to stop."""
        with contextlib.suppress(OSError):  # it has ended
            self._waking.send(b"x")

    def run(self, stop: threading.Event) -> None:
        """Have ``keep`` called after changes until *stop*; who sets it calls ``wake`` too."""
        pause, kept_at = self._pause_seconds, 0.0
        watched = [one for one in (self._wakeup, self._changes) if one]
        try:
            while not stop.is_set():
                told = select.select(watched, [], [], EVERY_SECONDS)[0]
                is_busy = time.monotonic() - kept_at < pause
                pause = min(2 * pause, MOST_PAUSE_SECONDS) if is_busy else self._pause_seconds
                if told and stop.wait(pause):
                    break
                self._drain()
                self._call(is_thorough=not told)
                kept_at = time.monotonic()
        finally:
            for one in (self._wakeup, self._waking, self._changes):
                if one:
                    one.close()

    def _drain(self) -> None:
        """Read what has come until now, so that only later changes count: those before are seen by the look that follows."""
        if self._changes is None:
            return
        for _ in range(MOST_MESSAGES):
            try:
                self._changes.recv(65536)
            except BlockingIOError:
                return
            except OSError:  # there were more than it holds; it says so once
                continue

    def _call(self, *, is_thorough: bool) -> None:
        try:
            self._keep(is_thorough)
        except Exception:  # the thread must outlive a bug
            logger.exception("the packet filter could not be looked at; this is a bug, please report it")


def _subscribed() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
    try:
        made.bind((0, 1 << (NFNLGRP_NFTABLES - 1)))
    except OSError:
        made.close()
        raise
    return made
