"""The libvirt domain of an instance, as a pure function of its spec and of what the host adds.

Equal input gives equal text, so that a digest tells whether a domain must be defined anew. Knows libvirt's XML and nothing
else: no file, no connection, no clock. The choices below are argued where they are made; the files in
``tests/unit/domain_xml`` show whole results.
"""

from __future__ import annotations

import hashlib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from common.config import DiskConfig
from common.hardware import CardModel, DiskBus
from common.model import Address, InstanceSpec
from ecompute.anti_spoofing import filter_of, filter_parameters
from ecompute.firewall import interface_name
from ecompute.hypervisor import Stamp
from ecompute.libvirt_xml import STAMP_NAMESPACE, STAMP_PREFIX, stamp_attributes
from ecompute.volume_xml import volume_element

# By this SMBIOS product name cloud-init's ds-identify chooses the OpenStack data source before it asks any network. A guest
# with a config drive is found by the drive's label; under the first name cloud-init would wait for a network beside it.
SMBIOS_PRODUCT = "OpenStack Compute"
SMBIOS_PRODUCT_WITH_DRIVE = "etcd-compute VM"

# Translated code that QEMU keeps per guest without KVM. Its default may take a gigabyte; 32 MiB costs no boot time.
TCG_CACHE_MIB = 32

# host-passthrough: the guest has every CPU flag that its host was chosen by, and it is what the KVM probe proves.
# maximum: all that TCG can emulate. As fast as the bare qemu64 (faster where RDRAND or AES count), and the only one on
# which distributions built for x86-64-v2 or v3 boot.
DEFAULT_CPU_MODE = {"kvm": "host-passthrough", "qemu": "maximum"}


@dataclass(frozen=True)
class DomainContext:
    """What a domain is made of beside its spec.

    Args:
        virt_type: "kvm", "qemu" (TCG) or "test" (libvirt's mock).
        architecture: the host's, such as "x86_64".
        machine_type: None for libvirt's default; libvirt writes the versioned name into the definition itself.
        cpu_mode: "host-passthrough", "host-model", "maximum", or None for the default of *virt_type*.
        addresses: one per network card, in the spec's order.
        filter_name: libvirt network filter that binds each card to its own address, or None.
        drive_path: the config drive, or None where the guest has none.
        disk: how QEMU is to use the disk, whose format its name tells.
        volume_paths: one per volume, in the spec's order.
        graphics: "none", or "vnc": a screen, served at a socket in a folder that libvirt makes for QEMU and root only.
    """

    virt_type: str
    architecture: str
    disk_path: Path
    console_log_path: Path
    addresses: tuple[Address, ...]
    stamp: Stamp
    known_as: str = ""  # libvirt's name of a domain that is there already: it keeps it whatever the instance is called now
    machine_type: str | None = None
    cpu_mode: str | None = None
    filter_name: str | None = None
    drive_path: Path | None = None
    disk: DiskConfig = field(default_factory=DiskConfig)
    volume_paths: tuple[Path, ...] = ()
    graphics: str = "none"


def domain_name(name: str, uuid: UUID) -> str:
    """libvirt's name of an instance: its own, for the eye, and enough of its uuid to never meet another domain's.

    An instance name is unique in the cluster only. A host may have foreign domains, and guests of ours whose spec was lost.
    """
    return f"{name}-{uuid.hex[:8]}"


def domain_xml(spec: InstanceSpec, context: DomainContext) -> str:
    """The definition, our stamp included."""
    root = _domain(spec, context)
    root.insert(_METADATA_INDEX, _metadata(context.stamp))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def definition_digest(spec: InstanceSpec, context: DomainContext) -> str:
    """A digest of everything in the definition but the stamp."""
    return hashlib.sha256(ET.tostring(_domain(spec, context))).hexdigest()[:32]


_NAMES = {DiskBus.VIRTIO: ("vda", "vdb"), DiskBus.SATA: ("sda", "sdb")}  # of the disk and of the config drive
_METADATA_INDEX = 4  # after name, uuid, title and description


