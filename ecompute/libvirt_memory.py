"""What the libvirt driver does with the memory of a guest that is saved to a file of the host: functions on a domain's handle.

libvirt keeps the file ("managed save") and knows of it: a start that goes on from it takes it away, so that no memory is ever
gone on with twice, or over a disk that another start has written to. One of the modules that import libvirt; called by
``libvirt_driver`` and ``libvirt_disks`` alone, whose callers translate the errors that leave here.
"""

from __future__ import annotations

import libvirt

from common.errors import Conflict
from ecompute.libvirt_errors import is_code, is_unavailable, optional, unless


def saved_xml(handle: libvirt.virDomain) -> str | None:
    """The definition that the guest goes on with, "" where this kind of hypervisor does not say; None without whole memory.

    A host that lost its power while the memory was written leaves half a file, which is none.
    """
    if handle.isActive() or not handle.hasManagedSaveImage(0):
        return None
    with unless(libvirt.VIR_ERR_OPERATION_FAILED):  # not whole, or gone meanwhile
        return optional(handle.managedSaveGetXMLDesc, 0) or ""
    return None


def save(what: str, handle: libvirt.virDomain | None) -> None:
    """Save the memory and end the process; the guest goes on where that fails.

    Raises:
        Conflict: it is off, and nothing is saved.
    """
    if handle is None:
        raise Conflict(f"{what}: there is no such domain")
    if handle.isActive():
        try:
            handle.managedSave(libvirt.VIR_DOMAIN_SAVE_RUNNING)  # it runs when it goes on, were it paused now
        except libvirt.libvirtError as error:
            if is_unavailable(error) or handle.isActive():
                raise
    if saved_xml(handle) is None:
        raise Conflict(f"{what}: it went off, and its memory is not saved")


def go_on(what: str, handle: libvirt.virDomain | None) -> None:
    """Start the guest from its saved memory; one that is up is left alone.

    Raises:
        Conflict: there is no such memory.
    """
    if handle is not None and handle.isActive():
        return
    if handle is None or saved_xml(handle) is None:
        raise Conflict(f"{what}: its memory is not saved")
    try:
        handle.create()
    except libvirt.libvirtError as error:
        if is_unavailable(error) or not handle.isActive():
            raise


def drop(handle: libvirt.virDomain) -> None:
    """Remove saved memory, be it half; what is gone already is success."""
    if not handle.isActive() and handle.hasManagedSaveImage(0):
        handle.managedSaveRemove(0)


def boot(handle: libvirt.virDomain) -> None:
    """Start the guest anew: never from saved memory, which goes."""
    try:
        handle.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)
    except libvirt.libvirtError as error:
        if not is_code(error, libvirt.VIR_ERR_INVALID_ARG):
            raise
        drop(handle)  # a driver that does not know the flag
        handle.create()
