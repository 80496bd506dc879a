"""The cards of one request on the networks of the cluster: from names to bridges, and to addresses that nobody has.

What a card's network is, is read once with the rest of what a request looks up; a name that etcd does not know is left as it
is, a libvirt network of the hosts. Used addresses are read once, before anything is claimed. An address is chosen here and
taken by the transaction that records the instance: where somebody else was first, ``learn`` looks again, and another one is
chosen. So there is nothing to give back, whenever this program ends. Called by both schedulers, for one request at a time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from common.errors import ConfigError, Conflict, EcomputeError, InvalidSpec, NoCapacity, Transient, UnsupportedSchema
from common.keys import Keys
from common.model import InstanceKey
from common.network_records import NetworkRecord, Subnet, address_keys
from common.nics import IpAddress, Nic, computed_mac
from common.store import Compare, Store, Versioned
from eschedule.free_addresses import free_address, is_usable, span_of, used_of
from eschedule.net_values import is_gateway_of
from eschedule.nic_options import DEFAULT

LOSSES_AT_MOST = 100  # transactions in which somebody else had taken an address; each time one of all has got through


@dataclass
class _Pool:
    """A network of the cluster that cards of the request are on.

    Args:
        owners: who has which address, as it was read; "" for those that are *promised*: chosen, and not recorded yet.
    """

    item: Versioned
    record: NetworkRecord
    owners: dict[str, str] = field(default_factory=dict)
    promised: set[str] = field(default_factory=set)

    def promise(self, address: str) -> None:
        self.promised.add(address)
        self.owners[address] = ""

    def forget_promises(self) -> None:
        for address in self.promised:
            if not self.owners.get(address):
                self.owners.pop(address, None)
        self.promised.clear()


def names_in(nics: Iterable[Nic]) -> tuple[str, ...]:
    """The networks that etcd has to be asked for; ``default`` is always the host's."""
    return tuple(dict.fromkeys(nic.network for nic in nics if nic.network not in ("", DEFAULT)))


def keys_to_read(keys: Keys, nics: Iterable[Nic]) -> list[str]:
    """What ``Wiring`` wants to have been read."""
    return [keys.network(name) for name in names_in(nics)]


