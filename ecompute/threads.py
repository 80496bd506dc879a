"""A thread of the daemon outlives its bugs: what ends it unexpectedly is logged, and it begins anew after a pause.

A heartbeat or a watch that ended silently would leave a process that looks alive and does nothing. Called by the agent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)
PAUSE_SECONDS = 5.0


def begin(
    name: str, run: Callable[[threading.Event], None], stop: threading.Event, *, pause_seconds: float = PAUSE_SECONDS
) -> threading.Thread:
    """A started thread that calls *run* with *stop* until it returns, over everything that it raises."""
    thread = threading.Thread(target=_keep, args=(run, stop, pause_seconds), name=name, daemon=True)
    thread.start()
    return thread


def _keep(run: Callable[[threading.Event], None], stop: threading.Event, pause_seconds: float) -> None:
    while not stop.is_set():
        try:
            run(stop)
        except Exception:
            name = threading.current_thread().name
            logger.exception("%s ended; this is a bug, please report it; beginning anew in %g s", name, pause_seconds)
            stop.wait(pause_seconds)
        else:
            return
