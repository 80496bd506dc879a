"""The threads that take instances from the work queue; the one home of retries.

``Transient`` comes back after the key's backoff, everything else is a bug: it is logged with its traceback, backed off,
and the other guests are served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from uuid import UUID

from common.errors import EcomputeError, Transient
from common.logs import fields, log_context
from common.retry import Deadline
from ecompute.workqueue import WorkQueue

logger = logging.getLogger(__name__)


class Workers:
    """*count* threads that call *reconcile* with what the queue hands out.

    Args:
        is_outage: whether an error tells of a service that is away, which is said elsewhere, once for all instances.
        passed: told how each pass ended ("done", "retry", "error", "bug"), and the name of the error's class.
    """

    def __init__(
        self, queue: WorkQueue[UUID], reconcile: Callable[[UUID], None], count: int, *,
        is_outage: Callable[[EcomputeError], bool] = lambda _: False, passed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self._queue, self._reconcile, self._is_outage, self._passed = queue, reconcile, is_outage, passed
        self._threads = [threading.Thread(target=self._run, name=f"worker-{i}", daemon=True) for i in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def are_alive(self) -> bool:
        """Whether every thread still runs, however long it has had one instance in hand."""
        return all(thread.is_alive() for thread in self._threads)

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the steps in hand are finished; False when some are not after *timeout_seconds* in all."""
        deadline = Deadline(timeout_seconds)
        for thread in self._threads:
            thread.join(deadline.remaining())
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (uuid := self._queue.get()) is not None:
            try:
                with log_context(instance=str(uuid)):
                    self._work(uuid)
            finally:
                self._queue.done(uuid)

    def _work(self, uuid: UUID) -> None:
        try:
            self._reconcile(uuid)
        except Transient as error:
            delay = self._queue.add_failed(uuid, at_least_seconds=error.retry_after or 0.0)
            self._passed("retry", type(error).__name__)
            logger.log(
                self._level_of(uuid, error),
                "%s: trying again",
                error,
                extra=fields(failures=self._queue.failures(uuid), delay_seconds=round(delay, 1)),
            )
        except EcomputeError as error:
            delay = self._queue.add_failed(uuid)
            self._passed("error", type(error).__name__)
            logger.error("%s", error, extra=fields(delay_seconds=round(delay, 1)))
        except Exception as error:  # a bug must not take the other guests' service down with it
            delay = self._queue.add_failed(uuid, at_least_seconds=5.0)
            self._passed("bug", type(error).__name__)
            logger.exception("this is a bug, please report it", extra=fields(delay_seconds=round(delay, 1)))
        else:
            self._queue.forget(uuid)
            self._passed("done", "")

    def _level_of(self, uuid: UUID, error: Transient) -> int:
        if self._is_outage(error):
            return logging.DEBUG  # else an hour without etcd would be a line for each guest and minute
        return logging.WARNING if self._queue.failures(uuid) > 1 else logging.INFO
