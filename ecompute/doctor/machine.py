"""The processor and whether guests really run under KVM, memory as libvirt and the kernel see it, and the machine's ids."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from common.checkup import Check, Result, failure, ok, warning
from common.config import ComputeConfig
from common.errors import EcomputeError
from ecompute import identity
from ecompute.doctor.scene import Scene, libvirt_unit
from ecompute.kvm_probe import KVM_DEVICE, SLOWER, choose_virt_type

QEMU_USERS = ("libvirt-qemu", "qemu")  # of Debian, of others
LOWEST_FREE = 0.02  # of all memory that should be left
# What firmware writes that nobody has given a number of its own.
_NO_UUIDS = frozenset({"03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc"})
FIRMWARE_IDS = Path("/sys/class/dmi/id")
_HOST_UUID = re.compile(r"^\s*host_uuid(_source)?\s*=", re.MULTILINE)
_KIB = re.compile(r"^(\w+):\s+(\d+) kB", re.MULTILINE)


def checks(scene: Scene) -> list[Check]:
    config = scene.config
    return [
        Check("cpu", lambda: _cpu(config)),
        Check("kvm", lambda: _kvm(config), config.libvirt.kvm_probe_deadline_seconds + 15),
        Check("kvm access", lambda: _kvm_access(config)),
        Check("memory", lambda: _memory(scene)),
        Check("machine id", lambda: _ids(scene)),
    ]


def _wants_kvm(config: ComputeConfig) -> bool:
    return config.libvirt.virt_type in ("auto", "kvm")


def _cpu(config: ComputeConfig) -> Iterator[Result]:
    yield judge_cpu(identity.cpu_flags(), platform.machine(), config.libvirt.virt_type)


def judge_cpu(flags: frozenset[str], architecture: str, virt_type: str) -> Result:
    """Whether the processor can do what *virt_type* asks. Pure.

    Args:
        flags: as in ``/proc/cpuinfo``.
    """
    found = sorted(flags & {"vmx", "svm"})
    nested = ", itself a guest (nested)" if "hypervisor" in flags else ""
    text = f"{architecture}{nested}, {'with ' + found[0] if found else 'without vmx or svm'}"
    if found or architecture != "x86_64":
        return ok("cpu", text)
    if virt_type not in ("auto", "kvm"):
        return ok("cpu", f"{text}, which libvirt.virt_type: {virt_type} does not need")
    above = "allow nesting in the host above (modprobe kvm_intel nested=1)" if nested else "enable virtualisation in the BIOS"
    return warning("cpu", f"{text}: /dev/kvm, where there is one, is not this processor's", above)


def _kvm(config: ComputeConfig) -> Iterator[Result]:
    wanted = config.libvirt.virt_type
    if not _wants_kvm(config):
        yield ok("kvm", f"not needed: libvirt.virt_type is {wanted}")
        return
    choice = choose_virt_type("auto", config.paths.run_dir, deadline_seconds=config.libvirt.kvm_probe_deadline_seconds)
    if choice.proven:
        yield ok("kvm", choice.reason)
        return
    why, _, cure = choice.reason.rpartition("; ")  # what to do comes last in it
    if wanted == "kvm":
        yield failure("kvm", f"libvirt.virt_type is kvm, and nothing proves that guests would run: {why}", cure)
    else:
        yield warning("kvm", f"{SLOWER}: {why}", f"{cure}; libvirt.virt_type: qemu if that is meant")


def _kvm_access(config: ComputeConfig) -> Iterator[Result]:
    """Whether QEMU's user may open the device: in a container its group may have the number of the machine around it."""
    if not KVM_DEVICE.exists() or config.libvirt.uri.startswith("test:"):
        return
    for name in QEMU_USERS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            groups = frozenset(os.getgrouplist(name, user.pw_gid))
            yield judge_kvm_access(KVM_DEVICE.stat(), name, user.pw_uid, groups, is_needed=config.libvirt.virt_type == "kvm")
            return


def judge_kvm_access(device: os.stat_result, name: str, uid: int, groups: frozenset[int], *, is_needed: bool) -> Result:
    """Whether the user *name* may read and write *device*. Pure."""
    shift = 6 if device.st_uid == uid else 3 if device.st_gid in groups else 0
    if device.st_mode >> shift & 0o6 == 0o6:
        return ok("kvm access", f"{name}, as whom libvirt runs QEMU, may use {KVM_DEVICE}")
    text = f"{name}, as whom libvirt runs QEMU, may not use {KVM_DEVICE} (group {device.st_gid}): no guest starts under KVM"
    say = failure if is_needed else warning
    cure = f"chgrp kvm {KVM_DEVICE} && chmod 0660 {KVM_DEVICE}"
    return say("kvm access", f"{text}, and libvirt looks at QEMU anew at each call", cure)


