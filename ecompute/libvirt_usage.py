"""What the libvirt driver reads of the use that guests make of the host: all of them by one call.

One of the modules that import libvirt; called by ``libvirt_driver`` alone, which translates the errors that leave here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import libvirt

from common.host_letters import GuestUsage
from ecompute.libvirt_errors import unless_absent

_WHAT = (
    libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_INTERFACE | libvirt.VIR_DOMAIN_STATS_BLOCK
)  # fmt: skip
# Of a guest whose QEMU is busy with something else, what needs QEMU is left out, and nobody waits.
_WHOSE = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT


def read_usage(connection: libvirt.virConnect) -> tuple[GuestUsage, ...]:
    """What every guest that runs uses."""
    return tuple(_of(handle, stats) for handle, stats in connection.getAllDomainStats(_WHAT, _WHOSE))


def _of(handle: libvirt.virDomain, stats: Mapping[str, Any]) -> GuestUsage:
    usage = usage_in(UUID(bytes=handle.UUID()), stats)
    if usage.cpu_ns is None:  # libvirt's test driver, which knows this much of a guest
        with unless_absent():
            _, most_kib, kib, vcpus, cpu_ns = handle.info()
            return GuestUsage(usage.uuid, vcpus, cpu_ns, kib, most_kib)
    return usage


def usage_in(uuid: UUID, stats: Mapping[str, Any]) -> GuestUsage:
    """The use that *stats*, by libvirt's names, tell of. Pure."""
    return GuestUsage(
        uuid,
        stats.get("vcpu.current"),
        stats.get("cpu.time"),
        stats.get("balloon.rss", stats.get("balloon.current")),
        stats.get("balloon.maximum"),
        _sum(stats, "block", "rd.bytes"),
        _sum(stats, "block", "wr.bytes"),
        _sum(stats, "net", "rx.bytes"),
        _sum(stats, "net", "tx.bytes"),
    )


def _sum(stats: Mapping[str, Any], group: str, name: str) -> int | None:
    """Over all devices of *group*; None where the hypervisor knows none of them."""
    if f"{group}.count" not in stats:
        return None
    return sum(int(stats.get(f"{group}.{number}.{name}", 0)) for number in range(stats[f"{group}.count"]))