def _domain(spec: InstanceSpec, context: DomainContext) -> ET.Element:
    root = ET.Element("domain", {"type": context.virt_type})
    _text(root, "name", context.known_as or domain_name(spec.name, spec.uuid))
    _text(root, "uuid", str(spec.uuid))
    _text(root, "title", spec.name)
    _text(root, "description", "An instance of etcd-compute: change it with eschedule.")
    _text(root, "memory", str(spec.memory_mib), unit="MiB")
    _text(root, "vcpu", str(spec.vcpus))
    _sysinfo(root, spec.uuid, SMBIOS_PRODUCT_WITH_DRIVE if context.drive_path else SMBIOS_PRODUCT)
    _os(root, context)
    _features(root, context)
    if mode := context.cpu_mode or DEFAULT_CPU_MODE.get(context.virt_type):
        ET.SubElement(root, "cpu", {"mode": mode})
    _clock(root, context)
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "destroy")
    _devices(root, spec, context)
    if spec.allow is not None:
        _name_interfaces(root)
    return root


def _metadata(stamp: Stamp) -> ET.Element:
    metadata = ET.Element("metadata")
    attributes = {f"xmlns:{STAMP_PREFIX}": STAMP_NAMESPACE, **stamp_attributes(stamp)}
    ET.SubElement(metadata, f"{STAMP_PREFIX}:stamp", attributes)
    return metadata


def _sysinfo(root: ET.Element, uuid: UUID, product: str) -> None:
    system = ET.SubElement(ET.SubElement(root, "sysinfo", {"type": "smbios"}), "system")
    entries = {
        "manufacturer": "etcd-compute",
        "product": product,
        "serial": str(uuid),
        "uuid": str(uuid),
        "family": "Virtual Machine",
    }
    for name, value in entries.items():
        _text(system, "entry", value, name=name)


def _os(root: ET.Element, context: DomainContext) -> None:
    system = ET.SubElement(root, "os")
    machine = {"machine": context.machine_type} if context.machine_type else {}
    _text(system, "type", "hvm", arch=context.architecture, **machine)
    ET.SubElement(system, "boot", {"dev": "hd"})
    ET.SubElement(system, "smbios", {"mode": "sysinfo"})


def _features(root: ET.Element, context: DomainContext) -> None:
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if context.virt_type == "qemu":
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(TCG_CACHE_MIB), unit="MiB")


def _clock(root: ET.Element, context: DomainContext) -> None:
    clock = ET.SubElement(root, "clock", {"offset": "utc"})
    if context.virt_type == "kvm":
        # What virt-install gives a Linux guest: lost ticks are caught up, and no timer that interrupts an idle host.
        ET.SubElement(clock, "timer", {"name": "rtc", "tickpolicy": "catchup"})
        ET.SubElement(clock, "timer", {"name": "pit", "tickpolicy": "delay"})
        ET.SubElement(clock, "timer", {"name": "hpet", "present": "no"})


def _devices(root: ET.Element, spec: InstanceSpec, context: DomainContext) -> None:
    """A server's devices; a screen only where the host's operator wants one."""
    devices, hardware = ET.SubElement(root, "devices"), spec.hardware
    _disk(devices, context.disk_path, hardware.disk_bus, context.disk)
    if context.drive_path:
        _config_drive(devices, context.drive_path, hardware.disk_bus)
    for volume, path in zip(spec.volumes, context.volume_paths, strict=True):
        devices.append(volume_element(volume, path, hardware.disk_bus))
    for address in context.addresses:
        _interface(devices, address, hardware.card_model, context.filter_name)
    _console(devices, context.console_log_path)
    if context.graphics == "vnc":
        _screen(devices)
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", model="random")
    ET.SubElement(devices, "memballoon", {"model": "virtio"})
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})


