"""libguestfs: whether this host can look into disks and change them. Only some requests need it, or a host configured so."""

from __future__ import annotations

from collections.abc import Iterator

from common.checkup import Check, Result, ok, warning
from ecompute.appliance import PACKAGES, has_kernel, missing
from ecompute.doctor.scene import Scene

_KERNEL = "apt-get install linux-image-cloud-amd64, or another linux-image"


def checks(scene: Scene) -> list[Check]:
    return [Check("libguestfs", lambda: _libguestfs(scene))]


def _libguestfs(scene: Scene) -> Iterator[Result]:
    yield judge(missing(), is_wanted=scene.config.guestfs.inspect != "never", has_kernel=has_kernel())


def judge(absent: str, *, is_wanted: bool, has_kernel: bool) -> Result:
    """How it is where *absent* is not installed. Pure."""
    name, uses = "libguestfs", "--resize, --inject and --inject-identity"
    if absent and is_wanted:
        return warning(name, f"{absent} missing; guestfs.inspect of compute.yaml wants it, and guests get virtio", PACKAGES)
    if absent:
        return ok(name, f"not installed ({absent} missing): requests with {uses} fail here; {PACKAGES}")
    if not has_kernel:
        return warning(name, f"there is no kernel that its appliance could use: requests with {uses} fail here", _KERNEL)
    return ok(name, f"is there, for requests with {uses}")
