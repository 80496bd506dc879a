"""Reserved addresses on a real libvirt network: what dnsmasq then gives to whom, and what outlives libvirtd."""

from __future__ import annotations

import ipaddress
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.model import Nic
from ecompute.address_pairs import candidates, is_ours, pair_of
from ecompute.hypervisor import Network
from ecompute.libvirt_driver import LibvirtDriver
from ecompute.network import AddressPools
from tests.support.hosts import NamespacedHost
from tests.support.processes import wait_until

NO_STOP = threading.Event()
STRANGER = "52:54:00:11:22:33"

# A guest's network card: one end of a cable in the bridge, a DHCP client at the other.
ASK_FOR_ADDRESS = """\
set -e
ip link add dhcp0 type veth peer name dhcp1
trap 'ip link del dhcp0' EXIT
ip link set dhcp0 master virbr0 up
ip link set dhcp1 address {mac} up
printf '#!/bin/sh\\n[ "$1" = bound ] && echo "$ip" > {answer}\\nexit 0\\n' > {answer}.sh
chmod +x {answer}.sh
busybox udhcpc -i dhcp1 -f -q -n -t 10 -T 1 -s {answer}.sh {request} >&2
cat {answer}
"""


def asked_for_address(host: NamespacedHost, mac: str, directory: Path, *, wanted: str = "") -> str:
    """The address that a guest with *mac* gets; it may ask for the one it *wanted*."""
    answer = directory / f"answer-{uuid.uuid4().hex}"
    request = f"-r {wanted}" if wanted else ""
    script = ASK_FOR_ADDRESS.format(mac=mac, answer=answer, request=request)
    return host.run(["bash", "-c", script], timeout_seconds=30).stdout.strip()


@pytest.fixture
def driver(libvirt_host: NamespacedHost) -> Iterator[LibvirtDriver]:
    driver = LibvirtDriver(libvirt_host.uri)
    yield driver
    driver.close()


@pytest.fixture
def pools(driver: LibvirtDriver, tmp_path: Path) -> Iterator[AddressPools]:
    pools = AddressPools(driver, tmp_path / "network", reserve_ahead=2)
    yield pools
    for instance in pools.assignments():
        pools.release(instance)
    pools.remove_all_unassigned()


def default_network(driver: LibvirtDriver) -> Network:
    network = driver.network("default")
    assert network is not None
    return network


def test_a_guest_gets_its_reserved_address_and_nobody_else_does(
    libvirt_host: NamespacedHost, pools: AddressPools, tmp_path: Path
) -> None:
    assert pools.replenish(NO_STOP)
    began = time.monotonic()
    address = pools.reserve(uuid.uuid4(), [Nic()])[0]
    took = time.monotonic() - began
    assert asked_for_address(libvirt_host, STRANGER, tmp_path, wanted=address.address) != address.address
    assert asked_for_address(libvirt_host, address.mac, tmp_path) == address.address
    assert took < 0.25, "what is ready must not wait for libvirt, which takes 0.3 s for a change"


def test_an_address_that_another_guest_leases_is_left_to_it(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, pools: AddressPools, tmp_path: Path
) -> None:
    leased = {lease.address for lease in driver.leases("default")}  # by guests of other tests
    wanted = next(pair.address for pair in candidates(default_network(driver), ()) if pair.address not in leased)
    assert asked_for_address(libvirt_host, "52:54:00:11:22:44", tmp_path, wanted=wanted) == wanted
    number = int(ipaddress.IPv4Address(wanted))
    while True:
        address = pools.reserve(uuid.uuid4(), [Nic()])[0]
        assert address.address != wanted
        if int(ipaddress.IPv4Address(address.address)) < number:
            break
    assert asked_for_address(libvirt_host, address.mac, tmp_path) == address.address


def test_entries_outlive_libvirtd_and_a_network_defined_anew_gets_them_back(
    libvirt_host: NamespacedHost, driver: LibvirtDriver, pools: AddressPools, tmp_path: Path
) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=pools.run, args=(stop,), daemon=True)
    thread.start()

    def reserved() -> set[str]:
        return {entry.address for entry in default_network(driver).dhcp_hosts if is_ours(entry)}

    try:
        guest = uuid.uuid4()
        address = pools.reserve(guest, [Nic()])[0]
        pools.started(guest)
        wait_until(lambda: len(reserved()) == 3, timeout_seconds=20, what="one is taken and two are ready")
        before = reserved()
        libvirt_host.stop_libvirtd()
        libvirt_host.start_libvirtd()
        assert reserved() == before
        libvirt_host.run(["bash", "-c", "virsh net-dumpxml --inactive default | grep -v '<host ' > /run/default.xml"])
        libvirt_host.run(
            ["bash", "-c", "for do in destroy undefine; do virsh net-$do default; done; virsh net-define /run/default.xml; "
                           "virsh net-autostart default; virsh net-start default"]
        )  # fmt: skip
        assert address.address not in reserved()
        pools.wake()
        wait_until(lambda: len(reserved()) == 3, timeout_seconds=20, what="the entries are back")
        assert pair_of(address.address) in default_network(driver).dhcp_hosts
        assert asked_for_address(libvirt_host, address.mac, tmp_path) == address.address
    finally:
        stop.set()
        pools.wake()
        thread.join(10)
