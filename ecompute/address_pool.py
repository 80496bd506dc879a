"""The MAC and address pairs of one libvirt network: which are free, which are taken, and how more are made.

A pair is a static DHCP entry of the network: dnsmasq gives its address to nobody else, and to its guest without the three
seconds of a dynamic lease. Making one takes libvirt 0.3 s, and one at a time; so some are made ahead and ``take`` only picks
one. What is free is kept in memory and compared with the network at each change. Only this process changes our pairs; who has
which is for ``network`` to keep, the only caller.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator

from common.errors import Conflict, HypervisorRejected, HypervisorUnavailable, NoAddress
from common.logs import fields
from common.model import Address, IpAddress
from common.nics import slaac_address
from common.retry import Deadline
from ecompute.address_pairs import (
    candidates,
    is_held_by_another,
    is_held_by_itself,
    is_in_range,
    is_ours,
    pair_of,
    refuse_if_not_to_be_had,
)
from ecompute.hypervisor import DhcpHost, Hypervisor, Lease, Network

logger = logging.getLogger(__name__)
TAKE_DEADLINE_SECONDS = 30.0


class AddressPool:
    """The pairs of *network*. Thread-safe: a pair is never given twice.

    Args:
        reserve_ahead: free pairs that ``improve`` makes ready; above twice as many it removes some.
    """

    def __init__(self, hypervisor: Hypervisor, network: str, *, reserve_ahead: int) -> None:
        self._hypervisor, self.name, self._reserve_ahead = hypervisor, network, reserve_ahead
        self._changed = threading.Condition()
        self._is_updating = False  # somebody talks to libvirt; the others wait for what comes of it
        self._free: deque[DhcpHost] = deque()  # the longest unused first
        self._taken: set[DhcpHost] = set()
        self._trusted: set[DhcpHost] = set()  # made or given back in this process's time
        self._unhealable: set[DhcpHost] = set()
        self._strays: list[DhcpHost] = []  # entries of ours outside of the network's range that nobody has any more
        self._leaving: set[DhcpHost] = set()  # whose entries are to go; what is given back of them is nobody's
        self._network: Network | None = None  # as it was last read

    @property
    def free_count(self) -> int:
        with self._changed:
            return len(self._free)

    @property
    def bridge(self) -> str:
        """The host's bridge that the network is on, "" while that is not known."""
        with self._changed:
            return self._network.bridge if self._network else ""

    def look(self) -> None:
        """Read the network, unless it was read before.

        Raises:
            NoAddress: it serves no addresses.
        """
        with self._changed:
            is_known = self._network is not None
        if not is_known:
            with self._updating():
                self._read()

    def hold(self, address: Address) -> None:
        """Count *address* as taken: it was, before this process began."""
        with self._changed:
            self._taken.add(DhcpHost(address.mac, address.address))

    def take(self) -> Address:
        """A free pair, at once where one is ready; else one is made.

        Raises:
            NoAddress: the network has no more, or is not there.
            HypervisorUnavailable: libvirt did not make one in time.
        """
        deadline = Deadline(TAKE_DEADLINE_SECONDS)
        with self._changed:
            while True:
                if self._free and self._network:
                    return self._given(self._network, self._free.popleft())
                if not self._is_updating:
                    self._is_updating = True
                    break
                self._wait(deadline)
        with self._update_ends():
            return self._make_one_to_take()

    def claim(self, address: str, mac: str = "") -> Address:
        """This very *address*, or any, with this *mac* or the one that belongs to it; its entry is made by ``ensure``.

        Raises:
            NoAddress: it is not one that the network can give, or somebody has it.
        """
        with self._updating():
            network, leases = self._read()
            address = address or self._any(network, leases)
            pair = DhcpHost(mac, address) if mac else pair_of(address)
            if self._drop_ready(pair):
                network, leases = self._read()
            refuse_if_not_to_be_had(pair, network, leases)
            with self._changed:
                if any(pair.address == other.address or pair.mac == other.mac for other in self._taken):
                    raise NoAddress(f"network {self.name}: another instance on this host has {address}: name another, or none")
                self._free = deque(other for other in self._free if other != pair)
                return self._given(network, pair)

    def give_back(self, address: Address) -> None:
        """*address* is free for another guest. Giving back what is free already changes nothing."""
        pair = DhcpHost(address.mac, address.address)
        with self._changed:
            self._taken.discard(pair)
            self._trusted.add(pair)
            if pair not in self._free and self._is_of_the_pool(pair):
                self._free.append(pair)
            self._changed.notify_all()

    def drop_if_special(self, address: Address) -> None:
        """Remove the entry of an *address* that its guest alone wanted; others stay, for the next guest.

        From here on nobody puts it back. Where it cannot be removed, ``improve`` does so when the address was given back.
        """
        pair = DhcpHost(address.mac, address.address)
        with self._changed:
            if self._is_of_the_pool(pair):
                return
            self._leaving.add(pair)
        with self._updating():
            self._hypervisor.remove_dhcp_host(self.name, pair)

    def ensure(self, address: Address) -> None:
        """Make sure that the network has the entry of the taken *address*; it may have been defined anew meanwhile.

        Raises:
            Conflict: somebody else's entry has the address or the MAC.
        """
        pair = DhcpHost(address.mac, address.address)
        with self._updating():
            self._read()
            with self._changed:
                self._leaving.discard(pair)
            self._hypervisor.add_dhcp_host(self.name, pair)

    def improve(self, *, is_busy: bool = False) -> bool:
        """Make at most one change that brings the network to where it should be; False where it is there.

        Entries that taken pairs have lost come first, then free pairs up to what is wanted, then a surplus goes. While
        guests are built (*is_busy*) only what they may wait for is made: a change costs them as much as a start does.

        Raises:
            NoAddress: the network cannot give more, or is not there.
        """
        wanted = -(-self._reserve_ahead // 4) if is_busy else self._reserve_ahead
        with self._updating():
            network, leases = self._read()
            with self._changed:
                lost = self._taken - set(network.dhcp_hosts) - self._unhealable - self._leaving
                shortage = wanted - len(self._free)
                has_surplus = not is_busy and len(self._free) > 2 * self._reserve_ahead
                unused = [] if is_busy else [*self._strays, *self._leaving.intersection(network.dhcp_hosts)]
                strays = [pair for pair in unused if pair not in self._taken]
                surplus = strays[0] if strays else self._free.pop() if has_surplus else None
            if lost:
                self._heal(min(lost, key=lambda pair: pair.address))
            elif shortage > 0:
                self._make_free(self._make(network, leases))
            elif surplus:
                self._hypervisor.remove_dhcp_host(self.name, surplus)
            else:
                return False
            return True

    def remove_free(self) -> int:
        """Remove every entry of ours that no instance has; how many there were. A network that is gone has none."""
        with self._updating():
            network = self._hypervisor.network(self.name)
            with self._changed:
                self._free.clear()
                unused = [pair for pair in network.dhcp_hosts if is_ours(pair) and pair not in self._taken] if network else []
            for pair in unused:
                self._hypervisor.remove_dhcp_host(self.name, pair)
            return len(unused)

    # -- one who changes the network at a time -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _updating(self) -> Iterator[None]:
        deadline = Deadline(TAKE_DEADLINE_SECONDS)
        with self._changed:
            while self._is_updating:
                self._wait(deadline)
            self._is_updating = True
        with self._update_ends():
            yield

    @contextlib.contextmanager
    def _update_ends(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._is_updating = False
                self._changed.notify_all()

    def _wait(self, deadline: Deadline) -> None:
        if not self._changed.wait(deadline.remaining()):
            raise HypervisorUnavailable(f"network {self.name}: libvirt made no address within {deadline.seconds:g} s")

    # -- what the one does -------------------------------------------------------------------------------------------------

    def _read(self) -> tuple[Network, tuple[Lease, ...]]:
        """The network as it is now; what is free is what has an entry in it.

        Raises:
            NoAddress: it serves no addresses.
        """
        network = usable(self.name, self._hypervisor.network(self.name))
        leases = self._hypervisor.leases(self.name)
        ours = [entry for entry in network.dhcp_hosts if is_ours(entry)]
        with self._changed:
            if self._network is None or self._network.dhcp_hosts != network.dhcp_hosts:
                self._unhealable.clear()
            self._network = network
            self._leaving &= self._taken.union(network.dhcp_hosts)
            present = set(ours)
            self._free = deque(pair for pair in self._free if pair in present and self._is_of_the_pool(pair))
            known = self._taken.union(self._free)
            found = [pair for pair in ours if pair not in known and not self._is_doubtful(pair, leases)]
            self._free.extend(pair for pair in found if self._is_of_the_pool(pair))
            self._strays = [pair for pair in found if not self._is_of_the_pool(pair)]
        return network, leases

    def _is_doubtful(self, pair: DhcpHost, leases: tuple[Lease, ...]) -> bool:
        """A guest uses *pair*, and not because we gave it back just now: its assignment was lost, so leave it alone."""
        return pair not in self._trusted and is_held_by_itself(pair, leases)

    def _is_of_the_pool(self, pair: DhcpHost) -> bool:
        """Whether *pair* is one that we would give to anybody: of the network's range, with the MAC that belongs to it."""
        return is_ours(pair) and (self._network is None or is_in_range(pair.address, self._network))

    def _make_one_to_take(self) -> Address:
        network, leases = self._read()
        with self._changed:
            if self._free:
                return self._given(network, self._free.popleft())
        pair = self._make(network, leases)
        with self._changed:
            return self._given(network, pair)

    def _make(self, network: Network, leases: tuple[Lease, ...]) -> DhcpHost:
        """A new pair, its entry in the network; neither free nor taken yet."""
        for pair in candidates(network, leases):
            with self._changed:
                if pair in self._taken:
                    continue
            try:
                self._hypervisor.add_dhcp_host(self.name, pair)
            except Conflict:  # somebody made an entry since the network was read
                continue
            if is_held_by_another(pair, self._hypervisor.leases(self.name)):  # dnsmasq was quicker
                self._hypervisor.remove_dhcp_host(self.name, pair)
                continue
            with self._changed:
                self._trusted.add(pair)
            return pair
        raise self._is_full(network)

    def _drop_ready(self, pair: DhcpHost) -> bool:
        """Remove the free pair that has the address of *pair* with another MAC; whether there was one."""
        with self._changed:
            ready = next((other for other in self._free if other.address == pair.address and other != pair), None)
            if ready:
                self._free.remove(ready)
        if ready:
            self._hypervisor.remove_dhcp_host(self.name, ready)
        return ready is not None

    def _any(self, network: Network, leases: tuple[Lease, ...]) -> str:
        """An address that nobody has, and of which no entry is ready."""
        with self._changed:
            taken = {pair.address for pair in self._taken}
        for pair in candidates(network, leases):
            if pair.address not in taken:
                return pair.address
        raise self._is_full(network)

    def _is_full(self, network: Network) -> NoAddress:
        return NoAddress(
            f"network {self.name} has no free address between {network.dhcp_start} and {network.dhcp_end}: "
            f"widen its range (virsh net-edit {self.name}), or delete instances"
        )

    def _make_free(self, pair: DhcpHost) -> None:
        with self._changed:
            self._free.append(pair)
            self._changed.notify_all()

    def _heal(self, pair: DhcpHost) -> None:
        try:
            self._hypervisor.add_dhcp_host(self.name, pair)
            logger.info("a DHCP entry that was gone is back", extra=fields(network=self.name, address=pair.address))
        except (Conflict, HypervisorRejected) as error:
            self._unhealable.add(pair)  # until the network changes
            logger.warning("a guest may lose its address: %s", error, extra=fields(network=self.name, address=pair.address))

    def _given(self, network: Network, pair: DhcpHost) -> Address:
        """*pair*, taken; call it with the lock held."""
        self._taken.add(pair)
        self._leaving.discard(pair)
        own = tuple(IpAddress(slaac_address(prefix, pair.mac), 64) for prefix in network.prefixes6)
        return Address(self.name, pair.mac, pair.address, network.prefix_length, network.gateway, more=own)


def usable(name: str, network: Network | None) -> Network:
    """*network*, if guests get addresses from it.

    Raises:
        NoAddress: they do not.
    """
    if network is None:
        raise NoAddress(
            f"libvirt has no network {name}: define it (virsh net-define), or name another; those of the cluster: eschedule "
            "network list"
        )
    if not network.is_active:
        raise NoAddress(f"network {name} is not active: start it (virsh net-start {name}; virsh net-autostart {name})")
    if not network.dhcp_start:
        raise NoAddress(f"network {name} serves no DHCP range: give it one (virsh net-edit {name}), or name another network")
    return network
