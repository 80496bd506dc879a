"""libvirt's error codes, and what to do about them: one of the four modules that import libvirt."""

from __future__ import annotations

import contextlib
import errno
import functools
from collections.abc import Callable, Iterator
from typing import Any

import libvirt

# The transport's own errors; their codes are of the kind "internal error".
_TRANSPORT_DOMAINS = {libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE}
_UNAVAILABLE_CODES = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_OPERATION_TIMEOUT,  # another call holds the domain: it may answer later
    libvirt.VIR_ERR_RESOURCE_BUSY,
}


def is_code(error: libvirt.libvirtError, *codes: int) -> bool:
    return error.get_error_code() in codes


def is_unavailable(error: libvirt.libvirtError) -> bool:
    """Whether libvirt did not get as far as judging the call."""
    # EBUSY: a QEMU that hangs in the kernel takes no signal yet.
    is_busy = is_code(error, libvirt.VIR_ERR_SYSTEM_ERROR) and error.get_int1() == errno.EBUSY
    return is_busy or error.get_error_domain() in _TRANSPORT_DOMAINS or is_code(error, *_UNAVAILABLE_CODES)


def one_line(error: libvirt.libvirtError) -> str:
    return " ".join((error.get_error_message() or str(error)).split())


def optional(call: Callable[..., Any], *arguments: object) -> Any:
    """*call*'s answer; None where this kind of hypervisor cannot do it, as libvirt's test driver."""
    with unless(libvirt.VIR_ERR_NO_SUPPORT):
        return call(*arguments)
    return None


@contextlib.contextmanager
def unless(*codes: int) -> Iterator[None]:
    """Errors of these *codes* end the block and nothing else."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not is_code(error, *codes):
            raise


unless_absent = functools.partial(unless, libvirt.VIR_ERR_NO_DOMAIN)
