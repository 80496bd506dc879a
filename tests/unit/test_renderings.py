"""What guests are told of themselves in OpenStack's, EC2's and NoCloud's words: each kind of card, vendor data, files of a disk."""

from __future__ import annotations

import base64
import dataclasses
import email
import json
from uuid import UUID

import pytest
import yaml

from common.errors import InvalidSpec
from common.metadata import MetadataDocument
from common.model import Address, IpAddress
from common.nics import AddressSource
from common.renderings import ec2, nocloud, openstack
from common.renderings.guest import Guest, Host
from common.renderings.network import network_config, network_data
from common.renderings.tree import Leaf, find

DHCP = Address("default", "52:54:00:00:00:01", "192.168.122.50", 24, "192.168.122.1")
DHCP_BOTH = Address("dual", "52:54:00:00:00:02", "10.9.0.5", 24, more=(IpAddress("fd00:9::5", 64),))
FOREIGN = Address("", "52:54:00:00:00:03", "", bridge="br0", source=AddressSource.NONE)
LEARNED = Address(
    "", "52:54:00:00:00:04", "10.7.0.9", 24, bridge="br0", source=AddressSource.LEARNED, more=(IpAddress("2001:db8::9", 64),)
)
STATIC = Address(
    "lan", "52:54:00:00:00:05", "10.0.0.5", 20, "10.0.0.1", bridge="br0", vlan=42, source=AddressSource.STATIC,
    name_servers=("10.0.0.2", "10.0.0.3"), mtu=1400,
)  # fmt: skip
STATIC_BOTH = Address(
    "lan", "52:54:00:00:00:06", "10.0.0.6", 24, "10.0.0.1", (IpAddress("fd00:1::6", 64, "fd00:1::1"),), "br0",
    source=AddressSource.STATIC, name_servers=("10.0.0.2", "fd00:1::2"),
)  # fmt: skip
STATIC_6 = Address("six", "52:54:00:00:00:07", "fd00:2::7", 48, bridge="br2", source=AddressSource.STATIC)


def guest_with(*cards: Address, **fields: object) -> Guest:
    return Guest(MetadataDocument(UUID(int=1), "vm", addresses=cards, **fields), Host("h1", "x86_64"))


def ec2_text(guest: Guest, path: str) -> str | None:
    leaf = find(ec2.tree(guest), ["meta-data", *path.split("/")], has_slash=False)
    return leaf and leaf.content.decode()


@pytest.mark.parametrize(
    ("card", "types"),
    [
        (DHCP, ["ipv4_dhcp"]), (DHCP_BOTH, ["ipv4_dhcp"]), (FOREIGN, ["ipv4_dhcp"]), (LEARNED, ["ipv4_dhcp"]),
        (STATIC, ["ipv4"]), (STATIC_BOTH, ["ipv4", "ipv6"]), (STATIC_6, ["ipv6"]),
    ],
)  # fmt: skip
def test_openstack_tells_how_each_card_gets_its_addresses(card, types):
    found = network_data([card])
    assert [network["type"] for network in found["networks"]] == types
    assert {network["link"] for network in found["networks"]} == {found["links"][0]["id"]}
    assert found["links"][0]["ethernet_mac_address"] == card.mac


def test_openstack_tells_all_of_a_fixed_address():
    found = network_data([STATIC])
    assert found["links"][0]["mtu"] == 1400
    assert found["networks"] == [
        {
            "id": "network0",
            "link": "nic0",
            "network_id": "lan",
            "type": "ipv4",
            "ip_address": "10.0.0.5",
            "netmask": "255.255.240.0",
            "gateway": "10.0.0.1",
            "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}],
            "services": [{"type": "dns", "address": "10.0.0.2"}, {"type": "dns", "address": "10.0.0.3"}],
        }
    ]
    assert found["services"] == found["networks"][0]["services"]


def test_openstack_tells_each_family_its_own():
    v4, v6 = network_data([STATIC_BOTH])["networks"]
    assert (v6["ip_address"], v6["netmask"]) == ("fd00:1::6", "ffff:ffff:ffff:ffff::")
    assert v6["routes"] == [{"network": "::", "netmask": "::", "gateway": "fd00:1::1"}]
    assert (v4["services"], v6["services"]) == (
        [{"type": "dns", "address": "10.0.0.2"}],
        [{"type": "dns", "address": "fd00:1::2"}],
    )
    assert network_data([STATIC_6])["networks"][0]["routes"] == []


