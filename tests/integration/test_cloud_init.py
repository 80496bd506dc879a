"""cloud-init's own data sources as judges: what do they understand of what we tell a guest, by HTTP and on its drive?

A host and a guest as two networks with a cable between them, a real md-server at 169.254.169.254, and Debian's cloud-init in
the guest's network, with its default addresses. Each test reads like a guest's first boot.
"""

from __future__ import annotations

import base64
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from common.metadata import MetadataStore
from common.model import Address, ConfigDrive, ImageRef, InstanceSpec, IpAddress, MetadataAccess
from common.nics import AddressSource
from ecompute.blueprint import Blueprint
from ecompute.config_drive import ConfigDrives
from tests.support.cloud_init import Asked, Firmware, Understood, identified, understood
from tests.support.namespace import Namespace
from tests.support.processes import spawn, stop, wait_until

METADATA, HOST, GUEST = "169.254.169.254", "192.168.122.1", "192.168.122.50"
GUEST_UUID = UUID("3f2a9c1e-0b7d-4c55-9e57-0a1b2c3d4e5f")
MACS = ("52:54:c0:a8:7a:32", "52:54:00:00:00:07", "52:54:00:00:00:08")
KEYS = ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAdfM3tD8v9XkqLqz2m4Jv1b0n5rRkq4yS8h2wZ6xYcE alice@desk", "ssh-ed25519 AAAA bob")
USER_DATA = b"#cloud-config\nhostname: from-user-data\nruncmd: [[touch, /run/seen]]\n"
VENDOR_DATA = "#cloud-config\npackages: [nfs-common]\n# f\u00fcr alle\n"

BY_DHCP = Address("default", MACS[0], GUEST, 24, HOST)
STATIC = Address(
    "lan", MACS[1], "10.0.0.7", 24, "10.0.0.1", bridge="br0", source=AddressSource.STATIC,
    name_servers=("10.0.0.2", "10.0.0.3"), mtu=1450,
)  # fmt: skip
DUAL = dataclasses.replace(STATIC, more=(IpAddress("fd00:1::7", 64, "fd00:1::1"),))
SECOND = Address("storage", MACS[2], "10.9.0.7", 16, bridge="br1", source=AddressSource.STATIC)
WITH_DRIVE = Firmware("etcd-compute VM", serial=str(GUEST_UUID), uuid=str(GUEST_UUID))
WITHOUT_DRIVE = dataclasses.replace(WITH_DRIVE, product="OpenStack Compute")


class World:
    """A host that answers, and a guest with three cards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host, self.guest = Namespace(folder / "host"), Namespace(folder / "guest")
        self._connect()
        self.documents = MetadataStore(folder / "state" / "metadata")
        (folder / "compute.yaml").write_text(f"name: h1\npaths: {{state_dir: {folder}/state, run_dir: {folder}/run}}\n")
        self.log = folder / "md-server.log"
        command = [
            sys.executable,
            "-m",
            "md_server.main",
            "--config",
            folder / "compute.yaml",
            "--bridge",
            "",
            "--listen",
            f"{METADATA}:80",
        ]
        self._server = spawn(self.host.in_network(*command), log=self.log)
        wait_until(self._serves, timeout_seconds=15, what="md-server serves", evidence=self.log.read_text)

    def _serves(self) -> bool:
        assert self._server.poll() is None, self.log.read_text()
        return "message=serving" in self.log.read_text()

    def _connect(self) -> None:
        host, guest = self.host.run, self.guest.run
        for number, mac in enumerate(MACS):
            host("ip", "link", "add", f"tap{number}", "type", "veth", "peer", "name", f"eth{number}", "address", mac)
            # By its path out here, as the namespace's own /proc does not show the other one's processes.
            plug = self.host.in_network("ip", "link", "set", f"eth{number}", "netns", str(self.guest.pid))
            subprocess.run(plug, check=True, timeout=10)
        for address in (f"{HOST}/24", f"{METADATA}/32"):
            host("ip", "addr", "add", address, "dev", "tap0")
        host("ip", "link", "set", "tap0", "up")
        guest("ip", "addr", "add", f"{GUEST}/24", "dev", "eth0")
        guest("ip", "link", "set", "eth0", "up")
        guest("ip", "route", "add", "default", "via", HOST)

    def close(self) -> None:
        stop(self._server)
        self.guest.close()
        self.host.close()

    def blueprint(self, *, vendor_data: str | None = VENDOR_DATA) -> Blueprint:
        return Blueprint(
            provider=UUID(int=1), boot_id="boot", virt_type="qemu", architecture="x86_64", machine_type=None, cpu_mode=None,
            filter_name=None, instances_directory=self.folder / "instances", zone="h1",
            vendor_data_base64=None if vendor_data is None else base64.b64encode(vendor_data.encode()).decode(),
        )  # fmt: skip

    def tell(self, spec: InstanceSpec, addresses: tuple[Address, ...], *, vendor_data: str | None = VENDOR_DATA) -> None:
        """Have md-server know the guest, as ecompute would."""
        self.documents.write(self.blueprint(vendor_data=vendor_data).document(spec, addresses))

    def drive(self, spec: InstanceSpec, addresses: tuple[Address, ...], *, vendor_data: str | None = VENDOR_DATA) -> Path:
        """The guest's drive, as ecompute would make it."""
        drives = ConfigDrives(self.folder / "instances")
        drives.write(spec.uuid, self.blueprint(vendor_data=vendor_data).drive(spec, addresses))
        return drives.path(spec.uuid)

    def ask(self, asked: Asked, folder: Path) -> Understood:
        return understood(asked, folder, network_of=self.guest.pid)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("cloud-init"))
    yield made
    made.close()


