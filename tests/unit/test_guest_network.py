"""A guest's cards in the words of what configures its network."""

from __future__ import annotations

import configparser

from common.nics import Address, AddressSource, IpAddress
from ecompute.guest_network import Manager, card_data, files_for

BY_DHCP = card_data(Address("default", "52:54:00:00:00:01", "192.168.122.5", gateway="192.168.122.1"))
FIXED = card_data(
    Address(
        "lan", "52:54:00:00:00:02", "10.0.0.7", 24, "10.0.0.1", (IpAddress("fd00::7", 64, "fd00::1"),), "br0", 0,
        AddressSource.STATIC, ("10.0.0.2", "fd00::2"), 1450,
    )
)  # fmt: skip
CARDS = (BY_DHCP, FIXED)


def test_networkd_knows_each_card_by_its_mac() -> None:
    files = files_for(Manager.NETWORKD, CARDS)
    assert [mode for _, mode in files.values()] == [0o644, 0o644]
    assert files["/etc/systemd/network/05-etcd-compute-0.network"][0] == (
        "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nDHCP=yes\n"
    )
    assert files["/etc/systemd/network/05-etcd-compute-1.network"][0] == (
        "[Match]\nMACAddress=52:54:00:00:00:02\n\n[Link]\nMTUBytes=1450\n\n[Network]\nDHCP=no\nAddress=10.0.0.7/24\n"
        "Address=fd00::7/64\nGateway=10.0.0.1\nGateway=fd00::1\nDNS=10.0.0.2\nDNS=fd00::2\n"
    )


def test_network_manager_reads_keyfiles_that_only_root_may_read() -> None:
    files = files_for(Manager.NETWORK_MANAGER, CARDS)
    assert {mode for _, mode in files.values()} == {0o600}
    found = configparser.ConfigParser()
    found.read_string(files["/etc/NetworkManager/system-connections/etcd-compute-1.nmconnection"][0])
    assert found["ethernet"]["mac-address"] == "52:54:00:00:00:02"
    assert dict(found["ipv4"]) == {"method": "manual", "address1": "10.0.0.7/24,10.0.0.1", "dns": "10.0.0.2;"}
    assert dict(found["ipv6"]) == {"method": "manual", "address1": "fd00::7/64,fd00::1", "dns": "fd00::2;"}
    found.read_string(files["/etc/NetworkManager/system-connections/etcd-compute-0.nmconnection"][0])
    assert found["ipv4"]["method"] == "auto"


def test_ifupdown_knows_cards_by_the_names_that_udev_is_told_to_give_them() -> None:
    files = files_for(Manager.IFUPDOWN, CARDS)
    assert (
        files["/etc/systemd/network/05-etcd-compute-1.link"][0]
        == "[Match]\nMACAddress=52:54:00:00:00:02\n\n[Link]\nName=nic1\n"
    )
    assert files["/etc/network/interfaces"][0] == (
        "auto lo\niface lo inet loopback\n\nauto nic0\niface nic0 inet dhcp\n\nauto nic1\niface nic1 inet static\n"
        "    address 10.0.0.7/24\n    gateway 10.0.0.1\n    mtu 1450\niface nic1 inet6 static\n    address fd00::7/64\n"
        "    gateway fd00::1\n    mtu 1450\n"
    )
    assert files["/etc/resolv.conf"][0] == "nameserver 10.0.0.2\nnameserver fd00::2\n"
    assert "/etc/resolv.conf" not in files_for(Manager.IFUPDOWN, (BY_DHCP,)), "which DHCP writes"