class Wiring:
    """The cards *nics* of a request; *found* is what was read of ``keys_to_read``.

    Raises:
        ConfigError: a card asks for what its network cannot give.
    """

    def __init__(
        self, store: Store, keys: Keys, nics: Sequence[Nic], found: Mapping[str, Versioned], dice: random.Random
    ) -> None:  # fmt: skip
        self._store, self._keys, self._nics, self._dice = store, keys, tuple(nics), dice
        self._pools: dict[str, _Pool] = {}
        self._losses = 0
        for name in names_in(nics):
            if (item := found.get(keys.network(name))) is not None:
                self._pools[name] = _Pool(item, NetworkRecord.from_json(item.value))
        self._of_hosts = {keys.network(name): name for name in names_in(nics) if name not in self._pools}
        for nic in self._nics:
            _check(nic, self._pools[nic.network].record if nic.network in self._pools else None)
        self._check_different()

    @property
    def bridges(self) -> tuple[str, ...]:
        """The bridges that a host must have."""
        named = (self._pools[nic.network].record.bridge if nic.network in self._pools else nic.bridge for nic in self._nics)
        return tuple(dict.fromkeys(bridge for bridge in named if bridge))

    @property
    def addresses_each(self) -> int:
        """How many address keys each instance has."""
        return sum(len(self._pools[nic.network].record.subnets) for nic in self._nics if nic.network in self._pools)

    @property
    def compares(self) -> tuple[Compare, ...]:
        """That the networks are there still, as they were read, and that no name has become one of the cluster."""
        known = (Compare.unchanged(pool.item.key, pool.item.mod_revision) for pool in self._pools.values())
        return (*known, *(Compare.absent(key) for key in self._of_hosts))

    # -- what is free ----------------------------------------------------------------------------------------------------

    def look(self, count: int) -> None:
        """Read who has which address, and see that there is enough for *count* instances.

        Raises:
            Conflict: an address that was asked for is somebody's.
            NoCapacity: a network has too few.
        """
        for name in self._pools:
            self._read(name)
        for name, pool in self._pools.items():
            for subnet in pool.record.subnets:
                cards = [nic for nic in self._nics if nic.network == name and _fixed(nic, subnet) is None]
                wanted = count * len(cards)
                used = used_of(subnet, pool.owners.keys() | self._asked_for(name)) if wanted else 0
                if span_of(subnet).size - used < wanted:
                    raise NoCapacity(_exhausted(pool, subnet, used, wanted))

    def _asked_for(self, network: str) -> set[str]:
        """The fixed addresses of the request's own cards on *network*."""
        return {one.address for nic in self._nics if nic.network == network for one in nic.addresses if one.address}

    def _read(self, name: str) -> None:
        pool, prefix = self._pools[name], self._keys.network_addresses(name)
        pool.owners = {item.key.removeprefix(prefix): item.value for item in self._store.list(prefix).items}
        for nic in self._nics:
            for one in nic.addresses if nic.network == name else ():
                if owner := pool.owners.get(one.address):
                    raise Conflict(
                        f"the address {one.address} of the network {name} is used by the instance {self._called(owner)}; "
                        f"choose another, or look at it: eschedule show {owner}"
                    )

    def doubts(self) -> list[str]:
        """A line for each address of a card on a plain bridge that a network of the cluster on the same wire has given away.

        Nothing is read where no card asks for such an address.
        """
        plain = [nic for nic in self._nics if nic.bridge and not nic.network and nic.addresses]
        if not plain:
            return []
        records: list[NetworkRecord] = []
        for item in self._store.list(self._keys.networks()).items:
            with contextlib.suppress(InvalidSpec, UnsupportedSchema):  # what cannot be read here keeps nobody from a guest
                records.append(NetworkRecord.from_json(item.value))
        asked = {
            self._keys.network_address(record.name, one.address): f"{one.address} on the bridge {nic.bridge}"
            for nic in plain for record in records if (record.bridge, record.vlan) == (nic.bridge, nic.vlan)
            for one in nic.addresses
        }  # fmt: skip
        found = self._store.get_many(asked) if asked else {}
        return [
            f"the address {asked[key]} is used by the instance {self._called(item.value)}, on the network "
            f"{self._keys.parse_network_address(key)[0]}; two guests with one address disturb each other"
            for key, item in found.items()
        ]

    def _called(self, owner: str) -> str:
        """The instance *owner* with its name, where it has one; only asked where something failed."""
        try:
            item = self._store.get(self._keys.instance(UUID(owner)))
            return f"{InstanceKey.from_json(item.value).name} ({owner})" if item else owner
        except (ValueError, EcomputeError):  # whoever wrote it, the address is taken
            return owner

    def keys_of(self, keys: Iterable[str]) -> list[str]:
        """Those of *keys* that may have refused a transaction and that ``learn`` wants to have been read."""
        prefix = self._keys.network_addresses()
        networks = [pool.item.key for pool in self._pools.values()]
        return [*networks, *self._of_hosts, *(key for key in keys if key.startswith(prefix))]

    def learn(self, found: Mapping[str, Versioned]) -> bool:
        """Whether *found*, read of ``keys_of``, has an address that was chosen here; others are to be chosen then.

        Raises:
            Conflict: a network was made, removed or made anew; or somebody has the address that was asked for.
            Transient: others were faster each time.
        """
        for name, pool in self._pools.items():
            item = found.get(pool.item.key)
            if item is None or item.mod_revision != pool.item.mod_revision:
                what = "removed" if item is None else "made anew"
                raise Conflict(f"the network {name} was {what} meanwhile; see: eschedule network list; then try again")
        if made := next((name for key, name in self._of_hosts.items() if key in found), None):
            raise Conflict(f"the network {made} was made meanwhile; see: eschedule network show {made}; then try again")
        prefix = self._keys.network_addresses()
        lost = {self._keys.parse_network_address(key)[0] for key in found if key.startswith(prefix)}
        for name in lost:
            self._read(name)
        self._losses += bool(lost)
        if self._losses > LOSSES_AT_MOST:
            raise Transient(f"other requests took the addresses of {', '.join(sorted(lost))} {LOSSES_AT_MOST} times; try again")
        return bool(lost)

    # -- choosing --------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """What was chosen and not recorded is free again."""
        for pool in self._pools.values():
            pool.forget_promises()

    def recorded(self, keys: Iterable[str], instance: UUID) -> None:
        """*instance* has the addresses among *keys* from now on."""
        prefix = self._keys.network_addresses()
        for key in keys:
            if key.startswith(prefix):
                name, address = self._keys.parse_network_address(key)
                self._pools[name].owners[address] = str(instance)

    def wired(self) -> tuple[Nic, ...]:
        """The cards of one instance as its spec has them, with addresses that no other one is given.

        Raises:
            NoCapacity: a network has no free address.
        """
        for name, pool in self._pools.items():  # before any is diced, which could hit one that a later card asks for
            for address in self._asked_for(name):
                pool.promise(address)
        return tuple(self._on_pool(nic, self._pools[nic.network]) if nic.network in self._pools else nic for nic in self._nics)

    def _on_pool(self, nic: Nic, pool: _Pool) -> Nic:
        addresses = tuple(self._address(nic, pool, subnet) for subnet in pool.record.subnets)
        record = pool.record
        return replace(
            nic, bridge=record.bridge, vlan=record.vlan, mac=nic.mac or computed_mac(record.name, addresses[0].address),
            addresses=addresses, name_servers=record.name_servers, mtu=nic.mtu or record.mtu,
        )  # fmt: skip

    def _address(self, nic: Nic, pool: _Pool, subnet: Subnet) -> IpAddress:
        """The address of *nic* on *subnet*. Which of several gateways leads out is said by what the guest is told."""
        network = ipaddress.ip_network(subnet.cidr)
        address, gateway = _fixed(nic, subnet), _gateway(nic, subnet)
        if address is None:
            address = free_address(subnet, pool.owners.keys(), self._dice)
        if address is None:
            raise NoCapacity(_exhausted(pool, subnet, used_of(subnet, pool.owners), 1))
        pool.promise(address)
        return IpAddress(address, network.prefixlen, gateway or subnet.gateway)

    def _check_different(self) -> None:
        named = Counter((n.network, n.bridge, n.vlan, one.address) for n in self._nics for one in n.addresses if one.address)
        if twice := next((place[-1] for place, count in named.items() if count > 1), None):
            raise ConfigError(f"the address {twice} is given to two cards; give each its own")