def a_spec(**changes: object) -> InstanceSpec:
    spec = InstanceSpec(
        GUEST_UUID, "web-1", ImageRef("/srv/debian.qcow2"), {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 4}, keys=KEYS,
        hostname="web-1.example.org", user_data_base64=base64.b64encode(USER_DATA).decode(), created_at="2026-01-02T03:04:05Z",
    )  # fmt: skip
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def assert_is_the_guest(found: Understood) -> None:
    """All that does not depend on its network."""
    assert found.is_found
    assert (found.instance_id, found.keys) == (str(GUEST_UUID), KEYS)
    assert found.hostname in ("web-1", "web-1.example.org")
    assert (found.user_data, found.user_data_parts) == (USER_DATA, ("text/cloud-config",))


def assert_follows_vendor_data(found: Understood) -> None:
    assert found.vendor_data == VENDOR_DATA.encode()
    assert found.vendor_data_parts == ("text/cloud-config",)


def stanza(interfaces: str | None, card: str, family: str) -> list[str]:
    """The lines for one card and family of /etc/network/interfaces, without their indentation."""
    assert interfaces is not None
    found: list[str] = []
    is_inside = False
    for line in interfaces.splitlines():
        if not line.startswith((" ", "\t")):
            is_inside = line.startswith((f"iface {card} {family} ", f"iface {card}:1 {family} "))
        if is_inside and line.strip():
            found.append(line.strip())
    return found


def assert_dual_stack_card(interfaces: str | None, *, leads_out: bool) -> None:
    """eth1 has what ``DUAL`` says; its IPv4 gateway is the guest's where no card before it was given one."""
    four, six = stanza(interfaces, "eth1", "inet"), stanza(interfaces, "eth1", "inet6")
    assert four[0].endswith("inet static")
    assert {"address 10.0.0.7/24", "mtu 1450"} <= set(four), interfaces
    assert ("gateway 10.0.0.1" in four) is leads_out, interfaces
    assert "dns-nameservers 10.0.0.2 10.0.0.3" in (interfaces or "")
    assert six[0].endswith("inet6 static")
    assert {"address fd00:1::7/64", "gateway fd00:1::1"} <= set(six), interfaces


# -- OpenStack over HTTP -------------------------------------------------------------------------------------------------

OPENSTACK = Asked("OpenStack", firmware=WITHOUT_DRIVE)


def test_openstack_over_http(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(), (BY_DHCP,))
    found = world.ask(OPENSTACK, tmp_path)
    assert_is_the_guest(found)
    assert_follows_vendor_data(found)
    assert (found.availability_zone, found.platform) == ("h1", "openstack")
    assert found.is_still_valid, "the next boot knows by its firmware that it is the same instance"
    assert stanza(found.interfaces, "eth0", "inet") == ["iface eth0 inet dhcp"]


def test_openstack_over_http_with_several_cards(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(), (BY_DHCP, DUAL, SECOND))
    found = world.ask(OPENSTACK, tmp_path)
    assert_is_the_guest(found)
    assert_three_cards(found.interfaces)


def test_openstack_tells_a_guest_without_keys_and_data_as_much(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(keys=(), user_data_base64=None, hostname=""), (BY_DHCP,), vendor_data=None)
    found = world.ask(OPENSTACK, tmp_path)
    assert (found.instance_id, found.hostname, found.keys) == (str(GUEST_UUID), "web-1", ())
    assert (found.user_data or b"", found.vendor_data or b"") == (b"", b"")


def test_with_a_drive_openstack_asks_nobody(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(), (BY_DHCP,))
    assert not world.ask(dataclasses.replace(OPENSTACK, firmware=WITH_DRIVE), tmp_path).is_found


