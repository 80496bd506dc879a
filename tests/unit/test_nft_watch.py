"""When changes of the packet filter are looked at: once for many, ever less where they never end, by time where nobody tells."""

from __future__ import annotations

import socket
import threading

import pytest

from ecompute import nft_watch
from ecompute.nft_watch import FirewallWatch


class Stop(threading.Event):
    """Remembers how long each pause was to be, and makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        return self.is_set()


def test_where_changes_never_end_the_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    here, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.setblocking(False)
    monkeypatch.setattr(nft_watch, "_subscribed", lambda: here)
    stop, looks = Stop(), list[bool]()

    def keep(is_thorough: bool) -> None:
        looks.append(is_thorough)
        if len(looks) == 7:
            stop.set()
        kernel.send(b"changed")
        kernel.send(b"and changed")

    kernel.send(b"changed")
    FirewallWatch(keep).run(stop)
    assert stop.pauses == [1, 2, 4, 8, 16, 16, 16]
    assert looks == [False] * 7
    kernel.close()


def test_where_the_kernel_does_not_tell_it_is_looked_by_time_and_a_bug_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> socket.socket:
        raise PermissionError

    monkeypatch.setattr(nft_watch, "_subscribed", refuses)
    monkeypatch.setattr(nft_watch, "EVERY_SECONDS", 0.001)
    stop, looks = Stop(), list[bool]()

    def keep(is_thorough: bool) -> None:
        looks.append(is_thorough)
        if len(looks) == 3:
            stop.set()
        raise ValueError("a bug")

    FirewallWatch(keep).run(stop)
    assert looks == [True] * 3


def test_who_wakes_it_to_stop_waits_for_nothing() -> None:
    stop, looks = threading.Event(), list[bool]()
    watch = FirewallWatch(looks.append)
    thread = threading.Thread(target=watch.run, args=(stop,))
    thread.start()
    stop.set()
    watch.wake()
    thread.join(5)
    assert not thread.is_alive()
    watch.wake()
