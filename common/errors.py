"""The exceptions of etcd-compute, named by what the caller should do about them.

Every other module may import this one; it imports nothing of ours. Translating an outside library's errors into these
happens once, in the one module that imports that library (``etcd_store``, ``placement``, ``libvirt_driver``).
"""

from __future__ import annotations


class EcomputeError(Exception):
    """Base of everything that etcd-compute raises on purpose; its text says what, where, why and what to do now."""


class Transient(EcomputeError):
    """It may work later, unchanged: try again.

    Args:
        message: what failed, where and why.
        retry_after: seconds to wait before the next try, where the other side said so; else the caller's backoff decides.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreUnavailable(Transient):
    """No etcd endpoint answered within the deadline, or the answer to a write is still unknown.

    Args:
        may_have_happened: for a write, False where etcd certainly did not execute it; else the outcome is unknown.
    """

    def __init__(self, message: str, retry_after: float | None = None, *, may_have_happened: bool = True) -> None:
        super().__init__(message, retry_after)
        self.may_have_happened = may_have_happened


class NotLive(StoreUnavailable):
    """This host's lease or key in etcd is not certain at the moment: nothing new is begun, nothing is written."""


class PlacementUnavailable(Transient):
    """Placement did not answer, or answered with a server error.

    ``outcome_unknown`` is True where what was asked may have been done all the same: read back before anything else.
    """

    outcome_unknown = False
    is_overloaded = False
    """Whether it is there, and answers too late or that it cannot: who asks it less often helps it."""


class HypervisorUnavailable(Transient):
    """libvirtd cannot be reached, or the connection broke in the middle of a call."""


class ImageUnavailable(Transient):
    """The image's server did not answer, broke off, or answered with a server error."""


class Conflict(Transient):
    """Someone else changed what we wanted to change: read again, decide again."""


class GroupTaken(Conflict):
    """A group's policy does not let the instance be on this host: take another one."""


class Cancelled(Transient):
    """The work in hand was given up because its caller no longer wants it; nothing failed."""


class Permanent(EcomputeError):
    """It fails however often it is tried on this host.

    Args:
        message: what failed, where, why and what to do now.
        reason: one CamelCase word for programs; the class gives a default.
    """

    reason = "Failed"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class InvalidSpec(Permanent):
    """The request itself cannot be met, on any host."""

    reason = "InvalidSpec"


class ImageNotFound(Permanent):
    """The image's address names nothing, or nothing that can be read from here."""

    reason = "ImageNotFound"


class ImageInvalid(Permanent):
    """The bytes were fetched, but they are no disk image that we boot."""

    reason = "ImageInvalid"


class ChecksumMismatch(Permanent):
    """The image is not the one that the user named by its checksum."""

    reason = "ChecksumMismatch"


class HypervisorRejected(Permanent):
    """libvirt or QEMU understood the request and refused it."""

    reason = "HypervisorRejected"


class NoSpace(Permanent):
    """The host's disk is too full for this instance; another host may have room."""

    reason = "NoSpace"


class NoAddress(Permanent):
    """The network has no free address for this NIC; another host may have one."""

    reason = "NoAddress"


class NoCapacity(EcomputeError):
    """No host can take the request now."""


class ConfigError(EcomputeError):
    """A configuration file, an option or an argument is wrong; nothing was touched."""


class StoreRefused(StoreUnavailable, ConfigError):
    """etcd does not let us in or not there: user, password, permission or certificate need a person.

    Both a ``ConfigError`` for the command line and a ``StoreUnavailable`` for a daemon, which goes on once it is corrected.
    """


class OwnershipError(EcomputeError):
    """This provider belongs to another machine or another process: nothing may be built here."""


class UnsupportedSchema(EcomputeError):
    """A record was written by a newer version of etcd-compute; it is held, never guessed at."""
