"""A call that may hang, with a bound: for what libvirt waits for without one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from common.errors import HypervisorUnavailable

T = TypeVar("T")


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """What *call* answers or raises, in a thread of its own, which is left to itself where it takes longer.

    Raises:
        HypervisorUnavailable: it takes longer than *seconds*; whether it is done is unknown.
    """
    answers: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_tried(call)), name="bounded", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty as error:
        raise HypervisorUnavailable(f"{what}: no answer within {seconds:g} s; it may come yet") from error
    return answer()


def _tried(call: Callable[[], T]) -> Callable[[], T]:
    """What gives the end of *call* to whoever asks for it."""
    try:
        value = call()
    except Exception as error:  # noqa: BLE001 - raised again by who waits for it
        failure = error

        def fail() -> T:
            raise failure

        return fail
    return lambda: value
