"""The XML that crosses between libvirt and us, other than a whole domain: our stamp, networks, capabilities. Pure.

``domain_xml`` writes the stamp into a new definition; ``libvirt_driver`` reads and writes it in a living one, and reads the
rest. Nothing here knows a connection. Whatever libvirt's XML leaves out comes back as an empty value.
"""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from uuid import UUID

from ecompute.hypervisor import Card, DhcpHost, Disk, Network, Stamp

# What marks our element among others' in a domain's <metadata>. Never change it: guests that run carry it.
STAMP_NAMESPACE = "urn:etcd-compute:stamp:1"
STAMP_PREFIX = "etcd-compute"


def stamp_attributes(stamp: Stamp) -> dict[str, str]:
    return {
        "provider": str(stamp.provider),
        "cluster-id": str(stamp.cluster_id),
        "spec-revision": str(stamp.spec_revision),
        "booted": str(stamp.booted),
        "definition": stamp.definition,
        "boot-id": stamp.boot_id,
        "started-for": str(stamp.started_for),
    }


def stamp_text(stamp: Stamp) -> str:
    """The element as ``virDomainSetMetadata`` takes it: libvirt puts it into our namespace itself."""
    return ET.tostring(ET.Element("stamp", stamp_attributes(stamp)), encoding="unicode")