def _memory(scene: Scene, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Result]:
    figures = {name: int(kib) // 1024 for name, kib in _KIB.findall(meminfo.read_text(encoding="ascii"))}
    reserved = scene.config.inventory.memory_mb.reserved
    total, available = figures["MemTotal"], figures.get("MemAvailable", 0)
    yield judge_memory(total, available, reserved)
    if scene.is_simulated:
        return
    try:
        seen = scene.host.memory_mib
    except EcomputeError:
        return  # libvirt has a line of its own
    yield judge_libvirts_memory(seen, total)


def judge_memory(total: int, available: int, reserved: int) -> Result:
    """Whether there is room for guests; MiB. Pure."""
    text = f"{available} of {total} MiB available, {reserved} reserved for the host (inventory.memory_mb.reserved)"
    if reserved >= total:
        return failure("memory", f"{text}: nothing is left for guests", "lower inventory.memory_mb.reserved in compute.yaml")
    if available < total * LOWEST_FREE:
        return warning("memory", f"{text}: next to nothing is left", "see what takes it: ps aux --sort -rss | head")
    return ok("memory", text)


def judge_libvirts_memory(seen: int, total: int) -> Result:
    """What libvirt says beside what the kernel says; MiB. libvirt may tell that of one NUMA node only. Pure."""
    if abs(seen - total) <= total * 0.05:
        return ok("memory of libvirt", f"libvirt says {seen} MiB, the kernel {total}")
    return failure(
        "memory of libvirt", f"libvirt says {seen} MiB, the kernel {total}: Placement is told a wrong figure",
        f"compare virsh nodememstats with /proc/meminfo, then systemctl restart {libvirt_unit()}",
    )  # fmt: skip


def _ids(scene: Scene) -> Iterator[Result]:
    machine = identity.machine_id()
    try:
        of_libvirt = scene.host.libvirt_host_uuid
    except EcomputeError:
        of_libvirt = None
    yield judge_ids(machine, of_libvirt, is_uuid_configured=scene.config.uuid is not None)
    if of_libvirt is not None and not scene.is_simulated:
        yield judge_lasting_id(of_libvirt, has_firmware_id=FIRMWARE_IDS.is_dir(), configuration=_libvirts_configuration())


def _libvirts_configuration(directory: Path = Path("/etc/libvirt")) -> str:
    """What the daemon's configuration says; "" where there is none or this user may not read it."""
    with contextlib.suppress(OSError):
        return (directory / f"{libvirt_unit()}.conf").read_text(encoding="utf-8", errors="replace")
    return ""


def judge_lasting_id(of_libvirt: str, *, has_firmware_id: bool, configuration: str) -> Result:
    """Whether libvirt will have the same host uuid when it starts again; without one of the machine's it makes one up. Pure."""
    name = "libvirt's host id"
    if has_firmware_id or _HOST_UUID.search(configuration):
        return ok(name, "is the same whenever libvirt starts")
    unit = libvirt_unit()
    setting = f'host_uuid = "{of_libvirt}"'  # the one that it has now, so that nothing changes
    return failure(
        name, f"this machine tells no uuid (no {FIRMWARE_IDS}): libvirt makes one up each time it starts, and this host would "
        "then be another one, and its guests nobody's",
        f"echo '{setting}' >>/etc/libvirt/{unit}.conf && systemctl restart {unit}",
    )  # fmt: skip


def judge_ids(machine: str, of_libvirt: str | None, *, is_uuid_configured: bool) -> Result:
    """Whether this host can be told from others, clones above all. Pure.

    Args:
        of_libvirt: None where libvirt did not say.
    """
    name = "machine id"
    if not re.fullmatch("[0-9a-f]{32}", machine):
        if is_uuid_configured:
            return ok(name, "/etc/machine-id holds no id; the uuid of compute.yaml stands for it")
        return warning(
            name, "/etc/machine-id holds no id, so that clones of this host are taken for it",
            "systemd-machine-id-setup, and before that: rm /etc/machine-id",
        )  # fmt: skip
    if of_libvirt is not None and (of_libvirt.lower() in _NO_UUIDS or not _has_digits(of_libvirt)):
        return warning(
            name, f"libvirt's host uuid {of_libvirt} is the firmware's placeholder, which other machines have, too",
            f'host_uuid = "{uuid.uuid4()}" in /etc/libvirt/{libvirt_unit()}.conf, then systemctl restart {libvirt_unit()}',
        )  # fmt: skip
    return ok(name, f"machine {machine}, libvirt's host {of_libvirt or 'not known'}")


def _has_digits(text: str) -> bool:
    return len(set(text.replace("-", "").lower())) > 1
