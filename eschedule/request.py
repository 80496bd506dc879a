"""A checked request for an instance, its identity and the spec that it becomes. Pure: no files, no network, no clock.

``intake`` builds a ``Request`` from a command line; the library's users build one themselves. Two requests are the same
request when their digests are equal: that is how a repeat after a lost answer is told from a clash of uuids.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from common.disk_content import AS_IMAGE
from common.hardware import USUAL
from common.model import (
    Alternate,
    ConfigDrive,
    DiskContent,
    Forward,
    GroupPolicy,
    Hardware,
    ImageRef,
    InstanceSpec,
    MetadataAccess,
    Nic,
    Restart,
)

ALTERNATES_AT_MOST = 3
SPEC_BYTES_AT_MOST = 256 * 1024
GRACE_SECONDS = 30  # where nobody says otherwise
NUMBER = "{n}"  # in a name: which instance of its set this is
_SAID_SINCE = (
    "metadata",
    "metadata_hop_limit",
    "config_drive",
    "allow",
    "forwards",
    "hardware",
    "disk_content",
    "labels",
)  # fields that the first version had not


@dataclass(frozen=True)
class Request:
    """What somebody asks for; every field has passed ``common/validate.py``.

    Args:
        query: Placement's own query string, ``resources=VCPU:1,…`` with all that it can express.
        resources: the amount per resource class that *query* asks for in all.
        name: None takes ``vm-`` and the first eight digits of the uuid. Of a set it is the common part, see ``numbered``.
        hostname: what the guest calls itself; None takes the name.
        group: instances of one group are kept apart or together, as *group_policy* says.
        uuid: None derives it from *request_id*, else a new one is made.
        nics: its network cards. One on a network of the cluster needs no more than the network's name, see ``wiring``.
        grace_seconds: how long the guest has to power off when it is asked to, before its plug is pulled.
        allow: rules of who may reach it; None for everybody.
        forwards: ports of its host that lead to it.
        hardware: what its image has drivers for. *hardware_is_given*: somebody has said so.
        disk_content: what is on its disk beside the image.
        labels: names and values, in the order of the names.
        count: how many instances; above 1 the request is one for a set, and ``members`` are those for its instances.
    """

    query: str
    resources: Mapping[str, int]
    image: ImageRef
    name: str | None = None
    keys: tuple[str, ...] = ()
    user_data: bytes | None = None
    hostname: str | None = None
    nics: tuple[Nic, ...] = (Nic(),)
    restart: Restart = Restart.NEVER
    grace_seconds: int = GRACE_SECONDS
    group: str | None = None
    group_policy: GroupPolicy = GroupPolicy.ANTI_AFFINITY
    uuid: UUID | None = None
    request_id: str | None = None
    count: int = 1
    metadata: MetadataAccess = MetadataAccess.OPTIONAL
    metadata_hop_limit: int = 1
    config_drive: ConfigDrive = ConfigDrive.AUTO
    allow: tuple[str, ...] | None = None
    forwards: tuple[Forward, ...] = ()
    hardware: Hardware = USUAL
    hardware_is_given: bool = False
    disk_content: DiskContent = AS_IMAGE
    labels: tuple[tuple[str, str], ...] = ()

    def digest(self) -> str:
        """A fingerprint of what is asked for; who asks, when, and under which uuid are no part of it."""
        parts: dict[str, Any] = {
            "query": self.query,
            "image": [self.image.url, self.image.checksum],
            "name": self.name,
            "keys": list(self.keys),
            "user_data": _base64(self.user_data),
            "hostname": self.hostname,
            "networks": [nic.network for nic in self.nics],
            "restart": self.restart.value,
            "group": self.group,
        }
        # Only where they say something, so that requests of earlier versions are still known.
        if self.group is not None:
            parts["group_policy"] = self.group_policy.value
        if self.count > 1:
            parts["count"] = self.count
        if self.grace_seconds != GRACE_SECONDS:
            parts["grace_seconds"] = self.grace_seconds
        if any(nic != Nic(nic.network) for nic in self.nics):
            parts["nics"] = [_said(nic) for nic in self.nics]
        parts |= {name: value for name in _SAID_SINCE if (value := getattr(self, name)) != getattr(Request, name)}
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=dataclasses.asdict)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def instance_uuid(self, prefix: str, new_uuid: Callable[[], UUID]) -> UUID:
        """The uuid of the instance: as asked for, or computed from the request id and the deployment's *prefix*, or new."""
        if self.uuid is not None:
            return self.uuid
        if self.request_id is not None:
            return uuid5(uuid5(NAMESPACE_URL, f"etcd-compute:{prefix}"), self.request_id)
        return new_uuid()

    def members(self, base: UUID) -> tuple[Request, ...]:
        """The requests for the single instances of a set, whose uuids are computed from *base*, their names from the name."""
        return tuple(
            replace(self, uuid=uuid5(base, str(n)), request_id=None, name=self.name and numbered(self.name, n, self.count))
            for n in range(1, self.count + 1)
        )

    def instance_name(self, instance: UUID) -> str:
        return self.name or f"vm-{instance.hex[:8]}"

    def spec(
        self,
        instance: UUID,
        resources: Mapping[str, int],
        alternates: tuple[Alternate, ...],
        *,
        created_at: str,
        created_by: str,
        nics: tuple[Nic, ...] | None = None,
    ) -> InstanceSpec:
        """The spec of *instance*, holding *resources* as they were claimed and *alternates* cut to what a spec carries.

        Args:
            nics: its cards with the addresses that were chosen for it; None for those that are asked for.
        """
        name = self.instance_name(instance)
        return InstanceSpec(
            uuid=instance,
            name=name,
            image=self.image,
            resources=dict(resources),
            nics=self.nics if nics is None else nics,
            keys=self.keys,
            user_data_base64=_base64(self.user_data),
            hostname=self.hostname or name,
            alternates=alternates[:ALTERNATES_AT_MOST],
            group=self.group,
            group_policy=self.group_policy,
            restart=self.restart,
            grace_seconds=self.grace_seconds,
            metadata=self.metadata,
            metadata_hop_limit=self.metadata_hop_limit,
            config_drive=self.config_drive,
            allow=self.allow,
            forwards=self.forwards,
            hardware=self.hardware,
            hardware_is_given=self.hardware_is_given,
            disk_content=self.disk_content,
            labels=dict(self.labels),
            query=self.query,
            request_digest=self.digest(),
            created_at=created_at,
            created_by=created_by,
        )


def numbered(name: str, number: int, count: int) -> str:
    """The name of instance *number* of *count*: ``{n}`` in *name* is the number; without it a set's have it at their end."""
    if NUMBER in name:
        return name.replace(NUMBER, str(number))
    return f"{name}-{number}" if count > 1 else name


def _said(nic: Nic) -> dict[str, Any]:
    """What *nic* says beyond the defaults, so that a field that is added later changes no digest."""
    values = ((field, getattr(nic, field.name)) for field in dataclasses.fields(nic))
    said = {field.name: value for field, value in values if value != field.default}
    if nic.addresses:
        said["addresses"] = [[one.address, one.prefix_length, one.gateway] for one in nic.addresses]
    return said


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")
