"""What user data looks like, and what is said of it before a guest boots with it."""

from __future__ import annotations

import gzip

import pytest

from common.user_data import doubt_about

MESSAGE = b"""Content-Type: multipart/mixed; boundary="===7=="
MIME-Version: 1.0

--===7==
Content-Type: text/cloud-config

hostname: x
--===7==--
"""


@pytest.mark.parametrize(
    "data",
    [
        b"#cloud-config\nhostname: x\n",
        b"#Cloud-Config\n",
        b"#cloud-config-archive\n- x\n",
        b"#!/bin/sh\ntrue\n",
        b"#include\nhttps://example.org/x\n",
        b"#include-once https://example.org/x\n",
        b"#cloud-boothook\n",
        b"#part-handler\n",
        b"## template: jinja\n#cloud-config\n",
        gzip.compress(b"#cloud-config\n", mtime=0),
        MESSAGE,
        MESSAGE.replace(b"\n", b"\r\n"),
        b'{"ignition": {"version": "3.4.0"}}',
    ],
)
def test_what_guests_know_is_not_doubted(data: bytes) -> None:
    assert doubt_about(data) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"\xef\xbb\xbf#cloud-config\n", "a byte order mark"),
        (b"\n#cloud-config\n", "stand before its first line"),
        (b"# cloud-config\n", "not #cloud-config to the letter"),
        (b"#!/bin/sh\r\ntrue\r\n", "as on Windows"),
        (b"echo secret", "begins like nothing that cloud-init knows"),
        (b"\x00\x01\x02", "begins like nothing that cloud-init knows"),
        (MESSAGE.replace(b'; boundary="===7=="', b""), "without a boundary"),
    ],
)
def test_what_they_most_likely_do_not_know_is_told_without_repeating_it(data: bytes, said: str) -> None:
    doubt = doubt_about(data)
    assert doubt is not None and said in doubt
    assert "secret" not in doubt
