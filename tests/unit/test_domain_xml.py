"""The domain XML of typical instances, whole, against the files beside this one.

``ECOMPUTE_REGENERATE=1`` writes the files anew instead; read the difference before you commit it. Each text is also defined in
libvirt's mock driver with validation, so that no file here can be something that libvirt refuses.
"""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest

from common.config import DiskConfig
from common.hardware import CardModel, DiskBus, Hardware
from common.model import Address, InstanceSpec, IpAddress, VolumeRef
from common.nics import AddressSource
from ecompute.anti_spoofing import FILTER_NAME, filter_parameters
from ecompute.domain_xml import DomainContext, definition_digest, domain_name, domain_xml
from tests.support.domains import a_context, a_spec, a_stamp

GOLDEN = Path(__file__).with_name("domain_xml")
UUID_OF_EXAMPLE = UUID("3f2a9c1e-0b7d-4c55-9e57-0a1b2c3d4e5f")
FIRST = Address("default", "52:54:c0:a8:7a:32", "192.168.122.50", 24, "192.168.122.1")
SECOND = Address("storage", "52:54:0a:01:00:07", "10.1.0.7", 16, "")


ON_BRIDGE = Address(
    "lan", "52:54:11:22:33:44", "10.0.0.5", 24, "10.0.0.1", more=(IpAddress("fd00:1::5", 64),), bridge="br0", vlan=42,
    source=AddressSource.STATIC, mtu=9000,
)  # fmt: skip
FOREIGN = Address("", "52:54:11:22:33:55", "", 0, bridge="br0", source=AddressSource.NONE)
LEARNED = dataclasses.replace(FOREIGN, address="10.9.0.7", prefix_length=24, source=AddressSource.LEARNED)


def example(**context: Any) -> tuple[InstanceSpec, DomainContext]:
    spec = a_spec("web-1", uuid=UUID_OF_EXAMPLE, memory_mib=256, vcpus=2)
    return spec, a_context(**{"addresses": (FIRST,), "filter_name": "clean-traffic", **context})


VOLUMES = (VolumeRef(UUID(int=0xA), "data", 0), VolumeRef(UUID("0f6d2a3c-1b2c-4d5e-8f90-123456789abc"), "logs", 3))
EXAMPLES = {
    "tcg": example(virt_type="qemu"),
    "kvm": example(virt_type="kvm"),
    "kvm-host-model-q35": example(virt_type="kvm", cpu_mode="host-model", machine_type="q35"),
    "two-cards-without-filter": example(virt_type="qemu", addresses=(FIRST, SECOND), filter_name=None),
    "on-bridges": example(virt_type="qemu", addresses=(FIRST, ON_BRIDGE, FOREIGN), filter_name=FILTER_NAME),
    "no-card": example(virt_type="qemu", addresses=()),
    "config-drive": example(virt_type="qemu", has_drive=True),
    "sata-and-e1000": (
        dataclasses.replace(example()[0], hardware=Hardware(DiskBus.SATA, CardModel.E1000)),
        example(virt_type="qemu", has_drive=True)[1],
    ),
    "volumes": (
        dataclasses.replace(example()[0], volumes=VOLUMES),
        example(virt_type="qemu", volume_paths=(Path("/v/a & b.raw"), Path("/v/c.raw")))[1],
    ),
    "volumes-on-sata": (
        dataclasses.replace(example()[0], volumes=VOLUMES[:1], hardware=Hardware(DiskBus.SATA)),
        example(virt_type="qemu", has_drive=True, volume_paths=(Path("/v/c.raw"),))[1],
    ),
    "mock": example(virt_type="test"),
    "screen": example(virt_type="qemu", graphics="vnc"),
    "filtered": (dataclasses.replace(example()[0], allow=("tcp:22",)), example(virt_type="qemu", addresses=(FIRST, SECOND))[1]),
    "raw-disk": example(virt_type="qemu", disk=DiskConfig(mode="raw")),
    "raw-disk-around-the-cache": example(virt_type="kvm", disk=DiskConfig("raw", "falloc", "none", "native", "ignore")),
    "copied-disk": example(virt_type="qemu", disk=DiskConfig(mode="copy", detect_zeroes="unmap")),
    "disk-by-io-uring": example(virt_type="kvm", disk=DiskConfig(cache="writethrough", aio="io_uring", detect_zeroes="on")),
    "disk-directsync": example(virt_type="qemu", disk=DiskConfig(cache="directsync")),
    "escaped-path": example(virt_type="qemu", directory=Path("/srv/a & b/<c>\"d'")),
}