def _disk(devices: ET.Element, path: Path, bus: DiskBus, config: DiskConfig) -> None:
    disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
    # What each of them means is said where it can be set, in compute.yaml. What is as QEMU has it anyway is left out, so that
    # the definitions of guests that are there do not change by our being able to say it.
    driver = {"name": "qemu", "type": "raw" if path.suffix == ".raw" else "qcow2", "cache": config.cache}
    if config.aio != "threads":
        driver["io"] = config.aio
    driver["discard"] = config.discard
    if config.detect_zeroes != "off":
        driver["detect_zeroes"] = config.detect_zeroes
    ET.SubElement(disk, "driver", driver)
    ET.SubElement(disk, "source", {"file": str(path)})
    ET.SubElement(disk, "target", {"dev": _NAMES[bus][0], "bus": bus.value})


def _config_drive(devices: ET.Element, path: Path, bus: DiskBus) -> None:
    """A disk that cannot be written, and no CD: Debian's cloud kernel has no driver for SATA, and others none for CDs.

    Where the guest has found its own disk it finds this one: at once, on the same bus, on every machine type. SATA knows no
    disk that cannot be written, and libvirt refuses one: there it is a CD, which systems without virtio's drivers can read.
    """
    kind = "cdrom" if bus is DiskBus.SATA else "disk"
    disk = ET.SubElement(devices, "disk", {"type": "file", "device": kind})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "raw"})
    ET.SubElement(disk, "source", {"file": str(path)})
    ET.SubElement(disk, "target", {"dev": _NAMES[bus][1], "bus": bus.value})
    ET.SubElement(disk, "readonly")


def _interface(devices: ET.Element, address: Address, model: CardModel, filter_name: str | None) -> None:
    interface = ET.SubElement(devices, "interface", {"type": "bridge" if address.bridge else "network"})
    ET.SubElement(interface, "mac", {"address": address.mac})
    source = {"bridge": address.bridge} if address.bridge else {"network": address.network}
    ET.SubElement(interface, "source", source)
    ET.SubElement(interface, "model", {"type": model.value})
    if filter_name:
        # With the address named, the filter allows that one only; else it would learn whichever the guest sends first.
        own = filter_of(address, filter_name)
        filterref = ET.SubElement(interface, "filterref", {"filter": own})
        for name, value in filter_parameters(address, own):
            ET.SubElement(filterref, "parameter", {"name": name, "value": value})
    if address.mtu:
        ET.SubElement(interface, "mtu", {"size": str(address.mtu)})
    if address.vlan:
        # libvirt 9 sets no VLAN on a bridge of Linux's. The cable is plugged in when we have set it (Step.CONNECT), whoever
        # started the guest.
        ET.SubElement(interface, "link", {"state": "down"})


def _name_interfaces(root: ET.Element) -> None:
    """Give the host's ends of a filtered guest's cards names of ours, for the rules are there before the guest starts."""
    for interface in root.iterfind("devices/interface"):
        mac = interface.find("mac")
        if mac is not None:
            ET.SubElement(interface, "target", {"dev": interface_name(mac.attrib["address"])})


def _console(devices: ET.Element, log: Path) -> None:
    """A serial line that is a console for people and a file that outlives the guest."""
    serial = ET.SubElement(devices, "serial", {"type": "pty"})
    ET.SubElement(serial, "log", {"file": str(log), "append": "on"})
    ET.SubElement(serial, "target", {"port": "0"})
    console = ET.SubElement(devices, "console", {"type": "pty"})
    ET.SubElement(console, "target", {"type": "serial", "port": "0"})


def _screen(devices: ET.Element) -> None:
    """A screen, and VNC at a socket, never at a port: who may open the socket is the host's root, so no password is needed.

    libvirt names the socket itself, in a folder that only root and QEMU's own user pass, and takes it away with the guest. VGA
    needs no driver: a boot loader shows on it, and a kernel that panics.
    """
    graphics = ET.SubElement(devices, "graphics", {"type": "vnc"})
    ET.SubElement(graphics, "listen", {"type": "socket"})
    ET.SubElement(ET.SubElement(devices, "video"), "model", {"type": "vga"})


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
