"""MAC and address of each instance's network cards, known before the guest exists.

``<directory>/<uuid>.json`` says which pairs an instance has; it is written by rename before anybody uses them, and from then on
it is what ``assigned`` answers. The pairs come from an ``AddressPool`` per libvirt network, which keeps some ready: to reserve
is to pick one and write the file. ``run`` is the thread that makes them ready again, which takes libvirt as long as half a
guest: it waits while guests are built, as long as some are left. ``<directory>/pools/`` has a folder for each network that we
may have entries in, so that ``remove_all_unassigned`` finds them. One process per directory. Called by the builder, the facts
and the agent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import UUID

from common.errors import EcomputeError
from common.files import file_errors, fsync_directory, make_directory, remove_partials, write_atomically
from common.logs import fields
from common.model import SCHEMA, Address, Nic, Record
from common.retry import Backoff, Deadline
from ecompute.address_pool import AddressPool
from ecompute.hypervisor import Hypervisor

logger = logging.getLogger(__name__)
DIRECTORY_MODE = 0o700
CHECK_EVERY_SECONDS = 60.0
BUILD_SECONDS = 15.0  # a guest whose addresses were reserved longer ago does not keep others from being made any more


@dataclass(frozen=True)
class Assignment(Record):
    """The file format: the addresses of one instance, in the order of its network cards."""

    uuid: UUID
    addresses: tuple[Address, ...]
    schema: int = SCHEMA


class AddressPools:
    """The addresses of all instances of this host. Thread-safe, but for two threads with one instance.

    Args:
        directory: made where it is missing.
        reserve_ahead: pairs kept ready in each network in use.
        network: the one that is in use from the start; others are when first asked for.
    """

    def __init__(
        self, hypervisor: Hypervisor, directory: Path, *, reserve_ahead: int = 16, network: str = "default",
        check_every_seconds: float = CHECK_EVERY_SECONDS,
    ) -> None:  # fmt: skip
        self._hypervisor, self._directory, self._reserve_ahead = hypervisor, directory, reserve_ahead
        self._default, self._check_every_seconds = network, check_every_seconds
        self._marks = directory / "pools"
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._said: dict[str, str] = {}
        self._in_build: dict[UUID, Deadline] = {}  # addresses reserved, not started yet
        self._pools: dict[str, AddressPool] = {}
        make_directory(directory, DIRECTORY_MODE)
        remove_partials(directory)
        self._assigned = _read_all(directory)
        for name in (network, *self._marked()):
            self._pool(name)
        for addresses in self._assigned.values():
            for address in addresses:
                self._pool(address.network).hold(address)

    def assigned(self, uuid: UUID) -> tuple[Address, ...] | None:
        """The instance's addresses, in the order of its network cards; None where none are assigned yet."""
        with self._lock:
            return self._assigned.get(uuid)

    def assignments(self) -> dict[UUID, tuple[Address, ...]]:
        """Everybody's addresses."""
        with self._lock:
            return dict(self._assigned)

    def reserve(self, uuid: UUID, nics: Iterable[Nic]) -> tuple[Address, ...]:
        """Assign an address to each of *nics*; what is assigned already stays, and its DHCP entries are put back if lost.

        Raises:
            NoAddress: a network has no more, or is not there.
            HypervisorUnavailable, HypervisorRejected: none was ready, and libvirt made none.
            Conflict: somebody else's DHCP entry has an address that was assigned.
        """
        if (known := self.assigned(uuid)) is not None:
            for address in known:
                self._pool(address.network).ensure(address)
            return known
        addresses: list[Address] = []
        try:
            for nic in nics:
                self._mark(nic.network)
                addresses.append(self._pool(nic.network).take())
            text = Assignment(uuid, tuple(addresses)).to_json()
            write_atomically(self._path(uuid), text.encode())
        except BaseException:
            with contextlib.suppress(OSError):
                self._path(uuid).unlink(missing_ok=True)
            self._give_back(addresses)
            raise
        with self._lock:
            self._assigned[uuid] = tuple(addresses)
            self._in_build[uuid] = Deadline(BUILD_SECONDS)
        self.wake()
        return tuple(addresses)

    def started(self, uuid: UUID) -> None:
        """The instance is built: others may be made ready."""
        with self._lock:
            is_last = self._in_build.pop(uuid, None) is not None and not self._in_build
        if is_last:
            self.wake()

    def release(self, uuid: UUID) -> None:
        """Take the instance's addresses back, ready for others. What is released already is success."""
        path = self._path(uuid)
        with file_errors("cannot release the addresses", path):
            path.unlink(missing_ok=True)
            fsync_directory(self._directory)
        with self._lock:
            addresses = self._assigned.pop(uuid, ())
            self._in_build.pop(uuid, None)
        self._give_back(addresses)
        self.wake()

    def remove_all_unassigned(self) -> int:
        """Remove our DHCP entries that no instance has, from every network; how many there were. For a host that leaves."""
        with self._lock:
            in_use = {address.network for addresses in self._assigned.values() for address in addresses}
            pools = list(self._pools.values())
        removed = 0
        for pool in pools:
            removed += pool.remove_free()
            if pool.name not in in_use:
                with contextlib.suppress(OSError):
                    self._mark_path(pool.name).rmdir()
        with contextlib.suppress(OSError):  # not empty: a network is still in use
            self._marks.rmdir()
        return removed

    # -- keeping pairs ready -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have ``run`` look now."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Keep pairs ready until *stop*: looks after each reservation and release, when libvirt is back, and now and then.

        Who sets *stop* calls ``wake`` too.
        """
        self._hypervisor.subscribe(lambda _: None, self.wake)
        backoff = Backoff(1.0, self._check_every_seconds)
        while not stop.is_set():
            self._wake.clear()
            try:
                is_well = self.replenish(stop)
            except Exception:
                logger.exception("a bug in keeping addresses ready; trying again")
                is_well = False
            if is_well:
                backoff.reset()
            if not stop.is_set():
                self._wake.wait(self._pause() if is_well else backoff.next())

    def replenish(self, stop: threading.Event) -> bool:
        """Bring every network to where it should be, unless *stop*; False where that did not work. Says each trouble once."""
        with self._lock:
            pools = list(self._pools.values())
        is_well = True
        for pool in pools:
            try:
                self._mark(pool.name)
                while not stop.is_set() and pool.improve(is_busy=self._is_busy()):
                    pass
            except EcomputeError as error:
                is_well = False
                self._say(pool.name, str(error))
            else:
                self._say(pool.name, "")
        return is_well

    def _is_busy(self) -> bool:
        """Whether guests are built at this moment, which every change of a network slows down."""
        with self._lock:
            self._in_build = {uuid: until for uuid, until in self._in_build.items() if not until.expired}
            return bool(self._in_build)

    def _pause(self) -> float:
        return min(BUILD_SECONDS, self._check_every_seconds) if self._is_busy() else self._check_every_seconds

    def _say(self, network: str, problem: str) -> None:
        before, self._said[network] = self._said.get(network, ""), problem
        if problem and problem != before:
            logger.warning("no addresses are made ready: %s", problem, extra=fields(network=network))
        elif before and not problem:
            logger.info("addresses are ready again", extra=fields(network=network))

    # -- inside ------------------------------------------------------------------------------------------------------------

    def _give_back(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._pool(address.network).give_back(address)

    def _pool(self, name: str) -> AddressPool:
        with self._lock:
            if name not in self._pools:
                self._pools[name] = AddressPool(self._hypervisor, name, reserve_ahead=self._reserve_ahead)
            return self._pools[name]

    def _path(self, uuid: UUID) -> Path:
        return self._directory / f"{uuid}.json"

    def _mark_path(self, network: str) -> Path:
        return self._marks / quote(network, safe="")

    def _mark(self, network: str) -> None:
        """Note on disk that *network* may have entries of ours, before it has."""
        path = self._mark_path(network)
        if not path.is_dir():
            make_directory(path, DIRECTORY_MODE)

    def _marked(self) -> list[str]:
        with file_errors("cannot list the networks", self._marks):
            return sorted(unquote(path.name) for path in self._marks.iterdir()) if self._marks.is_dir() else []


def _read_all(directory: Path) -> dict[UUID, tuple[Address, ...]]:
    """What the files say. One that cannot be read is reported and left; its guest keeps what its DHCP lease says."""
    found = {}
    with file_errors("cannot read the assigned addresses", directory):
        for path in sorted(directory.glob("*.json")):
            try:
                assignment = Assignment.from_json(path.read_text(encoding="utf-8"))
            except (EcomputeError, UnicodeError) as error:
                logger.error("the addresses of an instance cannot be read from %s: %s", path, error)
                continue
            found[assignment.uuid] = assignment.addresses
    return found
