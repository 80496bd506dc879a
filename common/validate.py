"""What users give on a command line, checked before anything is touched. Pure: no files, no network, no clock.

Each function returns the parsed value or raises ``ConfigError`` with one line: what is wrong, what is allowed, what to do.
This is the one door: the larger ones, Placement's query string, ssh keys and access, have modules of their own behind it.
"""

from __future__ import annotations

import math
import re
from uuid import UUID

from common.errors import ConfigError
from common.model import GroupPolicy, Restart
from common.text import nearest, quoted
from common.validate_access import (
    MOST_HOPS,
    check_forwards,
    parse_allow,
    parse_config_drive,
    parse_forward,
    parse_forwards,
    parse_host_port,
    parse_metadata_access,
)
from common.validate_images import is_image_name, parse_checksum, parse_image, parse_image_name
from common.validate_keys import MOST_KEYS, parse_public_keys
from common.validate_query import RequestQuery, parse_amounts, parse_resources_query

__all__ = [
    "MOST_KEYS",
    "USER_DATA_MOST_BYTES",
    "RequestQuery",
    "check_forwards",
    "check_user_data",
    "is_image_name",
    "is_key_name",
    "is_uuid",
    "parse_allow",
    "parse_amounts",
    "parse_checksum",
    "parse_config_drive",
    "parse_count",
    "parse_forward",
    "parse_forwards",
    "parse_group",
    "parse_group_policy",
    "parse_hop_limit",
    "parse_host_port",
    "parse_hostname",
    "parse_image",
    "parse_image_name",
    "parse_instance",
    "parse_key_name",
    "parse_metadata_access",
    "parse_name",
    "parse_network",
    "parse_public_keys",
    "parse_request_id",
    "parse_resources_query",
    "parse_restart",
    "parse_seconds",
    "parse_uuid",
]

USER_DATA_MOST_BYTES = 65536
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ORDERS = ("spread", "pack", "random")  # schedule.yaml's policy: in which order hosts are tried
_NETWORK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,62}")


def parse_name(text: str, what: str = "instance name") -> str:
    """A DNS label, because an instance's name is its host name too; nothing that could be taken for a uuid.

    Raises:
        ConfigError: it is none.
    """
    if not _LABEL.fullmatch(text):
        raise ConfigError(f"{what} {quoted(text)} {_label_fault(text)}; allowed are 1 to 63 of a-z, 0-9 and -, as in web-1")
    if is_uuid(text) or re.fullmatch(r"[0-9a-f]{32}", text):
        raise ConfigError(f"{what} {text} looks like a uuid and could be taken for one; choose another")
    return text


def _label_fault(text: str) -> str:
    if not text:
        return "is empty"
    if len(text) > 63:
        return f"has {len(text)} characters"
    if text.startswith("-") or text.endswith("-"):
        return "begins or ends with -"
    if re.fullmatch(r"[-A-Za-z0-9]+", text):
        return "has capital letters"
    wrong = next(c for c in text if not re.fullmatch(r"[-A-Za-z0-9]", c))
    return "has a space" if wrong == " " else f"has {quoted(wrong)}"


def parse_hostname(text: str) -> str:
    """Like ``parse_name``: what the guest calls itself, without a domain."""
    return parse_name(text, "host name")


def parse_group(text: str) -> str:
    """Like ``parse_name``: a group whose instances are kept apart or together."""
    return parse_name(text, "group")


def parse_group_policy(text: str) -> GroupPolicy:
    """How the instances of a group are spread over hosts.

    Raises:
        ConfigError: it is no such policy.
    """
    known = [policy.value for policy in GroupPolicy]
    if text not in known:
        near = nearest(text, known)
        hint = f"; did you mean {near}?" if near else "" if text not in _ORDERS else "; the one of schedule.yaml is another"
        raise ConfigError(f"--policy {quoted(text)} of a group is none of {', '.join(known)}{hint}")
    return GroupPolicy(text)


def parse_network(text: str) -> str:
    """The name of a network, of the cluster or of libvirt.

    Raises:
        ConfigError: it has characters that we take no network to have.
    """
    if not _NETWORK.fullmatch(text):
        raise ConfigError(f"network {quoted(text)} is no name; allowed are 1 to 63 letters, digits, and _ . - behind the first")
    return text


