"""What user data looks like, so that a slip is told before a guest boots with it and says nothing. Pure.

Nothing is refused for its form: guests read user data by programs of their own, and what cloud-init does not know it hands on.
The forms are those of cloud-init (``cloudinit/handlers``, ``cloudinit/user_data.py``) and of Ignition.
"""

from __future__ import annotations

import re

_STARTS = (
    b"#cloud-config", b"#!", b"#include", b"#cloud-boothook", b"#part-handler", b"## template: jinja",
)  # fmt: skip
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_LOOKED_AT = 4096  # as far as cloud-init looks for the headers of a message
_IGNITION = re.compile(rb'\s*\{\s*"ignition"')


def doubt_about(data: bytes) -> str | None:
    """Why cloud-init will most likely make nothing of *data*, in words that never repeat it; None where it looks right."""
    if data.startswith(_BYTE_ORDER_MARKS):
        return "it begins with a byte order mark, behind which cloud-init recognises nothing; save it as UTF-8 without one"
    if data.startswith(_GZIP) or _IGNITION.match(data):
        return None
    if b"mime-version:" in data[:_LOOKED_AT].lower():
        return _doubt_about_message(data)
    start = data[:64].lower()
    if not start.startswith(_STARTS):
        return _doubt_about_start(data, start)
    if start.startswith(b"#!") and data.partition(b"\n")[0].endswith(b"\r"):
        return "its first line ends as on Windows, so that no interpreter will be found; save it with Unix line ends"
    return None


def _doubt_about_message(data: bytes) -> str | None:
    head = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0].lower()
    if b"content-type: multipart/" in head and not re.search(rb'boundary="?[^";\s]', head):
        return "it is a multipart message without a boundary; make it with: cloud-init devel make-mime"
    return None


def _doubt_about_start(data: bytes, start: bytes) -> str:
    if not data.strip():
        return "it is empty"
    if data.lstrip().lower().startswith(_STARTS):
        return "blanks or empty lines stand before its first line, by which cloud-init recognises it; take them away"
    if start.startswith((b"# cloud-config", b"#cloud config", b"#cloud_config")):
        return "its first line is not #cloud-config to the letter, so that cloud-init passes over it"
    return (
        "it begins like nothing that cloud-init knows (#cloud-config, #!, #include, a multipart message, gzip); "
        "the guest can read it all the same"
    )
