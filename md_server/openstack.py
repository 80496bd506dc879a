"""The OpenStack tree: ``/openstack/<version>/{meta_data,network_data,vendor_data}.json`` and ``user_data``. Pure.

Guests carry the SMBIOS product "OpenStack Compute", by which cloud-init and cloudbase-init choose this tree at once.
Version names and what came with which are Nova's (nova/api/metadata/base.py), as readers look for exactly these.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from md_server.guest import Guest
from md_server.tree import BYTES, JSON, Directory, Fresh, Leaf, Node

FOLSOM, GRIZZLY, HAVANA, LIBERTY, NEWTON_TWO = "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-10-06"
VERSIONS = (
    FOLSOM, GRIZZLY, HAVANA, LIBERTY, "2016-06-30", NEWTON_TWO, "2017-02-22", "2018-08-27", "2020-10-14", "latest",
)  # fmt: skip
RANDOM_SEED_BYTES = 512

RandomBytes = Callable[[int], bytes]


def tree(guest: Guest, version: str, random_bytes: RandomBytes) -> Directory:
    """What a guest finds below ``/openstack/<version>``; "latest" sorts after every date."""
    meta_data = _meta_data(guest)
    children: dict[str, Node] = {
        "meta_data.json": _seeded(meta_data, random_bytes) if version >= GRIZZLY else _json(meta_data),
    }
    user_data = guest.document.user_data
    if user_data is not None:
        children["user_data"] = Leaf(user_data, BYTES)
    if version >= HAVANA:
        children["vendor_data.json"] = _json({})
    if version >= LIBERTY:
        children["network_data.json"] = _json(_network_data(guest))
    if version >= NEWTON_TWO:
        children["vendor_data2.json"] = _json({})
    return Directory(children)


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


def _network_data(guest: Guest) -> dict[str, Any]:
    """Every NIC by DHCP: there the host gives the same address as here, and the routes and name servers with it."""
    links, networks = [], []
    for number, address in enumerate(guest.document.addresses):
        link = f"nic{number}"
        links.append({"id": link, "type": "phy", "ethernet_mac_address": address.mac, "vif_id": link})
        networks.append({"id": f"network{number}", "type": "ipv4_dhcp", "link": link, "network_id": address.network})
    return {"links": links, "networks": networks, "services": []}
