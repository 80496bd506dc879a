"""The OpenStack tree: ``/openstack/<version>/{meta_data,network_data,vendor_data}.json`` and ``user_data``; and the same as
files for a config drive. Pure.

Guests carry the SMBIOS product "OpenStack Compute", by which cloud-init and cloudbase-init choose this tree at once.
Version names and what came with which are Nova's (nova/api/metadata/base.py), as readers look for exactly these.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from common.renderings.guest import Guest
from common.renderings.network import network_data
from common.renderings.tree import BYTES, JSON, Directory, Fresh, Leaf, Node

FOLSOM, GRIZZLY, HAVANA, LIBERTY, NEWTON_TWO = "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-10-06"
VERSIONS = (
    FOLSOM, GRIZZLY, HAVANA, LIBERTY, "2016-06-30", NEWTON_TWO, "2017-02-22", "2018-08-27", "2020-10-14", "latest",
)  # fmt: skip
# Of a config drive: the newest that cloud-init asks for, and what every other reader asks for, or cloud-init before 2018.
DRIVE_VERSIONS = ("2018-08-27", "latest")
RANDOM_SEED_BYTES = 512

_GZIP = b"\x1f\x8b"

RandomBytes = Callable[[int], bytes]


def tree(guest: Guest, version: str, random_bytes: RandomBytes) -> Directory:
    """What a guest finds below ``/openstack/<version>``; "latest" sorts after every date."""
    meta_data = _meta_data(guest)
    children: dict[str, Node] = {
        "meta_data.json": _seeded(meta_data, random_bytes) if version >= GRIZZLY else _json(meta_data),
    }
    if guest.user_data is not None:
        children["user_data"] = Leaf(guest.user_data, BYTES)
    if version >= HAVANA:
        children["vendor_data.json"] = _json(_vendor_data(guest))
    if version >= LIBERTY:
        children["network_data.json"] = _json(network_data(guest.document.addresses))
    if version >= NEWTON_TWO:
        children["vendor_data2.json"] = _json({})  # cloud-init follows both: what is in the first is not repeated
    return Directory(children)


def files(guest: Guest, random_bytes: RandomBytes) -> dict[str, bytes]:
    """The content of a config drive by path: ``openstack/<version>/meta_data.json`` and so on, for ``DRIVE_VERSIONS``."""
    found: dict[str, bytes] = {}
    for version in DRIVE_VERSIONS:
        for name, node in tree(guest, version, random_bytes).children.items():
            leaf = node.make() if isinstance(node, Fresh) else node
            if isinstance(leaf, Leaf):
                found[f"openstack/{version}/{name}"] = leaf.content
    return found


def _json(value: Any) -> Leaf:
    return Leaf(json.dumps(value, sort_keys=True).encode(), JSON)


def _seeded(value: dict[str, Any], random_bytes: RandomBytes) -> Fresh:
    """*value* with a ``random_seed``, another one in each answer.

    cloud-init feeds it to the guest's random generator, which has seen nothing yet at a first boot.
    """
    # Only an own key can look like this: inside a text the quotes would be escaped, and no key that follows is a user's.
    before, _, after = json.dumps({**value, "random_seed": ""}, sort_keys=True).rpartition('"random_seed": ""')
    head, tail = f'{before}"random_seed": "'.encode(), f'"{after}'.encode()
    return Fresh(lambda: Leaf(head + base64.b64encode(random_bytes(RANDOM_SEED_BYTES)) + tail, JSON))


def _meta_data(guest: Guest) -> dict[str, Any]:
    found: dict[str, Any] = {
        "availability_zone": guest.host.zone,
        "hostname": guest.hostname,
        "launch_index": 0,
        "name": guest.document.name,
        "uuid": guest.uuid,
    }
    if guest.keys:
        found["public_keys"] = {key.name: key.line for key in guest.keys}
        found["keys"] = [{"name": key.name, "type": "ssh", "data": key.line} for key in guest.keys]
    return found


def _vendor_data(guest: Guest) -> dict[str, str]:
    """Under the name by which cloud-init takes its part of what an operator may say to several programs."""
    return {} if guest.vendor_data is None else {"cloud-init": _as_text(guest.vendor_data)}


def _as_text(data: bytes) -> str:
    """*data* as JSON can hold it: what is no text becomes a MIME message, which cloud-init takes apart again."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        kind = "application/gzip" if data.startswith(_GZIP) else "application/octet-stream"
        head = f"MIME-Version: 1.0\nContent-Type: {kind}\nContent-Transfer-Encoding: base64\n\n"
        return head + base64.encodebytes(data).decode()
