"""A ``DiskTools`` in memory: it notes what is asked of it, and says of every image the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.errors import Cancelled, EcomputeError, Permanent
from ecompute.guest_system import System
from ecompute.guestfs_tools import DiskChanges

LINUX = System(
    root="/dev/sda1", kind="linux", distribution="debian", version="12.0", name="Debian GNU/Linux 12 (bookworm)",
    has_virtio_disk=True, has_virtio_card=True,
)  # fmt: skip


class FakeDiskTools:
    """*system* is what it finds, *failure* what it raises instead; *changed* and *inspected* are what it was asked for."""

    def __init__(self) -> None:
        self.system = LINUX
        self.changed: list[tuple[Path, DiskChanges, System | None]] = []
        self.inspected: list[Path] = []
        self.failure: EcomputeError | None = None

    def inspect(
        self, image: Path, image_format: str, *, what: str, is_cancelled: Callable[[], bool] = lambda: False
    ) -> System:  # fmt: skip
        self._answer(image, f"{what} cannot be looked into", is_cancelled)
        self.inspected.append(image)
        return self.system

    def customize(
        self, disk: Path, changes: DiskChanges, known: System | None, *, what: str,
        is_cancelled: Callable[[], bool] = lambda: False, disk_format: str = "qcow2",
    ) -> System:  # fmt: skip
        self._answer(disk, f"{what} cannot be prepared", is_cancelled)
        self.changed.append((disk, changes, known))
        return known or self.system

    def seal(self, disk: Path, *, what: str) -> System:
        self._answer(disk, f"{what} cannot be sealed", lambda: False)
        return self.system

    def _answer(self, disk: Path, failed: str, is_cancelled: Callable[[], bool]) -> None:
        if is_cancelled():
            raise Cancelled("it is no longer wanted")
        if self.failure:
            raise self.failure
        if not disk.is_file():
            raise Permanent(f"{failed}: there is no {disk}", "FileError")
