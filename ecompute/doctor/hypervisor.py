"""libvirt: its Python bindings, the daemon, the driver, QEMU, machine types, and the programs that it and we start."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping

from common.checkup import Check, Result, failure, ok, warning
from common.errors import HypervisorRejected, HypervisorUnavailable
from ecompute.doctor.scene import Scene, libvirt_unit
from ecompute.hypervisor import HostInfo

TESTED = {"libvirt": (9, 0), "qemu": (7, 2)}  # Debian 12's
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # what libvirtd starts is not where ordinary users look
# What is started on a host, and the Debian package that has it.
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "dnsmasq": "dnsmasq-base",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "virsh": "libvirt-clients",
}


def checks(scene: Scene) -> list[Check]:
    return [Check("libvirt", lambda: _libvirt(scene), 12), Check("programs", lambda: _programs(scene))]


def _libvirt(scene: Scene) -> Iterator[Result]:
    began = time.monotonic()
    uri, unit = scene.config.libvirt.uri, libvirt_unit()
    try:
        info = scene.host
    except HypervisorUnavailable as error:
        if "bindings" in str(error):
            yield failure(
                "libvirt", str(error), "apt-get install python3-libvirt, or install ecompute anew with its dependencies"
            )
        else:
            cure = f"systemctl start {unit}; journalctl -u {unit} -n 20; a user other than root has to be in the group libvirt"
            yield failure("libvirt", str(error), cure)
        return
    except HypervisorRejected as error:
        yield failure("libvirt", str(error), f"is QEMU installed? apt-get install qemu-system-x86; systemctl restart {unit}")
        return
    seconds = time.monotonic() - began
    said = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    yield ok("libvirt", f"{uri} answers in {seconds:.1f} s: {said}")
    if scene.is_simulated:
        yield warning(
            "driver", f"{uri} is libvirt's simulation: no guest really runs", "libvirt.uri: qemu:///system in compute.yaml"
        )
        return
    yield _driver(info)
    yield from judge_versions(info.versions)
    yield judge_machines(info, scene.config.libvirt.machine_type)


def _driver(info: HostInfo) -> Result:
    drivers = sorted(info.versions.keys() - {"libvirt"})
    if drivers == ["qemu"]:
        return ok("driver", "QEMU")
    return failure("driver", f"libvirt's driver here is {', '.join(drivers)}", "libvirt.uri: qemu:///system in compute.yaml")


def judge_versions(versions: Mapping[str, str]) -> Iterator[Result]:
    """libvirt and QEMU against the oldest that this is tested with. Pure."""
    for name, oldest in TESTED.items():
        version = versions.get(name, "")
        if not version:
            continue
        wanted = ".".join(map(str, oldest))
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            yield warning(
                f"{name} version", f"{version}: older than {wanted}, with which nobody has tried", f"upgrade to {name} {wanted}"
            )
        else:
            yield ok(f"{name} version", f"{version} ({wanted} or later is tested)")


def judge_machines(info: HostInfo, wanted: str | None) -> Result:
    """Whether QEMU here has the machine type that guests are to get. Pure."""
    known = info.machine_types
    if not known:
        return failure(
            "machine types",
            f"libvirt knows no QEMU for {info.architecture}",
            f"apt-get install qemu-system-x86; systemctl restart {libvirt_unit()}",
        )
    if wanted is not None and wanted not in known:
        near = ", ".join(name for name in known if name.startswith(wanted.rpartition("-")[0] or wanted[:2])) or ", ".join(
            known[:6]
        )
        return failure(
            "machine types", f"QEMU here has no machine type {wanted}", f"libvirt.machine_type in compute.yaml: one of {near}"
        )
    return ok("machine types", f"{len(known)}, of which guests get {wanted or 'the one that libvirt takes by itself'}")


def _programs(scene: Scene) -> Iterator[Result]:
    if scene.is_simulated:
        yield ok("programs", "libvirt's simulation starts none")
        return
    yield judge_programs({name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")})


def judge_programs(found: set[str]) -> Result:
    """*found* of the programs that are needed. Pure."""
    missing = [name for name in PROGRAMS if name not in found]
    if not missing:
        return ok("programs", f"{', '.join(PROGRAMS)} are there")
    packages = " ".join(PROGRAMS[name] for name in missing)
    return failure("programs", f"missing: {', '.join(missing)}", f"apt-get install --no-install-recommends {packages}")
