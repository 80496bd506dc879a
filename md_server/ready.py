"""What a guest says when it is ready, in whichever form it says it: JSON, cloud-init's phone_home, or plain text. Pure.

Whoever writes a JSON is told what is wrong with it. From the other forms is taken what is there: cloud-init would send the same
again ten times, and the boot would wait for it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from common.errors import InvalidSpec
from common.reports import MOST_HOST_KEYS, GuestReport
from common.text import quoted
from common.validate_keys import KIND_NAMES, blob_fingerprint

JSON, FORM, TEXT = "application/json", "application/x-www-form-urlencoded", "text/plain"
_MOST_FIELDS = 32  # of a form; phone_home sends seven
_FINGERPRINT = re.compile(rf"SHA256:[A-Za-z0-9+/]{{43}} \(({'|'.join(sorted(set(KIND_NAMES.values())))})\)")


def is_known_form(content_type: str) -> bool:
    """Whether ``report_of`` takes it; none at all is plain text."""
    return _media_type(content_type) in (JSON, FORM, TEXT, "")


def report_of(content_type: str, body: bytes, at: str) -> GuestReport:
    """What *body* says, within the bounds of a report; *at*: when it came.

    Raises:
        InvalidSpec: it says nothing that can be understood; in words for the guest.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidSpec("the body is not UTF-8") from error
    kind = _media_type(content_type)
    if kind == JSON:
        message, keys = _from_json(text)
    elif kind == FORM:
        message, keys = _from_form(text)
    else:
        message, keys = text, ()
    return GuestReport(at, message, tuple(keys)).bounded()


def fingerprint(key: str) -> str | None:
    """The fingerprint of a public key as OpenSSH writes keys, or of what is a fingerprint already; None where it is neither."""
    if _FINGERPRINT.fullmatch(key):
        return key
    words = key.split(None, 2)
    if len(words) < 2 or words[0] not in KIND_NAMES:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):  # the latter: what is no ASCII
        return None
    name = words[0].encode()
    if not blob.startswith(len(name).to_bytes(4, "big") + name):  # RFC 4253, 6.6: each key begins with the name of its kind
        return None
    return blob_fingerprint(words[0], blob)


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _from_json(text: str) -> tuple[str, Sequence[str]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec("the body is no JSON") from error
    if not isinstance(found, dict):
        raise InvalidSpec('the body is no JSON object such as {"message": "…", "host_keys": ["ssh-ed25519 AAAA…"]}')
    message, keys = found.get("message", ""), found.get("host_keys", [])
    if not isinstance(message, str):
        raise InvalidSpec("message is no text")
    if not isinstance(keys, list):
        raise InvalidSpec("host_keys is no list")
    if len(keys) > MOST_HOST_KEYS:
        raise InvalidSpec(f"host_keys has {len(keys)} entries, at most {MOST_HOST_KEYS} are taken")
    return message, [_checked(key) for key in keys]


def _checked(key: Any) -> str:
    found = fingerprint(key) if isinstance(key, str) else None
    if found is None:
        what = quoted(key) if isinstance(key, str) else "an entry that is no text"
        raise InvalidSpec(f"host_keys: {what} is neither a public key of ssh nor its fingerprint, such as SHA256:… (ED25519)")
    return found


_FIELDS = ("message", "instance_id", "hostname", "fqdn")  # the others of cloud-init's phone_home


def _from_form(text: str) -> tuple[str, Sequence[str]]:
    """cloud-init's ``pub_key_…`` fields, and ``message``. ``curl -d`` sends plain text under this name, too."""
    if "=" not in text:
        return text, ()
    try:
        fields = dict(parse_qsl(text, max_num_fields=_MOST_FIELDS))
    except ValueError as error:
        raise InvalidSpec(f"the form has more than {_MOST_FIELDS} fields") from error
    if not any(name in _FIELDS or name.startswith("pub_key_") for name in fields):
        return text, ()  # text with an "=" in it
    keys = [fingerprint(value) for name, value in sorted(fields.items()) if name.startswith("pub_key_")]
    return fields.get("message", ""), [key for key in keys if key is not None]