def test_names_in_network_data_are_each_one_s_own():
    found = network_data([STATIC_BOTH, DHCP, FOREIGN])
    assert [link["id"] for link in found["links"]] == ["nic0", "nic1", "nic2"]
    assert [network["id"] for network in found["networks"]] == ["network0", "network1", "network2", "network3"]
    assert found["networks"][3]["network_id"] == "nic2"  # a bridge that is no network of the cluster


@pytest.mark.parametrize("card", [DHCP, DHCP_BOTH, FOREIGN, LEARNED, STATIC, STATIC_BOTH, STATIC_6])
def test_the_tag_on_the_host_s_wire_is_never_told(card):
    everything = json.dumps([network_data([card]), network_config([card])])
    assert "vlan" not in everything
    assert "42" not in everything


@pytest.mark.parametrize("cards", [(), (DHCP,), (FOREIGN,), (LEARNED,)])
def test_nocloud_says_nothing_of_what_cloud_init_does_unasked(cards):
    assert network_config(cards) is None


def test_nocloud_tells_fixed_addresses():
    assert network_config([STATIC_BOTH]) == {
        "version": 2,
        "ethernets": {
            "nic0": {
                "match": {"macaddress": "52:54:00:00:00:06"},
                "addresses": ["10.0.0.6/24", "fd00:1::6/64"],
                "gateway4": "10.0.0.1",
                "gateway6": "fd00:1::1",
                "accept-ra": False,
                "nameservers": {"addresses": ["10.0.0.2", "fd00:1::2"]},
            }
        },
    }


def test_nocloud_leaves_a_fixed_address_without_gateway_to_what_routers_announce():
    card = (network_config([STATIC_6]) or {})["ethernets"]["nic0"]
    assert card == {"match": {"macaddress": STATIC_6.mac}, "addresses": ["fd00:2::7/48"]}


def test_nocloud_tells_of_every_card_once_there_are_two_and_the_first_leads_out():
    cards = (network_config([DHCP, STATIC, DHCP_BOTH]) or {})["ethernets"]
    assert cards["nic0"] == {
        "match": {"macaddress": DHCP.mac}, "dhcp4": True, "dhcp4-overrides": {"route-metric": 100},
    }  # fmt: skip
    assert cards["nic1"]["routes"] == [{"to": "0.0.0.0/0", "via": "10.0.0.1", "metric": 200}]
    assert (cards["nic1"]["mtu"], cards["nic2"]["dhcp4"], "dhcp6" in cards["nic2"]) == (1400, True, False)


def test_one_card_leads_out_in_each_family():
    other = dataclasses.replace(
        STATIC_BOTH, mac=STATIC.mac, address="10.9.0.6", gateway="10.9.0.1", more=(IpAddress("fd00:9::6", 64, "fd00:9::1"),)
    )
    nocloud = (network_config([STATIC_BOTH, other]) or {})["ethernets"]
    assert [(card.get("gateway4"), card.get("gateway6")) for card in nocloud.values()] == [
        ("10.0.0.1", "fd00:1::1"),
        (None, None),
    ]
    assert nocloud["nic1"]["routes"] == [{"to": "0.0.0.0/0", "via": "10.9.0.1", "metric": 200}]
    assert [network.get("gateway") for network in network_data([STATIC_BOTH, other])["networks"]] == [
        "10.0.0.1",
        "fd00:1::1",
        None,
        None,
    ]
    asked = network_data([DHCP, STATIC_BOTH])["networks"]
    assert [network.get("gateway") for network in asked] == [None, None, "fd00:1::1"], "DHCP says where IPv4 leads out"


def test_ec2_lists_both_families_of_a_card():
    guest = guest_with(STATIC_BOTH, STATIC_6)
    macs = f"network/interfaces/macs/{STATIC_BOTH.mac}"
    assert ec2_text(guest, f"{macs}/local-ipv4s") == "10.0.0.6"
    assert ec2_text(guest, f"{macs}/subnet-ipv4-cidr-block") == "10.0.0.0/24"
    assert ec2_text(guest, f"{macs}/ipv6s") == "fd00:1::6"
    assert ec2_text(guest, f"{macs}/subnet-ipv6-cidr-blocks") == "fd00:1::/64"
    assert (ec2_text(guest, "local-ipv4"), ec2_text(guest, "ipv6")) == ("10.0.0.6", "fd00:1::6")
    assert ec2_text(guest, f"network/interfaces/macs/{STATIC_6.mac}/local-ipv4s") is None


