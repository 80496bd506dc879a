"""What a host is, in the words of os-traits: pure tables and the set of traits that a host should have in Placement.

Only what is measured or true of every host of ours is claimed. Names never leave these tables: a trait that an older
version wrote must still be known as ours, so that it is removed once it is no longer true (``MEASURABLE``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from common.model import HostAdmin
from common.nics import bridge_trait
from common.placement_types import DISABLED_TRAIT, OWNER_TRAIT
from ecompute.hypervisor import HostInfo

# /proc/cpuinfo's flags on x86_64. Left out is what a flag does not prove: "ht" says nothing about hyper-threading being on,
# and SEV, SGX and TDX need more than the CPU.
_X86_FLAGS: Mapping[str, tuple[str, ...]] = {
    "3dnow": ("HW_CPU_X86_3DNOW",),
    "abm": ("HW_CPU_X86_ABM",),
    "aes": ("HW_CPU_X86_AESNI",),
    "amx_bf16": ("HW_CPU_X86_AMXBF16",),
    "amx_int8": ("HW_CPU_X86_AMXINT8",),
    "amx_tile": ("HW_CPU_X86_AMXTILE",),
    "avx": ("HW_CPU_X86_AVX",),
    "avx2": ("HW_CPU_X86_AVX2",),
    "avx512_bitalg": ("HW_CPU_X86_AVX512BITALG",),
    "avx512_vbmi2": ("HW_CPU_X86_AVX512VBMI2",),
    "avx512_vnni": ("HW_CPU_X86_AVX512VNNI",),
    "avx512_vpopcntdq": ("HW_CPU_X86_AVX512VPOPCNTDQ",),
    "avx512bw": ("HW_CPU_X86_AVX512BW",),
    "avx512cd": ("HW_CPU_X86_AVX512CD",),
    "avx512dq": ("HW_CPU_X86_AVX512DQ",),
    "avx512er": ("HW_CPU_X86_AVX512ER",),
    "avx512f": ("HW_CPU_X86_AVX512F",),
    "avx512ifma": ("HW_CPU_X86_AVX512IFMA",),
    "avx512pf": ("HW_CPU_X86_AVX512PF",),
    "avx512vbmi": ("HW_CPU_X86_AVX512VBMI",),
    "avx512vl": ("HW_CPU_X86_AVX512VL",),
    "bmi1": ("HW_CPU_X86_BMI",),
    "bmi2": ("HW_CPU_X86_BMI2",),
    "f16c": ("HW_CPU_X86_F16C",),
    "fma": ("HW_CPU_X86_FMA3",),
    "fma4": ("HW_CPU_X86_FMA4",),
    "mmx": ("HW_CPU_X86_MMX",),
    "mpx": ("HW_CPU_X86_MPX",),
    "pclmulqdq": ("HW_CPU_X86_CLMUL",),
    "pdpe1gb": ("HW_CPU_X86_PDPE1GB",),
    "pni": ("HW_CPU_X86_SSE3",),  # "Prescott new instructions"
    "rtm": ("HW_CPU_X86_TSX",),
    "sha_ni": ("HW_CPU_X86_SHA",),
    "sse": ("HW_CPU_X86_SSE",),
    "sse2": ("HW_CPU_X86_SSE2",),
    "sse4_1": ("HW_CPU_X86_SSE41",),
    "sse4_2": ("HW_CPU_X86_SSE42",),
    "sse4a": ("HW_CPU_X86_SSE4A",),
    "ssse3": ("HW_CPU_X86_SSSE3",),
    "stibp": ("HW_CPU_X86_STIBP",),
    "svm": ("HW_CPU_X86_SVM", "HW_CPU_X86_AMD_SVM"),
    "tbm": ("HW_CPU_X86_TBM",),
    "vmx": ("HW_CPU_X86_VMX", "HW_CPU_X86_INTEL_VMX"),
    "xop": ("HW_CPU_X86_XOP",),
}
# These have a trait in their AVX-512 form only, and a flag that CPUs without AVX-512 have as well.
_X86_FLAGS_WITH_AVX512: Mapping[str, tuple[str, ...]] = {
    "gfni": ("HW_CPU_X86_AVX512GFNI",),
    "vaes": ("HW_CPU_X86_AVX512VAES",),
    "vpclmulqdq": ("HW_CPU_X86_AVX512VPCLMULQDQ",),
}
_AARCH64_FLAGS: Mapping[str, tuple[str, ...]] = {
    flag: (f"HW_CPU_AARCH64_{flag.upper()}",)
    for flag in (
        "aes", "asimd", "asimddp", "asimdhp", "asimdrdm", "atomics", "cpuid", "crc32", "dcpop", "evtstrm", "fcma", "fp", "fphp",
        "jscvt", "lrcpc", "pmull", "sha1", "sha2", "sha3", "sha512", "sm3", "sm4", "sve",
    )
}  # fmt: skip
_FLAGS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"x86_64": _X86_FLAGS, "aarch64": _AARCH64_FLAGS}
_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "aarch64": ("HW_ARCH_AARCH64", "COMPUTE_ARCH_AARCH64"),
    "ppc64le": ("HW_ARCH_PPC64LE", "COMPUTE_ARCH_PPC64LE"),
    "riscv64": ("COMPUTE_ARCH_RISCV64",),
    "s390x": ("HW_ARCH_S390X", "COMPUTE_ARCH_S390X"),
    "x86_64": ("HW_ARCH_X86_64", "COMPUTE_ARCH_X86_64"),
}
# What every guest of ours gets, and what we boot.
_ALWAYS = frozenset({
    OWNER_TRAIT, "COMPUTE_NODE", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_IMAGE_TYPE_RAW", "COMPUTE_NET_VIF_MODEL_VIRTIO",
    "COMPUTE_STORAGE_BUS_VIRTIO",
})  # fmt: skip


def _all_of(*tables: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(trait for table in tables for traits in table.values() for trait in traits)


MEASURABLE = _all_of(_X86_FLAGS, _X86_FLAGS_WITH_AVX512, _AARCH64_FLAGS, _ARCHITECTURES) | _ALWAYS | {DISABLED_TRAIT}
"""Every trait that ``wanted_traits`` decides about by itself: on a provider of ours, one that is not wanted is removed."""


# What QEMU itself emulates with CPU model "max" (QMP query-cpu-model-expansion of 7.2), by the names of /proc/cpuinfo.
_EMULATED_FLAGS = frozenset(
    [
        "3dnow",
        "abm",
        "aes",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "mmx",
        "mpx",
        "pclmulqdq",
        "pdpe1gb",
        "pni",
        "sse",
        "sse2",
        "sse4_1",
        "sse4_2",
        "sse4a",
        "ssse3",
        "svm",
    ]
)


def guest_flags(host_flags: frozenset[str], virt_type: str) -> frozenset[str]:
    """The flags that a guest here can have: under emulation those that QEMU emulates, and of them the host's, to be safe."""
    return host_flags & _EMULATED_FLAGS if virt_type == "qemu" else host_flags


def wanted_traits(host: HostInfo, host_admin: HostAdmin | None = None, bridges: Collection[str] = ()) -> frozenset[str]:
    """The traits of *host*: what it measurably is, the *bridges* that guests may be on, and what an operator set for it."""
    traits = set(_ALWAYS) | set(_ARCHITECTURES.get(host.architecture, ())) | _cpu_traits(host)
    traits |= {bridge_trait(bridge) for bridge in bridges}
    if host_admin is not None:
        traits |= set(host_admin.traits)
        if host_admin.disabled:
            traits.add(DISABLED_TRAIT)
    return frozenset(traits)


def _cpu_traits(host: HostInfo) -> frozenset[str]:
    table = dict(_FLAGS.get(host.architecture, {}))
    if host.architecture == "x86_64" and "avx512f" in host.cpu_flags:
        table |= _X86_FLAGS_WITH_AVX512
    return _all_of({flag: traits for flag, traits in table.items() if flag in host.cpu_flags})
