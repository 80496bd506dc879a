"""Looks into guests' disks and changes them before they are anybody's, through libguestfs; the only importer of ``guestfs``.

``GuestfsTools`` is for the daemon and asks a child for each job. The child is this module as a program: it reads its job from
its input as one line of JSON, drops its privileges, starts the appliance and prints its answer as JSON. What is done inside is
in ``guest_system``, ``guest_growth``, ``guest_files`` and ``guest_sealing``; the cage around the child in ``appliance``.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from common.disk_content import DiskContent
from common.errors import Permanent
from common.nics import Address
from ecompute.appliance import DIST_PACKAGES, MEMORY_MIB, Appliance
from ecompute.guest_files import write
from ecompute.guest_growth import grow
from ecompute.guest_network import card_data
from ecompute.guest_sealing import seal
from ecompute.guest_system import Handle, Refused, System, look, system_from


@dataclass(frozen=True)
class DiskChanges:
    """What a new disk of *size_bytes* is to have beside its image; the rest counts where *content* asks for the identity."""

    content: DiskContent
    size_bytes: int
    hostname: str = ""
    keys: tuple[str, ...] = ()
    cards: tuple[Address, ...] = ()


class DiskTools(Protocol):
    """What the making of disks asks for; ``GuestfsTools`` has it, and says what each does."""

    def inspect(self, image: Path, image_format: str, *, what: str, is_cancelled: Callable[[], bool]) -> System: ...

    def customize(
        self, disk: Path, changes: DiskChanges, known: System | None, *, what: str, is_cancelled: Callable[[], bool],
        disk_format: str = "qcow2",
    ) -> System: ...  # fmt: skip

    def seal(self, disk: Path, *, what: str) -> System: ...


class GuestfsTools:
    """What the daemon has libguestfs do; every call blocks for seconds, and for a place before that."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def inspect(self, image: Path, image_format: str, *, what: str, is_cancelled: Callable[[], bool] = lambda: False) -> System:
        """What is on the disk image at *image*, which is not changed.

        Args:
            what: the image, for messages.

        Raises:
            Permanent: it cannot be looked into. Cancelled: *is_cancelled* said so.
        """
        job = {"action": "inspect", "format": image_format, "is_read_only": True}
        answer = self._appliance.run(job, image, what=f"{what} cannot be looked into", is_cancelled=is_cancelled)
        return _system_in(answer, what)

    def customize(
        self, disk: Path, changes: DiskChanges, known: System | None, *, what: str,
        is_cancelled: Callable[[], bool] = lambda: False, disk_format: str = "qcow2",
    ) -> System:  # fmt: skip
        """Make *disk*, which no guest uses, differ from its image as *changes* say; what it holds.

        In place: where it raises, *disk* is half-changed and to be thrown away.

        Args:
            known: what was found in the image before, which saves seconds.

        Raises:
            Permanent: it cannot be done. Cancelled: *is_cancelled* said so.
        """
        content, identity = changes.content, None
        if content.identity:
            identity = {"hostname": changes.hostname, "keys": changes.keys, "cards": [card_data(one) for one in changes.cards]}
        job = {
            "action": "customize", "format": disk_format, "system": known.to_data() if known else None,
            "resize": content.resize,
            "files": [asdict(file) for file in content.files], "identity": identity,
        }  # fmt: skip
        answer = self._appliance.run(
            job, disk, what=f"{what} cannot be prepared", is_cancelled=is_cancelled, most_bytes=changes.size_bytes
        )
        return _system_in(answer, what)

    def seal(
        self, disk: Path, *, what: str, image_format: str = "qcow2", is_cancelled: Callable[[], bool] = lambda: False
    ) -> System:
        """Take away what made *disk*, a file that no guest uses, the disk of one guest: see ``guest_sealing``. What it holds.

        In place: where it raises, *disk* is half-changed and to be thrown away.

        Raises:
            Permanent: it cannot be done, as where there is no system on it. Cancelled: *is_cancelled* said so.
        """
        job = {"action": "seal", "format": image_format}
        answer = self._appliance.run(job, disk, what=f"{what} cannot be sealed", is_cancelled=is_cancelled)
        return _system_in(answer, what)


def _system_in(answer: Mapping[str, Any], what: str) -> System:
    try:
        return system_from(answer.get("system"))
    except ValueError as error:
        raise Permanent(f"{what}: libguestfs gave no answer that makes sense", "ApplianceFailed") from error


# -- the child -----------------------------------------------------------------------------------------------------------------


def _seal(handle: Handle, _: dict[str, Any]) -> System:
    system = look(handle)
    if system.kind != "linux":
        raise Refused(f"it holds {system.name or 'no system that is known'}; only Linux can be sealed")
    handle.umount_all()
    seal(handle, system)
    return system


def _customize(handle: Handle, job: dict[str, Any]) -> System:
    system = system_from(job["system"]) if job["system"] else look(handle)
    handle.umount_all()
    if job["resize"]:
        grow(handle, system)
    if job["files"] or (job["identity"] and not system.has_cloud_init):
        write(handle, system, files=job["files"], identity=job["identity"])
    return system


_ACTIONS: dict[str, Callable[[Handle, dict[str, Any]], System]] = {
    "inspect": lambda handle, _: look(handle),
    "customize": _customize,
    "seal": _seal,
}


def main() -> int:
    job = json.loads(sys.stdin.buffer.readline())
    guestfs = _bindings()
    _drop_privileges(job)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = _done(guestfs, job)
    except (RuntimeError, Refused) as error:
        answer = {"failure": str(error), "is_refusal": isinstance(error, Refused)}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    return 0


def _done(guestfs: Any, job: dict[str, Any]) -> dict[str, Any]:
    _check_emulation()
    handle = guestfs.GuestFS(python_return_dict=True)
    handle.set_memsize(MEMORY_MIB)
    is_read_only = bool(job.get("is_read_only"))
    more = (
        {} if is_read_only else {"discard": "besteffort", "cachemode": "unsafe"}
    )  # synced by who asked, before it is believed
    handle.add_drive_opts(job["disk"], format=job["format"], readonly=is_read_only, **more)
    handle.launch()
    system = _ACTIONS[job["action"]](handle, job)
    if not is_read_only:
        handle.shutdown()  # raises where something was not written
    handle.close()
    return {"system": system.to_data()}


def _bindings() -> Any:
    """The module ``guestfs``: Debian has it for its own Python alone, and a virtual environment of that does not see it."""
    with contextlib.suppress(ModuleNotFoundError):
        import guestfs  # noqa: PLC0415

        return guestfs
    sys.path.append(str(DIST_PACKAGES))
    import guestfs  # noqa: PLC0415

    return guestfs


def _drop_privileges(job: dict[str, Any]) -> None:
    """Become the user in *job*. Not before everything is imported: it may not read what is root's alone."""
    if "user_id" in job:
        os.setgroups(job["groups"])
        os.setgid(job["user_id"])
        os.setuid(job["user_id"])


def _end_with_parent() -> None:
    """Wait for the end of the input, which is that of the daemon, and end everything that this child has started."""
    while sys.stdin.buffer.read(4096):
        pass
    os.killpg(0, signal.SIGKILL)


def _check_emulation() -> None:
    if os.environ.get("LIBGUESTFS_BACKEND_SETTINGS") != "force_tcg":
        return
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError:
        raise Refused(
            "QEMU cannot emulate here, since this service may not make code at run time, and KVM is not proven on this host: "
            "systemctl edit ecompute, with MemoryDenyWriteExecute=no below [Service]"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
