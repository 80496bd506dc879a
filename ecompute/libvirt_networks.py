"""What the libvirt driver does to networks, filters and the cards of a guest: functions on an open connection.

One of the modules that import libvirt; called by ``libvirt_driver`` alone, which translates the errors that leave here.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import Collection

import libvirt

from common.errors import Conflict, HypervisorRejected
from common.nics import IpAddress
from ecompute import changes
from ecompute.anti_spoofing import FILTER_NAME, FILTERS, filter_rules
from ecompute.guest_answers import SlowAgents, addresses_of
from ecompute.hypervisor import Card, DhcpHost, Lease, Network
from ecompute.libvirt_errors import is_code, optional, unless
from ecompute.libvirt_xml import bridge_of_own_network, cards_of, dhcp_host_text, network_of

# Whom to ask for a guest's addresses. The host's neighbour table knows whom the host has spoken to.
_AGENT, _NEIGHBOURS = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT, libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP
AGENT_SECONDS = 2
# No agent, one that hangs or answers nonsense, a guest that is off: nothing is known then.
_NOTHING_KNOWN = (
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_INTERNAL_ERROR,
    getattr(libvirt, "VIR_ERR_AGENT_COMMAND_TIMEOUT", -1), getattr(libvirt, "VIR_ERR_AGENT_COMMAND_FAILED", -1),  # newer ones
)  # fmt: skip


def read_network(connection: libvirt.virConnect, name: str) -> Network | None:
    handle = _lookup(connection, name)
    return None if handle is None else network_of(handle.XMLDesc(0), is_active=bool(handle.isActive()))


def start_network(connection: libvirt.virConnect, what: str, name: str) -> None:
    """Raises ``HypervisorRejected`` where there is no such network."""
    handle = _lookup(connection, name)
    if handle is None:
        raise HypervisorRejected(f"{what}: libvirt has none of that name")
    if not handle.isActive():
        handle.create()


def autostart_network(connection: libvirt.virConnect, what: str, name: str) -> None:
    """Raises ``HypervisorRejected`` where there is no such network."""
    handle = _lookup(connection, name)
    if handle is None:
        raise HypervisorRejected(f"{what}: libvirt has none of that name")
    if not handle.autostart():
        handle.setAutostart(1)


def filter_names(connection: libvirt.virConnect) -> frozenset[str] | None:
    """The network filters that are defined; None where this libvirt has none at all."""
    names = optional(connection.listNWFilters)
    return None if names is None else frozenset(names)


def read_leases(connection: libvirt.virConnect, name: str) -> tuple[Lease, ...]:
    handle = _lookup(connection, name)
    found = () if handle is None else optional(handle.DHCPLeases) or ()
    return tuple(
        Lease(mac=lease["mac"].lower(), address=lease["ipaddr"])
        for lease in found
        if lease["type"] == libvirt.VIR_IP_ADDR_TYPE_IPV4 and lease["mac"]
    )


def own_bridges(connection: libvirt.virConnect) -> frozenset[str]:
    """The bridges that libvirt made for networks of its own."""
    return frozenset(
        bridge for network in connection.listAllNetworks() if (bridge := bridge_of_own_network(network.XMLDesc(0)))
    )


def update_dhcp(connection: libvirt.virConnect, what: str, network: str, host: DhcpHost, *, should_be_there: bool) -> None:
    """Make *host* one of the network's entries, or none of them.

    Raises:
        HypervisorRejected: it is to be added to a network that is not there.
    """
    handle = _lookup(connection, network)
    if handle is None:
        if not should_be_there:
            return
        raise HypervisorRejected(f"{what}: libvirt has no such network; define it, or name another")
    # Looking first is cheap, while a refused update takes as long as one that is made: 0.3 s.
    if parts := _parts_to_change(what, handle, host, should_be_there=should_be_there):
        commands = (libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST)
        try:
            handle.update(commands[should_be_there], libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, dhcp_host_text(host), parts)
        except libvirt.libvirtError:
            if _parts_to_change(what, handle, host, should_be_there=should_be_there):
                raise


def ensure_filter(connection: libvirt.virConnect, name: str) -> bool:
    """Whether the filter *name* is there; of ours each is defined where it is not, or not as it should be."""
    try:
        for one, text in (FILTERS if name == FILTER_NAME else {name: ""}).items():
            found = None
            with unless(*((libvirt.VIR_ERR_NO_NWFILTER,) if text else ())):
                found = connection.nwfilterLookupByName(one)
            # Defining a filter anew rebuilds it for every running guest: only where it really changed.
            if text and (found is None or filter_rules(found.XMLDesc(0)) != filter_rules(text)):
                connection.nwfilterDefineXML(text)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_SUPPORT):
            raise
        return False
    return True


def filtered_ports(connection: libvirt.virConnect) -> dict[str, str]:
    bindings = optional(connection.listAllNWFilterBindings) or ()
    return {binding.portDev(): binding.filterName() for binding in bindings}


def settle_filters(connection: libvirt.virConnect, names: Collection[str]) -> None:
    """What is defined as it is changes nothing, but waits for every guest whose filter is being made."""
    for name in names:
        with unless(libvirt.VIR_ERR_NO_NWFILTER):
            connection.nwfilterDefineXML(connection.nwfilterLookupByName(name).XMLDesc(0))


def rebuild_filters(connection: libvirt.virConnect, names: Collection[str]) -> None:
    for name in names:
        if text := FILTERS.get(name):
            current = ET.fromstring(connection.nwfilterLookupByName(name).XMLDesc(0))  # noqa: S314 - from the local libvirtd
            # libvirt makes anew what is defined otherwise, and only that. The priority of a root chain orders nothing.
            is_other = current.get("priority") == "1"
            connection.nwfilterDefineXML(text if is_other else text.replace("chain='root'", "chain='root' priority='1'"))


def drop_filters(connection: libvirt.virConnect) -> None:
    """Take ours away, but those that a guest still uses."""
    in_use = libvirt.VIR_ERR_OPERATION_INVALID
    for name in FILTERS:
        with unless(libvirt.VIR_ERR_NO_NWFILTER, libvirt.VIR_ERR_NO_SUPPORT, in_use):
            connection.nwfilterLookupByName(name).undefine()


# -- a guest's cards -------------------------------------------------------------------------------------------------------


def read_cards(handle: libvirt.virDomain) -> tuple[Card, ...]:
    """Those of the running guest; none where it is off."""
    return cards_of(handle.XMLDesc(0)) if handle.isActive() else ()


def set_link(handle: libvirt.virDomain, mac: str, *, is_up: bool) -> None:
    """Plug the cable in, so to speak, or out.

    Raises:
        Conflict: the guest has no such card now.
    """
    if handle.isActive():
        for interface in ET.fromstring(handle.XMLDesc(0)).iterfind("devices/interface"):  # noqa: S314 - from the local libvirtd
            found, link = interface.find("mac"), interface.find("link")
            if found is None or found.get("address", "").lower() != mac:
                continue
            if (link is None or link.get("state") != "down") is not is_up:
                link = ET.SubElement(interface, "link") if link is None else link
                link.set("state", "up" if is_up else "down")
                handle.updateDeviceFlags(ET.tostring(interface, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return
    raise Conflict(f"domain {handle.name()} has no running card {mac}")


def guest_addresses(handle: libvirt.virDomain, agents: SlowAgents) -> dict[str, tuple[IpAddress, ...]]:
    """The addresses that the guest agent or, for a card that it says nothing of, the host's neighbour table knows, by MAC."""
    known: dict[str, tuple[IpAddress, ...]] = {}
    with unless(*_NOTHING_KNOWN):
        known = _asked_of_agent(handle, agents)
    with unless(*_NOTHING_KNOWN):
        for mac, addresses in addresses_of(handle.interfaceAddresses(_NEIGHBOURS)).items():
            known[mac] = known.get(mac) or addresses
    return known