def assert_three_cards(interfaces: str | None) -> None:
    """eth0 asks, eth1 and eth2 are told."""
    assert stanza(interfaces, "eth0", "inet")[0] == "iface eth0 inet dhcp"
    assert_dual_stack_card(interfaces, leads_out=False)
    second = stanza(interfaces, "eth2", "inet")
    assert "address 10.9.0.7/16" in second
    assert not [line for line in second if line.startswith(("gateway", "mtu"))]


# -- drives --------------------------------------------------------------------------------------------------------------

BINARY = bytes(range(256)) * 200


def on_drive(drive: Path, name: str = "ConfigDrive") -> Asked:
    return Asked(name, drive=drive, firmware=WITH_DRIVE)


@pytest.mark.parametrize("name", ["ConfigDrive", "NoCloud"])
class TestOnADrive:
    """Both forms of drive, in a guest that no network helps."""

    def drive(
        self, world: World, name: str, *addresses: Address, vendor_data: str | None = VENDOR_DATA, **changes: object
    ) -> Asked:
        form = ConfigDrive.OPENSTACK if name == "ConfigDrive" else ConfigDrive.NOCLOUD
        spec = a_spec(config_drive=form, metadata=MetadataAccess.OFF, **changes)
        return on_drive(world.drive(spec, addresses, vendor_data=vendor_data), name)

    def test_all_that_http_tells(self, name: str, world: World, tmp_path: Path) -> None:
        found = world.ask(self.drive(world, name, STATIC), tmp_path)
        assert_is_the_guest(found)
        assert_follows_vendor_data(found)
        four = stanza(found.interfaces, "eth1", "inet")
        assert {"address 10.0.0.7/24", "gateway 10.0.0.1", "mtu 1450"} <= set(four), found.interfaces
        assert stanza(found.interfaces, "eth1", "inet6") == []

    def test_two_families(self, name: str, world: World, tmp_path: Path) -> None:
        assert_dual_stack_card(world.ask(self.drive(world, name, DUAL), tmp_path).interfaces, leads_out=True)

    def test_several_cards(self, name: str, world: World, tmp_path: Path) -> None:
        assert_three_cards(world.ask(self.drive(world, name, BY_DHCP, DUAL, SECOND), tmp_path).interfaces)

    def test_a_card_on_a_foreign_network_asks_there(self, name: str, world: World, tmp_path: Path) -> None:
        foreign = Address("", MACS[2], "", bridge="br1", source=AddressSource.NONE)
        found = world.ask(self.drive(world, name, STATIC, foreign), tmp_path)
        assert stanza(found.interfaces, "eth2", "inet")[0] == "iface eth2 inet dhcp"

    def test_neither_keys_nor_data(self, name: str, world: World, tmp_path: Path) -> None:
        asked = self.drive(world, name, STATIC, keys=(), user_data_base64=None, hostname="", vendor_data=None)
        found = world.ask(asked, tmp_path)
        assert (found.instance_id, found.hostname, found.keys) == (str(GUEST_UUID), "web-1", ())
        assert (found.user_data or b"", found.vendor_data or b"") == (b"", b"")

    def test_user_data_of_any_bytes_and_the_full_length(self, name: str, world: World, tmp_path: Path) -> None:
        data = b"#!/bin/sh\n" + BINARY + b"\n" * (65536 - len(BINARY) - 10)
        asked = self.drive(world, name, STATIC, user_data_base64=base64.b64encode(data).decode())
        found = world.ask(asked, tmp_path)
        assert found.user_data == data
        assert found.user_data_parts == ("text/x-shellscript",)

    def test_no_other_source_takes_it_for_its_own(self, name: str, world: World, tmp_path: Path) -> None:
        other = "NoCloud" if name == "ConfigDrive" else "ConfigDrive"
        assert not world.ask(dataclasses.replace(self.drive(world, name, STATIC), list_name=other), tmp_path).is_found


def test_the_next_boot_knows_a_config_drives_guest_by_its_firmware(world: World, tmp_path: Path) -> None:
    drive = world.drive(a_spec(config_drive=ConfigDrive.OPENSTACK), (STATIC,))
    assert world.ask(on_drive(drive), tmp_path).is_still_valid


# -- which of them a guest asks at all -----------------------------------------------------------------------------------


def test_a_guest_without_a_drive_asks_openstack_s_address(tmp_path: Path) -> None:
    assert identified(WITHOUT_DRIVE, tmp_path) == ["OpenStack"]


@pytest.mark.parametrize(("form", "source"), [(ConfigDrive.OPENSTACK, "ConfigDrive"), (ConfigDrive.NOCLOUD, "NoCloud")])
def test_a_guest_with_a_drive_waits_for_no_network(form: ConfigDrive, source: str, world: World, tmp_path: Path) -> None:
    drive = world.drive(a_spec(config_drive=form), (STATIC,))
    assert identified(WITH_DRIVE, tmp_path, drive) == [source]