def puts_of(keys: Keys, nics: Iterable[Nic], instance: UUID) -> dict[str, str]:
    """The keys by which *instance* has the addresses of its cards."""
    return dict.fromkeys(address_keys(keys, nics), str(instance))


def _exhausted(pool: _Pool, subnet: Subnet, used: int, wanted: int) -> str:
    size, name = span_of(subnet).size, pool.record.name
    free = "no address is free" if size <= used else f"{size - used} addresses are free, {wanted} are wanted"
    return (
        f"the network {name} is full: {free}; {used} of {size} in {subnet.first}-{subnet.last} are in use; see: eschedule "
        f"network show {name}"
    )


# -- what a card may ask for ---------------------------------------------------------------------------------------------


def _family(subnet: Subnet) -> int:
    return ipaddress.ip_network(subnet.cidr).version


def _of_family(nic: Nic, version: int) -> IpAddress | None:
    """What *nic* asks for of one family."""
    for one in nic.addresses:
        if ipaddress.ip_address(one.address or one.gateway).version == version:
            return one
    return None


def _fixed(nic: Nic, subnet: Subnet) -> str | None:
    asked = _of_family(nic, _family(subnet))
    return (asked.address or None) if asked else None


def _gateway(nic: Nic, subnet: Subnet) -> str:
    asked = _of_family(nic, _family(subnet))
    return asked.gateway if asked else ""


def _check(nic: Nic, record: NetworkRecord | None) -> None:
    """See that *nic* can be had on the cluster's network *record*, or without one.

    Raises:
        ConfigError: it cannot.
    """
    if record is not None:
        _check_on_network(nic, record)
    elif nic.bridge and nic.network:
        raise ConfigError(f"there is no network {nic.network} on the bridge {nic.bridge}; see: eschedule network list")
    elif nic.bridge:
        if bare := next((one for one in nic.addresses if not one.prefix_length), None):
            raise ConfigError(
                f"the address {bare.address} on the bridge {nic.bridge} needs its prefix length, as in 10.0.0.5/24"
            )
    elif any(one.gateway for one in nic.addresses):
        raise ConfigError(f"{_of_libvirt(nic)}, which tells its guests the gateway itself: leave gateway= out")
    elif [one for one in nic.addresses if ":" in one.address]:
        raise ConfigError(f"{_of_libvirt(nic)}, where a card can have a fixed address of IPv4 only")


def _whose(subnet: Subnet, address: str) -> str:
    """What an address of *subnet* is that no guest can have."""
    ip, network = ipaddress.ip_address(address), ipaddress.ip_network(subnet.cidr)
    if subnet.gateway and ip == ipaddress.ip_address(subnet.gateway):
        return "the gateway's address"
    if ip == network.network_address:
        return "the network's own address" if ip.version == 4 else "the address of any router"
    return "the broadcast address"


def _of_libvirt(nic: Nic) -> str:
    return f"the network {nic.network} is none of the cluster's (eschedule network list), but one of each host's libvirt"


def _check_on_network(nic: Nic, record: NetworkRecord) -> None:
    if nic.bridge and (nic.bridge, nic.vlan) != (record.bridge, record.vlan):
        raise ConfigError(f"the network {record.name} is on {record.bridge} (vlan {record.vlan}); leave bridge and vlan to it")
    subnets = {_family(subnet): subnet for subnet in record.subnets}
    for one in nic.addresses:
        subnet = subnets.get(ipaddress.ip_address(one.address or one.gateway).version)
        cidrs = " and ".join(subnet.cidr for subnet in record.subnets)
        if subnet is None or (one.address and ipaddress.ip_address(one.address) not in ipaddress.ip_network(subnet.cidr)):
            raise ConfigError(f"{one.address or one.gateway} is not on the network {record.name}, which is {cidrs}")
        network = ipaddress.ip_network(subnet.cidr)
        if one.address and not is_usable(subnet, one.address):
            raise ConfigError(f"{one.address} is {_whose(subnet, one.address)} of {subnet.cidr}; take another")
        if one.prefix_length not in (0, network.prefixlen):
            raise ConfigError(
                f"{one.address}/{one.prefix_length} has not the prefix length of the network {record.name}, {cidrs}"
            )
        if one.gateway and not is_gateway_of(ipaddress.ip_address(one.gateway), network):
            raise ConfigError(f"the gateway {one.gateway} is not on the network {record.name}, which is {cidrs}")
