"""MAC and addresses of each instance's network cards, known before the guest exists.

``<directory>/<uuid>.json`` says which pairs an instance has; it is written by rename before anybody uses them, and from then on
it is what ``assigned`` answers. The pairs come from an ``AddressPool`` per libvirt network, which keeps some ready: to reserve
is to pick one and write the file. ``run`` is the thread that makes them ready again, which takes libvirt as long as half a
guest: it waits while guests are built, as long as some are left. ``<directory>/pools/`` has a folder for each network that we
may have entries in, so that ``remove_all_unassigned`` finds them. One process per directory. Called by the builder, the facts
and the agent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import UUID

from common.errors import EcomputeError, Permanent
from common.files import file_errors, fsync_directory, make_directory, remove_partials, write_atomically
from common.logs import fields
from common.model import SCHEMA, Address, IpAddress, Nic, Record
from common.retry import Backoff, Deadline
from ecompute.address_pool import AddressPool, usable
from ecompute.bridge_cards import (
    ADDRESS_TAKEN,
    address_is_taken,
    bridge_address,
    fixed_ipv4,
    given_addresses,
    is_foreign,
    mac_is_taken,
    own_mac,
    with_learned,
    with_second_card,
)
from ecompute.bridges import HostBridges
from ecompute.hearsay import Hearsay, without_what_is_given
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
        bridges: those of the host.
        second_bridge: where a guest that asked for no card gets another one, None for none.
    """

    def __init__(
        self, hypervisor: Hypervisor, directory: Path, *, reserve_ahead: int = 16, network: str = "default",
        bridges: HostBridges | None = None, second_bridge: str | None = None, check_every_seconds: float = CHECK_EVERY_SECONDS,
    ) -> None:  # fmt: skip
        self._hypervisor, self._directory, self._reserve_ahead = hypervisor, directory, reserve_ahead
        self._bridges, self._second_bridge = bridges or HostBridges(), second_bridge
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
        self._learning = threading.Lock()  # who holds it may write the file of an instance that is there
        self._in_hand: dict[UUID, list[Address]] = {}  # cards of those that are about to be assigned
        self._hearsay = Hearsay()
        for name in (network, *self._marked()):
            self._pool(name)
        for addresses in self._assigned.values():
            for address in _of_pools(addresses):
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
        """Assign what each of *nics* needs; what is assigned already stays, and its DHCP entries are put back if lost.

        Raises:
            NoAddress: a network has no more, is not there, or does not have the one that is asked for.
            Permanent: there is no such bridge, or another card has the MAC or, on the same wire, the address.
            HypervisorUnavailable, HypervisorRejected: none was ready, and libvirt made none.
            Conflict: somebody else's DHCP entry has an address that was assigned.
        """
        if (known := self.assigned(uuid)) is not None:
            self._ensure(known)
            return known
        addresses: list[Address] = []
        try:
            for index, nic in enumerate(with_second_card(tuple(nics), self._second_bridge)):
                addresses.append(self._one(nic, uuid, index))
            self._write(uuid, addresses)
            self._ensure(address for nic, address in zip(nics, addresses, strict=False) if nic.addresses or nic.mac)
        except BaseException:
            self._drop_special(addresses)  # while the file is there: were we to end here, it says whose entries they are
            with contextlib.suppress(OSError):
                self._path(uuid).unlink(missing_ok=True)
            with self._lock:
                self._in_hand.pop(uuid, None)
            self._give_back(addresses)
            raise
        with self._lock:
            self._assigned[uuid] = tuple(addresses)
            self._in_hand.pop(uuid, None)
            self._in_build[uuid] = Deadline(BUILD_SECONDS)
        if self.foreign() - {uuid}:  # what is given to the instance is no other's, whatever that has said before
            with self._learning:
                self._unlearn(uuid, lambda cards: without_what_is_given(addresses, cards))
        self.wake()
        return tuple(addresses)

    def _one(self, nic: Nic, uuid: UUID, index: int) -> Address:
        """The card number *index* of an instance."""
        if nic.bridge:
            self._bridges.check(nic)
            if nic.addresses:
                self._know_wires()
            with self._lock:
                return self._accepted(uuid, bridge_address(nic, uuid, index, self._macs()))
        with self._lock:
            if nic.mac.lower() in self._macs():
                raise mac_is_taken(nic.mac.lower())
        if not self._mark_path(nic.network).is_dir():
            usable(nic.network, self._hypervisor.network(nic.network))  # else its mark would outlast the request
            self._mark(nic.network)
        return self._of_network(nic, uuid, index)

    def _of_network(self, nic: Nic, uuid: UUID, index: int) -> Address:
        """The card where it is on a libvirt network: one that no other is in the way of, unless the request said which."""
        pool, wanted, mac = self._pool(nic.network), fixed_ipv4(nic), nic.mac.lower()
        in_the_way: list[Address] = []  # kept until one is found, or the next would be the same
        try:
            while True:
                address = pool.claim(wanted, mac) if wanted or mac else pool.take()
                try:
                    with self._lock:
                        return self._accepted(uuid, dataclasses.replace(address, mtu=nic.mtu) if nic.mtu else address)
                except Permanent as error:
                    in_the_way.append(address)
                    if nic.mac or (wanted and error.reason == ADDRESS_TAKEN):
                        raise
                if wanted:  # with another MAC than the one that belongs to it
                    pool.give_back(in_the_way.pop())
                    with self._lock:
                        mac = own_mac(uuid, index, self._macs())
        finally:
            for address in in_the_way:
                pool.give_back(address)

    def _accepted(self, uuid: UUID, card: Address) -> Address:
        """*card*, the instance's from now on; two instances at once get neither one MAC nor one address. Holds the lock.

        Raises:
            Permanent: another card of this host is in the way.
        """
        if card.mac in self._macs():
            raise mac_is_taken(card.mac)
        near = (other for other in self._cards() if self._wire(other) == self._wire(card))
        if taken := given_addresses(card).intersection(address for other in near for address in given_addresses(other)):
            raise address_is_taken(card, taken)
        self._in_hand.setdefault(uuid, []).append(card)
        return card

    def _cards(self) -> Iterator[Address]:
        """Everybody's, assigned and about to be; with the lock held."""
        return (card for cards in (*self._assigned.values(), *self._in_hand.values()) for card in cards)

    def _macs(self) -> frozenset[str]:
        return frozenset(card.mac for card in self._cards())

    def _wire(self, card: Address) -> tuple[str, int]:
        """What the card is plugged into: the bridge, or the network where that is not known, and the VLAN."""
        pool = self._pools.get(card.network)  # none where its network is gone
        return card.bridge or (pool.bridge if pool else "") or f"network {card.network}", card.vlan

    def _know_wires(self) -> None:
        """Have the networks looked at that have guests of ours and were not yet: a request may name the bridge of one."""
        with self._lock:
            pools = {self._pools[card.network] for card in self._cards() if not card.bridge}
        for pool in pools:
            with contextlib.suppress(EcomputeError):  # one that is not there has no wire
                pool.look()

    def _drop_special(self, addresses: Iterable[Address]) -> None:
        """Remove the entries that only these *addresses* needed, or leave that to ``run``."""
        for address in _of_pools(addresses):
            with contextlib.suppress(EcomputeError):
                self._pool(address.network).drop_if_special(address)

    def _ensure(self, addresses: Iterable[Address]) -> None:
        for address in _of_pools(addresses):
            self._pool(address.network).ensure(address)

    def _write(self, uuid: UUID, addresses: Iterable[Address]) -> None:
        write_atomically(self._path(uuid), Assignment(uuid, tuple(addresses)).to_json().encode())

    def started(self, uuid: UUID) -> None:
        """The instance is built: others may be made ready."""
        with self._lock:
            is_last = self._in_build.pop(uuid, None) is not None and not self._in_build
        if is_last:
            self.wake()

    def release(self, uuid: UUID) -> None:
        """Take the instance's addresses back, ready for others. What is released already is success."""
        path = self._path(uuid)
        known = self.assigned(uuid) or ()
        for address in _of_pools(known):
            self._pool(address.network).drop_if_special(address)
        with self._learning if any(is_foreign(address) for address in known) else contextlib.nullcontext():
            with file_errors("cannot release the addresses", path):
                path.unlink(missing_ok=True)
                fsync_directory(self._directory)
            with self._lock:
                addresses = self._assigned.pop(uuid, ())
                self._in_build.pop(uuid, None)
            self._hearsay.forget(uuid)
        self._give_back(addresses)
        self.wake()

    # -- what others give ----------------------------------------------------------------------------------------------------

    def foreign(self) -> frozenset[UUID]:
        """The instances of which some card gets its addresses from somebody else."""
        with self._lock:
            return frozenset(uuid for uuid, cards in self._assigned.items() if any(is_foreign(card) for card in cards))

    def learn(self, uuid: UUID, seen: Mapping[str, tuple[IpAddress, ...]]) -> bool:
        """Note the addresses that were *seen* on the instance's foreign cards, by MAC; whether that is news.

        A guest says what it likes: no address that another instance was given is believed, and none that two of them say.
        """
        with self._learning:
            others = self.assignments()
            if not (known := others.pop(uuid, ())):
                return False
            self._hearsay.note(uuid, known, seen)
            learned = with_learned(known, seen, self._hearsay.denied(known, others))
            if learned != known:
                self._note_learned(uuid, learned)
            self._unlearn(uuid, lambda cards: self._hearsay.without_what_is_said_by(uuid, cards))
        return learned != known

    def _unlearn(self, uuid: UUID, kept_of: Callable[[tuple[Address, ...]], tuple[Address, ...]]) -> None:
        """Leave the instances other than *uuid* what is *kept_of* their addresses."""
        for other in self.foreign() - {uuid}:
            known = self.assigned(other) or ()
            if (kept := kept_of(known)) != known:
                self._note_learned(other, kept)

    def _note_learned(self, uuid: UUID, addresses: tuple[Address, ...]) -> None:
        self._write(uuid, addresses)
        with self._lock:
            self._assigned[uuid] = addresses

    # -- the end -------------------------------------------------------------------------------------------------------------

    def remove_all_unassigned(self) -> int:
        """Remove our DHCP entries that no instance has, from every network; how many there were. For a host that leaves."""
        with self._lock:
            in_use = {address.network for addresses in self._assigned.values() for address in _of_pools(addresses)}
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
                if self._has_gone(pool):
                    continue
                self._mark(pool.name)
                while not stop.is_set() and pool.improve(is_busy=self._is_busy()):
                    pass
            except EcomputeError as error:
                is_well = False
                self._say(pool.name, str(error))
            else:
                self._say(pool.name, "")
        return is_well

    def _has_gone(self, pool: AddressPool) -> bool:
        """Whether libvirt has no such network any more, and nobody here is on it: it is not looked after then."""
        if pool.name == self._default or self._hypervisor.network(pool.name) is not None:
            return False
        with self._lock:
            if any(one.network == pool.name for one in _of_pools(self._cards())):
                return False
            self._pools.pop(pool.name, None)
        with contextlib.suppress(OSError):
            self._mark_path(pool.name).rmdir()
        return True

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
        for address in _of_pools(addresses):
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


def _of_pools(addresses: Iterable[Address]) -> Iterator[Address]:
    """Those of *addresses* that a libvirt network gives."""
    return (address for address in addresses if not address.bridge)


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
