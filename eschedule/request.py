"""A checked request for an instance, its identity and the spec that it becomes. Pure: no files, no network, no clock.

``intake`` builds a ``Request`` from a command line; the library's users build one themselves. Two requests are the same
request when their digests are equal: that is how a repeat after a lost answer is told from a clash of uuids.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5

from common.model import Alternate, ImageRef, InstanceSpec, Nic, Restart

ALTERNATES_AT_MOST = 3


@dataclass(frozen=True)
class Request:
    """What somebody asks for; every field has passed ``common/validate.py``.

    Args:
        query: Placement's own query string, ``resources=VCPU:1,…`` with all that it can express.
        resources: the amount per resource class that *query* asks for in all.
        name: None takes ``vm-`` and the first eight digits of the uuid.
        hostname: what the guest calls itself; None takes the name.
        group: instances of one group never share a host.
        uuid: None derives it from *request_id*, else a new one is made.
    """

    query: str
    resources: Mapping[str, int]
    image: ImageRef
    name: str | None = None
    keys: tuple[str, ...] = ()
    user_data: bytes | None = None
    hostname: str | None = None
    networks: tuple[str, ...] = ("default",)
    restart: Restart = Restart.NEVER
    group: str | None = None
    uuid: UUID | None = None
    request_id: str | None = None

    def digest(self) -> str:
        """A fingerprint of what is asked for; who asks, when, and under which uuid are no part of it."""
        parts = {
            "query": self.query,
            "image": [self.image.url, self.image.checksum],
            "name": self.name,
            "keys": list(self.keys),
            "user_data": _base64(self.user_data),
            "hostname": self.hostname,
            "networks": list(self.networks),
            "restart": self.restart.value,
            "group": self.group,
        }
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def instance_uuid(self, prefix: str, new_uuid: Callable[[], UUID]) -> UUID:
        """The uuid of the instance: as asked for, or computed from the request id and the deployment's *prefix*, or new."""
        if self.uuid is not None:
            return self.uuid
        if self.request_id is not None:
            return uuid5(uuid5(NAMESPACE_URL, f"etcd-compute:{prefix}"), self.request_id)
        return new_uuid()

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
    ) -> InstanceSpec:
        """The spec of *instance*, holding *resources* as they were claimed and *alternates* cut to what a spec carries."""
        name = self.instance_name(instance)
        return InstanceSpec(
            uuid=instance,
            name=name,
            image=self.image,
            resources=dict(resources),
            nics=tuple(Nic(network) for network in self.networks),
            keys=self.keys,
            user_data_base64=_base64(self.user_data),
            hostname=self.hostname or name,
            alternates=alternates[:ALTERNATES_AT_MOST],
            group=self.group,
            restart=self.restart,
            request_digest=self.digest(),
            created_at=created_at,
            created_by=created_by,
        )


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")
