"""Images as users name them: addresses, names of the registry, checksums, and what is registered with them. Pure.

What is a name and what an address is told by the text alone: a name has neither a slash nor a file's ending, so that nobody who
has a file called debian.qcow2 gets another image. Called through ``common/validate.py``.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from common.errors import ConfigError
from common.image_records import PROPERTIES
from common.model import ImageRef
from common.text import nearest, quoted

IMAGE_MOST_CHARACTERS = 4096
_DIGEST_HEX = {"sha256": 64, "sha512": 128}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
_FILE_ENDINGS = (
    ".qcow2", ".qcow", ".img", ".raw", ".vmdk", ".vdi", ".vhd", ".vhdx", ".iso", ".gz", ".xz", ".zst", ".bz2", ".tar", ".ova",
)  # fmt: skip
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_MOST_PROPERTY_CHARACTERS = 255
_ADVICE = (
    "the hosts do not see this machine's files: serve it by http and give its URL (eschedule image add NAME URL --sha256 HEX "
    "gives it a name), or put it on the hosts and give its absolute path there"
)


def is_image_name(text: str) -> bool:
    """Whether *text* could be the name of a registered image, and is neither an address nor a file."""
    return bool(_NAME.fullmatch(text)) and not text.lower().endswith(_FILE_ENDINGS)


def parse_image_name(text: str) -> str:
    """The name that an image is registered under; nothing that could be taken for a file or an address.

    Raises:
        ConfigError: it is none.
    """
    if not is_image_name(text):
        fault = "ends as files do" if _NAME.fullmatch(text) else "is none"
        raise ConfigError(
            f"image name {quoted(text)} {fault}; allowed are 1 to 63 letters, digits, and _ . + - behind the first"
        )
    return text


def parse_image(text: str, checksum: str | None = None) -> ImageRef:
    """An ``http(s)://`` or ``file://`` URL or an absolute path, with the *checksum* that its bytes must have.

    Whether there is anything at that address only the host can say.

    Raises:
        ConfigError: it is none of these.
    """
    where = f"image {quoted(re.sub(r'//[^/?#]*@', '//…@', text))}"  # never with the password that it should not hold
    if not text:
        raise ConfigError("the image is empty; give its registered name, an http(s):// or file:// URL or an absolute path")
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
        if not url.scheme and ("/" in text or text[0] in ".~" or text.lower().endswith(_FILE_ENDINGS)):
            raise ConfigError(f"{where} is a path on this machine; {_ADVICE}")
        raise ConfigError(
            f"{where} is neither a name (eschedule image list), an http://, https:// or file:// URL nor an absolute path; "
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


def parse_user(text: str) -> str:
    """The user whom an image lets log in.

    Raises:
        ConfigError: no system has such a user.
    """
    if not _USER.fullmatch(text):
        raise ConfigError(f"--user {quoted(text)} is no user name; it looks like debian")
    return text


def parse_property(text: str) -> tuple[str, str]:
    """One ``KEY=VALUE`` by Glance's names; only what is honoured is taken.

    Raises:
        ConfigError: it is none of those.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--property {quoted(text)} is no KEY=VALUE; it looks like hw_disk_bus=sata")
    if name not in PROPERTIES:
        near = nearest(name, PROPERTIES)
        hint = f"did you mean {near}?" if near else f"known are {', '.join(PROPERTIES)}"
        raise ConfigError(f"--property {quoted(name)} is not honoured; {hint}")
    kind = PROPERTIES[name]
    if kind is not None and value not in list(kind):
        raise ConfigError(f"--property {name} is {quoted(value)}, needs one of {', '.join(kind)}")
    if not value or len(value) > _MOST_PROPERTY_CHARACTERS or not value.isprintable():
        raise ConfigError(
            f"--property {name} is {quoted(value)}; allowed are 1 to {_MOST_PROPERTY_CHARACTERS} printable characters"
        )
    return name, value
