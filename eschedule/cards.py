"""What people see of a guest's network: its cards, what reaches it, which ports of its host lead to it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from common.guest_metadata import drive_form
from common.hardware import USUAL
from common.model import Address, ConfigDrive, Forward, InstanceSpec, MetadataAccess, Nic
from common.nics import has_dhcp

NOT_KNOWN = "not known yet"


def nic_text(nic: Nic) -> str:
    """A card as it was asked for: ``default``, ``lan (bridge br0)``, ``bridge br0 vlan 42, 10.0.0.7/24``."""
    fixed = [f"{one.address}/{one.prefix_length}" if one.prefix_length else one.address for one in nic.addresses]
    return ", ".join([_place(nic.network, nic.bridge, nic.vlan), *fixed])


def card_text(card: Address) -> str:
    """A card as it is: every address, then its MAC, what it is on, and where its address comes from."""
    source = f", {card.source}" if card.source and card.all_addresses else ""
    on = _place(card.network, card.bridge, card.vlan)
    kind = "" if card.bridge else "network "
    return f"{', '.join(card.all_addresses) or NOT_KNOWN} ({card.mac} on {kind}{on}{source})"


def _place(network: str, bridge: str, vlan: int) -> str:
    if not bridge:
        return network
    where = f"bridge {bridge}" + (f" vlan {vlan}" if vlan else "")
    return f"{network} ({where})" if network else where


def metadata_text(spec: InstanceSpec, cards: tuple[Address, ...]) -> str:
    """Who may read its metadata, and the disk that it has it on."""
    hops = f", hop limit {spec.metadata_hop_limit}" if spec.metadata_hop_limit != 1 else ""
    form = drive_of(spec, cards)
    drive = f"config drive {form}" if form else "no config drive"
    return f"{spec.metadata}{hops}, {drive}{' (auto)' if spec.config_drive is ConfigDrive.AUTO else ''}"


def drive_of(spec: InstanceSpec, cards: tuple[Address, ...]) -> ConfigDrive | None:
    """The form of the drive that a guest has from its next start on, None for none; without *cards*, by those it asks for."""
    knows_where = has_dhcp(cards) if cards else not all(nic.bridge for nic in spec.nics)
    return drive_form(spec.config_drive, spec.metadata, has_dhcp=knows_where)


def untold(access: MetadataAccess, drive: ConfigDrive, *, has_keys: bool, has_user_data: bool) -> str:
    """What a guest is to be told and nobody tells it; "" where that is nothing."""
    if access is not MetadataAccess.OFF or drive is not ConfigDrive.NONE or not (has_keys or has_user_data):
        return ""
    what = " and ".join(text for text, is_given in (("keys", has_keys), ("user data", has_user_data)) if is_given)
    return f"its {what} will reach nobody: with --metadata off and --no-config-drive a guest is told nothing"


def unheard(nics: Iterable[Nic], access: MetadataAccess, drive: ConfigDrive, *, has_to_report: bool, is_told: bool) -> str:
    """What fails where no metadata service is on the wire of any card; "" where one is for certain, or nothing needs it.

    Args:
        has_to_report: it is waited for until it says that it is ready. *is_told*: it has keys or user data.
    """
    bridges = tuple(dict.fromkeys(nic.bridge for nic in nics if nic.bridge))
    if access is MetadataAccess.OFF or not bridges or not all(nic.bridge for nic in nics):
        return ""
    needs = "its keys and user data need" if is_told and drive is ConfigDrive.NONE else ""
    if has_to_report:
        needs = "its report that it is ready needs"
    where = " or ".join(bridges)
    return f"{needs} a metadata service on {where}, which its host has only with metadata.bridge: {where}" if needs else ""


def hardware_text(spec: InstanceSpec) -> str:
    """What its machine has where that is not virtio everywhere; nothing where it is."""
    has = spec.hardware
    return "" if has == USUAL else f"disks {has.disk_bus}, cards {has.card_model}"


def allow_text(spec: InstanceSpec) -> str:
    """Who may reach it; nothing where that is everybody."""
    if spec.allow is None:
        return ""
    return ", ".join(spec.allow) or "nobody"


def reached_at(forward: Forward, host: str) -> str:
    """``node1:8080/tcp``."""
    return f"{host}:{forward.host_port}/{forward.protocol}"


def leads_to(forward: Forward, cards: tuple[Address, ...]) -> str:
    """``192.168.122.50:80``, or that its address is not known."""
    address = first_address(cards)
    if not address:
        return f"address {NOT_KNOWN}, port {forward.guest_port}"
    return f"{f'[{address}]' if ':' in address else address}:{forward.guest_port}"


def first_address(cards: tuple[Address, ...]) -> str:
    """The address to show where there is room for one; "" where none is known."""
    return next((address for card in cards for address in card.all_addresses), "")
