"""Keeps an md-server running beside ecompute, as a process of its own that outlives it: nothing stops the guests' metadata.

One that runs already (ecompute was killed or upgraded) is adopted, unless it is of another version or serves other settings;
then it is replaced. One that ends is started again. The agent runs ``MetadataServiceSupervisor.run`` in a thread where
``metadata.mode`` is ``managed``. Knows md-server only as a command, by its lock file and by HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common.config import ComputeConfig, MetadataConfig
from common.errors import EcomputeError, Transient
from common.lockfile import Holder, LockFile
from common.logs import fields, is_journal
from common.metadata import LOCK_NAME, SERVER_NAME, ServiceNote, normal_address
from common.retry import Backoff

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # how soon a stop is noticed; the end of md-server is noticed at once
SETTLED_SECONDS = 60.0  # one that ran so long is started again without delay
STOP_SECONDS = 5.0
REMOVE_SECONDS = 30.0
HEALTH_SECONDS = 2.0
MOST_LOG_BYTES = 1024 * 1024


class MetadataServiceSupervisor:
    """Starts, adopts and restarts the host's md-server.

    Args:
        config: where it listens, and where its files are.
        backoff: the pauses between restarts.
        clock: monotonic seconds.
    """

    def __init__(
        self, config: ComputeConfig, *, backoff: Backoff | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config, self._clock = config, clock
        self._backoff = backoff or Backoff(0.1, 30)
        self._lock = LockFile(config.paths.run_dir / LOCK_NAME)
        self._log_path = config.paths.run_dir / "md-server.log"
        self._retired = threading.Event()
        self._start_lock = threading.Lock()  # nothing is started once retired
        self._child: subprocess.Popen[bytes] | None = None
        address = normal_address(config.metadata.address)
        self.wanted = ServiceNote(
            version=importlib.metadata.version("etcd-compute"),
            listen=f"{address}:{config.metadata.port}",
            bridge=config.metadata.bridge,
            directory=str(config.paths.state_dir.absolute() / "metadata"),
            ipv6=config.metadata.ipv6,
        )

    def run(self, stop_event: threading.Event) -> None:
        """Keep an md-server running until *stop_event* is set, within ``TICK_SECONDS``; then leave it running."""
        while not self._is_over(stop_event):
            began = self._clock()
            try:
                ended = self._serve(stop_event)
            except (EcomputeError, OSError) as error:
                ended = f"md-server could not be looked after: {error}"
            if self._is_over(stop_event):
                return
            if self._clock() - began >= SETTLED_SECONDS:
                self._backoff.reset()
            pause = self._backoff.next()
            log.warning(ended, extra=fields(again_in_seconds=round(pause, 1)))
            stop_event.wait(pause)

    def is_healthy(self) -> bool:
        """Whether md-server answers at its address."""
        return not service_problem(self._config.metadata)

    def stop_service(self, *, remove_address: bool = False) -> None:
        """End md-server and do not start it again: for when this host serves guests no longer.

        Args:
            remove_address: take the metadata address from the bridge too.

        Raises:
            EcomputeError: it could not be ended, or the address not be removed.
        """
        with self._start_lock:
            self._retired.set()
        holder = self._lock.holder()
        if holder is not None and holder.pid:
            self._end(holder.pid)
        elif self._child is not None and self._child.poll() is None:  # started, and not yet at its lock
            self._end(self._child.pid)
        self._reap()
        if remove_address:
            self._remove_address(self.wanted.listen, self.wanted.bridge)

    def _command(self, listen: str, bridge: str, *more: str) -> list[str]:
        source = self._config.source
        return [
            # -P: whatever lies in the working directory is not imported.
            sys.executable, "-P", "-m", "md_server.main",
            *(("--config", str(source.absolute())) if source else ()),
            "--state-dir", str(self._config.paths.state_dir.absolute()),
            "--run-dir", str(self._config.paths.run_dir.absolute()),
            "--listen", listen, "--bridge", bridge, *more,
        ]  # fmt: skip

    def _is_over(self, stop_event: threading.Event) -> bool:
        return stop_event.is_set() or self._retired.is_set()

    def _serve(self, stop_event: threading.Event) -> str:
        """Adopt or start one md-server and stay with it; how it ended, once it has."""
        holder = self._lock.holder()
        if holder is not None and dict(holder.note) != self.wanted.as_note() and holder.pid:
            self._end_former(holder)
            holder = None
        if holder is None:
            return self._start_and_watch(stop_event)
        if not holder.pid:
            return "md-server is just starting"
        log.info("md-server found running", extra=fields(pid=holder.pid))
        self._watch(holder.pid, stop_event)
        return "md-server, which was running already, has ended"

    def _end_former(self, holder: Holder) -> None:
        log.info("md-server of another version or configuration found; replacing it", extra=fields(pid=holder.pid))
        self._end(holder.pid)
        self._reap()
        listen, bridge = str(holder.note.get("listen", "")), str(holder.note.get("bridge", ""))
        serves_ipv6 = holder.note.get("ipv6", "off") != "off"
        is_elsewhere = (listen, bridge) != (self.wanted.listen, self.wanted.bridge)
        if listen and bridge and (is_elsewhere or (serves_ipv6 and self.wanted.ipv6 == "off")):
            self._remove_address(listen, bridge)  # else it is in the way of the new one on another bridge

    def _start_and_watch(self, stop_event: threading.Event) -> str:
        with self._start_lock, _output(self._log_path) as output:
            if self._retired.is_set():
                return ""
            self._child = subprocess.Popen(
                self._command(self.wanted.listen, self.wanted.bridge),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True,
            )  # fmt: skip
        log.info("md-server started", extra=fields(pid=self._child.pid, listen=self.wanted.listen))
        self._watch(self._child.pid, stop_event)
        if self._is_over(stop_event):
            return ""
        code = self._reap()
        return f"md-server ended with exit code {code}: {_last_line(self._log_path)}"

    def _watch(self, pid: int, stop_event: threading.Event) -> None:
        """Return when the process *pid* has ended, or when it is over."""
        with _process(pid) as descriptor:
            while descriptor is not None and not self._is_over(stop_event):
                if _has_ended(descriptor, TICK_SECONDS):
                    return

    def _end(self, pid: int) -> None:
        with _process(pid) as descriptor:
            if descriptor is None:
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
                if _has_ended(descriptor, STOP_SECONDS):
                    return
        raise Transient(f"md-server (process {pid}) did not end within {2 * STOP_SECONDS:.0f} s, not even by SIGKILL")

    def _reap(self) -> int | None:
        """The exit code of our child, None where there is none."""
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(STOP_SECONDS)
        return None

    def _remove_address(self, listen: str, bridge: str) -> None:
        command = self._command(listen, bridge, "--remove-address")
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, cwd="/", timeout=REMOVE_SECONDS)
        except subprocess.CalledProcessError as error:
            raise EcomputeError(error.stderr.decode(errors="replace").strip()) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EcomputeError(f"md-server --remove-address: {error}") from error


def service_problem(config: MetadataConfig) -> str:
    """Why guests get no metadata, in one line; "" where md-server answers at its address."""
    where = f"{config.address}:{config.port}"
    connection = http.client.HTTPConnection(config.address, config.port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        if answer.headers.get("Server") != SERVER_NAME:
            return f"another server answers at {where}: is {config.bridge} up, and the address on it?"
    except (OSError, http.client.HTTPException) as error:
        return f"md-server does not answer at {where} ({error}): is {config.bridge} up? see md-server.log"
    finally:
        connection.close()
    return ""


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    """A descriptor that stays with this very process, whoever gets its id later; None where it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has_ended(process: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@contextlib.contextmanager
def _output(path: Path) -> Iterator[int]:
    """Where md-server writes: our journal, or a file of its own, as it outlives whoever reads our output."""
    if is_journal(sys.stderr, os.environ):
        yield sys.stderr.fileno()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    try:
        if os.fstat(descriptor).st_size > MOST_LOG_BYTES:
            os.ftruncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_bytes()[-4096:].decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"
