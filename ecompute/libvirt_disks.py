"""What the libvirt driver does to the disks of a domain: functions on its handle.

One of the modules that import libvirt; called by ``libvirt_driver`` alone, which translates the errors that leave here. Only
what runs is changed: its definition is written anew as a whole, so that it has one source.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt

from common.errors import Conflict
from ecompute import libvirt_memory
from ecompute.hypervisor import DomainDisks
from ecompute.libvirt_errors import is_code, unless, unless_absent
from ecompute.libvirt_xml import disk_element, disks_of

# QEMU's words where the guest was asked before and has not answered yet; libvirt has no code for it.
_UNDER_WAY = "in the process of unplug"


def read_disks(handle: libvirt.virDomain) -> DomainDisks:
    """None at all where the domain goes meanwhile."""
    with unless_absent():
        saved = libvirt_memory.saved_xml(handle)
        live = disks_of(saved or handle.XMLDesc(0)) if handle.isActive() or saved is not None else ()
        defined = disks_of(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)) if handle.isPersistent() else ()
        return DomainDisks(defined, live)
    return DomainDisks()


def attach(what: str, handle: libvirt.virDomain | None, xml: str) -> None:
    """Raises ``Conflict`` where the guest does not run."""
    if handle is None or not handle.isActive():
        raise Conflict(f"{what}: it does not run")
    source = ET.fromstring(xml).find("source")  # noqa: S314 - our own
    path = "" if source is None else source.get("file", "")
    if disk_element(handle.XMLDesc(0), path) is None:
        handle.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)


def detach(handle: libvirt.virDomain | None, path: str) -> None:
    """Ask; libvirt waits up to 5 s for the guest, on an event, and then leaves it at that."""
    if handle is None or not handle.isActive():
        return
    element = disk_element(handle.XMLDesc(0), path)
    if element is None:
        return
    try:
        with unless(libvirt.VIR_ERR_DEVICE_MISSING):  # gone since the look
            handle.detachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        if is_code(error, libvirt.VIR_ERR_OPERATION_INVALID) and not handle.isActive():
            return
        if _UNDER_WAY not in str(error):
            raise