def is_key_name(text: str) -> bool:
    """Whether *text* could be the name that ssh keys are kept under, and is not for certain a file."""
    return bool(_KEY_NAME.fullmatch(text)) and not text.endswith(".pub")


def parse_key_name(text: str) -> str:
    """The name that ssh keys are kept under; nothing that ``create --key`` takes for a file.

    Raises:
        ConfigError: it is none.
    """
    if not is_key_name(text):
        fault = "ends in .pub, as files do" if text.endswith(".pub") else "is none"
        raise ConfigError(
            f"key name {quoted(text)} {fault}; allowed are 1 to 63 letters, digits, and _ . @ + - behind the first, as in alice"
        )
    return text


def is_uuid(text: str) -> bool:
    """Whether *text* is a uuid as people write it: 8-4-4-4-12 hexadecimal digits."""
    return bool(_UUID.fullmatch(text))


def parse_uuid(text: str, what: str = "uuid") -> UUID:
    """The uuid that *text* is.

    Raises:
        ConfigError: it is none, or the one that is all zeros.
    """
    if not is_uuid(text):
        raise ConfigError(f"{what} {quoted(text)} is no uuid; it looks like 0b4fd7c1-6f5b-4c6e-9a0e-3d2c5a7e8f10")
    uuid = UUID(text)
    if not uuid.int:
        raise ConfigError(f"{what} {uuid} is the nil uuid, which names nothing; take another (uuidgen makes one)")
    return uuid


def parse_instance(text: str) -> UUID | str:
    """What follows ``show`` or ``destroy``: an instance's uuid, or its name.

    Raises:
        ConfigError: it can be neither.
    """
    return parse_uuid(text, "instance") if is_uuid(text) else parse_name(text)


def parse_request_id(text: str) -> str:
    """What the user repeats to have a request made once only.

    Raises:
        ConfigError: it is empty, long or not printable.
    """
    if not text or len(text) > 255 or not text.isprintable():
        raise ConfigError(f"request id {quoted(text)} is not taken; allowed are 1 to 255 printable characters")
    return text


def check_user_data(data: bytes, where: str = "--user-data") -> bytes:
    """*data*, where a guest may be given so much.

    Raises:
        ConfigError: it is larger than 64 KiB.
    """
    if len(data) > USER_DATA_MOST_BYTES:
        raise ConfigError(
            f"{where} has {len(data)} bytes, at most {USER_DATA_MOST_BYTES} (64 KiB) are taken; "
            "compress it (cloud-init reads gzip) or have the guest fetch the rest (#include)"
        )
    return data


def parse_restart(text: str) -> Restart:
    """When a guest that went down by itself is started again.

    Raises:
        ConfigError: it is no restart policy.
    """
    known = [r.value for r in Restart]
    if text not in known:
        near = nearest(text, known)
        raise ConfigError(f"restart {quoted(text)} is none of {', '.join(known)}" + (f"; did you mean {near}?" if near else ""))
    return Restart(text)


def parse_seconds(text: str, what: str, least: float = 0, most: float = 86400) -> float:
    """A number of seconds.

    Raises:
        ConfigError: it is no number, or not from *least* to *most*.
    """
    allowed = f"a number of seconds from {least:g} to {most:g}"
    try:
        value = float(text) if re.fullmatch(r"-?[0-9.]{1,30}", text) else math.nan
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{what} is {quoted(text)}, needs {allowed}")
    return value


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, what: str, most: float = 366 * 86400) -> float:
    """A span of time in seconds, from ``60``, ``60s``, ``5m``, ``1h`` or ``7d``.

    Raises:
        ConfigError: it is none, or longer than *most*.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", text)
    seconds = float(found[1]) * _UNITS[found[2]] if found else math.nan
    if not 0 <= seconds <= most:
        raise ConfigError(f"{what} is {quoted(text)}, needs a span of time such as 60s, 5m, 1h or 7d")
    return seconds


def parse_count(text: str, what: str, least: int = 1, most: int = 1000) -> int:
    """A whole number.

    Raises:
        ConfigError: it is none, or not from *least* to *most*.
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{what} is {quoted(text)}, needs a whole number from {least} to {most}")
    return int(text)


def parse_hop_limit(text: str, what: str = "--metadata-hop-limit") -> int:
    """How many hops an answer that holds a session token may go, as in ``parse_count``."""
    return parse_count(text, what, 1, MOST_HOPS)
