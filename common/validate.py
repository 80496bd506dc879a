"""What users give on a command line, checked before anything is touched. Pure: no files, no network, no clock.

Each function returns the parsed value or raises ``ConfigError`` with one line: what is wrong, what is allowed, what to do.
This is the one door: the larger two, Placement's query string and ssh keys, have modules of their own behind it.
"""

from __future__ import annotations

import math
import re
from urllib.parse import urlsplit
from uuid import UUID

from common.errors import ConfigError
from common.model import GroupPolicy, ImageRef, Restart
from common.text import nearest, quoted
from common.validate_keys import parse_public_keys
from common.validate_query import RequestQuery, parse_resources_query

__all__ = [
    "USER_DATA_MOST_BYTES",
    "RequestQuery",
    "check_user_data",
    "is_uuid",
    "parse_checksum",
    "parse_count",
    "parse_group",
    "parse_group_policy",
    "parse_hostname",
    "parse_image",
    "parse_instance",
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
IMAGE_MOST_CHARACTERS = 4096
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DIGEST_HEX = {"sha256": 64, "sha512": 128}
_ORDERS = ("spread", "pack", "random")  # schedule.yaml's policy: in which order hosts are tried
_NETWORK = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


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
    """The name of a libvirt network.

    Raises:
        ConfigError: it has characters that we take no network to have.
    """
    if not _NETWORK.fullmatch(text):
        raise ConfigError(f"network {quoted(text)} is no name; allowed are 1 to 63 letters, digits, and _ . - behind the first")
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


def parse_image(text: str, checksum: str | None = None) -> ImageRef:
    """An ``http(s)://`` or ``file://`` URL or an absolute path, with the *checksum* that its bytes must have.

    Whether there is anything at that address only the host can say.

    Raises:
        ConfigError: it is none of these.
    """
    where = f"image {quoted(re.sub(r'//[^/?#]*@', '//…@', text))}"  # never with the password that it should not hold
    if not text:
        raise ConfigError("the image is empty; give an http(s):// or file:// URL or an absolute path")
    if len(text) > IMAGE_MOST_CHARACTERS or not text.isprintable():
        raise ConfigError(f"{where} is too long (over {IMAGE_MOST_CHARACTERS}) or has control characters")
    if text.startswith("/"):
        _check_image_path(where, text)
    else:
        _check_image_url(where, text)
    return ImageRef(text, None if checksum is None else parse_checksum(checksum))


def _check_image_path(where: str, path: str) -> None:
    if path.endswith("/"):
        raise ConfigError(f"{where} is a folder; give the path of a file")
    if path.startswith("//"):
        raise ConfigError(f"{where} begins with two slashes; write https:// before it, or take one away")


def _check_image_url(where: str, text: str) -> None:
    try:
        url = urlsplit(text)
        host, secret, _port = url.hostname, url.username is not None or url.password is not None, url.port
    except ValueError as error:
        raise ConfigError(f"{where} is no URL: {error}") from None
    if url.scheme not in ("http", "https", "file") or not text[len(url.scheme) :].startswith("://"):
        raise ConfigError(
            f"{where} is neither an http://, https:// or file:// URL nor an absolute path; "
            "a path begins with / and is looked up on the host that builds the instance"
        )
    if secret:
        # A spec is stored in etcd, shown by "show" and repeated in logs and statuses.
        raise ConfigError(
            f"the image's {url.scheme}:// address holds a user name or password, and would be stored and shown with it; "
            "serve the image without, or by a signed URL that expires"
        )
    if " " in text:
        raise ConfigError(f"{where} has a space; write %20")
    if url.scheme == "file":
        _check_file_url(where, url.netloc, url.path)
    elif not host:
        raise ConfigError(f"{where} names no host; it looks like https://images.example.org/debian.qcow2")


def _check_file_url(where: str, netloc: str, path: str) -> None:
    if netloc not in ("", "localhost"):
        raise ConfigError(f"{where} has two slashes before the path, needs three: file:///path/on/the/host")
    if not path.startswith("/") or path.endswith("/"):
        raise ConfigError(f"{where} names no file; it looks like file:///path/on/the/host.qcow2")


def parse_checksum(text: str) -> str:
    """``sha256:`` or ``sha512:`` and that many hexadecimal digits, in small letters.

    Raises:
        ConfigError: it is none.
    """
    algorithm, colon, digits = text.partition(":")
    if not colon and re.fullmatch(r"[0-9a-fA-F]+", text):
        found = next((a for a, length in _DIGEST_HEX.items() if length == len(text)), None)
        if found:
            raise ConfigError(f"checksum {quoted(text, 12)} does not say of what kind it is; write {found}: before it")
    wanted = _DIGEST_HEX.get(algorithm)
    if wanted is None:
        raise ConfigError(
            f"checksum {quoted(text, 40)} is of no known kind; write sha256:<64 hex digits> or sha512:<128 hex digits>"
        )
    if not re.fullmatch(r"[0-9a-fA-F]+", digits) or len(digits) != wanted:
        raise ConfigError(f"checksum {algorithm}: has {len(digits)} characters behind the colon, needs {wanted} hex digits")
    return f"{algorithm}:{digits.lower()}"


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


def parse_count(text: str, what: str, least: int = 1, most: int = 1000) -> int:
    """A whole number.

    Raises:
        ConfigError: it is none, or not from *least* to *most*.
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise ConfigError(f"{what} is {quoted(text)}, needs a whole number from {least} to {most}")
    return int(text)
