"""What the checks of a host share: its configuration, and libvirt, etcd and Placement, opened by whoever asks first.

Bounds are shorter than the daemon's: nobody waits for a doctor. What is missing of Python is told like a service that is away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from uuid import UUID

from common import etcd_checkup
from common.config import ComputeConfig
from common.errors import EcomputeError, HypervisorUnavailable, StoreUnavailable
from common.etcd_checkup import Member
from common.keys import Keys
from common.lockfile import Holder
from common.placement import Placement
from common.store import Store
from ecompute import identity
from ecompute.hypervisor import HostInfo
from ecompute.provider_lock import lock_file

if TYPE_CHECKING:
    from ecompute.libvirt_driver import LibvirtDriver

# Since libvirt 6 a daemon for each driver may stand in for libvirtd; starting that would stop them (virtqemud.service).
_MODULAR_SOCKET = Path("/run/libvirt/virtqemud-sock")
LIBVIRT_SECONDS, STORE_SECONDS, PLACEMENT_SECONDS = 4.0, 3.0, 4.0
T = TypeVar("T")


def libvirt_unit() -> str:
    """The daemon of libvirt that runs this host's guests, as systemd and its configuration file call it."""
    return "virtqemud" if _MODULAR_SOCKET.exists() else "libvirtd"


class Scene:
    """One look at a host; safe to use from any thread.

    Args:
        is_joining: nothing of ours runs here yet; it is started when all is well.
    """

    def __init__(self, config: ComputeConfig, *, is_joining: bool = False) -> None:
        self.config, self.is_joining = config, is_joining
        self.keys = Keys(config.etcd.prefix)
        self._known: dict[str, Any] = {}
        self._failed: dict[str, EcomputeError] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in ("store", "placement", "hypervisor"):
            if name in self._known:
                with contextlib.suppress(EcomputeError):
                    self._known[name].close()

    @property
    def is_simulated(self) -> bool:
        """Whether libvirt's test driver is asked for, in which no interface is real."""
        return self.config.libvirt.uri.startswith("test:")

    @property
    def hypervisor(self) -> LibvirtDriver:
        """Raises ``HypervisorUnavailable`` where libvirt's bindings are missing."""
        return self._once("hypervisor", self._open_hypervisor)

    @property
    def host(self) -> HostInfo:
        """What libvirt says of the host. Raises ``HypervisorUnavailable``, ``HypervisorRejected``."""
        return self._once("host", self.hypervisor.host)

    @property
    def provider(self) -> UUID:
        """This host's provider; libvirt is asked only where the configuration does not say."""
        if self.config.uuid is not None:
            return self.config.uuid
        return identity.provider_uuid(None, identity.machine_id(), self.host.libvirt_host_uuid)

    @property
    def store(self) -> Store:
        """Raises ``StoreUnavailable`` where etcd's client library is missing."""
        return self._once("store", self._open_store)

    @property
    def placement(self) -> Placement:
        return self._once("placement", self._open_placement)

    @property
    def members(self) -> list[Member]:
        """etcd's endpoints, as each answered when it was first asked."""
        return self._once("members", lambda: etcd_checkup.look_at(self.config.etcd))

    def ecompute(self) -> Holder | None:
        """The ecompute that runs for this host now, None for none."""
        return lock_file(self.config, self.provider).holder()

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """What *make* made, or failed with, when it was first wanted; threads that want the same wait for each other."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name in self._failed:
                raise self._failed[name]
            if name not in self._known:
                try:
                    self._known[name] = make()
                except EcomputeError as error:
                    self._failed[name] = error
                    raise
            found: T = self._known[name]
            return found

    def _open_hypervisor(self) -> LibvirtDriver:
        try:
            from ecompute.libvirt_driver import LibvirtDriver  # noqa: PLC0415 - the doctor says where it is missing
        except ImportError as error:
            raise HypervisorUnavailable(f"libvirt's Python bindings cannot be imported: {error}") from error
        return LibvirtDriver(self.config.libvirt.uri, patience_seconds=LIBVIRT_SECONDS)

    def _open_store(self) -> Store:
        try:
            from common.etcd_store import EtcdStore  # noqa: PLC0415 - likewise
        except ImportError as error:
            raise StoreUnavailable(f"etcd's client library cannot be imported: {error}") from error
        return EtcdStore(dataclasses.replace(self.config.etcd, deadline_seconds=STORE_SECONDS))

    def _open_placement(self) -> Placement:
        config = dataclasses.replace(
            self.config.placement, timeout_seconds=PLACEMENT_SECONDS, deadline_seconds=PLACEMENT_SECONDS
        )  # fmt: skip
        return Placement(config, etcd_prefix=self.config.etcd.prefix)
