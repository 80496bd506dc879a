"""SIGTERM and SIGINT end a program, whichever of its threads the kernel hands them to.

Python runs a handler of signals in the main thread, and only once that wakes: where the kernel gives the signal to another
thread, as it does while the main one is just being continued after a stop, a main thread that waits without a bound never hears
of it. And a handler may run in the middle of anything, such as the lock of the very event that it means to set. So the handler
does nothing; the number that the interpreter writes to a descriptor at once, in whatever thread, wakes a thread that is there
for it (``signal.set_wakeup_fd`` of the standard library). Called by ecompute and md-server as they start.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT)


def upon_end(act: Callable[[], object]) -> None:
    """Call *act* in a thread of its own for each SIGTERM and SIGINT from here on; for the main thread, once in a process."""
    heard, told = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(told, False)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard, act), name="signals", daemon=True).start()


def _listen(heard: int, act: Callable[[], object]) -> None:
    while numbers := os.read(heard, 64):
        if set(numbers) & set(ENDING):
            act()