def stamp_of(text: str) -> Stamp | None:
    """The stamp in *text*; None where somebody else wrote there, for what we cannot read we do not own."""
    try:
        found = ET.fromstring(text)  # noqa: S314 - from the local libvirtd, which parsed it before
        return Stamp(
            provider=UUID(found.attrib["provider"]),
            cluster_id=int(found.attrib["cluster-id"]),
            spec_revision=int(found.attrib["spec-revision"]),
            booted=int(found.get("booted", "0")),
            definition=found.get("definition", ""),
            boot_id=found.get("boot-id", ""),
            started_for=int(found.get("started-for", "0")),
        )
    except (ET.ParseError, KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Capabilities:
    """What we read of ``virConnectGetCapabilities``."""

    host_uuid: str
    architecture: str
    cpu_features: frozenset[str]
    machine_types: tuple[str, ...]


def capabilities_of(text: str) -> Capabilities:
    root = ET.fromstring(text)  # noqa: S314 - from the local libvirtd
    architecture = root.findtext("host/cpu/arch", "")
    machines: dict[str, None] = {}
    for guest in root.iterfind("guest"):
        arch = guest.find("arch")
        if arch is None or guest.findtext("os_type") != "hvm" or arch.get("name") != architecture:
            continue
        # Older libvirt lists them per domain type instead of, or beside, per architecture.
        machines.update(dict.fromkeys(machine.text or "" for machine in arch.iter("machine")))
    return Capabilities(
        host_uuid=root.findtext("host/uuid", ""),
        architecture=architecture,
        cpu_features=frozenset(feature.get("name", "") for feature in root.iterfind("host/cpu/feature")),
        machine_types=tuple(machines),
    )


def network_of(text: str, *, is_active: bool) -> Network:
    """The network that *text* describes, with its first IPv4 address that serves DHCP, else its first IPv4 address."""
    root = ET.fromstring(text)  # noqa: S314 - from the local libvirtd
    bridge = root.find("bridge")
    name, bridge_name = root.findtext("name", ""), "" if bridge is None else bridge.get("name", "")
    addresses = [ip for ip in root.iterfind("ip") if ip.get("family", "ipv4") == "ipv4"]
    prefixes6 = tuple(
        str(ipaddress.IPv6Network(f"{ip.get('address')}/64", strict=False).network_address)
        for ip in root.iterfind("ip")
        if ip.get("family") == "ipv6" and ip.get("prefix") == "64" and ip.find("dhcp") is None
    )
    serving = [ip for ip in addresses if ip.find("dhcp/range") is not None]
    if not addresses:
        return Network(name, is_active, bridge_name, "", 0, "", "", (), prefixes6)
    ip = (serving or addresses)[0]
    dhcp_range = ip.find("dhcp/range")
    return Network(
        name=name,
        is_active=is_active,
        bridge=bridge_name,
        gateway=ip.get("address", ""),
        prefix_length=_prefix_length(ip),
        dhcp_start="" if dhcp_range is None else dhcp_range.get("start", ""),
        dhcp_end="" if dhcp_range is None else dhcp_range.get("end", ""),
        # An entry by name alone has no MAC; its address is taken all the same.
        dhcp_hosts=tuple(
            DhcpHost(host.get("mac", "").lower(), host.get("ip", "")) for host in ip.iterfind("dhcp/host") if host.get("ip")
        ),
        prefixes6=prefixes6,
        is_nat=any(forward.get("mode", "nat") == "nat" for forward in root.iterfind("forward")),
    )


def bridge_of_own_network(text: str) -> str:
    """The bridge that libvirt made for the network that *text* describes, "" where the network is on one of the host's."""
    root = ET.fromstring(text)  # noqa: S314 - from the local libvirtd
    forward, bridge = root.find("forward"), root.find("bridge")
    is_of_the_host = forward is not None and forward.get("mode") in ("bridge", "private", "vepa", "passthrough", "hostdev")
    return "" if is_of_the_host or bridge is None else bridge.get("name", "")


def cards_of(text: str) -> tuple[Card, ...]:
    """The network cards of the running domain that *text* describes."""
    found = []
    for interface in ET.fromstring(text).iterfind("devices/interface"):  # noqa: S314 - from the local libvirtd
        mac, target, link = interface.find("mac"), interface.find("target"), interface.find("link")
        found.append(
            Card(
                mac="" if mac is None else mac.get("address", "").lower(),
                device="" if target is None else target.get("dev", ""),
                link_is_up=link is None or link.get("state") != "down",
            )
        )
    return tuple(found)


def disks_of(text: str) -> tuple[Disk, ...]:
    """The disks of the domain that *text* describes which are files; what else there may be is not ours."""
    found = []
    for disk in ET.fromstring(text).iterfind("devices/disk"):  # noqa: S314 - from the local libvirtd
        source, target = disk.find("source"), disk.find("target")
        if source is not None and source.get("file") and target is not None:
            found.append(Disk(source.get("file", ""), target.get("dev", "")))
    return tuple(found)


def size_of(text: str) -> tuple[int, int] | None:
    """CPUs and MiB of the domain that *text*, as libvirt formats it, describes; None where it does not say."""
    root = ET.fromstring(text)  # noqa: S314 - from the local libvirtd
    vcpu, memory = root.find("vcpu"), root.find("memory")
    if vcpu is None or memory is None or memory.get("unit", "KiB") != "KiB":
        return None
    return int(vcpu.get("current") or vcpu.text or 0), int(memory.text or 0) // 1024


def disk_element(text: str, path: str) -> str | None:
    """The element of the disk *path* in the domain that *text* describes; None where it has none."""
    for disk in ET.fromstring(text).iterfind("devices/disk"):  # noqa: S314 - from the local libvirtd
        source = disk.find("source")
        if source is not None and source.get("file") == path:
            return ET.tostring(disk, encoding="unicode")
    return None


def screen_socket_of(text: str) -> str:
    """The socket at which the running domain that *text* describes serves its screen by VNC; "" where there is none."""
    found = ET.fromstring(text).find("devices/graphics[@type='vnc']/listen[@type='socket']")  # noqa: S314 - from the local libvirtd
    return "" if found is None else found.get("socket", "")


def _prefix_length(ip: ET.Element) -> int:
    if prefix := ip.get("prefix"):
        return int(prefix)
    return ipaddress.ip_network(f"0.0.0.0/{ip.get('netmask', '255.255.255.0')}").prefixlen


def dhcp_host_text(host: DhcpHost) -> str:
    return ET.tostring(ET.Element("host", {"mac": host.mac, "ip": host.address}), encoding="unicode")
