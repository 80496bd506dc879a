"""What is known of the system on a disk: which it is, where its root is, whether it has cloud-init and drivers for virtio.

``look`` asks an appliance that has been started, and runs in the child of ``guestfs_tools``; the rest is pure. An image is
looked into once, and what was found is kept by its digest: the same bytes are the same system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from common.hardware import CardModel, DiskBus, Hardware

Handle: TypeAlias = Any  # guestfs.GuestFS, which has no types

_CLOUD_INIT = (
    "/usr/bin/cloud-init", "/usr/local/bin/cloud-init", "/usr/sbin/cloud-init", "/bin/cloud-init",
    "/usr/bin/ignition", "/usr/lib/dracut/modules.d/30ignition/ignition",
    "/Program Files/Cloudbase Solutions/Cloudbase-Init/conf/cloudbase-init.conf",
)  # fmt: skip
_MODULES = ("/lib/modules", "/usr/lib/modules")
_INDEXES = ("modules.dep", "modules.builtin", "modules.order")  # of a kernel's modules; a driver that none names is not there
_WINDOWS_DRIVERS = "/Windows/System32/drivers"


class Refused(Exception):
    """The disk or the request is not such that it could be done; no fault of libguestfs."""


@dataclass(frozen=True)
class System:
    """What an image holds.

    Args:
        root: the device of its root file system, as the appliance has it; "" where no system was found.
        mounts: further file systems that belong to it, by where they are mounted.
        kind: "linux", "windows", …; "" where no system was found.
        has_cloud_init: or another program that reads metadata: it is told what else would have to be written.
        has_virtio_disk, has_virtio_card: whether its kernel has the driver; None where that cannot be told.
    """

    root: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    distribution: str = ""
    version: str = ""
    name: str = ""
    has_cloud_init: bool = False
    has_virtio_disk: bool | None = None
    has_virtio_card: bool | None = None

    def to_data(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hardware(self) -> Hardware:
        """What it has drivers for. Where that cannot be told it is virtio, as for images that nobody has looked into."""
        return Hardware(
            DiskBus.SATA if self.has_virtio_disk is False else DiskBus.VIRTIO,
            CardModel.E1000 if self.has_virtio_card is False else CardModel.VIRTIO,
        )


def system_from(data: object) -> System:
    """The inverse of ``to_data``, whoever wrote it.

    Raises:
        ValueError: it is no such thing.
    """
    if not isinstance(data, Mapping):
        raise ValueError("what was found in an image is not in the form that it is kept in")
    texts: dict[str, Any] = {key: data.get(key, "") for key in ("root", "kind", "distribution", "version", "name")}
    answers: dict[str, Any] = {key: data.get(key) for key in ("has_virtio_disk", "has_virtio_card")}
    mounts, has_cloud_init = data.get("mounts", ()), data.get("has_cloud_init", False)
    is_right = all(isinstance(text, str) and len(text) < 1024 for text in texts.values())
    is_right &= all(answer is None or isinstance(answer, bool) for answer in answers.values())
    is_right &= isinstance(has_cloud_init, bool) and isinstance(mounts, list | tuple) and len(mounts) < 64
    if not is_right or not all(isinstance(one, list | tuple) and [type(part) for part in one] == [str, str] for one in mounts):
        raise ValueError("what was found in an image is not in the form that it is kept in")
    pairs = tuple((where, device) for where, device in mounts)
    return System(mounts=pairs, has_cloud_init=has_cloud_init, **texts, **answers)


# -- in the child --------------------------------------------------------------------------------------------------------------


def look(handle: Handle) -> System:
    """What is on the handle's disk, which is mounted afterwards, to be read only. Takes 3 to 10 s under emulation."""
    roots = handle.inspect_os()
    if not roots:
        return System()
    root = roots[0]
    found = handle.inspect_get_mountpoints(root)
    system = System(
        root=root,
        mounts=tuple(sorted((where, device) for where, device in found.items() if where != "/")),
        kind=handle.inspect_get_type(root),
        distribution=handle.inspect_get_distro(root),
        version=f"{handle.inspect_get_major_version(root)}.{handle.inspect_get_minor_version(root)}",
        name=handle.inspect_get_product_name(root)[:200],
    )
    mount(handle, system, is_read_only=True)
    disk, card = _virtio(handle, system)
    has_cloud_init = any(_is_file(handle, path) for path in _CLOUD_INIT)
    return replace(system, has_cloud_init=has_cloud_init, has_virtio_disk=disk, has_virtio_card=card)


def mount(handle: Handle, system: System, *, is_read_only: bool = False) -> None:
    """Mount the system's root, and whatever else of it can be mounted, in the appliance."""
    do = handle.mount_ro if is_read_only else handle.mount
    do(system.root, "/")
    for where, device in sorted(system.mounts, key=lambda one: len(one[0])):
        try:
            do(device, where)
        except RuntimeError:  # an entry of its fstab that leads nowhere; its own boot passes over it as well
            continue


def _virtio(handle: Handle, system: System) -> tuple[bool | None, bool | None]:
    if system.kind == "windows":
        return _has_driver(handle, "viostor.sys", "vioscsi.sys"), _has_driver(handle, "netkvm.sys")
    if system.kind != "linux":
        return None, None
    indexes = [f"{folder}/{kernel}/{index}" for folder in _MODULES for kernel in _names(handle, folder) for index in _INDEXES]
    indexes = [index for index in indexes if _is_file(handle, index)]
    if not indexes:
        return None, None
    return _is_named(handle, indexes, "virtio_blk"), _is_named(handle, indexes, "virtio_net")


def _is_named(handle: Handle, indexes: list[str], driver: str) -> bool:
    return any(handle.grep(f"{driver}.ko", index, fixed=True) for index in indexes)


def _has_driver(handle: Handle, *names: str) -> bool | None:
    try:
        folder = handle.case_sensitive_path(_WINDOWS_DRIVERS)
    except RuntimeError:
        return None
    there = {name.lower() for name in _names(handle, folder)}
    return any(name in there for name in names)


def _names(handle: Handle, folder: str) -> list[str]:
    return list(handle.ls(folder)) if handle.is_dir(folder) else []


def _is_file(handle: Handle, path: str) -> bool:
    return bool(handle.is_file(path, followsymlinks=True))