def test_ec2_lists_several_addresses_of_one_family_line_by_line():
    card = Address("n", "52:54:00:00:00:08", "10.0.0.8", 24, more=(IpAddress("10.0.0.9", 24),))
    macs = f"network/interfaces/macs/{card.mac}"
    guest = guest_with(card)
    assert ec2_text(guest, f"{macs}/local-ipv4s") == "10.0.0.8\n10.0.0.9"
    assert ec2_text(guest, f"{macs}/subnet-ipv4-cidr-block") == "10.0.0.0/24"


def test_a_card_with_ipv6_alone_has_no_ipv4_anywhere():
    guest = guest_with(STATIC_6)
    assert (ec2_text(guest, "local-ipv4"), ec2_text(guest, "ipv6")) == (None, "fd00:2::7")
    identity = find(ec2.tree(guest), ["dynamic", "instance-identity", "document"], has_slash=False)
    assert identity is not None
    assert json.loads(identity.content)["privateIp"] is None


def test_nocloud_s_meta_data_is_yaml_in_lines():
    guest = guest_with(hostname="123", keys=("ssh-ed25519 AAAA a: b # c", "ssh-rsa " + "A" * 700 + " ☃"))
    content = nocloud.files(guest)["meta-data"]
    assert yaml.safe_load(content) == {
        "instance-id": str(UUID(int=1)),
        "local-hostname": "123",
        "public-keys": list(guest.document.keys),
    }
    assert content.splitlines()[0] == f"instance-id: {UUID(int=1)}".encode()
    assert len(content.splitlines()) == 5


def test_a_disk_for_nocloud_holds_what_has_to_be_there_and_what_there_is():
    assert set(nocloud.files(guest_with(DHCP))) == {"meta-data", "user-data"}
    full = nocloud.files(guest_with(STATIC, user_data_base64="dXNlcg==", vendor_data_base64="dmVuZG9y"))
    assert (full["user-data"], full["vendor-data"]) == (b"user", b"vendor")
    assert yaml.safe_load(full["network-config"]) == network_config([STATIC])


def test_over_http_nocloud_answers_for_each_file():
    listing = find(nocloud.tree(guest_with(DHCP)), [], has_slash=True)
    assert listing == Leaf(b"meta-data\nnetwork-config\nuser-data\nvendor-data")
    for name in listing.content.decode().splitlines():
        assert find(nocloud.tree(guest_with(DHCP)), [name], has_slash=False) is not None


def test_a_config_drive_holds_what_openstack_answers():
    guest = guest_with(STATIC, user_data_base64="dXNlcg==")
    files = openstack.files(guest, bytes)
    for version in ("2018-08-27", "latest"):
        assert files[f"openstack/{version}/user_data"] == b"user"
        assert json.loads(files[f"openstack/{version}/meta_data.json"])["uuid"] == guest.uuid
        assert json.loads(files[f"openstack/{version}/network_data.json"]) == network_data([STATIC])
    assert len(files) == 10


def vendor_data(data: bytes) -> dict[str, str]:
    guest = guest_with(vendor_data_base64=base64.b64encode(data).decode())
    files = openstack.files(guest, bytes)
    assert json.loads(files["openstack/latest/vendor_data2.json"]) == {}  # else cloud-init would run it twice
    found: dict[str, str] = json.loads(files["openstack/latest/vendor_data.json"])
    return found


def test_vendor_data_is_under_cloud_init_s_name():
    assert vendor_data(b'#cloud-config\n{"a": "\xc3\xa9"}') == {"cloud-init": '#cloud-config\n{"a": "é"}'}


@pytest.mark.parametrize(
    ("data", "kind"), [(b"\x1f\x8b\x08rest", "application/gzip"), (b"\xff\x00", "application/octet-stream")]
)
def test_vendor_data_that_is_no_text_comes_as_a_message(data, kind):
    message = email.message_from_string(vendor_data(data)["cloud-init"])
    assert (message.get_content_type(), message.get_payload(decode=True)) == (kind, data)


def test_vendor_data_is_not_ec2_s():
    tree = ec2.tree(guest_with(vendor_data_base64="eA=="))
    assert set(tree.children) == {"dynamic", "meta-data"}


def test_data_that_cannot_be_decoded_is_told_by_its_name():
    guest = guest_with(vendor_data_base64="%")
    with pytest.raises(InvalidSpec, match="vendor_data_base64"):
        nocloud.files(guest)
