"""What ``create --like INSTANCE`` begins with: a request for another instance of the kind.

What only one of them can have stays with it: name, uuid, MAC and IP addresses, ports of its host, volumes.
"""

from __future__ import annotations

import dataclasses
from uuid import UUID

from common.errors import ConfigError
from common.model import InstanceSpec, Nic
from common.validate import parse_instance, parse_resources_query
from eschedule.changes import find, read
from eschedule.request import Request
from eschedule.session import Session


def like(session: Session, text: str) -> Request:
    """A request like the instance that *text* names; what cannot be taken over is warned of.

    Raises:
        ConfigError: it names none.
        Permanent: there is none.
    """
    who: UUID | str = parse_instance(text)
    spec = read(session.store, session.keys, find(session.store, session.keys, who), who).spec
    for line in left_out(spec):
        session.screen.warning(f"--like {spec.name}: {line}")
    return request_like(spec)


def request_like(spec: InstanceSpec) -> Request:
    """A request for another instance like *spec*, without a name. Pure.

    Raises:
        ConfigError: it was resized, and its query cannot be changed to what it has now.
    """
    query = query_like(spec)
    return Request(
        query=query, resources=spec.resources, image=spec.image, keys=spec.keys, user_data=spec.user_data,
        nics=tuple(_card_like(nic) for nic in spec.nics), restart=spec.restart, grace_seconds=spec.grace_seconds,
        group=spec.group, group_policy=spec.group_policy, metadata=spec.metadata, metadata_hop_limit=spec.metadata_hop_limit,
        config_drive=spec.config_drive, allow=spec.allow, hardware=spec.hardware, hardware_is_given=spec.hardware_is_given,
        disk_content=spec.disk_content, labels=tuple(sorted(spec.labels.items())),
    )  # fmt: skip


def query_like(spec: InstanceSpec) -> str:
    """The query that chose the host of *spec*, for what it has now.

    Raises:
        ConfigError: as ``request_like``.
    """
    amounts = ",".join(f"{name}:{amount}" for name, amount in sorted(spec.resources.items()))
    if not spec.query:
        return f"resources={amounts}"
    parsed = parse_resources_query(spec.query)
    if parsed.resources == spec.resources:
        return spec.query
    if any(name.startswith("resources") and name != "resources" for name, _ in parsed.parameters):
        raise ConfigError(
            f"{spec.name} was resized, and its request has groups of resources; say what the new one needs: 'resources=…'; "
            f"it was: {spec.query}"
        )
    return "&".join(f"resources={amounts}" if part.startswith("resources=") else part for part in spec.query.split("&"))


def _card_like(nic: Nic) -> Nic:
    if nic.is_pooled:
        return Nic(nic.network)
    return dataclasses.replace(nic, mac="", addresses=(), name_servers=())


def left_out(spec: InstanceSpec) -> list[str]:
    """What of *spec* another one does not get, and what to do about it: a line each."""
    lines = []
    fixed = [one.address for nic in spec.nics if not nic.is_pooled for one in nic.addresses if one.address]
    if fixed:
        lines.append(f"its address {', '.join(fixed)} stays its own; give the new one its own: --nic …,address=…")
    if spec.forwards:
        lines.append("the ports of its host stay its own; give the new one its own: --publish")
    if spec.volumes:
        lines.append(f"its volumes stay its own: {', '.join(volume.name for volume in spec.volumes)}")
    if not spec.query:
        lines.append("an earlier version made it, so that it is not known what traits and hosts it asked for")
    return lines
