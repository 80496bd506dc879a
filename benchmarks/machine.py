"""What the machine is that figures come from: what decides about them, and neither its name nor anybody's paths."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecompute.kvm_probe import choose_virt_type

ROOT = Path(__file__).resolve().parent.parent
PROBE_SECONDS = 20


def describe() -> dict[str, Any]:
    """The machine. Takes up to ``PROBE_SECONDS`` once per boot: whether KVM works is seen by booting a kernel."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": re.sub(r"[^0-9.].*", "", platform.release()),
        "architecture": platform.machine(),
        "kvm": _has_kvm(),
        "python": platform.python_version(),
        "etcd": _version([str(_etcd()), "--version"]),
        "placement": importlib.metadata.version("openstack-placement"),
        "libvirt": _version(["libvirtd", "--version"]),
        "qemu": _version(["qemu-system-x86_64", "--version"]),
    }


def in_words(machine: Mapping[str, Any]) -> str:
    """One sentence's worth of ``describe``."""
    guests = "KVM works" if machine["kvm"] else "no KVM, guests are emulated"
    programs = ", ".join(f"{name} {machine[name.lower()]}" for name in ("Python", "etcd", "Placement", "libvirt", "QEMU"))
    return f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, {guests}; {programs}"


def _has_kvm() -> bool:
    remembered = ROOT / ".cache" / "benchmarks"
    remembered.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ecompute.kvm_probe").setLevel(logging.ERROR)  # that there is none is what we wanted to know
    return choose_virt_type("auto", remembered, deadline_seconds=PROBE_SECONDS).virt_type == "kvm"


def _etcd() -> Path:
    unpacked = ROOT / ".cache" / "etcd" / "usr" / "bin" / "etcd"
    return unpacked if unpacked.exists() else Path("etcd")


def _version(command: Sequence[str]) -> str:
    """The first thing in what *command* prints that looks like a version; "?" where there is none."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except OSError:
        return "?"
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "?"
