"""From the options of ``create`` and the configuration's defaults to a checked ``Request``; reads the files they name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.config import ScheduleConfig
from common.errors import ConfigError
from common.hardware import USUAL
from common.model import Forward, GroupPolicy, ImageRef, Nic
from common.validate import (
    is_image_name,
    parse_allow,
    parse_checksum,
    parse_config_drive,
    parse_count,
    parse_forwards,
    parse_group,
    parse_group_policy,
    parse_hop_limit,
    parse_hostname,
    parse_image,
    parse_metadata_access,
    parse_name,
    parse_request_id,
    parse_resources_query,
    parse_restart,
    parse_uuid,
)
from eschedule.disk_options import disk_content_of
from eschedule.guest_options import StoredKeys, allow_of, keys_in_files, keys_of, none_stored, user_data_of
from eschedule.image_choice import RegisteredImage, made_of, none_registered
from eschedule.labels import parse_given
from eschedule.nic_options import DEFAULT, parse_nic
from eschedule.request import NUMBER, Request, numbered

NICS_AT_MOST = 16


def request_from(
    options: argparse.Namespace, config: ScheduleConfig, stored: StoredKeys = none_stored,
    registered: RegisteredImage = none_registered, base: Request | None = None,
) -> Request:  # fmt: skip
    """The request that *options* make, completed by *base*, or else by the defaults of *config*.

    Args:
        base: a request like an instance that is there; its query is not looked at.
        stored: the keys that are kept under names, asked only where options name some.
        registered: the image of a name, asked only where the image is one.

    Raises:
        ConfigError: something in it is wrong; one line.
        EcomputeError: as *stored* and *registered*.
    """
    parsed = parse_resources_query(options.query)
    if options.uuid is not None and options.request_id is not None:
        raise ConfigError("--uuid and --request-id both name the instance; give one of them")
    count = 1 if options.count is None else parse_count(options.count, "--count")
    if options.uuid is not None and count > 1:
        raise ConfigError("--uuid names one instance, --count asks for several; give --request-id instead of --uuid")
    base = base or _base(config)
    group, group_policy = _group(options, base)
    image = _image(options, base, config)
    request = Request(
        query=parsed.query,
        resources=parsed.resources,
        image=base.image if image is None else ImageRef("") if is_image_name(image) else parse_image(image, options.checksum),
        name=None if options.name is None else _name(options.name, count),
        user_data=_user_data(options, base),
        metadata=base.metadata if options.metadata is None else parse_metadata_access(options.metadata),
        metadata_hop_limit=_hop_limit(options.metadata_hop_limit, base.metadata_hop_limit),
        config_drive=base.config_drive if options.config_drive is None else parse_config_drive(options.config_drive),
        allow=allow_of(options, base.allow),
        disk_content=disk_content_of(options, base.disk_content),
        labels=base.labels if options.label is None else parse_given(options.label),
        forwards=_forwards(options.publish, count, group, group_policy),
        hostname=None if options.hostname is None else parse_hostname(options.hostname),
        nics=base.nics if options.nics is None else _nics(options.nics, config.defaults.network, count),
        restart=base.restart if options.restart is None else parse_restart(options.restart),
        grace_seconds=_grace_seconds(options.grace_seconds, base.grace_seconds),
        uuid=None if options.uuid is None else parse_uuid(options.uuid, "--uuid"),
        request_id=None if options.request_id is None else parse_request_id(options.request_id),
        group=group,
        group_policy=group_policy,
        count=count,
        hardware=base.hardware if image is None else USUAL,
        hardware_is_given=base.hardware_is_given and image is None,
    )
    # Last: nobody is asked where anything else is wrong.
    checksum = None if options.checksum is None else parse_checksum(options.checksum)
    request = replace(request, keys=_keys(options, config, base, stored))
    return made_of(request, registered(image), checksum) if image is not None and is_image_name(image) else request


def _base(config: ScheduleConfig) -> Request:
    """What is asked for where nothing is said; without keys, which are in files."""
    defaults = config.defaults
    return Request(
        "", {}, ImageRef(""), metadata=parse_metadata_access(defaults.metadata), metadata_hop_limit=defaults.metadata_hop_limit,
        config_drive=parse_config_drive(defaults.config_drive), restart=parse_restart(defaults.restart),
        allow=None if defaults.allow is None else parse_allow(defaults.allow, "defaults.allow"),
        nics=_nics([DEFAULT], defaults.network, 1),
    )  # fmt: skip


def _keys(options: argparse.Namespace, config: ScheduleConfig, base: Request, stored: StoredKeys) -> tuple[str, ...]:
    if options.key is not None:
        return keys_of(options.key, stored)
    return base.keys if base.image.url else keys_in_files(config.defaults.key_files, "defaults.key_files")


def _user_data(options: argparse.Namespace, base: Request) -> bytes | None:
    if options.user_data_given is not None:
        return bytes(options.user_data_given)
    return base.user_data if options.user_data is None else user_data_of(Path(options.user_data))


def _name(text: str, count: int) -> str:
    """The name, or the common part of the names of *count* instances, all of which have been checked by the longest."""
    longest = numbered(text, count, count)
    try:
        parse_name(longest)
    except ConfigError as error:
        if longest == text:
            raise
        raise ConfigError(f"{error}; it is --name {text} with its number") from None
    return longest if count == 1 and NUMBER in text else text


def _group(options: argparse.Namespace, base: Request) -> tuple[str | None, GroupPolicy]:
    if options.group is None:
        if base.group is not None and options.policy is None:
            return base.group, base.group_policy
        if options.policy is not None:
            raise ConfigError("--policy says how the instances of a group are spread; give --group NAME with it")
        return None, GroupPolicy.ANTI_AFFINITY
    policy = GroupPolicy.ANTI_AFFINITY if options.policy is None else parse_group_policy(options.policy)
    return parse_group(options.group), policy


def _grace_seconds(text: str | None, default: int) -> int:
    return default if text is None else parse_count(text, "--grace-seconds", 0, 3600)


def _image(options: argparse.Namespace, base: Request, config: ScheduleConfig) -> str | None:
    """The image that is named; None where it is that of *base*."""
    given = [image for image in (options.image_argument, options.image) if image is not None]
    if len(given) == 2:
        raise ConfigError("the image is given twice, as an argument and by --image; give it once")
    if not given and base.image.url:
        if options.checksum is not None:
            raise ConfigError("--checksum is of an image that is named; give --image with it, or leave it out with --like")
        return None
    image = given[0] if given else config.defaults.image
    if image is None:
        raise ConfigError(
            "no image is given, and schedule.yaml has no defaults.image; give a name (eschedule image list), an http(s):// or "
            "file:// URL or an absolute path"
        )
    return str(image)


def _hop_limit(text: str | None, default: int) -> int:
    return default if text is None else parse_hop_limit(text)


def _forwards(texts: list[str] | None, count: int, group: str | None, policy: GroupPolicy) -> tuple[Forward, ...]:
    if texts and count > 1 and (group is None or policy is not GroupPolicy.ANTI_AFFINITY):
        raise ConfigError(
            "--publish takes a port of each guest's host, which only one guest of a host can have; "
            "with --count give --group NAME as well, which keeps them on hosts of their own"
        )
    return parse_forwards(texts or ())


def _nics(texts: Sequence[str], default_network: str, count: int) -> tuple[Nic, ...]:
    if len(texts) > NICS_AT_MOST:
        raise ConfigError(f"--nic and --network are given {len(texts)} times, at most {NICS_AT_MOST} network cards are made")
    nics = tuple(parse_nic(text, default_network) for text in texts)
    own = [text for nic in nics for text in (nic.mac, *(one.address for one in nic.addresses)) if text]
    if own and count > 1:
        raise ConfigError(
            f"{own[0]} is one card's own, and --count {count} asks for {count} instances; leave mac= and address= out"
        )
    return nics
