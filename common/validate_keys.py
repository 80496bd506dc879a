"""OpenSSH public keys as users give them, before they travel into a guest's authorized_keys.

Each key is taken apart to its last byte, because a line that was cut when it was copied looks like a key and lets nobody
in. What a wrong file holds is never repeated: it may be a private key or a password. Called through ``common/validate.py``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from common.errors import ConfigError

MOST_BYTES = 65536  # of one key file
MOST_KEYS = 100

# Type → number of fields behind the type's own name in the blob (RFC 4253 6.6, RFC 5656 3.1, RFC 8709, OpenSSH PROTOCOL.u2f).
_FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
KIND_NAMES = {  # as ssh-keygen -l names them (OpenSSH's sshkey.c), also those that are not taken
    "ssh-ed25519": "ED25519",
    "ssh-rsa": "RSA",
    "ssh-dss": "DSA",
    "ecdsa-sha2-nistp256": "ECDSA",
    "ecdsa-sha2-nistp384": "ECDSA",
    "ecdsa-sha2-nistp521": "ECDSA",
    "sk-ssh-ed25519@openssh.com": "ED25519-SK",
    "sk-ecdsa-sha2-nistp256@openssh.com": "ECDSA-SK",
}
_KINDS = "ssh-ed25519, ssh-rsa, ecdsa-sha2-nistp256/384/521 or their sk- forms"


def parse_public_keys(data: bytes | str, where: str = "--key") -> tuple[str, ...]:
    """The keys in *data*, one line each with type, key and comment; blank lines and ``#`` comments are passed over.

    Args:
        data: the content of a ``.pub`` or ``authorized_keys`` file, or one key.
        where: what to call it in a message, such as the file's path.

    Raises:
        ConfigError: it holds something else, or no key at all; one line, without its content.
    """
    text = _text(data, where)
    _refuse_other_formats(text, where)
    keys: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if stripped and not stripped.startswith("#"):
            keys.append(_key(stripped, f"{where}, line {number}"))
    if not keys:
        raise ConfigError(f"{where} holds no public key; give a file such as ~/.ssh/id_ed25519.pub (ssh-keygen makes one)")
    if len(keys) > MOST_KEYS:
        raise ConfigError(f"{where} holds {len(keys)} keys, at most {MOST_KEYS} are taken")
    return tuple(dict.fromkeys(keys))


def fingerprint(key: str) -> str:
    """What tells the checked *key* from others for people, as ``ssh-keygen -l`` writes it: ``SHA256:… (ED25519)``."""
    kind, encoded = key.split(" ")[:2]
    return blob_fingerprint(kind, base64.b64decode(encoded))


def blob_fingerprint(kind: str, blob: bytes) -> str:
    """As ``fingerprint``, of the key of that *kind* whose bytes are *blob*."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest} ({KIND_NAMES.get(kind, kind)})"


def _text(data: bytes | str, where: str) -> str:
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass"))
    if size > MOST_BYTES:
        raise ConfigError(f"{where} is no public key: it has {size} bytes, at most {MOST_BYTES} are read")
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is no public key: it is no text; give a file such as ~/.ssh/id_ed25519.pub") from None


def _refuse_other_formats(text: str, where: str) -> None:
    if "PRIVATE KEY-----" in text or "PuTTY-User-Key-File" in text:
        raise ConfigError(
            f"{where} is a PRIVATE key, which must never leave your machine; give the public one, which ends in .pub"
        )
    if "BEGIN SSH2 PUBLIC KEY" in text or "BEGIN PUBLIC KEY" in text or "BEGIN RSA PUBLIC KEY" in text:
        raise ConfigError(
            f"{where} is a public key of another format; convert it: ssh-keygen -i -f FILE (-m PKCS8 for a PEM file)"
        )


def _key(line: str, where: str) -> str:
    if not line.replace("\t", " ").isprintable():
        raise ConfigError(f"{where}: control characters in a key; give the file as ssh-keygen wrote it")
    kind, _, rest = line.replace("\t", " ").partition(" ")
    encoded, _, comment = rest.lstrip().partition(" ")
    if kind not in _FIELDS:
        raise ConfigError(f"{where}: {_wrong_kind(kind, line)}")
    if not encoded:
        raise ConfigError(f"{where}: the key behind {kind} is missing; the line was cut when it was copied")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"{where}: the key behind {kind} is no base64; the line was broken or cut when it was copied"
        ) from None
    _check_blob(kind, blob, where)
    return " ".join(part for part in (kind, encoded, comment.strip()) if part)


def _wrong_kind(kind: str, line: str) -> str:
    if kind in ("ssh-dss", "ssh-dsa"):
        return "a DSA key, which OpenSSH takes no more; make another: ssh-keygen -t ed25519"
    if "-cert-v0" in kind:
        return "a certificate, not a key; give the .pub file without -cert"
    if any(f" {known} " in line for known in _FIELDS):
        return "options stand before the key, and are not taken; begin the line with the key's type"
    return f"no OpenSSH public key; it begins with {_KINDS}"


def _check_blob(kind: str, blob: bytes, where: str) -> None:
    """Take *blob* apart into its length-prefixed fields, which must use it up and name *kind* first."""
    fields: list[bytes] = []
    rest = blob
    while rest:
        length = int.from_bytes(rest[:4], "big")
        if len(rest) < 4 + length:
            raise ConfigError(f"{where}: the key is cut short; copy the whole line again")
        fields.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    if not fields or fields[0] != kind.encode():
        raise ConfigError(f"{where}: the line says {kind}, but the key in it is of another type")
    if len(fields) != 1 + _FIELDS[kind] or not all(fields) or ("ed25519" in kind and len(fields[1]) != 32):
        raise ConfigError(f"{where}: the key has not the fields of {kind}; copy the whole line again")