def _asked_of_agent(handle: libvirt.virDomain, agents: SlowAgents) -> dict[str, tuple[IpAddress, ...]]:
    """What the guest says itself, unless it was slow lately; libvirt alone would wait for it for ever."""
    guest = f"{handle.UUIDString()} {handle.ID()}"  # once it is started anew it is another
    if agents.is_spared(guest):
        return {}
    with unless(*_NOTHING_KNOWN):  # an older libvirt, or a kind of hypervisor without agents
        handle.agentSetResponseTimeout(AGENT_SECONDS, 0)
    began = agents.began()
    try:
        return addresses_of(handle.interfaceAddresses(_AGENT))
    finally:
        agents.ended(guest, began)
        with contextlib.suppress(libvirt.libvirtError):  # others may ask it for what takes its time
            handle.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


# -- inside ----------------------------------------------------------------------------------------------------------------


def _lookup(connection: libvirt.virConnect, name: str) -> libvirt.virNetwork | None:
    with unless(libvirt.VIR_ERR_NO_NETWORK):
        return connection.networkLookupByName(name)
    return None


def _parts_to_change(what: str, handle: libvirt.virNetwork, host: DhcpHost, *, should_be_there: bool) -> int:
    """Which of a network's running state and definition still differ from what is asked, as flags of an update."""
    parts = {}
    if handle.isPersistent():
        parts[libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG] = _definition(handle)
    if handle.isActive():
        parts[libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE] = handle.XMLDesc(0)
    flags = 0
    for affects, text in parts.items():
        entries = network_of(text, is_active=True).dhcp_hosts
        if changes.dhcp_entry_differs(what, entries, host, should_be_there=should_be_there):
            flags |= affects
    return flags


def _definition(handle: libvirt.virNetwork) -> str:
    try:
        text: str = handle.XMLDesc(libvirt.VIR_NETWORK_XML_INACTIVE)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_INVALID_ARG):
            raise
        text = handle.XMLDesc(0)  # a driver that keeps one state only
    return text
