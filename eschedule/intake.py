"""From the options of ``create`` and the configuration's defaults to a checked ``Request``; reads the files they name."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from common.config import ScheduleConfig
from common.errors import ConfigError
from common.model import GroupPolicy
from common.validate import (
    USER_DATA_MOST_BYTES,
    check_user_data,
    parse_count,
    parse_group,
    parse_group_policy,
    parse_hostname,
    parse_image,
    parse_name,
    parse_network,
    parse_public_keys,
    parse_request_id,
    parse_resources_query,
    parse_restart,
    parse_uuid,
)
from eschedule.request import GRACE_SECONDS, NUMBER, Request, numbered

KEY_FILE_MOST_BYTES = 65536
NICS_AT_MOST = 16


def request_from(options: argparse.Namespace, config: ScheduleConfig) -> Request:
    """The request that *options* make, completed by the defaults of *config*.

    Raises:
        ConfigError: something in it is wrong; one line.
    """
    parsed = parse_resources_query(options.query)
    if options.uuid is not None and options.request_id is not None:
        raise ConfigError("--uuid and --request-id both name the instance; give one of them")
    count = 1 if options.count is None else parse_count(options.count, "--count")
    if options.uuid is not None and count > 1:
        raise ConfigError("--uuid names one instance, --count asks for several; give --request-id instead of --uuid")
    group, group_policy = _group(options)
    user_data = None if options.user_data is None else _user_data(Path(options.user_data))
    return Request(
        query=parsed.query,
        resources=parsed.resources,
        image=parse_image(_image(options, config), options.checksum),
        name=None if options.name is None else _name(options.name, count),
        keys=_keys(options.key, config),
        user_data=user_data,
        hostname=None if options.hostname is None else parse_hostname(options.hostname),
        networks=_networks(options.network or [config.defaults.network]),
        restart=parse_restart(options.restart or config.defaults.restart),
        grace_seconds=_grace_seconds(options.grace_seconds),
        uuid=None if options.uuid is None else parse_uuid(options.uuid, "--uuid"),
        request_id=None if options.request_id is None else parse_request_id(options.request_id),
        group=group,
        group_policy=group_policy,
        count=count,
    )


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


def _group(options: argparse.Namespace) -> tuple[str | None, GroupPolicy]:
    if options.group is None:
        if options.policy is not None:
            raise ConfigError("--policy says how the instances of a group are spread; give --group NAME with it")
        return None, GroupPolicy.ANTI_AFFINITY
    policy = GroupPolicy.ANTI_AFFINITY if options.policy is None else parse_group_policy(options.policy)
    return parse_group(options.group), policy


def _grace_seconds(text: str | None) -> int:
    return GRACE_SECONDS if text is None else parse_count(text, "--grace-seconds", 0, 3600)


def _image(options: argparse.Namespace, config: ScheduleConfig) -> str:
    given = [image for image in (options.image_argument, options.image) if image is not None]
    if len(given) == 2:
        raise ConfigError("the image is given twice, as an argument and by --image; give it once")
    image = given[0] if given else config.defaults.image
    if image is None:
        raise ConfigError(
            "no image is given, and schedule.yaml has no defaults.image; name an http(s):// or file:// URL or an absolute path"
        )
    return str(image)


def _keys(files: Iterable[str] | None, config: ScheduleConfig) -> tuple[str, ...]:
    """The keys of all *files*, or of the default ones, each once."""
    paths = [Path(file) for file in files] if files is not None else list(config.defaults.key_files)
    option = "--key" if files is not None else "defaults.key_files"
    keys: dict[str, None] = {}
    for path in paths:
        keys.update(dict.fromkeys(parse_public_keys(_content(path, KEY_FILE_MOST_BYTES, option), str(path))))
    return tuple(keys)


def _user_data(path: Path) -> bytes:
    return check_user_data(_content(path, USER_DATA_MOST_BYTES, "--user-data"), str(path))


def _networks(names: Iterable[str]) -> tuple[str, ...]:
    networks = tuple(parse_network(name) for name in names)
    if len(networks) > NICS_AT_MOST:
        raise ConfigError(f"--network is given {len(networks)} times, at most {NICS_AT_MOST} NICs are made")
    return networks


def _content(path: Path, most_bytes: int, option: str) -> bytes:
    """What is in *path*, and one byte more than allowed where there is more, so that the check behind it sees that."""
    try:
        # A pipe without a writer would be waited for as it is opened; one with a writer, as the shell's <(…), is read.
        with open(path.expanduser(), "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            data = file.read(most_bytes + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{option} {path} cannot be read: {reason}; give the path of a readable file") from None
    if is_pipe and not data:
        raise ConfigError(f"{option} {path} is a pipe that nobody writes to; give the path of a readable file")
    return data
