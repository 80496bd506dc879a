"""Specs, contexts and stamps to try a hypervisor with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from uuid import UUID, uuid4

from common.config import DiskConfig
from common.model import Address, ImageRef, InstanceSpec, VolumeRef
from ecompute.domain_xml import DomainContext
from ecompute.hypervisor import Stamp
from ecompute.kvm_probe import newest_kernel
from tests.support.processes import ROOT

PROVIDER = UUID("7b0a1c52-9d0e-4f6e-8a3b-2f1f5c1d0e01")
# The highest number that etcd can give: no reader may take it for a smaller one.
CLUSTER_ID = 2**64 - 1


def a_spec(
    name: str = "web-1",
    *,
    uuid: UUID | None = None,
    memory_mib: int = 64,
    vcpus: int = 1,
    volumes: tuple[VolumeRef, ...] = (),
) -> InstanceSpec:
    return InstanceSpec(
        uuid=uuid or uuid4(),
        name=name,
        image=ImageRef("file:///images/tiny.qcow2"),
        resources={"VCPU": vcpus, "MEMORY_MB": memory_mib, "DISK_GB": 1},
        volumes=volumes,
    )


def a_stamp(*, spec_revision: int = 7, booted: int = 0) -> Stamp:
    return Stamp(PROVIDER, CLUSTER_ID, spec_revision, booted, definition="abc123", boot_id="boot-1")


def a_context(
    *,
    virt_type: str = "test",
    architecture: str = "x86_64",
    directory: Path = Path("/var/lib/etcd-compute/instances/example"),
    addresses: tuple[Address, ...] = (),
    filter_name: str | None = None,
    stamp: Stamp | None = None,
    machine_type: str | None = None,
    cpu_mode: str | None = None,
    has_drive: bool = False,
    disk: DiskConfig = DiskConfig(),  # noqa: B008 - frozen
    volume_paths: tuple[Path, ...] = (),
    graphics: str = "none",
) -> DomainContext:
    return DomainContext(
        virt_type=virt_type,
        architecture=architecture,
        disk_path=directory / ("disk.raw" if disk.mode == "raw" else "disk.qcow2"),
        disk=disk,
        console_log_path=directory / "console.log",
        addresses=addresses,
        stamp=stamp or a_stamp(),
        machine_type=machine_type,
        cpu_mode=cpu_mode,
        filter_name=filter_name,
        drive_path=directory / "config-drive.iso" if has_drive else None,
        volume_paths=volume_paths,
        graphics=graphics,
    )


def a_kernel() -> Path:
    """A kernel to boot: the machine's own, or the one that the guest image of the demo is made with."""
    own = newest_kernel(Path("/boot"))
    if own is not None:
        return own
    built = subprocess.run(
        [ROOT / "packaging" / "build-tiny-image.sh"], check=True, capture_output=True, text=True, timeout=180
    )
    return Path(built.stdout.split()[-1]).with_name("vmlinuz")
