"""The EC2 tree: ``/<version>/{meta-data,user-data,dynamic}``. Pure: a guest in, a tree out.

One tree for every version: EC2 only ever added to it, and readers pick what they know. Fields that would need an invented
value (owner, VPC, public address, signatures) are left out rather than made up.
"""

from __future__ import annotations

import json

from common.model import Address
from common.renderings.guest import Guest
from common.renderings.network import ip_addresses, of_version
from common.renderings.tree import BYTES, JSON, Directory, Leaf, Node, text

# All that EC2 published up to 2024. cloud-init asks for 2021-03-23, 2018-09-24 and 2016-09-02 before 2009-04-04 and takes the
# first that answers; Ignition and Afterburn ask for 2019-10-01 and 2021-01-03 alone; cloudbase-init for 2009-04-04; Amazon's
# own programs for newer ones, old scripts for 1.0.
VERSIONS = (
    "1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01", "2008-09-01",
    "2009-04-04", "2011-01-01", "2011-05-01", "2012-01-12", "2014-02-25", "2014-11-05", "2015-10-20", "2016-04-19",
    "2016-06-30", "2016-09-02", "2018-03-28", "2018-08-17", "2018-09-24", "2019-10-01", "2020-10-27", "2021-01-03",
    "2021-03-23", "2021-07-15", "2022-07-09", "2022-09-24", "2024-04-11", "latest",
)  # fmt: skip
REGION = "local"  # there is one
_FAMILIES = ((4, "local-ipv4s", "subnet-ipv4-cidr-block"), (6, "ipv6s", "subnet-ipv6-cidr-blocks"))


def tree(guest: Guest) -> Directory:
    """What a guest finds below ``/<version>``."""
    children: dict[str, Node] = {"dynamic": _dynamic(guest), "meta-data": _metadata(guest)}
    if guest.user_data is not None:
        children["user-data"] = Leaf(guest.user_data, BYTES)
    return Directory(children, listing=sorted(children))  # here EC2 writes no slashes


def _metadata(guest: Guest) -> Directory:
    children: dict[str, Node] = {
        "ami-id": text(guest.image_id),
        "ami-launch-index": text("0"),
        "hostname": text(guest.hostname),
        "instance-action": text("none"),
        "instance-id": text(guest.uuid),
        "instance-type": text(guest.instance_type),
        "local-hostname": text(guest.hostname),
        "placement": Directory({"availability-zone": text(guest.host.zone), "region": text(REGION)}),
        "reservation-id": text(f"r-{guest.document.uuid.hex[:17]}"),
        "security-groups": text("default"),
    }
    if guest.primary is not None:
        children["mac"] = text(guest.primary.mac)
        if guest.private_ipv4:
            children["local-ipv4"] = text(guest.private_ipv4)
        ipv6s = of_version(ip_addresses(guest.primary), 6)
        if ipv6s:
            children["ipv6"] = text(str(ipv6s[0].ip))
    if guest.document.addresses:
        macs: dict[str, Node] = {a.mac: _interface(guest, n, a) for n, a in enumerate(guest.document.addresses)}
        children["network"] = Directory({"interfaces": Directory({"macs": Directory(macs)})})
    if guest.keys:
        children["public-keys"] = _public_keys(guest)
    return Directory(children)


def _interface(guest: Guest, number: int, address: Address) -> Directory:
    """One NIC. cloud-init on the EC2 platform configures no network at all without these."""
    children: dict[str, Node] = {
        "device-number": text(str(number)),
        "local-hostname": text(guest.hostname),
        "mac": text(address.mac),
    }
    for version, addresses, networks in _FAMILIES:
        found = of_version(ip_addresses(address), version)
        if found:
            children[addresses] = text("\n".join(str(one.ip) for one in found))
            children[networks] = text("\n".join(dict.fromkeys(str(one.network) for one in found)))
    return Directory(children)


def _public_keys(guest: Guest) -> Directory:
    """EC2's odd corner: the listing says ``0=name``, the path is ``0/openssh-key``."""
    children: dict[str, Node] = {str(n): Directory({"openssh-key": text(key.line)}) for n, key in enumerate(guest.keys)}
    return Directory(children, listing=[f"{n}={key.name}" for n, key in enumerate(guest.keys)])


def _dynamic(guest: Guest) -> Directory:
    document = {
        "architecture": guest.host.architecture,
        "availabilityZone": guest.host.zone,
        "imageId": guest.image_id,
        "instanceId": guest.uuid,
        "instanceType": guest.instance_type,
        "pendingTime": guest.document.created_at,
        "privateIp": guest.private_ipv4 or None,
        "region": REGION,
        "version": "2017-09-30",
    }
    leaf = Leaf(json.dumps(document, indent=2, sort_keys=True).encode(), JSON)
    return Directory({"instance-identity": Directory({"document": leaf})})
