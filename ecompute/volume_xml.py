"""The disk that a volume is to a guest, as libvirt's XML. Pure; ``domain_xml`` and the step that plugs one in agree by it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from common.hardware import DiskBus
from common.volume_refs import VolumeRef

# Behind the guest's own disk and its config drive, each of which keeps its place whether it is there or not.
_PREFIX, _FIRST = {DiskBus.VIRTIO: "vd", DiskBus.SATA: "sd"}, ord("c")


def volume_element(ref: VolumeRef, path: Path, bus: DiskBus) -> ET.Element:
    """A disk of raw bytes. What a guest writes to its beginning is never read as a format: the type is said, not guessed."""
    disk = ET.Element("disk", {"type": "file", "device": "disk"})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": "raw", "cache": "writeback", "discard": "unmap"})
    ET.SubElement(disk, "source", {"file": str(path)})
    ET.SubElement(disk, "target", {"dev": f"{_PREFIX[bus]}{chr(_FIRST + ref.slot)}", "bus": bus.value})
    ET.SubElement(disk, "serial").text = ref.serial
    return disk


def volume_xml(ref: VolumeRef, path: Path, bus: DiskBus) -> str:
    return ET.tostring(volume_element(ref, path, bus), encoding="unicode")
