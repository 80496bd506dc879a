"""An instance as a file describes it: what ``export`` prints, ``edit`` opens, and ``apply`` and ``diff`` compare with. Pure.

Addresses and MACs that a network of the cluster gave are left out, and so are files that were written to its disk, whose names
here are not known any more; ``left_out`` says so.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import yaml

from common.model import Desired, ImageRef, InstanceSpec, Nic
from common.validate import parse_resources_query
from eschedule import zones
from eschedule.sizes import GIB, MIB, size_text

_AMOUNTS = ("VCPU", "MEMORY_MB", "DISK_GB")


@dataclass(frozen=True)
class Whereabouts:
    """Where an instance is: its host's provider, the host's name, and the zone of the host, "" for none."""

    provider: UUID
    host: str
    zone: str = ""


@dataclass(frozen=True)
class Asked:
    """What a query asks of a host, beside amounts.

    Args:
        traits: that the host must have; *not_traits*: that it must not; *others*: what has no field of its own.
        in_tree: the provider that it is to be, "" where none is named.
    """

    traits: frozenset[str]
    not_traits: frozenset[str]
    in_tree: str
    others: tuple[tuple[str, str], ...]


def asked(query: str) -> Asked:
    """What *query* asks of a host.

    Raises:
        ConfigError: it is none.
    """
    plain, unwanted, others, in_tree = set[str](), set[str](), list[tuple[str, str]](), ""
    for name, value in parse_resources_query(query).parameters if query else ():
        if name == "required" and not value.startswith("in:"):
            for trait in value.split(","):
                (unwanted if trait.startswith("!") else plain).add(trait.removeprefix("!"))
        elif name == "in_tree":
            in_tree = value
        elif name != "resources":
            others.append((name, value))
    return Asked(frozenset(plain), frozenset(unwanted), in_tree, tuple(others))


def document_of(spec: InstanceSpec, where: Whereabouts) -> dict[str, Any]:
    """*spec* as a file describes it; fields that say what is so anyway are left out.

    Raises:
        ConfigError: its query was spoilt by hand.
    """
    found: dict[str, Any] = {"name": spec.name, **_needs(spec, where)}
    found["image"] = spec.image.name or spec.image.url
    if spec.image.checksum and not spec.image.name:
        found["checksum"] = spec.image.checksum
    if spec.hostname != spec.name:
        found["hostname"] = spec.hostname
    found |= editable(spec)
    found["nics"] = [nic_as_option(nic) for nic in spec.nics]
    if spec.disk_content.identity:
        found["inject_identity"] = True
    if spec.disk_content.resize:
        found["grow"] = True
    if spec.group is not None:
        found |= {"group": spec.group, "policy": str(spec.group_policy)}
    return found


def editable(spec: InstanceSpec) -> dict[str, Any]:
    """The fields of *spec* that can be changed, all of them, and its user data where there is some."""
    amounts = {name: spec.resources[name] for name in _AMOUNTS if name in spec.resources}
    found: dict[str, Any] = {}
    if not _has_groups(spec.query):
        found = {_FIELDS[name]: _amount(name, amount) for name, amount in amounts.items()}
    found |= {"labels": dict(sorted(spec.labels.items())), "keys": list(spec.keys), **_user_data(spec.user_data)}
    return found | {
        "allow": None if spec.allow is None else list(spec.allow),
        "publish": [publish_text(one.host_port, one.guest_port, one.protocol) for one in spec.forwards],
        "volumes": [volume.name for volume in spec.volumes],
        "restart": str(spec.restart),
        "grace_seconds": spec.grace_seconds,
        "metadata": str(spec.metadata),
        "metadata_hop_limit": spec.metadata_hop_limit,
        "config_drive": str(spec.config_drive),
        "power": "running" if spec.desired is Desired.DELETED else str(spec.desired),
    }


_FIELDS = {"VCPU": "cpus", "MEMORY_MB": "memory", "DISK_GB": "disk"}


def _amount(name: str, amount: int) -> int | str:
    return amount if name == "VCPU" else size_text(amount, MIB if name == "MEMORY_MB" else GIB)


def publish_text(host_port: int, guest_port: int, protocol: str) -> str:
    return f"{host_port}:{guest_port}" + ("" if protocol == "tcp" else f"/{protocol}")


def _user_data(data: bytes | None) -> dict[str, str]:
    if data is None:
        return {}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    is_text = all(c.isprintable() or c in "\n\t" for c in text)  # what YAML takes as it is
    return {"user_data": text} if is_text else {"user_data_base64": base64.b64encode(data).decode()}


def _needs(spec: InstanceSpec, where: Whereabouts) -> dict[str, Any]:
    """What chose its host."""
    if _has_groups(spec.query):
        return {"request": spec.query}
    wants, found = asked(spec.query), dict[str, Any]()
    traits = wants.traits
    if where.zone and zones.zone_trait(where.zone) in traits:
        found["zone"], traits = where.zone, traits - {zones.zone_trait(where.zone)}
    if wants.in_tree == str(where.provider):
        found["host"] = where.host
    if traits:
        found["traits"] = sorted(traits)
    if wants.not_traits:
        found["not_traits"] = sorted(wants.not_traits)
    own = ",".join(f"{name}:{amount}" for name, amount in sorted(spec.resources.items()) if name not in _AMOUNTS)
    parts = [*([f"resources={own}"] if own else []), *(f"{name}={value}" for name, value in wants.others)]
    return found | ({"request": "&".join(parts)} if parts else {})


def _has_groups(query: str) -> bool:
    parameters = parse_resources_query(query).parameters if query else ()
    return any(name.startswith("resources") and name != "resources" for name, _ in parameters)


def nic_as_option(nic: Nic) -> str:
    """*nic* as ``--nic`` takes it."""
    if nic.is_pooled:
        return f"network={nic.network}"
    parts = [f"network={nic.network}" if nic.network else f"bridge={nic.bridge}"]
    parts += [f"vlan={nic.vlan}"] if nic.vlan else []
    for one in nic.addresses:
        parts += [f"address={one.address}" + (f"/{one.prefix_length}" if one.prefix_length else "")] if one.address else []
        parts += [f"gateway={one.gateway}"] if one.gateway else []
    parts += [f"dns={server}" for server in nic.name_servers]
    parts += [f"mac={nic.mac}"] if nic.mac else []
    parts += [f"mtu={nic.mtu}"] if nic.mtu else []
    return ",".join(parts)


def left_out(spec: InstanceSpec) -> list[str]:
    """What of *spec* its document does not say, a line each."""
    lines = []
    if spec.disk_content.files:
        paths = ", ".join(file.path for file in spec.disk_content.files)
        lines.append(f"files that were written to its disk: {paths}")
    if not spec.query:
        lines.append("traits and hosts that were asked for: an earlier version made it, and did not note them")
    return lines


def is_image(text: str, checksum: str | None, image: ImageRef) -> bool:
    """Whether *text*, a registered name or an address, is where *image* came from."""
    is_same = text in (image.name, image.url) if image.name else text == image.url
    return is_same and checksum in (None, image.checksum)


# -- as YAML -------------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with texts of several lines as such."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def as_yaml(document: Mapping[str, Any], notes: list[str] | None = None) -> str:
    """*document* as YAML that ``vm_file`` reads as just that, *notes* in comments before it."""
    head = "".join(f"# {line}\n" for note in notes or () for line in note.split("\n"))
    return head + yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
