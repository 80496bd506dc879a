"""What a guest says when it is ready: the forms, host keys, bounds, and how often it may. The gabbi suite has the rest."""

from __future__ import annotations

import base64
import json
import subprocess
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidSpec
from common.reports import MESSAGE_BYTES, MOST_HOST_KEYS, GuestReport
from md_server.limiter import Pace
from md_server.ready import fingerprint, is_known_form, report_of

AT = "2026-01-02T03:04:05.000Z"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEmVhMFl3F9MsVlrXyGgH5mCmnlMbUyVVj3+sYyCLGGs"
PRINT = "SHA256:PnSV6QkhMUd3Hp+B/VKUuCbU0K12lJaui98OYwbF7gU (ED25519)"
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(("kind", "bits"), [("ed25519", ""), ("ecdsa", "256"), ("ecdsa", "521"), ("rsa", "2048")])
def test_a_fingerprint_is_what_ssh_keygen_says(tmp_path, kind, bits):
    more = ["-b", bits] if bits else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *more, "-N", "", "-C", "root@a b", "-f", tmp_path / "key"], check=True)
    told = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key.pub"], check=True, capture_output=True, text=True
    ).stdout.split()
    assert fingerprint((tmp_path / "key.pub").read_text()) == f"{told[1]} {told[-1]}"


@pytest.mark.parametrize(
    "key",
    ["", "x", "ssh-ed25519", "ssh-ed25519 !", "ssh-ed25519 ☃", "ssh-ed25519 AAAA", KEY.replace("ssh-ed25519", "ssh-rsa"),
     KEY.replace("ssh-ed25519", "ssh-mine"), "N/A", "SHA256:abc (ED25519)", PRINT + "\n", PRINT.replace("ED25519", "ED"),
     PRINT.removesuffix(" (ED25519)"), "MD5:00:11 (RSA)"],
)  # fmt: skip
def test_what_is_no_key_has_no_fingerprint(key):
    assert fingerprint(key) is None


def test_each_form_says_the_same():
    said = GuestReport(AT, "done", (PRINT,))
    assert (
        report_of("application/json; charset=utf-8", json.dumps({"message": "done", "host_keys": [KEY, PRINT]}).encode(), AT)
        == said
    )
    form = urlencode({"message": "done", "pub_key_ed25519": KEY + " root@vm\n", "pub_key_rsa": "N/A", "hostname": "vm"})
    assert report_of(FORM, form.encode(), AT) == said
    assert report_of("", b"done\n", AT) == GuestReport(AT, "done")
    assert report_of("Text/Plain", b"a=b", AT) == GuestReport(AT, "a=b")
    assert report_of(FORM, b"load=0.5 all is well", AT) == GuestReport(AT, "load=0.5 all is well")  # as curl -d sends it


@pytest.mark.parametrize(
    "content_type", ["application/xml", "multipart/form-data; boundary=x", "application/jsonx", "*/*", "a, b"]
)
def test_other_forms_are_not_known(content_type):
    assert not is_known_form(content_type)


@pytest.mark.parametrize(
    "body", [b"[" * 4096, b'{"a":' * 800, b"1" * 4096, b'{"message": null}', b'{"host_keys": [null]}', b"\xff", b"NaN", b""]
)
def test_json_that_is_wrong_is_refused_and_costs_nothing_else(body):
    with pytest.raises(InvalidSpec):
        report_of("application/json", body, AT)


def test_a_form_with_too_many_fields_is_refused():
    with pytest.raises(InvalidSpec, match="32 fields"):
        report_of(FORM, b"a=b&" * 100, AT)


def test_a_long_message_is_cut_between_characters():
    message = report_of("", "é".encode() * 1000, AT).message
    assert (len(message.encode()), set(message)) == (MESSAGE_BYTES, {"é"})


@given(st.sampled_from(["application/json", FORM, "text/plain", ""]), st.binary(max_size=4096))
def test_whatever_comes_is_a_report_within_its_bounds_or_refused(content_type, body):
    try:
        report = report_of(content_type, body, AT)
    except InvalidSpec as error:
        assert str(error).isprintable()
        return
    assert report == report.bounded()
    assert len(report.host_keys) <= MOST_HOST_KEYS


@given(st.recursive(st.none() | st.text() | st.integers(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)))
def test_whatever_json_comes_is_a_report_or_refused(value):
    body = json.dumps({"message": value, "host_keys": value}).encode()
    try:
        report_of("application/json", body, AT)
    except InvalidSpec as error:
        assert str(error).isprintable()


def test_a_key_s_digest_is_of_the_key_alone():
    assert fingerprint(KEY) == fingerprint(KEY + " somebody@else") == PRINT
    assert fingerprint(f"ssh-ed25519 {base64.b64encode(b'x').decode()}") is None


def test_a_pace_lets_some_pass_at_once_and_then_one_each_time():
    now = 100.0
    pace = Pace(2.0, 3, lambda: now)
    assert [pace.wait_seconds("a") for _ in range(5)] == [0, 0, 0, 2.0, 2.0]
    assert pace.wait_seconds("b") == 0
    now += 1.5
    assert pace.wait_seconds("a") == 0.5
    now += 0.5
    assert [pace.wait_seconds("a") for _ in range(2)] == [0, 2.0]
    now += 60
    assert [pace.wait_seconds("a") for _ in range(4)] == [0, 0, 0, 2.0]
    assert set(pace._due) == {"a"}  # who comes no more is forgotten
