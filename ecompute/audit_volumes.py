"""What of a host's volumes does not agree: their specs with the files that are here. Pure; part of ``audit``.

A volume is data: nothing of it is ever fixed by an audit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from uuid import UUID

from common.findings import Finding, Kind
from common.volume_records import VolumeDesired
from common.volume_refs import VolumeRef
from ecompute.volume_book import VolumeEntry
from ecompute.volume_files import volume_file


def volume_findings(
    where: str, provider: UUID, volumes: Mapping[UUID, VolumeEntry], files: Collection[UUID], directory: Path
) -> Iterator[Finding]:
    """*files* are the volumes that have a file in *directory*."""
    for uuid in sorted(set(files) - volumes.keys()):
        path = directory / volume_file(uuid)
        yield Finding(
            Kind.LEFTOVER_VOLUME, where, f"{path} is the file of a volume that etcd does not know",
            "etcd was wiped, or restored from before the volume was made; nothing ever deletes it",
            f"if what is in it is wanted: eschedule volume create NAME --host HOST with its size, then, while nobody has that "
            f"volume, mv {path} over its file; else delete it yourself",
            uuid, provider,
        )  # fmt: skip
    for uuid, entry in sorted(volumes.items()):
        spec = entry.spec
        if spec is not None and spec.desired is VolumeDesired.PRESENT and uuid not in files:
            yield Finding(
                Kind.VOLUME_MISSING, where, f"the volume {spec.name} has no file: {directory / volume_file(uuid)}",
                "it was deleted by hand, or its file system is not mounted; or it is not made yet, which its status says",
                f"eschedule volume show {spec.name}; put the file back, or eschedule volume rm {spec.name}",
                uuid, provider, name=spec.name,
            )  # fmt: skip


def volumes_of(instance: UUID, volumes: Mapping[UUID, VolumeEntry]) -> tuple[VolumeRef, ...]:
    """What of *volumes* is noted as *instance*'s, for a spec of it that is written anew; which place each had is not known."""
    own = sorted(
        (entry.spec.name, uuid) for uuid, entry in volumes.items() if entry.spec and entry.spec.attached_to == instance
    )
    return tuple(VolumeRef(uuid, name, slot) for slot, (name, uuid) in enumerate(own))
