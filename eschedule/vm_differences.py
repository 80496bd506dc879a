"""What of a file (``vm.yaml``) is not so of the instance that is there, and what of that can be changed. Pure but for names.

Names of hosts, zones, keys and volumes are looked up; all else is compared. What chose the host of an instance, its image and
its cards are given to it when it is made, and differ without a cure; the rest becomes fields of its spec, amounts, a boot or a
stop.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.errors import ConfigError, Conflict
from common.model import Desired, Forward, InstanceSpec, Nic
from common.text import counted
from common.validate import (
    parse_config_drive,
    parse_forwards,
    parse_metadata_access,
    parse_restart,
)
from common.volume_records import VolumePlace
from eschedule import changes, labels, still_edits, zones
from eschedule.changes import Instance
from eschedule.disk_options import disk_content_of
from eschedule.guest_options import StoredKeys, allow_of, keys_of
from eschedule.needs import Places, amounts_of
from eschedule.nic_options import parse_nic
from eschedule.query import Query
from eschedule.resizing import RESIZABLE, check
from eschedule.vm_export import Asked, asked, is_image, nic_as_option, publish_text
from eschedule.vm_file import VmFile

ANEW = "only by making it anew"
_AMOUNT_FIELDS = {"VCPU": "cpus", "MEMORY_MB": "memory", "DISK_GB": "disk"}


@dataclass(frozen=True)
class Difference:
    """A field that is not as the file says. *obstacle*: why it cannot be changed, "" where it can."""

    field: str
    has: str
    wanted: str
    obstacle: str = ""


@dataclass(frozen=True)
class Lookups:
    """Who is asked for what a file names.

    Args:
        default_network: of a card that names none.
    """

    places: Callable[[], Places]
    stored_keys: StoredKeys
    volume: Callable[[str], VolumePlace]
    default_network: str


@dataclass
class Comparison:
    """What differs, and what would change it.

    Args:
        fields: of the spec, to be set. *amounts*: what to resize to, by resource class. *power*: "running" or "stopped".
    """

    differences: list[Difference] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    amounts: dict[str, int] = field(default_factory=dict)
    power: str = ""
    attach: list[VolumePlace] = field(default_factory=list)
    detach: list[VolumePlace] = field(default_factory=list)


def compare(vm: VmFile, options: argparse.Namespace, found: Instance, lookups: Lookups) -> Comparison:
    """What of *vm*, which *options* say as those of ``create``, is not so of *found*.

    Raises:
        ConfigError: something in the file is wrong; with its line.
        Conflict, Permanent: the instance is in no state to be changed.
        EcomputeError: as *lookups*.
    """
    result = Comparison()
    spec = found.spec
    _compare_amounts(options, found, result)
    for name, value in _wanted_fields(vm, options, lookups):
        if getattr(spec, name) != value:
            result.fields[name] = value
            shown = _SHOWN.get(name, str)
            result.differences.append(Difference(_FIELD_OF.get(name, name), shown(getattr(spec, name)), shown(value)))
    _compare_volumes(vm, found, lookups, result)
    _compare_power(vm, found, result)
    result.differences += _fixed(vm, options, found, lookups)
    return result


# -- what can be changed -------------------------------------------------------------------------------------------------


def _compare_amounts(options: argparse.Namespace, found: Instance, result: Comparison) -> None:
    spec = found.spec
    wanted = _amounts_in(options.query or "") | amounts_of(options)
    for name, amount in wanted.items():
        if spec.resources.get(name) == amount:
            continue
        obstacle = ANEW if name not in RESIZABLE else ""
        if not obstacle:
            try:
                check(spec, found.status, {name: amount})
            except ConfigError as error:
                obstacle = str(error)
            result.amounts[name] = amount
        has = str(spec.resources.get(name, "none"))
        result.differences.append(Difference(_AMOUNT_FIELDS.get(name, name), f"{name} {has}", f"{name} {amount}", obstacle))


def _amounts_in(query: str) -> dict[str, int]:
    """The amounts in all groups of *query*, as far as they are numbers."""
    found: dict[str, int] = {}
    for name, value in Query.parse(query).pairs:
        for item in value.split(",") if name.startswith("resources") else ():
            resource_class, _, amount = item.partition(":")
            found[resource_class] = found.get(resource_class, 0) + (int(amount) if amount.isdecimal() else 0)
    return found


def _wanted_fields(vm: VmFile, options: argparse.Namespace, lookups: Lookups) -> Iterator[tuple[str, Any]]:
    """The fields of a spec that the file names, and their values."""
    said = vm.values
    if "labels" in said:
        yield "labels", dict(labels.parse_given(options.label))
    if "keys" in said:
        yield "keys", _at(vm, "keys", lambda: keys_of(options.key, lookups.stored_keys))
    if vm.says_user_data:
        data = options.user_data_given
        yield "user_data_base64", None if data is None else base64.b64encode(data).decode("ascii")
    if "allow" in said:
        yield "allow", allow_of(options, None)
    if "publish" in said:
        yield "forwards", _at(vm, "publish", lambda: parse_forwards(said["publish"], "publish"))
    if "restart" in said:
        yield "restart", parse_restart(said["restart"])
    if "metadata" in said:
        yield "metadata", parse_metadata_access(said["metadata"])
    if "config_drive" in said:
        yield "config_drive", parse_config_drive(said["config_drive"])
    for name in ("grace_seconds", "metadata_hop_limit"):
        if name in said:
            yield name, said[name]


def _at(vm: VmFile, key: str, action: Callable[[], Any]) -> Any:
    """The answer of *action*. Raises: ConfigError: as *action*, with the line of *key*."""
    try:
        return action()
    except ConfigError as error:
        raise ConfigError(f"{vm.at(key)}: {error}") from None


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) or "none"


def _key_text(key: str) -> str:
    kind, _, rest = key.partition(" ")
    return f"{kind} {rest.partition(' ')[2] or f'…{rest[-8:]}'}"


_FIELD_OF = {"user_data_base64": "user_data", "forwards": "publish"}
_SHOWN: Mapping[str, Callable[[Any], str]] = {
    "labels": lambda found: labels.shown(found) or "none",
    "keys": lambda found: _listed(_key_text(key) for key in found),
    # Never itself: it often has passwords in it, and what is shown ends up in logs.
    "user_data_base64": lambda text: "none" if text is None else counted(len(base64.b64decode(text)), "byte"),
    "allow": lambda rules: "everybody" if rules is None else (", ".join(rules) or "nobody"),
    "forwards": lambda found: _listed(_publish_text(one) for one in found),
}


def _publish_text(one: Forward) -> str:
    return publish_text(one.host_port, one.guest_port, one.protocol)


def _compare_volumes(vm: VmFile, found: Instance, lookups: Lookups, result: Comparison) -> None:
    if "volumes" not in vm.values:
        return
    has = {one.uuid: one.name for one in found.spec.volumes}
    wanted = {(place := lookups.volume(name)).uuid: (place, name) for name in vm.values["volumes"]}
    result.attach = [place for uuid, (place, _) in wanted.items() if uuid not in has]
    result.detach = [VolumePlace(found.provider, uuid) for uuid in has if uuid not in wanted]
    if result.attach or result.detach:
        strange = [name for place, name in wanted.values() if place.provider != found.provider]
        obstacle = f"{', '.join(strange)}: on another host, and volumes do not move" if strange else ""
        names = _listed(name for _, name in wanted.values())
        result.differences.append(Difference("volumes", _listed(has.values()), names, obstacle))


def _compare_power(vm: VmFile, found: Instance, result: Comparison) -> None:
    wanted = vm.values.get("power", "")
    if wanted and power_edit(wanted)(found.spec, found.status) is not None:
        result.power = wanted
        phase = str(found.status.phase).lower() if found.status else "pending"
        result.differences.append(Difference("power", phase, wanted))


def power_edit(power: str) -> changes.Edit:
    """The edit that asks for *power*, one of the words of ``vm_schema``."""
    return _POWER_EDITS[power]


_POWER_EDITS: dict[str, changes.Edit] = {
    "running": changes.started, "stopped": changes.stopped, "paused": still_edits.paused, "suspended": still_edits.suspended,
}  # fmt: skip


# -- what cannot ---------------------------------------------------------------------------------------------------------


def _fixed(vm: VmFile, options: argparse.Namespace, found: Instance, lookups: Lookups) -> Iterator[Difference]:
    """What differs of what an instance is made with."""
    spec, said = found.spec, vm.values
    yield from _fixed_place(vm, found, lookups)
    if "image" in said and not is_image(said["image"], said.get("checksum"), spec.image):
        anew = f"only by a rebuild, which makes its disk anew: eschedule rebuild {spec.name} --image {said['image']}"
        yield Difference("image", spec.image.name or spec.image.url, str(said["image"]), anew)
    elif said.get("checksum", spec.image.checksum) != spec.image.checksum:
        yield Difference("checksum", spec.image.checksum or "none", str(said["checksum"]), "only by a rebuild")
    if said.get("hostname", spec.hostname) != spec.hostname:
        yield Difference("hostname", spec.hostname, said["hostname"], ANEW)
    if said.get("group", spec.group) != spec.group:
        yield Difference("group", spec.group or "none", said["group"], ANEW)
    elif said.get("policy", spec.group_policy) != spec.group_policy:
        yield Difference("policy", str(spec.group_policy), said["policy"], ANEW)
    if "nics" in said and not _has_cards(
        [parse_nic(one, lookups.default_network) for one in said["nics"] or ["default"]], spec
    ):
        yield Difference("nics", _listed(map(nic_as_option, spec.nics)), _listed(said["nics"]), ANEW)
    yield from _fixed_disk(vm, options, spec)


def _has_cards(wanted: Sequence[Nic], spec: InstanceSpec) -> bool:
    return len(wanted) == len(spec.nics) and all(map(_is_card, wanted, spec.nics))


def _is_card(wanted: Nic, has: Nic) -> bool:
    """Whether the card *has* is as *wanted*, in all that is said of that one."""
    addresses = {one.address for one in has.addresses}
    return (
        (wanted.network == has.network if wanted.network else (wanted.bridge, wanted.vlan) == (has.bridge, has.vlan))
        and wanted.mac in ("", has.mac)
        and wanted.mtu in (0, has.mtu)
        and all(one.address in ("", *addresses) for one in wanted.addresses)
    )


def _fixed_disk(vm: VmFile, options: argparse.Namespace, spec: InstanceSpec) -> Iterator[Difference]:
    has = spec.disk_content
    if "inject" in vm.values:
        wanted = _at(vm, "inject", lambda: disk_content_of(options)).files
        if wanted != has.files:
            shown = [_listed(file.path for file in files) for files in (has.files, wanted)]
            yield Difference("inject", shown[0], shown[1], ANEW)
    for name, is_so in (("inject_identity", has.identity), ("grow", has.resize)):
        if vm.values.get(name) and not is_so:
            yield Difference(name, "false", "true", ANEW)


def _fixed_place(vm: VmFile, found: Instance, lookups: Lookups) -> Iterator[Difference]:
    """What was asked of its host. Of an instance that an earlier version made that is not known, and passed over."""
    said = vm.values
    if "host" in said and lookups.places().provider_of(said["host"]) != found.provider:
        yield Difference("host", "another", said["host"], ANEW)
    if not found.spec.query:
        return
    has = asked(found.spec.query)
    of_zones = frozenset(trait for trait in has.traits if trait.startswith(zones.TRAITS))
    in_request = _traits_in(said.get("request", ""))
    for name, there in (("traits", has.traits - of_zones - in_request), ("not_traits", has.not_traits - in_request)):
        if name in said and set(said[name]) - in_request != there:
            yield Difference(name, _listed(sorted(there)), _listed(said[name]), ANEW)
    if "zone" in said and lookups.places().trait_of(said["zone"]) not in of_zones:
        yield Difference("zone", _listed(sorted(of_zones)), said["zone"], ANEW)
    if "request" in said and (strange := _strange(said["request"], has)):
        yield Difference("request", found.spec.query, "&".join(strange), ANEW)


def _traits_in(query: str) -> frozenset[str]:
    values = [value for name, value in Query.parse(query).pairs if name == "required" and not value.startswith("in:")]
    return frozenset(trait.removeprefix("!") for value in values for trait in value.split(","))


def _strange(query: str, has: Asked) -> list[str]:
    """The parts of *query* that the instance was not asked for with, amounts left out."""
    known = {(name, _sorted(value)) for name, value in has.others} | {("in_tree", has.in_tree)}
    found = []
    for name, value in Query.parse(query).pairs:
        if name == "required" and not value.startswith("in:"):
            is_known = all(t.removeprefix("!") in (has.not_traits if t[:1] == "!" else has.traits) for t in value.split(","))
        else:
            is_known = name.startswith("resources") or (name, _sorted(value)) in known
        if not is_known:
            found.append(f"{name}={value}")
    return found


def _sorted(value: str) -> str:
    return ",".join(sorted(value.split(",")))


def refuse_ending(found: Instance) -> None:
    """Raises: Conflict: *found* is being destroyed."""
    if found.spec.desired is Desired.DELETED:
        raise Conflict(f"the instance {found.name} is being destroyed; try again once it is gone: eschedule show {found.name}")
