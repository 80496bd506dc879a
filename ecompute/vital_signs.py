"""What ecompute tells the service manager: up, waiting, stopping, and alive as long as what must not stand still goes on.

Called by the agent. ``alive`` belongs into the heartbeat's loop and the waits before it, so that a process that hangs, or has
lost its workers, is ended and started again; guests do not notice. How long a step takes is no sign of death: an image may be
hours on its way. Decides nothing else, and does nothing where no manager is.
"""

from __future__ import annotations

import threading

from common.config import ComputeConfig
from common.model import HostState
from common.service_notify import ServiceNotifier
from ecompute.workers import Workers

PROBE_SECONDS = 30.0  # what the proof of KVM takes beside its own deadline, at most
THREAD_SECONDS = 60.0  # all threads but the workers, at the end


class VitalSigns:
    """The words of one process. Safe to use from any thread.

    Args:
        service: the service manager.
        stop: from then on workers may end.
    """

    def __init__(self, service: ServiceNotifier, config: ComputeConfig, stop: threading.Event) -> None:
        self._service, self._config, self._stop = service, config, stop
        self._workers: Workers | None = None

    def starting(self) -> None:
        """Have nobody take the longest silence of a healthy process for a hang."""
        self._service.allow(longest_silence(self._config))

    def waiting(self, service: str, problem: str) -> None:
        """*service* is away. That is no failed start: what guests need of this host goes on, and the rest when it is there."""
        self._service.ready(f"waiting for {service}: {problem}")
        self.alive()

    def up(self, message: str) -> None:
        """The host key is ours."""
        self._service.ready(message)

    def watch(self, workers: Workers) -> None:
        """From now on, without one of *workers*, this process counts as dead."""
        self._workers = workers

    def state(self, state: HostState, message: str) -> None:
        self._service.status(f"{state.value}: {message}" if message else state.value)

    def alive(self) -> None:
        if self._workers is None or self._workers.are_alive or self._stop.is_set():
            self._service.alive()

    def stopping(self) -> None:
        """It takes what the steps in hand, the heartbeat's last words and the other threads need."""
        config = self._config
        self._service.stopping(config.builder.shutdown_deadline_seconds + 3 * config.etcd.deadline_seconds + THREAD_SECONDS)


def longest_silence(config: ComputeConfig) -> float:
    """Seconds that may pass between two signs of life while all is well: the proof of KVM, or a turn of the heartbeat."""
    turn = config.etcd.heartbeat_every_seconds + 6 * config.etcd.deadline_seconds
    return max(turn, config.libvirt.kvm_probe_deadline_seconds + PROBE_SECONDS)