def test_under_the_other_name_it_would_wait(world: World, tmp_path: Path) -> None:
    drive = world.drive(a_spec(config_drive=ConfigDrive.NOCLOUD), (STATIC,))
    assert identified(WITHOUT_DRIVE, tmp_path, drive) == ["NoCloud", "OpenStack"]


# -- NoCloud over HTTP ---------------------------------------------------------------------------------------------------

SEED = f"ds=nocloud-net;s=http://{METADATA}/nocloud/"
LED_BY = {
    "its firmware's serial number": {"firmware": dataclasses.replace(WITHOUT_DRIVE, serial=SEED)},
    "its kernel's command line": {"command_line": f"root=/dev/vda1 {SEED}"},
    "its image's configuration": {"settings": {"seedfrom": f"http://{METADATA}/nocloud/"}},
}


@pytest.mark.parametrize("way", LED_BY)
def test_nocloud_over_http(way: str, world: World, tmp_path: Path) -> None:
    world.tell(a_spec(), (BY_DHCP,))
    found = world.ask(Asked("NoCloud", "DataSourceNoCloudNet", **LED_BY[way]), tmp_path)
    assert_is_the_guest(found)
    assert_follows_vendor_data(found)


def test_nocloud_over_http_tells_a_guest_without_keys_and_data_as_much(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(keys=(), user_data_base64=None, hostname=""), (BY_DHCP,), vendor_data=None)
    found = world.ask(Asked("NoCloud", "DataSourceNoCloudNet", settings={"seedfrom": f"http://{METADATA}/nocloud/"}), tmp_path)
    assert (found.instance_id, found.hostname, found.keys) == (str(GUEST_UUID), "web-1", ())
    assert (found.user_data or b"", found.vendor_data or b"") == (b"", b"")


# -- EC2 -----------------------------------------------------------------------------------------------------------------

EC2 = Asked("Ec2", firmware=WITHOUT_DRIVE)


def test_ec2_of_an_unknown_kind(world: World, tmp_path: Path) -> None:
    """As in images that name this source alone."""
    world.tell(a_spec(), (BY_DHCP, DUAL))
    found = world.ask(EC2, tmp_path)
    assert_is_the_guest(found)
    assert found.availability_zone == "h1"
    assert stanza(found.interfaces, "eth0", "inet")[0] == "iface eth0 inet dhcp"


# As Amazon's machines call themselves; such guests get a token first, and ask for nothing without it.
AMAZON = Asked(
    "Ec2",
    "DataSourceEc2Local",
    firmware=Firmware("t3.micro", serial=f"ec2{str(GUEST_UUID)[3:]}", uuid=f"ec2{str(GUEST_UUID)[3:]}"),
)


@pytest.mark.parametrize("access", [MetadataAccess.OPTIONAL, MetadataAccess.REQUIRED])
def test_ec2_with_a_session_token(access: MetadataAccess, world: World, tmp_path: Path) -> None:
    world.tell(a_spec(metadata=access), (BY_DHCP,))
    found = world.ask(AMAZON, tmp_path)
    assert_is_the_guest(found)
    assert found.availability_zone == "h1"
    assert stanza(found.interfaces, "eth0", "inet")[0] == "iface eth0 inet dhcp"


def test_ec2_tells_a_guest_without_keys_and_data_as_much(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(keys=(), user_data_base64=None, hostname=""), (BY_DHCP,), vendor_data=None)
    for number, asked in enumerate((EC2, AMAZON)):
        found = world.ask(asked, tmp_path / str(number))
        assert (found.instance_id, found.hostname, found.keys, found.user_data) == (str(GUEST_UUID), "web-1", (), b"")


# -- who may not read ----------------------------------------------------------------------------------------------------

BRIEFLY = {"max_wait": 2, "timeout": 2, "retries": 1}  # a guest at its boot would ask for minutes


@pytest.mark.parametrize("source", ["Ec2", "OpenStack"])
@pytest.mark.parametrize("access", [MetadataAccess.REQUIRED, MetadataAccess.OFF])
def test_who_shows_no_token_where_one_is_required_or_all_is_off_is_told_nothing(
    access: MetadataAccess, source: str, world: World, tmp_path: Path
) -> None:
    world.tell(a_spec(metadata=access), (BY_DHCP,))
    assert not world.ask(Asked(source, firmware=WITHOUT_DRIVE, settings=BRIEFLY), tmp_path).is_found


def test_with_metadata_off_a_token_helps_nobody(world: World, tmp_path: Path) -> None:
    world.tell(a_spec(metadata=MetadataAccess.OFF), (BY_DHCP,))
    assert not world.ask(dataclasses.replace(AMAZON, settings=BRIEFLY), tmp_path).is_found
