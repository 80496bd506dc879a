"""The NoCloud tree: ``meta-data``, ``user-data``, ``vendor-data`` and ``network-config``, over HTTP or on a disk. Pure.

A guest is led to it by SMBIOS (serial ``ds=nocloud;s=http://169.254.169.254/nocloud/``), by its kernel's command line, by its
image's configuration, or by a disk with the label ``cidata``.
"""

from __future__ import annotations

from typing import Any

import yaml

from common.renderings.guest import Guest
from common.renderings.network import network_config
from common.renderings.tree import BYTES, Directory, Leaf

OPTIONAL = ("network-config", "vendor-data")  # readers do without these on a disk


def tree(guest: Guest) -> Directory:
    """What a guest finds below ``/nocloud``: each of the four, be it empty.

    Over HTTP cloud-init asks ten times, a second apart, for what is not there, and gives up where the user data is not.
    """
    return Directory({
        "meta-data": Leaf(_yaml(_meta_data(guest))),
        "network-config": Leaf(_network_config(guest)),
        "user-data": Leaf(guest.user_data or b"", BYTES),
        "vendor-data": Leaf(guest.vendor_data or b"", BYTES),
    })  # fmt: skip


def files(guest: Guest) -> dict[str, bytes]:
    """The same as files for a disk: their contents by name, without what would be empty and need not be there."""
    found = {name: leaf.content for name, leaf in tree(guest).children.items() if isinstance(leaf, Leaf)}
    return {name: content for name, content in found.items() if content or name not in OPTIONAL}


def _meta_data(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = {"instance-id": guest.uuid, "local-hostname": guest.hostname}
    if guest.keys:
        found["public-keys"] = [key.line for key in guest.keys]
    return found


def _network_config(guest: Guest) -> bytes:
    found = network_config(guest.document.addresses)
    return b"" if found is None else _yaml(found)


def _yaml(value: dict[str, Any]) -> bytes:
    """In lines, as some small readers take it apart by these; no key is folded into two."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1 << 20).encode()
