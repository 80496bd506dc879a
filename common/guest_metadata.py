"""How a guest may come by its metadata, as a spec says it. Plain data, and what follows from it alone."""

from __future__ import annotations

import enum


class MetadataAccess(enum.StrEnum):
    """Who may read a guest's metadata over HTTP: anybody on it, those with a session token, nobody."""

    OPTIONAL = "optional"
    REQUIRED = "required"
    OFF = "off"


class ConfigDrive(enum.StrEnum):
    """Whether a guest has its metadata on a disk too, and in which form; *auto* where HTTP could not do."""

    AUTO = "auto"
    OPENSTACK = "openstack"  # label config-2
    NOCLOUD = "nocloud"  # label cidata
    NONE = "none"


def drive_form(asked: ConfigDrive, access: MetadataAccess, *, has_dhcp: bool) -> ConfigDrive | None:
    """Which kind of drive a guest has, None for none.

    *auto* is a drive where HTTP alone could not do: the guest would not know the address to ask from, nobody answers, or
    only those with a session token, which cloud-init's OpenStack data source never asks for.

    Args:
        has_dhcp: a card of its has its address from a DHCP server of its host's.
    """
    if asked is ConfigDrive.NONE:
        return None
    if asked is not ConfigDrive.AUTO:
        return asked
    return None if has_dhcp and access is MetadataAccess.OPTIONAL else ConfigDrive.OPENSTACK