@pytest.fixture(scope="module")
def mock() -> libvirt.virConnect:
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt.open("test:///default")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_domain_is_as_the_golden_file_has_it(name: str) -> None:
    text, golden = domain_xml(*EXAMPLES[name]), GOLDEN / f"{name}.xml"
    if os.environ.get("ECOMPUTE_REGENERATE"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs; ECOMPUTE_REGENERATE=1 writes it anew"


def test_every_golden_file_has_its_example() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_libvirt_takes_the_golden_file_as_valid(name: str, mock: libvirt.virConnect) -> None:
    handle = mock.defineXMLFlags((GOLDEN / f"{name}.xml").read_text(), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    assert handle.UUIDString() == str(UUID_OF_EXAMPLE)
    handle.undefine()


def test_a_hostile_name_stays_text() -> None:
    name = "</name><devices/>&\"'"
    root = ET.fromstring(domain_xml(a_spec(name), a_context()))
    assert root.findtext("title") == name
    assert len(root.findall("devices")) == 1


def test_domain_names_of_one_instance_name_differ_by_uuid() -> None:
    names = {domain_name("web-1", UUID_OF_EXAMPLE), domain_name("web-1", UUID(int=1))}
    assert names == {"web-1-3f2a9c1e", "web-1-00000000"}


def test_the_digest_does_not_see_the_stamp() -> None:
    spec, context = example()
    other = dataclasses.replace(context, stamp=a_stamp(spec_revision=99, booted=3))
    assert definition_digest(spec, context) == definition_digest(spec, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda s, c: (dataclasses.replace(s, resources={**s.resources, "MEMORY_MB": 512}), c),
        lambda s, c: (dataclasses.replace(s, resources={**s.resources, "VCPU": 1}), c),
        lambda s, c: (dataclasses.replace(s, name="web-2"), c),
        lambda s, c: (dataclasses.replace(s, hardware=Hardware(disk_bus=DiskBus.SATA)), c),
        lambda s, c: (dataclasses.replace(s, hardware=Hardware(card_model=CardModel.E1000)), c),
        lambda s, c: (s, dataclasses.replace(c, virt_type="kvm")),
        lambda s, c: (s, dataclasses.replace(c, machine_type="q35")),
        lambda s, c: (s, dataclasses.replace(c, cpu_mode="host-model")),
        lambda s, c: (s, dataclasses.replace(c, addresses=(SECOND,))),
        lambda s, c: (s, dataclasses.replace(c, filter_name=None)),
        lambda s, c: (s, dataclasses.replace(c, disk_path=Path("/elsewhere"))),
        lambda s, c: (s, dataclasses.replace(c, disk=DiskConfig(cache="none"))),
        lambda s, c: (s, dataclasses.replace(c, disk=DiskConfig(discard="ignore"))),
        lambda s, c: (s, dataclasses.replace(c, drive_path=Path("/drive.iso"))),
    ],
)
def test_the_digest_sees_everything_else(
    change: Callable[[InstanceSpec, DomainContext], tuple[InstanceSpec, DomainContext]],
) -> None:
    before = example()
    assert definition_digest(*before) != definition_digest(*change(*before))


def test_what_could_not_be_configured_before_is_no_change() -> None:
    """The digest that guests are stamped with, of a version that knew no such keys: an upgrade defines none anew."""
    assert definition_digest(*EXAMPLES["tcg"]) == "cb76d9a89e137a1dcd8e446a4f3610e9"
    assert definition_digest(*EXAMPLES["kvm"]) == "e612606d12f2cece2883c9477dc907ca"
    copied = example(virt_type="qemu", disk=DiskConfig(mode="copy", preallocation="metadata"))
    assert definition_digest(*copied) == definition_digest(*EXAMPLES["tcg"]), "both are qcow2"


def test_a_guest_that_has_an_address_by_now_is_not_made_anew_for_it() -> None:
    before, after = (example(addresses=(FIRST, card), filter_name=FILTER_NAME) for card in (FOREIGN, LEARNED))
    assert definition_digest(*before) == definition_digest(*after)


def test_another_filter_is_told_no_address_that_only_the_guest_vouches_for() -> None:
    parameters = [filter_parameters(card, "clean-traffic") for card in (FIRST, ON_BRIDGE, FOREIGN, LEARNED)]
    by_dhcp = (("CTRL_IP_LEARNING", "dhcp"),)  # else libvirt would take the first address that the guest sends from
    assert parameters == [(("IP", "192.168.122.50"),), (("IP", "10.0.0.5"),), by_dhcp, by_dhcp]


def test_what_the_domain_is_not_made_from_leaves_the_digest() -> None:
    spec, context = example()
    other = dataclasses.replace(spec, boot_request=5, grace_seconds=1, keys=("ssh-ed25519 AAAA",), created_by="somebody")
    assert definition_digest(spec, context) == definition_digest(other, context)
